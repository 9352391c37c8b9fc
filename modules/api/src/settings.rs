//! Settings of the record and its faces.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub record: RecordSettings,
    pub rest: crate::rest::Settings,
    pub live: crate::live::Settings,
}

impl Settings {
    pub fn check(&self) -> Result<(), String> {
        self.record.check()?;
        self.rest.check()?;
        self.live.check()
    }
}

/// How the record writes and announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordSettings {
    /// Rows that may share one transaction. Default 64.
    pub group_rows: usize,
    /// A transaction takes no further request after this long, in ms. Default 10.
    pub group_ms: u64,
    /// Requests waiting for the writer before callers are told to come back. Default 1024.
    pub queue: usize,
    /// Connections that read. Default 4.
    pub readers: usize,
    /// How long a segment or insight waits for what must come before it, in ms. Default 2000.
    pub park_ms: u64,
    /// How often the relay looks for changes nobody woke it for, in ms. Default 1000.
    pub relay_poll_ms: u64,
}

impl Default for RecordSettings {
    fn default() -> Self {
        Self { group_rows: 64, group_ms: 10, queue: 1024, readers: 4, park_ms: 2_000, relay_poll_ms: 1_000 }
    }
}

impl RecordSettings {
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(format!("api.record.{name} is {value}: expected {least} to {most}")) }
        };
        within("group_rows", self.group_rows as u64, 1, 10_000)?;
        within("group_ms", self.group_ms, 1, 1_000)?;
        within("queue", self.queue as u64, 1, 1_000_000)?;
        within("readers", self.readers as u64, 1, 64)?;
        within("park_ms", self.park_ms, 0, 60_000)?;
        within("relay_poll_ms", self.relay_poll_ms, 10, 60_000)
    }
}
