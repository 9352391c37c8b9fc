//! Spans, as a collector wants them: who asked whom, for how long, and how it ended.
//!
//! Invariants:
//! - the ids are those that travel with calls, bus entries and messages, so a trace is one tree whichever processes its parts ran in;
//! - off unless an endpoint is configured; then a span costs a look at one flag;
//! - exporting has a thread of its own, and a full queue loses spans, never time. No words and no audio stand in a span.

use contracts::TraceCx;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanProcessor},
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

/// How long spans are gathered before they are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// For a collector to take them.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// For the last of them when the process stops.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A collector that takes OTLP over gRPC, such as `http://127.0.0.1:4317`. Default: none, and nothing is traced.
    pub endpoint: Option<String>,
}

static EXPORT: OnceLock<BatchSpanProcessor> = OnceLock::new();
static SCOPE: OnceLock<InstrumentationScope> = OnceLock::new();
/// What most spans note.
const ATTRIBUTES: usize = 4;

/// Exports this process's spans from now on, under the name of what it hosts; once per process, in its runtime.
pub fn start(settings: &Settings, roles: &str) -> anyhow::Result<()> {
    let Some(endpoint) = &settings.endpoint else { return Ok(()) };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(SEND_LIMIT).build()?;
    let batches = BatchConfigBuilder::default().with_scheduled_delay(SEND_EVERY).build();
    let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let attributes = [KeyValue::new("service.name", "quickcomm"), KeyValue::new("quickcomm.roles", roles.to_owned())];
    processor.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
    anyhow::ensure!(EXPORT.set(processor).is_ok(), "spans are exported already");
    Ok(())
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
