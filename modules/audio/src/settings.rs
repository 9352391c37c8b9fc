//! What can be set about hearing and about the callers' sockets; every field with unit and default.

use serde::{Deserialize, Serialize};

pub use crate::{engine::EngineSettings, ingest::IngestSettings};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub engine: EngineSettings,
    pub ingest: IngestSettings,
}

impl Settings {
    /// # Errors
    /// Names the field that cannot work and what it may be.
    pub fn check(&self) -> Result<(), String> {
        self.engine.check()?;
        self.ingest.check()
    }
}
