//! The product as a client sees it: the real binary, real models, real SDKs, a real browser.

#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

mod bad_input;
mod browser;
mod bus;
mod calls;
mod certs;
mod crash;
mod deepgram_sdk;
mod layering;
mod moving;
mod route;
mod seeing;
mod split;
mod support;
mod traces;
