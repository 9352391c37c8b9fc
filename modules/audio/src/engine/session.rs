//! One channel while it streams: bytes in, events out. Decodes, resamples, detects and endpoints what arrives, asks the board for
//! recognitions, and puts their results in order.
//!
//! Invariants:
//! - segments leave in order and partition the channel; a recognition that fails becomes a gap, it does not stop the channel;
//! - sound is kept only as far back as a decision may need it; unread events and waiting finals stop consumption, and with it credit;
//! - a run is a stretch of sound without a hole. Inside, positions are counted at 16 kHz from its beginning; outside, at the channel's rate.

use super::{
    decode,
    endpointing::{Decision, Endpointer, Rules, Stretch},
    faults::{Faults, Place},
    load::Load,
    recognizer::{HeardWord, Transcript, agreement::Agreement, words::spread},
    resample::Resampler,
    scheduler::{Board, Class, Job, Ticket},
    vad::{self, DetectError, Detector, FRAME},
};
use crate::metrics as names;
use contracts::{
    CallError, SamplePos,
    audio::{EventTx, Frame, HeardSegment, Input, Pace, SegmentBody, SpeechEvent, Spoken, StreamSpec, Word, WordTimes},
};
use metrics::{counter, histogram};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Finals that may wait for a worker before no more sound is consumed.
const MOST_PENDING: usize = 8;
/// Silence put after speech that ends in the middle of a word's echo, at 16 kHz.
const PADDING: usize = 16 * 150;
/// Speech in an utterance before its first partial.
const FIRST_PARTIAL: u64 = 16 * 350;
/// A stretch with fewer voiced frames than this has no word in it.
const FEWEST_VOICED: usize = 3;
/// A frame whose power is below this (-62 dB of full scale) is silence without asking, once silence has lasted [`QUIET_FRAMES`].
const QUIET: f32 = 6.3e-7;
const QUIET_FRAMES: u32 = 8;
/// Samples of room that are made at once, and that a channel keeps between utterances. Doubling would keep a long utterance's length twice.
const ROOM: usize = 16_384;
/// How far back arrivals are remembered.
const ARRIVALS: u64 = 16 * 4000;

/// What a session works with; all of it belongs to the worker.
pub(super) struct Tools<'a> {
    pub(super) worker: usize,
    pub(super) vad: &'a mut dyn Detector,
    pub(super) board: &'a Board,
    pub(super) load: &'a Load,
    pub(super) faults: &'a Faults,
}

pub(super) struct Session {
    id: u64,
    spec: StreamSpec,
    model: Arc<str>,
    draft: bool,
    /// `None` when the session is over.
    events: Option<EventTx>,
    cancel: CancellationToken,
    inbox: VecDeque<(Input, Instant)>,

    resampler: Resampler,
    memory: vad::Memory,
    endpointer: Endpointer,
    decoded: Vec<f32>,
    /// Where the run begins, and how much of it has arrived, at the channel's rate.
    base: SamplePos,
    received: u64,
    /// Sound of the run from `pcm_from` on, at 16 kHz.
    pcm: Vec<f32>,
    pcm_from: u64,
    scored: u64,
    /// Frames in a row in which the detector was certain of silence.
    quiet: u32,
    /// Bytes of the frame whose scores are awaited.
    taken_in: Option<usize>,
    /// (position in the run, when it came).
    arrivals: VecDeque<(u64, Instant)>,

    next_seq: u64,
    /// End of the last numbered segment.
    numbered_to: SamplePos,
    open: Option<Utterance>,
    pending: VecDeque<Pending>,
}

/// An utterance being spoken.
struct Utterance {
    from: u64,
    agreement: Agreement,
    draft: Vec<i64>,
    rev: u32,
    /// Where the last partial asked for ended.
    partial_to: Option<u64>,
    partial: Option<(Arc<Ticket>, u64)>,
    guess: Option<Guess>,
    /// Latest words to show and how many of them are stable.
    shown: Option<usize>,
}

/// A recognition begun on the guess that the utterance ends at `to`.
struct Guess {
    ticket: Arc<Ticket>,
    to: u64,
    transcript: Option<Result<Transcript, String>>,
    queued: Instant,
    took: Duration,
}

enum Pending {
    Ready(SegmentBody, Range<SamplePos>, u64),
    Speech(Box<Spoke>),
    Flushed(u32),
    End,
}

/// A finished stretch whose text is awaited.
struct Spoke {
    seq: u64,
    range: Range<SamplePos>,
    stretch: Stretch,
    /// Voiced stretches, in ms of the channel.
    voiced_ms: Vec<(u64, u64)>,
    voiced: Range<SamplePos>,
    ticket: Arc<Ticket>,
    transcript: Option<Result<Transcript, String>>,
    queued: Instant,
    took: Duration,
    shown: bool,
    /// When its last voiced sample arrived.
    spoken_at: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        id: u64,
        spec: StreamSpec,
        rules: Rules,
        model: Arc<str>,
        draft: bool,
        events: EventTx,
        cancel: CancellationToken,
    ) -> Result<Self, CallError> {
        let resampler = Resampler::new(spec.rate.hz()).map_err(|e| CallError::internal(e.to_string()))?;
        Ok(Self {
            id,
            model,
            draft,
            events: Some(events),
            cancel,
            inbox: VecDeque::new(),
            resampler,
            memory: vad::Memory::default(),
            endpointer: Endpointer::new(rules),
            decoded: vec![],
            base: spec.start,
            received: 0,
            pcm: vec![],
            pcm_from: 0,
            scored: 0,
            quiet: 0,
            taken_in: None,
            arrivals: VecDeque::new(),
            next_seq: spec.first_seq,
            numbered_to: spec.start,
            open: None,
            pending: VecDeque::new(),
            spec,
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.events.is_none()
    }
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
    pub(super) fn pace(&self) -> Pace {
        self.spec.pace
    }
    /// Something waits and may be consumed.
    pub(super) fn is_ready(&self) -> bool {
        !self.inbox.is_empty() && self.may_consume()
    }

    pub(super) fn arrive(&mut self, input: Input, at: Instant) {
        match input {
            Input::Abandon => self.end(None),
            Input::Drained => {}
            input => self.inbox.push_back((input, at)),
        }
    }

    /// Ends the session; what is recognized for it is of no use any more.
    pub(super) fn end(&mut self, error: Option<CallError>) {
        let Some(events) = self.events.take() else { return };
        for pending in self.pending.drain(..) {
            if let Pending::Speech(spoke) = pending {
                spoke.ticket.drop_it();
            }
        }
        if let Some(open) = self.open.take() {
            open.partial.iter().for_each(|(ticket, _)| ticket.drop_it());
            open.guess.iter().for_each(|guess| guess.ticket.drop_it());
        }
        self.inbox.clear();
        match error {
            Some(error) => {
                counter!(names::FAILED, "kind" => error.kind.name()).increment(1);
                events.fail(error);
            }
            None => events.end(),
        }
    }

    /// Consumes what waits, at most about `most` samples of it. True when it cannot go on before a frame has its score:
    /// [`Self::put`], [`Self::take`], and on.
    pub(super) fn consume(&mut self, tools: &mut Tools<'_>, most: u64) -> bool {
        let mut consumed = 0;
        let done = loop {
            match self.detect(tools) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            if let (Some(bytes), Some(events)) = (self.taken_in.take(), &self.events) {
                events.consumed(bytes);
            }
            self.deliver();
            if consumed >= most || !self.may_consume() {
                break Ok(());
            }
            let Some((input, at)) = self.inbox.pop_front() else { break Ok(()) };
            let done = match input {
                Input::Frame(frame) => {
                    consumed += frame.data.len() as u64 / self.spec.encoding.bytes_per_sample() as u64;
                    self.frame(frame, at, tools)
                }
                Input::Finalize { token } => self.flush(tools).map(|()| self.pending.push_back(Pending::Flushed(token))),
                Input::Finish => self.flush(tools).map(|()| self.pending.push_back(Pending::End)),
                Input::Abandon | Input::Drained => Ok(()),
            };
            if done.is_err() {
                break done;
            }
        };
        match done {
            Ok(()) => self.ask_for_partial(tools),
            Err(error) => self.end(Some(error)),
        }
        false
    }

    /// Puts the frame that [`Self::consume`] stopped at among those to be scored.
    pub(super) fn put(&mut self, vad: &mut dyn Detector) {
        let at = (self.scored - self.pcm_from) as usize;
        vad.put(&mut self.memory, &self.pcm[at..at + FRAME]);
    }

    /// Takes its score back.
    pub(super) fn take(&mut self, place: usize, tools: &mut Tools<'_>) {
        let score = tools.vad.take(place, &mut self.memory);
        self.settle(score, tools);
    }

    fn may_consume(&self) -> bool {
        self.pending.len() < MOST_PENDING && self.events.as_ref().is_some_and(|events| !events.is_full())
    }

    fn frame(&mut self, frame: Frame, at: Instant, tools: &mut Tools<'_>) -> Result<(), CallError> {
        tools.faults.strike(Place::Decode);
        let width = self.spec.encoding.bytes_per_sample();
        let bytes = frame.data.len();
        let mut data = frame.data;
        let expected = self.base + self.received;
        if frame.pos > expected {
            self.flush(tools)?;
            let reason = "this audio never arrived".to_owned();
            self.number(SegmentBody::Gap { reason }, frame.pos);
            self.begin_run(frame.pos);
            self.memory = vad::Memory::default();
        } else {
            let heard = (expected.since(frame.pos) as usize).saturating_mul(width).min(data.len());
            let _ = data.split_to(heard);
        }
        if !data.is_empty() {
            self.received += (data.len() / width) as u64;
            self.decoded.clear();
            decode::samples(self.spec.encoding, &data, &mut self.decoded);
            let decoded = std::mem::take(&mut self.decoded);
            let more = (decoded.len() as u64 * 16_000 / u64::from(self.spec.rate.hz())) as usize + FRAME;
            if self.pcm.capacity() - self.pcm.len() < more {
                self.pcm.reserve_exact(more.max(ROOM));
            }
            self.resampler.push(&decoded, &mut self.pcm).map_err(|e| CallError::internal(e.to_string()))?;
            self.decoded = decoded;
            let received = self.received * 16_000 / u64::from(self.spec.rate.hz());
            self.arrivals.push_back((received, at));
            while self.arrivals.front().is_some_and(|(pos, _)| pos + ARRIVALS < received) {
                self.arrivals.pop_front();
            }
        }
        self.taken_in = Some(bytes);
        Ok(())
    }

    /// Follows every whole frame there is, up to one that the detector has to be asked about: then true.
    fn detect(&mut self, tools: &mut Tools<'_>) -> Result<bool, CallError> {
        while self.scored + FRAME as u64 <= self.pcm_from + self.pcm.len() as u64 {
            let at = (self.scored - self.pcm_from) as usize;
            let frame = &self.pcm[at..at + FRAME];
            // In a call each side is silent half of the time; asking costs most of what an idle channel costs.
            let power = frame.iter().map(|s| s * s).sum::<f32>() / FRAME as f32;
            if power >= QUIET || self.quiet < QUIET_FRAMES {
                return Ok(true);
            }
            self.memory.pass(frame);
            self.settle(0.0, tools);
        }
        let unneeded = self.endpointer.needed_from().min(self.scored).saturating_sub(self.pcm_from) as usize;
        // In whole blocks: moving the rest down costs as much as it holds.
        if unneeded >= 8192 {
            self.pcm.drain(..unneeded);
            self.pcm_from += unneeded as u64;
            // A long utterance is over: its room is given back.
            if self.pcm.capacity() > self.pcm.len() + 4 * ROOM {
                self.pcm.shrink_to(self.pcm.len() + ROOM);
            }
        }
        Ok(false)
    }

    /// Scores every whole frame at once, without company.
    fn detect_alone(&mut self, tools: &mut Tools<'_>) -> Result<(), CallError> {
        while self.detect(tools)? {
            self.put(tools.vad);
            tools.vad.run().map_err(|e| unscored(&e))?;
            self.take(0, tools);
        }
        Ok(())
    }

    fn settle(&mut self, score: f32, tools: &mut Tools<'_>) {
        self.quiet = if score < 0.05 { self.quiet.saturating_add(1) } else { 0 };
        self.scored += FRAME as u64;
        for decision in self.endpointer.push(score) {
            self.follow(decision, tools);
        }
    }

    fn follow(&mut self, decision: Decision, tools: &mut Tools<'_>) {
        match decision {
            Decision::Started { at, from } => {
                let at = self.pos(at);
                // After a cut for length speech goes on; it does not start.
                let goes_on =
                    matches!(self.pending.back(), Some(Pending::Speech(spoke)) if spoke.stretch.to == from && !spoke.stretch.speech_final);
                self.open = Some(Utterance {
                    from,
                    agreement: Agreement::default(),
                    draft: vec![],
                    rev: 0,
                    partial_to: None,
                    partial: None,
                    guess: None,
                    shown: None,
                });
                if !goes_on {
                    self.send(SpeechEvent::Started { at });
                }
            }
            Decision::Paused { to } => {
                let Some(from) = self.open.as_ref().map(|open| open.from) else { return };
                let ticket = self.ask(from, to, Class::Guess, tools);
                if let Some(open) = &mut self.open {
                    // What a partial would say now, the guess says too.
                    open.partial.iter().for_each(|(ticket, _)| ticket.forget());
                    open.guess = Some(Guess { ticket, to, transcript: None, queued: Instant::now(), took: Duration::ZERO });
                }
            }
            Decision::Resumed => {
                if let Some(guess) = self.open.as_mut().and_then(|open| open.guess.take()) {
                    counter!(names::DISCARDED).increment(1);
                    if guess.transcript.is_none() {
                        guess.ticket.forget();
                        // If it has begun, its text is as good as a partial's.
                        if let Some(open) = &mut self.open {
                            open.partial = Some((guess.ticket, guess.to));
                        }
                    }
                }
            }
            Decision::Speech(stretch) => self.spoke(stretch, tools),
            Decision::Silence { to } => {
                let to = self.pos(to);
                self.number(SegmentBody::Silence, to);
            }
        }
    }

    /// A stretch of speech is over: its text is awaited.
    fn spoke(&mut self, stretch: Stretch, tools: &mut Tools<'_>) {
        let mut open = self.open.take();
        if let Some((ticket, _)) = open.as_mut().and_then(|open| open.partial.take()) {
            ticket.drop_it();
        }
        let guess = open.as_mut().and_then(|open| open.guess.take()).filter(|guess| guess.to <= stretch.to);
        let (ticket, transcript, queued, took) = match guess {
            Some(guess) => {
                guess.ticket.is_final_now();
                (guess.ticket, guess.transcript, guess.queued, guess.took)
            }
            None if stretch.voiced_frames < FEWEST_VOICED => {
                (Ticket::new(Class::Final), Some(Ok(Transcript::default())), Instant::now(), Duration::ZERO)
            }
            None => {
                let draft = open.as_mut().map(|open| std::mem::take(&mut open.draft)).unwrap_or_default();
                let ticket = Ticket::new(Class::Final);
                self.push(stretch.from, stretch.to, ticket.clone(), draft, tools);
                (ticket, None, Instant::now(), Duration::ZERO)
            }
        };
        let voiced_ms = stretch.voiced.iter().map(|v| (self.ms(v.start), self.ms(v.end))).collect();
        let first = stretch.voiced.first().map_or(stretch.from, |v| v.start);
        let last = stretch.voiced.last().map_or(stretch.to, |v| v.end);
        let end = self.pos(stretch.to);
        let spoke = Spoke {
            seq: self.next_seq,
            range: self.numbered_to..end,
            voiced_ms,
            voiced: self.pos(first)..self.pos(last),
            ticket,
            transcript,
            queued,
            took,
            shown: open.is_some_and(|open| open.shown.is_some()),
            spoken_at: self.arrivals.iter().find(|(pos, _)| *pos >= last).map(|(_, at)| *at),
            stretch,
        };
        self.next_seq += 1;
        self.numbered_to = end;
        self.pending.push_back(Pending::Speech(Box::new(spoke)));
    }

    /// Ends the run: the resampler's tail, the last unfinished frame, whatever is open. What comes next begins a new run.
    fn flush(&mut self, tools: &mut Tools<'_>) -> Result<(), CallError> {
        self.resampler.flush(&mut self.pcm).map_err(|e| CallError::internal(e.to_string()))?;
        self.detect_alone(tools)?;
        let end = self.pcm_from + self.pcm.len() as u64;
        if self.scored < end {
            // The last frame is filled up with silence; the stretch ends where the sound did.
            let at = (self.scored - self.pcm_from) as usize;
            self.pcm.resize(at + FRAME, 0.0);
            self.detect_alone(tools)?;
            self.pcm.truncate((end - self.pcm_from) as usize);
        }
        if let Some(decision) = self.endpointer.close(end) {
            self.follow(decision, tools);
        }
        self.open = None;
        self.begin_run(self.base + self.received);
        Ok(())
    }

    fn begin_run(&mut self, at: SamplePos) {
        self.endpointer.reset(0);
        self.arrivals.clear();
        self.pcm.clear();
        (self.base, self.received, self.pcm_from, self.scored) = (at, 0, 0, 0);
    }

    /// Numbers a stretch without speech; nothing when it is empty.
    fn number(&mut self, body: SegmentBody, to: SamplePos) {
        if to > self.numbered_to {
            self.pending.push_back(Pending::Ready(body, self.numbered_to..to, self.next_seq));
            self.next_seq += 1;
            self.numbered_to = to;
        }
    }

    fn ask_for_partial(&mut self, tools: &mut Tools<'_>) {
        let Some(shortest) = self.spec.partials else { return };
        let period = shortest.max(tools.load.period()).as_millis() as u64 * 16;
        let Some(open) = &mut self.open else { return };
        // A final comes first, and a pause has a guess of its own.
        if open.guess.is_some() || !self.pending.is_empty() {
            return;
        }
        if open.partial.as_ref().is_some_and(|(ticket, _)| !ticket.is_waiting() && !ticket.is_over()) {
            return;
        }
        let (from, to) = (open.from, self.scored);
        let class = match open.partial_to {
            None if self.endpointer.voiced().iter().map(|v| v.end - v.start).sum::<u64>() >= FIRST_PARTIAL => Class::FirstPartial,
            None => return,
            Some(before) if to >= before + period => {
                if open.shown.is_some() {
                    Class::Refresh
                } else {
                    Class::FirstPartial
                }
            }
            Some(_) => return,
        };
        open.partial_to = Some(to);
        let ticket = self.ask(from, to, class, tools);
        if let Some(open) = &mut self.open {
            open.partial = Some((ticket, to));
        }
    }

    fn ask(&mut self, from: u64, to: u64, class: Class, tools: &Tools<'_>) -> Arc<Ticket> {
        let ticket = Ticket::new(class);
        let draft = self.open.as_ref().map(|open| open.draft.clone()).unwrap_or_default();
        self.push(from, to, ticket.clone(), draft, tools);
        ticket
    }

    fn push(&self, from: u64, to: u64, ticket: Arc<Ticket>, draft: Vec<i64>, tools: &Tools<'_>) {
        let at = |pos: u64| (pos.saturating_sub(self.pcm_from) as usize).min(self.pcm.len());
        let mut pcm = Vec::with_capacity((to - from) as usize + PADDING);
        pcm.extend_from_slice(&self.pcm[at(from)..at(to)]);
        pcm.resize(pcm.len() + PADDING, 0.0);
        let draft = if self.draft { draft } else { vec![] };
        let job = Job { session: self.id, owner: tools.worker, ticket, pace: self.spec.pace, pcm, draft, queued: Instant::now() };
        if tools.board.push(job) {
            counter!(names::COALESCED).increment(1);
        }
    }

    /// Takes the result of a recognition.
    pub(super) fn heard(&mut self, ticket: &Arc<Ticket>, transcript: Result<Transcript, String>) {
        for pending in &mut self.pending {
            if let Pending::Speech(spoke) = pending
                && Arc::ptr_eq(&spoke.ticket, ticket)
            {
                spoke.took = spoke.queued.elapsed();
                spoke.transcript = Some(transcript);
                self.deliver();
                return;
            }
        }
        let Some(open) = &mut self.open else { return };
        let to = if let Some(guess) = open.guess.as_mut().filter(|guess| Arc::ptr_eq(&guess.ticket, ticket)) {
            guess.took = guess.queued.elapsed();
            guess.transcript = Some(transcript.clone());
            guess.to
        } else if let Some((_, to)) = open.partial.take_if(|(t, _)| Arc::ptr_eq(t, ticket)) {
            to
        } else {
            return;
        };
        if let Ok(transcript) = transcript {
            self.show(transcript, to);
        }
    }

    /// Sends a partial, if they are wanted and nothing before it is still awaited.
    fn show(&mut self, transcript: Transcript, to: u64) {
        let Some(open) = &mut self.open else { return };
        if !transcript.looped {
            open.draft = transcript.tokens;
        }
        if self.spec.partials.is_none() || !self.pending.is_empty() || (transcript.words.is_empty() && open.shown.is_none()) {
            return;
        }
        let (words, stable_words) = open.agreement.hear(transcript.words);
        open.shown = Some(stable_words);
        open.rev += 1;
        let rev = open.rev;
        let voiced = self.endpointer.voiced();
        let voiced: Vec<(u64, u64)> =
            voiced.into_iter().filter(|v| v.start < to).map(|v| (self.ms(v.start), self.ms(v.end.min(to)))).collect();
        let words = self.timed(&words, &voiced, to);
        let (start, end) = (self.numbered_to, self.pos(to));
        self.send(SpeechEvent::Partial { seq: self.next_seq, rev, start, end, words, stable_words });
    }

    fn timed(&self, words: &[HeardWord], voiced_ms: &[(u64, u64)], at: u64) -> Vec<Word> {
        spread(words, voiced_ms, self.ms(at))
    }

    /// Sends what is complete, in order.
    fn deliver(&mut self) {
        while let Some(front) = self.pending.front_mut() {
            if matches!(front, Pending::Speech(spoke) if spoke.transcript.is_none()) {
                return;
            }
            match self.pending.pop_front() {
                Some(Pending::Ready(body, range, seq)) => {
                    self.send(SpeechEvent::Segment(HeardSegment { seq, start: range.start, end: range.end, body }));
                }
                Some(Pending::Speech(spoke)) => self.deliver_speech(*spoke),
                Some(Pending::Flushed(token)) => self.send(SpeechEvent::Flushed { token }),
                Some(Pending::End) => {
                    self.end(None);
                    return;
                }
                None => return,
            }
        }
    }

    fn deliver_speech(&mut self, spoke: Spoke) {
        let body = match spoke.transcript {
            Some(Ok(transcript)) if transcript.words.is_empty() => SegmentBody::Silence,
            Some(Ok(transcript)) if is_phantom(&transcript, &spoke.stretch) => {
                counter!(names::PHANTOMS).increment(1);
                SegmentBody::Silence
            }
            Some(Ok(transcript)) => {
                let start_ms = spoke.voiced_ms.first().map_or(0, |v| v.0);
                SegmentBody::Speech(Spoken {
                    words: spread(&transcript.words, &spoke.voiced_ms, start_ms),
                    from: spoke.voiced.start,
                    to: spoke.voiced.end,
                    confidence: transcript.confidence,
                    speech_final: spoke.stretch.speech_final,
                    word_times: WordTimes::Estimated,
                    model: self.model.to_string(),
                    decode_ms: spoke.took.as_millis() as u32,
                })
            }
            Some(Err(reason)) => SegmentBody::Gap { reason },
            None => return,
        };
        if spoke.shown && matches!(body, SegmentBody::Silence | SegmentBody::Gap { .. }) {
            self.send(SpeechEvent::Retracted { seq: spoke.seq });
        }
        if let (Some(at), SegmentBody::Speech(Spoken { speech_final: true, .. }), Pace::Live) = (spoke.spoken_at, &body, self.spec.pace) {
            histogram!(names::SPEECH_END_TO_FINAL).record(at.elapsed().as_secs_f64());
        }
        self.send(SpeechEvent::Segment(HeardSegment { seq: spoke.seq, start: spoke.range.start, end: spoke.range.end, body }));
    }

    fn send(&self, event: SpeechEvent) {
        if let Some(events) = &self.events {
            events.send(event);
        }
    }

    /// A position of the run as the channel counts.
    fn pos(&self, at: u64) -> SamplePos {
        self.base + (at * u64::from(self.spec.rate.hz()) / 16_000).min(self.received)
    }

    fn ms(&self, at: u64) -> u64 {
        self.spec.rate.ms_at(self.pos(at))
    }
}

pub(super) fn unscored(error: &DetectError) -> CallError {
    CallError::internal(format!("speech detection: {error}"))
}

/// Text that nobody said: the recognizer finds words in noise and music when the detector lets them through.
fn is_phantom(transcript: &Transcript, stretch: &Stretch) -> bool {
    transcript.confidence < 0.25 || (stretch.certainty < 0.5 && transcript.confidence < 0.5)
}
