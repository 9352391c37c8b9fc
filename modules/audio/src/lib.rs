//! Hears callers: their sockets (`ingest`) and the engine that turns sound into text (`engine`), which keeps the contract `Audio`.

pub mod engine;
pub mod ingest;
mod metrics;
pub mod settings;
pub mod transcribe;

pub use settings::Settings;
