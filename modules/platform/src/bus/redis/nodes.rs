//! Who is there: what processes write down about themselves, each under a lease that it renews.
//!
//! Invariants:
//! - a lease is counted by Redis's own clock, so processes need not agree on the time;
//! - an entry is taken out only by who wrote it, or by [`FORGOTTEN`] having passed since its lease ended;
//! - a registry that may have forgotten says so: its epoch differs from the one before.

use super::link::{CallFailed, IDENTITY, Link};
use redis::Script;
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

/// How long an entry whose lease has ended is still told.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The registry of one cluster. `Redis::nodes` opens it.
#[derive(Clone)]
pub struct Nodes {
    pub(super) link: Arc<Link>,
    pub(super) cluster: String,
}

/// An entry as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    pub name: String,
    pub said: String,
    pub lease: Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    Left(Duration),
    /// It ended so long ago.
    Ended(Duration),
}

/// All entries at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Another one after Redis has lost what it held.
    pub epoch: String,
    pub nodes: Vec<Noted>,
}

#[derive(Debug, thiserror::Error)]
#[error("the registry does not answer: {0}")]
pub struct RegistryAway(pub String);

impl From<CallFailed> for RegistryAway {
    fn from(failed: CallFailed) -> Self {
        Self(failed.to_string())
    }
}

impl Nodes {
    /// Writes an entry down, or renews it.
    ///
    /// # Errors
    /// When Redis does not answer in time.
    pub async fn write(&self, name: &str, said: &str, lease: Duration) -> Result<(), RegistryAway> {
        let lease = lease.as_millis().to_string();
        Ok(self.link.run::<()>("node_write", &WRITE, &self.keys(), &[name.into(), said.into(), lease.into_bytes()]).await?)
    }

    /// Takes out an entry, unless somebody else has written it anew.
    ///
    /// # Errors
    /// When Redis does not answer in time.
    pub async fn take_out(&self, name: &str, said: &str) -> Result<(), RegistryAway> {
        Ok(self.link.run::<()>("node_take_out", &TAKE_OUT, &self.keys(), &[name.into(), said.into()]).await?)
    }

    /// Everything that is written down, by name.
    ///
    /// # Errors
    /// When Redis does not answer in time.
    pub async fn list(&self) -> Result<Listing, RegistryAway> {
        let [entries, leases] = self.keys();
        let keys = [entries, leases, IDENTITY.into()];
        let forgotten = FORGOTTEN.as_millis().to_string().into_bytes();
        let (epoch, rows): (Option<String>, Vec<(String, String, i64)>) = self.link.run("nodes", &LIST, &keys, &[forgotten]).await?;
        let lease = |left: i64| {
            let ms = Duration::from_millis(left.unsigned_abs());
            if left > 0 { Lease::Left(ms) } else { Lease::Ended(ms) }
        };
        let mut nodes: Vec<_> = rows.into_iter().map(|(name, said, left)| Noted { name, said, lease: lease(left) }).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { epoch: epoch.unwrap_or_default(), nodes })
    }

    fn keys(&self) -> [String; 2] {
        [format!("nodes:{{{}}}", self.cluster), format!("nodes:{{{}}}:leases", self.cluster)]
    }
}

const NOW: &str = "local now = redis.call('TIME')\nnow = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)\n";

fn script(code: &str) -> Script {
    Script::new(&format!("#!lua flags=allow-oom\n{NOW}{code}"))
}

/// KEYS: entries, ends of their leases. ARGV: name, what it says, lease in ms.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[3])), ARGV[1])
"#,
    )
});

/// KEYS: entries, ends of their leases. ARGV: name, what whoever takes it out wrote.
static TAKE_OUT: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
end
"#,
    )
});

/// KEYS: entries, ends of their leases, the bus's identity. ARGV: ms after which an ended lease is forgotten.
/// Answers the identity, and of each entry its name, what it says, and how many ms of its lease are left.
static LIST: LazyLock<Script> = LazyLock::new(|| {
    script(
        r#"
for _, name in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', string.format('%.0f', now - tonumber(ARGV[1])), 'BYSCORE')) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
local ends, answer = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'), {}
for i = 1, #ends, 2 do
  local said = redis.call('HGET', KEYS[1], ends[i])
  if said then answer[#answer + 1] = { ends[i], said, math.floor(tonumber(ends[i + 1]) - now) } end
end
return { redis.call('GET', KEYS[3]), answer }
"#,
    )
});
