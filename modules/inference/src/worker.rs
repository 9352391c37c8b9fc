//! Reads finished turns from the bus, has them understood, publishes what was found. Calls `Inference` through the handle it was given.
//!
//! Invariants:
//! - an entry is acknowledged after its insights are published; a crash before that repeats it, and repeated insights have the same ids;
//! - turns of one conversation are worked on one after the other, at most `concurrency` conversations at once, in the order they came:
//!   a conversation with a backlog holds one place, never all;
//! - a turn waits here until the record says who speaks, because that decides what it means; the bus does not count that as tries;
//! - a turn that cannot be understood after some tries gets a pending insight that says so: the screen is never blank;
//! - an entry that can never be understood goes to the dead letters, whole, with why; when many fail, it is what they depend on: then
//!   reading pauses, and nothing is given up;
//! - a turn that a lower rung answered is asked about again when the better one is back; its insight takes the place of the first.

mod health;
mod upgrade;

use crate::{metrics as names, settings::WorkerSettings};
use contracts::{
    CallCx, CallError, ChannelIndex, Conversations, ErrorKind, Inference, InsightId, Retry, RunId, SampleRate, TraceCx,
    audio::{Role, SegmentBody, Spoken},
    conversation::Segment,
    inference::{Analyze, Insight, Provenance, Task, Tier, Utterance, not_understood},
    signal::{DEAD, DeadLetter, INSIGHTS, UTTERANCES},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use health::Health;
use parking_lot::Mutex;
use platform::{
    bus::{Bus, BusError, Consumer, Delivery, EntryId, NewEntry},
    trace::{Side, Span},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use upgrade::{Lowered, Upgrades};

const GROUP: &str = "inference";
/// Turns given along with one, and kept to choose them from: a turn that is tried again may come after later ones.
const CONTEXT: usize = 3;
const KEPT: usize = 8;
/// A language model's insight that comes later after its turn is marked.
const LATE: Duration = Duration::from_secs(2);
/// Deliveries without an end: so often may a reader be lost with an entry before the entry is held to be the reason.
const LOST_WITH_READERS: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub struct Worker {
    inference: Arc<dyn Inference>,
    conversations: Arc<dyn Conversations>,
    bus: Arc<dyn Bus>,
    settings: WorkerSettings,
    health: Arc<Mutex<Health>>,
    /// How often this worker itself gave an entry back.
    given_back: Arc<Mutex<HashMap<EntryId, u32>>>,
    upgrades: Arc<Mutex<Upgrades>>,
    /// The best rung that is there for a task, as the last answer said.
    best: Arc<Mutex<BTreeMap<Task, Tier>>>,
}

/// Turns of one conversation, in order.
struct Group {
    key: String,
    kept: Kept,
    deliveries: Vec<Delivery>,
}

/// What is remembered of a conversation between its turns.
#[derive(Default)]
struct Kept {
    /// Known once the record has told.
    channels: Option<HashMap<ChannelIndex, (Role, SampleRate)>>,
    /// Why the record has not told just now.
    untold: Option<CallError>,
    turns: VecDeque<Utterance>,
    used: u64,
}

enum Outcome {
    Done(EntryId),
    /// Give it back after this time.
    Again(EntryId, Duration),
    /// Keep them, in order, and try them again after this time.
    Held(Vec<Delivery>, Duration),
}

/// Why a turn was not understood.
enum Failed {
    /// The record does not say who speaks.
    Untold(CallError),
    Call(CallError),
    Bus(BusError),
}

impl Worker {
    pub fn new(inference: Arc<dyn Inference>, conversations: Arc<dyn Conversations>, bus: Arc<dyn Bus>, settings: &WorkerSettings) -> Self {
        Self {
            inference,
            conversations,
            bus,
            settings: settings.clone(),
            health: Arc::default(),
            given_back: Arc::default(),
            upgrades: Arc::new(Mutex::new(Upgrades::new(settings.upgrades))),
            best: Arc::default(),
        }
    }

    /// Until `stop`, or until the bus shuts down. What is under way at `stop` is finished, the rest given back.
    pub async fn run(self, stop: CancellationToken) {
        let consumer = match self.bus.consume(UTTERANCES, GROUP).await {
            Ok(consumer) => consumer,
            Err(error) => {
                warn!(%error, "the transcript worker has no turns to read");
                return;
            }
        };
        let read = async {
            tokio::select! { read = self.read(consumer, &stop) => read, never = self.upgrade() => match never {} }
        };
        match read.await {
            Ok(()) => info!("the transcript worker has stopped"),
            Err(error) => info!(%error, "the transcript worker has stopped with the bus"),
        }
    }

    async fn read(&self, mut consumer: Box<dyn Consumer>, stop: &CancellationToken) -> Result<(), BusError> {
        let mut memory: HashMap<String, Kept> = HashMap::new();
        let mut clock = 0;
        let mut waiting: VecDeque<Group> = VecDeque::new();
        let mut working: FuturesUnordered<BoxFuture<'_, (Group, Vec<Outcome>)>> = FuturesUnordered::new();
        let mut resting: FuturesUnordered<BoxFuture<'_, EntryId>> = FuturesUnordered::new();
        let mut held: FuturesUnordered<BoxFuture<'_, Vec<Delivery>>> = FuturesUnordered::new();
        loop {
            while working.len() < self.settings.concurrency
                && let Some(group) = waiting.pop_front()
            {
                working.push(self.work(group).boxed());
            }
            let pause = self.health.lock().pause();
            let taken = tokio::select! {
                biased; // stopping and finished work come before new work
                () = stop.cancelled() => break,
                Some((group, outcomes)) = working.next() => {
                    remember(&mut memory, group, self.settings.remembered);
                    settle(&mut *consumer, outcomes, &mut resting, &mut held).await?;
                    continue;
                }
                Some(id) = resting.next() => {
                    consumer.nack(&[id]).await?;
                    continue;
                }
                () = sleep_until(pause), if pause.is_some() => continue,
                Some(deliveries) = held.next() => deliveries,
                // Cancel-safe by its contract. Groups of one batch that wait for a place keep the next batch in the bus.
                taken = consumer.next(self.settings.batch), if pause.is_none() && waiting.is_empty() && working.len() < self.settings.concurrency => {
                    let taken = taken?;
                    if taken.is_empty() {
                        return Ok(());
                    }
                    taken
                }
            };
            for delivery in taken {
                clock += 1;
                match waiting.iter_mut().find(|g| g.key == delivery.key) {
                    Some(group) => group.deliveries.push(delivery),
                    None => {
                        let kept = Kept { used: clock, ..memory.remove(&delivery.key).unwrap_or_default() };
                        waiting.push_back(Group { key: delivery.key.clone(), kept, deliveries: vec![delivery] });
                    }
                }
            }
        }
        let last = Duration::from_millis(self.settings.budget_ms);
        let finish = async {
            while let Some((_, outcomes)) = working.next().await {
                settle(&mut *consumer, outcomes, &mut resting, &mut held).await?;
            }
            Ok(())
        };
        tokio::time::timeout(last, finish).await.unwrap_or(Ok(())) // dropping the consumer gives the rest back
    }

    async fn work(&self, mut group: Group) -> (Group, Vec<Outcome>) {
        let begun = Instant::now();
        let mut outcomes = vec![];
        let mut held = vec![];
        group.kept.untold = None; // asked again, once for all of them
        for delivery in std::mem::take(&mut group.deliveries) {
            let (id, attempt) = (delivery.id, delivery.attempt);
            let outcome = self.understand(&mut group.kept, &delivery).await;
            match outcome {
                Ok(()) => {
                    self.given_back.lock().remove(&id);
                    outcomes.push(Outcome::Done(id));
                }
                Err(failed) => {
                    metrics::counter!(names::WORKER_RETRIED).increment(1);
                    *self.given_back.lock().entry(id).or_default() += 1;
                    let rest = self.rest(&failed, attempt);
                    debug!(attempt, rest_ms = rest.as_millis() as u64, reason = %failed, "a turn is tried again");
                    match failed {
                        Failed::Untold(_) => held.push((delivery, rest)),
                        Failed::Call(_) | Failed::Bus(_) => outcomes.push(Outcome::Again(id, rest)),
                    }
                }
            }
        }
        // In order, so they wait for each other.
        if let Some(rest) = held.iter().map(|(_, rest)| *rest).max() {
            let waited = begun.elapsed() + rest;
            let later = |(delivery, _): (Delivery, _)| Delivery { attempt: delivery.attempt + 1, age: delivery.age + waited, ..delivery };
            outcomes.push(Outcome::Held(held.into_iter().map(later).collect(), rest));
        }
        (group, outcomes)
    }

    /// Longer with each attempt, and never shorter than what a busy module asked for.
    fn rest(&self, failed: &Failed, attempt: u32) -> Duration {
        let doubled = Duration::from_millis(self.settings.backoff_ms).saturating_mul(1 << attempt.saturating_sub(1).min(10));
        let asked = match failed {
            Failed::Untold(CallError { retry: Retry::After(time), .. }) | Failed::Call(CallError { retry: Retry::After(time), .. }) => {
                *time
            }
            _ => Duration::ZERO,
        };
        doubled.mul_f64(rand::random_range(0.75..1.25)).max(asked).min(LONGEST_REST)
    }

    /// Gives an entry up: it is kept as it is, with why, for somebody to look at and to replay.
    async fn bury(&self, delivery: &Delivery, error: &str) -> Result<(), Failed> {
        metrics::counter!(names::WORKER_BURIED).increment(1);
        warn!(key = delivery.key, attempt = delivery.attempt, error, trace_id = delivery.trace.trace_id_hex(), "an entry was given up");
        let letter = DeadLetter::new(UTTERANCES, &delivery.key, &delivery.payload, delivery.trace, delivery.attempt, error);
        let payload = serde_json::to_vec(&letter).expect("a dead letter is plain data").into();
        let entry = NewEntry { key: delivery.key.clone(), payload, trace: delivery.trace };
        self.bus.publish(DEAD, vec![entry]).await.map_err(Failed::Bus)
    }

    async fn understand(&self, kept: &mut Kept, delivery: &Delivery) -> Result<(), Failed> {
        let begun = Instant::now();
        let segment: Segment = match serde_json::from_slice(&delivery.payload) {
            Ok(segment) => segment,
            Err(error) => {
                metrics::counter!(names::WORKER_UNREADABLE).increment(1);
                // serde's own text quotes what it read.
                let place = format!("no segment: {:?} error at column {}", error.classify(), error.column());
                return self.bury(delivery, &place).await;
            }
        };
        let SegmentBody::Speech(spoken) = &segment.body else { return Ok(()) };
        if spoken.words.is_empty() {
            return Ok(());
        }
        let mut cx = CallCx::new(self.budget(delivery)).for_conversation(segment.conversation).traced(delivery.trace.child());
        let mut span = Span::begin("understand", Side::Consumer, cx.trace, delivery.trace);
        span.note("attempt", i64::from(delivery.attempt));
        span.note("waited_ms", delivery.age.as_millis() as i64);
        cx.attempt = delivery.attempt.saturating_sub(1).min(u32::from(u8::MAX)) as u8;
        let last_try = delivery.attempt >= self.settings.attempts;
        let given_back = self.given_back.lock().get(&delivery.id).copied().unwrap_or_default();
        let lost = delivery.attempt.saturating_sub(1 + given_back);
        if lost >= LOST_WITH_READERS && !self.health.lock().is_failing() {
            let error = CallError::panicked(&"its readers were lost with it");
            let utterance = kept.utterance(&segment, spoken);
            self.bury(delivery, &format!("{error} ({lost} times)")).await?;
            return self.tell(&delivery.key, cx.trace, self.pending(&utterance, &error, begun)).await;
        }
        let told = self.learn(&cx, kept, &segment).await;
        let utterance = kept.utterance(&segment, spoken);
        if let Err(error) = told {
            let passes = error.kind.may_pass();
            if last_try && !passes {
                self.bury(delivery, &format!("nobody can tell who speaks: {}: {error}", error.kind.name())).await?;
            }
            // Meanwhile the reader sees why; once, for the record keeps it.
            if delivery.attempt == self.settings.attempts || (last_try && !passes) {
                self.tell(&delivery.key, cx.trace, self.pending(&utterance, &error, begun)).await?;
            }
            return if last_try && !passes { Ok(()) } else { Err(Failed::Untold(error)) };
        }
        let request = Analyze {
            conversation: segment.conversation,
            tasks: Task::ALL.into(),
            utterances: vec![utterance.clone()],
            context: kept.before(&utterance),
        };
        // Dropped when time is up, whatever the implementation makes of its deadline.
        let answer =
            tokio::time::timeout_at(cx.deadline, AssertUnwindSafe(self.inference.analyze(cx.clone(), request.clone())).catch_unwind());
        let failed = match answer.await {
            Ok(Ok(Ok(mut insights))) => {
                let again = serde_json::from_slice::<Requeued>(&delivery.payload).is_ok_and(|entry| entry.again);
                self.best.lock().extend(insights.iter().map(|i| (i.task, i.provenance.degraded_from.unwrap_or(i.provenance.tier))));
                mark_late(&mut insights, again || delivery.age + begun.elapsed() > LATE);
                // What the record has asked about again it asks about again.
                let lowered = if again { None } else { Lowered::of(&delivery.key, cx.trace, &request, &insights) };
                self.tell(&delivery.key, cx.trace, insights).await?;
                if let Some(lowered) = lowered {
                    self.upgrades.lock().add(lowered);
                }
                None
            }
            Ok(Ok(Err(error))) => Some(error),
            Ok(Err(panic)) => Some(CallError::panicked(&*panic)),
            Err(_) => Some(CallError::deadline()),
        };
        self.health.lock().note(failed.is_none());
        if let Some(error) = failed {
            let passes = error.kind.may_pass() || self.health.lock().is_failing();
            if passes && !last_try {
                return Err(Failed::Call(error));
            }
            // What may pass is asked for again later; what will not is kept for a person.
            if !passes {
                self.bury(delivery, &format!("{}: {error}", error.kind.name())).await?;
            }
            self.tell(&delivery.key, cx.trace, self.pending(&utterance, &error, begun)).await?;
        }
        metrics::histogram!(names::INSIGHT_AGE).record((delivery.age + begun.elapsed()).as_secs_f64());
        kept.keep(utterance);
        Ok(())
    }

    /// What the reader sees instead: one insight per task that says why there is nothing. Any later run supersedes it.
    fn pending(&self, utterance: &Utterance, error: &CallError, begun: Instant) -> Vec<Insight> {
        metrics::counter!(names::WORKER_PENDING).increment(1);
        warn!(conversation = %utterance.conversation, utterance = %utterance.id, kind = error.kind.name(), %error, "a turn was not understood");
        let best = self.best.lock();
        let insight = |task: Task| {
            let run = RunId::live(utterance.conversation, task.name(), Tier::Pending.name());
            Insight {
                id: InsightId::of(run, utterance.id),
                run,
                conversation: utterance.conversation,
                utterance: utterance.id,
                task,
                labels: vec![],
                abstained: Some(not_understood(error.kind)),
                evidence: vec![],
                provenance: Provenance {
                    tier: Tier::Pending,
                    model: "none".into(),
                    degraded_from: Some(best.get(&task).copied().unwrap_or(Tier::Local)),
                    config_hash: Tier::Pending.name().into(),
                    latency_ms: begun.elapsed().as_millis() as u32,
                    prompt: None,
                    late: false,
                },
            }
        };
        Task::ALL.map(insight).into()
    }

    /// A turn that has waited in the bus has less time: a better rung's answer would come too late, and those behind it wait as well.
    fn budget(&self, delivery: &Delivery) -> Duration {
        let whole = Duration::from_millis(self.settings.budget_ms);
        // One that was given back has waited for reasons of its own.
        if delivery.attempt > 1 { whole } else { whole.saturating_sub(delivery.age).max(whole / 4) }
    }

    async fn tell(&self, key: &str, trace: TraceCx, insights: Vec<Insight>) -> Result<(), Failed> {
        let entries = insights.iter().map(|insight| NewEntry {
            key: key.to_owned(),
            payload: serde_json::to_vec(insight).expect("an insight is plain data").into(),
            trace,
        });
        self.bus.publish(INSIGHTS, entries.collect()).await.map_err(Failed::Bus)
    }

    /// Asks the record once per conversation who speaks on which channel, and what was said before this worker came.
    async fn learn(&self, cx: &CallCx, kept: &mut Kept, segment: &Segment) -> Result<(), CallError> {
        if kept.channels.is_some() {
            return Ok(());
        }
        if let Some(error) = &kept.untold {
            return Err(error.clone());
        }
        let asked = cx.child(cx.remaining() / 2);
        let answer = tokio::time::timeout_at(asked.deadline, self.conversations.conversation(asked.clone(), segment.conversation)).await;
        match answer.unwrap_or_else(|_| Err(CallError::deadline())) {
            Ok(view) => {
                kept.channels = Some(view.channels.iter().map(|c| (c.spec.index, (c.spec.role, c.spec.rate))).collect());
                let own = segment.utterance_id();
                view.utterances.into_iter().filter(|u| u.id != own).for_each(|u| kept.keep(u));
                Ok(())
            }
            // Of what is not there any more nothing is stored either. An unknown speaker is understood as a customer.
            Err(error) if error.kind == ErrorKind::NotFound => {
                debug!(conversation = %segment.conversation, %error, "the record does not say who speaks");
                Ok(())
            }
            Err(error) => {
                kept.untold = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl Kept {
    fn utterance(&self, segment: &Segment, spoken: &Spoken) -> Utterance {
        let channel = self.channels.as_ref().and_then(|all| all.get(&segment.channel));
        let word_times = (spoken.words.first().map_or(0, |w| w.start_ms), spoken.words.last().map_or(0, |w| w.end_ms));
        let (start_ms, end_ms) = match channel {
            Some((_, rate)) => (rate.ms_at(spoken.from), rate.ms_at(spoken.to)),
            None => (word_times.0.into(), word_times.1.into()),
        };
        Utterance {
            id: segment.utterance_id(),
            conversation: segment.conversation,
            channel: segment.channel,
            role: channel.map_or(Role::Unknown, |(role, _)| *role),
            start_ms,
            end_ms,
            words: spoken.words.clone(),
        }
    }

    fn before(&self, utterance: &Utterance) -> Vec<Utterance> {
        let earlier: Vec<&Utterance> = self.turns.iter().filter(|u| u.start_ms < utterance.start_ms && u.id != utterance.id).collect();
        earlier[earlier.len().saturating_sub(CONTEXT)..].iter().map(|u| (*u).clone()).collect()
    }

    fn keep(&mut self, utterance: Utterance) {
        if self.turns.iter().any(|u| u.id == utterance.id) {
            return;
        }
        let at = self.turns.partition_point(|u| u.start_ms <= utterance.start_ms);
        self.turns.insert(at, utterance);
        if self.turns.len() > KEPT {
            self.turns.pop_front();
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Untold(error) | Self::Call(error) => error.fmt(f),
            Self::Bus(error) => error.fmt(f),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What the record adds to a segment that it puts on the bus again, because nobody has understood it, or only a lower rung.
#[derive(serde::Deserialize)]
struct Requeued {
    #[serde(default)]
    again: bool,
}

/// Only a language model is waited for; the rungs below answer at once, whenever that is.
fn mark_late(insights: &mut [Insight], late: bool) {
    for insight in insights.iter_mut().filter(|i| late && i.provenance.tier <= Tier::SecondLlm) {
        insight.provenance.late = true;
        metrics::counter!(names::LATE).increment(1);
    }
}

async fn settle(
    consumer: &mut dyn Consumer,
    outcomes: Vec<Outcome>,
    resting: &mut FuturesUnordered<BoxFuture<'_, EntryId>>,
    held: &mut FuturesUnordered<BoxFuture<'_, Vec<Delivery>>>,
) -> Result<(), BusError> {
    let mut done = vec![];
    for outcome in outcomes {
        match outcome {
            Outcome::Done(id) => done.push(id),
            Outcome::Again(id, rest) => resting.push(tokio::time::sleep(rest).map(move |()| id).boxed()),
            Outcome::Held(deliveries, rest) => held.push(tokio::time::sleep(rest).map(move |()| deliveries).boxed()),
        }
    }
    consumer.ack(&done).await
}

/// Keeps at most `limit` conversations: the one longest unused goes first, and is asked for again if it speaks again.
fn remember(memory: &mut HashMap<String, Kept>, group: Group, limit: usize) {
    memory.insert(group.key, group.kept);
    if memory.len() > limit
        && let Some(oldest) = memory.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone())
    {
        memory.remove(&oldest);
    }
}
