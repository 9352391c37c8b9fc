//! REST: the record as resources under `/v1`, the dashboard's files, the OpenAPI document.
//!
//! Invariants: every error is a problem document (RFC 9457) with a trace id; an unknown query parameter is an error, not a shrug; what belongs
//! to another tenant is not found; nothing here changes anything but the dials, and those only for callers of this very origin.
//! Deliberately absent: the audio sockets and recordings (`audio`), the live feed (`crate::live`), storage (`crate::record`).

mod cached;
mod conversations;
mod dashboard;
mod edge;
mod export;
mod openapi;
pub(crate) mod origin;
mod params;
mod problem;
mod routes;
mod search;
mod settings;
mod status;
mod summary;
#[cfg(test)]
mod tests;
mod topology;
#[cfg(test)]
pub(crate) mod world;

pub(crate) use edge::Caller;
pub use problem::{Fault, Problem, ProblemDocument};
pub use settings::Settings;

use crate::{admin::Status, live::Hub, record::Record};
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
    reads: web::Data<conversations::Reads>,
    summaries: web::Data<summary::Summaries>,
    status: web::Data<Status>,
    hosts: web::Data<edge::Hosts>,
    hub: Arc<Hub>,
}

impl Api {
    pub fn new(deps: ApiDeps) -> Self {
        let hub = Hub::new(&deps);
        Self {
            reads: web::Data::new(conversations::Reads { record: deps.record, has_recording: deps.has_recording }),
            summaries: web::Data::new(summary::Summaries(deps.inference)),
            status: web::Data::new(deps.status),
            hosts: web::Data::new(edge::Hosts(deps.settings.rest.allowed_hosts)),
            hub,
        }
    }

    /// Registers every route of this module, and the answer to paths that nobody registered. Other routes of the same `App` are not touched,
    /// whichever comes first.
    pub fn configure(&self, app: &mut web::ServiceConfig) {
        app.app_data(self.reads.clone())
            .app_data(self.summaries.clone())
            .app_data(self.status.clone())
            .app_data(self.hosts.clone())
            .app_data(web::Data::from(self.hub.clone()))
            .configure(routes::register);
    }

    /// Keeps the live feed until `stop`, then says goodbye to its readers. Start it before the listener: what is announced earlier is read from
    /// the record, but nobody is told live; and stop it before the listener, which waits for open sockets.
    pub async fn run(self, stop: CancellationToken) {
        if let Err(cause) = self.hub.run(stop).await {
            tracing::error!(cause = format!("{cause:#}"), "the live feed ended");
        }
    }

    #[cfg(test)]
    pub(crate) fn hub(&self) -> Arc<Hub> {
        self.hub.clone()
    }
}
