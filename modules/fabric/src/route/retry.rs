//! Whether a call that failed is asked again, and of whom. Pure, but for the budget's count.

use crate::guard::is_draining;
use contracts::{CallError, ErrorKind, Origin, Retry};
use parking_lot::Mutex;
use std::time::Duration;

/// Longer waits are the caller's to decide: nobody waits in a hidden queue.
const LONGEST_WAIT: Duration = Duration::from_millis(250);
/// Before the same target is asked again at once.
const PAUSE: Duration = Duration::from_millis(20);
/// Of one call, the first included.
pub(super) const MOST_ATTEMPTS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Elsewhere,
    /// The same target, after this time.
    Here(Duration),
}

/// What is known when a call has failed.
pub(super) struct Failed<'a> {
    pub(super) error: &'a CallError,
    pub(super) idempotent: bool,
    /// A target is left that was not asked.
    pub(super) untried: bool,
    /// The target is in another process, and may be back in a moment.
    pub(super) remote: bool,
    pub(super) attempts: u8,
    pub(super) remaining: Duration,
}

impl Failed<'_> {
    pub(super) fn again(&self) -> Again {
        let harmless = self.idempotent || never_arrived(self.error);
        if !harmless || self.attempts >= MOST_ATTEMPTS {
            return Again::No;
        }
        let wait = match self.error.retry {
            // Nobody was there to be asked: whoever else is there may be.
            Retry::Never if never_arrived(self.error) && self.untried => return Again::Elsewhere,
            Retry::Never => return Again::No,
            Retry::Safe => PAUSE,
            Retry::After(wait) => wait,
        };
        if self.untried {
            return Again::Elsewhere;
        }
        if self.remote && wait <= LONGEST_WAIT && wait < self.remaining { Again::Here(wait) } else { Again::No }
    }
}

/// The module cannot have seen the call: nobody was there, or a process that stops has refused it.
pub(super) fn never_arrived(error: &CallError) -> bool {
    error.kind == ErrorKind::Unavailable && error.origin == Origin::Transport || is_draining(error)
}

/// Retries are at most a tenth of the calls, but for a burst: what one dead peer may have under way.
pub(super) struct Budget(Mutex<f64>);

const SHARE: f64 = 0.1;
const BURST: f64 = 100.0;

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(BURST))
    }
}

impl Budget {
    /// A first attempt was made.
    pub(super) fn earn(&self) {
        let mut left = self.0.lock();
        *left = (*left + SHARE).min(BURST);
    }

    /// Whether a retry may be made.
    pub(super) fn spend(&self) -> bool {
        let mut left = self.0.lock();
        let may = *left >= 1.0;
        if may {
            *left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::draining;

    fn again(error: &CallError, idempotent: bool, untried: bool, attempts: u8) -> Again {
        Failed { error, idempotent, untried, remote: true, attempts, remaining: Duration::from_secs(1) }.again()
    }

    #[test]
    fn only_what_may_be_repeated_is() {
        let broken = CallError::new(ErrorKind::Unknown, Retry::Safe, "").from(Origin::Transport);
        assert_eq!(again(&broken, true, true, 1), Again::Elsewhere);
        assert_eq!(again(&broken, true, false, 1), Again::Here(PAUSE));
        assert_eq!(again(&broken, false, true, 1), Again::No, "it may have been done");
        assert_eq!(again(&broken, true, true, MOST_ATTEMPTS), Again::No);
        let absent = CallError::unavailable("").from(Origin::Transport);
        assert_eq!(again(&absent, false, true, 1), Again::Elsewhere, "it was surely not done");
        assert_eq!(again(&draining(), false, true, 1), Again::Elsewhere, "nor by a process that stops");
        for never in [CallError::invalid(""), CallError::panicked(&""), CallError::deadline(), CallError::cancelled()] {
            assert_eq!(again(&never, true, true, 1), Again::No, "{never:?}");
        }
    }

    #[test]
    fn a_busy_target_is_left_alone_for_as_long_as_it_says() {
        let busy = |ms| CallError::busy(Duration::from_millis(ms), "");
        assert_eq!(again(&busy(5000), true, true, 1), Again::Elsewhere);
        assert_eq!(again(&busy(100), true, false, 1), Again::Here(Duration::from_millis(100)));
        assert_eq!(again(&busy(5000), true, false, 1), Again::No);
        let hurried =
            Failed { error: &busy(100), idempotent: true, untried: false, remote: true, attempts: 1, remaining: Duration::from_millis(50) };
        assert_eq!(hurried.again(), Again::No, "the answer would come too late");
    }

    #[test]
    fn retries_are_a_tenth_of_the_calls_once_the_burst_is_spent() {
        let budget = Budget::default();
        let burst = std::iter::repeat_with(|| budget.spend()).take_while(|may| *may).count();
        assert_eq!(burst, 100);
        let retries = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert!((98..=100).contains(&retries.count()));
    }
}
