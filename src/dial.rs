//! What keeps the dials of a process: endpoints are looked after, the status page is told, and the file is watched.

use crate::config::{Config, ConfigError, Modules, Place, Role, Source};
use api::{
    Record,
    admin::{self, Module, ModuleState, Status},
    settings::DatabaseUrl,
};
use contracts::route::{Mode, RouteView, Routes};
use fabric::route::Dials;
use platform::supervision::{OnEnd, Supervisor};
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tracing::{info, warn};

const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often the status is told, and the file looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts what the dials need for as long as the process runs.
pub fn attend(dials: &Arc<Dials>, record: Option<Arc<Record>>, config: &Config, status: &Status, tasks: &mut Supervisor) {
    status.dial_by(dials.clone());
    tell(dials, status);
    let looking = dials.clone();
    tasks.spawn("dials", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        looking.run(stop).await;
        Ok(())
    });
    let (dials, status) = (dials.clone(), status.clone());
    let mut watched = Watched {
        seen: config.source.file.as_deref().and_then(stamp),
        source: config.source.clone(),
        modules: config.modules.clone(),
        url: config.api.record.url.clone(),
        replica_url: config.api.record.replica_url.clone(),
        record,
    };
    tasks.spawn("config", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return Ok(()) }
            tell(&dials, &status);
            watched.look(&dials).await;
        }
    });
}

/// The modules of a process that calls none.
pub fn name_hosted(status: &Status, config: &Config) {
    for (name, role) in [("audio", Role::Audio), ("inference", Role::Inference)] {
        if config.roles.contains(&role) {
            let (mode, state) = (admin::Mode::Local, ModuleState::Ready);
            status.set(Module { name: name.into(), mode, endpoint: None, state, detail: "serving".into() });
        }
    }
}

fn tell(dials: &Dials, status: &Status) {
    dials.views().into_iter().for_each(|view| status.set(as_module(view)));
    for (module, introduction) in dials.introductions() {
        status.met(module, introduction.map(|(endpoint, peer)| introduced(endpoint, &peer)));
    }
}

fn introduced(endpoint: String, peer: &fabric::Introduction) -> admin::Peer {
    admin::Peer {
        endpoint,
        build: peer.build.clone(),
        contracts: [*peer.contracts.start(), *peer.contracts.end()],
        cluster: peer.cluster.clone(),
        roles: peer.roles.clone(),
        models: peer.models.clone(),
        up_s: peer.run.map(|run| run.up().as_secs()),
    }
}

/// Ready as long as somebody can answer.
fn as_module(view: RouteView) -> Module {
    let dial = view.dial;
    let mode = match dial.mode {
        Mode::Local => admin::Mode::Local,
        Mode::Remote => admin::Mode::Remote,
        Mode::Routed => admin::Mode::Routed,
    };
    let asked = |name: &str| dial.mode == Mode::Routed || (name == "local") == (dial.mode == Mode::Local);
    let targets: Vec<_> = view.targets.iter().filter(|target| asked(&target.name)).collect();
    let endpoint = targets.iter().find(|target| target.name != "local").map(|target| target.name.clone());
    let named = |name: &str, why: &str| if why.contains(name) { why.to_owned() } else { format!("{name}: {why}") };
    let down = targets.iter().find_map(|target| target.down.as_ref().map(|why| named(&target.name, why)));
    let reachable = targets.iter().any(|target| target.down.is_none());
    let state = if reachable { ModuleState::Ready } else { ModuleState::Failing };
    let detail = match (down, dial.mode) {
        _ if targets.is_empty() => {
            format!("nobody is known who hosts {}; a process that does writes itself into the registry", view.module)
        }
        (Some(why), _) => why,
        (None, Mode::Routed) => dial.to_string(),
        (None, Mode::Local | Mode::Remote) => "serving".into(),
    };
    Module { name: view.module, mode, endpoint, state, detail }
}

/// The configuration file, as far as it is read while the process runs: `[modules]`, and where the record's servers are.
struct Watched {
    seen: Option<(SystemTime, u64)>,
    source: Source,
    /// As the file had them last. What an operator turned since stays, unless the file says something new.
    modules: Modules,
    url: DatabaseUrl,
    replica_url: DatabaseUrl,
    record: Option<Arc<Record>>,
}

impl Watched {
    async fn look(&mut self, dials: &Dials) {
        let stamp = self.source.file.as_deref().and_then(stamp);
        if stamp == self.seen || stamp.is_none() {
            return;
        }
        self.seen = stamp;
        match Config::read_again(&self.source) {
            Ok(config) => {
                self.readdress(&config);
                self.apply(config.modules, dials).await;
            }
            Err(error) => complain(&error),
        }
    }

    fn readdress(&mut self, config: &Config) {
        let (Some(record), settings) = (&self.record, &config.api.record) else { return };
        if settings.url != self.url {
            match record.readdress(settings) {
                Ok(()) => info!(url = ?settings.url, "the record's server is looked for there from now on"),
                Err(refused) => warn!(%refused, "the configuration file names another record; nothing changes"),
            }
            self.url = settings.url.clone();
        }
        if settings.replica_url != self.replica_url {
            match record.read_from(settings) {
                Ok(()) => info!(replica_url = ?settings.replica_url, "reads that may be behind go there from now on"),
                Err(refused) => warn!(%refused, "the configuration file names a replica that cannot be; nothing changes"),
            }
            self.replica_url = settings.replica_url.clone();
        }
    }

    async fn apply(&mut self, modules: Modules, dials: &Dials) {
        let pairs = [
            ("audio", &self.modules.audio, &modules.audio),
            ("inference", &self.modules.inference, &modules.inference),
            ("api", &self.modules.api, &modules.api),
        ];
        for (name, _, now) in pairs.into_iter().filter(|(_, before, now)| before != now) {
            let Place { endpoints, .. } = now;
            let place = fabric::route::Place { dial: now.dial(), endpoints: endpoints.clone() };
            match dials.configure(name, &place).await {
                Ok(()) => info!(module = name, "the configuration file was read again"),
                Err(refused) => warn!(module = name, %refused, "the configuration file asks for what cannot be; nothing changes"),
            }
        }
        self.modules = modules;
    }
}

fn complain(error: &ConfigError) {
    warn!(%error, "the configuration file is not usable; nothing changes");
}

/// Changes when the file does; `None` while there is none, as in the middle of a save.
fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let found = fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}
