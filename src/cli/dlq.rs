//! `quickcomm dlq`: entries of the bus that were given up, listed, shown, and put back; through the admin port of the process that keeps
//! the record.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: What,
    /// Admin address of the process with the api role.
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "QUICKCOMM_ADMIN_URL", global = true)]
    admin: String,
    /// Print answers as they came.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Newest first, without what they say.
    List {
        /// Also those that have been replayed.
        #[arg(long)]
        all: bool,
    },
    /// One of them whole, with its payload.
    Show { id: String },
    /// Back onto their stream, each once: a second time does nothing.
    Replay {
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All that have not been replayed.
        #[arg(long)]
        all: bool,
    },
}

/// Exit code 0: done or shown; 1: not found, refused or not reachable.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let base = format!("{}/admin/dead-letters", options.admin.trim_end_matches('/'));
    let client = super::http_client()?;
    match &options.command {
        What::List { all } => {
            let answer = ask(client.get(format!("{base}?all={all}")), &base).await?;
            if options.json {
                println!("{answer}");
            } else {
                list(&answer);
            }
        }
        What::Show { id } => {
            let answer = ask(client.get(format!("{base}/{id}")), &base).await?;
            if options.json {
                println!("{answer}");
            } else {
                show(&answer);
            }
        }
        What::Replay { ids, all } => {
            let ids = if *all {
                let waiting = ask(client.get(&base), &base).await?;
                letters(&waiting).filter_map(|letter| letter["id"].as_str().map(str::to_owned)).collect()
            } else {
                ids.clone()
            };
            for id in &ids {
                let answer = ask(client.post(format!("{base}/{id}/replay")), &base).await?;
                match (options.json, answer["replayed"].as_bool()) {
                    (true, _) => println!("{answer}"),
                    (false, Some(true)) => println!("{id} is back on its stream"),
                    (false, _) => println!("{id} was replayed before, at {}", text(&answer["replayed_at"])),
                }
            }
            if ids.is_empty() && !options.json {
                println!("No dead letter waits to be replayed.");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(request: reqwest::RequestBuilder, base: &str) -> anyhow::Result<Value> {
    let unreachable = || format!("no answer from {base}; is `quickcomm serve` running there, or is its admin port another one (--admin)?");
    let answer = request.send().await.with_context(unreachable)?;
    let status = answer.status();
    let body: Value = serde_json::from_str(&answer.text().await?).unwrap_or_default();
    if !status.is_success() {
        bail!("{status}: {}", body["detail"].as_str().unwrap_or("the answer says no more"));
    }
    Ok(body)
}

fn letters(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["data"].as_array().into_iter().flatten()
}

fn list(answer: &Value) {
    if letters(answer).next().is_none() {
        println!("No dead letters.");
    }
    for letter in letters(answer) {
        let replayed = if letter["replayed_at"].is_null() { "" } else { "  (replayed)" };
        println!(
            "{}  {}  {}  {} attempts  {}{replayed}",
            text(&letter["id"]),
            text(&letter["died_at"]),
            text(&letter["stream"]),
            letter["attempts"],
            text(&letter["error"])
        );
    }
}

fn show(letter: &Value) {
    for field in ["id", "stream", "key", "attempts", "error", "trace", "version", "died_at", "replayed_at"] {
        println!("{field:12} {}", text(&letter[field]));
    }
    let hex = letter["payload"].as_str().unwrap_or_default();
    let bytes: Vec<u8> = hex.as_bytes().chunks(2).filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    println!("payload      {}", String::from_utf8_lossy(&bytes).escape_debug());
}

/// Of another process: what a terminal would obey is shown, not sent.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
