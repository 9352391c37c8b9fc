//! What the cache of a process does besides answering: it tells the shared cache of changes, hears of others', and looks for lost ones.

use super::{
    super::{Cache, Heard, Scope, Void, metrics as names},
    Front,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const GENERATION_POLL: Duration = Duration::from_secs(1);
const PULSE: Duration = Duration::from_secs(1);
/// No tenant has this name.
const NOBODY: &str = "";
/// A void that the generation counts may still be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// Voids in one call.
const VOID_BATCH: usize = 256;
/// Scopes that may wait for the shared cache to come back; more are given up.
const MOST_PENDING: usize = 100_000;
const VOID_PAUSE: Duration = Duration::from_millis(200);

/// A void that the shared cache has not confirmed.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    floor: u64,
    /// One without a floor is among them.
    touched: bool,
    /// Rises, so that what came while a void was under way is not forgotten with it.
    round: u64,
    since: Instant,
}

impl Pending {
    /// The version of what may be given meanwhile.
    pub(super) fn least(&self) -> u64 {
        // Without a floor nothing is said of versions: whatever is there may be older.
        if self.touched { u64::MAX } else { self.floor }
    }
}

impl Front {
    /// After a change: nothing that was read before `floor` is given by this process any more, nor, soon, by any. Never waits.
    pub fn void(&self, voids: Vec<Void>) {
        let Some(cache) = &self.cache else { return };
        metrics::counter!(names::VOIDED).increment(voids.len() as u64);
        let told = cache.void_at_once(&voids);
        {
            // Whoever comes from now on waits for nobody who set out before the change.
            let mut flights = self.flights.lock();
            voids.iter().for_each(|void| drop(flights.remove(&void.scope)));
        }
        if told {
            return;
        }
        let now = Instant::now();
        let mut lost = 0;
        {
            let mut pending = self.pending.lock();
            for void in &voids {
                let room = pending.len() < MOST_PENDING;
                match pending.get_mut(&void.scope) {
                    Some(waiting) => {
                        waiting.floor = waiting.floor.max(void.floor);
                        waiting.touched |= void.floor == 0;
                        waiting.round += 1;
                    }
                    None if room => {
                        pending.insert(void.scope.clone(), Pending { floor: void.floor, touched: void.floor == 0, round: 0, since: now });
                    }
                    None => lost += 1,
                }
            }
        }
        if lost > 0 {
            metrics::counter!(names::VOIDS_LOST).increment(lost);
        }
        if let Some(first) = &self.first {
            voids.iter().for_each(|void| first.void(&void.scope));
        }
        self.to_void.notify_one();
    }

    /// Whether the shared cache knows of every void of this process.
    pub fn is_told(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Whether this process gives the key without asking, or has voids to tell.
    #[cfg(test)]
    pub(in crate::cache) fn holds(&self, key: &super::Key) -> bool {
        !self.is_told() || self.first.as_ref().is_some_and(|first| first.get(key, None).is_some())
    }

    /// Tells the shared cache of voids, hears of others', and looks for lost ones, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let Some(cache) = self.cache.clone() else { return stop.cancelled().await };
        let work =
            async { tokio::join!(self.tell_voids(&*cache), self.hear_voids(&*cache), self.poll_generations(&*cache), self.pulse(&*cache)) };
        tokio::select! { _ = work => {}, () = stop.cancelled() => {} }
    }

    /// Nobody may be reading, and an operator asks all the same whether the shared cache is there.
    async fn pulse(&self, cache: &dyn Cache) {
        let mut tick = tokio::time::interval(PULSE);
        let mut away = false;
        loop {
            tick.tick().await;
            match cache.generation(NOBODY).await {
                Ok(_) if std::mem::take(&mut away) => self.answered(),
                Ok(_) => {} // what else it complains of, such as want of memory, is not over
                Err(error) => {
                    away = true;
                    self.failed("pulse", error.0);
                }
            }
        }
    }

    async fn tell_voids(&self, cache: &dyn Cache) {
        loop {
            let batch: Vec<(Scope, Pending)> = self.pending.lock().iter().take(VOID_BATCH).map(|(scope, p)| (scope.clone(), *p)).collect();
            if batch.is_empty() {
                self.to_void.notified().await;
                continue;
            }
            let mut voids = Vec::with_capacity(batch.len());
            for (scope, due) in &batch {
                // Both, where both were asked for: a floor that is known already would change nothing.
                let floors = [(due.floor > 0).then_some(due.floor), due.touched.then_some(0)];
                voids.extend(floors.into_iter().flatten().map(|floor| Void { scope: scope.clone(), floor }));
            }
            match cache.void(&voids).await {
                Ok(()) => {
                    let mut pending = self.pending.lock();
                    for (scope, done) in &batch {
                        metrics::histogram!(names::VOID_SECONDS).record(done.since.elapsed());
                        if pending.get(scope).is_some_and(|now| now.round == done.round) {
                            pending.remove(scope);
                        }
                    }
                }
                Err(error) => {
                    self.failed("void", error.0);
                    tokio::time::sleep(VOID_PAUSE).await;
                }
            }
        }
    }

    pub(in crate::cache) async fn hear_voids(&self, cache: &dyn Cache) {
        let Some(first) = &self.first else { return std::future::pending().await };
        let Some(mut voids) = cache.listen().await else { return std::future::pending().await };
        first.drop_all("missed"); // what was said before this began to listen
        while let Some(heard) = voids.next().await {
            match heard {
                Heard::Voided { scope, generation } => first.hear(&scope, generation),
                Heard::Missed => first.drop_all("missed"),
            }
        }
        std::future::pending().await
    }

    async fn poll_generations(&self, cache: &dyn Cache) {
        let Some(first) = &self.first else { return std::future::pending().await };
        let mut tick = tokio::time::interval(GENERATION_POLL);
        loop {
            tick.tick().await;
            for (tenant, heard) in first.heard() {
                let Ok(generation) = cache.generation(&tenant).await else { continue };
                if generation > heard {
                    tokio::time::sleep(ON_ITS_WAY).await;
                }
                // Lower than what was heard before it was asked for: the cache has begun anew.
                if generation < heard || !first.has_heard(&tenant, generation) {
                    first.reset(&tenant, generation);
                }
            }
        }
    }
}
