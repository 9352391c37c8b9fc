//! kill -9 in mid-call: with a client that resends nothing is lost or doubled; with one that cannot, the recording is heard to its end.

use crate::{
    calls::{all, check_kept, recorded_text},
    counted::again,
    support::{
        Program, Server, demo_calls, eventually,
        faults::{Tally, times},
        models, script_text,
        wire::{Weather, Wire},
        words,
    },
};
use contracts::audio::Role;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_types::Text};
use quickcomm::{
    calls::DemoCall,
    cli::demo::speak,
    client::{Call, Options, ServerMessage},
};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::task::{JoinSet, block_in_place};

/// At a time, each with a call of its own: `make faults` would wait for hours.
const SERVERS: usize = 6;

#[derive(QueryableByName)]
struct Verdict {
    #[diesel(sql_type = Text)]
    integrity_check: String,
}

/// The file itself, read after the server has gone.
pub fn check_database(data: &Path) {
    let file = std::fs::read_dir(data)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "db" || e == "sqlite"))
        .expect("there is a database in the data folder");
    let mut database = SqliteConnection::establish(&file.to_string_lossy()).unwrap();
    let verdict: Vec<Verdict> = diesel::sql_query("PRAGMA integrity_check").load(&mut database).unwrap();
    assert_eq!(verdict[0].integrity_check, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resends_loses_nothing_when_the_server_is_killed() {
    if models().is_none() {
        return;
    }
    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).expect("a telephony call is bundled");
    let mut tally = Tally::of("F04", times(2));
    let mut finals = [3, 1, 4, 2, 5].into_iter().cycle();
    while !tally.is_whole() {
        let after = finals.by_ref().take(tally.left().div_ceil(2).min(SERVERS));
        let speaking: JoinSet<_> = after.map(|finals| speak_while_it_is_killed(call.clone(), finals)).collect();
        tally.survived(speaking.join_all().await.into_iter().sum());
    }
}

/// Twice, in the middle of an utterance: after a partial that follows so many finals, and so many more. Says how often it was.
async fn speak_while_it_is_killed(call: DemoCall, after: usize) -> usize {
    let data = tempfile::tempdir().unwrap();
    let mut server = block_in_place(|| Server::start(data.path(), &[], &[]));
    let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
    let mut kills = 0;
    let (mut finals, mut welcomes) = (0, 0);
    while let Some(event) = events.recv().await {
        match event.expect("the call goes on").message {
            ServerMessage::Welcome { resumed, .. } => {
                assert_eq!(resumed, welcomes > 0);
                welcomes += 1;
            }
            ServerMessage::Final(_) => finals += 1,
            ServerMessage::Partial { .. } if kills < 2 && finals >= after * (kills + 1) => {
                kills += 1;
                again(&mut server);
            }
            _ => {}
        }
    }
    assert_eq!((kills, welcomes), (2, 3), "the call was not interrupted as planned");

    // What stands in the record is the call: once, in order, without a hole.
    for channel in 0..2u8 {
        let heard = recorded_text(&server, &id.to_string(), channel.into()).await;
        let (errors, of) = words::errors(&script_text(&call, channel), &heard);
        assert!(errors * 100 <= of * 8, "channel {channel}: {errors} errors in {of} words: {heard}");
    }
    let rows = all(&server, &format!("/v1/conversations/{id}/utterances")).await;
    assert!(rows.iter().all(|r| r["kind"] == "speech"), "there is a gap: {rows:?}");
    let mut ids: Vec<_> = rows.iter().map(|r| r["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), rows.len());
    server.kill();
    check_database(data.path());
    kills
}

/// A caller dials again while it stands still, more than once, and all of that reaches it at once when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_for_longer_than_its_callers_wait_loses_no_call() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (id, mut events) = speak(&call, &server.http, None).await.unwrap();
        callers.spawn(async move {
            let (mut welcomes, mut state) = (0, None);
            while let Some(event) = events.recv().await {
                match event.expect("the call goes on").message {
                    ServerMessage::Welcome { .. } => welcomes += 1,
                    ServerMessage::Ended { state: ended, .. } => state = Some(ended),
                    _ => {}
                }
            }
            (id, welcomes, state)
        });
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.signal("-STOP");
    tokio::time::sleep(Duration::from_secs(24)).await;
    server.signal("-CONT");
    while let Some(over) = callers.join_next().await {
        let (id, welcomes, state) = over.unwrap();
        assert_eq!(state.as_deref(), Some("complete"), "{id}");
        assert!(welcomes > 1, "it did not stand still for long enough");
        let rows = all(&server, &format!("/v1/conversations/{id}/utterances")).await;
        assert!(rows.iter().all(|r| r["kind"] == "speech"), "there is a gap: {rows:?}");
        for channel in 0..2u8 {
            let heard = recorded_text(&server, &id.to_string(), channel.into()).await;
            let (errors, of) = words::errors(&script_text(&call, channel), &heard);
            assert!(errors * 100 <= of * 8, "channel {channel}: {errors} errors in {of} words: {heard}");
        }
    }
}

/// It is closed in the record, and the connection is lost before that is told: whoever asked for it has what it wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_did_not_hear_that_its_call_is_over_is_told_when_it_comes_back() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::try_start_as(Program::Counting, data.path(), &[], &[]).unwrap();
    let wire = Wire::to(&server.http).await;
    let options = Options::new(&wire.http(), contracts::Encoding::Linear16, 16_000, &[Role::Agent]);
    let id = options.conversation;
    let (call, mut events) = Call::open(options).await.unwrap();
    call.send(0, vec![0; 32_000].into()).await;
    wire.becomes(Weather { mute: true, ..Weather::default() });
    call.close().await;
    eventually("it is closed", Duration::from_secs(20), async || {
        (server.get(&format!("/v1/conversations/{id}")).await["state"] == "complete").then_some(())
    })
    .await;
    call.cut().await;
    wire.becomes(Weather::default());
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event.expect("nothing is wrong").message);
    }
    assert_eq!(last, Some(ServerMessage::Ended { conversation: id, state: "complete".into() }));
    assert!(server.stop(), "SIGTERM did not end in exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_resend_is_covered_by_the_recording() {
    let (Some(_), Some(python)) = (models(), crate::deepgram_sdk::python()) else { return };
    let call = demo_calls().into_iter().find(|c| c.encoding == contracts::Encoding::Mulaw).expect("a telephony call is bundled");
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[], &[]);
    let raw = crate::deepgram_sdk::interleaved(data.path(), &call);

    let mut sdk = Command::new(python)
        .arg(crate::deepgram_sdk::script())
        .args([server.http.as_str(), &raw.to_string_lossy(), "mulaw", "8000", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = sdk.stdout.take().unwrap();
    let (told, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
    // In mid-utterance: an interim after a few finals, 12 s into the call at least.
    let mut at = 0.0;
    let mut finals = 0;
    while let Some(line) = lines.recv().await {
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        if said["event"] == "Results" && said["text"] != "" {
            finals += usize::from(said["is_final"] == true);
            let end = said["start"].as_f64().unwrap() + said["duration"].as_f64().unwrap();
            if said["is_final"] == false && finals >= 3 && end > 12.0 {
                at = end;
                break;
            }
        }
    }
    assert!(at > 12.0, "no interim came");
    server.kill_and_restart();
    sdk.wait().unwrap();

    let row = eventually("the interrupted call is finished from its recording", Duration::from_secs(30), async || {
        let page = server.get("/v1/conversations?limit=5").await;
        let row = page["data"][0].clone();
        (row["state"] == "abandoned").then_some(row)
    })
    .await;
    let id = row["id"].as_str().unwrap();
    for channel in 0..2 {
        // What was over at least half a second before the kill had been sent, received and flushed.
        check_kept(&server, id, &call, channel, at - 0.5).await;
    }
    server.kill();
    check_database(data.path());
}
