//! Live calls while their module moves: there and back, again and again.

use crate::{
    calls::{all, play, recorded_text},
    support::{Server, demo_calls, models, room, script_text, texts, words},
};
use quickcomm::{
    calls::{DemoCall, Turn},
    client::{Event, ServerMessage},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// A process that could do everything alone, and knows one other that hosts `module`.
pub fn front(folder: &Path, module: &str, endpoint: &str, mode: &str, percent: &str) -> Server {
    let key = |name: &str| format!("QUICKCOMM_MODULES__{}__{name}", module.to_uppercase());
    let endpoints = format!("[\"{endpoint}\"]");
    let (mode_key, endpoints_key, percent_key) = (key("MODE"), key("ENDPOINTS"), key("ROUTE__REMOTE_PERCENT"));
    let env = [
        (mode_key.as_str(), mode),
        (&endpoints_key, &endpoints),
        (&percent_key, percent),
        ("QUICKCOMM_LOG__FORMAT", "json"),
        ("QUICKCOMM_LOG__FILTER", "warn,audio=info,fabric=info"),
    ];
    Server::start(folder, &[], &env)
}

pub fn host(folder: &Path, module: &str, endpoint: &str) -> Server {
    Server::start(folder, &["--roles", module, "--grpc", endpoint], &[])
}

pub fn lines(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The same call twice in a row: long enough to move often, and twice the words to compare.
fn twice(call: DemoCall) -> DemoCall {
    let DemoCall { mut script, channels, encoding, rate } = call;
    assert!(channels.iter().all(|sound| sound.len() == channels[0].len()), "{}: channels of one length", script.title);
    let again = channels[0].len() as f64 / encoding.bytes_per_sample() as f64 / f64::from(rate.hz());
    let second = script.turns.iter().map(|turn| Turn { start_s: turn.start_s + again, end_s: turn.end_s + again, ..turn.clone() });
    script.turns.extend(second.collect::<Vec<_>>());
    script.duration_s += again;
    DemoCall { channels: channels.into_iter().map(|sound| [&sound[..], &sound[..]].concat().into()).collect(), script, encoding, rate }
}

/// Heard to the end, once and without a hole; says how many words were wrong, and of how many.
pub async fn check(server: &Server, played: &[(DemoCall, String, Vec<Event>)]) -> (usize, usize) {
    let (mut wrong, mut of) = (0, 0);
    for (call, id, events) in played {
        let title = &call.script.title;
        let told = texts(events, call.channels.len());
        for (channel, told) in told.iter().enumerate() {
            let (errors, reference) = words::errors(&script_text(call, channel as u8), told);
            (wrong, of) = (wrong + errors, of + reference);
            assert_eq!(recorded_text(server, id, channel as u64).await, *told, "{title}: the record says something else");
            let safe = events.iter().filter_map(|event| match event.message {
                ServerMessage::Safe { channel: of, pos, .. } if usize::from(of) == channel => Some(pos),
                _ => None,
            });
            let safe: Vec<u64> = safe.collect();
            let samples = (call.channels[channel].len() / call.encoding.bytes_per_sample()) as u64;
            assert!(
                safe.is_sorted() && safe.last() == Some(&samples),
                "{title}: channel {channel} is safe to {:?} of {samples}",
                safe.last()
            );
        }
        // Committed ranges: none is a gap, none begins before the one before has ended.
        let rows = all(server, &format!("/v1/conversations/{id}/utterances")).await;
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        let mut rows: Vec<_> = rows.iter().map(|row| (row["channel"].as_u64(), row["start_ms"].as_u64(), row)).collect();
        rows.sort_by_key(|(channel, start, _)| (*channel, *start));
        for (channel, start, row) in rows {
            assert_eq!(row["kind"], "speech", "{title}: {row}");
            let end = ends.entry(channel.expect("a row has its channel")).or_default();
            assert!(start.is_some_and(|start| start >= *end), "{title}: {row} begins before {end}");
            *end = row["end_ms"].as_u64().expect("a row has its end");
        }
    }
    (wrong, of)
}

/// How often each stream changed its place: every move is told with where it happened, and every opening with where it led.
fn moves(log: &str) -> BTreeMap<(String, u64), usize> {
    let lines = lines(log);
    let of = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
    let opened = of("stream opened");
    let mut places: BTreeMap<(String, u64), (String, usize)> = BTreeMap::new();
    for moved in of("stream moves") {
        let stream = (
            moved["conversation"].as_str().expect("it says which").to_owned(),
            moved["channel"]
                .as_u64()
                .unwrap_or_else(|| moved["channel"].as_str().and_then(|channel| channel.parse().ok()).expect("it says which channel")),
        );
        let opening = opened.iter().find(|line| {
            line["conversation"] == moved["conversation"]
                && line["at_ms"] == moved["at_ms"]
                && line["timestamp"].as_str() >= moved["timestamp"].as_str()
        });
        let place = opening.and_then(|line| line["place"].as_str()).expect("who moves is opened again").to_owned();
        let (at, times) = places.entry(stream).or_insert(("local".into(), 0));
        *times += usize::from(*at != place);
        *at = place;
    }
    places.into_iter().map(|(stream, (_, times))| (stream, times)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_move_there_and_back_every_five_seconds_and_lose_no_word() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("audio.sock").display());
    let there = host(&folder.path().join("a"), "audio", &socket);
    let server = front(&folder.path().join("f"), "audio", &socket, "local", "0");
    // The same calls at the same time where nothing moves: what differs is what moving costs.
    let calm = Server::start(&folder.path().join("c"), &[], &[]);
    let calls: Vec<DemoCall> = demo_calls().into_iter().map(twice).collect();

    let playing = async { tokio::join!(play(calls.clone(), &server.http), play(calls.clone(), &calm.http)) };
    let turning = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        ticks.tick().await;
        for percent in [100, 0].into_iter().cycle() {
            ticks.tick().await;
            server.turn("audio", json!({ "remote_percent": percent, "move_live": true })).await;
        }
    };
    let (moved, still) = tokio::select! { played = playing => played, () = turning => unreachable!("it turns for ever") };
    let ((wrong, of), (wrong_still, _)) = (check(&server, &moved).await, check(&calm, &still).await);
    let moves = moves(&server.log());
    println!("moving: {wrong} word errors, standing still {wrong_still}, of {of}; moves {moves:?}");
    for ((call, _, events), (.., unmoved)) in moved.iter().zip(&still) {
        let channels = call.channels.len();
        for (one, other) in texts(events, channels).iter().zip(texts(unmoved, channels)).filter(|(one, other)| *one != other) {
            println!("{}: on the move\n  {one}\n standing still\n  {other}", call.script.title);
        }
    }
    let streams: usize = moved.iter().map(|(call, ..)| call.channels.len()).sum();
    assert_eq!(moves.len(), streams, "a stream never moved: {moves:?}");
    assert!(moves.values().all(|times| *times >= 5), "a stream has not moved five times: {moves:?}");
    assert!(wrong * 100 <= wrong_still * 100 + of, "{wrong} word errors on the move, {wrong_still} standing still, of {of}");
    for server in [server, there, calm] {
        assert!(server.stop(), "SIGTERM did not end in exit code 0");
    }
}
