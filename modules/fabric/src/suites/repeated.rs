//! Elsewhere, and everything that may be repeated arrives twice: as when an answer was lost and the call was made again.

use super::elsewhere::{Beyond, Elsewhere};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, ConversationId, Conversations, EventStream, Inference,
    audio::{Session, StreamSpec},
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
    testing::{FakeAudio, FakeConversations, FakeInference, Place},
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Repeated<B>(pub(super) Elsewhere<B>);

struct Twice<T: ?Sized>(Arc<T>);

#[async_trait]
impl Audio for Twice<dyn Audio> {
    async fn open(&self, cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        drop(self.0.open(cx.clone(), spec.clone()).await); // whose answer was lost
        self.0.open(cx, spec).await
    }
}

#[async_trait]
impl Inference for Twice<dyn Inference> {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let first = self.0.analyze(cx.clone(), request.clone()).await;
        assert_eq!(self.0.analyze(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        drop(self.0.summarize(cx.clone(), request.clone()).await);
        self.0.summarize(cx, request).await
    }
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let first = self.0.tiers(cx.clone()).await;
        assert_eq!(self.0.tiers(cx).await, first, "the repetition is answered alike");
        first
    }
}

#[async_trait]
impl Conversations for Twice<dyn Conversations> {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        let first = self.0.open(cx.clone(), request.clone()).await;
        assert_eq!(self.0.open(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        self.0.attach(cx, request).await
    }
    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let first = self.0.commit(cx.clone(), segments.clone()).await?;
        // What was ahead may fit by now, so it is no repetition.
        let done = segments.into_iter().zip(&first).filter(|(_, outcome)| **outcome == CommitOutcome::Committed);
        let again: Vec<Segment> = done.map(|(segment, _)| segment).collect();
        let outcomes = self.0.commit(cx, again).await?;
        assert!(outcomes.iter().all(|outcome| *outcome == CommitOutcome::Duplicate), "{outcomes:?}");
        Ok(first)
    }
    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let first = self.0.record(cx.clone(), insights.clone()).await;
        let _ = self.0.record(cx, insights).await; // nothing new now
        first
    }
    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        let first = self.0.close(cx.clone(), request.clone()).await;
        assert_eq!(self.0.close(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        self.0.conversation(cx, id).await
    }
    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        self.0.watch(cx, id).await
    }
}

#[async_trait]
impl<B: Beyond> Place for Repeated<B> {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio> {
        Arc::new(Twice(self.0.audio(fake).await))
    }
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference> {
        Arc::new(Twice(self.0.inference(fake).await))
    }
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations> {
        Arc::new(Twice(self.0.conversations(fake).await))
    }
}
