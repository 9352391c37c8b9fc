//! A WebSocket as ingest uses it: writing that does not wait for ever, and what a reader's errors mean.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, ProtocolError};
use serde::Serialize;
use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// A caller who takes nothing for this long is gone.
const WRITE_BUDGET: Duration = Duration::from_secs(10);
/// Pings and pongs a caller may send within a second.
const CONTROLS: u32 = 50;

pub(super) const NORMAL: u16 = 1000;
pub(super) const UNEXPECTED: u16 = 1003;
pub(super) const BAD_FRAME: u16 = 1008;
pub(super) const TOO_LARGE: u16 = 1009;
pub(super) const INTERNAL: u16 = 1011;
pub(super) const RESTARTING: u16 = 1012;
pub(super) const OVERLOADED: u16 = 1013;
pub(super) const SUPERSEDED: u16 = 4009;

/// Nobody is at the other end any more.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) struct Writer(actix_ws::Session);

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(String),
    Binary(web::Bytes),
    /// The caller said goodbye, with this code if any.
    Close(Option<u16>),
    /// The connection broke.
    Lost,
    /// Not a WebSocket as it should be: the code to close with, and why.
    Broken(u16, String),
}

pub(super) struct Reader {
    stream: AggregatedMessageStream,
    controls: (Instant, u32),
    max_bytes: usize,
}

/// Answers the upgrade. Nothing is sent until the response has been returned to the server.
pub(super) fn upgrade(request: &HttpRequest, body: web::Payload, max_bytes: usize) -> Result<(HttpResponse, Writer, Reader), Refusal> {
    let (response, session, stream) = actix_ws::handle(request, body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, "websocket_expected", format!("{error}: expected a WebSocket handshake (RFC 6455)"))
    })?;
    let stream = stream.max_frame_size(max_bytes).aggregate_continuations().max_continuation_size(max_bytes);
    Ok((response, Writer(session), Reader { stream, controls: (Instant::now(), 0), max_bytes }))
}

impl Writer {
    pub(super) async fn send(&mut self, message: &impl Serialize) -> Result<(), Gone> {
        let text = serde_json::to_string(message).expect("messages have string keys only");
        self.within(async |session| session.text(text).await).await
    }

    pub(super) async fn ping(&mut self) -> Result<(), Gone> {
        self.within(async |session| session.ping(b"").await).await
    }

    pub(super) async fn pong(&mut self, data: &[u8]) -> Result<(), Gone> {
        self.within(async |session| session.pong(data).await).await
    }

    async fn within(&mut self, send: impl AsyncFnOnce(&mut actix_ws::Session) -> Result<(), actix_ws::Closed>) -> Result<(), Gone> {
        match tokio::time::timeout(WRITE_BUDGET, send(&mut self.0)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    pub(super) async fn close(self, code: u16, reason: &str) {
        let description = (!reason.is_empty()).then(|| reason.to_owned());
        let reason = CloseReason { code: CloseCode::from(code), description };
        let _ = tokio::time::timeout(WRITE_BUDGET, self.0.close(Some(reason))).await; // whoever has gone needs no goodbye
    }
}

impl Reader {
    /// The next message; pings are answered on the way. Cancel-safe but for a pong. `None` stands for a pong: a sign of life.
    pub(super) async fn next(&mut self, writer: &mut Writer) -> Option<Incoming> {
        let message = self.stream.recv().await;
        Some(match message {
            Some(Ok(AggregatedMessage::Text(text))) => Incoming::Text(text.to_string()),
            Some(Ok(AggregatedMessage::Binary(data))) => Incoming::Binary(data),
            Some(Ok(AggregatedMessage::Ping(data))) => {
                if self.too_many_controls() {
                    return Some(Incoming::Broken(BAD_FRAME, format!("more than {CONTROLS} control frames in a second")));
                }
                if writer.pong(&data).await.is_err() {
                    return Some(Incoming::Lost);
                }
                return None;
            }
            Some(Ok(AggregatedMessage::Pong(_))) => {
                if self.too_many_controls() {
                    return Some(Incoming::Broken(BAD_FRAME, format!("more than {CONTROLS} control frames in a second")));
                }
                return None;
            }
            Some(Ok(AggregatedMessage::Close(reason))) => Incoming::Close(reason.map(|r| r.code.into())),
            Some(Err(error)) => self.meaning(&error),
            None => Incoming::Lost,
        })
    }

    fn too_many_controls(&mut self) -> bool {
        let (since, count) = &mut self.controls;
        if since.elapsed() >= Duration::from_secs(1) {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count > CONTROLS
    }

    fn meaning(&self, error: &ProtocolError) -> Incoming {
        let too_large = || Incoming::Broken(TOO_LARGE, format!("message too large: expected at most {} bytes", self.max_bytes));
        match error {
            ProtocolError::Overflow => too_large(),
            ProtocolError::Io(io) if io.to_string().contains("continuation size") => too_large(),
            ProtocolError::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => Incoming::Broken(1007, io.to_string()),
            ProtocolError::Io(_) => Incoming::Lost,
            other => Incoming::Broken(1002, other.to_string()),
        }
    }
}
