//! Spans as a real collector gets them from the real binary: an utterance is one tree in one process and in three, a request of the API
//! is one below whoever made it, and a collector behind TLS is spoken to only when it is the right one.

use crate::{
    calls::play,
    collector::Collector,
    support::{Server, demo_calls, eventually, models},
};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::{collections::BTreeSet, time::Duration};

/// The ways from a request to each span below it, by name.
fn ways(collector: &Collector) -> BTreeSet<String> {
    let spans = collector.spans.lock();
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

fn count(collector: &Collector, name: &str) -> usize {
    collector.spans.lock().iter().filter(|span| span.name == name).count()
}

const UTTERANCE: &str = "GET /v1/stream > utterance";

/// Plays a call, and gives the ways when everything that was said is understood and the process has ended.
async fn traced(collector: Collector, front: Server, others: Vec<Server>) -> BTreeSet<String> {
    let call = demo_calls().into_iter().min_by_key(|call| call.script.turns.len()).unwrap();
    let id = play(vec![call], &front.http).await.remove(0).1;
    eventually("every utterance is committed and understood", Duration::from_secs(30), async || {
        let said = count(&collector, "utterance");
        (said > 0 && count(&collector, "understand") >= said && count(&collector, "commit") >= said).then_some(())
    })
    .await;
    eventually("it is summed up", Duration::from_secs(30), async || {
        (front.get(&format!("/v1/conversations/{id}")).await["state"] == "complete").then_some(())
    })
    .await;
    assert!(front.stop(), "its last spans are sent when it ends");
    for server in others {
        assert!(server.stop());
    }
    ways(&collector)
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
    for way in ["GET /v1/stream > call audio.open > serve audio.open", "call inference.summarize > serve inference.summarize"] {
        assert!(in_one.contains(way), "{way} is not in {in_one:#?}");
    }
    assert_eq!(in_one, in_three);
}

/// A process that answers requests, with nobody to hear or understand behind it: it needs no models.
fn front(folder: &std::path::Path, endpoint: &str, ca: Option<&str>) -> Result<Server, String> {
    let nobody = format!("[\"unix:{}/nobody.sock\"]", folder.display());
    let mut env = vec![
        ("QUICKCOMM_OTLP__ENDPOINT", endpoint),
        ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
        ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", &nobody),
        ("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"),
        ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", &nobody),
    ];
    env.extend(ca.map(|ca| ("QUICKCOMM_OTLP__CA", ca)));
    Server::try_start(folder, &["--roles", "api"], &env)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_below_its_caller_and_many_of_them_cost_little() {
    let folder = tempfile::tempdir().unwrap();
    let (collector, endpoint) = Collector::start().await;
    let server = front(folder.path(), &endpoint, None).unwrap();
    let client = reqwest::Client::new();
    let ask = |path: &str, traceparent: &str| client.get(format!("{}{path}", server.http)).header("traceparent", traceparent).send();
    let wanted = ask("/v1/conversations", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").await.unwrap();
    let answered = wanted.headers()["traceparent"].to_str().unwrap().to_owned();
    assert!(answered.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && answered.ends_with("-01"), "{answered}");
    ask("/v1/conversations", "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00").await.unwrap();
    // Requests nobody asked to trace, as a page makes them that polls.
    let began = std::time::Instant::now();
    for _ in 0..300 {
        client.get(format!("{}/v1/admin/status", server.http)).send().await.unwrap();
    }
    let seconds = began.elapsed().as_secs() as usize + 2;
    assert!(server.stop(), "its last spans are sent when it ends");
    let spans = collector.spans.lock();
    let lists: Vec<_> = spans.iter().filter(|span| span.name == "GET /v1/conversations").collect();
    assert_eq!(lists.len(), 1, "what its caller does not want to see is not sent");
    assert_eq!(lists[0].trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(lists[0].parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes(), "below its caller");
    assert_eq!(&answered[36..52], lists[0].span_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), "and the caller is told");
    let polled = spans.iter().filter(|span| span.name == "GET /v1/admin/status").count();
    assert!((1..=20 * seconds).contains(&polled), "{polled} of 300 in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_behind_tls_gets_spans_when_its_authority_is_the_one_that_was_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = folder.path().join(name);
        let signer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        std::fs::write(&file, signer.pem()).unwrap();
        (signer, file.to_str().unwrap().to_owned())
    };
    let ((issuer, right), (_, wrong)) = (authority("right.pem"), authority("wrong.pem"));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let (collector, endpoint) = Collector::start_tls(&certificate.pem(), &key.serialize_pem()).await;

    let server = front(&folder.path().join("right"), &endpoint, Some(&right)).unwrap();
    server.get("/v1/conversations").await;
    assert!(server.stop());
    assert_eq!(count(&collector, "GET /v1/conversations"), 1);

    for ca in [Some(wrong.as_str()), None] {
        let server = front(&folder.path().join("wrong"), &endpoint, ca).unwrap();
        server.get("/v1/conversations").await;
        let log = server.stop_and_read_log();
        assert!(log.contains("the collector does not take spans") && log.contains(&endpoint), "{log}");
    }
    assert_eq!(count(&collector, "GET /v1/conversations"), 1, "a stranger gets nothing");

    let refused = front(&folder.path().join("none"), &endpoint, Some("/nowhere/ca.pem")).map(|_| ()).unwrap_err();
    assert!(refused.contains("otlp.ca /nowhere/ca.pem"), "{refused}");
    let refused = front(&folder.path().join("none"), "traces.example:4317", None).map(|_| ()).unwrap_err();
    assert!(refused.contains("expected http://HOST:PORT or https://HOST:PORT"), "{refused}");
}
