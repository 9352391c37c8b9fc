//! The module `inference`: what was meant. Keeps the contract `Inference`, and hosts the transcript worker that calls it.
//!
//! Invariants:
//! - a call never fails for want of a model: it is answered one rung lower, and says so;
//! - models run on threads of their own, at a lower priority than everything that listens or stores;
//! - what is computed has no side effects; only the worker publishes.
//!
//! Deliberately absent: language models over the network (rungs above this one), storage, sockets.

mod breaker;
pub mod classifier;
pub mod labels;
pub mod ladder;
pub mod metrics;
pub mod rules;
pub mod settings;
mod summary;
pub mod turn;
pub mod worker;

pub use ladder::{Local, StartError};
pub use settings::Settings;
pub use worker::Worker;
