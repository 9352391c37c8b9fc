//! `Inference` for other processes.

use super::Methods;
use crate::{
    guard::Deadline,
    metrics::Locality,
    served::{Served, Stream},
    wire::{
        Unreadable,
        quickcomm::inference::v1::{self as pb, inference_server},
    },
};
use contracts::Inference;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Server {
    pub(crate) module: Arc<dyn Inference>,
    pub(crate) methods: Methods,
    pub(crate) served: Served,
}

impl Server {
    pub(crate) fn new(module: Arc<dyn Inference>, served: Served) -> Self {
        Self { module, methods: Methods::new(Locality::Served), served }
    }
}

#[tonic::async_trait]
impl inference_server::Inference for Server {
    async fn analyze(&self, request: Request<pb::AnalyzeRequest>) -> Result<Response<pb::AnalyzeReply>, Status> {
        self.served
            .unary(&self.methods.analyze, request, async |cx, request| {
                let request = request.try_into().map_err(Unreadable::in_request)?;
                Ok(self.module.analyze(cx, request).await?.into())
            })
            .await
    }

    type SummarizeStream = Stream<pb::SummaryItem>;

    async fn summarize(&self, request: Request<pb::SummarizeRequest>) -> Result<Response<Self::SummarizeStream>, Status> {
        self.served
            .stream(&self.methods.summarize, Deadline::Whole, request, async |cx, request| {
                let request = request.try_into().map_err(Unreadable::in_request)?;
                self.module.summarize(cx, request).await
            })
            .await
    }

    async fn tiers(&self, request: Request<pb::TiersRequest>) -> Result<Response<pb::TiersReply>, Status> {
        self.served.unary(&self.methods.tiers, request, async |cx, _| Ok(self.module.tiers(cx).await?.into())).await
    }
}
