//! The last calls of a target: for the status page, and for stepping back.

use contracts::route::RecentCalls;
use parking_lot::Mutex;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// More calls than this in a window are judged by the latest.
const MOST: usize = 4096;

#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<Sample>>);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    took: Duration,
    failed: bool,
}

impl Recent {
    pub(super) fn note(&self, at: Instant, took: Duration, failed: bool) {
        let mut samples = self.0.lock();
        if samples.len() == MOST {
            samples.pop_front();
        }
        samples.push_back(Sample { at, took, failed });
    }

    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }

    pub(super) fn within(&self, window: Duration) -> RecentCalls {
        Self::together([self], window)
    }

    /// Several targets as if they were one.
    pub(super) fn together<'a>(targets: impl IntoIterator<Item = &'a Self>, window: Duration) -> RecentCalls {
        let mut samples: Vec<Sample> = vec![];
        for target in targets {
            samples.extend(target.0.lock().iter().rev().take_while(|sample| sample.at.elapsed() <= window));
        }
        let mut took: Vec<Duration> = samples.iter().map(|sample| sample.took).collect();
        took.sort_unstable();
        let quantile = |q: f64| took.get(((took.len() as f64 * q) as usize).min(took.len().wrapping_sub(1))).map_or(0.0, ms);
        RecentCalls {
            calls: samples.len(),
            failed: samples.iter().filter(|sample| sample.failed).count(),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
        }
    }
}

fn ms(took: &Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_window_counts() {
        let recent = Recent::default();
        assert_eq!(recent.within(Duration::from_secs(30)), RecentCalls::default());
        recent.note(Instant::now(), Duration::from_secs(9), true);
        tokio::time::advance(Duration::from_secs(31)).await;
        for n in 1..=100 {
            recent.note(Instant::now(), Duration::from_millis(n), n % 10 == 0);
        }
        let seen = recent.within(Duration::from_secs(30));
        assert_eq!((seen.calls, seen.failed, seen.p50_ms, seen.p99_ms), (100, 10, 51.0, 100.0));
    }
}
