//! One call through two modules, as a real OTLP receiver sees it: the same tree wherever the modules run, and faults that can be found in it.

use crate::spans::{Understanding, collector, noted, process, spans_of, took, utterance};
use contracts::{
    CallCx, ConversationId, TraceCx,
    inference::Analyze,
    testing::{Behavior, FakeConversations, FakeInference},
};
use fabric::{Services, connect, local};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::{sync::Arc, time::Duration};

struct Tree {
    spans: Vec<Span>,
}

impl Tree {
    /// `parent(child child)`, from the span without a parent on.
    fn shape(&self) -> String {
        self.below(&[])
    }

    fn below(&self, parent: &[u8]) -> String {
        let mut children: Vec<_> = self.spans.iter().filter(|span| span.parent_span_id == parent).collect();
        children.sort_by_key(|span| span.start_time_unix_nano);
        let shapes = children.iter().map(|span| match self.below(&span.span_id) {
            below if below.is_empty() => span.name.clone(),
            below => format!("{}({below})", span.name),
        });
        shapes.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn named(&self, name: &str) -> &Span {
        self.spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {}", self.shape()))
    }

    fn outcome(&self, name: &str) -> String {
        noted(self.named(name), "outcome")
    }

    fn took(&self, name: &str) -> Duration {
        took(self.named(name))
    }
}

async fn tree_of(trace: TraceCx, expected: usize) -> Tree {
    Tree { spans: spans_of(trace, expected).await }
}

fn about(id: ConversationId) -> Analyze {
    Analyze { conversation: id, tasks: vec![], utterances: vec![], context: vec![] }
}

/// A wire that carries every byte this much later.
async fn slow_wire(to: &str, by: Duration) -> String {
    let (far, near) = (to.strip_prefix("http://").unwrap().to_owned(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = format!("http://{}", near.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((near, _)) = near.accept().await {
            let far = tokio::net::TcpStream::connect(&far).await.unwrap();
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(from_near, to_far, by));
            tokio::spawn(carry(from_far, to_near, by));
        }
    });
    address
}

async fn carry(mut from: impl tokio::io::AsyncRead + Unpin, mut to: impl tokio::io::AsyncWrite + Unpin, by: Duration) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        tokio::time::sleep(by).await;
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_the_same_tree_in_every_locality_and_shows_where_a_fault_is() {
    collector();
    let unseen = TraceCx { sampled: false, ..TraceCx::root() };
    let answer = local::inference(Arc::new(FakeInference::default())).tiers(CallCx::new(Duration::from_secs(5)).traced(unseen)).await;
    assert!(answer.is_ok(), "a call that nobody wants to see is answered");

    let record = Arc::new(FakeConversations::default());
    let here = local::inference(Arc::new(Understanding::on(local::conversations(record.clone()))));
    let keeps = process(Services { conversations: Some(record), ..Default::default() }).await;
    let asks = Understanding::on(connect::conversations(&keeps.address).unwrap());
    let understands = process(Services { inference: Some(Arc::new(asks)), ..Default::default() }).await;
    let there = connect::inference(&understands.address).unwrap();
    let tree = "utterance(call inference.analyze(serve inference.analyze(call api.conversation(serve api.conversation))))";
    for inference in [here, there] {
        // Nobody knows the conversation: the failing peer is the innermost span that failed.
        let (trace, answer) = utterance(async |cx| inference.analyze(cx, about(ConversationId::fresh())).await).await;
        assert!(answer.is_err());
        let spans = tree_of(trace, 5).await;
        assert_eq!(spans.shape(), tree);
        assert_eq!(spans.outcome("serve api.conversation"), "not_found");
        assert_eq!(spans.named("serve api.conversation").status.as_ref().unwrap().code, 2, "an error");
    }
    assert!(!collector().spans.lock().iter().any(|span| span.trace_id == unseen.trace_id.to_be_bytes()));

    // A panic is where its module served.
    let fake = FakeInference::default();
    let wild = process(Services { inference: Some(Arc::new(fake.clone())), ..Default::default() }).await;
    fake.behave(Behavior::Panic("on purpose".into()));
    let (trace, _) = utterance(async |cx| connect::inference(&wild.address).unwrap().tiers(cx).await).await;
    let spans = tree_of(trace, 3).await;
    assert_eq!((spans.outcome("serve inference.tiers"), spans.outcome("call inference.tiers")), ("panicked".into(), "panicked".into()));

    // A slow way: the caller waits, the callee does not work. A slow module: both take long.
    let by = Duration::from_millis(100);
    fake.behave(Behavior::Answer);
    let far = connect::inference(&slow_wire(&wild.address, by).await).unwrap();
    far.tiers(CallCx::new(Duration::from_secs(5))).await.unwrap();
    let (trace, _) = utterance(async |cx| far.tiers(cx).await).await;
    let spans = tree_of(trace, 3).await;
    let (call, serve) = (spans.took("call inference.tiers"), spans.took("serve inference.tiers"));
    assert!(call >= 2 * by && serve < by, "{call:?} {serve:?}");
    fake.behave(Behavior::Slow(2 * by));
    let (trace, _) = utterance(async |cx| connect::inference(&wild.address).unwrap().tiers(cx).await).await;
    let spans = tree_of(trace, 3).await;
    assert!(spans.took("serve inference.tiers") >= 2 * by, "{:?}", spans.took("serve inference.tiers"));
}
