//! A caller of `/v1/stream`: sends audio with positions, keeps what is not `safe`, comes back after a lost connection and sends it again.
//!
//! Invariants: no sample leaves memory before the server has said `safe`; a resumed call continues from the server's word, not from ours.
//! Used by `demo`, the journeys and the benches. Absent on purpose: pacing; the caller decides when audio is due.

use bytes::{BufMut, Bytes, BytesMut};
use contracts::{ConversationId, Encoding, audio::Role};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use std::{collections::VecDeque, time::Duration};
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;

/// Audio kept for sending again; as much as the server keeps a lost call open.
const KEEP: Duration = Duration::from_secs(120);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// The server pings every 5 s. Not heard of for this long it is gone, even if the connection does not know.
const SILENCE: Duration = Duration::from_secs(12);
/// The server's word for a connection whose call has a newer one.
const SUPERSEDED: u16 = 4009;
/// For the server's welcome.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// The server restarts within this time or the call is given up.
const GIVE_UP: Duration = Duration::from_secs(120);
/// Bytes; cleared before every read, so the default of 128 KiB costs a caller more than everything else it does.
const READ_BUFFER: usize = 4096;

#[derive(Clone, Debug)]
pub struct Options {
    /// `http://127.0.0.1:8080`
    pub server: String,
    pub encoding: Encoding,
    pub rate_hz: u32,
    pub roles: Vec<Role>,
    pub title: Option<String>,
    pub external_id: Option<String>,
    pub tags: Vec<String>,
    /// `None`: the server's default.
    pub endpointing_ms: Option<u32>,
    /// `None`: finals only.
    pub partial_ms: Option<u32>,
    /// Our own id, so that a call can be looked up before it is over.
    pub conversation: ConversationId,
}

impl Options {
    pub fn new(server: &str, encoding: Encoding, rate_hz: u32, roles: &[Role]) -> Self {
        Self {
            server: server.to_owned(),
            encoding,
            rate_hz,
            roles: roles.to_vec(),
            title: None,
            external_id: None,
            tags: vec![],
            endpointing_ms: None,
            partial_ms: Some(250),
            conversation: ConversationId::fresh(),
        }
    }

    fn url(&self) -> Result<String, ClientError> {
        let mut url = reqwest::Url::parse(&format!("{}/v1/stream", self.server.trim_end_matches('/')))
            .map_err(|e| ClientError::Address(self.server.clone(), e.to_string()))?;
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme).map_err(|()| ClientError::Address(self.server.clone(), "expected http://HOST:PORT".into()))?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("encoding", self.encoding.name());
            query.append_pair("sample_rate", &self.rate_hz.to_string());
            query.append_pair("channels", &self.roles.len().to_string());
            query.append_pair("roles", &self.roles.iter().map(|r| r.name()).collect::<Vec<_>>().join(","));
            query.append_pair("conversation", &self.conversation.to_string());
            query.append_pair("partials", if self.partial_ms.is_some() { "true" } else { "false" });
            for (key, value) in [("endpointing", self.endpointing_ms), ("partial_ms", self.partial_ms)] {
                if let Some(value) = value {
                    query.append_pair(key, &value.to_string());
                }
            }
            for (key, value) in [("title", &self.title), ("external_id", &self.external_id)] {
                if let Some(value) = value {
                    query.append_pair(key, value);
                }
            }
            for tag in &self.tags {
                query.append_pair("tag", tag);
            }
        }
        Ok(url.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0} is no server address: {1}")]
    Address(String, String),
    /// Refused before the call began: the HTTP status and the problem document.
    #[error("the server refused the call with {status}: {body}")]
    Refused { status: u16, retry_after_s: Option<u64>, body: String },
    #[error("no connection to {0}: {1}")]
    Unreachable(String, String),
    #[error("the server closed the call with {code}: {reason}")]
    Closed { code: u16, reason: String },
}

/// What the server says, see `/v1/stream`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    Welcome { conversation: ConversationId, resumed: bool, channels: Vec<Standing> },
    Started { channel: u8, at_ms: u64 },
    Partial { channel: u8, utterance: String, rev: u32, start_ms: u64, end_ms: u64, text: String, stable_words: usize },
    Final(Final),
    Retracted { utterance: String },
    Gap { channel: u8, start_ms: u64, end_ms: u64, reason: String },
    Safe { channel: u8, epoch: u32, pos: u64 },
    Flushed { token: u32 },
    Ended { conversation: ConversationId, state: String },
    Error { code: String, message: String },
    Goaway { reason: String },
    Pong,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Standing {
    pub channel: u8,
    pub epoch: u32,
    pub safe: u64,
    pub next_seq: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Final {
    pub channel: u8,
    pub utterance: String,
    pub seq: u64,
    pub start_ms: u64,
    pub end_ms: u64,
    pub text: String,
    pub confidence: f32,
    pub speech_final: bool,
    pub decode_ms: u32,
}

/// A message and when it came in.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Instant,
    pub message: ServerMessage,
}

/// The handle of an open call. Dropping it hangs up without saying so.
pub struct Call {
    commands: mpsc::Sender<Command>,
    cut: mpsc::Sender<()>,
    hang_up: CancellationToken,
}

enum Command {
    Audio { channel: u8, data: Bytes },
    Finalize { token: u32 },
    Close,
}

/// Events of a call in order; the last is an error, or `Ended` and then nothing.
pub type Events = mpsc::UnboundedReceiver<Result<Event, ClientError>>;

impl Call {
    /// Connects and waits for the server's admission.
    pub async fn open(options: Options) -> Result<(Self, Events), ClientError> {
        let (socket, welcome) = dial(&options).await?;
        let (commands, inbox) = mpsc::channel(64);
        let (cut, cuts) = mpsc::channel(1);
        let (outbox, events) = mpsc::unbounded_channel();
        let hang_up = CancellationToken::new();
        let keep_bytes = KEEP.as_secs() as usize * options.rate_hz as usize * options.encoding.bytes_per_sample();
        let channels = options.roles.iter().map(|_| Kept::new(options.encoding.bytes_per_sample(), keep_bytes)).collect();
        let caller = Caller { options, channels, closing: false, given_up: false, outbox };
        tokio::spawn(caller.run(socket, welcome, inbox, cuts, hang_up.clone()));
        Ok((Self { commands, cut, hang_up }, events))
    }

    /// Sends samples that continue the channel. Waits while the call is behind or being resumed.
    pub async fn send(&self, channel: u8, data: Bytes) {
        let _ = self.commands.send(Command::Audio { channel, data }).await;
    }

    pub async fn finalize(&self, token: u32) {
        let _ = self.commands.send(Command::Finalize { token }).await;
    }

    /// Says that no more audio will come; the events end with `Ended`.
    pub async fn close(&self) {
        let _ = self.commands.send(Command::Close).await;
    }

    /// Waits until the call is over, well or not.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Loses the connection on purpose, as a bad network would; the call comes back by itself.
    pub async fn cut(&self) {
        let _ = self.cut.send(()).await;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.hang_up.cancel()
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// One channel's audio that the server has not called safe.
struct Kept {
    sample_bytes: usize,
    limit: usize,
    /// Position of the first kept sample.
    from: u64,
    held: usize,
    pieces: VecDeque<Bytes>,
}

impl Kept {
    fn new(sample_bytes: usize, limit: usize) -> Self {
        Self { sample_bytes, limit, from: 0, held: 0, pieces: VecDeque::new() }
    }

    fn end(&self) -> u64 {
        self.from + (self.held / self.sample_bytes) as u64
    }

    fn push(&mut self, data: Bytes) {
        self.held += data.len();
        self.pieces.push_back(data);
    }

    fn forget_before(&mut self, safe: u64) {
        while let Some(first) = self.pieces.front_mut() {
            let behind = safe.saturating_sub(self.from) as usize * self.sample_bytes;
            if behind == 0 {
                break;
            }
            let n = behind.min(first.len());
            let _ = first.split_to(n);
            if first.is_empty() {
                self.pieces.pop_front();
            }
            self.held -= n;
            self.from += (n / self.sample_bytes) as u64;
        }
    }
}

struct Caller {
    options: Options,
    channels: Vec<Kept>,
    closing: bool,
    /// A connection was given up before it was answered: a server that stood still may take it for the newer one.
    given_up: bool,
    outbox: mpsc::UnboundedSender<Result<Event, ClientError>>,
}

enum Left {
    /// The connection broke: come back.
    Lost,
    Done,
}

impl Caller {
    async fn run(
        mut self,
        mut socket: Socket,
        welcome: ServerMessage,
        mut inbox: mpsc::Receiver<Command>,
        mut cuts: mpsc::Receiver<()>,
        hang_up: CancellationToken,
    ) {
        self.tell(welcome);
        loop {
            let left = tokio::select! {
                left = self.converse(&mut socket, &mut inbox, &mut cuts) => left,
                () = hang_up.cancelled() => return,
            };
            match left {
                Ok(Left::Done) => return,
                Ok(Left::Lost) => {}
                Err(error) => {
                    let _ = self.outbox.send(Err(error));
                    return;
                }
            }
            drop(socket);
            let back = tokio::select! {
                back = self.come_back() => back,
                () = hang_up.cancelled() => return,
            };
            socket = match back {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    let _ = self.outbox.send(Err(error));
                    return;
                }
            };
        }
    }

    async fn converse(
        &mut self,
        socket: &mut Socket,
        inbox: &mut mpsc::Receiver<Command>,
        cuts: &mut mpsc::Receiver<()>,
    ) -> Result<Left, ClientError> {
        let mut heard = Instant::now();
        loop {
            let room = self.channels.iter().all(|kept| kept.held < kept.limit);
            tokio::select! {
                biased;
                said = socket.next() => { heard = Instant::now(); match said {
                    Some(Ok(Message::Text(text))) => {
                        // A type this client does not know is a newer server's; it may be passed over.
                        let Ok(message) = serde_json::from_str::<ServerMessage>(&text) else { continue };
                        if let ServerMessage::Safe { channel, pos, .. } = message
                            && let Some(kept) = self.channels.get_mut(usize::from(channel))
                        {
                            kept.forget_before(pos);
                        }
                        let ended = matches!(message, ServerMessage::Ended { .. });
                        self.tell(message);
                        if ended {
                            let _ = socket.close(None).await;
                            return Ok(Left::Done);
                        }
                    }
                    Some(Ok(Message::Close(frame))) => match frame {
                        Some(CloseFrame { code, .. }) if u16::from(code) == SUPERSEDED && std::mem::take(&mut self.given_up) => {
                            return Ok(Left::Lost);
                        }
                        // Restarting or overloaded: worth coming back. The other codes are answers.
                        Some(CloseFrame { code, reason }) if !matches!(u16::from(code), 1001 | 1006 | 1012 | 1013) => {
                            return Err(ClientError::Closed { code: code.into(), reason: reason.to_string() });
                        }
                        _ => return Ok(Left::Lost),
                    },
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(Left::Lost),
                } }
                () = tokio::time::sleep_until(heard + SILENCE) => return Ok(Left::Lost),
                Some(()) = cuts.recv() => return Ok(Left::Lost),
                command = inbox.recv(), if room && !self.closing => match command {
                    Some(Command::Audio { channel, data }) => {
                        let Some(kept) = self.channels.get_mut(usize::from(channel)) else { continue };
                        let pos = kept.end();
                        kept.push(data.clone());
                        if send_audio(socket, channel, pos, data, self.options.encoding).await.is_err() {
                            return Ok(Left::Lost);
                        }
                    }
                    Some(Command::Finalize { token }) => {
                        let text = serde_json::json!({ "type": "finalize", "token": token }).to_string();
                        if socket.send(Message::text(text)).await.is_err() {
                            return Ok(Left::Lost);
                        }
                    }
                    Some(Command::Close) => {
                        self.closing = true;
                        if socket.send(Message::text(r#"{"type":"close"}"#)).await.is_err() {
                            return Ok(Left::Lost);
                        }
                    }
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Connects again with growing pauses, and sends what the server says it does not have. `None`: the call is over, as was asked for, and the
    /// answer was lost on its way.
    async fn come_back(&mut self) -> Result<Option<Socket>, ClientError> {
        let give_up = Instant::now() + GIVE_UP;
        let mut pause = FIRST_RETRY;
        loop {
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (pause * 2).min(LAST_RETRY);
            match dial(&self.options).await {
                Ok((mut socket, welcome)) => {
                    if self.send_again(&mut socket, &welcome).await.is_ok() {
                        self.tell(welcome);
                        return Ok(Some(socket));
                    }
                }
                Err(error @ (ClientError::Unreachable(..) | ClientError::Refused { status: 503 | 507, .. }))
                    if Instant::now() >= give_up =>
                {
                    return Err(error);
                }
                Err(ClientError::Unreachable(..)) => self.given_up = true,
                Err(ClientError::Refused { status: 503 | 507, .. }) => {}
                Err(error) => {
                    let Some(ended) = self.over(&error) else { return Err(error) };
                    self.tell(ended);
                    return Ok(None);
                }
            }
        }
    }

    /// A refusal that says how the call ended which this client has closed.
    fn over(&self, error: &ClientError) -> Option<ServerMessage> {
        let ClientError::Refused { status: 409, body, .. } = error else { return None };
        let problem: serde_json::Value = serde_json::from_str(body).ok().filter(|_| self.closing)?;
        let state = problem["state"].as_str()?.to_owned();
        Some(ServerMessage::Ended { conversation: self.options.conversation, state })
    }

    async fn send_again(&mut self, socket: &mut Socket, welcome: &ServerMessage) -> Result<(), tungstenite::Error> {
        let ServerMessage::Welcome { channels, .. } = welcome else { return Ok(()) };
        for standing in channels {
            let Some(kept) = self.channels.get_mut(usize::from(standing.channel)) else { continue };
            kept.forget_before(standing.safe);
            let mut pos = kept.from;
            for piece in kept.pieces.clone() {
                let samples = (piece.len() / kept.sample_bytes) as u64;
                send_audio(socket, standing.channel, pos, piece, self.options.encoding).await?;
                pos += samples;
            }
        }
        if self.closing {
            socket.send(Message::text(r#"{"type":"close"}"#)).await?;
        }
        Ok(())
    }

    fn tell(&self, message: ServerMessage) {
        let _ = self.outbox.send(Ok(Event { at: Instant::now(), message }));
    }
}

/// Audio of one message stays well below the server's limit of 64 KiB.
const MESSAGE_BYTES: usize = 16 * 1024;

async fn send_audio(socket: &mut Socket, channel: u8, mut pos: u64, mut data: Bytes, encoding: Encoding) -> Result<(), tungstenite::Error> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(MESSAGE_BYTES));
        let mut message = BytesMut::with_capacity(12 + piece.len());
        message.put_u8(1);
        message.put_u8(channel);
        message.put_u16(0);
        message.put_u64_le(pos);
        message.put_slice(&piece);
        pos += (piece.len() / encoding.bytes_per_sample()) as u64;
        socket.send(Message::binary(message.freeze())).await?;
    }
    Ok(())
}

async fn dial(options: &Options) -> Result<(Socket, ServerMessage), ClientError> {
    let silent = |_| ClientError::Unreachable(options.server.clone(), format!("no welcome within {} s", DIAL_LIMIT.as_secs()));
    tokio::time::timeout(DIAL_LIMIT, welcomed(options)).await.map_err(silent)?
}

async fn welcomed(options: &Options) -> Result<(Socket, ServerMessage), ClientError> {
    let url = options.url()?;
    let unreachable = |cause: String| ClientError::Unreachable(options.server.clone(), cause);
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let (mut socket, _) = match connect_async_with_config(url, Some(config), true).await {
        Ok(connected) => connected,
        Err(tungstenite::Error::Http(answer)) => {
            let retry_after_s = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            return Err(ClientError::Refused { status: answer.status().as_u16(), retry_after_s, body });
        }
        Err(error) => return Err(unreachable(error.to_string())),
    };
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(welcome @ ServerMessage::Welcome { .. }) => return Ok((socket, welcome)),
                Ok(ServerMessage::Error { code, message }) => return Err(unreachable(format!("{code}: {message}"))),
                _ => return Err(unreachable(format!("expected a welcome, got {text}"))),
            },
            Some(Ok(Message::Close(Some(frame)))) => {
                return Err(ClientError::Closed { code: frame.code.into(), reason: frame.reason.to_string() });
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(unreachable(error.to_string())),
            None => return Err(unreachable("it hung up before its welcome".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_audio_is_forgotten_up_to_the_sample_that_is_safe() {
        let mut kept = Kept::new(2, 1000);
        kept.push(Bytes::from_static(&[0; 20]));
        kept.push(Bytes::from_static(&[1; 20]));
        kept.forget_before(13);
        assert_eq!((kept.from, kept.held, kept.end(), kept.pieces.len()), (13, 14, 20, 1));
        kept.forget_before(5);
        assert_eq!(kept.from, 13);
        kept.forget_before(20);
        assert_eq!((kept.from, kept.held), (20, 0));
    }

    #[test]
    fn what_the_server_says_is_understood() {
        let said = r#"{"type":"final","channel":1,"utterance":"utt_1","seq":3,"start_ms":1,"end_ms":2,"text":"yes","confidence":0.9,"speech_final":true,"word_times":"estimated","words":[],"decode_ms":12,"trace_id":"x"}"#;
        assert!(matches!(serde_json::from_str(said), Ok(ServerMessage::Final(Final { seq: 3, .. }))));
        assert!(matches!(serde_json::from_str(r#"{"type":"pong"}"#), Ok(ServerMessage::Pong)));
    }
}
