//! What one reader has not been sent yet.
//!
//! Invariants:
//! - it is bounded in events and bytes, whatever the reader does; snapshots and replays, which were asked for, are not counted;
//! - of two passing events with the same key only the newer is kept; when the bound is near, passing events are dropped and the reader is told;
//! - a numbered event is never dropped silently: past the bound the reader gets what was queued before it, a `gap`, and is closed.

use super::wire::{self, NewsKey, TopicName};
use bytestring::ByteString;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};
use tokio::sync::Notify;

/// The reader was too slow for numbered events.
pub(crate) const CLOSE_TOO_SLOW: u16 = 4408;

pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Woken when there is something to take.
    filled: Notify,
    /// Woken once, when the reader has fallen too far behind.
    overflowed: Notify,
    max_events: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Counted ones among `waiting`.
    events: usize,
    bytes: usize,
    /// How many passing events were dropped since the last notice.
    dropped: BTreeMap<TopicName, u64>,
    /// The last `seq` queued of each topic.
    last: BTreeMap<TopicName, u64>,
    closing: bool,
}

struct Waiting {
    text: ByteString,
    topic: Option<TopicName>,
    /// What it is news of, when it may be replaced or dropped.
    news: Option<NewsKey>,
    counted: bool,
    since: Instant,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Out {
    Frame(ByteString),
    /// A notice of dropped passing events; the topic's passing state should be sent again.
    Notice(TopicName, ByteString),
    /// Nothing follows: close with [`CLOSE_TOO_SLOW`].
    TooSlow,
}

impl Outbox {
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self { queue: Mutex::default(), filled: Notify::new(), overflowed: Notify::new(), max_events, max_bytes }
    }

    /// An answer, a snapshot, a replayed event: what the reader asked for. `seq` is the last one the reader has with it.
    pub(crate) fn answer(&self, topic: Option<TopicName>, seq: Option<u64>, text: ByteString) {
        let mut queue = self.queue.lock();
        if let (Some(topic), Some(seq)) = (topic, seq) {
            queue.last.insert(topic, seq);
        }
        queue.push(Waiting { text, topic, news: None, counted: false, since: Instant::now() });
        drop(queue);
        self.filled.notify_one();
    }

    /// A numbered event.
    pub(crate) fn keep(&self, topic: TopicName, seq: u64, text: ByteString) {
        let mut queue = self.queue.lock();
        if queue.closing {
            return;
        }
        if self.is_full_for(&queue, text.len()) {
            queue.drop_passing();
        }
        if self.is_full_for(&queue, text.len()) {
            let text = queue.notice(topic, 0);
            queue.push(Waiting { text, topic: Some(topic), news: None, counted: false, since: Instant::now() });
            queue.closing = true;
            drop(queue);
            self.overflowed.notify_one();
        } else {
            queue.last.insert(topic, seq);
            queue.push(Waiting { text, topic: Some(topic), news: None, counted: true, since: Instant::now() });
        }
        self.filled.notify_one();
    }

    /// A passing event.
    pub(crate) fn pass(&self, topic: TopicName, news: NewsKey, text: ByteString) {
        let mut queue = self.queue.lock();
        if queue.closing {
            return;
        }
        if let Some(older) = queue.waiting.iter().position(|w| w.news == Some(news) && w.topic == Some(topic)) {
            let was = std::mem::replace(&mut queue.waiting[older].text, text.clone());
            queue.bytes = queue.bytes + text.len() - was.len();
        } else if queue.events >= self.max_events / 2 || queue.bytes + text.len() > self.max_bytes / 2 {
            queue.note_dropped(topic);
        } else {
            queue.push(Waiting { text, topic: Some(topic), news: Some(news), counted: true, since: Instant::now() });
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Forgets what waits for a topic that is no longer wanted.
    pub(crate) fn forget(&self, topic: TopicName) {
        let mut queue = self.queue.lock();
        queue.dropped.remove(&topic);
        queue.last.remove(&topic);
        queue.retain(|w| w.topic != Some(topic));
    }

    /// The next thing to send. Cancel-safe.
    pub(crate) async fn next(&self) -> Out {
        loop {
            let filled = self.filled.notified();
            if let Some(out) = self.take() {
                return out;
            }
            filled.await;
        }
    }

    fn take(&self) -> Option<Out> {
        let mut queue = self.queue.lock();
        if let Some(next) = queue.waiting.pop_front() {
            if next.counted {
                queue.events -= 1;
                queue.bytes -= next.text.len();
            }
            metrics::histogram!(crate::metrics::LIVE_QUEUE).record(next.since.elapsed());
            return Some(Out::Frame(next.text));
        }
        if queue.closing {
            return Some(Out::TooSlow);
        }
        let (topic, passing) = queue.dropped.pop_first()?;
        let text = queue.notice(topic, passing);
        Some(Out::Notice(topic, text))
    }

    /// Waits until the reader has fallen too far behind. Cancel-safe.
    pub(crate) async fn overflowed(&self) {
        if !self.queue.lock().closing {
            self.overflowed.notified().await;
        }
    }

    fn is_full_for(&self, queue: &Queue, bytes: usize) -> bool {
        queue.events >= self.max_events || (queue.events > 0 && queue.bytes + bytes > self.max_bytes)
    }
}

impl Queue {
    fn push(&mut self, waiting: Waiting) {
        if waiting.counted {
            self.events += 1;
            self.bytes += waiting.text.len();
        }
        self.waiting.push_back(waiting);
    }

    /// The range is always empty: a numbered event that could not be queued is not lost, the reader comes back for it with the number it has.
    fn notice(&self, topic: TopicName, passing: u64) -> ByteString {
        let last = self.last.get(&topic).copied().unwrap_or_default();
        let data = serde_json::json!({ "from_seq": last + 1, "to_seq": last, "passing": passing });
        wire::frame("gap", Some(topic), None, topic.conversation(), data)
    }

    fn note_dropped(&mut self, topic: TopicName) {
        metrics::counter!(crate::metrics::LIVE_DROPPED).increment(1);
        *self.dropped.entry(topic).or_default() += 1;
    }

    fn drop_passing(&mut self) {
        let gone: Vec<_> = self.waiting.iter().filter(|w| w.news.is_some()).filter_map(|w| w.topic).collect();
        for topic in gone {
            self.note_dropped(topic);
        }
        self.retain(|w| w.news.is_none());
    }

    fn retain(&mut self, wanted: impl Fn(&Waiting) -> bool) {
        self.waiting.retain(wanted);
        let counted = self.waiting.iter().filter(|w| w.counted);
        (self.events, self.bytes) = counted.fold((0, 0), |(events, bytes), w| (events + 1, bytes + w.text.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::wire::Event;
    use contracts::{ChannelIndex, ConversationId};

    const WALL: TopicName = TopicName::Wall;

    fn news(channel: u8) -> NewsKey {
        let event = Event::Activity { channel: ChannelIndex(channel), talking: true };
        event.passing(ConversationId::from_u128(1)).unwrap()
    }

    fn drain(outbox: &Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.take_unless_closed()).collect()
    }

    impl Outbox {
        fn take_unless_closed(&self) -> Option<String> {
            match self.take()? {
                Out::Frame(text) | Out::Notice(_, text) => Some(text.to_string()),
                Out::TooSlow => None,
            }
        }
    }

    #[test]
    fn a_newer_passing_event_takes_the_place_of_an_unsent_older_one() {
        let outbox = Outbox::new(8, 1 << 20);
        outbox.pass(WALL, news(0), "old".into());
        outbox.pass(WALL, news(1), "other".into());
        outbox.keep(WALL, 1, "final".into());
        outbox.pass(WALL, news(0), "new".into());
        assert_eq!(drain(&outbox), ["new", "other", "final"]);
    }

    #[test]
    fn passing_events_make_room_for_numbered_ones_and_the_reader_is_told() {
        let outbox = Outbox::new(8, 1 << 20);
        for channel in 0..6 {
            outbox.pass(WALL, news(channel), format!("p{channel}").into()); // 4 fit: half of the bound
        }
        for seq in 1..=8 {
            outbox.keep(WALL, seq, format!("f{seq}").into());
        }
        let got = drain(&outbox);
        assert_eq!(got[..8], (1..=8).map(|n| format!("f{n}")).collect::<Vec<_>>());
        let gap: serde_json::Value = serde_json::from_str(&got[8]).unwrap();
        assert_eq!(gap["type"], "gap");
        assert_eq!(gap["data"], serde_json::json!({ "from_seq": 9, "to_seq": 8, "passing": 6 }));
        assert_eq!(got.len(), 9);
    }

    #[test]
    fn past_the_bound_the_queue_is_kept_and_a_gap_comes_before_the_close() {
        let outbox = Outbox::new(8, 1 << 20);
        for seq in 1..=20 {
            outbox.keep(WALL, seq, format!("f{seq}").into());
        }
        let got = drain(&outbox);
        assert_eq!(got[..8], (1..=8).map(|n| format!("f{n}")).collect::<Vec<_>>());
        let gap: serde_json::Value = serde_json::from_str(&got[8]).unwrap();
        assert_eq!((gap["data"]["from_seq"].as_u64(), gap["data"]["to_seq"].as_u64(), got.len()), (Some(9), Some(8), 9));
        assert_eq!(outbox.take(), Some(Out::TooSlow));
    }

    #[test]
    fn bytes_are_bounded_too_but_one_large_event_passes() {
        let outbox = Outbox::new(100, 1000);
        outbox.keep(WALL, 1, "x".repeat(5000).into());
        outbox.keep(WALL, 2, "y".into());
        assert_eq!(drain(&outbox).len(), 2, "the large one and the gap");
        let outbox = Outbox::new(100, 1000);
        outbox.answer(Some(WALL), Some(7), "s".repeat(1 << 20).into());
        outbox.keep(WALL, 8, "f8".into());
        assert_eq!(drain(&outbox).len(), 2, "a snapshot was asked for and is not counted");
    }

    #[test]
    fn an_unsubscribed_topic_leaves_nothing_behind() {
        let outbox = Outbox::new(4, 1 << 20);
        outbox.keep(WALL, 1, "f".into());
        outbox.pass(WALL, news(0), "p".into());
        outbox.forget(WALL);
        assert_eq!(outbox.take(), None);
        for seq in 1..=4 {
            outbox.keep(WALL, seq, "f".into());
        }
        assert_eq!(drain(&outbox).len(), 4, "its room is free again");
    }
}
