//! What can be set about the callers' sockets, the recording and what happens when something fails.

use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestSettings {
    /// Keep every conversation's audio on disk. Without it nothing is kept after its text is committed, and after a crash the
    /// uncommitted part is a gap. Default true.
    pub recordings: bool,
    /// Hide long numbers in text before it leaves. Default true.
    pub redact: bool,
    /// Audio of a channel kept in memory until its text is committed, in ms; when it is full the caller's socket is not read.
    /// 10000 to 600000, default 120000.
    pub keep_ms: u64,
    /// How long a native caller may be gone before its conversation is closed, in ms. 1000 to 3600000, default 120000.
    pub resume_window_ms: u64,
    /// Recorded audio reaches the operating system at least this often, in ms. 20 to 5000, default 250.
    pub flush_ms: u64,
    /// Longest jump forward that a native caller's positions may make, in ms. Default 3600000.
    pub max_gap_ms: u64,
    /// Largest WebSocket message, in bytes. 4096 to 1048576, default 65536.
    pub max_frame_bytes: usize,
    /// Largest body of a prerecorded request, in bytes. Default 67108864.
    pub max_upload_bytes: usize,
    /// Longest audio of a prerecorded request, in ms. Default 14400000.
    pub max_upload_ms: u64,
    /// Prerecorded requests worked on at the same time; more are told to come back. 1 to 64, default 2.
    pub max_uploads: usize,
    /// A Deepgram socket that has sent nothing for this long is closed, in ms. Default 10000.
    pub deepgram_idle_ms: u64,
    /// A native caller is pinged this often, in ms; one that was not heard of for 2.4 times as long is gone, and its place in the engine
    /// goes to others until it comes back. Default 5000.
    pub ping_ms: u64,
    /// How long a session goes on without the audio module, trying again, before it is ended with an error, in ms. Default 60000.
    pub audio_patience_ms: u64,
    /// A stream asked to move waits this long for the end of an utterance, in ms; then the utterance is cut. Default 10000.
    pub move_within_ms: u64,
    /// A segment that is not committed after this long is published again, in ms. Default 5000.
    pub republish_ms: u64,
    /// So long after it has closed a conversation the record is asked whether it still knows, in ms: a standby that took its place may not.
    /// Default 60000.
    pub look_again_ms: u64,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            recordings: true,
            redact: true,
            keep_ms: 120_000,
            resume_window_ms: 120_000,
            flush_ms: 250,
            max_gap_ms: 3_600_000,
            max_frame_bytes: 65_536,
            max_upload_bytes: 64 << 20,
            max_upload_ms: 4 * 3_600_000,
            max_uploads: 2,
            deepgram_idle_ms: 10_000,
            ping_ms: 5_000,
            audio_patience_ms: 60_000,
            move_within_ms: 10_000,
            republish_ms: 5_000,
            look_again_ms: 60_000,
        }
    }
}

impl IngestSettings {
    /// # Errors
    /// Names the field that cannot work and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |name: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) { Ok(()) } else { Err(format!("ingest.{name} is {value}: expected {from} to {to}")) }
        };
        in_range("keep_ms", self.keep_ms, 10_000, 600_000)?;
        in_range("resume_window_ms", self.resume_window_ms, 1_000, 3_600_000)?;
        in_range("flush_ms", self.flush_ms, 20, 5_000)?;
        in_range("max_gap_ms", self.max_gap_ms, 1_000, 24 * 3_600_000)?;
        in_range("max_frame_bytes", self.max_frame_bytes as u64, 4_096, 1 << 20)?;
        in_range("max_upload_bytes", self.max_upload_bytes as u64, 1 << 16, 1 << 32)?;
        in_range("max_upload_ms", self.max_upload_ms, 1_000, 24 * 3_600_000)?;
        in_range("max_uploads", self.max_uploads as u64, 1, 64)?;
        in_range("deepgram_idle_ms", self.deepgram_idle_ms, 1_000, 3_600_000)?;
        in_range("ping_ms", self.ping_ms, 100, 60_000)?;
        in_range("audio_patience_ms", self.audio_patience_ms, 0, 3_600_000)?;
        in_range("move_within_ms", self.move_within_ms, 0, 60_000)?;
        in_range("republish_ms", self.republish_ms, 500, 60_000)?;
        in_range("look_again_ms", self.look_again_ms, 100, 3_600_000)
    }

    pub(crate) fn resume_window(&self) -> Duration {
        Duration::from_millis(self.resume_window_ms)
    }
    pub(crate) fn keep(&self) -> Duration {
        Duration::from_millis(self.keep_ms)
    }
    pub(crate) fn ping(&self) -> Duration {
        Duration::from_millis(self.ping_ms)
    }
    /// Not heard of for so long, a native caller is gone.
    pub(crate) fn silence(&self) -> Duration {
        self.ping() * 12 / 5
    }
    pub(crate) fn move_within(&self) -> Duration {
        Duration::from_millis(self.move_within_ms)
    }
    pub(crate) fn republish(&self) -> Duration {
        Duration::from_millis(self.republish_ms)
    }
    pub(crate) fn look_again(&self) -> Duration {
        Duration::from_millis(self.look_again_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_and_a_bad_value_is_named() {
        assert_eq!(IngestSettings::default().check(), Ok(()));
        let wrong = IngestSettings { flush_ms: 0, ..Default::default() };
        assert!(wrong.check().unwrap_err().contains("ingest.flush_ms is 0"));
    }
}
