//! Whether understanding moves what is heard in the same process: a saturating backlog of classification, five alternating pairs beside control
//! pairs; then a language model that never answers, asked about every turn, runs alternating with some without one.

mod support;

use contracts::{CallCx, Inference};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use support::{
    Server,
    load::{Listening, Track, run, tracks},
    median, quantile,
    questions::question,
    quick, scratch,
};
use tokio_util::sync::CancellationToken;

/// Well within what the machine holds, so that queueing of speech itself is not what is measured.
const CHANNELS: usize = 16;
/// Calls to the classifier under way at any moment: it is never idle.
const BACKLOG: usize = 16;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let data = scratch();
    let socket = format!("unix:{}", data.path().join("modules.sock").display());
    let settings = [
        ("QUICKCOMM_GRPC__LISTEN", socket.as_str()),
        ("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"),
        // The classifier is to be busy all the time: rules must not answer in its place because it is.
        ("QUICKCOMM_INFERENCE__TIMEOUT_MS", "10000"),
    ];
    let server = Server::start(&data.path().join("data"), &settings);
    let inference = fabric::connect::inference(&socket).expect("a Unix socket is an endpoint");
    let tracks = tracks(CHANNELS, if quick() { 10.0 } else { 20.0 });
    let pairs = if quick() { 1 } else { 5 };
    let (mut effect, mut control, mut calm_p95, mut busy_p95, mut answered) = (vec![], vec![], vec![], vec![], 0);
    for _ in 0..pairs {
        let first = p95(&server, &tracks).await;
        let (second, calls) = with_backlog(&server, &tracks, &inference).await;
        let third = p95(&server, &tracks).await;
        eprintln!("  calm {first:.0} ms, backlog {second:.0} ms ({calls} analyses), calm {third:.0} ms");
        effect.push(second - first);
        control.push(third - first);
        calm_p95.push(first);
        busy_p95.push(second);
        answered += calls;
    }
    let spread = control.iter().map(|d| d.abs()).fold(0.0, f64::max);
    drop(server);
    println!("| {CHANNELS} channels, p95 of finals | calm ms | under backlog ms | median difference ms | spread of control pairs ms |");
    println!("| --- | --- | --- | --- | --- |");
    println!(
        "| {} analyses meanwhile | {:.0} | {:.0} | {:+.0} | ±{spread:.0} |",
        answered,
        median(&calm_p95),
        median(&busy_p95),
        median(&effect)
    );
    beside_a_hanging_model(data.path(), &tracks).await;
}

/// A server that takes questions and never answers.
async fn hanging_model() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        let mut asked = vec![];
        while let Ok((socket, _)) = listener.accept().await {
            asked.push(socket);
        }
    });
    url
}

async fn beside_a_hanging_model(data: &Path, tracks: &[Track]) {
    let url = hanging_model().await;
    let asks = [
        ("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"),
        ("QUICKCOMM_INFERENCE__LLM__URL", url.as_str()),
        ("QUICKCOMM_INFERENCE__LLM__MODEL", "hangs"),
        // The worst that can be: it is never left alone.
        ("QUICKCOMM_INFERENCE__LLM__BREAKER_FAILURES", "1000"),
    ];
    let without = Server::start(&data.join("without"), &asks[..1]);
    let with = Server::start(&data.join("with"), &asks);
    let listening = Listening { endpointing_ms: 250, partial_ms: Some(250) };
    let (mut first, mut beside, mut second) = (vec![], vec![], vec![]);
    for _ in 0..if quick() { 1 } else { 3 } {
        for (server, finals) in [(&without, &mut first), (&with, &mut beside), (&without, &mut second), (&with, &mut beside)] {
            finals.extend(run(&server.http, server.pid(), tracks, listening).await.to_final);
        }
    }
    let both = [first.clone(), second.clone()].concat();
    println!("\n| {CHANNELS} channels, finals | p50 ms | p95 ms | p99 ms |");
    println!("| --- | --- | --- | --- |");
    let count = both.len();
    for (name, mut finals) in
        [("no language model", both), ("one that hangs", beside), ("first half without", first), ("second half without", second)]
    {
        let mut at = |share| quantile(&mut finals, share) * 1_000.0;
        println!("| {name} | {:.0} | {:.0} | {:.0} |", at(0.5), at(0.95), at(0.99));
    }
    println!("{count} finals each, of the halves half as many");
}

async fn p95(server: &Server, tracks: &[Track]) -> f64 {
    run(&server.http, server.pid(), tracks, Listening { endpointing_ms: 250, partial_ms: Some(250) }).await.final_ms(0.95)
}

async fn with_backlog(server: &Server, tracks: &[Track], inference: &Arc<dyn Inference>) -> (f64, u64) {
    let stop = CancellationToken::new();
    let answered = Arc::new(AtomicU64::new(0));
    let flood: Vec<_> = (0..BACKLOG)
        .map(|n| {
            let (inference, stop, answered) = (inference.clone(), stop.clone(), answered.clone());
            tokio::spawn(async move {
                for k in 0.. {
                    let asked = inference.analyze(CallCx::new(Duration::from_secs(10)), question(n as u64 * 1_000_000 + k));
                    tokio::select! { answer = asked => { answered.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed); } () = stop.cancelled() => return }
                }
            })
        })
        .collect();
    let p95 = p95(server, tracks).await;
    stop.cancel();
    for task in flood {
        let _ = task.await;
    }
    (p95, answered.load(Ordering::Relaxed))
}
