//! The contracts, each kept by whoever the table says.

use super::router::{Method, Router};
use crate::{api::Methods as Api, audio::Methods as Hearing, inference::Methods as Understanding};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, ConversationId, Conversations, EventStream, Inference,
    audio::{Session, StreamSpec},
    call_cx::RouteKey,
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::{Analyze, Insight, Label, Summarize, SummaryItem, TierStatus},
};
use futures::StreamExt;
use std::{pin::pin, sync::Arc, time::Duration};
use tracing::info;

/// The router's part of a call is pinned in place: by value it would be copied into each layer around it.
pub(super) struct Routed<T: ?Sized, M> {
    pub(super) router: Arc<Router<T>>,
    pub(super) methods: M,
}

const fn method(name: &'static str, attempt_ms: u64) -> Method {
    Method { name, idempotent: true, attempt: Duration::from_millis(attempt_ms), brisk: true }
}

// Opening never waits for audio; an analysis may wait for a model.
const OPEN_STREAM: Method = method("open", 2000);
const ANALYZE: Method = method("analyze", 4000);
/// As long as a call is, and a language model slow; of the 20 s that a result may take, some are left for another target.
const SUMMARIZE: Method = Method { brisk: false, ..method("summarize", 15_000) };
const TIERS: Method = method("tiers", 1000);
const OPEN: Method = method("open", 3000);
/// Raises the epoch: whoever attached first would be sent away by the repetition.
const ATTACH: Method = Method { idempotent: false, ..method("attach", 3000) };
const COMMIT: Method = method("commit", 3000);
const RECORD: Method = method("record", 3000);
const CLOSE: Method = method("close", 3000);
const VIEW: Method = method("conversation", 3000);
const WATCH: Method = method("watch", 3000);

#[async_trait]
impl Audio for Routed<dyn Audio, Hearing> {
    /// A session is opened where the table says, and stays there.
    async fn open(&self, mut cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let bounds = self.methods.open.enter(&mut cx);
        let (key, at_ms) = (cx.key, spec.rate.ms_at(spec.start));
        let work = async {
            let opened = self.router.call(OPEN_STREAM, cx.clone(), spec, |peer, cx, spec| async move { peer.open(cx, spec).await });
            let (session, target) = opened.await?;
            self.router.live.add(key, &target.name, session.events.mover());
            if let RouteKey::Conversation(id) = key {
                info!(conversation = %id, at_ms, place = target.name, "stream opened");
            }
            Ok(session)
        };
        self.methods.open.call(&bounds, pin!(work)).await
    }
}

#[async_trait]
impl Inference for Routed<dyn Inference, Understanding> {
    async fn analyze(&self, mut cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let bounds = self.methods.analyze.enter(&mut cx);
        let work = pin!(self.router.shadowed(
            ANALYZE,
            |one: &Vec<_>, other| say_the_same(one, other),
            cx,
            request,
            |peer, cx, request| async move { peer.analyze(cx, request).await },
        ));
        self.methods.analyze.call(&bounds, work).await
    }

    async fn summarize(&self, mut cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let bounds = self.methods.summarize.enter(&mut cx);
        let work =
            self.router.call(SUMMARIZE, cx, request, |peer, cx, request| async move { begin(peer.summarize(cx, request).await?).await });
        let work = pin!(work);
        self.methods.summarize.call(&bounds, pin!(async { Ok(work.await?.0) })).await
    }

    async fn tiers(&self, mut cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let bounds = self.methods.tiers.enter(&mut cx);
        let work = pin!(self.router.call(TIERS, cx, (), |peer, cx, ()| async move { peer.tiers(cx).await }));
        self.methods.tiers.call(&bounds, pin!(async { Ok(work.await?.0) })).await
    }
}

/// Waits for the first item: until then another target can begin anew, and nobody notices.
async fn begin(items: EventStream<SummaryItem>) -> Result<EventStream<SummaryItem>, CallError> {
    let mut items = items.fuse();
    let first = items.next().await.transpose()?;
    Ok(futures::stream::iter(first.map(Ok)).chain(items).boxed())
}

/// Two analyses agree when each utterance has the same first label for each task, or none in both.
fn say_the_same(one: &[Insight], other: &[Insight]) -> bool {
    let said = |insights: &[Insight]| {
        let mut said: Vec<_> =
            insights.iter().map(|i| (i.utterance, i.task, i.labels.first().map(|Label { name, .. }| name.clone()))).collect();
        said.sort();
        said
    };
    said(one) == said(other)
}

/// One method of the record, whose arguments are its request.
macro_rules! ask {
    ($self:ident, $cx:ident, $method:expr, $name:ident, $request:expr) => {{
        let bounds = $self.methods.$name.enter(&mut $cx);
        let work = pin!($self.router.call($method, $cx, $request, |peer, cx, request| async move { peer.$name(cx, request).await }));
        $self.methods.$name.call(&bounds, pin!(async { Ok(work.await?.0) })).await
    }};
}

#[async_trait]
impl Conversations for Routed<dyn Conversations, Api> {
    async fn open(&self, mut cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        ask!(self, cx, OPEN, open, request)
    }

    async fn attach(&self, mut cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        ask!(self, cx, ATTACH, attach, request)
    }

    async fn commit(&self, mut cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        ask!(self, cx, COMMIT, commit, segments)
    }

    async fn record(&self, mut cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        ask!(self, cx, RECORD, record, insights)
    }

    async fn close(&self, mut cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        ask!(self, cx, CLOSE, close, request)
    }

    async fn conversation(&self, mut cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        ask!(self, cx, VIEW, conversation, id)
    }

    async fn watch(&self, mut cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        ask!(self, cx, WATCH, watch, id)
    }
}
