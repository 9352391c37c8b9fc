//! `GET /v1/listen` upgraded: audio in the declared encoding in, Results out, in the order Deepgram's SDKs expect.
//!
//! Ends with Metadata and a close frame, always: 1000 after CloseStream, 1008 when the bytes are no audio, 1011 after silence on the wire,
//! 1012 when the server leaves. A caller who drops the connection is told nothing.

use super::{
    DeepgramRefusal,
    intake::{Format, Intake, Sniffed, Sniffer},
    messages::{Message, ResultMetadata, Summary},
    query::ListenQuery,
    request_id,
    windows::Windows,
};
use crate::ingest::{
    Ingest, Shared,
    audience::{Event, Unseated},
    channel::{Input, Waiting},
    refusal::{same_site, trace_of},
    session::{Begin, Conversation, Opening, Presence, Source},
    socket::{self, Gone, Incoming, Reader, Writer},
};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contracts::{
    CallError, ChannelIndex, ConversationId, TenantId, TraceCx,
    audio::{ChannelSpec, ModelInfo, Pace, Role},
    conversation::ConversationState,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{Instrument, debug, info, info_span};

/// Shortest time between two partials: the vendor sends one a second, its callers are used to no more than a few.
const PARTIALS: Duration = Duration::from_millis(250);
/// How often an utterance is looked at whose end is to be told.
const LOOK: Duration = Duration::from_millis(100);

/// `GET /v1/listen`: audio in, Results out, until either side closes.
pub(in crate::ingest) async fn listen(
    request: HttpRequest,
    body: web::Payload,
    ingest: web::Data<Ingest>,
) -> Result<HttpResponse, DeepgramRefusal> {
    let id = ConversationId::fresh();
    let shared = &ingest.shared;
    let (trace, _span) = trace_of(&request);
    same_site(&request).map_err(|refusal| DeepgramRefusal::of_refusal(refusal, id))?;
    let query = ListenQuery::parse(request.query_string()).map_err(|reason| DeepgramRefusal::parameter(reason, id))?;
    let declared = declared(&query).map_err(|reason| DeepgramRefusal::parameter(reason, id))?;
    let (mut response, writer, reader) =
        socket::upgrade(&request, body, shared.settings.max_frame_bytes).map_err(|refusal| DeepgramRefusal::of_refusal(refusal, id))?;
    let caller = Caller { id, query, trace };
    let hearing = match declared {
        Some(format) => {
            let hearing = caller.open(shared, format).await.map_err(|error| DeepgramRefusal::of_call(&error, id))?;
            Some(hearing)
        }
        None => None,
    };
    let headers = response.headers_mut();
    let text = |text: String| header::HeaderValue::try_from(text).expect("hexadecimal digits are a header value");
    headers.insert(header::HeaderName::from_static("dg-request-id"), text(request_id(id).to_string()));
    headers.insert(header::HeaderName::from_static("quickcomm-conversation"), text(id.to_string()));
    if let Some(protocol) = offered(&request) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let span = info_span!("socket", source = "deepgram", conversation = %id);
    let relay = Relay { shared: shared.clone(), caller, writer, audio: Sha256::new(), created: Utc::now(), sent: false };
    actix_web::rt::spawn(relay.run(reader, hearing).instrument(span)); // ends with the socket
    Ok(response)
}

/// The first word of what the client offers (`token, KEY`): a client that offers insists on an answer.
fn offered(request: &HttpRequest) -> Option<header::HeaderValue> {
    let offered = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let first = offered.split(',').next()?.trim();
    let is_token = !first.is_empty() && first.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    is_token.then(|| header::HeaderValue::from_str(first).ok())?
}

/// `None`: a container that says itself what it holds.
fn declared(query: &ListenQuery) -> Result<Option<Format>, String> {
    let Some(encoding) = query.encoding else { return Ok(None) };
    let telephone = matches!(encoding, contracts::Encoding::Mulaw | contracts::Encoding::Alaw);
    let rate = match query.rate {
        Some(rate) => rate,
        None if telephone => contracts::SampleRate::HZ_8000,
        None => return Err(format!("sample_rate is missing: expected it together with encoding={}", encoding.name())),
    };
    if query.channels > 2 {
        return Err(format!("channels is {}: expected 1 or 2 for live audio", query.channels));
    }
    Ok(Some(Format { encoding, rate, channels: query.channels }))
}

/// Who calls, and what for.
struct Caller {
    id: ConversationId,
    query: ListenQuery,
    trace: TraceCx,
}

/// The conversation once it is known what the audio is.
struct Hearing {
    presence: Presence,
    intake: Intake,
    windows: Windows,
}

impl Caller {
    async fn open(&self, shared: &Arc<Shared>, format: Format) -> Result<Hearing, CallError> {
        let query = &self.query;
        let intake = Intake::new(format, query.multichannel);
        let (channels, encoding) = intake.out();
        let spec = |n| ChannelSpec { index: ChannelIndex(n as u8), role: Role::Unknown, encoding, rate: format.rate };
        let opening = Opening {
            id: self.id,
            source: Source::Deepgram,
            external_id: None,
            title: None,
            tags: query.tags.clone(),
            language: query.language.clone(),
            endpointing: query.endpointing,
            // The wall shows partials whether this caller wants them or not.
            partials: Some(PARTIALS),
            pace: Pace::Live,
            trace: self.trace,
            tenant: TenantId::default(),
            started_at: Utc::now(),
            channels: (0..channels).map(spec).collect(),
        };
        let conversation = Conversation::open(shared, opening, Begin::New).await?;
        let metadata = Arc::new(ResultMetadata::new(request_id(self.id), &query.model, &conversation.info.model));
        let mut windows = Windows::new(channels, format.rate, metadata);
        windows.interims = query.interim_results;
        windows.speech_started = query.vad_events;
        windows.utterance_end = query.utterance_end;
        let presence = conversation.join().ok_or_else(|| CallError::unavailable("the server is restarting"))?;
        Ok(Hearing { presence, intake, windows })
    }
}

/// A text message; others are no reason to end a stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum Said {
    KeepAlive,
    Finalize { channel: Option<usize> },
    CloseStream,
    Configure,
}

struct Farewell {
    code: u16,
    reason: String,
}

impl Farewell {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

struct Relay {
    shared: Arc<Shared>,
    caller: Caller,
    writer: Writer,
    audio: Sha256,
    created: DateTime<Utc>,
    /// Metadata is sent once.
    sent: bool,
}

impl Relay {
    async fn run(mut self, mut reader: Reader, hearing: Option<Hearing>) {
        let hearing = match hearing {
            Some(hearing) => Ok(Some((hearing, Bytes::new()))),
            None => self.sniff(&mut reader).await,
        };
        let farewell = match hearing {
            Ok(Some((mut hearing, first))) => {
                let farewell = self.relay(&mut reader, &mut hearing, first).await;
                if let Ok(farewell) = &farewell {
                    let _ = self.summary(Some(&hearing)).await; // who is gone needs none
                    debug!(code = farewell.code, reason = farewell.reason, "socket closed");
                }
                farewell
            }
            Ok(None) => {
                let _ = self.summary(None).await;
                Ok(Farewell::new(socket::NORMAL, ""))
            }
            Err(Ok(farewell)) => {
                let _ = self.summary(None).await;
                info!(code = farewell.code, reason = farewell.reason, "socket refused");
                Ok(farewell)
            }
            Err(Err(gone)) => Err(gone),
        };
        if let Ok(Farewell { code, reason }) = farewell {
            self.writer.close(code, &reason).await;
        }
    }

    fn idle(&self) -> Duration {
        Duration::from_millis(self.shared.settings.deepgram_idle_ms)
    }

    fn idled(&self) -> Farewell {
        let after = self.idle().as_secs();
        Farewell::new(socket::INTERNAL, format!("NET-0001: neither audio nor a text message came within {after} s (net0001)"))
    }

    /// Waits for the head of a container. `None`: the caller ended the stream before there was any sound.
    async fn sniff(&mut self, reader: &mut Reader) -> Result<Option<(Hearing, Bytes)>, Result<Farewell, Gone>> {
        let mut sniffer = Sniffer::default();
        let mut until = tokio::time::Instant::now() + self.idle();
        loop {
            let incoming = match tokio::time::timeout_at(until, reader.next(&mut self.writer)).await {
                Err(_) => return Err(Ok(self.idled())),
                Ok(incoming) => incoming,
            };
            match incoming {
                Some(Incoming::Binary(data)) if data.is_empty() => return Ok(None),
                Some(Incoming::Binary(data)) => {
                    self.audio.update(&data);
                    match sniffer.take(&data) {
                        Sniffed::More => {}
                        Sniffed::Unknown(reason) => return Err(Ok(Farewell::new(socket::BAD_FRAME, format!("DATA-0000: {reason}")))),
                        Sniffed::Wav(format, sound) => {
                            let opened = self.caller.open(&self.shared, format).await;
                            let hearing = opened.map_err(|error| Ok(Farewell::new(socket::OVERLOADED, error.detail)))?;
                            return Ok(Some((hearing, sound)));
                        }
                    }
                }
                Some(Incoming::Text(text)) => {
                    if matches!(serde_json::from_str(&text), Ok(Said::CloseStream)) {
                        return Ok(None);
                    }
                }
                Some(Incoming::Close(_)) => return Err(Ok(Farewell::new(socket::NORMAL, ""))),
                Some(Incoming::Lost) => return Err(Err(Gone)),
                Some(Incoming::Broken(code, reason)) => return Err(Ok(Farewell::new(code, reason))),
                None => continue, // a pong is no sign that a caller wants something
            }
            until = tokio::time::Instant::now() + self.idle();
        }
    }

    async fn relay(&mut self, reader: &mut Reader, hearing: &mut Hearing, first: Bytes) -> Result<Farewell, Gone> {
        let conversation = hearing.presence.conversation.clone();
        let channels = conversation.doors.len();
        let mut waiting = Waiting::default();
        let mut token = 0;
        let mut last_sign = Instant::now();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Set when no more input is taken: how the socket will be closed once everything has been told.
        let mut ending: Option<Farewell> = None;
        // After bytes that are no WebSocket frame nothing more can be read.
        let mut readable = true;
        let mut out = vec![];
        self.queue(hearing, first, &mut waiting);
        loop {
            tokio::select! {
                () = waiting.hand_over(&conversation.doors) => last_sign = Instant::now(),
                incoming = reader.next(&mut self.writer), if readable && waiting.is_empty() => match incoming {
                    Some(Incoming::Lost) => return Err(Gone),
                    Some(Incoming::Close(code)) => {
                        // A caller that says goodbye properly has said everything.
                        let state = if matches!(code, None | Some(1000 | 1005)) { ConversationState::Complete } else { ConversationState::Abandoned };
                        conversation.finish(state);
                        return Ok(Farewell::new(socket::NORMAL, ""));
                    }
                    Some(Incoming::Broken(code, reason)) => {
                        readable = false;
                        conversation.finish(ConversationState::Abandoned);
                        ending.get_or_insert(Farewell::new(code, reason));
                    }
                    Some(Incoming::Binary(data)) if ending.is_none() => {
                        last_sign = Instant::now();
                        if data.is_empty() {
                            conversation.finish(ConversationState::Complete);
                            ending = Some(Farewell::new(socket::NORMAL, ""));
                        } else {
                            self.audio.update(&data);
                            self.queue(hearing, data, &mut waiting);
                        }
                    }
                    Some(Incoming::Text(text)) if ending.is_none() => {
                        last_sign = Instant::now();
                        match serde_json::from_str(&text) {
                            Ok(Said::KeepAlive | Said::Configure) => {}
                            Ok(Said::Finalize { channel }) => {
                                token += 1;
                                for n in (0..channels).filter(|n| channel.is_none_or(|only| only == *n)) {
                                    hearing.windows.finalize(n);
                                    waiting.push(n, Input::Finalize { token });
                                }
                            }
                            Ok(Said::CloseStream) => {
                                conversation.finish(ConversationState::Complete);
                                ending = Some(Farewell::new(socket::NORMAL, ""));
                            }
                            Err(error) => debug!(%error, "text message without meaning"),
                        }
                    }
                    Some(_) | None => {}
                },
                event = hearing.presence.next() => match event {
                    Ok(Event::Leaving) => {
                        ending.get_or_insert(Farewell::new(socket::RESTARTING, "the server is restarting"));
                    }
                    Ok(Event::Failed { error }) => {
                        return Ok(Farewell::new(socket::INTERNAL, format!("NET-0000: {}", error.detail)));
                    }
                    Ok(Event::Refused { reason }) => return Ok(Farewell::new(socket::BAD_FRAME, format!("DATA-0000: {reason}"))),
                    Ok(event) => hearing.windows.hear(event, &mut out),
                    Err(Unseated::Over) => return Ok(ending.unwrap_or(Farewell::new(socket::NORMAL, ""))),
                    Err(Unseated::Slow) => return Ok(Farewell::new(socket::INTERNAL, "NET-0000: results were not read in time")),
                    Err(Unseated::Superseded) => return Ok(Farewell::new(socket::INTERNAL, "NET-0000: the conversation was taken over")),
                },
                _ = look.tick() => {
                    for (n, door) in conversation.doors.iter().enumerate() {
                        hearing.windows.taken_in(n, door.standing().consumed, &mut out);
                    }
                    if ending.is_none() && waiting.is_empty() && last_sign.elapsed() >= self.idle() {
                        conversation.finish(ConversationState::Abandoned);
                        ending = Some(self.idled());
                    }
                }
            }
            for message in out.drain(..) {
                self.writer.send(&message).await?;
            }
            if hearing.windows.are_over() {
                return Ok(ending.unwrap_or(Farewell::new(socket::NORMAL, "")));
            }
        }
    }

    fn queue(&self, hearing: &mut Hearing, data: Bytes, waiting: &mut Waiting) {
        let parts = hearing.intake.take(data).into_iter().enumerate();
        for (n, data) in parts.filter(|(_, data)| !data.is_empty()) {
            waiting.push(n, Input::Audio { pos: None, data });
        }
    }

    /// The last message of a stream.
    async fn summary(&mut self, hearing: Option<&Hearing>) -> Result<(), Gone> {
        if std::mem::replace(&mut self.sent, true) {
            return Ok(());
        }
        let sha256 = hex::encode(std::mem::take(&mut self.audio).finalize());
        let summary = match hearing {
            Some(hearing) => {
                let doors = &hearing.presence.conversation.doors;
                let ends = doors.iter().map(|door| door.spec.rate.ms_at(door.standing().received));
                let duration = super::messages::thousandths(ends.max().unwrap_or(0));
                Summary::new(&hearing.windows.metadata, sha256, self.created, duration, doors.len())
            }
            None => {
                let nothing = ModelInfo { name: "none".into(), version: "0".into(), family: "none".into() };
                let metadata = ResultMetadata::new(request_id(self.caller.id), &self.caller.query.model, &nothing);
                Summary::new(&metadata, sha256, self.created, 0.0, self.caller.query.channels)
            }
        };
        self.writer.send(&Message::Metadata(summary)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn a_client_that_offers_a_protocol_gets_its_first_word() {
        let first = |offered: &str| {
            let request = TestRequest::default().insert_header(("sec-websocket-protocol", offered)).to_http_request();
            super::offered(&request).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(first("token, KEY").as_deref(), Some("token"));
        assert_eq!(first("bearer,JWT").as_deref(), Some("bearer"));
        assert_eq!(first(""), None);
        assert_eq!(super::offered(&TestRequest::default().to_http_request()), None);
    }

    #[test]
    fn a_text_message_is_read_and_a_strange_one_is_not() {
        let said = |text| serde_json::from_str::<Said>(text);
        assert!(matches!(said(r#"{"type":"Finalize"}"#), Ok(Said::Finalize { channel: None })));
        assert!(matches!(said(r#"{"type":"Finalize","channel":1}"#), Ok(Said::Finalize { channel: Some(1) })));
        assert!(matches!(said(r#"{"type":"Configure","processors":{}}"#), Ok(Said::Configure)));
        assert!(said(r#"{"type":"Dance"}"#).is_err() && said("[1]").is_err());
    }

    #[test]
    fn headerless_audio_needs_its_rate() {
        let query = |text| declared(&ListenQuery::parse(text).unwrap());
        assert!(query("encoding=linear16").unwrap_err().contains("sample_rate is missing"));
        assert_eq!(query("encoding=mulaw").unwrap().unwrap().rate.hz(), 8000);
        assert_eq!(query("model=nova-3").unwrap(), None);
        assert!(query("encoding=linear16&sample_rate=8000&channels=3&multichannel=true").unwrap_err().contains("1 or 2"));
    }
}
