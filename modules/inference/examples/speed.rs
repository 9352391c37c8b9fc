//! What understanding costs: time per turn with evidence, time to load, memory.
//!
//! `cargo run --release -p inference --example speed`

#![allow(clippy::unwrap_used)] // a measurement that cannot be made should stop

#[path = "../tests/support/mod.rs"]
mod support;

use contracts::{Inference, inference::Task};
use std::{fs, time::Instant};
use support::{ask, calls, cx, local, rules, runtime, turns, utterance};

#[tokio::main]
async fn main() {
    let Some(models) = support::models() else { return eprintln!("SKIPPED: no models on disk") };
    runtime(&models);
    let before = resident_mb();
    let (begun, cpu_before) = (Instant::now(), cpu_ms());
    let Some(local) = local().await else { return };
    println!(
        "loaded and fitted in {} ms ({:.0} ms of CPU); {:.0} MB more resident (the runtime library alone: {before:.0} MB in all)",
        begun.elapsed().as_millis(),
        cpu_ms() - cpu_before,
        resident_mb() - before
    );
    let turns: Vec<_> = calls().into_iter().flat_map(|(_, t)| t).chain(turns()).collect();
    for (tier, inference) in [("local", &local), ("rules", &rules())] {
        let (mut times, mut cpu): (Vec<f64>, Vec<f64>) = (vec![], vec![]);
        // Each once: what was read lately is remembered.
        for (turn, number) in turns.iter().zip(0..) {
            let (begun, cpu_before) = (Instant::now(), cpu_ms());
            inference.analyze(cx(), ask(&Task::ALL, vec![utterance(turn.role(), &turn.text, number)])).await.unwrap();
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            cpu.push(cpu_ms() - cpu_before);
        }
        println!("{tier:<6} both tasks with evidence, {} turns: {}; CPU {}", times.len(), spread(times), spread(cpu));
    }
    println!("{:.0} MB more resident after all turns", resident_mb() - before);
}

fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    format!("p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms", at(0.5), at(0.95), at(0.99))
}

/// CPU time of all threads: on a busy machine the wall clock measures the others too.
fn cpu_ms() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let run = tasks.filter_map(|t| fs::read_to_string(t.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok());
    run.sum::<f64>() / 1e6
}

fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}
