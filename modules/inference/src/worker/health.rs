//! Whether single turns fail, or what all of them depend on.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Outcomes looked at, and the least that say anything.
const WINDOW: usize = 50;
const FEWEST: usize = 10;
/// When so many of a hundred fail, it is not the turns.
const FAILING_PERCENT: usize = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

#[derive(Debug, Default)]
pub(super) struct Health {
    /// Newest last; true is good.
    outcomes: VecDeque<bool>,
    /// Doubles with each failure while it lasts.
    pause: Duration,
    until: Option<Instant>,
}

impl Health {
    pub(super) fn note(&mut self, good: bool) {
        self.outcomes.push_back(good);
        if self.outcomes.len() > WINDOW {
            self.outcomes.pop_front();
        }
        if good {
            // One that works says more than many that did not: the past is half forgotten.
            let half = self.outcomes.len() / 2;
            if self.is_failing() {
                self.outcomes.drain(..half);
            }
            (self.pause, self.until) = (Duration::ZERO, None);
        } else if self.is_failing() {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.until = Some(Instant::now() + self.pause);
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        let bad = self.outcomes.iter().filter(|good| !**good).count();
        self.outcomes.len() >= FEWEST && bad * 100 >= self.outcomes.len() * FAILING_PERCENT
    }

    /// Until when nothing more should be tried.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.until.filter(|until| Instant::now() < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_bad_turn_among_many_is_no_reason_to_pause_and_one_in_five_is() {
        let mut health = Health::default();
        for n in 0..1_000 {
            health.note(n % 20 != 19);
            assert!(!health.is_failing() && health.pause().is_none(), "after {n}");
        }
        for _ in 0..10 {
            health.note(false);
        }
        assert!(health.is_failing() && health.pause().is_some());
        tokio::time::sleep(LONGEST_PAUSE).await;
        assert!(health.pause().is_none(), "then one may be tried");
        for _ in 0..5 {
            health.note(true);
        }
        assert!(!health.is_failing(), "and a few that work end it");
    }

    #[test]
    fn a_few_failures_at_the_beginning_say_nothing() {
        let mut health = Health::default();
        (0..FEWEST - 1).for_each(|_| health.note(false));
        assert!(!health.is_failing());
    }
}
