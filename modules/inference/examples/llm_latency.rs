//! How long a language model's insights take: turns of many conversations through the bus and the worker, in front of a server that answers
//! after a second. `cargo run --release -p inference --example llm_latency [turns a second] [seconds] [server's ms]`

#![allow(clippy::unwrap_used)] // a measurement that cannot be made should stop

#[path = "../tests/support/scripted.rs"]
mod scripted;
#[path = "../tests/support/turns.rs"]
mod turns;

use contracts::{
    ConversationId, UtteranceId,
    conversation::Segment,
    inference::{Insight, Tier},
    signal::INSIGHTS,
    testing::FakeConversations,
};
use inference::{LlmSettings, Local, Settings, Worker};
use platform::bus::{Bus, Memory};
use scripted::{Play, Scripted};
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const CONVERSATIONS: u64 = 40;

fn turn(n: u64) -> Segment {
    let text = format!("I want to cancel my plan number {n} today, please");
    turns::speech(ConversationId::from_u128(u128::from(n % CONVERSATIONS) + 1), n / CONVERSATIONS, &text)
}

#[tokio::main]
async fn main() {
    let mut given = std::env::args().skip(1).map(|n| n.parse::<u64>().expect("a number"));
    let quick = std::env::var("BENCH").is_ok_and(|v| v == "quick");
    let (rate, seconds) = (given.next().unwrap_or(8), given.next().unwrap_or(if quick { 3 } else { 30 }));
    let answers_ms = given.next().unwrap_or(1_000);
    let server = Scripted::start(move |seen| Play::After(Duration::from_millis(answers_ms), Box::new(seen.answer()))).await;
    let llm = LlmSettings { url: Some(server.url()), model: "scripted".into(), ..LlmSettings::default() };
    let settings = Settings { classifier: false, llm, ..Settings::default() };
    let local = Arc::new(Local::start(None, Path::new("nowhere"), &settings).unwrap());
    let bus = Memory::default();
    let mut insights = bus.consume(INSIGHTS, "bench").await.unwrap();
    let stop = CancellationToken::new();
    let worker = Worker::new(local, Arc::new(FakeConversations::default()), Arc::new(bus.clone()), &settings.worker);
    let worker = tokio::spawn(worker.run(stop.clone()));

    let turns = rate * seconds;
    let begun = Instant::now();
    let publishing = {
        let bus = bus.clone();
        tokio::spawn(async move {
            let mut published: HashMap<UtteranceId, Instant> = HashMap::new();
            for n in 0..turns {
                tokio::time::sleep_until(begun + Duration::from_secs_f64(n as f64 / rate as f64)).await;
                let segment = turn(n);
                published.insert(segment.utterance_id(), Instant::now());
                turns::say(&bus, &segment).await;
            }
            published
        })
    };
    // The first answer to each task of a turn; those that are asked about again come later and are not counted.
    let mut first: HashMap<_, (Instant, Insight)> = HashMap::new();
    while (first.len() as u64) < turns * 2 {
        let more = insights.next(64).await.unwrap();
        insights.ack(&more.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
        for insight in more.iter().map(|d| serde_json::from_slice::<Insight>(&d.payload).unwrap()) {
            first.entry((insight.utterance, insight.task)).or_insert((Instant::now(), insight));
        }
    }
    let published = publishing.await.unwrap();
    for tier in [Tier::Llm, Tier::Rules] {
        let of_tier: Vec<_> = first.values().filter(|(_, i)| i.provenance.tier == tier).collect();
        let mut ms: Vec<u128> = of_tier.iter().map(|(at, i)| (*at - published[&i.utterance]).as_millis()).collect();
        ms.sort_unstable();
        let at = |share: f64| ms.get(((ms.len() as f64 * share) as usize).min(ms.len().saturating_sub(1))).copied().unwrap_or(0);
        let late = of_tier.iter().filter(|(_, i)| i.provenance.late).count();
        let (p50, p95, p99) = (at(0.5), at(0.95), at(0.99));
        println!("{:<6} {:>5} insights, p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, {late} marked late", tier.name(), ms.len());
    }
    println!(
        "{turns} turns at {rate}/s of {CONVERSATIONS} conversations; the server answers after {answers_ms} ms, {} at once at most",
        server.most_at_once()
    );
    stop.cancel();
    worker.await.unwrap();
}
