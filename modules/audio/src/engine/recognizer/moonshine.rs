//! Moonshine with its decoder split in two: the first step, and every later one with the keys and values of those before.
//!
//! Invariants: tensors move from outputs to inputs by ownership; inputs go in by position; the encoder hears one stretch at a time
//! (together they would take longer), the decoder may write several in step, because a step mostly waits for the weights.
//! A draft (the text as last heard, when the speech was shorter) is verified by the first step in one pass: what the decoder would have
//! written anyway is kept, and writing goes on from the first difference. The text is the same as without; only the steps are fewer.

use super::{HeardWord, RecognizeError, Recognizer, Transcript};
use ort::{
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor},
};
use platform::onnx::{ModelDir, ModelError, Runtime};
use std::{fs, path::Path};

/// Samples per second the model expects.
pub const RATE: u32 = 16_000;
/// Shorter stretches are filled up with silence to this: the encoder's filters need half a second, and short words do better with one.
const SHORTEST: usize = RATE as usize;

pub struct Moonshine {
    encoder: Session,
    first: Session,
    past: Session,
    vocabulary: Vec<Vec<u8>>,
    /// Where the inputs of `past` come from.
    wiring: Wiring,
    bos: i64,
    eos: i64,
}

struct Wiring {
    inputs: usize,
    ids: usize,
    mask: usize,
    /// Input of `past`, and the output of `first` that fills it.
    from_first: Vec<(usize, String)>,
    /// For each output of `past` after the logits: the input it becomes.
    from_past: Vec<usize>,
}

/// Stretches being heard, in step.
pub struct Hearing {
    lanes: Vec<Lane>,
    stage: Stage,
}

struct Lane {
    draft: Vec<i64>,
    tokens: Vec<i64>,
    log_probs: Vec<f32>,
    cap: usize,
    /// The token written last, not yet in `tokens`.
    next: (i64, f32),
    over: bool,
}

enum Stage {
    /// Sound still to be encoded, last lane first, and what was made of the others.
    Encode {
        audio: Vec<Vec<f32>>,
        hidden: Vec<DynValue>,
    },
    First {
        hidden: DynValue,
        /// [lanes, frames], 1 where there is sound.
        mask: Tensor<i32>,
    },
    Next {
        values: Vec<SessionInputValue<'static>>,
    },
    Over,
}

impl Hearing {
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}

impl Moonshine {
    /// Loads the model's graphs; each belongs to the calling thread from then on.
    pub fn open(runtime: &Runtime, model: &ModelDir) -> Result<Self, ModelError> {
        let encoder = runtime.session(&model.file("encoder_model.onnx")?)?;
        let first = runtime.session(&model.file("decoder_first.onnx")?)?;
        let past_file = model.file("decoder_with_past.onnx")?;
        let past = runtime.session(&past_file)?;
        let wiring = Wiring::of(&first, &past).map_err(|cause| ModelError::Unusable { file: past_file, cause })?;
        let vocabulary = vocabulary(&model.file("tokenizer.bin")?)?;
        let (bos, eos) = (model.parameter("decoder.bos")?, model.parameter("decoder.eos")?);
        Ok(Self { encoder, first, past, vocabulary, wiring, bos, eos })
    }

    /// Prepares to hear `pcm`, mono at [`RATE`]. `draft` is what is expected, or empty.
    pub fn begin(&self, pcm: &[f32], draft: Vec<i64>) -> Hearing {
        self.begin_together(&[pcm], draft)
    }

    /// Prepares to hear several stretches in step. Only a single one may have a draft.
    pub fn begin_together(&self, stretches: &[&[f32]], draft: Vec<i64>) -> Hearing {
        let mut draft = if stretches.len() == 1 { draft } else { vec![] };
        let mut audio = vec![];
        let mut lanes = vec![];
        for pcm in stretches {
            let samples = pcm.len().max(SHORTEST);
            let mut padded = Vec::with_capacity(samples);
            padded.extend_from_slice(pcm);
            padded.resize(samples, 0.0);
            audio.push(padded);
            // 6.5 tokens a second is faster than anyone speaks; what goes on longer is a loop.
            let cap = (pcm.len() as f32 / RATE as f32 * 6.5) as usize + 4;
            let draft = std::mem::take(&mut draft);
            lanes.push(Lane { draft, tokens: vec![], log_probs: vec![], cap, next: (0, 0.0), over: false });
        }
        audio.reverse();
        Hearing { lanes, stage: Stage::Encode { audio, hidden: vec![] } }
    }

    /// One step: the encoder for one stretch, or one token of each. Returns the stretches that are complete with it, by their place.
    pub fn step(&mut self, hearing: &mut Hearing) -> Result<Vec<(usize, Transcript)>, RecognizeError> {
        match std::mem::replace(&mut hearing.stage, Stage::Over) {
            Stage::Encode { mut audio, mut hidden } => {
                let Some(next) = audio.pop() else { return Ok(vec![]) };
                let next = Tensor::from_array(([1, next.len()], next))?;
                let mut outputs = self.encoder.run(ort::inputs![next])?;
                hidden.push(outputs.remove("last_hidden_state").ok_or_else(|| RecognizeError::Output("last_hidden_state".into()))?);
                hearing.stage = if !audio.is_empty() { Stage::Encode { audio, hidden } } else { stacked(hidden)? };
                Ok(vec![])
            }
            Stage::First { hidden, mask } => self.first_step(hearing, hidden, mask),
            Stage::Next { values } => self.next_step(hearing, values),
            Stage::Over => Ok(vec![]),
        }
    }

    /// Hears `pcm` from begin to end.
    pub fn transcribe(&mut self, pcm: &[f32]) -> Result<Transcript, RecognizeError> {
        let mut hearing = self.begin(pcm, vec![]);
        loop {
            if let Some((_, transcript)) = self.step(&mut hearing)?.pop() {
                return Ok(transcript);
            }
        }
    }

    fn first_step(
        &mut self,
        hearing: &mut Hearing,
        hidden: DynValue,
        mask: Tensor<i32>,
    ) -> Result<Vec<(usize, Transcript)>, RecognizeError> {
        let count = hearing.lanes.len();
        let drafted = if count == 1 { hearing.lanes[0].draft.len().min(hearing.lanes[0].cap.saturating_sub(1)) } else { 0 };
        let mut ids = vec![self.bos; count];
        if drafted > 0 {
            ids.extend_from_slice(&hearing.lanes[0].draft[..drafted]);
        }
        let asked = Tensor::from_array(([count, ids.len() / count], ids.clone()))?;
        let mut outputs = self.first.run(ort::inputs![asked, &mask, &hidden])?;
        {
            let logits = outputs.get("logits").ok_or_else(|| RecognizeError::Output("logits".into()))?;
            for (row, lane) in hearing.lanes.iter_mut().enumerate() {
                for position in 0..=drafted {
                    lane.next = best(logits, row * (drafted + 1) + position)?;
                    if count > 1 || ids.get(position + 1) != Some(&lane.next.0) {
                        break;
                    }
                    lane.tokens.push(lane.next.0);
                    lane.log_probs.push(lane.next.1);
                }
            }
        }
        let kept = hearing.lanes[0].tokens.len() + 1; // with the beginning of the sentence
        let mut values: Vec<Option<SessionInputValue<'static>>> = (0..self.wiring.inputs).map(|_| None).collect();
        for (input, output) in &self.wiring.from_first {
            let value = outputs.remove(output).ok_or_else(|| RecognizeError::Output(output.clone()))?;
            let value = if drafted + 1 > kept && output.contains(".decoder.") { shortened(&value, kept)? } else { value };
            values[*input] = Some(value.into());
        }
        values[self.wiring.ids] = Some(Tensor::from_array(([count, 1], vec![self.eos; count]))?.into()); // replaced before it is read
        values[self.wiring.mask] = Some(mask.into());
        let values = values.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| RecognizeError::Output("past key values".into()))?;
        drop(outputs);
        Ok(self.settle(hearing, values))
    }

    fn next_step(
        &mut self,
        hearing: &mut Hearing,
        mut values: Vec<SessionInputValue<'static>>,
    ) -> Result<Vec<(usize, Transcript)>, RecognizeError> {
        let ids: Vec<i64> = hearing.lanes.iter().map(|lane| lane.next.0).collect();
        values[self.wiring.ids] = Tensor::from_array(([ids.len(), 1], ids))?.into();
        let outputs = self.past.run(&values[..])?;
        let mut outputs = outputs.into_iter().map(|(_, value)| value);
        let logits = outputs.next().ok_or_else(|| RecognizeError::Output("logits".into()))?;
        for (row, lane) in hearing.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.over) {
            lane.next = best(&logits, row)?;
        }
        for (input, value) in self.wiring.from_past.iter().zip(outputs) {
            values[*input] = value.into();
        }
        Ok(self.settle(hearing, values))
    }

    /// Takes the tokens just written; what is complete is returned, and the rest goes on.
    fn settle(&self, hearing: &mut Hearing, values: Vec<SessionInputValue<'static>>) -> Vec<(usize, Transcript)> {
        let mut complete = vec![];
        for (place, lane) in hearing.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.over) {
            let (token, log_prob) = lane.next;
            let mut looped = false;
            if token == self.eos {
                lane.over = true;
            } else {
                lane.tokens.push(token);
                lane.log_probs.push(log_prob);
                lane.over = lane.tokens.len() >= lane.cap;
                if let Some(keep) = loops(&lane.tokens) {
                    lane.tokens.truncate(keep);
                    lane.log_probs.truncate(keep);
                    (looped, lane.over) = (true, true);
                }
            }
            if lane.over {
                complete.push((place, transcript(&self.vocabulary, lane, looped)));
            }
        }
        if hearing.lanes.iter().any(|lane| !lane.over) {
            hearing.stage = Stage::Next { values };
        }
        complete
    }
}

impl Recognizer for Moonshine {
    type Hearing = Hearing;

    fn begin(&self, stretches: &[&[f32]], draft: Vec<i64>) -> Hearing {
        self.begin_together(stretches, draft)
    }

    fn step(&mut self, hearing: &mut Hearing) -> Result<Vec<(usize, Transcript)>, RecognizeError> {
        Moonshine::step(self, hearing)
    }

    fn is_over(hearing: &Hearing) -> bool {
        hearing.is_over()
    }
}

impl Wiring {
    fn of(first: &Session, past: &Session) -> Result<Self, String> {
        let names: Vec<&str> = past.inputs().iter().map(|i| i.name()).collect();
        let find = |name: &str| names.iter().position(|n| *n == name);
        let gives: Vec<&str> = first.outputs().iter().map(|o| o.name()).collect();
        let mut from_first = vec![];
        for (input, name) in names.iter().enumerate().filter(|(_, n)| n.starts_with("past_key_values")) {
            let output = name.replace("past_key_values", "present");
            if !gives.contains(&output.as_str()) {
                return Err(format!("its input {name} has no counterpart in decoder_first"));
            }
            from_first.push((input, output));
        }
        let mut from_past = vec![];
        for output in past.outputs().iter().skip(1) {
            let name = output.name().replace("present", "past_key_values");
            from_past.push(find(&name).ok_or_else(|| format!("its output {} has no input to go to", output.name()))?);
        }
        let ids = find("input_ids").ok_or("it has no input input_ids")?;
        let mask = find("frame_mask").ok_or("it has no input frame_mask")?;
        Ok(Self { inputs: names.len(), ids, mask, from_first, from_past })
    }
}

fn transcript(vocabulary: &[Vec<u8>], lane: &mut Lane, looped: bool) -> Transcript {
    let tokens = std::mem::take(&mut lane.tokens);
    let words = words(vocabulary, &tokens, &lane.log_probs);
    let confidence = mean_probability(&lane.log_probs);
    Transcript { words, tokens, confidence, looped }
}

/// Joins tokens to words; a token that begins with the mark U+2581 begins a word.
fn words(vocabulary: &[Vec<u8>], tokens: &[i64], log_probs: &[f32]) -> Vec<HeardWord> {
    const MARK: &[u8] = "\u{2581}".as_bytes();
    let mut words = vec![];
    let (mut bytes, mut probs): (Vec<u8>, Vec<f32>) = (vec![], vec![]);
    let mut finish = |bytes: &mut Vec<u8>, probs: &mut Vec<f32>| {
        let text = String::from_utf8_lossy(bytes).trim().to_owned();
        if !text.is_empty() {
            words.push(HeardWord { text, confidence: mean_probability(probs) });
        }
        bytes.clear();
        probs.clear();
    };
    for (token, log_prob) in tokens.iter().zip(log_probs) {
        let Some(mut piece) = usize::try_from(*token).ok().filter(|t| *t > 2).and_then(|t| vocabulary.get(t)).map(Vec::as_slice) else {
            continue;
        };
        while let Some(at) = piece.windows(MARK.len()).position(|w| w == MARK) {
            bytes.extend_from_slice(&piece[..at]);
            finish(&mut bytes, &mut probs);
            piece = &piece[at + MARK.len()..];
        }
        bytes.extend_from_slice(piece);
        probs.push(*log_prob);
    }
    finish(&mut bytes, &mut probs);
    words
}

/// The most probable token at `position` and the logarithm of its probability.
fn best(logits: &DynValue, position: usize) -> Result<(i64, f32), RecognizeError> {
    let (shape, values) = logits.try_extract_tensor::<f32>()?;
    let size = shape.last().copied().unwrap_or(0) as usize;
    let row = values.get(position * size..(position + 1) * size).ok_or_else(|| RecognizeError::Output("logits of that length".into()))?;
    let mut top = (f32::MIN, 0);
    // In blocks, so that the search for the largest runs in vector registers.
    for (block, chunk) in row.chunks(1024).enumerate() {
        let largest = chunk.iter().copied().fold(f32::MIN, f32::max);
        if largest > top.0 {
            top = (largest, block * 1024 + chunk.iter().position(|v| *v == largest).unwrap_or(0));
        }
    }
    let mut sums = [0.0f32; 16];
    for chunk in row.chunks(16) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += quick_exp(value - top.0);
        }
    }
    Ok((top.1 as i64, -sums.iter().sum::<f32>().ln()))
}

/// e^x for x <= 0, to a tenth of a percent; runs in vector registers, which `f32::exp` does not.
fn quick_exp(x: f32) -> f32 {
    let y = (x * std::f32::consts::LOG2_E).max(-126.0);
    let whole = y.floor();
    let part = y - whole;
    let mantissa = 1.0 + part * (0.695_65 + part * (0.226_2 + part * 0.078_1));
    mantissa * f32::from_bits(((whole as i32 + 127) << 23) as u32)
}

fn mean_probability(log_probs: &[f32]) -> f32 {
    if log_probs.is_empty() { 0.0 } else { (log_probs.iter().sum::<f32>() / log_probs.len() as f32).exp().clamp(0.0, 1.0) }
}

/// What the encoder made of the stretches, filled up to the longest, with a mask of what is sound.
fn stacked(mut hidden: Vec<DynValue>) -> Result<Stage, RecognizeError> {
    let mut parts = vec![];
    for value in &hidden {
        let (shape, values) = value.try_extract_tensor::<f32>()?;
        let [_, frames, size] = shape[..] else { return Err(RecognizeError::Output("a hidden state of three dimensions".into())) };
        parts.push((values, frames as usize, size as usize));
    }
    let lanes = parts.len();
    let (frames, size) = parts.iter().fold((0, 0), |(most, _), (_, frames, size)| (most.max(*frames), *size));
    let mut mask = vec![0i32; lanes * frames];
    for (part, room) in parts.iter().zip(mask.chunks_mut(frames.max(1))) {
        room[..part.1].fill(1);
    }
    let mask = Tensor::from_array(([lanes, frames], mask))?;
    if lanes == 1 {
        return Ok(Stage::First { hidden: hidden.remove(0), mask });
    }
    let mut stack = vec![0.0f32; lanes * frames * size];
    for (part, room) in parts.iter().zip(stack.chunks_mut((frames * size).max(1))) {
        room[..part.0.len()].copy_from_slice(part.0);
    }
    Ok(Stage::First { hidden: Tensor::from_array(([lanes, frames, size], stack))?.into_dyn(), mask })
}

/// Keys or values, [1, heads, tokens, size], cut to the first `tokens`.
fn shortened(value: &DynValue, tokens: usize) -> Result<DynValue, RecognizeError> {
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    let [_, heads, had, size] = shape[..] else { return Err(RecognizeError::Output("keys of four dimensions".into())) };
    let (heads, had, size) = (heads as usize, had as usize, size as usize);
    let mut kept = Vec::with_capacity(heads * tokens * size);
    for head in 0..heads {
        kept.extend_from_slice(&values[head * had * size..][..tokens * size]);
    }
    Ok(Tensor::from_array(([1, heads, tokens, size], kept))?.into_dyn())
}

/// Where to stop when the end of `tokens` repeats itself more often than people do; one copy is kept.
fn loops(tokens: &[i64]) -> Option<usize> {
    // People do say "no, no, no, no" and "five five five"; nobody says six words three times over.
    for (length, times, kept) in [(1, 8, 2), (2, 6, 2), (3, 4, 1)].into_iter().chain((4..=20).map(|n| (n, 3, 1))) {
        let Some(tail) = tokens.len().checked_sub(length * times).map(|from| &tokens[from..]) else { continue };
        if tail.chunks(length).all(|chunk| chunk == &tail[..length]) {
            return Some(tokens.len() - length * (times - kept));
        }
    }
    None
}

/// Reads `tokenizer.bin`: per token a length (one byte, or two from 128 on) and that many bytes.
fn vocabulary(file: &Path) -> Result<Vec<Vec<u8>>, ModelError> {
    let unusable = |cause: String| ModelError::Unusable { file: file.to_owned(), cause };
    let bytes = fs::read(file).map_err(|e| unusable(e.to_string()))?;
    let mut tokens = vec![];
    let mut rest = bytes.as_slice();
    while let [length, after @ ..] = rest {
        let (length, after) = match (*length as usize, after) {
            (short @ ..128, after) => (short, after),
            (long, [high, after @ ..]) => (long - 128 + *high as usize * 128, after),
            _ => return Err(unusable(format!("token {} ends early", tokens.len()))),
        };
        if after.len() < length {
            return Err(unusable(format!("token {} ends early", tokens.len())));
        }
        tokens.push(after[..length].to_vec());
        rest = &after[length..];
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_stopped_and_trimmed() {
        let mut tokens = vec![7, 8];
        tokens.extend([1, 2, 3, 4].repeat(3));
        assert_eq!(loops(&tokens), Some(6));
        assert_eq!(loops(&tokens[..tokens.len() - 1]), None);
        assert_eq!(loops(&[5; 8]), Some(2));
    }

    #[test]
    fn what_people_repeat_stays() {
        assert_eq!(loops(&[9, 5, 5, 5]), None);
        assert_eq!(loops(&[3, 4, 3, 4, 3, 4, 3, 4]), None);
    }

    #[test]
    fn the_quick_exponential_is_close() {
        for i in 0..2000 {
            let x = -(i as f32) * 0.01;
            assert!((quick_exp(x) - x.exp()).abs() <= 2e-3 * x.exp(), "{x}: {} instead of {}", quick_exp(x), x.exp());
        }
    }

    #[test]
    fn a_torn_vocabulary_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.bin");
        fs::write(&file, [1, b'a', 2, b'b']).unwrap();
        assert!(vocabulary(&file).unwrap_err().to_string().contains("token 1 ends early"));
        fs::write(&file, [1, b'a', 2, b'b', b'c']).unwrap();
        assert_eq!(vocabulary(&file).unwrap(), [b"a".to_vec(), b"bc".to_vec()]);
    }
}
