//! `Conversations` for other processes.

use super::Methods;
use crate::{
    guard::Deadline,
    inference::wire::conversation,
    metrics::Locality,
    served::{Served, Stream},
    wire::{
        Unreadable, all,
        quickcomm::api::v1::{self as pb, conversations_server},
    },
};
use contracts::Conversations;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Server {
    module: Arc<dyn Conversations>,
    methods: Methods,
    served: Served,
}

impl Server {
    pub(crate) fn new(module: Arc<dyn Conversations>, served: Served) -> Self {
        Self { module, methods: Methods::new(Locality::Served), served }
    }
}

#[tonic::async_trait]
impl conversations_server::Conversations for Server {
    async fn open(&self, request: Request<pb::OpenRequest>) -> Result<Response<pb::Conversation>, Status> {
        self.served
            .unary(&self.methods.open, request, async |cx, request| {
                let request = request.try_into().map_err(Unreadable::in_request)?;
                Ok(self.module.open(cx, request).await?.into())
            })
            .await
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Result<Response<pb::Attached>, Status> {
        self.served
            .unary(&self.methods.attach, request, async |cx, request| {
                let request = request.try_into().map_err(Unreadable::in_request)?;
                Ok(self.module.attach(cx, request).await?.into())
            })
            .await
    }

    async fn commit(&self, request: Request<pb::CommitRequest>) -> Result<Response<pb::CommitReply>, Status> {
        self.served
            .unary(&self.methods.commit, request, async |cx, request| {
                let segments = all(request.segments).map_err(Unreadable::in_request)?;
                Ok(self.module.commit(cx, segments).await?.into())
            })
            .await
    }

    async fn record(&self, request: Request<pb::RecordRequest>) -> Result<Response<pb::RecordReply>, Status> {
        self.served
            .unary(&self.methods.record, request, async |cx, request| {
                let insights = all(request.insights).map_err(Unreadable::in_request)?;
                Ok(pb::RecordReply { new: self.module.record(cx, insights).await? })
            })
            .await
    }

    async fn close(&self, request: Request<pb::CloseRequest>) -> Result<Response<pb::Conversation>, Status> {
        self.served
            .unary(&self.methods.close, request, async |cx, request| {
                let request = request.try_into().map_err(Unreadable::in_request)?;
                Ok(self.module.close(cx, request).await?.into())
            })
            .await
    }

    async fn view(&self, request: Request<pb::ViewRequest>) -> Result<Response<pb::ConversationView>, Status> {
        self.served
            .unary(&self.methods.conversation, request, async |cx, request| {
                let id = conversation(&request.conversation).map_err(Unreadable::in_request)?;
                Ok(self.module.conversation(cx, id).await?.into())
            })
            .await
    }

    type WatchStream = Stream<pb::RecordEvent>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.served
            .stream(&self.methods.watch, Deadline::Opening, request, async |cx, request| {
                let id = conversation(&request.conversation).map_err(Unreadable::in_request)?;
                self.module.watch(cx, id).await
            })
            .await
    }
}
