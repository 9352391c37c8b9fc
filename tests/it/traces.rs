//! One call as a collector sees it: through one process, and through three.

use crate::{
    calls::play,
    support::{Server, demo_calls, eventually, models},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Keeps every span it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let sent = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        self.spans.lock().extend(sent);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (collector, endpoint)
    }

    /// The ways from a request to each span below it, by name.
    fn ways(&self) -> BTreeSet<String> {
        let spans = self.spans.lock();
        let way = |span: &Span| {
            let (mut way, mut at) = (span.name.clone(), span);
            while let Some(above) = spans.iter().find(|above| above.span_id == at.parent_span_id && above.trace_id == at.trace_id) {
                way = format!("{} > {way}", above.name);
                at = above;
            }
            assert!(at.parent_span_id.is_empty(), "{way}: what is above it was never sent");
            way
        };
        spans.iter().map(way).collect()
    }

    fn count(&self, name: &str) -> usize {
        self.spans.lock().iter().filter(|span| span.name == name).count()
    }
}

const UTTERANCE: &str = "GET /v1/stream > utterance";

/// Plays a call, and gives the ways when everything that was said is understood and the process has ended.
async fn traced(collector: Collector, front: Server, others: Vec<Server>) -> BTreeSet<String> {
    let call = demo_calls().into_iter().min_by_key(|call| call.script.turns.len()).unwrap();
    play(vec![call], &front.http).await;
    eventually("every utterance is committed and understood", Duration::from_secs(30), async || {
        let said = collector.count("utterance");
        (said > 0 && collector.count("understand") >= said && collector.count("commit") >= said).then_some(())
    })
    .await;
    assert!(front.stop(), "its last spans are sent when it ends");
    for server in others {
        assert!(server.stop());
    }
    collector.ways()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_utterance_is_one_tree_of_spans_in_one_process_and_in_three() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (near, near_endpoint) = Collector::start().await;
    let one = Server::start(&path("one"), &[], &[("QUICKCOMM_OTLP__ENDPOINT", &near_endpoint)]);
    let (far, far_endpoint) = Collector::start().await;
    let traces = ("QUICKCOMM_OTLP__ENDPOINT", far_endpoint.as_str());
    let socket = |name: &str| format!("unix:{}", path(name).display());
    let hears = Server::start(&path("a"), &["--roles", "audio", "--grpc", &socket("a.sock")], &[traces]);
    let understands = Server::start(&path("i"), &["--roles", "inference", "--grpc", &socket("i.sock")], &[traces]);
    let (audio, inference) = (format!("[\"{}\"]", socket("a.sock")), format!("[\"{}\"]", socket("i.sock")));
    let front = Server::start(
        &path("f"),
        &["--roles", "api"],
        &[
            traces,
            ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
            ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", &audio),
            ("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"),
            ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", &inference),
        ],
    );
    let (in_one, in_three) = tokio::join!(traced(near, one, vec![]), traced(far, front, vec![hears, understands]));
    for part in [
        String::new(),
        " > commit".into(),
        " > understand > call inference.analyze > serve inference.analyze".into(),
        " > understand > call api.conversation > serve api.conversation".into(),
    ] {
        let way = format!("{UTTERANCE}{part}");
        assert!(in_one.contains(&way), "{way} is not in {in_one:#?}");
    }
    assert!(in_one.contains("GET /v1/stream > call audio.open > serve audio.open"), "{in_one:#?}");
    assert_eq!(in_one, in_three);
}
