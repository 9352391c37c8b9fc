//! Turns a stretch of speech into words.
//!
//! Invariants: nothing is carried from one stretch to the next; a stretch can be left and taken up again between any two steps, and a
//! step takes milliseconds, so whoever owns the recognizer stays able to listen.

pub mod agreement;
pub mod moonshine;
pub mod words;

pub use moonshine::{Hearing, Moonshine};

/// Hears stretches of speech a step at a time; lives on one worker's thread. [`Moonshine`] is the product's.
pub trait Recognizer: 'static {
    /// Stretches being heard, in step.
    type Hearing;

    /// Prepares to hear stretches of 16 kHz sound in step. `draft` is what is expected of a single one, or empty.
    fn begin(&self, stretches: &[&[f32]], draft: Vec<i64>) -> Self::Hearing;
    /// One step. Returns the stretches that are complete with it, by their place.
    ///
    /// # Errors
    /// Says why none of the stretches will have text; each becomes a gap.
    fn step(&mut self, hearing: &mut Self::Hearing) -> Result<Vec<(usize, Transcript)>, RecognizeError>;
    fn is_over(hearing: &Self::Hearing) -> bool;
}

/// What the recognizer made of a stretch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    pub words: Vec<HeardWord>,
    /// What the decoder wrote; a draft for a later hearing of the same speech, grown longer.
    pub tokens: Vec<i64>,
    /// Exponential of the mean log-probability of the tokens, 0 to 1.
    pub confidence: f32,
    /// The decoder went round in circles and was stopped; what it repeated is trimmed.
    pub looped: bool,
}

/// A word without its times.
#[derive(Clone, Debug, PartialEq)]
pub struct HeardWord {
    pub text: String,
    pub confidence: f32,
}

impl Transcript {
    pub fn text(&self) -> String {
        self.words.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" ")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RecognizeError {
    #[error("the model did not run: {0}")]
    Model(#[from] ort::Error),
    #[error("the model has no output {0}")]
    Output(String),
}
