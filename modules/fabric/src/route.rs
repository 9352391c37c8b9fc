//! Who answers a call: the table of a module's targets, and what happens between a call and the target that answers it.
//!
//! Around a call, outside in: total metrics and the rules of `guard` (deadline, cancel), shadow, retry, pick, breaker, slots, attempt
//! timeout, the target's own metrics.
//!
//! Invariants:
//! - the table is swapped whole: a call sees one version of it from beginning to end;
//! - a live stream keeps its target until that ends, or until it is asked to move;
//! - a shadow never delays or fails the call it shadows.

mod breaker;
mod control;
mod live;
mod pick;
mod recent;
mod retry;
mod routed;
mod router;
mod shadow;
mod step_back;
mod table;
#[cfg(test)]
mod tests;

pub use breaker::BreakerLimits;
pub use control::{Dials, Place};
pub use router::Limits;
pub use table::Connect;
