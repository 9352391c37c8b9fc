//! `[bus]`: which bus a process stands on, and how.

use serde::{Deserialize, Serialize, Serializer};
use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `memory`: within this process; `redis`: shared by every process with the same `url`. Default: memory
    pub kind: Kind,
    /// Of Redis 7.0 or later, such as `redis://127.0.0.1:6379` or `redis://user:password@10.0.0.5:6379/0`; off loopback only with a
    /// password. `rediss://` is the same over TLS. Default: none
    pub url: Option<Url>,
    /// PEM file of the authorities that its certificate must come from, for `rediss://`. Default: those of this machine
    pub ca: Option<PathBuf>,
    /// Connections for writing, acknowledging and looking up. 1 to 256, default 4.
    pub write_connections: usize,
    /// Connections that wait for entries, one for each stream that this process reads. 1 to 256, default 8.
    pub read_connections: usize,
    /// Time a call of Redis may take, in ms. 50 to 60000, default 1000.
    pub call_ms: u64,
    /// How long one question for entries waits at Redis, in ms; its answer may take one second more. 50 to 10000, default 1000.
    pub block_ms: u64,
    /// A reader that is not heard of for this long loses its shards to others, in ms. 600 to 14000, default 6000.
    pub lease_ms: u64,
    /// Unread entries a stream takes; on Redis, of each of its 64 shards. Default 65536.
    pub capacity: usize,
    /// Confirmed entries that may stay in a shard before it is trimmed. Default 256.
    pub keep: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Memory,
    Redis,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: Kind::Memory,
            url: None,
            ca: None,
            write_connections: 4,
            read_connections: 8,
            call_ms: 1_000,
            block_ms: 1_000,
            lease_ms: 6_000,
            capacity: 65_536,
            keep: 256,
        }
    }
}

impl Settings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{name} is {value}: expected {least} to {most}")) }
        };
        within("write_connections", self.write_connections as u64, 1, 256)?;
        within("read_connections", self.read_connections as u64, 1, 256)?;
        within("call_ms", self.call_ms, 50, 60_000)?;
        within("block_ms", self.block_ms, 50, 10_000)?;
        within("lease_ms", self.lease_ms, 600, 14_000)?;
        within("capacity", self.capacity as u64, 1, 10_000_000)?;
        within("keep", self.keep as u64, 0, 1_000_000)?;
        check_ca(self.ca.as_deref(), self.url.as_ref())?;
        match (self.kind, &self.url) {
            (Kind::Redis, None) => Err("url: none given; kind = \"redis\" expects one such as \"redis://127.0.0.1:6379\"".into()),
            (Kind::Redis, Some(url)) => url.check_trust("read and write every conversation"),
            _ => Ok(()),
        }
    }
}

/// # Errors
/// A file of authorities for nobody.
pub(crate) fn check_ca(ca: Option<&Path>, url: Option<&Url>) -> Result<(), String> {
    match ca {
        Some(ca) if !url.is_some_and(Url::is_encrypted) => {
            Err(format!("ca: {} would vouch for nobody, because url asks for no TLS; expected rediss://host:port there", ca.display()))
        }
        _ => Ok(()),
    }
}

/// Where a Redis is. Shows itself without its password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Url(String);

impl Url {
    /// With the password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// # Errors
    /// Off this machine without a password. `danger`: what whoever reaches it could do.
    pub(crate) fn check_trust(&self, danger: &str) -> Result<(), String> {
        if self.is_loopback() || self.has_password() {
            return Ok(());
        }
        Err(format!(
            "url: {self} is not on this machine and has no password: whoever reaches it could {danger}; \
             expected redis://user:password@host:port"
        ))
    }

    /// Over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.0.starts_with("rediss:")
    }

    fn after_scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, rest)| rest)
    }

    fn credentials(&self) -> Option<&str> {
        let authority = self.after_scheme().split('/').next().unwrap_or_default();
        authority.rsplit_once('@').map(|(credentials, _)| credentials)
    }

    fn has_password(&self) -> bool {
        self.credentials().and_then(|c| c.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    }

    fn is_loopback(&self) -> bool {
        if self.0.starts_with("unix:") || self.0.starts_with("redis+unix:") {
            return true;
        }
        let authority = self.after_scheme().split('/').next().unwrap_or_default();
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let host = match place.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => place.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || IpAddr::from_str(host).is_ok_and(|ip| ip.is_loopback())
    }
}

impl TryFrom<String> for Url {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let url = Self(text);
        let known = ["redis://", "rediss://", "unix://", "redis+unix://"].iter().any(|scheme| url.0.starts_with(scheme));
        if known { Ok(url) } else { Err(format!("{url} is no address of a Redis: expected redis://host:port or unix:///path")) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.credentials(), self.0.split_once("://")) {
            (Some(credentials), Some((scheme, rest))) => {
                let user = credentials.split(':').next().unwrap_or_default();
                write!(f, "{scheme}://{user}:***{}", &rest[credentials.len()..])
            }
            _ => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(url: &str) -> Settings {
        Settings { kind: Kind::Redis, url: Some(Url::try_from(url.to_owned()).unwrap()), ..Settings::default() }
    }

    #[test]
    fn a_redis_elsewhere_needs_a_password_and_one_here_does_not() {
        for here in ["redis://127.0.0.1:6379", "redis://localhost/1", "redis://[::1]:7000", "unix:///run/redis.sock"] {
            redis(here).check().unwrap();
        }
        redis("redis://u:secret@10.0.0.5:6379").check().unwrap();
        redis("rediss://u:secret@10.0.0.5:6379").check().unwrap();
        for open in
            ["redis://10.0.0.5:6379", "rediss://10.0.0.5:6379", "redis://cache.example", "redis://u:@10.0.0.5", "redis://u@10.0.0.5"]
        {
            let refused = redis(open).check().unwrap_err();
            assert!(refused.contains("no password") && refused.contains("expected redis://"), "{refused}");
        }
    }

    #[test]
    fn an_authority_that_would_vouch_for_nobody_is_refused() {
        let with = |url: &str| Settings { ca: Some("ca.pem".into()), ..redis(url) };
        with("rediss://127.0.0.1:6379").check().unwrap();
        let refused = with("redis://127.0.0.1:6379").check().unwrap_err();
        assert!(refused.contains("ca.pem") && refused.contains("expected rediss://"), "{refused}");
    }

    #[test]
    fn a_password_is_never_shown() {
        let url = Url::try_from("redis://u:s3cret@10.0.0.5:6379/2".to_owned()).unwrap();
        for shown in [url.to_string(), format!("{url:?}"), serde_json::to_string(&url).unwrap()] {
            assert!(shown.contains("redis://u:***@10.0.0.5:6379/2") && !shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_redis_is_refused() {
        assert!(serde_json::from_str::<Url>("\"http://127.0.0.1\"").unwrap_err().to_string().contains("expected redis://"));
        let none = Settings { kind: Kind::Redis, ..Settings::default() };
        assert!(none.check().unwrap_err().contains("url"));
    }
}
