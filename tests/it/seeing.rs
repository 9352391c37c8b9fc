//! Seeing it run: health, metrics with buckets, one trace id from socket to row.

use crate::support::{ROOT, Server, alone, demo_calls, models};
use quickcomm::{cli::demo::speak, client::ServerMessage};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_tell_what_a_speaker_feels() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).unwrap();
    let (_, mut events) = speak(&call, &server.http, None).await.unwrap();
    let mut finals = 0;
    while let Some(event) = events.recv().await {
        finals += usize::from(matches!(event.unwrap().message, ServerMessage::Final(_)));
        if finals == 3 {
            break;
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(reqwest::get(format!("{}{path}", server.admin)).await.unwrap().status(), 200);
    }
    let text = reqwest::get(format!("{}/metrics", server.admin)).await.unwrap().text().await.unwrap();
    let seconds: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    assert!(seconds.len() >= 5, "only {seconds:?} are histograms");
    for name in seconds.into_iter().filter(|name| name.ends_with("_seconds")) {
        assert!(
            text.lines().any(|l| l.starts_with(&format!("{name}_bucket")) && l.contains("le=\"0.25\"")),
            "{name} has no bucket of 250 ms"
        );
    }
    assert!(!text.contains("quantile="), "a summary cannot be added up over nodes");
    for module in ["audio", "inference", "api"] {
        let used = text.lines().find(|l| l.starts_with("quickcomm_cpu_seconds_total") && l.contains(&format!("module=\"{module}\"")));
        assert!(used.is_some_and(|l| !l.ends_with(" 0")), "no CPU for {module}");
    }
}

/// Seconds of CPU that a module's threads have used.
fn cpu_seconds(metrics: &str, module: &str) -> f64 {
    let own = |l: &&str| l.starts_with("quickcomm_cpu_seconds_total") && l.contains(&format!("module=\"{module}\""));
    metrics.lines().filter(own).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_while_every_core_recognizes() {
    let _alone = alone().await;
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let file = std::fs::read(std::path::Path::new(ROOT).join("tests/fixtures/calls/billing_dispute.wav")).unwrap();
    // Files are heard as fast as there is room: one after the other in each of the two places keeps all workers busy.
    let mut posting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (url, file) = (format!("{}/v1/listen?multichannel=true", server.http), file.clone());
        posting.spawn(async move {
            let client = reqwest::Client::new();
            loop {
                let answer = client.post(&url).body(file.clone()).send().await.unwrap();
                assert_eq!(answer.status(), 200);
            }
        });
    }
    let metrics = async || reqwest::get(format!("{}/metrics", server.admin)).await.unwrap().text().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (cpu_seconds(&metrics().await, "audio"), Instant::now());
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(6) {
        for path in ["/livez", "/readyz", "/metrics", "/admin/status"] {
            let asked = Instant::now();
            let answer = reqwest::get(format!("{}{path}", server.admin)).await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            answer.bytes().await.unwrap();
            slowest = slowest.max(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cores = (cpu_seconds(&metrics().await, "audio") - before) / began.elapsed().as_secs_f64();
    println!("recognition took {cores:.2} cores; the slowest answer of the admin port {slowest:?}");
    assert!(cores > 0.4, "recognition took {cores:.2} cores only");
    assert!(slowest < Duration::from_secs(1), "the admin port took {slowest:?}");
    assert!(posting.try_join_next().is_none(), "a file was refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_id_leads_from_socket_to_row_and_no_word_is_logged() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let env = [("QUICKCOMM_LOG__FORMAT", "json"), ("QUICKCOMM_LOG__FILTER", "info")];
    let server = Server::start(data.path(), &[], &env);

    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).unwrap();
    let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
    let mut said = vec![];
    while let Some(event) = events.recv().await {
        if let ServerMessage::Final(heard) = event.unwrap().message {
            said.push(heard.text);
        }
    }
    let rows = server.get(&format!("/v1/conversations/{id}/utterances?limit=200")).await;
    let log = server.stop_and_read_log();
    let log: Vec<&str> = log.lines().collect();

    for row in rows["data"].as_array().unwrap() {
        let trace = row["trace_id"].as_str().unwrap();
        let steps = log.iter().filter(|l| l.contains(trace)).count();
        assert!(steps >= 2, "trace {trace} is on {steps} lines: not from socket to row");
    }
    for text in said.iter().filter(|t| t.split(' ').count() > 3) {
        assert!(!log.iter().any(|l| l.contains(text.as_str())), "the log says {text:?}");
    }
}
