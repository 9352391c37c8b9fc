//! A promise kept from elsewhere: the three contracts over gRPC, and the same rules around a call wherever its module runs.
//!
//! - [`local`]: a handle to a module of this process; [`connect`]: to one in another; [`serve()`]: this process's modules for others.
//! - [`route`]: a handle that asks whichever of them the table says, and the dials that change it while calls are running.
//! - The rules (deadline, cancel, panic, size, depth) stand in one place, `guard`; all three use it.
//! - Processes introduce themselves (`hello`) and, off this machine, prove their role (`tls`, `role`) before the first call.
//! - Peers are at static addresses, or come and go by a registry (`discovery`).
//! - Only this crate names tonic; wire types do not leave it.

mod api;
mod audio;
pub mod certs;
pub mod connect;
mod context;
pub mod discovery;
mod error;
mod guard;
mod hello;
mod inference;
mod link;
mod listen;
pub mod local;
pub mod metrics;
mod role;
pub mod route;
mod serve;
mod served;
mod tls;
mod wire;

pub use connect::Network;
pub use hello::{CONTRACTS, Introduction, Refused, Run};
pub use metrics::describe as describe_metrics;
pub use role::Role;
pub use serve::{Drain, ServeError, Server, Services, serve};
pub use tls::{Files, Tls, TlsError};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod suites;
