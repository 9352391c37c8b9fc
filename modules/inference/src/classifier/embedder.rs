//! Sentences to vectors of length one (MiniLM). Owned by one thread.

use ndarray::{Array1, Array2, ArrayView2, Ix2};
use ort::{session::Session, value::Tensor};
use platform::onnx::{Kind, ModelDir, Runtime};
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};

pub struct Embedder {
    session: Session,
    tokenizer: Tokenizer,
    dimensions: usize,
    name: String,
}

impl Embedder {
    /// # Errors
    /// For people: which file is missing or damaged, and what was expected.
    pub fn load(runtime: &Runtime, dir: &Path) -> Result<Self, String> {
        let model = ModelDir::open(dir, Kind::Embedding).map_err(|e| e.to_string())?;
        let number = |path: &str| model.parameter(path).map_err(|e| e.to_string()).map(|n| n.max(1) as usize);
        let (dimensions, max_tokens) = (number("embedding.dimensions")?, number("embedding.max_tokens")?);
        let file = |name: &str| model.file(name).map_err(|e| e.to_string());
        let session = runtime.session(&file("model_int8.onnx")?).map_err(|e| e.to_string())?;
        let mut tokenizer = Tokenizer::from_file(file("tokenizer.json")?).map_err(|e| format!("tokenizer.json is not usable: {e}"))?;
        // The file as it comes pads every sentence to 128 tokens.
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| format!("tokenizer.json is not usable: {e}"))?;
        Ok(Self { session, tokenizer, dimensions, name: format!("{} {}", model.name(), model.version()) })
    }

    /// Name and version of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One row per text, in the order given. One by one: several at once share the scale of the int8 arithmetic, so that a text's vector
    /// would depend on its company, and gain nothing per text.
    ///
    /// # Errors
    /// What the tokenizer or the runtime says.
    pub fn embed(&mut self, texts: &[String]) -> Result<Array2<f32>, String> {
        let mut rows = Array2::zeros((texts.len(), self.dimensions));
        for (mut row, text) in rows.rows_mut().into_iter().zip(texts) {
            row.assign(&self.run(text)?);
        }
        Ok(rows)
    }

    fn run(&mut self, text: &str) -> Result<Array1<f32>, String> {
        let encoded = self.tokenizer.encode_fast(text, true).map_err(|e| e.to_string())?;
        let tensor = |numbers: &[u32]| {
            let numbers: Vec<i64> = numbers.iter().map(|n| i64::from(*n)).collect();
            Tensor::from_array(([1, numbers.len()], numbers)).map_err(|e| e.to_string())
        };
        let inputs = ort::inputs![tensor(encoded.get_ids())?, tensor(encoded.get_attention_mask())?];
        let outputs = self.session.run(inputs).map_err(|e| e.to_string())?;
        let rows: ArrayView2<'_, f32> =
            outputs[0].try_extract_array::<f32>().map_err(|e| e.to_string())?.into_dimensionality::<Ix2>().map_err(|e| e.to_string())?;
        if rows.dim() != (1, self.dimensions) {
            return Err(format!("the model answers {:?}: expected {:?}", rows.dim(), (1, self.dimensions)));
        }
        Ok(rows.row(0).to_owned())
    }
}
