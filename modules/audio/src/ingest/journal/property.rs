//! Producer, bus and commit rule together: whatever the bus does, each sample is committed once, as it was heard.
//!
//! The bus loses, repeats, reorders, forgets everything, refuses, and takes without saying so; watermarks are lost; a producer is replaced by
//! another one that cuts the same audio elsewhere, and goes on sending without knowing. Time is a number here. The seed of a failure is in
//! its message.

use super::*;
use contracts::{
    CallCx, ChannelIndex, ConversationId, Conversations, Encoding, Epoch, SampleRate,
    audio::{ChannelSpec, Role, SegmentBody},
    conversation::{Attach, Attached, CommitOutcome, OpenConversation},
    testing::FakeConversations,
};
use futures::FutureExt;

const SEEDS: u64 = 3_000;
/// Samples of the whole call.
const LENGTH: u64 = 400;
/// Rounds after which nothing breaks any more.
const TROUBLE: u64 = 400;
/// Enough for what is left by then.
const ENOUGH: u64 = 4_000;
const ROUND: Duration = Duration::from_millis(250);
const CHANNEL: ChannelIndex = ChannelIndex(0);

/// SplitMix64: the same everywhere for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(60))
}

/// The record answers at once.
fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the record in memory never waits")
}

/// Hears the same audio as any other, and cuts it where it likes.
struct Producer {
    journal: Journal,
    epoch: Epoch,
    next_seq: u64,
    heard: u64,
}

impl Producer {
    fn attach(record: &FakeConversations, id: ConversationId) -> Self {
        let Attached { epoch, safe, next_seq } = now(record.attach(cx(), Attach { conversation: id, channel: CHANNEL })).unwrap();
        Self { journal: Journal::default(), epoch, next_seq, heard: safe.0 }
    }

    fn hear(&mut self, id: ConversationId, chance: &mut Chance) {
        if self.heard == LENGTH || self.journal.is_full() {
            return;
        }
        let end = (self.heard + 1 + chance.below(20)).min(LENGTH);
        // What it says tells where it was heard.
        let body = SegmentBody::Gap { reason: format!("{}..{end} by {}", self.heard, self.epoch) };
        self.journal.push(&Segment {
            conversation: id,
            channel: CHANNEL,
            epoch: self.epoch,
            seq: self.next_seq,
            start: SamplePos(self.heard),
            end: SamplePos(end),
            body,
            trace: TraceCx::root(),
        });
        (self.next_seq, self.heard) = (self.next_seq + 1, end);
    }

    /// As `Channel::send` does. `trouble`: what the bus may do besides taking it.
    fn send(&mut self, bus: &mut Vec<Bytes>, at: Instant, trouble: bool, chance: &mut Chance) {
        let entries = self.journal.unsent();
        let (refused, unknown) = (trouble && chance.percent(15), trouble && chance.percent(10));
        if refused {
            return;
        }
        bus.extend(entries.into_iter().map(|e| e.payload));
        if !unknown {
            self.journal.mark_sent(at);
        }
    }

    /// As `Channel::tick` does.
    fn tick(&mut self, at: Instant, bus_lost: bool) {
        if bus_lost || self.journal.waiting(at) >= Duration::from_secs(5) {
            self.journal.send_again();
        }
    }

    /// As `Channel::committed` does, but for one thing: who is told that somebody else has the channel goes on all the same.
    fn committed(&mut self, mark: Attached, at: Instant, seed: u64) {
        if mark.epoch == self.epoch {
            self.journal.confirm(mark.next_seq, mark.safe, at).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }
}

fn standing(record: &FakeConversations, id: ConversationId) -> Attached {
    now(record.conversation(cx(), id)).unwrap().channels[0].attached
}

fn one_call(seed: u64) {
    let mut chance = Chance(seed);
    let (record, id) = (FakeConversations::default(), ConversationId::from_u128(u128::from(seed) + 1));
    let spec = ChannelSpec { index: CHANNEL, role: Role::Customer, encoding: Encoding::Linear16, rate: SampleRate::HZ_16000 };
    let request = OpenConversation {
        id,
        external_id: None,
        title: None,
        source: "native".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![spec],
        started_at: chrono::DateTime::UNIX_EPOCH,
    };
    now(record.open(cx(), request)).unwrap();
    let begun = Instant::now();
    // The last one is the one that is meant to have the channel; those before it do not know.
    let mut producers = vec![Producer::attach(&record, id)];
    let mut bus: Vec<Bytes> = vec![];
    for round in 0..TROUBLE + ENOUGH {
        let (at, trouble) = (begun + ROUND * round as u32, round < TROUBLE);
        let bus_lost = trouble && chance.percent(2);
        if bus_lost {
            bus.clear();
        }
        if trouble && producers.len() < 4 && chance.percent(1) {
            producers.push(Producer::attach(&record, id));
        }
        for producer in &mut producers {
            if chance.percent(40) {
                producer.hear(id, &mut chance);
            }
            // Sometimes nobody says that the bus has lost something.
            producer.tick(at, bus_lost && chance.percent(50));
            producer.send(&mut bus, at, trouble, &mut chance);
        }
        for _ in 0..chance.below(6) {
            if bus.is_empty() {
                break;
            }
            let window = if trouble { (bus.len() as u64).min(50) } else { 1 };
            let taken = chance.below(window) as usize;
            let payload = if trouble && chance.percent(30) { bus[taken].clone() } else { bus.remove(taken) };
            if trouble && chance.percent(10) {
                continue; // lost
            }
            let segment: Segment = serde_json::from_slice(&payload).unwrap();
            // What comes too early is dropped at once: harsher than the recorder, which lets it wait.
            let outcome = now(record.commit(cx(), vec![segment])).unwrap().remove(0);
            assert_ne!(outcome, CommitOutcome::Mismatch, "seed {seed}");
            if outcome == CommitOutcome::Committed && !(trouble && chance.percent(50)) {
                let mark = standing(&record, id);
                producers.iter_mut().for_each(|producer| producer.committed(mark, at, seed));
            }
        }
        // The watermark is asked for every second by who has waited so long.
        if round % 4 == 0 {
            let mark = standing(&record, id);
            for producer in &mut producers {
                if producer.journal.unconfirmed(at) >= Duration::from_secs(1) {
                    producer.committed(mark, at, seed);
                }
            }
        }
        let last = producers.last().unwrap();
        if !trouble && last.heard == LENGTH && last.journal.is_empty() {
            break;
        }
    }
    let last = producers.last().unwrap();
    assert!(last.journal.is_empty() && last.heard == LENGTH, "seed {seed}: something was never committed");
    let mut end = 0;
    for segment in record.segments(id, CHANNEL) {
        assert_eq!(segment.start.0, end, "seed {seed}: a gap or an overlap");
        end = segment.end.0;
        let SegmentBody::Gap { reason } = &segment.body else { panic!("seed {seed}: it was not made here") };
        assert_eq!(*reason, format!("{}..{end} by {}", segment.start, segment.epoch), "seed {seed}: other words than were heard there");
    }
    assert_eq!(end, LENGTH, "seed {seed}");
}

#[test]
fn every_sample_is_committed_once_whatever_the_bus_does() {
    (0..SEEDS).for_each(one_call);
}
