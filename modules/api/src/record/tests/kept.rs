//! What stays over the end of a process, and what an operator reads when a folder cannot be used.

use super::*;
use std::fs;

fn bus() -> Arc<dyn Bus> {
    Arc::new(Memory::default())
}

async fn the_record_keeps_the_contract(on: On) {
    let running = Running::start(on).await;
    contracts::testing::conversations_suite(running.record.clone()).await;
    running.end().await;
}

async fn a_second_opener_is_refused_and_told_why(on: On) {
    let running = Running::start(on).await;
    let settings = running.settings.clone();
    let refused = Record::open(running.folder.path(), bus(), &settings).await.err().expect("the folder is taken");
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::Taken { .. }), "{refused:?}");
    assert!(text.contains("already running") && text.contains(&running.folder.path().display().to_string()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    // After a stop in order the folder is free at once, although the record is still in someone's hands.
    let held = running.record.clone();
    let folder = running.end().await;
    let again = Record::open(folder.path(), bus(), &settings).await.expect("it is free");
    drop((held, again));
}

async fn what_was_committed_is_there_after_a_restart_and_goes_on_where_it_was(on: On) {
    let running = Running::start(on).await;
    let settings = running.settings.clone();
    let call = running.call().await;
    let first = [call.says(AGENT, 0, 0..1000, "hello there"), call.segment(AGENT, 1, 1000..4000, SegmentBody::Silence)];
    assert_eq!(running.commit(&first).await, [CommitOutcome::Committed, CommitOutcome::Committed]);
    let folder = running.end().await;

    let record = Record::open(folder.path(), bus(), &settings).await.expect("opens again");
    let attached = record.attach(cx(), Attach { conversation: call.id, channel: AGENT }).await.expect("attaches");
    assert_eq!((attached.safe, attached.next_seq), (SamplePos(32_000), 2));
    assert!(attached.epoch > call.epochs[0]);
    let late = record.commit(cx(), vec![call.says(AGENT, 2, 4000..5000, "from before")]).await.expect("answered");
    assert_eq!(late, [CommitOutcome::Stale]);
}

async fn a_change_that_was_not_announced_is_announced_by_the_next_process(on: On) {
    let (folder, settings) = (tempfile::tempdir().expect("a temporary folder"), on.settings());
    let id = ConversationId::fresh();
    {
        // Nobody runs the relay: as if killed right after the commit.
        let record = Record::open(folder.path(), bus(), &settings).await.expect("opens");
        record.open(cx(), opening(id, None, &[])).await.expect("opens");
        record.drain().await;
    }
    let record = Record::open(folder.path(), bus(), &settings).await.expect("opens again");
    let mut changes = record.subscribe();
    let stop = CancellationToken::new();
    let task = tokio::spawn(record.clone().run(stop.clone()));
    let change = tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.expect("in time").expect("announced");
    assert_eq!(change.conversation, id);
    stop.cancel();
    task.await.expect("ends");
    record.drain().await;
    drop(record);

    // And only once, when all goes well.
    let record = Record::open(folder.path(), bus(), &settings).await.expect("opens a third time");
    let mut changes = record.subscribe();
    let stop = CancellationToken::new();
    let task = tokio::spawn(record.clone().run(stop.clone()));
    let other = ConversationId::fresh();
    record.open(cx(), opening(other, None, &[])).await.expect("opens");
    assert_eq!(changes.recv().await.expect("announced").conversation, other, "the first was not repeated");
    stop.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_damaged_record_is_found_after_an_unclean_end_and_named() {
    let running = Running::start(On::Sqlite).await;
    for n in 0..40 {
        let call = running.call_named(Some(&format!("call {n} {}", "long ".repeat(100))), &[]).await;
        running.commit(&[call.says(AGENT, 0, 0..1000, "hello")]).await;
    }
    let folder = running.end().await;
    let path = folder.path().join("record.sqlite");
    let mut bytes = fs::read(&path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().take(8192).for_each(|b| *b = 0xA5);
    fs::write(&path, bytes).expect("writable");
    fs::write(folder.path().join("quickcomm.lock"), "process 1\n").expect("writable"); // as a killed process leaves it
    let refused = Record::open(folder.path(), bus(), &Settings::default()).await.err().expect("it is damaged");
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    assert!(refused.to_string().contains("record.sqlite"), "{refused}");
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("record.sqlite");
    fs::write(&path, "this is a diary, not a database, and it is quite long already").expect("writable");
    let refused = Record::open(folder.path(), bus(), &Settings::default()).await.err().expect("it is no database");
    assert!(refused.to_string().contains("record.sqlite"), "{refused}");
    assert!(fs::read_to_string(&path).expect("readable").starts_with("this is a diary"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("writable");
    let refused = Record::open(&file.join("data"), bus(), &Settings::default()).await.err().expect("a file is in the way");
    assert!(matches!(refused, OpenError::Folder { .. }) && refused.to_string().contains("file/data"), "{refused}");
}

#[tokio::test]
async fn a_record_of_a_newer_release_is_refused_unless_that_says_this_one_still_works() {
    use diesel::{Connection as _, connection::SimpleConnection as _};
    let folder = Running::start(On::Sqlite).await.end().await;
    let path = folder.path().join("record.sqlite");
    let says = |oldest: u32| {
        let mut conn = diesel::SqliteConnection::establish(&path.display().to_string()).expect("opens");
        conn.batch_execute(&format!(
            "INSERT OR IGNORE INTO __diesel_schema_migrations (version) VALUES ('9999');
             UPDATE bookkeeping SET value = {oldest} WHERE name = 'oldest_step_to_know'"
        ))
        .expect("writes");
    };
    says(9998);
    let refused = Record::open(folder.path(), bus(), &Settings::default()).await.err().expect("it is newer");
    assert!(refused.to_string().contains("newer release") && refused.to_string().contains("9999"), "{refused}");
    says(4);
    let record = Record::open(folder.path(), bus(), &Settings::default()).await.expect("it is gone back to");
    record.open(cx(), opening(ConversationId::fresh(), None, &[])).await.expect("and works");
}

async fn after_draining_writes_are_refused_and_reads_go_on(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let record = running.record.clone();
    let _folder = running.end().await;
    let refused = record.open(cx(), opening(ConversationId::fresh(), None, &[])).await.expect_err("it has closed");
    assert_eq!(refused.kind, contracts::ErrorKind::Unavailable);
    assert_eq!(record.row(&TenantId::default(), call.id).await.expect("readable").id, call.id);
}

on_both! {
    the_record_keeps_the_contract,
    a_second_opener_is_refused_and_told_why,
    what_was_committed_is_there_after_a_restart_and_goes_on_where_it_was,
    a_change_that_was_not_announced_is_announced_by_the_next_process,
    after_draining_writes_are_refused_and_reads_go_on,
}
