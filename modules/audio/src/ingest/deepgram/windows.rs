//! A conversation's events as Deepgram's messages: windows that follow each other without a hole, on each channel by itself.
//!
//! - An interim keeps its window's `start`; a final closes the window, and the next begins where it ended.
//! - Each Finalize is answered by one final marked `from_finalize`, empty when nothing was pending.
//! - UtteranceEnd comes after the last final of an utterance, once.
//!
//! Pure: counts samples, reads no clock, knows no socket.

use super::{
    super::audience::{Event, Final, Partial},
    messages::{Alternative, Alternatives, Message, ResultMetadata, Results, seconds, seconds_between, thousandths},
};
use contracts::{SamplePos, SampleRate};
use std::{sync::Arc, time::Duration};

pub(super) struct Windows {
    pub(super) interims: bool,
    pub(super) speech_started: bool,
    pub(super) utterance_end: Option<Duration>,
    pub(super) rate: SampleRate,
    pub(super) metadata: Arc<ResultMetadata>,
    channels: Vec<Window>,
}

#[derive(Default)]
struct Window {
    start: SamplePos,
    /// Unanswered finalizes.
    finalizes: usize,
    /// The last final, held back while it may turn out to be the answer to a finalize.
    held: Option<Final>,
    /// An interim with words was shown, up to here.
    shown: Option<SamplePos>,
    /// The last final did not end its utterance.
    unfinished: bool,
    /// Where the speech that is going on began.
    speaking: Option<SamplePos>,
    /// End of the last word sent as final, in ms, until its UtteranceEnd is sent.
    last_word_ms: Option<u32>,
    over: bool,
}

impl Windows {
    pub(super) fn new(channels: usize, rate: SampleRate, metadata: Arc<ResultMetadata>) -> Self {
        let channels = (0..channels).map(|_| Window::default()).collect();
        Self { interims: false, speech_started: false, utterance_end: None, rate, metadata, channels }
    }

    /// A finalize is on its way on this channel.
    pub(super) fn finalize(&mut self, channel: usize) {
        self.channels[channel].finalizes += 1;
    }

    /// Everything received has been told on every channel.
    pub(super) fn are_over(&self) -> bool {
        self.channels.iter().all(|window| window.over)
    }

    /// What an event means to the caller, appended to `out`. Events of another nature mean nothing here.
    pub(super) fn hear(&mut self, event: Event, out: &mut Vec<Message>) {
        match event {
            Event::Started { channel, at } => {
                let n = usize::from(channel.0);
                self.channels[n].speaking = Some(at);
                if self.speech_started {
                    out.push(Message::SpeechStarted { channel: [n, self.channels.len()], timestamp: seconds(self.rate, at) });
                }
            }
            Event::Partial(partial) => self.interim(&partial, out),
            Event::Final(last) => {
                let n = usize::from(last.channel.0);
                self.release(n, false, out);
                if self.channels[n].finalizes > 0 {
                    self.channels[n].held = Some(last);
                } else {
                    self.last(n, &last, false, out);
                }
            }
            Event::Silence { channel, end } | Event::Gap { channel, end, .. } => {
                let window = &mut self.channels[usize::from(channel.0)];
                window.speaking = window.speaking.filter(|at| *at >= end);
            }
            Event::Retracted { channel, .. } => {
                let n = usize::from(channel.0);
                self.channels[n].speaking = None;
                if let Some(end) = self.channels[n].shown.take() {
                    let empty = self.results(n, end, Alternative::default());
                    out.push(Message::Results(empty)); // takes the words off the caller's screen
                }
            }
            Event::Flushed { channel, end, .. } => {
                let n = usize::from(channel.0);
                self.channels[n].finalizes = self.channels[n].finalizes.saturating_sub(1);
                if !self.release(n, true, out) {
                    self.empty(n, end, true, out);
                }
            }
            Event::Heard { channel, end } => {
                let n = usize::from(channel.0);
                self.release(n, false, out);
                if self.channels[n].start < end {
                    self.empty(n, end, false, out);
                }
                self.end_utterance(n, out);
                self.channels[n].over = true;
            }
            Event::Safe { .. } | Event::Refused { .. } | Event::Ended { .. } | Event::Failed { .. } | Event::Leaving => {}
        }
    }

    /// Each channel's engine has taken in this much: an utterance whose last word is long past has ended.
    pub(super) fn taken_in(&mut self, channel: usize, pos: SamplePos, out: &mut Vec<Message>) {
        let (Some(after), window) = (self.utterance_end, &self.channels[channel]) else { return };
        let Some(last_ms) = window.last_word_ms else { return };
        if window.speaking.is_none() && window.held.is_none() && self.rate.ms_at(pos) >= u64::from(last_ms) + after.as_millis() as u64 {
            self.end_utterance(channel, out);
        }
    }

    fn interim(&mut self, partial: &Partial, out: &mut Vec<Message>) {
        let n = usize::from(partial.channel.0);
        self.channels[n].speaking.get_or_insert(partial.start);
        if !self.interims {
            return;
        }
        self.release(n, false, out);
        self.channels[n].shown = (!partial.words.is_empty()).then_some(partial.end);
        let confidence = mean(partial.words.iter().map(|word| word.confidence));
        out.push(Message::Results(self.results(n, partial.end, Alternative::new(&partial.words, confidence))));
    }

    /// Sends the final that was held back. False: there was none.
    fn release(&mut self, n: usize, from_finalize: bool, out: &mut Vec<Message>) -> bool {
        let Some(held) = self.channels[n].held.take() else { return false };
        self.last(n, &held, from_finalize, out);
        true
    }

    fn last(&mut self, n: usize, last: &Final, from_finalize: bool, out: &mut Vec<Message>) {
        let alternative = Alternative::new(&last.spoken.words, last.spoken.confidence);
        let speech_final = last.spoken.speech_final;
        let results = self.results(n, last.end, alternative);
        out.push(Message::Results(Results { is_final: true, speech_final, from_finalize, ..results }));
        let window = &mut self.channels[n];
        window.start = window.start.max(last.end);
        window.shown = None;
        window.unfinished = !speech_final;
        if speech_final {
            window.speaking = window.speaking.filter(|at| *at >= last.end);
        }
        if let Some(word) = last.spoken.words.last() {
            window.last_word_ms = Some(word.end_ms);
        }
    }

    /// A final without words, up to `end`.
    fn empty(&mut self, n: usize, end: SamplePos, from_finalize: bool, out: &mut Vec<Message>) {
        let end = end.max(self.channels[n].start);
        let results = self.results(n, end, Alternative::default());
        let window = &mut self.channels[n];
        // Whoever joins texts until one is `speech_final` must not wait for ever.
        let speech_final = std::mem::take(&mut window.unfinished);
        window.start = end;
        window.shown = None;
        out.push(Message::Results(Results { is_final: true, speech_final, from_finalize, ..results }));
    }

    fn end_utterance(&mut self, n: usize, out: &mut Vec<Message>) {
        if let Some(last_ms) = self.channels[n].last_word_ms.take()
            && self.utterance_end.is_some()
        {
            out.push(Message::UtteranceEnd { channel: [n, self.channels.len()], last_word_end: thousandths(last_ms) });
        }
    }

    /// An interim of the current window up to `end`.
    fn results(&self, n: usize, end: SamplePos, alternative: Alternative) -> Results {
        let start = self.channels[n].start;
        Results {
            channel_index: [n, self.channels.len()],
            duration: seconds_between(self.rate, start, end),
            start: seconds(self.rate, start),
            is_final: false,
            speech_final: false,
            channel: Alternatives { alternatives: vec![alternative] },
            metadata: self.metadata.clone(),
            from_finalize: false,
        }
    }
}

pub(super) fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{
        ChannelIndex, TraceCx, UtteranceId,
        audio::{ModelInfo, Spoken, Word, WordTimes},
    };
    use uuid::Uuid;

    const MS: u64 = 8; // samples per millisecond at 8 kHz

    fn windows(channels: usize) -> Windows {
        let model = ModelInfo { name: "m".into(), version: "1".into(), family: "f".into() };
        let metadata = Arc::new(ResultMetadata::new(Uuid::nil(), "nova", &model));
        let windows = Windows::new(channels, SampleRate::HZ_8000, metadata);
        Windows { interims: true, speech_started: true, utterance_end: Some(Duration::from_secs(1)), ..windows }
    }

    fn word(text: &str, end_ms: u32) -> Word {
        Word { text: text.into(), start_ms: end_ms - 100, end_ms, confidence: 0.5 }
    }

    fn partial(text: &str, start_ms: u64, end_ms: u64) -> Event {
        let words = vec![word(text, end_ms as u32)];
        let (channel, utterance) = (ChannelIndex(0), UtteranceId::from_u128(1));
        let (start, end) = (SamplePos(start_ms * MS), SamplePos(end_ms * MS));
        Event::Partial(Partial { channel, utterance, rev: 1, start, end, words, stable_words: 0 })
    }

    fn last(text: &str, start_ms: u64, end_ms: u64, speech_final: bool) -> Event {
        let (start, end) = (SamplePos(start_ms * MS), SamplePos(end_ms * MS));
        let spoken = Spoken {
            words: vec![word(text, end_ms as u32 - 50)],
            from: start,
            to: end,
            confidence: 0.5,
            speech_final,
            word_times: WordTimes::Estimated,
            model: "m 1".into(),
            decode_ms: 1,
        };
        Event::Final(Final { channel: ChannelIndex(0), utterance: UtteranceId::from_u128(1), seq: 0, end, spoken, trace: TraceCx::root() })
    }

    fn flushed(end_ms: u64) -> Event {
        Event::Flushed { channel: ChannelIndex(0), token: 1, end: SamplePos(end_ms * MS) }
    }

    /// A message as one short line.
    fn line(message: &Message) -> String {
        match message {
            Message::Results(r) => {
                let kind = match (r.is_final, r.speech_final) {
                    (false, false) => "interim",
                    (true, false) => "final",
                    (true, true) => "speech_final",
                    (false, true) => "IMPOSSIBLE",
                };
                let finalized = if r.from_finalize { " finalized" } else { "" };
                let text = &r.channel.alternatives[0].transcript;
                format!("{kind} {:.2}+{:.2} {text:?}{finalized}", r.start, r.duration)
            }
            Message::SpeechStarted { timestamp, .. } => format!("started {timestamp:.2}"),
            Message::UtteranceEnd { last_word_end, .. } => format!("end {last_word_end:.2}"),
            Message::Metadata(_) => "metadata".into(),
        }
    }

    #[track_caller]
    fn check(windows: &mut Windows, events: Vec<Event>, expected: &[&str]) {
        let mut out = vec![];
        events.into_iter().for_each(|event| windows.hear(event, &mut out));
        assert_eq!(out.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn speech_comes_in_the_order_the_sdks_expect() {
        let mut windows = windows(1);
        let at = |ms: u64| SamplePos(ms * MS);
        let events = vec![
            Event::Started { channel: ChannelIndex(0), at: at(500) },
            Event::Silence { channel: ChannelIndex(0), end: at(400) },
            partial("Ship", 400, 900),
            partial("Ship it", 400, 1200),
            last("Ship it.", 400, 1500, true),
        ];
        let expected =
            ["started 0.50", "interim 0.00+0.90 \"Ship\"", "interim 0.00+1.20 \"Ship it\"", "speech_final 0.00+1.50 \"Ship it.\""];
        check(&mut windows, events, &expected);
        let mut out = vec![];
        windows.taken_in(0, at(2400), &mut out);
        assert_eq!(out, [], "the last word ended 950 ms ago");
        windows.taken_in(0, at(2450), &mut out);
        windows.taken_in(0, at(9000), &mut out);
        assert_eq!(out.iter().map(line).collect::<Vec<_>>(), ["end 1.45"]);
        check(&mut windows, vec![partial("And", 2000, 2600)], &["interim 1.50+1.10 \"And\""]);
    }

    #[test]
    fn speech_going_on_keeps_the_utterance_open() {
        let mut windows = windows(1);
        let started = Event::Started { channel: ChannelIndex(0), at: SamplePos(1600 * MS) };
        check(&mut windows, vec![last("one", 0, 1000, true), started], &["speech_final 0.00+1.00 \"one\"", "started 1.60"]);
        let mut out = vec![];
        windows.taken_in(0, SamplePos(5000 * MS), &mut out);
        assert_eq!(out, []);
    }

    #[test]
    fn a_finalize_is_always_answered_once() {
        let mut windows = windows(1);
        windows.finalize(0);
        check(&mut windows, vec![flushed(700)], &["final 0.00+0.70 \"\" finalized"]);
        windows.finalize(0);
        let events = vec![last("one", 700, 1000, false), last("two", 1000, 1500, true), flushed(1500)];
        check(&mut windows, events, &["final 0.70+0.30 \"one\"", "speech_final 1.00+0.50 \"two\" finalized"]);
        windows.finalize(0);
        windows.finalize(0);
        let events = vec![last("three", 1500, 2000, false), flushed(2000), flushed(2000)];
        check(&mut windows, events, &["final 1.50+0.50 \"three\" finalized", "speech_final 2.00+0.00 \"\" finalized"]);
    }

    #[test]
    fn the_end_says_everything_and_then_the_utterance_end() {
        let mut windows = windows(1);
        let heard = Event::Heard { channel: ChannelIndex(0), end: SamplePos(3000 * MS) };
        let expected = ["speech_final 0.00+1.00 \"one\"", "final 1.00+2.00 \"\"", "end 0.95"];
        check(&mut windows, vec![last("one", 0, 1000, true), heard], &expected);
        assert!(windows.are_over());
    }

    #[test]
    fn a_retracted_interim_is_cleared() {
        let mut windows = windows(1);
        let retracted = || Event::Retracted { channel: ChannelIndex(0), utterance: UtteranceId::from_u128(1) };
        let expected = ["interim 0.00+0.50 \"um\"", "interim 0.00+0.50 \"\""];
        check(&mut windows, vec![partial("um", 0, 500), retracted(), retracted()], &expected);
    }
}
