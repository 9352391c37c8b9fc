//! The module `inference`: what was meant. Keeps the contract `Inference`, and hosts the transcript worker that calls it.
//!
//! Invariants:
//! - a call never fails for want of a model: it is answered one rung lower, and says so;
//! - models run on threads of their own, at a lower priority than everything that listens or stores;
//! - what is computed has no side effects; only the worker publishes.
//!
//! Deliberately absent: storage, and sockets that others connect to.

mod breaker;
pub mod classifier;
pub mod definitions;
mod finding;
pub mod labels;
pub mod ladder;
mod llm;
pub mod metrics;
pub mod prompts;
pub mod rules;
pub mod settings;
mod summary;
pub mod turn;
mod watch;
pub mod worker;

pub use ladder::{Local, StartError};
pub use llm::LlmSettings;
pub use settings::Settings;
pub use worker::Worker;
