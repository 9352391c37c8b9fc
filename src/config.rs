//! The whole configuration of a process: one struct, each field a module's own `Settings`. Checked before anything binds.

use contracts::route::{Dial, Mode, StepBack};
use fabric::discovery;
use platform::{bus, cache, settings, telemetry, trace};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What this process hosts. Default: all three.
    pub roles: BTreeSet<Role>,
    /// Record and recordings. Default: .quickcomm/data
    pub data: PathBuf,
    /// Model folders, as `make models` leaves them. Default: .quickcomm/models
    pub models: PathBuf,
    pub http: Http,
    pub grpc: Grpc,
    pub admin: Admin,
    pub auth: Auth,
    pub bus: bus::Settings,
    pub cache: cache::Settings,
    pub discovery: discovery::Settings,
    pub modules: Modules,
    pub log: telemetry::Settings,
    pub otlp: trace::Settings,
    pub audio: audio::settings::Settings,
    pub inference: inference::Settings,
    pub api: api::settings::Settings,
    #[serde(skip)]
    pub source: Source,
}

/// Where it was read from, so that it can be read again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub file: Option<PathBuf>,
    flags: serde_json::Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Api,
    Audio,
    Inference,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// API, dashboard, callers' sockets; port 0 takes a free one. Default: 127.0.0.1:8080
    pub addr: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Where this process serves its modules to others: `https://10.0.0.7:7443`, `http://127.0.0.1:7443` or `unix:/path`.
    /// Default: not at all.
    pub listen: Option<String>,
    /// Processes of different clusters refuse each other. Default: quickcomm
    pub cluster: String,
    /// For https, at either end. `quickcomm certs` makes such files for development. Default: none
    pub tls: Option<GrpcTls>,
}

/// PEM files. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcTls {
    /// The authorities whose certificates are believed.
    pub ca: PathBuf,
    /// This process's certificate; its roles stand in it as `quickcomm://role/…`.
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Health and metrics; port 0 takes a free one. Default: 127.0.0.1:9090
    pub addr: SocketAddr,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// `open`: no keys, loopback only. Default: open
    pub mode: AuthMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    #[default]
    Open,
}

/// Where each module answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modules {
    pub audio: Place,
    pub inference: Place,
    pub api: Place,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Place {
    /// `local`: in this process; `remote`: at `endpoints`; `routed`: by percentage, each side standing in for the other. Default: local
    pub mode: Mode,
    /// `https://10.0.0.7:7443`, `http://127.0.0.1:7443` or `unix:/run/quickcomm/audio.sock`, one or more; with `local` they wait for the
    /// dial to be turned.
    pub endpoints: Vec<String>,
    pub route: Route,
}

/// The dial of a routed module. Read again whenever the file changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// Conversations that go to the endpoints, 0 to 100. Default: 0
    pub remote_percent: u8,
    /// Calls also asked of the other side and compared, 0 to 100; of inference only. Default: 0
    pub shadow_percent: u8,
    /// When the dial goes back by itself.
    pub step_back: StepBack,
}

impl Place {
    pub fn dial(&self) -> Dial {
        let Route { remote_percent, shadow_percent, step_back } = self.route;
        Dial { mode: self.mode, remote_percent, shadow_percent, step_back }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: BTreeSet::from([Role::Api, Role::Audio, Role::Inference]),
            data: ".quickcomm/data".into(),
            models: ".quickcomm/models".into(),
            http: Http::default(),
            grpc: Grpc::default(),
            admin: Admin::default(),
            auth: Auth::default(),
            bus: bus::Settings::default(),
            cache: cache::Settings::default(),
            discovery: discovery::Settings::default(),
            modules: Modules::default(),
            log: telemetry::Settings::default(),
            otlp: trace::Settings::default(),
            audio: audio::settings::Settings::default(),
            inference: inference::Settings::default(),
            api: api::settings::Settings::default(),
            source: Source::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { addr: SocketAddr::from(([127, 0, 0, 1], 8080)) }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self { listen: None, cluster: "quickcomm".into(), tls: None }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { addr: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Unreadable(#[from] settings::SettingsError),
    #[error("{key}: {problem}")]
    Refused { key: String, problem: String },
}

impl Config {
    /// Reads all layers and checks them. `flags` holds only what was given on the command line.
    pub fn load(file: Option<&Path>, flags: impl Serialize) -> Result<Self, ConfigError> {
        let default = Path::new("quickcomm.toml");
        let file = file.or_else(|| default.is_file().then_some(default));
        let flags = serde_json::to_value(flags).map_err(|e| settings::SettingsError::Bad(e.to_string()))?;
        let mut config: Self = settings::load(file, &flags)?;
        config.check()?;
        config.source = Source { file: file.map(Path::to_owned), flags };
        Ok(config)
    }

    /// The same layers as they are now.
    pub fn read_again(source: &Source) -> Result<Self, ConfigError> {
        Self::load(source.file.as_deref(), &source.flags)
    }

    /// Whether other processes stand on the same bus.
    pub fn shares_bus(&self) -> bool {
        self.bus.kind == bus::Kind::Redis
    }

    /// Whether peers come and go by the registry.
    pub fn finds_peers(&self) -> bool {
        self.discovery.kind == discovery::Kind::Redis
    }

    /// Callers' sockets: where the record is; with a shared bus also where audio is heard, if the record is named there.
    pub fn hosts_ingest(&self) -> bool {
        self.roles.contains(&Role::Api) || self.shares_bus() && self.roles.contains(&Role::Audio) && self.modules.api.dial().asks_remote()
    }

    /// The transcript worker is with what it asks most, as far as the bus reaches.
    pub fn hosts_worker(&self) -> bool {
        self.roles.contains(if self.shares_bus() { &Role::Inference } else { &Role::Api })
    }

    /// Whether something in this process calls the module.
    pub fn calls(&self, module: Role) -> bool {
        match module {
            Role::Audio => self.hosts_ingest(),
            Role::Inference => self.roles.contains(&Role::Api) || self.hosts_worker(),
            Role::Api => self.hosts_ingest() || self.hosts_worker(),
        }
    }

    /// Everything that can be refused before anything binds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, problem: String| Err(ConfigError::Refused { key: key.into(), problem });
        for (key, addr) in [("http.addr", self.http.addr), ("admin.addr", self.admin.addr)] {
            if !addr.ip().is_loopback() {
                return refuse(key, format!("{addr} is not loopback; without keys (auth.mode = \"open\") expected 127.0.0.1 or [::1]"));
            }
        }
        if self.roles.is_empty() {
            return refuse("roles", "none given; expected at least one of api, audio, inference".into());
        }
        if let Err(problem) = self.bus.check() {
            return refuse("bus", problem);
        }
        if let Err(problem) = self.cache.check(&self.bus) {
            return refuse("cache", problem);
        }
        if let Err(problem) = self.discovery.check() {
            return refuse("discovery", problem);
        }
        if self.finds_peers() && !self.shares_bus() {
            return refuse(
                "discovery.kind",
                "redis keeps the registry on the Redis of the bus: expected bus.kind = \"redis\" and a bus.url".into(),
            );
        }
        if let (true, None, Some(listen)) = (self.finds_peers(), &self.discovery.advertise, &self.grpc.listen)
            && ["0.0.0.0", "[::]"].iter().any(|any| listen.contains(any))
        {
            let problem =
                format!("grpc.listen is {listen}, which others cannot connect to: expected an address such as https://10.0.0.7:7443");
            return refuse("discovery.advertise", problem);
        }
        let record_elsewhere = self.modules.api.mode != Mode::Local || !self.modules.api.endpoints.is_empty();
        if record_elsewhere && !self.shares_bus() {
            let problem = "elsewhere needs a bus that processes share: expected bus.kind = \"redis\" and a bus.url, \
                           or the api role where callers connect";
            return refuse("modules.api.mode", problem.into());
        }
        if record_elsewhere && self.roles.contains(&Role::Api) {
            return refuse("modules.api.mode", "this process keeps the record itself: expected local and no endpoints".into());
        }
        if !self.hosts_ingest() && !self.hosts_worker() && self.grpc.listen.is_none() {
            let problem =
                "a process without the api role has no callers but other processes; expected an address such as \"http://127.0.0.1:7443\"";
            return refuse("grpc.listen", problem.into());
        }
        let places = [
            ("audio", Role::Audio, &self.modules.audio),
            ("inference", Role::Inference, &self.modules.inference),
            ("api", Role::Api, &self.modules.api),
        ];
        for (name, role, place) in places {
            let key = format!("modules.{name}");
            let hosted = self.roles.contains(&role);
            let dial = place.dial();
            if dial.asks_remote() && place.endpoints.is_empty() && !self.finds_peers() {
                return refuse(&format!("{key}.endpoints"), format!("none given; {dial} needs at least one"));
            }
            for (name, percent) in [("remote_percent", dial.remote_percent), ("shadow_percent", dial.shadow_percent)] {
                if percent > 100 {
                    return refuse(&format!("{key}.route.{name}"), format!("{percent}; expected 0 to 100"));
                }
            }
            if dial.shadow_percent > 0 && role != Role::Inference {
                return refuse(&format!("{key}.route.shadow_percent"), "only calls of inference can be shadowed; expected 0".into());
            }
            if self.calls(role) && !hosted && dial.asks_local() {
                if role == Role::Api && !self.hosts_ingest() {
                    let problem =
                        format!("{dial}; the transcript worker runs here and asks the record who speaks: expected remote and an endpoint");
                    return refuse("modules.api.mode", problem);
                }
                return refuse(
                    &format!("{key}.mode"),
                    format!("{dial}, but this process has no {name} role; expected remote and an endpoint"),
                );
            }
        }
        let checked = [("audio", self.audio.check()), ("inference", self.inference.check()), ("api", self.api.check())];
        for (key, outcome) in checked {
            if let Err(problem) = outcome {
                return refuse(key, problem.to_string());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(flags: serde_json::Value, says: &[&str]) {
        let text = Config::load(Some(Path::new("/dev/null")).filter(|p| p.is_file()), flags).unwrap_err().to_string();
        for part in says {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
    }

    #[test]
    fn the_defaults_pass() {
        Config::default().check().unwrap()
    }

    #[test]
    fn nothing_listens_beyond_loopback_without_keys() {
        refused(serde_json::json!({ "http": { "addr": "0.0.0.0:8080" } }), &["http.addr", "0.0.0.0:8080", "loopback"]);
    }

    #[test]
    fn a_role_set_that_cannot_work_is_refused() {
        refused(serde_json::json!({ "roles": ["audio"] }), &["grpc.listen", "7443"]);
        refused(serde_json::json!({ "roles": ["api", "audio"] }), &["modules.inference.mode", "endpoint"]);
        refused(serde_json::json!({ "roles": [] }), &["roles", "at least one"]);
        refused(serde_json::json!({ "modules": { "api": { "mode": "remote", "endpoints": ["unix:/x"] } } }), &["modules.api.mode", "bus"]);
        refused(serde_json::json!({ "modules": { "audio": { "mode": "remote" } } }), &["modules.audio.endpoints", "at least one"]);
    }

    #[test]
    fn roles_that_share_a_bus_need_one() {
        let shared = serde_json::json!({ "kind": "redis", "url": "redis://127.0.0.1:6379" });
        let record = serde_json::json!({ "mode": "remote", "endpoints": ["unix:/x"] });
        let with = |roles: &[&str], bus: &serde_json::Value, api: Option<&serde_json::Value>| {
            let mut flags = serde_json::json!({ "roles": roles, "bus": bus });
            if let Some(api) = api {
                flags["modules"] = serde_json::json!({ "api": api });
            }
            flags
        };
        let fine = Config::load(None, with(&["inference"], &shared, Some(&record))).unwrap();
        assert!(fine.hosts_worker() && !fine.hosts_ingest() && fine.calls(Role::Api));
        let fine = Config::load(None, with(&["audio"], &shared, Some(&record))).unwrap();
        assert!(fine.hosts_ingest() && !fine.hosts_worker());
        refused(with(&["inference"], &shared, None), &["modules.api.mode", "worker", "endpoint"]);
        refused(with(&["inference"], &serde_json::json!({}), Some(&record)), &["bus.kind", "redis"]);
        refused(with(&["api", "audio", "inference"], &shared, Some(&record)), &["modules.api.mode", "keeps the record itself"]);
        refused(with(&["api"], &serde_json::json!({ "kind": "redis" }), None), &["bus", "url"]);
        let open = serde_json::json!({ "kind": "redis", "url": "redis://10.0.0.5:6379" });
        refused(with(&["api", "audio", "inference"], &open, None), &["bus", "10.0.0.5", "no password"]);
        refused(with(&["api"], &serde_json::json!({ "url": "http://x" }), None), &["bus.url", "expected redis://"]);
    }

    #[test]
    fn a_cache_that_cannot_be_is_refused() {
        let cache = |settings: serde_json::Value| serde_json::json!({ "cache": settings });
        refused(cache(serde_json::json!({ "kind": "redis" })), &["cache", "url", "redis://127.0.0.1:6379"]);
        let open = serde_json::json!({ "kind": "redis", "url": "redis://10.0.0.5:6379" });
        refused(cache(open), &["cache", "10.0.0.5", "no password"]);
        refused(cache(serde_json::json!({ "kind": "disk" })), &["cache.kind", "memory"]);
        refused(cache(serde_json::json!({ "loads": 0 })), &["cache", "loads is 0: expected 1 to 1024"]);
    }

    #[test]
    fn a_dial_that_cannot_be_is_refused() {
        let audio = |place: serde_json::Value| serde_json::json!({ "modules": { "audio": place } });
        let route = serde_json::json!({ "remote_percent": 101 });
        refused(audio(serde_json::json!({ "mode": "routed", "endpoints": ["unix:/x"], "route": route })), &["remote_percent", "0 to 100"]);
        refused(audio(serde_json::json!({ "mode": "routed", "route": { "remote_percent": 10 } })), &["modules.audio.endpoints", "10 %"]);
        refused(audio(serde_json::json!({ "route": { "shadow_percent": 10 } })), &["shadow_percent", "inference"]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        refused(serde_json::json!({ "http": { "adr": "127.0.0.1:1" } }), &["adr"])
    }
}
