//! Decides where utterances start and end, from one score per 32 ms. Time is counted in samples at 16 kHz, so replaying a recording gives
//! the same cuts. Knows nothing of models, queues or sockets.
//!
//! Invariants: the stretches it decides on partition what it was given: each begins where the one before ended; no stretch of speech is
//! longer than the hard cut, its pre-roll included; nothing is ever taken back but a guess.

use super::vad::FRAME;
use contracts::audio::Endpointing;
use std::{collections::VecDeque, ops::Range, time::Duration};

/// Silence shorter than this is a breath; what asks for less acts as [`AT_LEAST`].
const BREATH: Duration = Duration::from_millis(100);
const AT_LEAST: Duration = Duration::from_millis(250);
/// Silence kept after the last voiced frame: the recognizer needs to hear that the sentence is over.
const KEPT: u64 = 16 * 400;
/// A stretch of silence is given up after this long, so that the channel's watermark moves.
const SILENCE: u64 = 16 * 4000;
/// Silence held back besides the pre-roll: a word that is starting is noticed this much later at most.
const MARGIN: u64 = 16 * 200;
/// How far back a cut for length may lie.
const LOOK_BACK: u64 = 16 * 2000;
/// Below this score a cut for length goes between words rather than through one.
const BETWEEN_WORDS: f32 = 0.4;

/// A guess is ready about this much later, and this much per second of speech: about what a busy core takes. What is begun earlier than
/// the end needs is more often begun in vain.
const READY: u64 = 16 * 150;
const READY_PER_SECOND: u64 = 16 * 15;

/// Lengths in samples at 16 kHz.
#[derive(Clone, Debug)]
pub struct Rules {
    pub enter: f32,
    pub exit: f32,
    pub min_speech: u64,
    /// `None`: only length ends an utterance.
    pub silence: Option<u64>,
    /// A pause of this length may be the end; a guess is begun then, or later if it will be ready in time.
    pub speculate: Option<u64>,
    pub pre_roll: u64,
    pub soft_cut: u64,
    pub hard_cut: u64,
    /// (from this length of speech on, a pause of this length cuts when speech goes on after it), longest first.
    pub pauses: Vec<(u64, u64)>,
}

impl Rules {
    /// The pause after which a guess at so much speech is begun: when it will just be ready in time, or when a pause is worth a cut anyway.
    fn guess_after(&self, spoken: u64) -> Option<u64> {
        let in_time = self.silence.map_or(0, |silence| silence.saturating_sub(READY + spoken * READY_PER_SECOND / 16_000));
        let cuts = self.cutting_pause(spoken).unwrap_or(u64::MAX);
        self.speculate.map(|earliest| earliest.max(in_time.min(cuts)))
    }

    /// The pause that cuts so much speech when it goes on afterwards.
    fn cutting_pause(&self, spoken: u64) -> Option<u64> {
        self.pauses.iter().find(|(length, _)| spoken >= *length).map(|(_, pause)| *pause)
    }

    pub fn silence_of(endpointing: Endpointing) -> Option<u64> {
        match endpointing {
            Endpointing::Off => None,
            Endpointing::Silence(time) if time < BREATH => Some(AT_LEAST.as_millis() as u64 * 16),
            Endpointing::Silence(time) => Some((time.as_millis() as u64).min(60_000) * 16),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Speech is certain; `at` is its first voiced sample, `from` where the recognizer should start to hear.
    Started {
        at: u64,
        from: u64,
    },
    /// A pause that is probably the end; what would be heard then ends at `to`.
    Paused {
        to: u64,
    },
    /// It was not the end.
    Resumed,
    Speech(Stretch),
    /// Nothing was said up to `to`.
    Silence {
        to: u64,
    },
}

/// A finished stretch of speech. It covers everything since the stretch before.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// Where the recognizer should start to hear.
    pub from: u64,
    pub to: u64,
    /// Not empty; in order; within `from..to`.
    pub voiced: Vec<Range<u64>>,
    /// Frames that are voiced.
    pub voiced_frames: usize,
    /// The mean score of those.
    pub certainty: f32,
    pub speech_final: bool,
}

pub struct Endpointer {
    rules: Rules,
    /// Samples scored.
    now: u64,
    /// End of the last decided stretch.
    decided: u64,
    open: Option<Open>,
    /// Scores since `scores_from`, one per frame; as far back as a decision may need them.
    scores: VecDeque<f32>,
    scores_from: u64,
    /// Voiced samples in a row while nothing is open.
    candidate: Option<u64>,
    candidate_voiced: u64,
}

struct Open {
    from: u64,
    first_voiced: u64,
    /// End of the last voiced frame.
    voiced_to: u64,
    paused: Option<u64>,
}

impl Endpointer {
    pub fn new(rules: Rules) -> Self {
        Self { rules, now: 0, decided: 0, open: None, scores: VecDeque::new(), scores_from: 0, candidate: None, candidate_voiced: 0 }
    }

    /// Takes the score of the next frame.
    pub fn push(&mut self, score: f32) -> Vec<Decision> {
        let start = self.now;
        self.now += FRAME as u64;
        self.scores.push_back(score);
        let mut decisions = vec![];
        if self.open.is_some() {
            self.go_on(score, &mut decisions)
        } else {
            self.wait(start, score, &mut decisions)
        }
        self.forget();
        decisions
    }

    /// Ends what is open, now: everything up to `to`, which may lie up to a frame beyond the last score. Nothing when nothing is left.
    pub fn close(&mut self, to: u64) -> Option<Decision> {
        if to <= self.decided {
            return None;
        }
        self.now = self.now.max(to);
        // Speech too short to be certain may be the caller's only word.
        if self.open.is_none() && self.candidate_voiced > 0 {
            self.start(self.candidate.unwrap_or(self.decided));
        }
        let decision = match self.open.take() {
            Some(open) => Decision::Speech(self.stretch(open.from, to, true)),
            None => Decision::Silence { to },
        };
        self.reset(to);
        Some(decision)
    }

    /// Starts over at `to`, after a hole in the sound. What came before has been closed.
    pub fn reset(&mut self, to: u64) {
        (self.now, self.decided, self.scores_from) = (to, to, to);
        (self.open, self.candidate, self.candidate_voiced) = (None, None, 0);
        self.scores.clear();
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// End of what has been decided.
    pub fn decided(&self) -> u64 {
        self.decided
    }

    /// Sound before this will not be asked for again.
    pub fn needed_from(&self) -> u64 {
        match &self.open {
            Some(open) => open.from,
            None => self.candidate.unwrap_or(self.now).saturating_sub(self.rules.pre_roll).max(self.decided),
        }
    }

    /// What is voiced in the open utterance so far.
    pub fn voiced(&self) -> Vec<Range<u64>> {
        self.open.as_ref().map_or_else(Vec::new, |open| self.voiced_in(open.from, self.now).0)
    }

    /// Nothing is open: is something starting?
    fn wait(&mut self, start: u64, score: f32, decisions: &mut Vec<Decision>) {
        if score >= self.rules.enter {
            self.candidate.get_or_insert(start);
            self.candidate_voiced += FRAME as u64;
            if self.candidate_voiced >= self.rules.min_speech {
                let at = self.candidate.unwrap_or(start);
                let from = self.start(at);
                decisions.push(Decision::Started { at, from });
            }
        } else if score < self.rules.exit {
            (self.candidate, self.candidate_voiced) = (None, 0);
        }
        if self.open.is_none() && self.candidate.is_none() && self.now - self.decided >= SILENCE {
            let to = self.now - self.rules.pre_roll - MARGIN;
            self.decided = to;
            decisions.push(Decision::Silence { to });
        }
    }

    fn start(&mut self, at: u64) -> u64 {
        let from = at.saturating_sub(self.rules.pre_roll).max(self.decided);
        self.open = Some(Open { from, first_voiced: at, voiced_to: self.now, paused: None });
        (self.candidate, self.candidate_voiced) = (None, 0);
        from
    }

    /// An utterance is open: does it end?
    fn go_on(&mut self, score: f32, decisions: &mut Vec<Decision>) {
        let Some(open) = &mut self.open else { return };
        let in_pause = self.now - FRAME as u64 > open.voiced_to;
        let voiced = score >= if in_pause { self.rules.enter } else { self.rules.exit };
        if voiced {
            let pause = self.now - FRAME as u64 - open.voiced_to;
            let spoken = open.voiced_to - open.first_voiced;
            let guess = open.paused.take();
            let between = guess.unwrap_or(open.voiced_to + pause / 2);
            open.voiced_to = self.now;
            if in_pause && self.rules.cutting_pause(spoken).is_some_and(|enough| pause >= enough) {
                self.cut(between, decisions);
            } else if guess.is_some() {
                decisions.push(Decision::Resumed);
            }
        } else {
            let pause = self.now - open.voiced_to;
            let spoken = open.voiced_to - open.first_voiced;
            if open.paused.is_none() && self.rules.guess_after(spoken).is_some_and(|after| pause >= after) {
                open.paused = Some(self.now);
                decisions.push(Decision::Paused { to: self.now });
            }
            if self.rules.silence.is_some_and(|silence| pause >= silence) {
                let to = open.voiced_to + pause.min(KEPT.max(self.rules.speculate.unwrap_or(0)));
                decisions.push(Decision::Speech(self.stretch_of_open(to, true)));
                self.open = None;
                self.decided = to;
                return;
            }
        }
        // A pause that silence may still end is not cut for length: whoever waits for the end of speech would wait in vain.
        self.cut_for_length(voiced || self.rules.silence.is_none(), decisions);
    }

    fn cut_for_length(&mut self, softly: bool, decisions: &mut Vec<Decision>) {
        let Some(open) = &self.open else { return };
        let length = self.now - open.from;
        if length < self.rules.soft_cut {
            return;
        }
        let (to, lowest) = self.quietest(self.now.saturating_sub(LOOK_BACK).max(open.from + FRAME as u64));
        if (softly && lowest < BETWEEN_WORDS) || length + FRAME as u64 > self.rules.hard_cut {
            self.cut(to, decisions);
        }
    }

    /// The middle of the frame with the lowest score (of it and its neighbors) since `from`, and that score.
    fn quietest(&self, from: u64) -> (u64, f32) {
        let first = (from.saturating_sub(self.scores_from) as usize).div_ceil(FRAME);
        let mut best = (self.now, f32::MAX);
        for i in first.max(1)..self.scores.len().saturating_sub(1) {
            let score = 0.25 * self.scores[i - 1] + 0.5 * self.scores[i] + 0.25 * self.scores[i + 1];
            if score <= best.1 {
                best = (self.scores_from + (i * FRAME + FRAME / 2) as u64, score);
            }
        }
        best
    }

    /// Ends the open utterance at `to`, in the past; what was voiced after it is the beginning of the next.
    fn cut(&mut self, to: u64, decisions: &mut Vec<Decision>) {
        let (voiced, ..) = self.voiced_in(to, self.now);
        decisions.push(Decision::Speech(self.stretch_of_open(to, voiced.is_empty())));
        self.decided = to;
        (self.candidate, self.candidate_voiced) = (None, 0);
        self.open = voiced.first().zip(voiced.last()).map(|(first, last)| {
            decisions.push(Decision::Started { at: first.start, from: to });
            Open { from: to, first_voiced: first.start, voiced_to: last.end, paused: None }
        });
    }

    fn stretch_of_open(&self, to: u64, speech_final: bool) -> Stretch {
        let from = self.open.as_ref().map_or(self.decided, |open| open.from);
        self.stretch(from, to, speech_final)
    }

    fn stretch(&self, from: u64, to: u64, speech_final: bool) -> Stretch {
        let (mut voiced, voiced_frames, certainty) = self.voiced_in(from, to);
        if voiced.is_empty() {
            voiced.push(from..to);
        }
        Stretch { from, to, voiced, voiced_frames, certainty, speech_final }
    }

    /// Voiced stretches between two positions, how many frames they are, and their mean score.
    fn voiced_in(&self, from: u64, to: u64) -> (Vec<Range<u64>>, usize, f32) {
        let mut voiced: Vec<Range<u64>> = vec![];
        let (mut frames, mut sum) = (0, 0.0);
        let mut speaking = false;
        for (i, score) in self.scores.iter().enumerate() {
            let start = self.scores_from + (i * FRAME) as u64;
            speaking = *score >= if speaking { self.rules.exit } else { self.rules.enter };
            let (start, end) = (start.max(from), (start + FRAME as u64).min(to));
            if !speaking || start >= end {
                continue;
            }
            frames += 1;
            sum += score;
            match voiced.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => voiced.push(start..end),
            }
        }
        (voiced, frames, sum / frames.max(1) as f32)
    }

    fn forget(&mut self) {
        let needed = self.needed_from();
        while self.scores_from + (FRAME as u64) < needed && !self.scores.is_empty() {
            self.scores.pop_front();
            self.scores_from += FRAME as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> Rules {
        Rules {
            enter: 0.5,
            exit: 0.3,
            min_speech: 1024,
            silence: Some(16 * 300),
            speculate: Some(16 * 96),
            pre_roll: 16 * 500,
            soft_cut: 16 * 8000,
            hard_cut: 16 * 12_000,
            pauses: vec![(16 * 6000, 16 * 128)],
        }
    }

    /// The scores of a drawing: each sign stands for 96 ms, three frames.
    fn scores(drawing: &str) -> Vec<f32> {
        drawing
            .chars()
            .filter(|c| *c != '|')
            .flat_map(|c| {
                [match c {
                    '#' => 0.9,
                    '+' => 0.45,
                    '-' => 0.2,
                    _ => 0.05,
                }; 3]
            })
            .collect()
    }

    /// `#` is 96 ms of speech, `.` of silence; `|` stands where an utterance must be decided to have ended. Silence: 300 ms.
    #[track_caller]
    fn check(drawing: &str) {
        let mut endpointer = Endpointer::new(rules());
        let mut seen = String::new();
        let mut frames = 0;
        for c in drawing.chars().filter(|c| *c != '|') {
            let mut ended = false;
            for score in scores(&c.to_string()) {
                frames += 1;
                ended |= endpointer.push(score).iter().any(|d| matches!(d, Decision::Speech(s) if s.speech_final));
            }
            seen.push(c);
            if ended {
                seen.push('|');
            }
        }
        assert_eq!(seen, drawing, "after {frames} frames");
    }

    fn decisions(endpointer: &mut Endpointer, drawing: &str) -> Vec<Decision> {
        scores(drawing).into_iter().flat_map(|s| endpointer.push(s)).collect()
    }

    #[test]
    fn a_pause_ends_an_utterance() {
        check("###....|...###....|");
    }

    #[test]
    fn a_short_pause_keeps_the_utterance_open() {
        check("###..###....|");
    }

    #[test]
    fn a_short_yes_is_heard() {
        check(".....#....|....");
    }

    #[test]
    fn between_the_thresholds_speech_goes_on_but_does_not_begin() {
        check("###++++###....|");
        check("..++++++....");
    }

    #[test]
    fn endpointing_below_a_breath_acts_as_a_quarter_of_a_second() {
        assert_eq!(Rules::silence_of(Endpointing::Silence(Duration::from_millis(10))), Some(4000));
        assert_eq!(Rules::silence_of(Endpointing::Silence(Duration::from_millis(100))), Some(1600));
        assert_eq!(Rules::silence_of(Endpointing::Off), None);
    }

    #[test]
    fn the_recognizer_hears_half_a_second_before_the_first_sound_but_nothing_twice() {
        let mut endpointer = Endpointer::new(rules());
        let heard: Vec<_> = decisions(&mut endpointer, "..........###....##....")
            .into_iter()
            .filter_map(|d| match d {
                Decision::Speech(s) => Some((s.from, s.to, s.voiced)),
                _ => None,
            })
            .collect();
        let first_voiced = 10 * 1536;
        let first_to = 13 * 1536 + 10 * 512; // ten frames are the first beyond 300 ms
        assert_eq!(heard[0], (first_voiced - 8000, first_to, std::iter::once(first_voiced..13 * 1536).collect()));
        assert_eq!(heard[1].0, first_to, "the second starts where the first ended, not half a second before its first sound");
    }

    #[test]
    fn a_pause_is_guessed_to_be_the_end_and_the_guess_is_taken_back() {
        let mut endpointer = Endpointer::new(rules());
        let seen = decisions(&mut endpointer, "###...#");
        assert_eq!(seen[1..], [Decision::Paused { to: 3 * 1536 + 5 * 512 }, Decision::Resumed]);
    }

    #[test]
    fn the_more_was_said_the_earlier_the_guess_so_that_it_is_ready_in_time() {
        let guessed = |rules: Rules, speech: usize| {
            let seen = decisions(&mut Endpointer::new(rules), &format!("{}......", "#".repeat(speech)));
            let paused = seen.iter().find_map(|d| if let Decision::Paused { to } = d { Some(*to) } else { None });
            paused.expect("a pause is guessed to be the end") - speech as u64 * 1536
        };
        assert!(guessed(rules(), 50) < guessed(rules(), 5));
        let patient = || Rules { silence: Some(16 * 500), ..rules() };
        assert!(guessed(patient(), 5) > guessed(rules(), 5), "who waits longer for silence has more time");
        assert_eq!(guessed(Rules { silence: None, ..rules() }, 5), 1536, "without an end to be in time for, at once");
    }

    #[test]
    fn in_long_speech_a_short_pause_cuts_where_the_guess_ended() {
        let mut endpointer = Endpointer::new(Rules { silence: Some(16 * 500), ..rules() });
        let seen = decisions(&mut endpointer, &format!("{}..##", "#".repeat(64)));
        let to = 64 * 1536 + 4 * 512; // where the pause is long enough for a cut
        assert!(matches!(&seen[1], Decision::Paused { to: t } if *t == to));
        assert!(matches!(&seen[2], Decision::Speech(s) if s.to == to && !s.speech_final), "{seen:?}");
        assert!(matches!(&seen[3], Decision::Started { from, .. } if *from == to));
    }

    #[test]
    fn speech_without_a_pause_is_cut_between_words_or_at_twelve_seconds() {
        let mut endpointer = Endpointer::new(rules());
        let seen = decisions(&mut endpointer, &format!("{}-{}", "#".repeat(80), "#".repeat(20)));
        let Some(Decision::Speech(soft)) = seen.iter().find(|d| matches!(d, Decision::Speech(_))) else { panic!("no cut") };
        assert!((80 * 1536..81 * 1536).contains(&soft.to) && !soft.speech_final, "{soft:?}");

        let mut endpointer = Endpointer::new(rules());
        let seen = decisions(&mut endpointer, &"#".repeat(140));
        let Some(Decision::Speech(hard)) = seen.iter().find(|d| matches!(d, Decision::Speech(_))) else { panic!("no cut") };
        assert!(hard.to - hard.from > 16 * 9500 && hard.to - hard.from <= 16 * 12_000, "{hard:?}");
    }

    #[test]
    fn a_pause_in_long_speech_still_ends_with_the_end_of_speech() {
        check(&format!("{}....|", "#".repeat(82)));
    }

    #[test]
    fn silence_moves_on_but_leaves_the_pre_roll() {
        let mut endpointer = Endpointer::new(rules());
        let seen = decisions(&mut endpointer, &".".repeat(45));
        let Some(Decision::Silence { to }) = seen.first() else { panic!("no silence") };
        assert_eq!(*to, 125 * 512 - 16 * 700);
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn closing_says_what_was_open_and_the_last_unfinished_frame() {
        let mut endpointer = Endpointer::new(rules());
        decisions(&mut endpointer, "..##");
        let Some(Decision::Speech(stretch)) = endpointer.close(4 * 1536 + 100) else { panic!("nothing was open") };
        assert_eq!((stretch.from, stretch.to, stretch.speech_final), (0, 4 * 1536 + 100, true));
        assert_eq!(endpointer.close(4 * 1536 + 100), None);
        assert_eq!(endpointer.close(4 * 1536 + 200), Some(Decision::Silence { to: 4 * 1536 + 200 }));
    }

    #[test]
    fn closing_right_after_the_first_sound_does_not_lose_it() {
        let mut endpointer = Endpointer::new(rules());
        assert_eq!(endpointer.push(0.9), []);
        assert!(matches!(endpointer.close(512), Some(Decision::Speech(_))));
    }

    proptest! {
        /// Any scores, closed at any moments: the stretches follow each other without a hole, speech never exceeds the hard cut.
        #[test]
        fn stretches_partition_the_sound(
            runs in proptest::collection::vec((0.0f32..1.0, 1usize..200), 1..40),
            closings in proptest::collection::vec(0usize..4000, 0..5),
            endpointing in proptest::option::of(1600u64..20_000),
        ) {
            let mut endpointer = Endpointer::new(Rules { silence: endpointing, ..rules() });
            let mut end = 0;
            let mut pushed = 0u64;
            let mut follow = |decision: &Decision, pushed: u64| -> Result<(), TestCaseError> {
                match decision {
                    Decision::Silence { to } => {
                        prop_assert!(*to > end && *to <= pushed);
                        end = *to;
                    }
                    Decision::Speech(s) => {
                        prop_assert!(s.from >= end && s.to > s.from && s.to <= pushed, "{s:?} after {end}");
                        prop_assert!(s.to - s.from <= 16 * 12_000 + 512);
                        prop_assert!(s.voiced.iter().all(|v| v.start >= s.from && v.end <= s.to && v.start < v.end));
                        end = s.to;
                    }
                    Decision::Started { from, .. } => prop_assert!(*from >= end),
                    _ => {}
                }
                Ok(())
            };
            let mut frame = 0;
            for (score, length) in runs {
                for _ in 0..length {
                    pushed += 512;
                    for decision in endpointer.push(score) {
                        follow(&decision, pushed)?;
                    }
                    frame += 1;
                    if closings.contains(&frame) && let Some(decision) = endpointer.close(pushed) { follow(&decision, pushed)?; }
                }
            }
            if let Some(decision) = endpointer.close(pushed) {
                follow(&decision, pushed)?;
            }
            prop_assert_eq!(end, pushed);
        }
    }
}
