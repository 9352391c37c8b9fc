//! The sockets callers use.
