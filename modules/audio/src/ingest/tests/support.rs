use crate::ingest::{Ingest, IngestDeps, IngestSettings};
use actix_web::{App, HttpServer};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, ChannelIndex, ConversationId, Conversations, SamplePos,
    audio::{
        CREDIT, Endpointing, EventTx, Frame, HeardSegment, Input, ModelInfo, Mover, SegmentBody, Session, SessionInfo, SpeechEvent, Spoken,
        StreamSpec, Word, WordTimes,
    },
    conversation::{CommitOutcome, ConversationState, ConversationView, Segment},
    signal::{COMMITTED, Committed, UTTERANCES},
    testing::FakeConversations,
};
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use platform::bus::{Bus, Memory};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest, handshake::client::Response},
};

pub(super) const PATH: &str = "/v1/stream?encoding=mulaw&sample_rate=8000";
pub(super) const LISTEN: &str = "/v1/listen?encoding=mulaw&sample_rate=8000";

/// µ-law at 8 kHz: one byte a sample, 8 a millisecond.
pub(super) const MS: usize = 8;
pub(super) const QUIET: u8 = 0xff;

pub(super) fn loud(ms: usize) -> Vec<u8> {
    vec![0x20; ms * MS]
}
pub(super) fn quiet(ms: usize) -> Vec<u8> {
    vec![QUIET; ms * MS]
}

pub(super) fn id_of(welcome: &Value) -> ConversationId {
    assert_eq!(welcome["type"], "welcome");
    welcome["conversation"].as_str().unwrap().parse().unwrap()
}

/// Three utterances.
pub(super) fn call() -> Vec<u8> {
    [quiet(200), loud(300), quiet(500), loud(400), quiet(500), loud(200), quiet(600)].concat()
}
pub(super) const WORDS: [&str; 3] = ["200 300 400", "1000 1100 1200 1300", "1900 2000"];

/// Hears loudness: every started 100 ms of a loud stretch is a word, and the pause asked for ends an utterance.
#[derive(Clone, Default)]
pub(super) struct Loudness {
    /// `open` answers with this.
    pub(super) refuse: Arc<Mutex<Option<CallError>>>,
    /// So many more sessions are admitted.
    pub(super) room: Arc<Mutex<Option<usize>>>,
    /// A session breaks after taking in this much.
    pub(super) break_after: Arc<Mutex<Option<(u64, CallError)>>>,
    pub(super) opened: Arc<Mutex<Vec<StreamSpec>>>,
    pub(super) movers: Arc<Mutex<Vec<Mover>>>,
}

#[async_trait]
impl Audio for Loudness {
    async fn open(&self, _cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        if let Some(error) = self.refuse.lock().clone() {
            return Err(error);
        }
        if let Some(room) = &mut *self.room.lock() {
            *room = room.checked_sub(1).ok_or_else(|| CallError::busy(Duration::from_secs(1), "no place is left"))?;
        }
        self.opened.lock().push(spec.clone());
        let model = ModelInfo { name: "loudness".into(), version: "1".into(), family: "test".into() };
        let ear: Arc<Mutex<Option<Ear>>> = Arc::default();
        let sink = ear.clone();
        let (session, events) = Session::pair(
            &spec,
            SessionInfo { model, credit: CREDIT },
            Arc::new(move |input| {
                let mut ear = sink.lock();
                if ear.as_mut().is_some_and(|ear| !ear.take(input)) {
                    *ear = None;
                }
            }),
        );
        self.movers.lock().push(session.events.mover());
        let pause = match spec.endpointing {
            Endpointing::Silence(pause) => spec.rate.samples_in(pause.max(Duration::from_millis(100))),
            Endpointing::Off => u64::MAX,
        };
        let breaks = self.break_after.clone();
        *ear.lock() = Some(Ear {
            events: Some(events),
            seq: spec.first_seq,
            from: spec.start.0,
            at: spec.start.0,
            spec,
            pause,
            spoken: None,
            breaks,
            rev: 0,
        });
        Ok(session)
    }
}

struct Ear {
    events: Option<EventTx>,
    spec: StreamSpec,
    pause: u64,
    seq: u64,
    rev: u32,
    /// Start of the open segment, and what was taken in.
    from: u64,
    at: u64,
    /// First and one past the last loud sample.
    spoken: Option<(u64, u64)>,
    breaks: Arc<Mutex<Option<(u64, CallError)>>>,
}

impl Ear {
    fn send(&self, event: SpeechEvent) {
        self.events.as_ref().expect("the ear is dropped with its events").send(event);
    }

    /// False: it is over.
    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Frame(Frame { pos, data }) => {
                let bytes = data.len();
                if pos.0 > self.at {
                    self.flush();
                    self.at = pos.0;
                    self.segment(SegmentBody::Gap { reason: "never arrived".into() });
                }
                let width = self.spec.encoding.bytes_per_sample();
                for sample in data.chunks(width) {
                    let silent = if width == 1 { sample[0] == QUIET } else { sample.iter().all(|b| *b == 0) };
                    self.hear(!silent);
                }
                if let Some((_, end)) = self.spoken
                    && self.spec.partials.is_some()
                    && self.at - end < 800
                {
                    self.rev += 1;
                    let (start, end, words) = (SamplePos(self.from), SamplePos(self.at), self.words());
                    self.send(SpeechEvent::Partial { seq: self.seq, rev: self.rev, start, end, words, stable_words: 0 });
                }
                self.events.as_ref().expect("the ear is dropped with its events").consumed(bytes);
                if let Some((after, error)) = self.breaks.lock().clone()
                    && self.at - self.spec.start.0 >= after
                    && let Some(events) = self.events.take()
                {
                    events.fail(error);
                    return false;
                }
                true
            }
            Input::Finalize { token } => {
                self.flush();
                self.send(SpeechEvent::Flushed { token });
                true
            }
            Input::Finish => {
                self.flush();
                self.events.take().into_iter().for_each(EventTx::end);
                false
            }
            Input::Abandon => false,
            Input::Drained => true,
        }
    }

    fn hear(&mut self, loud: bool) {
        if loud && self.spoken.is_none() {
            if self.at > self.from {
                self.segment(SegmentBody::Silence);
            }
            self.send(SpeechEvent::Started { at: SamplePos(self.at) });
            self.spoken = Some((self.at, self.at));
        }
        self.at += 1;
        match &mut self.spoken {
            Some((_, end)) if loud => *end = self.at,
            Some((_, end)) if self.at - *end >= self.pause => self.flush(),
            None if self.at - self.from >= u64::from(self.spec.rate.hz()) => self.segment(SegmentBody::Silence),
            _ => {}
        }
    }

    fn words(&self) -> Vec<Word> {
        let (from, to) = self.spoken.unwrap_or((self.from, self.from));
        let hundred = u64::from(self.spec.rate.hz()) / 10;
        let ms = |at: u64| self.spec.rate.ms_at(SamplePos(at)) as u32;
        let word = |n: u64| {
            let start = from + n * hundred;
            // As many digits as a card has, once it is said long enough.
            Word { text: format!("{}", ms(start) % 10_000), start_ms: ms(start), end_ms: ms((start + hundred).min(to)), confidence: 0.5 }
        };
        (0..(to - from).div_ceil(hundred)).map(word).collect()
    }

    fn flush(&mut self) {
        match self.spoken {
            Some((from, to)) => {
                let spoken = Spoken {
                    words: self.words(),
                    from: SamplePos(from),
                    to: SamplePos(to),
                    confidence: 0.5,
                    speech_final: true,
                    word_times: WordTimes::Model,
                    model: "loudness 1".into(),
                    decode_ms: 0,
                };
                self.spoken = None;
                self.segment(SegmentBody::Speech(spoken));
            }
            None if self.at > self.from => self.segment(SegmentBody::Silence),
            None => {}
        }
    }

    fn segment(&mut self, body: SegmentBody) {
        let segment = HeardSegment { seq: self.seq, start: SamplePos(self.from), end: SamplePos(self.at), body };
        self.send(SpeechEvent::Segment(segment));
        self.seq += 1;
        self.rev = 0;
        self.from = self.at;
    }
}

impl Loudness {
    /// Sessions open now: the places that are taken.
    pub(super) fn places(&self) -> usize {
        self.movers.lock().iter().filter(|mover| !mover.is_over()).count()
    }
}

/// A server on a free port, with the record's side played by [`recorder`].
pub(super) struct House {
    pub(super) ear: Loudness,
    pub(super) record: FakeConversations,
    pub(super) ingest: Arc<Ingest>,
    /// Nothing is committed while set.
    pub(super) paused: Arc<AtomicBool>,
    /// Commits are not told.
    pub(super) silent: Arc<AtomicBool>,
    pub(super) address: String,
    pub(super) data: Arc<tempfile::TempDir>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

pub(super) fn settings() -> IngestSettings {
    IngestSettings { flush_ms: 20, redact: false, republish_ms: 500, ..Default::default() }
}

pub(super) async fn house() -> House {
    house_with(settings()).await
}

pub(super) async fn house_with(settings: IngestSettings) -> House {
    House::on(settings, FakeConversations::default(), Arc::new(tempfile::tempdir().unwrap()), Arc::new(Memory::default())).await
}

impl House {
    pub(super) async fn on(settings: IngestSettings, record: FakeConversations, data: Arc<tempfile::TempDir>, bus: Arc<Memory>) -> Self {
        let ear = Loudness::default();
        let (paused, silent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let ingest = Ingest::start(IngestDeps {
            audio: Arc::new(ear.clone()),
            conversations: Arc::new(record.clone()),
            bus: bus.clone(),
            settings,
            data: data.path().to_owned(),
            standing: None,
        });
        let recorder = tokio::spawn(recorder(bus.clone(), record.clone(), paused.clone(), silent.clone()));
        let sockets = ingest.clone();
        let server = HttpServer::new(move || App::new().configure(|routes| sockets.configure(routes)))
            .workers(1)
            .disable_signals()
            .bind(("127.0.0.1", 0))
            .unwrap();
        let address = server.addrs()[0].to_string();
        let server = tokio::spawn(server.run());
        let tasks = vec![recorder.abort_handle(), server.abort_handle()];
        Self { ear, record, ingest, paused, silent, address, data, tasks }
    }

    pub(super) async fn connect(&self, path: &str) -> Result<Caller, (u16, tungstenite::http::HeaderMap, Value)> {
        self.connect_with(path, &[]).await.map(|(caller, _)| caller)
    }

    pub(super) async fn connect_with(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Caller, Response), (u16, tungstenite::http::HeaderMap, Value)> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, response)) => Ok((Caller { socket }, response)),
            Err(tungstenite::Error::Http(response)) => {
                let (parts, body) = (*response).into_parts();
                let body = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or(Value::Null);
                Err((parts.status.as_u16(), parts.headers, body))
            }
            Err(other) => panic!("{other}"),
        }
    }

    pub(super) async fn view(&self, id: ConversationId) -> ConversationView {
        self.record.conversation(CallCx::new(Duration::from_secs(1)), id).await.unwrap()
    }

    /// Waits until the record says so.
    pub(super) async fn until_closed(&self, id: ConversationId) -> ConversationState {
        for _ in 0..200 {
            let state = self.view(id).await.conversation.state;
            if state != ConversationState::Live {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{id} is still live");
    }

    /// Waits until no conversation is open.
    pub(super) async fn until_idle(&self) {
        for _ in 0..200 {
            if self.ingest.live() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} conversations are still open", self.ingest.live());
    }

    /// Waits until so many places in the engine are taken.
    pub(super) async fn until_places(&self, places: usize) {
        for _ in 0..200 {
            if self.ear.places() == places {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} places are taken, not {places}", self.ear.places());
    }

    /// What a channel holds, as words; checks that it has neither hole nor overlap.
    #[track_caller]
    pub(super) fn said(&self, id: ConversationId, channel: u8) -> Vec<String> {
        let segments = self.record.segments(id, ChannelIndex(channel));
        for pair in segments.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "segments are contiguous");
        }
        let speech = segments.iter().filter_map(|segment| match &segment.body {
            SegmentBody::Speech(spoken) => Some(spoken.text()),
            SegmentBody::Gap { reason } => Some(format!("[gap of {} ms: {reason}]", (segment.end.0 - segment.start.0) / MS as u64)),
            SegmentBody::Silence => None,
        });
        speech.collect()
    }

    pub(super) fn end(&self, id: ConversationId, channel: u8) -> u64 {
        self.record.segments(id, ChannelIndex(channel)).last().map_or(0, |segment| segment.end.0)
    }
}

async fn recorder(bus: Arc<Memory>, record: FakeConversations, paused: Arc<AtomicBool>, silent: Arc<AtomicBool>) {
    let mut consumer = bus.consume(UTTERANCES, "recorder").await.unwrap();
    loop {
        let batch = consumer.next(64).await.unwrap();
        while paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for delivery in batch {
            let segment: Segment = serde_json::from_slice(&delivery.payload).unwrap();
            let outcome = record.commit(CallCx::new(Duration::from_secs(1)), vec![segment.clone()]).await.unwrap();
            assert_ne!(outcome, [CommitOutcome::Mismatch]);
            consumer.ack(&[delivery.id]).await.unwrap();
            if outcome == [CommitOutcome::Committed] && !silent.load(Ordering::Relaxed) {
                let Segment { conversation, channel, epoch, seq, end, .. } = segment;
                let mark = Committed { conversation, channel, epoch, next_seq: seq + 1, safe: end };
                bus.signal(COMMITTED, serde_json::to_vec(&mark).unwrap().into()).await.unwrap();
            }
        }
    }
}

pub(super) struct Caller {
    socket: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
}

/// What a server said, up to and including its close.
#[derive(Debug)]
pub(super) enum Told {
    Message(Value),
    Closed(u16, String),
    /// Without a close frame.
    Lost,
}

impl Caller {
    pub(super) async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(super) async fn bytes(&mut self, data: Vec<u8>) {
        self.socket.send(Message::binary(data)).await.unwrap();
    }

    /// A native frame.
    pub(super) async fn audio(&mut self, channel: u8, pos: usize, data: &[u8]) {
        for (n, piece) in data.chunks(160).enumerate() {
            let mut frame = vec![1, channel, 0, 0];
            frame.extend(((pos + n * 160) as u64).to_le_bytes());
            frame.extend_from_slice(piece);
            self.bytes(frame).await;
        }
    }

    pub(super) async fn next(&mut self) -> Told {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(15), self.socket.next()).await.expect("the server says something");
            match next {
                Some(Ok(Message::Text(text))) => return Told::Message(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(frame)))) => return Told::Closed(frame.code.into(), frame.reason.to_string()),
                Some(Ok(Message::Close(None))) => return Told::Closed(1005, String::new()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Told::Lost,
            }
        }
    }

    pub(super) async fn message(&mut self) -> Value {
        match self.next().await {
            Told::Message(message) => message,
            other => panic!("expected a message, got {other:?}"),
        }
    }

    /// The next message of one type; others are passed over.
    pub(super) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let message = self.message().await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Everything up to the close.
    pub(super) async fn rest(&mut self) -> (Vec<Value>, u16, String) {
        let mut messages = vec![];
        loop {
            match self.next().await {
                Told::Message(message) => messages.push(message),
                Told::Closed(code, reason) => return (messages, code, reason),
                Told::Lost => return (messages, 1006, String::new()),
            }
        }
    }

    /// The connection breaks.
    pub(super) fn vanish(self) {}
}
