//! Labels and prompts that change while people speak: their sound is not touched.

use crate::{
    calls::{all, play},
    support::{Server, demo_calls, eventually, models, script_text, texts, words},
};
use std::{fs, path::Path, time::Duration};

const CHANGES: u32 = 100;
const TAKEN: &str = "quickcomm_inference_definitions_read_total{outcome=\"taken\"}";

fn put(folder: &Path, version: u32) {
    let labels = include_str!("../../modules/inference/labels/intent.toml").replacen("version = 1", &format!("version = {version}"), 1);
    let prompt = format!("version = {version}\nsystem = 'Label this turn. {{labels}}'");
    // Every tenth time the classifier has to learn as well.
    let (name, text) = if version.is_multiple_of(10) { ("intent.toml", labels) } else { ("turn.toml", prompt) };
    fs::write(folder.join(".draft"), text).unwrap();
    fs::rename(folder.join(".draft"), folder.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_changes_of_labels_and_prompts_leave_no_gap_in_a_live_call() {
    if models().is_none() {
        return;
    }
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[], &[("QUICKCOMM_INFERENCE__DEFINITIONS", folder.path().to_str().unwrap())]);
    let changing = async {
        for version in 2..CHANGES + 2 {
            put(folder.path(), version);
            let changes = f64::from(version - 1);
            eventually("a change is in force", Duration::from_secs(20), async || (server.metric(TAKEN).await >= changes).then_some(()))
                .await;
        }
    };
    let calls = demo_calls().into_iter().take(2).collect();
    let (played, ()) = tokio::join!(play(calls, &server.http), changing);
    for (call, id, events) in &played {
        let rows = all(&server, &format!("/v1/conversations/{id}/utterances")).await;
        assert!(rows.iter().all(|row| row["kind"] == "speech"), "a gap in {}: {rows:?}", call.script.title);
        for (channel, told) in texts(events, call.channels.len()).iter().enumerate() {
            let (errors, of) = words::errors(&script_text(call, channel as u8), told);
            assert!(errors * 100 <= of * 8 + 100, "{}: {errors} errors in {of} words", call.script.title);
        }
    }
    assert_eq!(server.metric(TAKEN).await, f64::from(CHANGES), "each was taken once");
    // A broken one is told where the operator looks.
    fs::write(folder.path().join("turn.toml"), "version = 500").unwrap();
    let why = eventually("the status tells of it", Duration::from_secs(20), async || {
        server.get("/v1/admin/status").await["tiers"][0]["stale"].as_str().map(str::to_owned)
    })
    .await;
    assert!(why.contains("turn.toml") && why.contains("system") && why.contains("stays in force"), "{why}");
}
