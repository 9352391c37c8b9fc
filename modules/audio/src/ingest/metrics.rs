//! Names of what ingest measures.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Labels: `source`.
pub const SESSIONS: &str = "quickcomm_audio_ingest_sessions";
/// Labels: `source`, `kind`.
pub const REFUSED: &str = "quickcomm_audio_ingest_refused_total";
/// Labels: `source`.
pub const AUDIO_MS: &str = "quickcomm_audio_ingest_received_audio_ms_total";
/// Labels: `source`.
pub const FINALS: &str = "quickcomm_audio_ingest_finals_total";
pub const FINAL_SECONDS: &str = "quickcomm_audio_ingest_final_seconds";
pub const FIRST_PARTIAL_SECONDS: &str = "quickcomm_audio_ingest_first_partial_seconds";
pub const PUBLISH_SECONDS: &str = "quickcomm_audio_ingest_publish_seconds";
pub const COMMIT_SECONDS: &str = "quickcomm_audio_ingest_commit_seconds";
pub const REPUBLISHED: &str = "quickcomm_audio_ingest_republished_total";
pub const RECALLED: &str = "quickcomm_audio_ingest_recalled_total";
/// Labels: `kind`.
pub const AUDIO_FAILURES: &str = "quickcomm_audio_ingest_audio_failures_total";
pub const MOVES: &str = "quickcomm_audio_ingest_moves_total";
pub const GAP_MS: &str = "quickcomm_audio_ingest_gap_audio_ms_total";
pub const DROPPED_PARTIALS: &str = "quickcomm_audio_ingest_dropped_partials_total";
pub const SLOW_CALLERS: &str = "quickcomm_audio_ingest_slow_callers_total";
pub const SUPERSEDED: &str = "quickcomm_audio_ingest_superseded_total";
pub const RECOVERED: &str = "quickcomm_audio_ingest_recovered_total";
pub const RECORDING_SECONDS: &str = "quickcomm_audio_ingest_recording_flush_seconds";
pub const RECORDING_FAILURES: &str = "quickcomm_audio_ingest_recording_failures_total";

pub(super) fn describe() {
    describe_gauge!(SESSIONS, Unit::Count, "Conversations whose audio this process receives or awaits");
    describe_counter!(REFUSED, Unit::Count, "Callers refused before their audio flowed");
    describe_counter!(AUDIO_MS, Unit::Milliseconds, "Audio received, all channels together");
    describe_counter!(FINALS, Unit::Count, "Finished utterances published");
    describe_histogram!(FINAL_SECONDS, Unit::Seconds, "From the arrival of the last voiced sample to the final text");
    describe_histogram!(FIRST_PARTIAL_SECONDS, Unit::Seconds, "From the arrival of an utterance's first sample to its first text");
    describe_histogram!(PUBLISH_SECONDS, Unit::Seconds, "Handing a finished segment to the bus");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "From a segment's text to the word that it is committed");
    describe_counter!(REPUBLISHED, Unit::Count, "Segments published again because nobody had committed them");
    describe_counter!(RECALLED, Unit::Count, "Segments published again because the record had lost what it had committed");
    describe_counter!(AUDIO_FAILURES, Unit::Count, "Channels whose audio session failed and was opened again");
    describe_counter!(MOVES, Unit::Count, "Streams that went on in another place because they were asked to");
    describe_counter!(GAP_MS, Unit::Milliseconds, "Audio that never arrived or could not be heard");
    describe_counter!(DROPPED_PARTIALS, Unit::Count, "Partials not told to a caller who reads slowly");
    describe_counter!(SLOW_CALLERS, Unit::Count, "Sockets closed because their caller did not read");
    describe_counter!(SUPERSEDED, Unit::Count, "Sockets that gave way to a newer one of the same conversation");
    describe_counter!(RECOVERED, Unit::Count, "Conversations finished from their recording");
    describe_histogram!(RECORDING_SECONDS, Unit::Seconds, "Writing the recorded audio of all channels to the operating system");
    describe_counter!(RECORDING_FAILURES, Unit::Count, "Writes of recorded audio that failed and are tried again");
}
