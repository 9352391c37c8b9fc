//! What a call between modules costs: bare, behind the local rules, over a Unix socket, over TCP on loopback, and there with certificates.
//!
//! `cargo run --release -p fabric --example call_overhead`: a unary call (`tiers`), then one 20 ms frame in an open session until its event
//! is back. Client and server share this process and its two threads, so a remote figure contains both sides' work.

use async_trait::async_trait;
use bytes::Bytes;
use contracts::{
    Audio, CallCx, CallError, Encoding, EventStream, Inference, SampleRate,
    audio::{CREDIT, EventTx, Input, ModelInfo, Session, SessionInfo, SpeechEvent, StreamSpec},
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
};
use fabric::{Introduction, Network, Role, Services, Tls, certs::Authority, connect, local, serve};
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// 20 ms of 16 kHz mono in 16 bits.
const FRAME: [u8; 640] = [1; 640];

/// Answers at once, with nothing.
struct Instantly;

#[async_trait]
impl Inference for Instantly {
    async fn analyze(&self, _: CallCx, _: Analyze) -> Result<Vec<Insight>, CallError> {
        Ok(vec![])
    }
    async fn summarize(&self, _: CallCx, _: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        Ok(Box::pin(futures::stream::empty()))
    }
    async fn tiers(&self, _: CallCx) -> Result<Vec<TierStatus>, CallError> {
        Ok(vec![])
    }
}

#[async_trait]
impl Audio for Instantly {
    /// An event for every frame, in the task that sent it.
    async fn open(&self, _: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let events: Arc<Mutex<Option<EventTx>>> = Arc::default();
        let out = events.clone();
        let sink = move |input| {
            let mut events = out.lock();
            match input {
                Input::Frame(frame) => {
                    if let Some(events) = &*events {
                        events.consumed(frame.data.len());
                        events.send(SpeechEvent::Started { at: frame.pos });
                    }
                }
                Input::Finish | Input::Abandon => drop(events.take()),
                Input::Finalize { .. } | Input::Drained => {}
            }
        };
        let model = ModelInfo { name: "none".into(), version: "0".into(), family: "none".into() };
        let (session, tx) = Session::pair(&spec, SessionInfo { model, credit: CREDIT }, Arc::new(sink));
        *events.lock() = Some(tx);
        Ok(session)
    }
}

struct Row {
    place: &'static str,
    calls: Vec<Duration>,
}

impl Row {
    fn at(&self, quantile: f64) -> f64 {
        self.calls[((self.calls.len() - 1) as f64 * quantile) as usize].as_nanos() as f64 / 1000.0
    }
}

/// Rounds of all places in turn, so that a disturbance of the machine falls on each alike.
async fn unary(places: Vec<(&'static str, Arc<dyn Inference>, usize)>) -> Vec<Row> {
    let mut rows: Vec<Row> = places.iter().map(|(place, ..)| Row { place, calls: vec![] }).collect();
    for round in 0..6 {
        for ((_, inference, calls), row) in places.iter().zip(&mut rows) {
            let cx = CallCx::new(Duration::from_secs(60));
            for _ in 0..*calls {
                let cx = cx.clone();
                let begun = Instant::now();
                let answer = inference.tiers(cx).await;
                let took = begun.elapsed();
                assert!(answer.is_ok());
                if round > 0 {
                    row.calls.push(took);
                }
            }
        }
    }
    rows
}

async fn frames(places: Vec<(&'static str, Arc<dyn Audio>, usize)>) -> Vec<Row> {
    let mut rows: Vec<Row> = places.iter().map(|(place, ..)| Row { place, calls: vec![] }).collect();
    let frame = Bytes::from_static(&FRAME);
    for round in 0..6 {
        for ((_, audio, calls), row) in places.iter().zip(&mut rows) {
            let spec = StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000);
            let Session { mut frames, mut events, .. } = audio.open(CallCx::new(Duration::from_secs(60)), spec).await.expect("a session");
            for _ in 0..*calls {
                let begun = Instant::now();
                frames.send(frame.clone()).await.expect("credit");
                let event = events.next().await;
                let took = begun.elapsed();
                assert!(matches!(event, Some(Ok(_))));
                if round > 0 {
                    row.calls.push(took);
                }
            }
            frames.finish();
        }
    }
    rows
}

fn print(title: &str, mut rows: Vec<Row>) {
    println!("{title:<24} {:>10} {:>10} {:>10} {:>12}", "p50 us", "p99 us", "p99.9 us", "over bare");
    for row in &mut rows {
        row.calls.sort();
    }
    let bare = rows[0].at(0.5);
    for row in &rows {
        println!("  {:<22} {:>10.2} {:>10.2} {:>10.1} {:>12.2}", row.place, row.at(0.5), row.at(0.99), row.at(0.999), row.at(0.5) - bare);
    }
}

/// A process with all roles, and its certificate in `folder`.
fn certified(folder: &std::path::Path) -> anyhow::Result<Network> {
    let authority = Authority::new()?;
    let files = authority.issue(&Role::ALL, 1)?.write(folder, "all", &authority.pair().certificate)?;
    Ok(Network::new(Introduction::default(), Some(Arc::new(Tls::load(files)?))))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    // A real recorder and subscriber: without them metrics and spans would cost nothing.
    PrometheusBuilder::new().install_recorder()?;
    tracing_subscriber::fmt().with_env_filter("info,fabric=warn").init();
    let services = Services { audio: Some(Arc::new(Instantly)), inference: Some(Arc::new(Instantly)), conversations: None };
    let socket = std::env::temp_dir().join(format!("call_overhead-{}.sock", std::process::id()));
    let stop = CancellationToken::new();
    let unix = serve(&format!("unix:{}", socket.display()), services.clone()).await?;
    let tcp = serve("127.0.0.1:0", services.clone()).await?;
    let folder = tempfile::tempdir()?;
    let sealed = certified(folder.path())?;
    let tls = sealed.serve("https://127.0.0.1:0", services).await?;
    let [unix_address, tcp_address, tls_address] = [&unix, &tcp, &tls].map(|server| server.address().to_owned());
    let servers = [unix, tcp, tls].map(|server| tokio::spawn(server.run(stop.clone())));

    // In tasks of the runtime, as the product's calls are; `main` itself is on a thread of its own.
    let calls = unary(vec![
        ("bare trait call", Arc::new(Instantly), 20_000),
        ("decorated local", local::inference(Arc::new(Instantly)), 20_000),
        ("unix socket", connect::inference(&unix_address)?, 2_000),
        ("tcp loopback", connect::inference(&tcp_address)?, 2_000),
        ("tcp with certificates", sealed.inference(&tls_address)?, 2_000),
    ]);
    print("unary call", tokio::spawn(calls).await?);
    let hops = frames(vec![
        ("bare session", Arc::new(Instantly), 20_000),
        ("decorated local", local::audio(Arc::new(Instantly)), 20_000),
        ("unix socket", connect::audio(&unix_address)?, 4_000),
        ("tcp loopback", connect::audio(&tcp_address)?, 4_000),
        ("tcp with certificates", sealed.audio(&tls_address)?, 4_000),
    ]);
    print("20 ms frame to event", tokio::spawn(hops).await?);
    stop.cancel();
    for server in servers {
        server.await??;
    }
    Ok(())
}
