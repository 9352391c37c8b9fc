//! What readers of the record get: the rows of REST, of the live feed and of the OpenAPI document.
//!
//! Invariant: field names and meanings here are the public wire; a change is a change of the API.
//! Times in ms count from the conversation's first sample; dates are RFC 3339.

use super::finalize::Quality;
use chrono::{DateTime, Utc};
use contracts::{
    ChannelIndex, ConversationId, Encoding, InsightId, RunId, UtteranceId,
    audio::{Role, WordTimes},
    conversation::ConversationState,
    inference::{SummaryItem, SummaryKind, Task, Tier},
};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

/// One page of a list; `next_cursor` is opaque, and null on the last page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub next_cursor: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConversationRow {
    #[schema(value_type = String, example = "conv_0193508c7f5e7c0a9d6b1f2e3a4b5c6d")]
    pub id: ConversationId,
    /// The caller's own name for it.
    pub external_id: Option<String>,
    pub title: Option<String>,
    /// The wire it came in by: `native`, `deepgram`, `file`.
    pub source: String,
    pub language: String,
    pub tags: Vec<String>,
    #[schema(schema_with = state_schema)]
    pub state: ConversationState,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// Length of the longest channel as far as it is committed.
    pub duration_ms: u64,
    pub channels: Vec<ChannelRow>,
    pub utterance_count: u64,
    /// The intent that the customer's turns add up to, with its best score.
    pub intent: Option<TopLabel>,
    /// The customer's latest sentiment.
    pub sentiment: Option<TopLabel>,
    /// How far its result is; null while it is live, and of conversations from before results were kept.
    pub finalization: Option<Finalization>,
    /// Whether there is sound to play. The record does not know: whoever owns the recordings fills it in.
    pub recording: bool,
}

/// How far the result of a conversation that has ended is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finalization {
    /// What was received is being heard to its end.
    Closing,
    Scoring,
    Done,
    /// By a lower rung; a better result takes its place when the better rung is back.
    Degraded,
}

impl Finalization {
    pub const ALL: [Self; 4] = [Self::Closing, Self::Scoring, Self::Done, Self::Degraded];
    pub fn name(self) -> &'static str {
        match self {
            Self::Closing => "closing",
            Self::Scoring => "scoring",
            Self::Done => "done",
            Self::Degraded => "degraded",
        }
    }
}

/// What a conversation came to, once it is published.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResultRow {
    /// Rises when a better result takes its place.
    pub version: u64,
    pub quality: Quality,
    pub summary: Vec<SummaryRow>,
    pub published_at: DateTime<Utc>,
}

/// One sentence of a summary.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = SummaryItem)]
pub struct SummaryRow {
    /// `reason`: why they called; `action`: what was promised; `outcome`: how it ended.
    #[schema(example = "reason")]
    pub kind: &'static str,
    pub text: String,
    /// The words it rests on.
    pub evidence: Vec<EvidenceRow>,
    /// What wrote it.
    #[schema(example = "rules")]
    pub tier: &'static str,
}

impl From<SummaryItem> for SummaryRow {
    fn from(item: SummaryItem) -> Self {
        let evidence = item.evidence.into_iter();
        Self {
            kind: match item.kind {
                SummaryKind::Reason => "reason",
                SummaryKind::Action => "action",
                SummaryKind::Outcome => "outcome",
            },
            text: item.text,
            evidence: evidence.map(|e| EvidenceRow { utterance_id: e.utterance, word_from: e.word_from, word_to: e.word_to }).collect(),
            tier: item.tier.name(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelRow {
    #[schema(value_type = u8)]
    pub channel: ChannelIndex,
    #[schema(schema_with = role_schema)]
    pub role: Role,
    #[schema(schema_with = encoding_schema)]
    pub encoding: Encoding,
    /// Samples per second.
    pub sample_rate: u32,
}

/// A label that stands for a whole conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLabel {
    pub name: String,
    /// 0 to 1.
    pub score: f32,
    #[schema(schema_with = tier_schema)]
    pub tier: Tier,
}

/// What was said, or a stretch of audio that never arrived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UtteranceRow {
    #[schema(value_type = String, example = "utt_4fd0c4f4a8ab4c11b6d1d33c37d1c3a2")]
    pub id: UtteranceId,
    #[schema(value_type = String)]
    pub conversation_id: ConversationId,
    #[schema(value_type = u8)]
    pub channel: ChannelIndex,
    #[schema(schema_with = role_schema)]
    pub role: Role,
    pub seq: u64,
    pub kind: UtteranceKind,
    pub start_ms: u64,
    pub end_ms: u64,
    /// Empty for a gap, as are `words` and `model`.
    pub text: String,
    /// 0 to 1.
    pub confidence: f32,
    /// The speaker paused here; otherwise the utterance was cut for its length and goes on.
    pub speech_final: bool,
    #[schema(schema_with = word_times_schema)]
    pub word_times: WordTimes,
    pub words: Vec<WordRow>,
    pub model: String,
    /// Why there is a gap.
    pub reason: Option<String>,
    pub trace_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UtteranceKind {
    Speech,
    Gap,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WordRow {
    pub text: String,
    pub start_ms: u32,
    pub end_ms: u32,
    /// 0 to 1.
    pub confidence: f32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InsightRow {
    #[schema(value_type = String, example = "ins_0b1c2d3e4f5a69788796a5b4c3d2e1f0")]
    pub id: InsightId,
    #[schema(value_type = String)]
    pub run_id: RunId,
    #[schema(value_type = String)]
    pub conversation_id: ConversationId,
    #[schema(value_type = String)]
    pub utterance_id: UtteranceId,
    #[schema(schema_with = task_schema)]
    pub task: Task,
    /// Best first; empty when it abstains.
    pub labels: Vec<LabelRow>,
    /// Why no label is given.
    pub abstained: Option<String>,
    pub evidence: Vec<EvidenceRow>,
    pub provenance: ProvenanceRow,
    /// The newer insight that took its place.
    #[schema(value_type = Option<String>)]
    pub superseded_by: Option<InsightId>,
    pub created_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LabelRow {
    pub name: String,
    /// 0 to 1.
    pub score: f32,
}

/// Words `word_from..word_to` of an utterance, which carried the decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceRow {
    #[schema(value_type = String)]
    pub utterance_id: UtteranceId,
    pub word_from: u32,
    pub word_to: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProvenanceRow {
    #[schema(schema_with = tier_schema)]
    pub tier: Tier,
    pub model: String,
    /// The better rung that could not answer.
    #[schema(value_type = Option<String>)]
    pub degraded_from: Option<Tier>,
    pub config_hash: String,
    pub latency_ms: u32,
    /// Name, version and hash of the prompt, where a language model answered.
    #[serde(default)]
    pub prompt: Option<String>,
    /// A language model's answer that came more than 2 s after its turn.
    #[serde(default)]
    pub late: bool,
}

/// Who talked how much: arithmetic on word times, no model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TalkMetrics {
    #[schema(value_type = String)]
    pub conversation_id: ConversationId,
    pub duration_ms: u64,
    /// Nobody talks.
    pub silence_ms: u64,
    /// Of the duration.
    pub silence_ratio: f32,
    /// At least two talk.
    pub overlap_ms: u64,
    pub channels: Vec<ChannelTalk>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelTalk {
    #[schema(value_type = u8)]
    pub channel: ChannelIndex,
    #[schema(schema_with = role_schema)]
    pub role: Role,
    pub talk_ms: u64,
    /// Of all channels' talk together; they add up to 1.
    pub talk_ratio: f32,
    pub words: u64,
    /// While talking.
    pub words_per_minute: f32,
    /// How often this speaker began while another talked, and went on when the other had stopped.
    pub interruptions: u64,
    /// Talk in the longest turn; a turn lasts until another speaks.
    pub longest_monologue_ms: u64,
    pub turns: u64,
}

/// One utterance that matches a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SearchHit {
    pub conversation: HitConversation,
    pub utterance: HitUtterance,
    /// The words around the match, in order; `hit` marks what matched.
    pub snippet: Vec<SnippetPart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HitConversation {
    #[schema(value_type = String)]
    pub id: ConversationId,
    pub title: Option<String>,
    #[schema(schema_with = state_schema)]
    pub state: ConversationState,
    pub started_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HitUtterance {
    #[schema(value_type = String)]
    pub id: UtteranceId,
    #[schema(value_type = u8)]
    pub channel: ChannelIndex,
    #[schema(schema_with = role_schema)]
    pub role: Role,
    pub start_ms: u64,
    pub end_ms: u64,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnippetPart {
    pub text: String,
    pub hit: bool,
}

fn one_of<const N: usize>(names: [&str; N]) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).build()
}
fn state_schema() -> Object {
    one_of(ConversationState::ALL.map(ConversationState::name))
}
fn role_schema() -> Object {
    one_of([Role::Agent, Role::Customer, Role::Unknown].map(Role::name))
}
fn encoding_schema() -> Object {
    one_of(Encoding::ALL.map(Encoding::name))
}
fn word_times_schema() -> Object {
    one_of(["estimated", "model"])
}
fn task_schema() -> Object {
    one_of(Task::ALL.map(Task::name))
}
fn tier_schema() -> Object {
    one_of([Tier::Llm, Tier::SecondLlm, Tier::Local, Tier::Rules, Tier::Pending].map(Tier::name))
}
