//! What was worked out once and follows from its key alone, such as a model's answer: nothing voids it, it only ends.
//!
//! Invariants:
//! - whoever asks waits no longer than it says, and a cache that is late or away is a miss; then it is not asked for a moment;
//! - a call that is late goes on beside: its connection is whole when it ends, and is used again;
//! - nobody waits for somebody else who is working the same out: an answer twice costs less than one that comes too late.

use super::{
    super::{CacheError, Key, Lease, Look, NewValue, Put, Stamp, Value, metrics as names},
    Front,
};
use bytes::Bytes;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, timeout};

/// After it was late.
const REST: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum Recalled {
    Known(Bytes),
    /// And where it may be kept once it is worked out.
    Unknown(Place),
}

/// Where something may be kept; by default nobody has asked for it yet.
#[derive(Debug, Default)]
pub struct Place(Option<Lease>);

impl Front {
    /// What was kept under a key, if that can be said within `limit`.
    pub async fn recall(&self, key: &Key, limit: Duration) -> Recalled {
        let Some(cache) = &self.cache else { return Recalled::Unknown(Place::default()) };
        let near = self.first.as_ref().and_then(|first| first.get(key, None)).or_else(|| cache.peek(key, None));
        if let Some(body) = near.and_then(|value| value.body) {
            return Recalled::Known(body);
        }
        let ticket = self.first.as_ref().map(|first| first.ticket(&key.scope));
        let (asked, of) = (cache.clone(), key.clone());
        let looked = self.in_time("recall", limit, async move { asked.look(&of, None).await }).await;
        let (value, lease) = match looked {
            None => (None, None),
            Some(Look::Fresh(value)) => (Some(value), None),
            // It cannot be out of date, however old it is.
            Some(Look::Fill { lease, stale }) => (stale, Some(lease)),
            Some(Look::Wait { stale }) => (stale, None),
        };
        match value.as_ref().and_then(|value| value.body.clone()) {
            None => Recalled::Unknown(Place(lease)),
            Some(body) => {
                if let (Some(first), Some(ticket), Some(value)) = (&self.first, ticket, &value) {
                    first.put(key, ticket, value);
                }
                Recalled::Known(body)
            }
        }
    }

    /// Keeps what was worked out for `life`. Waits no longer than `limit`, and goes on beside.
    pub async fn keep(&self, key: &Key, place: Place, body: Bytes, life: Duration, limit: Duration) {
        let Some(cache) = self.cache.clone() else { return };
        if let Some(first) = &self.first {
            let value = Value { stamp: Stamp::default(), age: Duration::ZERO, left: life, over: Duration::ZERO, body: Some(body.clone()) };
            first.put(key, first.ticket(&key.scope), &value);
        }
        let key = key.clone();
        let keep = async move {
            let value = NewValue { stamp: Stamp::default(), body: Some(body), took: Duration::ZERO, ttl: life };
            if let Some(lease) = place.0
                && cache.put(&key, lease, value.clone()).await? != Put::LeaseVoid
            {
                return Ok(());
            }
            // It took longer than a lease lasts, or another was at it.
            if let Look::Fill { lease, .. } = cache.look(&key, None).await? {
                cache.put(&key, lease, value).await?;
            }
            Ok(())
        };
        self.in_time("keep", limit, keep).await;
    }

    async fn in_time<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, CacheError>> + Send + 'static,
    ) -> Option<T> {
        let rests = self.late_until.lock().is_some_and(|until| Instant::now() < until);
        if rests || !self.may_ask() {
            return None;
        }
        match timeout(limit, tokio::spawn(work)).await {
            Ok(Ok(Ok(done))) => {
                self.answered();
                return Some(done);
            }
            Ok(Ok(Err(error))) => self.failed(call, error.0),
            Ok(Err(_)) => {} // it is shutting down
            // For somebody with more patience it may be well.
            Err(_) => metrics::counter!(names::FAILURES, "call" => call).increment(1),
        }
        *self.late_until.lock() = Some(Instant::now() + REST);
        None
    }
}
