//! Speech or silence, 32 ms at a time: Silero, unbatched, on the thread that owns the channel.

use ort::{
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor},
};
use platform::onnx::{ModelDir, ModelError, Runtime};

/// Samples per score, at 16 kHz.
pub const FRAME: usize = 512;
/// Samples of the frame before that the model hears again.
const CONTEXT: usize = 64;

pub struct Vad {
    session: Session,
    input: Tensor<f32>,
    rate: Tensor<i64>,
}

/// What the model remembers of one channel.
#[derive(Default)]
pub struct Memory {
    /// `None` before the first frame.
    state: Option<DynValue>,
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
        let input = Tensor::from_array(([1, CONTEXT + FRAME], vec![0.0f32; CONTEXT + FRAME])).map_err(|e| unusable(e.to_string()))?;
        let rate = Tensor::from_array(([0usize; 0], vec![16_000i64])).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { session, input, rate })
    }

    /// How likely this is speech, 0 to 1. `frame` holds [`FRAME`] samples.
    pub fn score(&mut self, memory: &mut Memory, frame: &[f32]) -> Result<f32, ort::Error> {
        debug_assert_eq!(frame.len(), FRAME);
        memory.context.resize(CONTEXT, 0.0);
        {
            let (_, input) = self.input.extract_tensor_mut();
            input[..CONTEXT].copy_from_slice(&memory.context);
            input[CONTEXT..].copy_from_slice(frame);
        }
        memory.context.copy_from_slice(&frame[FRAME - CONTEXT..]);
        let state = match memory.state.take() {
            Some(state) => state,
            None => Tensor::from_array(([2, 1, 128], vec![0.0f32; 256]))?.into_dyn(),
        };
        let inputs: [SessionInputValue<'_>; 3] = [(&self.input).into(), (&self.rate).into(), state.into()];
        let outputs = self.session.run(inputs)?;
        let mut outputs = outputs.into_iter().map(|(_, value)| value);
        let score = match outputs.next() {
            Some(value) => value.try_extract_tensor::<f32>()?.1.first().copied().unwrap_or(0.0),
            None => 0.0,
        };
        memory.state = outputs.next();
        Ok(score)
    }
}
