//! A channel's audio from `safe` on: what has to be heard again when the engine dies, and what the caller need not send again.
//!
//! Positions decide everything, so overlap is trimmed whatever the caller's frame size was. Holes stay holes. Knows no sockets, no clock.

use bytes::Bytes;
use contracts::{SamplePos, audio::Frame};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Small messages are gathered into chunks of this size, so that a caller who sends single samples costs no more memory.
const CHUNK_BYTES: usize = 16 << 10;

pub(super) struct Kept {
    width: usize,
    limit_bytes: usize,
    max_gap: u64,
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Bytes of all channels together.
    tally: Arc<AtomicUsize>,
    /// Everything before it is committed.
    safe: SamplePos,
    /// One past the last sample received.
    received: SamplePos,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.tally.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Chunk {
    pos: SamplePos,
    data: Vec<u8>,
}

/// Audio that cannot belong to this channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAudio {
    #[error("{bytes} bytes are not whole samples of {width} bytes")]
    Torn { bytes: usize, width: usize },
    #[error("position {pos} is {ahead} samples ahead of what was received: expected at most {most}")]
    TooFar { pos: SamplePos, ahead: u64, most: u64 },
}

impl Kept {
    pub(super) fn new(width: usize, safe: SamplePos, limit_samples: u64, max_gap: u64) -> Self {
        let (chunks, tally) = (VecDeque::new(), Arc::default());
        Self { width, limit_bytes: limit_samples as usize * width, max_gap, chunks, bytes: 0, tally, safe, received: safe }
    }

    /// Counts what it keeps there as well.
    #[must_use]
    pub(super) fn counted_in(mut self, tally: &Arc<AtomicUsize>) -> Self {
        self.tally = tally.clone();
        self
    }

    pub(super) fn received(&self) -> SamplePos {
        self.received
    }

    pub(super) fn safe(&self) -> SamplePos {
        self.safe
    }

    /// No more is taken in until something has been committed.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.limit_bytes
    }

    /// The part of a message that is new; `None` when all of it was received before. `pos` absent: it continues.
    pub(super) fn new_part(&self, pos: Option<SamplePos>, mut data: Bytes) -> Result<Option<Frame>, BadAudio> {
        if !data.len().is_multiple_of(self.width) {
            return Err(BadAudio::Torn { bytes: data.len(), width: self.width });
        }
        let mut pos = pos.unwrap_or(self.received);
        let ahead = pos.since(self.received);
        if ahead > self.max_gap {
            return Err(BadAudio::TooFar { pos, ahead, most: self.max_gap });
        }
        let samples = (data.len() / self.width) as u64;
        let known = self.received.since(pos).min(samples);
        let _ = data.split_to(known as usize * self.width);
        pos = pos + known;
        Ok((!data.is_empty()).then_some(Frame { pos, data }))
    }

    /// Keeps a frame that [`Kept::new_part`] returned.
    pub(super) fn push(&mut self, frame: &Frame) {
        let width = self.width;
        let samples = (frame.data.len() / width) as u64;
        self.bytes += frame.data.len();
        self.tally.fetch_add(frame.data.len(), Ordering::Relaxed);
        self.received = frame.pos + samples;
        match self.chunks.back_mut() {
            Some(last) if last.end(width) == frame.pos && last.data.len() < CHUNK_BYTES => last.data.extend_from_slice(&frame.data),
            _ => self.chunks.push_back(Chunk { pos: frame.pos, data: frame.data.to_vec() }),
        }
    }

    /// The next stretch at or after `from` and before `until`, at most `most` samples. A hole before it shows in its position.
    pub(super) fn next(&self, from: SamplePos, until: SamplePos, most: u64) -> Option<Frame> {
        let at = self.chunks.partition_point(|chunk| chunk.end(self.width) <= from);
        let chunk = self.chunks.get(at)?;
        let pos = chunk.pos.max(from);
        let end = chunk.end(self.width).min(until).min(pos + most);
        if end <= pos {
            return None;
        }
        let bytes = |p: SamplePos| p.since(chunk.pos) as usize * self.width;
        Some(Frame { pos, data: Bytes::copy_from_slice(&chunk.data[bytes(pos)..bytes(end)]) })
    }

    /// Forgets what is committed.
    pub(super) fn trim(&mut self, safe: SamplePos) {
        self.safe = self.safe.max(safe);
        self.received = self.received.max(safe);
        while let Some(first) = self.chunks.front()
            && first.end(self.width) <= self.safe
        {
            self.bytes -= first.data.len();
            self.tally.fetch_sub(first.data.len(), Ordering::Relaxed);
            self.chunks.pop_front();
        }
    }
}

impl Chunk {
    fn end(&self, width: usize) -> SamplePos {
        self.pos + (self.data.len() / width) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept() -> Kept {
        Kept::new(2, SamplePos::ZERO, 1000, 100)
    }

    fn take(kept: &mut Kept, pos: u64, samples: std::ops::Range<u16>) -> Result<Option<Frame>, BadAudio> {
        let data: Vec<u8> = samples.flat_map(u16::to_le_bytes).collect();
        let part = kept.new_part(Some(SamplePos(pos)), data.into())?;
        if let Some(frame) = &part {
            kept.push(frame);
        }
        Ok(part)
    }

    #[test]
    fn what_was_received_before_is_trimmed() {
        let mut kept = kept();
        take(&mut kept, 0, 0..10).unwrap();
        let part = take(&mut kept, 6, 6..12).unwrap().unwrap();
        assert_eq!((part.pos, part.data.len()), (SamplePos(10), 4));
        assert_eq!(take(&mut kept, 3, 3..9).unwrap(), None);
        assert_eq!(kept.received(), SamplePos(12));
    }

    #[test]
    fn a_hole_shows_in_the_position_and_a_torn_sample_or_a_wild_jump_is_refused() {
        let mut kept = kept();
        take(&mut kept, 0, 0..4).unwrap();
        take(&mut kept, 10, 10..12).unwrap();
        assert_eq!(kept.next(SamplePos(0), SamplePos(99), 99).unwrap().data.len(), 8);
        assert_eq!(kept.next(SamplePos(4), SamplePos(99), 99).unwrap().pos, SamplePos(10));
        assert!(matches!(kept.new_part(None, Bytes::from_static(b"abc")), Err(BadAudio::Torn { bytes: 3, width: 2 })));
        assert!(matches!(take(&mut kept, u64::MAX, 0..1), Err(BadAudio::TooFar { .. })));
    }

    #[test]
    fn all_channels_together_are_counted_until_they_are_committed_or_gone() {
        let tally = Arc::default();
        let (mut one, mut other) = (kept().counted_in(&tally), kept().counted_in(&tally));
        take(&mut one, 0, 0..10).unwrap();
        take(&mut one, 0, 0..10).unwrap();
        take(&mut other, 0, 0..4).unwrap();
        assert_eq!(tally.load(Ordering::Relaxed), 28);
        one.trim(SamplePos(10));
        assert_eq!(tally.load(Ordering::Relaxed), 8);
        drop(other);
        assert_eq!(tally.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn it_is_full_until_something_is_committed() {
        let mut kept = Kept::new(2, SamplePos::ZERO, 10, 100);
        take(&mut kept, 0, 0..10).unwrap();
        assert!(kept.is_full());
        kept.trim(SamplePos(10));
        assert!(!kept.is_full());
        assert_eq!(kept.next(SamplePos(0), SamplePos(99), 99), None);
    }

    proptest! {
        /// Sample n has the value n: whatever is sent, cut, repeated and trimmed, reading yields each received sample once, in its place.
        #[test]
        fn every_sample_is_kept_once_and_in_its_place(sends in prop::collection::vec((0u64..400, 1u16..60), 1..40), trim in 0u64..200) {
            let mut kept = Kept::new(2, SamplePos::ZERO, 100_000, 1000);
            for (pos, samples) in sends {
                take(&mut kept, pos, pos as u16..pos as u16 + samples).unwrap();
            }
            kept.trim(SamplePos(trim));
            let mut at = SamplePos(trim);
            while let Some(frame) = kept.next(at, SamplePos(u64::MAX >> 1), 7) {
                prop_assert!(frame.pos >= at);
                for (n, bytes) in frame.data.chunks(2).enumerate() {
                    prop_assert_eq!(u64::from(u16::from_le_bytes([bytes[0], bytes[1]])), frame.pos.0 + n as u64);
                }
                at = frame.pos + frame.data.len() as u64 / 2;
            }
            prop_assert!(at == kept.received() || at == SamplePos(trim));
        }
    }
}
