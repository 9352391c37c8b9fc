//! The cache that processes share, on the Redis of the bus or on one of its own.
//!
//! A scope is one hash: `v:part` is a value, `l:part` the lease of who fills it, `f` the floor. So a scope is voided, forgotten or evicted
//! whole, and never a floor without the values below it. What is looked at and changed together is one script. Versions and places are
//! numbers of Lua: exact below 2^53.

use super::{
    Cache, CacheError, FLOOR, Heard, Key, LEASE, Lease, Look, MOST_PARTS, Mark, NewValue, Put, SCHEMA, STALE_WINDOW, Scope, Settings,
    Stamp, Value, Void, Voids, eagerness,
};
use crate::bus::{
    self, ConnectError, Listener,
    redis::{
        link::{CallFailed, Link, Use},
        listener::Topics,
        outbox::counter,
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use redis::Script;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

const TOPIC: &str = "cache";
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// KEYS: scope. ARGV: part, a new lease, its ms, ms a stale value may be given, timeline and place asked for (or empty), eagerness.
/// Answers 0 fresh, 1 the lease is the caller's, 2 somebody else's; the value; the time in ms.
const LOOK: &str = r#"#!lua
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'v:' .. ARGV[1], 'l:' .. ARGV[1])
local value, lease, fresh = found[1], found[2], false
if value then
  local line, at, born, ttl, took, there = string.match(value, '^%d+:(%d+):(%d+):(%d+):(%d+):(%d+):(%d):')
  local left = born + ttl - now
  if ARGV[5] ~= '' and (line ~= ARGV[5] or tonumber(at) < tonumber(ARGV[6])) then
    value = false
  elseif left > 0 then
    if left > took * ARGV[7] then return { 0, value, now } end
    fresh = true
  elseif there == '0' or left + ARGV[4] <= 0 then
    value = false
  end
end
if lease and tonumber(string.match(lease, ':(%d+)$')) > now then return { fresh and 0 or 2, value, now } end
redis.call('HSET', KEYS[1], 'l:' .. ARGV[1], ARGV[2] .. ':' .. string.format('%.0f', now + ARGV[3]))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return { 1, value, now }
"#;

/// KEYS: scope. ARGV: part, lease, version, timeline, place, ttl in ms, ms it took, 1 or 0 for there is none, body, ms it may be given after
/// its end, most parts. Answers 0 kept, 1 lease void, 2 too old, 3 full.
const PUT: &str = r#"#!lua
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'l:' .. ARGV[1], 'f')
local holder, ends = string.match(found[1] or '', '^(%d+):(%d+)$')
if holder ~= ARGV[2] or tonumber(ends) <= now then return 1 end -- guard: lease
redis.call('HDEL', KEYS[1], 'l:' .. ARGV[1])
if found[2] and tonumber(ARGV[3]) < tonumber(found[2]) then return 2 end -- guard: floor
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[11]) then return 3 end
local head = { ARGV[3], ARGV[4], ARGV[5], string.format('%.0f', now - ARGV[7]), ARGV[6] + ARGV[7], ARGV[7], ARGV[8], ARGV[9] }
redis.call('HSET', KEYS[1], 'v:' .. ARGV[1], table.concat(head, ':'))
local life = ARGV[6] + ARGV[10]
if redis.call('PTTL', KEYS[1]) < life then redis.call('PEXPIRE', KEYS[1], life) end
return 0
"#;

/// KEYS: scope. ARGV: part, lease.
const RELEASE: &str = r#"#!lua flags=allow-oom
local lease = redis.call('HGET', KEYS[1], 'l:' .. ARGV[1])
if lease and string.match(lease, '^%d+') == ARGV[2] then redis.call('HDEL', KEYS[1], 'l:' .. ARGV[1]) end
return 0
"#;

/// KEYS: counter of the topic, then of each void its scope and its tenant's generation. ARGV: topic, ms a floor is kept, then of each void its
/// floor and what its scope is called. Answers how many changed something.
const VOID: &str = r#"#!lua flags=allow-oom
local changed = 0
for i = 2, #KEYS, 2 do
  local asked, name = tonumber(ARGV[i + 1]), ARGV[i + 2]
  local before = tonumber(redis.call('HGET', KEYS[i], 'f') or 0)
  if asked == 0 or asked > before then
    changed = changed + 1
    redis.call('DEL', KEYS[i])
    local floor = math.max(asked, before)
    if floor > 0 then
      redis.call('HSET', KEYS[i], 'f', string.format('%.0f', floor))
      redis.call('PEXPIRE', KEYS[i], ARGV[2])
    end
    local generation = redis.call('INCR', KEYS[i + 1])
    local n = redis.call('INCR', KEYS[1])
    redis.call('PUBLISH', ARGV[1], string.format('%.0f:%.0f ', n, generation) .. name)
  end
end
return changed
"#;

pub struct Redis {
    link: Arc<Link>,
    topics: Topics,
    /// For one call.
    limit: Duration,
    look: Script,
    put: Script,
    release: Script,
    void: Script,
    owned: bool,
}

impl Redis {
    /// On the bus's connections when it is the same Redis, else on own ones to `settings.url`.
    ///
    /// # Errors
    /// As for the bus: what was tried and what to do.
    pub async fn connect(settings: &Settings, bus: Option<&bus::Redis>) -> Result<Self, ConnectError> {
        let shared = bus.map(bus::Redis::link).filter(|link| settings.url.is_none() || settings.url == link.settings.url);
        let owned = shared.is_none();
        let link = match shared {
            Some(link) => link.clone(),
            None => {
                let own = bus::Settings {
                    kind: bus::Kind::Redis,
                    url: settings.url.clone(),
                    ca: settings.ca.clone(),
                    write_connections: settings.connections,
                    // What is slower than that counts as away; making a connection may take longer.
                    call_ms: settings.call_ms.max(1_000),
                    ..bus::Settings::default()
                };
                let link = Arc::new(Link::open(&own, "cache.url").await?);
                tokio::spawn(count_connections(link.clone()));
                link
            }
        };
        Ok(Self::on(link, Duration::from_millis(settings.call_ms), owned, PUT))
    }

    fn on(link: Arc<Link>, limit: Duration, owned: bool, put: &str) -> Self {
        let [look, put, release, void] = [LOOK, put, RELEASE, VOID].map(Script::new);
        Self { link, topics: Topics::default(), limit, look, put, release, void, owned }
    }

    /// The same cache, put into with fewer guards.
    #[cfg(test)]
    pub(super) fn unguarded(&self, guards: super::interleavings::Guards) -> Self {
        let mut put = PUT.to_owned();
        for (name, on) in [("lease", guards.lease), ("floor", guards.floor)] {
            let line = put.lines().find(|line| line.ends_with(&format!("-- guard: {name}"))).expect("the guard is one line").to_owned();
            if !on {
                put = put.replace(&line, "");
            }
        }
        Self::on(self.link.clone(), self.limit, false, &put)
    }

    async fn run<T: redis::FromRedisValue>(
        &self,
        name: &'static str,
        script: &Script,
        keys: &[String],
        args: &[Vec<u8>],
    ) -> Result<T, CacheError> {
        let failed = |error: CallFailed| CacheError(error.to_string());
        // Dropped in the middle of a call, a connection is not used again.
        match timeout(self.limit, self.link.run(name, script, keys, args)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed(CallFailed::Late(self.limit))),
        }
    }
}

/// Of its own link; the bus counts those of its own.
async fn count_connections(link: Arc<Link>) {
    loop {
        link.count_connections([("cache", Use::Calls)]);
        tokio::select! { () = tokio::time::sleep(COUNT_EVERY) => {}, () = link.stop.cancelled() => return }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.owned {
            self.link.stop.cancel();
        }
    }
}

fn key_of(scope: &Scope) -> String {
    format!("cache:{SCHEMA}:of:{}", scope.text())
}

fn generation_of(tenant: &str) -> String {
    format!("cache:{SCHEMA}:generation:{tenant}")
}

fn ms(time: Duration) -> Vec<u8> {
    time.as_millis().to_string().into_bytes()
}

fn number(n: u64) -> Vec<u8> {
    n.to_string().into_bytes()
}

/// As PUT writes it; `None`: nobody of ours has.
fn value_of(stored: &[u8], now: u64) -> Option<Value> {
    let mut parts = stored.splitn(8, |b| *b == b':');
    let mut next = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let (ver, timeline, at, born, ttl, _took, there) = (next()?, next()?, next()?, next()?, next()?, next()?, next()?);
    let body = Bytes::copy_from_slice(parts.next()?);
    Some(Value {
        stamp: Stamp { ver, mark: Mark { timeline: u32::try_from(timeline).ok()?, at } },
        age: Duration::from_millis(now.saturating_sub(born)),
        left: Duration::from_millis((born + ttl).saturating_sub(now)),
        over: Duration::from_millis(now.saturating_sub(born + ttl)),
        body: (there == 1).then_some(body),
    })
}

#[async_trait]
impl Cache for Redis {
    async fn look(&self, key: &Key, at_least: Option<Mark>) -> Result<Look, CacheError> {
        let lease = Lease::fresh();
        let (line, at) = at_least.map_or((vec![], vec![]), |asked| (number(asked.timeline.into()), number(asked.at)));
        let part = key.part.clone().into_bytes();
        let eager = format!("{:.6}", eagerness()).into_bytes();
        let args = [part, number(lease.0), ms(LEASE), ms(STALE_WINDOW), line, at, eager];
        let (state, stored, now): (u8, Option<Vec<u8>>, u64) = self.run("cache_look", &self.look, &[key_of(&key.scope)], &args).await?;
        let value = stored.and_then(|stored| value_of(&stored, now));
        match (state, value) {
            (0, Some(value)) => Ok(Look::Fresh(value)),
            (0, None) => Err(CacheError("it holds something that is not ours".into())),
            (1, stale) => Ok(Look::Fill { lease, stale }),
            (_, stale) => Ok(Look::Wait { stale }),
        }
    }

    async fn put(&self, key: &Key, lease: Lease, new: NewValue) -> Result<Put, CacheError> {
        let there = if new.body.is_some() { b"1" } else { b"0" };
        let args = [
            key.part.clone().into_bytes(),
            number(lease.0),
            number(new.stamp.ver),
            number(new.stamp.mark.timeline.into()),
            number(new.stamp.mark.at),
            ms(new.ttl),
            ms(new.took),
            there.to_vec(),
            new.body.map(Vec::from).unwrap_or_default(),
            ms(STALE_WINDOW),
            number(MOST_PARTS as u64),
        ];
        Ok(match self.run::<u8>("cache_put", &self.put, &[key_of(&key.scope)], &args).await? {
            0 => Put::Kept,
            1 => Put::LeaseVoid,
            2 => Put::TooOld,
            _ => Put::Full,
        })
    }

    async fn release(&self, key: &Key, lease: Lease) -> Result<(), CacheError> {
        let args = [key.part.clone().into_bytes(), number(lease.0)];
        self.run::<u8>("cache_release", &self.release, &[key_of(&key.scope)], &args).await.map(|_| ())
    }

    async fn void(&self, voids: &[Void]) -> Result<(), CacheError> {
        let (mut keys, mut args) = (vec![counter(TOPIC)], vec![TOPIC.as_bytes().to_vec(), ms(FLOOR)]);
        for Void { scope, floor } in voids {
            keys.extend([key_of(scope), generation_of(&scope.tenant)]);
            args.extend([number(*floor), scope.text().into_bytes()]);
        }
        self.run::<u64>("cache_void", &self.void, &keys, &args).await.map(|_| ())
    }

    async fn generation(&self, tenant: &str) -> Result<u64, CacheError> {
        let key = generation_of(tenant);
        let ask = self.link.call("cache_generation", async |c| redis::cmd("GET").arg(key).query_async::<Option<u64>>(c).await);
        match timeout(self.limit, ask).await {
            Ok(answer) => answer.map(Option::unwrap_or_default).map_err(|e| CacheError(e.to_string())),
            Err(_) => Err(CacheError(CallFailed::Late(self.limit).to_string())),
        }
    }

    async fn listen(&self) -> Option<Box<dyn Voids>> {
        loop {
            match self.topics.listen(&self.link, TOPIC).await {
                Ok(listener) => return Some(Box::new(Ears(listener))),
                Err(bus::BusError::Closed) => return None,
                Err(_) => {} // it has waited for the subscription, and waits again
            }
        }
    }
}

struct Ears(Box<dyn Listener>);

#[async_trait]
impl Voids for Ears {
    async fn next(&mut self) -> Option<Heard> {
        Some(match self.0.next().await? {
            bus::Heard::Missed(_) => Heard::Missed,
            bus::Heard::Signal(said) => read_void(&said).unwrap_or(Heard::Missed),
        })
    }
}

/// `generation scope`, as VOID says it.
fn read_void(said: &[u8]) -> Option<Heard> {
    let (generation, scope) = std::str::from_utf8(said).ok()?.split_once(' ')?;
    Some(Heard::Voided { scope: Scope::of_text(scope)?, generation: generation.parse().ok()? })
}
