//! The one form of an error over HTTP: a problem document (RFC 9457) with a code for programs and a trace id for people who ask for help.

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    body::BoxBody,
    http::{
        StatusCode,
        header::{ALLOW, CACHE_CONTROL, RETRY_AFTER},
    },
};
use contracts::{CallError, ErrorKind, Retry};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};
use utoipa::ToSchema;

pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// An error, with what was expected instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    /// For programs; from a closed set.
    pub code: &'static str,
    pub detail: String,
    pub errors: Vec<Fault>,
    retry_after_s: Option<u64>,
    allow: Option<&'static str>,
}

/// A problem as it goes out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    #[serde(rename = "type")]
    #[schema(example = "urn:quickcomm:problem:invalid_parameter")]
    pub kind: String,
    #[schema(example = "Bad Request")]
    pub title: String,
    #[schema(example = 400)]
    pub status: u16,
    /// For people: what is wrong and what was expected.
    pub detail: String,
    /// The path that was asked for.
    #[schema(example = "/v1/conversations")]
    pub instance: String,
    /// For programs; from a closed set.
    #[schema(example = "invalid_parameter")]
    pub code: String,
    /// Stands in the server's log lines of this request.
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    pub trace_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One value at fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// Where: `/query/limit`, `/path/id`, or a pointer into the body.
    #[schema(example = "/query/limit")]
    pub pointer: String,
    #[schema(example = "out_of_range")]
    pub code: String,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), errors: vec![], retry_after_s: None, allow: None }
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>, code: &str) -> Self {
        self.errors.push(Fault { pointer: pointer.into(), code: code.into() });
        self
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after_s = Some(wait.as_secs_f64().ceil().max(1.0) as u64);
        self
    }

    #[must_use]
    pub(crate) fn allowing(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// From what a library answered: its status and its words.
    pub(crate) fn from_status(status: StatusCode, detail: String) -> Self {
        let code = match status {
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            StatusCode::REQUEST_TIMEOUT => "deadline_exceeded",
            s if s.is_client_error() => "invalid_request",
            _ => "internal",
        };
        // What went wrong inside is for the log, not for the caller.
        let detail = if status.is_server_error() { "something went wrong here; the trace id finds it in the log".into() } else { detail };
        Self::new(status, code, detail)
    }

    /// The answer to the request for `instance`.
    pub(crate) fn answer(self, instance: &str, trace_id: String) -> HttpResponse {
        let mut answer = HttpResponseBuilder::new(self.status);
        answer.content_type(PROBLEM_JSON).insert_header((CACHE_CONTROL, "no-store"));
        if let Some(seconds) = self.retry_after_s {
            answer.insert_header((RETRY_AFTER, seconds));
        }
        if let Some(methods) = self.allow {
            answer.insert_header((ALLOW, methods));
        }
        let document = ProblemDocument {
            kind: format!("urn:quickcomm:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            detail: self.detail,
            instance: instance.chars().take(512).collect(),
            code: self.code.into(),
            trace_id,
            errors: self.errors,
        };
        answer.body(serde_json::to_vec(&document).expect("a problem is strings and numbers"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }
    /// Path and trace id are added where the request is known, at the edge.
    fn error_response(&self) -> HttpResponse<BoxBody> {
        self.clone().answer("", String::new())
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let status = match error.kind {
            ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Busy | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::SpoolFull => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Cancelled | ErrorKind::Panicked | ErrorKind::Internal | ErrorKind::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let told = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INSUFFICIENT_STORAGE].contains(&status);
        let problem = match status.is_server_error() && !told {
            true => {
                tracing::error!(kind = error.kind.name(), cause = error.detail, "a module failed");
                Self::new(status, error.kind.name(), "something went wrong here; the trace id finds it in the log")
            }
            false => Self::new(status, error.kind.name(), error.detail),
        };
        match error.retry {
            Retry::After(wait) => problem.retry_after(wait),
            Retry::Safe if status == StatusCode::SERVICE_UNAVAILABLE => problem.retry_after(Duration::from_secs(1)),
            Retry::Safe | Retry::Never => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_call_error_has_a_status_and_its_own_code() {
        for kind in ErrorKind::ALL {
            let problem = Problem::from(CallError::new(kind, Retry::Never, "why"));
            assert_eq!(problem.code, kind.name());
            assert!(problem.status.as_u16() >= 400, "{kind:?}");
        }
    }

    #[test]
    fn what_went_wrong_inside_is_not_told_outside() {
        assert!(!Problem::from(CallError::internal("/secret/path.db is locked")).detail.contains("secret"));
        assert!(!Problem::from_status(StatusCode::INTERNAL_SERVER_ERROR, "secret".into()).detail.contains("secret"));
    }

    #[test]
    fn a_full_disk_is_told_and_when_to_come_back() {
        let problem = Problem::from(CallError::spool_full(Duration::from_secs(1), "the disk that holds the record is full"));
        assert_eq!((problem.code, problem.detail.as_str()), ("spool_full", "the disk that holds the record is full"));
        let answer = problem.error_response();
        assert_eq!((answer.status().as_u16(), answer.headers().get(RETRY_AFTER).unwrap().to_str().unwrap()), (507, "1"));
    }

    #[test]
    fn busy_says_when_to_come_back() {
        let answer = Problem::from(CallError::busy(Duration::from_millis(1200), "full")).error_response();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers().get(RETRY_AFTER).unwrap(), "2");
    }
}
