//! Speech or silence, 32 ms at a time: Silero, on the thread that owns the channels. Frames of several channels go through together when
//! they wait anyway: eight together take about half of the time of eight alone, and the weights come into the cache once.

use ort::{
    session::{Session, SessionInputValue},
    value::Tensor,
};
use platform::onnx::{ModelDir, ModelError, Runtime};

/// Samples per score, at 16 kHz.
pub const FRAME: usize = 512;
/// Channels scored together at most; more gain nothing.
pub const MOST: usize = 16;
/// Samples of the frame before that the model hears again.
const CONTEXT: usize = 64;
/// Numbers the model remembers of a channel: two rows of this many.
const STATE: usize = 128;

/// Scores frames of several channels together; lives on one worker's thread. [`Vad`] is the product's.
pub trait Detector: 'static {
    /// Adds a channel's next frame, of [`FRAME`] samples, to those that [`Self::run`] scores, at most [`MOST`] of them.
    fn put(&mut self, memory: &mut Memory, frame: &[f32]);
    /// Scores what was put in; each is then taken by its place.
    ///
    /// # Errors
    /// Says why nothing was scored. The channels whose frames were put in end.
    fn run(&mut self) -> Result<(), DetectError>;
    /// The score, 0 to 1, of the channel that was put in at `place`; its memory follows.
    fn take(&self, place: usize, memory: &mut Memory) -> f32;
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DetectError(#[from] ort::Error);

pub struct Vad {
    session: Session,
    rate: Tensor<i64>,
    /// Inputs for one to [`MOST`] channels, made when first needed: [n, 576] and [2, n, 128].
    inputs: Vec<Option<(Tensor<f32>, Tensor<f32>)>>,
    /// What was put in: frames with their contexts, and a state for each.
    frames: Vec<f32>,
    states: Vec<f32>,
    /// What came of it.
    scores: Vec<f32>,
    after: Vec<f32>,
}

/// What the model remembers of one channel.
#[derive(Default)]
pub struct Memory {
    /// Empty before the first frame.
    state: Vec<f32>,
    context: Vec<f32>,
}

impl Memory {
    /// Lets a frame pass unscored; the model's state stays, its context follows.
    pub fn pass(&mut self, frame: &[f32]) {
        self.context.clear();
        self.context.extend_from_slice(&frame[frame.len().saturating_sub(CONTEXT)..]);
    }
}

impl Vad {
    pub fn open(runtime: &Runtime, model: &ModelDir) -> Result<Self, ModelError> {
        let file = model.file("silero_vad_op18_ifless.onnx")?;
        let session = runtime.session(&file)?;
        let names: Vec<&str> = session.inputs().iter().map(|i| i.name()).collect();
        let unusable = |cause: String| ModelError::Unusable { file: file.clone(), cause };
        if names != ["input", "sr", "state"] {
            return Err(unusable(format!("expected the inputs input, sr and state, found {}", names.join(", "))));
        }
        let rate = Tensor::from_array(([0usize; 0], vec![16_000i64])).map_err(|e| unusable(e.to_string()))?;
        let inputs = (0..MOST).map(|_| None).collect();
        Ok(Self { session, rate, inputs, frames: vec![], states: vec![], scores: vec![], after: vec![] })
    }

    /// How likely this is speech, 0 to 1. `frame` holds [`FRAME`] samples.
    pub fn score(&mut self, memory: &mut Memory, frame: &[f32]) -> Result<f32, DetectError> {
        self.put(memory, frame);
        self.run()?;
        Ok(self.take(0, memory))
    }

    fn run_all(&mut self) -> Result<(), ort::Error> {
        let count = self.states.len() / (2 * STATE);
        debug_assert!((1..=MOST).contains(&count));
        let inputs = &mut self.inputs[count - 1];
        if inputs.is_none() {
            let input = Tensor::from_array(([count, CONTEXT + FRAME], vec![0.0f32; self.frames.len()]))?;
            *inputs = Some((input, Tensor::from_array(([2, count, STATE], vec![0.0f32; self.states.len()]))?));
        }
        let Some((input, state)) = inputs else { return Ok(()) };
        input.extract_tensor_mut().1.copy_from_slice(&self.frames);
        let rows = state.extract_tensor_mut().1;
        // The model wants the first halves of all states, then the second.
        for (place, channel) in self.states.chunks(2 * STATE).enumerate() {
            for (half, row) in channel.chunks(STATE).enumerate() {
                rows[(half * count + place) * STATE..][..STATE].copy_from_slice(row);
            }
        }
        let inputs: [SessionInputValue<'_>; 3] = [(&*input).into(), (&self.rate).into(), (&*state).into()];
        let outputs = self.session.run(inputs)?;
        let (_, scores) = outputs[0].try_extract_tensor::<f32>()?;
        let (_, rows) = outputs[1].try_extract_tensor::<f32>()?;
        self.scores.clear();
        self.scores.extend_from_slice(scores);
        self.after.clear();
        for place in 0..count {
            for half in 0..2 {
                self.after.extend_from_slice(&rows[(half * count + place) * STATE..][..STATE]);
            }
        }
        Ok(())
    }
}

impl Detector for Vad {
    fn put(&mut self, memory: &mut Memory, frame: &[f32]) {
        debug_assert_eq!(frame.len(), FRAME);
        memory.context.resize(CONTEXT, 0.0);
        memory.state.resize(2 * STATE, 0.0);
        self.frames.extend_from_slice(&memory.context);
        self.frames.extend_from_slice(frame);
        self.states.extend_from_slice(&memory.state);
        memory.pass(frame);
    }

    fn run(&mut self) -> Result<(), DetectError> {
        let done = self.run_all();
        self.frames.clear();
        self.states.clear();
        Ok(done?)
    }

    fn take(&self, place: usize, memory: &mut Memory) -> f32 {
        memory.state.copy_from_slice(&self.after[place * 2 * STATE..][..2 * STATE]);
        self.scores[place]
    }
}
