//! Whether a saturating backlog of classification in the same process moves the p95 of finals: five alternating pairs beside control pairs.

mod support;

use contracts::{CallCx, Inference};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use support::{
    Server,
    load::{Listening, Track, run, tracks},
    median,
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
    println!("| {CHANNELS} channels, p95 of finals | calm ms | under backlog ms | median difference ms | spread of control pairs ms |");
    println!("| --- | --- | --- | --- | --- |");
    println!(
        "| {} analyses meanwhile | {:.0} | {:.0} | {:+.0} | ±{spread:.0} |",
        answered,
        median(&calm_p95),
        median(&busy_p95),
        median(&effect)
    );
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
