//! A process that hears live calls is told to stop: they go on elsewhere, and their callers do not notice.

use crate::{
    calls::{all, play, recorded_text},
    support::{Server, demo_calls, eventually, models, room, script_text, texts, words},
};
use quickcomm::client::ServerMessage;
use serde_json::Value;
use std::time::{Duration, Instant};

async fn streams(front: &Server) -> Vec<u64> {
    let report: Value = reqwest::get(format!("{}/admin/routes", front.admin)).await.unwrap().json().await.unwrap();
    let audio = report["routes"].as_array().unwrap().iter().find(|route| route["module"] == "audio").unwrap().clone();
    audio["targets"].as_array().unwrap().iter().map(|target| target["streams"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_call_outlives_the_process_that_heard_it() {
    let _room = room().await;
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let sockets = ["a", "b"].map(|name| format!("unix:{}", path(&format!("{name}.sock")).display()));
    let hears = |n: usize| Server::start(&path(["a", "b"][n]), &["--roles", "audio", "--grpc", &sockets[n]], &[]);
    let mut hosts = [Some(hears(0)), Some(hears(1))];
    let endpoints = format!("[\"{}\", \"{}\"]", sockets[0], sockets[1]);
    let env = [
        ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
        ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", endpoints.as_str()),
        ("QUICKCOMM_MODULES__INFERENCE__MODE", "local"),
        ("QUICKCOMM_LOG__FILTER", "warn,audio=info,fabric=info"),
    ];
    let front = Server::start(&path("f"), &["--roles", "api,inference"], &env);
    let call = demo_calls().into_iter().max_by_key(|call| call.script.duration_s as u64).unwrap();

    let playing = play(vec![call], &front.http);
    let stopping = async {
        let place = eventually("both channels are heard in one place", Duration::from_secs(20), async || {
            streams(&front).await.iter().position(|streams| *streams == 2)
        })
        .await;
        let said = demo_calls().into_iter().max_by_key(|call| call.script.duration_s as u64).unwrap();
        // In the middle of a turn: somebody is speaking.
        let turn = said.script.turns.iter().find(|turn| turn.start_s > 4.0 && turn.end_s - turn.start_s > 2.0).unwrap();
        tokio::time::sleep(Duration::from_secs_f64(turn.start_s + 1.0)).await;
        let host = hosts[place].take().unwrap();
        let begun = Instant::now();
        let log = tokio::task::spawn_blocking(move || host.stop_and_read_log()).await.unwrap();
        println!("the process that heard ended after {:?}; it said {log:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(20), "the hard limit is no later: {:?}", begun.elapsed());
        assert!(!log.contains("did not end in time"), "{log}");
        eventually("both go on in the other place", Duration::from_secs(5), async || (streams(&front).await[1 - place] == 2).then_some(()))
            .await;
    };
    let (played, ()) = tokio::join!(playing, stopping); // `play` fails with the first error its caller is told
    let (call, id, events) = &played[0];
    let told = texts(events, call.channels.len());
    let (mut wrong, mut of) = (0, 0);
    for (channel, told) in told.iter().enumerate() {
        let (errors, reference) = words::errors(&script_text(call, channel as u8), told);
        println!("channel {channel}: {errors} word errors of {reference}: {told}");
        (wrong, of) = (wrong + errors, of + reference);
        assert_eq!(recorded_text(&front, id, channel as u64).await, *told, "the record says something else");
        let safe = events.iter().rev().find_map(|event| match event.message {
            ServerMessage::Safe { channel: of, pos, .. } if usize::from(of) == channel => Some(pos),
            _ => None,
        });
        let samples = (call.channels[channel].len() / call.encoding.bytes_per_sample()) as u64;
        assert_eq!(safe, Some(samples), "channel {channel} is safe to its end");
    }
    // Nothing of one call is lost when every range is there, as it is above and below; what the recognizer mishears is its own.
    assert!(wrong * 100 <= of * 8, "{wrong} word errors in {of} words");
    // The record's commit takes only what continues: a hole would be a row of its own.
    let rows = all(&front, &format!("/v1/conversations/{id}/utterances")).await;
    assert!(rows.iter().all(|row| row["kind"] == "speech"), "{rows:?}");
    let log = front.log();
    assert_eq!(log.matches("stream moves").count(), 2, "{log}");
    assert!(!log.contains("audio session lost"), "leaving is no failure: {log}");
    assert!(front.stop(), "SIGTERM did not end in exit code 0");
}
