//! One channel of a conversation: audio in, segments out to the bus, until everything received is committed.
//!
//! - What is not committed stays: audio in [`Kept`], segments in [`Journal`]; whichever of engine, bus or record fails, it is done again.
//! - A new audio session goes on where the last segment ended, under the same epoch: nothing outside this process has seen what the failed
//!   one was about to say. Only when the record disagrees is the channel attached to anew.
//! - A session asked to move ends where an utterance does, and the next one begins there: what was sent beyond is sent again.
//! - While nobody sends it may rest: its place in the engine is given back, and asked for again before somebody may send.
//! - Nothing here waits for a socket.
//!
//! Long because it is one state machine: engine, bus and record fail in any order, and each answer depends on what the others still hold.

use super::{
    Shared,
    audience::{Audience, Event, Final, Partial},
    journal::Journal,
    metrics as names,
    recording::ChannelLog,
    resume::Kept,
    session::{Opening, SHOWN_AGAIN},
    watermarks::Follow,
};
use bytes::Bytes;
use contracts::{
    CallCx, CallError, ChannelIndex, ConversationId, Epoch, ErrorKind, SamplePos, SampleRate, TraceCx, UtteranceId,
    audio::{ChannelSpec, EventRx, FrameTx, HeardSegment, SegmentBody, Session, SpeechEvent, StreamSpec, Word},
    conversation::{Attach, Attached, ChannelView, ConversationState, Segment},
    redaction,
    signal::{Committed, LiveBody, UTTERANCES},
};
use futures::future::BoxFuture;
use metrics::{counter, histogram};
use parking_lot::Mutex;
use platform::trace::{Side, Span};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

/// Messages between the socket and the channel.
const INPUTS: usize = 16;
/// How often what is due is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long a segment waits for its commit before the record is asked.
const ASK_AFTER: Duration = Duration::from_secs(1);
const ASK_BUDGET: Duration = Duration::from_secs(2);
const OPEN_BUDGET: Duration = Duration::from_secs(5);
const PUBLISH_BUDGET: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Of the `finalize` that cuts an utterance whose session is to move; callers' tokens count up from 0.
const CUT: u32 = u32::MAX;
/// After this it is asked for again.
const CUT_WITHIN: Duration = Duration::from_secs(10);
/// How long the events of a session that broke are waited for.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// Sessions that may fail at the same stretch of audio before it is given up as a gap.
const POISON: u32 = 3;

/// What a socket sends to a channel, in order.
pub(super) enum Input {
    /// `pos` absent: it continues.
    Audio {
        pos: Option<SamplePos>,
        data: Bytes,
    },
    Finalize {
        token: u32,
    },
    /// No more audio. `lost`: what followed is known to be missing, and why.
    Finish {
        lost: Option<(Duration, &'static str)>,
    },
}

/// What a conversation asks of its channels.
enum Order {
    /// Nobody sends: the place in the engine is given back, everything else stays.
    Rest,
    /// Somebody wants to send again. Answered when there is a place in the engine, or with its refusal; then the channel rests on.
    Wake(oneshot::Sender<Result<(), CallError>>),
    /// Somebody may send, whether or not there is a place now.
    Stay,
}

/// Where the channel stands, readable from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) attached: Attached,
    pub(super) received: SamplePos,
    /// Taken in by the engine.
    pub(super) consumed: SamplePos,
    /// Published as segments; more than `attached.safe` while something is not committed.
    pub(super) heard: SamplePos,
}

/// The rest of the program's side.
pub(super) struct Door {
    pub(super) spec: ChannelSpec,
    pub(super) input: mpsc::Sender<Input>,
    orders: mpsc::UnboundedSender<Order>, // a handful of messages in a channel's life
    standing: Arc<Mutex<Standing>>,
}

impl Door {
    pub(super) fn standing(&self) -> Standing {
        *self.standing.lock()
    }

    pub(super) fn rest(&self) {
        let _ = self.orders.send(Order::Rest); // a channel that has ended holds no place
    }

    pub(super) fn stay(&self) {
        let _ = self.orders.send(Order::Stay);
    }

    /// Returns when the channel has a place in the engine.
    ///
    /// # Errors
    /// The engine's refusal.
    pub(super) async fn wake(&self) -> Result<(), CallError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.orders.send(Order::Wake(answer));
        answered.await.unwrap_or(Ok(())) // it has ended, and whoever joins is told how
    }
}

/// What a socket has received and could not hand over yet. It is not read meanwhile, so the caller's sending stops.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<(usize, Input)>);

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, channel: usize, input: Input) {
        self.0.push_back((channel, input));
    }

    /// Hands the first one over as soon as its channel has room; for ever when nothing waits. Cancel-safe.
    pub(super) async fn hand_over(&mut self, doors: &[Door]) {
        let Some((channel, _)) = self.0.front() else { return std::future::pending().await };
        let permit = doors[*channel].input.reserve().await;
        let first = self.0.pop_front();
        if let (Ok(permit), Some((_, input))) = (permit, first) {
            permit.send(input);
        } // else the channel has ended, and an event tells why
    }
}

/// How a channel ends.
#[derive(Debug)]
pub(super) enum End {
    /// Everything received is committed.
    Done,
    /// Another process attached to the channel, or closed the conversation.
    Superseded,
    Failed(CallError),
}

pub(super) struct Channel {
    shared: Arc<Shared>,
    audience: Arc<Audience>,
    opening: Arc<Opening>,
    spec: ChannelSpec,
    input: mpsc::Receiver<Input>,
    orders: mpsc::UnboundedReceiver<Order>,
    standing: Arc<Mutex<Standing>>,
    follow: Follow,
    log: Option<Arc<ChannelLog>>,

    kept: Kept,
    journal: Journal,
    epoch: Epoch,
    /// Number and start of the next segment.
    next_seq: u64,
    heard: SamplePos,
    /// Told to the socket; what is heard a second time, after attaching anew, is not told twice.
    told: SamplePos,

    frames: Option<FrameTx>,
    events: Option<EventRx>,
    reopening: Option<BoxFuture<'static, Result<Session, CallError>>>,
    asking: Option<BoxFuture<'static, Result<(ConversationState, ChannelView), CallError>>>,
    asked: Instant,
    ask_every: Duration,
    trouble: Option<Trouble>,
    attach_anew: bool,
    /// It has no place in the engine because nobody sends, and who waits for that to change.
    resting: bool,
    waking: Vec<oneshot::Sender<Result<(), CallError>>>,
    /// The session is wanted elsewhere, by then at the latest.
    move_by: Option<Instant>,
    publish_again: Option<Instant>,
    /// Of the bus, when the journal was published.
    bus_epoch: u64,

    finalizes: VecDeque<Finalize>,
    finish: Option<Option<(Duration, &'static str)>>,
    /// Every event has been read.
    all_heard: bool,

    utterance: Option<Open>,
    /// Where the speech that is going on began.
    started: Option<SamplePos>,
    talking: bool,
    lag: Duration,
    lag_told: Instant,
    arrivals: Arrivals,
}

struct Finalize {
    at: SamplePos,
    token: u32,
    passed_on: bool,
}

struct Trouble {
    since: Instant,
    tries: u32,
    retry_at: Instant,
    /// Failures with everything before this sample heard.
    at: SamplePos,
    at_same: u32,
}

/// The utterance being spoken, of which a partial was shown.
struct Open {
    seq: u64,
    rev: u32,
    trace: TraceCx,
}

/// What happened next.
enum Step {
    Input(Option<Input>),
    Order(Order),
    Fed(Result<(), CallError>),
    Heard(Option<Result<SpeechEvent, CallError>>),
    Reopened(Result<Session, CallError>),
    Mark(Committed),
    Asked(Result<(ConversationState, ChannelView), CallError>),
    Tick,
}

/// What a channel starts with.
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) audience: Arc<Audience>,
    pub(super) opening: Arc<Opening>,
    pub(super) spec: ChannelSpec,
    pub(super) attached: Attached,
    pub(super) session: Session,
    pub(super) follow: Follow,
    pub(super) log: Option<Arc<ChannelLog>>,
}

impl Channel {
    pub(super) fn new(start: Start) -> (Self, Door) {
        let Start { shared, audience, opening, spec, attached, session, follow, log } = start;
        let (tx, input) = mpsc::channel(INPUTS);
        let (order, orders) = mpsc::unbounded_channel();
        let settings = &shared.settings;
        let max_gap = spec.rate.samples_in(Duration::from_millis(settings.max_gap_ms));
        let kept = Kept::new(spec.encoding.bytes_per_sample(), attached.safe, spec.rate.samples_in(settings.keep()), max_gap);
        let kept = kept.counted_in(&shared.kept_bytes);
        let standing = Standing { attached, received: attached.safe, consumed: attached.safe, heard: attached.safe };
        let standing = Arc::new(Mutex::new(standing));
        let door = Door { spec: spec.clone(), input: tx, orders: order, standing: standing.clone() };
        let now = Instant::now();
        let bus_epoch = shared.bus.epoch();
        let channel = Self {
            shared,
            audience,
            opening,
            spec,
            input,
            orders,
            standing,
            follow,
            log,
            kept,
            journal: Journal::default(),
            epoch: attached.epoch,
            next_seq: attached.next_seq,
            heard: attached.safe,
            told: attached.safe,
            frames: Some(session.frames),
            events: Some(session.events),
            reopening: None,
            asking: None,
            asked: now,
            ask_every: ASK_AFTER,
            trouble: None,
            attach_anew: false,
            resting: false,
            waking: vec![],
            move_by: None,
            publish_again: None,
            bus_epoch,
            finalizes: VecDeque::new(),
            finish: None,
            all_heard: false,
            utterance: None,
            started: None,
            talking: false,
            lag: Duration::ZERO,
            lag_told: now,
            arrivals: Arrivals::default(),
        };
        (channel, door)
    }

    /// Takes in what an earlier run recorded and nobody committed. Not for an async thread: reads the disk.
    pub(super) fn preload(&mut self) -> std::io::Result<()> {
        let Some(log) = self.log.clone() else { return Ok(()) };
        loop {
            let data = log.read(self.kept.received(), u64::from(self.spec.rate.hz()))?;
            if data.is_empty() || self.kept.is_full() {
                return Ok(());
            }
            let part = self.kept.new_part(None, data.into()).map_err(std::io::Error::other)?;
            part.iter().for_each(|frame| self.kept.push(frame));
            self.standing.lock().received = self.kept.received();
        }
    }

    fn id(&self) -> ConversationId {
        self.opening.id
    }

    fn index(&self) -> ChannelIndex {
        self.spec.index
    }

    fn rate(&self) -> SampleRate {
        self.spec.rate
    }

    fn cx(&self, budget: Duration) -> CallCx {
        CallCx::new(budget).for_conversation(self.id()).traced(self.opening.trace)
    }

    pub(super) async fn run(mut self) -> End {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pass_on_marks();
            if self.all_heard && self.journal.is_empty() {
                return End::Done;
            }
            let outcome = match self.step(&mut tick).await {
                Step::Input(Some(input)) => self.take(input),
                // Nobody can send any more: the same as an end without a word.
                Step::Input(None) => self.take(Input::Finish { lost: None }),
                Step::Order(order) => {
                    self.obey(order).await;
                    Ok(())
                }
                Step::Fed(Ok(())) => Ok(()),
                Step::Fed(Err(error)) => self.broke(error).await,
                Step::Heard(Some(Ok(event))) => self.hear(event).await,
                Step::Heard(Some(Err(error))) => self.failed(error).await,
                Step::Heard(None) => self.events_ended().await,
                Step::Reopened(Ok(session)) => {
                    self.reopened(session);
                    Ok(())
                }
                Step::Reopened(Err(error)) if self.resting => {
                    self.waking.drain(..).for_each(|waits| drop(waits.send(Err(error.clone()))));
                    Ok(())
                }
                Step::Reopened(Err(error)) => self.failed(error).await,
                Step::Mark(mark) => self.committed(mark.epoch, mark.next_seq, mark.safe),
                Step::Asked(Ok((state, view))) => self.answered(state, view),
                Step::Asked(Err(error)) if error.kind == ErrorKind::NotFound => {
                    warn!(channel = %self.index(), "the record does not know the conversation any more: it is opened again");
                    self.begin_anew();
                    Ok(())
                }
                Step::Asked(Err(error)) => {
                    debug!(%error, "the record does not answer");
                    self.ask_every = (self.ask_every * 2).min(LAST_RETRY);
                    Ok(())
                }
                Step::Tick => self.tick().await,
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    /// Waits for the next thing to do. Every branch is cancel-safe: `send_at` hands over a piece or nothing.
    async fn step(&mut self, tick: &mut tokio::time::Interval) -> Step {
        let most = self.spec.rate.hz() as u64 / 10;
        let Self { input, orders, kept, frames, events, reopening, asking, follow, finalizes, journal, finish, .. } = self;
        let open_end = finalizes.iter().find(|f| !f.passed_on).map_or(SamplePos(u64::MAX), |f| f.at);
        let piece = frames.as_ref().and_then(|frames| kept.next(frames.position(), open_end, most));
        let feeding = piece.is_some();
        let feed = async {
            match (frames, piece) {
                (Some(frames), Some(piece)) => frames.send_at(piece).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(order) = orders.recv() => Step::Order(order),
            input = input.recv(), if finish.is_none() && !kept.is_full() => Step::Input(input),
            fed = feed, if feeding => Step::Fed(fed),
            event = next_of(events), if events_wanted(journal) => Step::Heard(event),
            session = poll_of(reopening) => Step::Reopened(session),
            answer = poll_of(asking) => Step::Asked(answer),
            mark = follow.next() => Step::Mark(mark),
            _ = tick.tick() => Step::Tick,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), End> {
        match input {
            Input::Audio { pos, data } => match self.kept.new_part(pos, data) {
                Ok(Some(frame)) => {
                    let samples = frame.data.len() as u64 / self.spec.encoding.bytes_per_sample() as u64;
                    let ms = self.rate().time_of(samples).as_millis() as u64;
                    counter!(names::AUDIO_MS, "source" => self.opening.source.name()).increment(ms);
                    if let Some(log) = &self.log {
                        log.append(frame.clone()); // before it is decoded
                    }
                    self.kept.push(&frame);
                    self.arrivals.note(self.kept.received());
                    self.standing.lock().received = self.kept.received();
                }
                Ok(None) => {}
                Err(error) => self.audience.tell(Event::Refused { reason: format!("channel {}: {error}", self.index()) }),
            },
            Input::Finalize { token } => self.finalizes.push_back(Finalize { at: self.kept.received(), token, passed_on: false }),
            Input::Finish { lost } => {
                self.finish = Some(lost);
                self.resting = false; // what was received is heard to its end
            }
        }
        Ok(())
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Rest if self.finish.is_none() && !self.resting => {
                self.let_go().await;
                self.resting = true;
            }
            Order::Rest => {}
            Order::Wake(waits) if !self.resting => drop(waits.send(Ok(()))),
            Order::Wake(waits) => {
                self.waking.push(waits);
                self.reopen_unless_busy();
            }
            Order::Stay if self.resting => {
                self.resting = false;
                self.reopen_unless_busy();
            }
            Order::Stay => {}
        }
    }

    /// Where something else has to come first, that reopens.
    fn reopen_unless_busy(&mut self) {
        if self.reopening.is_none() && !self.attach_anew {
            self.reopen();
        }
    }

    fn reopened(&mut self, session: Session) {
        let awaited = self.waking.drain(..).map(|waits| waits.send(Ok(()))).filter(Result::is_ok).count() > 0; // each is told
        if self.resting && !awaited {
            return; // whoever wanted to send has gone again, and with it the place
        }
        debug!(channel = %self.index(), heard = %self.heard, "audio session opened again");
        self.resting = false;
        (self.frames, self.events) = (Some(session.frames), Some(session.events));
    }

    /// Finalize and finish reach the engine after the audio that came before them.
    fn pass_on_marks(&mut self) {
        let Some(frames) = &mut self.frames else { return };
        self.standing.lock().consumed = frames.consumed();
        for mark in self.finalizes.iter_mut().filter(|mark| !mark.passed_on) {
            if self.kept.next(frames.position(), mark.at, 1).is_some() {
                return;
            }
            frames.finalize(mark.token);
            mark.passed_on = true;
        }
        if self.finish.is_some() && self.kept.next(frames.position(), SamplePos(u64::MAX), 1).is_none() {
            self.frames.take().expect("it was there three lines ago").finish();
        }
    }

    async fn hear(&mut self, event: SpeechEvent) -> Result<(), End> {
        match event {
            SpeechEvent::Started { at } => {
                self.started = Some(at);
                self.talks(true).await;
                self.audience.tell(Event::Started { channel: self.index(), at });
            }
            SpeechEvent::Partial { seq, start, end, words, stable_words, .. } => {
                self.trouble = None;
                if seq >= self.next_seq {
                    self.partial(seq, start, end, words, stable_words).await;
                }
            }
            SpeechEvent::Segment(segment) => {
                let pause = match &segment.body {
                    SegmentBody::Speech(spoken) => spoken.speech_final,
                    SegmentBody::Silence | SegmentBody::Gap { .. } => true,
                };
                self.segment(segment).await?;
                if pause && self.move_by.is_some() && self.frames.is_some() {
                    self.hand_over().await;
                }
            }
            SpeechEvent::Flushed { token: CUT } if self.frames.is_some() => self.hand_over().await,
            SpeechEvent::Flushed { token: CUT } => {}
            SpeechEvent::Handover if self.frames.is_none() => {} // it ends anyway
            SpeechEvent::Handover if self.talking || self.started.is_some() => {
                self.move_by = Some(Instant::now() + self.shared.settings.move_within());
            }
            SpeechEvent::Handover => self.hand_over().await,
            SpeechEvent::Retracted { .. } => self.retract().await,
            SpeechEvent::Flushed { token } => {
                self.finalizes.retain(|mark| mark.token != token);
                self.audience.tell(Event::Flushed { channel: self.index(), token, end: self.heard });
            }
        }
        Ok(())
    }

    async fn partial(&mut self, seq: u64, start: SamplePos, end: SamplePos, mut words: Vec<Word>, stable_words: usize) {
        if self.shared.settings.redact {
            redaction::redact(&mut words);
        }
        if self.utterance.as_ref().is_none_or(|open| open.seq != seq) {
            self.retract().await;
            histogram!(names::FIRST_PARTIAL_SECONDS).record(self.arrivals.since(self.started.unwrap_or(start)));
            self.utterance = Some(Open { seq, rev: 0, trace: self.opening.trace.child() });
        }
        self.talks(true).await;
        let open = self.utterance.as_mut().expect("it was set two lines ago");
        open.rev += 1;
        let (rev, trace) = (open.rev, open.trace);
        let utterance = UtteranceId::of(self.id(), self.index(), self.epoch, seq);
        let (start_ms, end_ms) = (self.rate().ms_at(start), self.rate().ms_at(end));
        let body = LiveBody::Partial { utterance, rev, start_ms, end_ms, words: words.clone(), stable_words: stable_words as u32 };
        self.show(trace, body).await;
        if end > self.told {
            self.audience.tell(Event::Partial(Partial { channel: self.index(), utterance, rev, start, end, words, stable_words }));
        }
    }

    async fn segment(&mut self, segment: HeardSegment) -> Result<(), End> {
        if segment.seq != self.next_seq || segment.start != self.heard || segment.end < segment.start {
            let detail = format!(
                "segment {} from {} to {} does not continue segment {} at {}",
                segment.seq, segment.start, segment.end, self.next_seq, self.heard
            );
            return self.failed(CallError::internal(detail)).await;
        }
        self.trouble = None;
        if segment.start == segment.end {
            // Takes no range and so cannot be stored; the numbers go on.
            return self.failed(CallError::internal(format!("segment {} is empty", segment.seq))).await;
        }
        self.publish(segment.end, segment.body).await
    }

    /// Numbers, journals and publishes what comes next on this channel, and tells the socket.
    async fn publish(&mut self, end: SamplePos, mut body: SegmentBody) -> Result<(), End> {
        let (seq, start) = (self.next_seq, self.heard);
        let speech = matches!(body, SegmentBody::Speech(_));
        let open = self.utterance.take_if(|open| open.seq <= seq);
        let trace = open.as_ref().map_or_else(|| self.opening.trace.child(), |open| open.trace);
        let (name, since) = match &body {
            SegmentBody::Speech(spoken) => ("utterance", self.arrivals.since(spoken.from)),
            SegmentBody::Silence => ("silence", Duration::ZERO),
            SegmentBody::Gap { .. } => ("gap", Duration::ZERO),
        };
        let mut span = Span::begun_at(SystemTime::now() - since, name, Side::Inside, trace, self.opening.trace);
        span.note("channel", i64::from(self.index().0));
        span.note("seq", seq as i64);
        if let SegmentBody::Speech(spoken) = &mut body {
            if self.shared.settings.redact {
                redaction::redact(&mut spoken.words);
            }
            histogram!(names::FINAL_SECONDS).record(self.arrivals.since(spoken.to));
            counter!(names::FINALS, "source" => self.opening.source.name()).increment(1);
            info!(
                channel = %self.index(), seq, trace_id = %trace.trace_id_hex(), span_id = %format_args!("{:016x}", trace.span_id),
                start_ms = self.rate().ms_at(start), end_ms = self.rate().ms_at(end), speech_ms = self.rate().time_of(spoken.to.since(spoken.from)).as_millis() as u64,
                decode_ms = spoken.decode_ms, after_speech_ms = self.arrivals.since(spoken.to).as_millis() as u64, words = spoken.words.len(), "final"
            );
        }
        if !speech && open.is_some() {
            let utterance = UtteranceId::of(self.id(), self.index(), self.epoch, seq);
            self.show(trace, LiveBody::Retracted { utterance }).await;
            self.audience.tell(Event::Retracted { channel: self.index(), utterance });
        }
        if let SegmentBody::Gap { reason } = &body {
            counter!(names::GAP_MS).increment(self.rate().time_of(end.since(start)).as_millis() as u64);
            warn!(
                channel = %self.index(), seq, reason, start_ms = self.rate().ms_at(start),
                end_ms = self.rate().ms_at(end), "gap"
            );
        }
        let pause = match &body {
            SegmentBody::Speech(spoken) => spoken.speech_final,
            // Silence may be told after the speech that ended it has begun.
            _ => self.started.is_none_or(|at| at < end),
        };
        let segment = Segment { conversation: self.id(), channel: self.index(), epoch: self.epoch, seq, start, end, body, trace };
        self.journal.push(&segment);
        self.next_seq += 1;
        self.heard = end;
        self.standing.lock().heard = end;
        self.arrivals.forget(end);
        self.send().await;
        self.tell_segment(segment);
        if pause && self.utterance.is_none() {
            self.started = None;
            self.talks(false).await;
        }
        Ok(())
    }

    fn tell_segment(&mut self, segment: Segment) {
        let utterance = segment.utterance_id();
        let Segment { channel, seq, start, end, trace, body, .. } = segment;
        let told = self.told;
        self.told = told.max(end);
        if end <= told {
            return;
        }
        self.audience.tell(match body {
            SegmentBody::Speech(mut spoken) => {
                let told_ms = self.rate().ms_at(told);
                if start < told {
                    spoken.words.retain(|word| u64::from(word.start_ms) >= told_ms);
                }
                Event::Final(Final { channel, utterance, seq, end, spoken, trace })
            }
            SegmentBody::Silence => Event::Silence { channel, end },
            SegmentBody::Gap { reason } => Event::Gap { channel, start: start.max(told), end, reason },
        });
    }

    /// Hands the bus what it has not taken.
    async fn send(&mut self) {
        let entries = self.journal.unsent();
        if entries.is_empty() {
            return;
        }
        let from = Instant::now();
        match tokio::time::timeout(PUBLISH_BUDGET, self.shared.bus.publish(UTTERANCES, entries)).await {
            Ok(Ok(())) => {
                self.journal.mark_sent(Instant::now());
                self.publish_again = None;
                histogram!(names::PUBLISH_SECONDS).record(from.elapsed());
            }
            Ok(Err(error)) => {
                warn!(channel = %self.index(), %error, "cannot publish; it is kept");
                self.publish_again = Some(Instant::now() + TICK);
            }
            Err(_) => {
                warn!(channel = %self.index(), "the bus does not answer; segments are kept");
                self.publish_again = Some(Instant::now() + ASK_AFTER);
            }
        }
    }

    async fn retract(&mut self) {
        if let Some(open) = self.utterance.take() {
            let utterance = UtteranceId::of(self.id(), self.index(), self.epoch, open.seq);
            self.show(open.trace, LiveBody::Retracted { utterance }).await;
            self.audience.tell(Event::Retracted { channel: self.index(), utterance });
        }
        self.started = None;
        self.talks(false).await;
    }

    async fn talks(&mut self, talking: bool) {
        if self.talking != talking {
            self.talking = talking;
            self.show(self.opening.trace, LiveBody::Activity { talking }).await;
        }
    }

    async fn show(&mut self, trace: TraceCx, body: LiveBody) {
        self.opening.show(&self.shared, self.index(), trace, body).await;
    }

    async fn events_ended(&mut self) -> Result<(), End> {
        let finishing = self.finish.is_some() && self.frames.is_none();
        if !finishing {
            return self.failed(CallError::unavailable("the audio module ended the session early")).await;
        }
        self.events = None;
        self.retract().await;
        if self.heard < self.kept.received() {
            let end = self.kept.received();
            self.publish(end, SegmentBody::Gap { reason: "could not be heard".into() }).await?;
        }
        if let Some(Some((lost, why))) = self.finish {
            let end = self.heard + self.rate().samples_in(lost).max(1);
            self.publish(end, SegmentBody::Gap { reason: why.into() }).await?;
        }
        for mark in std::mem::take(&mut self.finalizes) {
            self.audience.tell(Event::Flushed { channel: self.index(), token: mark.token, end: self.heard });
        }
        self.all_heard = true;
        self.audience.tell(Event::Heard { channel: self.index(), end: self.heard });
        Ok(())
    }

    /// Gives the audio session up, and says how far it was sent to.
    async fn let_go(&mut self) -> Option<SamplePos> {
        let sent = self.frames.take().map(|frames| frames.position());
        self.events = None;
        self.reopening = None;
        self.move_by = None;
        self.retract().await;
        for mark in &mut self.finalizes {
            mark.passed_on = false;
        }
        sent
    }

    /// Goes on in another session, from where the last segment ended.
    async fn hand_over(&mut self) {
        self.let_go().await;
        counter!(names::MOVES).increment(1);
        info!(channel = %self.index(), conversation = %self.id(), at_ms = self.rate().ms_at(self.heard), "stream moves");
        self.reopen();
    }

    /// The audio session takes no more: what it said before it broke still counts. Passed over, the same stretch would be heard again and
    /// again, and given up although it does no harm.
    async fn broke(&mut self, error: CallError) -> Result<(), End> {
        while self.events.is_some() && events_wanted(&self.journal) {
            match tokio::time::timeout(LAST_WORDS, next_of(&mut self.events)).await {
                Ok(Some(Ok(event @ SpeechEvent::Segment { .. }))) => self.hear(event).await?,
                Ok(Some(Ok(_))) => {} // only a segment is progress
                _ => break,
            }
        }
        self.failed(error).await
    }

    /// The audio session is lost: what it had not said is heard again.
    async fn failed(&mut self, error: CallError) -> Result<(), End> {
        let sent = self.let_go().await;
        counter!(names::AUDIO_FAILURES, "kind" => error.kind.name()).increment(1);
        let (channel, rate, heard) = (self.index(), self.rate(), self.heard);
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert(Trouble { since: now, tries: 0, retry_at: now, at: heard, at_same: 0 });
        trouble.tries += 1;
        let wait = (FIRST_RETRY * 2u32.saturating_pow(trouble.tries - 1)).min(LAST_RETRY);
        trouble.retry_at = now + wait;
        let patience = Duration::from_millis(self.shared.settings.audio_patience_ms);
        if let Some(sent) = sent {
            trouble.at_same = if trouble.at == heard { trouble.at_same + 1 } else { 1 };
            trouble.at = heard;
            let answered = matches!(error.kind, ErrorKind::Panicked | ErrorKind::InvalidInput | ErrorKind::Internal);
            if trouble.at_same >= if answered { POISON } else { 2 * POISON } && sent > heard {
                error!(
                    %channel, %error, start_ms = rate.ms_at(heard),
                    end_ms = rate.ms_at(sent), "this audio makes the engine fail; it is passed over"
                );
                trouble.at_same = 0;
                return self.publish(sent, SegmentBody::Gap { reason: "could not be heard".into() }).await;
            }
        }
        if now.duration_since(trouble.since) >= patience {
            error!(%channel, %error, tries = trouble.tries, "hearing failed for good");
            return Err(End::Failed(error));
        }
        warn!(
            %channel, %error, kind = error.kind.name(), tries = trouble.tries,
            retry_ms = wait.as_millis() as u64, "audio session lost; trying again"
        );
        Ok(())
    }

    fn reopen(&mut self) {
        let spec = self.opening.stream(&self.spec, self.heard, self.next_seq);
        let shared = self.shared.clone();
        // The attempt tells a router that the place before this one did not work out.
        let tries = self.trouble.as_ref().map_or(0, |trouble| trouble.tries);
        let cx = CallCx { attempt: u8::try_from(tries).unwrap_or(u8::MAX), ..self.cx(OPEN_BUDGET) };
        self.reopening = Some(Box::pin(open(shared, cx, spec)));
    }

    /// The record holds something else than what was sent: the channel is attached to again as soon as that can be.
    fn begin_anew(&mut self) {
        self.attach_anew = true;
        self.frames = None;
        self.events = None;
        self.reopening = None;
    }

    /// Goes on from what the record has: what was heard from there on and is remembered is published again, anything else is heard again.
    async fn attach(&mut self) -> Result<(), End> {
        let request = Attach { conversation: self.id(), channel: self.index() };
        let record = self.shared.conversations.clone();
        let attached = match record.attach(self.cx(OPEN_BUDGET), request.clone()).await {
            Err(error) if error.kind == ErrorKind::NotFound => match record.open(self.cx(OPEN_BUDGET), self.opening.request()).await {
                Ok(_) => record.attach(self.cx(OPEN_BUDGET), request).await,
                Err(error) => Err(error),
            },
            answered => answered,
        };
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => return Err(End::Failed(error)),
            Err(error) => return self.failed(error).await,
        };
        if let Some(next_seq) = self.journal.sign_again(attached) {
            (self.epoch, self.next_seq) = (attached.epoch, next_seq);
            self.publish_again = Some(Instant::now());
        } else if attached.safe < self.kept.safe() {
            let detail = format!("the record went back from {} to {}", self.kept.safe(), attached.safe);
            return Err(End::Failed(CallError::internal(detail)));
        } else {
            self.journal.clear();
            (self.epoch, self.next_seq, self.heard) = (attached.epoch, attached.next_seq, attached.safe);
            self.all_heard = false;
        }
        self.attach_anew = false;
        self.kept.trim(attached.safe);
        self.standing.lock().attached = attached;
        if !self.all_heard && (!self.resting || !self.waking.is_empty()) {
            self.reopen();
        }
        Ok(())
    }

    /// The record says how far it is.
    fn committed(&mut self, epoch: Epoch, next_seq: u64, safe: SamplePos) -> Result<(), End> {
        if epoch > self.epoch {
            return Err(End::Superseded);
        }
        if epoch < self.epoch {
            return Ok(());
        }
        match self.journal.confirm(next_seq, safe, Instant::now()) {
            Ok(waits) if waits.is_empty() => Ok(()),
            Ok(waits) => {
                self.ask_every = ASK_AFTER;
                for wait in waits {
                    histogram!(names::COMMIT_SECONDS).record(wait);
                }
                self.kept.trim(safe);
                self.standing.lock().attached = Attached { epoch, safe, next_seq };
                self.audience.tell(Event::Safe { channel: self.index(), epoch, pos: safe });
                Ok(())
            }
            Err(disagreement) => {
                error!(channel = %self.index(), %disagreement, "attaching anew");
                self.begin_anew();
                Ok(())
            }
        }
    }

    fn answered(&mut self, state: ConversationState, view: ChannelView) -> Result<(), End> {
        let Attached { epoch, safe, next_seq } = view.attached;
        self.committed(epoch, next_seq, safe)?;
        if epoch == self.epoch && state == ConversationState::Live {
            match self.journal.recall(next_seq, safe) {
                Ok(0) => {}
                Ok(lost) => {
                    warn!(channel = %self.index(), lost, next_seq, %safe, "the record has lost what it had committed: it is published again");
                    counter!(names::RECALLED).increment(lost as u64);
                    self.publish_again = Some(Instant::now());
                }
                Err(disagreement) => {
                    error!(channel = %self.index(), %disagreement, "attaching anew");
                    self.begin_anew();
                }
            }
        }
        if epoch < self.epoch && state == ConversationState::Live {
            warn!(channel = %self.index(), theirs = %epoch, ours = %self.epoch, "the record has lost that this channel was attached to");
            self.begin_anew();
        }
        if state != ConversationState::Live && !self.journal.is_empty() {
            warn!(channel = %self.index(), "the conversation was closed while segments were under way");
            return Err(End::Superseded);
        }
        Ok(())
    }

    async fn tick(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let idle = self.frames.is_none() && self.events.is_none() && self.reopening.is_none();
        let wanted = self.attach_anew || !self.resting && !self.all_heard;
        if idle && wanted && self.trouble.as_ref().is_none_or(|trouble| now >= trouble.retry_at) {
            if self.attach_anew {
                self.retract().await;
                self.attach().await?;
            } else {
                self.reopen();
            }
        }
        if self.move_by.is_some_and(|by| now >= by)
            && let Some(frames) = &mut self.frames
        {
            self.move_by = Some(now + CUT_WITHIN);
            frames.finalize(CUT);
        }
        if self.publish_again.is_some_and(|at| now >= at) {
            self.send().await;
        }
        let bus_epoch = self.shared.bus.epoch();
        let bus_lost = std::mem::replace(&mut self.bus_epoch, bus_epoch) != bus_epoch;
        if bus_lost || self.journal.waiting(now) >= self.shared.settings.republish() {
            let again = self.journal.send_again();
            if again > 0 {
                counter!(names::REPUBLISHED).increment(again as u64);
                warn!(channel = %self.index(), segments = again, bus_lost, "not committed in time; published again");
                self.send().await;
            }
        }
        if self.journal.unconfirmed(now) >= ASK_AFTER && self.asking.is_none() && now.duration_since(self.asked) >= self.ask_every {
            self.asked = now;
            self.asking = Some(Box::pin(ask(self.shared.clone(), self.cx(ASK_BUDGET), self.id(), self.index())));
        }
        self.tell_lag(now).await;
        Ok(())
    }

    /// How much of what was received the engine has not taken in.
    async fn tell_lag(&mut self, now: Instant) {
        let consumed = self.frames.as_ref().map_or(self.heard, |frames| frames.consumed().max(self.heard));
        let behind = if self.all_heard || self.resting { 0 } else { self.kept.received().since(consumed) };
        let lag = self.rate().time_of(behind);
        let changed = lag.abs_diff(self.lag) >= Duration::from_millis(100);
        let told = now.duration_since(self.lag_told);
        let again = told >= SHOWN_AGAIN;
        if changed && told >= Duration::from_millis(500) || again {
            self.lag = lag;
            self.lag_told = now;
            self.show(self.opening.trace, LiveBody::Lag { ms: lag.as_millis() as u32 }).await;
        }
        if again {
            self.show(self.opening.trace, LiveBody::Activity { talking: self.talking }).await;
        }
    }
}

fn events_wanted(journal: &Journal) -> bool {
    !journal.is_full()
}

async fn next_of(events: &mut Option<EventRx>) -> Option<Result<SpeechEvent, CallError>> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// Polls a future that stays where it is when this one is dropped, and is gone when it is done.
async fn poll_of<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(future) = slot else { return std::future::pending().await };
    let done = future.await;
    *slot = None;
    done
}

async fn open(shared: Arc<Shared>, cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
    tokio::time::timeout(OPEN_BUDGET, shared.audio.open(cx, spec)).await.unwrap_or_else(|_| Err(CallError::deadline()))
}

async fn ask(
    shared: Arc<Shared>,
    cx: CallCx,
    id: ConversationId,
    channel: ChannelIndex,
) -> Result<(ConversationState, ChannelView), CallError> {
    let view =
        tokio::time::timeout(ASK_BUDGET, shared.conversations.conversation(cx, id)).await.unwrap_or_else(|_| Err(CallError::deadline()))?;
    let found = view.channels.into_iter().find(|c| c.spec.index == channel);
    found.map(|c| (view.conversation.state, c)).ok_or_else(|| CallError::internal(format!("{id} has no channel {channel} in the record")))
}

/// When which sample came in: for measuring what a speaker waits for.
#[derive(Default)]
struct Arrivals(VecDeque<(SamplePos, Instant)>);

impl Arrivals {
    /// Everything before `end` is here now. Entries closer than 20 ms are one.
    fn note(&mut self, end: SamplePos) {
        let now = Instant::now();
        match self.0.back_mut() {
            Some((last, at)) if now.duration_since(*at) < Duration::from_millis(20) => *last = end,
            _ => self.0.push_back((end, now)),
        }
    }

    /// How long ago the sample before `pos` came in.
    fn since(&self, pos: SamplePos) -> Duration {
        let at = self.0.partition_point(|(end, _)| *end < pos);
        self.0.get(at).map_or(Duration::ZERO, |(_, at)| at.elapsed())
    }

    fn forget(&mut self, before: SamplePos) {
        while self.0.front().is_some_and(|(end, _)| *end <= before) {
            self.0.pop_front();
        }
    }
}
