//! A server is lost and its standby takes over, or the standby is lost that commits wait for.

use super::{
    super::{outbox, store::Conn, writer::Effects},
    relocate::{both, pair},
    *,
};
use contracts::{CallError, ErrorKind};
use futures::StreamExt as _;
use std::time::Instant;

/// Says one segment until the record has taken it, or wants others first.
async fn say(running: &Running, call: &Call, n: u64) -> CommitOutcome {
    let segment = call.says(AGENT, n, n * 100..n * 100 + 100, &format!("word {n}"));
    let mut tries = 0;
    loop {
        match running.record.commit(cx(), vec![segment.clone()]).await {
            Ok(outcomes) => return outcomes[0].clone(),
            // As a recorder does: its bus gives it again.
            Err(CallError { kind: ErrorKind::Unavailable, .. }) if tries < 200 => tries += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until all of these utterances were told; says why anything was missed meanwhile.
async fn told(changes: &mut Changes, mut seqs: Range<u64>) -> Vec<Missed> {
    let mut why = vec![];
    let all = async {
        while !seqs.is_empty() {
            match changes.recv().await {
                Ok(change) => match &change.rows {
                    ChangeRows::Utterance { utterance, .. } if utterance.seq == seqs.start => seqs.start += 1,
                    _ => {}
                },
                Err(missed) => why.push(missed),
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), all).await;
    waited.unwrap_or_else(|_| panic!("nobody was told of the utterances {seqs:?}"));
    why
}

/// F11: the primary dies while its standby lacks what it had acknowledged. What is missing is asked for again; the old primary comes back, and
/// nobody falls for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_promoted_standby_lacks_is_asked_for_again_and_the_old_primary_is_left_alone() {
    let Some((primary, standby, database)) = pair() else { return };
    let url = DatabaseUrl::new(both(&primary, &standby, &database));
    let running = Running::with(Settings { record: RecordSettings { url, ..RecordSettings::default() }, ..Settings::default() }).await;
    let call = running.call().await;
    let mut changes = running.record.subscribe();
    let mut watch = running.record.watch(cx(), call.id).await.expect("watches");
    for n in 0..50 {
        assert_eq!(say(&running, &call, n).await, CommitOutcome::Committed);
    }
    assert_eq!(told(&mut changes, 0..50).await, []);
    standby.catch_up(&primary);
    standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("postgres", "SELECT pg_reload_conf()");
    while standby.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver") != "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for n in 50..80 {
        assert_eq!(say(&running, &call, n).await, CommitOutcome::Committed, "acknowledged by the primary alone");
    }
    let attach = async || running.record.attach(cx(), Attach { conversation: call.id, channel: CUSTOMER }).await;
    let forgotten = attach().await.expect("attaches").epoch;
    assert_eq!(told(&mut changes, 50..80).await, []);
    let before = running.record.history();
    let kept = before.conversation(&TenantId::default(), call.id);
    let lost = Instant::now();
    primary.kill();
    standby.promote();
    let ahead = CommitOutcome::Ahead { next_seq: 50, safe: SamplePos(50 * 800) };
    assert_eq!(say(&running, &call, 80).await, ahead, "the new primary says what it lacks");
    for n in 50..=80 {
        assert_eq!(say(&running, &call, n).await, CommitOutcome::Committed);
    }
    assert!(lost.elapsed() < Duration::from_secs(30), "F11: at most 30 s");
    // Transactions have the numbers of lost ones, and are told nevertheless; first that what was told before is not there any more.
    assert_eq!(told(&mut changes, 50..81).await, [Missed::Another]);
    assert_ne!(running.record.history().conversation(&TenantId::default(), call.id), kept, "nothing kept from before is looked at");
    // Whoever was about to note how far it was told before has that place noted by nobody.
    let far = outbox::Place { xid: i64::MAX / 2, id: i64::MAX / 2 };
    let stale = move |conn: &mut Conn, _: &mut Effects| {
        let noted = outbox::write_cursor(conn, before, far, Some(far))?;
        Ok(noted || outbox::read_cursor(conn)? >= far)
    };
    assert!(!running.record.writer.ask(&cx(), 1, stale).await.expect("answered"));
    let interrupted = loop {
        if let Err(error) = watch.next().await.expect("it ends with a reason") {
            break error;
        }
    };
    assert_eq!(interrupted.kind, ErrorKind::Unavailable);
    let again = loop {
        match attach().await {
            Ok(attached) => break attached.epoch,
            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable),
        }
    };
    assert!(again > forgotten, "{again} is whoever's was given {forgotten}");
    // The old one is back, takes writes, and is on the older timeline.
    primary.start_again();
    assert_eq!(primary.sql("postgres", "SELECT pg_is_in_recovery()"), "f");
    for n in 81..100 {
        standby.sql("postgres", "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'quickcomm%'");
        assert_eq!(say(&running, &call, n).await, CommitOutcome::Committed);
    }
    let rows = running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    let told: Vec<(u64, String)> = rows.into_iter().map(|r| (r.seq, r.text)).collect();
    assert_eq!(told, (0..100).map(|n| (n, format!("word {n}"))).collect::<Vec<_>>(), "as without the fault");
    let count = |server: &postgres::Postgres| server.sql(&database, "SELECT count(*) FROM segments");
    assert_eq!((count(&standby).as_str(), count(&primary).as_str()), ("100", "80"));
    running.end().await;
}

/// F10 with a standby: what it lacks was told already and will not be told again, so who has read there reads afresh when the primary is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_at_a_standby_that_lags_is_read_again_when_the_same_primary_is_back() {
    let Some((primary, standby, database)) = pair() else { return };
    let url = DatabaseUrl::new(both(&primary, &standby, &database));
    let running = Running::with(Settings { record: RecordSettings { url, ..RecordSettings::default() }, ..Settings::default() }).await;
    let call = running.call().await;
    let mut changes = running.record.subscribe();
    assert_eq!(say(&running, &call, 0).await, CommitOutcome::Committed);
    standby.catch_up(&primary);
    standby.delay_replay(Duration::from_secs(600));
    assert_eq!(say(&running, &call, 1).await, CommitOutcome::Committed);
    assert_eq!(told(&mut changes, 0..2).await, []);
    primary.kill();
    let read = async || running.record.transcript(&TenantId::default(), call.id).await.map(|rows| rows.len());
    let mut rows = read().await;
    while rows.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rows = read().await;
    }
    assert_eq!(rows.expect("the standby answers"), 1);
    assert!(running.record.may_lack_the_last(), "and that is told");
    primary.start_again();
    let afresh = async {
        loop {
            match changes.recv().await {
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(30), afresh).await.expect("everybody is told to read afresh");
    assert_eq!(why, Missed::Another);
    assert_eq!((read().await.expect("the primary answers"), running.record.may_lack_the_last()), (2, false));
    running.end().await;
}

/// F12: commits wait for a standby, and it dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_does_not_hang_when_the_standby_it_waits_for_is_lost() {
    let Some((primary, standby, database)) = pair() else { return };
    let url = DatabaseUrl::new(primary.url("postgres", &database));
    let running = Running::with(Settings { record: RecordSettings { url, ..RecordSettings::default() }, ..Settings::default() }).await;
    let call = running.call().await;
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql("postgres", "SELECT pg_reload_conf()");
    while primary.sql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut n = 0;
    let mut next = async || {
        let began = Instant::now();
        let segment = call.says(AGENT, n, n * 100..n * 100 + 100, &format!("word {n}"));
        assert_eq!(running.commit(&[segment]).await, [CommitOutcome::Committed], "{n}: not refused, and not found to be there already");
        n += 1;
        began.elapsed()
    };
    for _ in 0..10 {
        next().await;
    }
    assert!(!running.record.database.is_alone());
    standby.kill();
    assert!(next().await < Duration::from_secs(5), "F12: at most 5 s");
    assert!(running.record.database.is_alone(), "the operator is told");
    for _ in 0..10 {
        next().await;
    }
    standby.start_again();
    let back = async {
        while running.record.database.is_alone() {
            next().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("commits wait for it again");
    next().await;
    standby.catch_up(&primary);
    assert_eq!(standby.sql(&database, "SELECT max(seq) FROM segments"), (n - 1).to_string(), "what is acknowledged is on both");
    let rows = running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
    running.end().await;
}
