//! Where a suite puts an implementation before it calls it.

use crate::{Audio, Conversations, Inference};
use async_trait::async_trait;
use std::sync::Arc;

/// Puts a module somewhere and returns the handle through which it is reached; it stays there while the place lives.
#[async_trait]
pub trait Place: Send + Sync {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio>;
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference>;
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations>;
}
