//! Stored turns that nobody has understood, and insights that stand in for better ones.

use super::*;
use crate::record::reconcile::{Tried, round};
use contracts::{ErrorKind, inference::not_understood, signal::UTTERANCES};
use platform::bus::Consumer;

/// Nothing is too fresh to be looked at, and a turn is due again at once. Nobody looks but the test.
fn at_once(on: On) -> Settings {
    let mut settings = on.settings();
    settings.record.reconcile_s = 0;
    settings.record.reconcile_after_s = 0;
    settings.record.reconcile_most = 3;
    settings
}

fn pending(call: &Call, utterance: UtteranceId, task: Task, kind: ErrorKind) -> Insight {
    let mut insight = call.insight(utterance, task, "pending", None);
    insight.abstained = Some(not_understood(kind));
    insight.provenance.tier = Tier::Pending;
    insight.provenance.degraded_from = Some(Tier::Local);
    insight
}

/// A round as the settings say it.
async fn look(running: &Running, tried: &mut Tried) -> Result<usize, contracts::CallError> {
    round(&running.record, tried, Duration::from_secs(running.settings.record.reconcile_after_s)).await
}

/// What came onto the bus, acknowledged.
async fn taken(reader: &mut dyn Consumer, count: usize) -> Vec<serde_json::Value> {
    let mut taken = vec![];
    while taken.len() < count {
        let more = tokio::time::timeout(Duration::from_secs(20), reader.next(count)).await.expect("they come").expect("a bus");
        reader.ack(&more.iter().map(|d| d.id).collect::<Vec<_>>()).await.expect("a bus");
        taken.extend(more.iter().map(|d| serde_json::from_slice::<serde_json::Value>(&d.payload).expect("JSON")));
    }
    taken
}

async fn what_nobody_has_understood_is_put_on_the_bus_again_and_the_rest_is_not(on: On) {
    let running = Running::with(at_once(on)).await;
    let call = running.call().await;
    let said: Vec<Segment> = (0..6).map(|n| call.says(CUSTOMER, n, n * 1_000..n * 1_000 + 1_000, "my line is dead")).collect();
    let silence = call.segment(CUSTOMER, 6, 6_000..7_000, SegmentBody::Silence);
    let gap = call.segment(CUSTOMER, 7, 7_000..8_000, SegmentBody::Gap { reason: "cut".into() });
    running.commit(&[said.clone(), vec![silence, gap]].concat()).await;
    let id = |n: usize| said[n].utterance_id();
    let both = |n: usize, kind| Task::ALL.map(|task| pending(&call, id(n), task, kind));
    let mut insights: Vec<Insight> = Task::ALL.map(|task| call.insight(id(0), task, "a", Some(("x", 0.9)))).into(); // 0: understood
    insights.push(call.insight(id(1), Task::Intent, "a", Some(("x", 0.9)))); // 1: one task of two
    insights.extend(both(2, ErrorKind::Unavailable)); // 2: for the moment
    insights.extend(both(3, ErrorKind::Panicked)); // 3: for good, a person looks at it; 4 and 5: nothing at all
    running.record.record(cx(), insights).await.expect("recorded");

    let mut reader = running.bus.consume(UTTERANCES, "test").await.expect("a bus");
    let mut tried = Tried::default();
    assert_eq!(look(&running, &mut tried).await.expect("a round"), 3, "no more than asked for at once");
    let first = taken(&mut *reader, 3).await;
    assert_eq!(look(&running, &mut tried).await.expect("a round"), 3, "the one that has waited, and again those of which nothing has come");
    let last: Vec<_> = taken(&mut *reader, 3).await.into_iter().filter(|v| v["seq"] == 1).collect();
    for _ in 0..10 {
        assert_eq!(look(&running, &mut tried).await.expect("a round"), 3, "for as long as nobody understands them");
        taken(&mut *reader, 3).await;
    }
    let again: Vec<Segment> = first.iter().chain(&last).map(|v| serde_json::from_value(v.clone()).expect("a segment")).collect();
    assert!(first.iter().all(|v| v["again"] == true));
    assert_eq!(again.iter().map(Segment::utterance_id).collect::<Vec<_>>(), [id(5), id(4), id(2), id(1)]);
    for (again, as_said) in again.iter().zip([5, 4, 2, 1].map(|n: usize| &said[n])) {
        assert_eq!(again.trace.trace_id, as_said.trace.trace_id);
        assert_eq!(&Segment { trace: as_said.trace, ..again.clone() }, as_said, "as it was said");
    }

    // The recorder of this record has read them too: nothing has changed.
    let utterances = running.record.transcript(&TenantId::default(), call.id).await.expect("a transcript");
    assert_eq!(utterances.len(), 7, "six turns and a gap");
    let of_now = running.record.insights(&TenantId::default(), call.id, true, None).await.expect("insights");
    assert_eq!(of_now.len(), 7);

    let mut rest = vec![call.insight(id(1), Task::Sentiment, "a", None)];
    rest.extend([2, 4, 5].into_iter().flat_map(|n| Task::ALL.map(|task| call.insight(id(n), task, "a", None))));
    running.record.record(cx(), rest).await.expect("recorded");
    assert_eq!(look(&running, &mut Tried::default()).await.expect("a round"), 0, "one that abstains is understood");
    running.end().await;
}

async fn a_turn_that_was_just_stored_is_left_to_whoever_is_at_it(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    running.commit(&[call.says(CUSTOMER, 0, 0..1_000, "hello")]).await;
    assert_eq!(look(&running, &mut Tried::default()).await.expect("a round"), 0);
    running.end().await;
}

async fn a_process_that_begins_looks_soon_because_the_one_before_may_have_died_with_what_it_had(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let said = call.says(CUSTOMER, 0, 0..1_000, "my line is dead");
    running.commit(std::slice::from_ref(&said)).await;
    let settings = running.settings.clone();
    assert_eq!((settings.record.reconcile_s, settings.record.reconcile_after_s), (30, 60), "by its defaults");
    let folder = running.end().await;
    let next = Running::again(folder, Arc::new(Memory::default()), settings).await;
    let mut reader = next.bus.consume(UTTERANCES, "test").await.expect("a bus");
    let again = taken(&mut *reader, 1).await; // which waits for less time than it takes until it looks as usual
    assert_eq!(serde_json::from_value::<Segment>(again[0].clone()).expect("a segment").utterance_id(), said.utterance_id());
    next.end().await;
}

async fn what_a_lower_rung_answered_is_put_on_the_bus_again_when_the_better_one_is_back_and_not_for_ever(on: On) {
    let running = Running::with(at_once(on)).await;
    let call = running.call().await;
    let said: Vec<Segment> = (0..4).map(|n| call.says(CUSTOMER, n, n * 1_000..n * 1_000 + 1_000, "my line is dead")).collect();
    let by = async |n: usize, tier: Tier| {
        let of = |task| {
            let mut insight = call.insight(said[n].utterance_id(), task, tier.name(), Some(("x", 0.9)));
            insight.provenance.tier = tier;
            insight.provenance.degraded_from = (tier > Tier::Llm).then_some(Tier::Llm);
            insight
        };
        running.record.record(cx(), Task::ALL.map(of).into()).await.expect("recorded");
    };
    let mut reader = running.bus.consume(UTTERANCES, "test").await.expect("a bus");
    let mut put = async |tried: &mut Tried, count: usize| {
        assert_eq!(look(&running, tried).await.expect("a round"), count);
        let again = taken(&mut *reader, count).await;
        again.into_iter().map(|v| serde_json::from_value::<Segment>(v).expect("a segment").seq).collect::<Vec<_>>()
    };
    running.commit(&said[..3]).await;
    by(0, Tier::Rules).await;
    by(1, Tier::Local).await;
    by(1, Tier::Local).await;
    let mut tried = Tried::default();
    by(2, Tier::Rules).await;
    put(&mut tried, 0).await; // nobody knows that the better one is back
    by(2, Tier::Llm).await;
    assert_eq!(put(&mut tried, 2).await, [1, 0]);
    assert_eq!(put(&mut tried, 2).await, [1, 0], "nothing has come of it");
    put(&mut tried, 0).await; // and nothing will
    running.commit(&said[3..]).await;
    by(3, Tier::Rules).await;
    put(&mut Tried::default(), 0).await; // it is away again
    by(3, Tier::Llm).await;
    by(0, Tier::Llm).await;
    assert_eq!(put(&mut Tried::default(), 1).await, [1]);
    by(1, Tier::Llm).await;
    put(&mut Tried::default(), 0).await;
    let current = running.record.insights(&TenantId::default(), call.id, false, None).await.expect("insights");
    assert!(current.len() == 8 && current.iter().all(|i| i.provenance.tier == Tier::Llm), "one of each: {current:?}");
    running.end().await;
}

async fn an_insight_that_stands_in_for_a_better_rung_never_takes_its_place(on: On) {
    let running = Running::start(on).await;
    let call = running.call().await;
    let said = call.says(CUSTOMER, 0, 0..1_000, "cancel my plan");
    running.commit(std::slice::from_ref(&said)).await;
    let by = |config: &str, tier, degraded_from, label| {
        let mut insight = call.insight(said.utterance_id(), Task::Intent, config, Some((label, 0.9)));
        insight.provenance.tier = tier;
        insight.provenance.degraded_from = degraded_from;
        insight
    };
    let lower = by("rules", Tier::Rules, Some(Tier::Llm), "outage");
    let mut best = by("llm", Tier::Llm, None, "cancel");
    (best.provenance.prompt, best.provenance.late) = (Some("turn@1 abc".into()), true);
    let stand_in = by("local", Tier::Local, Some(Tier::Llm), "billing");
    let current = async || {
        let current = running.record.insights(&TenantId::default(), call.id, false, None).await.expect("insights");
        assert_eq!(current.len(), 1);
        current[0].clone()
    };
    running.record.record(cx(), vec![lower]).await.expect("recorded");
    running.record.record(cx(), vec![best.clone()]).await.expect("recorded");
    assert_eq!(current().await.insight(), best, "the better rung's is shown, with prompt and lateness");
    let id = call.id.to_string();
    let updated = async || {
        let id = id.clone();
        let read = move |conn: &mut store::Conn| {
            use diesel::{ExpressionMethods as _, QueryDsl as _, RunQueryDsl as _};
            let seen: (chrono::NaiveDateTime, i64) = store::on_conn!(conn, |c: B| {
                schema::conversations::table
                    .filter(schema::conversations::id.eq(&id))
                    .select((schema::conversations::updated_at, schema::conversations::version))
                    .first(c)?
            });
            Ok(seen)
        };
        running.record.readers.read("updated", read).await.expect("readable")
    };
    let before = updated().await;
    // The same turn, read again from the bus while the better rung is away.
    running
        .record
        .record(cx(), vec![stand_in.clone(), pending(&call, said.utterance_id(), Task::Intent, ErrorKind::Busy)])
        .await
        .expect("recorded");
    assert_eq!(current().await.id, best.id);
    let after = updated().await;
    assert!(after.0 > before.0 && after.1 == before.1, "a copy of the record finds it, and no reader is told: {before:?} {after:?}");
    let all = running.record.insights(&TenantId::default(), call.id, true, None).await.expect("insights");
    assert_eq!(all.len(), 4, "kept, and shown to whoever asks");
    assert_eq!(all.iter().find(|i| i.id == stand_in.id).expect("kept").superseded_by, Some(best.id));
    let row = running.record.row(&TenantId::default(), call.id).await.expect("a row");
    assert_eq!(row.intent.expect("an intent").name, "cancel");
    // Another configuration that asks for no better rung is a new word, not a stand-in.
    let chosen = by("rules only", Tier::Rules, None, "outage");
    running.record.record(cx(), vec![chosen.clone()]).await.expect("recorded");
    assert_eq!(current().await.id, chosen.id);
    running.end().await;
}

on_both! {
    what_nobody_has_understood_is_put_on_the_bus_again_and_the_rest_is_not,
    a_process_that_begins_looks_soon_because_the_one_before_may_have_died_with_what_it_had,
    a_turn_that_was_just_stored_is_left_to_whoever_is_at_it,
    what_a_lower_rung_answered_is_put_on_the_bus_again_when_the_better_one_is_back_and_not_for_ever,
    an_insight_that_stands_in_for_a_better_rung_never_takes_its_place,
}
