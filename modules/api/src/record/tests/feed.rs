//! From the bus into the record, and from the record to whoever listens.

use super::*;
use bytes::Bytes;
use contracts::signal::{COMMITTED, Committed, INSIGHTS, UTTERANCES};
use platform::bus::{Heard, Listener, NewEntry};

impl Running {
    async fn publish(&self, stream: &'static str, key: ConversationId, payloads: Vec<Vec<u8>>) {
        let entry = |payload: Vec<u8>| NewEntry { key: key.to_string(), payload: payload.into(), trace: TraceCx::root() };
        self.bus.publish(stream, payloads.into_iter().map(entry).collect()).await.expect("the bus has room");
    }

    async fn send(&self, segments: &[&Segment]) {
        let payloads = segments.iter().map(|s| serde_json::to_vec(s).expect("serializes")).collect();
        self.publish(UTTERANCES, segments[0].conversation, payloads).await;
    }

    async fn send_insight(&self, insight: &Insight) {
        self.publish(INSIGHTS, insight.conversation, vec![serde_json::to_vec(insight).expect("serializes")]).await;
    }

    async fn listen(&self) -> Box<dyn Listener> {
        self.bus.listen(COMMITTED).await.expect("the bus is up")
    }
}

async fn mark(listener: &mut Box<dyn Listener>) -> Committed {
    let heard = tokio::time::timeout(Duration::from_secs(5), listener.next()).await.expect("a signal in time");
    match heard {
        Some(Heard::Signal(payload)) => serde_json::from_slice(&payload).expect("a watermark"),
        other => panic!("{other:?}"),
    }
}

/// The first signal that says `safe`, in ms.
async fn mark_at(listener: &mut Box<dyn Listener>, safe_ms: u64) -> Committed {
    loop {
        let mark = mark(listener).await;
        if mark.safe == SamplePos(safe_ms * 8) {
            return mark;
        }
    }
}

async fn change(changes: &mut Changes) -> Arc<Change> {
    tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.expect("a change in time").expect("not lagging")
}

async fn what_is_published_is_stored_announced_and_signalled(on: On) {
    let running = Running::start(on).await;
    let call = running.call_named(Some("billing"), &[]).await;
    let (mut listener, mut changes) = (running.listen().await, running.record.subscribe());
    let gap = SegmentBody::Gap { reason: "the line was cut".into() };
    let (hello, gap, quiet) = (
        call.says(AGENT, 0, 0..1000, "hello there"),
        call.segment(AGENT, 1, 1000..2000, gap),
        call.segment(AGENT, 2, 2000..9000, SegmentBody::Silence),
    );
    running.send(&[&hello, &gap, &quiet]).await;
    let mark = mark_at(&mut listener, 9000).await;
    assert_eq!((mark.conversation, mark.channel, mark.epoch, mark.next_seq), (call.id, AGENT, call.epochs[0], 3));

    let first = loop {
        let change = change(&mut changes).await;
        if !matches!(change.rows, ChangeRows::Conversation(_)) {
            break change; // the opening may have been announced before or after we subscribed
        }
    };
    let ChangeRows::Utterance { utterance, conversation } = &first.rows else { panic!("{first:?}") };
    assert_eq!((utterance.id, utterance.text.as_str(), utterance.role), (hello.utterance_id(), "hello there", Role::Agent));
    assert_eq!((utterance.start_ms, utterance.end_ms, utterance.trace_id.len()), (0, 1000, 32));
    assert_eq!((conversation.title.as_deref(), conversation.utterance_count, conversation.duration_ms), (Some("billing"), 1, 9000));
    let second = change(&mut changes).await;
    assert!(second.id > first.id);
    assert!(matches!(&second.event, RecordEvent::Gap(g) if (g.start_ms, g.end_ms, g.reason.as_str()) == (1000, 2000, "the line was cut")));
    running.end().await;
}

async fn silence_alone_is_signalled_although_it_makes_no_row(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    running.send(&[&call.segment(CUSTOMER, 0, 0..5000, SegmentBody::Silence)]).await;
    assert_eq!(mark_at(&mut listener, 5000).await.channel, CUSTOMER);
    running.end().await;
}

async fn a_segment_that_comes_early_waits_for_the_one_before(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    let [a, b, c] = [0, 1, 2].map(|n| call.says(AGENT, n, n * 1000..n * 1000 + 1000, "part"));
    running.send(&[&c, &b]).await;
    running.send(&[&a]).await; // the same key: it would be held back if the others were still unacknowledged
    assert_eq!(mark_at(&mut listener, 3000).await.next_seq, 3);
    let told = running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    assert_eq!(told.iter().map(|u| u.seq).collect::<Vec<_>>(), [0, 1, 2]);
    running.end().await;
}

async fn a_segment_whose_predecessor_is_lost_is_dropped_and_its_producer_reminded(on: On) {
    let mut settings = on.settings();
    settings.record.park_ms = 50;
    let running = Running::with(settings).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    running.send(&[&call.says(AGENT, 0, 0..1000, "first")]).await;
    mark_at(&mut listener, 1000).await;
    running.send(&[&call.says(AGENT, 2, 2000..3000, "third")]).await;
    // Once when it is found to be early, and once when it is given up.
    for _ in 0..2 {
        let reminded = mark(&mut listener).await;
        assert_eq!((reminded.next_seq, reminded.safe, reminded.epoch), (1, SamplePos(8000), call.epochs[0]));
    }
    // The producer sends again from there.
    running.send(&[&call.says(AGENT, 1, 1000..2000, "second"), &call.says(AGENT, 2, 2000..3000, "third")]).await;
    assert_eq!(mark_at(&mut listener, 3000).await.next_seq, 3);
    running.end().await;
}

async fn a_repeated_or_fenced_segment_is_answered_with_where_the_channel_stands(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    let said = call.says(AGENT, 0, 0..1000, "once");
    running.send(&[&said]).await;
    mark_at(&mut listener, 1000).await;
    running.send(&[&said]).await;
    assert_eq!(mark(&mut listener).await.next_seq, 1, "a duplicate: its producer has not heard yet");
    let newer = running.record.attach(cx(), Attach { conversation: call.id, channel: AGENT }).await.expect("attaches").epoch;
    running.send(&[&call.says(AGENT, 1, 1000..2000, "from the old owner")]).await;
    let fenced = mark(&mut listener).await;
    assert_eq!((fenced.epoch, fenced.safe), (newer, SamplePos(8000)), "the old owner learns that it is one");
    running.end().await;
}

async fn an_entry_that_cannot_be_read_stops_nobody(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    running.publish(UTTERANCES, call.id, vec![b"{\"conversation\":".to_vec(), b"\xff\xfe".to_vec()]).await;
    running.publish(INSIGHTS, call.id, vec![b"[]".to_vec()]).await;
    let said = call.says(AGENT, 0, 0..1000, "still here");
    running.send(&[&said]).await;
    mark_at(&mut listener, 1000).await;
    let mut changes = running.record.subscribe();
    running.send_insight(&call.insight(said.utterance_id(), Task::Intent, "a", Some(("praise", 0.5)))).await;
    while !matches!(change(&mut changes).await.rows, ChangeRows::Insight { .. }) {}
    running.end().await;
}

async fn an_insight_that_overtakes_its_utterance_waits_for_it(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut changes = running.record.subscribe();
    let said = call.says(CUSTOMER, 0, 0..1000, "cancel my contract");
    let insight = call.insight(said.utterance_id(), Task::Intent, "a", Some(("cancellation", 0.9)));
    running.send_insight(&insight).await;
    // Another conversation's insight goes through meanwhile, so the first has been looked at.
    let other = running.call().await;
    let theirs = other.says(CUSTOMER, 0, 0..1000, "hello");
    running.send(&[&theirs]).await;
    running.send_insight(&other.insight(theirs.utterance_id(), Task::Intent, "a", None)).await;
    while !matches!(&change(&mut changes).await.rows, ChangeRows::Insight { insight, .. } if insight.conversation_id == other.id) {}
    running.send(&[&said]).await;
    let mut order = vec![];
    while order.len() < 2 {
        let change = change(&mut changes).await;
        if change.conversation == call.id {
            match &change.rows {
                ChangeRows::Utterance { .. } => order.push("utterance"),
                ChangeRows::Insight { conversation, .. } => {
                    assert_eq!(conversation.intent.as_ref().map(|i| i.name.as_str()), Some("cancellation"));
                    order.push("insight");
                }
                ChangeRows::Conversation(_) => {}
            }
        }
    }
    assert_eq!(order, ["utterance", "insight"]);
    running.end().await;
}

async fn an_insight_that_waits_for_its_utterance_is_there_for_the_next_process(on: On) {
    let running = Running::start(on).await;
    let (call, other) = (running.call().await, running.call().await);
    let (said, theirs) = (call.says(CUSTOMER, 0, 0..1000, "cancel my contract"), other.says(CUSTOMER, 0, 0..1000, "hello"));
    let insight = call.insight(said.utterance_id(), Task::Intent, "a", Some(("cancellation", 0.9)));
    running.send_insight(&insight).await;
    let mut changes = running.record.subscribe();
    running.send(&[&theirs]).await;
    running.send_insight(&other.insight(theirs.utterance_id(), Task::Intent, "a", None)).await;
    while !matches!(&change(&mut changes).await.rows, ChangeRows::Insight { .. }) {} // so the first has been looked at
    let (bus, settings) = (running.bus.clone(), running.settings.clone());
    let next = Running::again(running.end().await, bus, settings).await;
    let mut changes = next.record.subscribe();
    next.send(&[&said]).await;
    while !matches!(&change(&mut changes).await.rows, ChangeRows::Insight { insight: told, .. } if told.id == insight.id) {}
    next.end().await;
}

async fn what_is_on_the_bus_when_the_stop_comes_is_stored(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let segments: Vec<Segment> = (0..500).map(|n| call.says(AGENT, n, n * 100..n * 100 + 100, "word")).collect();
    running.send(&segments.iter().collect::<Vec<_>>()).await;
    let record = running.record.clone();
    let _folder = running.end().await;
    assert_eq!(record.row(&TenantId::default(), call.id).await.expect("readable").utterance_count, 500);
}

async fn a_snapshot_and_the_changes_after_its_position_are_the_whole_conversation_once(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut changes = running.record.subscribe();
    let writer = async {
        for n in 0..60 {
            let said = call.says(CUSTOMER, n, n * 100..n * 100 + 100, "word");
            running.commit(std::slice::from_ref(&said)).await;
            for config in ["a", "b"] {
                let insight = call.insight(said.utterance_id(), Task::Intent, config, Some((config, 0.5)));
                running.record.record(cx(), vec![insight]).await.expect("recorded");
            }
        }
    };
    let reader = async {
        let mut snapshots = vec![];
        while snapshots.last().is_none_or(|s: &Snapshot| s.utterances.len() < 50) {
            snapshots.push(running.record.snapshot(&TenantId::default(), call.id).await.expect("a snapshot"));
        }
        snapshots
    };
    let ((), snapshots) = tokio::join!(writer, reader);
    let mut told = vec![];
    while told.last().is_none_or(|c: &Arc<Change>| c.id < told[0].id + 60 * 3 - 1) {
        let change = change(&mut changes).await;
        if !matches!(change.rows, ChangeRows::Conversation(_)) {
            told.push(change);
        }
    }
    for snapshot in snapshots {
        let later = || told.iter().filter(|c| !snapshot.position.contains(c));
        let said = later().filter(|c| matches!(c.rows, ChangeRows::Utterance { .. })).count();
        assert_eq!(snapshot.utterances.len() + said, 60);
        let mut current: Vec<InsightId> = snapshot.insights.iter().map(|i| i.id).collect();
        for change in later() {
            if let ChangeRows::Insight { insight, superseded, .. } = &change.rows {
                assert!(!current.contains(&insight.id), "told twice");
                current.retain(|id| !superseded.contains(id));
                current.push(insight.id);
            }
        }
        assert_eq!(current.len(), 60);
    }
    running.end().await;
}

async fn a_watcher_that_falls_behind_is_told_so(on: On) {
    use futures::StreamExt as _;
    let running = Running::start(on).await;
    let call = running.call().await;
    let mut watch = running.record.watch(cx(), call.id).await.expect("watches");
    let mut changes = running.record.subscribe();
    let segments: Vec<Segment> = (0..6000).map(|n| call.says(AGENT, n, n * 10..n * 10 + 10, "word")).collect();
    for batch in segments.chunks(500) {
        running.commit(batch).await;
        // Others keep up.
        for _ in 0..batch.len() {
            changes.recv().await.expect("this one keeps up");
        }
    }
    let first = watch.next().await.expect("an item").expect_err("4096 is all that is kept");
    assert_eq!(first.kind, contracts::ErrorKind::Unavailable);
    assert!(watch.next().await.is_none(), "an error is the last item");
    running.end().await;
}

#[test]
fn a_signal_is_what_the_contract_says() {
    let mark = Committed { conversation: ConversationId::from_u128(1), channel: AGENT, epoch: Epoch(2), next_seq: 3, safe: SamplePos(4) };
    let payload = Bytes::from(serde_json::to_vec(&mark).expect("serializes"));
    assert_eq!(serde_json::from_slice::<Committed>(&payload).expect("reads back"), mark);
}

/// Lets the database grow by `more` pages and no further, as a full disk would.
async fn limit_growth(running: &Running, more: i32) {
    use super::super::store::{Conn, on_conn};
    use diesel::{RunQueryDsl as _, connection::SimpleConnection as _, dsl::sql, sql_types::Integer};
    let limit = move |conn: &mut Conn, _: &mut super::super::writer::Effects| {
        on_conn!(conn, |c: B| {
            let pages: i32 = diesel::select(sql::<Integer>("(SELECT page_count FROM pragma_page_count())")).get_result(c)?;
            Ok(c.batch_execute(&format!("PRAGMA max_page_count = {}", pages.saturating_add(more)))?)
        })
    };
    running.record.writer.ask(&cx(), 1, limit).await.expect("the limit is set");
}

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_is_lost_when_there_is_room_again() {
    let running = Running::start(On::Sqlite).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    limit_growth(&running, 4).await;
    let long = "word ".repeat(2_000);
    let segments: Vec<Segment> = (0..30).map(|n| call.says(AGENT, n, n * 5000..n * 5000 + 5000, long.trim())).collect();
    let full = running.record.commit(cx(), segments.clone()).await.expect_err("there is no room");
    assert_eq!((full.kind, full.retry), (contracts::ErrorKind::SpoolFull, contracts::Retry::After(Duration::from_secs(1))));
    assert!(full.detail.contains("full"), "{full}");
    assert_eq!(running.record.row(&TenantId::default(), call.id).await.expect("readable").utterance_count, 0, "not a part of it");
    // What comes over the bus waits there.
    running.send(&segments.iter().collect::<Vec<_>>()).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), listener.next()).await.is_err(), "nothing is called safe");
    limit_growth(&running, 1_000_000).await;
    assert_eq!(mark_at(&mut listener, 150_000).await.next_seq, 30);
    running.end().await;
}

/// F29 on a server whose tables lie on a small disk. Its log does not: a server that cannot write that stops, which is F10.
#[tokio::test(flavor = "multi_thread")]
async fn f29_a_full_disk_of_postgres_is_said_and_nothing_is_lost_when_there_is_room_again() {
    let (Some(bin), Some(volume)) = (postgres::installed(), volume::Volume::of(24)) else { return };
    let place = volume.path().join("tables");
    std::fs::create_dir(&place).expect("it is empty");
    let owned = std::process::Command::new("chown").arg("postgres").arg(&place).status();
    assert!(owned.is_ok_and(|status| status.success()), "who may mount may give away");
    let server = tokio::task::spawn_blocking(|| postgres::Postgres::start(bin, postgres::Sync::Off)).await.expect("it starts");
    server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", place.display()));
    server.sql("postgres", "CREATE DATABASE calls TEMPLATE template0 TABLESPACE small");
    migrate(&server.url("postgres", "calls"));
    let record = RecordSettings { url: DatabaseUrl::new(server.url("postgres", "calls")), ..RecordSettings::default() };
    let running = Running::with(Settings { record, ..Settings::default() }).await;
    let call = running.call().await;
    let mut listener = running.listen().await;
    assert_eq!(running.record.probe().await, Standing::Serving);
    volume.fill();
    let long = "word ".repeat(2_000);
    let segments: Vec<Segment> = (0..30).map(|n| call.says(AGENT, n, n * 5000..n * 5000 + 5000, long.trim())).collect();
    let full = running.record.commit(cx(), segments.clone()).await.expect_err("there is no room");
    assert_eq!((full.kind, full.retry), (contracts::ErrorKind::SpoolFull, contracts::Retry::After(Duration::from_secs(1))));
    assert_eq!(full.detail, "the disk that holds the record is full");
    assert_eq!(running.record.probe().await, Standing::TakesNoWrites(full.detail));
    assert_eq!(running.record.row(&TenantId::default(), call.id).await.expect("readable").utterance_count, 0, "not a part of it");
    running.send(&segments.iter().collect::<Vec<_>>()).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), listener.next()).await.is_err(), "nothing is called safe");
    volume.make_room();
    let from = std::time::Instant::now();
    assert_eq!(mark_at(&mut listener, 150_000).await.next_seq, 30);
    while running.record.probe().await != Standing::Serving {
        assert!(from.elapsed() < Duration::from_secs(5), "it is not said that it takes writes again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.end().await;
}

on_both! {
    what_is_published_is_stored_announced_and_signalled,
    silence_alone_is_signalled_although_it_makes_no_row,
    a_segment_that_comes_early_waits_for_the_one_before,
    a_segment_whose_predecessor_is_lost_is_dropped_and_its_producer_reminded,
    a_repeated_or_fenced_segment_is_answered_with_where_the_channel_stands,
    an_entry_that_cannot_be_read_stops_nobody,
    an_insight_that_overtakes_its_utterance_waits_for_it,
    an_insight_that_waits_for_its_utterance_is_there_for_the_next_process,
    what_is_on_the_bus_when_the_stop_comes_is_stored,
    a_snapshot_and_the_changes_after_its_position_are_the_whole_conversation_once,
    a_watcher_that_falls_behind_is_told_so,
}
