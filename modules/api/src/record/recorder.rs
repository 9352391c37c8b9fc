//! From the bus into the record: finished segments and insights, in batches.
//!
//! Invariants:
//! - an entry is acknowledged after its transaction, or when it can never be stored (counted and logged);
//! - what comes too early waits in memory, and holds up nothing that follows it. A segment is acknowledged already: after `park_ms` it is dropped
//!   and its producer reminded of the watermark, from which it sends again. An insight waits longer, for that; nobody else has it, so it is
//!   set aside on the bus until it is stored, and comes again to whoever reads next when this process dies;
//! - one batch at a time: while it is written, the next one gathers.

use super::{ChangeRows, Missed, Record, insights::Recorded};
use crate::metrics as names;
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, ErrorKind, SamplePos, TenantId, UtteranceId,
    conversation::{CommitOutcome, Segment},
    inference::Insight,
    signal::{self, Committed, DeadLetter},
};
use platform::bus::{BusError, Consumer, Delivery, EntryId};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

const GROUP: &str = "recorder";
/// How long one batch may take before it is tried again.
const BUDGET: Duration = Duration::from_secs(10);
/// Entries that may wait for what must come before them.
const MOST_PARKED: usize = 4_096;
/// An entry that failed this often, alone, is given up.
const MOST_ATTEMPTS: u32 = 5;

/// Stores finished segments until `stop`, then what is waiting.
pub(super) async fn utterances(record: &Record, stop: &CancellationToken) {
    let Some(mut source) = Source::join(record, signal::UTTERANCES, stop).await else { return };
    let mut parked = Parked::default();
    let park = Duration::from_millis(record.settings.park_ms);
    loop {
        // Cancel-safe: `next` takes nothing before it returns.
        let entries = tokio::select! {
            entries = source.next() => entries,
            () = sleep_until(parked.oldest.map(|since| since + park)) => {
                parked.expire(record, Instant::now(), park);
                continue;
            }
        };
        let Some(entries) = entries else { return };
        let mut ready = source.parse::<Segment>(entries).await;
        while !ready.is_empty() {
            let outcomes = match record.commit_batch(&CallCx::new(BUDGET), &TenantId::default(), values(&ready)).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    ready = source.retry_later(ready, error).await;
                    continue;
                }
            };
            let mut advanced = vec![];
            let mut done = vec![];
            for (entry, outcome) in ready.into_iter().zip(outcomes) {
                done.extend(entry.id);
                match outcome {
                    CommitOutcome::Committed => advanced.push((entry.value.conversation, entry.value.channel)),
                    CommitOutcome::Ahead { next_seq, safe } => parked.add(record, entry.value, entry.since, next_seq, safe),
                    // Counted and logged where it was decided; sending it again would not change the answer.
                    CommitOutcome::Duplicate | CommitOutcome::Stale | CommitOutcome::Mismatch => {}
                }
            }
            source.ack(&done).await;
            ready = parked.follow(&advanced);
        }
    }
}

/// Stores insights until `stop`, then what is waiting.
pub(super) async fn insights(record: &Record, stop: &CancellationToken) {
    let Some(mut source) = Source::join(record, signal::INSIGHTS, stop).await else { return };
    let mut changes = record.subscribe();
    let mut orphans: HashMap<UtteranceId, Vec<Waiting<Insight>>> = HashMap::new();
    let park = Duration::from_millis(record.settings.orphan_ms);
    loop {
        let oldest = orphans.values().flatten().map(|w| w.since).min();
        let mut ready = tokio::select! {
            entries = source.next() => match entries {
                Some(entries) => source.parse::<Insight>(entries).await,
                None => return,
            },
            // Both receivers are cancel-safe. A change that is announced while a batch is stored waits here, so no orphan misses its own.
            change = changes.recv() => match change {
                Ok(change) => match &change.rows {
                    ChangeRows::Utterance { utterance, .. } => orphans.remove(&utterance.id).unwrap_or_default(),
                    _ => vec![],
                },
                Err(Missed::Closed) => return,
                Err(Missed::Behind(_) | Missed::Another) => orphans.drain().flat_map(|(_, waiting)| waiting).collect(),
            },
            () = sleep_until(oldest.map(|since| since + park)) => {
                let now = Instant::now();
                let mut dropped = vec![];
                orphans.retain(|utterance, waiting| {
                    let before = dropped.len();
                    dropped.extend(waiting.extract_if(.., |w| now >= w.since + park).filter_map(|w| w.id));
                    if dropped.len() > before {
                        debug!(%utterance, "an insight was dropped: its utterance has not come");
                    }
                    !waiting.is_empty()
                });
                metrics::counter!(names::DROPPED_TOTAL, "stream" => signal::INSIGHTS, "reason" => "orphan").increment(dropped.len() as u64);
                source.ack(&dropped).await;
                continue;
            }
        };
        while !ready.is_empty() {
            let outcomes = match record.record_batch(&CallCx::new(BUDGET), &TenantId::default(), values(&ready)).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    ready = source.retry_later(ready, error).await;
                    continue;
                }
            };
            let (mut done, mut aside) = (vec![], vec![]);
            for (entry, outcome) in std::mem::take(&mut ready).into_iter().zip(outcomes) {
                if outcome != Recorded::Orphan {
                    done.extend(entry.id);
                } else if orphans.len() < MOST_PARKED {
                    aside.extend(entry.id);
                    orphans.entry(entry.value.utterance).or_default().push(entry);
                } else {
                    metrics::counter!(names::DROPPED_TOTAL, "stream" => signal::INSIGHTS, "reason" => "crowded").increment(1);
                    done.extend(entry.id);
                }
            }
            source.ack(&done).await;
            source.set_aside(&aside).await;
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An entry on its way into the record.
struct Waiting<T> {
    /// `None`: it has been acknowledged.
    id: Option<EntryId>,
    value: T,
    attempt: u32,
    since: Instant,
    /// As it stood on the bus, should it be given up. `None` for what was parked: its producer has it.
    origin: Option<Delivery>,
}

fn values<T: Clone>(entries: &[Waiting<T>]) -> Vec<T> {
    entries.iter().map(|e| e.value.clone()).collect()
}

/// One stream of the bus.
pub(super) struct Source<'a> {
    record: &'a Record,
    stream: &'static str,
    consumer: Box<dyn Consumer>,
    stop: &'a CancellationToken,
    /// Grows while the record cannot be written.
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl<'a> Source<'a> {
    pub(super) async fn join(record: &'a Record, stream: &'static str, stop: &'a CancellationToken) -> Option<Self> {
        let mut pause = FIRST_PAUSE;
        loop {
            match record.bus.consume(stream, GROUP).await {
                Ok(consumer) => return Some(Self { record, stream, consumer, stop, pause: FIRST_PAUSE }),
                Err(BusError::Closed) => return None,
                Err(error) => warn!(stream, %error, "the recorder cannot join its stream; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = stop.cancelled() => return None,
            }
        }
    }

    /// The next entries; after `stop` only those that are there. `None`: no more will come.
    pub(super) async fn next(&mut self) -> Option<Vec<Delivery>> {
        let most = self.record.settings.group_rows;
        let stop = self.stop;
        let waiting = self.consumer.next(most);
        tokio::pin!(waiting);
        let taken = tokio::select! {
            biased; // after `stop`, what is there is still taken
            taken = &mut waiting => taken,
            () = stop.cancelled() => return None,
        };
        match taken {
            Ok(entries) if entries.is_empty() => None,
            Ok(entries) => Some(entries),
            Err(error) => {
                warn!(stream = self.stream, %error, "the recorder's stream has ended");
                None
            }
        }
    }

    /// Each with its id. One that cannot be read is a fault of ours, and there is no third place to keep it.
    pub(super) async fn parse_letters(&mut self, entries: Vec<Delivery>) -> Vec<(EntryId, DeadLetter)> {
        let letters = self.parse::<DeadLetter>(entries).await;
        letters.into_iter().filter_map(|w| Some((w.id?, w.value))).collect()
    }

    /// After a failed batch: all of it goes back to the bus, for later.
    pub(super) async fn return_all(&mut self, ids: &[EntryId], error: CallError) {
        warn!(stream = self.stream, kind = error.kind.name(), %error, entries = ids.len(), "a batch could not be stored; trying again");
        metrics::counter!(names::RETRIES_TOTAL, "stream" => self.stream).increment(1);
        if let Err(error) = self.consumer.nack(ids).await {
            debug!(stream = self.stream, %error, "entries could not be given back");
        }
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {}
            () = self.stop.cancelled() => {}
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// What cannot be read is given up at once: it would be no better the next time.
    async fn parse<T: DeserializeOwned>(&mut self, entries: Vec<Delivery>) -> Vec<Waiting<T>> {
        let mut read = Vec::with_capacity(entries.len());
        let (mut poison, mut letters) = (vec![], vec![]);
        for entry in entries {
            metrics::histogram!(names::BUS_SECONDS, "stream" => self.stream).record(entry.age.as_secs_f64());
            match serde_json::from_slice(&entry.payload) {
                Ok(value) => {
                    read.push(Waiting { id: Some(entry.id), value, attempt: entry.attempt, since: Instant::now(), origin: Some(entry) })
                }
                Err(problem) => {
                    // The payload itself is speech and stays out of the log; serde's message names field and place.
                    let (stream, trace_id) = (self.stream, entry.trace.trace_id_hex());
                    let why = problem.classify_only();
                    error!(
                        stream,
                        key = entry.key,
                        bytes = entry.payload.len(),
                        trace_id,
                        problem = why,
                        "an entry cannot be read and was given up"
                    );
                    metrics::counter!(names::DROPPED_TOTAL, "stream" => self.stream, "reason" => "unreadable").increment(1);
                    if stream != signal::DEAD {
                        letters.push(DeadLetter::new(stream, &entry.key, &entry.payload, entry.trace, entry.attempt, why));
                    }
                    poison.push(entry.id);
                }
            }
        }
        match self.record.bury(letters).await {
            Ok(()) => self.ack(&poison).await,
            Err(error) => self.return_all(&poison, error).await, // kept on the bus until the record can be written
        }
        read
    }

    pub(super) async fn ack(&mut self, ids: &[EntryId]) {
        if ids.is_empty() {
            return;
        }
        self.pause = FIRST_PAUSE;
        if let Err(error) = self.consumer.ack(ids).await {
            // They come again, and are found to be duplicates.
            debug!(stream = self.stream, %error, "entries could not be acknowledged");
        }
    }

    async fn set_aside(&mut self, ids: &[EntryId]) {
        if let Err(error) = self.consumer.set_aside(ids).await {
            debug!(stream = self.stream, %error, "entries could not be set aside");
        }
    }

    /// After a failed batch: what to try at once, alone. The rest goes back to the bus, or is given up.
    async fn retry_later<T>(&mut self, mut batch: Vec<Waiting<T>>, error: CallError) -> Vec<Waiting<T>> {
        let hopeless = matches!(error.kind, ErrorKind::Internal | ErrorKind::Panicked | ErrorKind::InvalidInput | ErrorKind::NotFound);
        if hopeless && batch.len() > 1 {
            // One entry of the batch is at fault: the first goes alone, the others follow from the bus.
            let rest = batch.split_off(1);
            self.give_back(rest).await;
            return batch;
        }
        if hopeless && batch.iter().all(|w| w.attempt >= MOST_ATTEMPTS) {
            error!(stream = self.stream, kind = error.kind.name(), %error, "an entry cannot be stored and was given up");
            metrics::counter!(names::DROPPED_TOTAL, "stream" => self.stream, "reason" => "failed").increment(batch.len() as u64);
            let ids: Vec<EntryId> = batch.iter().filter_map(|w| w.id).collect();
            let why = format!("{}: {error}", error.kind.name());
            let letters = batch
                .iter()
                .filter_map(|w| w.origin.as_ref())
                .map(|origin| DeadLetter::new(self.stream, &origin.key, &origin.payload, origin.trace, origin.attempt, why.clone()));
            if let Err(error) = self.record.bury(letters.collect()).await {
                self.return_all(&ids, error).await;
                return vec![];
            }
            self.ack(&ids).await;
            return vec![];
        }
        // What was parked is not on the bus any more: its producer sends it again.
        let ids: Vec<EntryId> = batch.iter().filter_map(|w| w.id).collect();
        self.return_all(&ids, error).await;
        vec![]
    }

    /// What was parked is not on the bus any more: its producer sends it again.
    async fn give_back<T>(&mut self, entries: Vec<Waiting<T>>) {
        let ids: Vec<EntryId> = entries.iter().filter_map(|w| w.id).collect();
        if let Err(error) = self.consumer.nack(&ids).await {
            debug!(stream = self.stream, %error, "entries could not be given back");
        }
    }
}

/// Names the kind of a JSON error without quoting the text it was found in.
trait ClassifyOnly {
    fn classify_only(&self) -> String;
}

impl ClassifyOnly for serde_json::Error {
    fn classify_only(&self) -> String {
        format!("{:?} error at line {} column {}", self.classify(), self.line(), self.column())
    }
}

/// Segments that came before the ones they follow.
#[derive(Default)]
struct Parked {
    of: HashMap<(ConversationId, ChannelIndex), BTreeMap<u64, Early>>,
    count: usize,
    oldest: Option<Instant>,
}

struct Early {
    segment: Segment,
    since: Instant,
    /// Where its channel stood.
    next_seq: u64,
    safe: SamplePos,
}

impl Early {
    fn stand(&self) -> Committed {
        Committed {
            conversation: self.segment.conversation,
            channel: self.segment.channel,
            epoch: self.segment.epoch,
            next_seq: self.next_seq,
            safe: self.safe,
        }
    }
}

impl Parked {
    fn add(&mut self, record: &Record, segment: Segment, since: Instant, next_seq: u64, safe: SamplePos) {
        let early = Early { segment, since, next_seq, safe };
        if self.count >= MOST_PARKED {
            Self::drop_one(record, &early, "crowded");
            return;
        }
        let of = self.of.entry((early.segment.conversation, early.segment.channel)).or_default();
        if of.insert(early.segment.seq, early).is_none() {
            self.count += 1;
        }
        self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
    }

    /// What may follow now on channels that have moved, in order.
    fn follow(&mut self, advanced: &[(ConversationId, ChannelIndex)]) -> Vec<Waiting<Segment>> {
        let mut ready = vec![];
        for place in advanced {
            for (_, early) in self.of.remove(place).unwrap_or_default() {
                self.count -= 1;
                ready.push(Waiting { id: None, value: early.segment, attempt: 1, since: early.since, origin: None });
            }
        }
        self.note_oldest();
        ready
    }

    fn expire(&mut self, record: &Record, now: Instant, park: Duration) {
        for of in self.of.values_mut() {
            of.retain(|_, early| {
                let stays = now < early.since + park;
                if !stays {
                    Self::drop_one(record, early, "early");
                    self.count -= 1;
                }
                stays
            });
        }
        self.of.retain(|_, of| !of.is_empty());
        self.note_oldest();
    }

    fn note_oldest(&mut self) {
        self.oldest = self.of.values().flat_map(BTreeMap::values).map(|early| early.since).min();
    }

    fn drop_one(record: &Record, early: &Early, reason: &'static str) {
        let Segment { conversation, channel, seq, .. } = early.segment;
        warn!(%conversation, %channel, seq, next_seq = early.next_seq, "a segment was dropped: those before it have not come");
        metrics::counter!(names::DROPPED_TOTAL, "stream" => signal::UTTERANCES, "reason" => reason).increment(1);
        record.announcer.remind(early.stand());
    }
}
