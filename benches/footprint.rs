//! Start to ready, resident memory part by part, and what an open channel costs.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{
    ROOT, Server,
    load::{Listening, run, tracks},
    median, quick, resident_mb, scratch,
};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().expect("a runtime");
    let runs = if quick() { 1 } else { 5 };
    let (mut ready, mut idle) = (vec![], vec![]);
    for _ in 0..runs {
        let data = scratch();
        let begin = Instant::now();
        let server = Server::start(data.path(), &[]);
        ready.push(begin.elapsed().as_secs_f64());
        // The classifier loads behind the first calls; memory is looked at when it is there.
        while !runtime.block_on(understands(&server.admin)) {}
        idle.push(resident_mb(server.pid()));
    }
    println!("| start to ready, models on disk | {:.2} s (median of {runs}) |", median(&ready));
    println!("| --- | --- |");
    println!("| resident, idle, two workers, VAD, MiniLM | {:.0} MB |", median(&idle));
    parts();
    per_channel(&runtime);
}

async fn understands(admin: &str) -> bool {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let status = reqwest::get(format!("{admin}/admin/status")).await.expect("the admin port answers").text().await.expect("text");
    status.contains("\"tier\":\"local\"")
}

/// The same process, part by part: each line is what loading it added.
fn parts() {
    let models = std::path::Path::new(ROOT).join(".quickcomm/models");
    let me = std::process::id();
    let before = resident_mb(me);
    let runtime = platform::onnx::Runtime::load(&models).expect("`make models` has run");
    let with_runtime = resident_mb(me);
    let settings = |workers| audio::engine::EngineSettings { workers, ..Default::default() };
    let one = audio::engine::Engine::start(&runtime, &models, &settings(1)).expect("the engine starts");
    let with_one = resident_mb(me);
    let two = audio::engine::Engine::start(&runtime, &models, &settings(1)).expect("the engine starts");
    let with_two = resident_mb(me);
    let classifier = inference::Local::start(Some(&runtime), &models, &inference::Settings::default()).expect("the classifier starts");
    runtime_of_its_own().block_on(classifier.ready()).expect("the embedding model loads");
    let with_classifier = resident_mb(me);
    println!("| ONNX Runtime library | {:.0} MB |", with_runtime - before);
    println!("| first worker: recognizer and VAD | {:.0} MB |", with_one - with_runtime);
    println!("| second worker | {:.0} MB |", with_two - with_one);
    println!("| MiniLM, tokenizer, labels | {:.0} MB |", with_classifier - with_two);
    drop((one, two, Arc::new(classifier)));
}

fn runtime_of_its_own() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What one more channel costs: the highest resident memory with many, less that with few, each on a server of its own. Anything that
/// does not depend on their number falls out, such as the recognizers' own buffers, as long as each writes one text at a time: how large they
/// are in company depends on how much waits, and has been seen to take more than all channels together.
fn per_channel(runtime: &tokio::runtime::Runtime) {
    let (few, many) = if quick() { (4, 10) } else { (20, 60) };
    let runs = if quick() { 1 } else { 3 };
    let each: Vec<f64> = (0..runs).map(|_| (runtime.block_on(peak(many)) - runtime.block_on(peak(few))) / (many - few) as f64).collect();
    println!("| per open channel, {few} to {many} at once, 15 s kept | {:.2} MB (median of {runs}) |", median(&each));
}

async fn peak(channels: usize) -> f64 {
    let data = scratch();
    let settings = [("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0"), ("QUICKCOMM_AUDIO__ENGINE__TOGETHER", "1")];
    let server = Server::start(data.path(), &settings);
    while !understands(&server.admin).await {}
    let tracks = tracks(channels, 15.0);
    let mut peak: f64 = 0.0;
    let calls = run(&server.http, server.pid(), &tracks, Listening { endpointing_ms: 250, partial_ms: None });
    tokio::pin!(calls);
    let mut look = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            _ = look.tick() => peak = peak.max(resident_mb(server.pid())),
            _ = &mut calls => return peak,
        }
    }
}
