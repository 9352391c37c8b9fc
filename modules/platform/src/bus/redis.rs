//! The bus that processes share: Redis Streams, sharded by key, and pub/sub for signals.
//!
//! - `utterances:{17}` is one of 64 shards of a stream; what has one key is in one shard, and a shard has one reader per group at a time
//!   (`reader.rs`). So the order of a key is kept, which a group alone does not do.
//! - Redis may lose what it holds, and then the epoch rises (`link.rs`). Producers keep what is not committed and send it again.
//! - What Redis refuses for want of memory, or because readers are behind, is a typed error; nothing is dropped here.
//! - Every step that must not be seen half done is one script (`scripts.rs`).
//!
//! Redis 7.0 is enough. Deliberately absent: Redis Cluster, certificates of clients.

mod consumer;
pub(crate) mod link;
pub(crate) mod listener;
mod nodes;
pub(crate) mod outbox;
mod reader;
mod scripts;
mod shard;
#[cfg(test)]
mod tests;

pub use link::ConnectError;
pub use nodes::{Lease, Listing, Nodes, Noted, RegistryAway};

use super::{Bus, BusError, Consumer, Listener, NewEntry, Settings};
use async_trait::async_trait;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// For readers to give back what they held, when the process stops.
const CLOSING: Duration = Duration::from_secs(5);

pub struct Redis {
    link: Arc<link::Link>,
    outbox: outbox::Outbox,
    topics: listener::Topics,
}

impl Redis {
    /// Connects to the Redis at `settings.url`.
    ///
    /// # Errors
    /// When it is absent, refuses the password, is too old, is a replica, or cannot write its disk; the text says what was tried and what to do.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let link = Arc::new(link::Link::open(settings, "bus.url").await?);
        let watching = link.clone();
        tokio::spawn(async move { watching.watch().await });
        Ok(Self { outbox: outbox::Outbox::start(link.clone()), topics: Default::default(), link })
    }

    /// Its connections, for what else is kept on this Redis.
    pub(crate) fn link(&self) -> &Arc<link::Link> {
        &self.link
    }

    /// Who else of a cluster is there, as they write down on this Redis.
    pub fn nodes(&self, cluster: &str) -> Nodes {
        Nodes { link: self.link.clone(), cluster: cluster.into() }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.link.stop.cancel();
    }
}

#[async_trait]
impl Bus for Redis {
    async fn publish(&self, stream: &'static str, entries: Vec<NewEntry>) -> Result<(), BusError> {
        self.outbox.publish(stream, self.link.settings.capacity, entries).await
    }

    async fn consume(&self, stream: &'static str, group: &'static str) -> Result<Box<dyn Consumer>, BusError> {
        Ok(Box::new(reader::join(self.link.clone(), stream, group).await?))
    }

    async fn signal(&self, topic: &'static str, payload: Bytes) -> Result<(), BusError> {
        self.outbox.signal(topic, payload)
    }

    async fn listen(&self, topic: &'static str) -> Result<Box<dyn Listener>, BusError> {
        self.topics.listen(&self.link, topic).await
    }

    fn epoch(&self) -> u64 {
        self.link.epoch()
    }

    fn trouble(&self) -> Option<String> {
        self.link.trouble()
    }

    async fn close(&self) {
        self.link.readers.close();
        let _ = tokio::time::timeout(CLOSING, self.link.readers.wait()).await; // their leases end by themselves
        self.link.readers.reopen();
    }
}
