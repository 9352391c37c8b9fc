//! The bus of one process: queues behind one lock each, wake-ups by `Notify`.

use super::{Bus, BusError, Consumer, Delivery, EntryId, Heard, Listener, NewEntry, desk::Desk};
use async_trait::async_trait;
use bytes::Bytes;
use contracts::TraceCx;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

/// Unread entries a stream keeps; at one final every two seconds this is 2000 speaking channels behind by a minute.
const DEFAULT_CAPACITY: usize = 65_536;
/// Signals a listener may be behind.
const SIGNAL_BACKLOG: usize = 4_096;

#[derive(Clone)]
pub struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    capacity: usize,
    streams: Mutex<HashMap<&'static str, Arc<Stream>>>,
    topics: Mutex<HashMap<&'static str, broadcast::Sender<Bytes>>>,
}

#[derive(Default)]
struct Stream {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// What some group has not acknowledged yet.
    entries: BTreeMap<EntryId, Entry>,
    groups: HashMap<&'static str, Desk>,
}

struct Entry {
    key: String,
    payload: Bytes,
    trace: TraceCx,
    published: Instant,
    /// Groups that still need it; 0 before any group exists means: keep for the first one.
    open: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }
}

impl Memory {
    pub fn with_capacity(entries: usize) -> Self {
        Self { inner: Arc::new(Inner { capacity: entries, streams: Mutex::default(), topics: Mutex::default() }) }
    }

    fn stream(&self, name: &'static str) -> Arc<Stream> {
        self.inner.streams.lock().entry(name).or_default().clone()
    }

    fn topic(&self, name: &'static str) -> broadcast::Sender<Bytes> {
        self.inner.topics.lock().entry(name).or_insert_with(|| broadcast::channel(SIGNAL_BACKLOG).0).clone()
    }
}

#[async_trait]
impl Bus for Memory {
    async fn publish(&self, stream: &'static str, entries: Vec<NewEntry>) -> Result<(), BusError> {
        let target = self.stream(stream);
        {
            let mut state = target.state.lock();
            if state.entries.len() + entries.len() > self.inner.capacity {
                return Err(BusError::Full { stream, held: state.entries.len() });
            }
            for NewEntry { key, payload, trace } in entries {
                let id = EntryId { ms: state.next_id, seq: 0, shard: 0 };
                state.next_id += 1;
                let open = state.groups.len();
                for desk in state.groups.values_mut() {
                    desk.put(id, &key, 0);
                }
                state.entries.insert(id, Entry { key, payload, trace, published: Instant::now(), open });
            }
        }
        target.arrived.notify_waiters();
        Ok(())
    }

    async fn consume(&self, stream: &'static str, group: &'static str) -> Result<Box<dyn Consumer>, BusError> {
        let stream = self.stream(stream);
        {
            let mut state = stream.state.lock();
            if !state.groups.contains_key(group) {
                let mut desk = Desk::default();
                for (id, entry) in &mut state.entries {
                    desk.put(*id, &entry.key, 0);
                    entry.open += 1;
                }
                state.groups.insert(group, desk);
            }
        }
        Ok(Box::new(MemoryConsumer { stream, group, held: HashMap::new(), aside: HashSet::new() }))
    }

    async fn signal(&self, topic: &'static str, payload: Bytes) -> Result<(), BusError> {
        let _ = self.topic(topic).send(payload); // an error only says that nobody listens
        Ok(())
    }

    async fn listen(&self, topic: &'static str) -> Result<Box<dyn Listener>, BusError> {
        Ok(Box::new(MemoryListener { rx: self.topic(topic).subscribe() }))
    }
}

struct MemoryConsumer {
    stream: Arc<Stream>,
    group: &'static str,
    /// Delivered and not acknowledged, with the deliveries so far.
    held: HashMap<EntryId, u32>,
    /// Those of them that hold nobody up.
    aside: HashSet<EntryId>,
}

impl MemoryConsumer {
    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let mut state = self.stream.state.lock();
        let State { entries, groups, .. } = &mut *state;
        let desk = groups.get_mut(self.group).expect("a consumer's group was made when it joined");
        let taken = desk.take(max, |_| true);
        let mut deliveries = Vec::with_capacity(taken.len());
        for (id, attempt) in taken {
            let entry = &entries[&id];
            self.held.insert(id, attempt);
            deliveries.push(Delivery {
                id,
                key: entry.key.clone(),
                payload: entry.payload.clone(),
                trace: entry.trace,
                attempt,
                age: entry.published.elapsed(),
            });
        }
        deliveries
    }

    fn finish(&mut self, ids: &[EntryId], done: bool) {
        let mut state = self.stream.state.lock();
        let State { entries, groups, .. } = &mut *state;
        let desk = groups.get_mut(self.group).expect("a consumer's group was made when it joined");
        for id in ids {
            let Some(attempts) = self.held.remove(id) else { continue };
            let entry = entries.get_mut(id).expect("a held entry is kept until it is acknowledged");
            if !self.aside.remove(id) {
                desk.finish(&entry.key);
            }
            if done {
                entry.open -= 1;
                if entry.open == 0 {
                    entries.remove(id);
                }
            } else {
                desk.put(*id, &entry.key, attempts);
            }
        }
        drop(state);
        self.stream.arrived.notify_waiters();
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, BusError> {
        let stream = self.stream.clone();
        loop {
            let arrived = stream.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable(); // registered before looking, so nothing slips in between
            let taken = self.take(max);
            if !taken.is_empty() {
                return Ok(taken);
            }
            arrived.await;
        }
    }

    async fn ack(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        self.finish(ids, true);
        Ok(())
    }

    async fn nack(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        self.finish(ids, false);
        Ok(())
    }

    async fn set_aside(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        {
            let mut state = self.stream.state.lock();
            let State { entries, groups, .. } = &mut *state;
            let desk = groups.get_mut(self.group).expect("a consumer's group was made when it joined");
            for id in ids {
                if self.held.contains_key(id) && self.aside.insert(*id) {
                    desk.finish(&entries[id].key);
                }
            }
        }
        self.stream.arrived.notify_waiters();
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let held: Vec<EntryId> = self.held.keys().copied().collect();
        self.finish(&held, false);
    }
}

struct MemoryListener {
    rx: broadcast::Receiver<Bytes>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn next(&mut self) -> Option<Heard> {
        match self.rx.recv().await {
            Ok(payload) => Some(Heard::Signal(payload)),
            Err(broadcast::error::RecvError::Lagged(n)) => Some(Heard::Missed(n)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_memory_bus_passes_the_suite() {
        super::super::suite::run(async |capacity| Arc::new(Memory::with_capacity(capacity))).await
    }
}
