//! Ingest as its callers meet it: real sockets, a small engine that hears loudness, a record in memory.

mod deepgram;
mod failover;
mod faults;
mod native;
mod support;
