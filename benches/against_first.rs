//! Against what a competent team writes first, and what each of our steps is worth alone: channels held with partials under rule (b).
//!
//! Everything runs as the product does: callers' sockets, recording, record; only the process behind the contract `Audio` is another one.

#[path = "support/first.rs"]
mod first;
mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};
use support::{
    ROOT, Server,
    load::{Felt, Listening, run, tracks},
    quick, scratch,
};

/// Partials every 500 ms, 400 ms of silence, finals within a second.
const LISTENING: Listening = Listening { endpointing_ms: 400, partial_ms: Some(500) };

/// Makes this bench the process that was written first, at the socket it names.
const FIRST_AT: &str = "BENCH_FIRST_AT";

/// What answers behind the contract.
enum Engine {
    First,
    /// Ours, with these settings.
    Ours(&'static [(&'static str, &'static str)]),
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().expect("a runtime");
    if let Ok(socket) = std::env::var(FIRST_AT) {
        return runtime.block_on(first::serve(&Path::new(ROOT).join(".quickcomm/models"), &socket));
    }
    let candidates = [
        ("what is written first", Engine::First, 16),
        ("ours", Engine::Ours(&[]), 56),
        ("ours without speculation", Engine::Ours(&[("QUICKCOMM_AUDIO__ENGINE__SPECULATE_AFTER_MS", "0")]), 56),
        ("ours without coalescing", Engine::Ours(&[("QUICKCOMM_AUDIO__ENGINE__COALESCE", "false")]), 48),
        ("ours without drafts", Engine::Ours(&[("QUICKCOMM_AUDIO__ENGINE__DRAFT", "false")]), 48),
        ("ours without gathering", Engine::Ours(&[("QUICKCOMM_AUDIO__ENGINE__GATHER_MS", "0")]), 56),
        ("ours without stealing", Engine::Ours(&[("QUICKCOMM_AUDIO__ENGINE__STEAL", "false")]), 56),
    ];
    println!("| behind the contract `Audio` | channels held | of the first |");
    println!("| --- | --- | --- |");
    let mut base = 0;
    for (name, engine, start) in candidates {
        let held = runtime.block_on(held(&engine, start));
        if base == 0 {
            base = held.max(1);
        }
        println!("| {name} | {held} | {:.1}x |", held as f64 / base as f64);
    }
}

/// The most channels that keep the rule, in steps of an eighth; a failed step is tried once more, the machine may have been busy.
async fn held(engine: &Engine, start: usize) -> usize {
    let (mut held, mut channels) = (0, start);
    let mut falling = false;
    while channels > 0 {
        let mut ok = keeps(&trial(engine, channels).await);
        if !ok && !quick() {
            ok = keeps(&trial(engine, channels).await);
        }
        match (ok, falling) {
            (true, true) => return channels,
            (true, false) => {
                held = channels;
                channels += (channels / 8).max(2);
            }
            (false, _) if held > 0 => return held,
            (false, _) => {
                falling = true;
                channels -= (channels / 8).max(2);
            }
        }
    }
    held
}

fn keeps(felt: &Felt) -> bool {
    felt.refused == 0 && felt.missing * 50 <= felt.turns && felt.final_ms(0.95) <= 1000.0 && felt.age_ms(0.95) <= 1000.0
}

async fn trial(engine: &Engine, channels: usize) -> Felt {
    let folder = scratch();
    let socket = format!("unix:{}", folder.path().join("audio.sock").display());
    let mut audio = match engine {
        Engine::First => {
            let mut bench = Command::new(std::env::current_exe().expect("this bench has a path"));
            bench.env(FIRST_AT, &socket);
            bench
        }
        Engine::Ours(settings) => {
            let mut ours = Command::new(env!("CARGO_BIN_EXE_quickcomm"));
            ours.args(["serve", "--roles", "audio", "--admin", "127.0.0.1:0", "--grpc", &socket])
                .envs(settings.iter().copied())
                .envs([("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"), ("QUICKCOMM_LOG__FILTER", "warn")]);
            ours
        }
    };
    let mut audio = audio.current_dir(ROOT).stdout(Stdio::null()).spawn().expect("the process starts");
    let health = fabric::connect::health(&socket).expect("a Unix socket is an endpoint");
    while health.check("audio", std::time::Duration::from_millis(200)).await.is_err() {
        assert!(audio.try_wait().expect("the child is ours").is_none(), "the process behind the contract has ended; its errors are above");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let endpoints = format!("[\"{socket}\"]");
    let server = Server::start(
        &folder.path().join("data"),
        &[
            ("QUICKCOMM_ROLES", "[\"api\",\"inference\"]"),
            ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
            ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", &endpoints),
        ],
    );
    let felt = run(&server.http, server.pid(), &tracks(channels, if quick() { 12.0 } else { 25.0 }), LISTENING).await;
    eprintln!(
        "  {channels}: final p95 {:.0} ms, partial age p95 {:.0} ms, {} of {} turns missing, {} refused",
        felt.final_ms(0.95),
        felt.age_ms(0.95),
        felt.missing,
        felt.turns,
        felt.refused
    );
    audio.kill().expect("the child is ours");
    audio.wait().expect("the child is ours");
    felt
}
