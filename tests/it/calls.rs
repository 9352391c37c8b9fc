//! The demo calls through one process: heard nearly word for word, understood, recorded once, and the record says what the caller was told.

use crate::support::{Server, demo_calls, eventually, get, models, script_text, texts, words};
use quickcomm::{
    calls::DemoCall,
    cli::demo::speak,
    client::{Event, ServerMessage},
};
use serde_json::Value;
use std::time::Duration;

/// Plays calls at the same time, in real time; returns each with its conversation and all its events.
pub async fn play(calls: Vec<DemoCall>, url: &str) -> Vec<(DemoCall, String, Vec<Event>)> {
    let playing = calls.into_iter().map(async |call| {
        let (id, mut events) = speak(&call, url, None).await.expect("the server admits a demo call");
        let mut seen = vec![];
        while let Some(event) = events.recv().await {
            seen.push(event.unwrap_or_else(|e| panic!("{}: {e}", call.script.title)));
        }
        assert!(matches!(seen.last().map(|e| &e.message), Some(ServerMessage::Ended { .. })), "{} did not end", call.script.title);
        (call, id.to_string(), seen)
    });
    futures::future::join_all(playing).await
}

/// All rows of a paged collection; of a server, or of whoever is at an address.
pub async fn all(server: &(impl AsRef<str> + ?Sized), path: &str) -> Vec<Value> {
    let mut rows = vec![];
    let mut cursor = String::new();
    loop {
        let page = get(server.as_ref(), &format!("{path}?limit=200{cursor}")).await;
        rows.extend(page["data"].as_array().expect("a page has data").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return rows,
        }
    }
}

/// The text of a channel as the record has it.
pub async fn recorded_text(server: &Server, id: &str, channel: u64) -> String {
    let rows = all(server, &format!("/v1/conversations/{id}/utterances")).await;
    let mut spoken: Vec<&Value> = rows.iter().filter(|u| u["kind"] == "speech" && u["channel"] == channel).collect();
    spoken.sort_by_key(|u| (u["start_ms"].as_u64(), u["seq"].as_u64()));
    spoken.iter().filter_map(|u| u["text"].as_str()).collect::<Vec<_>>().join(" ")
}

/// The turns of a channel that were over before `until_s` stand in the record of a call that was cut off.
pub async fn check_kept(server: &Server, id: &str, call: &DemoCall, channel: u8, until_s: f64) {
    let said: Vec<_> = call.script.turns.iter().filter(|t| t.channel == channel && t.end_s < until_s).collect();
    let reference = said.iter().map(|t| t.text.as_str()).collect::<Vec<_>>().join(" ");
    let last_ms = said.last().map_or(0.0, |t| t.end_s) * 1000.0 + 300.0;
    let rows = all(server, &format!("/v1/conversations/{id}/utterances")).await;
    let mut heard: Vec<_> = rows.iter().filter(|r| r["kind"] == "speech" && r["channel"] == u64::from(channel)).collect();
    heard.sort_by_key(|r| r["start_ms"].as_u64());
    let heard: Vec<&str> = heard.iter().filter(|r| r["start_ms"].as_f64().unwrap() < last_ms).filter_map(|r| r["text"].as_str()).collect();
    let (errors, of) = words::errors(&reference, &heard.join(" "));
    assert!(errors * 100 <= of * 8 + 100, "channel {channel}: {errors} errors in {of} words: {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_demo_call_is_heard_understood_and_kept() {
    if models().is_none() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[], &[]);
    let played = play(demo_calls(), &server.http).await;
    assert!(played.len() >= 6);

    let (mut wrong, mut of) = (0, 0);
    for (call, id, events) in &played {
        let title = &call.script.title;
        let told = texts(events, call.channels.len());
        for (channel, told) in told.iter().enumerate() {
            let (errors, reference) = words::errors(&script_text(call, channel as u8), told);
            (wrong, of) = (wrong + errors, of + reference);
            assert_eq!(
                recorded_text(&server, id, channel as u64).await,
                *told,
                "{title}: the record differs from what the caller was told"
            );
        }
        check_partials(title, events);
        check_safe(call, events);
        check_row(&server, call, id).await;
    }
    println!("demo calls: {wrong} word errors in {of} reference words");
    assert!(wrong * 100 <= of * 6, "{wrong} word errors in {of} words");
    assert!(server.stop(), "SIGTERM did not end in exit code 0");
}

/// Text appears while people speak, and its stable words stay.
fn check_partials(title: &str, events: &[Event]) {
    let mut stable: std::collections::HashMap<&str, Vec<&str>> = Default::default();
    let mut partials = 0;
    for event in events {
        if let ServerMessage::Partial { utterance, text, stable_words, .. } = &event.message {
            partials += 1;
            let words: Vec<&str> = text.split(' ').take(*stable_words).collect();
            let before = stable.entry(utterance).or_default();
            assert!(words.starts_with(before), "{title}: stable words changed from {before:?} to {words:?}");
            *before = words;
        }
    }
    assert!(partials > 10, "{title}: only {partials} partials");
}

/// By the end everything is safe, and the watermark never went back.
fn check_safe(call: &DemoCall, events: &[Event]) {
    let samples = |channel: usize| (call.channels[channel].len() / call.encoding.bytes_per_sample()) as u64;
    let mut safe = vec![0; call.channels.len()];
    for event in events {
        if let ServerMessage::Safe { channel, pos, .. } = event.message {
            assert!(pos >= safe[usize::from(channel)], "safe went back");
            safe[usize::from(channel)] = pos;
        }
    }
    for (channel, safe) in safe.into_iter().enumerate() {
        assert_eq!(safe, samples(channel), "{}: channel {channel} is not safe to its end", call.script.title);
    }
}

async fn check_row(server: &Server, call: &DemoCall, id: &str) {
    let row = server.get(&format!("/v1/conversations/{id}")).await;
    assert_eq!((&row["state"], &row["title"]), (&"complete".into(), &call.script.title.as_str().into()));
    let seconds = row["duration_ms"].as_f64().unwrap() / 1000.0;
    assert!((seconds - call.script.duration_s).abs() < 2.0, "{seconds} s of {}", call.script.duration_s);

    // Every utterance gets an intent and a sentiment, be it an abstention with its reason.
    let utterances = all(server, &format!("/v1/conversations/{id}/utterances")).await;
    let spoken = utterances.iter().filter(|u| u["kind"] == "speech").count();
    let insights = eventually("every utterance has its insights", Duration::from_secs(20), async || {
        let got = server.get(&format!("/v1/conversations/{id}/insights")).await["data"].as_array()?.clone();
        (got.len() == 2 * spoken).then_some(got)
    })
    .await;
    for insight in &insights {
        let labelled = insight["labels"].as_array().is_some_and(|l| !l.is_empty());
        assert_ne!(labelled, insight["abstained"].is_string(), "{insight}");
        for evidence in insight["evidence"].as_array().unwrap() {
            let said = utterances.iter().find(|u| u["id"] == evidence["utterance_id"]).expect("evidence points at the record");
            assert!(evidence["word_from"].as_u64() < evidence["word_to"].as_u64());
            assert!(evidence["word_to"].as_u64().unwrap() as usize <= said["words"].as_array().unwrap().len());
        }
    }

    let metrics = server.get(&format!("/v1/conversations/{id}/metrics")).await;
    assert_eq!(metrics["channels"].as_array().unwrap().len(), 2);
    for channel in metrics["channels"].as_array().unwrap() {
        assert!(channel["talk_ms"].as_u64().unwrap() > 3_000, "{channel}");
        assert!((60.0..300.0).contains(&channel["words_per_minute"].as_f64().unwrap()), "{channel}");
    }
    // The recording is what was sent, sample for sample in length.
    let sound = reqwest::get(format!("{}/v1/conversations/{id}/recording", server.http)).await.unwrap();
    assert_eq!(sound.status(), 200);
    let bytes = sound.bytes().await.unwrap();
    let samples = call.channels[0].len() / call.encoding.bytes_per_sample();
    assert_eq!(bytes.len(), 44 + samples * 2 * call.channels.len(), "{}", call.script.title);
}
