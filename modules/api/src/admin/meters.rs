//! What this process did over the last half minute: processor time by module, waiting, refusals, and every hop against its limit.
//!
//! Invariants: numbers are differences over a window that is told with them; what was not measured is absent, never zero.
//! Deliberately absent: memory; see `memory`.

use super::{
    RenderMetrics,
    cpu::{CpuMeter, TICKS_PER_SECOND},
    scrape::{self, Buckets},
};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    time::{Duration, Instant},
};
use utoipa::ToSchema;

/// How often a reading is kept, and how many: together the window.
const KEEP_EVERY: Duration = Duration::from_secs(5);
const KEPT: usize = 6;
/// Fewer passages of a hop say nothing.
const ENOUGH: u64 = 10;

/// A hop of the budget from the end of speech to the text on a screen.
struct Watched {
    name: &'static str,
    module: &'static str,
    metric: &'static str,
    labels: &'static [&'static str],
    limit_ms: f64,
}

const fn hop(name: &'static str, module: &'static str, metric: &'static str, labels: &'static [&'static str], limit_ms: f64) -> Watched {
    Watched { name, module, metric, labels, limit_ms }
}

/// Recognitions a caller waits for: of an utterance that has ended, and of one that was guessed to have, which serves when it had.
const FINALS: [&str; 2] = ["class=\"final\"", "class=\"guess\""];

/// The name of the hop that holds the silence callers ask for: by default 400 ms, and then decoding.
pub(super) const WITH_SILENCE: &str = "speech end to final";

const HOPS: [Watched; 6] = [
    hop(WITH_SILENCE, "audio", "quickcomm_audio_speech_end_to_final_seconds", &[], 550.0),
    hop("decode", "audio", "quickcomm_audio_decode_seconds", &FINALS, 150.0),
    hop("bus", "api", "quickcomm_api_bus_seconds", &[], 10.0),
    hop("commit", "api", crate::metrics::WRITE_SECONDS, &[], 25.0),
    hop("push", "api", crate::metrics::LIVE_QUEUE, &[], 20.0),
    hop("insight", "inference", "quickcomm_inference_insight_age_seconds", &[], 2000.0),
];

/// Where work waits in a module, and how long it may.
const WAITS: [Watched; 3] = [
    hop("wait", "audio", "quickcomm_audio_queue_age_seconds", &FINALS, 150.0),
    hop("wait", "inference", "quickcomm_inference_queue_wait_seconds", &[], 500.0),
    hop("wait", "api", crate::metrics::BUS_SECONDS, &[], 100.0),
];

const CALLS: &str = "quickcomm_module_call_seconds_count";

pub(crate) struct Meters {
    pub(super) render: RenderMetrics,
    pub(super) cpu: CpuMeter,
    kept: Mutex<VecDeque<Reading>>,
}

/// Everything counted since the start, at one moment.
struct Reading {
    at: Instant,
    cpu_s: BTreeMap<&'static str, f64>,
    machine_s: Option<f64>,
    hops: Vec<Buckets>,
    waits: Vec<Buckets>,
    refused: Vec<f64>,
}

/// The difference of two readings.
pub(super) struct Lately {
    pub(super) window_s: f64,
    /// Cores by the module whose threads used them; empty without `/proc`.
    pub(super) cores: BTreeMap<&'static str, f64>,
    pub(super) machine: Option<f64>,
    pub(super) hops: Vec<Hop>,
    waits: Vec<Buckets>,
    refused: Vec<f64>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Hop {
    #[schema(example = "decode")]
    pub name: &'static str,
    #[schema(example = "audio")]
    pub module: &'static str,
    pub limit_ms: f64,
    /// Passages in the window. Zero also where another process does this work: it counts them.
    pub count: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Passages that took longer than `counted_from_ms`, the first bound of the histogram that is no shorter than the limit.
    pub violations: u64,
    pub counted_from_ms: f64,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QueueWait {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub limit_ms: f64,
}

impl Meters {
    pub(super) fn new(render: RenderMetrics) -> Self {
        Self { render, cpu: CpuMeter::default(), kept: Mutex::default() }
    }

    /// Keeps readings for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut tick = actix_web::rt::time::interval(KEEP_EVERY);
        loop {
            tick.tick().await;
            let reading = self.read();
            let mut kept = self.kept.lock();
            kept.truncate(KEPT - 1);
            kept.push_front(reading);
        }
    }

    pub(super) fn lately(&self) -> Lately {
        let now = self.read();
        let kept = self.kept.lock();
        let then = kept.back().unwrap_or(&now);
        let window_s = now.at.duration_since(then.at).as_secs_f64();
        let rate = |now: f64, then: f64| if window_s > 0.0 { ((now - then) / window_s).max(0.0) } else { 0.0 };
        let cores = now.cpu_s.iter().map(|(module, used)| (*module, rate(*used, then.cpu_s.get(module).copied().unwrap_or(0.0)))).collect();
        let since = |now: &[Buckets], then: &[Buckets]| now.iter().zip(then).map(|(now, then)| now.since(then)).collect::<Vec<_>>();
        let hops = HOPS.iter().zip(since(&now.hops, &then.hops)).map(|(hop, seen)| hop.told(&seen)).collect();
        Lately {
            window_s,
            cores,
            machine: now.machine_s.zip(then.machine_s).map(|(now, then)| rate(now, then)),
            hops,
            waits: since(&now.waits, &then.waits),
            refused: now.refused.iter().zip(&then.refused).map(|(now, then)| (now - then).max(0.0)).collect(),
        }
    }

    fn read(&self) -> Reading {
        let text = (self.render)();
        let all = |watched: &[Watched]| watched.iter().map(|one| Buckets::read(&text, one.metric, one.labels)).collect();
        // As callers here saw it, wherever the module ran; and as this process answered callers elsewhere.
        let refused = |watched: &Watched| {
            let module = format!("module=\"{}\"", watched.module);
            ["locality=\"routed\"", "locality=\"served\""]
                .iter()
                .map(|locality| scrape::total(&text, CALLS, &[module.as_str(), locality, "outcome=\"busy\""]))
                .sum()
        };
        Reading {
            at: Instant::now(),
            cpu_s: self.cpu.totals().into_iter().map(|(module, ticks)| (module, ticks as f64 / TICKS_PER_SECOND)).collect(),
            machine_s: fs::read_to_string("/proc/stat").ok().and_then(|text| busy_s(&text)),
            hops: all(&HOPS),
            waits: all(&WAITS),
            refused: WAITS.iter().map(refused).collect(),
        }
    }
}

impl Lately {
    /// `None` when nothing has waited, or the module's queue is elsewhere.
    pub(super) fn wait(&self, module: &str) -> Option<QueueWait> {
        let (watched, seen) = WAITS.iter().zip(&self.waits).find(|(watched, _)| watched.module == module)?;
        let (p50_ms, p99_ms) = (seen.quantile_ms(0.5)?, seen.quantile_ms(0.99)?);
        Some(QueueWait { count: seen.count(), p50_ms, p99_ms, limit_ms: watched.limit_ms })
    }

    pub(super) fn refused(&self, module: &str) -> u64 {
        WAITS.iter().zip(&self.refused).find(|(watched, _)| watched.module == module).map_or(0, |(_, count)| *count as u64)
    }

    /// The hop of a module that is furthest over its limit, when that is no exception.
    pub(super) fn slow(&self, module: &str) -> Option<&Hop> {
        let often =
            |hop: &&Hop| hop.module == module && hop.name != WITH_SILENCE && hop.count >= ENOUGH && hop.violations * 20 >= hop.count;
        let ratio = |hop: &Hop| hop.p99_ms.unwrap_or(0.0) / hop.limit_ms;
        self.hops.iter().filter(often).filter(|hop| ratio(hop) > 1.0).max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
    }

    /// Cores of one module; `None` where processor time cannot be read.
    pub(super) fn cores_of(&self, module: &str) -> Option<f64> {
        let parts: &[&str] = if module == "api" { &["api", "record"] } else { &[module] };
        (!self.cores.is_empty()).then(|| parts.iter().filter_map(|part| self.cores.get(part)).fold(0.0, |sum, cores| sum + cores))
    }
}

impl Watched {
    fn told(&self, seen: &Buckets) -> Hop {
        let (violations, counted_from_ms) = seen.over(self.limit_ms);
        Hop {
            name: self.name,
            module: self.module,
            limit_ms: self.limit_ms,
            count: seen.count(),
            p50_ms: seen.quantile_ms(0.5),
            p99_ms: seen.quantile_ms(0.99),
            violations,
            counted_from_ms,
        }
    }
}

/// Seconds all cores together were busy, from the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_s(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().filter_map(|f| f.parse().ok()).collect();
    let busy: f64 = fields.iter().take(8).enumerate().filter(|(at, _)| *at != 3 && *at != 4).map(|(_, ticks)| ticks).sum();
    (fields.len() >= 8).then_some(busy / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    #[test]
    fn the_last_half_minute_is_told_and_not_what_was_before() {
        let count = Arc::new(AtomicU64::new(10));
        let rendered = count.clone();
        let meters = Meters::new(Arc::new(move || {
            let n = rendered.load(Ordering::Relaxed);
            format!(
                "quickcomm_audio_decode_seconds_bucket{{class=\"final\",le=\"0.15\"}} 10\n\
                 quickcomm_audio_decode_seconds_bucket{{class=\"final\",le=\"0.2\"}} {n}\n\
                 quickcomm_audio_decode_seconds_bucket{{class=\"final\",le=\"+Inf\"}} {n}\n\
                 {CALLS}{{module=\"audio\",method=\"open\",locality=\"routed\",target=\"routed\",outcome=\"busy\"}} {n}\n\
                 {CALLS}{{module=\"audio\",method=\"open\",locality=\"local\",target=\"local\",outcome=\"busy\"}} {n}\n"
            )
        }));
        let first = meters.read();
        meters.kept.lock().push_front(first);
        count.store(14, Ordering::Relaxed);
        let lately = meters.lately();
        let decode = &lately.hops[1];
        assert_eq!((decode.name, decode.count, decode.violations, decode.counted_from_ms), ("decode", 4, 4, 150.0));
        assert!(decode.p99_ms.is_some_and(|ms| (150.0..=200.0).contains(&ms)), "{decode:?}");
        assert_eq!((lately.hops[0].count, lately.hops[0].p50_ms), (0, None), "what was not measured is absent");
        assert_eq!((lately.refused("audio"), lately.refused("inference")), (4, 0), "attempts are not counted twice");
        assert!(lately.wait("audio").is_none());
    }

    #[test]
    fn the_machine_is_busy_when_it_is_not_idle() {
        assert_eq!(busy_s("cpu  100 0 50 9000 800 0 25 25 7 7\ncpu0 1 1"), Some(2.0));
        assert_eq!(busy_s("intr 1"), None);
    }
}
