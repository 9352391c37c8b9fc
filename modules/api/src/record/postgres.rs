//! PostgreSQL: how it is reached, what it must be, and how long anybody waits for it.
//!
//! Invariants:
//! - nothing waits longer than `deadline_ms`, a COMMIT included: the server's own limit does not hold while it waits for a standby, so the line
//!   is cut from this side, and what was under way counts as unknown;
//! - a commit that waits for a standby which is away is given up, and from then on commits do not wait for it, which is told loudly, until it is
//!   back;
//! - the password is in no message;
//! - of several hosts, whatever writes goes to the one that takes writes, wherever that is by now; reads go there too, and to any other as long as
//!   none does.
//!
//! The driver is asynchronous (no C library to install); each connection has a small runtime of its own, driven by the thread that asks, so a
//! statement costs no hop between threads.

use super::{database::Use, tls::Tls};
use crate::{
    metrics as names,
    settings::{DatabaseUrl, RecordSettings},
};
use diesel::{
    QueryableByName, RunQueryDsl as _,
    connection::SimpleConnection as _,
    sql_types::{Bool, Integer, Text},
};
use diesel_async::{
    AsyncPgConnection,
    async_connection_wrapper::{AsyncConnectionWrapper, BlockOn},
};
use std::{
    cell::RefCell,
    error::Error as _,
    fmt,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Runtime, task::AbortHandle};
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
    error::SqlState,
};

/// diesel's connection as a thread uses it.
pub(super) type PgConn = AsyncConnectionWrapper<AsyncPgConnection, Patience>;

/// The oldest release this is tested with; `xid8` and snapshots by name are older.
const OLDEST: i32 = 150_000;
/// A process that stops in the middle of a transaction holds everybody's outbox up; the server ends it after this long.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);
/// A relay that asks nothing for this long is ended as well, because it holds the lock that says who announces.
const IDLE: Duration = Duration::from_secs(15);
/// For steps of the schema.
const AS_LONG_AS_IT_TAKES: Duration = Duration::from_secs(24 * 3600);

/// Tables a serving process reads and writes.
const TABLES: [&str; 11] = [
    "conversations",
    "conversation_tags",
    "channels",
    "segments",
    "analysis_runs",
    "insights",
    "finalize",
    "results",
    "outbox",
    "dead_letters",
    "bookkeeping",
];

/// Where the server is, and who we are there.
#[derive(Clone)]
pub(super) struct Server {
    config: Config,
    tls: Tls,
    deadline: Duration,
    met: Arc<Met>,
}

/// What connections of this process have met.
#[derive(Default)]
struct Met {
    /// The newest timeline that was written to. A server on an older one is a primary that was lost and has come back: it lacks what was written
    /// since.
    timeline: AtomicI32,
    /// The server's process whose answer was not waited for any longer. It may still be at it, and hold its locks.
    given_up: AtomicI32,
    /// Commits do not wait for the standby they should wait for, because it is away.
    alone: AtomicBool,
    /// Reads were answered by a host that takes no writes, for want of one that does.
    elsewhere: AtomicBool,
}

impl fmt::Display for Server {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.addresses().join(",");
        let (user, database) = (self.config.get_user().unwrap_or_default(), self.config.get_dbname().unwrap_or_default());
        write!(f, "postgres://{user}@{hosts}/{database}")
    }
}

impl Server {
    /// `None`: the settings name no server.
    ///
    /// # Errors
    /// What is wrong with the address, without repeating it: it may hold a password.
    pub(super) fn of(settings: &RecordSettings) -> Result<Option<Self>, String> {
        Self::at(&settings.url, settings)
    }

    /// The standby that takes reads. `None`: the settings name none.
    ///
    /// # Errors
    /// As for [`Self::of`].
    pub(super) fn replica(settings: &RecordSettings) -> Result<Option<Self>, String> {
        Self::at(&settings.replica_url, settings)
    }

    fn at(url: &DatabaseUrl, settings: &RecordSettings) -> Result<Option<Self>, String> {
        let url = url.expose();
        if url.is_empty() {
            return Ok(None);
        }
        const EXPECTED: &str = "expected postgres://USER:PASSWORD@HOST:5432/DATABASE, or nothing for SQLite in the data folder";
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(format!("this is no address of a PostgreSQL server; {EXPECTED}"));
        }
        // The name is checked whenever a certificate is, which the driver has no word for.
        let url = url.replace("sslmode=verify-full", "sslmode=require");
        if url.contains("sslmode=verify-ca") {
            return Err("sslmode=verify-ca leaves open which server answers; expected verify-full".into());
        }
        let mut config: Config = url.parse().map_err(|e: tokio_postgres::Error| {
            let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
            format!("it cannot be read ({e}{source}); {EXPECTED}")
        })?;
        for (part, is_missing) in [
            ("host", config.get_hosts().is_empty()),
            ("user", config.get_user().is_none_or(str::is_empty)),
            ("database", config.get_dbname().is_none_or(str::is_empty)),
        ] {
            if is_missing {
                return Err(format!("it names no {part}; {EXPECTED}"));
            }
        }
        if !config.get_hostaddrs().is_empty() {
            return Err("hostaddr says who is reached whatever the host is; expected an address as the host".into());
        }
        if config.get_password().is_none_or(<[u8]>::is_empty)
            && let Some(far) = config.get_hosts().iter().find_map(off_loopback)
        {
            return Err(format!("{far} is not on this machine and no password is given; expected one off loopback"));
        }
        let ca = settings.ca.as_deref();
        let tls = match config.get_ssl_mode() {
            SslMode::Require => Tls::with(ca)?,
            _ => {
                config.ssl_mode(SslMode::Disable); // with a certificate that nobody checks it would only look safe
                Tls::unused()
            }
        };
        let deadline = Duration::from_millis(settings.deadline_ms);
        let each = deadline / config.get_hosts().len().max(1) as u32;
        config.application_name("quickcomm").connect_timeout(each).tcp_user_timeout(deadline).keepalives_idle(Duration::from_secs(10));
        Ok(Some(Self { config, tls, deadline, met: Arc::default() }))
    }

    /// # Errors
    /// What the server said, or that nobody answered, and what to do.
    pub(super) fn connect(&self, purpose: Use) -> Result<PgConn, String> {
        if self.config.get_hosts().len() == 1 {
            return self.reach(purpose, &self.config);
        }
        let mut newest: Option<(i32, PgConn)> = None;
        let mut refused = vec![];
        for mut host in self.hosts() {
            host.target_session_attrs(TargetSessionAttrs::ReadWrite);
            match self.reach(purpose, &host).and_then(|mut conn| Ok((timeline(&mut conn)?, conn))) {
                Ok((at, _)) if at < self.met.timeline.load(Ordering::SeqCst) => {
                    refused.push("another has taken its place since".to_owned())
                }
                Ok((at, conn)) if newest.as_ref().is_none_or(|(best, _)| at > *best) => newest = Some((at, conn)),
                Ok(_) => {}
                Err(reason) => refused.push(reason),
            }
        }
        if let Some((at, conn)) = newest {
            self.met.timeline.fetch_max(at, Ordering::SeqCst);
            return Ok(conn);
        }
        if purpose == Use::Reading {
            // Nobody takes writes: what can be read is what there is.
            for host in self.hosts() {
                match self.reach(purpose, &host) {
                    Ok(conn) => {
                        self.met.elsewhere.store(true, Ordering::SeqCst);
                        return Ok(conn);
                    }
                    Err(reason) => refused.push(reason),
                }
            }
        }
        Err(format!("none of its hosts takes writes: {}", refused.join("; ")))
    }

    /// A configuration for each host alone.
    fn hosts(&self) -> Vec<Config> {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(n, host)| {
            let mut alone = Config::new();
            match host {
                Host::Tcp(name) => alone.host(name),
                Host::Unix(path) => alone.host_path(path),
            };
            alone.port(ports.get(n).or(ports.first()).copied().unwrap_or(5432));
            alone.user(self.config.get_user().unwrap_or_default()).dbname(self.config.get_dbname().unwrap_or_default());
            if let Some(password) = self.config.get_password() {
                alone.password(password);
            }
            if let Some(options) = self.config.get_options() {
                alone.options(options);
            }
            alone.ssl_mode(self.config.get_ssl_mode());
            let each = self.deadline / self.config.get_hosts().len() as u32;
            alone.connect_timeout(each).tcp_user_timeout(self.deadline).keepalives_idle(Duration::from_secs(10));
            alone
        });
        hosts.collect()
    }

    /// Remembers what the one before it knew, so that a primary whose place was taken stays refused.
    pub(super) fn goes_on_from(self, before: &Self) -> Self {
        Self { met: before.met.clone(), ..self }
    }

    fn reach(&self, purpose: Use, config: &Config) -> Result<PgConn, String> {
        let config = purpose.named(config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let (client, driver) = runtime.block_on(async {
            let connecting = tokio::time::timeout(self.deadline, config.connect(self.tls.clone()));
            let (client, connection) = match connecting.await {
                Ok(Ok(connected)) => connected,
                Ok(Err(error)) => return Err(self.explain(&error)),
                Err(_) => return Err(format!("nobody answers within {:?}: is the address right, and the way to it open?", self.deadline)),
            };
            let driver = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to PostgreSQL has ended");
                }
            });
            Ok((client, driver.abort_handle()))
        })?;
        let limit = if purpose == Use::Migrating { AS_LONG_AS_IT_TAKES } else { self.deadline };
        let inner = runtime
            .block_on(async { tokio::time::timeout(self.deadline, AsyncPgConnection::try_from(client)).await })
            .map_err(|_| format!("it does not answer within {:?}", self.deadline))?
            .map_err(|e| e.to_string())?;
        // diesel-async makes what waits by itself, without arguments: they are handed over by the thread.
        let (process, met) = (Arc::<AtomicI32>::default(), self.met.clone());
        PREPARED.set(Some(Patience { runtime, driver, limit, process: process.clone(), met }));
        let mut conn = PgConn::from(inner);
        conn.batch_execute(&self.session(purpose, limit)).map_err(|e| e.to_string())?;
        if purpose == Use::Writing {
            self.check_language(&mut conn)?;
            process.store(number(&mut conn, "SELECT pg_backend_pid() AS number")?, Ordering::SeqCst);
            self.after_giving_up(&mut conn)?;
        }
        Ok(conn)
    }

    /// Another language would turn a full disk, a deadlock and a server that stops into errors that nobody knows.
    fn check_language(&self, conn: &mut PgConn) -> Result<(), String> {
        if ask(conn, "current_setting('lc_messages') ~* '^(c|posix|en|$)'")? {
            return Ok(());
        }
        let user = self.config.get_user().unwrap_or_default();
        Err(format!(
            "it speaks another language than English to {user}, whose errors cannot be told apart; as a superuser: \
             `GRANT SET ON PARAMETER lc_messages TO \"{user}\"`, or `ALTER ROLE \"{user}\" SET lc_messages = 'C'`"
        ))
    }

    /// Ends what was not waited for, so that the same can be done again; and where it waited for a standby that is away, waits no more.
    fn after_giving_up(&self, conn: &mut PgConn) -> Result<(), String> {
        let process = self.met.given_up.swap(0, Ordering::SeqCst);
        if process != 0 {
            ask(conn, &format!("coalesce((SELECT pg_terminate_backend({process}, 1000)), true)"))?;
            let waits =
                "current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local')";
            if ask(conn, &format!("{waits} AND NOT ({STANDBY_FOLLOWS})"))? && !self.met.alone.swap(true, Ordering::SeqCst) {
                tracing::error!(
                    server = %self,
                    "the standby that commits wait for is away: what is stored from now on is on one server only; bring it back, or take it out \
                     of synchronous_standby_names"
                );
                metrics::gauge!(names::ALONE).set(1.0);
            }
        }
        if self.met.alone.load(Ordering::SeqCst) {
            conn.batch_execute("SET synchronous_commit = local").map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Commits wait for the standby again, once it follows.
    pub(super) fn mend(&self, conn: &mut PgConn) {
        if self.met.alone.load(Ordering::SeqCst)
            && ask(conn, STANDBY_FOLLOWS) == Ok(true)
            && conn.batch_execute("SET synchronous_commit = on").is_ok()
        {
            self.met.alone.store(false, Ordering::SeqCst);
            tracing::info!(server = %self, "the standby that commits wait for is back");
            metrics::gauge!(names::ALONE).set(0.0);
        }
    }

    pub(super) fn reads_elsewhere(&self) -> &AtomicBool {
        &self.met.elsewhere
    }

    pub(super) fn is_alone(&self) -> bool {
        self.met.alone.load(Ordering::SeqCst)
    }

    /// A connection for small questions of a task. Its driver ends with it.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub(super) async fn line(&self) -> Result<tokio_postgres::Client, String> {
        let mut config = Use::Reading.named(&self.config);
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite); // of a pair, the one that is the primary now
        }
        match tokio::time::timeout(self.deadline, config.connect(self.tls.clone())).await {
            Ok(Ok((client, connection))) => {
                tokio::spawn(connection);
                Ok(client)
            }
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(format!("nobody answers within {:?}", self.deadline)),
        }
    }

    fn session(&self, purpose: Use, limit: Duration) -> String {
        let ms = |time: Duration| time.as_millis();
        let mut set = format!(
            "{ENGLISH} SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {};",
            if purpose == Use::Migrating { 0 } else { ms(limit) },
            if purpose == Use::Migrating { 0 } else { ms(IDLE_IN_TRANSACTION) },
        );
        if matches!(purpose, Use::Reading | Use::Following | Use::Relaying) {
            // One state of the record for all statements of a read.
            set += "SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on;";
        }
        if purpose == Use::Relaying {
            set += &format!("SET idle_session_timeout = {};", ms(IDLE));
        }
        set
    }

    /// Where it has one host: how to reach it.
    pub(super) fn alone(&self) -> Option<(Config, Tls)> {
        let host = Some(self.hosts()).filter(|hosts| hosts.len() == 1)?.pop()?;
        Some((host, self.tls.clone()))
    }

    /// Its address asks for TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Require
    }

    /// As `HOST:PORT`, or the folder of a socket.
    pub(super) fn addresses(&self) -> Vec<String> {
        let at = |host: &Config| Some((host.get_hosts().first()?.clone(), *host.get_ports().first()?));
        let named = |(host, port)| match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        };
        self.hosts().iter().filter_map(at).map(named).collect()
    }

    /// In the server's words, or the line's.
    pub(super) fn said(error: &tokio_postgres::Error) -> String {
        if let Some(complaint) = Tls::complaint(error) {
            return format!("TLS with it came to nothing: {complaint}");
        }
        let said = error.as_db_error().map(|e| e.message().to_owned());
        said.or_else(|| error.source().map(ToString::to_string)).unwrap_or_else(|| error.to_string())
    }

    fn explain(&self, error: &tokio_postgres::Error) -> String {
        let said = Self::said(error);
        let (user, database) = (self.config.get_user().unwrap_or_default(), self.config.get_dbname().unwrap_or_default());
        let todo = match error.code() {
            None if Tls::complaint(error).is_some() => {
                "is its certificate from an authority in api.record.ca, and does it hold the host's name as it stands in the address?"
                    .into()
            }
            None if said.contains("password missing") => format!("it asks {user} for one; expected postgres://{user}:PASSWORD@…"),
            None if said.contains("does not support TLS") => {
                "sslmode asks for it: turn it on there (`ssl = on`); on a socket it is not spoken".into()
            }
            Some(code) if *code == SqlState::INVALID_PASSWORD => format!("is the password of {user} in api.record.url right?"),
            Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                format!(
                    "does {user} exist there, and does pg_hba.conf let it in from here, and without TLS if sslmode does not ask for it?"
                )
            }
            Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
                format!("make it with `createdb --owner {user} {database}`, then `quickcomm db migrate`")
            }
            Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => "raise max_connections, or lower api.record.readers".into(),
            Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => "it is starting or stopping: try again".into(),
            Some(_) => "see its log for more".into(),
            None => "is PostgreSQL running there, and is the address in api.record.url right?".into(),
        };
        format!("{said}; {todo}")
    }

    /// # Errors
    /// Why this server cannot keep a record.
    pub(super) fn check(conn: &mut PgConn) -> Result<(), String> {
        let server: About = diesel::sql_query(
            "SELECT current_setting('server_version_num')::int4 AS number, current_setting('server_version') AS version,
                    current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby",
        )
        .get_result(conn)
        .map_err(|e| e.to_string())?;
        server.fits()
    }

    /// # Errors
    /// The tables this user may not work with.
    pub(super) fn check_rights(conn: &mut PgConn) -> Result<(), String> {
        let names = TABLES.map(|name| format!("'{name}'")).join(",");
        let rights = ["SELECT", "INSERT", "UPDATE", "DELETE"].map(|right| format!("has_table_privilege(to_regclass(name), '{right}')"));
        // Tables that are not there are missing steps, which is another complaint.
        let closed: Vec<Closed> = diesel::sql_query(format!(
            "SELECT name, current_user::text AS who FROM unnest(ARRAY[{names}]) AS name WHERE to_regclass(name) IS NOT NULL AND NOT ({})
             UNION ALL SELECT 'the list of schema steps', current_user::text
             WHERE NOT coalesce(has_table_privilege(to_regclass('__diesel_schema_migrations'), 'SELECT'), true)",
            rights.join(" AND ")
        ))
        .load(conn)
        .map_err(|e| e.to_string())?;
        let Some(first) = closed.first() else { return Ok(()) };
        let names = closed.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        Err(format!(
            "{who} may not read and write {names}: `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {who}`",
            who = first.who
        ))
    }
}

#[derive(QueryableByName)]
struct About {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Text)]
    encoding: String,
    #[diesel(sql_type = Bool)]
    standby: bool,
}

impl About {
    fn fits(&self) -> Result<(), String> {
        if self.number < OLDEST {
            return Err(format!("it is PostgreSQL {}; expected {} or later", self.version, OLDEST / 10_000));
        }
        if self.encoding != "UTF8" {
            let todo = "`createdb --encoding UTF8 --template template0`";
            return Err(format!("the database's encoding is {}; expected UTF8 ({todo})", self.encoding));
        }
        if self.standby {
            return Err("it is a standby, which takes no writes; expected the primary".into());
        }
        Ok(())
    }
}

/// Some errors are told apart by the server's words, because diesel passes no code on. Not every user may choose their language; one to whom
/// the server then speaks another is refused ([`Server::check_language`]).
const ENGLISH: &str = "DO $$ BEGIN SET lc_messages = 'C'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;";

/// Whoever asks sees it of other users' connections only as a member of pg_monitor.
const STANDBY_FOLLOWS: &str = "EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming')";

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    number: i32,
}

fn number(conn: &mut PgConn, question: &str) -> Result<i32, String> {
    let found: Result<Number, _> = diesel::sql_query(question).get_result(conn);
    found.map(|found| found.number).map_err(|e| e.to_string())
}

#[derive(QueryableByName)]
struct Flag {
    #[diesel(sql_type = Bool)]
    flag: bool,
}

fn ask(conn: &mut PgConn, question: &str) -> Result<bool, String> {
    let found: Result<Flag, _> = diesel::sql_query(format!("SELECT {question} AS flag")).get_result(conn);
    found.map(|found| found.flag).map_err(|e| e.to_string())
}

/// Rises with every promotion.
fn timeline(conn: &mut PgConn) -> Result<i32, String> {
    number(conn, "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 AS number")
}

#[derive(QueryableByName)]
struct Closed {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    who: String,
}

/// The first host that is reached over a network, by name.
fn off_loopback(host: &Host) -> Option<String> {
    match host {
        Host::Unix(_) => None,
        Host::Tcp(name) if name == "localhost" => None,
        Host::Tcp(name) => match name.parse::<IpAddr>() {
            Ok(addr) if addr.is_loopback() => None,
            _ => Some(name.clone()),
        },
    }
}

/// Waits for the server, and not for ever.
pub(super) struct Patience {
    runtime: Runtime,
    driver: AbortHandle,
    limit: Duration,
    /// The server's; 0 where nobody would do the same again.
    process: Arc<AtomicI32>,
    met: Arc<Met>,
}

thread_local! {
    static PREPARED: RefCell<Option<Patience>> = const { RefCell::new(None) };
}

impl BlockOn for Patience {
    fn block_on<F: Future>(&self, asked: F) -> F::Output {
        self.runtime.block_on(async {
            let mut asked = pin!(asked);
            match tokio::time::timeout(self.limit, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    // Without its driver the connection is closed, and whatever waits for it fails at once.
                    tracing::warn!(
                        limit_ms = self.limit.as_millis() as u64,
                        "PostgreSQL did not answer in time: the connection was given up"
                    );
                    self.met.given_up.fetch_max(self.process.load(Ordering::SeqCst), Ordering::SeqCst);
                    self.driver.abort();
                    asked.await
                }
            }
        })
    }

    fn get_runtime() -> Self {
        PREPARED.take().expect("`connect` has prepared it on this thread")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_keep_a_record_is_told_what_was_expected() {
        let about = || About { number: 150_018, version: "15.18".into(), encoding: "UTF8".into(), standby: false };
        about().fits().expect("as Debian has it");
        let old = About { number: 140_011, version: "14.11 (Debian)".into(), ..about() };
        assert_eq!(old.fits().expect_err("too old"), "it is PostgreSQL 14.11 (Debian); expected 15 or later");
        let latin = About { encoding: "LATIN1".into(), ..about() };
        assert!(latin.fits().expect_err("not every text fits").contains("LATIN1; expected UTF8"));
        assert!(About { standby: true, ..about() }.fits().expect_err("no writes").contains("expected the primary"));
    }
}
