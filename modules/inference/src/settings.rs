//! What can be set about understanding, and the check that runs before anything starts.

use crate::llm::LlmSettings;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[modules.inference]`, as far as this module reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Answer by the embedding model when it is on disk; `false` starts on rules. Default true.
    pub classifier: bool,
    /// Threads that run the embedding model, each with its own session (about 70 MB each). Default 1.
    pub threads: usize,
    /// Added to the niceness of those threads, 0 to 19: the higher, the more they give way. Default 10.
    pub nice: i32,
    /// Turns that wait for a thread before calls are refused as busy. Default 256.
    pub queue: usize,
    /// Time a classification may take before rules answer in its place, in ms; half of it for a call that another place did not answer.
    /// Default 1000.
    pub timeout_ms: u64,
    /// With less than this left of a call's budget rules answer at once, in ms. Default 25.
    pub reserve_ms: u64,
    /// Failures in a row after which the classifier is left alone. Default 3.
    pub breaker_failures: u32,
    /// First pause of the classifier after those failures, in ms; doubles up to 60 s. Default 1000.
    pub breaker_pause_ms: u64,
    /// Label definitions for intents instead of the bundled ones. Default none.
    pub intent_labels: Option<PathBuf>,
    /// Label definitions for sentiment instead of the bundled ones. Default none.
    pub sentiment_labels: Option<PathBuf>,
    /// A folder of files that replace what is bundled: `intent.toml`, `sentiment.toml` (label sets), `turn.toml` and `summary.toml` (the
    /// language model's prompts). They are read again when they change. Default none.
    pub definitions: Option<PathBuf>,
    pub llm: LlmSettings,
    pub worker: WorkerSettings,
}

/// `[modules.inference.worker]`: the transcript worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// Entries taken from the bus at once. Default 16.
    pub batch: usize,
    /// Conversations worked on at the same time. Default 16.
    pub concurrency: usize,
    /// Time an insight may take from when its turn came onto the bus, in ms; a turn that waited there gets a quarter of it at the least.
    /// Default 2000.
    pub budget_ms: u64,
    /// Deliveries of one entry before a pending insight is published in its place. Default 4.
    pub attempts: u32,
    /// First wait before an entry is tried again, in ms; doubles with each attempt, up to 4 s. Default 1000.
    pub backoff_ms: u64,
    /// Conversations whose roles and last turns are remembered. Default 4096.
    pub remembered: usize,
    /// Turns answered by a lower rung that are asked about again when the better one is back, the newest first. Default 1024, 0 for none.
    pub upgrades: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            classifier: true,
            threads: 1,
            nice: 10,
            queue: 256,
            timeout_ms: 1_000,
            reserve_ms: 25,
            breaker_failures: 3,
            breaker_pause_ms: 1_000,
            intent_labels: None,
            sentiment_labels: None,
            definitions: None,
            llm: LlmSettings::default(),
            worker: WorkerSettings::default(),
        }
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { batch: 16, concurrency: 16, budget_ms: 2_000, attempts: 4, backoff_ms: 1_000, remembered: 4_096, upgrades: 1_024 }
    }
}

impl Settings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        expect("threads", self.threads as u64, 1, 16)?;
        if !(0..=19).contains(&self.nice) {
            return Err(format!("nice is {}: expected 0 to 19", self.nice));
        }
        expect("queue", self.queue as u64, 1, 65_536)?;
        expect("timeout_ms", self.timeout_ms, 1, 60_000)?;
        expect("reserve_ms", self.reserve_ms, 0, 10_000)?;
        expect("breaker_failures", u64::from(self.breaker_failures), 1, 1_000)?;
        expect("breaker_pause_ms", self.breaker_pause_ms, 1, 60_000)?;
        self.llm.check().map_err(|e| format!("llm.{e}"))?;
        self.worker.check().map_err(|e| format!("worker.{e}"))
    }
}

impl WorkerSettings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        expect("batch", self.batch as u64, 1, 1_024)?;
        expect("concurrency", self.concurrency as u64, 1, 64)?;
        expect("budget_ms", self.budget_ms, 1, 60_000)?;
        expect("attempts", u64::from(self.attempts), 1, 100)?;
        expect("backoff_ms", self.backoff_ms, 1, 60_000)?;
        expect("remembered", self.remembered as u64, 1, 1_000_000)?;
        expect("upgrades", self.upgrades as u64, 0, 100_000)
    }
}

pub(crate) fn expect(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{name} is {value}: expected {least} to {most}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_the_setting_at_fault_is_named() {
        Settings::default().check().unwrap();
        let mut wrong = Settings::default();
        wrong.worker.batch = 0;
        assert_eq!(wrong.check().unwrap_err(), "worker.batch is 0: expected 1 to 1024");
        let wrong = Settings { nice: -5, ..Settings::default() };
        assert!(wrong.check().unwrap_err().starts_with("nice is -5"));
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(toml::from_str::<Settings>("thread = 1").is_err());
        assert_eq!(toml::from_str::<Settings>("threads = 2").unwrap().threads, 2);
    }
}
