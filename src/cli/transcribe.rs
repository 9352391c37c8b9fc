//! `quickcomm transcribe FILE`: a recording to text, here, without a server.

use anyhow::Context;
use audio::{
    engine::{Engine, EngineSettings, decode},
    transcribe::{Progress, Recorded, transcribe},
};
use clap::{Args, ValueEnum};
use contracts::{
    CallCx, ChannelIndex, SampleRate,
    audio::{Endpointing, HeardSegment, SegmentBody, Spoken},
};
use indicatif::{ProgressBar, ProgressStyle};
use platform::onnx::Runtime;
use serde_json::json;
use std::{
    fmt::Write as _,
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Longer than any recording takes; a deadline belongs to every call.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub struct Options {
    /// wav, flac, mp3 or ogg; one or two channels, 8 to 48 kHz.
    file: PathBuf,
    /// How the text is written to stdout.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as --format json.
    #[arg(long)]
    json: bool,
    /// Folder of the models.
    #[arg(long, default_value = ".quickcomm/models", env = "QUICKCOMM_MODELS")]
    models: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Srt,
    Vtt,
    Json,
}

/// A heard utterance with its times in the file.
struct Line {
    channel: ChannelIndex,
    from: Duration,
    to: Duration,
    spoken: Spoken,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let name = options.file.display().to_string();
    let decoded = decode::file::path(&options.file, decode::file::Limits::default(), &mut |_| ControlFlow::Continue(()))
        .with_context(|| format!("reading {name}"))?;
    if let Some(torn) = &decoded.truncated {
        eprintln!("quickcomm: {name} is cut short: its header promises {} bytes of sound, it has {}", torn.expected, torn.found);
    }
    let seconds = decoded.channels.first().map_or(0.0, |c| c.len() as f64 / f64::from(decoded.rate.hz()));

    let begin = Instant::now();
    let runtime = Runtime::load(&options.models).context("loading ONNX Runtime")?;
    let engine = Engine::start(&runtime, &options.models, &EngineSettings::default()).context("starting the audio engine")?;
    let bar = ProgressBar::new((seconds * 1000.0) as u64 * decoded.channels.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {percent:>3} %  {elapsed} of about {duration}").context("the template is ours")?);
    let moved = |progress: Progress| bar.set_position(progress.heard.as_millis() as u64);
    let rate = decoded.rate;
    let channels = decoded.channels.len();
    let recorded = Recorded { rate, channels: decoded.channels, language: "en".into(), endpointing: Endpointing::default() };
    let segments = transcribe(&engine, CallCx::new(LIMIT), recorded, moved).await.with_context(|| format!("hearing {name}"))?;
    bar.finish_and_clear();
    engine.shutdown();
    let took = begin.elapsed();

    let lines = lines(rate, segments);
    print!(
        "{}",
        match if options.json { Format::Json } else { options.format } {
            Format::Text => text(&lines, channels),
            Format::Srt => subtitles(&lines, ','),
            Format::Vtt => format!("WEBVTT\n\n{}", subtitles(&lines, '.')),
            Format::Json => json_text(&lines, seconds, channels)?,
        }
    );
    eprintln!("{seconds:.1} s of sound in {:.1} s, loading included", took.as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn lines(rate: SampleRate, segments: Vec<(ChannelIndex, HeardSegment)>) -> Vec<Line> {
    let mut lines: Vec<Line> = segments
        .into_iter()
        .filter_map(|(channel, segment)| match segment.body {
            SegmentBody::Speech(spoken) => Some(Line { channel, from: rate.time_of(spoken.from.0), to: rate.time_of(spoken.to.0), spoken }),
            SegmentBody::Silence | SegmentBody::Gap { .. } => None,
        })
        .collect();
    lines.sort_by_key(|line| (line.from, line.channel));
    lines
}

fn text(lines: &[Line], channels: usize) -> String {
    let mut out = String::new();
    for line in lines {
        if channels > 1 {
            let _ = write!(out, "[{}] ", line.channel);
        }
        let _ = writeln!(out, "{}", line.spoken.text());
    }
    out
}

/// SRT and WebVTT differ in the sign before the milliseconds.
fn subtitles(lines: &[Line], decimal: char) -> String {
    let stamp = |t: Duration| {
        let ms = t.as_millis();
        format!("{:02}:{:02}:{:02}{decimal}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
    };
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        let _ = write!(out, "{}\n{} --> {}\n{}\n\n", n + 1, stamp(line.from), stamp(line.to), line.spoken.text());
    }
    out
}

fn json_text(lines: &[Line], seconds: f64, channels: usize) -> anyhow::Result<String> {
    let utterances: Vec<_> = lines
        .iter()
        .map(|line| {
            json!({
                "channel": line.channel, "start_ms": line.from.as_millis() as u64, "end_ms": line.to.as_millis() as u64, "text": line.spoken.text(),
                "confidence": line.spoken.confidence, "word_times": line.spoken.word_times, "words": line.spoken.words, "model": line.spoken.model,
            })
        })
        .collect();
    let mut out =
        serde_json::to_string_pretty(&json!({ "duration_ms": (seconds * 1000.0) as u64, "channels": channels, "utterances": utterances }))?;
    out.push('\n');
    Ok(out)
}
