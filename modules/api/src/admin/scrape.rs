//! The process's own metrics, read back from their Prometheus text: what a scraper would see, without one.
//!
//! Pure. A quantile is estimated inside its bucket, as `histogram_quantile` does.

/// Cumulative counts by upper bound in seconds, the last one infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// All series of a histogram whose labels hold one of `labels`, together; all of them when none is named.
    pub(super) fn read(text: &str, name: &str, labels: &[&str]) -> Self {
        let wanted = |found: &str| labels.is_empty() || labels.iter().any(|label| found.contains(label));
        let mut found = Self::default();
        for (labels, count) in series(text, name, "_bucket").filter(|(found, _)| wanted(found)) {
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let Some(bound) = bound.and_then(|text| text.replace('+', "").parse::<f64>().ok()) else { continue };
            match found.0.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => found.0.push((bound, count)),
            }
        }
        found.0.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| earlier.0.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().map(|(bound, count)| (*bound, (count - before(*bound)).max(0.0))).collect())
    }

    pub(super) fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count as u64)
    }

    /// In milliseconds; `None` when nothing was counted. Beyond the last finite bound it is that bound.
    pub(super) fn quantile_ms(&self, q: f64) -> Option<f64> {
        let all = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let rank = all * q;
        let (mut from, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank && *count > below {
                let inside = if bound.is_finite() { (bound - from) * (rank - below) / (count - below) } else { 0.0 };
                return Some((from + inside) * 1000.0);
            }
            if bound.is_finite() {
                (from, below) = (*bound, *count);
            }
        }
        Some(from * 1000.0)
    }

    /// How many took longer than the first bound that is no shorter than `limit_ms`, and that bound in milliseconds.
    pub(super) fn over(&self, limit_ms: f64) -> (u64, f64) {
        let bound = self.0.iter().find(|(bound, _)| *bound * 1000.0 >= limit_ms - 1e-6 && bound.is_finite());
        bound.map_or((0, limit_ms), |(bound, within)| (self.count().saturating_sub(*within as u64), bound * 1000.0))
    }
}

/// The sum of all series of a counter whose labels hold every one of `labels`.
pub(super) fn total(text: &str, name: &str, labels: &[&str]) -> f64 {
    series(text, name, "").filter(|(found, _)| labels.iter().all(|label| found.contains(label))).map(|(_, value)| value).sum()
}

/// Labels and value of each line of a metric.
fn series<'a>(text: &'a str, name: &'a str, suffix: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?.strip_prefix(suffix)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# TYPE decode_seconds histogram
decode_seconds_bucket{class="final",le="0.1"} 50
decode_seconds_bucket{class="final",le="0.15"} 98
decode_seconds_bucket{class="final",le="0.2"} 100
decode_seconds_bucket{class="final",le="+Inf"} 100
decode_seconds_sum{class="final"} 9
decode_seconds_count{class="final"} 100
decode_seconds_bucket{class="guess",le="0.1"} 7
decode_seconds_bucket{class="guess",le="+Inf"} 7
refused_total{reason="load"} 3
refused_total{reason="sessions"} 2
plain_total 4
"#;

    #[test]
    fn quantiles_and_violations_come_from_the_buckets() {
        let buckets = Buckets::read(TEXT, "decode_seconds", &["class=\"final\""]);
        assert_eq!(buckets.count(), 100);
        let (p50, p99) = (buckets.quantile_ms(0.5).unwrap(), buckets.quantile_ms(0.99).unwrap());
        assert!((p50 - 100.0).abs() < 0.01 && (p99 - 175.0).abs() < 0.01, "{p50} {p99}");
        assert_eq!(buckets.over(150.0).0, 2);
        assert_eq!(buckets.over(120.0), (2, 150.0), "counted from the next bound");
        assert_eq!(Buckets::read(TEXT, "decode_seconds", &["class=\"final\"", "class=\"guess\""]).count(), 107);
        assert_eq!(Buckets::read(TEXT, "none_seconds", &[]).quantile_ms(0.5), None);
    }

    #[test]
    fn a_window_is_a_difference() {
        let now = Buckets::read(TEXT, "decode_seconds", &["class=\"final\""]);
        let earlier = Buckets::read(
            "decode_seconds_bucket{class=\"final\",le=\"0.1\"} 40\ndecode_seconds_bucket{le=\"+Inf\"} 60",
            "decode_seconds",
            &[],
        );
        assert_eq!(now.since(&earlier).count(), 40);
        assert_eq!(now.since(&now).quantile_ms(0.99), None);
    }

    #[test]
    fn counters_are_added_up_by_their_labels() {
        assert_eq!(total(TEXT, "refused_total", &[]), 5.0);
        assert_eq!(total(TEXT, "refused_total", &["reason=\"load\""]), 3.0);
        assert_eq!(total(TEXT, "plain_total", &[]), 4.0);
    }
}
