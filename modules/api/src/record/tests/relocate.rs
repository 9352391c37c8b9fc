//! The record moves from a primary to its standby while people speak and others read, and whatever goes wrong on the way changes nothing.

use super::{
    operate::{Plan, Relocated, Stage},
    postgres::{Postgres, Sync, installed},
    *,
};
use contracts::CallError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A primary with our schema, a standby of it, and the name of the database.
pub(super) fn pair() -> Option<(Arc<Postgres>, Arc<Postgres>, String)> {
    let primary = Postgres::start(installed()?, Sync::Off);
    let database = primary.database("template0");
    migrate(&primary.url("postgres", &database));
    let standby = primary.standby();
    Some((Arc::new(primary), Arc::new(standby), database))
}

pub(super) fn both(a: &Postgres, b: &Postgres, database: &str) -> String {
    let folder = |server: &Postgres| server.socket().display().to_string().replace('/', "%2F");
    format!("postgres://postgres@{},{}/{database}", folder(a), folder(b))
}

fn alone(server: &Postgres, database: &str) -> DatabaseUrl {
    DatabaseUrl::new(server.url("postgres", database))
}

/// People who speak, and others who read, until told to stop.
struct Load {
    running: Arc<Running>,
    stop: CancellationToken,
    spoken: Arc<AtomicU64>,
    failed: Arc<AtomicUsize>,
    longest_ms: Arc<AtomicU64>,
    speakers: Vec<JoinHandle<(Call, u64)>>,
    readers: Vec<JoinHandle<()>>,
}

impl Load {
    async fn start(running: Arc<Running>) -> Self {
        let stop = CancellationToken::new();
        let (spoken, failed, longest_ms) = (Arc::<AtomicU64>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let (mut speakers, mut readers) = (vec![], vec![]);
        for _ in 0..6 {
            let call = running.call().await;
            let id = call.id;
            let (running, stop, spoken, failed, longest_ms) =
                (running.clone(), stop.clone(), spoken.clone(), failed.clone(), longest_ms.clone());
            let (reads, stopped, misread) = (running.clone(), stop.clone(), failed.clone());
            let said = Arc::new(AtomicU64::new(0));
            let known = said.clone();
            speakers.push(tokio::spawn(async move {
                let mut n = 0;
                while !stop.is_cancelled() {
                    let segment = call.says(AGENT, n, n * 100..n * 100 + 100, &format!("word {n}"));
                    let began = std::time::Instant::now();
                    match running.record.commit(cx(), vec![segment]).await {
                        Ok(outcomes) if outcomes == [CommitOutcome::Committed] => n += 1,
                        other => {
                            failed.fetch_add(1, Ordering::SeqCst);
                            eprintln!("a commit failed: {other:?}");
                        }
                    }
                    longest_ms.fetch_max(began.elapsed().as_millis() as u64, Ordering::SeqCst);
                    said.store(n, Ordering::SeqCst);
                    spoken.fetch_add(1, Ordering::SeqCst);
                }
                (call, n)
            }));
            readers.push(tokio::spawn(async move {
                while !stopped.is_cancelled() {
                    let least = known.load(Ordering::SeqCst);
                    let row: Result<ConversationRow, CallError> = reads.record.row(&TenantId::default(), id).await;
                    if !row.as_ref().is_ok_and(|row| row.utterance_count >= least) {
                        misread.fetch_add(1, Ordering::SeqCst);
                        eprintln!("a read failed: {row:?}, expected at least {least}");
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }));
        }
        Self { running, stop, spoken, failed, longest_ms, speakers, readers }
    }

    async fn say(&self, more: u64) {
        let wanted = self.spoken.load(Ordering::SeqCst) + more;
        let hear = async {
            while self.spoken.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), hear).await.expect("people go on speaking");
    }

    /// Ends it: nothing failed, and every word is there once. Returns the longest wait for a commit, in ms.
    async fn end(self) -> u64 {
        self.stop.cancel();
        for reader in self.readers {
            reader.await.expect("no panic");
        }
        for speaker in self.speakers {
            let (call, said) = speaker.await.expect("no panic");
            let rows = self.running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
            let told: Vec<(u64, String)> = rows.into_iter().map(|r| (r.seq, r.text)).collect();
            assert_eq!(told, (0..said).map(|n| (n, format!("word {n}"))).collect::<Vec<_>>());
        }
        assert_eq!(self.failed.load(Ordering::SeqCst), 0, "requests failed");
        Arc::into_inner(self.running).expect("everybody has ended").end().await;
        self.longest_ms.load(Ordering::SeqCst)
    }
}

async fn under_load(primary: &Postgres, standby: &Postgres, database: &str) -> Load {
    let url = DatabaseUrl::new(both(primary, standby, database));
    let settings = Settings { record: RecordSettings { url, ..RecordSettings::default() }, ..Settings::default() };
    let load = Load::start(Arc::new(Running::with(settings).await)).await;
    load.say(200).await;
    load
}

const PAUSE: Duration = Duration::from_secs(2);

async fn relocate(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    until: Stage,
    pause: Duration,
    tell: impl FnMut(operate::Passed),
) -> Result<Relocated, OpenError> {
    operate::relocate(from, to, plan(until, pause), tell).await
}

fn plan(until: Stage, pause: Duration) -> Plan {
    let (takes_over_within, stop) = (Duration::from_secs(60), CancellationToken::new());
    Plan { until, pause, takes_over_within, reads_there: false, ca: None, stop }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_moves_to_its_standby_under_load_and_no_request_fails() {
    let Some((primary, standby, database)) = pair() else { return };
    let load = under_load(&primary, &standby, &database).await;
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    // A rehearsal stops writes, and opens the primary again; also a second one right after it, when nothing was written between.
    let mut passed = vec![];
    let rehearsed = relocate(&from, &to, Stage::Writes, PAUSE, |p| passed.push(p.stage)).await.expect("everything is ready");
    assert!(matches!(rehearsed, Relocated::Ready { pause: Some(pause) } if pause <= PAUSE), "{rehearsed:?}");
    assert_eq!(passed, [Stage::Replication, Stage::Reads, Stage::Writes]);
    relocate(&from, &to, Stage::Writes, PAUSE, drop).await.expect("everything is ready again");
    load.say(200).await;
    assert_eq!(primary.sql("postgres", "SHOW default_transaction_read_only"), "off");
    // And now in earnest.
    let moved = relocate(&from, &to, Stage::Promote, PAUSE, |p| eprintln!("{}: {}", p.stage, p.what)).await.expect("it moves");
    let Relocated::Moved { pause, rows, checksum } = moved else { panic!("{moved:?}") };
    assert!(pause <= PAUSE, "nobody could write for {pause:?}");
    assert!(rows > 400 && checksum.len() == 64, "{rows} {checksum}");
    load.say(200).await;
    let count = |server: &Postgres| server.sql(&database, "SELECT count(*) FROM segments").parse::<u64>().expect("a number");
    assert!(count(&standby) > count(&primary), "people speak to the new primary");
    // The old one stays closed when it comes back, and nobody falls for it.
    primary.kill();
    primary.start_again();
    assert_eq!(primary.sql("postgres", "SHOW default_transaction_read_only"), "on");
    load.say(100).await;
    // Not a second time.
    let again = relocate(&from, &to, Stage::Writes, PAUSE, drop).await.expect_err("it has moved").to_string();
    assert!(again.contains("takes no writes already"), "{again}");
    let longest = load.end().await;
    eprintln!("pause {} ms, longest commit {longest} ms, {rows} rows compared", pause.as_millis());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_cannot_be_made_leaves_everything_as_it_was() {
    let Some((primary, standby, database)) = pair() else { return };
    let load = under_load(&primary, &standby, &database).await;
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    let refused = async |from: &DatabaseUrl, to: &DatabaseUrl, says: &str| {
        let said = relocate(from, to, Stage::Promote, PAUSE, drop).await.expect_err(says).to_string();
        assert!(said.contains(says), "{said}");
    };
    // Replication: the wrong way round, to a stranger, to somebody who does not follow.
    refused(&to, &from, "is a standby itself").await;
    let stranger = postgres::shared().expect("looked for before");
    refused(&from, &alone(stranger, "postgres"), "it is no standby of").await;
    refused(&DatabaseUrl::default(), &to, "expected the address of a PostgreSQL server").await;
    refused(&DatabaseUrl::new(both(&primary, &standby, &database)), &to, "one host").await;
    standby.hold_replay();
    refused(&from, &to, "in time").await;
    standby.go_on_replaying();
    standby.catch_up(&primary);
    // Writes: the standby falls behind at the last moment. They go on where they were.
    let behind = standby.clone();
    let told = move |passed: operate::Passed| {
        if passed.stage == Stage::Reads {
            behind.hold_replay();
        }
    };
    let said = relocate(&from, &to, Stage::Promote, Duration::from_millis(700), told).await.expect_err("it is behind").to_string();
    assert!(said.contains("writes go on at") && said.contains("as before"), "{said}");
    load.say(100).await;
    standby.go_on_replaying();
    standby.catch_up(&primary);
    // Promote: the standby dies between.
    let dying = standby.clone();
    let told = move |passed: operate::Passed| {
        if passed.stage == Stage::Writes {
            dying.kill();
        }
    };
    let said = relocate(&from, &to, Stage::Promote, PAUSE, told).await.expect_err("it is dead").to_string();
    assert!(said.contains("writes go on at"), "{said}");
    load.say(100).await;
    standby.start_again();
    standby.catch_up(&primary);
    // The one who moves it dies in the pause; others see that, and open the primary again.
    primary.sql("postgres", "ALTER SYSTEM SET default_transaction_read_only = on");
    primary.sql("postgres", "SELECT pg_reload_conf()");
    while primary.sql("postgres", "SHOW default_transaction_read_only") != "on" {}
    refused(&from, &to, "`--abort` undoes").await;
    operate::abort_relocation(&from, &to, None).await.expect("the standby still follows");
    load.say(100).await;
    // And after all that it moves.
    let moved = relocate(&from, &to, Stage::Promote, PAUSE, drop).await.expect("it moves");
    assert!(matches!(moved, Relocated::Moved { .. }), "{moved:?}");
    let late = operate::abort_relocation(&from, &to, None).await.expect_err("there is no way back").to_string();
    assert!(late.contains("takes writes itself"), "{late}");
    load.say(100).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_late_or_stopped_before_the_standby_is_asked_to_take_over_is_undone() {
    let Some((primary, standby, database)) = pair() else { return };
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    let undone = |said: String, why: &str| {
        assert!(said.contains(why) && said.contains("writes go on at"), "{said}");
        assert_eq!(primary.sql("postgres", "SHOW default_transaction_read_only"), "off");
        assert_eq!(standby.sql("postgres", "SELECT pg_is_in_recovery()"), "t");
    };
    let until_it_is_over = |passed: operate::Passed| {
        let told = std::time::Instant::now();
        while passed.stage == Stage::Writes && told.elapsed() < PAUSE {
            std::thread::park_timeout(PAUSE);
        }
    };
    let late = relocate(&from, &to, Stage::Promote, PAUSE, until_it_is_over).await.expect_err("the pause is over").to_string();
    undone(late, "it could not be asked to take over within the pause");

    let plan = plan(Stage::Promote, PAUSE);
    let stop = plan.stop.clone();
    let tell = |passed: operate::Passed| {
        if passed.stage == Stage::Writes {
            stop.cancel();
        }
    };
    let stopped = operate::relocate(&from, &to, plan, tell).await.expect_err("it is stopped").to_string();
    undone(stopped, "it was told to stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_a_standby_is_asked_to_take_over_the_old_primary_stays_closed_until_it_has_or_is_restarted() {
    let Some((primary, standby, database)) = pair() else { return };
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    let record = RecordSettings { url: DatabaseUrl::new(both(&primary, &standby, &database)), ..RecordSettings::default() };
    let running = Running::with(Settings { record, ..Settings::default() }).await;
    let call = running.call().await;
    running.commit(&[call.says(AGENT, 0, 0..100, "good morning")]).await;
    running.end().await;
    let closed = || primary.sql("postgres", "SHOW default_transaction_read_only");
    let freeze = |passed: operate::Passed| {
        if passed.stage == Stage::Writes {
            standby.freeze();
        }
    };
    let impatient = || Plan { takes_over_within: Duration::ZERO, ..plan(Stage::Promote, PAUSE) };
    let first = operate::relocate(&from, &to, impatient(), freeze).await.expect_err("it stands still").to_string();
    assert!(first.contains("is a standby still") && first.contains("takes no writes, and stays so"), "{first}");
    assert_eq!(closed(), "on");
    let second = operate::relocate(&from, &to, impatient(), drop).await.expect_err("it stands still").to_string();
    assert!(second.contains("is a standby still"), "{second}");
    let back = operate::abort_relocation(&from, &to, None).await.expect_err("it may take over at any time").to_string();
    assert!(back.contains("restart it"), "{back}");
    assert_eq!(closed(), "on");
    standby.kill();
    standby.start_again();
    operate::abort_relocation(&from, &to, None).await.expect("it was restarted, and follows");
    assert_eq!(closed(), "off");
    primary.sql(&database, "INSERT INTO bookkeeping VALUES ('', 'still_here', 1, now())");
    standby.catch_up(&primary);

    // The next time it takes over in the end; nobody who waits for it can be stopped, because there is no way back.
    operate::relocate(&from, &to, impatient(), freeze).await.expect_err("it stands still again");
    let (asked, patient) = (tokio::sync::Notify::new(), plan(Stage::Promote, PAUSE));
    let stop = patient.stop.clone();
    let tell = |passed: operate::Passed| {
        if passed.what.starts_with("asked to take over") {
            asked.notify_one();
        }
    };
    let going_on = async {
        asked.notified().await;
        stop.cancel();
        standby.thaw();
    };
    let both_end = async { tokio::join!(operate::relocate(&from, &to, patient, tell), going_on).0 };
    let moved = tokio::time::timeout(Duration::from_secs(60), both_end).await.expect("it is asked, and takes over");
    assert!(matches!(moved, Ok(Relocated::Moved { .. })), "{moved:?}");
    standby.sql(&database, "UPDATE bookkeeping SET value = 2 WHERE name = 'still_here'");
    let again = relocate(&from, &to, Stage::Promote, PAUSE, drop).await.expect("it has moved");
    assert_eq!(again, Relocated::MovedBefore { segments: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_record_is_told_of_another_host() {
    let Some((primary, standby, database)) = pair() else { return };
    let settings = |url: String| RecordSettings { url: DatabaseUrl::new(url), ..RecordSettings::default() };
    let only = settings(primary.url("postgres", &database));
    let load = Load::start(Arc::new(Running::with(Settings { record: only, ..Settings::default() }).await)).await;
    load.say(50).await;
    let file = load.running.record.readdress(&RecordSettings::default()).expect_err("there is a server");
    assert!(file.contains("db copy"), "{file}");
    load.running.record.readdress(&settings(both(&primary, &standby, &database))).expect("both are named now");
    load.say(50).await;
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    relocate(&from, &to, Stage::Promote, PAUSE, drop).await.expect("it moves");
    load.say(50).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_to_the_standby_when_the_settings_say_so_and_the_move_sees_them_there() {
    let Some((primary, standby, database)) = pair() else { return };
    let load = under_load(&primary, &standby, &database).await;
    let (from, to) = (alone(&primary, &database), alone(&standby, &database));
    let said = std::cell::RefCell::new(String::new());
    let tell = |passed: operate::Passed| *said.borrow_mut() += &format!("{}: {}\n", passed.stage, passed.what);
    let plan = |reads_there| Plan { reads_there, ..plan(Stage::Reads, PAUSE) };
    operate::relocate(&from, &to, plan(false), tell).await.expect("the standby follows");
    assert!(said.borrow().contains("no server reads there, because api.record.replica_url names none"), "{}", said.borrow());
    let nobody = operate::relocate(&from, &to, plan(true), tell).await.expect_err("nobody was told").to_string();
    assert!(nobody.contains("no server reads there after 10 s"), "{nobody}");

    let url = DatabaseUrl::new(both(&primary, &standby, &database));
    let told = RecordSettings { url, replica_url: to.clone(), ..RecordSettings::default() };
    load.running.record.read_from(&told).expect("it can be read");
    operate::relocate(&from, &to, plan(true), tell).await.expect("they read there");
    assert!(said.borrow().contains("servers read there by"), "{}", said.borrow());
    let (tenant, replica) = (TenantId::default(), load.running.record.replica().expect("it was told"));
    while replica.readers_for(None).await.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let page = load.running.record.list_since(&tenant, &ConversationFilter::default(), &Cut::default(), None).await;
    assert_eq!(page.expect("the standby answers").1.data.len(), 6);
    // And to the new primary when it has moved, which is no replica any more.
    relocate(&from, &to, Stage::Promote, PAUSE, tell).await.expect("it moves");
    load.say(50).await;
    load.running.record.read_from(&RecordSettings::default()).expect("no replica is named");
    assert!(load.running.record.replica().is_none());
    load.say(50).await;
    load.end().await;
}
