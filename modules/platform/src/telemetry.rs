//! What a process tells about itself: log lines, metrics, and the last words of a panic.
//!
//! Invariant: words and audio are never logged; every duration is a histogram in seconds with the same explicit buckets, so that
//! `histogram_quantile` can add up several nodes.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use std::{io::IsTerminal, time::Duration};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `text` for people, `json` for collectors. Default: text.
    pub format: LogFormat,
    /// Directives as in `RUST_LOG`, which has precedence. Default: info, with libraries at warn.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,ort=warn,actix_server=warn".into() }
    }
}

/// Upper bounds in seconds: a call inside the process takes microseconds, an endpoint hundreds of milliseconds.
const SECONDS: [f64; 27] = [
    1e-6, 2.5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0,
    1.5, 2.0, 3.0, 5.0, 10.0,
];

/// Upper bounds of what is counted in pieces, such as a batch.
const COUNTS: [f64; 12] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// The metrics of this process, as text for Prometheus.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded samples into the buckets; wanted every few seconds also when nobody scrapes.
    pub async fn upkeep(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }
}

/// Starts logging and metrics; once per process.
pub fn start(settings: &Settings) -> anyhow::Result<Metrics> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) => EnvFilter::try_new(text)?,
        Err(_) => EnvFilter::try_new(&settings.filter)?,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload().downcast_ref::<&str>().copied().or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), place, message = text.unwrap_or("no message"), "panicked");
    }));
    let handle = PrometheusBuilder::new()
        .set_buckets(&COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    Ok(Metrics { handle })
}
