//! In this process, behind the rules.

use crate::local;
use async_trait::async_trait;
use contracts::{
    Audio, Conversations, Inference,
    testing::{FakeAudio, FakeConversations, FakeInference, Place},
};
use std::sync::Arc;

pub(super) struct Here;

#[async_trait]
impl Place for Here {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio> {
        local::audio(Arc::new(fake))
    }
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference> {
        local::inference(Arc::new(fake))
    }
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations> {
        local::conversations(Arc::new(fake))
    }
}
