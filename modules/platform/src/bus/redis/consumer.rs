//! One reader of a group: what it was given, and how it says that it is done. What goes on behind it is in `reader.rs`.

use super::super::{BusError, Consumer, Delivery, EntryId, desk::Desk, metrics as names};
use super::{link::Link, scripts, shard};
use async_trait::async_trait;
use bytes::Bytes;
use contracts::TraceCx;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::DropGuard;

/// Acknowledgements told at once.
const AT_ONCE: usize = 500;

pub(super) struct RedisConsumer {
    pub(super) desk: Arc<Shared>,
    /// Ends the reader.
    pub(super) _end: DropGuard,
}

/// What consumer and reader have in common.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) stream: &'static str,
    pub(super) group: &'static str,
    /// Its name among the group's consumers, in Redis.
    pub(super) owner: String,
    pub(super) state: Mutex<State>,
    /// Something can be taken.
    pub(super) arrived: Notify,
    /// Somebody waits for entries.
    pub(super) wanted: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) desk: Desk,
    /// Of everything that waits or is out.
    pub(super) bodies: HashMap<EntryId, Body>,
    /// Out, with the number of this delivery.
    pub(super) held: HashMap<EntryId, u32>,
    /// Those of them that hold nobody up.
    pub(super) aside: HashSet<EntryId>,
    pub(super) leases: HashMap<u16, Lease>,
    /// How many entries somebody waits for.
    pub(super) wanted: usize,
    /// Done, and Redis has not been told.
    pub(super) done: BTreeMap<u16, Vec<EntryId>>,
    pub(super) closed: bool,
}

#[derive(Clone)]
pub(super) struct Lease {
    pub(super) value: Arc<str>,
    /// Until then no other reader can have it, as far as this process's clock tells.
    pub(super) until: Instant,
}

pub(super) struct Body {
    pub(super) key: String,
    pub(super) payload: Bytes,
    pub(super) trace: TraceCx,
    pub(super) came: Instant,
    /// In Redis, by its clock.
    pub(super) waited: Duration,
}

impl State {
    pub(super) fn knows(&self, id: EntryId) -> bool {
        self.held.contains_key(&id) || self.desk.waits(id) || self.done.get(&id.shard()).is_some_and(|done| done.contains(&id))
    }

    pub(super) fn put(&mut self, id: EntryId, body: Body, attempts: u32) {
        self.desk.put(id, &body.key, attempts);
        self.bodies.insert(id, body);
    }

    /// Whoever has the shard now delivers what waits here.
    pub(super) fn lose(&mut self, shard: u16) {
        self.leases.remove(&shard);
        self.done.remove(&shard);
        let waiting: Vec<EntryId> = self.desk.waiting().map(|(id, _)| id).filter(|id| id.shard() == shard).collect();
        for id in waiting {
            self.desk.forget(id);
            self.bodies.remove(&id);
        }
    }

    pub(super) fn is_idle(&self, shard: u16) -> bool {
        !self.held.keys().any(|id| id.shard() == shard) && self.done.get(&shard).is_none_or(|done| done.is_empty())
    }

    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let now = Instant::now();
        let Self { desk, leases, .. } = self;
        let taken = desk.take(max, |id| leases.get(&id.shard()).is_some_and(|lease| now < lease.until));
        let mut deliveries = Vec::with_capacity(taken.len());
        for (id, attempt) in taken {
            let body = &self.bodies[&id];
            self.held.insert(id, attempt);
            deliveries.push(Delivery {
                id,
                key: body.key.clone(),
                payload: body.payload.clone(),
                trace: body.trace,
                attempt,
                age: body.waited + now.duration_since(body.came),
            });
        }
        deliveries
    }
}

impl Shared {
    /// Tells Redis what is done. What it cannot be told now stays for the next time.
    pub(super) async fn acknowledge(&self) {
        loop {
            let (mut keys, mut args, mut told) = (vec![], vec![self.group.as_bytes().to_vec()], vec![]);
            {
                let state = self.state.lock();
                for (of, ids) in &state.done {
                    let Some(lease) = state.leases.get(of) else { continue };
                    let some = &ids[..ids.len().min(AT_ONCE - told.len())];
                    if some.is_empty() {
                        continue;
                    }
                    keys.extend([shard::lease(self.stream, self.group, *of), shard::stream(self.stream, *of)]);
                    args.extend([lease.value.as_bytes().to_vec(), some.len().to_string().into_bytes()]);
                    args.extend(some.iter().map(|id| id.text().into_bytes()));
                    told.extend_from_slice(some);
                }
            }
            if told.is_empty() {
                return;
            }
            let Ok(fenced) = self.link.run::<u64>("ack", &scripts::ACK, &keys, &args).await else { return };
            metrics::counter!(names::FENCED).increment(fenced);
            let mut state = self.state.lock();
            for (_, ids) in state.done.iter_mut() {
                ids.retain(|id| !told.contains(id));
            }
            state.done.retain(|_, ids| !ids.is_empty());
        }
    }
}

#[async_trait]
impl Consumer for RedisConsumer {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, BusError> {
        loop {
            let arrived = self.desk.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable(); // registered before looking, so nothing slips in between
            {
                let mut state = self.desk.state.lock();
                let taken = state.take(max);
                if !taken.is_empty() {
                    state.wanted = 0;
                    return Ok(taken);
                }
                if state.closed {
                    return Ok(vec![]);
                }
                state.wanted = max;
            }
            self.desk.wanted.notify_one();
            arrived.await;
        }
    }

    async fn ack(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        {
            let mut state = self.desk.state.lock();
            for id in ids {
                if state.held.remove(id).is_some() {
                    let body = state.bodies.remove(id).expect("what is out has a body");
                    if !state.aside.remove(id) {
                        state.desk.finish(&body.key);
                    }
                    if state.leases.contains_key(&id.shard()) {
                        state.done.entry(id.shard()).or_default().push(*id);
                    } else {
                        metrics::counter!(names::FENCED).increment(1);
                    }
                }
            }
        }
        self.desk.arrived.notify_waiters();
        self.desk.acknowledge().await;
        Ok(())
    }

    async fn nack(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        let mut back: BTreeMap<u16, (Lease, Vec<(EntryId, u32)>)> = BTreeMap::new();
        {
            let mut state = self.desk.state.lock();
            for id in ids {
                let Some(attempts) = state.held.remove(id) else { continue };
                let key = state.bodies[id].key.clone();
                if !state.aside.remove(id) {
                    state.desk.finish(&key);
                }
                match state.leases.get(&id.shard()).cloned() {
                    Some(lease) => {
                        state.desk.put(*id, &key, attempts);
                        back.entry(id.shard()).or_insert_with(|| (lease, vec![])).1.push((*id, attempts));
                    }
                    None => drop(state.bodies.remove(id)), // its new reader has it
                }
            }
        }
        self.desk.arrived.notify_waiters();
        // So that the count outlives this process; when it cannot be told, the count begins lower.
        for (of, (lease, entries)) in back {
            self.desk.give_back(of, &lease, false, &entries).await;
        }
        Ok(())
    }

    async fn set_aside(&mut self, ids: &[EntryId]) -> Result<(), BusError> {
        {
            let mut state = self.desk.state.lock();
            let State { desk, bodies, held, aside, .. } = &mut *state;
            for id in ids {
                if held.contains_key(id) && aside.insert(*id) {
                    desk.finish(&bodies[id].key);
                }
            }
        }
        self.desk.arrived.notify_waiters();
        Ok(())
    }
}

impl Shared {
    /// Tells how often these were delivered and, at the end, that the shard is free. True when Redis has taken it.
    pub(super) async fn give_back(&self, of: u16, lease: &Lease, for_good: bool, entries: &[(EntryId, u32)]) -> bool {
        let keys = [shard::lease(self.stream, self.group, of), shard::stream(self.stream, of)];
        let mut args: Vec<Vec<u8>> = vec![
            lease.value.as_bytes().to_vec(),
            self.group.as_bytes().to_vec(),
            self.owner.clone().into_bytes(),
            if for_good { b"1".to_vec() } else { b"0".to_vec() },
        ];
        for (id, attempts) in entries {
            args.extend([id.text().into_bytes(), attempts.to_string().into_bytes()]);
        }
        self.link.run::<i64>("give_back", &scripts::GIVE_BACK, &keys, &args).await.is_ok()
    }
}
