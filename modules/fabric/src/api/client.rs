//! `Conversations` in another process.

use super::Methods;
use crate::{
    context,
    error::from_status,
    guard::{Deadline, items, passes},
    link::Link,
    metrics::Locality,
    wire::{
        Unreadable, all,
        quickcomm::api::v1::{self as pb, conversations_client::ConversationsClient},
    },
};
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, ConversationId, Conversations, EventStream,
    audio::MAX_MESSAGE_BYTES,
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::Insight,
};
use futures::StreamExt;
use std::pin::pin;

pub(crate) struct Remote {
    client: ConversationsClient<Link>,
    methods: Methods,
}

impl Remote {
    pub(crate) fn new(link: Link, endpoint: &str) -> Self {
        let client =
            ConversationsClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, methods: Methods::at(Locality::Remote, &endpoint.into()) }
    }
}

/// One unary call: `$method` of the contract, `$rpc` of the service, the message it sends, and what is made of the reply.
macro_rules! unary {
    ($self:ident, $cx:ident, $bounds:ident, $method:ident, $rpc:ident, $message:expr, |$reply:ident| $answer:expr) => {{
        let work = async {
            let message = $message;
            passes(&message)?;
            let $reply = $self.client.clone().$rpc(context::request(&$cx, message)).await.map_err(from_status)?.into_inner();
            $answer
        };
        $self.methods.$method.call(&$bounds, pin!(work)).await
    }};
}

#[async_trait]
impl Conversations for Remote {
    async fn open(&self, mut cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        let bounds = self.methods.open.enter(&mut cx);
        unary!(self, cx, bounds, open, open, pb::OpenRequest::from(request), |kept| kept.try_into().map_err(Unreadable::in_answer))
    }

    async fn attach(&self, mut cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        let bounds = self.methods.attach.enter(&mut cx);
        unary!(self, cx, bounds, attach, attach, pb::AttachRequest::from(request), |attached| Ok(attached.into()))
    }

    async fn commit(&self, mut cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let bounds = self.methods.commit.enter(&mut cx);
        unary!(self, cx, bounds, commit, commit, pb::CommitRequest::from(segments), |reply| all(reply.outcomes)
            .map_err(Unreadable::in_answer))
    }

    async fn record(&self, mut cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let bounds = self.methods.record.enter(&mut cx);
        unary!(self, cx, bounds, record, record, pb::RecordRequest::from(insights), |reply| Ok(reply.new))
    }

    async fn close(&self, mut cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        let bounds = self.methods.close.enter(&mut cx);
        unary!(self, cx, bounds, close, close, pb::CloseRequest::from(request), |kept| kept.try_into().map_err(Unreadable::in_answer))
    }

    async fn conversation(&self, mut cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        let bounds = self.methods.conversation.enter(&mut cx);
        unary!(self, cx, bounds, conversation, view, pb::ViewRequest::from(id), |view| view.try_into().map_err(Unreadable::in_answer))
    }

    async fn watch(&self, mut cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        let bounds = self.methods.watch.enter(&mut cx);
        let work = async {
            let request = context::request(&cx, pb::WatchRequest::from(id));
            Ok(self.client.clone().watch(request).await.map_err(from_status)?.into_inner())
        };
        let events = self.methods.watch.call(&bounds, pin!(work)).await?;
        let events = events.map(|event| event.map_err(from_status)?.try_into().map_err(Unreadable::in_answer));
        Ok(items(bounds, Deadline::Opening, events.boxed(), |_| Ok(())))
    }
}
