//! How fast the record commits, on SQLite and on PostgreSQL over a local socket, beside a bare write + fsync loop in the same run.
//!
//! Folders are made in FOLDER (`cargo bench --bench commit_rate -- FOLDER`; default: here), PostgreSQL's in TMPDIR, and removed. Medians of
//! three alternating rounds. A temporary file system would show the processor, not the disk.

#[path = "../tests/it/support/postgres.rs"]
mod postgres;

use api::{Record, Settings, settings::DatabaseUrl};
use chrono::Utc;
use contracts::{
    CallCx, ChannelIndex, ConversationId, Conversations, Encoding, Epoch, SamplePos, SampleRate, TraceCx,
    audio::{ChannelSpec, Role, SegmentBody, Spoken, Word, WordTimes},
    conversation::{Attach, CommitOutcome, OpenConversation, Segment},
};
use platform::bus::Memory;
use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 3;
/// One page and a little: what a small commit writes to SQLite's log.
const BARE_BYTES: usize = 4_096 + 24;
const ROUND: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let at = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_else(|| ".".into());
    let folder = tempfile::tempdir_in(&at)?;
    let server = postgres::installed().map(|bin| postgres::Postgres::start(bin, postgres::Sync::On));
    let mut places = vec![("SQLite", Running::start(&folder.path().join("sqlite"), Settings::default()).await?)];
    if let Some(server) = &server {
        let mut settings = Settings::default();
        settings.record.url = DatabaseUrl::new(server.url("postgres", &server.database("template0")));
        let data = folder.path().join("postgres");
        api::record::operate::migrate(data.clone(), settings.record.clone()).await?;
        places.push(("PostgreSQL", Running::start(&data, settings).await?));
    }

    let mut rows: Vec<(String, Vec<Measured>)> = vec![];
    for _ in 0..ROUNDS {
        note(&mut rows, "bare write + fsync, back to back".into(), bare(folder.path(), Duration::ZERO)?);
        for (name, Running { record, .. }) in &places {
            note(&mut rows, format!("{name}, 1 channel, back to back"), load(record, 1, 1, Duration::ZERO).await?);
            note(&mut rows, format!("{name}, 16 channels, back to back"), load(record, 16, 1, Duration::ZERO).await?);
            note(&mut rows, format!("{name}, 128 channels, back to back"), load(record, 128, 1, Duration::ZERO).await?);
            note(&mut rows, format!("{name}, 4 recorders of 64, back to back"), load(record, 4, 64, Duration::ZERO).await?);
        }
        note(&mut rows, "bare write + fsync, 50 per second".into(), bare(folder.path(), Duration::from_millis(20))?);
        for (name, Running { record, .. }) in &places {
            let paced = load(record, 50, 1, Duration::from_secs(1)).await?;
            note(&mut rows, format!("{name}, 50 channels, 1 segment per second"), paced);
        }
    }
    println!("{:<46} {:>12} {:>9} {:>9} {:>9}", "", "segments/s", "p50 ms", "p99 ms", "max ms");
    for (name, rounds) in rows {
        let median = |of: fn(&Measured) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{name:<46} {:>12.0} {:>9.2} {:>9.2} {:>9.2}",
            median(|m| m.per_second),
            median(|m| m.p50),
            median(|m| m.p99),
            median(|m| m.max)
        );
    }
    for (_, running) in places {
        running.stop.cancel();
        running.task.await?;
        running.record.drain().await;
    }
    Ok(())
}

struct Running {
    record: Arc<Record>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(data: &Path, settings: Settings) -> anyhow::Result<Self> {
        let record = Record::open(data, Arc::new(Memory::default()), &settings).await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(record.clone().run(stop.clone()));
        Ok(Self { record, stop, task })
    }
}

struct Measured {
    per_second: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

fn note(rows: &mut Vec<(String, Vec<Measured>)>, name: String, measured: Measured) {
    match rows.iter_mut().find(|(known, _)| *known == name) {
        Some((_, rounds)) => rounds.push(measured),
        None => rows.push((name, vec![measured])),
    }
}

fn measured(mut took: Vec<Duration>, segments: usize, elapsed: Duration) -> Measured {
    took.sort_unstable();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let at = |q: f64| ms(took[((took.len() - 1) as f64 * q) as usize]);
    Measured { per_second: segments as f64 / elapsed.as_secs_f64(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

fn bare(folder: &Path, every: Duration) -> anyhow::Result<Measured> {
    let mut file = File::create(folder.join("bare"))?;
    let block = vec![0xA5u8; BARE_BYTES];
    let mut took = vec![];
    let began = Instant::now();
    while began.elapsed() < ROUND {
        let due = began + every * took.len() as u32;
        #[allow(clippy::disallowed_methods)] // a paced writer: the clock is the event
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        took.push(asked.elapsed());
    }
    let n = took.len();
    Ok(measured(took, n, began.elapsed()))
}

/// `channels` producers, each with one commit of `batch` segments under way, or one every so often.
async fn load(record: &Arc<Record>, channels: usize, batch: u64, every: Duration) -> anyhow::Result<Measured> {
    let mut producers = vec![];
    let began = Instant::now();
    for n in 0..channels {
        let record = record.clone();
        // Spread evenly, as speakers are.
        let first = began + every * n as u32 / channels as u32;
        producers.push(tokio::spawn(async move { produce(&record, batch, first, every, began + ROUND).await }));
    }
    let mut took = vec![];
    for producer in producers {
        took.extend(producer.await??);
    }
    let segments = took.len() * batch as usize;
    Ok(measured(took, segments, began.elapsed()))
}

async fn produce(record: &Record, batch: u64, first: Instant, every: Duration, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let cx = || CallCx::new(Duration::from_secs(10));
    let conversation = ConversationId::fresh();
    let channel = ChannelSpec { index: ChannelIndex(0), role: Role::Customer, encoding: Encoding::Linear16, rate: SampleRate::HZ_16000 };
    let request = OpenConversation {
        id: conversation,
        external_id: None,
        title: None,
        source: "bench".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![channel],
        started_at: Utc::now(),
    };
    record.open(cx(), request).await?;
    let epoch = record.attach(cx(), Attach { conversation, channel: ChannelIndex(0) }).await?.epoch;
    let mut took = vec![];
    let mut seq = 0;
    for n in 0.. {
        let due = first + every * n;
        if due.max(Instant::now()) >= until {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let segments: Vec<Segment> = (seq..seq + batch).map(|seq| segment(conversation, epoch, seq)).collect();
        seq += batch;
        let asked = Instant::now();
        let outcomes = record.commit(cx(), segments).await?;
        took.push(asked.elapsed());
        anyhow::ensure!(outcomes.iter().all(|o| *o == CommitOutcome::Committed), "{outcomes:?}");
    }
    Ok(took)
}

/// Twelve words in four seconds.
fn segment(conversation: ConversationId, epoch: Epoch, seq: u64) -> Segment {
    let said = ["hello", "I", "am", "calling", "about", "the", "invoice", "you", "sent", "me", "last", "week"];
    let (start, end) = (seq * 64_000, (seq + 1) * 64_000);
    let word = |(n, text): (usize, &&str)| {
        let at = (seq * 4_000) as u32 + n as u32 * 300;
        Word { text: (*text).into(), start_ms: at, end_ms: at + 280, confidence: 0.93 }
    };
    Segment {
        conversation,
        channel: ChannelIndex(0),
        epoch,
        seq,
        start: SamplePos(start),
        end: SamplePos(end),
        body: SegmentBody::Speech(Spoken {
            words: said.iter().enumerate().map(word).collect(),
            from: SamplePos(start),
            to: SamplePos(end),
            confidence: 0.9,
            speech_final: true,
            word_times: WordTimes::Estimated,
            model: "moonshine-tiny-en 1".into(),
            decode_ms: 60,
        }),
        trace: TraceCx::root(),
    }
}
