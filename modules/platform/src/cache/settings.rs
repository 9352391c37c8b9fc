//! `[cache]`: where what was read is kept.

use crate::bus;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `memory`: within this process; `redis`: shared by every process with the same `url`; `off`: every read asks the database.
    /// Default: memory
    pub kind: Kind,
    /// Of Redis 7.0 or later, best one of its own with `maxmemory-policy allkeys-lru`; off loopback only with a password. Default: the
    /// bus's.
    pub url: Option<bus::Url>,
    /// PEM file of the authorities that its certificate must come from, where `url` is `rediss://…`. Default: those of this machine
    pub ca: Option<PathBuf>,
    /// Connections, where it is not the bus's Redis. 1 to 256, default 4.
    pub connections: usize,
    /// What a call of Redis may take, in ms; then the database is read. 5 to 10000, default 100.
    pub call_ms: u64,
    /// Memory for `memory`, in MB. 1 to 65536, default 64.
    pub memory_mb: usize,
    /// Memory of the first level in front of `redis`, in MB. 1 to 65536, default 32.
    pub first_level_mb: usize,
    /// How long something stays in the first level, in ms; 0 leaves it out. 0 to 5000, default 5000.
    pub first_level_ms: u64,
    /// Reads of the database at once for what the cache does not have. 1 to 1024, default 8.
    pub loads: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Memory,
    Redis,
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: Kind::Memory,
            url: None,
            ca: None,
            connections: 4,
            call_ms: 100,
            memory_mb: 64,
            first_level_mb: 32,
            first_level_ms: 5_000,
            loads: 8,
        }
    }
}

impl Settings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self, bus: &bus::Settings) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{name} is {value}: expected {least} to {most}")) }
        };
        within("connections", self.connections as u64, 1, 256)?;
        within("call_ms", self.call_ms, 5, 10_000)?;
        within("memory_mb", self.memory_mb as u64, 1, 65_536)?;
        within("first_level_mb", self.first_level_mb as u64, 1, 65_536)?;
        within("first_level_ms", self.first_level_ms, 0, 5_000)?;
        within("loads", self.loads as u64, 1, 1_024)?;
        bus::check_ca(self.ca.as_deref(), self.url.as_ref())?;
        let shares = bus.kind == bus::Kind::Redis && bus.url.is_some();
        match (self.kind, &self.url) {
            (Kind::Redis, None) if !shares => Err("url: none given, and the bus is on no Redis; kind = \"redis\" expects one such as \
                                                   \"redis://127.0.0.1:6379\""
                .into()),
            (Kind::Redis, Some(url)) => url.check_trust("read every conversation and change what is shown"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(url: Option<&str>) -> Settings {
        Settings { kind: Kind::Redis, url: url.map(|url| bus::Url::try_from(url.to_owned()).unwrap()), ..Settings::default() }
    }

    #[test]
    fn a_cache_on_redis_needs_one_and_off_this_machine_a_password() {
        let memory = bus::Settings::default();
        let url = bus::Url::try_from("redis://127.0.0.1:6379".to_owned()).unwrap();
        let shared = bus::Settings { kind: bus::Kind::Redis, url: Some(url), ..bus::Settings::default() };
        redis(None).check(&shared).unwrap();
        redis(Some("redis://127.0.0.1:7000")).check(&memory).unwrap();
        redis(Some("redis://u:secret@10.0.0.5:6379")).check(&memory).unwrap();
        let none = redis(None).check(&memory).unwrap_err();
        assert!(none.starts_with("url: ") && none.contains("expects one such as"), "{none}");
        for open in ["redis://10.0.0.5:6379", "redis://u:@10.0.0.5"] {
            let refused = redis(Some(open)).check(&shared).unwrap_err();
            assert!(refused.contains("no password") && refused.contains("expected redis://"), "{refused}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_named_with_what_was_expected() {
        let long = Settings { first_level_ms: 60_000, ..Settings::default() };
        assert_eq!(long.check(&bus::Settings::default()).unwrap_err(), "first_level_ms is 60000: expected 0 to 5000");
    }
}
