//! Three faults, each found from the trace of one utterance alone. `cargo test -p fabric --test exercise -- --nocapture` prints the traces.
//!
//! Three processes of the product stand in a row: who hears an utterance asks `inference`, which asks the record (`api`). Whoever looks has
//! the spans a collector was sent, and nothing else.

#![allow(clippy::unwrap_used)] // a test that unwraps has failed with the reason

mod collector;

use async_trait::async_trait;
use collector::Collector;
use contracts::{
    CallCx, CallError, ConversationId, Conversations, EventStream, Inference, TraceCx,
    conversation::OpenConversation,
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
    testing::{Behavior, FakeConversations},
};
use fabric::{Services, connect, serve};
use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use parking_lot::Mutex;
use platform::trace::{self, Side};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Where this process sends its spans.
struct Spans(Collector);

impl Spans {
    async fn start() -> Self {
        let (collector, endpoint) = Collector::start().await;
        let settings = serde_json::json!({ "endpoint": endpoint });
        trace::start(&serde_json::from_value(settings).unwrap(), "api").unwrap();
        Self(collector)
    }

    /// The spans of a trace, when so many have come.
    async fn of(&self, trace: TraceCx, expected: usize) -> Trace {
        for _ in 0..200 {
            tokio::task::spawn_blocking(trace::flush).await.unwrap();
            let id = trace.trace_id.to_be_bytes();
            let spans: Vec<_> = self.0.spans.lock().iter().filter(|span| span.trace_id == id).cloned().collect();
            if spans.len() >= expected {
                return Trace { spans };
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no {expected} spans of {trace}: {:?}", self.0.spans.lock());
    }
}

/// What whoever looks has in hand.
struct Trace {
    spans: Vec<Span>,
}

impl Trace {
    fn below<'a>(&'a self, parent: &[u8]) -> Vec<&'a Span> {
        let mut below: Vec<_> = self.spans.iter().filter(|span| span.parent_span_id == parent).collect();
        below.sort_by_key(|span| span.start_time_unix_nano);
        below
    }

    /// Time of a span in which nobody below it was at work.
    fn own(&self, span: &Span) -> Duration {
        took(span).saturating_sub(self.below(&span.span_id).into_iter().map(took).sum())
    }

    /// The rule README gives. Something failed: the innermost span that did is the place, and a `call` that failed with nothing below it
    /// reached nobody. Nothing failed: the place is where the time went, a `serve` being the module and a `call` around it the way there.
    fn fault(&self) -> String {
        let innermost = |span: &&Span| has_failed(span) && !self.below(&span.span_id).into_iter().any(has_failed);
        if let Some(span) = self.spans.iter().find(innermost) {
            let why = &span.status.as_ref().unwrap().message;
            return match span.name.split_once(' ') {
                Some(("call", method)) => format!("{method} was reached by nobody: {why}"),
                Some(("serve", method)) => format!("{method} failed where it is served: {}: {why}", noted(span, "outcome")),
                _ => format!("{} failed: {why}", span.name),
            };
        }
        let slowest = self.spans.iter().max_by_key(|span| self.own(span)).unwrap();
        match slowest.name.split_once(' ') {
            Some(("call", method)) => format!("the way to {method} is slow"),
            Some(("serve", method)) => format!("{method} is slow where it is served"),
            _ => format!("{} is slow", slowest.name),
        }
    }

    /// As a collector's page shows it.
    fn print(&self) -> String {
        let mut lines = String::new();
        self.print_below(&[], 0, &mut lines);
        lines
    }

    fn print_below(&self, parent: &[u8], depth: usize, lines: &mut String) {
        for span in self.below(parent) {
            let name = format!("{}{}", "  ".repeat(depth), span.name);
            let why = span.status.as_ref().map_or("", |status| &status.message);
            let told = [noted(span, "locality"), noted(span, "outcome"), why.to_owned()].join("  ");
            *lines += format!("{name:<44}{:>7.1} ms  {told}", took(span).as_secs_f64() * 1000.0).trim_end();
            *lines += "\n";
            self.print_below(&span.span_id, depth + 1, lines);
        }
    }
}

fn took(span: &Span) -> Duration {
    Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano)
}

fn has_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

fn noted(span: &Span, key: &str) -> String {
    let noted = span.attributes.iter().find(|noted| noted.key == key).and_then(|noted| noted.value.clone()?.value);
    match noted {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

/// Asks the record before it answers.
struct Understanding {
    record: Arc<dyn Conversations>,
    panics: Arc<Mutex<bool>>,
}

#[async_trait]
impl Inference for Understanding {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.record.conversation(cx.child(Duration::from_secs(2)), request.conversation).await?;
        assert!(!*self.panics.lock(), "a label that is not in the file");
        Ok(vec![])
    }
    async fn summarize(&self, _: CallCx, _: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        Ok(Box::pin(futures::stream::empty()))
    }
    async fn tiers(&self, _: CallCx) -> Result<Vec<TierStatus>, CallError> {
        Ok(vec![])
    }
}

struct Process {
    address: String,
    _stop: DropGuard,
}

async fn process(services: Services) -> Process {
    let server = serve("127.0.0.1:0", services).await.unwrap();
    let (address, stop) = (server.address().to_owned(), CancellationToken::new());
    tokio::spawn(server.run(stop.clone()));
    Process { address, _stop: stop.drop_guard() }
}

/// One test, because a process exports to one collector.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_remote_a_failing_peer_and_a_panic_are_each_found_in_the_trace() {
    let collector = Spans::start().await;
    let (record, panics) = (FakeConversations::default(), Arc::new(Mutex::new(false)));
    let keeps = process(Services { conversations: Some(Arc::new(record.clone())), ..Default::default() }).await;
    let asks = Understanding { record: connect::conversations(&keeps.address).unwrap(), panics: panics.clone() };
    let understands = process(Services { inference: Some(Arc::new(asks)), ..Default::default() }).await;
    let inference = connect::inference(&understands.address).unwrap();
    let id = ConversationId::fresh();
    let opening = OpenConversation {
        id,
        external_id: None,
        title: None,
        source: "native".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![],
        started_at: chrono::DateTime::UNIX_EPOCH,
    };
    record.open(CallCx::new(Duration::from_secs(5)), opening).await.unwrap();
    let utterance = async |spans: usize| {
        let root = TraceCx::root();
        {
            let _span = trace::Span::begin("utterance", Side::Inside, root, TraceCx { span_id: 0, ..root });
            let about = Analyze { conversation: id, tasks: vec![], utterances: vec![], context: vec![] };
            let _ = inference.analyze(CallCx::new(Duration::from_secs(5)).traced(root), about).await;
        }
        let trace = collector.of(root, spans).await;
        println!("{}=> {}\n", trace.print(), trace.fault());
        trace.fault()
    };
    utterance(5).await; // connections are made

    record.behave(Behavior::Slow(Duration::from_millis(200)));
    assert_eq!(utterance(5).await, "api.conversation is slow where it is served");

    record.behave(Behavior::Fail(CallError::internal("the disk is full")));
    assert_eq!(utterance(5).await, "api.conversation failed where it is served: internal: the disk is full");

    record.behave(Behavior::Answer);
    *panics.lock() = true;
    let panicked = utterance(5).await;
    assert!(panicked.starts_with("inference.analyze failed where it is served: panicked"), "{panicked}");

    // A peer that is gone: nobody serves, and the caller says who was asked.
    *panics.lock() = false;
    let address = keeps.address.clone();
    drop(keeps);
    while tokio::net::TcpStream::connect(address.strip_prefix("http://").unwrap()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gone = utterance(4).await;
    assert!(gone.starts_with("api.conversation was reached by nobody") && gone.contains(&address), "{gone}");
}
