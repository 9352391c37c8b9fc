//! What live speech feels of trouble with understanding in the same process: finals beside a saturating backlog of classification, and beside
//! a language model that takes every question and answers none (F26). Alternating runs beside control pairs.

mod support;

use contracts::{CallCx, Inference};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
use tokio::net::TcpListener;
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
    let calm = [
        ("QUICKCOMM_GRPC__LISTEN", socket.as_str()),
        ("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"),
        // The classifier is to be busy all the time: rules must not answer in its place because it is.
        ("QUICKCOMM_INFERENCE__TIMEOUT_MS", "10000"),
    ];
    let server = Server::start(&data.path().join("calm"), &calm);
    let inference = fabric::connect::inference(&socket).expect("a Unix socket is an endpoint");
    let (url, asked) = hanging().await;
    let forsaken = [
        ("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"),
        ("QUICKCOMM_INFERENCE__LLM__URL", url.as_str()),
        ("QUICKCOMM_INFERENCE__LLM__MODEL", "none"),
    ];
    let forsaken = Server::start(&data.path().join("forsaken"), &forsaken);
    let tracks = tracks(CHANNELS, if quick() { 10.0 } else { 20.0 });

    println!(
        "| {CHANNELS} channels, finals | p95 calm ms | beside it ms | median difference ms | control pairs ms | p99 of all calm ms | beside it ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let answered = AtomicU64::new(0);
    let backlog = async || with_backlog(&server, &tracks, &inference, &answered).await;
    let row = compare(async || finals(&server, &tracks).await, backlog).await;
    println!("| {} analyses meanwhile {row}", answered.load(Ordering::Relaxed));
    let row = compare(async || finals(&server, &tracks).await, async || finals(&forsaken, &tracks).await).await;
    println!("| a language model that hangs, asked {} times {row}", asked.load(Ordering::Relaxed));
}

/// Calm, trouble and calm again, several times; seconds to each final.
async fn compare(calm: impl AsyncFn() -> Vec<f64>, trouble: impl AsyncFn() -> Vec<f64>) -> String {
    let ms = |finals: &[f64], share| quantile(&mut finals.to_vec(), share) * 1000.0;
    let (mut effect, mut control, mut calm_p95, mut trouble_p95) = (vec![], vec![], vec![], vec![]);
    let (mut all_calm, mut all_trouble) = (vec![], vec![]);
    for _ in 0..if quick() { 1 } else { 5 } {
        let [first, beside, third] = [calm().await, trouble().await, calm().await];
        let [one, two, three] = [&first, &beside, &third].map(|finals| ms(finals, 0.95));
        eprintln!("  calm {one:.0} ms, trouble {two:.0} ms, calm {three:.0} ms");
        effect.push(two - one);
        control.push((three - one).abs());
        calm_p95.push(one);
        trouble_p95.push(two);
        all_calm.extend(first);
        all_trouble.extend(beside);
    }
    format!(
        "| {:.0} | {:.0} | {:+.0} | ±{:.0} | {:.0} | {:.0} |",
        median(&calm_p95),
        median(&trouble_p95),
        median(&effect),
        control.iter().copied().fold(0.0, f64::max),
        ms(&all_calm, 0.99),
        ms(&all_trouble, 0.99)
    )
}

async fn finals(server: &Server, tracks: &[Track]) -> Vec<f64> {
    run(&server.http, server.pid(), tracks, Listening { endpointing_ms: 250, partial_ms: Some(250) }).await.to_final
}

async fn with_backlog(server: &Server, tracks: &[Track], inference: &Arc<dyn Inference>, answered: &AtomicU64) -> Vec<f64> {
    let stop = CancellationToken::new();
    let flood: Vec<_> = (0..BACKLOG)
        .map(|n| {
            let (inference, stop) = (inference.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answers = 0;
                for k in 0.. {
                    let asked = inference.analyze(CallCx::new(Duration::from_secs(10)), question(n as u64 * 1_000_000 + k));
                    tokio::select! { answer = asked => answers += u64::from(answer.is_ok()), () = stop.cancelled() => break }
                }
                answers
            })
        })
        .collect();
    let finals = finals(server, tracks).await;
    stop.cancel();
    for task in flood {
        answered.fetch_add(task.await.expect("it does not panic"), Ordering::Relaxed);
    }
    finals
}

/// A language model that takes every question and answers none, and how often it was asked.
async fn hanging() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("it is bound"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut held = vec![];
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            held.push(socket);
        }
    });
    (url, asked)
}
