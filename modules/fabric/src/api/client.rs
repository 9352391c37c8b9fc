//! `Conversations` in another process.

use super::Methods;
use crate::{
    context,
    error::from_status,
    guard::{Bounds, Deadline, items, passes},
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
use tonic::transport::Channel;

pub(crate) struct Remote {
    client: ConversationsClient<Channel>,
    methods: Methods,
}

impl Remote {
    pub(crate) fn new(channel: Channel, endpoint: &str) -> Self {
        let client =
            ConversationsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, methods: Methods::at(Locality::Remote, &endpoint.into()) }
    }
}

/// One unary call: `$method` of the contract, `$rpc` of the service, the message it sends, and what is made of the reply.
macro_rules! unary {
    ($self:ident, $cx:ident, $method:ident, $rpc:ident, $message:expr, |$reply:ident| $answer:expr) => {{
        let work = async {
            let message = $message;
            passes(&message)?;
            let $reply = $self.client.clone().$rpc(context::request(&$cx, message)).await.map_err(from_status)?.into_inner();
            $answer
        };
        $self.methods.$method.call(Bounds::of(&$cx), work).await
    }};
}

#[async_trait]
impl Conversations for Remote {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        unary!(self, cx, open, open, pb::OpenRequest::from(request), |kept| kept.try_into().map_err(Unreadable::in_answer))
    }

    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        unary!(self, cx, attach, attach, pb::AttachRequest::from(request), |attached| Ok(attached.into()))
    }

    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        unary!(self, cx, commit, commit, pb::CommitRequest::from(segments), |reply| all(reply.outcomes).map_err(Unreadable::in_answer))
    }

    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        unary!(self, cx, record, record, pb::RecordRequest::from(insights), |reply| Ok(reply.new))
    }

    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        unary!(self, cx, close, close, pb::CloseRequest::from(request), |kept| kept.try_into().map_err(Unreadable::in_answer))
    }

    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        unary!(self, cx, conversation, view, pb::ViewRequest::from(id), |view| view.try_into().map_err(Unreadable::in_answer))
    }

    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        let bounds = Bounds::of(&cx);
        let work = async {
            let request = context::request(&cx, pb::WatchRequest::from(id));
            Ok(self.client.clone().watch(request).await.map_err(from_status)?.into_inner())
        };
        let events = self.methods.watch.call(bounds.clone(), work).await?;
        let events = events.map(|event| event.map_err(from_status)?.try_into().map_err(Unreadable::in_answer));
        Ok(items(bounds, Deadline::Opening, events.boxed(), |_| Ok(())))
    }
}
