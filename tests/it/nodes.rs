//! The demo calls through processes that share one Redis and one PostgreSQL and nothing else: callers at a process that has no record, the
//! worker beside the models, and each of them killed in mid-call.

use crate::{
    calls::{all, play},
    split::Split,
    support::{Server, demo_calls, eventually, feed::Reader, get, ground::Ground, models, script_text, texts, words},
};
use quickcomm::{calls::DemoCall, cli::demo::speak, client::ServerMessage};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// That a call stands in the record once and whole: its words, no gap, no overlap, safe to its last sample, and what was understood of each
/// utterance once. Says how many words were wrong, of how many.
pub async fn check_whole(ground: &Ground, api: &str, call: &DemoCall, id: &str) -> (usize, usize) {
    let (mut wrong, mut of) = (0, 0);
    for channel in 0..call.channels.len() {
        let rows = format!("FROM segments WHERE conversation_id = '{id}' AND channel = {channel}");
        let heard = ground.sql(&format!("SELECT string_agg(text, ' ' ORDER BY start_pos) {rows} AND kind = 'speech'"));
        let (errors, reference) = words::errors(&script_text(call, channel as u8), &heard);
        (wrong, of) = (wrong + errors, of + reference);
        assert_eq!(ground.sql(&format!("SELECT count(*) {rows} AND kind <> 'speech'")), "0", "{id}: a gap in channel {channel}");
        let overlaps = format!("SELECT count(*) FROM (SELECT start_pos < lag(end_pos) OVER (ORDER BY seq) AS over {rows}) AS s WHERE over");
        assert_eq!(ground.sql(&overlaps), "0", "{id}: segments of channel {channel} overlap");
        let safe = ground.sql(&format!("SELECT safe_pos FROM channels WHERE conversation_id = '{id}' AND channel = {channel}"));
        let samples = call.channels[channel].len() / call.encoding.bytes_per_sample();
        assert_eq!(safe, samples.to_string(), "{id}: channel {channel} is not committed to its end");
    }
    let said = all(api, &format!("/v1/conversations/{id}/utterances")).await;
    let spoken: BTreeSet<&str> = said.iter().filter_map(|u| u["id"].as_str()).collect();
    assert_eq!(spoken.len(), said.len(), "an utterance stands twice");
    eventually("every utterance has its insights, once", Duration::from_secs(60), async || {
        let insights = get(api, &format!("/v1/conversations/{id}/insights")).await["data"].as_array()?.clone();
        let of: Vec<_> = insights.iter().filter_map(|i| Some((i["utterance_id"].as_str()?, i["task"].as_str()?))).collect();
        let once: BTreeSet<_> = of.iter().copied().collect();
        assert_eq!(once.len(), of.len(), "an insight stands twice");
        (spoken.len() * 2 == of.len() && of.iter().all(|(utterance, _)| spoken.contains(utterance))).then_some(())
    })
    .await;
    (wrong, of)
}

#[tokio::test(flavor = "multi_thread")]
async fn split_runs_on_redis_and_postgres() {
    let (Some(_), Some(ground)) = (models(), Ground::lay()) else { return };
    let mut split = Split::start_with(&ground.path("data"), &[], &ground.env(&[]));
    let front = split.front();
    split.wait_for("api", "ready");
    let calls: Vec<_> = demo_calls().into_iter().take(2).collect();
    let (mut wrong, mut of) = (0, 0);
    for (call, id, events) in play(calls, &front).await {
        let whole = check_whole(&ground, &front, &call, &id).await;
        (wrong, of) = (wrong + whole.0, of + whole.1);
        let told: usize = texts(&events, call.channels.len()).iter().map(|text| text.split(' ').count()).sum();
        assert!(told > 50, "{id}: the caller was told {told} words");
    }
    assert!(wrong * 100 <= of * 6, "{wrong} word errors in {of} words");
    assert_eq!(split.interrupt(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_a_process_without_a_record_outlives_the_death_of_every_role() {
    let (Some(_), Some(ground)) = (models(), Ground::lay()) else { return };
    let mut hears = ground.serve("hears", "audio", &[("api", &["keeps"])]);
    let mut understands = ground.serve("understands", "inference", &[("api", &["keeps"])]);
    let mut keeps = ground.serve("keeps", "api", &[("audio", &["hears"]), ("inference", &["understands"])]);
    let call = demo_calls().into_iter().max_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (id, mut events) = speak(&call, &hears.http, None).await.unwrap();
    // In the middle of an utterance each, and far enough apart for the one before to be whole again.
    let mut victims: Vec<(usize, &mut Server)> = vec![(2, &mut hears), (5, &mut understands), (8, &mut keeps)];
    let (mut finals, mut ended) = (0, None);
    while let Some(event) = events.recv().await {
        match event.expect("the call goes on").message {
            ServerMessage::Final(_) => finals += 1,
            ServerMessage::Partial { .. } if victims.first().is_some_and(|(after, _)| finals >= *after) => {
                let (_, victim) = victims.remove(0);
                tokio::task::block_in_place(|| victim.kill_and_restart());
            }
            ServerMessage::Ended { state, .. } => ended = Some(state),
            _ => {}
        }
    }
    assert!(victims.is_empty(), "{} processes were not killed in {finals} finals", victims.len());
    drop(victims);
    assert_eq!(ended.as_deref(), Some("complete"));
    let (wrong, of) = check_whole(&ground, &keeps.http, &call, &id.to_string()).await;
    assert!(wrong * 100 <= of * 8, "{wrong} word errors in {of} words");
    for server in [hears, understands, keeps] {
        assert!(server.stop(), "SIGTERM did not end in exit code 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_shows_a_call_live_and_takes_over_the_readers_of_one_that_died() {
    let (Some(_), Some(ground)) = (models(), Ground::lay()) else { return };
    let works = ground.serve("works", "audio,inference", &[("api", &["left", "right"])]);
    let api = |name: &str| ground.serve(name, "api", &[("audio", &["works"]), ("inference", &["works"])]);
    let (left, mut right) = (api("left"), api("right"));
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (id, mut events) = speak(&call, &left.http, None).await.unwrap();
    let id = id.to_string();
    let speaking = tokio::spawn(async move {
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event.expect("the call goes on").message);
        }
        last
    });

    // Heard at the left node, shown at the right one, as it is said.
    let mut reader = Reader::of(&id);
    assert!(!reader.connect(&right.http).await, "there was nothing to resume");
    while reader.utterances.len() < 2 || reader.insights.is_empty() || reader.partials < 3 {
        reader.hear().await.expect("the node lives");
    }
    // A reader who lost only its connection goes on by number.
    let (before, snapshots) = (reader.utterances.len(), reader.snapshots);
    reader.hang_up();
    eventually("more was said meanwhile", Duration::from_secs(30), async || {
        (all(&right, &format!("/v1/conversations/{id}/utterances")).await.len() > before).then_some(())
    })
    .await;
    assert!(reader.connect(&right.http).await, "its events were kept");
    while reader.utterances.len() == before {
        reader.hear().await.expect("the node lives");
    }
    assert_eq!(reader.snapshots, snapshots);
    // One whose node died gets the whole picture from the other, whose numbers are its own.
    right.kill();
    while reader.hear().await.is_some() {}
    let shown = reader.utterances.clone();
    assert!(!reader.connect(&left.http).await, "another node, other numbers");
    assert!(shown.iter().all(|(id, text)| reader.utterances.get(id) == Some(text)), "what was shown stays as it was");
    while reader.state == "live" {
        reader.hear().await.expect("the node lives");
    }
    let ended = speaking.await.unwrap();
    assert!(matches!(ended, Some(ServerMessage::Ended { .. })), "{ended:?}");
    check_whole(&ground, &left.http, &call, &id).await;
    let (said, understood) = (reader.utterances.len(), 2 * reader.utterances.len());
    while reader.insights.len() < understood {
        reader.hear().await.expect("the node lives");
    }
    let rows = all(&left, &format!("/v1/conversations/{id}/utterances")).await;
    let recorded: BTreeMap<String, String> =
        rows.iter().map(|u| (u["id"].as_str().unwrap().to_owned(), u["text"].as_str().unwrap().to_owned())).collect();
    assert_eq!((said, &reader.utterances), (rows.len(), &recorded), "the screen shows what the record has");
    for server in [left, works] {
        assert!(server.stop(), "SIGTERM did not end in exit code 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_find_each_other_by_the_registry() {
    let (Some(_), Some(ground)) = (models(), Ground::lay()) else { return };
    let front = ground.serve_found("front", "api,audio", &["inference"]);
    let ready = async || reqwest::get(format!("{}/readyz", front.admin)).await.unwrap();
    let answer = ready().await;
    assert_eq!(answer.status(), 503, "nobody understands yet");
    let said = answer.text().await.unwrap();
    assert!(said.contains("nobody is known who hosts inference"), "{said}");
    let mut there = ground.serve_found("there", "inference", &["api"]);
    let until_ready = async |what: &str, status: u16| {
        eventually(what, Duration::from_secs(20), async || (ready().await.status() == status).then_some(())).await;
    };
    until_ready("it is found", 200).await;
    let call = demo_calls().into_iter().min_by(|a, b| a.script.duration_s.total_cmp(&b.script.duration_s)).unwrap();
    let (call, id, _) = play(vec![call], &front.http).await.remove(0);
    check_whole(&ground, &front.http, &call, &id).await; // what was said here was understood there

    there.kill();
    until_ready("it is missed", 503).await;
    let route = async || {
        let topology = front.get("/v1/admin/topology").await;
        topology["routes"].as_array().unwrap().iter().find(|route| route["module"] == "inference").unwrap().clone()
    };
    let lost = eventually("its lease ends", Duration::from_secs(20), async || route().await["lost"].get(0).cloned()).await;
    assert_eq!((&lost["name"], &lost["why"]), (&ground.socket("there").into(), &"its lease ended".into()));
    assert_eq!(route().await["targets"], serde_json::json!([]));
    there = ground.serve_found("there", "inference", &["api"]);
    until_ready("it is found again", 200).await;
    assert_eq!(route().await["targets"][0]["source"], "registry");
    assert!(there.stop(), "SIGTERM did not end in exit code 0");
    let lost = eventually("it has left", Duration::from_secs(20), async || route().await["lost"].get(0).cloned()).await;
    assert_eq!(lost["why"], "it left");
    assert!(front.stop());
}
