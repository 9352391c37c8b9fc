//! What the bus costs: in memory, and over a Redis that is started for this.
//!
//! A hop is from `publish` until the entry is in its reader's hands, with 1000 entries per second under way. Then as many as go through, from
//! one producer in hundreds, from 64 producers one by one, all read and acknowledged by one reader.

use bytes::Bytes;
use contracts::TraceCx;
use platform::{
    bus::{Bus, Consumer, Kind, Memory, NewEntry, Redis, Settings, Url},
    testing::RedisServer,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const STREAM: &str = "bench";
/// As long as a segment with a dozen words.
const BYTES: usize = 1_000;
const ROUNDS: usize = 3;

fn main() -> anyhow::Result<()> {
    let quick = std::env::var("BENCH").is_ok_and(|how| how == "quick");
    let (hops, entries) = if quick { (300, 5_000) } else { (3_000, 100_000) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        println!("{:<10} {:>12} {:>12} {:>18} {:>22}", "bus", "hop p50 µs", "hop p99 µs", "entries/s, by 100", "entries/s, 64 x 1");
        row("memory", Arc::new(Memory::with_capacity(10_000_000)), hops, entries).await?;
        let Some(server) = RedisServer::start(&["--appendonly", "yes"]) else { return Ok(()) };
        let url = Url::try_from(server.url()).map_err(anyhow::Error::msg)?;
        let settings = Settings { kind: Kind::Redis, url: Some(url), capacity: 10_000_000, ..Settings::default() };
        row("Redis", Arc::new(Redis::connect(&settings).await?), hops, entries).await
    })
}

fn entry(n: usize) -> NewEntry {
    NewEntry { key: format!("conv_{}", n % 500), payload: Bytes::from(vec![b'x'; BYTES]), trace: TraceCx::root() }
}

async fn row(name: &str, bus: Arc<dyn Bus>, hops: usize, entries: usize) -> anyhow::Result<()> {
    let mut reader = bus.consume(STREAM, "bench").await?;
    bus.publish(STREAM, (0..500).map(entry).collect()).await?; // every shard has been seen once
    drain(&mut reader, 500).await?;
    let mut rounds = vec![];
    for _ in 0..ROUNDS {
        let (p50, p99) = hop(&bus, &mut reader, hops).await?;
        let by_hundred = through(&bus, &mut reader, entries, 1, 100).await?;
        let one_by_one = through(&bus, &mut reader, entries, 64, 1).await?;
        rounds.push([p50, p99, by_hundred, one_by_one]);
    }
    let median = |at: usize| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("{name:<10} {:>12.0} {:>12.0} {:>18.0} {:>22.0}", median(0), median(1), median(2), median(3));
    Ok(())
}

async fn drain(reader: &mut Box<dyn Consumer>, mut left: usize) -> anyhow::Result<()> {
    while left > 0 {
        let got = reader.next(256).await?;
        left -= got.len();
        reader.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// p50 and p99 in µs; the reader measures by what is written in the entry.
async fn hop(bus: &Arc<dyn Bus>, reader: &mut Box<dyn Consumer>, hops: usize) -> anyhow::Result<(f64, f64)> {
    let begun = Instant::now();
    let sender = bus.clone();
    let sending = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        for n in 0..hops {
            tick.tick().await;
            let mut sent = entry(n);
            sent.payload = Bytes::copy_from_slice(&(begun.elapsed().as_nanos() as u64).to_be_bytes());
            sender.publish(STREAM, vec![sent]).await?;
        }
        anyhow::Ok(())
    });
    let mut took = vec![];
    while took.len() < hops {
        let got = reader.next(256).await?;
        let now = begun.elapsed().as_nanos() as u64;
        for delivery in &got {
            let sent = u64::from_be_bytes(delivery.payload[..8].try_into()?);
            took.push(now.saturating_sub(sent) as f64 / 1_000.0);
        }
        reader.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await?;
    }
    sending.await??;
    took.sort_by(f64::total_cmp);
    Ok((took[took.len() / 2], took[took.len() * 99 / 100]))
}

async fn through(
    bus: &Arc<dyn Bus>,
    reader: &mut Box<dyn Consumer>,
    entries: usize,
    producers: usize,
    batch: usize,
) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let each = entries / producers / batch;
    let sending: Vec<_> = (0..producers)
        .map(|producer| {
            let bus = bus.clone();
            tokio::spawn(async move {
                for n in 0..each {
                    bus.publish(STREAM, (0..batch).map(|at| entry(producer * 7_919 + n * batch + at)).collect()).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    drain(reader, each * batch * producers).await?;
    for producer in sending {
        producer.await??;
    }
    Ok((each * batch * producers) as f64 / begun.elapsed().as_secs_f64())
}
