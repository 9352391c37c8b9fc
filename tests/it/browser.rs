//! The dashboard in headless Chromium.

use crate::support::{ROOT, Server, demo_calls, ground::Ground, models, words};
use quickcomm::cli::demo::speak;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The folder with playwright-core, or `None` after saying loudly that the test is skipped.
fn playwright() -> Option<PathBuf> {
    let tests = Path::new(ROOT).join("tests");
    let dashboard = Path::new(ROOT).join("static/dist/index.html").is_file();
    if dashboard && tests.join("node_modules/playwright-core").is_dir() && Path::new("/usr/bin/chromium").exists() {
        return Some(tests);
    }
    eprintln!("SKIPPED: no dashboard, chromium or playwright-core; `make test` builds and installs them");
    None
}

async fn browse(script: &str, arguments: &[&str]) -> serde_json::Value {
    let tests = playwright().expect("checked by the caller");
    let mut command = Command::new("node");
    command.arg(tests.join("browser").join(script)).args(arguments).current_dir(&tests);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_call_appears_grows_and_ends_as_the_record_has_it() {
    let (Some(_), Some(_)) = (models(), playwright()) else { return };
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let call = demo_calls().into_iter().next().expect("calls are bundled");
    let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
    let mut arguments = vec![server.http.clone()];
    arguments.extend(std::env::var("SCREENSHOTS_TO").ok());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (seen, ()) = tokio::join!(browse("demo_call.mjs", &arguments), async { while events.recv().await.is_some() {} });
    assert_eq!(seen["conversation"], id.to_string());
    assert!(seen["utterances"].as_u64().unwrap() > 5);
}

/// One turn of a demo call, as a 48 kHz file for Chromium's fake microphone, and its words.
fn microphone(folder: &Path) -> (String, String) {
    let call = demo_calls().into_iter().find(|c| c.rate.hz() == 48_000).expect("a browser call is bundled");
    let turn = call.script.turns.iter().find(|t| t.text.split(' ').count() > 6).unwrap();
    let at = |s: f64| (s * 48_000.0) as usize * 4;
    let sound = &call.channels[usize::from(turn.channel)][at(turn.start_s - 0.3)..at(turn.end_s + 0.3)];
    let samples: Vec<u8> = sound
        .chunks_exact(4)
        .flat_map(|b| ((f32::from_le_bytes([b[0], b[1], b[2], b[3]]) * 32767.0) as i16).to_le_bytes())
        .chain(std::iter::repeat_n(0, 48_000 * 2 * 2))
        .collect();
    let wav = folder.join("microphone.wav");
    std::fs::write(&wav, [wav_header(samples.len() as u32), samples].concat()).unwrap();
    (wav.to_string_lossy().into(), turn.text.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microphone_becomes_text() {
    let (Some(_), Some(_)) = (models(), playwright()) else { return };
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let (wav, said) = microphone(data.path());
    let heard = browse("try_it.mjs", &[&server.http, &wav]).await;
    let text = heard["text"].as_str().unwrap();
    let reference = words::normal(&said);
    let shown = words::normal(text);
    let found = reference.iter().filter(|w| shown.contains(w)).count();
    assert!(found * 10 >= reference.len() * 7, "{said:?} became {text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_did_not_hear_that_its_call_is_over_asks_and_says_so() {
    let (Some(_), Some(_)) = (models(), playwright()) else { return };
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let (wav, _) = microphone(data.path());
    let seen = browse("try_it_unheard.mjs", &[&server.http, &wav]).await;
    assert_eq!(seen["broken"], 1, "it was told once, and asked instead of going on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dial_is_turned_on_the_topology_page() {
    let (Some(_), Some(_)) = (models(), playwright()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("inference.sock").display());
    let there = Server::start(&folder.path().join("i"), &["--roles", "inference", "--grpc", &socket], &[]);
    let endpoints = format!("[\"{socket}\"]");
    let server = Server::start(&folder.path().join("f"), &[], &[("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", &endpoints)]);
    let mut arguments = vec![server.http.clone()];
    arguments.extend(std::env::var("SCREENSHOTS_TO").ok());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seen = browse("topology.mjs", &arguments).await;
    assert!(seen["refused"].as_str().is_some_and(|refused| refused.contains("inference is local")), "{seen}");
    drop(there);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_away_and_peers_that_are_gone_are_shown() {
    let (Some(_), Some(_), Some(mut ground)) = (models(), playwright(), Ground::lay_alone()) else { return };
    let front = ground.serve_found("front", "api,audio", &["inference"]);
    let mut there = ground.serve_found("there", "inference", &["api"]);
    let (url, peer) = (front.http.clone(), ground.socket("there"));
    let shows = async |state: &str| {
        let mut arguments = vec![url.clone(), state.to_owned(), peer.clone()];
        arguments.extend(std::env::var("SCREENSHOTS_TO").ok());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        browse("servers.mjs", &arguments).await
    };
    shows("ready").await;
    there.kill();
    let seen = shows("lost").await;
    assert!(seen["lost"].as_str().is_some_and(|lost| lost.contains("its lease ended")), "{seen}");
    there.kill_and_restart();
    shows("ready").await;
    ground.redis.kill();
    ground.postgres.kill();
    let seen = shows("degraded").await;
    let servers = seen["servers"].as_str().unwrap_or_default();
    for says in
        ["what is said is kept until it is back", "reads go to the database", "is PostgreSQL running there", "last known peers stand"]
    {
        assert!(servers.contains(says), "{says:?} is not in {servers}");
    }
    assert_eq!(reqwest::get(format!("{}/readyz", front.admin)).await.unwrap().status(), 200, "callers are heard all the same");
    ground.redis.start_again();
    ground.postgres.start_again();
    shows("ready").await;
}

/// 16-bit mono at 48 kHz.
fn wav_header(bytes: u32) -> Vec<u8> {
    let mut header = vec![];
    header.extend_from_slice(b"RIFF");
    header.extend_from_slice(&(36 + bytes).to_le_bytes());
    header.extend_from_slice(b"WAVEfmt ");
    for field in [16u32.to_le_bytes(), [1, 0, 1, 0], 48_000u32.to_le_bytes(), 96_000u32.to_le_bytes(), [2, 0, 16, 0]] {
        header.extend_from_slice(&field);
    }
    header.extend_from_slice(b"data");
    header.extend_from_slice(&bytes.to_le_bytes());
    header
}
