//! Settings of the record and its faces.

use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, path::PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub record: RecordSettings,
    pub finalize: crate::finalizer::Settings,
    pub rest: crate::rest::Settings,
    pub live: crate::live::Settings,
}

impl Settings {
    pub fn check(&self) -> Result<(), String> {
        self.record.check()?;
        self.finalize.check()?;
        self.rest.check()?;
        self.live.check()
    }
}

/// Where the record is, and how it writes and announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordSettings {
    /// A PostgreSQL server, 15 or later: `postgres://USER:PASSWORD@HOST:5432/DATABASE`. Default: none, SQLite in the data folder.
    pub url: DatabaseUrl,
    /// A streaming standby of that server, which takes reads that may be behind, or for which it is new enough. Default: none.
    pub replica_url: DatabaseUrl,
    /// PEM file of the authorities that those servers' certificates must come from, where an address asks for TLS (`?sslmode=verify-full`; the
    /// name in the certificate is always checked, so `require` says the same). Default: those of this machine.
    pub ca: Option<PathBuf>,
    /// How long a statement to PostgreSQL may take, in ms; then its connection is given up. Default 2000.
    pub deadline_ms: u64,
    /// Rows that may share one transaction. Default 64.
    pub group_rows: usize,
    /// A transaction takes no further request after this long, in ms. Default 10.
    pub group_ms: u64,
    /// Requests waiting for the writer before callers are told to come back. Default 1024.
    pub queue: usize,
    /// Connections that read. Default 4.
    pub readers: usize,
    /// How long a segment waits for what must come before it, in ms; then its producer is reminded. Default 2000.
    pub park_ms: u64,
    /// How long an insight waits for its utterance, in ms: longer than it takes until a lost one is sent again. Default 30000.
    pub orphan_ms: u64,
    /// How often the relay looks for changes nobody woke it for, in ms; on PostgreSQL at least every 200. Default 1000.
    pub relay_poll_ms: u64,
    /// How often the record looks for turns that nobody has understood, in s; 0 for never. Default 30.
    pub reconcile_s: u64,
    /// A turn that is not understood so long after it was stored is put on the bus again, in s. Default 60.
    pub reconcile_after_s: u64,
    /// Turns put on the bus again at once. Default 100.
    pub reconcile_most: usize,
}

impl Default for RecordSettings {
    fn default() -> Self {
        Self {
            url: DatabaseUrl::default(),
            replica_url: DatabaseUrl::default(),
            ca: None,
            deadline_ms: 2_000,
            group_rows: 64,
            group_ms: 10,
            queue: 1024,
            readers: 4,
            park_ms: 2_000,
            orphan_ms: 30_000,
            relay_poll_ms: 1_000,
            reconcile_s: 30,
            reconcile_after_s: 60,
            reconcile_most: 100,
        }
    }
}

impl RecordSettings {
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(format!("api.record.{name} is {value}: expected {least} to {most}")) }
        };
        within("deadline_ms", self.deadline_ms, 100, 60_000)?;
        within("group_rows", self.group_rows as u64, 1, 10_000)?;
        within("group_ms", self.group_ms, 1, 1_000)?;
        within("queue", self.queue as u64, 1, 1_000_000)?;
        within("readers", self.readers as u64, 1, 64)?;
        within("park_ms", self.park_ms, 0, 60_000)?;
        within("orphan_ms", self.orphan_ms, 0, 600_000)?;
        within("relay_poll_ms", self.relay_poll_ms, 10, 60_000)?;
        within("reconcile_s", self.reconcile_s, 0, 86_400)?;
        within("reconcile_after_s", self.reconcile_after_s, 0, 86_400)?;
        within("reconcile_most", self.reconcile_most as u64, 1, 10_000)?;
        crate::record::check_addresses(self).map_err(|(key, problem)| format!("api.record.{key}: {problem}"))
    }
}

/// An address that may hold a password, and is shown without it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// With its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn hidden(&self) -> String {
        let (address, query) = self.0.split_once('?').map_or((self.0.as_str(), None), |(address, query)| (address, Some(query)));
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        // A password may hold any sign but these, which end the part it stands in.
        let authority = rest.split('/').next().unwrap_or_default();
        let mut shown = String::new();
        if !scheme.is_empty() {
            shown += &format!("{scheme}://");
        }
        shown += &match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
            Some((user, host)) => format!("{user}:****@{host}{}", &rest[authority.len()..]),
            None => rest.to_owned(),
        };
        if let Some(query) = query {
            let shown_part = |part: &str| if part.starts_with("password=") { "password=****".into() } else { part.to_owned() };
            shown += &format!("?{}", query.split('&').map(shown_part).collect::<Vec<_>>().join("&"));
        }
        shown
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.hidden())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hidden())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://me:hunter2@db.example:5432/calls", "postgres://me:****@db.example:5432/calls"),
            ("postgres://me:p@ss:word@db/calls?sslmode=prefer", "postgres://me:****@db/calls?sslmode=prefer"),
            ("postgres://me@db/calls?password=hunter2&connect_timeout=2", "postgres://me@db/calls?password=****&connect_timeout=2"),
            ("postgres://me@localhost/calls", "postgres://me@localhost/calls"),
            ("", ""),
        ] {
            let url = DatabaseUrl::new(url);
            assert_eq!(serde_json::to_value(&url).expect("text"), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
        }
    }

    #[test]
    fn an_address_that_cannot_be_is_refused_without_repeating_its_password() {
        for (url, says) in [
            ("mysql://me:hunter2@db/calls", "no address of a PostgreSQL server"),
            ("postgres://me:hunter2@db", "database"),
            ("postgres://:hunter2@db/calls", "user"),
            ("postgres://me:hunter2@db/calls?speed=11", "cannot be read"),
            ("postgres://me@db.example/calls", "db.example is not on this machine and no password is given"),
            ("postgres://me:@10.0.0.7/calls", "10.0.0.7"),
            ("postgres://me@localhost/calls?hostaddr=10.0.0.5", "expected an address as the host"),
            ("postgres://me:hunter2@db/calls?sslmode=verify-ca", "expected verify-full"),
        ] {
            let settings = RecordSettings { url: DatabaseUrl::new(url), ..RecordSettings::default() };
            let refused = settings.check().expect_err(url);
            assert!(refused.starts_with("api.record.url: ") && refused.contains(says) && !refused.contains("hunter2"), "{url}: {refused}");
        }
        for url in ["postgres://me@localhost/calls", "postgres://me@[::1]/calls", "postgresql://me@%2Frun%2Fpostgresql/calls", ""] {
            let settings = RecordSettings { url: DatabaseUrl::new(url), ..RecordSettings::default() };
            settings.check().unwrap_or_else(|refused| panic!("{url}: {refused}"));
        }
    }

    #[test]
    fn a_replica_is_of_some_primary_and_named_when_it_is_wrong() {
        let settings = |url: &str, replica: &str| RecordSettings {
            url: DatabaseUrl::new(url),
            replica_url: DatabaseUrl::new(replica),
            ..RecordSettings::default()
        };
        let here = "postgres://me@localhost/calls";
        settings(here, here).check().expect("both are addresses");
        for (url, replica, says) in [("", here, "expected api.record.url"), (here, "postgres://me:@10.0.0.7/calls", "10.0.0.7")] {
            let refused = settings(url, replica).check().expect_err(says);
            assert!(refused.starts_with("api.record.replica_url: ") && refused.contains(says), "{refused}");
        }
    }
}
