//! `GET /v1/live`: one socket, many topics.
//!
//! Invariants: a browser page from elsewhere is refused before the upgrade; a socket that is silent, floods, or does not read is closed and costs
//! the others nothing; whatever ends a socket, its subscriptions end with it.

use super::{
    Hub,
    outbox::{CLOSE_TOO_SLOW, Out, Outbox},
    topic::{RESUME_EVENTS, Reader},
    wire::{self, ASKABLE, Asked, PROTOCOL, TopicName},
};
use crate::rest::{Caller, Problem, origin};
use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, ProtocolError, Session};
use bytestring::ByteString;
use chrono::Utc;
use contracts::TenantId;
use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::debug;

/// A client's messages are short.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Messages and control frames a client may send per second.
const MAX_PER_SECOND: u32 = 50;
/// How long a reader that is being closed may take to read what is left.
const GRACE: Duration = Duration::from_secs(5);
const HELLO_WITHIN: Duration = Duration::from_secs(10);
const RETRY_AFTER_MS: u64 = 1_000;

/// `GET /v1/live`: subscriptions in, events out, until either side closes.
pub(crate) async fn live(request: HttpRequest, body: web::Payload, caller: Caller, hub: web::Data<Hub>) -> Result<HttpResponse, Problem> {
    if !origin::is_own(&request) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", "a page from elsewhere may not open the live feed"));
    }
    let hub = hub.into_inner();
    let Ok(seat) = hub.seats.clone().try_acquire_owned() else {
        let full = format!("all {} live sockets are taken", hub.settings.max_connections);
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", full).retry_after(Duration::from_secs(5)));
    };
    let (response, session, frames) = actix_ws::handle(&request, body)
        .map_err(|cause| Problem::new(StatusCode::BAD_REQUEST, "not_a_websocket", format!("expected a WebSocket handshake: {cause}")))?;
    let frames = frames.max_frame_size(MAX_MESSAGE_BYTES).aggregate_continuations().max_continuation_size(MAX_MESSAGE_BYTES);
    let tasks = hub.tasks.clone();
    actix_web::rt::spawn(tasks.track_future(async move {
        let gauge = Open::new();
        Connection::new(hub, caller.tenant).converse(session, frames).await;
        drop((seat, gauge));
    }));
    Ok(response)
}

/// Counts a socket while it lives.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!(crate::metrics::LIVE_CONNECTIONS).increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(crate::metrics::LIVE_CONNECTIONS).decrement(1.0);
    }
}

struct Connection {
    hub: Arc<Hub>,
    tenant: TenantId,
    id: u64,
    outbox: Arc<Outbox>,
    greeted: bool,
    topics: BTreeSet<TopicName>,
    /// Second and messages in it.
    rate: (Instant, u32),
}

impl Drop for Connection {
    fn drop(&mut self) {
        for topic in &self.topics {
            self.hub.unsubscribe(&self.tenant, *topic, self.id);
        }
    }
}

/// Why a socket is closed from our side.
struct Farewell(CloseCode, &'static str);

impl Connection {
    fn new(hub: Arc<Hub>, tenant: TenantId) -> Self {
        let (id, outbox) = (hub.next_reader(), hub.outbox());
        Self { hub, tenant, id, outbox, greeted: false, topics: BTreeSet::new(), rate: (Instant::now(), 0) }
    }

    async fn converse(mut self, mut session: Session, mut frames: AggregatedMessageStream) {
        let ends = self.relay(&mut session, &mut frames).await;
        if let Some(Farewell(code, why)) = ends {
            debug!(why, "live socket closed");
            let reason = CloseReason { code, description: Some(why.into()) };
            let _ = timeout(GRACE, session.close(Some(reason))).await; // it may have stopped reading
        }
    }

    /// Until one side ends it; `None` when the other side has.
    async fn relay(&mut self, session: &mut Session, frames: &mut AggregatedMessageStream) -> Option<Farewell> {
        let idle = Duration::from_millis(self.hub.settings.idle_ms);
        let mut pings = interval(Duration::from_millis(self.hub.settings.ping_ms));
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (stop, outbox, started) = (self.hub.stop.clone(), self.outbox.clone(), Instant::now());
        let mut heard = started;
        loop {
            // Every branch is cancel-safe: what is taken from a queue is handled in the same turn. What the client says goes first, so that it
            // can unsubscribe from a flood; it may not flood us.
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let data = serde_json::json!({ "reason": "restarting", "retry_after_ms": RETRY_AFTER_MS });
                    let _ = timeout(GRACE, session.text(wire::frame("goodbye", None, None, None, data))).await;
                    return Some(Farewell(CloseCode::Restart, "restarting"));
                }
                message = frames.recv() => {
                    heard = Instant::now();
                    match message? {
                        Ok(message) => if let Some(end) = self.take(message, session).await { return end },
                        Err(ProtocolError::Overflow) => return Some(Farewell(CloseCode::Size, "a message is longer than 16384 bytes")),
                        Err(_) => return Some(Farewell(CloseCode::Protocol, "not a WebSocket frame")),
                    }
                }
                out = outbox.next() => match out {
                    Out::Frame(text) => if !self.send(session, text, idle).await { return None },
                    Out::Notice(topic, text) => {
                        if !self.send(session, text, idle).await { return None }
                        self.hub.refresh(&self.tenant, topic, self.id);
                    }
                    Out::TooSlow => {
                        metrics::counter!(crate::metrics::LIVE_TOO_SLOW).increment(1);
                        return Some(Farewell(CloseCode::Other(CLOSE_TOO_SLOW), "too slow: subscribe again"));
                    }
                },
                now = pings.tick() => {
                    if now.duration_since(heard) >= idle {
                        return Some(Farewell(CloseCode::Policy, "nothing heard, not even an answer to a ping"));
                    }
                    if !self.greeted && now.duration_since(started) >= HELLO_WITHIN {
                        return Some(Farewell(CloseCode::Policy, "no hello"));
                    }
                    if !matches!(timeout(idle, session.ping(b"")).await, Ok(Ok(()))) {
                        return None;
                    }
                }
            }
        }
    }

    /// Says whether the socket still takes frames. A reader that fell too far behind has [`GRACE`] for what was queued before.
    async fn send(&self, session: &mut Session, text: ByteString, limit: Duration) -> bool {
        let mut sending = pin!(timeout(limit, session.text(text)));
        tokio::select! {
            biased;
            sent = &mut sending => matches!(sent, Ok(Ok(()))),
            () = self.outbox.overflowed() => matches!(timeout(GRACE, sending).await, Ok(Ok(Ok(())))),
        }
    }

    /// Handles what the client said. `Some` ends the socket.
    async fn take(&mut self, message: AggregatedMessage, session: &mut Session) -> Option<Option<Farewell>> {
        let now = Instant::now();
        if now.duration_since(self.rate.0) >= Duration::from_secs(1) {
            self.rate = (now, 0);
        }
        self.rate.1 += 1;
        if self.rate.1 > MAX_PER_SECOND {
            return Some(Some(Farewell(CloseCode::Policy, "more than 50 messages in a second")));
        }
        match message {
            AggregatedMessage::Text(text) => self.answer(&text).map(Some),
            AggregatedMessage::Binary(_) => Some(Some(Farewell(CloseCode::Unsupported, "expected text, not bytes"))),
            AggregatedMessage::Ping(data) => (!matches!(timeout(GRACE, session.pong(&data)).await, Ok(Ok(())))).then_some(None),
            AggregatedMessage::Pong(_) => None,
            AggregatedMessage::Close(_) => Some(Some(Farewell(CloseCode::Normal, "bye"))),
        }
    }

    fn answer(&mut self, text: &str) -> Option<Farewell> {
        let asked = match serde_json::from_str::<Asked>(text) {
            Ok(asked) => asked,
            Err(cause) => {
                self.refuse(None, "bad_message", format!("expected a JSON object with a type of {ASKABLE}: {cause}"));
                return None;
            }
        };
        if !self.greeted && !matches!(asked, Asked::Hello { .. }) {
            self.refuse(None, "no_hello", format!("expected {{\"type\":\"hello\",\"protocol\":{PROTOCOL}}} first"));
            return None;
        }
        match asked {
            Asked::Hello { protocol } if protocol != PROTOCOL => {
                self.refuse(None, "unknown_protocol", format!("protocol {protocol} is not spoken here: expected {PROTOCOL}"));
            }
            Asked::Hello { .. } => {
                self.greeted = true;
                let data = serde_json::json!({
                    "session": format!("live_{}", self.id), "epoch": self.hub.epoch, "protocol": PROTOCOL,
                    "server_time": Utc::now(), "resume_events": RESUME_EVENTS,
                });
                self.outbox.answer(None, None, wire::frame("welcome", None, None, None, data));
            }
            Asked::Ping => self.outbox.answer(None, None, wire::frame("pong", None, None, None, serde_json::json!({}))),
            Asked::Subscribe { topic, partials, since_seq, epoch } => {
                let name = self.topic(&topic)?;
                if !self.topics.contains(&name) && self.topics.len() >= self.hub.settings.max_topics {
                    self.refuse(Some(name), "too_many_topics", format!("at most {} topics on one socket", self.hub.settings.max_topics));
                    return None;
                }
                self.topics.insert(name);
                let partials = partials.unwrap_or(name != TopicName::Wall);
                let reader = Reader { id: self.id, outbox: self.outbox.clone(), partials };
                self.hub.subscribe(&self.tenant, name, reader, since_seq.zip(epoch));
            }
            Asked::Unsubscribe { topic } => {
                let name = self.topic(&topic)?;
                self.topics.remove(&name);
                self.hub.unsubscribe(&self.tenant, name, self.id);
                self.outbox.forget(name);
            }
        }
        None
    }

    fn topic(&self, text: &str) -> Option<TopicName> {
        let name = TopicName::parse(text);
        if name.is_none() {
            let text: String = text.chars().take(64).collect();
            self.refuse(None, "unknown_topic", format!("{text:?} is no topic: expected wall or conversation:conv_…"));
        }
        name
    }

    fn refuse(&self, topic: Option<TopicName>, code: &str, message: String) {
        self.outbox.answer(topic, None, wire::error(topic, code, message));
    }
}
