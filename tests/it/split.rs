//! The same demo calls through three processes: api (with bus and record), audio, inference.

use crate::{
    calls::{play, recorded_text},
    support::{Server, demo_calls, eventually, models, script_text, texts, words},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn demo_calls_run_through_three_processes() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let socket = format!("unix:{}", path("audio.sock").display());
    // One over a Unix socket, one over TCP.
    let hears = Server::start(&path("a"), &["--roles", "audio", "--grpc", &socket], &[]);
    let understands = Server::start(&path("i"), &["--roles", "inference", "--grpc", "http://127.0.0.1:0"], &[]);
    let endpoint = understands.grpc.clone().expect("it says where it serves");
    let remote = |endpoint: &str| format!("[\"{endpoint}\"]");
    let (audio, inference) = (remote(&socket), remote(&endpoint));
    let front = Server::start(
        &path("f"),
        &["--roles", "api"],
        &[
            ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
            ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", &audio),
            ("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"),
            ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", &inference),
        ],
    );
    let calls: Vec<_> = demo_calls().into_iter().take(4).collect();
    let (mut wrong, mut of) = (0, 0);
    for (call, id, events) in play(calls, &front.http).await {
        let told = texts(&events, call.channels.len());
        for channel in 0..2u8 {
            let (errors, reference) = words::errors(&script_text(&call, channel), &told[usize::from(channel)]);
            (wrong, of) = (wrong + errors, of + reference);
            assert_eq!(recorded_text(&front, &id, channel.into()).await, told[usize::from(channel)]);
        }
        eventually("insights come from the other process", Duration::from_secs(20), async || {
            let got = front.get(&format!("/v1/conversations/{id}/insights")).await["data"].as_array()?.clone();
            got.iter().any(|i| i["provenance"]["tier"] == "local" || i["provenance"]["tier"] == "rules").then_some(())
        })
        .await;
    }
    assert!(wrong * 100 <= of * 6, "{wrong} word errors in {of} words");
    let status = front.get("/v1/admin/status").await;
    let modes: Vec<_> =
        status["modules"].as_array().unwrap().iter().map(|m| (m["name"].as_str().unwrap(), m["mode"].as_str().unwrap())).collect();
    assert!(
        modes.contains(&("audio", "remote")) && modes.contains(&("inference", "remote")) && modes.contains(&("api", "local")),
        "{modes:?}"
    );
    for server in [front, hears, understands] {
        assert!(server.stop(), "SIGTERM did not end in exit code 0");
    }
}
