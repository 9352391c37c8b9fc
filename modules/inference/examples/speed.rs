//! What understanding costs: time per turn with evidence, time to load, memory.
//!
//! `cargo run --release -p inference --example speed`

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
    let begun = Instant::now();
    let Some(local) = local().await else { return };
    println!(
        "loaded and fitted in {} ms; {:.0} MB more resident (the runtime library alone: {before:.0} MB in all)",
        begun.elapsed().as_millis(),
        resident_mb() - before
    );
    let turns: Vec<_> = calls().into_iter().flat_map(|(_, t)| t).chain(turns()).collect();
    for (tier, inference) in [("local", &local), ("rules", &rules())] {
        let mut times: Vec<f64> = vec![];
        for _ in 0..3 {
            for (turn, number) in turns.iter().zip(0..) {
                let begun = Instant::now();
                inference.analyze(cx(), ask(&Task::ALL, vec![utterance(turn.role(), &turn.text, number)])).await.unwrap();
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
        println!(
            "{tier:<6} both tasks with evidence, {} turns: p50 {:.2} ms  p95 {:.2} ms  p99 {:.2} ms  longest {:.2} ms",
            times.len(),
            at(0.5),
            at(0.95),
            at(0.99),
            at(1.0)
        );
    }
    println!("{:.0} MB more resident after all turns", resident_mb() - before);
}

fn resident_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}
