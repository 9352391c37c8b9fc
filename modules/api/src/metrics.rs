//! Names of what this module measures, with what they mean.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) const WRITE_SECONDS: &str = "quickcomm_api_write_seconds";
pub(crate) const TRANSACTION_SECONDS: &str = "quickcomm_api_transaction_seconds";
pub(crate) const GROUP_REQUESTS: &str = "quickcomm_api_group_requests";
pub(crate) const GROUPS_SPLIT: &str = "quickcomm_api_groups_split_total";
pub(crate) const COMMITS_UNKNOWN: &str = "quickcomm_api_commits_unknown_total";
pub(crate) const ALONE: &str = "quickcomm_api_commits_alone";
pub(crate) const READ_SECONDS: &str = "quickcomm_api_read_seconds";
pub(crate) const ROUTED_READS: &str = "quickcomm_api_routed_reads_total";
pub(crate) const REPLICA_LAG: &str = "quickcomm_api_replica_lag_seconds";
pub(crate) const BUS_SECONDS: &str = "quickcomm_api_bus_seconds";
pub(crate) const OUTBOX_SECONDS: &str = "quickcomm_api_outbox_seconds";
pub(crate) const OUTBOX_OLDEST: &str = "quickcomm_api_outbox_oldest_seconds";
pub(crate) const CHANGES_TOTAL: &str = "quickcomm_api_changes_total";
pub(crate) const SEGMENTS_TOTAL: &str = "quickcomm_api_segments_total";
pub(crate) const INSIGHTS_TOTAL: &str = "quickcomm_api_insights_total";
pub(crate) const DROPPED_TOTAL: &str = "quickcomm_api_dropped_total";
pub(crate) const RETRIES_TOTAL: &str = "quickcomm_api_retries_total";
pub(crate) const NOT_UNDERSTOOD: &str = "quickcomm_api_not_understood";
pub(crate) const REQUEUED_TOTAL: &str = "quickcomm_api_requeued_total";

pub(crate) const FINALIZE_STEPS: &str = "quickcomm_api_finalize_steps_total";
pub(crate) const FINALIZE_SCORE_SECONDS: &str = "quickcomm_api_finalize_score_seconds";

pub(crate) const REQUEST: &str = "quickcomm_api_request_seconds";
pub(crate) const LIVE_CONNECTIONS: &str = "quickcomm_api_live_connections";
pub(crate) const LIVE_QUEUE: &str = "quickcomm_api_live_queue_seconds";
pub(crate) const LIVE_DROPPED: &str = "quickcomm_api_live_dropped_total";
pub(crate) const LIVE_TOO_SLOW: &str = "quickcomm_api_live_too_slow_total";

/// Tells the exporter what each name means.
pub fn describe() {
    describe_histogram!(WRITE_SECONDS, Unit::Seconds, "From a request to the writer until it is on disk.");
    describe_histogram!(TRANSACTION_SECONDS, Unit::Seconds, "One transaction of the writer, its fsync included.");
    describe_histogram!(GROUP_REQUESTS, Unit::Count, "Requests that shared one transaction.");
    describe_counter!(GROUPS_SPLIT, Unit::Count, "Transactions that failed and were tried again request by request.");
    describe_counter!(COMMITS_UNKNOWN, Unit::Count, "Transactions whose connection was lost at the commit, so that they ran again.");
    describe_gauge!(ALONE, Unit::Count, "1 while commits do not wait for the standby they should, because it is away: somebody must look.");
    describe_histogram!(READ_SECONDS, Unit::Seconds, "From a read until its answer, by read.");
    describe_counter!(ROUTED_READS, Unit::Count, "Reads that a replica could take, by who got them and why.");
    describe_gauge!(REPLICA_LAG, Unit::Seconds, "How far the replica is behind; above 5 it takes no reads.");
    describe_histogram!(BUS_SECONDS, Unit::Seconds, "How long an entry waited in the bus, by stream.");
    describe_histogram!(OUTBOX_SECONDS, Unit::Seconds, "From a transaction until its changes were announced.");
    describe_gauge!(OUTBOX_OLDEST, Unit::Seconds, "Age of the oldest change that waits to be announced; above 5 somebody must look.");
    describe_counter!(CHANGES_TOTAL, Unit::Count, "Changes announced.");
    describe_counter!(SEGMENTS_TOTAL, Unit::Count, "Segments answered, by outcome.");
    describe_counter!(INSIGHTS_TOTAL, Unit::Count, "Insights recorded for the first time.");
    describe_counter!(DROPPED_TOTAL, Unit::Count, "Entries of the bus that were not stored, by stream and reason.");
    describe_counter!(RETRIES_TOTAL, Unit::Count, "Batches that could not be stored at once, by stream.");
    describe_counter!(
        FINALIZE_STEPS,
        Unit::Count,
        "Steps of finishing conversations, by step and outcome; fenced: somebody else had it by then."
    );
    describe_histogram!(FINALIZE_SCORE_SECONDS, Unit::Seconds, "Summing up a conversation that has ended.");
    describe_gauge!(NOT_UNDERSTOOD, Unit::Count, "Stored turns without an insight that should have one; at most 1000 are counted.");
    describe_counter!(REQUEUED_TOTAL, Unit::Count, "Turns put on the bus again because nobody had understood them, or only a lower rung.");
    describe_histogram!(REQUEST, Unit::Seconds, "From a request to its answer, by route, method and class of status.");
    describe_gauge!(LIVE_CONNECTIONS, Unit::Count, "Open sockets of the live feed.");
    describe_histogram!(LIVE_QUEUE, Unit::Seconds, "How long an event waited for its reader's socket.");
    describe_counter!(LIVE_DROPPED, Unit::Count, "Passing events that a slow reader did not get.");
    describe_counter!(LIVE_TOO_SLOW, Unit::Count, "Sockets closed because their reader was too slow.");
}
