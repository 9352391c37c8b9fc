//! The sockets callers use.

mod settings;

pub use settings::IngestSettings;

use actix_web::web;
use contracts::{Audio, Conversations};
use platform::bus::Bus;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// What ingest stands on.
pub struct IngestDeps {
    pub audio: Arc<dyn Audio>,
    pub conversations: Arc<dyn Conversations>,
    pub bus: Arc<dyn Bus>,
    pub settings: IngestSettings,
    /// Recordings go to the folder `recordings` in here.
    pub data: PathBuf,
}

/// Every conversation whose audio this process receives.
pub struct Ingest {
    #[allow(dead_code)]
    deps: IngestDeps,
}

impl Ingest {
    /// Call inside the runtime on which conversations shall live; it must outlive the sockets.
    pub fn start(deps: IngestDeps) -> Arc<Self> {
        Arc::new(Self { deps })
    }

    /// Routes: `/v1/stream`, `/v1/listen`, `/v1/conversations/{id}/recording`. Before any scope that also covers `/v1`.
    pub fn configure(self: &Arc<Self>, _routes: &mut web::ServiceConfig) {}

    /// Finishes what an earlier run of this process left open. Returns when nothing is left to do.
    pub async fn recover(&self) {}

    /// Tells callers to come back later, and waits until what was heard is committed.
    pub async fn drain(&self, _limit: Duration) {}

    /// Conversations open now.
    pub fn live(&self) -> usize {
        0
    }
}
