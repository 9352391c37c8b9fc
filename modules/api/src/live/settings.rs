//! Settings of the live feed.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Sockets served at once; one more is told to come back. Default 512.
    pub max_connections: usize,
    /// Topics one socket may subscribe to. Default 64.
    pub max_topics: usize,
    /// Events a reader may be behind before passing ones are dropped for it, and finals end the connection. Default 256.
    pub queue_events: usize,
    /// Bytes a reader may be behind, snapshots not counted. Default 1048576.
    pub queue_bytes: usize,
    /// How often a silent socket is pinged, in ms. Default 15000.
    pub ping_ms: u64,
    /// A socket from which nothing came for this long is closed, in ms. Default 45000.
    pub idle_ms: u64,
    /// An unfinished text without news for this long is taken off the screens, in ms. Default 30000.
    pub partial_ttl_ms: u64,
    /// How long an ended conversation stays on the wall, in ms. Default 600000.
    pub ended_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_topics: 64,
            queue_events: 256,
            queue_bytes: 1 << 20,
            ping_ms: 15_000,
            idle_ms: 45_000,
            partial_ttl_ms: 30_000,
            ended_ms: 600_000,
        }
    }
}

impl Settings {
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(format!("api.live.{name} is {value}: expected {least} to {most}")) }
        };
        within("max_connections", self.max_connections as u64, 1, 100_000)?;
        within("max_topics", self.max_topics as u64, 1, 10_000)?;
        within("queue_events", self.queue_events as u64, 8, 100_000)?;
        within("queue_bytes", self.queue_bytes as u64, 4_096, 1 << 30)?;
        within("ping_ms", self.ping_ms, 100, 600_000)?;
        within("idle_ms", self.idle_ms, self.ping_ms.saturating_mul(2), 3_600_000)?;
        within("partial_ttl_ms", self.partial_ttl_ms, 1_000, 3_600_000)?;
        within("ended_ms", self.ended_ms, 0, 86_400_000)
    }
}
