//! Models on disk and the runtime that runs them: what a model is stands in its `model.toml`; a wrong file is refused with what was expected.
//!
//! Invariants: the only place that starts ONNX Runtime; one environment per process; a session has one thread and belongs to one thread.

mod model;

pub use model::{Kind, ModelDir, ModelError, hashes};

use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session, builder::GraphOptimizationLevel},
};
use std::{path::Path, sync::Arc};

/// The ONNX Runtime library, loaded.
#[derive(Clone)]
pub struct Runtime {
    env: Arc<Environment>,
    version: String,
}

impl Runtime {
    /// Loads the library named by `models/runtime/model.toml`.
    ///
    /// # Errors
    /// Names the file that is missing or damaged and what was expected in it.
    pub fn load(models: &Path) -> Result<Self, ModelError> {
        let dir = ModelDir::open(&models.join("runtime"), Kind::Runtime)?;
        let library = dir.file("libonnxruntime.so")?;
        let unusable = |cause: String| ModelError::Unusable { file: library.clone(), cause };
        let env = ort::init_from(&library)
            .map_err(|e| unusable(e.to_string()))?
            .with_name("quickcomm")
            .with_telemetry(false)
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        Ok(Self { env: env.into(), version: dir.version().to_owned() })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// A session with one thread, for one thread.
    pub fn session(&self, file: &Path) -> Result<Session, ModelError> {
        let build = || -> Result<Session, String> {
            let s = |e: &dyn std::fmt::Display| e.to_string();
            Session::builder(&self.env)
                .map_err(|e| s(&e))?
                .with_intra_threads(1)
                .map_err(|e| s(&e))?
                .with_inter_threads(1)
                .map_err(|e| s(&e))?
                .with_intra_op_spinning(false)
                .map_err(|e| s(&e))?
                .with_flush_to_zero()
                .map_err(|e| s(&e))?
                .with_optimization_level(GraphOptimizationLevel::All)
                .map_err(|e| s(&e))?
                // Its warnings speak of graphs it tidies up while loading, to people who cannot change them.
                .with_log_level(LogLevel::Error)
                .map_err(|e| s(&e))?
                .commit_from_file(file)
                .map_err(|e| s(&e))
        };
        build().map_err(|cause| ModelError::Unusable { file: file.to_owned(), cause })
    }
}
