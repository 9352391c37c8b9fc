//! Hears sums instead of words: each stretch of audio becomes one segment whose single word is the sum of its bytes.

use super::behavior::{Behavior, Conduct};
use crate::{
    Audio, CallCx, CallError, SamplePos,
    audio::{
        CREDIT, EventTx, Frame, HeardSegment, Input, ModelInfo, SegmentBody, Session, SessionInfo, SpeechEvent, Spoken, StreamSpec, Word,
        WordTimes,
    },
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Cuts every [`FakeAudio::cut`] of audio into a segment: silence when all its bytes are 0, else the word [`FakeAudio::hears`].
/// A hole becomes a gap, overlap is dropped, `finalize` and `finish` flush what is pending. Same input, same segments, anywhere.
#[derive(Clone, Serialize, Deserialize)]
pub struct FakeAudio {
    cut: Duration,
    /// Each second of audio takes this long to hear.
    pace: Duration,
    /// After this much audio the session fails or panics.
    breaks: Option<(Duration, Break)>,
    #[serde(skip)]
    conduct: Arc<Conduct>,
}

#[derive(Clone, Serialize, Deserialize)]
enum Break {
    Fail(CallError),
    Panic(Cow<'static, str>),
}

impl Default for FakeAudio {
    fn default() -> Self {
        Self { cut: Duration::from_millis(100), pace: Duration::ZERO, breaks: None, conduct: Arc::default() }
    }
}

impl FakeAudio {
    /// Audio per segment; 100 ms unless told.
    #[must_use]
    pub fn cut(mut self, cut: Duration) -> Self {
        self.cut = cut;
        self
    }

    /// Every second of audio takes `time` to hear; none unless told.
    #[must_use]
    pub fn slow(mut self, time: Duration) -> Self {
        self.pace = time;
        self
    }

    /// Sessions end with `error` after this much audio.
    #[must_use]
    pub fn failing_after(mut self, audio: Duration, error: CallError) -> Self {
        self.breaks = Some((audio, Break::Fail(error)));
        self
    }

    /// The session's task panics after this much audio: its events are dropped unended.
    #[must_use]
    pub fn panicking_after(mut self, audio: Duration, text: &'static str) -> Self {
        self.breaks = Some((audio, Break::Panic(text.into())));
        self
    }

    /// What `open` does from now on.
    pub fn behave(&self, behavior: Behavior) {
        self.conduct.behave(behavior)
    }

    /// Contexts of all openings so far.
    pub fn seen(&self) -> Vec<CallCx> {
        self.conduct.seen()
    }

    /// Openings and sessions now under way.
    pub fn running(&self) -> usize {
        self.conduct.running()
    }

    pub fn conduct(&self) -> Arc<Conduct> {
        self.conduct.clone()
    }

    /// The word it hears in a stretch of audio.
    pub fn hears(audio: &[u8]) -> String {
        audio.iter().map(|b| u64::from(*b)).sum::<u64>().to_string()
    }
}

#[async_trait]
impl Audio for FakeAudio {
    async fn open(&self, cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let running = self.conduct.enter();
        self.conduct.act(&cx).await?;
        if !spec.language.starts_with("en") {
            return Err(CallError::invalid(format!("no model for language {:?}: expected en", spec.language)));
        }
        let model = ModelInfo { name: "fake".into(), version: "1".into(), family: "sum".into() };
        let (inputs, queue) = mpsc::unbounded_channel(); // holds at most the session's credit of audio
        let sink = move |input| {
            let _ = inputs.send(input); // the session has ended: nobody cares
        };
        let (session, events) = Session::pair(&spec, SessionInfo { model, credit: CREDIT }, Arc::new(sink));
        let hearing = Hearing {
            fake: self.clone(),
            cut_bytes: (spec.rate.samples_in(self.cut) as usize).max(1) * spec.encoding.bytes_per_sample(),
            seq: spec.first_seq,
            rev: 0,
            from: spec.start,
            pending: BytesMut::new(),
            heard: 0,
            spec,
            events,
            inputs: Inputs { queue, set_aside: VecDeque::new() },
        };
        tokio::spawn(async move {
            hearing.run().await;
            drop(running);
        });
        Ok(session)
    }
}

struct Hearing {
    fake: FakeAudio,
    spec: StreamSpec,
    cut_bytes: usize,
    seq: u64,
    rev: u32,
    /// Start of the pending segment.
    from: SamplePos,
    pending: BytesMut,
    /// Samples taken so far.
    heard: u64,
    events: EventTx,
    inputs: Inputs,
}

impl Hearing {
    async fn run(mut self) {
        loop {
            match self.inputs.next().await {
                Input::Frame(frame) => {
                    if self.events.is_full() && !self.inputs.drained().await {
                        return;
                    }
                    let bytes = frame.data.len();
                    let seconds = self.spec.rate.time_of((bytes / self.width()) as u64).as_secs_f64();
                    if !self.fake.pace.is_zero() {
                        tokio::select! {
                            () = tokio::time::sleep(self.fake.pace.mul_f64(seconds)) => {}
                            () = self.inputs.abandoned() => return,
                        }
                    }
                    self.hear(frame);
                    self.events.consumed(bytes);
                    if let Some((after, how)) = &self.fake.breaks
                        && self.heard >= self.spec.rate.samples_in(*after)
                    {
                        match how.clone() {
                            Break::Fail(error) => return self.events.fail(error),
                            Break::Panic(text) => panic!("{text}"),
                        }
                    }
                }
                Input::Finalize { token } => {
                    self.flush();
                    self.events.send(SpeechEvent::Flushed { token });
                }
                Input::Finish => {
                    self.flush();
                    return self.events.end();
                }
                Input::Abandon => return,
                Input::Drained => {}
            }
        }
    }

    fn width(&self) -> usize {
        self.spec.encoding.bytes_per_sample()
    }

    /// One past the last sample taken.
    fn until(&self) -> SamplePos {
        self.from + (self.pending.len() / self.width()) as u64
    }

    fn hear(&mut self, Frame { pos, mut data }: Frame) {
        let expected = self.until();
        let overlap = (expected.since(pos) as usize * self.width()).min(data.len());
        drop(data.split_to(overlap));
        if data.is_empty() {
            return;
        }
        if pos > expected {
            self.flush();
            self.segment(pos, SegmentBody::Gap { reason: "never arrived".into() });
        }
        self.heard += (data.len() / self.width()) as u64;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(self.cut_bytes - self.pending.len()));
            if self.pending.is_empty() {
                self.events.send(SpeechEvent::Started { at: self.from });
            }
            self.pending.extend_from_slice(&piece);
            if self.pending.len() == self.cut_bytes {
                self.flush();
            } else if self.spec.partials.is_some() {
                self.rev += 1;
                let words = vec![self.word(&self.pending)];
                self.events.send(SpeechEvent::Partial {
                    seq: self.seq,
                    rev: self.rev,
                    start: self.from,
                    end: self.until(),
                    words,
                    stable_words: 0,
                });
            }
        }
    }

    fn word(&self, audio: &[u8]) -> Word {
        Word {
            text: FakeAudio::hears(audio),
            start_ms: self.spec.rate.ms_at(self.from) as u32,
            end_ms: self.spec.rate.ms_at(self.until()) as u32,
            confidence: 1.0,
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let end = self.until();
        let audio: Bytes = std::mem::take(&mut self.pending).freeze();
        let body = if audio.iter().all(|b| *b == 0) {
            SegmentBody::Silence
        } else {
            let mut word = self.word(&audio);
            word.end_ms = self.spec.rate.ms_at(end) as u32;
            SegmentBody::Speech(Spoken {
                words: vec![word],
                from: self.from,
                to: end,
                confidence: 1.0,
                speech_final: true,
                word_times: WordTimes::Model,
                model: "fake 1".into(),
                decode_ms: 0,
            })
        };
        self.segment(end, body);
    }

    fn segment(&mut self, end: SamplePos, body: SegmentBody) {
        self.events.send(SpeechEvent::Segment(HeardSegment { seq: self.seq, start: self.from, end, body }));
        self.seq += 1;
        self.rev = 0;
        self.from = end;
    }
}

struct Inputs {
    queue: mpsc::UnboundedReceiver<Input>,
    /// Came while waiting for the reader.
    set_aside: VecDeque<Input>,
}

impl Inputs {
    async fn next(&mut self) -> Input {
        match self.set_aside.pop_front() {
            Some(input) => input,
            None => self.queue.recv().await.unwrap_or(Input::Abandon),
        }
    }

    /// Waits until nobody wants the session any more. Cancel-safe.
    async fn abandoned(&mut self) {
        while let Some(input) = self.queue.recv().await {
            if input == Input::Abandon {
                return;
            }
            self.set_aside.push_back(input);
        }
    }

    /// Waits until the reader has caught up; false when nobody reads any more.
    async fn drained(&mut self) -> bool {
        loop {
            match self.queue.recv().await {
                Some(Input::Drained) => return true,
                Some(Input::Abandon) | None => return false,
                Some(other) => self.set_aside.push_back(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        crate::testing::audio_suite(Arc::new(FakeAudio::default()), crate::testing::Sound::noise()).await;
    }
}
