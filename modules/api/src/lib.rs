//! The module `api`: the record and its faces.
//!
//! Invariant: rooms are folders; only `record` names diesel, only `rest`, `live` and `admin` name actix.

pub mod admin;
pub mod finalizer;
pub mod live;
mod metrics;
pub mod record;
pub mod rest;
pub mod settings;

pub use finalizer::Finalizer;
pub use metrics::describe as describe_metrics;
pub use record::Record;
pub use rest::{Api, ApiDeps, HasRecording};
pub use settings::Settings;
