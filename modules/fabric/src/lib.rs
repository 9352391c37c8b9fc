//! A promise kept from elsewhere: the three contracts over gRPC, and the same rules around a call wherever its module runs.
//!
//! - [`local`]: a handle to a module of this process; [`connect`]: to one in another; [`serve()`]: this process's modules for others.
//! - [`route`]: a handle that asks whichever of them the table says, and the dials that change it while calls are running.
//! - The rules (deadline, cancel, panic, size, depth) stand in one place, `guard`; all three use it.
//! - Only this crate names tonic; wire types do not leave it.
//!
//! Deliberately absent: discovery and TLS. Peers are on this machine, at a static address each.

mod api;
mod audio;
pub mod connect;
mod context;
mod error;
mod guard;
mod inference;
pub mod local;
pub mod metrics;
pub mod route;
mod serve;
mod served;
mod wire;

pub use metrics::describe as describe_metrics;
pub use serve::{ServeError, Server, Services, serve};

#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod suites;
