//! What two processes tell each other before the first call on a connection, and when they then part.
//!
//! Invariant: a call is only sent to a peer that speaks a version of the contracts this process speaks, and belongs to its cluster.

use crate::{error::to_status, wire::quickcomm::hello::v1 as pb};
use contracts::{CallError, ErrorKind, Origin, Retry};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

/// Versions of the three contracts that this release speaks. The upper bound rises when a message means something new, the lower one when
/// support for an old meaning goes.
pub const CONTRACTS: RangeInclusive<u32> = 1..=1;

/// Of a peer's texts; they are shown to people.
const TEXT_BYTES: usize = 200;
/// Roles and models.
const LIST: usize = 64;

/// What a process tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// For people: the release.
    pub build: String,
    pub contracts: RangeInclusive<u32>,
    /// What it hosts.
    pub roles: Vec<String>,
    /// Processes of different clusters refuse each other.
    pub cluster: String,
    /// What each loaded model is, by its name.
    pub models: BTreeMap<String, String>,
    /// Which run of it this is; `None` from releases that do not tell.
    pub run: Option<Run>,
}

/// One run of a process, from its start to its end.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Random: a process that was started again has another one.
    pub id: u64,
    /// By this process's clock.
    pub began: Instant,
}

impl Run {
    pub fn new() -> Self {
        Self { id: rand::random(), began: Instant::now() }
    }

    /// Of this process, which begins when it is first asked for.
    pub fn current() -> Self {
        static OWN: LazyLock<Run> = LazyLock::new(Run::new);
        *OWN
    }

    pub fn up(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

/// When it began is only known as well as its message was fast.
impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Run {}

impl Default for Introduction {
    fn default() -> Self {
        Self {
            build: env!("CARGO_PKG_VERSION").into(),
            contracts: CONTRACTS,
            roles: vec![],
            cluster: "quickcomm".into(),
            models: BTreeMap::new(),
            run: Some(Run::current()),
        }
    }
}

/// Why a peer is not called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("version out of range: release {build:?} speaks contracts {theirs}, this process {ours}")]
    Version { build: String, theirs: String, ours: String },
    #[error("other cluster: it belongs to {theirs:?}, this process to {ours:?}")]
    Cluster { theirs: String, ours: String },
}

impl Introduction {
    /// Whether calls between the two are understood.
    pub fn accepts(&self, peer: &Self) -> Result<(), Refused> {
        if self.cluster != peer.cluster {
            return Err(Refused::Cluster { theirs: peer.cluster.clone(), ours: self.cluster.clone() });
        }
        if self.contracts.start().max(peer.contracts.start()) > self.contracts.end().min(peer.contracts.end()) {
            let range = |contracts: &RangeInclusive<u32>| format!("{} to {}", contracts.start(), contracts.end());
            let (theirs, ours) = (range(&peer.contracts), range(&self.contracts));
            return Err(Refused::Version { build: peer.build.clone(), theirs, ours });
        }
        Ok(())
    }
}

impl From<Refused> for CallError {
    /// Trying again changes nothing until one of the two is another release.
    fn from(refused: Refused) -> Self {
        Self::new(ErrorKind::Unavailable, Retry::Never, refused.to_string()).from(Origin::Policy)
    }
}

impl From<&Introduction> for pb::Introduction {
    fn from(own: &Introduction) -> Self {
        Self {
            build: own.build.clone(),
            oldest: *own.contracts.start(),
            newest: *own.contracts.end(),
            roles: own.roles.clone(),
            cluster: own.cluster.clone(),
            models: own.models.clone().into_iter().collect(),
            run: own.run.map(|run| pb::Run { id: run.id, up_ms: u64::try_from(run.up().as_millis()).unwrap_or(u64::MAX) }),
        }
    }
}

impl From<pb::Introduction> for Introduction {
    /// Cut to what can be shown.
    fn from(peer: pb::Introduction) -> Self {
        Self {
            build: short(peer.build),
            contracts: peer.oldest..=peer.newest,
            roles: peer.roles.into_iter().take(LIST).map(short).collect(),
            cluster: short(peer.cluster),
            models: peer.models.into_iter().take(LIST).map(|(name, hash)| (short(name), short(hash))).collect(),
            run: peer.run.map(|run| Run { id: run.id, began: began(run.up_ms) }),
        }
    }
}

/// A peer that claims to be older than this, or than our clock, has just begun.
const OLDEST: Duration = Duration::from_secs(100 * 365 * 86_400);

fn began(up_ms: u64) -> Instant {
    let (now, up) = (Instant::now(), Duration::from_millis(up_ms));
    now.checked_sub(up).filter(|_| up <= OLDEST).unwrap_or(now)
}

fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    text
}

/// Introduces this process to whoever calls it.
pub(crate) struct Server {
    pub(crate) own: Arc<Introduction>,
}

#[tonic::async_trait]
impl pb::peers_server::Peers for Server {
    async fn hello(&self, request: Request<pb::Introduction>) -> Result<Response<pb::Introduction>, Status> {
        let peer = Introduction::from(request.into_inner());
        self.own.accepts(&peer).map_err(|refused| to_status(refused.into()))?;
        Ok(Response::new(pb::Introduction::from(&*self.own)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(contracts: RangeInclusive<u32>) -> Introduction {
        Introduction { contracts, ..Default::default() }
    }

    #[test]
    fn releases_whose_ranges_overlap_work_together() {
        for (ours, theirs) in [(1..=1, 1..=1), (1..=2, 2..=3), (2..=3, 1..=2), (1..=9, 4..=5)] {
            assert_eq!(speaks(ours.clone()).accepts(&speaks(theirs.clone())), Ok(()), "{ours:?} {theirs:?}");
        }
        for (ours, theirs) in [(1..=1, 2..=3), (2..=3, 1..=1)] {
            let refused = speaks(ours).accepts(&speaks(theirs)).unwrap_err().to_string();
            assert!(refused.starts_with("version out of range"), "{refused}");
        }
    }

    #[test]
    fn an_introduction_reads_back_and_endless_ones_are_cut() {
        let own = Introduction {
            roles: vec!["audio".into()],
            models: BTreeMap::from([("moonshine".into(), "sha256:1".into())]),
            ..Default::default()
        };
        let mut sent = pb::Introduction::from(&own);
        assert_eq!(Introduction::from(sent.clone()), own);
        sent.run = Some(pb::Run { id: 7, up_ms: 12_000 });
        let up = Introduction::from(sent.clone()).run.expect("it was told").up();
        assert!((12..13).contains(&up.as_secs()), "{up:?}");
        sent.run = Some(pb::Run { id: 7, up_ms: u64::MAX });
        assert!(Introduction::from(sent).run.expect("it was told").up() < Duration::from_secs(1), "a claim, not an age");
        let endless = Introduction { build: "é".repeat(1000), roles: vec![String::new(); 1000], ..Default::default() };
        let read = Introduction::from(pb::Introduction::from(&endless));
        assert!(read.build.len() <= TEXT_BYTES && read.roles.len() == LIST);
    }
}
