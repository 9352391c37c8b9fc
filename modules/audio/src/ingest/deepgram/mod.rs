//! `/v1/listen` as Deepgram's own SDKs speak it: live over WebSocket, prerecorded by POST.
//!
//! The shapes are the vendor's, the rules of delivery are ours. A Deepgram caller cannot send again, so what it loses by leaving is gone;
//! what it sent is covered by the recording. Accepted and without effect: keys (`auth.mode = "open"`), and options the model has no use for.

mod intake;
pub(super) mod live;
mod messages;
pub(super) mod prerecorded;
mod query;
mod windows;

use super::{
    metrics as names,
    refusal::{Refusal, whole_seconds},
};
use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use contracts::{CallError, ConversationId, ErrorKind};
use metrics::counter;
use serde_json::json;
use std::{fmt, time::Duration};
use tracing::info;
use uuid::Uuid;

/// A request and its conversation share one number, so either is found by the other.
fn request_id(conversation: ConversationId) -> Uuid {
    Uuid::from_u128(conversation.as_u128())
}

/// A refusal in Deepgram's form: `err_code`, `err_msg` and the headers its SDKs show.
#[derive(Clone, Debug)]
pub(super) struct DeepgramRefusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    request: Uuid,
}

impl DeepgramRefusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>, conversation: ConversationId) -> Self {
        let (message, request) = (message.into(), request_id(conversation));
        counter!(names::REFUSED, "source" => "deepgram", "kind" => status.as_str().to_owned()).increment(1);
        info!(status = status.as_u16(), code, detail = message, request_id = %request, "caller refused");
        Self { status, code, message, retry_after: None, request }
    }

    fn parameter(message: impl Into<String>, conversation: ConversationId) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_QUERY_PARAMETER", message, conversation)
    }

    fn of_call(error: &CallError, conversation: ConversationId) -> Self {
        let refusal = Refusal::from(error.clone());
        let code = match error.kind {
            ErrorKind::InvalidInput => "INVALID_QUERY_PARAMETER",
            ErrorKind::TooLarge => "PAYLOAD_TOO_LARGE",
            ErrorKind::Busy | ErrorKind::Unavailable => "SERVICE_UNAVAILABLE",
            ErrorKind::SpoolFull => "INSUFFICIENT_STORAGE",
            _ => "INTERNAL_SERVER_ERROR",
        };
        Self { retry_after: refusal.retry_after, ..Self::new(refusal.status, code, refusal.detail, conversation) }
    }

    fn of_refusal(refusal: Refusal, conversation: ConversationId) -> Self {
        let code = if refusal.status == StatusCode::FORBIDDEN { "INSUFFICIENT_PERMISSIONS" } else { "Bad Request" };
        Self { retry_after: refusal.retry_after, ..Self::new(refusal.status, code, refusal.detail, conversation) }
    }
}

impl fmt::Display for DeepgramRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for DeepgramRefusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.insert_header(("dg-request-id", self.request.to_string()));
        let visible: String = self.message.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).take(500).collect();
        response.insert_header(("dg-error", visible));
        if let Some(time) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, whole_seconds(time)));
        }
        response.json(json!({ "err_code": self.code, "err_msg": self.message, "request_id": self.request }))
    }
}
