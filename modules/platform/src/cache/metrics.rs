//! Names of what the cache measures, with what they mean.

use metrics::{Unit, describe_counter, describe_histogram};

/// Labels: `level` (first, shared, flight).
pub(super) const HITS: &str = "quickcomm_cache_hits_total";
pub(super) const MISSES: &str = "quickcomm_cache_misses_total";
pub(super) const FILLS: &str = "quickcomm_cache_fills_total";
/// Labels: `reason` (lease, version, full, unavailable).
pub(super) const REFUSED: &str = "quickcomm_cache_refused_fills_total";
pub(super) const STALE: &str = "quickcomm_cache_stale_served_total";
pub(super) const STALENESS: &str = "quickcomm_cache_staleness_seconds";
pub(super) const AGE: &str = "quickcomm_cache_age_seconds";
/// Labels: `for` (lease, flight, admission).
pub(super) const WAITS: &str = "quickcomm_cache_waits_total";
pub(super) const LOAD_SECONDS: &str = "quickcomm_cache_load_seconds";
/// Labels: `call`.
pub(super) const FAILURES: &str = "quickcomm_cache_call_failures_total";
pub(super) const VOIDED: &str = "quickcomm_cache_voids_total";
pub(super) const VOID_SECONDS: &str = "quickcomm_cache_void_seconds";
pub(super) const VOIDS_LOST: &str = "quickcomm_cache_voids_lost_total";
/// Labels: `why` (missed, generation, room).
pub(super) const DROPPED: &str = "quickcomm_cache_first_level_drops_total";

/// Tells the exporter what each name means.
pub fn describe() {
    describe_counter!(HITS, Unit::Count, "Reads answered without the database, by level; `flight`: by another reader's fill.");
    describe_counter!(MISSES, Unit::Count, "Reads that nobody could answer but the database.");
    describe_counter!(FILLS, Unit::Count, "Values read from the database and kept.");
    describe_counter!(REFUSED, Unit::Count, "Values read from the database and not kept, by reason.");
    describe_counter!(STALE, Unit::Count, "Reads answered with a value after its end, because it was being filled or could not be.");
    describe_histogram!(STALENESS, Unit::Seconds, "How long after its end such a value was.");
    describe_histogram!(AGE, Unit::Seconds, "How long ago what was given had been read.");
    describe_counter!(WAITS, Unit::Count, "Reads that waited, by for what.");
    describe_histogram!(LOAD_SECONDS, Unit::Seconds, "A read of the database for the cache.");
    describe_counter!(FAILURES, Unit::Count, "Calls of the shared cache that failed or took too long, by call.");
    describe_counter!(VOIDED, Unit::Count, "Scopes voided after a change.");
    describe_histogram!(VOID_SECONDS, Unit::Seconds, "From the announcement of a change until the shared cache had voided what it kept.");
    describe_counter!(
        VOIDS_LOST,
        Unit::Count,
        "Voids given up because the shared cache was away too long: values may be old until they end."
    );
    describe_counter!(DROPPED, Unit::Count, "Times that the first level was dropped, wholly or of one tenant, by why.");
}
