//! What can be set about the engine.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Recognition threads, each with its own copy of the models. 0 means one per core (default).
    pub workers: usize,
    /// Folder of the recognizer under the models folder. Default `moonshine-tiny-en`.
    pub recognizer: String,
    /// Folder of the speech detector under the models folder. Default `silero-vad`.
    pub vad: String,
    /// Open channels beyond this are refused. Default 512.
    pub max_sessions: usize,
    /// Share of all workers' time that live channels may need; beyond it new ones are refused. 0.1 to 1, default 0.85.
    pub max_load: f32,
    /// Detector score from which a 32 ms stretch counts as speech. 0 to 1, default 0.3.
    pub enter: f32,
    /// Detector score below which speech may end; less than `enter`. Default 0.15.
    pub exit: f32,
    /// Speech shorter than this, in ms, does not open an utterance. Default 60.
    pub min_speech_ms: u32,
    /// Sound before the first voiced stretch that the recognizer hears too, in ms. Default 600.
    pub pre_roll_ms: u32,
    /// From this length on, in ms, an utterance is cut at its quietest point. Default 8000.
    pub soft_cut_ms: u32,
    /// No utterance is longer, in ms. Default 12000, at most 20000: the model loses itself in long ones.
    pub hard_cut_ms: u32,
    /// Longest time between two partials of a speaking channel under full load, in ms. Default 800: with its decoding still within a second.
    pub slowest_partial_ms: u32,
    /// A pause this long, in ms, may start recognition on the guess that the utterance is over; it starts later when the text will still be
    /// there in time. 0 waits for certainty. Default 80.
    pub speculate_after_ms: u32,
    /// An idle worker recognizes for a busy one. Default true.
    pub steal: bool,
    /// A waiting partial gives way to a newer one of its channel. Default true; false is for measuring what it is worth.
    pub coalesce: bool,
    /// Recognitions that one worker writes in step when several wait. 1 to 8, default 4; 1 is for measuring what it is worth.
    pub together: usize,
    /// With many channels an idle worker lets sound gather this long, in ms, and scores it together. 0 to 20, default 5; 0 is for
    /// measuring what it is worth.
    pub gather_ms: u32,
    /// The text so far is verified in one pass instead of being written again. Default true; false is for measuring.
    pub draft: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            workers: 0,
            recognizer: "moonshine-tiny-en".into(),
            vad: "silero-vad".into(),
            max_sessions: 512,
            max_load: 0.85,
            enter: 0.3,
            exit: 0.15,
            min_speech_ms: 60,
            pre_roll_ms: 600,
            soft_cut_ms: 8000,
            hard_cut_ms: 12_000,
            slowest_partial_ms: 800,
            speculate_after_ms: 80,
            steal: true,
            coalesce: true,
            together: 4,
            gather_ms: 5,
            draft: true,
        }
    }
}

impl EngineSettings {
    /// # Errors
    /// Names the field that cannot work and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |name: &str, value: f64, from: f64, to: f64| {
            if (from..=to).contains(&value) { Ok(()) } else { Err(format!("engine.{name} is {value}: expected {from} to {to}")) }
        };
        in_range("workers", self.workers as f64, 0.0, 256.0)?;
        in_range("max_sessions", self.max_sessions as f64, 1.0, 100_000.0)?;
        in_range("max_load", self.max_load.into(), 0.1, 1.0)?;
        in_range("enter", self.enter.into(), 0.01, 0.99)?;
        in_range("exit", self.exit.into(), 0.005, self.enter.into())?;
        in_range("min_speech_ms", self.min_speech_ms.into(), 0.0, 1000.0)?;
        in_range("pre_roll_ms", self.pre_roll_ms.into(), 0.0, 2000.0)?;
        in_range("soft_cut_ms", self.soft_cut_ms.into(), 2000.0, self.hard_cut_ms.into())?;
        in_range("hard_cut_ms", self.hard_cut_ms.into(), 4000.0, 20_000.0)?;
        in_range("together", self.together as f64, 1.0, 8.0)?;
        in_range("gather_ms", self.gather_ms.into(), 0.0, 20.0)?;
        in_range("slowest_partial_ms", self.slowest_partial_ms.into(), 250.0, 10_000.0)?;
        in_range("speculate_after_ms", self.speculate_after_ms.into(), 0.0, 1000.0)
    }

    pub(crate) fn worker_count(&self) -> usize {
        if self.workers > 0 { self.workers } else { std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_and_a_bad_value_is_named() {
        assert_eq!(EngineSettings::default().check(), Ok(()));
        let wrong = EngineSettings { exit: 0.5, ..Default::default() };
        assert!(wrong.check().unwrap_err().contains("engine.exit"));
        let wrong = EngineSettings { soft_cut_ms: 13_000, ..Default::default() };
        assert!(wrong.check().unwrap_err().contains("engine.soft_cut_ms"));
    }
}
