//! Ingest as its callers meet it: real sockets, a small engine that hears loudness, a record in memory.

mod deepgram;
mod faults;
mod native;
mod support;
