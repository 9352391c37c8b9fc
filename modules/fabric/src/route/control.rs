//! The dials of this process: what turns them, what is refused, what is told.
//!
//! Invariants: changes of one module are made one after another; a change is versioned, logged and kept among the last; none leaves a module
//! without somebody who answered when asked.

use super::{
    recent::Recent,
    routed::Routed,
    router::{Limits, Router},
    step_back,
    table::{Connect, LOCAL, Target},
};
use crate::{
    api::{self, Methods as Api},
    audio::{self, Methods as Hearing},
    connect::{ConnectError, Health},
    discovery::Known,
    hello::Introduction,
    inference::{self, Methods as Understanding},
    metrics::{self as names, Locality},
};
use async_trait::async_trait;
use chrono::Utc;
use contracts::{
    Audio, Conversations, Inference,
    route::{By, Dial, Mode, RouteChange, RouteView, Routes, RunView, Source, Step, TargetView, Turn, TurnRefused, Turned},
};
use futures::future::join_all;
use parking_lot::Mutex;
use platform::bus::Nodes;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Changes that are told.
const TOLD: usize = 50;
/// How long an endpoint may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An endpoint, and what it introduced itself as.
pub type Met = (String, Arc<Introduction>);

/// Every module this process calls, with its dial.
#[derive(Default)]
pub struct Dials {
    modules: Vec<Module>,
    changes: Mutex<VecDeque<RouteChange>>,
    limits: Limits,
    /// Of other processes, by the registry. Empty where none is followed.
    known: Mutex<Known>,
}

struct Module {
    router: Arc<dyn Turnable>,
    /// Held while it is changed.
    turning: tokio::sync::Mutex<Option<Dial>>,
    peers: Mutex<Peers>,
}

/// Endpoints of a module, by where they are known from.
#[derive(Default)]
struct Peers {
    stated: Vec<String>,
    found: Vec<String>,
}

impl Peers {
    fn all(&self) -> Vec<String> {
        let found = self.found.iter().filter(|found| !self.stated.contains(found));
        self.stated.iter().chain(found).cloned().collect()
    }
}

/// Where a module is to be asked, as the configuration has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub dial: Dial,
    pub endpoints: Vec<String>,
}

impl Dials {
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A handle to `audio`: `local` where this process hosts it.
    pub fn audio(
        &mut self,
        local: Option<Arc<dyn Audio>>,
        place: &Place,
        connect: Connect<dyn Audio>,
    ) -> Result<Arc<dyn Audio>, ConnectError> {
        let router = self.add(audio::MODULE, local, place, connect)?;
        Ok(Arc::new(Routed { router, methods: Hearing::new(Locality::Routed) }))
    }

    /// A handle to `inference`.
    pub fn inference(
        &mut self,
        local: Option<Arc<dyn Inference>>,
        place: &Place,
        connect: Connect<dyn Inference>,
    ) -> Result<Arc<dyn Inference>, ConnectError> {
        let router = self.add(inference::MODULE, local, place, connect)?;
        Ok(Arc::new(Routed { router, methods: Understanding::new(Locality::Routed) }))
    }

    /// A handle to the record.
    pub fn conversations(
        &mut self,
        local: Option<Arc<dyn Conversations>>,
        place: &Place,
        connect: Connect<dyn Conversations>,
    ) -> Result<Arc<dyn Conversations>, ConnectError> {
        let router = self.add(api::MODULE, local, place, connect)?;
        Ok(Arc::new(Routed { router, methods: Api::new(Locality::Routed) }))
    }

    fn add<T: ?Sized + Send + Sync + 'static>(
        &mut self,
        module: &'static str,
        local: Option<Arc<T>>,
        place: &Place,
        connect: Connect<T>,
    ) -> Result<Arc<Router<T>>, ConnectError> {
        let router = Arc::new(Router::new(module, local, place.dial, &place.endpoints, connect, self.limits)?);
        let peers = Peers { stated: place.endpoints.clone(), found: vec![] };
        self.modules.push(Module { router: router.clone(), turning: tokio::sync::Mutex::new(None), peers: Mutex::new(peers) });
        Ok(router)
    }

    /// Who answers for each module elsewhere: module, endpoint, introduction.
    pub fn introductions(&self) -> Vec<(&'static str, Option<Met>)> {
        self.modules.iter().map(|module| (module.router.name(), module.router.introduction())).collect()
    }

    /// Looks after the dials until `stop`: asks endpoints how they are, and steps back from those that do badly.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return }
            join_all(self.modules.iter().map(|module| module.router.look())).await;
            for module in &self.modules {
                let Some(reason) = module.router.reason_to_step_back() else { continue };
                let turn = Turn { step: Some(Step::Back), reason: Some(reason), ..Turn::default() };
                // A refusal leaves everything as it is; the next look tries again.
                if let Err(refused) = self.turn_for(module, turn, By::StepBack).await {
                    warn!(module = module.router.name(), %refused, "the dial cannot step back");
                }
            }
        }
    }

    /// Reads the registry again and again until `stop`: peers come into the tables and go from them. `own` is this process's address there.
    pub async fn follow(&self, nodes: &Nodes, own: Option<&str>, lease: Duration, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return }
            self.look_up(nodes, own, lease).await;
        }
    }

    /// Reads the registry once.
    pub async fn look_up(&self, nodes: &Nodes, own: Option<&str>, lease: Duration) {
        let heard = nodes.list().await;
        self.known.lock().hear(heard, own, lease, tokio::time::Instant::now());
        for module in &self.modules {
            let found = self.known.lock().hosts_of(module.router.name());
            self.find(module, found).await;
        }
    }

    /// What the registry says, for people.
    pub fn registry(&self) -> String {
        self.known.lock().says()
    }

    /// Whether it did not answer when it was last asked.
    pub fn is_registry_away(&self) -> bool {
        self.known.lock().is_away()
    }

    async fn find(&self, module: &Module, found: Vec<String>) {
        let _turning = module.turning.lock().await;
        if module.peers.lock().found == found {
            return;
        }
        let router = &module.router;
        // One that cannot be an endpoint of ours, say for want of a certificate, must not keep the others out.
        let mut endpoints = Peers { stated: module.peers.lock().stated.clone(), found: found.clone() }.all();
        endpoints.retain(|endpoint| match router.can_connect(endpoint) {
            Ok(()) => true,
            Err(error) => {
                warn!(module = router.name(), endpoint, %error, "a peer in the registry cannot be called from here");
                false
            }
        });
        match router.replace(&endpoints) {
            Ok(version) => {
                info!(module = router.name(), version, ?endpoints, "the registry changed who is asked");
                module.peers.lock().found = found;
            }
            Err(error) => warn!(module = router.name(), %error, "the registry's peers could not be taken over"),
        }
    }

    /// What the configuration says now: its dial, and where the endpoints are.
    pub async fn configure(&self, name: &str, place: &Place) -> Result<(), TurnRefused> {
        let module = self.module(name)?;
        let mut before = module.turning.lock().await;
        let router = &module.router;
        let endpoints = Peers { stated: place.endpoints.clone(), found: module.peers.lock().found.clone() }.all();
        router.can_be(place.dial, &endpoints).await?;
        let from = router.dial();
        let version = router.put(place.dial, Some(&endpoints)).map_err(|e| TurnRefused::Invalid(e.to_string()))?;
        module.peers.lock().stated = place.endpoints.clone();
        *before = Some(from);
        self.tell(name, version, By::File, &Turn::default(), (from, place.dial), 0);
        Ok(())
    }

    fn module(&self, name: &str) -> Result<&Module, TurnRefused> {
        self.modules.iter().find(|module| module.router.name() == name).ok_or_else(|| {
            let known: Vec<_> = self.modules.iter().map(|module| module.router.name()).collect();
            TurnRefused::UnknownModule { module: name.into(), known: known.join(", ") }
        })
    }

    async fn turn_for(&self, module: &Module, turn: Turn, by: By) -> Result<Turned, TurnRefused> {
        turn.can_be_told()?;
        let mut before = module.turning.lock().await;
        let router = &module.router;
        let name = router.name();
        let (from, is) = (router.dial(), router.version());
        if let Some(expected) = turn.version.filter(|expected| *expected != is) {
            return Err(TurnRefused::Stale { module: name.into(), is, expected });
        }
        let to = wished(name, from, *before, &turn)?;
        router.can_be(to, &router.endpoints()).await?;
        if turn.dry_run {
            return Ok(Turned { from, to, version: is, dry_run: true, asked_to_move: 0 });
        }
        let version = match to == from {
            true => is,
            false => router.put(to, None).map_err(|e| TurnRefused::Invalid(e.to_string()))?,
        };
        let asked_to_move = if turn.move_live { router.move_live() } else { 0 };
        if to != from {
            *before = Some(from);
        }
        if to != from || asked_to_move > 0 {
            self.tell(name, version, by, &turn, (from, to), asked_to_move);
        }
        Ok(Turned { from, to, version, dry_run: false, asked_to_move })
    }

    fn tell(&self, module: &str, version: u64, by: By, turn: &Turn, (from, to): (Dial, Dial), asked_to_move: usize) {
        let (from, to) = (from.to_string(), to.to_string());
        let (who, reason) = (turn.by.clone(), turn.reason.clone());
        match by {
            By::StepBack => warn!(module, version, from, to, reason, "the dial stepped back"),
            By::File | By::Operator => info!(module, version, by = by.name(), who, reason, from, to, asked_to_move, "the dial was turned"),
        }
        metrics::counter!(names::ROUTE_CHANGES, "module" => module.to_owned(), "by" => by.name()).increment(1);
        let mut changes = self.changes.lock();
        changes.truncate(TOLD - 1);
        changes.push_front(RouteChange { at: Utc::now(), module: module.into(), version, by, who, from, to, reason, asked_to_move });
    }
}

#[async_trait]
impl Routes for Dials {
    fn views(&self) -> Vec<RouteView> {
        let known = self.known.lock();
        let view = |module: &Module| {
            let mut view = module.router.view();
            let peers = module.peers.lock();
            for target in view.targets.iter_mut().filter(|target| target.name != LOCAL) {
                let stated = peers.stated.contains(&target.name);
                target.source = Some(if stated { Source::Configuration } else { Source::Registry });
                target.lease_ms = known.lease_of(&target.name).map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            }
            view.lost = known.lost_of(&view.module);
            view.lost.retain(|lost| !peers.stated.contains(&lost.name));
            view
        };
        self.modules.iter().map(view).collect()
    }

    fn changes(&self) -> Vec<RouteChange> {
        self.changes.lock().iter().cloned().collect()
    }

    async fn turn(&self, module: &str, turn: Turn, by: By) -> Result<Turned, TurnRefused> {
        self.turn_for(self.module(module)?, turn, by).await
    }
}

/// The dial that is wished for.
fn wished(module: &str, from: Dial, before: Option<Dial>, turn: &Turn) -> Result<Dial, TurnRefused> {
    let shadows = module == inference::MODULE;
    let to = match (turn.undo, turn.step) {
        (true, _) => before.ok_or_else(|| TurnRefused::NothingToUndo(module.into()))?,
        (false, Some(step)) => {
            let stage = match step {
                Step::Forward => from.forward(shadows),
                Step::Back => from.back(shadows),
            };
            stage.ok_or_else(|| TurnRefused::Invalid(format!("{module} is {from}: there is no stage beyond")))?
        }
        (false, None) => {
            let shared = turn.remote_percent.is_some() || turn.shadow_percent.is_some();
            Dial {
                mode: turn.mode.unwrap_or(if shared { Mode::Routed } else { from.mode }),
                remote_percent: turn.remote_percent.unwrap_or(from.remote_percent),
                shadow_percent: turn.shadow_percent.unwrap_or(from.shadow_percent),
                step_back: turn.step_back.unwrap_or(from.step_back),
            }
        }
    };
    for (name, percent) in [("remote_percent", to.remote_percent), ("shadow_percent", to.shadow_percent)] {
        if percent > 100 {
            return Err(TurnRefused::Invalid(format!("{name} is {percent}: expected 0 to 100")));
        }
    }
    if to.shadow_percent > 0 && !shadows {
        return Err(TurnRefused::Invalid(format!("{module} cannot be shadowed: only calls that are one question and one answer can")));
    }
    Ok(to)
}

/// A router, whatever its contract.
#[async_trait]
trait Turnable: Send + Sync {
    fn name(&self) -> &'static str;
    fn dial(&self) -> Dial;
    fn version(&self) -> u64;
    fn endpoints(&self) -> Vec<String>;
    fn view(&self) -> RouteView;
    /// Whether everybody it would ask is there.
    async fn can_be(&self, dial: Dial, endpoints: &[String]) -> Result<(), TurnRefused>;
    fn put(&self, dial: Dial, endpoints: Option<&[String]>) -> Result<u64, ConnectError>;
    /// Others are asked from now on; what is known of those who stay is kept.
    fn replace(&self, endpoints: &[String]) -> Result<u64, ConnectError>;
    fn can_connect(&self, endpoint: &str) -> Result<(), ConnectError>;
    fn move_live(&self) -> usize;
    async fn look(&self);
    fn reason_to_step_back(&self) -> Option<String>;
    /// The first endpoint that has introduced itself, and as what.
    fn introduction(&self) -> Option<Met>;
}

#[async_trait]
impl<T: ?Sized + Send + Sync + 'static> Turnable for Router<T> {
    fn name(&self) -> &'static str {
        self.module
    }

    fn dial(&self) -> Dial {
        self.table.load().dial
    }

    fn version(&self) -> u64 {
        self.table.load().version
    }

    fn endpoints(&self) -> Vec<String> {
        self.table.load().remote.iter().map(|target| target.name.clone()).collect()
    }

    fn view(&self) -> RouteView {
        let table = self.table.load();
        let window = Duration::from_secs(table.dial.step_back.window_s);
        let targets = table.targets().map(|target| {
            let down = target.down.lock().clone(); // in a statement of its own: what follows takes other locks
            TargetView {
                name: target.name.clone(),
                down,
                source: None,
                lease_ms: None,
                run: target.met().map(|(run, restarts)| RunView { id: format!("{:016x}", run.id), up_s: run.up().as_secs(), restarts }),
                version: target.health.as_ref().and_then(Health::peer).map(|peer| peer.build.clone()),
                breaker: target.breaker.state(),
                calls: self.slots().saturating_sub(target.slots.available_permits()),
                slots: self.slots(),
                streams: self.live.at(&target.name),
                recent: target.recent.within(window),
            }
        });
        RouteView { module: self.module.into(), version: table.version, dial: table.dial, targets: targets.collect(), lost: vec![] }
    }

    async fn can_be(&self, dial: Dial, endpoints: &[String]) -> Result<(), TurnRefused> {
        let unreachable = |target: &str, why: String| TurnRefused::Unreachable { module: self.module.into(), target: target.into(), why };
        if dial.asks_local() && self.table.load().local.is_none() {
            let why = format!("this process was started without {}: it needs the role, and a mode other than remote", self.module);
            return Err(unreachable(LOCAL, why));
        }
        if !dial.asks_remote() {
            return Ok(());
        }
        let asked = join_all(endpoints.iter().map(async |endpoint| match self.health_of(endpoint) {
            Ok(health) => (endpoint, health.check(self.module, PATIENCE).await.map_err(|error| error.to_string())),
            Err(error) => (endpoint, Err(error.to_string())),
        }))
        .await;
        if asked.iter().any(|(_, answer)| answer.is_ok()) {
            return Ok(());
        }
        let failed: Vec<String> = asked.iter().filter_map(|(_, answer)| answer.clone().err()).collect();
        let tried: Vec<&str> = asked.iter().map(|(endpoint, _)| endpoint.as_str()).collect();
        match tried.is_empty() {
            true => Err(unreachable("remote", format!("modules.{}.endpoints names none", self.module))),
            false => Err(unreachable(&tried.join(", "), failed.join(", "))),
        }
    }

    fn put(&self, dial: Dial, endpoints: Option<&[String]>) -> Result<u64, ConnectError> {
        let same = self.endpoints();
        let version = self.swap(dial, endpoints.unwrap_or(&same))?;
        // What was seen at another setting says nothing about this one.
        self.table.load().targets().for_each(|target| target.recent.forget());
        Ok(version)
    }

    fn replace(&self, endpoints: &[String]) -> Result<u64, ConnectError> {
        self.swap(self.dial(), endpoints)
    }

    fn can_connect(&self, endpoint: &str) -> Result<(), ConnectError> {
        self.health_of(endpoint).map(drop)
    }

    fn move_live(&self) -> usize {
        self.live.move_by(&self.table.load(), self.module)
    }

    async fn look(&self) {
        let table = self.table.load_full();
        join_all(table.remote.iter().map(|target| look_at(self.module, target))).await;
    }

    fn reason_to_step_back(&self) -> Option<String> {
        let table = self.table.load();
        let limits = table.dial.step_back;
        let local = table.local.as_ref().filter(|_| table.dial.asks_remote())?;
        let window = Duration::from_secs(limits.window_s);
        let there = Recent::together(table.remote.iter().map(|target| &target.recent), window);
        step_back::reason(there, local.recent.within(window), limits)
    }

    fn introduction(&self) -> Option<Met> {
        self.table.load().remote.iter().find_map(|target| Some((target.name.clone(), target.health.as_ref()?.peer()?)))
    }
}

/// Remembers why a target does not answer, and says when that changes.
async fn look_at<T: ?Sized>(module: &'static str, target: &Target<T>) {
    let Some(health) = &target.health else { return };
    let down = health.check(module, PATIENCE).await.err().map(|error| error.to_string());
    let before = *target.runs.lock();
    if let (Some((before, _)), Some((now, restarts))) = (before, target.met())
        && before != now
    {
        info!(module, target = target.name, restarts, "a target was started again");
    }
    let before = std::mem::replace(&mut *target.down.lock(), down.clone());
    match (before, down) {
        (None, Some(why)) => warn!(module, target = target.name, why, "a target does not answer"),
        (Some(_), None) => info!(module, target = target.name, "a target answers again"),
        _ => {}
    }
}
