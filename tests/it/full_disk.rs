//! A disk that is full (F29): what cannot be kept is refused and not called safe, what is there is read, the page of health says which disk and
//! why, and all goes on by itself when there is room again; also where it is that of the bus's Redis. PostgreSQL's is in
//! `modules/api/src/record/tests/feed.rs`.

use crate::{
    calls::recorded_text,
    support::{Server, eventually, get, models, texts, volume::Volume},
};
use platform::testing::RedisServer;
use quickcomm::{
    cli::demo::speak,
    client::{Event, Events, ServerMessage},
};
use reqwest::Client;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// F29: after there is room.
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);

/// What the page of health says of the record or the recordings: ready or degraded, and why.
async fn health(server: &Server, name: &str) -> (String, String) {
    let topology = get(&server.http, "/v1/admin/topology").await;
    let module = topology["modules"].as_array().unwrap().iter().find(|module| module["name"] == name).cloned().unwrap_or_default();
    let text = |key: &str| module[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

async fn says_full(server: &Server, name: &str) -> String {
    eventually("the page of health says it", Duration::from_secs(30), async || {
        let (state, detail) = health(server, name).await;
        (state == "degraded").then_some(detail)
    })
    .await
}

/// Hears a call until it has said `finals` things.
async fn hear(events: &mut Events, seen: &mut Vec<Event>, finals: usize) {
    let said = |seen: &[Event]| seen.iter().filter(|event| matches!(event.message, ServerMessage::Final(_))).count();
    while said(seen) < finals {
        seen.push(events.recv().await.expect("the call goes on").expect("nothing is wrong with it"));
    }
}

/// How far each channel has been called safe, in samples.
fn safe(seen: &[Event]) -> [u64; 2] {
    let mut safe = [0; 2];
    for event in seen {
        if let ServerMessage::Safe { channel, pos, .. } = event.message {
            safe[usize::from(channel)] = pos;
        }
    }
    safe
}

/// In mid-call the disk is filled, and after a while there is room. `kept_on`: of record and recordings, which are on that disk.
async fn a_call_while_the_disk_is_full(server: &Server, volume: &Volume, kept_on: &[&str]) {
    let call = quickcomm::calls::load("cancellation").unwrap();
    let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
    let id = id.to_string();
    let mut seen = vec![];
    hear(&mut events, &mut seen, 2).await;
    volume.fill();
    for name in kept_on {
        let said = says_full(server, name).await;
        assert!(said.contains("full") || said.contains("No space left on device"), "{name}: {said}");
        println!("{name}: {said}");
    }
    // What is there is read, and of what is said now nothing is called safe that is not there.
    let kept = async || get(&server.http, &format!("/v1/conversations/{id}")).await["utterance_count"].as_u64().unwrap();
    let before = kept().await;
    assert_eq!(get(&server.http, "/v1/conversations").await["data"][0]["id"], id.as_str());
    hear(&mut events, &mut seen, before as usize + 2).await;
    let stands = safe(&seen);
    let (told, recorded) = (texts(&seen, 2), [recorded_text(server, &id, 0).await, recorded_text(server, &id, 1).await]);
    assert!(told.iter().zip(&recorded).all(|(told, recorded)| told.starts_with(recorded.as_str())), "{told:?} {recorded:?}");
    assert!(told.iter().map(String::len).sum::<usize>() > recorded.iter().map(String::len).sum::<usize>(), "text goes on all the same");
    // New callers are refused before they have spoken, and told when to try.
    let refused = speak(&call, &server.http, None).await.expect_err("there is no room for another call").to_string();
    println!("a new caller: {refused}");
    assert!(refused.contains("507") && (refused.contains("full") || refused.contains("No space left")), "{refused}");
    let file = std::fs::read(Path::new(crate::support::ROOT).join("tests/fixtures/calls").join(first_recording())).unwrap();
    let answer = Client::new().post(format!("{}/v1/listen", server.http)).body(file).send().await.unwrap();
    let (status, after, body) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"), answer.text().await.unwrap());
    println!("a file: {status} {body}");
    assert!(status == 507 && after && (body.contains("full") || body.contains("No space left")), "{status} {body}");

    volume.make_room();
    let from = Instant::now();
    eventually("the record takes writes again", RECOVERS_WITHIN, async || (kept().await > before).then_some(())).await;
    println!("stored again after {:?}", from.elapsed());
    for name in kept_on {
        eventually("the page of health says so", RECOVERS_WITHIN * 2, async || (health(server, name).await.0 == "ready").then_some(()))
            .await;
    }
    println!("said so after {:?}", from.elapsed());
    while let Some(event) = events.recv().await {
        seen.push(event.expect("the call goes on to its end"));
    }
    assert!(matches!(seen.last().map(|event| &event.message), Some(ServerMessage::Ended { .. })), "it did not end");
    assert!(safe(&seen).iter().zip(stands).all(|(now, then)| *now > then), "it is safe now");
    for (channel, told) in texts(&seen, 2).iter().enumerate() {
        assert_eq!(recorded_text(server, &id, channel as u64).await, *told, "the record differs from what the caller was told");
    }
    // Nothing is missing in the recording either, and nothing was left of who was refused.
    let recordings = server.data.join("recordings");
    let recorded = std::fs::read(recordings.join(&id).join("0.raw")).unwrap();
    assert!(recorded == call.channels[0], "{} bytes recorded of {}", recorded.len(), call.channels[0].len());
    let folders: Vec<_> = std::fs::read_dir(&recordings).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(folders, [id.as_str()]);
    // A new caller is let in.
    let (_, mut events) = speak(&call, &server.http, None).await.unwrap();
    assert!(events.recv().await.is_some_and(|event| event.is_ok()));
}

fn first_recording() -> String {
    let names = std::fs::read_dir(Path::new(crate::support::ROOT).join("tests/fixtures/calls")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".wav") || name.ends_with(".flac")).min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn f29_a_full_data_folder_refuses_what_it_cannot_keep_and_loses_nothing() {
    let (Some(_), Some(volume)) = (models(), Volume::of(32)) else { return };
    let data = volume.path().join("data");
    let server = Server::start(&data, &[], &[]);
    a_call_while_the_disk_is_full(&server, &volume, &["record", "recordings"]).await;
    assert!(server.stop(), "SIGTERM did not end in exit code 0");
    volume.fill();
    let refused = Server::try_start(&data, &[], &[]).err().expect("it cannot keep anything");
    println!("a start: {refused}");
    assert!(refused.contains("exit 1") && refused.contains(data.to_str().unwrap()), "{refused}");
    assert!(refused.contains("the disk that holds the record is full") && refused.contains("make room"), "{refused}");
    volume.make_room();
    let again = Server::start(&data, &[], &[]);
    assert!(again.stop_and_read_log().is_empty(), "there is nothing to complain about");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_redis_is_told_and_what_was_said_meanwhile_is_stored_when_there_is_room() {
    let (Some(_), Some(volume)) = (models(), Volume::of(16)) else { return };
    let Some(redis) = RedisServer::start(&["--appendonly", "yes", "--dir", volume.path().to_str().unwrap()]) else { return };
    let (folder, url) = (tempfile::tempdir().unwrap(), redis.url());
    let server = Server::start(folder.path(), &[], &[("QUICKCOMM_BUS__KIND", "redis"), ("QUICKCOMM_BUS__URL", &url)]);
    let call = quickcomm::calls::load("cancellation").unwrap();
    let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
    let id = id.to_string();
    let mut seen = vec![];
    hear(&mut events, &mut seen, 2).await;
    volume.fill();
    let said = eventually("the page of health says it", Duration::from_secs(30), async || {
        Some(health(&server, "bus").await.1).filter(|said| said.contains("cannot write its disk"))
    })
    .await;
    println!("bus: {said}");
    for part in ["No space left on device", "make room", "what is said is kept until it is back"] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    volume.make_room();
    eventually("the page of health says so", RECOVERS_WITHIN * 2, async || (health(&server, "bus").await.0 == "ready").then_some(())).await;
    while let Some(event) = events.recv().await {
        seen.push(event.expect("the call goes on to its end"));
    }
    assert!(matches!(seen.last().map(|event| &event.message), Some(ServerMessage::Ended { .. })), "it did not end");
    for (channel, told) in texts(&seen, 2).iter().enumerate() {
        assert_eq!(recorded_text(&server, &id, channel as u64).await, *told, "the record differs from what the caller was told");
    }
    assert!(server.stop(), "SIGTERM did not end in exit code 0");
}
