//! `GET /v1/stream`: the socket on which nothing is lost.
//!
//! Everything that can be refused is refused before the upgrade, with an HTTP status. Audio carries its position, so a caller who comes
//! back sends again from `safe` and what was received is trimmed. A caller who leaves without `close` is awaited.

use super::{
    Ingest, Shared,
    audience::{Event, Final, Partial, Unseated},
    channel::{Input, Waiting},
    metrics as names,
    refusal::{Refusal, pairs, same_site, trace_of},
    session::{Begin, Conversation, Opening, Presence, Source},
    socket::{self, Gone, Incoming, Reader, Writer},
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Buf, Bytes};
use chrono::Utc;
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, Encoding, ErrorKind, Retry, SamplePos, SampleRate, TenantId, TraceCx, UtteranceId,
    audio::{ChannelSpec, Endpointing, Pace, Role, Word, WordTimes, text_of},
    conversation::ConversationState,
};
use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, interval_at, sleep_until};
use tracing::{Instrument, debug, info, info_span};

/// Version, channel, two zeros, position.
const HEADER_BYTES: usize = 12;
const VERSION: u8 = 1;
const ASK_BUDGET: Duration = Duration::from_secs(5);

/// `GET /v1/stream`: audio with positions in, text and watermarks out.
pub(super) async fn stream(request: HttpRequest, body: web::Payload, ingest: web::Data<Ingest>) -> Result<HttpResponse, Refusal> {
    let (trace, _span) = trace_of(&request);
    let shared = &ingest.shared;
    let opened = async {
        same_site(&request)?;
        let query = StreamQuery::parse(request.query_string())?;
        let (response, writer, reader) = socket::upgrade(&request, body, shared.settings.max_frame_bytes)?;
        let (presence, resumed) = place(shared, query, trace).await?;
        Ok((response, writer, reader, presence, resumed))
    };
    let (response, writer, reader, presence, resumed) = opened.await.map_err(|refusal: Refusal| {
        counter!(names::REFUSED, "source" => "native", "kind" => refusal.status.as_str().to_owned()).increment(1);
        info!(status = refusal.status.as_u16(), detail = refusal.detail, trace_id = %trace.trace_id_hex(), "caller refused");
        refusal.at(&request, trace)
    })?;
    let span = info_span!("socket", source = "native", conversation = %presence.conversation.id());
    let relay = Relay { shared: shared.clone(), presence, writer, flushes: Flushes::default() };
    actix_web::rt::spawn(relay.run(reader, resumed).instrument(span)); // ends with the socket or the conversation, whichever is first
    Ok(response)
}

/// Joins the conversation asked for, or begins it.
async fn place(shared: &Arc<Shared>, query: StreamQuery, trace: TraceCx) -> Result<(Presence, bool), Refusal> {
    let join = |conversation: Arc<Conversation>| conversation.join().ok_or_else(|| ending(conversation.id()));
    let Some(id) = query.conversation else {
        let opened = Conversation::open(shared, query.opening(ConversationId::fresh(), trace), Begin::New).await?;
        return Ok((join(opened)?, false));
    };
    if let Some(conversation) = shared.find(id) {
        same_audio(&query, &conversation.opening.channels)?;
        conversation.wake().await?;
        return Ok((join(conversation)?, true));
    }
    let cx = CallCx::new(ASK_BUDGET).for_conversation(id).traced(trace);
    let view = match shared.conversations.conversation(cx, id).await {
        Ok(view) if view.conversation.state == ConversationState::Live => view,
        Ok(view) => return Err(Refusal::over(id, view.conversation.state)),
        Err(error) if error.kind == ErrorKind::NotFound => {
            let opened = Conversation::open(shared, query.opening(id, trace), Begin::New).await?;
            return Ok((join(opened)?, false));
        }
        Err(error) => return Err(error.into()),
    };
    let channels: Vec<ChannelSpec> = view.channels.iter().map(|channel| channel.spec.clone()).collect();
    same_audio(&query, &channels)?;
    let known = view.conversation;
    let opening = Opening {
        title: known.title,
        external_id: known.external_id,
        tags: known.tags,
        started_at: known.started_at,
        source: Source::from_name(&known.source),
        channels,
        ..query.opening(id, trace)
    };
    let begin = Begin::Again { safe: view.channels.iter().map(|channel| channel.attached.safe).collect() };
    Ok((join(Conversation::open(shared, opening, begin).await?)?, true))
}

/// How it ends is known in a moment.
fn ending(id: ConversationId) -> Refusal {
    CallError::busy(Duration::from_secs(1), format!("{id} is being closed")).into()
}

fn same_audio(query: &StreamQuery, channels: &[ChannelSpec]) -> Result<(), Refusal> {
    let first = channels.first().ok_or_else(|| CallError::internal("the conversation has no channels"))?;
    for (name, given, known) in [
        ("encoding", query.encoding.name().to_owned(), first.encoding.name().to_owned()),
        ("sample_rate", query.rate.hz().to_string(), first.rate.hz().to_string()),
        ("channels", query.roles.len().to_string(), channels.len().to_string()),
    ] {
        if given != known {
            return Err(Refusal::parameter(name, &given, &format!("{known}, as the conversation was begun with")));
        }
    }
    Ok(())
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq)]
struct StreamQuery {
    encoding: Encoding,
    rate: SampleRate,
    /// One per channel.
    roles: Vec<Role>,
    language: String,
    endpointing: Endpointing,
    partials: Option<Duration>,
    title: Option<String>,
    external_id: Option<String>,
    tags: Vec<String>,
    conversation: Option<ConversationId>,
}

impl StreamQuery {
    fn parse(query: &str) -> Result<Self, Refusal> {
        let mut given: BTreeMap<String, String> = BTreeMap::new();
        let mut tags = vec![];
        for (name, value) in pairs(query)? {
            match name.as_str() {
                "tag" => tags.push(text("tag", value, 100)?),
                "encoding" | "sample_rate" | "channels" | "roles" | "language" | "endpointing" | "partials" | "partial_ms" | "title"
                | "external_id" | "conversation" => {
                    if given.insert(name.clone(), value).is_some() {
                        return Err(Refusal::parameter(&name, "given twice", "it once"));
                    }
                }
                _ => {
                    let expected = "only encoding, sample_rate, channels, roles, language, endpointing, partials, partial_ms, title, \
                                    external_id, tag and conversation";
                    return Err(Refusal::parameter(&name.chars().take(64).collect::<String>(), &value, expected));
                }
            }
        }
        if tags.len() > 20 {
            return Err(Refusal::parameter("tag", &format!("given {} times", tags.len()), "at most 20"));
        }
        let mut take = |name: &str| given.remove(name);
        let encodings = "linear16, float32, mulaw or alaw";
        let encoding = take("encoding").ok_or_else(|| Refusal::missing("encoding", encodings))?;
        let encoding = encoding.parse().map_err(|_| Refusal::parameter("encoding", &encoding, encodings))?;
        let rates = "a number from 8000 to 48000";
        let rate = take("sample_rate").ok_or_else(|| Refusal::missing("sample_rate", rates))?;
        let rate =
            rate.parse().ok().and_then(|hz| SampleRate::new(hz).ok()).ok_or_else(|| Refusal::parameter("sample_rate", &rate, rates))?;
        let channels = match take("channels").as_deref() {
            None | Some("1") => 1,
            Some("2") => 2,
            Some(other) => return Err(Refusal::parameter("channels", other, "1 or 2")),
        };
        let mut roles = vec![];
        let given_roles = take("roles").unwrap_or_default();
        for role in given_roles.split(',').filter(|role| !role.is_empty()) {
            let known = [Role::Agent, Role::Customer, Role::Unknown].into_iter().find(|r| r.name() == role);
            roles.push(known.ok_or_else(|| Refusal::parameter("roles", role, "agent, customer or unknown, one per channel"))?);
        }
        if roles.len() > channels {
            return Err(Refusal::parameter("roles", &given_roles, &format!("at most {channels}, one per channel")));
        }
        roles.resize(channels, Role::Unknown);
        let endpointing = match take("endpointing").as_deref() {
            None => Endpointing::default(),
            Some("false") => Endpointing::Off,
            Some(ms) => match ms.parse() {
                Ok(ms @ 0..=10_000) => Endpointing::Silence(Duration::from_millis(ms)),
                _ => return Err(Refusal::parameter("endpointing", ms, "0 to 10000 ms, or false")),
            },
        };
        let partial_ms = match take("partial_ms").as_deref() {
            None => 250,
            Some(ms) => match ms.parse() {
                Ok(ms @ 100..=10_000) => ms,
                _ => return Err(Refusal::parameter("partial_ms", ms, "100 to 10000")),
            },
        };
        let partials = match take("partials").as_deref() {
            None | Some("true") => Some(Duration::from_millis(partial_ms)),
            Some("false") => None,
            Some(other) => return Err(Refusal::parameter("partials", other, "true or false")),
        };
        let conversation = match take("conversation") {
            None => None,
            Some(id) => Some(id.parse().map_err(|_| Refusal::parameter("conversation", &id, "conv_ and 32 hexadecimal digits"))?),
        };
        Ok(Self {
            encoding,
            rate,
            roles,
            language: text("language", take("language").unwrap_or_else(|| "en".into()), 35)?,
            endpointing,
            partials,
            title: take("title").map(|title| text("title", title, 200)).transpose()?,
            external_id: take("external_id").map(|id| text("external_id", id, 200)).transpose()?,
            tags,
            conversation,
        })
    }

    fn opening(&self, id: ConversationId, trace: TraceCx) -> Opening {
        let channel = |(index, role): (usize, &Role)| ChannelSpec {
            index: ChannelIndex(index as u8),
            role: *role,
            encoding: self.encoding,
            rate: self.rate,
        };
        Opening {
            id,
            source: Source::Native,
            external_id: self.external_id.clone(),
            title: self.title.clone(),
            tags: self.tags.clone(),
            language: self.language.clone(),
            endpointing: self.endpointing,
            partials: self.partials,
            pace: Pace::Live,
            trace,
            tenant: TenantId::default(),
            started_at: Utc::now(),
            channels: self.roles.iter().enumerate().map(channel).collect(),
        }
    }
}

fn text(name: &str, value: String, most: usize) -> Result<String, Refusal> {
    let fits = !value.is_empty() && value.chars().count() <= most && !value.chars().any(char::is_control);
    if fits { Ok(value) } else { Err(Refusal::parameter(name, &value, &format!("1 to {most} printable characters"))) }
}

/// A binary message: where its samples belong.
fn frame(mut message: Bytes, channels: usize) -> Result<(usize, SamplePos, Bytes), String> {
    if message.len() < HEADER_BYTES {
        return Err(format!("a frame of {} bytes: expected a header of {HEADER_BYTES} bytes and samples", message.len()));
    }
    let (version, channel, zeros) = (message.get_u8(), message.get_u8(), message.get_u16());
    if version != VERSION {
        return Err(format!("frame version {version}: expected {VERSION}"));
    }
    if usize::from(channel) >= channels {
        return Err(format!("channel {channel}: expected less than {channels}"));
    }
    if zeros != 0 {
        return Err("bytes 2 and 3 of the frame header are not zero".into());
    }
    Ok((channel.into(), SamplePos(message.get_u64_le()), message))
}

/// A text message.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    Finalize {
        #[serde(default)]
        token: u32,
    },
    Close,
    Ping,
}

/// Text for the caller. Typed, because a number that passes through `Value` grows digits.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Text<'a> {
    Partial(PartialText<'a>),
    Final(FinalText<'a>),
}

#[derive(Serialize)]
struct PartialText<'a> {
    channel: ChannelIndex,
    utterance: UtteranceId,
    rev: u32,
    start_ms: u64,
    end_ms: u64,
    text: String,
    stable_words: usize,
    words: &'a [Word],
}

#[derive(Serialize)]
struct FinalText<'a> {
    channel: ChannelIndex,
    utterance: UtteranceId,
    seq: u64,
    /// Voiced part.
    start_ms: u64,
    end_ms: u64,
    text: String,
    confidence: f32,
    speech_final: bool,
    word_times: WordTimes,
    words: &'a [Word],
    decode_ms: u32,
    trace_id: String,
}

impl<'a> PartialText<'a> {
    fn new(partial: &'a Partial, rate: SampleRate) -> Self {
        let Partial { channel, utterance, rev, start, end, words, stable_words } = partial;
        Self {
            channel: *channel,
            utterance: *utterance,
            rev: *rev,
            start_ms: rate.ms_at(*start),
            end_ms: rate.ms_at(*end),
            text: text_of(words),
            stable_words: *stable_words,
            words,
        }
    }
}

impl<'a> FinalText<'a> {
    fn new(last: &'a Final, rate: SampleRate) -> Self {
        let spoken = &last.spoken;
        Self {
            channel: last.channel,
            utterance: last.utterance,
            seq: last.seq,
            start_ms: rate.ms_at(spoken.from),
            end_ms: rate.ms_at(spoken.to),
            text: spoken.text(),
            confidence: spoken.confidence,
            speech_final: spoken.speech_final,
            word_times: spoken.word_times,
            words: &spoken.words,
            decode_ms: spoken.decode_ms,
            trace_id: last.trace.trace_id_hex(),
        }
    }
}

/// What a caller must be told last.
struct Farewell {
    code: u16,
    reason: String,
}

struct Relay {
    shared: Arc<Shared>,
    presence: Presence,
    writer: Writer,
    flushes: Flushes,
}

/// A finalize is answered when every channel has answered it.
#[derive(Default)]
struct Flushes {
    next: u32,
    open: Vec<(u32, u32, usize)>,
}

impl Flushes {
    /// Returns the number to use inside: callers may repeat theirs.
    fn ask(&mut self, token: u32, channels: usize) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.open.push((self.next, token, channels));
        self.next
    }

    fn answered(&mut self, number: u32) -> Option<u32> {
        let at = self.open.iter().position(|(open, _, _)| *open == number)?;
        self.open[at].2 -= 1;
        (self.open[at].2 == 0).then(|| self.open.remove(at).1)
    }
}

impl Relay {
    async fn run(mut self, mut reader: Reader, resumed: bool) {
        let ended = self.relay(&mut reader, resumed).await;
        let Self { presence, writer, .. } = self;
        if let Ok(Farewell { code, reason }) = ended {
            debug!(code, reason, "socket closed");
            writer.close(code, &reason).await;
        }
        drop(presence); // only now may the conversation count the caller as gone
    }

    async fn relay(&mut self, reader: &mut Reader, resumed: bool) -> Result<Farewell, Gone> {
        self.welcome(resumed).await?;
        let conversation = self.presence.conversation.clone();
        let (ping, silence) = (self.shared.settings.ping(), self.shared.settings.silence());
        let mut pings = interval_at(Instant::now() + ping, ping);
        let mut alive = Instant::now();
        let mut waiting = Waiting::default();
        let mut closing = false;
        loop {
            tokio::select! {
                () = waiting.hand_over(&conversation.doors) => alive = Instant::now(),
                incoming = reader.next(&mut self.writer), if waiting.is_empty() => {
                    alive = Instant::now();
                    match incoming {
                        Some(Incoming::Binary(message)) if !closing => match frame(message, conversation.doors.len()) {
                            Ok((channel, pos, data)) => waiting.push(channel, Input::Audio { pos: Some(pos), data }),
                            Err(reason) => return self.refuse(socket::BAD_FRAME, "bad_frame", reason).await,
                        },
                        Some(Incoming::Text(message)) if !closing => match serde_json::from_str(&message) {
                            Ok(Said::Finalize { token }) => {
                                let token = self.flushes.ask(token, conversation.doors.len());
                                (0..conversation.doors.len()).for_each(|n| waiting.push(n, Input::Finalize { token }));
                            }
                            Ok(Said::Close) => {
                                closing = true;
                                conversation.finish(ConversationState::Complete);
                            }
                            Ok(Said::Ping) => self.writer.send(&json!({ "type": "pong" })).await?,
                            Err(_) => {
                                let reason = "expected a JSON object whose type is finalize, close or ping".into();
                                return self.refuse(socket::UNEXPECTED, "unexpected_message", reason).await;
                            }
                        },
                        Some(Incoming::Broken(code, reason)) => return self.refuse(code, "bad_message", reason).await,
                        Some(Incoming::Close(_)) => return Ok(Farewell { code: socket::NORMAL, reason: String::new() }),
                        Some(Incoming::Lost) => return Err(Gone),
                        Some(Incoming::Binary(_) | Incoming::Text(_)) | None => {}
                    }
                }
                event = self.presence.next() => match event {
                    Ok(event) => if let Some(farewell) = self.tell(event).await? {
                        return Ok(farewell);
                    },
                    Err(Unseated::Superseded) => {
                        counter!(names::SUPERSEDED).increment(1);
                        return Ok(Farewell { code: socket::SUPERSEDED, reason: "a newer connection has this conversation".into() });
                    }
                    Err(Unseated::Slow) => {
                        return self.refuse(socket::OVERLOADED, "slow_reader", "events were not read in time: come back".into()).await;
                    }
                    Err(Unseated::Over) => return Ok(Farewell { code: socket::NORMAL, reason: String::new() }),
                },
                _ = pings.tick() => self.writer.ping().await?,
                // While something waits the socket is not read, and its silence is ours.
                () = sleep_until(alive + silence), if waiting.is_empty() => {
                    info!("the caller does not answer");
                    self.presence.silent = true;
                    return Err(Gone);
                }
            }
        }
    }

    async fn welcome(&mut self, resumed: bool) -> Result<(), Gone> {
        let conversation = &self.presence.conversation;
        let channels: Vec<Value> = conversation
            .doors
            .iter()
            .map(|door| {
                let attached = door.standing().attached;
                json!({ "channel": door.spec.index, "epoch": attached.epoch, "safe": attached.safe, "next_seq": attached.next_seq })
            })
            .collect();
        let welcome = json!({
            "type": "welcome",
            "conversation": conversation.id(),
            "resumed": resumed,
            "resume_window_ms": self.shared.settings.resume_window_ms,
            "max_frame_bytes": self.shared.settings.max_frame_bytes,
            "credit_ms": conversation.info.credit.as_millis() as u64,
            "channels": channels,
        });
        self.writer.send(&welcome).await
    }

    async fn refuse(&mut self, code: u16, name: &str, reason: String) -> Result<Farewell, Gone> {
        info!(code, reason, "socket refused");
        self.writer.send(&json!({ "type": "error", "code": name, "message": reason })).await?;
        Ok(Farewell { code, reason })
    }

    async fn tell(&mut self, event: Event) -> Result<Option<Farewell>, Gone> {
        let rate = self.presence.conversation.doors[0].spec.rate;
        let ms = |pos| rate.ms_at(pos);
        let message = match event {
            Event::Started { channel, at } => json!({ "type": "started", "channel": channel, "at_ms": ms(at) }),
            Event::Partial(partial) => {
                self.writer.send(&Text::Partial(PartialText::new(&partial, rate))).await?;
                return Ok(None);
            }
            Event::Final(last) => {
                self.writer.send(&Text::Final(FinalText::new(&last, rate))).await?;
                return Ok(None);
            }
            Event::Retracted { channel, utterance } => json!({ "type": "retracted", "channel": channel, "utterance": utterance }),
            Event::Gap { channel, start, end, reason } => {
                json!({ "type": "gap", "channel": channel, "start_ms": ms(start), "end_ms": ms(end), "reason": reason })
            }
            Event::Safe { channel, epoch, pos } => json!({ "type": "safe", "channel": channel, "epoch": epoch, "pos": pos }),
            Event::Flushed { token, .. } => match self.flushes.answered(token) {
                Some(token) => json!({ "type": "flushed", "token": token }),
                None => return Ok(None),
            },
            Event::Silence { .. } | Event::Heard { .. } => return Ok(None),
            Event::Refused { reason } => return self.refuse(socket::BAD_FRAME, "bad_frame", reason).await.map(Some),
            Event::Ended { state } => {
                let conversation = self.presence.conversation.id();
                self.writer.send(&json!({ "type": "ended", "conversation": conversation, "state": state })).await?;
                return Ok(Some(Farewell { code: socket::NORMAL, reason: String::new() }));
            }
            Event::Failed { error } => {
                let busy = matches!(error.retry, Retry::After(_)) || error.kind == ErrorKind::Unavailable;
                let code = if busy { socket::OVERLOADED } else { socket::INTERNAL };
                return self.refuse(code, error.kind.name(), error.detail).await.map(Some);
            }
            Event::Leaving => {
                self.writer.send(&json!({ "type": "goaway", "reason": "the server is restarting" })).await?;
                return Ok(Some(Farewell { code: socket::RESTARTING, reason: "restarting".into() }));
            }
        };
        self.writer.send(&message).await?;
        Ok(None)
    }
}
