//! `quickcomm demo`: the bundled calls, spoken into a server in real time, as callers would.

use crate::{
    calls::{self, DemoCall},
    client::{Call, ClientError, Events, Options as CallOptions, ServerMessage},
};
use anyhow::Context;
use clap::Args;
use contracts::{ConversationId, audio::Role};
use std::{process::ExitCode, time::Duration};
use tokio::{task::JoinSet, time::Instant};

/// As telephony sends.
const FRAME: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub struct Options {
    /// The server to call.
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "QUICKCOMM_URL")]
    url: String,
    /// Only these calls, by name; all of them by default.
    calls: Vec<String>,
    /// Start them again and again, until interrupted.
    #[arg(long)]
    repeat: bool,
    /// Seconds between the starts of two calls.
    #[arg(long, default_value_t = 3.0)]
    stagger_s: f64,
    /// One JSON object per line instead of text.
    #[arg(long)]
    json: bool,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let names = if options.calls.is_empty() { calls::names() } else { options.calls.clone() };
    anyhow::ensure!(!names.is_empty(), "no calls are bundled with this binary");
    let calls = names.iter().map(|name| calls::load(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let stagger = Duration::try_from_secs_f64(options.stagger_s).context("--stagger-s expects a number of seconds, 0 or more")?;
    let mut failed = 0;
    loop {
        let mut playing = JoinSet::new();
        for (n, call) in calls.iter().enumerate() {
            let (call, url, json) = (call.clone(), options.url.clone(), options.json);
            let starts = stagger * n as u32;
            playing.spawn(async move {
                tokio::time::sleep(starts).await;
                let title = call.script.title.clone();
                (title, play(&call, &url, json).await)
            });
        }
        while let Some(played) = playing.join_next().await {
            let (title, outcome) = played.context("a demo call panicked")?;
            if let Err(error) = outcome {
                failed += 1;
                eprintln!("quickcomm: {title}: {error:#}");
            }
        }
        if !options.repeat || failed > 0 {
            break;
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays one call to its end and prints the finals as they come.
async fn play(call: &DemoCall, url: &str, json: bool) -> anyhow::Result<()> {
    let (id, mut events) = speak(call, url, None).await?;
    let link = format!("{}/conversations/{id}", url.trim_end_matches('/'));
    if json {
        println!("{}", serde_json::json!({ "event": "started", "conversation": id, "title": call.script.title }));
    } else {
        println!("{}  {link}", call.script.title);
    }
    while let Some(event) = events.recv().await {
        let message = event?.message;
        match &message {
            ServerMessage::Final(said) if json => {
                println!(
                    "{}",
                    serde_json::json!({ "event": "final", "conversation": id, "channel": said.channel, "start_ms": said.start_ms, "text": said.text })
                );
            }
            ServerMessage::Final(said) => println!("  {} {:>5.1} s  {}", who(call, said.channel), said.start_ms as f64 / 1000.0, said.text),
            ServerMessage::Ended { state, .. } if json => {
                println!("{}", serde_json::json!({ "event": "ended", "conversation": id, "state": state }))
            }
            _ => {}
        }
    }
    Ok(())
}

fn who(call: &DemoCall, channel: u8) -> &'static str {
    call.script.turns.iter().find(|t| t.channel == channel).map_or("unknown", |t| t.speaker.name())
}

/// Opens the call and sends its audio in real time from a task of its own; the events end when the call has.
pub async fn speak(call: &DemoCall, url: &str, tag: Option<&str>) -> Result<(ConversationId, Events), ClientError> {
    let roles: Vec<Role> = (0..call.channels.len() as u8)
        .map(|channel| call.script.turns.iter().find(|t| t.channel == channel).map_or(Role::Unknown, |t| t.speaker))
        .collect();
    let mut options = CallOptions::new(url, call.encoding, call.rate.hz(), &roles);
    options.title = Some(call.script.title.clone());
    options.tags = tag.map(|tag| vec![tag.to_owned()]).unwrap_or_else(|| vec!["demo".into()]);
    let id = options.conversation;
    let (open, events) = Call::open(options).await?;
    let (channels, rate, width) = (call.channels.clone(), call.rate, call.encoding.bytes_per_sample());
    tokio::spawn(async move {
        let frame_bytes = rate.samples_in(FRAME) as usize * width;
        let frames = channels.iter().map(|c| c.len().div_ceil(frame_bytes)).max().unwrap_or(0);
        let start = Instant::now();
        for n in 0..frames {
            tokio::time::sleep_until(start + FRAME * (n as u32 + 1)).await; // a frame is sent when it has been spoken
            for (channel, sound) in channels.iter().enumerate() {
                let from = n * frame_bytes;
                if from < sound.len() {
                    open.send(channel as u8, sound.slice(from..sound.len().min(from + frame_bytes))).await;
                }
            }
        }
        open.close().await;
        open.ended().await; // dropping the handle before would hang up
    });
    Ok((id, events))
}
