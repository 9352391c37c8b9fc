//! A language model above rules: the rung that is asked about, and the ways in which its server fails.
#![allow(dead_code)] // each of those who use it uses its own part
#![allow(clippy::unwrap_used)] // as in any test

use super::scripted::{Play, Scripted, Seen};
use inference::{LlmSettings, Local, Settings};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde_json::json;
use std::path::Path;

/// More than any answer of the scripted server takes on a busy machine.
pub const PATIENT_MS: u64 = 20_000;

pub fn settings(url: String) -> LlmSettings {
    LlmSettings { url: Some(url), model: "tiny".into(), deadline_ms: PATIENT_MS, summary_ms: PATIENT_MS, ..LlmSettings::default() }
}

pub fn over_rules(llm: LlmSettings) -> Local {
    Local::start(None, Path::new("nowhere"), &Settings { classifier: false, llm, ..Settings::default() }).unwrap()
}

pub fn at(server: &Scripted) -> Local {
    over_rules(settings(server.url()))
}

pub fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

/// What a counter stands at.
pub fn counted(recorder: &PrometheusRecorder, name: &str) -> u64 {
    let text = recorder.handle().render();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

pub type Script = dyn Fn(&Seen) -> Play + Send + Sync;

/// What a server does, whatever it is asked, and under which reason that is counted.
pub fn failures() -> Vec<(&'static str, Box<Script>)> {
    let reply = |status: &'static str, body: &str| {
        let body = body.to_owned();
        Box::new(move |_: &Seen| Play::Reply(status, String::new(), body.clone().into_bytes())) as Box<Script>
    };
    let choose = |choice: serde_json::Value| Box::new(move |_: &Seen| Play::Choose(choice.clone())) as Box<Script>;
    let huge = " ".repeat(10_000_000);
    vec![
        ("limited", reply("429 Too Many Requests", "{}")),
        ("overloaded", reply("503 Service Unavailable", "loading")),
        ("failed", reply("500 Internal Server Error", "")),
        ("refused", reply("401 Unauthorized", "{\"error\":\"bad key\"}")),
        ("refused", reply("404 Not Found", "no such model")),
        ("garbage", reply("307 Temporary Redirect", "")),
        ("garbage", reply("200 OK", "<html>hello</html>")),
        ("garbage", reply("200 OK", "{\"choices\":[]}")),
        ("garbage", reply("200 OK", "{\"choices\":[{\"message\":{},\"finish_reason\":\"stop\"}]}")),
        ("garbage", reply("200 OK", &huge)),
        ("garbage", reply("200 OK", "")),
        ("unreachable", Box::new(|_| Play::Cut)),
        ("truncated", choose(json!({ "message": { "content": "{\"intent\":{\"label\":\"canc" }, "finish_reason": "length" }))),
        ("declined", choose(json!({ "message": { "content": null, "refusal": "I cannot" }, "finish_reason": "stop" }))),
        ("declined", choose(json!({ "message": { "content": "" }, "finish_reason": "content_filter" }))),
        ("unfit", choose(json!({ "message": { "content": "They want to cancel." }, "finish_reason": "stop" }))),
    ]
}
