//! Peers that come and go by themselves: each process writes down where it serves what, under a lease; the others read it once a second.
//!
//! Invariants:
//! - a process is written down only after it has answered itself at the address it advertises, and is taken out before it drains;
//! - a peer whose lease has ended is asked no more; one that is named by configuration is never taken out;
//! - a registry that is away, or has just forgotten, takes nobody out: until everybody has had the time to write again, the last known peers
//!   stand.

use crate::connect::{ConnectError, Health, Network};
use chrono::{DateTime, TimeDelta, Utc};
use contracts::route::LostView;
use parking_lot::Mutex;
use platform::bus::{Lease, Listing, Nodes, RegistryAway};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// For a process to answer itself.
const PATIENCE: Duration = Duration::from_secs(2);
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Peers that were seen leaving and are still told.
const TOLD: usize = 8;

/// `[discovery]`: how a process finds its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `static`: at the `endpoints` of `[modules.…]` alone; `redis`: also those that are written down on the Redis of `[bus]`, where this process
    /// writes itself down as well. Default: static
    pub kind: Kind,
    /// What others connect to, where that is not `grpc.listen`: `https://10.0.0.7:7443`. Default: none
    pub advertise: Option<String>,
    /// A process that has not renewed its entry for this long is asked no more, in ms. 1000 to 60000, default 6000.
    pub lease_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Static,
    Redis,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kind: Kind::Static, advertise: None, lease_ms: 6_000 }
    }
}

impl Settings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        if !(1_000..=60_000).contains(&self.lease_ms) {
            return Err(format!("lease_ms is {}: expected 1000 to 60000", self.lease_ms));
        }
        match &self.advertise {
            Some(address) => crate::connect::Address::parse(address).map(drop).map_err(|bad| format!("advertise: {bad}")),
            None => Ok(()),
        }
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

/// What a process writes down; its address is the name of the entry.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// As they are dialled: `audio`, `inference`, `api`.
    modules: Vec<String>,
    build: String,
    run: String,
}

/// This process's entry.
pub struct Registration {
    nodes: Nodes,
    probe: Health,
    address: String,
    modules: Vec<String>,
    said: String,
    lease: Duration,
    /// Held while the entry is written; `true`: it has been taken out for good.
    left: tokio::sync::Mutex<bool>,
    trouble: Mutex<Option<String>>,
}

impl Registration {
    /// Of a process that serves `modules` at `address`. Nothing is written yet.
    ///
    /// # Errors
    /// When this process could not connect to such an address.
    pub fn new(network: &Network, nodes: Nodes, address: &str, modules: Vec<String>, lease: Duration) -> Result<Self, ConnectError> {
        let run = network.own.run.map_or(0, |run| run.id);
        let entry = Entry { modules: modules.clone(), build: network.own.build.clone(), run: format!("{run:016x}") };
        let said = serde_json::to_string(&entry).expect("an entry is plain data");
        let probe = network.health(address)?;
        let trouble = Mutex::new(Some("not written down yet".into()));
        Ok(Self { nodes, probe, address: address.into(), modules, said, lease, left: tokio::sync::Mutex::new(false), trouble })
    }

    /// Renews the entry until `stop` or until it is taken out.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            let trouble = self.renew().await.err();
            let before = std::mem::replace(&mut *self.trouble.lock(), trouble.clone());
            match (&before, &trouble) {
                (Some(_), None) => info!(address = self.address, "this process is in the registry"),
                (before, Some(why)) if before.as_ref() != Some(why) => warn!(address = self.address, why, "not in the registry"),
                _ => {}
            }
            let pause = if trouble.is_some() { TRY_AGAIN } else { self.lease / 3 };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
        }
    }

    async fn renew(&self) -> Result<(), String> {
        for module in &self.modules {
            let answers = self.probe.check(module, PATIENCE).await;
            answers.map_err(|error| format!("it does not answer itself at {}: {error}", self.address))?;
        }
        let left = self.left.lock().await;
        if *left {
            return Ok(());
        }
        self.nodes.write(&self.address, &self.said, self.lease).await.map_err(|away| away.to_string())
    }

    /// Takes the entry out. A registry that is away lets its lease end.
    pub async fn leave(&self) {
        let mut left = self.left.lock().await;
        *left = true;
        match self.nodes.take_out(&self.address, &self.said).await {
            Ok(()) => info!(address = self.address, "this process has left the registry"),
            Err(error) => warn!(%error, "this process could not leave the registry; its lease will end"),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Why others may not find this process.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

/// Another process, as it wrote itself down.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    modules: Vec<String>,
    /// Of its lease, when it was last read.
    left: Duration,
}

/// What this process knows of the others.
#[derive(Default)]
pub(crate) struct Known {
    epoch: Option<String>,
    peers: BTreeMap<String, Peer>,
    /// Those who were seen leaving, the latest first, with their modules.
    left: VecDeque<(Vec<String>, LostView)>,
    /// Whose lease has ended, as the registry says.
    ended: Vec<(Vec<String>, LostView)>,
    /// Nobody is taken out before.
    hold_until: Option<Instant>,
    away: Option<String>,
}

impl Known {
    /// Takes in what the registry says, or that it says nothing. `own` is this process's address.
    pub(crate) fn hear(&mut self, heard: Result<Listing, RegistryAway>, own: Option<&str>, lease: Duration, now: Instant) {
        let listing = match heard {
            Ok(listing) => listing,
            Err(away) => {
                if self.away.is_none() {
                    warn!(%away, peers = self.peers.len(), "the last known peers stand");
                }
                self.away = Some(away.to_string());
                return;
            }
        };
        let forgot = self.epoch.as_ref().is_some_and(|before| *before != listing.epoch);
        if self.away.take().is_some() || forgot {
            self.hold_until = Some(now + lease * 2);
        }
        self.epoch = Some(listing.epoch);
        let mut standing = BTreeMap::new();
        self.ended.clear();
        for noted in listing.nodes.into_iter().filter(|noted| Some(noted.name.as_str()) != own) {
            let Ok(Entry { modules, .. }) = serde_json::from_str(&noted.said) else {
                continue; // of a newer release
            };
            match noted.lease {
                Lease::Left(left) => drop(standing.insert(noted.name, Peer { modules, left })),
                Lease::Ended(ago) => self.ended.push((modules, lost(noted.name, ago, "its lease ended"))),
            }
        }
        let held = self.hold_until.is_some_and(|until| now < until);
        for (name, peer) in std::mem::take(&mut self.peers) {
            if standing.contains_key(&name) {
                continue;
            }
            if held {
                standing.insert(name, Peer { left: Duration::ZERO, ..peer });
            } else if self.ended.iter().any(|(_, ended)| ended.name == name) {
                warn!(peer = name, "its lease ended: it is asked no more");
            } else {
                info!(peer = name, "it has left: it is asked no more");
                self.left.truncate(TOLD - 1);
                self.left.push_front((peer.modules, lost(name, Duration::ZERO, "it left")));
            }
        }
        self.ended.retain(|(_, ended)| !standing.contains_key(&ended.name));
        self.left.retain(|(_, left)| !standing.contains_key(&left.name));
        self.peers = standing;
    }

    /// Where others host a module.
    pub(crate) fn hosts_of(&self, module: &str) -> Vec<String> {
        self.peers.iter().filter(|(_, peer)| peer.modules.iter().any(|m| m == module)).map(|(name, _)| name.clone()).collect()
    }

    /// What is left of a peer's lease; zero while it only stands because the registry does not tell.
    pub(crate) fn lease_of(&self, address: &str) -> Option<Duration> {
        let peer = self.peers.get(address)?;
        Some(if self.away.is_some() { Duration::ZERO } else { peer.left })
    }

    /// Who hosted a module and is asked no more, the latest first.
    pub(crate) fn lost_of(&self, module: &str) -> Vec<LostView> {
        let all = self.left.iter().chain(&self.ended).filter(|(modules, _)| modules.iter().any(|m| m == module));
        let mut all: Vec<_> = all.map(|(_, lost)| lost.clone()).collect();
        all.sort_by_key(|lost| std::cmp::Reverse(lost.at));
        all
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// For people.
    pub(crate) fn says(&self) -> String {
        let peers = self.peers.len();
        match (&self.away, self.epoch.is_some()) {
            (Some(why), _) => format!("{why}; the {peers} last known peers stand"),
            (None, true) => format!("serving; {peers} peers"),
            (None, false) => "not asked yet".into(),
        }
    }
}

fn lost(name: String, ago: Duration, why: &str) -> LostView {
    let at: DateTime<Utc> = Utc::now() - TimeDelta::from_std(ago).unwrap_or_default();
    LostView { name, at, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::bus::Noted;

    const LEASE: Duration = Duration::from_secs(6);

    fn listing(epoch: &str, nodes: &[(&str, i64)]) -> Result<Listing, RegistryAway> {
        let said = r#"{"modules":["audio"],"build":"1","run":"1"}"#;
        let noted = |(name, left): &(&str, i64)| {
            let s = Duration::from_secs(left.unsigned_abs());
            Noted { name: (*name).into(), said: said.into(), lease: if *left > 0 { Lease::Left(s) } else { Lease::Ended(s) } }
        };
        Ok(Listing { epoch: epoch.into(), nodes: nodes.iter().map(noted).collect() })
    }

    #[tokio::test(start_paused = true)]
    async fn peers_come_with_their_lease_and_go_with_it_or_when_they_leave() {
        let mut known = Known::default();
        let start = Instant::now();
        known.hear(listing("e", &[("a", 6), ("b", 6), ("me", 6)]), Some("me"), LEASE, start);
        assert_eq!((known.hosts_of("audio"), known.hosts_of("inference")), (vec!["a".into(), "b".into()], vec![]));
        known.hear(listing("e", &[("a", -1)]), Some("me"), LEASE, start);
        assert_eq!(known.hosts_of("audio"), Vec::<String>::new());
        let lost: Vec<_> = known.lost_of("audio").into_iter().map(|lost| (lost.name, lost.why)).collect();
        assert_eq!(lost, [("b".into(), "it left".to_owned()), ("a".into(), "its lease ended".to_owned())]);
        known.hear(listing("e", &[("a", 6)]), None, LEASE, start);
        assert_eq!((known.hosts_of("audio"), known.lost_of("audio").len()), (vec!["a".to_owned()], 1), "it is back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_or_has_forgotten_takes_nobody_out_at_once() {
        let away = || Err(RegistryAway("gone".into()));
        let mut known = Known::default();
        let start = Instant::now();
        known.hear(listing("e", &[("a", 6), ("b", 6)]), None, LEASE, start);
        known.hear(away(), None, LEASE, start + LEASE * 10);
        assert_eq!(known.hosts_of("audio").len(), 2, "however long that takes");
        assert!(known.says().contains("gone") && known.lease_of("a") == Some(Duration::ZERO), "{}", known.says());
        // It is back from its file, where every lease has ended meanwhile.
        let back = start + LEASE * 11;
        known.hear(listing("e", &[("a", -50), ("b", -50)]), None, LEASE, back);
        assert_eq!(known.hosts_of("audio").len(), 2);
        known.hear(listing("e", &[("a", 6), ("b", -54)]), None, LEASE, back + LEASE * 2);
        assert_eq!(known.hosts_of("audio"), ["a"], "b had the time to write again");
        // It has forgotten everything.
        let empty = back + LEASE * 3;
        known.hear(listing("f", &[]), None, LEASE, empty);
        assert_eq!(known.hosts_of("audio"), ["a"]);
        known.hear(listing("f", &[]), None, LEASE, empty + LEASE * 2);
        assert_eq!(known.hosts_of("audio"), Vec::<String>::new());
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        Settings::default().check().expect("the defaults");
        let bad = Settings { advertise: Some("http://10.0.0.7:7443".into()), ..Settings::default() }.check().unwrap_err();
        assert!(bad.starts_with("advertise: ") && bad.contains("https"), "{bad}");
        assert!(Settings { lease_ms: 10, ..Settings::default() }.check().unwrap_err().contains("expected 1000 to 60000"));
    }
}
