//! `Inference` in another process.

use super::Methods;
use crate::{
    context,
    error::from_status,
    guard::{Bounds, Deadline, items, passes},
    metrics::Locality,
    wire::{
        Unreadable, all,
        quickcomm::inference::v1::{self as pb, inference_client::InferenceClient},
    },
};
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, EventStream, Inference,
    audio::MAX_MESSAGE_BYTES,
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
};
use futures::StreamExt;
use tonic::transport::Channel;

pub(crate) struct Remote {
    client: InferenceClient<Channel>,
    methods: Methods,
}

impl Remote {
    pub(crate) fn new(channel: Channel, endpoint: &str) -> Self {
        let client =
            InferenceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, methods: Methods::at(Locality::Remote, &endpoint.into()) }
    }
}

#[async_trait]
impl Inference for Remote {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let work = async {
            let message = pb::AnalyzeRequest::from(request);
            passes(&message)?;
            let reply = self.client.clone().analyze(context::request(&cx, message)).await.map_err(from_status)?;
            all(reply.into_inner().insights).map_err(Unreadable::in_answer)
        };
        self.methods.analyze.call(Bounds::of(&cx), work).await
    }

    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let bounds = Bounds::of(&cx);
        let work = async {
            let message = pb::SummarizeRequest::from(request);
            passes(&message)?;
            Ok(self.client.clone().summarize(context::request(&cx, message)).await.map_err(from_status)?.into_inner())
        };
        let summary = self.methods.summarize.call(bounds.clone(), work).await?;
        let summary = summary.map(|item| item.map_err(from_status)?.try_into().map_err(Unreadable::in_answer));
        Ok(items(bounds, Deadline::Whole, summary.boxed(), |_| Ok(())))
    }

    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let work = async {
            let reply = self.client.clone().tiers(context::request(&cx, pb::TiersRequest {})).await.map_err(from_status)?;
            all(reply.into_inner().tiers).map_err(Unreadable::in_answer)
        };
        self.methods.tiers.call(Bounds::of(&cx), work).await
    }
}
