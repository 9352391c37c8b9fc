//! The contract `Inference`: what was meant. Every call is idempotent and without side effects.

use crate::{
    CallCx, CallError, ChannelIndex, ConversationId, ErrorKind, EventStream, InsightId, RunId, UtteranceId,
    audio::{Role, Word},
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Understands utterances.
///
/// Callers may rely on:
/// - every call is idempotent: the same request yields insights with the same ids;
/// - one insight per asked task and utterance, never none: what cannot be told abstains, with its reason;
/// - the deadline of `summarize` holds to the last item;
/// - a missing model lowers `provenance.tier` and never fails the call;
/// - evidence points at words of the utterances in the request.
#[async_trait]
pub trait Inference: Send + Sync + 'static {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError>;
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError>;
    /// Which rung answers each task now, and why not a better one.
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError>;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Analyze {
    pub conversation: ConversationId,
    pub tasks: Vec<Task>,
    /// Each is analyzed.
    pub utterances: Vec<Utterance>,
    /// Turns before them, oldest first; read, not analyzed.
    pub context: Vec<Utterance>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summarize {
    pub conversation: ConversationId,
    pub utterances: Vec<Utterance>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Intent,
    Sentiment,
}

impl Task {
    pub const ALL: [Self; 2] = [Self::Intent, Self::Sentiment];
    pub fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Sentiment => "sentiment",
        }
    }
}

/// A finished turn as the record has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Utterance {
    pub id: UtteranceId,
    pub conversation: ConversationId,
    pub channel: ChannelIndex,
    pub role: Role,
    pub start_ms: u64,
    pub end_ms: u64,
    pub words: Vec<Word>,
}

impl Utterance {
    pub fn text(&self) -> String {
        crate::audio::text_of(&self.words)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Insight {
    pub id: InsightId,
    pub run: RunId,
    pub conversation: ConversationId,
    pub utterance: UtteranceId,
    pub task: Task,
    /// Best first; empty when it abstains.
    pub labels: Vec<Label>,
    /// Why no label is given.
    pub abstained: Option<String>,
    pub evidence: Vec<Evidence>,
    pub provenance: Provenance,
}

/// What a pending insight says instead of a label. The record asks again for those whose reason may pass.
pub fn not_understood(kind: ErrorKind) -> String {
    format!("not understood: {}", kind.name().replace('_', " "))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    pub name: String,
    /// 0 to 1.
    pub score: f32,
}

/// Words `word_from..word_to` of an utterance, which carried the decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub utterance: UtteranceId,
    pub word_from: u32,
    pub word_to: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub tier: Tier,
    /// Name and version of what answered.
    pub model: String,
    /// The better rung that could not.
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

/// A rung of the insight ladder, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Llm,
    SecondLlm,
    Local,
    Rules,
    Pending,
}

impl Tier {
    pub fn name(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::SecondLlm => "second_llm",
            Self::Local => "local",
            Self::Rules => "rules",
            Self::Pending => "pending",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierStatus {
    pub task: Task,
    pub tier: Tier,
    /// Why not the configured one, for people.
    pub degraded: Option<String>,
    /// Why a newer file of labels or prompts is not in use, for people; the last good one is.
    #[serde(default)]
    pub stale: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SummaryItem {
    pub kind: SummaryKind,
    pub text: String,
    pub evidence: Vec<Evidence>,
    pub tier: Tier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SummaryKind {
    /// Why they called.
    Reason,
    /// What was promised.
    Action,
    /// How it ended.
    Outcome,
}
