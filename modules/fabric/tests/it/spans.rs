//! What this process exports, as a real OTLP receiver gets it, and the two modules that are called in a row to be seen there.

use crate::collector::Collector;
use async_trait::async_trait;
use contracts::{
    CallCx, CallError, Conversations, EventStream, Inference, TraceCx,
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
};
use fabric::{Services, serve};
use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use platform::trace::{self, Side};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A process exports to one collector: that of all tests, which outlives the runtime of each.
pub fn collector() -> &'static Collector {
    static COLLECTOR: OnceLock<Collector> = OnceLock::new();
    COLLECTOR.get_or_init(|| {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (collector, endpoint) = Collector::start().await;
                trace::start(&trace::Settings { endpoint: Some(endpoint), ca: None }, "api").unwrap();
                tell.send(collector).unwrap();
                std::future::pending::<()>().await;
            });
        });
        told.recv().unwrap()
    })
}

/// The spans of a trace, when so many have come: those of a served call may end after its answer has arrived.
pub async fn spans_of(trace: TraceCx, expected: usize) -> Vec<Span> {
    for _ in 0..200 {
        tokio::task::spawn_blocking(trace::flush).await.unwrap();
        let id = trace.trace_id.to_be_bytes();
        let spans: Vec<_> = collector().spans.lock().iter().filter(|span| span.trace_id == id).cloned().collect();
        if spans.len() >= expected {
            return spans;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no {expected} spans of {trace}: {:?}", collector().spans.lock());
}

pub fn took(span: &Span) -> Duration {
    Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano)
}

/// Empty where the span does not say.
pub fn noted(span: &Span, key: &str) -> String {
    let noted = span.attributes.iter().find(|noted| noted.key == key).and_then(|noted| noted.value.clone()?.value);
    match noted {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

pub fn has_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

/// What a whole utterance is in the product: a span under which modules are called.
pub async fn utterance<T>(work: impl AsyncFnOnce(CallCx) -> T) -> (TraceCx, T) {
    let root = TraceCx::root();
    let _span = trace::Span::begin("utterance", Side::Inside, root, TraceCx { span_id: 0, ..root });
    (root, work(CallCx::new(Duration::from_secs(5)).traced(root)).await)
}

/// Asks the record before it answers.
pub struct Understanding {
    pub record: Arc<dyn Conversations>,
    pub panics: Arc<AtomicBool>,
}

impl Understanding {
    pub fn on(record: Arc<dyn Conversations>) -> Self {
        Self { record, panics: Arc::default() }
    }
}

#[async_trait]
impl Inference for Understanding {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.record.conversation(cx.child(Duration::from_secs(2)), request.conversation).await?;
        assert!(!self.panics.load(Ordering::SeqCst), "a label that is not in the file");
        Ok(vec![])
    }
    async fn summarize(&self, _: CallCx, _: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        Ok(Box::pin(futures::stream::empty()))
    }
    async fn tiers(&self, _: CallCx) -> Result<Vec<TierStatus>, CallError> {
        Ok(vec![])
    }
}

pub struct Process {
    pub address: String,
    _stop: DropGuard,
}

pub async fn process(services: Services) -> Process {
    let server = serve("127.0.0.1:0", services).await.unwrap();
    let (address, stop) = (server.address().to_owned(), CancellationToken::new());
    tokio::spawn(server.run(stop.clone()));
    Process { address, _stop: stop.drop_guard() }
}
