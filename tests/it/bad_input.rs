//! Bad input: each gets a clear answer that says what was expected, and the server goes on.

use crate::{
    calls::check_kept,
    support::{ROOT, Server, demo_calls, eventually, models},
};
use bytes::{BufMut, BytesMut};
use futures::{SinkExt, StreamExt};
use quickcomm::client::{Call, Options};
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

    // An unknown parameter of the record's side.
    let answer = reqwest::get(format!("{}/v1/conversations?colour=red", server.http)).await.unwrap();
    assert_eq!(answer.status(), 400);
    let problem = answer.text().await.unwrap();
    assert!(problem.contains("colour"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_posted_file_that_is_torn_gives_what_is_there_and_says_what_is_missing() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let post = async |body: Vec<u8>| {
        let answer = reqwest::Client::new().post(format!("{}/v1/listen", server.http)).body(body).send().await.unwrap();
        assert!(answer.headers().contains_key("dg-request-id"));
        (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let (status, refused) = post(b"this is no audio at all".to_vec()).await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused["err_msg"].as_str().unwrap().contains("expected wav, flac, mp3"), "{refused}");

    let torn = fs::read(Path::new(ROOT).join("tests/fixtures/formats/truncated.wav")).unwrap();
    let (status, heard) = post(torn.clone()).await;
    assert_eq!(status, 200, "{heard}");
    let transcript = heard["results"]["channels"][0]["alternatives"][0]["transcript"].as_str().unwrap().to_lowercase();
    assert!(transcript.contains("hold"), "{heard}");
    let warning = &heard["metadata"]["warnings"][0];
    let missing = format!("expected 48000 bytes of sound, found {}", torn.len() - 44);
    assert!(warning["type"] == "truncated_audio" && warning["message"].as_str().unwrap().contains(&missing), "{warning}");

    // Only the header arrived: there is nothing to hear.
    let (status, refused) = post(torn[..44].to_vec()).await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused["err_msg"].as_str().unwrap().contains("expected 48000 bytes, found 0"), "{refused}");
}

#[derive(Clone, Copy, Debug)]
enum Vanishing {
    /// The connection is gone, with no word of goodbye.
    HangsUp,
    /// The connection stands, and nobody is behind it.
    FallsSilent,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_is_heard_out_and_its_place_is_given_back() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(
        data.path(),
        &[],
        &[
            ("QUICKCOMM_AUDIO__ENGINE__MAX_SESSIONS", "1"),
            ("QUICKCOMM_AUDIO__INGEST__RESUME_WINDOW_MS", "3000"),
            ("QUICKCOMM_AUDIO__INGEST__PING_MS", "400"), // not answered for a second: gone
        ],
    );
    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).unwrap();
    let query = format!("encoding=mulaw&sample_rate={}", call.rate.hz());
    let url = format!("{}/v1/stream?{query}", server.http.replace("http", "ws"));
    // Up to the middle of a turn.
    let cut_s = call.script.turns.iter().filter(|t| t.channel == 0).nth(2).map(|t| f64::midpoint(t.start_s, t.end_s)).unwrap();
    let sent = &call.channels[0][..(cut_s * f64::from(call.rate.hz())) as usize];

    for vanishing in [Vanishing::HangsUp, Vanishing::FallsSilent] {
        let (mut socket, _) = connect_async(&url).await.unwrap();
        for (n, samples) in sent.chunks(800).enumerate() {
            let mut message = BytesMut::from(&[1, 0, 0, 0][..]);
            message.put_u64_le(n as u64 * 800);
            message.put_slice(samples);
            socket.send(Message::binary(message.freeze())).await.unwrap();
        }
        let mut id = String::new();
        while let Some(said) = socket.next().await {
            let said: serde_json::Value = match said.unwrap() {
                Message::Text(text) => serde_json::from_str(&text).unwrap(),
                _ => continue,
            };
            match said["type"].as_str().unwrap() {
                "welcome" => id = said["conversation"].as_str().unwrap().into(),
                "final" => break,
                _ => {}
            }
        }
        let _open_but_unread = match vanishing {
            Vanishing::HangsUp => {
                drop(socket);
                None
            }
            Vanishing::FallsSilent => Some(socket),
        };

        // The caller may come back: the call goes on, its place is taken, and the server does not mind.
        assert_eq!(server.get(&format!("/v1/conversations/{id}")).await["state"], "live", "{vanishing:?}");
        let (status, problem) = refused(&server, &query).await;
        assert_eq!(status, 503, "{vanishing:?}: {problem}");
        assert_eq!(reqwest::get(format!("{}/readyz", server.admin)).await.unwrap().status(), 200);

        // It does not: what was heard is kept, to the middle of the last word.
        let limit = Duration::from_secs(30);
        eventually("the call is closed as abandoned", limit, async || {
            (server.get(&format!("/v1/conversations/{id}")).await["state"] == "abandoned").then_some(())
        })
        .await;
        check_kept(&server, &id, &call, 0, cut_s).await;
        let duration_ms = server.get(&format!("/v1/conversations/{id}")).await["duration_ms"].as_f64().unwrap();
        assert!((duration_ms / 1000.0 - cut_s).abs() < 0.1, "{vanishing:?}: {duration_ms} ms of {cut_s} s");
        let next = eventually("the place is given back", limit, async || connect_async(&url).await.ok()).await;
        let (mut next, _) = next;
        next.send(Message::text(r#"{"type":"close"}"#)).await.unwrap();
        while let Some(Ok(_)) = next.next().await {}
    }
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
    let tiers = eventually("the status tells the tiers", Duration::from_secs(10), async || {
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
