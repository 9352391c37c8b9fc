//! Sound whose samples say whose they are and where they stand, and a recognizer that says what it heard of it.
//!
//! A voiced sample holds half of its position's number, an even one the lower half, an odd one the upper half and whose voice it is; the
//! sign tells them apart. Silence is zeros. What is lost, doubled, moved or mixed up between a caller and the record shows in the words, to
//! the sample. Between them is the engine of the product with its real cuts, at 16 kHz and in linear16, where samples arrive as they were sent.

use audio::engine::{
    Engine,
    recognizer::{HeardWord, RecognizeError, Recognizer, Transcript},
    vad::{DetectError, Detector, FRAME, Memory},
};
use bytes::Bytes;
use contracts::audio::ModelInfo;
use platform::onnx::{ModelError, Runtime};
use quickcomm::config::Config;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{collections::VecDeque, ops::Range};

/// Voices and silences begin and end on the detector's frames, so that cuts do not depend on where a stream was taken up.
pub const BLOCK: u64 = FRAME as u64;
/// How many can be told apart.
pub const VOICES: u32 = 32;
/// Silence that ends an utterance, in ms; so much that an utterance ends on a frame.
pub const ENDPOINTING_MS: u32 = 250;
/// What every sample is louder than.
const LOUD: i32 = 1024;
/// Bits of the number in an even sample, and in an odd one.
const LOW: u32 = 14;
const HIGH: u32 = 9;
/// Of words, in blocks.
const SHORTEST: u64 = 12;
/// Something that a classifier finds a meaning in.
const PHRASES: [&str; 6] = [
    "I want to cancel my contract",
    "what does that cost",
    "thank you very much",
    "my internet is not working",
    "I am really angry about this",
    "could you change my address please",
];

/// What a voice holds at a position.
fn sample(voice: u32, at: u64) -> i16 {
    let pair = (at / 2) as u32;
    let held = match at % 2 {
        0 => LOUD + (pair & ((1 << LOW) - 1)) as i32,
        _ => -(LOUD + ((voice % VOICES) << HIGH | (pair >> LOW) & ((1 << HIGH) - 1)) as i32),
    };
    held as i16
}

/// What an even sample and the odd one after it say: voice and position.
fn said(even: i32, odd: i32) -> Option<(u32, u64)> {
    let low = u32::try_from(even - LOUD).ok().filter(|low| *low < 1 << LOW)?;
    let high = u32::try_from(-odd - LOUD).ok().filter(|high| *high < VOICES << HIGH)?;
    Some((high >> HIGH, u64::from((high & ((1 << HIGH) - 1)) << LOW | low) * 2))
}

/// Stretches of a voice in a piece of sound.
pub fn heard(pcm: &[i32]) -> Vec<Option<(u32, Range<u64>)>> {
    let mut stretches: Vec<Option<(u32, Range<u64>)>> = vec![];
    let mut goes_on = false;
    for (n, value) in pcm.iter().enumerate() {
        if *value == 0 {
            goes_on = false;
            continue;
        }
        if let Some(Some((voice, range))) = stretches.last_mut()
            && goes_on
            && *value == i32::from(sample(*voice, range.end))
        {
            range.end += 1;
            continue;
        }
        let even = if *value > 0 { n } else { n + 1 };
        let pair = pcm.get(even).zip(pcm.get(even + 1));
        let begun = pair.and_then(|(even, odd)| said(*even, *odd)).and_then(|(voice, at)| {
            let at = at.checked_sub((even - n) as u64)?;
            (i32::from(sample(voice, at)) == *value).then_some((voice, at..at + 1))
        });
        goes_on = begun.is_some();
        // A stretch of noise is told once.
        if begun.is_some() || !matches!(stretches.last(), Some(None)) {
            stretches.push(begun);
        }
    }
    stretches
}

/// A stretch as words: whose and which samples, in one word, and a phrase.
fn words(stretch: &Option<(u32, Range<u64>)>) -> String {
    match stretch {
        Some((voice, Range { start, end })) => {
            format!("voice{voice}from{start}to{end} {}", PHRASES[(start / BLOCK) as usize % PHRASES.len()])
        }
        None => "noise".into(),
    }
}

/// What a text says was heard.
///
/// # Panics
/// When it tells of noise, or of anything that the recognizer does not say.
pub fn told(text: &str) -> Vec<(u32, Range<u64>)> {
    let number = |digits: &str| -> u64 { digits.parse().unwrap_or_else(|_| panic!("{text:?} tells of no stretch")) };
    assert!(!text.contains("noise"), "{text:?}");
    let codes = text.split(' ').filter_map(|word| word.strip_prefix("voice"));
    codes
        .map(|code| {
            let (voice, range) = code.split_once("from").expect("a voice is from somewhere");
            let (start, end) = range.split_once("to").expect("and to somewhere");
            (number(voice) as u32, number(start)..number(end))
        })
        .collect()
}

/// The engine of the product with ears that count.
pub fn engine(config: &Config, _: Result<&Runtime, &ModelError>) -> anyhow::Result<Engine> {
    let model = ModelInfo { name: "counting".into(), version: "1".into(), family: "counting".into() };
    Ok(Engine::hearing_with(model, &config.audio.engine, || Ok((Loudness::default(), Counting)))?)
}

/// Whether there is anything.
#[derive(Default)]
struct Loudness {
    put: Vec<f32>,
    scores: Vec<f32>,
}

impl Detector for Loudness {
    fn put(&mut self, _: &mut Memory, frame: &[f32]) {
        let loud = frame.iter().filter(|sample| **sample != 0.0).count() * 2 > frame.len();
        self.put.push(if loud { 1.0 } else { 0.0 });
    }

    fn run(&mut self) -> Result<(), DetectError> {
        self.scores = std::mem::take(&mut self.put);
        Ok(())
    }

    fn take(&self, place: usize, _: &mut Memory) -> f32 {
        self.scores[place]
    }
}

/// Reads the samples.
struct Counting;

impl Recognizer for Counting {
    type Hearing = VecDeque<(usize, Vec<i32>)>;

    fn begin(&self, stretches: &[&[f32]], _: Vec<i64>) -> Self::Hearing {
        let whole = |pcm: &&[f32]| pcm.iter().map(|sample| (sample * 32_768.0).round() as i32).collect();
        stretches.iter().map(whole).enumerate().collect()
    }

    fn step(&mut self, hearing: &mut Self::Hearing) -> Result<Vec<(usize, Transcript)>, RecognizeError> {
        let Some((place, pcm)) = hearing.pop_front() else { return Ok(vec![]) };
        let text = heard(&pcm).iter().map(words).collect::<Vec<_>>().join(" ");
        let words = text.split_whitespace().map(|word| HeardWord { text: word.into(), confidence: 1.0 }).collect();
        Ok(vec![(place, Transcript { words, tokens: vec![], confidence: 1.0, looped: false })])
    }

    fn is_over(hearing: &Self::Hearing) -> bool {
        hearing.is_empty()
    }
}

/// What one voice says: the same whenever it is asked.
pub struct Voice {
    voice: u32,
    moments: StdRng,
    speaks: bool,
    /// The pause before this was only a breath.
    breathed: bool,
    at: u64,
    /// End of the stretch that is being said, or not said.
    until: u64,
    /// What was voiced so far, in samples.
    pub said: Vec<Range<u64>>,
}

impl Voice {
    pub fn new(voice: u32) -> Self {
        let moments = StdRng::seed_from_u64(voice.into());
        Self { voice, moments, speaks: true, breathed: false, at: 0, until: 0, said: vec![] }
    }

    /// Whether it may stop here: less than its shortest words would be taken for a noise.
    pub fn is_whole(&self) -> bool {
        !self.speaks || self.said.last().is_none_or(|said| said.end - said.start >= SHORTEST * BLOCK)
    }

    /// The next blocks of it, as linear16.
    pub fn speak(&mut self, blocks: u64) -> Bytes {
        (0..blocks).flat_map(|_| self.block()).collect()
    }

    fn block(&mut self) -> Vec<u8> {
        if self.at == self.until {
            self.turn();
        }
        let range = self.at..self.at + BLOCK;
        self.at = range.end;
        match self.said.last_mut().filter(|_| self.speaks) {
            Some(said) => said.end = range.end,
            None => return vec![0; 2 * FRAME],
        }
        range.flat_map(|at| sample(self.voice, at).to_le_bytes()).collect()
    }

    /// Words of 0.4 to 4 s; then a pause, now and then only a breath, which ends nothing, or one that is longer than a watermark waits.
    fn turn(&mut self) {
        self.speaks = !self.speaks;
        let last = self.said.last().map_or(0, |said| (said.end - said.start) / BLOCK);
        let blocks = if self.speaks {
            self.said.push(self.at..self.at);
            // Two with a breath between them are one utterance, and one of 6 s is cut, where depends on what was heard before.
            self.moments.random_range(SHORTEST..if self.breathed { 60 } else { 125 })
        } else {
            let kind = self.moments.random_range(0..8);
            let breathes = kind == 0 && !self.breathed && last < 60;
            self.breathed = breathes;
            self.moments.random_range(if breathes {
                2..6
            } else if kind == 1 {
                125..300
            } else {
                10..60
            })
        };
        self.until = self.at + BLOCK * blocks;
    }
}

#[test]
fn what_a_voice_says_is_heard_to_the_sample_and_a_missing_or_doubled_one_shows() {
    let mut voice = Voice::new(7);
    let pcm: Vec<i32> = voice.speak(4000).chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]).into()).collect();
    let whole: Vec<_> = voice.said.iter().map(|range| Some((7, range.clone()))).collect();
    assert!(whole.len() > 10);
    assert_eq!(heard(&pcm), whole);
    let text = whole.iter().map(words).collect::<Vec<_>>().join(" ");
    assert_eq!(told(&text), voice.said.iter().map(|range| (7, range.clone())).collect::<Vec<_>>());
    let (start, end) = (voice.said[0].start, voice.said[0].end);
    for odd in [0, 1] {
        let at = (start + 1000 + odd) as usize;
        let from = |at: usize| heard(&pcm[at..end as usize]);
        assert_eq!(from(at), [Some((7, at as u64..end))], "taken up anywhere");
        let without = [&pcm[start as usize..at], &pcm[at + 1..end as usize]].concat();
        assert_eq!(heard(&without), [Some((7, start..at as u64)), Some((7, at as u64 + 1..end))], "one is missing");
    }
    let at = (start + 1000) as usize;
    let twice = [&pcm[start as usize..at], &pcm[at - 2..end as usize]].concat();
    assert_eq!(heard(&twice), [Some((7, start..at as u64)), Some((7, at as u64 - 2..end))], "two are there twice");
    assert_eq!(heard(&[5; 100]), [None], "another sound");
}
