//! What is known of the memory of the modules of one process, which share one heap.
//!
//! Invariant: what was measured (how much the process grew while a module loaded) and what a module counts itself (buffers it holds now)
//! are told apart, and what is neither is nobody's. Nothing is estimated.

use parking_lot::Mutex;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};
use utoipa::ToSchema;

/// A module's own count of what it holds.
pub type CountBytes = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModuleMemory {
    /// Measured: resident memory of the process grew by this while the module started and loaded its models. `null`: it was not watched.
    pub loaded_bytes: Option<u64>,
    /// Counted by the module itself: what it holds now. `null`: it counts nothing here.
    pub held_bytes: Option<u64>,
    /// What that is.
    #[schema(example = "audio that is not committed")]
    pub held: Option<&'static str>,
}

#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<String, Known>>);

#[derive(Default)]
struct Known {
    loaded_bytes: Option<u64>,
    held: Option<(&'static str, CountBytes)>,
}

impl Memory {
    pub(super) fn grew(&self, module: &str, bytes: u64) {
        self.0.lock().entry(module.into()).or_default().loaded_bytes = Some(bytes);
    }

    pub(super) fn counts(&self, module: &str, what: &'static str, count: CountBytes) {
        self.0.lock().entry(module.into()).or_default().held = Some((what, count));
    }

    pub(super) fn of(&self, module: &str) -> ModuleMemory {
        let known = self.0.lock();
        let Some(Known { loaded_bytes, held }) = known.get(module) else { return ModuleMemory::default() };
        ModuleMemory {
            loaded_bytes: *loaded_bytes,
            held_bytes: held.as_ref().map(|(_, count)| count()),
            held: held.as_ref().map(|(what, _)| *what),
        }
    }

    /// What of `resident` is no module's. Pages that were loaded and given back since make it smaller than it is, never negative.
    pub(super) fn rest(&self, resident: u64) -> u64 {
        let known = self.0.lock();
        let all = known.values().map(|known| known.loaded_bytes.unwrap_or(0) + known.held.as_ref().map_or(0, |(_, count)| count()));
        resident.saturating_sub(all.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_and_what_is_counted_are_told_apart_and_the_rest_is_nobodys() {
        let memory = Memory::default();
        assert_eq!((memory.of("audio"), memory.rest(100)), (ModuleMemory::default(), 100));
        memory.grew("audio", 60);
        memory.counts("audio", "audio that is not committed", Arc::new(|| 5));
        memory.counts("api", "SQLite", Arc::new(|| 7));
        let audio = ModuleMemory { loaded_bytes: Some(60), held_bytes: Some(5), held: Some("audio that is not committed") };
        assert_eq!((memory.of("audio"), memory.rest(100)), (audio, 28));
        assert_eq!(memory.of("api").loaded_bytes, None, "what was not measured is absent");
        assert_eq!(memory.rest(10), 0);
    }
}
