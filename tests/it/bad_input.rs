//! Bad input: each gets a clear answer that says what was expected, and the server goes on.

use crate::support::{ROOT, Server, demo_calls, models};
use bytes::{BufMut, BytesMut};
use futures::{SinkExt, StreamExt};
use quickcomm::{
    cli::demo::speak,
    client::{Call, Options, ServerMessage},
};
use std::{fs, path::Path, process::Command, time::Duration};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{self, Message},
};

async fn refused(server: &Server, query: &str) -> (u16, serde_json::Value) {
    let url = format!("{}/v1/stream?{query}", server.http.replace("http", "ws"));
    match connect_async(url).await {
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            (answer.status().as_u16(), serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&body))))
        }
        other => panic!("{query} was not refused: {:?}", other.map(|_| ())),
    }
}

/// Sends `messages` on a fresh stream and returns the close code.
async fn closed_with(server: &Server, messages: Vec<Message>) -> u16 {
    let url = format!("{}/v1/stream?encoding=linear16&sample_rate=16000", server.http.replace("http", "ws"));
    let (mut socket, _) = connect_async(url).await.unwrap();
    for message in messages {
        if socket.send(message).await.is_err() {
            break;
        }
    }
    let close = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(said) = socket.next().await {
            match said {
                Ok(Message::Close(frame)) => return frame.map_or(1005, |f| f.code.into()),
                Ok(_) => {}
                Err(_) => return 1006,
            }
        }
        1006
    });
    close.await.expect("the server did not close the stream")
}

fn frame(version: u8, channel: u8, pos: u64, bytes: usize) -> Message {
    let mut data = BytesMut::new();
    data.put_u8(version);
    data.put_u8(channel);
    data.put_u16(0);
    data.put_u64_le(pos);
    data.put_bytes(0, bytes);
    Message::binary(data.freeze())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_before_and_during_a_stream() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    for (query, says) in [
        ("encoding=opus&sample_rate=16000", "linear16"),
        ("encoding=linear16&sample_rate=96000", "8000 to 48000"),
        ("encoding=linear16&sample_rate=fast", "sample_rate"),
        ("encoding=linear16", "sample_rate"),
        ("sample_rate=16000", "encoding"),
        ("encoding=linear16&sample_rate=16000&channels=7", "1 or 2"),
        ("encoding=linear16&sample_rate=16000&language=tlh", "en"),
        ("encoding=linear16&sample_rate=16000&colour=red", "colour"),
        ("encoding=linear16&sample_rate=16000&conversation=42", "conv_"),
    ] {
        let (status, problem) = refused(&server, query).await;
        assert_eq!(status, 400, "{query}: {problem}");
        let text = problem.to_string();
        assert!(text.contains(says), "{query}: {text} does not say {says}");
    }
    for (messages, code) in [
        (vec![Message::text("hello there")], 1003),
        (vec![Message::text(r#"{"type":"sing"}"#)], 1003),
        (vec![Message::binary(vec![1, 2, 3])], 1008),
        (vec![frame(9, 0, 0, 320)], 1008),
        (vec![frame(1, 5, 0, 320)], 1008),
        (vec![frame(1, 0, 0, 321)], 1008),
        (vec![frame(1, 0, 0, 200_000)], 1009),
    ] {
        let what = format!("{:?}", messages.first().map(|m| m.len()));
        assert_eq!(closed_with(&server, messages).await, code, "{what}");
    }

    // Deepgram's side of the house answers in Deepgram's form.
    let answer = reqwest::Client::new().post(format!("{}/v1/listen", server.http)).body("this is no audio at all").send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.headers().contains_key("dg-request-id"));
    let body: serde_json::Value = answer.json().await.unwrap();
    assert!(body["err_msg"].is_string() || body["message"].is_string(), "{body}");
    let torn = fs::read(Path::new(ROOT).join("tests/fixtures/formats/truncated.wav")).unwrap();
    let answer = reqwest::Client::new().post(format!("{}/v1/listen", server.http)).body(torn).send().await.unwrap();
    assert!(answer.status() == 200 || answer.status() == 400, "{}", answer.status());

    // A server with a call under way is still ready, and an unknown parameter is refused.
    let call = demo_calls().into_iter().next().unwrap();
    let (_, mut events) = speak(&call, &server.http, None).await.unwrap();
    while let Some(event) = events.recv().await {
        if matches!(event.unwrap().message, ServerMessage::Final(_)) {
            break;
        }
    }
    drop(events);
    assert_eq!(reqwest::get(format!("{}/readyz", server.admin)).await.unwrap().status(), 200);
    let (status, problem) =
        (reqwest::get(format!("{}/v1/conversations?colour=red", server.http)).await.unwrap().status(), "unknown parameter");
    assert_eq!(status, 400, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attach_supersedes_the_older_socket() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let options = Options::new(&server.http, contracts::Encoding::Linear16, 16_000, &[contracts::audio::Role::Customer]);
    let (_older, mut events) = Call::open(options.clone()).await.unwrap();
    let (_newer, _events) = Call::open(options).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match events.recv().await {
                Some(Err(error)) => return error.to_string(),
                Some(Ok(_)) => {}
                None => return "nothing".into(),
            }
        }
    })
    .await
    .unwrap();
    assert!(ended.contains("4009"), "{ended}");
}

#[test]
fn a_second_start_on_the_same_folder_is_refused() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let _first = Server::start(data.path(), &[], &[]);
    let error = Server::try_start(data.path(), &[], &[]).err().expect("a second server started on the same folder");
    let folder = data.path().display().to_string();
    assert!(error.starts_with("exit 1") && error.contains(&folder) && error.contains("already"), "{error}");
}

#[test]
fn a_missing_or_damaged_model_is_named() {
    let Some(models) = models() else { return };
    let data = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let start = |models: &Path| Server::try_start(&data.path().join("d"), &[], &[("QUICKCOMM_MODELS", &models.to_string_lossy())]).err();
    let nothing = start(folder.path()).expect("it started without models");
    assert!(nothing.contains("make models"), "{nothing}");

    copy(&models, folder.path());
    let encoder = folder.path().join("moonshine-tiny-en/encoder_model.onnx");
    let mut bytes = fs::read(&encoder).unwrap();
    bytes[1000] ^= 0xff;
    fs::write(&encoder, bytes).unwrap();
    let damaged = start(folder.path()).expect("it started with a damaged recognizer");
    assert!(damaged.contains("encoder_model.onnx") && damaged.contains("sha256"), "{damaged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_embedding_model_lowers_the_tier_and_says_so() {
    let Some(models) = models() else { return };
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(&models, folder.path());
    fs::remove_dir_all(folder.path().join("minilm-l6-v2")).unwrap();
    let server = Server::start(data.path(), &[], &[("QUICKCOMM_MODELS", &folder.path().to_string_lossy())]);
    let tiers = crate::support::eventually("the status tells the tiers", Duration::from_secs(10), async || {
        let tiers = server.get("/v1/admin/status").await["tiers"].as_array()?.clone();
        (!tiers.is_empty()).then_some(tiers)
    })
    .await;
    for tier in tiers {
        assert_eq!(tier["tier"], "rules");
        assert!(tier["degraded"].as_str().unwrap().contains("minilm"), "{tier}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn the_command_line_says_what_it_expected() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(arguments).current_dir(ROOT).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (arguments, code, says) in [
        (&["serve", "--http", "0.0.0.0:1"][..], 2, "loopback"),
        (&["serve", "--roles", "audio"], 2, "grpc.listen"),
        (&["serve", "--config", "/nowhere.toml"], 2, "/nowhere.toml"),
        (&["transcribe", "/nowhere.wav"], 1, "/nowhere.wav"),
        (&["transcribe", "tests/fixtures/formats/not_audio.wav"], 1, "wav, flac, mp3"),
        (&["transcribe", "tests/fixtures/formats/empty.wav"], 1, "empty.wav"),
        (&["demo", "--url", "http://127.0.0.1:1"], 1, "no connection"),
        (&["demo", "nosuchcall"], 1, "billing_dispute"),
        (&["status", "--admin", "http://127.0.0.1:1"], 1, "quickcomm serve"),
    ] {
        let (status, text) = run(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text:?} does not say {says:?}");
    }
}

#[test]
fn a_file_becomes_text_in_every_format() {
    if models().is_none() {
        return;
    }
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(Path::new(ROOT).join("tests/fixtures/formats/manifest.json")).unwrap()).unwrap();
    for format in manifest["formats"].as_array().unwrap() {
        let file = format!("tests/fixtures/formats/{}", format["file"].as_str().unwrap());
        let output = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["transcribe", &file]).current_dir(ROOT).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(text.contains("hold the line"), "{file}: {text:?} {}", String::from_utf8_lossy(&output.stderr));
    }
    for (format, begins) in [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n1\n"), ("json", "{")] {
        let output = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
            .args(["transcribe", "--format", format, "tests/fixtures/formats/flac_16k_mono.flac"])
            .current_dir(ROOT)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with(begins) && text.to_lowercase().contains("hold the line"), "{format}: {text}");
    }
}
