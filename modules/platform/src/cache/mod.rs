//! What was read before, kept so that it need not be read again: the shared level, and [`Front`], which readers ask.
//!
//! Invariants:
//! - a value that was read before a change is never kept after that change was announced: whoever fills holds a lease, which the
//!   announcement voids, and says how new its read was, which must not be below the announced floor. The lease stops slow readers, the floor
//!   stops readers of a replica that lags (`interleavings.rs` tries every order, also without either);
//! - of a key that nobody has, one reader fills; the others wait for a moment, take what is stale, or read for themselves;
//! - every call ends in time, and the cache may be lost whole at any moment: readers then ask the database, as many at once as it bears.
//!
//! What was worked out and follows from its key alone is kept here as well (`front/recall.rs`).
//!
//! Deliberately absent: what is cached, and where it is read. Values are bytes; versions are numbers that rise with the database.

mod first_level;
mod front;
#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod interleavings;
mod memory;
mod metrics;
mod redis;
#[cfg(test)]
mod redis_tests;
mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test, run where each cache is made
mod suite;

pub use self::redis::Redis;
pub use front::{Answer, From, Front, Loaded, Place, Recalled};
pub use memory::Memory;
pub use metrics::describe as describe_metrics;
pub use settings::{Kind, Settings};

use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, str::FromStr, time::Duration};

/// Of the values' form: processes of another release do not read ours.
const SCHEMA: u32 = 1;
/// How long a value is fresh, give or take a tenth, so that what was filled together does not end together.
pub const TTL: Duration = Duration::from_secs(300);
/// How long it is known that there is no such thing.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// Who may fill a key has this long.
pub const LEASE: Duration = Duration::from_secs(3);
/// Longer than any value lives, and any reader of before could take.
const FLOOR: Duration = Duration::from_secs(330);
/// How long after its end a value may still be given while it is being filled anew.
const STALE_WINDOW: Duration = Duration::from_secs(30);
/// Parts of a scope that are kept; a scope with more is read from the database.
const MOST_PARTS: usize = 512;

/// The shared level. Callers may rely on the invariants above; `suite.rs` tests them on every implementation.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// What there is under a key. Where that is nothing fresh, or older than `at_least`, says whether the caller is the one to fill it.
    async fn look(&self, key: &Key, at_least: Option<Mark>) -> Result<Look, CacheError>;
    /// Keeps what was read under this lease, and gives the lease back.
    async fn put(&self, key: &Key, lease: Lease, value: NewValue) -> Result<Put, CacheError>;
    /// There is nothing to put after all: somebody else may try.
    async fn release(&self, key: &Key, lease: Lease) -> Result<(), CacheError>;
    /// After a change: drops what is kept and voids leases. All of the voids or, when it fails, any of them.
    async fn void(&self, voids: &[Void]) -> Result<(), CacheError>;
    /// Rises whenever something of the tenant is voided.
    async fn generation(&self, tenant: &str) -> Result<u64, CacheError>;
    /// Hears of every void of every process; `None` where nobody else shares this cache.
    async fn listen(&self) -> Option<Box<dyn Voids>>;
    /// What is fresh, where that can be said without waiting.
    fn peek(&self, _key: &Key, _at_least: Option<Mark>) -> Option<Value> {
        None
    }
    /// The same as [`Self::void`] without waiting; false where that cannot be.
    fn void_at_once(&self, _voids: &[Void]) -> bool {
        false
    }
}

#[async_trait]
pub trait Voids: Send {
    /// Cancel-safe. `None`: there will be no more.
    async fn next(&mut self) -> Option<Heard>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Voided {
        scope: Scope,
        /// The tenant's, by this void.
        generation: u64,
    },
    /// Some were lost, nobody knows which.
    Missed,
}

/// What is voided together: one conversation, one list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    pub tenant: String,
    pub name: String,
}

impl Scope {
    pub fn new(tenant: impl Into<String>, name: impl Into<String>) -> Self {
        Self { tenant: tenant.into(), name: name.into() }
    }

    pub fn part(self, part: impl Into<String>) -> Key {
        Key { scope: self, part: part.into() }
    }

    /// `length:tenant:name`, so that no tenant can be named like another's scope.
    fn text(&self) -> String {
        format!("{}:{}:{}", self.tenant.len(), self.tenant, self.name)
    }

    fn of_text(text: &str) -> Option<Self> {
        let (length, rest) = text.split_once(':')?;
        let (tenant, name) = rest.split_at_checked(length.parse().ok()?)?;
        Some(Self::new(tenant, name.strip_prefix(':')?))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub scope: Scope,
    /// Which of the scope's answers.
    pub part: String,
}

/// A place in the database's log: whoever has read at `at` or later on the same timeline has seen everything committed up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Rises when a standby takes over; places of different ones cannot be compared.
    pub timeline: u32,
    /// Below 2^53.
    pub at: u64,
}

impl Mark {
    pub fn covers(self, asked: Mark) -> bool {
        self.timeline == asked.timeline && self.at >= asked.at
    }
}

/// `timeline:lsn`, the place as PostgreSQL writes it: `1:0/16B3748`.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:X}/{:X}", self.timeline, self.at >> 32, self.at & 0xffff_ffff)
    }
}

impl FromStr for Mark {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (timeline, at) = text.split_once(':')?;
            let (high, low) = at.split_once('/')?;
            let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
            Some(Self { timeline: timeline.parse().ok()?, at: (u64::from(high) << 32) | u64::from(low) })
        };
        read().filter(|mark| mark.at < 1 << 53).ok_or_else(|| "timeline:lsn, such as 1:0/16B3748".into())
    }
}

/// How new a read was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Every change below this version was seen; below 2^53.
    pub ver: u64,
    pub mark: Mark,
}

/// What somebody kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub stamp: Stamp,
    /// Since it was read.
    pub age: Duration,
    /// Until it is not fresh any more; zero when it is stale.
    pub left: Duration,
    /// Since it was fresh; zero while it is.
    pub over: Duration,
    /// `None`: there is no such thing.
    pub body: Option<Bytes>,
}

impl Value {
    /// The same, so much later.
    fn after(&self, later: Duration) -> Self {
        let over = self.over + later.saturating_sub(self.left);
        Self { age: self.age + later, left: self.left.saturating_sub(later), over, ..self.clone() }
    }
}

/// What a filler has read.
#[derive(Clone, Debug)]
pub struct NewValue {
    pub stamp: Stamp,
    pub body: Option<Bytes>,
    /// How long the reading took.
    pub took: Duration,
    pub ttl: Duration,
}

/// The right to fill a key once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(u64);

impl Lease {
    fn fresh() -> Self {
        Self(rand::random())
    }
}

#[derive(Clone, Debug)]
pub enum Look {
    Fresh(Value),
    /// The caller is to fill it. `stale`: what may be given meanwhile, should filling fail.
    Fill {
        lease: Lease,
        stale: Option<Value>,
    },
    /// Somebody else is filling it.
    Wait {
        stale: Option<Value>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Kept,
    /// The lease has ended, or was voided by a change.
    LeaseVoid,
    /// It was read before a change that has been announced.
    TooOld,
    /// The scope has too many parts.
    Full,
}

/// Nothing that was read before `floor` may be given any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Void {
    pub scope: Scope,
    /// 0: drops values and leases and leaves the floor where it is. One that is not above the scope's floor changes nothing.
    pub floor: u64,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("the cache does not answer: {0}")]
pub struct CacheError(pub String);

/// [`TTL`], a tenth more or less.
fn jittered() -> Duration {
    TTL.mul_f64(rand::random_range(0.9..=1.1))
}

/// XFetch: -ln of a number in (0, 1]; a value is filled early when less is left of it than this many times what filling takes, so that one
/// reader in many does it before it ends for all.
fn eagerness() -> f64 {
    -f64::ln(1.0 - rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_is_written_and_rubbish_is_refused() {
        let mark = Mark { timeline: 3, at: 0x16_0000_B374 };
        assert_eq!(mark.to_string(), "3:16/B374");
        assert_eq!("3:16/B374".parse(), Ok(mark));
        for rubbish in ["", "3", "3:16", "x:0/1", "1:0/G", "1:FFFFFFFF/0", "-1:0/0"] {
            assert!(rubbish.parse::<Mark>().is_err_and(|e| e.contains("timeline:lsn")), "{rubbish}");
        }
        assert!(mark.covers(mark) && !mark.covers(Mark { timeline: 2, at: 1 }), "a mark of another timeline says nothing");
    }

    #[test]
    fn a_scope_is_read_back_whatever_its_tenant_is_called() {
        for (tenant, name) in [("default", "conv_1"), ("a:b", "c"), ("a", "b:c"), ("", ""), ("ü:3:x", "list")] {
            let scope = Scope::new(tenant, name);
            assert_eq!(Scope::of_text(&scope.text()), Some(scope));
        }
        assert_eq!(Scope::of_text("9:a:b"), None);
        assert_ne!(Scope::new("a:b", "c").text(), Scope::new("a", "b:c").text());
    }
}
