//! The fabric as its users meet it: over real sockets, through its public doors alone.

#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

mod collector;
mod drain;
mod exercise;
mod processes;
mod registry;
mod spans;
mod trace;
mod trust;
