//! Whether a target is worth asking: its share of failures over a few seconds.
//!
//! Invariants: only failures of the target itself count, a refusal for load or bad input is neither good nor bad; while half open one call
//! at a time finds out, and one that is dropped or takes too long gives its place back.

use crate::guard::is_draining;
use contracts::{CallError, ErrorKind, route::BreakerState};
use metrics::Gauge;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Share of failures that opens it.
    pub failing: f64,
    /// Fewer calls in the window say nothing.
    pub at_least: u32,
    /// How long it stays open before a call may find out.
    pub pause: Duration,
    /// And how long that call may take.
    pub probe: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self { failing: 0.5, at_least: 10, pause: Duration::from_secs(5), probe: Duration::from_secs(10) }
    }
}

/// Seconds of the window.
const WINDOW: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// Says nothing about the target.
    Neither,
}

impl Verdict {
    pub(super) fn of<T>(answer: &Result<T, CallError>) -> Self {
        match answer {
            Ok(_) => Self::Good,
            Err(error) if is_draining(error) => Self::Neither,
            Err(error) => match error.kind {
                ErrorKind::Unavailable
                | ErrorKind::SpoolFull
                | ErrorKind::DeadlineExceeded
                | ErrorKind::Panicked
                | ErrorKind::Internal
                | ErrorKind::Unknown => Self::Bad,
                ErrorKind::Busy
                | ErrorKind::Cancelled
                | ErrorKind::InvalidInput
                | ErrorKind::TooLarge
                | ErrorKind::NotFound
                | ErrorKind::Conflict => Self::Neither,
            },
        }
    }
}

pub(super) struct Breaker {
    limits: BreakerLimits,
    state: Mutex<State>,
    /// 0 closed, 1 half open, 2 open.
    shown: Gauge,
}

enum State {
    Closed(Window),
    Open {
        until: Instant,
    },
    /// Somebody finds out, and has been at it since; `number` tells them from the one before who took too long.
    HalfOpen {
        since: Instant,
        number: u64,
    },
}

impl Breaker {
    pub(super) fn new(limits: BreakerLimits, shown: Gauge) -> Self {
        shown.set(0.0);
        Self { limits, state: Mutex::new(State::Closed(Window::default())), shown }
    }

    pub(super) fn state(&self) -> BreakerState {
        match &*self.state.lock() {
            State::Closed(_) => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Leave to ask the target; `None` while it is not worth it.
    pub(super) fn enter(&self) -> Option<Permit<'_>> {
        let mut state = self.state.lock();
        let number = match &*state {
            State::Closed(_) => return Some(Permit { breaker: self, probe: None }),
            State::Open { until } if Instant::now() < *until => return None,
            State::Open { .. } => 0,
            State::HalfOpen { since, .. } if since.elapsed() < self.limits.probe => return None,
            State::HalfOpen { number, .. } => number + 1,
        };
        *state = State::HalfOpen { since: Instant::now(), number };
        self.shown.set(1.0);
        Some(Permit { breaker: self, probe: Some(number) })
    }

    fn report(&self, probe: Option<u64>, verdict: Verdict, now: Instant) {
        let mut state = self.state.lock();
        match (&mut *state, probe, verdict) {
            (State::Closed(window), None, Verdict::Good | Verdict::Bad) => {
                window.count(verdict == Verdict::Bad, now);
                let (all, bad) = window.sums();
                if all >= self.limits.at_least && f64::from(bad) >= f64::from(all) * self.limits.failing {
                    *state = State::Open { until: now + self.limits.pause };
                    self.shown.set(2.0);
                }
            }
            (State::HalfOpen { number, .. }, Some(mine), _) if *number == mine => {
                let (next, shown) = match verdict {
                    Verdict::Good => (State::Closed(Window::default()), 0.0),
                    Verdict::Bad => (State::Open { until: now + self.limits.pause }, 2.0),
                    Verdict::Neither => (State::Open { until: now }, 2.0), // the next call finds out
                };
                *state = next;
                self.shown.set(shown);
            }
            _ => {} // an answer from before the last change
        }
    }
}

/// Leave for one call. Dropped without a report it says nothing.
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    probe: Option<u64>,
}

impl Permit<'_> {
    pub(super) fn report(mut self, verdict: Verdict, now: Instant) {
        self.breaker.report(self.probe.take(), verdict, now);
        std::mem::forget(self); // it has reported
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.probe.is_some() {
            self.breaker.report(self.probe, Verdict::Neither, Instant::now());
        }
    }
}

/// Calls and failures by second.
struct Window {
    from: Instant,
    /// The second that is being counted, since `from`.
    second: u64,
    counts: [(u32, u32); WINDOW],
}

impl Default for Window {
    fn default() -> Self {
        Self { from: Instant::now(), second: 0, counts: Default::default() }
    }
}

impl Window {
    fn count(&mut self, bad: bool, now: Instant) {
        let now = now.saturating_duration_since(self.from).as_secs().max(self.second);
        let passed = (now - self.second).min(WINDOW as u64);
        for gone in 0..passed {
            self.counts[((now - gone) % WINDOW as u64) as usize] = (0, 0);
        }
        self.second = now;
        let (all, failed) = &mut self.counts[(now % WINDOW as u64) as usize];
        *all += 1;
        *failed += u32::from(bad);
    }

    fn sums(&self) -> (u32, u32) {
        self.counts.iter().fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn breaker() -> Breaker {
        Breaker::new(BreakerLimits::default(), Gauge::noop())
    }

    fn calls(breaker: &Breaker, verdicts: &[Verdict]) -> usize {
        verdicts.iter().filter_map(|verdict| breaker.enter().map(|permit| permit.report(*verdict, Instant::now()))).count()
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_at_half_of_enough_calls_and_one_good_call_closes_it() {
        let breaker = breaker();
        assert_eq!(calls(&breaker, &[Verdict::Bad; 9]), 9, "nine say nothing");
        assert_eq!(calls(&breaker, &[Verdict::Bad; 9]), 1, "the tenth opens it");
        advance(Duration::from_millis(4999)).await;
        assert!(breaker.enter().is_none());
        advance(Duration::from_millis(1)).await;
        let probe = breaker.enter().expect("one may find out");
        assert!(breaker.enter().is_none(), "and only one");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        probe.report(Verdict::Good, Instant::now());
        assert_eq!(calls(&breaker, &[Verdict::Bad; 9]), 9, "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_minority_of_failures_and_refusals_leave_it_closed() {
        let breaker = breaker();
        for _ in 0..100 {
            calls(&breaker, &[Verdict::Good, Verdict::Bad, Verdict::Good, Verdict::Neither]);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(calls(&breaker, &[Verdict::Neither; 1000]), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn old_failures_are_forgotten() {
        let breaker = breaker();
        calls(&breaker, &[Verdict::Bad; 9]);
        advance(Duration::from_secs(WINDOW as u64)).await;
        calls(&breaker, &[Verdict::Bad; 9]);
        assert_eq!(breaker.state(), BreakerState::Closed);
        calls(&breaker, &[Verdict::Bad; 1]);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_or_hangs_gives_its_place_back() {
        let breaker = breaker();
        calls(&breaker, &[Verdict::Bad; 10]);
        advance(Duration::from_secs(5)).await;
        drop(breaker.enter().expect("the first probe"));
        let hung = breaker.enter().expect("dropped: the next one finds out at once");
        advance(Duration::from_secs(10)).await;
        let next = breaker.enter().expect("it took too long");
        hung.report(Verdict::Good, Instant::now());
        assert_eq!(breaker.state(), BreakerState::HalfOpen, "too late to count");
        next.report(Verdict::Bad, Instant::now());
        assert_eq!(breaker.state(), BreakerState::Open);
        advance(Duration::from_secs(4)).await;
        assert!(breaker.enter().is_none());
    }
}
