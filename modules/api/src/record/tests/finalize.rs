//! Finishing: whatever dies, comes late or comes twice, a conversation comes to the same end. Time is given to the worker, never waited for.

use super::*;
use crate::finalizer::{
    Finalizer, Ledger, Settings as Finishing,
    tests::{Receiver, Told},
};
use async_trait::async_trait;
use chrono::TimeDelta;
use contracts::{
    CallError, ErrorKind, EventStream, Inference,
    conversation::HeardTo,
    inference::{Analyze, Summarize, SummaryItem, TierStatus},
    testing::{Behavior, FakeInference},
};
use futures::{StreamExt as _, TryStreamExt as _};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

on_both!(
    a_crash_before_or_after_any_write_changes_nothing_in_the_end,
    late_audio_is_refused_in_every_step,
    what_was_heard_may_still_come_and_what_does_not_becomes_a_gap,
    a_second_close_changes_nothing_in_any_step,
    inference_that_does_not_answer_leaves_a_degraded_result_and_the_better_one_follows,
    a_summary_that_is_not_by_the_language_model_there_is_makes_way_for_one_that_is_once,
    a_worker_that_was_overtaken_changes_nothing,
    an_abandoned_conversation_lives_again_until_its_result_is_published,
    a_webhook_is_tried_eight_times_within_a_day,
    what_is_kept_for_a_time_is_deleted_after_it,
    workers_share_the_steps_that_are_due,
);

/// Understands, unless told otherwise; says that its best rung answers once `well` is set.
#[derive(Clone, Default)]
struct Understanding {
    fake: FakeInference,
    well: Arc<AtomicBool>,
    /// That rung is a language model, and it sums up itself.
    has_llm: Arc<AtomicBool>,
    llm_sums_up: Arc<AtomicBool>,
}

#[async_trait]
impl Inference for Understanding {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.fake.analyze(cx, request).await
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let tier = if self.llm_sums_up.load(Ordering::SeqCst) { Tier::Llm } else { Tier::Rules };
        Ok(self.fake.summarize(cx, request).await?.map_ok(move |item| SummaryItem { tier, ..item }).boxed())
    }
    async fn tiers(&self, _: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let degraded = (!self.well.load(Ordering::SeqCst)).then(|| "the better one is away".to_owned());
        let tier = if self.has_llm.load(Ordering::SeqCst) { Tier::Llm } else { Tier::Local };
        Ok(Task::ALL.map(|task| TierStatus { task, tier, degraded: degraded.clone(), stale: None }).into())
    }
}

/// Fails at one of the writes, before or after it was made; `left` counts down to it.
struct Crashing {
    record: Arc<Record>,
    left: AtomicUsize,
    after: bool,
}

impl Crashing {
    async fn write<T>(&self, write: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let crash = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        if crash && !self.after {
            return Err(CallError::internal("it dies here"));
        }
        let written = write.await;
        if crash { Err(CallError::internal("it dies here")) } else { written }
    }
}

#[async_trait]
impl Ledger for Crashing {
    async fn claim(&self, now: DateTime<Utc>, most: usize) -> Result<Vec<Claim>, CallError> {
        self.write(Ledger::claim(&*self.record, now, most)).await
    }
    async fn settle(&self, claim: &Claim, finding: &Finding, now: DateTime<Utc>) -> Result<bool, CallError> {
        self.write(Ledger::settle(&*self.record, claim, finding, now)).await
    }
}

const PATIENCE: Duration = Duration::from_millis(100);

struct World {
    running: Running,
    inference: Understanding,
    finishing: Finishing,
    forgotten: Arc<AtomicUsize>,
    now: DateTime<Utc>,
}

impl World {
    async fn new(on: On, finishing: Finishing) -> Self {
        let running = Running::start(on).await;
        let (inference, forgotten) = (Understanding::default(), Arc::default());
        inference.well.store(true, Ordering::SeqCst);
        Self { running, inference, finishing, forgotten, now: Utc::now() }
    }

    fn worker(&self, ledger: Arc<dyn Ledger>) -> Finalizer {
        let forgotten = self.forgotten.clone();
        let forget = Arc::new(move |_| {
            forgotten.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let worker = Finalizer::new(self.running.record.clone(), Arc::new(self.inference.clone()), forget, &self.finishing);
        worker.expect("settings that work").by_way_of(ledger, PATIENCE)
    }

    fn plain(&self) -> Finalizer {
        self.worker(self.running.record.clone())
    }

    /// To the end of everything, at least this much later each time.
    async fn finish(&mut self, step: TimeDelta) {
        let worker = self.plain();
        loop {
            self.now = self.now.max(Utc::now());
            worker.work_due(self.now).await.expect("nothing fails here");
            match self.running.record.next_step().await.expect("readable") {
                Some(at) => self.now = at.max(self.now + step),
                None => return,
            }
        }
    }

    /// One claim and its settlement; what is due at `now`.
    async fn step(&mut self) -> Step {
        self.now = self.now.max(Utc::now());
        let claims = self.running.record.claim_steps(&cx(), self.now, 1).await.expect("claimed");
        let claim = claims.first().expect("a step is due");
        assert_eq!(self.plain().work(claim, self.now).await, Ok(true));
        claim.step
    }

    /// A customer's call with two turns, committed.
    async fn call(&self) -> Call {
        let call = self.running.call().await;
        let turns = [call.says(CUSTOMER, 0, 0..1000, "my bill is wrong"), call.says(AGENT, 0, 0..2000, "I will credit it")];
        assert_eq!(self.running.commit(&turns).await, [const { CommitOutcome::Committed }; 2]);
        let insight = call.insight(turns[0].utterance_id(), Task::Intent, "config", Some(("billing", 0.8)));
        self.running.record.record(cx(), vec![insight]).await.expect("recorded");
        call
    }

    async fn close_at(
        &self,
        call: &Call,
        state: ConversationState,
        heard: &[(ChannelIndex, u64)],
    ) -> contracts::conversation::Conversation {
        let heard = heard.iter().map(|(channel, ms)| HeardTo { channel: *channel, to: SamplePos(ms * 8) }).collect();
        let close = Close { conversation: call.id, state, ended_at: Utc::now(), heard };
        self.running.record.close(cx(), close).await.expect("closes")
    }

    async fn row(&self, call: &Call) -> ConversationRow {
        self.running.record.row(&TenantId::default(), call.id).await.expect("readable")
    }

    async fn result(&self, call: &Call) -> Option<ResultRow> {
        self.running.record.result(&TenantId::default(), call.id).await.expect("readable")
    }

    /// Steps with their outcomes, in order of their names.
    async fn steps(&self, call: &Call) -> Vec<(String, Option<String>)> {
        let id = call.id.to_string();
        let read = move |conn: &mut store::Conn| {
            use diesel::{ExpressionMethods as _, QueryDsl as _, RunQueryDsl as _};
            store::on_conn!(conn, |c: B| {
                Ok(schema::finalize::table
                    .filter(schema::finalize::conversation_id.eq(&id))
                    .order(schema::finalize::step)
                    .select((schema::finalize::step, schema::finalize::outcome))
                    .load(c)?)
            })
        };
        self.running.record.readers.read("steps", read).await.expect("readable")
    }

    /// Whatever a reader could tell from the outside, without times and names that follow from the conversation's own.
    async fn end_result(&self, call: &Call, told: &[Told]) -> String {
        let row = self.row(call).await;
        let result = self.result(call).await.expect("published");
        let said = self.running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
        let said: Vec<_> = said.iter().map(|r| (r.channel.0, r.seq, r.start_ms, r.end_ms, r.text.clone(), r.reason.clone())).collect();
        let summary: Vec<_> = result.summary.iter().map(|item| (item.kind, item.text.clone(), item.tier)).collect();
        // At least once, told apart by the id: the same words every time.
        let mut events: BTreeMap<(String, u64), String> = BTreeMap::new();
        for told in told.iter().filter(|told| told.body.contains(&call.id.to_string())) {
            let body: serde_json::Value = serde_json::from_str(&told.body).expect("JSON");
            let key = (told.headers["webhook-id"].clone(), body["data"]["result"]["version"].as_u64().expect("a version"));
            assert_eq!(*events.entry(key).or_insert_with(|| told.body.clone()), told.body, "the same event says the same");
        }
        let versions: Vec<u64> = events.keys().map(|(_, version)| *version).collect();
        let news = (versions.len(), versions.iter().max().copied());
        format!(
            "{:?} {:?} {:?} {said:?} {:?} {summary:?} {} {news:?} {:?}",
            row.state,
            row.finalization,
            row.utterance_count,
            result.quality,
            result.version,
            self.steps(call).await
        )
    }
}

async fn a_crash_before_or_after_any_write_changes_nothing_in_the_end(on: On) {
    let receiver = Receiver::start(None).await;
    let mut world = World::new(on, Finishing { keep_recordings_days: 1, ..receiver.settings() }).await;
    let long = TimeDelta::seconds(31); // longer than any lease and than the patience with what was heard
    let mut without: Option<String> = None;
    let mut writes = 0;
    // Run 0 has no crash; then one for each write, before and after it, until a run had fewer writes than that.
    for run in 0_usize.. {
        let call = world.call().await;
        world.now = Utc::now();
        world.inference.well.store(false, Ordering::SeqCst);
        world.close_at(&call, ConversationState::Complete, &[(CUSTOMER, 1500)]).await;
        let (left, after) = if run == 0 { (usize::MAX, false) } else { (run.div_ceil(2), run % 2 == 0) };
        let crashing = Arc::new(Crashing { record: world.running.record.clone(), left: AtomicUsize::new(left), after });
        let mut worker = world.worker(crashing.clone());
        let mut crashed = false;
        loop {
            world.now = world.now.max(Utc::now());
            if let Err(error) = worker.work_due(world.now).await {
                assert_eq!(error.to_string(), "it dies here");
                crashed = true;
                worker = world.plain(); // another process takes over
            }
            let degraded = world.row(&call).await.finalization == Some(Finalization::Degraded);
            world.inference.well.fetch_or(degraded, Ordering::SeqCst);
            match world.running.record.next_step().await.expect("readable") {
                Some(at) => world.now = at.max(world.now + long),
                None => break,
            }
        }
        let told = receiver.told.lock().clone();
        let end = world.end_result(&call, &told).await;
        match &without {
            None => {
                writes = usize::MAX - crashing.left.load(Ordering::SeqCst);
                assert!(end.contains("Some(Done)") && end.contains("not heard in time"), "{end}");
                without = Some(end);
            }
            Some(without) => {
                assert_eq!(crashed, run <= 2 * writes, "run {run}");
                assert_eq!(end, *without, "a crash {} write {left}", if after { "after" } else { "before" });
            }
        }
        if run == 2 * writes {
            break;
        }
    }
    assert!(writes >= 12, "{writes} writes were made to fail before and after");
    assert!(world.forgotten.load(Ordering::SeqCst) >= 2 * writes, "every recording was deleted");
    world.running.end().await;
}

async fn late_audio_is_refused_in_every_step(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    world.inference.well.store(true, Ordering::SeqCst);
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    let mut steps = vec![];
    loop {
        let late = call.says(CUSTOMER, 1, 1000..2000, "one more thing");
        assert_eq!(world.running.commit(&[late]).await, [CommitOutcome::Stale], "before {steps:?}");
        let attach = world.running.record.attach(cx(), Attach { conversation: call.id, channel: CUSTOMER }).await;
        let refused = attach.expect_err("it is closed");
        assert!(refused.kind == ErrorKind::Conflict && refused.detail.contains("complete"), "{refused}");
        if world.running.record.next_step().await.expect("readable").is_none() {
            break;
        }
        steps.push(world.step().await);
    }
    assert_eq!(steps, [Step::Drain, Step::Score, Step::Publish]);
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Done));
    world.running.end().await;
}

async fn what_was_heard_may_still_come_and_what_does_not_becomes_a_gap(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[(CUSTOMER, 3000), (AGENT, 2500)]).await;
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Closing));
    assert_eq!(world.step().await, Step::Drain);
    let came = call.says(CUSTOMER, 1, 1000..2000, "and nobody called");
    let beyond = call.says(CUSTOMER, 2, 2000..3001, "too long");
    assert_eq!(world.running.commit(&[came, beyond]).await, [CommitOutcome::Committed, CommitOutcome::Stale]);
    // Progress is waited for anew, here almost to the end of the patience.
    world.now = Utc::now() + TimeDelta::seconds(29);
    assert_eq!(world.step().await, Step::Drain);
    world.now += TimeDelta::seconds(29);
    assert_eq!(world.step().await, Step::Drain);
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Closing));
    world.now += TimeDelta::seconds(2);
    assert_eq!(world.step().await, Step::Drain);
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Scoring));
    let said = world.running.record.transcript(&TenantId::default(), call.id).await.expect("readable");
    let gaps: Vec<_> = said.iter().filter(|r| r.kind == UtteranceKind::Gap).map(|r| (r.channel, r.start_ms, r.end_ms)).collect();
    assert_eq!(gaps, [(AGENT, 2000, 2500), (CUSTOMER, 2000, 3000)]);
    assert_eq!(world.steps(&call).await[0], ("drain".into(), Some("timed_out".into())));
    let after = call.says(CUSTOMER, 2, 2000..3000, "it comes after all");
    assert_ne!(world.running.commit(&[after]).await, [CommitOutcome::Committed]);
    world.finish(TimeDelta::zero()).await;
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Done));
    // Where all of it comes in time, nothing is missing.
    world.now = Utc::now();
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[(CUSTOMER, 2000)]).await;
    assert_eq!(world.step().await, Step::Drain);
    let rest = call.says(CUSTOMER, 1, 1000..2000, "thank you");
    assert_eq!(world.running.commit(&[rest]).await, [CommitOutcome::Committed]);
    world.finish(TimeDelta::seconds(1)).await;
    assert_eq!(world.steps(&call).await[0], ("drain".into(), Some("done".into())));
    assert_eq!(world.row(&call).await.utterance_count, 3);
    world.running.end().await;
}

async fn a_second_close_changes_nothing_in_any_step(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    let call = world.call().await;
    let first = world.close_at(&call, ConversationState::Complete, &[]).await;
    while world.running.record.next_step().await.expect("readable").is_some() {
        let before = (world.steps(&call).await, world.row(&call).await, world.result(&call).await);
        let again = world.close_at(&call, ConversationState::Abandoned, &[(CUSTOMER, 9000)]).await;
        assert_eq!(again, first, "the first close counts");
        assert_eq!((world.steps(&call).await, world.row(&call).await, world.result(&call).await), before);
        world.step().await;
    }
    assert_eq!(world.result(&call).await.expect("published").version, 1);
    world.running.end().await;
}

async fn inference_that_does_not_answer_leaves_a_degraded_result_and_the_better_one_follows(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    for (behavior, outcome) in [(Behavior::Hang, "timed_out"), (Behavior::Fail(CallError::unavailable("it is away")), "done")] {
        let call = world.call().await;
        world.inference.fake.behave(behavior);
        world.close_at(&call, ConversationState::Complete, &[]).await;
        assert_eq!([world.step().await, world.step().await, world.step().await], [Step::Drain, Step::Score, Step::Publish]);
        let steps: BTreeMap<_, _> = world.steps(&call).await.into_iter().collect();
        assert_eq!((steps["score"].as_deref(), &steps["upgrade"]), (Some(outcome), &None));
        let lower = world.result(&call).await.expect("published");
        assert_eq!(
            (lower.quality, lower.version, world.row(&call).await.finalization),
            (Quality::Degraded, 1, Some(Finalization::Degraded))
        );
        let told: Vec<_> = lower.summary.iter().map(|item| (item.text.as_str(), item.tier)).collect();
        assert_eq!(told, [("my bill is wrong", "local")], "what was found while they spoke");
        // It is tried again, first in vain.
        world.now += TimeDelta::minutes(1);
        assert_eq!(world.step().await, Step::Upgrade);
        assert_eq!(world.result(&call).await.as_ref(), Some(&lower));
        world.inference.fake.behave(Behavior::Answer);
        world.now += TimeDelta::minutes(2);
        assert_eq!(world.step().await, Step::Upgrade);
        let better = world.result(&call).await.expect("published");
        assert_eq!((better.quality, better.version, better.summary.len()), (Quality::Full, 2, 2));
        assert_eq!(world.row(&call).await.finalization, Some(Finalization::Done));
        assert_eq!(world.running.record.next_step().await, Ok(None));
    }
    // Nothing said, nothing asked.
    let silent = world.running.call().await;
    world.inference.fake.behave(Behavior::Panic("it must not be asked".into()));
    world.close_at(&silent, ConversationState::Complete, &[]).await;
    world.finish(TimeDelta::zero()).await;
    assert_eq!(world.result(&silent).await.map(|r| (r.quality, r.summary.len())), Some((Quality::Full, 0)));
    // One that never gets better is left as it is.
    let call = world.call().await;
    world.inference.fake.behave(Behavior::Fail(CallError::unavailable("it is away")));
    world.close_at(&call, ConversationState::Complete, &[]).await;
    let closed = world.now;
    world.finish(TimeDelta::zero()).await;
    assert!(world.now - closed < TimeDelta::hours(25), "{}", world.now - closed);
    let steps: BTreeMap<_, _> = world.steps(&call).await.into_iter().collect();
    assert_eq!((steps["upgrade"].as_deref(), world.row(&call).await.finalization), (Some("given_up"), Some(Finalization::Degraded)));
    world.running.end().await;
}

async fn a_summary_that_is_not_by_the_language_model_there_is_makes_way_for_one_that_is_once(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    world.inference.has_llm.store(true, Ordering::SeqCst);
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    assert_eq!([world.step().await, world.step().await, world.step().await], [Step::Drain, Step::Score, Step::Publish]);
    let lower = world.result(&call).await.expect("published");
    assert_eq!((lower.quality, lower.version), (Quality::Degraded, 1), "although the model is well: this time it did not answer");
    world.inference.llm_sums_up.store(true, Ordering::SeqCst);
    world.finish(TimeDelta::minutes(1)).await;
    let better = world.result(&call).await.expect("published");
    assert_eq!((better.quality, better.version), (Quality::Full, 2));
    assert!(better.summary.iter().all(|item| item.tier == "llm"));
    // One by the model is full, even if that is away by the time somebody looks.
    let call = world.call().await;
    world.inference.well.store(false, Ordering::SeqCst);
    world.close_at(&call, ConversationState::Complete, &[]).await;
    world.finish(TimeDelta::minutes(1)).await;
    assert_eq!(world.result(&call).await.map(|r| (r.quality, r.version)), Some((Quality::Full, 1)));
    world.running.end().await;
}

async fn a_worker_that_was_overtaken_changes_nothing(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    let record = world.running.record.clone();
    let mut stale = vec![];
    let mut now = Utc::now();
    while record.next_step().await.expect("readable").is_some() {
        let first = record.claim_steps(&cx(), now, 1).await.expect("claimed").remove(0);
        assert_eq!(record.claim_steps(&cx(), now, 9).await, Ok(vec![]), "nobody else gets it meanwhile");
        now += first.step.lease(); // whoever claimed it stands still
        let second = record.claim_steps(&cx(), now, 1).await.expect("claimed").remove(0);
        assert_eq!((second.step, second.attempt), (first.step, 2));
        assert_eq!(world.plain().work(&second, now).await, Ok(true));
        let settled = (world.steps(&call).await, world.row(&call).await, world.result(&call).await);
        stale.push(first);
        for old in &stale {
            assert_eq!(world.plain().work(old, now).await, Ok(false), "{:?}", old.step);
            let other = Score { quality: Quality::Degraded, summary: vec![], timed_out: false };
            for finding in [Finding::Drain, Finding::Scored(other), Finding::Publish(Follow::default()), Finding::Erase] {
                assert_eq!(record.settle_step(&cx(), old, &finding, now).await, Ok(false), "{:?}", old.step);
            }
        }
        assert_eq!((world.steps(&call).await, world.row(&call).await, world.result(&call).await), settled);
    }
    assert_eq!(stale.len(), 3);
    world.now = now;
    world.running.end().await;
}

async fn an_abandoned_conversation_lives_again_until_its_result_is_published(on: On) {
    let mut world = World::new(on, Finishing::default()).await;
    let record = world.running.record.clone();
    for steps in 0..=3 {
        let call = world.call().await;
        world.close_at(&call, ConversationState::Abandoned, &[]).await;
        for _ in 0..steps {
            world.step().await;
        }
        let held = record.claim_steps(&cx(), world.now.max(Utc::now()), 1).await.expect("claimed");
        let opened = record.open(cx(), opening(call.id, None, &[])).await.expect("it is known");
        if steps == 3 {
            assert_eq!(opened.state, ConversationState::Abandoned, "it is published");
            assert_eq!(world.row(&call).await.finalization, Some(Finalization::Done));
            continue;
        }
        assert_eq!((opened.state, opened.ended_at), (ConversationState::Live, None), "after {steps} steps");
        assert_eq!(world.steps(&call).await, []);
        assert_eq!(world.plain().work(&held[0], world.now).await, Ok(false), "its step is gone");
        let late = call.says(CUSTOMER, 1, 1000..2000, "of the old epoch");
        assert_eq!(world.running.commit(std::slice::from_ref(&late)).await, [CommitOutcome::Stale]);
        let attached = record.attach(cx(), Attach { conversation: call.id, channel: CUSTOMER }).await.expect("it lives");
        assert_eq!(world.running.commit(&[Segment { epoch: attached.epoch, ..late }]).await, [CommitOutcome::Committed]);
        world.close_at(&call, ConversationState::Complete, &[]).await;
        assert_eq!(world.plain().work(&held[0], world.now).await, Ok(false), "the new step is not the old one");
        world.finish(TimeDelta::zero()).await;
        let result = world.result(&call).await.expect("published");
        assert_eq!((result.version, result.summary.len()), (1, 3), "with what was said since");
    }
    // A caller who hung up is gone for good.
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    let opened = record.open(cx(), opening(call.id, None, &[])).await.expect("it is known");
    assert_eq!(opened.state, ConversationState::Complete);
    world.running.end().await;
}

async fn a_webhook_is_tried_eight_times_within_a_day(on: On) {
    let receiver = Receiver::start(None).await;
    let mut world = World::new(on, receiver.settings()).await;
    *receiver.answer.lock() = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into();
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    let closed = Utc::now();
    world.finish(TimeDelta::zero()).await;
    assert!(world.now - closed <= TimeDelta::hours(24), "{}", world.now - closed);
    let steps: BTreeMap<_, _> = world.steps(&call).await.into_iter().collect();
    assert_eq!((steps["notify"].as_deref(), receiver.told.lock().len()), (Some("given_up"), 8));
    {
        let told = receiver.told.lock();
        assert!(told.iter().all(|one| one.body == told[0].body && one.headers["webhook-id"] == told[0].headers["webhook-id"]));
        let body: serde_json::Value = serde_json::from_str(&told[0].body).expect("JSON");
        assert_eq!((&body["id"], &body["type"]), (&told[0].headers["webhook-id"].as_str().into(), &"conversation.finalized".into()));
        assert_eq!(body["data"]["conversation"]["id"], call.id.to_string());
        assert_eq!(body["data"]["result"]["quality"], "full");
        assert_eq!(body["data"]["result"]["summary"][1]["text"], "my bill is wrong");
    }
    assert_eq!(world.row(&call).await.finalization, Some(Finalization::Done), "whoever reads it here is not kept waiting");
    world.running.end().await;
}

async fn what_is_kept_for_a_time_is_deleted_after_it(on: On) {
    let mut world = World::new(on, Finishing { keep_recordings_days: 1, keep_days: 3, ..Finishing::default() }).await;
    let call = world.call().await;
    world.close_at(&call, ConversationState::Complete, &[]).await;
    for _ in 0..3 {
        world.step().await;
    }
    let ended = world.row(&call).await.ended_at.expect("it has ended");
    assert_eq!(world.forgotten.load(Ordering::SeqCst), 0);
    let due = world.running.record.next_step().await.expect("readable").expect("a timer");
    assert!((due - (ended + TimeDelta::days(1))).abs() < TimeDelta::milliseconds(1));
    world.now = due;
    assert_eq!(world.step().await, Step::Retain);
    assert_eq!(world.forgotten.load(Ordering::SeqCst), 1);
    assert_eq!(world.row(&call).await.utterance_count, 2, "the words are kept longer");
    let found = async |world: &World| {
        let filter = SearchFilter::default();
        world.running.record.search(&TenantId::default(), "bill", &filter, &Cut::default()).await.expect("searched").data.len()
    };
    assert_eq!(found(&world).await, 1);
    world.now = world.running.record.next_step().await.expect("readable").expect("a timer");
    assert_eq!(world.step().await, Step::Retain);
    let gone = world.running.record.row(&TenantId::default(), call.id).await.expect_err("it is gone");
    assert_eq!((gone.kind, found(&world).await), (ErrorKind::NotFound, 0));
    assert_eq!((world.steps(&call).await, world.result(&call).await), (vec![], None));
    assert_eq!(world.running.record.next_step().await, Ok(None));
    world.running.end().await;
}

async fn workers_share_the_steps_that_are_due(on: On) {
    const CALLS: usize = 12;
    let world = World::new(on, Finishing::default()).await;
    let other = (on == On::Postgres).then(|| Running::with(world.running.settings.clone()));
    let other = match other {
        Some(other) => Some(other.await),
        None => None,
    };
    let mut calls = vec![];
    for _ in 0..CALLS {
        let call = world.call().await;
        world.close_at(&call, ConversationState::Complete, &[]).await;
        calls.push(call);
    }
    // As in a process: they run by themselves, beside each other.
    let stop = CancellationToken::new();
    let second = other.as_ref().unwrap_or(&world.running).record.clone();
    let beside =
        Finalizer::new(second, Arc::new(world.inference.clone()), Arc::new(|_| Ok(())), &world.finishing).expect("settings that work");
    let alone = world.plain();
    let tasks = [tokio::spawn(alone.run(stop.clone())), tokio::spawn(beside.run(stop.clone()))];
    let all_done = async {
        for call in &calls {
            while world.row(call).await.finalization != Some(Finalization::Done) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_done).await.expect("all of them come to their end");
    for call in &calls {
        assert_eq!(world.result(call).await.map(|r| (r.version, r.summary.len())), Some((1, 2)));
    }
    let asked = world.inference.fake.seen().len();
    assert_eq!(asked, CALLS, "each was summed up once");
    stop.cancel();
    for task in tasks {
        task.await.expect("no panic");
    }
    if let Some(other) = other {
        other.end().await;
    }
    world.running.end().await;
}
