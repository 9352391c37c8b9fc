//! The API under load: so many requests a second for a minute, whether or not it keeps up, through the real binary; client and server on the
//! same two cores.
//!
//! A request's time counts from when it was due, not from when it could be sent, so a stall is seen by everybody who would have come in it.
//! The mix, over conversations by Zipf's law (exponent 1): 40 % one conversation, 30 % its first utterances, 20 % its insights, 10 % the
//! newest conversations.
//!
//! Rows by the cache of one process on SQLite; `balanced`: two api processes on one Redis and one PostgreSQL behind HAProxy, as
//! `quickcomm split --balanced` starts them, with roles audio and inference idle beside them; `killed`: the same, and one of the two is
//! killed in mid-run. `KINDS`, `RATE` and `SECONDS` choose.

#[path = "../tests/it/support/postgres.rs"]
mod postgres;
#[path = "support/seeded.rs"]
mod seeded;
mod support;

use anyhow::Context;
use api::settings::DatabaseUrl;
use platform::testing::RedisServer;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use support::{Server, cpu_seconds};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const CONNECTIONS: usize = 64;
const CONVERSATIONS: usize = 2_000;

fn main() -> anyhow::Result<()> {
    let quick = support::quick();
    let number = |name: &str, default: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let rate = number("RATE", if quick { 500 } else { 5_000 });
    let seconds = number("SECONDS", if quick { 3 } else { 60 });
    let kinds = env::var("KINDS").unwrap_or_else(|_| "memory,redis,off,balanced,killed".into());
    println!(
        "{:<10} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>8} {:>8} {:>20}",
        "cache", "asked/s", "got/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "errors", "hits", "server", "client", "row / list read, ms"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for kind in kinds.split(',') {
        if ["balanced", "killed"].contains(&kind) {
            runtime.block_on(behind_haproxy(kind, rate, seconds))?;
            continue;
        }
        let folder = support::scratch();
        let ids = runtime.block_on(seeded::conversations(folder.path(), &api::Settings::default(), CONVERSATIONS))?;
        let redis = if kind == "redis" { Some(cache()?) } else { None };
        let url = redis.as_ref().map(RedisServer::url).unwrap_or_default();
        let mut env = vec![("QUICKCOMM_CACHE__KIND", kind)];
        if kind == "redis" {
            env.push(("QUICKCOMM_CACHE__URL", url.as_str()));
        }
        let server = Server::start(folder.path(), &env);
        runtime.block_on(one(kind, &server, &ids, rate, seconds))?;
    }
    Ok(())
}

fn cache() -> anyhow::Result<RedisServer> {
    RedisServer::start(&["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]).context("no redis-server")
}

async fn one(kind: &str, server: &Server, ids: &[String], rate: u64, seconds: u64) -> anyhow::Result<()> {
    let address = server.http.strip_prefix("http://").context("an address")?.to_owned();
    // As many as a second asks for, so that connections and files are open.
    drive(&address, ids, rate, 1).await?;
    let before = Metrics::of(server).await?;
    let used_before = cpu_seconds(server.pid());
    let run = drive(&address, ids, rate, seconds).await?;
    let of_server = (cpu_seconds(server.pid()) - used_before) / run.took.as_secs_f64();
    let after = Metrics::of(server).await?;
    let rise = |name: &str| after.sum(name) - before.sum(name);
    let (hits, misses) = (rise("quickcomm_cache_hits_total"), rise("quickcomm_cache_misses_total"));
    let mut reads = vec![];
    for read in ["row", "list"] {
        let of = |part: &str| format!("quickcomm_api_read_seconds_{part}{{read=\"{read}\"}}");
        let (sum, count) = (after.sum(&of("sum")), after.sum(&of("count")));
        reads.push(format!("{:.2}", 1e3 * sum / count.max(1.0)));
    }
    print(kind, run, rate, &format!("{:.1}%", 100.0 * hits / (hits + misses).max(1.0)), of_server, &reads.join(" / "));
    Ok(())
}

/// Through HAProxy; in the row `killed` one of the nodes dies in the middle.
async fn behind_haproxy(kind: &str, rate: u64, seconds: u64) -> anyhow::Result<()> {
    let database = postgres::Postgres::start(postgres::installed().context("no PostgreSQL")?, postgres::Sync::On);
    let url = database.url("postgres", &database.database("template0"));
    let (bus, cached) = (RedisServer::start(&[]).context("no redis-server")?, cache()?);
    let folder = support::scratch();
    let mut settings = api::Settings::default();
    settings.record.url = DatabaseUrl::new(url.clone());
    api::record::operate::migrate(folder.path().to_owned(), settings.record.clone()).await?;
    let ids = seeded::conversations(folder.path(), &settings, CONVERSATIONS).await?;
    let env = [
        ("QUICKCOMM_API__RECORD__URL", url),
        ("QUICKCOMM_BUS__KIND", "redis".into()),
        ("QUICKCOMM_BUS__URL", bus.url()),
        ("QUICKCOMM_CACHE__KIND", "redis".into()),
        ("QUICKCOMM_CACHE__URL", cached.url()),
    ];
    let split = Split::start(folder.path(), &env)?;
    drive(&split.front, &ids, rate, 1).await?;
    let used = || split.nodes.iter().map(|pid| cpu_seconds(*pid)).collect::<Vec<_>>();
    let (before, half) = (used(), Duration::from_secs(seconds) / 2);
    let run = drive(&split.front, &ids, rate, seconds);
    let (run, dead) = if kind == "killed" {
        let kill = async {
            tokio::time::sleep(half).await;
            let last = cpu_seconds(split.nodes[0]);
            let killed = Command::new("kill").args(["-9", &split.nodes[0].to_string()]).status();
            killed.is_ok_and(|status| status.success()).then_some(last)
        };
        let (run, last) = tokio::join!(run, kill);
        (run?, Some(last.context("the node could not be killed")?))
    } else {
        (run.await?, None)
    };
    let mut after = used();
    if let Some(last) = dead {
        after[0] = last; // nobody is left to ask
    }
    let spent: f64 = after.iter().zip(&before).map(|(after, before)| after - before).sum();
    let took = run.took.as_secs_f64();
    print(kind, run, rate, "-", spent / took, "-");
    Ok(())
}

fn print(kind: &str, mut run: Run, rate: u64, hits: &str, of_server: f64, reads: &str) {
    run.times.sort_unstable();
    let at = |share: f64| run.times.get(((run.times.len().max(1) - 1) as f64 * share) as usize).map_or(0.0, |t| t.as_secs_f64() * 1e3);
    let (asked, took) = (run.times.len() as f64 + run.errors as f64, run.took.as_secs_f64());
    println!(
        "{kind:<10} {rate:>8} {:>8.0} {:>9.2} {:>9.2} {:>9.2} {:>9.1} {:>7.3}% {hits:>9} {of_server:>8.2} {:>8.2} {reads:>20}",
        run.times.len() as f64 / took,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        100.0 * run.errors as f64 / asked,
        run.cpu_s / took,
    );
}

/// `quickcomm split --balanced`, stopped when dropped.
struct Split {
    child: Child,
    /// Where HAProxy takes requests.
    front: String,
    nodes: Vec<u32>,
}

impl Split {
    fn start(data: &std::path::Path, env: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
            .args(["split", "--balanced", "--json", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data)
            .envs(env.iter().map(|(key, value)| (key, value)))
            .env("QUICKCOMM_LOG__FILTER", "warn")
            .current_dir(support::ROOT)
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut front, mut nodes) = (None, vec![]);
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        while front.is_none() || nodes.len() < 2 {
            let line: Value = serde_json::from_str(&lines.next().context("the split ended before it was ready")??)?;
            let role = line["role"].as_str().unwrap_or_default();
            if let Some(said) = line["said"].as_str().filter(|said| said.starts_with("dashboard")) {
                front = said.split("http://").nth(1).map(|at| at.trim_end_matches('/').to_owned());
            } else if role.starts_with("api-") && line["state"] == "ready" {
                nodes.push(u32::try_from(line["pid"].as_u64().context("a pid")?)?);
            }
        }
        // What is still said must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { child, front: front.context("an address")?, nodes })
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// What the admin port says.
struct Metrics(String);

impl Metrics {
    async fn of(server: &Server) -> anyhow::Result<Self> {
        Ok(Self(reqwest::get(format!("{}/metrics", server.admin)).await?.text().await?))
    }

    /// Of a counter, all its labels together.
    fn sum(&self, name: &str) -> f64 {
        let of = |line: &str| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?.rsplit(' ').next()?.parse::<f64>().ok();
        self.0.lines().filter_map(of).sum()
    }
}

struct Run {
    times: Vec<Duration>,
    errors: u64,
    took: Duration,
    /// Of this process.
    cpu_s: f64,
}

async fn drive(address: &str, ids: &[String], rate: u64, seconds: u64) -> anyhow::Result<Run> {
    let begin = Instant::now() + Duration::from_millis(50);
    let ids: std::sync::Arc<[String]> = ids.into();
    let connections: Vec<_> =
        (0..CONNECTIONS).map(|n| tokio::spawn(connection(address.to_owned(), ids.clone(), n, begin, rate, seconds))).collect();
    let mut run = Run { times: vec![], errors: 0, took: Duration::ZERO, cpu_s: -cpu_seconds(std::process::id()) };
    for connection in connections {
        let (times, errors) = connection.await?;
        run.times.extend(times);
        run.errors += errors;
    }
    run.took = begin.elapsed();
    run.cpu_s += cpu_seconds(std::process::id());
    Ok(run)
}

/// Every 64th request, each when it is due or as soon after as the one before has been answered.
async fn connection(
    address: String,
    ids: std::sync::Arc<[String]>,
    n: usize,
    begin: Instant,
    rate: u64,
    seconds: u64,
) -> (Vec<Duration>, u64) {
    let mut rng = StdRng::seed_from_u64(n as u64);
    let mut line: Option<Line> = None;
    let (mut times, mut errors) = (vec![], 0);
    for request in (n as u64..rate * seconds).step_by(CONNECTIONS) {
        let due = begin + Duration::from_secs_f64(request as f64 / rate as f64);
        tokio::time::sleep_until(due.into()).await;
        let path = path(&ids, &mut rng);
        let answered = tokio::time::timeout(Duration::from_secs(10), async {
            if line.is_none() {
                line = Some(Line::open(&address).await?);
            }
            line.as_mut().expect("it is open").get(&path).await
        })
        .await;
        match answered {
            Ok(Ok(200)) => times.push(due.elapsed()),
            Ok(Ok(_)) => errors += 1,
            Ok(Err(_)) | Err(_) => {
                errors += 1;
                line = None;
            }
        }
    }
    (times, errors)
}

fn path(ids: &[String], rng: &mut StdRng) -> String {
    // Zipf's law with exponent 1, by the inverse of its integral.
    let rank = (ids.len() as f64).powf(rng.random::<f64>()) as usize - 1;
    let id = &ids[rank.min(ids.len() - 1)];
    match rng.random_range(0..10) {
        0..4 => format!("/v1/conversations/{id}"),
        4..7 => format!("/v1/conversations/{id}/utterances"),
        7..9 => format!("/v1/conversations/{id}/insights"),
        _ => "/v1/conversations".into(),
    }
}

/// One connection, kept open.
struct Line {
    stream: TcpStream,
    got: Vec<u8>,
}

impl Line {
    async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, got: Vec::with_capacity(1 << 16) })
    }

    /// The status of the answer, which is read to its end.
    async fn get(&mut self, path: &str) -> anyhow::Result<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.got.clear();
        loop {
            anyhow::ensure!(self.stream.read_buf(&mut self.got).await? > 0, "closed");
            let Some(end) = self.got.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.got[..end])?;
            let status = head.split(' ').nth(1).context("a status")?.parse()?;
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let whole = end + 4 + length.context("a length")?;
            while self.got.len() < whole {
                anyhow::ensure!(self.stream.read_buf(&mut self.got).await? > 0, "closed");
            }
            return Ok(status);
        }
    }
}
