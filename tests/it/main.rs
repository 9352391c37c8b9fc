//! The product as a client sees it: the real binary, real models, real SDKs, a real browser.

#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

mod bad_input;
mod browser;
mod bus;
mod cache;
mod calls;
mod certs;
#[path = "../../modules/fabric/tests/it/collector/mod.rs"]
mod collector;
mod counted;
mod crash;
mod deepgram_sdk;
mod definitions;
mod drain;
mod encrypted;
mod finishing;
mod full_disk;
mod killed;
mod layering;
mod moving;
mod nodes;
mod postgres;
mod private;
mod refused;
mod route;
#[path = "../../modules/inference/tests/support/scripted.rs"]
mod scripted;
mod seeing;
mod split;
mod support;
mod traces;
