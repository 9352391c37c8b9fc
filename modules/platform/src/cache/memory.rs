//! The cache of one process.
//!
//! A shard keeps two halves: what was asked for lately, and what was before that. When the younger half is full it becomes the older one, and
//! what nobody asked for meanwhile is gone: bounded, and close to "least recently used". A scope goes whole, its floor and leases with it, so
//! a reader whose scope went keeps nothing.

use super::{
    Cache, CacheError, FLOOR, Key, LEASE, Lease, Look, MOST_PARTS, Mark, NewValue, Put, STALE_WINDOW, Scope, Stamp, Value, Void, Voids,
    eagerness,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::{
        HashMap,
        hash_map::{DefaultHasher, Entry},
    },
    hash::{Hash, Hasher},
    time::Duration,
};
use tokio::time::Instant;

const SHARDS: usize = 64;
/// What a scope and a part take beside their texts and bodies, about.
const SCOPE_BYTES: usize = 200;
const PART_BYTES: usize = 150;

pub struct Memory {
    shards: Vec<Mutex<Shard>>,
    /// Of each half of each shard.
    most_bytes: usize,
    generations: Mutex<HashMap<String, u64>>,
    #[cfg(test)]
    pub(super) guards: super::interleavings::Guards,
}

#[derive(Default)]
struct Shard {
    young: HashMap<Scope, Kept>,
    young_bytes: usize,
    old: HashMap<Scope, Kept>,
}

#[derive(Default)]
struct Kept {
    /// And until when.
    floor: Option<(u64, Instant)>,
    parts: HashMap<String, Part>,
    bytes: usize,
}

#[derive(Default)]
struct Part {
    value: Option<Stored>,
    /// And until when.
    lease: Option<(Lease, Instant)>,
}

struct Stored {
    stamp: Stamp,
    body: Option<Bytes>,
    born: Instant,
    until: Instant,
    took: Duration,
}

impl Stored {
    fn value(&self, now: Instant) -> Value {
        Value {
            stamp: self.stamp,
            age: now.duration_since(self.born),
            left: self.until.saturating_duration_since(now),
            over: now.saturating_duration_since(self.until),
            body: self.body.clone(),
        }
    }
}

impl Memory {
    /// Holds about so many bytes at most.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most_bytes: bytes / SHARDS / 2,
            generations: Mutex::default(),
            #[cfg(test)]
            guards: Default::default(),
        }
    }

    fn shard(&self, scope: &Scope) -> &Mutex<Shard> {
        let mut hasher = DefaultHasher::new();
        scope.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }
}

impl Shard {
    /// The scope, moved to the younger half.
    fn scope(&mut self, scope: &Scope, most_bytes: usize) -> &mut Kept {
        if !self.young.contains_key(scope) {
            if self.young_bytes > most_bytes {
                self.old = std::mem::take(&mut self.young);
                self.young_bytes = 0;
            }
            let kept = self.old.remove(scope).unwrap_or_else(|| Kept { bytes: SCOPE_BYTES, ..Kept::default() });
            self.young_bytes += kept.bytes;
            self.young.insert(scope.clone(), kept);
        }
        self.young.get_mut(scope).expect("it is there by now")
    }
}

#[async_trait]
impl Cache for Memory {
    async fn look(&self, key: &Key, at_least: Option<Mark>) -> Result<Look, CacheError> {
        let now = Instant::now();
        let mut shard = self.shard(&key.scope).lock();
        let kept = shard.scope(&key.scope, self.most_bytes);
        let is_full = kept.parts.len() >= MOST_PARTS;
        let part = match kept.parts.entry(key.part.clone()) {
            Entry::Occupied(part) => part.into_mut(),
            // One that could not be kept anyway takes no place.
            Entry::Vacant(_) if is_full => return Ok(Look::Fill { lease: Lease::fresh(), stale: None }),
            Entry::Vacant(place) => place.insert(Part::default()),
        };
        let mut stale = None;
        let mut is_fresh = false;
        if let Some(stored) = &part.value
            && at_least.is_none_or(|asked| stored.stamp.mark.covers(asked))
        {
            let value = stored.value(now);
            is_fresh = !value.left.is_zero();
            if is_fresh && value.left > stored.took.mul_f64(eagerness()) {
                return Ok(Look::Fresh(value));
            }
            if is_fresh || value.body.is_some() && now < stored.until + STALE_WINDOW {
                stale = Some(value);
            }
        }
        if part.lease.is_some_and(|(_, until)| now < until) {
            return Ok(match stale {
                Some(value) if is_fresh => Look::Fresh(value),
                stale => Look::Wait { stale },
            });
        }
        let lease = Lease::fresh();
        part.lease = Some((lease, now + LEASE));
        Ok(Look::Fill { lease, stale })
    }

    async fn put(&self, key: &Key, lease: Lease, new: NewValue) -> Result<Put, CacheError> {
        let now = Instant::now();
        let mut shard = self.shard(&key.scope).lock();
        let kept = shard.scope(&key.scope, self.most_bytes);
        let floor = kept.floor.filter(|(_, until)| now < *until).map_or(0, |(floor, _)| floor);
        let many = kept.parts.len();
        let mut entry = kept.parts.entry(key.part.clone());
        let held = match &mut entry {
            Entry::Occupied(part) => part.get_mut().lease.filter(|(_, until)| now < *until),
            Entry::Vacant(_) => None,
        };
        #[cfg(test)]
        let (floor, held) = (if self.guards.floor { floor } else { 0 }, if self.guards.lease { held } else { Some((lease, now)) });
        if held.is_none_or(|(holder, _)| holder != lease) {
            return Ok(if many >= MOST_PARTS { Put::Full } else { Put::LeaseVoid });
        }
        let part = entry.or_default();
        part.lease = None;
        if new.stamp.ver < floor {
            return Ok(Put::TooOld);
        }
        let before = part.value.as_ref().map_or(0, |old| old.body.as_ref().map_or(0, Bytes::len) + key.part.len() + PART_BYTES);
        let after = new.body.as_ref().map_or(0, Bytes::len) + key.part.len() + PART_BYTES;
        part.value = Some(Stored {
            stamp: new.stamp,
            body: new.body,
            born: now.checked_sub(new.took).unwrap_or(now),
            until: now + new.ttl,
            took: new.took,
        });
        kept.bytes = kept.bytes + after - before;
        shard.young_bytes = shard.young_bytes + after - before;
        Ok(Put::Kept)
    }

    async fn release(&self, key: &Key, lease: Lease) -> Result<(), CacheError> {
        let mut shard = self.shard(&key.scope).lock();
        let kept = shard.scope(&key.scope, self.most_bytes);
        if let Some(part) = kept.parts.get_mut(&key.part).filter(|part| part.lease.is_some_and(|(holder, _)| holder == lease)) {
            part.lease = None;
        }
        Ok(())
    }

    async fn void(&self, voids: &[Void]) -> Result<(), CacheError> {
        self.void_now(voids);
        Ok(())
    }

    async fn generation(&self, tenant: &str) -> Result<u64, CacheError> {
        Ok(self.generations.lock().get(tenant).copied().unwrap_or_default())
    }

    async fn listen(&self) -> Option<Box<dyn Voids>> {
        None
    }

    fn peek(&self, key: &Key, at_least: Option<Mark>) -> Option<Value> {
        let mut shard = self.shard(&key.scope).lock();
        if !shard.young.contains_key(&key.scope) && !shard.old.contains_key(&key.scope) {
            return None;
        }
        let kept = shard.scope(&key.scope, self.most_bytes);
        let stored = kept.parts.get(&key.part)?.value.as_ref()?;
        let value = stored.value(Instant::now());
        let is_fresh = value.left > stored.took.mul_f64(eagerness());
        (is_fresh && at_least.is_none_or(|asked| stored.stamp.mark.covers(asked))).then_some(value)
    }

    fn void_at_once(&self, voids: &[Void]) -> bool {
        self.void_now(voids);
        true
    }
}

impl Memory {
    fn void_now(&self, voids: &[Void]) {
        let now = Instant::now();
        for Void { scope, floor } in voids {
            let mut shard = self.shard(scope).lock();
            let kept = shard.scope(scope, self.most_bytes);
            let before = kept.floor.filter(|(_, until)| now < *until).map_or(0, |(floor, _)| floor);
            if *floor != 0 && *floor <= before {
                continue;
            }
            let bytes = kept.bytes;
            let floor = before.max(*floor);
            *kept = Kept { floor: (floor > 0).then_some((floor, now + FLOOR)), bytes: SCOPE_BYTES, ..Kept::default() };
            shard.young_bytes = shard.young_bytes - bytes + SCOPE_BYTES;
            drop(shard);
            *self.generations.lock().entry(scope.tenant.clone()).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn the_memory_cache_passes_the_suite() {
        super::super::suite::run(async || Arc::new(Memory::with_capacity(1 << 24)), async |by| tokio::time::advance(by).await).await
    }

    #[tokio::test]
    async fn what_is_not_asked_for_goes_when_room_is_needed_and_what_is_stays() {
        let cache = Memory::with_capacity(SHARDS * 2 * 50_000);
        let key = |n: usize| Scope::new("t", format!("conv_{n}")).part("row");
        let mut kept = 0;
        for n in 0..20_000 {
            let Look::Fill { lease, .. } = cache.look(&key(n), None).await.unwrap() else { panic!("{n} is new") };
            let value =
                NewValue { stamp: Stamp::default(), body: Some(vec![0; 1_000].into()), took: Duration::ZERO, ttl: super::super::TTL };
            assert_eq!(cache.put(&key(n), lease, value).await.unwrap(), Put::Kept);
            assert!(n == 0 || matches!(cache.look(&key(0), None).await.unwrap(), Look::Fresh(_)), "what everybody asks for stays");
        }
        for shard in &cache.shards {
            let shard = shard.lock();
            let bytes = |half: &HashMap<Scope, Kept>| half.values().map(|kept| kept.bytes).sum::<usize>();
            assert_eq!(bytes(&shard.young), shard.young_bytes, "the count is right");
            assert!(bytes(&shard.young) + bytes(&shard.old) <= 2 * (50_000 + 2_000));
            kept += shard.young.len() + shard.old.len();
        }
        assert!((2_000..6_000).contains(&kept), "{kept} of 20000 are kept");
    }
}
