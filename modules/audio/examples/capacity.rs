//! How many channels the engine hears at once, in one process and without sockets.
//!
//! `capacity CHANNELS [SECONDS] [--finals] [--silence MS]`: real-time channels with 60 % speech, made of the turns of the demo calls,
//! each starting elsewhere. Prints, in milliseconds: speech end (the scheduled send time of a turn's last voiced sample) to its final,
//! the age of a speaking channel's newest text, CPU by thread name, and the engine's own counters. `SET=key=value,…` changes settings.

use audio::engine::{
    Engine, EngineSettings,
    decode::file::{self, Limits},
};
use contracts::{
    Audio, CallCx, Encoding, SampleRate,
    audio::{Endpointing, SegmentBody, SpeechEvent, StreamSpec},
};
use platform::{onnx::Runtime, telemetry};
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// A turn with the silence after it.
struct Turn {
    samples: Vec<i16>,
    /// Samples up to the last voiced one.
    spoken: usize,
}

struct Voice {
    rate: SampleRate,
    turns: Vec<Turn>,
}

#[derive(Default)]
struct Measured {
    finals_ms: Vec<f64>,
    ages_ms: Vec<f64>,
    turns: usize,
    late_frames: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (channels, seconds) = (number(0, 20) as usize, number(1, 40));
    let finals = args.iter().any(|a| a == "--finals");
    let silence = args.iter().position(|a| a == "--silence").map_or(250, |i| number(i + 1, 250));
    let period = args.iter().position(|a| a == "--period").map_or(250, |i| number(i + 1, 250));

    let root = std::env::var_os("QUICKCOMM_ROOT").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = root.ancestors().find(|p| p.join("tests/fixtures/calls").exists()).expect("the repository");
    let models = std::env::var_os("QUICKCOMM_MODELS").map_or_else(|| root.join(".quickcomm/models"), PathBuf::from);
    let metrics = telemetry::start(&telemetry::Settings { filter: "warn".into(), ..Default::default() }).expect("telemetry");
    let voices = Arc::new(voices(root));

    let began = std::time::Instant::now();
    let runtime = Runtime::load(&models).expect("the runtime");
    let settings = settings();
    let engine = Arc::new(Engine::start(&runtime, &models, &settings).expect("the engine"));
    println!("engine ready after {} ms, resident {} MB", began.elapsed().as_millis(), resident_mb());

    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("load").enable_all().build().expect("a runtime");
    let before = cpu();
    let measured = Arc::new(Mutex::new(Measured::default()));
    let start = Instant::now() + Duration::from_millis(300);
    tokio.block_on(async {
        let mut tasks = vec![];
        for channel in 0..channels {
            let (engine, voices, measured) = (engine.clone(), voices.clone(), measured.clone());
            tasks.push(tokio::spawn(async move {
                let spec = StreamSpec {
                    endpointing: Endpointing::Silence(Duration::from_millis(silence)),
                    partials: (!finals).then_some(Duration::from_millis(period)),
                    ..StreamSpec::live(Encoding::Linear16, voices[channel % voices.len()].rate)
                };
                play(&engine, &voices[channel % voices.len()], channel, spec, start, Duration::from_secs(seconds), &measured).await
            }));
        }
        for task in tasks {
            task.await.expect("a channel");
        }
    });
    let after = cpu();
    let measured = measured.lock().expect("no panic");
    let line = |name: &str, values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| sorted.get(((sorted.len() as f64 - 1.0) * q) as usize).copied().unwrap_or(f64::NAN);
        println!(
            "{name:<28} p50 {:>6.0}  p90 {:>6.0}  p95 {:>6.0}  p99 {:>6.0}  max {:>6.0}  n {}",
            at(0.5),
            at(0.9),
            at(0.95),
            at(0.99),
            at(1.0),
            sorted.len()
        );
    };
    println!("{channels} channels, {seconds} s, endpointing {silence} ms, {}", if finals { "finals only" } else { "with partials" });
    line("speech end to final, ms", &measured.finals_ms);
    if !finals {
        line("age of newest text, ms", &measured.ages_ms);
    }
    println!(
        "{} of {} turns had their final; {} frames were sent more than 100 ms late",
        measured.finals_ms.len(),
        measured.turns,
        measured.late_frames
    );
    let seconds = seconds as f64;
    let shares: Vec<String> = after.iter().map(|(n, t)| format!("{n} {:.2}", (t - before.get(n).unwrap_or(&0.0)) / seconds)).collect();
    println!("cores used: {}; resident {} MB; load {:.2}", shares.join(", "), resident_mb(), engine.load());
    for line in metrics.render().lines() {
        let told =
            ["_total", "_sum", "_count", "_seconds "].iter().any(|s| line.split(['{', ' ']).next().is_some_and(|n| n.ends_with(s.trim())));
        if told && !line.starts_with('#') {
            println!("  {line}");
        }
    }
}

async fn play(
    engine: &Engine,
    voice: &Voice,
    channel: usize,
    spec: StreamSpec,
    start: Instant,
    length: Duration,
    measured: &Mutex<Measured>,
) {
    // Channels do not speak in chorus.
    let start = start + Duration::from_millis((channel as u64 * 7919) % 2000);
    let session = match engine.open(CallCx::new(Duration::from_secs(3600)), spec.clone()).await {
        Ok(session) => session,
        Err(error) => {
            eprintln!("channel {channel}: {error}");
            return;
        }
    };
    let (mut frames, mut events) = (session.frames, session.events);
    let hz = spec.rate.hz() as usize;
    let time_of = |sample: usize| start + Duration::from_secs_f64(sample as f64 / hz as f64);
    // (first sample, last voiced sample) of the turns played.
    let mut turns = vec![];
    let mut sound = vec![];
    let mut next = channel * 3;
    while sound.len() < hz * length.as_secs() as usize {
        let turn = &voice.turns[next % voice.turns.len()];
        turns.push((sound.len(), sound.len() + turn.spoken));
        sound.extend_from_slice(&turn.samples);
        next += 1;
    }
    // The last turn may be unfinished.
    sound.truncate(hz * length.as_secs() as usize);
    turns.retain(|(_, end)| end + hz < sound.len());
    let warm = 5 * hz;

    let late = Mutex::new(0);
    let send = async {
        for (i, piece) in sound.chunks(hz / 50).enumerate() {
            let due = time_of((i * (hz / 50)) + piece.len());
            sleep_until(due).await;
            if due.elapsed() > Duration::from_millis(100) {
                *late.lock().expect("no panic") += 1;
            }
            let bytes: Vec<u8> = piece.iter().flat_map(|s| s.to_le_bytes()).collect();
            if frames.send(bytes.into()).await.is_err() {
                return;
            }
        }
        frames.finish();
    };
    let receive = async {
        let mut finals: BTreeMap<usize, Instant> = BTreeMap::new(); // end of the turn, arrival
        let mut newest = start;
        let mut ages = vec![];
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                now = tick.tick() => {
                    let at = (now.saturating_duration_since(start).as_secs_f64() * hz as f64) as usize;
                    // A second after a turn began there should be text of it.
                    if turns.iter().any(|(from, to)| at > from + hz && at < *to && at > warm) {
                        ages.push(now.saturating_duration_since(newest).as_secs_f64() * 1000.0);
                    }
                    continue;
                }
            };
            let Some(Ok(event)) = event else { break };
            let now = Instant::now();
            match event {
                SpeechEvent::Partial { .. } => newest = now,
                SpeechEvent::Segment(segment) if matches!(segment.body, SegmentBody::Speech(_)) => {
                    newest = now;
                    for (_, end) in &turns {
                        // The final that ends within a second of the turn's end is the turn's.
                        if (segment.start.0 as usize) < *end && segment.end.0 as usize + hz / 10 >= *end {
                            finals.entry(*end).or_insert(now);
                        }
                    }
                }
                _ => {}
            }
        }
        (finals, ages)
    };
    let ((), (finals, ages)) = futures::join!(send, receive);
    let mut measured = measured.lock().expect("no panic");
    let counted = turns.iter().filter(|(from, _)| *from > warm);
    for (_, end) in counted {
        measured.turns += 1;
        if let Some(at) = finals.get(end) {
            measured.finals_ms.push(at.saturating_duration_since(time_of(*end)).as_secs_f64() * 1000.0);
        }
    }
    measured.ages_ms.extend(ages);
    measured.late_frames += *late.lock().expect("no panic");
}

/// Each voice of each call: its turns, with silence after each so that 60 % is speech.
fn voices(root: &Path) -> Vec<Voice> {
    let dir = root.join("tests/fixtures/calls");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&dir).expect("the calls").filter_map(|e| Some(e.ok()?.path())).collect();
    scripts.retain(|p| p.extension().is_some_and(|e| e == "json"));
    scripts.sort();
    let mut voices = vec![];
    for script in scripts {
        let call: serde_json::Value = serde_json::from_str(&fs::read_to_string(&script).expect("a script")).expect("a script");
        let path = dir.join(call["file"].as_str().expect("a file"));
        let decoded = file::path(&path, Limits::default(), &mut |_| ControlFlow::Continue(())).expect("a sound file");
        let hz = f64::from(decoded.rate.hz());
        for (channel, samples) in decoded.channels.iter().enumerate() {
            let mut noise = 1u32;
            let turns = call["turns"].as_array().expect("turns").iter().filter(|t| t["channel"] == channel).map(|t| {
                let from = ((t["start_s"].as_f64().expect("a time") - 0.1).max(0.0) * hz) as usize;
                let to = (t["end_s"].as_f64().expect("a time") * hz) as usize;
                let mut sound: Vec<i16> = samples[from..to].iter().map(|s| (s * 32_767.0) as i16).collect();
                let spoken = sound.len();
                let silence = spoken * 2 / 3;
                sound.extend((0..silence).map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 28) as i16 - 8
                }));
                Turn { samples: sound, spoken }
            });
            voices.push(Voice { rate: decoded.rate, turns: turns.collect() });
        }
    }
    voices
}

fn settings() -> EngineSettings {
    let everyone = EngineSettings { max_load: 1.0, max_sessions: 100_000, ..Default::default() };
    let mut settings = serde_json::to_value(everyone).expect("settings are plain");
    for pair in std::env::var("SET").unwrap_or_default().split(',').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').expect("key=value");
        settings[key] = serde_json::from_str(value).expect("a value");
    }
    serde_json::from_value(settings).expect("known settings")
}

/// CPU seconds by thread name.
fn cpu() -> BTreeMap<String, f64> {
    let mut seconds = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("threads").flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map_or("", |(_, n)| n).to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
        *seconds.entry(name).or_insert(0.0) += ticks / 100.0;
    }
    seconds
}

fn resident_mb() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok().and_then(|s| s.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    pages * 4096 / 1_000_000
}
