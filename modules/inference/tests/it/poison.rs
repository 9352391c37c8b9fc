//! F22: one turn that makes the module panic, among ten thousand on a real Redis.

use crate::turns::{PATIENCE, entry, hear, speech};
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, ConversationId, EventStream, Inference,
    conversation::Segment,
    inference::{Analyze, Insight, Summarize, SummaryItem, Tier, TierStatus},
    signal::{DEAD, DeadLetter, INSIGHTS, UTTERANCES},
    testing::{FakeConversations, FakeInference},
};
use inference::{Worker, settings::WorkerSettings};
use platform::{
    bus::{Bus, Kind, Redis, Settings, Url},
    testing::RedisServer,
};
use std::{collections::HashSet, sync::Arc};
use tokio_util::sync::CancellationToken;

const TURNS: u64 = 10_000;
const POISON: u64 = 4_321;

#[derive(Clone, Default)]
struct PanicsAtPoison(FakeInference);

#[async_trait]
impl Inference for PanicsAtPoison {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        assert!(request.utterances.iter().all(|u| u.words[0].text != "poison"), "on purpose");
        self.0.analyze(cx, request).await
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        self.0.summarize(cx, request).await
    }
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        self.0.tiers(cx).await
    }
}

fn turn(n: u64) -> Segment {
    speech(ConversationId::from_u128(u128::from(n % 100) + 1), n / 100, if n == POISON { "poison" } else { "hello" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f22_one_turn_that_makes_the_module_panic_is_kept_with_why_and_all_others_are_understood() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let url = Some(Url::try_from(server.url()).unwrap());
    let bus: Arc<dyn Bus> = Arc::new(Redis::connect(&Settings { kind: Kind::Redis, url, ..Settings::default() }).await.unwrap());
    let mut insights = bus.consume(INSIGHTS, "test").await.unwrap();
    let mut dead = bus.consume(DEAD, "test").await.unwrap();
    let stop = CancellationToken::new();
    let inference = Arc::new(PanicsAtPoison::default());
    let worker = Worker::new(inference, Arc::new(FakeConversations::default()), bus.clone(), &WorkerSettings::default());
    let working = tokio::spawn(worker.run(stop.clone()));

    let poison = turn(POISON);
    let sender = bus.clone();
    let sent = poison.clone();
    let sending = tokio::spawn(async move {
        for batch in (0..TURNS).collect::<Vec<_>>().chunks(100) {
            let entries = batch.iter().map(|n| entry(&if *n == POISON { sent.clone() } else { turn(*n) }));
            sender.publish(UTTERANCES, entries.collect()).await.unwrap();
        }
    });
    let mut understood = HashSet::new();
    let mut pending = HashSet::new();
    while understood.len() + pending.len() < TURNS as usize {
        for insight in hear(&mut *insights, 1).await {
            let list = if insight.provenance.tier == Tier::Pending { &mut pending } else { &mut understood };
            list.insert(insight.utterance);
        }
    }
    sending.await.unwrap();
    assert_eq!(pending, HashSet::from([poison.utterance_id()]), "the screen says that this one was not understood");
    assert_eq!(understood.len(), TURNS as usize - 1);
    let letters = tokio::time::timeout(PATIENCE, dead.next(10)).await.expect("it is kept").unwrap();
    let letter: DeadLetter = serde_json::from_slice(&letters[0].payload).unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(serde_json::from_slice::<Segment>(&letter.payload).unwrap(), poison, "as it was");
    assert!(letter.error.contains("panicked") && letter.error.contains("on purpose"), "{}", letter.error);
    assert_eq!(letter.trace.trace_id, poison.trace.trace_id);
    stop.cancel();
    working.await.unwrap();
}
