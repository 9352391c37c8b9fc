//! Answers of a language model in a cache that inference nodes share: a real Redis, which may go, and may be tampered with.

use crate::over_rules::{PATIENT_MS, over_rules, settings};
use crate::scripted::{Scripted, Seen};
use crate::turns::{hear, say, speech};
use contracts::{
    ConversationId,
    inference::{Insight, Tier},
    signal::INSIGHTS,
    testing::FakeConversations,
};
use inference::{LlmSettings, Worker, settings::WorkerSettings};
use platform::{
    bus::{Bus, Consumer, Memory, Url},
    cache::{Front, Kind, Settings},
    testing::RedisServer,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A process that hosts inference and the worker, with a bus of its own: what is said to one is not said to the other.
struct Node {
    bus: Memory,
    insights: Box<dyn Consumer>,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(llm: &Scripted, redis: &RedisServer) -> Self {
        let url = Some(Url::try_from(redis.url()).unwrap());
        let cache = Front::start(&Settings { kind: Kind::Redis, url, call_ms: 5_000, ..Settings::default() }, None).await.unwrap();
        let local = over_rules(LlmSettings { recall_ms: 5_000, ..settings(llm.url()) }).remembering(cache);
        let bus = Memory::default();
        let insights = bus.consume(INSIGHTS, "test").await.unwrap();
        let stop = CancellationToken::new();
        let settings = WorkerSettings { budget_ms: 3 * PATIENT_MS, ..WorkerSettings::default() };
        let worker = Worker::new(Arc::new(local), Arc::new(FakeConversations::default()), Arc::new(bus.clone()), &settings);
        let worker = tokio::spawn(worker.run(stop.clone()));
        Self { bus, insights, stop, worker }
    }

    async fn understand(&mut self, text: &str) -> Vec<Insight> {
        let turn = speech(ConversationId::from_u128(7), 0, text);
        say(&self.bus, &turn).await;
        let insights = hear(&mut *self.insights, 2).await;
        assert!(insights.iter().all(|i| i.provenance.tier == Tier::Llm && i.utterance == turn.utterance_id()), "{insights:?}");
        insights
    }

    async fn end(self) {
        self.stop.cancel();
        self.worker.await.unwrap();
    }
}

fn said(insights: &[Insight]) -> Vec<(contracts::InsightId, Vec<contracts::inference::Label>)> {
    insights.iter().map(|i| (i.id, i.labels.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_redis_ask_the_model_once_and_go_on_without_it() {
    let Some(mut redis) = RedisServer::start(&[]) else { return };
    let llm = Scripted::start(Seen::answer).await;
    let [mut here, mut there] = [Node::start(&llm, &redis).await, Node::start(&llm, &redis).await];
    let first = here.understand("cancel my plan").await;
    assert_eq!(said(&there.understand("cancel my plan").await), said(&first));
    assert_eq!(llm.seen().len(), 1, "the other node knew");
    here.end().await;
    let mut again = Node::start(&llm, &redis).await;
    assert_eq!(said(&again.understand("cancel my plan").await), said(&first));
    assert_eq!(llm.seen().len(), 1, "one that is started again knows, too");

    redis.kill();
    again.understand("stop my plan").await;
    there.understand("stop my plan").await;
    assert_eq!(llm.seen().len(), 3, "each asks by itself");
    redis.start_again(); // with nothing in it
    let mut new = Node::start(&llm, &redis).await;
    new.understand("end my plan").await;
    assert_eq!(llm.seen().len(), 4);
    let mut newer = Node::start(&llm, &redis).await;
    newer.understand("end my plan").await;
    assert_eq!(llm.seen().len(), 4);
    for node in [there, again, new, newer] {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_somebody_changed_in_the_cache_is_asked_for_anew() {
    let Some(redis) = RedisServer::start(&[]) else { return };
    let llm = Scripted::start(Seen::answer).await;
    let mut node = Node::start(&llm, &redis).await;
    let first = node.understand("cancel my plan").await;
    node.end().await;
    let keys: Vec<String> = redis.ask(&["KEYS", "cache:*:llm:*"]);
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(!keys[0].contains("plan"), "nothing that was said stands in a key");
    let kept: String = redis.ask(&["HGET", &keys[0], "v:answer"]);
    let evil = ["PWNED-CANARY".to_owned(), kept.replace("cancel_service", "PWNED-CANARY"), kept.replace("\"cancel\"", "\"PWNED-CANARY\"")];
    for (n, evil) in evil.into_iter().enumerate() {
        assert_ne!(evil, kept);
        redis.ask::<i64>(&["HSET", &keys[0], "v:answer", &evil]);
        let mut node = Node::start(&llm, &redis).await;
        let insights = node.understand("cancel my plan").await;
        assert_eq!(said(&insights), said(&first));
        assert!(!serde_json::to_string(&insights).unwrap().contains("CANARY"));
        assert_eq!(llm.seen().len(), n + 2, "asked anew");
        node.end().await;
    }
}
