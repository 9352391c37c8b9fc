//! One binary that hears, understands and shows. [`run`] is what `main` starts, and what tests start.

pub mod assembly;
pub mod calls;
pub mod cli;
pub mod client;
pub mod config;
mod dial;
mod registry;

pub use assembly::{Addresses, run};
