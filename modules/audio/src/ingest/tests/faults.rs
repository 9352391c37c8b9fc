use super::support::*;
use crate::ingest::{Ingest, IngestDeps, IngestSettings};
use actix_web::{App, test as web_test};
use contracts::{CallError, ConversationId, ErrorKind, Retry, conversation::ConversationState, testing::FakeConversations};
use platform::bus::Memory;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dying_engine_costs_no_word_and_doubles_none() {
    let house = house().await;
    // Every session dies after 1100 ms; each gets further than the one before, because it begins where that one's last segment ended.
    *house.ear.break_after.lock() = Some((1100 * MS as u64, CallError::unavailable("the worker died")));
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &call()).await;
    caller.text(r#"{"type":"close"}"#).await;
    let (messages, code, _) = caller.rest().await;
    assert_eq!(code, 1000);
    assert_eq!(house.said(id, 0), WORDS);
    assert!(house.ear.opened.lock().len() > 2, "the engine did die");
    let finals: Vec<&str> = messages.iter().filter(|m| m["type"] == "final").map(|m| m["text"].as_str().unwrap()).collect();
    assert_eq!(finals, WORDS, "the caller is told every word once");
    assert_eq!(house.end(id, 0), call().len() as u64);
}

/// Plays `sound` at ten times the speed of speech and asks the stream to move every 100 ms of it.
async fn play_on_the_move(house: &House, sound: &[u8]) -> Vec<String> {
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    for (n, piece) in sound.chunks(100 * MS).enumerate() {
        caller.audio(0, n * 100 * MS, piece).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        house.ear.movers.lock().last().unwrap().ask();
    }
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.end(id, 0), sound.len() as u64);
    house.said(id, 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_moves_at_every_pause_loses_no_word_and_doubles_none() {
    let house = house().await;
    assert_eq!(play_on_the_move(&house, &call()).await, WORDS);
    let opened = house.ear.opened.lock();
    assert!(opened.len() >= 4, "it moved {} times", opened.len() - 1);
    assert!(opened.is_sorted_by_key(|spec| (spec.first_seq, spec.start)), "each goes on where a segment ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_pauses_is_moved_in_mid_utterance_and_loses_nothing() {
    let house = house_with(IngestSettings { move_within_ms: 100, ..settings() }).await;
    let said = play_on_the_move(&house, &[loud(8000), quiet(500)].concat()).await.join(" ");
    assert!(house.ear.opened.lock().len() >= 2, "the utterance was cut");
    // Words begin anew at a cut, so their number tells what was heard, and their order that nothing was heard twice.
    let words: Vec<u32> = said.split(' ').map(|word| word.parse().unwrap()).collect();
    assert!(words.is_sorted_by(|a, b| a < b) && words.len() >= 80, "{words:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audio_that_kills_the_engine_each_time_becomes_a_gap() {
    let house = house().await;
    *house.ear.break_after.lock() = Some((100 * MS as u64, CallError::panicked(&"poison")));
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &loud(300)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    *house.ear.break_after.lock() = None;
    caller.audio(0, 300 * MS, &[loud(200), quiet(600)].concat()).await;
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    let said = house.said(id, 0);
    assert!(said[0].starts_with("[gap of") && said[0].ends_with("could not be heard]"), "{said:?}");
    assert!(said.last().unwrap().ends_with(" 400"), "{said:?}");
    assert_eq!(house.end(id, 0), 1100 * MS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stays_away_ends_the_socket_and_the_caller_goes_on_later() {
    let house = house_with(IngestSettings { audio_patience_ms: 300, ..settings() }).await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    let gone = CallError::new(ErrorKind::Unavailable, Retry::Safe, "nobody answers");
    *house.ear.refuse.lock() = Some(gone.clone());
    *house.ear.break_after.lock() = Some((800 * MS as u64, gone));
    caller.audio(0, 0, &call()[..1600 * MS]).await;
    let (messages, code, _) = caller.rest().await;
    let error = messages.last().unwrap();
    assert_eq!((error["type"].as_str(), error["code"].as_str(), code), (Some("error"), Some("unavailable"), 1013));
    *house.ear.refuse.lock() = None;
    *house.ear.break_after.lock() = None;
    let mut caller = house.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
    let safe = caller.message().await["channels"][0]["safe"].as_u64().unwrap() as usize;
    caller.audio(0, safe, &call()[safe..]).await;
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), WORDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_loses_signals_loses_no_commit() {
    let house = house().await;
    house.silent.store(true, Ordering::Relaxed);
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &call()).await;
    let from = Instant::now();
    let safe = caller.until("safe").await;
    assert!(safe["pos"].as_u64().unwrap() > 0 && from.elapsed() < Duration::from_secs(4), "the record was asked");
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), WORDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_stands_still_moves_nothing_and_loses_nothing() {
    let house = house().await;
    house.paused.store(true, Ordering::Relaxed);
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &call()).await;
    caller.until("final").await;
    tokio::time::sleep(Duration::from_millis(1500)).await; // published again meanwhile
    assert_eq!(house.end(id, 0), 0);
    house.paused.store(false, Ordering::Relaxed);
    caller.until("safe").await;
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), WORDS, "what was published twice is stored once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_bus_is_waited_for() {
    let bus = Arc::new(Memory::with_capacity(1));
    let data = Arc::new(tempfile::tempdir().unwrap());
    let house = House::on(settings(), FakeConversations::default(), data, bus).await;
    let mut caller = house.connect(PATH).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &call()[..900 * MS]).await;
    caller.until("safe").await;
    caller.text(r#"{"type":"close"}"#).await;
    assert_eq!(caller.rest().await.1, 1000);
    assert_eq!(house.said(id, 0), WORDS[..1]);
}

/// Size of all files of a folder and those in it.
fn bytes_in(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { bytes_in(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) }).sum()
}

/// Runs a first process until it is dropped in mid-call, then a second one on the same record and folder.
fn crash(first: IngestSettings, path: &'static str, native: bool) -> (ConversationId, FakeConversations, Arc<tempfile::TempDir>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let record = FakeConversations::default();
    let data = Arc::new(tempfile::tempdir().unwrap());
    let recorded = if first.recordings { 1600 * MS as u64 } else { 0 };
    let id = runtime.block_on(async {
        let house = House::on(first, record.clone(), data.clone(), Arc::new(Memory::default())).await;
        let (mut caller, response) = house.connect_with(path, &[]).await.unwrap();
        let id = if native {
            let id = id_of(&caller.message().await);
            caller.audio(0, 0, &call()[..1600 * MS]).await;
            id
        } else {
            caller.bytes(call()[..1600 * MS].to_vec()).await;
            response.headers()["quickcomm-conversation"].to_str().unwrap().parse().unwrap()
        };
        let kept = async {
            while house.end(id, 0) < 600 * MS as u64 || bytes_in(data.path()) < recorded {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), kept).await.expect("a word in the record and all sound on disk");
        assert!(house.end(id, 0) < 1600 * MS as u64);
        std::mem::forget((house, caller)); // its tasks die with the runtime, and nobody hangs up before
        id
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    (id, record, data)
}

#[test]
fn a_deepgram_call_cut_off_by_a_crash_is_finished_from_its_recording() {
    let (id, record, data) = crash(settings(), LISTEN, false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = House::on(settings(), record, data, Arc::new(Memory::default())).await;
        house.ingest.recover().await;
        assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
        let said = house.said(id, 0);
        assert_eq!(said[..2], WORDS[..2], "{said:?}");
        assert!(said.last().unwrap().contains("last write is lost"), "{said:?}");
        let gap = 20 * MS as u64;
        assert_eq!(house.end(id, 0), 1600 * MS as u64 + gap, "all that was recorded, and the gap");
        house.ingest.recover().await; // nothing is left to do
        assert_eq!(house.said(id, 0), said);
    });
}

#[test]
fn without_recordings_the_uncommitted_part_is_a_gap() {
    let settings = || IngestSettings { recordings: false, ..settings() };
    let (id, record, data) = crash(settings(), LISTEN, false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = House::on(settings(), record, data.clone(), Arc::new(Memory::default())).await;
        house.ingest.recover().await;
        assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
        let said = house.said(id, 0);
        assert_eq!(said[0], WORDS[0]);
        assert!(said.last().unwrap().contains("nothing was recorded"), "{said:?}");
        assert_eq!(std::fs::read_dir(data.path().join("recordings")).unwrap().count(), 0, "nothing stays on disk");
    });
}

#[test]
fn a_native_caller_goes_on_after_a_crash() {
    let (id, record, data) = crash(settings(), PATH, true);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = House::on(settings(), record, data, Arc::new(Memory::default())).await;
        let recovering = tokio::spawn({
            let ingest = house.ingest.clone();
            async move { ingest.recover().await }
        });
        let mut caller = house.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
        let welcome = caller.message().await;
        assert_eq!(welcome["resumed"], true);
        assert_eq!(welcome["channels"][0]["epoch"], 2);
        let safe = welcome["channels"][0]["safe"].as_u64().unwrap() as usize;
        assert!((600 * MS..1600 * MS).contains(&safe));
        caller.audio(0, safe, &call()[safe..]).await;
        caller.text(r#"{"type":"close"}"#).await;
        assert_eq!(caller.rest().await.1, 1000);
        assert_eq!(house.said(id, 0), WORDS);
        assert_eq!(house.end(id, 0), call().len() as u64);
        recovering.abort();
    });
}

#[test]
fn a_native_caller_who_never_comes_back_is_heard_out_after_the_window() {
    let settings = || IngestSettings { resume_window_ms: 1000, ..settings() };
    let (id, record, data) = crash(settings(), PATH, true);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = House::on(settings(), record, data, Arc::new(Memory::default())).await;
        let from = Instant::now();
        house.ingest.recover().await;
        assert!(from.elapsed() >= Duration::from_secs(1), "it was waited for");
        assert_eq!(house.until_closed(id).await, ConversationState::Abandoned);
        assert_eq!(house.said(id, 0)[..2], WORDS[..2]);
    });
}

#[test]
fn a_native_caller_who_went_on_at_another_process_is_left_to_it() {
    let settings = || IngestSettings { resume_window_ms: 2000, ..settings() };
    let (id, record, data) = crash(settings(), PATH, true);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bus = Arc::new(Memory::default());
        let elsewhere = House::on(settings(), record.clone(), Arc::new(tempfile::tempdir().unwrap()), bus.clone()).await;
        let mut caller = elsewhere.connect(&format!("{PATH}&conversation={id}")).await.unwrap();
        let safe = caller.message().await["channels"][0]["safe"].as_u64().unwrap() as usize;
        let back = House::on(settings(), record, data.clone(), bus).await;
        let recovering = tokio::spawn({
            let ingest = back.ingest.clone();
            async move { ingest.recover().await }
        });
        // It speaks for as long as the process that came back waits for it, and longer.
        let long = [call(), loud(300), quiet(500), loud(300), quiet(500)].concat();
        for (n, piece) in long[safe..].chunks(100 * MS).enumerate() {
            caller.audio(0, safe + n * 100 * MS, piece).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!recovering.is_finished(), "it waits as long as the call moves on");
        assert_eq!(elsewhere.view(id).await.channels[0].attached.epoch, contracts::Epoch(2));
        caller.text(r#"{"type":"close"}"#).await;
        assert_eq!(caller.rest().await.1, 1000, "nobody took the call from it");
        recovering.await.unwrap();
        assert_eq!(elsewhere.said(id, 0)[..3], WORDS);
        assert_eq!(elsewhere.end(id, 0), long.len() as u64);
        assert_eq!(elsewhere.until_closed(id).await, ConversationState::Complete);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaving_server_sends_native_callers_away_and_hears_the_others_out() {
    let house = house().await;
    let mut native = house.connect(PATH).await.unwrap();
    let id = id_of(&native.message().await);
    native.audio(0, 0, &call()[..1000 * MS]).await;
    native.until("final").await;
    let (mut listen, response) = house.connect_with(LISTEN, &[]).await.unwrap();
    let other: ConversationId = response.headers()["quickcomm-conversation"].to_str().unwrap().parse().unwrap();
    listen.bytes(loud(300)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    house.ingest.drain(Duration::from_secs(5)).await;
    let (messages, code, _) = native.rest().await;
    assert_eq!((messages.last().unwrap()["type"].as_str(), code), (Some("goaway"), 1012));
    let (messages, code, _) = listen.rest().await;
    assert_eq!((messages.last().unwrap()["type"].as_str(), code), (Some("Metadata"), 1012));
    assert_eq!(house.view(id).await.conversation.state, ConversationState::Live, "its caller comes back after the restart");
    assert_eq!(house.view(other).await.conversation.state, ConversationState::Abandoned);
    assert_eq!(house.said(other, 0), ["0 100 200"]);
    assert_eq!(house.connect(PATH).await.err().unwrap().0, 503);
}

#[actix_web::test]
async fn a_recording_plays_whole_and_in_parts_while_the_call_goes_on() {
    let house = house().await;
    let mut caller = house.connect(&format!("{PATH}&channels=2")).await.unwrap();
    let id = id_of(&caller.message().await);
    caller.audio(0, 0, &loud(100)).await;
    caller.audio(1, 0, &quiet(50)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let app = web_test::init_service(App::new().configure(|routes| house.ingest.configure(routes))).await;
    let get = async |query: &str, range: Option<&str>| {
        let mut request = web_test::TestRequest::get().uri(&format!("/v1/conversations/{query}"));
        if let Some(range) = range {
            request = request.insert_header(("range", range));
        }
        let response = web_test::call_service(&app, request.to_request()).await;
        let (status, length) = (response.status().as_u16(), response.headers().get("content-range").cloned());
        (status, length.map(|l| l.to_str().unwrap().to_owned()), web_test::read_body(response).await)
    };
    let (status, _, whole) = get(&format!("{id}/recording"), None).await;
    assert_eq!((status, whole.len()), (200, 44 + 800 * 4));
    assert_eq!(&whole[..4], b"RIFF");
    assert_eq!(get(&format!("{id}/recording?channel=1"), None).await.2.len(), 44 + 400 * 2);
    let (status, range, part) = get(&format!("{id}/recording"), Some("bytes=10-99")).await;
    assert_eq!((status, range.as_deref()), (206, Some("bytes 10-99/3244")));
    assert_eq!(part, whole.slice(10..100));
    assert_eq!(get(&format!("{id}/recording"), Some("bytes=9999-")).await.0, 416);
    assert_eq!(get(&format!("{}/recording", ConversationId::fresh()), None).await.0, 404);
    assert_eq!(get("x/recording", None).await.0, 400);
    assert_eq!(get(&format!("{id}/recording?x=1"), None).await.0, 400);
    assert!((house.ingest.has_recording())(id));
    caller.text(r#"{"type":"close"}"#).await;
    caller.rest().await;
    assert_eq!(get(&format!("{id}/recording"), None).await.2.len(), 44 + 800 * 4);
}

/// The names others build on.
#[test]
fn ingest_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Ingest>();
    shared::<IngestDeps>();
}
