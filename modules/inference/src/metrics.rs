//! What understanding costs and how well it goes. Labels: `task` and `tier` are closed sets.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub const ANALYZE: &str = "quickcomm_inference_analyze_seconds";
pub const QUEUE_WAIT: &str = "quickcomm_inference_queue_wait_seconds";
pub const QUEUED: &str = "quickcomm_inference_queued";
pub const REFUSED: &str = "quickcomm_inference_refused_total";
pub const ABSTAINED: &str = "quickcomm_inference_abstained_total";
pub const DEGRADED: &str = "quickcomm_inference_degraded_total";
pub const FAILED: &str = "quickcomm_inference_failed_total";
pub const RENEWED: &str = "quickcomm_inference_classifier_renewed_total";
pub const LLM_ANSWERS: &str = "quickcomm_inference_llm_answers_total";
pub const LLM_SUMMARIES: &str = "quickcomm_inference_llm_summaries_total";
pub const LLM_SECONDS: &str = "quickcomm_inference_llm_seconds";
pub const LLM_TOKENS: &str = "quickcomm_inference_llm_tokens_total";
pub const LLM_FLYING: &str = "quickcomm_inference_llm_in_flight";
pub const DEFINITIONS_READ: &str = "quickcomm_inference_definitions_read_total";
pub const DEFINITIONS_STALE: &str = "quickcomm_inference_definitions_stale";
pub const LATE: &str = "quickcomm_inference_late_total";
pub const UPGRADES_WAITING: &str = "quickcomm_inference_upgrades_waiting";
pub const UPGRADES: &str = "quickcomm_inference_upgrades_total";
pub const INSIGHT_AGE: &str = "quickcomm_inference_insight_age_seconds";
pub const WORKER_RETRIED: &str = "quickcomm_inference_worker_retried_total";
pub const WORKER_PENDING: &str = "quickcomm_inference_worker_pending_total";
pub const WORKER_BURIED: &str = "quickcomm_inference_worker_buried_total";
pub const WORKER_UNREADABLE: &str = "quickcomm_inference_worker_unreadable_total";

pub fn describe() {
    describe_histogram!(ANALYZE, Unit::Seconds, "one task over one turn, by task and tier, waiting included");
    describe_histogram!(QUEUE_WAIT, Unit::Seconds, "turns waiting for a classifier thread");
    describe_gauge!(QUEUED, Unit::Count, "turns waiting for a classifier thread now");
    describe_counter!(REFUSED, Unit::Count, "calls refused because the classifier's queue was full");
    describe_counter!(ABSTAINED, Unit::Count, "insights without a label, by task and tier");
    describe_counter!(DEGRADED, Unit::Count, "insights answered below the configured rung, by task and tier");
    describe_counter!(FAILED, Unit::Count, "classifications that failed, by reason: panicked, timeout, model");
    describe_counter!(RENEWED, Unit::Count, "times the classifier was loaded anew after a panic");
    describe_counter!(
        LLM_ANSWERS,
        Unit::Count,
        "turns a language model was to answer, by outcome: answered, remembered, or why it was not used"
    );
    describe_counter!(
        LLM_SUMMARIES,
        Unit::Count,
        "parts of calls a language model was to sum up, by outcome: answered, remembered, or why all or some of the answer was not used"
    );
    describe_histogram!(LLM_SECONDS, Unit::Seconds, "from a question to the language model's server until its answer, or until it failed");
    describe_counter!(LLM_TOKENS, Unit::Count, "tokens the server counted, by kind: prompt, completion");
    describe_gauge!(LLM_FLYING, Unit::Count, "questions the language model's server is answering now");
    describe_counter!(DEFINITIONS_READ, Unit::Count, "changes of the files of labels and prompts, by outcome: taken, refused");
    describe_gauge!(DEFINITIONS_STALE, Unit::Count, "1 while a file of labels or prompts is broken and the last good one is in force");
    describe_counter!(LATE, Unit::Count, "language model's insights that came more than 2 s after their turns");
    describe_gauge!(UPGRADES_WAITING, Unit::Count, "turns answered by a lower rung that wait for the better one");
    describe_counter!(UPGRADES, Unit::Count, "those turns, by outcome: upgraded, unchanged, crowded_out");
    describe_histogram!(INSIGHT_AGE, Unit::Seconds, "from the turn's publication on the bus to its insight's");
    describe_counter!(WORKER_RETRIED, Unit::Count, "turns given back to the bus for another try");
    describe_counter!(WORKER_PENDING, Unit::Count, "turns whose insight was published as pending");
    describe_counter!(WORKER_UNREADABLE, Unit::Count, "bus entries that were no segment");
    describe_counter!(WORKER_BURIED, Unit::Count, "entries given up and kept as dead letters");
}
