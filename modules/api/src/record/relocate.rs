//! The record's PostgreSQL moves from its primary to a standby that follows it, while processes write and read.
//!
//! Four steps, each with precheck, go, verify and abort: *replication* (the standby follows closely), *reads* (it answers as the primary does, and
//! servers read there where their `replica_url` says so), *writes* (the primary takes none any more, and the standby has all there are), *promote* (the standby is the primary).
//!
//! Invariants:
//! - until the standby is asked to take over, whatever fails or is stopped is undone, and writes go on where they were;
//! - from then on the old primary takes no writes, also after a restart: the standby may take over at any time, and only its own restart takes
//!   the request back;
//! - nobody's write is refused: a writer that was ended looks among its hosts for one that takes writes, and waits while there is none.
//!
//! The standby is a streaming one, so sequences, the outbox's order and everything else come along as they are. Deliberately absent: making it
//! (`pg_basebackup`), and taking the old primary down.

use super::{OpenError, database::READER, operate, postgres::Server, tls::Tls};
use crate::settings::{DatabaseUrl, RecordSettings};
use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio_postgres::{Client, error::SqlState, types::FromSql};
use tokio_util::sync::CancellationToken;

/// WAL that a standby may lack before writes are stopped for it, in bytes.
const CLOSE: i64 = 1 << 20;
const LOOK: Duration = Duration::from_millis(5);
/// A standby that takes a request up shows it neither as waiting nor as taken up for less than this.
const TAKEN_UP: Duration = Duration::from_millis(100);
/// A standby that does not get close in this time never will.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(600);
/// After promotion, for processes to have left the old primary.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);
/// Every process asks for changes more often than this, and so finds the new primary.
const FOUND_WITHIN: Duration = Duration::from_secs(1);
/// For servers that have just been told of their replica.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Rows younger than this may be on their way while both are compared.
const SETTLED: &str = "interval '2 seconds'";
const FENCE: &str = "default_transaction_read_only";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Replication,
    Reads,
    Writes,
    Promote,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Replication, Self::Reads, Self::Writes, Self::Promote];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replication => "replication",
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Promote => "promote",
        })
    }
}

/// What happens, for the operator to read while it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Passed {
    pub stage: Stage,
    pub what: String,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Relocated {
    /// As far as it was asked; writes go on at the old primary. `pause`: for how long nobody could write, where that was tried.
    Ready { pause: Option<Duration> },
    /// The standby is the primary. `checksum`: of every row of every table, the same on both as of the fence.
    Moved { pause: Duration, rows: u64, checksum: String },
    /// It was already, by an earlier run or by hand. `segments`: of the old primary's latest, the same on both; servers may have changed the rest.
    MovedBefore { segments: u64 },
}

struct End {
    client: Client,
    config: tokio_postgres::Config,
    tls: Tls,
    name: String,
}

/// Why a step was not done.
type Failed = String;

/// How far a move goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The last step to take.
    pub until: Stage,
    /// How long nobody may be able to write until the standby is asked to take over; how long that takes is up to it.
    pub pause: Duration,
    /// How long to wait for it then.
    pub takes_over_within: Duration,
    /// The settings of servers name the standby as their replica: the step of reads waits until they read there.
    pub reads_there: bool,
    /// As in the settings of the record.
    pub ca: Option<PathBuf>,
    /// Cancelled, it undoes what can be undone: everything, until the standby is asked to take over.
    pub stop: CancellationToken,
}

/// Goes through the steps of the plan. After one that ended between request and promotion it goes on from there.
///
/// # Errors
/// What stands in the way; then everything is as it was, unless it says otherwise.
pub async fn relocate(from: &DatabaseUrl, to: &DatabaseUrl, plan: Plan, mut tell: impl FnMut(Passed)) -> Result<Relocated, OpenError> {
    let ca = plan.ca.as_ref();
    let (from, to) = (End::reach(from, "the primary", ca).await?, End::reach(to, "the standby", ca).await?);
    let moving = Moving { from, to, pause: plan.pause };
    moving.run(&plan, &mut tell).await.map_err(|reason| OpenError::Server { server: moving.to.name.clone(), reason })
}

/// Opens the primary again after a move that was cut off in its pause.
///
/// # Errors
/// The standby has been promoted or asked to take over, or nobody can tell: then the primary stays as it is.
pub async fn abort(from: &DatabaseUrl, to: &DatabaseUrl, ca: Option<&PathBuf>) -> Result<(), OpenError> {
    let (from, to) = (End::reach(from, "the primary", ca).await?, End::reach(to, "the standby", ca).await?);
    let moving = Moving { from, to, pause: Duration::ZERO };
    let reopened = async {
        if !moving.to.one::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err("it takes writes itself: opening the other one would make two records of one".to_owned());
        }
        if moving.is_asked().await? {
            return Err(
                "it has been asked to take over, and may do so at any time: restart it, which takes that back, and try again".into()
            );
        }
        moving.unfence().await
    };
    reopened.await.map_err(|reason| OpenError::Server { server: moving.to.name.clone(), reason })
}

struct Moving {
    from: End,
    to: End,
    pause: Duration,
}

impl Moving {
    async fn run(&self, plan: &Plan, tell: &mut impl FnMut(Passed)) -> Result<Relocated, Failed> {
        let (until, stop) = (plan.until, &plan.stop);
        if !unless_stopped(stop, self.check_pair()).await? {
            return self.go_on(plan, tell).await;
        }
        let mut passed = |stage: Stage, what: String| tell(Passed { stage, what });
        let lag = unless_stopped(stop, self.follow()).await?;
        passed(Stage::Replication, format!("it follows; {} bytes behind, all of them here after {} ms", lag.0, lag.1.as_millis()));
        if until == Stage::Replication {
            return Ok(Relocated::Ready { pause: None });
        }
        let rows = unless_stopped(stop, self.answers_alike()).await?;
        let readers = match unless_stopped(stop, self.readers(plan.reads_there)).await? {
            0 => "no server reads there, because api.record.replica_url names none".to_owned(),
            readers => format!("servers read there by {readers} connections"),
        };
        passed(Stage::Reads, format!("it answers as the primary does; {rows} rows compared; {readers}"));
        if until == Stage::Reads {
            return Ok(Relocated::Ready { pause: None });
        }
        unless_stopped(stop, self.check_quiet()).await?;
        let began = Instant::now();
        if let Err(failed) = unless_stopped(stop, self.fence(began)).await {
            return Err(self.abort(&failed, began).await);
        }
        passed(Stage::Writes, format!("nobody writes, and it has all there is; {} ms so far", began.elapsed().as_millis()));
        if until == Stage::Writes {
            self.unfence().await?;
            return Ok(Relocated::Ready { pause: Some(began.elapsed()) });
        }
        // Begun before promotion, it goes on showing the standby as it was then.
        let before = match unless_stopped(stop, self.snapshot()).await {
            Ok(before) => before,
            Err(failed) => return Err(self.abort(&failed, began).await),
        };
        self.ask(began).await?;
        self.take_over(&before, began, plan, tell).await
    }

    /// The primary is closed: an earlier run has moved it, or was cut off.
    async fn go_on(&self, plan: &Plan, tell: &mut impl FnMut(Passed)) -> Result<Relocated, Failed> {
        let closed = format!("{} takes no writes already ({FENCE} is on)", self.from.name);
        if self.to.one::<bool>("SELECT pg_is_in_recovery()").await? && !self.is_asked().await? {
            return Err(format!("{closed}: a move was cut off, which `--abort` undoes"));
        }
        if plan.until != Stage::Promote {
            return Err(format!("{closed}: it was moved, or is being moved, which `--until promote` sees to the end"));
        }
        // Closing it was the last change of its settings.
        let closed_ms: i64 = self
            .from
            .one("SELECT (extract(epoch FROM now() - (pg_stat_file('postgresql.auto.conf')).modification) * 1000)::bigint")
            .await?;
        let closed = Duration::from_millis(u64::try_from(closed_ms).unwrap_or_default());
        let began = Instant::now().checked_sub(closed).unwrap_or_else(Instant::now);
        let before = self.snapshot().await?;
        // Asked now, and not as of the snapshot: what that shows is then from before promotion.
        if before.one::<bool>("SELECT pg_is_in_recovery()").await? {
            return self.take_over(&before, began, plan, tell).await;
        }
        drop(before);
        tell(Passed { stage: Stage::Promote, what: "it takes writes already; comparing what never changes".into() });
        let last: i64 = self.from.one("SELECT coalesce(max(row_id), 0) FROM segments").await?;
        let Some(segments) = self.segments_alike(&format!("row_id <= {last}")).await? else {
            return Err(format!(
                "it takes writes, and its segments differ from those of {}, which takes none: compare both, unless conversations were \
                 erased here since",
                self.from.name
            ));
        };
        self.left_behind().await?;
        Ok(Relocated::MovedBefore { segments })
    }

    /// Precheck of replication. False: the primary is closed already.
    async fn check_pair(&self) -> Result<bool, Failed> {
        let (from, to) = (&self.from, &self.to);
        for end in [from, to] {
            if !end.one::<bool>("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").await? {
                return Err(format!("{} is reached as a user who is no superuser; moving it needs one", end.name));
            }
        }
        if from.one::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err(format!("{} is a standby itself; expected the primary to move from", from.name));
        }
        let open = from.again().await?.one::<String>(&format!("SHOW {FENCE}")).await? == "off";
        let identity = "SELECT system_identifier::text FROM pg_control_system()";
        let kin = from.one::<String>(identity).await? == to.one::<String>(identity).await?;
        if !kin || open && !to.one::<bool>("SELECT pg_is_in_recovery()").await? {
            return Err(format!(
                "it is no standby of {}; expected one made by `pg_basebackup --write-recovery-conf --wal-method stream` from there",
                from.name
            ));
        }
        if !open {
            return Ok(false);
        }
        let streams = "SELECT EXISTS (SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming')";
        if !to.one::<bool>(streams).await? {
            return Err("it does not stream: look at its log, and at primary_conninfo".into());
        }
        Ok(true)
    }

    /// Go and verify of replication: how far behind it was, and how long what was written until now took to get there.
    async fn follow(&self) -> Result<(i64, Duration), Failed> {
        let give_up = Instant::now() + FOLLOWS_WITHIN;
        let lag = loop {
            let lag = self.lag().await?;
            if lag <= CLOSE {
                break lag;
            }
            if Instant::now() >= give_up {
                return Err(format!("it is still {lag} bytes behind after {} s", FOLLOWS_WITHIN.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let began = Instant::now();
        let wanted: String = self.from.one("SELECT pg_current_wal_flush_lsn()::text").await?;
        self.arrives(&wanted, began + self.pause.max(Duration::from_secs(2))).await?;
        Ok((lag, began.elapsed()))
    }

    async fn lag(&self) -> Result<i64, Failed> {
        let at: String = self.from.one("SELECT pg_current_wal_flush_lsn()::text").await?;
        self.to.one(&format!("SELECT greatest(pg_wal_lsn_diff('{at}', pg_last_wal_replay_lsn()), 0)::bigint")).await
    }

    async fn arrives(&self, wanted: &str, until: Instant) -> Result<(), Failed> {
        while !self.to.one::<bool>(&format!("SELECT pg_last_wal_replay_lsn() >= '{wanted}'::pg_lsn")).await? {
            if Instant::now() >= until {
                return Err(format!("it does not show {wanted} in time; it is {} bytes behind", self.lag().await?));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Verify of reads: connections of servers that read there. Their go is `replica_url` in the file that running servers read again.
    async fn readers(&self, expected: bool) -> Result<i64, Failed> {
        let there =
            format!("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = '{READER}'");
        let until = Instant::now() + READ_WITHIN;
        loop {
            match self.to.one::<i64>(&there).await? {
                0 if expected && Instant::now() >= until => {
                    return Err(format!(
                        "api.record.replica_url names it, and no server reads there after {} s: do they run with this configuration, and \
                         does it let them in?",
                        READ_WITHIN.as_secs()
                    ));
                }
                0 if expected => tokio::time::sleep(Duration::from_millis(50)).await,
                readers => return Ok(readers),
            }
        }
    }

    /// Precheck of reads: what has settled reads the same on both.
    async fn answers_alike(&self) -> Result<u64, Failed> {
        let until: String = self.from.one(&format!("SELECT ((now() AT TIME ZONE 'UTC') - {SETTLED})::text")).await?;
        let wanted: String = self.from.one("SELECT pg_current_wal_flush_lsn()::text").await?;
        self.arrives(&wanted, Instant::now() + Duration::from_secs(10)).await?;
        let alike = self.segments_alike(&format!("created_at < '{until}'::timestamp")).await?;
        alike.ok_or_else(|| "it answers otherwise than the primary".into())
    }

    /// How many of the latest of these segments were compared; `None`: they differ.
    async fn segments_alike(&self, which: &str) -> Result<Option<u64>, Failed> {
        let read = format!(
            "SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(s::text, 0)::numeric), 0)::text
             FROM (SELECT * FROM segments WHERE {which} ORDER BY row_id DESC LIMIT 10000) s"
        );
        let (ours, theirs): (String, String) = (self.from.one(&read).await?, self.to.one(&read).await?);
        Ok((ours == theirs).then(|| rows_of(&ours)))
    }

    /// Precheck of writes.
    async fn check_quiet(&self) -> Result<(), Failed> {
        let lag = self.lag().await?;
        if lag > CLOSE {
            return Err(format!("it is {lag} bytes behind; expected at most {CLOSE} before writes are stopped"));
        }
        let long = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
             AND backend_xid IS NOT NULL AND xact_start < now() - interval '{} milliseconds'",
            self.pause.as_millis()
        );
        match self.from.one::<i64>(&long).await? {
            0 => Ok(()),
            n => Err(format!("{n} transactions have been writing for longer than the pause may last; end them first (pg_stat_activity)")),
        }
    }

    /// Go and verify of writes.
    async fn fence(&self, began: Instant) -> Result<(), Failed> {
        let (from, until) = (&self.from, began + self.pause);
        from.run(&format!("ALTER SYSTEM SET {FENCE} = on")).await?;
        from.run("SELECT pg_reload_conf()").await?;
        // Who comes from now on is told; who is there already is ended, so that nothing under way commits later.
        while from.again().await?.one::<String>(&format!("SHOW {FENCE}")).await? != "on" {
            in_time(until, "the primary has not read its settings")?;
        }
        let writers = format!(
            "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> '{READER}'"
        );
        let others: Vec<i32> = from.all(&format!("SELECT pid {writers}")).await?;
        let pids = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        from.run(&format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{pids}]::int[]) AS pid")).await?;
        let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (ARRAY[{pids}]::int[])");
        while from.one::<i64>(&alive).await? > 0 {
            in_time(until, "writers do not end")?;
            tokio::time::sleep(LOOK).await;
        }
        // A record of its own: the place where the next one would go may lie behind a page's head, which nobody replays.
        let last: String = from.one("SELECT pg_create_restore_point('quickcomm db move')::text").await?;
        // What was inserted and not yet written out is, by this.
        from.run("SELECT pg_switch_wal()").await?;
        self.arrives(&last, until).await?;
        let writing = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND backend_xid IS NOT NULL";
        match from.one::<i64>(writing).await? {
            0 => Ok(()),
            n => Err(format!("{n} sessions still write")),
        }
    }

    async fn unfence(&self) -> Result<(), Failed> {
        self.from.run(&format!("ALTER SYSTEM RESET {FENCE}")).await?;
        self.from.run("SELECT pg_reload_conf()").await?;
        while self.from.again().await?.one::<String>(&format!("SHOW {FENCE}")).await? != "off" {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn abort(&self, failed: &str, began: Instant) -> Failed {
        match self.unfence().await {
            Ok(()) => format!("{failed}; writes go on at {} after {} ms, as before", self.from.name, began.elapsed().as_millis()),
            Err(error) => format!(
                "{failed}; and {} could not be opened again ({error}): run `ALTER SYSTEM RESET {FENCE}; SELECT pg_reload_conf()` there",
                self.from.name
            ),
        }
    }

    async fn snapshot(&self) -> Result<End, Failed> {
        let before = self.to.again().await?;
        before.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        before.one::<i32>("SELECT 1").await?;
        Ok(before)
    }

    /// Go of promote. From here on nobody can take it back.
    async fn ask(&self, began: Instant) -> Result<(), Failed> {
        const UNASKED: &str = "it could not be asked to take over";
        if let Err(late) = in_time(began + self.pause, UNASKED) {
            return Err(self.abort(&late, began).await);
        }
        match self.to.one::<bool>("SELECT pg_promote(false)").await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.abort(UNASKED, began).await),
            Err(failed) => match self.is_asked().await {
                Ok(false) => Err(self.abort(&failed, began).await),
                _ => Err(format!("{failed}; nobody can tell whether it was asked to take over, so {}", self.what_to_do())),
            },
        }
    }

    /// Of a standby: whether it is about to take over, or has just done so. A request stands until it is met, however long that takes, or the
    /// standby is restarted.
    async fn is_asked(&self) -> Result<bool, Failed> {
        // It is this file until the standby takes it up; from then on replay can be neither paused nor resumed.
        if self.to.one::<bool>("SELECT (pg_stat_file('promote', true)).size IS NOT NULL").await? {
            return Ok(true);
        }
        tokio::time::sleep(TAKEN_UP).await;
        let leave_as_it_is = "DO $$ BEGIN
            IF pg_is_wal_replay_paused() THEN PERFORM pg_wal_replay_pause(); ELSE PERFORM pg_wal_replay_resume(); END IF;
        END $$";
        match self.to.client.batch_execute(leave_as_it_is).await {
            Ok(()) => Ok(false),
            Err(error) if error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => Ok(true),
            Err(error) => Err(self.to.failure(&error)),
        }
    }

    /// Verify of promote, once it was asked for: the standby takes writes, and has every row.
    async fn take_over(&self, before: &End, began: Instant, plan: &Plan, tell: &mut impl FnMut(Passed)) -> Result<Relocated, Failed> {
        let mut passed = |what: String| tell(Passed { stage: Stage::Promote, what });
        passed(format!("asked to take over, which nobody can take back; {} ms so far", began.elapsed().as_millis()));
        let give_up = Instant::now() + plan.takes_over_within;
        loop {
            match self.to.one::<bool>("SELECT pg_is_in_recovery()").await {
                Ok(false) => break,
                Ok(true) if Instant::now() < give_up => tokio::time::sleep(LOOK).await,
                Ok(true) => {
                    let waited = plan.takes_over_within.as_secs();
                    return Err(format!("it was asked to take over, and is a standby still after {waited} s; {}", self.what_to_do()));
                }
                Err(lost) => return Err(format!("{lost}, after it was asked to take over; {}", self.what_to_do())),
            }
        }
        let pause = began.elapsed();
        let longer = match pause.saturating_sub(plan.pause).as_millis() {
            0 => String::new(),
            ms => format!(", {ms} ms longer than was allowed"),
        };
        passed(format!("it takes writes; nobody could for {} ms{longer}; comparing every row", pause.as_millis()));
        let (rows, checksum) = self.same(before).await?;
        self.left_behind().await?;
        Ok(Relocated::Moved { pause, rows, checksum })
    }

    /// Of a standby that may take over at any time.
    fn what_to_do(&self) -> String {
        format!(
            "{} takes no writes, and stays so. The same command again waits for it, and ends when it takes writes. To go back instead, restart \
             it, which takes the request back; if it is a standby then, `--abort` opens the old primary",
            self.from.name
        )
    }

    /// Verify of promote: every row of every table, as of the fence.
    async fn same(&self, before: &End) -> Result<(u64, String), Failed> {
        let tables = "SELECT table_name::text FROM information_schema.tables
                      WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1";
        let mut parts = vec![];
        let mut rows = 0;
        for table in before.all::<String>(tables).await? {
            let sum =
                format!("SELECT count(*)::text || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM \"{table}\" t");
            let (ours, theirs): (String, String) = (self.from.one(&sum).await?, before.one(&sum).await?);
            if ours != theirs {
                return Err(format!(
                    "it was promoted, but the table {table} differs ({ours} on the old primary, {theirs} here, as rows and their sum); \
                     the old primary takes no writes and is as it was: compare before going on"
                ));
            }
            rows += rows_of(&ours);
            parts.push(format!("{table} {ours}"));
        }
        use sha2::Digest as _;
        Ok((rows, hex::encode(sha2::Sha256::digest(parts.join("\n")))))
    }

    /// Nobody reads from the old primary any more. Processes have found the new one by now, and their readers go there with the next question;
    /// one that has none is ended.
    async fn left_behind(&self) -> Result<(), Failed> {
        let there = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name LIKE 'quickcomm %'";
        let until = Instant::now() + LEAVES_WITHIN;
        tokio::time::sleep(FOUND_WITHIN).await;
        loop {
            self.from.run(&format!("SELECT pg_terminate_backend(pid) {there} AND state = 'idle'")).await?;
            match self.from.one::<i64>(&format!("SELECT count(*) {there}")).await? {
                0 => return Ok(()),
                n if Instant::now() >= until => {
                    return Err(format!(
                        "it was promoted; {n} sessions still read from {}, which shows the record as it was",
                        self.from.name
                    ));
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// A step that is dropped leaves no statement that could come after those which undo it: a connection takes one after the other.
async fn unless_stopped<T>(stop: &CancellationToken, step: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    tokio::select! {
        biased; // whoever says stop before a step does not want its outcome
        () = stop.cancelled() => Err("it was told to stop".into()),
        done = step => done,
    }
}

/// Of a count and a sum.
fn rows_of(sum: &str) -> u64 {
    sum.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn in_time(until: Instant, what: &str) -> Result<(), Failed> {
    if Instant::now() >= until { Err(format!("{what} within the pause that was allowed")) } else { Ok(()) }
}

impl End {
    async fn reach(url: &DatabaseUrl, role: &str, ca: Option<&PathBuf>) -> Result<Self, OpenError> {
        let settings = RecordSettings { url: url.clone(), ca: ca.cloned(), ..RecordSettings::default() };
        let Some(server) = operate::server(&settings)? else {
            return Err(OpenError::Server { server: role.into(), reason: "expected the address of a PostgreSQL server".into() });
        };
        let name = server.to_string();
        let (config, tls) = server
            .alone()
            .ok_or_else(|| OpenError::Server { server: name.clone(), reason: format!("expected the address of {role} alone, one host") })?;
        Self::open(config, tls, name.clone()).await.map_err(|reason| OpenError::Server { server: name, reason })
    }

    async fn open(mut config: tokio_postgres::Config, tls: Tls, name: String) -> Result<Self, Failed> {
        config.application_name("quickcomm move");
        let (client, connection) = config.connect(tls.clone()).await.map_err(|e| Server::said(&e))?;
        tokio::spawn(connection); // ends with the client
        client.batch_execute("SET default_transaction_read_only = off; SET lc_messages = 'C'").await.map_err(|e| Server::said(&e))?;
        Ok(Self { client, config, tls, name })
    }

    /// Another session there, which has the server's settings as they are now.
    async fn again(&self) -> Result<Self, Failed> {
        let (client, connection) = self.config.connect(self.tls.clone()).await.map_err(|e| Server::said(&e))?;
        tokio::spawn(connection); // ends with the client
        Ok(Self { client, config: self.config.clone(), tls: self.tls.clone(), name: self.name.clone() })
    }

    fn failure(&self, error: &tokio_postgres::Error) -> Failed {
        format!("{} says: {}", self.name, Server::said(error))
    }

    async fn run(&self, statement: &str) -> Result<(), Failed> {
        self.client.batch_execute(statement).await.map_err(|e| self.failure(&e))
    }

    async fn one<T: for<'a> FromSql<'a>>(&self, question: &str) -> Result<T, Failed> {
        let row = self.client.query_one(question, &[]).await.map_err(|e| self.failure(&e))?;
        row.try_get(0).map_err(|e| self.failure(&e))
    }

    async fn all<T: for<'a> FromSql<'a>>(&self, question: &str) -> Result<Vec<T>, Failed> {
        let rows = self.client.query(question, &[]).await.map_err(|e| self.failure(&e))?;
        rows.iter().map(|row| row.try_get(0).map_err(|e| self.failure(&e))).collect()
    }
}
