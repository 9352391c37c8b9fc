//! Names of what the shared bus measures, with what they mean.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Labels: `pool` (write, read, cache), `state` (open, idle, awaited).
pub(super) const CONNECTIONS: &str = "quickcomm_bus_connections";
/// Labels: `call`.
pub(super) const CALL_SECONDS: &str = "quickcomm_bus_call_seconds";
/// Labels: `call`.
pub(super) const FAILURES: &str = "quickcomm_bus_call_failures_total";
pub(super) const PUBLISHED: &str = "quickcomm_bus_published_total";
pub(super) const REFUSED: &str = "quickcomm_bus_refused_total";
/// Labels: `stream`, `group`.
pub(super) const SHARDS: &str = "quickcomm_bus_shards";
pub(super) const TAKEN_OVER: &str = "quickcomm_bus_taken_over_total";
pub(super) const LOST: &str = "quickcomm_bus_lost_total";
pub(super) const FENCED: &str = "quickcomm_bus_fenced_total";
pub(super) const NO_GROUP: &str = "quickcomm_bus_no_group_total";
pub(super) const EPOCHS: &str = "quickcomm_bus_epochs_total";
pub(super) const SIGNALS_DROPPED: &str = "quickcomm_bus_signals_dropped_total";
pub(super) const SIGNALS_MISSED: &str = "quickcomm_bus_signals_missed_total";
pub(super) const UNREADABLE: &str = "quickcomm_bus_unreadable_total";

/// Tells the exporter what each name means.
pub fn describe() {
    describe_gauge!(CONNECTIONS, Unit::Count, "Connections to Redis, by pool and state.");
    describe_histogram!(CALL_SECONDS, Unit::Seconds, "From a call of Redis until its answer, by call.");
    describe_counter!(FAILURES, Unit::Count, "Calls of Redis that failed or took too long, by call.");
    describe_counter!(PUBLISHED, Unit::Count, "Entries that Redis has taken, by stream.");
    describe_counter!(REFUSED, Unit::Count, "Publications that were refused, by stream and reason; their producers keep them.");
    describe_gauge!(SHARDS, Unit::Count, "Shards this process reads, by stream and group.");
    describe_counter!(TAKEN_OVER, Unit::Count, "Entries taken over from another reader, by stream and group.");
    describe_counter!(LOST, Unit::Count, "Entries trimmed before they were confirmed, by stream and group: an alarm.");
    describe_counter!(FENCED, Unit::Count, "Acknowledgements that came after their shard had gone to another reader.");
    describe_counter!(NO_GROUP, Unit::Count, "Groups that had vanished and were made anew.");
    describe_counter!(EPOCHS, Unit::Count, "Times that Redis may have lost what it held.");
    describe_counter!(SIGNALS_DROPPED, Unit::Count, "Signals that could not be sent, by topic.");
    describe_counter!(SIGNALS_MISSED, Unit::Count, "Signals that did not arrive, by topic.");
    describe_counter!(UNREADABLE, Unit::Count, "Entries that nobody of ours has written.");
}
