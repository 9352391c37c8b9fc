use super::support::*;
use crate::ingest::IngestSettings;
use actix_web::{App, test as web_test};
use contracts::{
    CallError, ConversationId,
    conversation::ConversationState,
    signal::{LIVE, Live, LiveBody},
    testing::FakeConversations,
};
use platform::bus::{Bus as _, Heard, Memory};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_heard_committed_and_closed() {
    let house = house().await;
    let mut caller = house.connect(&format!("{PATH}&roles=customer&title=Hello&tag=a&tag=b")).await.unwrap();
    let welcome = caller.message().await;
    let id = id_of(&welcome);
    assert_eq!((welcome["resumed"].as_bool(), welcome["channels"][0]["safe"].as_u64()), (Some(false), Some(0)));
    caller.audio(0, 0, &[quiet(300), loud(300), quiet(700)].concat()).await;
    let last = caller.until("final").await;
    assert_eq!((last["text"].as_str(), last["start_ms"].as_u64(), last["end_ms"].as_u64()), (Some("300 400 500"), Some(300), Some(600)));
    assert_eq!(last["trace_id"].as_str().unwrap().len(), 32);
    let safe = caller.until("safe").await;
    assert!(safe["pos"].as_u64().unwrap() > 0);
    caller.text(r#"{"type":"ping"}"#).await;
    caller.until("pong").await;
    caller.text(r#"{"type":"close"}"#).await;
    let (messages, code, _) = caller.rest().await;
    assert_eq!(code, 1000);
    let ended = messages.last().unwrap();
    assert_eq!((ended["type"].as_str(), ended["state"].as_str()), (Some("ended"), Some("complete")));
    let view = house.view(id).await;
    assert_eq!((view.conversation.state, view.conversation.tags.len()), (ConversationState::Complete, 2));
    assert_eq!(house.said(id, 0), ["300 400 500"]);
    assert_eq!(house.end(id, 0), 1300 * MS as u64, "everything sent is committed");
    house.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_comes_back_loses_and_repeats_nothing() {
    let house = house().await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    let all = [quiet(200), loud(900), quiet(500), loud(300), quiet(600)].concat();
    caller.audio(0, 0, &all[..700 * MS]).await;
    caller.until("partial").await;
    caller.vanish();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut caller = house.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
    let welcome = caller.message().await;
    assert_eq!((id_of(&welcome), welcome["resumed"].as_bool()), (id, Some(true)));
    let safe = welcome["channels"][0]["safe"].as_u64().unwrap() as usize;
    assert!(safe <= 700 * MS);
    caller.audio(0, safe, &all[safe..]).await;
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), ["200 300 400 500 600 700 800 900 1000", "1600 1700 1800"]);
    assert_eq!(house.ear.opened.lock().len(), 1, "the engine never noticed");
}

/// Two channels, and a caller whose connection has died without either end being told: it neither sends nor answers pings.
async fn half_open(house: &House, sound: &[u8]) -> (Caller, ConversationId) {
    let mut caller = house.connect(&format!("{PATH}&channels=2")).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, sound).await;
    caller.audio(1, 0, sound).await;
    caller.until("partial").await;
    assert_eq!(house.ear.places(), 2);
    (caller, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_caller_gives_its_places_to_others_and_goes_on_where_it_was() {
    let house = house_with(IngestSettings { ping_ms: 300, ..settings() }).await;
    let all = [quiet(200), loud(900), quiet(500), loud(300), quiet(600)].concat();
    let (silent, id) = half_open(&house, &all[..700 * MS]).await;
    house.until_places(0).await;
    assert_eq!((house.ingest.live(), house.view(id).await.conversation.state), (1, ConversationState::Live), "it is awaited");

    // Others have the places now: it is told to come back, and loses nothing by that.
    let again = format!("{PATH}&channels=2&conversation={id}");
    *house.ear.refuse.lock() = Some(CallError::busy(Duration::from_secs(3), "all 2 channels are taken"));
    let (status, headers, _) = house.connect(&again).await.err().unwrap();
    assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, "3"));
    assert_eq!((house.ear.places(), house.ingest.live()), (0, 1));
    *house.ear.refuse.lock() = None;

    let mut caller = house.connect(&again).await.unwrap();
    let welcome = caller.message().await;
    assert_eq!((id_of(&welcome), welcome["resumed"].as_bool()), (id, Some(true)));
    for channel in 0..2u8 {
        let safe = welcome["channels"][usize::from(channel)]["safe"].as_u64().unwrap() as usize;
        caller.audio(channel, safe, &all[safe..]).await;
    }
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    for channel in 0..2 {
        assert_eq!(house.said(id, channel), ["200 300 400 500 600 700 800 900 1000", "1600 1700 1800"]);
    }
    assert_eq!(house.ear.opened.lock().len(), 4, "each channel was admitted twice");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_channel_that_is_admitted_again_alone_gives_its_place_back() {
    let house = house_with(IngestSettings { ping_ms: 300, ..settings() }).await;
    let (_silent, id) = half_open(&house, &loud(300)).await;
    house.until_places(0).await;
    *house.ear.room.lock() = Some(1);
    let (status, ..) = house.connect(&format!("{PATH}&channels=2&conversation={id}")).await.err().unwrap();
    assert_eq!(status, 503);
    house.until_places(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_caller_who_stays_away_is_heard_out_before_its_call_is_closed() {
    let house = house_with(IngestSettings { ping_ms: 300, resume_window_ms: 1000, ..settings() }).await;
    let (_silent, id) = half_open(&house, &[quiet(200), loud(400)].concat()).await;
    house.until_places(0).await;
    assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
    for channel in 0..2 {
        assert_eq!((house.said(id, channel), house.end(id, channel)), (vec!["200 300 400 500".to_owned()], 600 * MS as u64));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_socket_takes_the_conversation() {
    let house = house().await;
    let mut old = house.connect(PATH).await.unwrap();
    let id = id_of(&old.message().await);
    let mut new = house.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
    assert_eq!(old.rest().await.1, 4009);
    new.message().await;
    new.audio(0, 0, &loud(200)).await;
    new.text(r#"{"type":"finalize","token":7}"#).await;
    assert_eq!(new.until("flushed").await["token"], 7);
    new.text(r#"{"type":"close"}"#).await;
    assert_eq!(new.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), ["0 100"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_channels_are_heard_apart_and_a_hole_is_a_gap() {
    let house = house().await;
    let mut caller = house.connect(&format!("{PATH}&channels=2&roles=agent,customer")).await.unwrap();
    let welcome = caller.message().await;
    let id = id_of(&welcome);
    assert_eq!(welcome["channels"].as_array().unwrap().len(), 2);
    caller.audio(1, 0, &loud(200)).await;
    caller.audio(0, 0, &quiet(400)).await;
    caller.audio(1, 1200 * MS, &loud(100)).await;
    caller.text(r#"{"type":"finalize"}"#).await;
    let (mut gaps, mut flushed) = (vec![], 0);
    while flushed == 0 {
        let message = caller.message().await;
        match message["type"].as_str().unwrap() {
            "gap" => gaps.push((message["channel"].as_u64(), message["start_ms"].as_u64(), message["end_ms"].as_u64())),
            "flushed" => flushed += 1,
            _ => {}
        }
    }
    assert_eq!(gaps, [(Some(1), Some(200), Some(1200))]);
    caller.text(r#"{"type":"close"}"#).await;
    caller.rest().await;
    assert_eq!(house.said(id, 0), Vec::<String>::new());
    assert_eq!(house.said(id, 1), ["0 100", "[gap of 1000 ms: never arrived]", "1200"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_closed_with_its_code_and_reason() {
    let house = house().await;
    let header = |version: u8, channel: u8, zeros: [u8; 2], pos: u64| {
        let mut frame = vec![version, channel];
        frame.extend(zeros);
        frame.extend(pos.to_le_bytes());
        frame
    };
    let linear = "/v1/stream?encoding=linear16&sample_rate=8000";
    type Sent = Result<Vec<u8>, &'static str>; // bytes or text
    let cases: [(&str, Sent, u16, &str); 9] = [
        (PATH, Ok(vec![1, 0, 0]), 1008, "header of 12 bytes"),
        (PATH, Ok(header(2, 0, [0; 2], 0)), 1008, "version 2"),
        (PATH, Ok(header(1, 1, [0; 2], 0)), 1008, "channel 1"),
        (PATH, Ok(header(1, 0, [1, 0], 0)), 1008, "not zero"),
        (PATH, Ok([header(1, 0, [0; 2], u64::MAX), loud(1)].concat()), 1008, "ahead"),
        (linear, Ok([header(1, 0, [0; 2], 0), vec![1]].concat()), 1008, "whole samples"),
        (PATH, Ok(vec![1; 70_000]), 1009, "65536"),
        (PATH, Err("hello"), 1003, "finalize, close or ping"),
        (PATH, Err(r#"{"type":"dance"}"#), 1003, "finalize, close or ping"),
    ];
    for (path, message, code, says) in cases {
        let mut caller = house.connect(path).await.unwrap();
        caller.message().await;
        match message {
            Ok(bytes) => caller.bytes(bytes).await,
            Err(text) => caller.text(text).await,
        }
        let (messages, closed, reason) = caller.rest().await;
        assert_eq!(closed, code, "{says}: {reason}");
        let error = messages.iter().find(|m| m["type"] == "error").unwrap_or_else(|| panic!("{says}: no error before the close"));
        assert!(error["message"].as_str().unwrap().contains(says), "{error} does not say {says:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_a_problem_document_before_the_upgrade() {
    let house = house().await;
    let fresh = ConversationId::fresh();
    let mut done = house.connect(&format!("{PATH}&conversation={fresh}")).await.unwrap();
    assert_eq!(id_of(&done.message().await), fresh, "a caller may bring its own id");
    let mut live = house.connect(&format!("{PATH}&external_id=x")).await.unwrap();
    let live_id = id_of(&live.message().await);
    done.text(r#"{"type":"close"}"#).await;
    done.rest().await;
    let cases = [
        ("/v1/stream?sample_rate=8000".to_owned(), 400, "encoding is missing"),
        ("/v1/stream?encoding=opus&sample_rate=8000".to_owned(), 400, "linear16, float32, mulaw or alaw"),
        ("/v1/stream?encoding=mulaw&sample_rate=96000".to_owned(), 400, "8000 to 48000"),
        (format!("{PATH}&channels=3"), 400, "1 or 2"),
        (format!("{PATH}&colour=red"), 400, "colour"),
        (format!("{PATH}&endpointing=x"), 400, "or false"),
        (format!("{PATH}&conversation=12"), 400, "32 hexadecimal digits"),
        (format!("{PATH}&roles=boss"), 400, "agent, customer or unknown"),
        (format!("{PATH}&conversation={fresh}"), 409, "is closed"),
        (format!("{PATH}&external_id=x"), 409, "belongs to"),
        (format!("/v1/stream?encoding=alaw&sample_rate=8000&conversation={live_id}"), 400, "mulaw, as the conversation was begun with"),
    ];
    for (path, status, says) in cases {
        let (code, headers, problem) = house.connect(&path).await.err().unwrap_or_else(|| panic!("{path} was accepted"));
        assert_eq!(code, status, "{path}: {problem}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{path}: {problem}");
        assert_eq!(problem["state"] == "complete", says == "is closed", "{path}: {problem}");
    }
    *house.ear.refuse.lock() = Some(CallError::busy(Duration::from_secs(3), "all workers are taken"));
    let before = house.ingest.live();
    let (code, headers, problem) = house.connect(PATH).await.err().unwrap();
    assert_eq!((code, headers["retry-after"].to_str().unwrap(), problem["code"].as_str()), (503, "3", Some("busy")));
    assert!(house.ingest.live() <= before, "those who were there may have gone");
    let (code, ..) = house.connect_with(PATH, &[("origin", "https://evil.example")]).await.err().unwrap();
    assert_eq!(code, 403);
    let left: Vec<_> = std::fs::read_dir(house.data.path().join("recordings")).unwrap().collect();
    assert_eq!(left.len(), 2, "a refused caller leaves no folder behind");
}

#[actix_web::test]
async fn a_plain_request_is_told_that_a_websocket_was_expected() {
    let house = house().await;
    let app = web_test::init_service(App::new().configure(|routes| house.ingest.configure(routes))).await;
    for path in [PATH, "/v1/listen?encoding=mulaw&sample_rate=8000"] {
        let answer = web_test::call_service(&app, web_test::TestRequest::get().uri(path).to_request()).await;
        assert_eq!(answer.status(), 400, "{path}");
        let body = String::from_utf8(web_test::read_body(answer).await.to_vec()).unwrap();
        assert!(body.contains("expected a WebSocket handshake"), "{path}: {body}");
    }
    assert_eq!(house.ingest.live(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_stays_away_has_abandoned_the_call() {
    let house = house_with(crate::ingest::IngestSettings { resume_window_ms: 1000, ..settings() }).await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &loud(250)).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // what is still under way when a connection breaks never arrives
    caller.vanish();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(house.view(id).await.conversation.state, ConversationState::Live);
    assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
    assert_eq!(house.said(id, 0), ["0 100 200"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_not_there_when_it_was_said_is_shown_how_a_call_stands_all_the_same() {
    let bus = Arc::new(Memory::default());
    let data = Arc::new(tempfile::tempdir().unwrap());
    let house = House::on(settings(), FakeConversations::default(), data, bus.clone()).await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &loud(250)).await;
    caller.until("partial").await;
    let shown = async |wanted: LiveBody| {
        let mut listener = bus.listen(LIVE).await.unwrap();
        let until = async {
            loop {
                let Some(Heard::Signal(payload)) = listener.next().await else { panic!("nothing is lost here") };
                let live: Live = serde_json::from_slice(&payload).unwrap();
                if (live.conversation, &live.body) == (id, &wanted) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), until).await.unwrap_or_else(|_| panic!("{wanted:?} is not said again"));
    };
    let (talking, connected) = (LiveBody::Activity { talking: true }, LiveBody::Link { connected: true });
    tokio::join!(shown(talking), shown(connected), shown(LiveBody::Lag { ms: 0 }));
    caller.vanish();
    let gone = LiveBody::Link { connected: false };
    shown(gone.clone()).await;
    shown(gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_numbers_leave_ingest_hidden() {
    let house = house_with(crate::ingest::IngestSettings { redact: true, ..settings() }).await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &[loud(500), quiet(500)].concat()).await;
    let last = caller.until("final").await;
    assert_eq!(last["text"], "••• ••• ••• ••• •••");
    caller.text(r#"{"type":"close"}"#).await;
    caller.rest().await;
    assert_eq!(house.said(id, 0), ["••• ••• ••• ••• •••"]);
}
