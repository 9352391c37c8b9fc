//! In this process, behind the rules.

use crate::local;
use async_trait::async_trait;
use contracts::{Audio, Conversations, Inference, testing::Place};
use std::sync::Arc;

pub(super) struct Here;

#[async_trait]
impl Place for Here {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        local::audio(module)
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        local::inference(module)
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        local::conversations(module)
    }
}
