//! The unchanged Deepgram Python SDK against `/v1/listen`.

use crate::support::{ROOT, Server, demo_calls, models, script_text, words};
use quickcomm::calls::DemoCall;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The interpreter that has the SDK, or `None` after saying loudly that the test is skipped.
pub fn python() -> Option<PathBuf> {
    let path =
        env::var_os("QUICKCOMM_PYTHON").map(PathBuf::from).unwrap_or_else(|| Path::new(ROOT).join(".quickcomm/test-venv/bin/python"));
    if path.is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED: no Deepgram SDK at {}; `make test` installs it", path.display());
    None
}

pub fn script() -> PathBuf {
    Path::new(ROOT).join("tests/sdk/deepgram_live.py")
}

/// All channels of a call in one file, sample by sample, as a caller of a multichannel stream sends them.
pub fn interleaved(folder: &Path, call: &DemoCall) -> PathBuf {
    let width = call.encoding.bytes_per_sample();
    let samples = call.channels.iter().map(|c| c.len() / width).min().unwrap_or(0);
    let mut raw = Vec::with_capacity(samples * width * call.channels.len());
    for n in 0..samples {
        for channel in &call.channels {
            raw.extend_from_slice(&channel[n * width..(n + 1) * width]);
        }
    }
    let path = folder.join(format!("{}.raw", call.script.name));
    std::fs::write(&path, raw).unwrap();
    path
}

async fn sdk(python: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(python);
    command.arg(script()).args(arguments).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let lines: Vec<Value> = String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(output.status.success(), "the SDK failed: {lines:?}");
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unchanged_sdk_hears_a_two_channel_call() {
    let (Some(_), Some(python)) = (models(), python()) else { return };
    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).expect("a telephony call is bundled");
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let raw = interleaved(data.path(), &call);
    let lines = sdk(&python, &[&server.http, &raw.to_string_lossy(), "mulaw", "8000", "2", "--finalize"]).await;

    assert!(lines.iter().all(|l| l["event"] != "error" && l["event"] != "broken"), "{lines:?}");
    let tail: Vec<&str> = lines.iter().rev().take(2).filter_map(|l| l["event"].as_str()).collect();
    assert_eq!(tail, ["close", "ListenV1Metadata".replace("ListenV1", "").as_str()], "Metadata is last, then the close");
    let results: Vec<&Value> = lines.iter().filter(|l| l["event"] == "Results").collect();
    assert!(results.iter().any(|r| r["is_final"] == false), "no interim");
    assert!(results.iter().any(|r| r["from_finalize"] == true), "Finalize was not answered");
    for kind in ["SpeechStarted", "UtteranceEnd"] {
        assert!(lines.iter().any(|l| l["event"] == kind), "no {kind}");
    }

    let mut text = BTreeMap::<u64, String>::new();
    let mut window_end = BTreeMap::<u64, f64>::new();
    for result in &results {
        let channel = result["channel"].as_u64().unwrap();
        let (start, duration) = (result["start"].as_f64().unwrap(), result["duration"].as_f64().unwrap());
        let end = window_end.entry(channel).or_default();
        assert!((start - *end).abs() < 0.002, "channel {channel}: a window starts at {start}, the last ended at {end}");
        if result["is_final"] == true {
            *end = start + duration;
            let said = result["text"].as_str().unwrap();
            text.entry(channel).or_default().push_str(&format!(" {said}"));
        }
        let speech_final = result["speech_final"] == true;
        assert!(!speech_final || result["is_final"] == true);
    }
    for channel in 0..2u8 {
        let (errors, of) = words::errors(&script_text(&call, channel), &text[&u64::from(channel)]);
        // Finalize in the middle may cut a word in two.
        assert!(errors * 100 <= of * 8 + 200, "channel {channel}: {errors} errors in {of} words: {}", text[&u64::from(channel)]);
    }
    // The same call stands in the record, with the caller's tags.
    let row = server.get("/v1/conversations?limit=1").await["data"][0].clone();
    assert_eq!((&row["source"], &row["state"]), (&"deepgram".into(), &"complete".into()));
    assert!(row["tags"].as_array().unwrap().contains(&"journey".into()), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_posted_file_comes_back_as_a_transcript() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let call = demo_calls().into_iter().find(|c| c.script.file.ends_with(".flac")).expect("a flac call is bundled");
    let file = std::fs::read(Path::new(ROOT).join("tests/fixtures/calls").join(&call.script.file)).unwrap();
    let url = format!("{}/v1/listen?model=nova-3&multichannel=true&utterances=true&punctuate=true", server.http);
    let answer: Value =
        reqwest::Client::new().post(url).header("content-type", "audio/flac").body(file).send().await.unwrap().json().await.unwrap();
    for key in ["transaction_key", "request_id", "sha256", "created", "duration", "channels", "models", "model_info"] {
        assert!(!answer["metadata"][key].is_null(), "metadata has no {key}: {answer}");
    }
    for channel in 0..2u8 {
        let best = &answer["results"]["channels"][usize::from(channel)]["alternatives"][0];
        let (errors, of) = words::errors(&script_text(&call, channel), best["transcript"].as_str().unwrap());
        assert!(errors * 100 <= of * 6, "channel {channel}: {errors} of {of}: {}", best["transcript"]);
        assert!(best["words"].as_array().unwrap().len() > 20);
    }
    assert!(answer["results"]["utterances"].as_array().unwrap().len() > 4);
    let row = server.get("/v1/conversations?limit=1").await["data"][0].clone();
    assert_eq!(row["source"], "file");
}
