//! A module's process is killed, frozen or cut off while calls run: somebody else goes on, soon, and nothing is lost.

use crate::{
    calls::{all, play, recorded_text},
    moving::{check, front, host, lines},
    support::{
        Server, demo_calls, eventually,
        faults::{Tally, times},
        models, room, script_text,
        wire::{Weather, Wire},
        words,
    },
};
use futures::future::join_all;
use quickcomm::calls::DemoCall;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Of the moments at which something is killed: each run has the same ones.
const SEED: u64 = 20_261_122;
/// kill -9 is noticed at once.
const REOPENED_AFTER_KILL: Duration = Duration::from_secs(3);
const ANSWERED_AFTER_KILL: Duration = Duration::from_secs(1);
/// Of a dead network nobody is told: a peer that answers no ping for 10 s is gone.
const REOPENED_AFTER_CUT: Duration = Duration::from_secs(12);
/// And a caller who was not heard of for 12 s; the rest is for looking.
const PLACES_BACK: Duration = Duration::from_secs(14);

/// Deaf and mute: both ways, and each alone; then one side goes on talking to somebody who hears nothing.
const DEATHS: [(bool, bool); 3] = [(true, true), (true, false), (false, true)];
/// Of processes, each with a call and a network of its own, at a time: `make faults` would wait for hours.
const PAIRS: usize = 4;
/// Callers whose connections die at the same time.
const CALLERS: usize = 4;

/// Channels that the engine hears.
const PLACES: &str = "quickcomm_audio_sessions";

fn long_calls() -> Vec<DemoCall> {
    demo_calls().into_iter().filter(|call| call.script.duration_s > 60.0).collect()
}

/// What the server says of one place of a module.
async fn target(server: &Server, module: &str, name: &str) -> Option<Value> {
    let routes: Value = reqwest::get(format!("{}/admin/routes", server.admin)).await.ok()?.json().await.ok()?;
    let route = routes["routes"].as_array()?.iter().find(|route| route["module"] == module)?.clone();
    route["targets"].as_array()?.iter().find(|target| target["name"] == name).cloned()
}

/// Waits until both streams of a call are at `place`.
async fn until_streams_are_at(server: &Server, place: &str) {
    eventually("both streams are in the other process", Duration::from_secs(30), async || {
        // Refused while nobody has noticed yet that it is back.
        server.try_turn("audio", &json!({ "remote_percent": 100, "move_live": true })).await.ok()?;
        (target(server, "audio", place).await?["streams"] == 2).then_some(())
    })
    .await;
}

/// Waits until both streams were opened once more after what the log said `before`.
async fn until_streams_are_elsewhere(server: &Server, before: usize, limit: Duration) {
    eventually("both streams are opened elsewhere", limit, async || {
        let log = server.log();
        let opened = lines(&log[before..]).iter().filter(|line| line["message"] == "stream opened").count();
        (opened >= 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_audio_process_costs_no_word_of_a_live_call() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("audio.sock").display());
    let hosted = || host(&folder.path().join("a"), "audio", &socket);
    let mut there = hosted();
    let server = front(&folder.path().join("f"), "audio", &socket, "routed", "100");
    let mut moments = StdRng::seed_from_u64(SEED);
    let mut tally = Tally::of("F01", times(10));
    let mut runs = 0;
    for call in long_calls().into_iter().cycle() {
        if tally.is_whole() {
            break;
        }
        let mut kills = 0;
        let playing = play(vec![call], &server.http);
        let killing = async {
            loop {
                until_streams_are_at(&server, &socket).await;
                runs += 1;
                let told = target(&server, "audio", &socket).await.map(|target| target["run"]["restarts"].clone());
                // One more where a call ended between a kill and the start after it.
                assert!(told.as_ref().and_then(Value::as_u64).is_some_and(|restarts| restarts >= runs - 1), "run {runs}: {told:?}");
                tokio::time::sleep(Duration::from_millis(moments.random_range(500..4000))).await;
                let before = server.log().len();
                there.kill();
                let killed = Instant::now();
                until_streams_are_elsewhere(&server, before, REOPENED_AFTER_KILL).await;
                println!("reopened {:?} after the kill", killed.elapsed());
                kills += 1;
                there = hosted();
            }
        };
        let played = tokio::select! { played = playing => played, () = killing => unreachable!("it kills for ever") };
        let (wrong, of) = check(&server, &played).await;
        println!("{kills} kills: {wrong} word errors of {of}");
        assert!(wrong * 100 <= of * 8, "{wrong} word errors in {of} words");
        tally.survived(kills);
        there.kill(); // the call may have ended between a kill and the start after it
        there = hosted();
    }
}

/// An answer that took as long, of which so much was after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answered {
    after_kill: Duration,
    took: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_inference_process_is_answered_for_within_a_second() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("inference.sock").display());
    let server = front(&folder.path().join("f"), "inference", &socket, "routed", "100");
    let call = demo_calls().into_iter().min_by_key(|call| call.script.duration_s as u64).expect("calls are bundled");
    let played = play(vec![call], &server.http).await;
    let summary = format!("{}/v1/conversations/{}/summary", server.http, played[0].1);
    let client = reqwest::Client::new();
    let mut moments = StdRng::seed_from_u64(SEED);
    let mut tally = Tally::of("F02", times(10));
    while !tally.is_whole() {
        let mut there = host(&folder.path().join("i"), "inference", &socket);
        eventually("the other process answers", Duration::from_secs(10), async || {
            target(&server, "inference", &socket).await?["down"].is_null().then_some(())
        })
        .await;
        let enough = CancellationToken::new();
        let asking: Vec<_> = (0..2).map(|_| tokio::spawn(ask_until(client.clone(), summary.clone(), enough.clone()))).collect();
        tokio::time::sleep(Duration::from_millis(moments.random_range(200..1000))).await;
        let killed = Instant::now();
        tokio::task::spawn_blocking(move || there.kill()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        enough.cancel();
        let mut slowest = vec![];
        for asked in asking {
            let after = |(begun, ended): &(Instant, Instant)| Answered {
                after_kill: ended.saturating_duration_since(killed.max(*begun)),
                took: *ended - *begun,
            };
            slowest.extend(asked.await.unwrap().iter().map(after).max());
        }
        println!("slowest answers {slowest:?}");
        assert!(slowest.iter().all(|answer| answer.after_kill < ANSWERED_AFTER_KILL), "{slowest:?}");
        tally.survived(1);
    }
}

/// Asks again and again; every answer is a good one. Says when each was asked for and came.
async fn ask_until(client: reqwest::Client, url: String, enough: CancellationToken) -> Vec<(Instant, Instant)> {
    let mut answers = vec![];
    while !enough.is_cancelled() {
        let begun = Instant::now();
        let answer = client.get(&url).send().await.expect("the process that is asked lives");
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
        answers.push((begun, Instant::now()));
        tokio::time::sleep(Duration::from_millis(50)).await; // the calls are the question, not how many this machine bears
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_network_between_modules_costs_no_word_of_a_live_call() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let mut tally = Tally::of("F14", times(3));
    let mut calls = long_calls().into_iter().cycle().zip(0..);
    while !tally.is_whole() {
        // All of them are there before anybody speaks: starting one keeps this task from the others' calls.
        let mut pairs = vec![];
        for (call, n) in calls.by_ref().take(tally.left().div_ceil(DEATHS.len()).min(PAIRS)) {
            let folder = tempfile::tempdir().unwrap();
            let there = host(&folder.path().join("a"), "audio", "http://127.0.0.1:0");
            let wire = Wire::to(there.grpc.as_deref().expect("it says where it serves")).await;
            let server = front(&folder.path().join("f"), "audio", &wire.http(), "routed", "100");
            pairs.push((server, there, wire, call, n, folder));
        }
        let speaking = pairs.iter().map(|(server, _, wire, call, n, _)| speak_while_the_network_dies(server, wire, call.clone(), *n));
        tally.survived(join_all(speaking).await.into_iter().sum());
    }
}

/// Again and again, at moments of the nth call's own, until that is over. Says how often it was.
async fn speak_while_the_network_dies(server: &Server, wire: &Wire, call: DemoCall, n: u64) -> usize {
    let place = wire.http();
    let mut moments = StdRng::seed_from_u64(SEED + n);
    let mut cuts = 0;
    let playing = play(vec![call], &server.http);
    let cutting = async {
        for (deaf, mute) in DEATHS.into_iter().cycle() {
            until_streams_are_at(server, &place).await;
            tokio::time::sleep(Duration::from_millis(moments.random_range(500..4000))).await;
            let before = server.log().len();
            wire.becomes(Weather { deaf, mute, ..Weather::default() });
            let cut = Instant::now();
            until_streams_are_elsewhere(server, before, REOPENED_AFTER_CUT).await;
            println!("deaf {deaf} mute {mute}: reopened after {:?}", cut.elapsed());
            cuts += 1;
            wire.becomes(Weather::default());
        }
    };
    let played = tokio::select! { played = playing => played, () = cutting => unreachable!("it cuts for ever") };
    wire.becomes(Weather::default());
    let (wrong, of) = check(server, &played).await;
    println!("{cuts} cuts: {wrong} word errors of {of}");
    assert!(wrong * 100 <= of * 8, "{wrong} word errors in {of} words");
    cuts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_and_uneven_network_between_modules_changes_neither_words_nor_order() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let there = host(&folder.path().join("a"), "audio", "http://127.0.0.1:0");
    let wire = Wire::to(there.grpc.as_deref().expect("it says where it serves")).await;
    let server = front(&folder.path().join("f"), "audio", &wire.http(), "remote", "100");
    // There and back 200 ms, give or take 50; one piece in a hundred as late as if it had to be sent again.
    let ms = Duration::from_millis;
    wire.becomes(Weather { late: ms(75), uneven: ms(50), lost: ms(200), ..Weather::default() });
    let mut tally = Tally::of("F15", times(1));
    while !tally.is_whole() {
        let calls: Vec<DemoCall> = demo_calls().into_iter().filter(|call| call.script.duration_s < 50.0).collect();
        let played = play(calls, &server.http).await;
        let (wrong, of) = check(&server, &played).await;
        println!("late: {wrong} word errors of {of}");
        assert!(wrong * 100 <= of * 8, "{wrong} word errors in {of} words");
        tally.survived(played.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_connection_is_dead_gives_its_places_back_and_loses_no_word() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[], &[]);
    let wire = Wire::to(&server.http).await;
    let mut moments = StdRng::seed_from_u64(SEED);
    let mut tally = Tally::of("F19", times(1));
    while !tally.is_whole() {
        let call = demo_calls().into_iter().min_by_key(|call| call.script.duration_s as u64).expect("calls are bundled");
        let callers = tally.left().min(CALLERS);
        let places = (2 * callers) as f64;
        let url = wire.http();
        let playing = play(vec![call; callers], &url);
        let cutting = async {
            eventually("all channels are heard", Duration::from_secs(10), async || (server.metric(PLACES).await == places).then_some(()))
                .await;
            tokio::time::sleep(Duration::from_millis(moments.random_range(5_000..15_000))).await;
            wire.becomes(Weather { deaf: true, mute: true, ..Weather::default() });
            let cut = Instant::now();
            eventually("their places are free", PLACES_BACK, async || (server.metric(PLACES).await == 0.0).then_some(())).await;
            println!("{places} places free after {:?}", cut.elapsed());
            wire.becomes(Weather::default());
        };
        let (played, ()) = tokio::join!(playing, cutting);
        for (call, id, _) in &played {
            // What was told while nobody heard it stands in the record all the same.
            for channel in 0..2u8 {
                let heard = recorded_text(&server, id, channel.into()).await;
                let (wrong, of) = words::errors(&script_text(call, channel), &heard);
                assert!(wrong * 100 <= of * 8, "channel {channel}: {wrong} errors in {of} words: {heard}");
            }
            let rows = all(&server, &format!("/v1/conversations/{id}/utterances")).await;
            assert!(rows.iter().all(|row| row["kind"] == "speech"), "there is a gap: {rows:?}");
        }
        tally.survived(callers);
    }
}
