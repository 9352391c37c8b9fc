//! Sentences to vectors of length one (MiniLM). Owned by one thread.

use ndarray::{Array2, ArrayView2, Ix2};
use ort::{session::Session, value::Tensor};
use platform::onnx::{Kind, ModelDir, Runtime};
use std::path::Path;
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

/// Sentences of similar length run together: padding is wasted work, and more at once gains nothing per sentence.
const BATCH: usize = 16;

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
        tokenizer.with_padding(Some(PaddingParams { strategy: PaddingStrategy::BatchLongest, ..PaddingParams::default() }));
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| format!("tokenizer.json is not usable: {e}"))?;
        Ok(Self { session, tokenizer, dimensions, name: format!("{} {}", model.name(), model.version()) })
    }

    /// Name and version of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One row per text, in the order given.
    ///
    /// # Errors
    /// What the tokenizer or the runtime says.
    pub fn embed(&mut self, texts: &[String]) -> Result<Array2<f32>, String> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let mut rows = Array2::zeros((texts.len(), self.dimensions));
        for batch in order.chunks(BATCH) {
            let inputs: Vec<&str> = batch.iter().map(|i| texts[*i].as_str()).collect();
            let embedded = self.run(&inputs)?;
            for (row, index) in embedded.rows().into_iter().zip(batch) {
                rows.row_mut(*index).assign(&row);
            }
        }
        Ok(rows)
    }

    fn run(&mut self, texts: &[&str]) -> Result<Array2<f32>, String> {
        let encoded = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(|e| e.to_string())?;
        let tokens = encoded.iter().map(|e| e.len()).max().unwrap_or(0);
        let shape = [texts.len(), tokens];
        let ids: Vec<i64> = encoded.iter().flat_map(|e| e.get_ids().iter().map(|n| i64::from(*n))).collect();
        let mask: Vec<i64> = encoded.iter().flat_map(|e| e.get_attention_mask().iter().map(|n| i64::from(*n))).collect();
        let ids = Tensor::from_array((shape, ids)).map_err(|e| e.to_string())?;
        let mask = Tensor::from_array((shape, mask)).map_err(|e| e.to_string())?;
        let outputs = self.session.run(ort::inputs![ids, mask]).map_err(|e| e.to_string())?;
        let rows: ArrayView2<'_, f32> =
            outputs[0].try_extract_array::<f32>().map_err(|e| e.to_string())?.into_dimensionality::<Ix2>().map_err(|e| e.to_string())?;
        if rows.dim() != (texts.len(), self.dimensions) {
            return Err(format!("the model answers {:?}: expected {:?}", rows.dim(), (texts.len(), self.dimensions)));
        }
        Ok(rows.to_owned())
    }
}
