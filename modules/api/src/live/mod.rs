//! The live feed: what happens, as it happens, on one socket.

mod settings;

pub use settings::Settings;

use crate::rest::ApiDeps;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub struct Live {}

impl Live {
    pub(crate) fn new(_deps: &ApiDeps) -> Self {
        Self {}
    }
    pub async fn run(&self, stop: CancellationToken) {
        stop.cancelled().await
    }
}
