//! What Deepgram's SDKs parse. Fields that one of them cannot do without are always there.

use crate::engine::decode::file::Truncated;
use chrono::{DateTime, SecondsFormat, Utc};
use contracts::{
    SamplePos, SampleRate,
    audio::{ModelInfo, Word, text_of},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type")]
pub(super) enum Message {
    Results(Results),
    SpeechStarted { channel: [usize; 2], timestamp: f64 },
    UtteranceEnd { channel: [usize; 2], last_word_end: f64 },
    Metadata(Summary),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Results {
    /// This channel, of how many.
    pub(super) channel_index: [usize; 2],
    pub(super) duration: f64,
    pub(super) start: f64,
    pub(super) is_final: bool,
    pub(super) speech_final: bool,
    pub(super) channel: Alternatives,
    pub(super) metadata: Arc<ResultMetadata>,
    pub(super) from_finalize: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Alternatives {
    pub(super) alternatives: Vec<Alternative>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Alternative {
    pub(super) transcript: String,
    pub(super) confidence: f32,
    pub(super) words: Vec<SaidWord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paragraphs: Option<Paragraphs>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct SaidWord {
    pub(super) word: String,
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) confidence: f32,
    pub(super) punctuated_word: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ResultMetadata {
    pub(super) request_id: Uuid,
    pub(super) model_info: ModelName,
    pub(super) model_uuid: Uuid,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ModelName {
    /// As the caller asked for it.
    name: String,
    /// What answers to that name here.
    version: String,
    arch: String,
}

/// The last message of a stream, and `metadata` of a prerecorded answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    transaction_key: &'static str,
    request_id: Uuid,
    sha256: String,
    created: String,
    duration: f64,
    channels: usize,
    models: Vec<Uuid>,
    model_info: BTreeMap<Uuid, ModelName>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Warning {
    parameter: &'static str,
    r#type: &'static str,
    message: String,
}

impl Warning {
    pub(super) fn not_offered(parameter: &'static str) -> Self {
        let message = "this server has no model for it; the answer does not contain it".into();
        Self { parameter, r#type: "unsupported_model", message }
    }

    pub(super) fn truncated(Truncated { expected, found }: Truncated) -> Self {
        let message = format!("the file is cut short: expected {expected} bytes of sound, found {found}; the answer is what was there");
        Self { parameter: "body", r#type: "truncated_audio", message }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Paragraphs {
    pub(super) transcript: String,
    pub(super) paragraphs: Vec<Paragraph>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Paragraph {
    pub(super) sentences: Vec<Sentence>,
    pub(super) num_words: usize,
    pub(super) start: f64,
    pub(super) end: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Sentence {
    pub(super) text: String,
    pub(super) start: f64,
    pub(super) end: f64,
}

impl Alternative {
    pub(super) fn new(words: &[Word], confidence: f32) -> Self {
        let said = words.iter().map(SaidWord::new).collect();
        Self { transcript: text_of(words), confidence, words: said, paragraphs: None }
    }
}

impl SaidWord {
    fn new(word: &Word) -> Self {
        let bare = word.text.trim_matches(|c: char| !c.is_alphanumeric());
        let bare = if bare.is_empty() { word.text.as_str() } else { bare };
        Self {
            word: bare.to_lowercase(),
            start: thousandths(word.start_ms),
            end: thousandths(word.end_ms),
            confidence: word.confidence,
            punctuated_word: word.text.clone(),
        }
    }
}

impl ResultMetadata {
    pub(super) fn new(request_id: Uuid, asked: &str, model: &ModelInfo) -> Self {
        let model_uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("quickcomm/{}/{}", model.name, model.version).as_bytes());
        let version = format!("{} {}", model.name, model.version);
        Self { request_id, model_info: ModelName { name: asked.into(), version, arch: model.family.clone() }, model_uuid }
    }
}

impl Summary {
    pub(super) fn new(metadata: &ResultMetadata, sha256: String, created: DateTime<Utc>, duration: f64, channels: usize) -> Self {
        Self {
            transaction_key: "deprecated",
            request_id: metadata.request_id,
            sha256,
            created: created.to_rfc3339_opts(SecondsFormat::Millis, true),
            duration,
            channels,
            models: vec![metadata.model_uuid],
            model_info: BTreeMap::from([(metadata.model_uuid, metadata.model_info.clone())]),
            tags: vec![],
            warnings: vec![],
        }
    }
}

/// Milliseconds in seconds.
pub(super) fn thousandths(ms: impl Into<u64>) -> f64 {
    let ms: u64 = ms.into();
    ms as f64 / 1000.0
}

/// Seconds from the start of the stream, to the millisecond.
pub(super) fn seconds(rate: SampleRate, pos: SamplePos) -> f64 {
    thousandths(rate.ms_at(pos))
}

/// Seconds between two positions such that this start plus this duration is the next start.
pub(super) fn seconds_between(rate: SampleRate, from: SamplePos, to: SamplePos) -> f64 {
    thousandths(rate.ms_at(to).saturating_sub(rate.ms_at(from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_word_is_lower_case_and_keeps_what_is_inside() {
        let bare = |text: &str| SaidWord::new(&Word { text: text.into(), start_ms: 1234, end_ms: 1300, confidence: 0.5 }).word;
        assert_eq!([bare("Friday."), bare("don't"), bare("\"Well-known,\""), bare("•••")], ["friday", "don't", "well-known", "•••"]);
    }

    #[test]
    fn what_the_rust_sdk_cannot_do_without_is_there() {
        let model = ModelInfo { name: "moonshine".into(), version: "1".into(), family: "moonshine".into() };
        let metadata = Arc::new(ResultMetadata::new(Uuid::from_u128(7), "nova-3", &model));
        let alternatives = vec![Alternative::default()];
        let results = Message::Results(Results {
            channel_index: [0, 1],
            duration: 1.6,
            start: 3.2,
            is_final: true,
            speech_final: true,
            channel: Alternatives { alternatives },
            metadata,
            from_finalize: false,
        });
        let json = serde_json::to_value(results).unwrap();
        for field in [
            "/type",
            "/channel_index/1",
            "/is_final",
            "/speech_final",
            "/from_finalize",
            "/channel/alternatives/0/transcript",
            "/metadata/request_id",
            "/metadata/model_info/name",
            "/metadata/model_info/version",
            "/metadata/model_info/arch",
            "/metadata/model_uuid",
        ] {
            assert!(json.pointer(field).is_some(), "{field} is missing in {json}");
        }
        assert_eq!(json["type"], "Results");
    }
}
