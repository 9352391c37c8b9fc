//! What an operator asks: is it alive, is it ready, what does it do with the processor; and the dials, which an operator turns.
//!
//! Invariants: the listener has a thread and a runtime of its own and reads nothing but memory and `/proc`, so it answers while every other
//! thread computes; dead letters alone are read from the record; what it tells names no secret and no word that was spoken.
//! Deliberately absent: deciding what is ready; assembly tells [`Status`], the live feed tells it tiers and how many calls are live.

mod bottleneck;
mod cpu;
mod dead_letters;
mod memory;
mod meters;
pub(crate) mod routes;
mod scrape;
pub(crate) mod topology;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::header, web};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use contracts::{inference::TierStatus, route::Routes};
use memory::Memory;
use meters::Meters;
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use utoipa::ToSchema;

pub use cpu::name_thread;
pub use memory::CountBytes;

/// Where a module's calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Local,
    Remote,
    /// By percentage, each side standing in for the other.
    Routed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModuleState {
    Ready,
    /// It does what it can without something it stands on; `detail` says what that is.
    Degraded,
    /// Not started yet, or broken; `detail` says which.
    Failing,
}

/// One module as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ModuleStatus)]
pub struct Module {
    #[schema(example = "inference")]
    pub name: String,
    pub mode: Mode,
    /// Where it is reached when remote.
    #[schema(example = "unix:/run/quickcomm/inference.sock")]
    pub endpoint: Option<String>,
    pub state: ModuleState,
    /// For people.
    #[schema(example = "serving")]
    pub detail: String,
}

/// A process that answers for a remote module, as it introduced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Peer {
    #[schema(example = "https://10.0.0.7:7443")]
    pub endpoint: String,
    #[schema(example = "0.1.0")]
    pub build: String,
    /// Oldest and newest version of the contracts it speaks.
    pub contracts: [u32; 2],
    pub cluster: String,
    pub roles: Vec<String>,
    /// Hash of each model, by its name.
    pub models: BTreeMap<String, String>,
    /// How long it has been running; `None` from releases that do not tell.
    pub up_s: Option<u64>,
}

/// The one place where this process keeps what it knows of itself. Cheap to clone; every clone is the same status.
#[derive(Clone)]
pub struct Status(Arc<Inner>);

struct Inner {
    version: String,
    started_at: DateTime<Utc>,
    started: Instant,
    recordings: bool,
    draining: AtomicBool,
    live: AtomicUsize,
    modules: Mutex<Vec<Module>>,
    peers: Mutex<BTreeMap<String, Peer>>,
    tiers: Mutex<Vec<TierStatus>>,
    routes: Mutex<Option<Arc<dyn Routes>>>,
    memory: Memory,
    record: Mutex<Option<Arc<crate::Record>>>,
    /// Set by the admin listener, which keeps them.
    meters: Mutex<Option<Arc<Meters>>>,
}

impl Status {
    /// Not ready until every module that was set is ready, and at least one was.
    pub fn new(version: impl Into<String>, recordings: bool) -> Self {
        Self(Arc::new(Inner {
            version: version.into(),
            started_at: Utc::now(),
            started: Instant::now(),
            recordings,
            draining: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            modules: Mutex::default(),
            peers: Mutex::default(),
            tiers: Mutex::default(),
            routes: Mutex::default(),
            memory: Memory::default(),
            record: Mutex::default(),
            meters: Mutex::default(),
        }))
    }

    /// Adds a module, or replaces what was said of it.
    pub fn set(&self, module: Module) {
        let mut modules = self.0.modules.lock();
        match modules.iter_mut().find(|m| m.name == module.name) {
            Some(known) => *known = module,
            None => modules.push(module),
        }
    }

    /// Changes the state of a module that was set before; an unknown name is ignored.
    pub fn turn(&self, name: &str, state: ModuleState, detail: impl Into<String>) {
        if let Some(known) = self.0.modules.lock().iter_mut().find(|m| m.name == name) {
            known.state = state;
            known.detail = detail.into();
        }
    }

    /// Whose dials are read and turned here.
    pub fn dial_by(&self, routes: Arc<dyn Routes>) {
        *self.0.routes.lock() = Some(routes);
    }

    /// Whose dead letters are read and replayed here.
    pub fn keep_by(&self, record: Arc<crate::Record>) {
        *self.0.record.lock() = Some(record);
    }

    fn record(&self) -> Option<Arc<crate::Record>> {
        self.0.record.lock().clone()
    }

    fn routes(&self) -> Option<Arc<dyn Routes>> {
        self.0.routes.lock().clone()
    }

    /// Who answers for a remote module now; `None` while nobody does.
    pub fn met(&self, module: &str, peer: Option<Peer>) {
        let mut peers = self.0.peers.lock();
        match peer {
            Some(peer) => peers.insert(module.into(), peer),
            None => peers.remove(module),
        };
    }

    fn meters(&self) -> Option<Arc<Meters>> {
        self.0.meters.lock().clone()
    }

    /// Resident memory grew by this while a module started and loaded its models.
    pub fn grew(&self, module: &str, bytes: u64) {
        self.0.memory.grew(module, bytes);
    }

    /// How much a module holds now, by its own count, and of what.
    pub fn counts(&self, module: &str, what: &'static str, count: CountBytes) {
        self.0.memory.counts(module, what, count);
    }

    /// From now on `/readyz` says no, so that a balancer sends callers elsewhere while accepted work is finished.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    pub fn is_ready(&self) -> bool {
        let modules = self.0.modules.lock();
        !self.is_draining() && !modules.is_empty() && modules.iter().all(|m| m.state != ModuleState::Failing)
    }

    pub(crate) fn live_conversations(&self, count: usize) {
        self.0.live.store(count, Ordering::Relaxed);
    }

    pub(crate) fn answer_by(&self, tiers: Vec<TierStatus>) {
        *self.0.tiers.lock() = tiers;
    }

    pub fn report(&self) -> StatusReport {
        StatusReport {
            version: self.0.version.clone(),
            started_at: self.0.started_at,
            uptime_s: self.0.started.elapsed().as_secs(),
            recordings: self.0.recordings,
            modules: self.0.modules.lock().clone(),
            peers: self.0.peers.lock().clone(),
            tiers: self
                .0
                .tiers
                .lock()
                .iter()
                .map(|t| TierReport { task: t.task.name(), tier: t.tier.name(), degraded: t.degraded.clone(), stale: t.stale.clone() })
                .collect(),
            conversations: ConversationsReport { live: self.0.live.load(Ordering::Relaxed) },
        }
    }
}

/// `GET /v1/admin/status`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Status)]
pub struct StatusReport {
    #[schema(example = "0.1.0")]
    pub version: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: DateTime<Utc>,
    pub uptime_s: u64,
    /// Whether audio is kept, so that a call can be heard again.
    pub recordings: bool,
    pub modules: Vec<Module>,
    /// By the module they answer for.
    pub peers: BTreeMap<String, Peer>,
    /// Which rung answers each task now.
    pub tiers: Vec<TierReport>,
    pub conversations: ConversationsReport,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = TierStatus)]
pub struct TierReport {
    #[schema(example = "intent")]
    pub task: &'static str,
    #[schema(example = "local")]
    pub tier: &'static str,
    /// Why not the configured one.
    pub degraded: Option<String>,
    /// Why a newer file of labels or prompts is not in use.
    pub stale: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ConversationCounts)]
pub struct ConversationsReport {
    pub live: usize,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    draining: bool,
    modules: Vec<Module>,
}

/// Renders the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// A running admin listener. Dropping it stops the listener without waiting.
pub struct AdminHandle {
    addr: SocketAddr,
    server: actix_web::dev::ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl AdminHandle {
    /// Where it listens; tells the port when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops listening and waits for the thread's end.
    pub async fn stop(mut self) {
        self.server.stop(true).await;
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        drop(self.server.stop(false)); // the command is sent when it is called; waiting for it is optional
    }
}

/// Starts the admin listener on a thread of its own and returns once it accepts connections.
///
/// # Errors
/// The address cannot be bound, or the thread cannot be started.
pub async fn serve(addr: SocketAddr, status: Status, render: RenderMetrics) -> anyhow::Result<AdminHandle> {
    let (started_tx, started) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            let meters = Arc::new(Meters::new(render));
            *status.0.meters.lock() = Some(meters.clone());
            actix_web::rt::System::new().block_on(async move {
                let watching = meters.clone();
                actix_web::rt::spawn(async move { watching.run().await }); // ends with the system
                let server = HttpServer::new(move || {
                    name_thread("admin-http");
                    let (status, meters) = (status.clone(), meters.clone());
                    App::new().configure(move |app| routes(app, status, meters))
                })
                .workers(1)
                .disable_signals()
                .shutdown_timeout(1)
                .client_request_timeout(Duration::from_secs(5))
                .keep_alive(Duration::from_secs(30))
                .max_connections(256)
                .bind(addr);
                let server = match server {
                    Ok(server) => server,
                    Err(cause) => return drop(started_tx.send(Err(cause))),
                };
                let bound = server.addrs();
                let running = server.run();
                let _ = started_tx.send(Ok((bound, running.handle())));
                if let Err(cause) = running.await {
                    tracing::error!(%cause, "admin listener ended");
                }
            });
        })
        .context("starting the admin thread")?;
    let (bound, server) = started
        .await
        .context("the admin thread ended before it listened")?
        .with_context(|| format!("binding the admin address {addr}: is another quickcomm running?"))?;
    let addr = bound.first().copied().context("the admin listener has no address")?;
    Ok(AdminHandle { addr, server, thread: Some(thread) })
}

fn routes(app: &mut web::ServiceConfig, status: Status, meters: Arc<Meters>) {
    app.app_data(web::Data::new(status))
        .app_data(web::Data::from(meters))
        .service(web::resource("/livez").get(livez).head(livez))
        .service(web::resource("/readyz").get(readyz).head(readyz))
        .service(web::resource("/metrics").get(metrics).head(metrics))
        .service(web::resource("/admin/dead-letters").get(dead_letters::list))
        .service(web::resource("/admin/dead-letters/{id}").get(dead_letters::show))
        .service(web::resource("/admin/dead-letters/{id}/replay").post(dead_letters::replay))
        .service(web::resource("/admin/status").get(report).head(report))
        .service(web::resource("/admin/topology").get(topology::read).head(topology::read))
        .service(web::resource("/admin/routes").get(routes::read).head(routes::read))
        .service(web::resource("/admin/routes/{module}").put(routes::turn))
        .default_service(web::to(nothing_here));
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().insert_header(no_store()).content_type("text/plain; charset=utf-8").body("alive\n")
}

async fn readyz(status: web::Data<Status>) -> HttpResponse {
    let ready = status.is_ready();
    let body = Readiness { ready, draining: status.is_draining(), modules: status.0.modules.lock().clone() };
    let mut answer = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.insert_header(no_store()).json(body)
}

async fn metrics(meters: web::Data<Meters>) -> HttpResponse {
    let mut text = (meters.render)();
    meters.cpu.append(&mut text);
    HttpResponse::Ok().insert_header(no_store()).content_type("text/plain; version=0.0.4; charset=utf-8").body(text)
}

async fn report(status: web::Data<Status>) -> HttpResponse {
    HttpResponse::Ok().insert_header(no_store()).json(status.report())
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    let path: String = request.path().chars().take(128).collect();
    HttpResponse::NotFound().content_type("application/problem+json").json(serde_json::json!({
        "type": "urn:quickcomm:problem:not_found", "title": "Not found", "status": 404, "code": "not_found",
        "detail": format!("nothing answers {path:?} here: /livez, /readyz, /metrics, /admin/status, /admin/topology and /admin/routes do"), "instance": path,
    }))
}

fn no_store() -> (header::HeaderName, &'static str) {
    (header::CACHE_CONTROL, "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::{http::StatusCode, test};

    fn module(name: &str, state: ModuleState) -> Module {
        Module { name: name.into(), mode: Mode::Local, endpoint: None, state, detail: "loading models".into() }
    }

    async fn get(status: &Status, path: &str) -> (StatusCode, String) {
        let (status, render) = (status.clone(), Arc::new(|| "qc_up 1\n".to_owned()) as RenderMetrics);
        let app = test::init_service(App::new().configure(|app| routes(app, status, Arc::new(Meters::new(render))))).await;
        let answer = test::call_service(&app, test::TestRequest::get().uri(path).to_request()).await;
        let code = answer.status();
        (code, String::from_utf8(test::read_body(answer).await.to_vec()).unwrap())
    }

    #[actix_web::test]
    async fn it_is_ready_when_every_module_is_and_says_which_is_not() {
        let status = Status::new("0.1.0", true);
        assert_eq!(get(&status, "/readyz").await.0, 503, "nothing has been started");
        status.set(module("api", ModuleState::Ready));
        status.set(module("audio", ModuleState::Failing));
        let (code, body) = get(&status, "/readyz").await;
        assert_eq!(code, 503);
        assert!(body.contains(r#""name":"audio","mode":"local","endpoint":null,"state":"failing","detail":"loading models""#), "{body}");
        status.turn("audio", ModuleState::Ready, "serving");
        assert_eq!(get(&status, "/readyz").await.0, 200);
        status.set(module("bus", ModuleState::Degraded));
        assert_eq!(get(&status, "/readyz").await.0, 200, "every process is without it at the same time");
        status.drain();
        assert_eq!(get(&status, "/readyz").await.0, 503);
        assert_eq!(get(&status, "/livez").await.0, 200, "a draining process is alive");
    }

    #[actix_web::test]
    async fn metrics_hold_what_the_process_counts_and_its_cpu_by_module() {
        let (_, text) = get(&Status::new("0.1.0", false), "/metrics").await;
        assert!(text.starts_with("qc_up 1\n"), "{text}");
        assert!(text.contains("# TYPE quickcomm_cpu_seconds_total counter\n"), "{text}");
        assert!(text.contains("quickcomm_cpu_seconds_total{module=\""), "{text}");
    }

    #[actix_web::test]
    async fn it_listens_on_a_thread_of_its_own_and_stops() {
        let status = Status::new("0.1.0", true);
        let admin = serve(([127, 0, 0, 1], 0).into(), status, Arc::new(String::new)).await.unwrap();
        let addr = admin.addr();
        assert_ne!(addr.port(), 0);
        let answer = tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let mut socket = std::net::TcpStream::connect(addr).unwrap();
            socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).unwrap();
            text
        })
        .await
        .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("module=\"admin\""), "{answer}");
        let taken = serve(addr, Status::new("0.1.0", true), Arc::new(String::new)).await.err().unwrap();
        assert!(format!("{taken:#}").contains(&addr.to_string()), "{taken:#}");
        admin.stop().await;
        assert!(std::net::TcpStream::connect(addr).is_err());
    }
}
