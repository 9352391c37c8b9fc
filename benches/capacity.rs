//! How many callers one machine holds, through sockets, with everything on: recording, record, classifier.
//!
//! Rule (a): p95 of speech-end to final at most 500 ms at `endpointing=250`. Rule (b), the peers': at most 1 s at 400 ms of silence.
//! With partials, a speaking channel's newest text came in at most 1 s ago at p95. Load generator and server share the cores.
//! `CHANNELS=n` tries that many once; `METRICS_TO=file` keeps what the server said of itself.

mod support;

use support::{
    Server,
    load::{Felt, Listening, run, tracks},
    quantile, quick, scratch,
};

struct Question {
    name: &'static str,
    listening: Listening,
    limit_ms: f64,
    start: usize,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().expect("a runtime");
    let questions = [
        Question {
            name: "(a) with partials",
            listening: Listening { endpointing_ms: 250, partial_ms: Some(250) },
            limit_ms: 500.0,
            start: 40,
        },
        Question { name: "(a) finals only", listening: Listening { endpointing_ms: 250, partial_ms: None }, limit_ms: 500.0, start: 100 },
        Question {
            name: "(b) partials every 500 ms",
            listening: Listening { endpointing_ms: 400, partial_ms: Some(500) },
            limit_ms: 1000.0,
            start: 40,
        },
        Question { name: "(b) finals only", listening: Listening { endpointing_ms: 400, partial_ms: None }, limit_ms: 1000.0, start: 100 },
    ];
    if let Ok(file) = std::env::var("PROFILE_TO") {
        return runtime.block_on(profile(&file));
    }
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    println!("| rule | channels held | final p50 / p95 ms | partial age p95 ms | server / generator CPU, cores |");
    println!("| --- | --- | --- | --- | --- |");
    for question in questions.iter().filter(|q| only.as_ref().is_none_or(|o| q.name.contains(o.as_str()))) {
        runtime.block_on(answer(question));
    }
}

/// Climbs until a rule breaks, then closes in; a step counts as held when two of three runs hold.
async fn answer(question: &Question) {
    let (mut held, mut broken) = (0, usize::MAX);
    let mut best = None;
    let mut channels = question.start;
    if let Some(fixed) = std::env::var("CHANNELS").ok().and_then(|n| n.parse().ok()) {
        return report(question, fixed, &trial(question, fixed).await); // one try says nothing of what is held
    }
    while broken.saturating_sub(held) > 4 && channels > 0 {
        let mut passes = vec![];
        for _ in 0..if quick() { 1 } else { 3 } {
            let felt = trial(question, channels).await;
            report(question, channels, &felt);
            let ok = holds(question, &felt);
            passes.push(ok);
            if ok {
                best = best.filter(|(n, _): &(usize, Felt)| *n >= channels).or(Some((channels, felt)));
            }
            let good = passes.iter().filter(|p| **p).count();
            if good == 2 || passes.len() - good == 2 {
                break;
            }
        }
        let good = passes.iter().filter(|p| **p).count();
        if good * 2 > passes.len() {
            held = channels;
        } else {
            broken = channels;
        }
        channels = if broken == usize::MAX { held + held / 4 } else { (held + broken) / 2 };
    }
    match best {
        Some((_, felt)) => println!(
            "| {} | {held} | {:.0} / {:.0} | {} | {:.2} / {:.2} |",
            question.name,
            felt.final_ms(0.5),
            felt.final_ms(0.95),
            if felt.partial_age.is_empty() { "-".into() } else { format!("{:.0}", felt.age_ms(0.95)) },
            felt.server_cpu / felt.wall,
            felt.generator_cpu / felt.wall
        ),
        None => println!("| {} | 0 | - | - | - |", question.name),
    }
}

fn report(question: &Question, channels: usize, felt: &Felt) {
    let p95 = |samples: &[f64]| quantile(&mut samples.to_vec(), 0.95) * 1000.0;
    eprintln!(
        "  {} x {channels}: final p50 {:.0} p95 {:.0} ms, newest text came {:.0} and is of {:.0} ms ago at p95, {} of {} turns missing, {} refused, cpu {:.2} + {:.2}, speech {:.0} %",
        question.name,
        felt.final_ms(0.5),
        felt.final_ms(0.95),
        p95(&felt.partial_age),
        p95(&felt.text_age),
        felt.missing,
        felt.turns,
        felt.refused,
        felt.server_cpu / felt.wall,
        felt.generator_cpu / felt.wall,
        felt.speech_share * 100.0
    );
}

fn holds(question: &Question, felt: &Felt) -> bool {
    let partials = felt.partial_age.is_empty() || felt.age_ms(0.95) <= 1000.0;
    // A turn that was never heard must not make the others look good.
    felt.refused == 0 && felt.missing * 50 <= felt.turns && felt.final_ms(0.95) <= question.limit_ms && partials
}

async fn trial(question: &Question, channels: usize) -> Felt {
    let data = scratch();
    // Admission would refuse near the edge; the edge is what is asked for.
    let server = Server::start(data.path(), &[("QUICKCOMM_AUDIO__ENGINE__MAX_LOAD", "1.0")]);
    let tracks = tracks(channels, if quick() { 12.0 } else { 30.0 });
    let felt = run(&server.http, server.pid(), &tracks, question.listening).await;
    if let Ok(file) = std::env::var("METRICS_TO") {
        let metrics = reqwest::get(format!("{}/metrics", server.admin)).await.expect("the admin port answers");
        std::fs::write(file, metrics.bytes().await.expect("whole")).expect("the file can be written");
    }
    felt
}

/// A load within capacity, with `perf` looking at the server.
async fn profile(file: &str) {
    let data = scratch();
    let server = Server::start(data.path(), &[]);
    let tracks = tracks(24, 30.0);
    let mut perf = std::process::Command::new("perf")
        .args([
            "record",
            "--quiet",
            "--event",
            "cpu-clock",
            "--freq",
            "199",
            "--call-graph",
            "fp",
            "--output",
            file,
            "--pid",
            &server.pid().to_string(),
        ])
        .spawn()
        .expect("perf is installed");
    let felt = run(&server.http, server.pid(), &tracks, Listening { endpointing_ms: 250, partial_ms: Some(250) }).await;
    println!("24 channels with partials: p95 of finals {:.0} ms, server {:.2} cores", felt.final_ms(0.95), felt.server_cpu / felt.wall);
    drop(server); // perf ends with the process it looks at
    perf.wait().expect("perf is ours");
}
