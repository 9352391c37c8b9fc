//! `Inference` in another process.

use super::Methods;
use crate::{
    context,
    error::from_status,
    guard::{Deadline, items, passes},
    link::Link,
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
use std::pin::pin;

pub(crate) struct Remote {
    client: InferenceClient<Link>,
    methods: Methods,
}

impl Remote {
    pub(crate) fn new(link: Link, endpoint: &str) -> Self {
        let client = InferenceClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, methods: Methods::at(Locality::Remote, &endpoint.into()) }
    }
}

#[async_trait]
impl Inference for Remote {
    async fn analyze(&self, mut cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let bounds = self.methods.analyze.enter(&mut cx);
        let work = async {
            let message = pb::AnalyzeRequest::from(request);
            passes(&message)?;
            let reply = self.client.clone().analyze(context::request(&cx, message)).await.map_err(from_status)?;
            all(reply.into_inner().insights).map_err(Unreadable::in_answer)
        };
        self.methods.analyze.call(&bounds, pin!(work)).await
    }

    async fn summarize(&self, mut cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        let bounds = self.methods.summarize.enter(&mut cx);
        let work = async {
            let message = pb::SummarizeRequest::from(request);
            passes(&message)?;
            Ok(self.client.clone().summarize(context::request(&cx, message)).await.map_err(from_status)?.into_inner())
        };
        let summary = self.methods.summarize.call(&bounds, pin!(work)).await?;
        let summary = summary.map(|item| item.map_err(from_status)?.try_into().map_err(Unreadable::in_answer));
        Ok(items(bounds, Deadline::Whole, summary.boxed(), |_| Ok(())))
    }

    async fn tiers(&self, mut cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let bounds = self.methods.tiers.enter(&mut cx);
        let work = async {
            let reply = self.client.clone().tiers(context::request(&cx, pb::TiersRequest {})).await.map_err(from_status)?;
            all(reply.into_inner().tiers).map_err(Unreadable::in_answer)
        };
        self.methods.tiers.call(&bounds, pin!(work)).await
    }
}
