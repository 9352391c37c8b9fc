//! The contract `Conversations`: the record of what was said and what it meant.
//!
//! Invariants: a channel's committed ranges are contiguous and never overlap; a commit by an older epoch is refused; effects happen once.

use crate::{
    CallCx, CallError, ChannelIndex, ConversationId, Epoch, EventStream, SamplePos, TenantId, TraceCx, UtteranceId,
    audio::{ChannelSpec, SegmentBody},
    inference::{Insight, Utterance},
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Keeps conversations.
///
/// Callers may rely on:
/// - `open` with a known id returns what is there; `attach` raises the channel's epoch and says from where to go on;
/// - `commit` stores a batch segment by segment: each has its own outcome, a duplicate is [`CommitOutcome::Duplicate`] and changes nothing;
/// - when `commit` returns, what it calls committed survives kill -9;
/// - `record` may be repeated; a newer run supersedes an older insight of the same task and utterance, nothing is overwritten;
/// - `close` is idempotent; a closed conversation takes no commits beyond what was heard, and nobody attaches to it any more. What was heard
///   and is not committed in time becomes a gap. One that was abandoned may be opened again for as long as its result is not published;
/// - a watch outlives its deadline, which is for the opening; it ends when it is dropped or cancelled.
#[async_trait]
pub trait Conversations: Send + Sync + 'static {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError>;
    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError>;
    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError>;
    /// Returns how many were new.
    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError>;
    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError>;
    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError>;
    /// Everything committed to one conversation from now on.
    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError>;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenConversation {
    pub id: ConversationId,
    /// The caller's own name for it; unique per tenant.
    pub external_id: Option<String>,
    pub title: Option<String>,
    /// The wire it came in by: `native`, `deepgram`, `file`.
    pub source: String,
    pub language: String,
    /// Free labels given by the caller.
    pub tags: Vec<String>,
    pub channels: Vec<ChannelSpec>,
    pub started_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    pub tenant: TenantId,
    pub id: ConversationId,
    pub external_id: Option<String>,
    pub title: Option<String>,
    pub source: String,
    pub language: String,
    pub tags: Vec<String>,
    pub state: ConversationState,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationState {
    Live,
    Complete,
    /// The caller went away without saying so; what was heard is kept.
    Abandoned,
}

impl ConversationState {
    pub const ALL: [Self; 3] = [Self::Live, Self::Complete, Self::Abandoned];
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Complete => "complete",
            Self::Abandoned => "abandoned",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    pub conversation: ConversationId,
    pub channel: ChannelIndex,
}

/// Where a channel stands after attaching: send from `safe`, number from `next_seq`, sign with `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub epoch: Epoch,
    pub safe: SamplePos,
    pub next_seq: u64,
}

/// A stretch of a channel, ready to be stored. Identity is (conversation, channel, epoch, seq), checked against the range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub conversation: ConversationId,
    pub channel: ChannelIndex,
    pub epoch: Epoch,
    pub seq: u64,
    pub start: SamplePos,
    pub end: SamplePos,
    pub body: SegmentBody,
    /// The utterance's trace, from the socket on.
    pub trace: TraceCx,
}

impl Segment {
    pub fn utterance_id(&self) -> UtteranceId {
        UtteranceId::of(self.conversation, self.channel, self.epoch, self.seq)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CommitOutcome {
    Committed,
    /// Already there, same range.
    Duplicate,
    /// Someone attached since, or the conversation is closed: stop sending.
    Stale,
    /// Segments before it are missing: send again from `next_seq`.
    Ahead {
        next_seq: u64,
        safe: SamplePos,
    },
    /// Same seq, other range: never stored. A fault of the sender.
    Mismatch,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Close {
    pub conversation: ConversationId,
    /// Complete or Abandoned.
    pub state: ConversationState,
    pub ended_at: DateTime<Utc>,
    /// How far each channel was received. A channel that is not named ends where it is committed.
    pub heard: Vec<HeardTo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardTo {
    pub channel: ChannelIndex,
    pub to: SamplePos,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConversationView {
    pub conversation: Conversation,
    pub channels: Vec<ChannelView>,
    pub utterances: Vec<Utterance>,
    pub gaps: Vec<Gap>,
    /// Current ones only; superseded insights stay in the record.
    pub insights: Vec<Insight>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelView {
    pub spec: ChannelSpec,
    pub attached: Attached,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    pub channel: ChannelIndex,
    pub start_ms: u64,
    pub end_ms: u64,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RecordEvent {
    Changed(Conversation),
    Utterance(Utterance),
    Gap(Gap),
    Insight(Insight),
}
