//! Answers that were given before, by the hash of everything that was asked: in the cache of the process, which others may share.
//!
//! What is kept is the model's own text: whoever reads it holds it against what was asked again, so a key that means something else, or a cache
//! that was tampered with, gives no answer that could not have been given. A failure is a miss, and costs a call a few ms at the most.

use bytes::Bytes;
use contracts::TenantId;
use platform::cache::{Front, Key, Place, Recalled, Scope};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

pub(super) struct Remembered {
    cache: Option<Arc<Front>>,
    /// How long an answer is kept.
    life: Duration,
    /// How long the cache is waited for.
    limit: Duration,
}

pub(super) enum Before {
    Said(String),
    /// And where the answer may be kept.
    Nothing(Place),
}

impl Remembered {
    pub(super) fn nothing() -> Self {
        Self { cache: None, life: Duration::ZERO, limit: Duration::ZERO }
    }

    pub(super) fn within(cache: Arc<Front>, life: Duration, limit: Duration) -> Self {
        Self { cache: (!life.is_zero()).then_some(cache), life, limit }
    }

    pub(super) async fn find(&self, key: &Key) -> Before {
        let Some(cache) = &self.cache else { return Before::Nothing(Place::default()) };
        match cache.recall(key, self.limit).await {
            Recalled::Known(content) => match String::from_utf8(content.into()) {
                Ok(content) => Before::Said(content),
                Err(_) => Before::Nothing(Place::default()),
            },
            Recalled::Unknown(place) => Before::Nothing(place),
        }
    }

    pub(super) async fn keep(&self, key: &Key, place: Place, content: &str) {
        if let Some(cache) = &self.cache {
            cache.keep(key, place, Bytes::copy_from_slice(content.as_bytes()), self.life, self.limit).await;
        }
    }
}

/// Of everything the answer follows from: prompt with its version, and all that is sent (model, label sets, schema, sampling, what was said);
/// and of whose conversation it is, so that no tenant learns what another one's callers said.
pub(super) fn key(tenant: &TenantId, prompt: &str, body: &Bytes) -> Key {
    let mut hash = Sha256::new();
    for part in [tenant.as_str().as_bytes(), prompt.as_bytes(), body] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Scope::new(tenant.as_str(), format!("llm:{}", hex::encode(hash.finalize()))).part("answer")
}
