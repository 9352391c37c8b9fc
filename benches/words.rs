//! How many words streaming costs: the same recordings, heard as a stream and heard in whole pieces by the same model.
//!
//! Whole: cut in silences, pieces of at most 20 s. Streamed: 20 ms frames through the contract, as fast as the engine takes them.
//! Prints substitutions + deletions + insertions over reference words, and the difference with a bootstrap interval over recordings.
//! `-v` shows the texts that differ. `--levels 0.6,1,1.7` hears each recording at several levels: the model is quantized, near ties fall
//! one way or the other, and more hearings average that out. `--partials` has partials drafted along the way.
//! Human recordings: `../shared/data/speech` or `$QUICKCOMM_SPEECH`; skipped, loudly, when absent.

#[path = "../tests/it/support/words.rs"]
mod words;

use audio::engine::{
    Engine, EngineSettings,
    decode::file::{self, Limits},
    recognizer::Moonshine,
    resample::Resampler,
    vad::{FRAME, Memory, Vad},
};
use contracts::{
    Audio, CallCx, Encoding, SampleRate,
    audio::{Endpointing, Pace, SegmentBody, SpeechEvent, StreamSpec},
};
use platform::onnx::{Kind, ModelDir, Runtime};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use words::{errors, normal};

struct Recording {
    set: &'static str,
    name: String,
    rate: SampleRate,
    samples: Vec<f32>,
    reference: String,
    /// Words of the reference.
    words: usize,
}

impl Recording {
    /// The same, louder or softer.
    fn at(&self, level: f32) -> Self {
        let samples = self.samples.iter().map(|s| s * level).collect();
        let name = format!("{} x{level}", self.name);
        Self { set: self.set, name, rate: self.rate, samples, reference: self.reference.clone(), words: self.words }
    }
}

fn main() {
    let root = std::env::var_os("QUICKCOMM_ROOT").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = root.ancestors().find(|p| p.join("tests/fixtures/calls").exists()).expect("the repository");
    let models = std::env::var_os("QUICKCOMM_MODELS").map_or_else(|| root.join(".quickcomm/models"), PathBuf::from);
    let argument = |name: &str| std::env::args().skip_while(|a| a != name).nth(1);
    let mut recordings: Vec<Recording> = speech(root).into_iter().chain(calls(root)).collect();
    if let Some(levels) = argument("--levels") {
        let levels: Vec<f32> = levels.split(',').map(|l| l.parse().expect("a level")).collect();
        recordings = recordings.iter().flat_map(|r| levels.iter().map(|level| r.at(*level))).collect();
    }
    let recordings = Arc::new(recordings);
    let runtime = Runtime::load(&models).expect("the runtime");
    let verbose = std::env::args().any(|a| a == "-v");

    let whole = hear_whole(&runtime, &models, &recordings);
    let mut columns = vec![("whole", whole)];
    let settings = settings();
    let engine = Arc::new(Engine::start(&runtime, &models, &settings).expect("the engine"));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let partials = std::env::args().any(|a| a == "--partials");
    for (name, ms) in [("streamed 250", 250), ("streamed 400", 400)] {
        columns.push((name, tokio.block_on(hear_streamed(&engine, &recordings, Duration::from_millis(ms), partials))));
    }

    let mut sets: Vec<&str> = recordings.iter().map(|r| r.set).collect();
    sets.dedup();
    sets.push("all");
    for set in sets {
        let chosen: Vec<usize> = (0..recordings.len()).filter(|i| set == "all" || recordings[*i].set == set).collect();
        let words: usize = chosen.iter().map(|i| recordings[*i].words).sum();
        let errors: Vec<Vec<usize>> =
            columns.iter().map(|(_, heard)| chosen.iter().map(|i| errors(&recordings[*i].reference, &heard[*i]).0).collect()).collect();
        println!("\n{set}: {} recordings, {words} reference words", chosen.len());
        for ((name, _), column) in columns.iter().zip(&errors) {
            let sum: usize = column.iter().sum();
            print!("  {name:<14} {sum:>4} errors ({:.2} %)", 100.0 * sum as f64 / words as f64);
            let (low, high) = bootstrap(&chosen.iter().map(|i| recordings[*i].words).collect::<Vec<_>>(), column, &errors[0]);
            let difference = 100.0 * (sum as f64 - errors[0].iter().sum::<usize>() as f64) / words as f64;
            println!("   minus whole {difference:+.2} %, 95 % between {low:+.2} and {high:+.2}");
        }
        if verbose && set != "all" {
            for (k, i) in chosen.iter().enumerate() {
                if errors.iter().any(|column| column[k] != errors[0][k]) {
                    println!("  {}: {:?}", recordings[*i].name, errors.iter().map(|c| c[k]).collect::<Vec<_>>());
                    println!("    reference: {}", recordings[*i].reference);
                    for (name, heard) in &columns {
                        println!("    {name}: {}", heard[*i]);
                    }
                }
            }
        }
    }
}

/// `SET=enter=0.2,exit=0.1` tries other settings.
fn settings() -> EngineSettings {
    let mut settings = serde_json::to_value(EngineSettings::default()).expect("settings are plain");
    for pair in std::env::var("SET").unwrap_or_default().split(',').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').expect("key=value");
        settings[key] = serde_json::from_str(value).expect("a value");
    }
    serde_json::from_value(settings).expect("known settings")
}

fn decode(path: &Path) -> file::Decoded {
    file::path(path, Limits::default(), &mut |_| ControlFlow::Continue(())).expect("a sound file")
}

fn speech(root: &Path) -> Vec<Recording> {
    let dir = std::env::var_os("QUICKCOMM_SPEECH").map_or_else(|| root.join("../shared/data/speech"), PathBuf::from);
    let Ok(table) = fs::read_to_string(dir.join("refs.tsv")) else {
        eprintln!("SKIPPED: no human recordings in {}", dir.display());
        return vec![];
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (name, reference) = (fields.next()?, fields.next()?);
            let decoded = decode(&dir.join(name));
            Some(Recording {
                set: "speech",
                name: name.into(),
                rate: decoded.rate,
                samples: decoded.channels[0].clone(),
                reference: reference.into(),
                words: normal(reference).len(),
            })
        })
        .collect()
}

fn calls(root: &Path) -> Vec<Recording> {
    let dir = root.join("tests/fixtures/calls");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&dir).expect("the calls").filter_map(|e| Some(e.ok()?.path())).collect();
    scripts.retain(|p| p.extension().is_some_and(|e| e == "json"));
    scripts.sort();
    let mut recordings = vec![];
    for script in scripts {
        let call: serde_json::Value = serde_json::from_str(&fs::read_to_string(&script).expect("a script")).expect("a script");
        let decoded = decode(&dir.join(call["file"].as_str().expect("a file")));
        for (channel, samples) in decoded.channels.into_iter().enumerate() {
            let turns = call["turns"].as_array().expect("turns").iter().filter(|t| t["channel"] == channel);
            let reference: String = turns.map(|t| format!("{} ", t["text"].as_str().expect("a text"))).collect();
            recordings.push(Recording {
                set: "calls",
                name: format!("{} {channel}", call["name"].as_str().unwrap_or_default()),
                rate: decoded.rate,
                samples,
                words: normal(&reference).len(),
                reference,
            });
        }
    }
    recordings
}

async fn hear_streamed(engine: &Arc<Engine>, recordings: &Arc<Vec<Recording>>, silence: Duration, partials: bool) -> Vec<String> {
    let gate = Arc::new(tokio::sync::Semaphore::new(6));
    let tasks = (0..recordings.len()).map(|i| {
        let (engine, recordings, gate) = (engine.clone(), recordings.clone(), gate.clone());
        async move {
            let _permit = gate.acquire().await;
            let recording = &recordings[i];
            let spec = StreamSpec {
                endpointing: Endpointing::Silence(silence),
                partials: partials.then_some(Duration::from_millis(500)),
                pace: Pace::Batch,
                ..StreamSpec::live(Encoding::Float32, recording.rate)
            };
            let session = engine.open(CallCx::new(Duration::from_secs(600)), spec).await.expect("a session");
            let (mut frames, mut events) = (session.frames, session.events);
            let send = async {
                for piece in recording.samples.chunks(recording.rate.hz() as usize / 50) {
                    let bytes: Vec<u8> = piece.iter().flat_map(|s| s.to_le_bytes()).collect();
                    frames.send(bytes.into()).await.expect("the session takes sound");
                }
                frames.finish();
            };
            let receive = async {
                let mut text = String::new();
                while let Some(event) = events.next().await {
                    if let SpeechEvent::Segment(segment) = event.expect("the session lasts")
                        && let SegmentBody::Speech(spoken) = segment.body
                    {
                        text.push_str(&spoken.text());
                        text.push_str(if spoken.speech_final { " | " } else { " / " });
                    }
                }
                text
            };
            futures::join!(send, receive).1
        }
    });
    futures::future::join_all(tasks).await
}

fn hear_whole(runtime: &Runtime, models: &Path, recordings: &[Recording]) -> Vec<String> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let texts = std::sync::Mutex::new(vec![String::new(); recordings.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let vad = ModelDir::open(&models.join("silero-vad"), Kind::Vad).expect("the detector");
                let mut vad = Vad::open(runtime, &vad).expect("the detector");
                let recognizer = ModelDir::open(&models.join("moonshine-tiny-en"), Kind::Recognizer).expect("the recognizer");
                let mut recognizer = Moonshine::open(runtime, &recognizer).expect("the recognizer");
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(recording) = recordings.get(i) else { return };
                    let mut pcm = vec![];
                    let mut resampler = Resampler::new(recording.rate.hz()).expect("a rate");
                    resampler.push(&recording.samples, &mut pcm).expect("sound");
                    resampler.flush(&mut pcm).expect("sound");
                    let mut text = String::new();
                    for piece in pieces(&mut vad, &pcm) {
                        text.push_str(&recognizer.transcribe(&pcm[piece]).expect("a transcript").text());
                        text.push_str(" | ");
                    }
                    texts.lock().expect("no panic")[i] = text;
                }
            });
        }
    });
    texts.into_inner().expect("no panic")
}

/// Cuts in the middle of silences: of those that leave a piece of at most 20 s the longest, a later one when they are alike.
fn pieces(vad: &mut Vad, pcm: &[f32]) -> Vec<std::ops::Range<usize>> {
    const MOST: usize = 20 * 16_000;
    let mut memory = Memory::default();
    let speech: Vec<bool> = pcm.chunks_exact(FRAME).map(|f| vad.score(&mut memory, f).expect("a score") >= 0.3).collect();
    let mut silences = vec![]; // (middle, length)
    let mut from = None;
    for (i, speaking) in speech.iter().chain([&true]).enumerate() {
        match (speaking, from) {
            (false, None) => from = Some(i),
            (true, Some(start)) => {
                silences.push(((start + i) * FRAME / 2, i - start));
                from = None;
            }
            _ => {}
        }
    }
    let mut cuts = vec![0];
    while pcm.len() - cuts[cuts.len() - 1] > MOST {
        let start = cuts[cuts.len() - 1];
        let fits = silences.iter().filter(|(at, _)| *at > start + MOST / 4 && *at <= start + MOST);
        cuts.push(fits.max_by_key(|(at, length)| (*length.min(&30), *at)).map_or(start + MOST, |(at, _)| *at));
    }
    cuts.push(pcm.len());
    cuts.windows(2).map(|w| w[0]..w[1]).filter(|r| speech[r.start / FRAME..(r.end / FRAME).min(speech.len())].iter().any(|s| *s)).collect()
}

/// Where 95 of 100 resamplings of the recordings put the difference, in percent.
fn bootstrap(words: &[usize], a: &[usize], b: &[usize]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut differences: Vec<f64> = (0..2000)
        .map(|_| {
            let (mut errors, mut total) = (0.0, 0.0);
            for _ in 0..words.len() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let i = (state >> 33) as usize % words.len();
                errors += a[i] as f64 - b[i] as f64;
                total += words[i] as f64;
            }
            100.0 * errors / total
        })
        .collect();
    differences.sort_by(f64::total_cmp);
    (differences[50], differences[1949])
}
