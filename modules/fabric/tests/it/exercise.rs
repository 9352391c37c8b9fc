//! Three faults, each found from the trace of one utterance alone. `cargo test -p fabric --test it exercise -- --nocapture` prints the
//! traces.
//!
//! Three processes of the product stand in a row: who hears an utterance asks `inference`, which asks the record (`api`). Whoever looks has
//! the spans a collector was sent, and nothing else.

use crate::spans::{Understanding, has_failed, noted, process, spans_of, took, utterance};
use contracts::{
    CallCx, CallError, ConversationId, Conversations,
    conversation::OpenConversation,
    inference::Analyze,
    testing::{Behavior, FakeConversations},
};
use fabric::{Services, connect};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_remote_a_failing_peer_and_a_panic_are_each_found_in_the_trace() {
    crate::spans::collector();
    let record = FakeConversations::default();
    let keeps = process(Services { conversations: Some(Arc::new(record.clone())), ..Default::default() }).await;
    let asks = Understanding::on(connect::conversations(&keeps.address).unwrap());
    let panics = asks.panics.clone();
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
    let said = async |spans: usize| {
        let about = Analyze { conversation: id, tasks: vec![], utterances: vec![], context: vec![] };
        let (trace, _) = utterance(async |cx| inference.analyze(cx, about).await).await;
        let trace = Trace { spans: spans_of(trace, spans).await };
        println!("{}=> {}\n", trace.print(), trace.fault());
        trace.fault()
    };
    said(5).await; // connections are made

    record.behave(Behavior::Slow(Duration::from_millis(200)));
    assert_eq!(said(5).await, "api.conversation is slow where it is served");

    record.behave(Behavior::Fail(CallError::internal("the disk is full")));
    assert_eq!(said(5).await, "api.conversation failed where it is served: internal: the disk is full");

    record.behave(Behavior::Answer);
    panics.store(true, Ordering::SeqCst);
    let panicked = said(5).await;
    assert!(panicked.starts_with("inference.analyze failed where it is served: panicked"), "{panicked}");

    // A peer that is gone: nobody serves, and the caller says who was asked.
    panics.store(false, Ordering::SeqCst);
    let address = keeps.address.clone();
    drop(keeps);
    while tokio::net::TcpStream::connect(address.strip_prefix("http://").unwrap()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gone = said(4).await;
    assert!(gone.starts_with("api.conversation was reached by nobody") && gone.contains(&address), "{gone}");
}
