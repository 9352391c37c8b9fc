//! Why a caller is refused, as a problem document (RFC 9457). Statuses derive from the kind of a call's error alone.

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use contracts::{CallError, ConversationId, ErrorKind, Retry, TraceCx, conversation::ConversationState};
use platform::trace::{Side, Span};
use serde_json::json;
use std::{fmt, time::Duration};

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    code: &'static str,
    pub(super) detail: String,
    parameter: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// Of a conversation that is over: how it ended.
    state: Option<ConversationState>,
    place: Option<Box<Place>>,
}

/// Where it happened.
#[derive(Clone, Debug)]
struct Place {
    instance: String,
    trace: TraceCx,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), parameter: None, retry_after: None, state: None, place: None }
    }

    /// A query parameter that cannot be; `expected` says what may.
    pub(super) fn parameter(name: &str, given: &str, expected: &str) -> Self {
        let given: String = given.chars().take(64).collect();
        let detail = format!("{name} is {given:?}: expected {expected}");
        Self { parameter: Some(name.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail) }
    }

    pub(super) fn missing(name: &str, expected: &str) -> Self {
        let detail = format!("{name} is missing: expected {expected}");
        Self { parameter: Some(name.into()), ..Self::new(StatusCode::BAD_REQUEST, "missing_parameter", detail) }
    }

    /// Whoever asked for it and did not hear the answer learns from this one that it is done.
    pub(super) fn over(id: ConversationId, state: ConversationState) -> Self {
        let refused = CallError::conflict(format!("{id} is closed: begin a new conversation"));
        Self { state: Some(state), ..refused.into() }
    }

    #[must_use]
    pub(super) fn at(mut self, request: &HttpRequest, trace: TraceCx) -> Self {
        self.place = Some(Box::new(Place { instance: request.path().to_owned(), trace }));
        self
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let status = match error.kind {
            ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::SpoolFull => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Panicked | ErrorKind::Internal | ErrorKind::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after = match error.retry {
            Retry::After(time) => Some(time),
            Retry::Safe if status == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::from_secs(1)),
            Retry::Safe | Retry::Never => None,
        };
        Self { retry_after, ..Self::new(status, error.kind.name(), error.detail) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("refused"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if let Some(place) = &self.place {
            body["instance"] = json!(place.instance);
            body["trace_id"] = json!(place.trace.trace_id_hex());
        }
        if let Some(name) = &self.parameter {
            body["errors"] = json!([{ "pointer": format!("/query/{name}"), "code": self.code }]);
        }
        if let Some(state) = self.state {
            body["state"] = json!(state.name());
        }
        let mut response = HttpResponse::build(self.status);
        if let Some(time) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, whole_seconds(time)));
        }
        response.content_type("application/problem+json").body(body.to_string())
    }
}

/// Rounded up: never sooner than asked.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).max(1) as u64
}

/// The trace of a request, below its `traceparent` or new, and the span of its handler.
pub(super) fn trace_of(request: &HttpRequest) -> (TraceCx, Span) {
    let given = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let own = given.map_or_else(TraceCx::root, TraceCx::child);
    let above = given.unwrap_or(TraceCx { span_id: 0, ..own });
    let name = format!("{} {}", request.method(), request.match_pattern().as_deref().unwrap_or("?"));
    (own, Span::begin(name, Side::Callee, own, above))
}

/// Name and value pairs in their order.
pub(super) fn pairs(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let pairs = actix_web::web::Query::<Vec<(String, String)>>::from_query(query);
    pairs.map(actix_web::web::Query::into_inner).map_err(|error| {
        let detail = format!("the query cannot be read: {error}: expected name=value pairs");
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
    })
}

/// A page of another site may not use a visitor's browser to reach a server that listens on the visitor's own machine.
pub(super) fn same_site(request: &HttpRequest) -> Result<(), Refusal> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
    let host = origin.split_once("://").map_or("", |(_, rest)| hostname(rest));
    let ours = text(header::HOST).map_or("", hostname);
    let known = matches!(host, "localhost" | "127.0.0.1" | "[::1]") || (!host.is_empty() && host == ours);
    if known {
        return Ok(());
    }
    let detail = format!("a page from {:?} may not connect here", origin.chars().take(100).collect::<String>());
    Err(Refusal::new(StatusCode::FORBIDDEN, "foreign_origin", detail))
}

fn hostname(authority: &str) -> &str {
    let authority = authority.split('/').next().unwrap_or_default();
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn a_page_of_another_site_is_refused() {
        let check = |origin: &str, host: &str| {
            let request = TestRequest::default().insert_header(("origin", origin)).insert_header(("host", host)).to_http_request();
            same_site(&request).is_ok()
        };
        assert!(same_site(&TestRequest::default().to_http_request()).is_ok());
        assert!(check("http://127.0.0.1:8080", "127.0.0.1:8080") && check("http://localhost:5173", "127.0.0.1:8080"));
        assert!(check("http://[::1]:8080", "[::1]:8080") && check("https://calls.example", "calls.example:443"));
        assert!(!check("https://evil.example", "127.0.0.1:8080") && !check("null", "127.0.0.1:8080") && !check("", ""));
    }

    #[test]
    fn a_busy_module_says_when_to_come_back() {
        let refusal = Refusal::from(CallError::busy(Duration::from_millis(1200), "all slots are taken"));
        let response = refusal.error_response();
        assert_eq!((response.status().as_u16(), response.headers().get("retry-after").unwrap().to_str().unwrap()), (503, "2"));
    }
}
