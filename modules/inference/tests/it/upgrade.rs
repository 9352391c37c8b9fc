//! Turns that a lower rung answered, while the better one is away, and after. The worker sees rungs only in what insights and status say.

use crate::turns::{self, hear};
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, ConversationId, EventStream, Inference, InsightId, RunId, TraceCx,
    conversation::Segment,
    inference::{Analyze, Insight, Summarize, SummaryItem, Task, Tier, TierStatus},
    signal::{AGAIN, INSIGHTS, UTTERANCES},
    testing::{FakeConversations, FakeInference},
};
use inference::{Worker, settings::WorkerSettings};
use parking_lot::Mutex;
use platform::bus::{Bus, Consumer, Memory, NewEntry};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A language model over rules, as one module.
#[derive(Default)]
struct Rungs {
    fake: FakeInference,
    away: AtomicBool,
    /// It says it is there, and is not.
    deluded: AtomicBool,
    takes: Mutex<Duration>,
    asked: Mutex<Vec<(String, Duration)>>,
}

#[async_trait]
impl Inference for Rungs {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let text = request.utterances[0].text();
        self.asked.lock().push((text.clone(), cx.remaining()));
        let takes = *self.takes.lock();
        tokio::time::sleep(takes).await;
        let lowered = self.away.load(Ordering::SeqCst) || text.contains("unlikely");
        let mut insights = self.fake.analyze(cx, request).await?;
        for insight in &mut insights {
            let (tier, degraded_from) = if lowered { (Tier::Rules, Some(Tier::Llm)) } else { (Tier::Llm, None) };
            insight.run = RunId::live(insight.conversation, insight.task.name(), tier.name());
            insight.id = InsightId::of(insight.run, insight.utterance);
            (insight.provenance.tier, insight.provenance.degraded_from) = (tier, degraded_from);
        }
        Ok(insights)
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        self.fake.summarize(cx, request).await
    }
    async fn tiers(&self, _: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let there = !self.away.load(Ordering::SeqCst) || self.deluded.load(Ordering::SeqCst);
        let tier = if there { Tier::Llm } else { Tier::Rules };
        Ok(Task::ALL.map(|task| TierStatus { task, tier, degraded: None, stale: None }).into())
    }
}

impl Rungs {
    fn asked(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(text, _)| text.clone()).collect()
    }
}

struct Bench {
    bus: Memory,
    rungs: Arc<Rungs>,
    insights: Box<dyn Consumer>,
    stop: CancellationToken,
    worker: Option<tokio::task::JoinHandle<()>>,
}

impl Bench {
    async fn new() -> Self {
        let bus = Memory::default();
        let insights = bus.consume(INSIGHTS, "test").await.unwrap();
        Self { bus, rungs: Arc::default(), insights, stop: CancellationToken::new(), worker: None }
    }

    async fn start(settings: WorkerSettings) -> Self {
        let mut bench = Self::new().await;
        bench.begin(settings);
        bench
    }

    fn begin(&mut self, settings: WorkerSettings) {
        let worker = Worker::new(self.rungs.clone(), Arc::new(FakeConversations::default()), Arc::new(self.bus.clone()), &settings);
        self.worker = Some(tokio::spawn(worker.run(self.stop.clone())));
    }

    async fn say(&self, seq: u64, text: &str, again: bool) {
        let mut payload = serde_json::to_value(speech(seq, text)).unwrap();
        if again {
            payload[AGAIN] = true.into();
        }
        let entry = NewEntry { key: "one".into(), payload: payload.to_string().into(), trace: TraceCx::root() };
        self.bus.publish(UTTERANCES, vec![entry]).await.unwrap();
    }

    async fn hear(&mut self, count: usize) -> Vec<Insight> {
        hear(&mut *self.insights, count).await
    }

    /// Nothing comes for a while.
    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_secs(60), self.insights.next(1)).await.is_err()
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.worker.take().unwrap().await.unwrap();
    }
}

fn speech(seq: u64, text: &str) -> Segment {
    turns::speech(ConversationId::from_u128(7), seq, text)
}

#[tokio::test(start_paused = true)]
async fn when_the_better_rung_is_back_its_turns_are_asked_about_again_the_newest_first_and_once() {
    let mut bench = Bench::start(WorkerSettings { upgrades: 5, ..WorkerSettings::default() }).await;
    bench.rungs.away.store(true, Ordering::SeqCst);
    for n in 0..7 {
        bench.say(n, &format!("turn {n}"), false).await;
    }
    let lowered = bench.hear(14).await;
    assert!(lowered.iter().all(|i| i.provenance.degraded_from == Some(Tier::Llm) && !i.provenance.late));
    assert!(bench.is_quiet().await, "while it is away nobody is asked again");
    assert_eq!(bench.rungs.asked().len(), 7);
    bench.rungs.away.store(false, Ordering::SeqCst);
    let better = bench.hear(10).await;
    assert_eq!(bench.rungs.asked()[7..], ["turn 6", "turn 5", "turn 4", "turn 3", "turn 2"], "the oldest two made room");
    assert!(better.iter().all(|i| i.provenance.tier == Tier::Llm && i.provenance.late), "they come late, and say so");
    let ids: HashSet<InsightId> = better.iter().chain(&lowered).map(|i| i.id).collect();
    assert_eq!(ids.len(), 24, "runs of their own");
    assert!(bench.is_quiet().await, "once is enough");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_rung_that_only_seems_to_be_back_is_asked_one_turn_at_a_time_and_nothing_is_given_up() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    bench.rungs.away.store(true, Ordering::SeqCst);
    for n in 0..20 {
        bench.say(n, &format!("turn {n}"), false).await;
    }
    bench.hear(40).await;
    bench.rungs.deluded.store(true, Ordering::SeqCst);
    let before = bench.rungs.asked().len();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(bench.rungs.asked().len() - before <= 2, "a probe each time somebody looks: {:?}", &bench.rungs.asked()[before..]);
    bench.rungs.deluded.store(false, Ordering::SeqCst);
    bench.rungs.away.store(false, Ordering::SeqCst);
    let better = bench.hear(40).await;
    assert!(better.iter().all(|i| i.provenance.tier == Tier::Llm));
    assert_eq!(better.iter().map(|i| i.utterance).collect::<HashSet<_>>().len(), 20);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_the_better_rung_does_not_like_holds_up_no_other_and_is_left_as_it_is() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    bench.rungs.away.store(true, Ordering::SeqCst);
    for (n, text) in ["good one", "unlikely two", "good three", "unlikely four"].into_iter().enumerate() {
        bench.say(n as u64, text, false).await;
    }
    bench.hear(8).await;
    bench.rungs.away.store(false, Ordering::SeqCst);
    let better = bench.hear(4).await;
    let good: HashSet<_> = [0, 2].map(|n| speech(n, "").utterance_id()).into();
    assert_eq!(better.iter().map(|i| i.utterance).collect::<HashSet<_>>(), good);
    assert!(bench.is_quiet().await);
    let asked = bench.rungs.asked().iter().filter(|text| text.contains("unlikely")).count();
    assert_eq!(asked, 2 + 2 * 3, "three times more, then no more");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_language_model_s_insight_later_than_two_seconds_after_its_turn_is_marked() {
    let mut bench = Bench::start(WorkerSettings { budget_ms: 20_000, ..WorkerSettings::default() }).await;
    bench.say(0, "in time", false).await;
    assert!(bench.hear(2).await.iter().all(|i| !i.provenance.late));
    *bench.rungs.takes.lock() = Duration::from_millis(2_500);
    bench.say(1, "too late", false).await;
    assert!(bench.hear(2).await.iter().all(|i| i.provenance.late));
    *bench.rungs.takes.lock() = Duration::ZERO;
    bench.say(2, "found by the record", true).await;
    assert!(bench.hear(2).await.iter().all(|i| i.provenance.late), "however fast it was this time");
    bench.rungs.away.store(true, Ordering::SeqCst);
    bench.say(3, "by rules", true).await;
    assert!(bench.hear(2).await.iter().all(|i| !i.provenance.late), "nobody waits for rules");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_waited_on_the_bus_has_less_time_and_one_that_waited_long_a_quarter() {
    let mut bench = Bench::new().await;
    bench.bus.consume(UTTERANCES, "inference").await.unwrap(); // the group is there, its reader is not yet
    bench.say(0, "old", false).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.say(1, "older by a second", false).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.begin(WorkerSettings::default());
    bench.hear(4).await;
    let left: Vec<Duration> = bench.rungs.asked.lock().iter().map(|(_, left)| *left).collect();
    let near = |left: Duration, ms: u64| left <= Duration::from_millis(ms) && left + Duration::from_millis(50) > Duration::from_millis(ms);
    assert!(near(left[0], 500) && near(left[1], 1_000), "{left:?}");
    bench.end().await;
}
