//! The contract `Audio`: one channel of sound in, a gap-free sequence of segments and passing events out.
//!
//! Invariants:
//! - segments partition the channel: the first starts at `spec.start`, each starts where the one before ended, `seq` counts up by one;
//! - audio in flight is bounded by credit, counted in milliseconds of audio, wherever the implementation runs;
//! - an implementation has no side effects outside its answer.
//!
//! Deliberately absent: conversations, epochs and utterance ids; the host that opened the session adds them.
//!
//! Long because the types and the two halves that keep credit and order over them are one promise, read together.

use crate::{CallCx, CallError, ChannelIndex, Encoding, ErrorKind, Retry, SamplePos, SampleRate};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};

/// Audio a sender may have under way and unconsumed.
pub const CREDIT: Duration = Duration::from_millis(400);
/// Segments waiting for the reader; with this many unread the implementation consumes no more audio, so the sender's credit ends.
pub const UNREAD_EVENTS: usize = 16;
/// The one limit on a message between modules, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Hears one channel.
///
/// Callers may rely on:
/// - `open` answers admission at once and never waits for audio; [`ErrorKind::Busy`] says when to come back;
/// - `cx` is for the opening; after it a session ends by its halves alone;
/// - [`FrameTx::send`] waits when [`CREDIT`] is used up, and not before;
/// - events of one session arrive in order; segments are complete and contiguous, partials may be skipped (the latest wins);
/// - every [`FrameTx::finalize`] is answered by one [`SpeechEvent::Flushed`], also when nothing was pending;
/// - after [`FrameTx::finish`] the tail is flushed, then the events end;
/// - a session asked to move goes on as before; whoever opens the next one where the last segment ended misses and doubles nothing;
/// - dropping either half abandons the session and frees its slot.
#[async_trait]
pub trait Audio: Send + Sync + 'static {
    async fn open(&self, cx: CallCx, spec: StreamSpec) -> Result<Session, CallError>;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamSpec {
    pub encoding: Encoding,
    pub rate: SampleRate,
    /// Position of the first sample that will be sent.
    pub start: SamplePos,
    /// `seq` of the first segment.
    pub first_seq: u64,
    /// BCP-47, as the caller said it; a language no model serves is [`ErrorKind::InvalidInput`].
    pub language: String,
    pub endpointing: Endpointing,
    /// `None`: finals only. Otherwise the shortest time between two partials; under load they come less often.
    pub partials: Option<Duration>,
    pub pace: Pace,
}

impl StreamSpec {
    pub fn live(encoding: Encoding, rate: SampleRate) -> Self {
        Self {
            encoding,
            rate,
            start: SamplePos::ZERO,
            first_seq: 0,
            language: "en".into(),
            endpointing: Endpointing::default(),
            partials: Some(Duration::from_millis(250)),
            pace: Pace::Live,
        }
    }
}

/// How much silence ends an utterance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpointing {
    /// Below 100 ms it acts as 250 ms: cutting at every breath costs words.
    Silence(Duration),
    /// Only `finalize`, `finish` and the length limit end an utterance.
    Off,
}

impl Default for Endpointing {
    fn default() -> Self {
        Self::Silence(Duration::from_millis(400))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// As people speak. Has precedence.
    Live,
    /// As fast as there is room: files and recovery.
    Batch,
}

/// A stretch of encoded audio of one channel. Whole samples; overlap with what was sent is dropped, a hole becomes a gap segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub pos: SamplePos,
    pub data: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SpeechEvent {
    /// Confirmed speech; `at` is its first voiced sample.
    Started { at: SamplePos },
    /// The text of segment `seq` so far. The first `stable_words` words will not change.
    Partial { seq: u64, rev: u32, start: SamplePos, end: SamplePos, words: Vec<Word>, stable_words: usize },
    /// A finished stretch of the channel.
    Segment(HeardSegment),
    /// A partial was shown for `seq`, but it was no speech: take it off the screen.
    Retracted { seq: u64 },
    /// The answer to a `finalize`: everything before it has been sent as segments.
    Flushed { token: u32 },
    /// Take the stream elsewhere at the next chance: its place is leaving, or somebody wants it in another one. The session goes on
    /// until its caller has moved.
    Handover,
}

impl SpeechEvent {
    fn passing(&self) -> Option<u64> {
        match self {
            Self::Partial { seq, .. } => Some(*seq),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeardSegment {
    pub seq: u64,
    /// First sample; equal to the end of the segment before.
    pub start: SamplePos,
    /// One past the last sample.
    pub end: SamplePos,
    pub body: SegmentBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SegmentBody {
    Speech(Spoken),
    /// Nothing was said; only moves the watermark.
    Silence,
    /// This audio never arrived, or could not be heard.
    Gap {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spoken {
    pub words: Vec<Word>,
    /// First and one past the last voiced sample.
    pub from: SamplePos,
    pub to: SamplePos,
    /// 0 to 1: exponential of the mean log-probability of the tokens.
    pub confidence: f32,
    /// The speaker paused here; otherwise the utterance was cut for its length and goes on.
    pub speech_final: bool,
    pub word_times: WordTimes,
    /// Name and version of the model that heard it.
    pub model: String,
    /// From the end of the cut to the text, in ms: what the recognizer itself took, waiting included.
    pub decode_ms: u32,
}

impl Spoken {
    pub fn text(&self) -> String {
        text_of(&self.words)
    }
}

/// Words joined by single spaces.
pub fn text_of(words: &[Word]) -> String {
    let mut text = String::with_capacity(words.len() * 6);
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&word.text);
    }
    text
}

/// Where word times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WordTimes {
    /// Spread over the voiced stretches by length; good to a few hundred milliseconds.
    Estimated,
    /// From the model's own alignment.
    Model,
}

/// One word as written, punctuation attached. Times in ms from the channel's sample 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub text: String,
    pub start_ms: u32,
    pub end_ms: u32,
    /// 0 to 1.
    pub confidence: f32,
}

/// What answered `open`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Name, version and family of the recognizer.
    pub model: ModelInfo,
    /// Credit of this session.
    pub credit: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub name: String,
    pub version: String,
    pub family: String,
}

/// An open session: two halves which may live in different tasks, the same types wherever the implementation runs.
pub struct Session {
    pub frames: FrameTx,
    pub events: EventRx,
    pub info: SessionInfo,
}

/// What reaches an implementation from its caller. Never more than the session's credit of audio waits in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Frame(Frame),
    Finalize {
        token: u32,
    },
    /// No more audio: flush the tail and end the events.
    Finish,
    /// A half was dropped: nobody wants the rest.
    Abandon,
    /// The reader caught up after [`EventTx::is_full`] was true.
    Drained,
}

/// Where an implementation takes its input. `push` must not block: it runs in the caller's task.
pub trait InputSink: Send + Sync + 'static {
    fn push(&self, input: Input);
    /// The reader has one event less to read: it took one, or a newer partial replaced one. Only an adapter that counts what is
    /// unread on the other side of a wire needs to know.
    fn taken(&self) {}
}

impl<F: Fn(Input) + Send + Sync + 'static> InputSink for F {
    fn push(&self, input: Input) {
        self(input)
    }
}

impl Session {
    /// Makes the two sides of a session: the caller's halves, and what the implementation writes and returns credit with.
    pub fn pair(spec: &StreamSpec, info: SessionInfo, sink: Arc<dyn InputSink>) -> (Self, EventTx) {
        let credit_bytes = (spec.rate.samples_in(info.credit) as usize * spec.encoding.bytes_per_sample()).max(1);
        let shared = Arc::new(Shared {
            credit: Semaphore::new(credit_bytes),
            credit_bytes,
            sample_bytes: spec.encoding.bytes_per_sample(),
            queue: Mutex::default(),
            arrived: Notify::new(),
            carried: AtomicBool::new(false),
            ended: OnceLock::new(),
            sink,
        });
        let frames = FrameTx { shared: shared.clone(), next: spec.start, finished: false };
        let events = EventRx { shared: shared.clone() };
        (Self { frames, events, info }, EventTx { shared })
    }
}

struct Shared {
    credit: Semaphore,
    credit_bytes: usize,
    sample_bytes: usize,
    queue: Mutex<Queue>,
    arrived: Notify,
    /// Set by a reader that carries the session over a wire; it also wants to know what has been consumed.
    carried: AtomicBool,
    /// Set once, by the implementation: why no more frames are taken.
    ended: OnceLock<Result<(), CallError>>,
    sink: Arc<dyn InputSink>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<SpeechEvent>,
    /// Events an adapter carried off which their reader has not taken yet: as unread as those in the queue.
    lent: usize,
    /// Bytes an adapter has not reported yet.
    consumed: usize,
    was_full: bool,
    reader_gone: bool,
    /// [`SpeechEvent::Handover`] is to be told, before what waits; it takes no place in the queue.
    handover: bool,
}

impl Queue {
    fn unread(&self) -> usize {
        self.events.len() + self.lent
    }

    /// True once when a reader that was too far behind has caught up.
    fn caught_up(&mut self) -> bool {
        let caught_up = self.was_full && self.unread() < UNREAD_EVENTS / 2;
        self.was_full &= !caught_up;
        caught_up
    }
}

/// The sending half.
pub struct FrameTx {
    shared: Arc<Shared>,
    next: SamplePos,
    finished: bool,
}

impl FrameTx {
    /// Sends audio that continues at the position after the last one. Waits for credit.
    ///
    /// # Errors
    /// The reason the session ended with; [`ErrorKind::InvalidInput`] for a torn sample.
    pub async fn send(&mut self, data: Bytes) -> Result<(), CallError> {
        let pos = self.next;
        self.send_at(Frame { pos, data }).await
    }

    /// Sends audio at a stated position. Cancel-safe between pieces: what was handed over stays, [`FrameTx::position`] tells where.
    pub async fn send_at(&mut self, frame: Frame) -> Result<(), CallError> {
        let width = self.shared.sample_bytes;
        if !frame.data.len().is_multiple_of(width) {
            return Err(CallError::invalid(format!("{} bytes of audio are not whole samples of {width} bytes", frame.data.len())));
        }
        let piece_bytes = (self.shared.credit_bytes / 4 / width).max(1) * width;
        let Frame { mut pos, mut data } = frame;
        while !data.is_empty() {
            let piece = data.split_to(piece_bytes.min(data.len()));
            match self.shared.credit.acquire_many(piece.len() as u32).await {
                Ok(permit) => permit.forget(),
                Err(_) => return Err(self.shared.why_ended()),
            }
            let samples = (piece.len() / width) as u64;
            self.shared.push(Input::Frame(Frame { pos, data: piece }))?;
            pos = pos + samples;
            self.next = pos;
        }
        Ok(())
    }

    /// Ends the open utterance now; answered by [`SpeechEvent::Flushed`] with the same token.
    pub fn finalize(&mut self, token: u32) {
        let _ = self.shared.push(Input::Finalize { token }); // a session that broke says so to its events
    }

    /// No more audio will come.
    pub fn finish(mut self) {
        self.finished = true;
        let _ = self.shared.push(Input::Finish);
    }

    /// Where the next frame belongs.
    pub fn position(&self) -> SamplePos {
        self.next
    }

    /// Up to where what was sent has been consumed: credit for it came back.
    pub fn consumed(&self) -> SamplePos {
        let under_way = self.shared.credit_bytes.saturating_sub(self.shared.credit.available_permits()) / self.shared.sample_bytes;
        SamplePos(self.next.0.saturating_sub(under_way as u64))
    }
}

impl Drop for FrameTx {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.shared.push(Input::Abandon);
        }
    }
}

/// The receiving half.
pub struct EventRx {
    shared: Arc<Shared>,
}

impl EventRx {
    /// The next event; `None` after the last. An error is the last item. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<SpeechEvent, CallError>> {
        loop {
            let arrived = self.shared.arrived.notified();
            {
                let mut queue = self.shared.queue.lock();
                if std::mem::take(&mut queue.handover) {
                    return Some(Ok(SpeechEvent::Handover));
                }
                if let Some(event) = queue.events.pop_front() {
                    let caught_up = queue.caught_up();
                    drop(queue);
                    self.shared.sink.taken();
                    if caught_up {
                        let _ = self.shared.push(Input::Drained);
                    }
                    return Some(Ok(event));
                }
                if queue.reader_gone {
                    return None;
                }
                if let Some(end) = self.shared.ended.get() {
                    queue.reader_gone = true; // an error is said once
                    return end.clone().err().map(Err);
                }
            }
            arrived.await;
        }
    }
}

/// What an adapter carries over a wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Carried {
    Event(SpeechEvent),
    /// Bytes of audio whose credit goes back to the sender.
    Consumed(usize),
}

impl EventRx {
    /// For whoever chose the place and may want the session in another one.
    pub fn mover(&self) -> Mover {
        Mover { shared: Arc::downgrade(&self.shared) }
    }

    /// For an adapter that carries the session elsewhere; everybody else reads with [`EventRx::next`].
    pub fn carry(self) -> CarriedRx {
        self.shared.carried.store(true, Ordering::Release);
        CarriedRx { events: self }
    }
}

/// Asks a session's caller to move. Keeps nothing alive.
#[derive(Clone)]
pub struct Mover {
    shared: Weak<Shared>,
}

impl Mover {
    /// The reader gets [`SpeechEvent::Handover`] next; asking again before it was read changes nothing.
    pub fn ask(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.hand_over();
        }
    }

    pub fn is_over(&self) -> bool {
        self.shared.upgrade().is_none_or(|shared| shared.ended.get().is_some())
    }
}

/// The receiving half in the hands of an adapter. It also tells what was consumed, and an event it carried off stays unread until
/// acknowledged: an implementation stops for a slow reader just as early when that reader is in another process.
pub struct CarriedRx {
    events: EventRx,
}

impl CarriedRx {
    /// The next thing to carry; ends like [`EventRx::next`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Carried, CallError>> {
        let shared = &self.events.shared;
        loop {
            let arrived = shared.arrived.notified();
            {
                let mut queue = shared.queue.lock();
                if queue.consumed > 0 {
                    return Some(Ok(Carried::Consumed(std::mem::take(&mut queue.consumed))));
                }
                if std::mem::take(&mut queue.handover) {
                    return Some(Ok(Carried::Event(SpeechEvent::Handover)));
                }
                if let Some(event) = queue.events.pop_front() {
                    queue.lent += 1;
                    return Some(Ok(Carried::Event(event)));
                }
                if queue.reader_gone {
                    return None;
                }
                if let Some(end) = shared.ended.get() {
                    queue.reader_gone = true;
                    return end.clone().err().map(Err);
                }
            }
            arrived.await;
        }
    }

    /// The reader at the far end has taken `events` of those that were carried to it.
    pub fn acknowledge(&self, events: usize) {
        let mut queue = self.events.shared.queue.lock();
        queue.lent = queue.lent.saturating_sub(events);
        let caught_up = queue.caught_up();
        drop(queue);
        if caught_up {
            let _ = self.events.shared.push(Input::Drained);
        }
    }
}

impl Drop for EventRx {
    fn drop(&mut self) {
        self.shared.queue.lock().reader_gone = true;
        let _ = self.shared.push(Input::Abandon);
    }
}

/// The implementation's side: events out, credit back. Ends the session when dropped.
pub struct EventTx {
    shared: Arc<Shared>,
}

impl EventTx {
    /// Queues an event and never waits. An unread partial of the same segment is replaced, and a segment takes its partial's place.
    pub fn send(&self, event: SpeechEvent) {
        if event == SpeechEvent::Handover {
            return self.shared.hand_over();
        }
        let mut queue = self.shared.queue.lock();
        if queue.reader_gone {
            return;
        }
        let seq = match &event {
            SpeechEvent::Segment(segment) => Some(segment.seq),
            other => other.passing(),
        };
        let replaced = matches!((seq, queue.events.back()), (Some(seq), Some(last)) if last.passing() == Some(seq));
        if replaced {
            queue.events.pop_back();
        }
        queue.events.push_back(event);
        drop(queue);
        if replaced {
            self.shared.sink.taken();
        }
        self.shared.arrived.notify_waiters();
        self.shared.arrived.notify_one();
    }

    /// True while the reader is behind: consume no audio until [`Input::Drained`] arrives.
    pub fn is_full(&self) -> bool {
        let mut queue = self.shared.queue.lock();
        let full = queue.unread() >= UNREAD_EVENTS && !queue.reader_gone;
        queue.was_full |= full;
        full
    }

    /// Gives credit back for audio that has been consumed. What was never used cannot come back: the credit does not grow.
    pub fn consumed(&self, bytes: usize) {
        let used = self.shared.credit_bytes.saturating_sub(self.shared.credit.available_permits());
        self.shared.credit.add_permits(bytes.min(used));
        if self.shared.carried.load(Ordering::Acquire) {
            self.shared.queue.lock().consumed += bytes;
            self.shared.arrived.notify_one();
        }
    }

    /// Nobody reads the events any more.
    pub fn is_abandoned(&self) -> bool {
        self.shared.queue.lock().reader_gone
    }

    /// Ends the session well: the reader gets what is queued, then the end.
    pub fn end(self) {
        self.shared.close(Ok(()))
    }

    /// Ends the session with the reason both halves will see.
    pub fn fail(self, error: CallError) {
        self.shared.close(Err(error))
    }
}

impl Drop for EventTx {
    fn drop(&mut self) {
        self.shared.close(Err(CallError::new(ErrorKind::Unavailable, Retry::Safe, "the audio module dropped the session")));
    }
}

impl Shared {
    /// A panic of the implementation ends its session and stays out of the caller's task.
    fn push(&self, input: Input) -> Result<(), CallError> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.sink.push(input))).map_err(|panic| {
            let error = CallError::panicked(&*panic);
            self.close(Err(error.clone()));
            error
        })
    }

    fn hand_over(&self) {
        self.queue.lock().handover = true;
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    fn close(&self, end: Result<(), CallError>) {
        if self.ended.set(end).is_ok() {
            self.credit.close();
            self.arrived.notify_waiters();
            self.arrived.notify_one();
        }
    }

    fn why_ended(&self) -> CallError {
        match self.ended.get() {
            Some(Err(error)) => error.clone(),
            _ => CallError::new(ErrorKind::Unavailable, Retry::Safe, "the session has ended"),
        }
    }
}

/// Who is speaking on a channel, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Agent,
    Customer,
    #[default]
    Unknown,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Customer => "customer",
            Self::Unknown => "unknown",
        }
    }
}

/// A channel as its caller declared it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelSpec {
    pub index: ChannelIndex,
    pub role: Role,
    pub encoding: Encoding,
    pub rate: SampleRate,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Session, EventTx, Arc<Mutex<Vec<Input>>>) {
        let inputs = Arc::new(Mutex::new(vec![]));
        let seen = inputs.clone();
        let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
        let model = ModelInfo { name: "none".into(), version: "0".into(), family: "none".into() };
        let (session, events) = Session::pair(&spec, SessionInfo { model, credit: CREDIT }, Arc::new(move |input| seen.lock().push(input)));
        (session, events, inputs)
    }

    fn partial(seq: u64, rev: u32) -> SpeechEvent {
        SpeechEvent::Partial { seq, rev, start: SamplePos(0), end: SamplePos(1), words: vec![], stable_words: 0 }
    }

    #[tokio::test]
    async fn a_sender_holds_at_most_its_credit() {
        let (mut session, events, inputs) = pair();
        let sent = tokio::time::timeout(Duration::from_millis(50), session.frames.send(vec![0; 8000].into())).await;
        assert!(sent.is_err(), "one second went out on 400 ms of credit");
        assert_eq!((session.frames.position(), session.frames.consumed()), (SamplePos(3200), SamplePos(0)));
        events.consumed(800);
        assert_eq!(session.frames.consumed(), SamplePos(800));
        let more = tokio::time::timeout(Duration::from_millis(50), session.frames.send(vec![0; 800].into())).await;
        assert!(more.is_ok());
        assert_eq!(inputs.lock().len(), 5);
    }

    #[tokio::test]
    async fn the_latest_partial_wins_and_its_segment_replaces_it() {
        let (mut session, events, _) = pair();
        events.send(partial(0, 1));
        events.send(partial(0, 2));
        let segment = HeardSegment { seq: 0, start: SamplePos(0), end: SamplePos(5), body: SegmentBody::Silence };
        assert_eq!(events.shared.queue.lock().events.len(), 1);
        events.send(SpeechEvent::Segment(segment.clone()));
        events.end();
        assert_eq!(session.events.next().await, Some(Ok(SpeechEvent::Segment(segment))));
        assert_eq!(session.events.next().await, None);
    }

    #[tokio::test]
    async fn a_failure_reaches_both_halves_once() {
        let (mut session, events, _) = pair();
        events.fail(CallError::internal("broken"));
        assert_eq!(session.events.next().await, Some(Err(CallError::internal("broken"))));
        assert_eq!(session.events.next().await, None);
        assert_eq!(session.frames.send(vec![0; 10].into()).await, Err(CallError::internal("broken")));
    }

    #[tokio::test]
    async fn a_dropped_half_abandons_and_finish_does_not() {
        let (session, _events, inputs) = pair();
        session.frames.finish();
        assert_eq!(*inputs.lock(), [Input::Finish]);
        drop(session.events);
        assert_eq!(*inputs.lock(), [Input::Finish, Input::Abandon]);
    }

    #[tokio::test]
    async fn a_carried_event_stays_unread_until_it_is_acknowledged() {
        let (session, events, inputs) = pair();
        let mut carried = session.events.carry();
        for seq in 0..UNREAD_EVENTS as u64 {
            events.send(SpeechEvent::Retracted { seq });
            assert!(matches!(carried.next().await, Some(Ok(Carried::Event(_)))));
        }
        assert!(events.is_full());
        carried.acknowledge(UNREAD_EVENTS / 2);
        assert!(!events.is_full());
        assert!(inputs.lock().is_empty(), "caught up half way: not yet");
        carried.acknowledge(1);
        assert_eq!(*inputs.lock(), [Input::Drained]);
        events.consumed(20);
        events.consumed(10);
        assert_eq!(carried.next().await, Some(Ok(Carried::Consumed(30))));
        events.end();
        assert_eq!(carried.next().await, None);
    }

    #[tokio::test]
    async fn credit_given_back_twice_does_not_grow() {
        let (mut session, events, _) = pair();
        events.consumed(usize::MAX);
        let sent = tokio::time::timeout(Duration::from_millis(50), session.frames.send(vec![0; 8000].into())).await;
        assert!(sent.is_err());
        assert_eq!(session.frames.position(), SamplePos(3200));
    }

    #[tokio::test]
    async fn an_implementation_that_panics_on_input_ends_its_session() {
        let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
        let model = ModelInfo { name: "none".into(), version: "0".into(), family: "none".into() };
        let sink = Arc::new(|_| panic!("on purpose"));
        let (mut session, _events) = Session::pair(&spec, SessionInfo { model, credit: CREDIT }, sink);
        let error = session.frames.send(vec![0; 10].into()).await.unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Panicked, Retry::Never));
        assert_eq!(session.events.next().await, Some(Err(error)));
    }

    #[tokio::test]
    async fn a_torn_sample_is_refused() {
        let inputs = Arc::new(Mutex::new(vec![]));
        let seen = inputs.clone();
        let spec = StreamSpec::live(Encoding::Linear16, SampleRate::HZ_8000);
        let model = ModelInfo { name: "none".into(), version: "0".into(), family: "none".into() };
        let (mut session, _events) =
            Session::pair(&spec, SessionInfo { model, credit: CREDIT }, Arc::new(move |input| seen.lock().push(input)));
        assert_eq!(session.frames.send(vec![0; 3].into()).await.unwrap_err().kind, ErrorKind::InvalidInput);
    }
}
