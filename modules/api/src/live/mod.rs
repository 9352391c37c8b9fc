//! The live feed: what happens, as it happens, on one socket.
//!
//! A reader subscribes to topics; each sends a snapshot, then numbered events that continue it. What is in the record comes from its committed
//! changes, so a reader sees what is stored, in the order it was stored; what only passes by (unfinished text, who talks, lag) comes from the
//! bus and is state: the newest wins, and nobody waits for an old one.
//!
//! Deliberately absent: history; that is REST's.

mod call;
mod hub;
mod outbox;
mod settings;
mod socket;
#[cfg(test)]
mod tests;
mod topic;
mod wire;

pub(crate) use hub::Hub;
pub use settings::Settings;
pub(crate) use socket::live;
