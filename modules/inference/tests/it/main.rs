//! What the module answers: with real models where they are on disk, with language models well and ill, and over the bus.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

mod definitions;
mod llama;
mod llm;
#[path = "../support/over_rules.rs"]
mod over_rules;
mod poison;
mod remembered;
#[path = "../support/scripted.rs"]
mod scripted;
mod summary;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/turns.rs"]
mod turns;
mod understanding;
mod upgrade;
mod worker;
