//! What the cache gives: reads per second in memory, on a Redis that is started for this, and from the first level in front of it; the hit
//! rate on a mix as callers make it; and how often a key is read from the database when it ends for a thousand readers at once.
//!
//! The mix: 100 000 conversations, asked for by Zipf's law (exponent 1), one change in a hundred reads; a read of the database takes 1 ms.

use bytes::Bytes;
use contracts::CallError;
use platform::{
    bus,
    cache::{From, Front, Key, Kind, Loaded, Mark, Scope, Settings, Stamp, Void},
    testing::RedisServer,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// As long as a conversation's row.
const BYTES: usize = 800;
const READERS: usize = 64;
const CONVERSATIONS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let quick = std::env::var("BENCH").is_ok_and(|how| how == "quick");
    let (reads, mix, rounds) = if quick { (20_000, 20_000, 3) } else { (400_000, 400_000, 20) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = RedisServer::start(&["--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru"]);
        let on_redis = |first_level_ms| -> anyhow::Result<Option<Settings>> {
            let Some(server) = &server else { return Ok(None) };
            let url = Some(bus::Url::try_from(server.url()).map_err(anyhow::Error::msg)?);
            Ok(Some(Settings { kind: Kind::Redis, url, first_level_ms, ..Settings::default() }))
        };
        println!(
            "{:<26} {:>12} {:>12} {:>12} {:>10} {:>14} {:>26}",
            "cache", "reads/s", "p50 µs", "p99 µs", "hits, mix", "mix reads/s", "fills per key, 1000 readers"
        );
        let kinds = [("memory", Some(Settings::default())), ("Redis", on_redis(0)?), ("Redis behind first level", on_redis(5_000)?)];
        for (name, settings) in kinds {
            let Some(settings) = settings else { continue };
            if let Some(server) = &server {
                server.ask::<String>(&["FLUSHALL"]);
            }
            let cached = Bench::start(&settings).await?;
            let (rate, p50, p99) = cached.reads(reads).await?;
            let (hits, mix_rate) = cached.mix(mix).await?;
            let fills = cached.ends(rounds).await?;
            cached.stop.cancel();
            println!("{name:<26} {rate:>12.0} {p50:>12.1} {p99:>12.1} {:>9.1}% {mix_rate:>14.0} {fills:>26.2}", hits * 100.0);
        }
        Ok(())
    })
}

struct Bench {
    front: Arc<Front>,
    stop: CancellationToken,
    version: AtomicU64,
    loads: AtomicU64,
}

impl Bench {
    async fn start(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        let front = Front::start(settings, None).await?;
        let stop = CancellationToken::new();
        tokio::spawn(front.clone().run(stop.clone()));
        Ok(Arc::new(Self { front, stop, version: AtomicU64::new(1), loads: AtomicU64::new(0) }))
    }

    async fn read(&self, key: Key, took: Duration) -> Result<From, CallError> {
        let load = || async move {
            self.loads.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(took).await;
            let stamp = Stamp { ver: self.version.load(Ordering::SeqCst), mark: Mark::default() };
            Ok(Loaded { stamp, body: Some(Bytes::from(vec![b'x'; BYTES])) })
        };
        Ok(self.front.read(key, None, load).await?.from)
    }

    /// Reads of a thousand keys that are all there, by 64 readers; per second, and p50 and p99 in µs.
    async fn reads(self: &Arc<Self>, reads: usize) -> anyhow::Result<(f64, f64, f64)> {
        let key = |n: usize| Scope::new("bench", format!("conv_{}", n % 1_000)).part("row");
        for n in 0..1_000 {
            self.read(key(n), Duration::ZERO).await?;
        }
        let begun = Instant::now();
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let bench = self.clone();
                tokio::spawn(async move {
                    let mut took = Vec::with_capacity(reads / READERS);
                    for n in 0..reads / READERS {
                        let asked = Instant::now();
                        bench.read(key(n * 7 + reader * 131), Duration::ZERO).await?;
                        took.push(asked.elapsed());
                        // What is answered without waiting leaves no gap for others by itself.
                        tokio::task::coop::consume_budget().await;
                    }
                    anyhow::Ok(took)
                })
            })
            .collect();
        let mut took = vec![];
        for reader in readers {
            took.extend(reader.await??);
        }
        let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        Ok((rate, at(0.5), at(0.99)))
    }

    /// Share of reads that the database was not asked for, and reads per second.
    async fn mix(self: &Arc<Self>, reads: usize) -> anyhow::Result<(f64, f64)> {
        let zipf = Arc::new(Zipf::new(CONVERSATIONS));
        let before = self.loads.load(Ordering::SeqCst);
        let begun = Instant::now();
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (bench, zipf) = (self.clone(), zipf.clone());
                tokio::spawn(async move {
                    let mut rng = StdRng::seed_from_u64(reader as u64);
                    for n in 0..reads / READERS {
                        let scope = Scope::new("bench", format!("mix_{}", zipf.pick(&mut rng)));
                        if n % 100 == 99 {
                            let floor = bench.version.fetch_add(1, Ordering::SeqCst) + 1;
                            bench.front.void(vec![Void { scope: scope.clone(), floor }]);
                        }
                        bench.read(scope.part("row"), Duration::from_millis(1)).await?;
                        tokio::task::coop::consume_budget().await;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for reader in readers {
            reader.await??;
        }
        let missed = (self.loads.load(Ordering::SeqCst) - before) as f64;
        Ok((1.0 - missed / reads as f64, reads as f64 / begun.elapsed().as_secs_f64()))
    }

    /// Reads of the database per end of a key that a thousand readers ask for.
    async fn ends(self: &Arc<Self>, rounds: usize) -> anyhow::Result<f64> {
        let key = Scope::new("bench", "hot").part("row");
        let before = self.loads.load(Ordering::SeqCst);
        for _ in 0..rounds {
            let readers = (0..1_000).map(|_| self.read(key.clone(), Duration::from_millis(5)));
            futures::future::try_join_all(readers).await?;
            let floor = self.version.fetch_add(1, Ordering::SeqCst) + 1;
            self.front.void(vec![Void { scope: key.scope.clone(), floor }]);
            while !self.front.is_told() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok((self.loads.load(Ordering::SeqCst) - before) as f64 / rounds as f64)
    }
}

struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: usize) -> Self {
        let mut sum = 0.0;
        let up_to = |rank| {
            sum += 1.0 / rank as f64;
            sum
        };
        Self((1..=n).map(up_to).collect())
    }

    fn pick(&self, rng: &mut StdRng) -> usize {
        let at = rng.random_range(0.0..*self.0.last().expect("there are some"));
        self.0.partition_point(|sum| *sum < at)
    }
}
