//! Where a suite puts a fake before it calls it.

use super::{FakeAudio, FakeConversations, FakeInference};
use crate::{Audio, Conversations, Inference};
use async_trait::async_trait;
use std::sync::Arc;

/// Puts a module somewhere and returns the handle through which it is reached; it stays there while the place lives.
///
/// Fakes, and not any module, because a fake in another process is told by its strings what to do, and a module is not.
#[async_trait]
pub trait Place: Send + Sync {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio>;
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference>;
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations>;
}
