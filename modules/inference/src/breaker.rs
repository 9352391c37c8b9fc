//! Leaves something alone after failures in a row, and tries it again after a pause that doubles. Pure: reads no clock.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Breaker {
    limit: u32,
    first_pause: Duration,
    longest: Duration,
    failures: u32,
    pause: Duration,
    closed_until: Option<Instant>,
    /// The one try after a pause is under way.
    probing: bool,
    last: String,
}

impl Breaker {
    pub fn new(limit: u32, first_pause: Duration, longest: Duration) -> Self {
        Self { limit, first_pause, longest, failures: 0, pause: first_pause, closed_until: None, probing: false, last: String::new() }
    }

    /// Whether to try now. After a pause one try is let through; the next has to wait for how it ends, or for another pause.
    pub fn admits(&mut self, now: Instant) -> bool {
        match self.closed_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.closed_until = Some(now + self.pause);
                self.probing = true;
                true
            }
        }
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.pause = self.first_pause;
        self.closed_until = None;
        self.probing = false;
    }

    /// True when a pause begins with this failure. Tries that were under way when it began say nothing new, however many fail.
    pub fn failed(&mut self, now: Instant, reason: String) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last = reason;
        let pauses = self.closed_until.is_some_and(|until| now < until) && !self.probing;
        if pauses || self.failures < self.limit {
            return false;
        }
        self.probing = false;
        self.closed_until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.longest);
        true
    }

    /// It said itself how long it wants to be left alone.
    pub fn rest(&mut self, now: Instant, time: Duration, reason: String) {
        self.failures = self.failures.saturating_add(1);
        self.last = reason;
        self.probing = false;
        self.closed_until = self.closed_until.max(Some(now + time));
    }

    /// Why it is left alone, while it is.
    pub fn reason(&self, now: Instant) -> Option<String> {
        let until = self.closed_until?;
        (now < until)
            .then(|| format!("{}, {} times in a row; it is tried again in {} s", self.last, self.failures, (until - now).as_secs() + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_closes_after_failures_in_a_row_and_pauses_longer_each_time() {
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let zero = Instant::now();
        let mut breaker = Breaker::new(2, Duration::from_secs(1), Duration::from_secs(60));
        assert!(!breaker.failed(zero, "it broke".into()));
        assert!(breaker.admits(zero), "one failure is none");
        assert!(breaker.failed(zero, "it broke".into()));
        for _ in 0..10 {
            assert!(!breaker.failed(zero, "it broke".into()), "tries that were under way do not make the pause longer");
        }
        assert!(!breaker.admits(zero) && breaker.reason(zero).is_some());
        assert!(breaker.admits(at(1_100)), "one probe");
        assert!(!breaker.admits(at(1_200)), "only one");
        breaker.failed(at(1_200), "it broke".into());
        assert!(!breaker.admits(at(3_000)), "the pause has doubled");
        breaker.succeeded();
        assert!(breaker.admits(zero) && breaker.reason(zero).is_none());
    }
    #[test]
    fn who_asks_for_a_rest_has_it_at_once_and_a_failure_meanwhile_does_not_shorten_it() {
        let zero = Instant::now();
        let mut breaker = Breaker::new(3, Duration::from_secs(1), Duration::from_secs(60));
        breaker.rest(zero, Duration::from_secs(20), "429".into());
        assert!(!breaker.admits(zero) && breaker.reason(zero).unwrap().contains("429"));
        breaker.failed(zero, "500".into());
        breaker.rest(zero, Duration::from_secs(5), "429".into());
        assert!(!breaker.admits(zero + Duration::from_secs(19)));
        assert!(breaker.admits(zero + Duration::from_secs(20)) && breaker.reason(zero + Duration::from_secs(60)).is_none());
    }
}
