//! What only a shared server can do wrong: late commits, several processes, refusals at start.

use super::super::{
    database::{Database, Use},
    outbox::{Entry, Place, read_entries},
    store::{begin, commit},
};
use super::*;
use contracts::{CallError, ErrorKind};
use std::collections::BTreeSet;
use tokio_postgres::{Client, NoTls};

/// Another session on the database of `settings`.
async fn session(settings: &Settings) -> Client {
    let (client, connection) = tokio_postgres::connect(settings.record.url.expose(), NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

/// A connection of this test's own, where a thread may block.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Ids that may be announced, and whether more wait behind a running transaction.
async fn settled(database: &Arc<Database>, after: i64) -> (Vec<i64>, bool) {
    let database = database.clone();
    apart(move || {
        let mut conn = database.connect(Use::Reading).expect("opens");
        begin(&mut conn).expect("begins");
        let entries = read_entries(&mut conn, Place::default()).expect("readable");
        commit(&mut conn).expect("ends");
        let entries: Vec<Entry> = entries.into_iter().filter(|e| e.place().id > after).collect();
        let settled: Vec<i64> = entries.iter().take_while(|e| e.settled).map(|e| e.place().id).collect();
        let more = settled.len() < entries.len();
        (settled, more)
    })
    .await
}

const ANNOUNCE: &str = "INSERT INTO outbox (tenant_id, conversation_id, kind, subject, created_at)
     SELECT tenant_id, id, 'conversation', id, now() AT TIME ZONE 'UTC' FROM conversations WHERE id = $1 RETURNING id";

#[tokio::test]
async fn a_late_commit_is_skipped_by_counting_ids_and_not_by_us() {
    if !On::Postgres.is_here() {
        return;
    }
    let running = Running::start(On::Postgres).await;
    let call = running.call().await;
    let settings = running.settings.clone();
    running.end().await; // nobody else announces
    let (mut early, late) = (session(&settings).await, session(&settings).await);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = Arc::new(Database::take(dir.path(), &settings.record).expect("it is free"));
    let last: i64 = late.query_one("SELECT coalesce(max(id), 0) FROM outbox", &[]).await.expect("a number").get(0);

    let id = call.id.to_string();
    let transaction = early.transaction().await.expect("begins");
    let first: i64 = transaction.query_one(ANNOUNCE, &[&id]).await.expect("inserts").get(0);
    let second: i64 = late.query_one(ANNOUNCE, &[&id]).await.expect("inserts and commits").get(0);
    assert!(first < second, "ids are given out before transactions end");

    // Without the guard: whoever goes on after the highest id it has seen.
    let naive = async |after: i64| -> Vec<i64> {
        let rows = late.query("SELECT id FROM outbox WHERE id > $1 ORDER BY id", &[&after]).await.expect("rows");
        rows.iter().map(|row| row.get(0)).collect()
    };
    assert_eq!(naive(last).await, [second], "the later one is announced");
    assert_eq!(settled(&database, last).await, (vec![], true), "ours waits");
    transaction.commit().await.expect("commits");
    assert_eq!(naive(second).await, [0; 0], "the earlier one is never announced");
    // Transactions of other databases on the same server hold it back as well: tests that run meanwhile.
    tokio::time::timeout(Duration::from_secs(20), async {
        while settled(&database, last).await != (vec![first, second], false) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("ours has both");
}

#[tokio::test]
async fn an_announcement_stays_for_those_who_follow_although_its_writers_clock_is_behind() {
    if !On::Postgres.is_here() {
        return;
    }
    let running = Running::start(On::Postgres).await;
    let call = running.call().await;
    let other = session(&running.settings).await;
    let an_hour_ago = ANNOUNCE.replace("'UTC'", "'UTC' - interval '1 hour'");
    let told: i64 = other.query_one(&an_hour_ago, &[&call.id.to_string()]).await.expect("inserts").get(0);
    let noted = "SELECT coalesce(max(value), 0) FROM bookkeeping WHERE name = 'outbox_cursor'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while other.query_one(noted, &[]).await.expect("a number").get::<_, i64>(0) < told {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("this process has told it, and tidied up");
    let left: i64 = other.query_one("SELECT count(*) FROM outbox WHERE id = $1", &[&told]).await.expect("a number").get(0);
    assert_eq!(left, 1, "another process may not have told it yet");
    running.end().await;
}

#[tokio::test]
async fn a_change_held_back_by_an_older_transaction_is_announced_when_that_ends() {
    if !On::Postgres.is_here() {
        return;
    }
    let running = Running::start(On::Postgres).await;
    let call = running.call().await;
    let mut other = session(&running.settings).await;
    let transaction = other.transaction().await.expect("begins");
    transaction.query_one(ANNOUNCE, &[&call.id.to_string()]).await.expect("inserts");
    let mut changes = running.record.subscribe();
    let later = running.call().await;
    let told_of = async |changes: &mut Changes, id: ConversationId| {
        while changes.recv().await.expect("not lagging").conversation != id {}
    };
    let early = tokio::time::timeout(Duration::from_millis(300), told_of(&mut changes, later.id)).await;
    assert!(early.is_err(), "it was announced while something could still come before it");
    transaction.commit().await.expect("commits");
    tokio::time::timeout(Duration::from_secs(5), async {
        told_of(&mut changes, call.id).await;
        told_of(&mut changes, later.id).await;
    })
    .await
    .expect("both, in the order of their transactions");
    running.end().await;
}

#[tokio::test]
async fn two_processes_share_channels_and_hear_each_other() {
    if !On::Postgres.is_here() {
        return;
    }
    let one = Running::start(On::Postgres).await;
    let two = Running::with(one.settings.clone()).await;
    let call = one.call().await;
    let mut heard = [one.record.subscribe(), two.record.subscribe()];
    // Both are sent every segment, as after a lease that moved; each is stored once, whoever comes first.
    const SEGMENTS: u64 = 300;
    let send = async |to: &Running| {
        let mut committed = 0;
        for n in 0..SEGMENTS {
            let said = call.says(AGENT, n, n * 100..n * 100 + 100, "word");
            loop {
                match to.commit(std::slice::from_ref(&said)).await[0] {
                    CommitOutcome::Committed => committed += 1,
                    CommitOutcome::Duplicate => {}
                    CommitOutcome::Ahead { .. } => continue,
                    ref other => panic!("{n}: {other:?}"),
                }
                break;
            }
        }
        committed
    };
    let (first, second) = tokio::join!(send(&one), send(&two));
    assert_eq!(first + second, SEGMENTS, "{first} and {second}");
    let rows = one.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), (0..SEGMENTS).collect::<Vec<_>>());
    for changes in &mut heard {
        let mut utterances = BTreeSet::new();
        while utterances.len() < SEGMENTS as usize {
            let change = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.expect("in time").expect("not lagging");
            if let ChangeRows::Utterance { utterance, .. } = &change.rows {
                assert!(utterances.insert(utterance.id), "told twice");
            }
        }
    }
    // Opening the same conversation, and taking the same external id, at once.
    let named = |id| OpenConversation { external_id: Some("call-7".into()), ..opening(id, None, &[]) };
    let id = ConversationId::fresh();
    let (a, b) = tokio::join!(one.record.open(cx(), named(id)), two.record.open(cx(), named(id)));
    assert_eq!((a.expect("opens").id, b.expect("is there").id), (id, id));
    let other = |to: &Running| {
        let (record, request) =
            (to.record.clone(), OpenConversation { external_id: Some("call-8".into()), ..opening(ConversationId::fresh(), None, &[]) });
        async move { record.open(cx(), request).await }
    };
    let (a, b) = tokio::join!(other(&one), other(&two));
    let kinds: Vec<Option<ErrorKind>> = [a, b].into_iter().map(|r| r.err().map(|e: CallError| e.kind)).collect();
    assert!(kinds == [None, Some(ErrorKind::Conflict)] || kinds == [Some(ErrorKind::Conflict), None], "{kinds:?}");
    one.end().await;
    // The other goes on, and keeps the cursor now.
    two.call().await;
    two.end().await;
}

/// Why a record cannot be opened, for an operator to read.
async fn refusal(url: &str) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let settings = Settings { record: RecordSettings { url: DatabaseUrl::new(url), ..RecordSettings::default() }, ..Settings::default() };
    let refused = Record::open(dir.path(), Arc::new(Memory::default()), &settings).await.err();
    let text = refused.unwrap_or_else(|| panic!("{url} was opened")).to_string();
    assert!(!text.contains("hunter2"), "{text}");
    text
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_named_with_what_to_do() {
    let Some(server) = postgres::shared() else { return };
    let locked = |password: &str, database: &str| server.url("locked", database).replace("locked@", &format!("locked:{password}@"));
    let empty = server.database("template0");
    let ready = server.database(template(server));
    server.sql("postgres", "CREATE ROLE locked LOGIN PASSWORD 'hunter2'");

    let nobody = refusal("postgres://me:hunter2@127.0.0.1:1/calls").await;
    assert!(nobody.contains("postgres://me@127.0.0.1:1/calls") && nobody.contains("is PostgreSQL running there"), "{nobody}");
    let wrong = refusal(&locked("hunter3", &ready)).await;
    assert!(wrong.contains("is the password of locked in api.record.url right?"), "{wrong}");
    let missing = refusal(&server.url("postgres", "nowhere")).await;
    assert!(missing.contains("nowhere") && missing.contains("createdb"), "{missing}");
    let unmade = refusal(&server.url("postgres", &empty)).await;
    assert!(unmade.contains("0001_the_record") && unmade.contains("`quickcomm db migrate`"), "{unmade}");
    let closed = refusal(&locked("hunter2", &ready)).await;
    assert!(closed.contains("GRANT") && closed.contains("locked"), "{closed}");
    server.sql(
        &ready,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO locked; REVOKE UPDATE ON channels FROM locked",
    );
    let closed = refusal(&locked("hunter2", &ready)).await;
    assert!(closed.contains("read and write channels:"), "{closed}");
    let says = |oldest: u32| {
        server.sql(&ready, &format!("UPDATE bookkeeping SET value = {oldest} WHERE name = 'oldest_step_to_know'"));
    };
    server.sql(&ready, "INSERT INTO __diesel_schema_migrations (version) VALUES ('9999'); GRANT UPDATE ON channels TO locked");
    says(9998);
    let newer = refusal(&locked("hunter2", &ready)).await;
    assert!(newer.contains("newer release") && newer.contains("9999"), "{newer}");
    says(4);
    // With these rights, and no more, a record works, also beside a newer release that says so.
    let settings = RecordSettings { url: DatabaseUrl::new(locked("hunter2", &ready)), ..RecordSettings::default() };
    let running = Running::with(Settings { record: settings, ..Settings::default() }).await;
    let call = running.call().await;
    assert_eq!(running.commit(&[call.says(AGENT, 0, 0..1000, "hello")]).await, [CommitOutcome::Committed]);
    // A password that is changed meanwhile is told for what it is.
    server.sql("postgres", "ALTER ROLE locked PASSWORD 'hunter3'");
    server.sql("postgres", "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'locked'");
    let Standing::Silent(why) = running.record.probe().await else { panic!("nobody is let in") };
    assert!(why.contains("is the password of locked in api.record.url right?") && !why.contains("hunter"), "{why}");
    server.sql("postgres", "ALTER ROLE locked PASSWORD 'hunter2'");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_german_is_understood_or_refused_with_what_to_do() {
    let Some(server) = tokio::task::spawn_blocking(postgres::Postgres::start_german).await.expect("no panic") else { return };
    let ready = server.database("template0");
    migrate(&server.url("postgres", &ready));
    server.sql(&ready, "CREATE ROLE clerk LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO clerk");
    let refused = refusal(&server.url("clerk", &ready)).await;
    assert!(refused.contains("another language") && refused.contains("GRANT SET ON PARAMETER lc_messages TO \"clerk\""), "{refused}");
    server.sql("postgres", "GRANT SET ON PARAMETER lc_messages TO clerk");
    for user in ["clerk", "postgres"] {
        let record = RecordSettings { url: DatabaseUrl::new(server.url(user, &ready)), ..RecordSettings::default() };
        let running = Running::with(Settings { record, ..Settings::default() }).await;
        let patient = cx();
        let slow = running.record.writer.ask(&patient, 1, |conn, _| {
            let store::Conn::Postgres(c) = conn else { unreachable!("it is on a server") };
            Ok(diesel::connection::SimpleConnection::batch_execute(&mut **c, "SET LOCAL statement_timeout = 50; SELECT pg_sleep(20)")?)
        });
        let slow = slow.await.expect_err("it takes longer than it may");
        assert_eq!((slow.kind, slow.detail.as_str()), (contracts::ErrorKind::Unavailable, "the record's database took too long"), "{user}");
        // Ended by an operator, which it says in words: what was asked then is asked again.
        server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'quickcomm write'");
        let call = running.call().await;
        assert_eq!(running.commit(&[call.says(AGENT, 0, 0..1000, "hallo")]).await, [CommitOutcome::Committed], "{user}");
        running.end().await;
    }
    // What it would have said.
    let said = std::panic::catch_unwind(|| server.sql(&ready, "SELECT 1/0")).expect_err("it cannot be done");
    let said = said.downcast_ref::<String>().expect("what psql said");
    assert!(said.contains("FEHLER") && said.contains("Division durch Null"), "{said}");
}

const STEPS: [&str; 4] = ["0001_the_record", "0002_dead_letters", "0003_finalization", "0004_prompts"];

#[tokio::test]
async fn the_schema_is_told_and_brought_up_to_date_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for on in [On::Sqlite, On::Postgres].into_iter().filter(|on| on.is_here()) {
        let mut settings = RecordSettings::default();
        if let (On::Postgres, Some(server)) = (on, postgres::shared()) {
            settings.url = DatabaseUrl::new(server.url("postgres", &server.database("template0")));
        }
        let state = async || operate::schema(folder.path().to_owned(), settings.clone()).await.expect("readable").state;
        let before = state().await;
        assert!(before.applied.is_empty() && before.pending == STEPS, "{on:?}: {before:?}");
        let migrate = async || operate::migrate(folder.path().to_owned(), settings.clone()).await;
        assert_eq!(migrate().await.expect("it is free").len(), STEPS.len(), "{on:?}");
        assert_eq!(migrate().await.expect("it is free").len(), 0, "{on:?}");
        let after = state().await;
        assert!(after.pending.is_empty() && after.applied == STEPS, "{on:?}: {after:?}");
    }
}
