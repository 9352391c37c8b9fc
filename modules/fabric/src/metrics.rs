//! Names of what the fabric measures.

use contracts::{CallError, ErrorKind};
use metrics::Histogram;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// One call between modules as its side saw it. Of a stream, only the opening.
/// Labels: `module`, `method`, `locality` (local, remote, served; routed: all attempts of a call together), `target` (the endpoint of a
/// remote one, else the locality again), `outcome` (ok, or the error's kind).
pub const CALL_SECONDS: &str = "quickcomm_module_call_seconds";

/// Labels: `module`, `method`, `again` (elsewhere, here).
pub const RETRIES: &str = "quickcomm_module_retries_total";
/// Calls also asked of the other side. Labels: `module`, `method`, `outcome` (same, differs, failed, late; skipped: all slots were taken;
/// alone: the call itself failed).
pub const SHADOWS: &str = "quickcomm_shadows_total";
/// Labels: `module`, `target`.
pub const BREAKER: &str = "quickcomm_breaker_state";
/// Labels: `module`.
pub const ROUTE_VERSION: &str = "quickcomm_route_version";
/// Labels: `module`.
pub const ROUTE_REMOTE: &str = "quickcomm_route_remote_ratio";
/// Labels: `module`, `by` (file, operator, step_back).
pub const ROUTE_CHANGES: &str = "quickcomm_route_changes_total";
/// When the certificate of this process ends, in seconds since 1970.
pub const CERTIFICATE_EXPIRES: &str = "quickcomm_certificate_expires_timestamp_seconds";

pub fn describe() {
    metrics::describe_gauge!(CERTIFICATE_EXPIRES, metrics::Unit::Seconds, "When the certificate for module calls ends, since 1970");
    metrics::describe_histogram!(CALL_SECONDS, metrics::Unit::Seconds, "A call between modules, until its answer or its stream has begun");
    metrics::describe_counter!(RETRIES, metrics::Unit::Count, "Calls asked again, of another target or of the same");
    metrics::describe_counter!(SHADOWS, metrics::Unit::Count, "Calls also asked of the other side, and how its answer compared");
    metrics::describe_gauge!(BREAKER, "Whether a target is asked: 0 closed, 1 half open, 2 open");
    metrics::describe_gauge!(ROUTE_VERSION, "Version of a module's route table");
    metrics::describe_gauge!(ROUTE_REMOTE, "Share of conversations routed to the endpoints");
    metrics::describe_counter!(ROUTE_CHANGES, metrics::Unit::Count, "Changes of a module's dial");
}

/// Where the other side of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locality {
    /// In this process.
    Local,
    /// Elsewhere; we asked.
    Remote,
    /// Elsewhere; we answered.
    Served,
    /// Wherever the route table says.
    Routed,
}

impl Locality {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Served => "served",
            Self::Routed => "routed",
        }
    }
}

/// The histograms of one method, each registered when it is first needed: a call must not look them up by name.
pub(crate) struct Meter {
    pub(crate) module: &'static str,
    pub(crate) method: &'static str,
    pub(crate) locality: Locality,
    /// Of the spans of either side.
    pub(crate) call: &'static str,
    pub(crate) serve: &'static str,
    target: Arc<str>,
    outcomes: [OnceLock<Histogram>; 1 + ErrorKind::ALL.len()],
}

impl Meter {
    pub(crate) fn new(locality: Locality, target: &Arc<str>, module: &'static str, method: &'static str) -> Self {
        Self {
            module,
            method,
            locality,
            call: span_name("call", module, method),
            serve: span_name("serve", module, method),
            target: target.clone(),
            outcomes: [const { OnceLock::new() }; 1 + ErrorKind::ALL.len()],
        }
    }

    pub(crate) fn record<T>(&self, took: Duration, answer: &Result<T, CallError>) {
        let (at, outcome) = match answer {
            Ok(_) => (0, "ok"),
            Err(error) => (1 + error.kind as usize, error.kind.name()),
        };
        let histogram = self.outcomes[at].get_or_init(|| {
            metrics::histogram!(
                CALL_SECONDS,
                "module" => self.module,
                "method" => self.method,
                "locality" => self.locality.name(),
                "target" => self.target.to_string(),
                "outcome" => outcome,
            )
        });
        histogram.record(took.as_secs_f64());
    }
}

/// Made once for each of a closed set and kept for ever: a call must not write its name anew.
fn span_name(verb: &str, module: &str, method: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let name = format!("{verb} {module}.{method}");
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name.as_str()) {
        return known;
    }
    let name: &'static str = name.leak();
    names.insert(name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_place() {
        for (at, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind:?}");
        }
    }
}
