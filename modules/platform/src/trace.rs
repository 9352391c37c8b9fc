//! Spans, as a collector wants them: who asked whom, for how long, and how it ended.
//!
//! Invariants:
//! - the ids are those that travel with calls, bus entries and messages, so a trace is one tree whichever processes its parts ran in;
//! - off unless an endpoint is configured; then a span costs a look at one flag;
//! - exporting has a thread of its own, and a full queue loses spans, never time. No words and no audio stand in a span.

use crate::priority::give_way;
use anyhow::{Context, ensure};
use contracts::TraceCx;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{
    WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor},
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    fs,
    path::PathBuf,
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tracing::{info, warn};

/// How long spans are gathered before they are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// For a collector to take them.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Of the thread that sends them.
const NICENESS: i32 = 10;
/// For the last of them when the process stops.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A collector that takes OTLP over gRPC, such as `http://127.0.0.1:4317` or `https://traces.example:4317`. Default: none, and nothing
    /// is traced.
    pub endpoint: Option<String>,
    /// The authority that signed the certificate of an `https` collector, as PEM. Default: those this machine trusts.
    pub ca: Option<PathBuf>,
}

impl Settings {
    /// `None` where the endpoint is plain.
    fn tls(&self, endpoint: &str) -> anyhow::Result<Option<ClientTlsConfig>> {
        match (endpoint.split_once("://"), &self.ca) {
            (Some(("http", _)), None) => Ok(None),
            (Some(("http", _)), Some(_)) => anyhow::bail!("otlp.ca is for an https endpoint, and {endpoint:?} is none"),
            (Some(("https", _)), None) => Ok(Some(ClientTlsConfig::new().with_native_roots())),
            (Some(("https", _)), Some(path)) => {
                let pem = fs::read(path).with_context(|| format!("otlp.ca {}", path.display()))?;
                ensure!(
                    pem.windows(27).any(|line| line == b"-----BEGIN CERTIFICATE-----"),
                    "otlp.ca {}: no certificate in PEM",
                    path.display()
                );
                Ok(Some(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))))
            }
            _ => anyhow::bail!("otlp.endpoint is {endpoint:?}: expected http://HOST:PORT or https://HOST:PORT"),
        }
    }
}

static EXPORT: OnceLock<BatchSpanProcessor> = OnceLock::new();
static SCOPE: OnceLock<InstrumentationScope> = OnceLock::new();
/// What most spans note.
const ATTRIBUTES: usize = 4;

/// Exports this process's spans from now on, under the name of what it hosts; once per process, in its runtime.
///
/// # Errors
/// An endpoint or an authority that cannot be used. A collector that does not answer is no error: its spans are lost, and that is logged.
pub fn start(settings: &Settings, roles: &str) -> anyhow::Result<()> {
    let Some(endpoint) = &settings.endpoint else { return Ok(()) };
    let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(SEND_LIMIT);
    if let Some(tls) = settings.tls(endpoint)? {
        exporter = exporter.with_tls_config(tls);
    }
    let exporter = Telling { exporter: exporter.build()?, endpoint: endpoint.clone(), failing: AtomicBool::new(false), calm: Once::new() };
    let batches = BatchConfigBuilder::default().with_scheduled_delay(SEND_EVERY).build();
    let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let attributes = [KeyValue::new("service.name", "quickcomm"), KeyValue::new("quickcomm.roles", roles.to_owned())];
    processor.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
    ensure!(EXPORT.set(processor).is_ok(), "spans are exported already");
    Ok(())
}

/// Says once when spans are lost, and once when they arrive again.
#[derive(Debug)]
struct Telling {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    failing: AtomicBool,
    calm: Once,
}

impl SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        // The processor has one thread, and this runs on it. What it sends has time; what it tells of has not.
        self.calm.call_once(|| {
            give_way(NICENESS);
        });
        let sent = self.exporter.export(batch).await;
        let failing = sent.is_err();
        match (&sent, self.failing.swap(failing, Ordering::Relaxed)) {
            (Err(error), false) => warn!(endpoint = self.endpoint, %error, "the collector does not take spans; they are lost"),
            (Ok(()), true) => info!(endpoint = self.endpoint, "the collector takes spans again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends what has been gathered; it blocks, and not for long.
pub fn flush() {
    if let Some(processor) = EXPORT.get() {
        let _ = processor.force_flush(); // a collector that is gone is no reason to stay
    }
}

/// The last spans, when the process stops.
pub fn stop() {
    if let Some(processor) = EXPORT.get() {
        let _ = processor.shutdown_with_timeout(FLUSH_LIMIT);
    }
}

/// Whether anybody wants this trace.
pub fn wants(trace: &TraceCx) -> bool {
    trace.sampled && EXPORT.get().is_some()
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Inside,
    Caller,
    Callee,
    /// It took something from the bus.
    Consumer,
}

/// Something that has a beginning, and ends when this is dropped. Empty where nobody wants it.
#[derive(Debug)]
pub struct Span(Option<Box<SpanData>>);

impl Span {
    /// `own` is the place of the span in its trace, below `parent`.
    pub fn begin(name: impl Into<Cow<'static, str>>, side: Side, own: TraceCx, parent: TraceCx) -> Self {
        Self::begun_at(SystemTime::now(), name, side, own, parent)
    }

    pub fn begun_at(began: SystemTime, name: impl Into<Cow<'static, str>>, side: Side, own: TraceCx, parent: TraceCx) -> Self {
        if !wants(&own) {
            return Self(None);
        }
        let (trace, span) = (TraceId::from(own.trace_id), SpanId::from(own.span_id));
        let span_kind = match side {
            Side::Inside => SpanKind::Internal,
            Side::Caller => SpanKind::Client,
            Side::Callee => SpanKind::Server,
            Side::Consumer => SpanKind::Consumer,
        };
        Self(Some(Box::new(SpanData {
            span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, side == Side::Callee, TraceState::NONE),
            parent_span_id: SpanId::from(parent.span_id),
            parent_span_is_remote: side == Side::Callee,
            span_kind,
            name: name.into(),
            start_time: began,
            end_time: began,
            attributes: Vec::with_capacity(ATTRIBUTES),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: SCOPE.get_or_init(|| InstrumentationScope::builder("quickcomm").build()).clone(),
        })))
    }

    /// Nothing.
    pub fn none() -> Self {
        Self(None)
    }

    pub fn note(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.attributes.push(KeyValue::new(key, value));
        }
    }

    /// How long it was, where that is known already; otherwise it ends when it is dropped.
    pub fn took(&mut self, time: Duration) {
        if let Some(span) = &mut self.0 {
            span.end_time = span.start_time + time;
        }
    }

    /// It ended badly.
    pub fn failed(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            span.status = Status::error(why);
        }
    }
}

/// How many requests a second are traced that nobody asked to trace. A page polls, and a crawler crawls; people look at few traces.
const REQUESTS_PER_S: u64 = 20;

/// Whether a request that comes without a trace of its own begins one. What it says holds for everything below the request.
pub fn begins_here() -> bool {
    static BUDGET: Budget = Budget::new(REQUESTS_PER_S);
    EXPORT.get().is_some() && BUDGET.take(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |at| at.as_secs()))
}

/// So many in each second. The upper bits hold the second, the lower 16 what is spent of it.
struct Budget {
    per_s: u64,
    spent: AtomicU64,
}

impl Budget {
    const fn new(per_s: u64) -> Self {
        Self { per_s, spent: AtomicU64::new(0) }
    }

    fn take(&self, second: u64) -> bool {
        let take = |spent: u64| match spent >> 16 == second {
            true if spent & 0xffff >= self.per_s => None,
            true => Some(spent + 1),
            false => Some(second << 16 | 1),
        };
        self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut span), Some(processor)) = (self.0.take(), EXPORT.get()) {
            if span.end_time == span.start_time {
                span.end_time = SystemTime::now();
            }
            processor.on_end(*span);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_budget_and_the_next_one_its_own() {
        let budget = Budget::new(3);
        let taken = |second| std::iter::repeat_with(|| budget.take(second)).take_while(|took| *took).count();
        assert_eq!((taken(1_763_000_000), taken(1_763_000_000), taken(1_763_000_001)), (3, 0, 3));
    }

    #[test]
    fn a_collector_that_cannot_be_reached_as_asked_is_refused_with_what_was_expected() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rubbish = folder.path().join("ca.pem");
        fs::write(&rubbish, "no certificate").expect("a writable folder");
        let tls =
            |endpoint: &str, ca: Option<&PathBuf>| Settings { endpoint: None, ca: ca.cloned() }.tls(endpoint).map(|tls| tls.is_some());
        assert!(matches!(tls("http://127.0.0.1:4317", None), Ok(false)));
        assert!(matches!(tls("https://traces.example:4317", None), Ok(true)));
        for (endpoint, ca, says) in [
            ("127.0.0.1:4317", None, "expected http://HOST:PORT or https://HOST:PORT"),
            ("ftp://traces.example", None, "expected http://"),
            ("http://127.0.0.1:4317", Some(&rubbish), "otlp.ca is for an https endpoint"),
            ("https://127.0.0.1:4317", Some(&rubbish), "no certificate in PEM"),
            ("https://127.0.0.1:4317", Some(&folder.path().join("absent.pem")), "absent.pem"),
        ] {
            let refused = format!("{:#}", tls(endpoint, ca).expect_err(endpoint));
            assert!(refused.contains(says), "{refused}");
        }
    }
}
