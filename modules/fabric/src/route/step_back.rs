//! Whether the remote side does worse than it may. Pure.

use contracts::route::{RecentCalls, StepBack};

/// Fewer remote calls in the window say nothing. No more than what opens a breaker: after that there are hardly any.
const AT_LEAST: usize = 10;

/// Why the dial should go back. What is no better here is no reason.
pub(super) fn reason(remote: RecentCalls, local: RecentCalls, limits: StepBack) -> Option<String> {
    if remote.calls < AT_LEAST {
        return None;
    }
    let (there, here) = (rate(remote), rate(local));
    if there > limits.error_rate && there > here {
        return Some(format!("{:.1} % of {} remote calls failed, {:.1} % of local ones", there * 100.0, remote.calls, here * 100.0));
    }
    if remote.p99_ms > limits.p99_ms as f64 && remote.p99_ms > local.p99_ms {
        return Some(format!("p99 of {} remote calls is {:.0} ms, {:.0} ms here", remote.calls, remote.p99_ms, local.p99_ms));
    }
    None
}

fn rate(seen: RecentCalls) -> f64 {
    if seen.calls == 0 { 0.0 } else { seen.failed as f64 / seen.calls as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(calls: usize, failed: usize, p99_ms: f64) -> RecentCalls {
        RecentCalls { calls, failed, p50_ms: 1.0, p99_ms }
    }

    #[test]
    fn failures_or_slowness_are_a_reason_unless_it_is_no_better_here() {
        let judged = |remote, local| reason(remote, local, StepBack::default());
        let well = calls(100, 0, 20.0);
        assert_eq!(judged(well, well), None);
        assert_eq!(judged(calls(9, 9, 9000.0), well), None, "too few to tell");
        assert_eq!(judged(calls(100, 2, 20.0), well), None, "just within the limit");
        assert!(judged(calls(100, 3, 20.0), well).expect("too many").contains("3.0 % of 100 remote calls failed, 0.0 %"));
        assert!(judged(calls(100, 0, 1501.0), well).expect("too slow").contains("p99"));
        assert_eq!(judged(calls(100, 3, 20.0), calls(100, 5, 20.0)), None);
        assert_eq!(judged(calls(100, 0, 1600.0), calls(100, 0, 1700.0)), None);
    }
}
