//! One topic: its numbered events, the last of them kept for those who come back, and who reads it.

use super::{
    outbox::Outbox,
    wire::{self, Event, TopicName},
};
use bytestring::ByteString;
use contracts::ConversationId;
use serde::Serialize;
use std::{collections::VecDeque, sync::Arc};
use tokio::time::Instant;

/// Numbered events a reader may have missed and still go on without a snapshot.
pub(crate) const RESUME_EVENTS: usize = 512;

pub(crate) struct Topic {
    name: TopicName,
    /// Of the last numbered event.
    seq: u64,
    ring: VecDeque<(u64, ByteString)>,
    readers: Vec<Reader>,
    /// Since when nobody reads it.
    pub(crate) unread_since: Instant,
}

#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) id: u64,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) partials: bool,
}

/// A reader, and the last number it says it has.
pub(crate) struct Waiting {
    pub(crate) reader: Reader,
    pub(crate) since_seq: Option<u64>,
}

impl Topic {
    /// Starts after `seq`. A topic that was forgotten starts above every number it gave out before, so an old number is never mistaken.
    pub(crate) fn new(name: TopicName, seq: u64, now: Instant) -> Self {
        Self { name, seq, ring: VecDeque::new(), readers: vec![], unread_since: now }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn readers(&self) -> usize {
        self.readers.len()
    }

    pub(crate) fn emit(&mut self, conversation: ConversationId, event: &Event) {
        match event.passing(conversation) {
            Some(news) => {
                let mut wanting = self.readers.iter().filter(|r| r.partials || !event.needs_partials()).peekable();
                if wanting.peek().is_none() {
                    return;
                }
                let text = event.frame(self.name, None, conversation);
                for reader in wanting {
                    reader.outbox.pass(self.name, news, text.clone());
                }
            }
            None => self.append(|name, seq| event.frame(name, Some(seq), conversation)),
        }
    }

    /// A numbered event that belongs to no conversation.
    pub(crate) fn announce(&mut self, kind: &str, data: impl Serialize) {
        self.append(|name, seq| wire::frame(kind, Some(name), Some(seq), None, data));
    }

    fn append(&mut self, frame: impl FnOnce(TopicName, u64) -> ByteString) {
        self.seq += 1;
        let text = frame(self.name, self.seq);
        if self.ring.len() == RESUME_EVENTS {
            self.ring.pop_front();
        }
        self.ring.push_back((self.seq, text.clone()));
        for reader in &self.readers {
            reader.outbox.keep(self.name, self.seq, text.clone());
        }
    }

    /// Lets a reader in: with the events it missed if they are still here, else with a snapshot; then with everything that follows.
    /// `passing` is sent after missed events, because a snapshot has it already.
    pub(crate) fn admit<S: Serialize>(
        &mut self,
        waiting: Waiting,
        snapshot: impl FnOnce() -> S,
        passing: impl FnOnce() -> Vec<(ConversationId, Event)>,
    ) {
        let Waiting { reader, since_seq } = waiting;
        self.dismiss(reader.id, self.unread_since);
        let oldest = self.ring.front().map_or(self.seq + 1, |(seq, _)| *seq);
        let resumed = since_seq.filter(|since| (oldest - 1..=self.seq).contains(since));
        let topic = Some(self.name);
        let subscribed = serde_json::json!({ "resumed": resumed.is_some() });
        let conversation = self.name.conversation();
        reader.outbox.answer(topic, Some(self.seq), wire::frame("subscribed", topic, None, conversation, subscribed));
        match resumed {
            Some(since) => {
                for (seq, text) in self.ring.iter().filter(|(seq, _)| *seq > since) {
                    reader.outbox.answer(topic, Some(*seq), text.clone());
                }
                self.tell(&reader, passing());
            }
            None => reader.outbox.answer(topic, Some(self.seq), wire::frame("snapshot", topic, Some(self.seq), conversation, snapshot())),
        }
        self.readers.push(reader);
    }

    /// Sends one reader what passes by, as it stands.
    pub(crate) fn tell_again(&self, reader: u64, passing: impl FnOnce() -> Vec<(ConversationId, Event)>) {
        if let Some(reader) = self.readers.iter().find(|r| r.id == reader) {
            self.tell(reader, passing());
        }
    }

    fn tell(&self, reader: &Reader, passing: Vec<(ConversationId, Event)>) {
        for (conversation, event) in passing {
            if reader.partials || !event.needs_partials() {
                reader.outbox.answer(Some(self.name), None, event.frame(self.name, None, conversation));
            }
        }
    }

    pub(crate) fn dismiss(&mut self, reader: u64, now: Instant) {
        self.readers.retain(|r| r.id != reader);
        if self.readers.is_empty() {
            self.unread_since = now;
        }
    }

    /// Events are missing: everyone who reads needs a snapshot, and no number from before may be resumed from.
    pub(crate) fn interrupt(&mut self) -> Vec<Waiting> {
        self.seq += 1;
        self.ring.clear();
        std::mem::take(&mut self.readers).into_iter().map(|reader| Waiting { reader, since_seq: None }).collect()
    }
}
