//! What a call between modules costs, beside what tonic alone costs: a unary call (`tiers`), and one 20 ms frame in an open session until
//! its event is back.
//!
//! Rows: the bare trait; decorated local, as the product calls it (routing table, policies, metrics, spans that are exported); Unix socket,
//! TCP, TCP with certificates, each with all of that at both ends; two of them without spans; and a bare tonic echo of messages as large.
//! One caller asks again as soon as it is answered, which makes more spans than a product ever would; of a hundred each asks once in 20 ms,
//! as callers' frames come. Client and server share this process and its two threads, so CPU contains both sides' work. Places take turns,
//! so that a disturbance of the machine falls on each alike.
//! `call_overhead -- 'decorated local'` measures one of them.

#[path = "support/collector.rs"]
mod collector;
#[path = "support/echo.rs"]
mod echo;

use async_trait::async_trait;
use bytes::Bytes;
use collector::{Collector, collect_if_asked};
use contracts::{
    Audio, CallCx, CallError, Encoding, EventStream, Inference, SampleRate, TraceCx,
    audio::{CREDIT, EventTx, Input, ModelInfo, Session, SessionInfo, SpeechEvent, StreamSpec},
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
    route::{Dial, Mode},
};
use fabric::{
    Introduction, Network, Role, Services, Tls,
    certs::Authority,
    local,
    route::{Dials, Place},
    serve,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use platform::trace;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

/// 20 ms of 16 kHz mono in 16 bits.
const FRAME: [u8; 640] = [1; 640];
const EVERY: Duration = Duration::from_millis(20);
const MANY: usize = 100;
/// Calls without a pause; more would fill the exporter's queue, and then spans would be thrown away instead of sent.
const BURST: usize = 200;

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

/// Somewhere that answers.
#[derive(Clone)]
enum Way {
    Module {
        inference: Arc<dyn Inference>,
        audio: Arc<dyn Audio>,
        /// Every call has its spans, and they are exported.
        traced: bool,
    },
    Echo(Channel),
}

/// An open stream to it.
enum Line {
    Session(Box<Session>),
    Echo(tokio::sync::mpsc::Sender<Bytes>, Box<Streaming<Bytes>>),
}

impl Way {
    fn cx(&self) -> CallCx {
        let sampled = matches!(self, Self::Module { traced: true, .. });
        CallCx::new(Duration::from_secs(60)).traced(TraceCx { sampled, ..TraceCx::root() })
    }

    fn untraced(self) -> Self {
        match self {
            Self::Module { inference, audio, .. } => Self::Module { inference, audio, traced: false },
            echo => echo,
        }
    }

    async fn ask(&self, cx: CallCx) {
        match self {
            Self::Module { inference, .. } => drop(inference.tiers(cx).await.expect("an answer")),
            Self::Echo(channel) => drop(echo::unary(channel, Bytes::new()).await.expect("an answer")),
        }
    }

    async fn open(&self, cx: CallCx) -> Line {
        match self {
            Self::Module { audio, .. } => {
                let spec = StreamSpec::live(Encoding::Linear16, SampleRate::HZ_16000);
                Line::Session(Box::new(audio.open(cx, spec).await.expect("a session")))
            }
            Self::Echo(channel) => {
                let (frames, events) = echo::stream(channel).await.expect("a stream");
                Line::Echo(frames, Box::new(events))
            }
        }
    }
}

impl Line {
    async fn frame(&mut self) {
        let frame = Bytes::from_static(&FRAME);
        match self {
            Self::Session(session) => {
                session.frames.send(frame).await.expect("credit");
                assert!(matches!(session.events.next().await, Some(Ok(_))));
            }
            Self::Echo(frames, events) => {
                frames.send(frame).await.expect("it is open");
                assert!(events.message().await.expect("it goes on").is_some());
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unary,
    Frames,
}

#[derive(Default)]
struct Taken {
    each: Vec<Duration>,
    cpu_s: f64,
}

impl Taken {
    fn at(&self, quantile: f64) -> f64 {
        self.each[((self.each.len() - 1) as f64 * quantile) as usize].as_nanos() as f64 / 1000.0
    }
}

/// One caller: again and again.
async fn alone(way: Way, kind: Kind, calls: usize) -> Vec<Duration> {
    let mut each = Vec::with_capacity(calls);
    let mut line = if kind == Kind::Frames { Some(way.open(way.cx()).await) } else { None };
    let cx = way.cx();
    for n in 0..calls {
        if n % BURST == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let cx = cx.clone();
        let begun = Instant::now();
        match &mut line {
            Some(line) => line.frame().await,
            None => way.ask(cx).await,
        }
        each.push(begun.elapsed());
    }
    each
}

/// One of many: once in 20 ms.
async fn among_many(way: Way, kind: Kind, number: usize, calls: usize) -> Vec<Duration> {
    let mut each = Vec::with_capacity(calls);
    let mut line = if kind == Kind::Frames { Some(way.open(way.cx()).await) } else { None };
    let cx = way.cx();
    let begin = tokio::time::Instant::now() + Duration::from_millis(100) + EVERY * number as u32 / MANY as u32;
    for n in 0..calls {
        tokio::time::sleep_until(begin + EVERY * n as u32).await;
        let cx = cx.clone();
        let begun = Instant::now();
        match &mut line {
            Some(line) => line.frame().await,
            None => way.ask(cx).await,
        }
        each.push(begun.elapsed());
    }
    each
}

/// CPU time of this process in seconds, by the scheduler's own count.
fn cpu_s() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("there is a /proc");
    let of = |thread: std::fs::DirEntry| -> Option<f64> {
        std::fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok()
    };
    threads.flatten().filter_map(of).sum::<f64>() / 1e9
}

/// The first round warms up.
async fn measure(places: &[(&'static str, Way)], kind: Kind, callers: usize, rounds: usize) -> Vec<Taken> {
    let mut taken: Vec<Taken> = places.iter().map(|_| Taken::default()).collect();
    for round in 0..=rounds {
        for ((_, way), taken) in places.iter().zip(&mut taken) {
            let before = cpu_s();
            let calls = if callers == 1 { 2000 } else { 50 };
            // In tasks of the runtime, as the product's calls are; `main` itself is on a thread of its own.
            let asking = (0..callers).map(|number| {
                let way = way.clone();
                tokio::spawn(async move {
                    if callers == 1 { alone(way, kind, calls).await } else { among_many(way, kind, number, calls).await }
                })
            });
            for each in futures::future::join_all(asking).await {
                let each = each.expect("a caller does not panic");
                if round > 0 {
                    taken.each.extend(each);
                }
            }
            if round > 0 {
                taken.cpu_s += cpu_s() - before;
            }
        }
    }
    taken.iter_mut().for_each(|taken| taken.each.sort());
    taken
}

fn print(places: &[(&'static str, Way)], title: &str, taken: &[Taken]) {
    println!("\n| {title} | p50 µs | p99 | p99.9 | CPU µs |");
    println!("| --- | --- | --- | --- | --- |");
    for ((place, _), taken) in places.iter().zip(taken) {
        let cpu = taken.cpu_s * 1e6 / taken.each.len() as f64;
        println!("| {place} | {:.2} | {:.2} | {:.1} | {cpu:.1} |", taken.at(0.5), taken.at(0.99), taken.at(0.999));
    }
}

/// The modules as the rest of the product calls them.
fn dialed(network: &Network, endpoint: Option<&str>) -> anyhow::Result<Way> {
    let place = Place {
        dial: Dial { mode: if endpoint.is_some() { Mode::Remote } else { Mode::Local }, ..Dial::default() },
        endpoints: endpoint.into_iter().map(str::to_owned).collect(),
    };
    let here = endpoint.is_none();
    let mut dials = Dials::default();
    let (one, other) = (network.clone(), network.clone());
    let inference = dials.inference(
        here.then(|| local::inference(Arc::new(Instantly))),
        &place,
        Arc::new(move |endpoint| Ok((one.inference(endpoint)?, one.health(endpoint)?))),
    )?;
    let audio = dials.audio(
        here.then(|| local::audio(Arc::new(Instantly))),
        &place,
        Arc::new(move |endpoint| Ok((other.audio(endpoint)?, other.health(endpoint)?))),
    )?;
    Ok(Way::Module { inference, audio, traced: true })
}

/// A process with all roles, and its certificate in `folder`.
fn certified(folder: &std::path::Path) -> anyhow::Result<Network> {
    let authority = Authority::new()?;
    let files = authority.issue(&Role::ALL, 1)?.write(folder, "all", &authority.pair().certificate)?;
    Ok(Network::new(Introduction::default(), Some(Arc::new(Tls::load(files)?))))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    if collect_if_asked().await {
        return Ok(());
    }
    // A real recorder, subscriber and collector: without them metrics and spans would cost nothing.
    PrometheusBuilder::new().install_recorder()?;
    tracing_subscriber::fmt().with_env_filter("warn").init();
    let collector = Collector::start();
    trace::start(&serde_json::from_value(serde_json::json!({ "endpoint": collector.endpoint }))?, "bench")?;

    let services = Services { audio: Some(Arc::new(Instantly)), inference: Some(Arc::new(Instantly)), conversations: None };
    let folder = tempfile::tempdir()?;
    let sealed = certified(folder.path())?;
    let stop = CancellationToken::new();
    let unix = serve(&format!("unix:{}", folder.path().join("ours.sock").display()), services.clone()).await?;
    let tcp = serve("127.0.0.1:0", services.clone()).await?;
    let tls = sealed.serve("https://127.0.0.1:0", services).await?;
    let [unix_at, tcp_at, tls_at] = [&unix, &tcp, &tls].map(|server| server.address().to_owned());
    let servers = [unix, tcp, tls].map(|server| tokio::spawn(server.run(stop.clone())));
    let places = [
        ("bare trait", Way::Module { inference: Arc::new(Instantly), audio: Arc::new(Instantly), traced: false }),
        ("decorated local, not traced", dialed(&Network::default(), None)?.untraced()),
        ("decorated local", dialed(&Network::default(), None)?),
        ("Unix socket", dialed(&Network::default(), Some(&unix_at))?),
        ("bare tonic echo, Unix socket", Way::Echo(echo::over_unix(folder.path().join("echo.sock")).await?)),
        ("TCP, not traced", dialed(&Network::default(), Some(&tcp_at))?.untraced()),
        ("TCP", dialed(&Network::default(), Some(&tcp_at))?),
        ("bare tonic echo, TCP", Way::Echo(echo::over_tcp().await?)),
        ("TCP with certificates", dialed(&sealed, Some(&tls_at))?),
    ];
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let places: Vec<_> = places.into_iter().filter(|(place, _)| only.as_ref().is_none_or(|only| place == only)).collect();
    let quick = std::env::var("BENCH").is_ok_and(|v| v == "quick");
    for (kind, name) in [(Kind::Unary, "unary call"), (Kind::Frames, "20 ms frame to event")] {
        for (callers, rounds) in [(1, if quick { 2 } else { 10 }), (MANY, if quick { 1 } else { 5 })] {
            let taken = measure(&places, kind, callers, rounds).await;
            print(&places, &format!("{name}, {callers} at once"), &taken);
        }
    }
    stop.cancel();
    for server in servers {
        server.await??;
    }
    Ok(())
}
