//! A module of this process, behind the same rules as one elsewhere.

use crate::{
    api::Methods as Api,
    audio::Methods as Hearing,
    guard::{Deadline, fits, items},
    inference::Methods as Understanding,
    metrics::Locality,
    wire::quickcomm::{api::v1 as api, audio::v1 as audio, inference::v1 as inference},
};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, ConversationId, Conversations, EventStream, Inference,
    audio::{Session, StreamSpec},
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
};
use std::{pin::pin, sync::Arc};

/// The rules hold for the opening; then frames and events flow as if nothing stood between.
pub fn audio(module: Arc<dyn Audio>) -> Arc<dyn Audio> {
    Arc::new(Local { module, methods: Hearing::new(Locality::Local) })
}

pub fn inference(module: Arc<dyn Inference>) -> Arc<dyn Inference> {
    Arc::new(Local { module, methods: Understanding::new(Locality::Local) })
}

pub fn conversations(module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
    Arc::new(Local { module, methods: Api::new(Locality::Local) })
}

struct Local<T: ?Sized, M> {
    module: Arc<T>,
    methods: M,
}

#[async_trait]
impl Audio for Local<dyn Audio, Hearing> {
    async fn open(&self, mut cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let bounds = self.methods.open.enter(&mut cx);
        let work = async {
            fits::<audio::StreamSpec, _>(&spec)?;
            self.module.open(cx, spec).await
        };
        self.methods.open.call(&bounds, pin!(work)).await
    }
}

#[async_trait]
impl Inference for Local<dyn Inference, Understanding> {
    async fn analyze(&self, mut cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let bounds = self.methods.analyze.enter(&mut cx);
        let work = async {
            fits::<inference::AnalyzeRequest, _>(&request)?;
            let insights = self.module.analyze(cx.clone(), request).await?;
            fits::<inference::AnalyzeReply, _>(&insights)?;
            Ok(insights)
        };
        self.methods.analyze.call(&bounds, pin!(work)).await
    }

    async fn summarize(&self, mut cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let bounds = self.methods.summarize.enter(&mut cx);
        let work = async {
            fits::<inference::SummarizeRequest, _>(&request)?;
            self.module.summarize(cx, request).await
        };
        let summary = self.methods.summarize.call(&bounds, pin!(work)).await?;
        Ok(items(bounds, Deadline::Whole, summary, fits::<inference::SummaryItem, _>))
    }

    async fn tiers(&self, mut cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let bounds = self.methods.tiers.enter(&mut cx);
        self.methods.tiers.call(&bounds, pin!(async { self.module.tiers(cx).await })).await
    }
}

#[async_trait]
impl Conversations for Local<dyn Conversations, Api> {
    async fn open(&self, mut cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        let bounds = self.methods.open.enter(&mut cx);
        let work = async {
            fits::<api::OpenRequest, _>(&request)?;
            self.module.open(cx, request).await
        };
        self.methods.open.call(&bounds, pin!(work)).await
    }

    async fn attach(&self, mut cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        let bounds = self.methods.attach.enter(&mut cx);
        self.methods.attach.call(&bounds, pin!(async { self.module.attach(cx, request).await })).await
    }

    async fn commit(&self, mut cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let bounds = self.methods.commit.enter(&mut cx);
        let work = async {
            fits::<api::CommitRequest, _>(&segments)?;
            self.module.commit(cx, segments).await
        };
        self.methods.commit.call(&bounds, pin!(work)).await
    }

    async fn record(&self, mut cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let bounds = self.methods.record.enter(&mut cx);
        let work = async {
            fits::<api::RecordRequest, _>(&insights)?;
            self.module.record(cx, insights).await
        };
        self.methods.record.call(&bounds, pin!(work)).await
    }

    async fn close(&self, mut cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        let bounds = self.methods.close.enter(&mut cx);
        self.methods.close.call(&bounds, pin!(async { self.module.close(cx, request).await })).await
    }

    async fn conversation(&self, mut cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        let bounds = self.methods.conversation.enter(&mut cx);
        let work = async {
            let view = self.module.conversation(cx, id).await?;
            fits::<api::ConversationView, _>(&view)?;
            Ok(view)
        };
        self.methods.conversation.call(&bounds, pin!(work)).await
    }

    async fn watch(&self, mut cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        let bounds = self.methods.watch.enter(&mut cx);
        let events = self.methods.watch.call(&bounds, pin!(async { self.module.watch(cx, id).await })).await?;
        Ok(items(bounds, Deadline::Opening, events, fits::<api::RecordEvent, _>))
    }
}
