use super::support::*;
use crate::ingest::IngestSettings;
use actix_web::{App, test as web_test};
use contracts::{ConversationId, conversation::ConversationState};
use serde_json::Value;
use std::time::Duration;

const RAW: &str = "/v1/listen?model=nova-3&encoding=mulaw&sample_rate=8000";

fn conversation(response: &tokio_tungstenite::tungstenite::handshake::client::Response) -> ConversationId {
    response.headers()["quickcomm-conversation"].to_str().unwrap().parse().unwrap()
}

/// A message as one short line.
fn line(message: &Value) -> String {
    match message["type"].as_str().unwrap() {
        "Results" => {
            let kind = match (message["is_final"].as_bool().unwrap(), message["speech_final"].as_bool().unwrap()) {
                (false, _) => "interim",
                (true, false) => "final",
                (true, true) => "speech_final",
            };
            let finalized = if message["from_finalize"].as_bool().unwrap() { " finalized" } else { "" };
            format!("{kind} {}{finalized}", message["channel"]["alternatives"][0]["transcript"])
        }
        "UtteranceEnd" => format!("UtteranceEnd {}", message["last_word_end"]),
        other => other.to_owned(),
    }
}

/// Without interims: a newer one replaces one that was not sent yet.
fn lines(messages: &[Value]) -> Vec<String> {
    messages.iter().map(line).filter(|line| !line.starts_with("interim")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_told_in_the_order_the_sdks_expect() {
    let house = house().await;
    let path =
        format!("{RAW}&interim_results=true&endpointing=200&utterance_end_ms=1000&vad_events=true&tag=a&tag=b&extra=k%3Av&no_delay=true");
    let (mut caller, response) = house.connect_with(&path, &[("sec-websocket-protocol", "token, KEY")]).await.unwrap();
    let id = conversation(&response);
    let request_id: uuid::Uuid = response.headers()["dg-request-id"].to_str().unwrap().parse().unwrap();
    assert_eq!(request_id.as_u128(), id.as_u128());
    assert_eq!(response.headers()["sec-websocket-protocol"], "token");
    let sound = [quiet(200), loud(300), quiet(1500), loud(200), quiet(300)].concat();
    for piece in sound.chunks(20 * MS) {
        caller.bytes(piece.to_vec()).await;
    }
    caller.text(r#"{"type":"KeepAlive"}"#).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    caller.text(r#"{"type":"CloseStream"}"#).await;
    let (messages, code, reason) = caller.rest().await;
    assert_eq!((code, reason.as_str()), (1000, ""));
    let expected = [
        "SpeechStarted",
        "speech_final \"200 300 400\"",
        "SpeechStarted",
        "speech_final \"2000 2100\"",
        "final \"\"",
        "UtteranceEnd 2.2",
        "Metadata",
    ];
    // Sent faster than real time: whether the first utterance's end is told before the second begins depends on who is quicker.
    let told: Vec<String> = lines(&messages).into_iter().filter(|l| l != "UtteranceEnd 0.5").collect();
    assert_eq!(told, expected);
    let mut at = 0.0;
    for result in messages.iter().filter(|m| m["type"] == "Results") {
        assert_eq!(result["start"].as_f64().unwrap(), at, "windows follow each other: {result}");
        assert_eq!(result["metadata"]["request_id"], request_id.to_string());
        assert_eq!(result["metadata"]["model_info"]["name"], "nova-3");
        if result["is_final"].as_bool().unwrap() {
            at = ((at + result["duration"].as_f64().unwrap()) * 1000.0).round() / 1000.0;
        }
    }
    let metadata = messages.last().unwrap();
    assert_eq!((metadata["duration"].as_f64(), metadata["channels"].as_u64()), (Some(2.5), Some(1)));
    assert_eq!(metadata["sha256"].as_str().unwrap().len(), 64);
    let word = &messages.iter().find(|m| m["speech_final"] == true).unwrap()["channel"]["alternatives"][0]["words"][0];
    assert_eq!((word["word"].as_str(), word["punctuated_word"].as_str(), word["start"].as_f64()), (Some("200"), Some("200"), Some(0.2)));
    assert_eq!(house.until_closed(id).await, ConversationState::Complete);
    let view = house.view(id).await;
    assert_eq!((view.conversation.source.as_str(), view.conversation.tags), ("deepgram", vec!["a".into(), "b".into(), "k:v".into()]));
    assert_eq!(house.end(id, 0), sound.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_that_is_long_past_is_told_to_have_ended() {
    let house = house().await;
    let mut caller = house.connect(&format!("{RAW}&interim_results=true&endpointing=200&utterance_end_ms=1000")).await.unwrap();
    caller.bytes([loud(200), quiet(800)].concat()).await;
    caller.until("Results").await;
    caller.bytes(quiet(600)).await;
    let end = caller.until("UtteranceEnd").await;
    assert_eq!(end["last_word_end"].as_f64(), Some(0.2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalize_is_answered_even_when_nothing_is_pending() {
    let house = house().await;
    let mut caller = house.connect(RAW).await.unwrap();
    caller.text(r#"{"type":"Finalize"}"#).await;
    assert_eq!(line(&caller.message().await), "final \"\" finalized");
    caller.bytes(loud(200)).await;
    caller.text(r#"{"type":"Finalize"}"#).await;
    assert_eq!(line(&caller.message().await), "speech_final \"0 100\" finalized");
    caller.text("no json").await;
    caller.text(r#"{"type":"Unheard of"}"#).await;
    caller.bytes(quiet(100)).await;
    caller.bytes(vec![]).await; // old clients end a stream so
    let (messages, code, _) = caller.rest().await;
    assert_eq!((lines(&messages), code), (vec!["final \"\"".to_owned(), "Metadata".into()], 1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_wire_ends_the_stream_and_keep_alive_does_not() {
    let house = house_with(IngestSettings { deepgram_idle_ms: 1000, ..settings() }).await;
    let (mut caller, response) = house.connect_with(RAW, &[]).await.unwrap();
    caller.bytes(loud(200)).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        caller.text(r#"{"type":"KeepAlive"}"#).await;
    }
    let (messages, code, reason) = caller.rest().await;
    assert_eq!(lines(&messages), ["speech_final \"0 100\"", "Metadata"]);
    assert_eq!(code, 1011);
    assert!(reason.contains("net0001") && reason.contains("NET-0001"), "{reason}");
    assert_eq!(house.until_closed(conversation(&response)).await, ConversationState::Abandoned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_sniffed_and_rubbish_is_closed() {
    let house = house().await;
    let mut caller = house.connect("/v1/listen?model=nova-3").await.unwrap();
    caller.bytes(b"this is no sound".to_vec()).await;
    let (messages, code, reason) = caller.rest().await;
    assert_eq!((lines(&messages), code), (vec!["Metadata".to_owned()], 1008));
    assert!(reason.starts_with("DATA-0000") && reason.contains("expected"), "{reason}");
    let mut caller = house.connect("/v1/listen?multichannel=true").await.unwrap();
    for piece in wav(2, &[loud(400), quiet(800)].concat()).chunks(33) {
        caller.bytes(piece.to_vec()).await;
    }
    caller.text(r#"{"type":"CloseStream"}"#).await;
    let (messages, code, _) = caller.rest().await;
    assert_eq!(code, 1000);
    let spoken: Vec<_> = messages.iter().filter(|m| m["speech_final"] == true).map(|m| m["channel_index"].clone()).collect();
    assert_eq!(spoken.len(), 2, "each channel by itself");
    assert!(spoken.contains(&serde_json::json!([0, 2])) && spoken.contains(&serde_json::json!([1, 2])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_is_refused_in_deepgrams_form() {
    let house = house().await;
    for (path, says) in [
        ("/v1/listen?encoding=opus&sample_rate=48000", "linear16"),
        ("/v1/listen?encoding=linear16", "sample_rate is missing"),
        ("/v1/listen?encoding=linear16&sample_rate=1", "8000 to 48000"),
        ("/v1/listen?encoding=mulaw&language=fr", "expected en"),
    ] {
        let (status, headers, body) = house.connect(path).await.err().unwrap();
        assert_eq!(status, 400, "{path}");
        assert!(headers["dg-error"].to_str().unwrap().contains(says), "{headers:?}");
        headers["dg-request-id"].to_str().unwrap().parse::<uuid::Uuid>().unwrap();
        assert!(body["err_msg"].as_str().unwrap().contains(says) && body["err_code"].is_string(), "{body}");
    }
    *house.ear.refuse.lock() = Some(contracts::CallError::busy(Duration::from_secs(2), "full"));
    let (status, headers, _) = house.connect(RAW).await.err().unwrap();
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_vanishes_is_heard_out() {
    let house = house().await;
    let (mut caller, response) = house.connect_with(RAW, &[]).await.unwrap();
    caller.bytes(loud(300)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    caller.vanish();
    let id = conversation(&response);
    assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
    assert_eq!(house.said(id, 0), ["0 100 200"]);
}

fn wav(channels: u16, mulaw: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF\0\0\0\0WAVEfmt \x12\0\0\0".to_vec();
    file.extend([7u16, channels].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([8000u32, 8000 * u32::from(channels)].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([channels, 8, 0].iter().flat_map(|n| n.to_le_bytes())); // no extension
    file.extend(b"data");
    file.extend((mulaw.len() as u32).to_le_bytes());
    let riff = (file.len() + mulaw.len() - 8) as u32;
    file[4..8].copy_from_slice(&riff.to_le_bytes());
    file.extend(mulaw);
    file
}

#[actix_web::test]
async fn a_posted_file_is_answered_and_recorded() {
    let house = house_with(IngestSettings { max_upload_bytes: 100_000, ..settings() }).await;
    let app = web_test::init_service(App::new().configure(|routes| house.ingest.configure(routes))).await;
    let post = async |path: &str, kind: Option<&str>, body: Vec<u8>| {
        let mut request = web_test::TestRequest::post().uri(path).set_payload(body);
        if let Some(kind) = kind {
            request = request.insert_header(("content-type", kind));
        }
        let response = web_test::call_service(&app, request.to_request()).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body: Value = serde_json::from_slice(&web_test::read_body(response).await).unwrap_or(Value::Null);
        (status, headers, body)
    };
    let sound = [quiet(200), loud(300), quiet(500), loud(200), quiet(400)].concat();
    let file = wav(1, &sound);
    let path = "/v1/listen?model=nova-3&utterances=true&paragraphs=true&endpointing=300&diarize=true&tag=x";
    for kind in [Some("audio/wav"), Some("application/x-www-form-urlencoded"), None] {
        let (status, headers, answer) = post(path, kind, file.clone()).await;
        assert_eq!(status, 200, "{answer}");
        let alternative = &answer["results"]["channels"][0]["alternatives"][0];
        assert_eq!(alternative["transcript"], "200 300 400 1000 1100");
        assert_eq!(alternative["words"][4]["end"], 1.2);
        assert_eq!(alternative["paragraphs"]["paragraphs"].as_array().unwrap().len(), 2);
        let utterances = answer["results"]["utterances"].as_array().unwrap();
        assert_eq!((utterances.len(), utterances[1]["transcript"].as_str()), (2, Some("1000 1100")));
        utterances[0]["id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap();
        let metadata = &answer["metadata"];
        assert_eq!((metadata["duration"].as_f64(), metadata["channels"].as_u64()), (Some(1.6), Some(1)));
        assert_eq!(metadata["warnings"][0]["parameter"], "diarize");
        let model = metadata["models"][0].as_str().unwrap();
        assert_eq!(metadata["model_info"][model]["name"], "nova-3");
        assert_eq!(headers.get("dg-request-id").unwrap().to_str().unwrap(), metadata["request_id"].as_str().unwrap());
        let id = headers.get("quickcomm-conversation").unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(house.view(id).await.conversation.state, ConversationState::Complete);
        assert_eq!(house.said(id, 0), ["200 300 400", "1000 1100"]);
    }
    let both = wav(2, &[loud(200), quiet(800)].concat());
    let (_, _, answer) = post("/v1/listen?multichannel=true", None, both.clone()).await;
    assert_eq!(answer["results"]["channels"].as_array().unwrap().len(), 2);
    let (_, _, answer) = post("/v1/listen", None, both).await;
    assert_eq!(answer["results"]["channels"].as_array().unwrap().len(), 1);
    let (_, _, answer) = post("/v1/listen?encoding=mulaw&sample_rate=8000", None, sound).await;
    assert_eq!(answer["results"]["channels"][0]["alternatives"][0]["transcript"], "200 300 400 1000 1100");
    let live = house.ingest.live();
    for (path, kind, body, status, says) in [
        ("/v1/listen", None, b"rubbish, no sound".to_vec(), 400, "expected wav"),
        ("/v1/listen", None, vec![], 400, "empty"),
        ("/v1/listen", None, wav(1, &[]), 400, "no sound"),
        ("/v1/listen", Some("application/json"), br#"{"url":"http://x/y.wav"}"#.to_vec(), 400, "not offered yet"),
        ("/v1/listen", None, vec![0; 100_001], 413, "at most 100000"),
        ("/v1/listen?language=de", None, file.clone(), 400, "expected en"),
        ("/v1/listen?encoding=linear16", None, b"abcd".to_vec(), 400, "sample_rate"),
    ] {
        let (code, headers, answer) = post(path, kind, body).await;
        assert_eq!(code, status, "{says}: {answer}");
        assert!(answer["err_msg"].as_str().unwrap().contains(says), "{answer}");
        assert!(headers.contains_key("dg-error"));
    }
    assert_eq!(house.ingest.live(), live);
}
