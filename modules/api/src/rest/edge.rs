//! What every request meets first and every answer last: trace, host check, problem documents, security headers, the time it took.

use super::{origin, problem::PROBLEM_JSON, problem::Problem};
use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest,
    body::{BoxBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use contracts::{CallCx, TenantId, TraceCx};
use platform::trace::{self, Side, Span};
use std::{
    future::{Ready, ready},
    time::{Duration, Instant},
};
use tracing::{Instrument, debug, info_span};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// Who asks, and in which trace.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) trace: TraceCx,
}

impl Caller {
    pub(crate) fn cx(&self, budget: Duration) -> CallCx {
        let mut cx = CallCx::new(budget).traced(self.trace);
        cx.tenant = self.tenant.clone();
        cx
    }

    /// The tenant comes from the credential alone; until there are keys, everyone is the default tenant.
    fn of(request: &HttpRequest) -> Self {
        let seen = request.extensions();
        Self {
            tenant: seen.get::<TenantId>().cloned().unwrap_or_default(),
            trace: seen.get::<TraceCx>().copied().unwrap_or_else(TraceCx::root),
        }
    }
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;
    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Self::of(request)))
    }
}

/// Names by which this server may be addressed.
pub(crate) struct Hosts(pub(crate) Vec<String>);

/// The middleware around every route of this module.
pub(crate) async fn edge(request: ServiceRequest, next: Next<impl MessageBody + 'static>) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let told = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<TraceCx>().ok());
    let trace = told.map_or_else(|| TraceCx { sampled: trace::begins_here(), ..TraceCx::root() }, TraceCx::child);
    request.extensions_mut().insert(trace);
    let (method, route) = (method_label(request.method()), request.match_pattern().unwrap_or_else(|| "none".into()));
    let above = told.unwrap_or(TraceCx { span_id: 0, ..trace });
    let name = if route == "none" { format!("{method} page") } else { format!("{method} {route}") };
    let mut exported = Span::begin(name, Side::Callee, trace, above);
    let span = info_span!("request", method, path = %printable(request.path()), trace_id = %trace.trace_id_hex());

    let answer = async {
        if let Err(problem) = known_host(&request) {
            return request.error_response(problem);
        }
        let asked = request.request().clone();
        match next.call(request).await {
            Ok(answer) => answer.map_into_boxed_body(),
            Err(cause) => ServiceResponse::from_err(cause, asked),
        }
    };
    let mut answer = as_problem(answer.instrument(span.clone()).await, trace);

    span.in_scope(|| debug!(status = answer.status().as_u16(), took_ms = started.elapsed().as_millis() as u64, "answered"));
    exported.note("http.response.status_code", i64::from(answer.status().as_u16()));
    if answer.status().is_server_error() {
        exported.failed(answer.status().canonical_reason().unwrap_or("failed"));
    }
    let status = status_label(answer.status());
    metrics::histogram!(crate::metrics::REQUEST, "route" => route, "method" => method, "status" => status).record(started.elapsed());
    protect(answer.headers_mut(), trace);
    Ok(answer)
}

fn known_host(request: &ServiceRequest) -> Result<(), Problem> {
    let allowed = request.app_data::<web::Data<Hosts>>().map_or(&[][..], |hosts| &hosts.0);
    let host = origin::host_of(request.request()).unwrap_or_default();
    if origin::is_known_host(&host, allowed) {
        return Ok(());
    }
    let detail =
        format!("this server is not addressed as {:?}: use localhost, or add the name to api.rest.allowed_hosts", printable(&host));
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", detail))
}

/// Every error leaves as a problem document with path and trace, whoever made it.
fn as_problem(answer: ServiceResponse<BoxBody>, trace: TraceCx) -> ServiceResponse<BoxBody> {
    let status = answer.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let problem = match answer.response().error() {
        Some(cause) => match cause.as_error::<Problem>() {
            Some(problem) => problem.clone(),
            None => {
                let detail = cause.to_string();
                if status.is_server_error() {
                    tracing::error!(trace_id = %trace.trace_id_hex(), cause = detail, "a request failed");
                }
                Problem::from_status(status, detail)
            }
        },
        None => Problem::from_status(status, status.canonical_reason().unwrap_or("refused").to_lowercase()),
    };
    let path = answer.request().path().to_owned();
    let kept = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    let mut other: Vec<(HeaderName, HeaderValue)> = vec![];
    if !kept {
        let carried = [header::ALLOW, header::RETRY_AFTER, header::CONTENT_RANGE, header::UPGRADE];
        other.extend(carried.into_iter().filter_map(|name| Some((name.clone(), answer.headers().get(&name)?.clone()))));
    }
    let mut document = problem.answer(&path, trace.trace_id_hex());
    for (name, value) in other {
        document.headers_mut().insert(name, value);
    }
    answer.into_response(document)
}

/// What a browser must not do with an answer of ours. A page sets its own policy and keeps it.
fn protect(headers: &mut HeaderMap, trace: TraceCx) {
    let defaults = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in defaults {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    for (name, text) in [(TRACEPARENT, trace.to_string()), (TRACE_ID, trace.trace_id_hex())] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
}

/// For log lines and error texts: short, and without control characters.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn method_label(method: &Method) -> &'static str {
    let known = [(Method::GET, "GET"), (Method::HEAD, "HEAD"), (Method::POST, "POST"), (Method::PUT, "PUT"), (Method::OPTIONS, "OPTIONS")];
    known.iter().find(|(m, _)| m == method).map_or("other", |(_, name)| name)
}

fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
