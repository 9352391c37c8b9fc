//! Names of what the fabric measures.

use contracts::{CallError, ErrorKind};
use metrics::Histogram;
use std::{sync::OnceLock, time::Duration};

/// One call between modules as its side saw it. Of a stream, only the opening.
/// Labels: `module`, `method`, `locality` (local, remote, served), `outcome` (ok, or the error's kind).
pub const CALL_SECONDS: &str = "quickcomm_module_call_seconds";

/// When the certificate of this process ends, in seconds since 1970.
pub const CERTIFICATE_EXPIRES: &str = "quickcomm_certificate_expires_timestamp_seconds";

pub fn describe() {
    metrics::describe_gauge!(CERTIFICATE_EXPIRES, metrics::Unit::Seconds, "When the certificate for module calls ends, since 1970");
    metrics::describe_histogram!(CALL_SECONDS, metrics::Unit::Seconds, "A call between modules, until its answer or its stream has begun");
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
}

impl Locality {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Served => "served",
        }
    }
}

/// The histograms of one method, each registered when it is first needed: a call must not look them up by name.
pub(crate) struct Meter {
    pub(crate) module: &'static str,
    pub(crate) method: &'static str,
    pub(crate) locality: Locality,
    outcomes: [OnceLock<Histogram>; 1 + ErrorKind::ALL.len()],
}

impl Meter {
    pub(crate) fn new(locality: Locality, module: &'static str, method: &'static str) -> Self {
        Self { module, method, locality, outcomes: [const { OnceLock::new() }; 1 + ErrorKind::ALL.len()] }
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
                "outcome" => outcome,
            )
        });
        histogram.record(took.as_secs_f64());
    }
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
