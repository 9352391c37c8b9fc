//! The whole picture in one document: modules, where each runs, how it does there, and what holds the others up.

use super::{
    Module, ModuleState, Status,
    bottleneck::{self, Bottleneck, Calls, Picture, Seen, Slow},
    memory::ModuleMemory,
    meters::{Hop, Lately, QueueWait},
};
use actix_web::{HttpResponse, web};
use chrono::{DateTime, Utc};
use contracts::route::{RouteChange, RouteView, TargetView};
use platform::memory::resident_bytes;
use serde::Serialize;
use std::thread::available_parallelism;
use utoipa::ToSchema;

/// What the table of targets calls the module in this process.
const LOCAL: &str = "local";

/// `GET /v1/admin/topology`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Topology {
    pub process: Process,
    pub bottleneck: Bottleneck,
    pub modules: Vec<ModuleLoad>,
    /// Processor time by the threads that used it, in cores.
    pub parts: Vec<Part>,
    pub hops: Vec<Hop>,
    /// Dials and targets, as `GET /admin/routes` on the admin port tells them; empty where no module is called.
    #[schema(value_type = Vec<Object>)]
    pub routes: Vec<RouteView>,
    /// Newest first.
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<RouteChange>,
}

/// The process that answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Process {
    #[schema(example = "0.1.0")]
    pub version: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: DateTime<Utc>,
    pub uptime_s: u64,
    pub draining: bool,
    /// Everything that is counted was counted in so many last seconds.
    pub window_s: f64,
    pub cores: usize,
    /// Cores this process uses; `null` where they cannot be read.
    pub cpu: Option<f64>,
    /// Cores everything on this machine uses.
    pub machine_cpu: Option<f64>,
    /// Resident memory.
    pub memory_bytes: Option<u64>,
    /// What of it is no module's: the program, its threads, the runtime of the models, and what allocators keep for later.
    pub shared_bytes: Option<u64>,
    pub live_conversations: usize,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModuleLoad {
    #[serde(flatten)]
    pub module: Module,
    /// Cores its threads use in this process.
    pub cpu: Option<f64>,
    /// `null`: nothing has waited here.
    pub queue_wait: Option<QueueWait>,
    /// Calls refused for want of room.
    pub refused: u64,
    pub memory: ModuleMemory,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Part {
    #[schema(example = "audio")]
    pub name: &'static str,
    pub cpu: f64,
}

/// What others wait for when it is away or full, the gravest first. Without cache and registry they only do with less.
const HOLD_UP: [&str; 3] = ["record", "recordings", "bus"];

impl Topology {
    pub(crate) fn of(status: &Status) -> Self {
        let report = status.report();
        let lately = status.meters().map(|meters| meters.lately());
        let (routes, changes) = status.routes().map(|routes| (routes.views(), routes.changes())).unwrap_or_default();
        let cores = available_parallelism().map_or(1, usize::from);
        let cpu = lately.as_ref().filter(|lately| !lately.cores.is_empty()).map(|lately| lately.cores.values().sum());
        let load = |module: Module| ModuleLoad {
            cpu: lately.as_ref().and_then(|lately| lately.cores_of(&module.name)),
            queue_wait: lately.as_ref().and_then(|lately| lately.wait(&module.name)),
            refused: lately.as_ref().map_or(0, |lately| lately.refused(&module.name)),
            memory: status.0.memory.of(&module.name),
            module,
        };
        let modules: Vec<ModuleLoad> = report.modules.into_iter().map(load).collect();
        let resident = resident_bytes();
        let window_s = lately.as_ref().map_or(0.0, |lately| lately.window_s);
        let machine_cpu = lately.as_ref().and_then(|lately| lately.machine);
        let picture = Picture {
            window_s,
            cores: cores as f64,
            process: cpu,
            machine: machine_cpu,
            modules: modules.iter().map(|module| seen(module, &routes, lately.as_ref())).collect(),
            trouble: HOLD_UP.iter().find_map(|name| {
                let load = modules.iter().find(|load| load.module.name == *name && load.module.state == ModuleState::Degraded)?;
                Some((load.module.name.clone(), load.module.detail.clone()))
            }),
        };
        Self {
            process: Process {
                version: report.version,
                started_at: report.started_at,
                uptime_s: report.uptime_s,
                draining: status.is_draining(),
                window_s,
                cores,
                cpu,
                machine_cpu,
                memory_bytes: resident,
                shared_bytes: resident.map(|resident| status.0.memory.rest(resident)),
                live_conversations: report.conversations.live,
            },
            bottleneck: bottleneck::judge(&picture),
            modules,
            parts: lately.as_ref().map(parts).unwrap_or_default(),
            hops: lately.map(|lately| lately.hops).unwrap_or_default(),
            routes,
            changes,
        }
    }
}

fn parts(lately: &Lately) -> Vec<Part> {
    let mut parts: Vec<Part> = lately.cores.iter().map(|(name, cpu)| Part { name, cpu: *cpu }).collect();
    parts.sort_by(|a, b| b.cpu.total_cmp(&a.cpu));
    parts
}

fn seen(load: &ModuleLoad, routes: &[RouteView], lately: Option<&Lately>) -> Seen {
    let name = &load.module.name;
    let route = routes.iter().find(|route| route.module == *name);
    let targets = route.map_or(&[][..], |route| &route.targets);
    let (local, remote): (Vec<&TargetView>, Vec<&TargetView>) = targets.iter().partition(|target| target.name == LOCAL);
    Seen {
        name: name.clone(),
        here: route.is_none_or(|route| route.dial.asks_local()),
        cpu: load.cpu.unwrap_or(0.0),
        wait_p99_ms: load.queue_wait.as_ref().map(|wait| wait.p99_ms),
        wait_limit_ms: load.queue_wait.as_ref().map_or(0.0, |wait| wait.limit_ms),
        slow: lately.and_then(|lately| lately.slow(name)).map(|hop| Slow {
            hop: hop.name,
            p99_ms: hop.p99_ms.unwrap_or(0.0),
            limit_ms: hop.limit_ms,
        }),
        refused: load.refused,
        local: together(&local),
        remote: together(&remote),
    }
}

/// Several targets as one: their calls added up, the slowest of their percentiles.
fn together(targets: &[&TargetView]) -> Calls {
    targets.iter().fold(Calls::default(), |sum, target| Calls {
        calls: sum.calls + target.recent.calls,
        failed: sum.failed + target.recent.failed,
        p99_ms: sum.p99_ms.max(target.recent.p99_ms),
    })
}

/// `GET /admin/topology`
pub(super) async fn read(status: web::Data<Status>) -> HttpResponse {
    HttpResponse::Ok().insert_header(super::no_store()).json(Topology::of(&status))
}
