//! The record as the contract `Conversations`.

use super::{
    ChangeRows, Record, commit, conversations,
    insights::{self, Recorded, Utterances},
    outbox::{self, Missed},
    rows::UtteranceKind,
    transcript,
};
use crate::metrics as names;
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, ConversationId, Conversations, ErrorKind, EventStream, Retry, TenantId,
    audio::SegmentBody,
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::Insight,
};
use futures::stream;
use platform::trace::{Side, Span};
use std::time::SystemTime;
use tracing::{debug, info, warn};

#[async_trait]
impl Conversations for Record {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        conversations::check_open(&request)?;
        let tenant = cx.tenant.clone();
        self.writer.ask(&cx, 1, move |conn, effects| conversations::open(conn, effects, &tenant, &request)).await
    }

    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        let tenant = cx.tenant.clone();
        self.writer.ask(&cx, 1, move |conn, _| conversations::attach(conn, &tenant, &request)).await
    }

    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let tenant = cx.tenant.clone();
        self.commit_batch(&cx, &tenant, segments).await
    }

    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let tenant = cx.tenant.clone();
        let outcomes = self.write_insights(&cx, &tenant, insights, Utterances::MayBeMissing).await?;
        Ok(outcomes.iter().filter(|o| **o == Recorded::New).count() as u32)
    }

    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        conversations::check_close(&request)?;
        let tenant = cx.tenant.clone();
        self.writer.ask(&cx, 1, move |conn, effects| conversations::close(conn, effects, &tenant, &request)).await
    }

    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        let tenant = cx.tenant.clone();
        let read = self.readers.read("conversation", move |conn| {
            let entry = conversations::find(conn, &tenant, id)?.ok_or_else(|| conversations::unknown(id))?;
            let channels = conversations::channels_of(conn, &tenant, id)?;
            let said = transcript::page(conn, &tenant, id, None, super::MOST_UTTERANCES)?.data;
            Ok(ConversationView {
                conversation: entry.conversation()?,
                channels: channels.iter().map(|c| c.view()).collect::<Result<_, _>>()?,
                utterances: said.iter().filter(|u| u.kind == UtteranceKind::Speech).map(|u| u.utterance()).collect(),
                gaps: said.iter().filter(|u| u.kind == UtteranceKind::Gap).map(|u| u.gap()).collect(),
                insights: insights::of_conversation(conn, &tenant, id, false, None)?.iter().map(|i| i.insight()).collect(),
            })
        });
        super::store::within(&cx, read).await
    }

    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        let changes = self.subscribe(); // before looking, so that nothing falls between
        let tenant = cx.tenant.clone();
        let asked = tenant.clone();
        // What was committed before this call may still be on its way to `changes`.
        let from = self.readers.read("watch", move |conn| {
            conversations::find(conn, &asked, id)?.ok_or_else(|| conversations::unknown(id))?;
            outbox::position(conn)
        });
        let from = super::store::within(&cx, from).await?;
        let events = stream::unfold(Some(changes), move |changes| {
            let (tenant, from) = (tenant.clone(), from.clone());
            async move {
                let mut changes = changes?;
                loop {
                    match changes.recv().await {
                        Ok(change) if change.conversation == id && change.tenant == tenant && !from.contains(&change) => {
                            return Some((Ok(change.event.clone()), Some(changes)));
                        }
                        Ok(_) => {}
                        Err(Missed::Closed) => return None,
                        Err(why) => {
                            let detail = format!("the watcher misses changes ({why}): read the conversation and watch again");
                            return Some((Err(CallError::new(ErrorKind::Unavailable, Retry::Safe, detail)), None));
                        }
                    }
                }
            }
        });
        Ok(Box::pin(events))
    }
}

impl Record {
    /// Commits segment by segment, in one transaction with whatever else waits; counts and logs each outcome.
    pub(super) async fn commit_batch(
        &self,
        cx: &CallCx,
        tenant: &TenantId,
        segments: Vec<Segment>,
    ) -> Result<Vec<CommitOutcome>, CallError> {
        if segments.is_empty() {
            return Ok(vec![]);
        }
        let began = SystemTime::now();
        let segments = std::sync::Arc::new(segments);
        let (of, batch) = (tenant.clone(), segments.clone());
        let outcomes = self.writer.ask(cx, segments.len(), move |conn, effects| commit::commit(conn, effects, &of, &batch)).await?;
        for (segment, outcome) in segments.iter().zip(&outcomes) {
            note(segment, outcome, began);
        }
        debug!(segments = segments.len(), "segments answered");
        Ok(outcomes)
    }

    /// Records insights whose utterances are there; the others are named orphans.
    pub(super) async fn record_batch(&self, cx: &CallCx, tenant: &TenantId, insights: Vec<Insight>) -> Result<Vec<Recorded>, CallError> {
        self.write_insights(cx, tenant, insights, Utterances::MustExist).await
    }

    async fn write_insights(
        &self,
        cx: &CallCx,
        tenant: &TenantId,
        batch: Vec<Insight>,
        utterances: Utterances,
    ) -> Result<Vec<Recorded>, CallError> {
        if batch.is_empty() {
            return Ok(vec![]);
        }
        let tenant = tenant.clone();
        let rows = batch.len();
        let outcomes = self.writer.ask(cx, rows, move |conn, effects| insights::record(conn, effects, &tenant, &batch, utterances)).await?;
        let new = outcomes.iter().filter(|o| **o == Recorded::New).count();
        metrics::counter!(names::INSIGHTS_TOTAL).increment(new as u64);
        debug!(insights = rows, new, "insights answered");
        Ok(outcomes)
    }
}

fn note(segment: &Segment, outcome: &CommitOutcome, began: SystemTime) {
    let Segment { conversation, channel, epoch, seq, .. } = *segment;
    let trace_id = segment.trace.trace_id_hex();
    let name = match outcome {
        CommitOutcome::Committed => {
            if !matches!(segment.body, SegmentBody::Silence) {
                let utterance = segment.utterance_id();
                info!(trace_id, %conversation, %channel, seq, %utterance, "utterance committed");
            }
            "committed"
        }
        CommitOutcome::Duplicate => "duplicate",
        CommitOutcome::Ahead { .. } => "ahead",
        CommitOutcome::Stale => {
            warn!(trace_id, %conversation, %channel, %epoch, seq, "a segment was refused: someone attached since, or it is closed");
            "stale"
        }
        CommitOutcome::Mismatch => {
            warn!(trace_id, %conversation, %channel, %epoch, seq, start = %segment.start, end = %segment.end, "a segment was refused: its range does not fit");
            "mismatch"
        }
    };
    Span::begun_at(began, "commit", Side::Consumer, segment.trace.child(), segment.trace).note("outcome", name);
    metrics::counter!(names::SEGMENTS_TOTAL, "outcome" => name).increment(1);
}

impl ChangeRows {
    /// The conversation as it is after the change.
    pub fn conversation(&self) -> &super::ConversationRow {
        match self {
            Self::Conversation(row) => row,
            Self::Utterance { conversation, .. } | Self::Insight { conversation, .. } => conversation,
        }
    }
}
