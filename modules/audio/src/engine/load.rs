//! How busy the workers are, what one more channel would cost, and how often partials may come.
//!
//! Partials stretch when time is short, so only what they need at their slowest useful pace counts against a new channel; batch work
//! makes way and does not count.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What a worker's time went to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Ingestion, speech detection, finals: cannot be put off.
    Fixed,
    Partials,
    Batch,
}

/// Partials this often are owed to a channel.
const OWED_PERIOD: Duration = Duration::from_secs(1);
const QUICKEST: Duration = Duration::from_millis(250);
const SAMPLE: Duration = Duration::from_millis(250);
/// A channel opened less than this ago is not yet in the measured load.
const YOUNG: Duration = Duration::from_secs(5);
/// What a channel costs before any has been measured, as a share of one core.
const FIRST_COST: f32 = 0.012;

pub(super) struct Load {
    workers: f32,
    slowest: Duration,
    spent: [AtomicU64; 3],
    period_ms: AtomicU32,
    inner: Mutex<Inner>,
}

struct Inner {
    at: Instant,
    spent: [u64; 3],
    /// Shares of all workers' time over about five seconds.
    slow: [f32; 3],
    /// Over about one second.
    quick: [f32; 3],
    opened: Vec<Instant>,
}

impl Load {
    pub(super) fn new(workers: usize, slowest: Duration) -> Self {
        let inner = Inner { at: Instant::now(), spent: [0; 3], slow: [0.0; 3], quick: [0.0; 3], opened: vec![] };
        Self {
            workers: workers as f32,
            slowest: slowest.max(QUICKEST),
            spent: Default::default(),
            period_ms: AtomicU32::new(QUICKEST.as_millis() as u32),
            inner: Mutex::new(inner),
        }
    }

    pub(super) fn add(&self, work: Work, time: Duration) {
        self.spent[work as usize].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Shortest time between two partials of a channel.
    pub(super) fn period(&self) -> Duration {
        Duration::from_millis(self.period_ms.load(Ordering::Relaxed).into())
    }

    /// Brings the shares up to date; cheap when called often. True when it did something.
    pub(super) fn tick(&self, now: Instant) -> bool {
        let Some(mut inner) = self.inner.try_lock() else { return false };
        let passed = now.saturating_duration_since(inner.at);
        if passed < SAMPLE {
            return false;
        }
        inner.at = now;
        let seconds = passed.as_secs_f32();
        for i in 0..3 {
            let spent = self.spent[i].load(Ordering::Relaxed);
            let share = (spent - inner.spent[i]) as f32 / 1e9 / seconds / self.workers;
            inner.spent[i] = spent;
            inner.slow[i] += (share - inner.slow[i]) * (1.0 - (-seconds / 5.0).exp());
            inner.quick[i] += (share - inner.quick[i]) * (1.0 - (-seconds / 1.0).exp());
        }
        let busy = inner.quick[Work::Fixed as usize] + inner.quick[Work::Partials as usize];
        let period = self.period().as_secs_f32();
        let next = if busy > 0.8 {
            period * 1.2
        } else if busy < 0.7 {
            period / 1.15
        } else {
            period
        };
        let next = next.clamp(QUICKEST.as_secs_f32(), self.slowest.as_secs_f32());
        self.period_ms.store((next * 1000.0) as u32, Ordering::Relaxed);
        inner.opened.retain(|at| now.saturating_duration_since(*at) < YOUNG);
        true
    }

    /// Share of the workers' time that the open channels cannot do without.
    pub(super) fn needed(&self) -> f32 {
        self.needed_of(&self.inner.lock())
    }

    fn needed_of(&self, inner: &Inner) -> f32 {
        let owed = (self.period().as_secs_f32() / OWED_PERIOD.as_secs_f32()).min(1.0);
        inner.slow[Work::Fixed as usize] + inner.slow[Work::Partials as usize] * owed
    }

    /// Takes one more live channel in, or says what the load would be with it.
    pub(super) fn admit(&self, sessions: usize, limit: f32, now: Instant) -> Result<(), f32> {
        let mut inner = self.inner.lock();
        let young = inner.opened.iter().map(|at| 1.0 - now.saturating_duration_since(*at).as_secs_f32() / YOUNG.as_secs_f32());
        let young: f32 = young.map(|share| share.max(0.0)).sum();
        let needed = self.needed_of(&inner);
        let first = FIRST_COST / self.workers;
        let settled = sessions as f32 - young;
        // Few channels say little about what the next will cost.
        let cost = if settled >= 4.0 { (needed / settled).clamp(first / 4.0, first * 2.0) } else { first };
        let load = needed + (young + 1.0) * cost;
        if load > limit {
            return Err(load);
        }
        inner.opened.push(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(load: &Load, work: Work, share: f32, seconds: u32, from: Instant) -> Instant {
        let mut now = from;
        for _ in 0..seconds * 4 {
            load.add(work, Duration::from_secs_f32(0.25 * share * 2.0));
            now += SAMPLE;
            load.tick(now);
        }
        now
    }

    #[test]
    fn partials_come_less_often_under_load_and_recover() {
        let load = Load::new(2, Duration::from_secs(2));
        assert_eq!(load.period(), QUICKEST);
        let now = busy(&load, Work::Partials, 0.95, 10, Instant::now());
        assert!(load.period() > Duration::from_millis(1900), "{:?}", load.period());
        busy(&load, Work::Partials, 0.3, 10, now);
        assert_eq!(load.period(), QUICKEST);
    }

    #[test]
    fn a_full_engine_refuses_and_partials_alone_do_not_fill_it() {
        let load = Load::new(2, Duration::from_secs(2));
        let now = busy(&load, Work::Partials, 0.6, 20, Instant::now());
        assert!(load.admit(10, 0.85, now).is_ok(), "partials at their quickest can make room");
        let load = Load::new(2, Duration::from_secs(2));
        let now = busy(&load, Work::Fixed, 0.9, 20, Instant::now());
        assert!(load.admit(100, 0.85, now).is_err());
        let load = Load::new(2, Duration::from_secs(2));
        let now = busy(&load, Work::Batch, 0.95, 20, Instant::now());
        assert!(load.admit(100, 0.85, now).is_ok(), "batch work makes way");
    }

    #[test]
    fn a_crowd_at_the_door_is_counted_before_it_can_be_measured() {
        let load = Load::new(2, Duration::from_secs(2));
        let now = Instant::now();
        let admitted = (0..1000).take_while(|n| load.admit(*n, 0.85, now).is_ok()).count();
        assert!((60..=200).contains(&admitted), "{admitted} at once");
    }
}
