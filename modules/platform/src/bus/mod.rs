//! How stages of one process, or of several, pass work on: streams that are read at least once, and signals that may be lost.
//!
//! Invariants:
//! - entries with the same key are delivered in the order they were published, to one consumer of a group at a time, but for what was set aside;
//! - an entry stays until its group has acknowledged it; a consumer that goes away gives its unacknowledged entries back;
//! - everything is bounded: a full stream refuses with [`BusError::Full`], a slow listener of signals misses some and is told how many.
//!
//! Deliberately absent: durability. Producers keep what is not committed, so the bus may lose everything without a word being lost; it
//! says so by raising its [`Bus::epoch`].

mod desk;
mod memory;
mod metrics;
pub(crate) mod redis;
mod settings;
#[allow(clippy::unwrap_used)] // a test, run where each bus is made
pub mod suite;

pub use self::redis::{ConnectError, Lease, Listing, Nodes, Noted, Redis, RegistryAway};
pub use memory::Memory;
pub use metrics::describe as describe_metrics;
pub(crate) use settings::check_ca;
pub use settings::{Kind, Settings, Url};

use async_trait::async_trait;
use bytes::Bytes;
use contracts::TraceCx;

/// Callers may rely on the invariants above; [`suite`] tests them on every implementation.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Appends all entries or none.
    async fn publish(&self, stream: &'static str, entries: Vec<NewEntry>) -> Result<(), BusError>;
    /// Joins a consumer group; the group starts at the oldest entry kept when it is first named.
    async fn consume(&self, stream: &'static str, group: &'static str) -> Result<Box<dyn Consumer>, BusError>;
    /// Tells whoever listens right now.
    async fn signal(&self, topic: &'static str, payload: Bytes) -> Result<(), BusError>;
    async fn listen(&self, topic: &'static str) -> Result<Box<dyn Listener>, BusError>;
    /// Rises when the bus may have lost what it held: a producer publishes again what is not confirmed.
    fn epoch(&self) -> u64 {
        0
    }
    /// What is wrong with it right now, for people.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// Waits until consumers that were dropped have given back what they held.
    async fn close(&self) {}
}

#[async_trait]
pub trait Consumer: Send {
    /// Waits for at least one entry, returns at most `max`. Cancel-safe. An empty answer means the bus has shut down.
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, BusError>;
    /// Done with these; ids of this consumer only. A bus that is away is told later, and until then an entry may come again.
    async fn ack(&mut self, ids: &[EntryId]) -> Result<(), BusError>;
    /// Not done: delivers them again, to this consumer or another, before anything newer of the same key.
    async fn nack(&mut self, ids: &[EntryId]) -> Result<(), BusError>;
    /// Not done yet, and what follows them under the same key need not wait. They stay this consumer's until it says more of them, and come again
    /// when it is lost.
    async fn set_aside(&mut self, ids: &[EntryId]) -> Result<(), BusError>;
}

#[async_trait]
pub trait Listener: Send {
    /// Cancel-safe. `None` when the bus has shut down.
    async fn next(&mut self) -> Option<Heard>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Signal(Bytes),
    /// This many were lost because the listener was slow.
    Missed(u64),
}

#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Entries with the same key keep their order.
    pub key: String,
    pub payload: Bytes,
    pub trace: TraceCx,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub id: EntryId,
    pub key: String,
    pub payload: Bytes,
    pub trace: TraceCx,
    /// 1 the first time; one more each time it was given back, or its consumer was lost with it.
    pub attempt: u32,
    /// How long it has waited in the bus.
    pub age: std::time::Duration,
}

/// An entry's place: the older one is the smaller one, across shards as well as their clock tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    ms: u64,
    seq: u64,
    shard: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("stream {stream} holds {held} unread entries and takes no more")]
    Full { stream: &'static str, held: usize },
    #[error("the bus has no memory left for stream {stream}")]
    OutOfMemory { stream: &'static str },
    /// Nothing is known of what was asked: it may have been done.
    #[error("the bus does not answer: {reason}")]
    Unavailable { reason: String },
    #[error("the bus has shut down")]
    Closed,
}
