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
    describe_histogram!(INSIGHT_AGE, Unit::Seconds, "from the turn's publication on the bus to its insight's");
    describe_counter!(WORKER_RETRIED, Unit::Count, "turns given back to the bus for another try");
    describe_counter!(WORKER_PENDING, Unit::Count, "turns whose insight was published as pending");
    describe_counter!(WORKER_UNREADABLE, Unit::Count, "bus entries that were no segment");
    describe_counter!(WORKER_BURIED, Unit::Count, "entries given up and kept as dead letters");
}
