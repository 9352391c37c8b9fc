//! Behind a link, as in another process.

use crate::{api, audio, inference, link::Link, role::Role, serve::Services};
use async_trait::async_trait;
use contracts::{
    Audio, Conversations, Inference,
    testing::{FakeAudio, FakeConversations, FakeInference, Place},
};
use std::sync::Arc;

/// Serves modules where a link leads to them.
#[async_trait]
pub(super) trait Beyond: Send + Sync {
    async fn reach(&self, role: Role, services: Services) -> Link;
}

/// Every call goes there.
#[derive(Default)]
pub(super) struct Elsewhere<B>(pub(super) B);

pub(super) const FAR: &str = "elsewhere";

impl<B: Beyond> Elsewhere<B> {
    pub(super) async fn of_audio(&self, module: Arc<dyn Audio>) -> (Arc<dyn Audio>, Link) {
        let link = self.0.reach(Role::Audio, Services { audio: Some(module), ..Default::default() }).await;
        (Arc::new(audio::client::Remote::new(link.clone(), FAR)), link)
    }
    pub(super) async fn of_inference(&self, module: Arc<dyn Inference>) -> (Arc<dyn Inference>, Link) {
        let link = self.0.reach(Role::Inference, Services { inference: Some(module), ..Default::default() }).await;
        (Arc::new(inference::client::Remote::new(link.clone(), FAR)), link)
    }
    pub(super) async fn of_conversations(&self, module: Arc<dyn Conversations>) -> (Arc<dyn Conversations>, Link) {
        let link = self.0.reach(Role::Api, Services { conversations: Some(module), ..Default::default() }).await;
        (Arc::new(api::client::Remote::new(link.clone(), FAR)), link)
    }
}

#[async_trait]
impl<B: Beyond> Place for Elsewhere<B> {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio> {
        self.of_audio(Arc::new(fake)).await.0
    }
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference> {
        self.of_inference(Arc::new(fake)).await.0
    }
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations> {
        self.of_conversations(Arc::new(fake)).await.0
    }
}
