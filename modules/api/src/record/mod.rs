//! The record: what was said and what it meant, kept so that it survives kill -9.
//!
//! Invariants:
//! - a channel's committed ranges are contiguous, never overlap, and carry one epoch at a time (`commit.rs`);
//! - one thread writes; what waits for it is merged into one transaction, and each request has its own answer (`writer.rs`);
//! - whatever is stored is announced after its transaction, in order, at least once (`outbox.rs`).
//!
//! Deliberately absent: sockets, models, audio. Only this folder names diesel.

mod rows;

use crate::settings::Settings;
use chrono::{DateTime, Utc};
use contracts::{
    CallError, ConversationId, TenantId,
    audio::Role,
    conversation::{ConversationState, RecordEvent},
    inference::Task,
};
use platform::bus::Bus;
pub use rows::{
    ChannelRow, ChannelTalk, ConversationRow, EvidenceRow, HitConversation, HitUtterance, InsightRow, LabelRow, Page, ProvenanceRow,
    SearchHit, SnippetPart, TalkMetrics, TopLabel, UtteranceKind, UtteranceRow, WordRow,
};
use std::{path::Path, sync::Arc};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Where a page starts and how long it may be.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// `next_cursor` of the page before, as it was given out.
    pub cursor: Option<String>,
    /// 1 to 200; other values are refused as invalid input. `None`: 50.
    pub limit: Option<u32>,
}

/// Which conversations to list; every field narrows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConversationFilter {
    pub state: Option<ConversationState>,
    /// Started at or after.
    pub from: Option<DateTime<Utc>>,
    /// Started before.
    pub to: Option<DateTime<Utc>>,
    pub tag: Option<String>,
    /// Name of the conversation's top intent.
    pub intent: Option<String>,
    pub sentiment: Option<String>,
}

/// Where to search; every field narrows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchFilter {
    pub role: Option<Role>,
    /// The conversation started at or after.
    pub from: Option<DateTime<Utc>>,
    /// The conversation started before.
    pub to: Option<DateTime<Utc>>,
}

/// Something that has been stored, with the rows a reader needs to show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Place in the outbox: rises by at least one with every change.
    pub id: i64,
    pub tenant: TenantId,
    pub conversation: ConversationId,
    pub event: RecordEvent,
    pub rows: ChangeRows,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ChangeRows {
    /// Opened, closed.
    Conversation(ConversationRow),
    /// Speech or gap. `conversation` has the counts as they are now.
    Utterance { utterance: UtteranceRow, conversation: ConversationRow },
    /// `superseded`: the insights this one has taken the place of. `conversation` has intent and sentiment as they are now.
    Insight { insight: InsightRow, superseded: Vec<contracts::InsightId>, conversation: ConversationRow },
}

/// Why the record cannot be opened; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Folder(String),
}

pub struct Record {}

impl Record {
    /// Opens the record in the folder `data`, alone: a second opener is refused.
    pub async fn open(_data: &Path, _bus: Arc<dyn Bus>, _settings: &Settings) -> Result<Arc<Self>, OpenError> {
        Err(OpenError::Folder("the record is being built".into()))
    }

    /// Runs recorder and relay until `stop`, then finishes what was accepted.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        stop.cancelled().await
    }

    /// Waits until everything queued is stored and announced, then takes no more.
    pub async fn drain(&self) {}

    /// Every change from now on. A reader that falls 4096 behind gets `Lagged` and should read a fresh snapshot.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Change>> {
        broadcast::channel(1).1
    }

    /// Newest first.
    pub async fn list(&self, _tenant: &TenantId, _filter: &ConversationFilter, _cut: &Cut) -> Result<Page<ConversationRow>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// # Errors
    /// `NotFound`, as for all reads of one conversation.
    pub async fn row(&self, _tenant: &TenantId, _id: ConversationId) -> Result<ConversationRow, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// Live ones, and those that ended at or after `since`; newest first, at most 500. For the wall.
    pub async fn wall(&self, _tenant: &TenantId, _since: DateTime<Utc>) -> Result<Vec<ConversationRow>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// Speech and gaps, by start.
    pub async fn utterances(&self, _tenant: &TenantId, _id: ConversationId, _cut: &Cut) -> Result<Page<UtteranceRow>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// All of a conversation's, speech and gaps, by start; at most 10 000.
    pub async fn transcript(&self, _tenant: &TenantId, _id: ConversationId) -> Result<Vec<UtteranceRow>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// Oldest first. Superseded ones only when asked for.
    pub async fn insights(
        &self,
        _tenant: &TenantId,
        _id: ConversationId,
        _superseded: bool,
        _task: Option<Task>,
    ) -> Result<Vec<InsightRow>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    /// Newest first. Every word must occur; the last one may be a beginning.
    pub async fn search(&self, _tenant: &TenantId, _q: &str, _filter: &SearchFilter, _cut: &Cut) -> Result<Page<SearchHit>, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }

    pub async fn metrics(&self, _tenant: &TenantId, _id: ConversationId) -> Result<TalkMetrics, CallError> {
        Err(CallError::unavailable("the record is being built"))
    }
}
