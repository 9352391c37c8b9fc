//! The one error of a call between modules, and the few answers a caller can act on.
//!
//! Invariant: a caller decides from `kind` and `retry` alone, never from the text, and reads the same values whether the module
//! answered from this process or from another one.

use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{detail}")]
pub struct CallError {
    pub kind: ErrorKind,
    pub retry: Retry,
    pub origin: Origin,
    /// Lower case, no full stop, names the value at fault; for people.
    pub detail: String,
}

/// Statuses of HTTP, WebSocket and gRPC derive from this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request can never succeed as it is.
    InvalidInput,
    /// Larger than the one size limit all localities share.
    TooLarge,
    NotFound,
    /// Someone attached with a newer epoch, or the range does not continue what is committed.
    Conflict,
    /// Admission refused: come back later.
    Busy,
    /// The module is not there, or is leaving.
    Unavailable,
    /// What was sent would have to be kept, and the disk has no room.
    SpoolFull,
    DeadlineExceeded,
    /// The caller gave up.
    Cancelled,
    /// The implementation panicked on this request.
    Panicked,
    /// It failed and the fault is ours.
    Internal,
    /// The other side speaks of a kind this release does not know, or the transport broke in mid-call.
    Unknown,
}

impl ErrorKind {
    pub const ALL: [Self; 12] = [
        Self::InvalidInput,
        Self::TooLarge,
        Self::NotFound,
        Self::Conflict,
        Self::Busy,
        Self::Unavailable,
        Self::SpoolFull,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Panicked,
        Self::Internal,
        Self::Unknown,
    ];

    /// Whether the same may succeed a little later.
    pub fn may_pass(self) -> bool {
        use ErrorKind::{Busy, Cancelled, DeadlineExceeded, SpoolFull, Unavailable, Unknown};
        matches!(self, Busy | Unavailable | SpoolFull | DeadlineExceeded | Cancelled | Unknown)
    }

    /// A closed set: safe as a metric label and as `code` of a problem document.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::TooLarge => "too_large",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::SpoolFull => "spool_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Panicked => "panicked",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    Never,
    /// At once, here or elsewhere; only for idempotent calls.
    Safe,
    /// Not before this much time has passed.
    After(Duration),
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The module that was asked.
    Callee,
    /// The way to it.
    Transport,
    /// A rule on our side: deadline, limit, breaker.
    Policy,
}

impl CallError {
    pub fn new(kind: ErrorKind, retry: Retry, detail: impl Into<String>) -> Self {
        Self { kind, retry, origin: Origin::Callee, detail: detail.into() }
    }
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, Retry::Never, detail)
    }
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, Retry::Never, detail)
    }
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, Retry::Never, detail)
    }
    pub fn busy(after: Duration, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, Retry::After(after), detail)
    }
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, Retry::Safe, detail)
    }
    pub fn spool_full(after: Duration, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::SpoolFull, Retry::After(after), detail)
    }
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, Retry::Never, detail)
    }
    pub fn deadline() -> Self {
        Self::new(ErrorKind::DeadlineExceeded, Retry::Never, "the call's deadline has passed").from(Origin::Policy)
    }
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, Retry::Never, "the caller gave up").from(Origin::Policy)
    }

    #[must_use]
    pub fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// The answer to a panic, everywhere: never retried, because the same request would do it again.
    pub fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Self::new(ErrorKind::Panicked, Retry::Never, format!("the module panicked: {text}"))
    }
}
