//! What this process was given a moment ago, so that it need not ask the shared cache for it.
//!
//! Invariants:
//! - nothing stays longer than it was allowed to, nor than it is fresh;
//! - what was looked up before something was dropped does not come in after it: a ticket taken first tells;
//! - of a tenant whose voids were lost nothing stays.

use super::{Key, Mark, Scope, Value, metrics as names};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};
use tokio::time::Instant;

const SHARDS: usize = 32;
const ENTRY_BYTES: usize = 300;

pub(super) struct FirstLevel {
    shards: Vec<Mutex<Shard>>,
    keep: Duration,
    most_bytes: usize,
    /// Of each tenant that has been here: its generation as voids said it.
    heard: Mutex<HashMap<String, u64>>,
}

#[derive(Default)]
struct Shard {
    scopes: HashMap<Scope, HashMap<String, Held>>,
    bytes: usize,
    drops: u64,
}

struct Held {
    value: Value,
    since: Instant,
    until: Instant,
}

/// Of a look-up that may come in.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

impl FirstLevel {
    pub(super) fn new(bytes: usize, keep: Duration) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, keep, most_bytes: bytes / SHARDS, heard: Mutex::default() }
    }

    fn shard(&self, scope: &Scope) -> &Mutex<Shard> {
        let mut hasher = DefaultHasher::new();
        scope.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }

    pub(super) fn ticket(&self, scope: &Scope) -> Ticket {
        Ticket(self.shard(scope).lock().drops)
    }

    pub(super) fn get(&self, key: &Key, at_least: Option<Mark>) -> Option<Value> {
        let now = Instant::now();
        let shard = self.shard(&key.scope).lock();
        let held = shard.scopes.get(&key.scope)?.get(&key.part)?;
        if now >= held.until || at_least.is_some_and(|asked| !held.value.stamp.mark.covers(asked)) {
            return None;
        }
        Some(held.value.after(now.duration_since(held.since)))
    }

    pub(super) fn put(&self, key: &Key, ticket: Ticket, value: &Value) {
        let now = Instant::now();
        let until = now + self.keep.min(value.left);
        if until <= now {
            return;
        }
        let size = |key: &Key, value: &Value| value.body.as_ref().map_or(0, bytes::Bytes::len) + key.part.len() + ENTRY_BYTES;
        let mut shard = self.shard(&key.scope).lock();
        if shard.drops != ticket.0 {
            return;
        }
        if shard.bytes > self.most_bytes {
            shard.clear();
            shard.drops -= 1; // nothing was voided
            metrics::counter!(names::DROPPED, "why" => "room").increment(1);
        }
        let known = shard.scopes.contains_key(&key.scope);
        if !known {
            shard.scopes.insert(key.scope.clone(), HashMap::new());
        }
        let parts = shard.scopes.get_mut(&key.scope).expect("it is there by now");
        let before = parts.insert(key.part.clone(), Held { value: value.clone(), since: now, until });
        shard.bytes += size(key, value);
        shard.bytes -= before.map_or(0, |before| size(key, &before.value));
        drop(shard);
        if !known {
            self.meet(&key.scope.tenant);
        }
    }

    fn meet(&self, tenant: &str) {
        let mut heard = self.heard.lock();
        if !heard.contains_key(tenant) {
            heard.insert(tenant.to_owned(), 0); // unknown: the next poll drops what came before it
        }
    }

    pub(super) fn void(&self, scope: &Scope) {
        let mut shard = self.shard(scope).lock();
        shard.drops += 1;
        if let Some(parts) = shard.scopes.remove(scope) {
            let gone: usize =
                parts.iter().map(|(part, held)| held.value.body.as_ref().map_or(0, bytes::Bytes::len) + part.len() + ENTRY_BYTES).sum();
            shard.bytes -= gone;
        }
    }

    /// A void of some process, with what it says of its tenant.
    pub(super) fn hear(&self, scope: &Scope, generation: u64) {
        self.void(scope);
        if let Some(heard) = self.heard.lock().get_mut(&scope.tenant) {
            // One that is lower was overtaken on its way, or the cache began anew; a poll tells them apart.
            *heard = (*heard).max(generation);
        }
    }

    pub(super) fn drop_all(&self, why: &'static str) {
        for shard in &self.shards {
            shard.lock().clear();
        }
        metrics::counter!(names::DROPPED, "why" => why).increment(1);
    }

    /// Tenants that have been here, and the generation of each as voids said it.
    pub(super) fn heard(&self) -> Vec<(String, u64)> {
        self.heard.lock().iter().map(|(tenant, generation)| (tenant.clone(), *generation)).collect()
    }

    /// Whether voids up to here have been heard; there may be more by now.
    pub(super) fn has_heard(&self, tenant: &str, generation: u64) -> bool {
        self.heard.lock().get(tenant).is_none_or(|heard| *heard >= generation)
    }

    /// Some voids were lost: drops what there is of the tenant.
    pub(super) fn reset(&self, tenant: &str, generation: u64) {
        if let Some(heard) = self.heard.lock().get_mut(tenant) {
            *heard = generation;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.drops += 1;
            shard.scopes.retain(|scope, _| scope.tenant != tenant);
            let held = |(part, held): (&String, &Held)| held.value.body.as_ref().map_or(0, bytes::Bytes::len) + part.len() + ENTRY_BYTES;
            shard.bytes = shard.scopes.values().flatten().map(held).sum();
        }
        metrics::counter!(names::DROPPED, "why" => "generation").increment(1);
    }
}

impl Shard {
    fn clear(&mut self) {
        self.scopes.clear();
        self.bytes = 0;
        self.drops += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Stamp;

    fn value(left: Duration) -> Value {
        Value { stamp: Stamp::default(), age: Duration::ZERO, left, over: Duration::ZERO, body: Some("x".into()) }
    }

    const LONG: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn nothing_stays_longer_than_allowed_nor_than_it_is_fresh() {
        let level = FirstLevel::new(1 << 20, Duration::from_secs(5));
        let [long, short] = ["long", "short"].map(|part| Scope::new("t", "s").part(part));
        level.put(&long, level.ticket(&long.scope), &value(LONG));
        level.put(&short, level.ticket(&short.scope), &value(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(level.get(&short, None).is_none());
        assert_eq!(level.get(&long, None).unwrap().age, Duration::from_millis(1_001));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(level.get(&long, None).is_none());
    }

    #[test]
    fn what_was_looked_up_before_a_void_does_not_come_in_after_it() {
        let level = FirstLevel::new(1 << 20, Duration::from_secs(5));
        let key = Scope::new("t", "s").part("p");
        let before = level.ticket(&key.scope);
        level.void(&key.scope);
        level.put(&key, before, &value(LONG));
        assert!(level.get(&key, None).is_none());
        level.put(&key, level.ticket(&key.scope), &value(LONG));
        assert!(level.get(&key, None).is_some());
        level.drop_all("missed");
        assert!(level.get(&key, None).is_none());
    }

    #[test]
    fn a_tenant_whose_voids_were_lost_is_dropped_and_its_neighbor_is_not() {
        let level = FirstLevel::new(1 << 20, Duration::from_secs(5));
        let [mine, other] = ["mine", "other"].map(|tenant| Scope::new(tenant, "s").part("p"));
        for key in [&mine, &other] {
            level.put(key, level.ticket(&key.scope), &value(LONG));
            level.reset(&key.scope.tenant, 7);
            level.put(key, level.ticket(&key.scope), &value(LONG));
        }
        level.hear(&Scope::new("mine", "elsewhere"), 8);
        assert!(level.has_heard("mine", 8) && !level.has_heard("mine", 9) && level.has_heard("other", 7));
        level.reset("mine", 9);
        assert!(level.get(&mine, None).is_none() && level.get(&other, None).is_some());
    }

    #[test]
    fn it_takes_no_more_room_than_it_has() {
        let level = FirstLevel::new(SHARDS * 10_000, Duration::from_secs(5));
        for n in 0..10_000 {
            let key = Scope::new("t", n.to_string()).part("p");
            level.put(&key, level.ticket(&key.scope), &value(LONG));
            assert!(level.get(&key, None).is_some());
        }
        let bytes: usize = level.shards.iter().map(|shard| shard.lock().bytes).sum();
        assert!(bytes <= SHARDS * (10_000 + 1_000), "{bytes}");
    }
}
