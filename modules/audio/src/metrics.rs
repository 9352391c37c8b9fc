//! Names of what the engine measures. Labels come from closed sets.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) const SESSIONS: &str = "quickcomm_audio_sessions";
pub(crate) const LOAD: &str = "quickcomm_audio_load_ratio";
pub(crate) const PARTIAL_PERIOD: &str = "quickcomm_audio_partial_period_seconds";
pub(crate) const REFUSED: &str = "quickcomm_audio_refused_total";
pub(crate) const QUEUE_AGE: &str = "quickcomm_audio_queue_age_seconds";
pub(crate) const TOGETHER: &str = "quickcomm_audio_decodes_in_step";
pub(crate) const DECODE: &str = "quickcomm_audio_decode_seconds";
pub(crate) const DECODED: &str = "quickcomm_audio_decoded_seconds_total";
pub(crate) const VAD: &str = "quickcomm_audio_vad_seconds";
pub(crate) const SPEECH_END_TO_FINAL: &str = "quickcomm_audio_speech_end_to_final_seconds";
pub(crate) const COALESCED: &str = "quickcomm_audio_coalesced_partials_total";
pub(crate) const STOLEN: &str = "quickcomm_audio_stolen_jobs_total";
pub(crate) const DISCARDED: &str = "quickcomm_audio_discarded_speculations_total";
pub(crate) const PHANTOMS: &str = "quickcomm_audio_phantom_drops_total";
pub(crate) const LOOPS: &str = "quickcomm_audio_repetition_cuts_total";
pub(crate) const RENEWED: &str = "quickcomm_audio_models_renewed_total";
pub(crate) const FAILED: &str = "quickcomm_audio_failed_sessions_total";

pub(crate) fn describe() {
    describe_gauge!(SESSIONS, "Channels being heard");
    describe_gauge!(LOAD, "Share of the workers' time that live channels need");
    describe_gauge!(PARTIAL_PERIOD, Unit::Seconds, "Shortest time between two partials of a channel under the present load");
    describe_counter!(REFUSED, "Channels refused at the door, by reason");
    describe_histogram!(QUEUE_AGE, Unit::Seconds, "Waiting time of a recognition before a worker takes it, by class");
    describe_histogram!(TOGETHER, "Recognitions written in step with each other");
    describe_histogram!(DECODE, Unit::Seconds, "Working time of a recognition, by class");
    describe_counter!(DECODED, Unit::Seconds, "Audio recognized, by class; the decode sum over it is the real-time factor");
    describe_histogram!(VAD, Unit::Seconds, "Speech detection of one 32 ms frame");
    describe_histogram!(SPEECH_END_TO_FINAL, Unit::Seconds, "From the arrival of the last voiced sample to the final text");
    describe_counter!(COALESCED, "Partials that gave way to a newer one of their channel");
    describe_counter!(STOLEN, "Recognitions done by another worker than the channel's own");
    describe_counter!(DISCARDED, "Guessed ends of utterances after which speech went on");
    describe_counter!(PHANTOMS, "Stretches with text that was none");
    describe_counter!(LOOPS, "Recognitions stopped because the decoder repeated itself");
    describe_counter!(RENEWED, "Times a worker loaded its models anew after a panic");
    describe_counter!(FAILED, "Sessions that ended with an error, by kind");
}
