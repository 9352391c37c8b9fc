//! Segments of one channel that were made and are not committed yet. The bus may lose anything; what stands here is published again.
//!
//! Invariants: entries have consecutive numbers; an entry leaves only when the record says that its range is committed. What has left is kept a while
//! longer: a record whose standby took its place may have lost what it had just committed.

#[cfg(test)]
mod property;

use bytes::Bytes;
use contracts::{
    SamplePos, TraceCx,
    conversation::{Attached, Segment},
};
use platform::bus::NewEntry;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// With this many unconfirmed segments no more events are read, so the engine stops and the caller's socket fills.
pub(super) const MOST: usize = 256;
/// A standby that is promoted lacks at most what was committed this long before.
const REMEMBERED: Duration = Duration::from_secs(60);
const MOST_REMEMBERED: usize = 256;

#[derive(Default)]
pub(super) struct Journal {
    entries: VecDeque<Entry>,
    /// Entries at the front that the bus has taken.
    sent: usize,
    /// Committed a short while ago, in order, up to the first entry.
    committed: VecDeque<(Instant, Entry)>,
}

struct Entry {
    seq: u64,
    end: SamplePos,
    trace: TraceCx,
    key: String,
    payload: Bytes,
    made: Instant,
    sent: Option<Instant>,
}

/// The record holds something else than what was made here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record stands at segment {next_seq}, sample {safe}, which is no boundary of what was sent")]
pub(super) struct Disagreement {
    next_seq: u64,
    safe: SamplePos,
}

impl Journal {
    pub(super) fn push(&mut self, segment: &Segment) {
        let payload = serde_json::to_vec(segment).expect("a segment has string keys only and no foreign serializer");
        self.entries.push_back(Entry {
            seq: segment.seq,
            end: segment.end,
            trace: segment.trace,
            key: segment.conversation.to_string(),
            payload: payload.into(),
            made: Instant::now(),
            sent: None,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MOST
    }

    /// What the bus has not taken, in order.
    pub(super) fn unsent(&self) -> Vec<NewEntry> {
        let entries = self.entries.iter().skip(self.sent);
        entries.map(|e| NewEntry { key: e.key.clone(), payload: e.payload.clone(), trace: e.trace }).collect()
    }

    pub(super) fn mark_sent(&mut self, now: Instant) {
        for entry in self.entries.iter_mut().skip(self.sent) {
            entry.sent = Some(now);
        }
        self.sent = self.entries.len();
    }

    /// How long the oldest entry has been on the bus without being committed.
    pub(super) fn waiting(&self, now: Instant) -> Duration {
        self.entries.front().and_then(|e| e.sent).map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent))
    }

    /// How long the oldest entry is without a commit since it was made, if the bus has ever taken it.
    pub(super) fn unconfirmed(&self, now: Instant) -> Duration {
        self.entries.front().filter(|e| e.sent.is_some()).map_or(Duration::ZERO, |e| now.saturating_duration_since(e.made))
    }

    /// Everything is to be published again; returns how many had been.
    pub(super) fn send_again(&mut self) -> usize {
        for entry in &mut self.entries {
            entry.sent = None;
        }
        std::mem::take(&mut self.sent)
    }

    /// The record is at `next_seq` and `safe`: drops what that covers, and tells how long each took since it was made.
    pub(super) fn confirm(&mut self, next_seq: u64, safe: SamplePos, now: Instant) -> Result<Vec<Duration>, Disagreement> {
        let Some(first) = self.entries.front() else { return Ok(vec![]) };
        if next_seq <= first.seq {
            return Ok(vec![]); // old news
        }
        let covered = (next_seq - first.seq) as usize;
        if covered > self.entries.len() || self.entries[covered - 1].end != safe {
            return Err(Disagreement { next_seq, safe });
        }
        self.sent = self.sent.saturating_sub(covered);
        let waits = self.entries.range(..covered).map(|e| now.saturating_duration_since(e.made)).collect();
        self.committed.extend(self.entries.drain(..covered).map(|entry| (now, entry)));
        while self.committed.len() > MOST_REMEMBERED || self.committed.front().is_some_and(|(at, _)| now.duration_since(*at) > REMEMBERED) {
            self.committed.pop_front();
        }
        Ok(waits)
    }

    /// The record says itself that it is at `next_seq` and `safe`, before what it had committed: that is to be published again, and what follows
    /// it. Returns how many segments it has lost; 0: it has not gone back.
    ///
    /// # Errors
    /// It went back further than is remembered, or to something else.
    pub(super) fn recall(&mut self, next_seq: u64, safe: SamplePos) -> Result<usize, Disagreement> {
        let (Some(first), Some((_, last))) = (self.entries.front(), self.committed.back()) else { return Ok(0) };
        if next_seq >= first.seq {
            return Ok(0);
        }
        let lost = (first.seq - next_seq) as usize;
        let Some(kept) = self.committed.len().checked_sub(lost).filter(|_| last.seq + 1 == first.seq) else {
            return Err(Disagreement { next_seq, safe });
        };
        if kept.checked_sub(1).and_then(|at| self.committed.get(at)).is_some_and(|(_, entry)| entry.end != safe) {
            return Err(Disagreement { next_seq, safe });
        }
        for (_, entry) in self.committed.drain(kept..).rev() {
            self.entries.push_front(entry);
        }
        self.send_again();
        Ok(lost)
    }

    /// The channel was attached to anew: what was made from `attached.safe` on is numbered and signed for that, and is to be published. Returns
    /// the number that comes next; `None`: that place is no boundary of what is remembered, and nothing has changed.
    pub(super) fn sign_again(&mut self, attached: Attached) -> Option<u64> {
        let entries = self.committed.iter().map(|(_, entry)| entry).chain(&self.entries);
        let mut made: Vec<Segment> = entries.map(|entry| serde_json::from_slice(&entry.payload).expect("it was written here")).collect();
        let from = made.iter().position(|segment| segment.start == attached.safe);
        let from = from.or_else(|| made.last().filter(|last| last.end == attached.safe).map(|_| made.len()))?;
        if made[from..].windows(2).any(|two| two[0].end != two[1].start) {
            return None;
        }
        self.committed.truncate(from);
        self.entries.clear();
        self.sent = 0;
        let mut next_seq = attached.next_seq;
        for segment in made.drain(from..) {
            self.push(&Segment { epoch: attached.epoch, seq: next_seq, ..segment });
            next_seq += 1;
        }
        Some(next_seq)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{ChannelIndex, ConversationId, Epoch, audio::SegmentBody};

    fn journal(seqs: std::ops::Range<u64>) -> Journal {
        let mut journal = Journal::default();
        for seq in seqs {
            journal.push(&segment(seq));
        }
        journal
    }

    fn segment(seq: u64) -> Segment {
        Segment {
            conversation: ConversationId::from_u128(1),
            channel: ChannelIndex(0),
            epoch: Epoch(1),
            seq,
            start: SamplePos(seq * 10),
            end: SamplePos(seq * 10 + 10),
            body: SegmentBody::Silence,
            trace: TraceCx::root(),
        }
    }

    #[test]
    fn what_is_committed_leaves_and_the_rest_is_published_again_in_order() {
        let mut journal = journal(3..7);
        assert_eq!(journal.unsent().len(), 4);
        journal.mark_sent(Instant::now());
        assert!(journal.unsent().is_empty());
        assert_eq!(journal.confirm(5, SamplePos(50), Instant::now()).unwrap().len(), 2);
        assert_eq!(journal.confirm(4, SamplePos(40), Instant::now()).unwrap().len(), 0, "old news drops nothing");
        assert_eq!(journal.send_again(), 2);
        let seqs: Vec<u64> = journal.unsent().iter().map(|e| serde_json::from_slice::<Segment>(&e.payload).unwrap().seq).collect();
        assert_eq!(seqs, [5, 6]);
        journal.confirm(7, SamplePos(70), Instant::now()).unwrap();
        assert!(journal.is_empty());
    }

    #[test]
    fn a_record_that_holds_other_ranges_is_noticed() {
        assert!(journal(0..3).confirm(2, SamplePos(19), Instant::now()).is_err());
        assert!(journal(0..3).confirm(9, SamplePos(90), Instant::now()).is_err());
    }

    #[test]
    fn what_a_record_lost_again_is_published_again() {
        let mut journal = journal(0..6);
        journal.mark_sent(Instant::now());
        journal.confirm(5, SamplePos(50), Instant::now()).unwrap();
        assert_eq!(journal.recall(5, SamplePos(50)), Ok(0), "it is where it was");
        assert!(journal.recall(3, SamplePos(31)).is_err(), "no boundary of what was sent");
        assert_eq!(journal.recall(3, SamplePos(30)), Ok(2));
        let seqs: Vec<u64> = journal.unsent().iter().map(|e| serde_json::from_slice::<Segment>(&e.payload).unwrap().seq).collect();
        assert_eq!(seqs, [3, 4, 5]);
        journal.mark_sent(Instant::now());
        journal.confirm(6, SamplePos(60), Instant::now()).unwrap();
        assert!(journal.is_empty());
        journal.push(&segment(6));
        assert_eq!(journal.recall(0, SamplePos::ZERO), Ok(6), "also everything");
    }

    #[test]
    fn only_what_the_bus_has_taken_can_be_overdue() {
        let mut journal = journal(0..2);
        let later = Instant::now() + Duration::from_secs(9);
        assert_eq!(journal.waiting(later), Duration::ZERO);
        journal.mark_sent(Instant::now());
        assert!(journal.waiting(later) > Duration::from_secs(8));
    }

    #[test]
    fn what_a_record_lacks_that_was_attached_to_again_is_signed_anew() {
        let mut journal = journal(0..6);
        journal.mark_sent(Instant::now());
        journal.confirm(4, SamplePos(40), Instant::now()).unwrap();
        let at = |safe, next_seq| Attached { epoch: Epoch(9), safe: SamplePos(safe), next_seq };
        assert_eq!(journal.sign_again(at(25, 2)), None, "no boundary");
        assert_eq!(journal.sign_again(at(20, 7)), Some(11));
        let signed: Vec<_> = journal
            .unsent()
            .iter()
            .map(|entry| serde_json::from_slice::<Segment>(&entry.payload).unwrap())
            .map(|segment| (segment.epoch.0, segment.seq, segment.start.0, segment.end.0))
            .collect();
        assert_eq!(signed, [(9, 7, 20, 30), (9, 8, 30, 40), (9, 9, 40, 50), (9, 10, 50, 60)]);
        assert_eq!(journal.sign_again(at(0, 0)), Some(6), "what is committed is remembered");
        assert_eq!(journal.sign_again(at(60, 3)), Some(3), "and nothing is left when the record has everything");
        assert!(journal.is_empty());
    }
}
