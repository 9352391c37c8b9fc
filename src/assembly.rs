//! Builds every module, hands out `Arc<dyn Trait>`, and lists the long tasks in the order in which they stop.
//!
//! Invariant: the only place that names concrete types. A module that is not hosted here is a client of where it is; the rest of the
//! process cannot tell.

use crate::{
    config::{Config, Place, Role},
    dial, registry,
};
use actix_web::{App, HttpServer};
use anyhow::Context;
use api::{
    Api, ApiDeps, Finalizer, Record,
    admin::{self, Status},
    record::Standing,
};
use audio::{engine::Engine, ingest::Ingest};
use contracts::{Audio, Conversations, Inference, route::Mode};
use fabric::{Network, route::Dials};
use platform::{
    bus::{self, Bus, Memory, Redis},
    cache,
    memory::{grown_since, resident_bytes},
    onnx::{ModelError, Runtime},
    supervision::{OnEnd, Supervisor},
    telemetry::Metrics,
};
use serde::Serialize;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Open calls get this long to flush what they have when the process is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// Then every task gets this long.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Threads for sockets and HTTP; they compute nothing.
const HTTP_WORKERS: usize = 2;
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Where a process listens.
#[derive(Clone, Debug, Serialize)]
pub struct Addresses {
    pub http: Option<SocketAddr>,
    pub grpc: Option<String>,
    pub admin: SocketAddr,
}

/// Starts the engine of a process that hears; with the runtime of its models, or why there is none.
pub type StartEngine = fn(&Config, Result<&Runtime, &ModelError>) -> anyhow::Result<Engine>;

/// The engine on the models that the configuration names.
///
/// # Errors
/// Names the file that is missing or damaged, or the setting that cannot work.
pub fn engine_on_models(config: &Config, runtime: Result<&Runtime, &ModelError>) -> anyhow::Result<Engine> {
    let runtime = runtime.map_err(|error| anyhow::anyhow!("{error}")).context("loading ONNX Runtime")?;
    Engine::start(runtime, &config.models, &config.audio.engine).context("starting the audio engine")
}

/// Runs this process until `stop`, or until a task it cannot do without has ended. `announce` is called once everything listens.
pub async fn run(
    config: Config,
    start_engine: StartEngine,
    metrics: Metrics,
    stop: CancellationToken,
    announce: impl FnOnce(&Addresses),
) -> anyhow::Result<()> {
    fabric::Run::current(); // begins here
    describe_metrics();
    let status = Status::new(env!("CARGO_PKG_VERSION"), config.audio.ingest.recordings);
    let mut tasks = Supervisor::default();

    let rendered = metrics.clone();
    let admin = admin::serve(config.admin.addr, status.clone(), Arc::new(move || rendered.render())).await?;

    // The record first: a second start on the same folder must fail before it has loaded models.
    let shared = match config.bus.kind {
        bus::Kind::Memory => None,
        bus::Kind::Redis => Some(Arc::new(Redis::connect(&config.bus).await?)),
    };
    let bus: Arc<dyn Bus> = match &shared {
        None => Arc::new(Memory::with_capacity(config.bus.capacity)),
        Some(shared) => shared.clone(),
    };
    let remembers = config.inference.llm.url.is_some() && Models::understands(&config);
    let cache = match config.roles.contains(&Role::Api) || remembers {
        true => Some(cache::Front::start(&config.cache, shared.as_deref()).await?),
        false => None,
    };
    let before = resident_bytes();
    let record = match cache.clone().filter(|_| config.roles.contains(&Role::Api)) {
        Some(cache) => Some(Record::open_behind(cache, &config.data, bus.clone(), &config.api).await.context("opening the record")?),
        None => None,
    };
    if let (Some(_), Some(grown)) = (&record, grown_since(before)) {
        status.grew("api", grown);
        status.counts("api", "SQLite, by its own count", Arc::new(Record::memory_bytes));
    }
    if let Some(record) = &record {
        status.keep_by(record.clone());
    }
    let models = Models::load(&config, start_engine, &status, cache.clone()).await?;
    if let Some(inference) = models.inference.clone() {
        tasks.spawn("definitions", OnEnd::Fine, STOP_LIMIT, |stop| async move {
            inference.follow_files(stop).await;
            Ok(())
        });
    }
    if let Some(engine) = models.engine.clone() {
        tasks.spawn("audio", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
            tokio::select! { cause = engine.lost() => anyhow::bail!(cause), () = stop.cancelled() => Ok(()) }
        });
    }
    let network = network(&config, &mut tasks)?;
    let mut dials = Dials::default();
    let handles = Handles::build(&config, &models, &network, record.clone(), &mut dials)?;
    dial::name_hosted(&status, &config);
    let services = fabric::Services {
        audio: models.engine.clone().map(|e| e as Arc<dyn Audio>),
        inference: models.inference.clone().map(|i| i as Arc<dyn Inference>),
        conversations: record.is_some().then(|| handles.conversations.clone()).flatten(),
    };
    let served = services.names();
    let server = match &config.grpc.listen {
        Some(listen) => Some(network.serve(listen, services).await.with_context(|| format!("grpc.listen {listen}"))?),
        None => None,
    };
    let grpc = server.as_ref().map(|server| server.address().to_owned());
    let dials = handles.any().then(|| Arc::new(dials));
    let nodes = shared.as_ref().filter(|_| config.finds_peers()).map(|shared| shared.nodes(&config.grpc.cluster));
    let registration = match nodes {
        Some(nodes) => {
            let address = grpc.as_ref().map(|bound| config.discovery.advertise.as_ref().unwrap_or(bound).clone());
            let own = registry::Own { address, modules: served };
            registry::attend(nodes, &network, own, dials.clone(), &config, &status, &mut tasks).await.context("discovery")?
        }
        None => None,
    };
    if let Some(dials) = &dials {
        dial::attend(dials, record.clone(), &config, &status, &mut tasks);
    }
    if let Some(record) = &record {
        watch_record(record.clone(), &status, &mut tasks); // not before: whoever has said nothing yet is not ready
    }
    let front = Front::start(&config, &mut tasks, &status, &bus, record, handles).await?;
    if let Some(cache) = cache {
        watch_cache(&config, cache, &status, &mut tasks); // stops after the record, whose last changes it tells
    }
    watch_bus(&config, bus, &status, &mut tasks);
    if let Some(server) = server {
        tasks.spawn("grpc", OnEnd::ExitProcess, fabric::Drain::default().limit() + STOP_LIMIT, |stop| server.run(stop));
    }
    tasks.spawn("metrics", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        tokio::select! { () = metrics.upkeep() => {}, () = stop.cancelled() => {} }
        Ok(())
    });

    let addresses = Addresses { http: front.addr, grpc, admin: admin.addr() };
    info!(http = ?addresses.http, grpc = ?addresses.grpc, admin = %addresses.admin, "ready");
    announce(&addresses);

    let failure = tokio::select! {
        () = stop.cancelled() => None,
        failure = tasks.failed() => Some(failure),
    };
    status.drain();
    if let Some(registration) = &registration {
        registration.leave().await;
    }
    if let Some(ingest) = &front.ingest {
        ingest.drain(DRAIN_LIMIT).await;
    }
    tasks.stop().await;
    models.stop().await;
    admin.stop().await;
    info!(failed = failure.is_some(), "stopped");
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

/// The modules that compute, as far as this process hosts them.
struct Models {
    engine: Option<Arc<Engine>>,
    inference: Option<Arc<inference::Local>>,
}

/// Whether a module of this role is in this process and may be asked here.
fn hosts(config: &Config, role: Role, place: &Place) -> bool {
    config.roles.contains(&role) && place.mode != Mode::Remote
}

impl Models {
    fn understands(config: &Config) -> bool {
        hosts(config, Role::Inference, &config.modules.inference)
    }

    /// Loads recognizer and detector; then the classifier, behind everything else. One after the other, so that it can be told which of
    /// them the memory is for.
    async fn load(config: &Config, start_engine: StartEngine, status: &Status, cache: Option<Arc<cache::Front>>) -> anyhow::Result<Self> {
        let (hears, understands) = (hosts(config, Role::Audio, &config.modules.audio), Self::understands(config));
        let config = config.clone();
        let told = status.clone();
        let loading = tokio::task::spawn_blocking(move || -> anyhow::Result<(Self, Option<u64>)> {
            if !hears && !understands {
                return Ok((Self { engine: None, inference: None }, None));
            }
            // Without the runtime there is no hearing, but there are rules for meaning.
            let runtime = Runtime::load(&config.models);
            let before = resident_bytes();
            let engine = hears.then(|| start_engine(&config, runtime.as_ref())).transpose()?.map(Arc::new);
            if let (Some(_), Some(grown)) = (&engine, grown_since(before)) {
                told.grew("audio", grown);
            }
            if let (Err(error), true) = (&runtime, understands) {
                tracing::error!(error = %error, "no ONNX Runtime: insights come from rules");
            }
            let before = resident_bytes();
            let start = || inference::Local::start(runtime.as_ref().ok(), &config.models, &config.inference);
            let inference = understands.then(start).transpose();
            let remembering = |local: inference::Local| match cache {
                Some(cache) => local.remembering(cache),
                None => local,
            };
            Ok((Self { engine, inference: inference.context("starting inference")?.map(remembering).map(Arc::new) }, before))
        });
        let (loaded, before) = loading.await.context("loading the models panicked")??;
        if let Some(inference) = loaded.inference.clone() {
            let status = status.clone();
            // Ends when the classifier is there, or known to be missing.
            tokio::spawn(async move {
                let _ = inference.ready().await;
                if let Some(grown) = grown_since(before) {
                    status.grew("inference", grown);
                }
            });
        }
        Ok(loaded)
    }

    async fn stop(self) {
        if let Some(engine) = self.engine {
            let _ = tokio::task::spawn_blocking(move || engine.shutdown()).await;
        }
        if let Some(inference) = self.inference {
            inference.shutdown().await;
        }
    }
}

/// How this process calls the modules, as far as it does.
struct Handles {
    audio: Option<Arc<dyn Audio>>,
    inference: Option<Arc<dyn Inference>>,
    conversations: Option<Arc<dyn Conversations>>,
}

impl Handles {
    fn build(config: &Config, models: &Models, network: &Network, record: Option<Arc<Record>>, dials: &mut Dials) -> anyhow::Result<Self> {
        let place = |place: &Place| fabric::route::Place { dial: place.dial(), endpoints: place.endpoints.clone() };
        let engine = models.engine.clone().map(|engine| fabric::local::audio(engine));
        let understanding = models.inference.clone().map(|inference| fabric::local::inference(inference));
        let kept = record.map(|record| fabric::local::conversations(record));
        // A macro, because each contract is a type of its own.
        macro_rules! handle {
            ($role:ident, $name:ident, $module:ident, $local:expr) => {{
                let network = network.clone();
                let build = || {
                    let at = &place(&config.modules.$module);
                    dials.$name($local, at, Arc::new(move |endpoint: &str| Ok((network.$name(endpoint)?, network.health(endpoint)?))))
                };
                let named = || concat!("modules.", stringify!($module), ".endpoints");
                config.calls(Role::$role).then(build).transpose().with_context(named)?
            }};
        }
        Ok(Self {
            audio: handle!(Audio, audio, audio, engine),
            inference: handle!(Inference, inference, inference, understanding),
            conversations: handle!(Api, conversations, api, kept),
        })
    }

    fn any(&self) -> bool {
        self.audio.is_some() || self.inference.is_some() || self.conversations.is_some()
    }
}

/// What callers and viewers connect to, and what works on the bus: sockets, API, worker, record, as far as they are hosted here.
struct Front {
    ingest: Option<Arc<Ingest>>,
    addr: Option<SocketAddr>,
}

impl Front {
    async fn start(
        config: &Config,
        tasks: &mut Supervisor,
        status: &Status,
        bus: &Arc<dyn Bus>,
        record: Option<Arc<Record>>,
        handles: Handles,
    ) -> anyhow::Result<Self> {
        let Handles { audio, inference, conversations } = handles;
        let ingest = match (audio, conversations.clone()) {
            (Some(audio), Some(conversations)) if config.hosts_ingest() => Some(Ingest::start(audio::ingest::IngestDeps {
                audio,
                conversations,
                bus: bus.clone(),
                settings: config.audio.ingest.clone(),
                data: config.data.clone(),
                standing: record.clone().map(standing),
            })),
            _ => None,
        };
        if let Some(ingest) = &ingest {
            status.counts("audio", "audio kept until it is committed", ingest.kept_bytes());
            watch_recordings(ingest.clone(), status, tasks);
            if let Some(stay) = config.api.finalize.recordings_stay() {
                forget_recordings(ingest.clone(), stay.to_std().expect("days are not negative"), tasks);
            }
        }
        let api = match (&record, &ingest, inference.clone()) {
            (Some(record), Some(ingest), Some(inference)) => Some(Api::new(ApiDeps {
                record: record.clone(),
                inference,
                bus: bus.clone(),
                status: status.clone(),
                has_recording: ingest.has_recording(),
                settings: config.api.clone(),
            })),
            _ => None,
        };
        let finalizer = match (&record, inference.clone()) {
            (Some(record), Some(inference)) => {
                let forget =
                    ingest.as_ref().map_or_else(|| Arc::new(|_| Ok(())) as api::finalizer::ForgetRecording, |i| i.forget_recording());
                Some(Finalizer::new(record.clone(), inference, forget, &config.api.finalize)?)
            }
            _ => None,
        };
        let worker = match (inference, conversations) {
            (Some(inference), Some(conversations)) if config.hosts_worker() => {
                Some(inference::Worker::new(inference, conversations, bus.clone(), &config.inference.worker))
            }
            _ => None,
        };
        let server = ingest.clone().map(|ingest| listen(config, ingest, api.clone())).transpose()?;
        let addr = server.as_ref().map(|(_, addr)| *addr);

        // In the order in which they stop: no new work, then what is under way, then what keeps it.
        if let Some(api) = api {
            tasks.spawn("live", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
                api.run(stop).await;
                Ok(())
            });
        }
        if let Some((running, _)) = server {
            tasks.spawn("http", OnEnd::ExitProcess, STOP_LIMIT * 2, |stop| async move {
                let handle = running.handle();
                let stopping = tokio::spawn(async move {
                    stop.cancelled().await;
                    handle.stop(true).await;
                });
                running.await?;
                stopping.abort();
                Ok(())
            });
        }
        if let Some(recovering) = ingest.clone() {
            tasks.spawn("recovery", OnEnd::Fine, STOP_LIMIT, |stop| async move {
                tokio::select! { () = recovering.recover() => {}, () = stop.cancelled() => {} }
                Ok(())
            });
        }
        if let Some(worker) = worker {
            tasks.keep("worker", STOP_LIMIT, move |stop| {
                let worker = worker.clone();
                async move {
                    worker.run(stop).await;
                    Ok(())
                }
            });
        }
        if let Some(finalizer) = finalizer {
            tasks.keep("finalizer", STOP_LIMIT, move |stop| {
                let finalizer = finalizer.clone();
                async move {
                    finalizer.run(stop).await;
                    Ok(())
                }
            });
        }
        if let Some(record) = record {
            tasks.spawn("record", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
                let draining = record.clone();
                record.run(stop).await;
                draining.drain().await;
                Ok(())
            });
        }
        Ok(Self { ingest, addr })
    }
}

/// For whoever has written: what to show the record's readers, to be shown it.
fn standing(record: Arc<Record>) -> audio::ingest::Standing {
    Arc::new(move || {
        let record = record.clone();
        Box::pin(async move { record.token().await.ok().map(|mark| mark.to_string()) })
    })
}

/// The sockets of callers, and of viewers where the record is.
fn listen(config: &Config, sockets: Arc<Ingest>, faces: Option<Api>) -> anyhow::Result<(actix_web::dev::Server, SocketAddr)> {
    let server = HttpServer::new(move || {
        admin::name_thread("api-http");
        App::new().configure(|app| sockets.configure(app)).configure(|app| {
            if let Some(faces) = &faces {
                faces.configure(app);
            }
        })
    })
    .workers(HTTP_WORKERS)
    .disable_signals()
    .shutdown_timeout(STOP_LIMIT.as_secs())
    .client_request_timeout(Duration::from_secs(5))
    .keep_alive(Duration::from_secs(75))
    .bind(config.http.addr)
    .with_context(|| format!("http.addr {}: is another quickcomm running?", config.http.addr))?;
    let addr = server.addrs().first().copied().context("the HTTP listener has no address")?;
    Ok((server.run(), addr))
}

/// Shows how a shared bus does, and gives back what was read from it when everything that reads has stopped.
///
/// It is never a reason to be unready: every process would be at the same time, and callers are heard without it.
fn watch_bus(config: &Config, bus: Arc<dyn Bus>, status: &Status, tasks: &mut Supervisor) {
    let Some(url) = config.bus.url.as_ref().filter(|_| config.shares_bus()).map(ToString::to_string) else { return };
    let status = status.clone();
    tasks.spawn("bus", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            let trouble = bus.trouble().map(|why| format!("{why}; what is said is kept until it is back"));
            status.set(stands_on("bus", admin::Mode::Remote, url.clone(), trouble));
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => break }
        }
        bus.close().await;
        Ok(())
    });
}

/// Keeps the cache, and shows how a shared one does. Without it reads are slower and a language model is asked more often.
fn watch_cache(config: &Config, cache: Arc<cache::Front>, status: &Status, tasks: &mut Supervisor) {
    let running = cache.clone();
    tasks.spawn("cache", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        running.run(stop).await;
        Ok(())
    });
    if config.cache.kind != cache::Kind::Redis {
        return;
    }
    let url = config.cache.url.as_ref().or(config.bus.url.as_ref()).map(ToString::to_string);
    let status = status.clone();
    tasks.spawn("cache status", OnEnd::Fine, STOP_LIMIT, |stop| async move {
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            let trouble = cache.trouble().map(|why| format!("{why}; reads go to the database"));
            status.set(stands_on("cache", admin::Mode::Remote, url.clone(), trouble));
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return Ok(()) }
        }
    });
}

/// Shows whether the record answers and takes writes; never a reason to be unready, as above.
fn watch_record(record: Arc<Record>, status: &Status, tasks: &mut Supervisor) {
    let mode = if record.shared_at().is_some() { admin::Mode::Remote } else { admin::Mode::Local };
    let status = status.clone();
    tasks.spawn("record-probe", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        let mut look = tokio::time::interval(PROBE_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let late = || Standing::Silent(format!("it does not answer within {} ms", PROBE_LIMIT.as_millis()));
            let trouble = match tokio::time::timeout(PROBE_LIMIT, record.probe()).await.unwrap_or_else(|_| late()) {
                Standing::Serving => None,
                Standing::TakesNoWrites(why) => {
                    Some(format!("{why}; it can be read, and what is said in calls that are live is kept until it takes writes again"))
                }
                Standing::Silent(why) => Some(format!("{why}; callers are heard, and what is said is kept until it is back")),
            };
            status.set(stands_on("record", mode, record.name(), trouble));
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return Ok(()) }
        }
    });
}

/// Shows whether audio can be recorded.
fn watch_recordings(ingest: Arc<Ingest>, status: &Status, tasks: &mut Supervisor) {
    let status = status.clone();
    tasks.spawn("recordings-probe", OnEnd::Fine, STOP_LIMIT, |stop| async move {
        let mut look = tokio::time::interval(PROBE_EVERY);
        while let Some((folder, trouble)) = ingest.recordings_at() {
            let trouble =
                trouble.map(|why| format!("{why}; calls that are live go on, and new callers are refused until it can be written"));
            status.set(stands_on("recordings", admin::Mode::Local, folder, trouble));
            tokio::select! { _ = look.tick() => {}, () = stop.cancelled() => return Ok(()) }
        }
        Ok(())
    });
}

/// Their conversations may have ended in a process that knows nothing of them.
fn forget_recordings(ingest: Arc<Ingest>, stay: Duration, tasks: &mut Supervisor) {
    tasks.spawn("recordings-age", OnEnd::Fine, STOP_LIMIT, move |stop| async move {
        tokio::select! { () = ingest.forget_after(stay) => {}, () = stop.cancelled() => {} }
        Ok(())
    });
}

/// As the page of health shows what a process stands on.
fn stands_on(name: &str, mode: admin::Mode, at: impl Into<Option<String>>, trouble: Option<String>) -> admin::Module {
    let state = if trouble.is_none() { admin::ModuleState::Ready } else { admin::ModuleState::Degraded };
    admin::Module { name: name.into(), mode, endpoint: at.into(), state, detail: trouble.unwrap_or_else(|| "serving".into()) }
}

/// How this process shows itself to others, and its certificate if it has one.
fn network(config: &Config, tasks: &mut Supervisor) -> anyhow::Result<Network> {
    let roles: Vec<fabric::Role> = config
        .roles
        .iter()
        .map(|role| match role {
            Role::Api => fabric::Role::Api,
            Role::Audio => fabric::Role::Audio,
            Role::Inference => fabric::Role::Inference,
        })
        .collect();
    let tls = match &config.grpc.tls {
        Some(tls) => {
            let files = fabric::Files { ca: tls.ca.clone(), cert: tls.cert.clone(), key: tls.key.clone() };
            let tls = Arc::new(fabric::Tls::load(files).context("grpc.tls")?);
            let served = config.grpc.listen.as_ref().is_some_and(|listen| listen.starts_with("https:"));
            if let Some(missing) = roles.iter().find(|role| served && !tls.roles().contains(role)) {
                anyhow::bail!("grpc.tls.cert: it names no role {missing}, which this process serves: callers would refuse it");
            }
            let watched = tls.clone();
            tasks.spawn("certificates", OnEnd::Fine, STOP_LIMIT, |stop| async move {
                tokio::select! { () = watched.watch() => {}, () = stop.cancelled() => {} }
                Ok(())
            });
            Some(tls)
        }
        None => None,
    };
    let own = fabric::Introduction {
        build: env!("CARGO_PKG_VERSION").into(),
        roles: roles.iter().map(ToString::to_string).collect(),
        cluster: config.grpc.cluster.clone(),
        models: platform::onnx::hashes(&config.models),
        run: Some(fabric::Run::current()),
        ..Default::default()
    };
    Ok(Network::new(own, tls))
}

fn describe_metrics() {
    inference::metrics::describe();
    api::describe_metrics();
    fabric::describe_metrics();
    bus::describe_metrics();
    cache::describe_metrics();
}
