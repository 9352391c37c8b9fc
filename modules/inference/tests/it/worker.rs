//! The transcript worker over the bus in memory, with the fakes of the contracts.

use crate::turns::{hear, say, speech};
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, Conversations, Encoding, SampleRate, TraceCx,
    audio::{ChannelSpec, Role, SegmentBody},
    conversation::{OpenConversation, Segment},
    inference::{Insight, Task, Tier},
    signal::{DEAD, DeadLetter, INSIGHTS, UTTERANCES},
    testing::{Behavior, FakeConversations, FakeInference},
};
use inference::{Worker, settings::WorkerSettings};
use platform::{
    bus::{Bus, Consumer, Memory, NewEntry},
    supervision::Supervisor,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

struct Bench {
    bus: Memory,
    inference: FakeInference,
    conversations: FakeConversations,
    insights: Box<dyn Consumer>,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(settings: WorkerSettings) -> Self {
        let (bus, inference, conversations) = (Memory::default(), FakeInference::default(), FakeConversations::default());
        let insights = bus.consume(INSIGHTS, "test").await.unwrap();
        let stop = CancellationToken::new();
        let worker = Worker::new(Arc::new(inference.clone()), Arc::new(conversations.clone()), Arc::new(bus.clone()), &settings);
        let worker = tokio::spawn(worker.run(stop.clone()));
        Self { bus, inference, conversations, insights, stop, worker }
    }

    async fn open(&self, role: Role) -> ConversationId {
        let id = ConversationId::fresh();
        let channels = vec![ChannelSpec { index: ChannelIndex(0), role, encoding: Encoding::Linear16, rate: SampleRate::HZ_16000 }];
        let request = OpenConversation {
            id,
            external_id: None,
            title: None,
            source: "native".into(),
            language: "en".into(),
            tags: vec![],
            channels,
            started_at: chrono::Utc::now(),
        };
        self.conversations.open(CallCx::new(Duration::from_secs(5)), request).await.unwrap();
        id
    }

    async fn say(&self, conversation: ConversationId, seq: u64, text: &str) {
        say(&self.bus, &speech(conversation, seq, text)).await;
    }

    async fn hear(&mut self, count: usize) -> Vec<Insight> {
        hear(&mut *self.insights, count).await
    }

    async fn end(self) {
        self.stop.cancel();
        self.worker.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_turn_gets_its_insights_and_silence_none() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    let id = bench.open(Role::Customer).await;
    let first = speech(id, 0, "hello there");
    let trace = first.trace.trace_id;
    say(&bench.bus, &first).await;
    say(&bench.bus, &Segment { body: SegmentBody::Silence, ..speech(id, 1, "") }).await;
    let junk = NewEntry { key: id.to_string(), payload: "nonsense".into(), trace: TraceCx::root() };
    bench.bus.publish(UTTERANCES, vec![junk]).await.unwrap();
    bench.say(id, 2, "bye now").await;
    let insights = bench.hear(4).await;
    let told: HashSet<_> = insights.iter().map(|i| (i.utterance, i.task, i.labels[0].name.as_str())).collect();
    let (a, b) = (first.utterance_id(), speech(id, 2, "").utterance_id());
    let expected = [(a, Task::Intent, "hello"), (a, Task::Sentiment, "hello"), (b, Task::Intent, "bye"), (b, Task::Sentiment, "bye")];
    assert_eq!(told, expected.into());
    let seen = bench.inference.seen();
    assert_eq!(seen[0].trace.trace_id, trace, "the turn's own trace goes on");
    assert_eq!(seen.len(), 2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_module_is_asked_again_and_nothing_is_lost() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    let id = bench.open(Role::Customer).await;
    bench.inference.behave(Behavior::Fail(CallError::busy(Duration::from_millis(50), "full")));
    bench.say(id, 0, "hello").await;
    bench.inference.called(2).await;
    bench.inference.behave(Behavior::Answer);
    let insights = bench.hear(2).await;
    assert!(insights.iter().all(|i| i.labels[0].name == "hello"));
    assert!(bench.inference.seen().last().unwrap().attempt > 0, "the call says which try it is");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_pending_and_the_next_turn_is_not() {
    for behavior in [
        Behavior::Fail(CallError::unavailable("gone")),
        Behavior::Hang,
        Behavior::Panic("broken".into()),
        Behavior::Fail(CallError::internal("bug")),
    ] {
        let mut bench = Bench::start(WorkerSettings::default()).await;
        let id = bench.open(Role::Customer).await;
        bench.inference.behave(behavior.clone());
        bench.say(id, 0, "hello").await;
        let insights = bench.hear(2).await;
        assert!(
            insights.iter().all(|i| i.provenance.tier == Tier::Pending && i.abstained.is_some() && i.labels.is_empty()),
            "{behavior:?}"
        );
        assert!(insights.iter().all(|i| i.utterance == speech(id, 0, "").utterance_id()));
        assert!(insights.iter().all(|i| i.provenance.degraded_from == Some(Tier::Local)), "nobody has said that there is a better rung");
        bench.inference.behave(Behavior::Answer);
        bench.say(id, 1, "again").await;
        let answered = bench.hear(2).await;
        assert!(answered.iter().all(|i| i.labels[0].name == "again"));
        bench.inference.behave(behavior.clone());
        bench.say(id, 2, "and again").await;
        let best = Some(answered[0].provenance.tier);
        assert!(bench.hear(2).await.iter().all(|i| i.provenance.degraded_from == best), "{behavior:?}: what answered before");
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_one_conversation_does_not_hold_up_another() {
    let mut bench = Bench::start(WorkerSettings { concurrency: 2, ..WorkerSettings::default() }).await;
    let (long, short) = (bench.open(Role::Customer).await, bench.open(Role::Customer).await);
    bench.inference.behave(Behavior::Slow(Duration::from_millis(100)));
    for seq in 0..200 {
        bench.say(long, seq, "more").await;
    }
    bench.say(short, 0, "hello").await;
    let begun = tokio::time::Instant::now();
    while !bench.hear(2).await.iter().any(|i| i.conversation == short) {}
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?} of a backlog of 20 s", begun.elapsed());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_speaker_the_record_does_not_tell_is_pending_and_understood_as_soon_as_it_does() {
    for behavior in [Behavior::Fail(CallError::unavailable("the record is gone")), Behavior::Hang] {
        let mut bench = Bench::start(WorkerSettings::default()).await;
        let (agents, customers) = (bench.open(Role::Agent).await, bench.open(Role::Customer).await);
        bench.conversations.behave(behavior.clone());
        for id in [agents, customers] {
            bench.say(id, 0, "hello").await;
        }
        assert!(bench.hear(4).await.iter().all(|i| i.provenance.tier == Tier::Pending && i.abstained.is_some()), "{behavior:?}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(bench.inference.seen().is_empty(), "somebody guessed who speaks");
        bench.conversations.behave(Behavior::Answer);
        let insights = bench.hear(4).await;
        assert!(insights.iter().all(|i| i.labels[0].name == "hello"), "{behavior:?}: {insights:?}");
        assert_eq!(bench.inference.seen().len(), 2, "{behavior:?}: each once");
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_speaker_nobody_will_ever_tell_is_kept_for_a_person_and_the_next_goes_on() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    let (broken, sound) = (bench.open(Role::Customer).await, bench.open(Role::Customer).await);
    bench.conversations.behave(Behavior::Fail(CallError::internal("a row that cannot be read")));
    bench.say(broken, 0, "hello").await;
    assert!(bench.hear(2).await.iter().all(|i| i.provenance.tier == Tier::Pending && i.conversation == broken));
    let mut letters = bench.bus.consume(DEAD, "test").await.unwrap();
    let letter: DeadLetter = serde_json::from_slice(&letters.next(1).await.unwrap()[0].payload).unwrap();
    assert!(letter.error.contains("who speaks") && letter.error.contains("a row that cannot be read"), "{}", letter.error);
    bench.conversations.behave(Behavior::Answer);
    bench.say(sound, 0, "hello").await;
    assert!(bench.hear(2).await.iter().all(|i| i.conversation == sound && i.labels[0].name == "hello"));
    // Of what the record does not know nothing is kept, so nobody waits for its speaker.
    let erased = ConversationId::fresh();
    bench.say(erased, 0, "hello").await;
    assert!(bench.hear(2).await.iter().all(|i| i.conversation == erased && i.labels[0].name == "hello"));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_record_is_asked_once_per_conversation_and_turns_come_with_what_was_said_before() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    let id = bench.open(Role::Agent).await;
    let asked_before = bench.conversations.seen().len();
    for seq in 0..5 {
        bench.say(id, seq, "word").await;
    }
    let mut seen: HashMap<_, usize> = HashMap::new();
    for insight in bench.hear(10).await {
        *seen.entry((insight.utterance, insight.task)).or_default() += 1;
    }
    assert!(seen.len() == 10 && seen.values().all(|n| *n == 1), "each once");
    assert_eq!(bench.conversations.seen().len() - asked_before, 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_bus_delays_insights_and_loses_none() {
    let (inference, conversations) = (FakeInference::default(), FakeConversations::default());
    let bus = Memory::with_capacity(4);
    let mut insights = bus.consume(INSIGHTS, "test").await.unwrap();
    let stop = CancellationToken::new();
    let worker = Worker::new(Arc::new(inference), Arc::new(conversations), Arc::new(bus.clone()), &WorkerSettings::default());
    let worker = tokio::spawn(worker.run(stop.clone()));
    let id = ConversationId::fresh();
    let mut utterances = HashSet::new();
    for seq in 0..4 {
        let segment = speech(id, seq, "hello");
        utterances.insert(segment.utterance_id());
        say(&bus, &segment).await;
    }
    let mut heard = HashSet::new();
    while heard.len() < 8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let more = insights.next(2).await.unwrap();
        heard.extend(more.iter().map(|d| serde_json::from_slice::<Insight>(&d.payload).unwrap()).map(|i| (i.utterance, i.task)));
        insights.ack(&more.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    }
    assert_eq!(heard.into_iter().map(|(u, _)| u).collect::<HashSet<_>>(), utterances);
    stop.cancel();
    worker.await.unwrap();
}

/// As assembly keeps it.
#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_is_started_again_and_no_turn_is_lost() {
    let mut bench = Bench::start(WorkerSettings::default()).await;
    bench.stop.cancel();
    (&mut bench.worker).await.unwrap(); // its place is taken by one that is kept
    let (inference, conversations) = (Arc::new(bench.inference.clone()), Arc::new(bench.conversations.clone()));
    let worker = Worker::new(inference, conversations, Arc::new(bench.bus.clone()), &WorkerSettings::default());
    let mut tasks = Supervisor::default();
    tasks.keep("worker", Duration::from_secs(5), move |stop| {
        let worker = worker.clone();
        async move {
            worker.run(stop).await;
            Ok(())
        }
    });
    let id = bench.open(Role::Customer).await;
    bench.say(id, 0, "hello there").await;
    assert_eq!(bench.hear(2).await.len(), 2);
    // Nothing stands between the worker and this record: its panic is the worker's own.
    let other = bench.open(Role::Customer).await;
    bench.conversations.behave(Behavior::Panic("on purpose".into()));
    bench.say(other, 0, "good morning").await;
    bench.say(id, 1, "bye now").await;
    bench.conversations.called(4).await;
    bench.conversations.behave(Behavior::Answer);
    let insights = bench.hear(4).await;
    let of: HashSet<_> = insights.iter().map(|i| (i.conversation, i.task)).collect();
    assert_eq!(of.len(), 4, "both turns, both tasks: {insights:?}");
    assert!(tokio::time::timeout(Duration::from_secs(5), tasks.failed()).await.is_err(), "nothing ends the process");
    tasks.stop().await;
}
