//! `quickcomm status`: the picture of the topology page as text, from the admin port of a running process.

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode};

#[derive(Debug, Args)]
pub struct Options {
    /// Admin address of the process.
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "QUICKCOMM_ADMIN_URL")]
    admin: String,
    /// Print the answer as it came.
    #[arg(long)]
    json: bool,
}

/// Changes of the dials that are shown.
const CHANGES: usize = 5;

/// Exit code 0: ready; 1: not reachable or not ready.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let url = format!("{}/admin/topology", options.admin.trim_end_matches('/'));
    let unreachable = || format!("no answer from {url}; is `quickcomm serve` running there, or is its admin port another one (--admin)?");
    let answer = super::http_client()?.get(&url).send().await.with_context(unreachable)?.error_for_status()?;
    let topology: Value = answer.json().await.context("reading the topology")?;
    if options.json {
        println!("{topology:#}");
    } else {
        print!("{}", for_people(&topology));
    }
    let ready = all(&topology["modules"]).all(|m| m["state"] == "ready");
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn for_people(topology: &Value) -> String {
    let process = &topology["process"];
    let mut lines =
        format!("quickcomm {}, up {} s, {} live", text(&process["version"]), process["uptime_s"], process["live_conversations"]);
    let memory = process["memory_bytes"]
        .as_f64()
        .map_or("unknown".into(), |_| format!("{}, {} of it no module's", mib(&process["memory_bytes"]), mib(&process["shared_bytes"])));
    let _ = writeln!(
        lines,
        "\ncpu {} of {} cores (machine {}), memory {memory}; figures of the last {} s\n",
        figure(&process["cpu"], 2),
        process["cores"],
        figure(&process["machine_cpu"], 2),
        figure(&process["window_s"], 0)
    );
    lines += topology["bottleneck"]["sentence"].as_str().unwrap_or_default();
    lines += "\n\n";

    let mut modules = Table::new(["module", "runs", "state", "cpu", "loaded", "holds", "wait p99", "refused", "detail"]);
    for module in all(&topology["modules"]) {
        let wait = figure(&module["queue_wait"]["p99_ms"], 1);
        let detail = text(&module["detail"]);
        let memory = &module["memory"];
        let (loaded, holds) = (mib(&memory["loaded_bytes"]), mib(&memory["held_bytes"]));
        let cells = [text(&module["name"]), text(&module["mode"]), text(&module["state"]), figure(&module["cpu"], 2), loaded, holds, wait];
        modules.row(cells.into_iter().chain([module["refused"].to_string(), detail]));
    }
    lines += &modules.print();
    let held = all(&topology["modules"]).filter_map(|m| Some(format!("{}: {}", m["name"].as_str()?, m["memory"]["held"].as_str()?)));
    let held: Vec<String> = held.collect();
    if !held.is_empty() {
        let _ = writeln!(lines, "loaded: measured, by how much the process grew; holds: counted now ({})\n", held.join(", "));
    }

    let mut targets = Table::new([
        "module",
        "target",
        "known from",
        "answers",
        "version",
        "up",
        "breaker",
        "slots",
        "streams",
        "calls",
        "failed",
        "p50 ms",
        "p99 ms",
    ]);
    for route in all(&topology["routes"]) {
        for target in all(&route["targets"]) {
            let recent = &target["recent"];
            let local = target["name"] == "local";
            let version = if local { text(&process["version"]) } else { text(&target["version"]) };
            let answers = target["down"].as_str().map_or("yes", |_| "no").to_owned();
            let measured = |name: &str| if recent["calls"] == 0 { "-".into() } else { figure(&recent[name], 1) };
            let slots = format!("{}/{}", target["calls"], target["slots"]);
            let up = if local { age(&process["uptime_s"]) } else { since(&target["run"]) };
            let known = match (target["source"].as_str(), target["lease_ms"].as_f64()) {
                (Some("registry"), Some(left)) => format!("registry, lease {:.1} s", left / 1000.0),
                (source, _) => source.unwrap_or("-").to_owned(),
            };
            let named = [text(&route["module"]), text(&target["name"]), known, answers, version, up, text(&target["breaker"]), slots];
            let counted = [target["streams"].to_string(), recent["calls"].to_string(), recent["failed"].to_string()];
            targets.row(named.into_iter().chain(counted).chain([measured("p50_ms"), measured("p99_ms")]));
        }
    }
    lines += &targets.print();
    for target in all(&topology["routes"]).flat_map(|route| all(&route["targets"])) {
        if let Some(why) = target["down"].as_str() {
            let _ = writeln!(lines, "{} does not answer: {why}\n", text(&target["name"]));
        }
    }

    for lost in all(&topology["routes"]).flat_map(|route| all(&route["lost"])) {
        let at: String = text(&lost["at"]).chars().skip(11).take(8).collect();
        let _ = writeln!(lines, "{} is asked no more: {} at {at}\n", text(&lost["name"]), text(&lost["why"]));
    }

    let mut hops = Table::new(["hop", "module", "limit ms", "p50 ms", "p99 ms", "count", "over"]);
    for hop in all(&topology["hops"]) {
        let times = [figure(&hop["limit_ms"], 0), figure(&hop["p50_ms"], 1), figure(&hop["p99_ms"], 1)];
        let named = [text(&hop["name"]), text(&hop["module"])];
        hops.row(named.into_iter().chain(times).chain([hop["count"].to_string(), hop["violations"].to_string()]));
    }
    lines += &hops.print();

    let mut tell = Table::new(["changed", "module", "version", "by", "from", "to", "why"]);
    for change in all(&topology["changes"]).take(CHANGES) {
        let at: String = text(&change["at"]).chars().skip(11).take(8).collect();
        let by = [&change["by"], &change["who"]].iter().filter_map(|by| by.as_str()).collect::<Vec<_>>().join(" ");
        let cells = [at, text(&change["module"]), change["version"].to_string(), by, text(&change["from"])];
        tell.row(cells.into_iter().chain([text(&change["to"]), text(&change["reason"])]));
    }
    lines += &tell.print();
    lines
}

fn all(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Small amounts with a decimal.
fn mib(bytes: &Value) -> String {
    match bytes.as_f64().map(|bytes| bytes / 1_048_576.0) {
        None => "-".into(),
        Some(mib @ ..10.0) => format!("{mib:.1} MiB"),
        Some(mib) => format!("{mib:.0} MiB"),
    }
}

/// How long a run has been going on, and whether it is not the first that was met.
fn since(run: &Value) -> String {
    match run["restarts"].as_u64() {
        Some(restarts @ 1..) => format!("{}, restarted {restarts}x", age(&run["up_s"])),
        _ => age(&run["up_s"]),
    }
}

/// Seconds in the largest unit of which there are two.
fn age(seconds: &Value) -> String {
    match seconds.as_u64() {
        None => "-".into(),
        Some(s @ ..120) => format!("{s} s"),
        Some(s @ ..7200) => format!("{} min", s / 60),
        Some(s @ ..172_800) => format!("{} h", s / 3600),
        Some(s) => format!("{} d", s / 86_400),
    }
}

/// What was not measured is a dash.
fn figure(value: &Value, decimals: usize) -> String {
    value.as_f64().map_or("-".into(), |value| format!("{value:.decimals$}"))
}

/// Columns as wide as what stands in them; the last one ends where it ends.
struct Table(Vec<Vec<String>>);

impl Table {
    fn new<const N: usize>(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned).to_vec()])
    }

    fn row(&mut self, cells: impl Iterator<Item = String>) {
        self.0.push(cells.collect());
    }

    /// Nothing without rows.
    fn print(&self) -> String {
        if self.0.len() == 1 {
            return String::new();
        }
        let width = |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.0[0].len()).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_picture_is_aligned_and_says_what_is_not_known() {
        let target = |name: &str, down: Value, run: Value| {
            let known = if name == "local" { json!([null, null]) } else { json!(["registry", 4200]) };
            json!({ "name": name, "source": known[0], "lease_ms": known[1], "down": down, "run": run, "breaker": "closed", "calls": 1, "slots": 256, "streams": 0,
                "recent": { "calls": 0, "failed": 0, "p50_ms": 0.0, "p99_ms": 0.0 } })
        };
        let said = for_people(&json!({
            "process": { "version": "0.1.0", "uptime_s": 7, "live_conversations": 2, "cores": 2, "cpu": null, "machine_cpu": 1.5,
                "memory_bytes": 314_572_800, "shared_bytes": 42_991_616, "window_s": 5.0 },
            "bottleneck": { "sentence": "Nothing can be said yet." },
            "modules": [{ "name": "audio", "mode": "local", "state": "ready", "detail": "serving", "cpu": 0.25, "queue_wait": null, "refused": 3,
                "memory": { "loaded_bytes": 268_435_456, "held_bytes": 943_718, "held": "audio kept" } }],
            "routes": [{ "module": "audio", "targets": [
                target("local", Value::Null, Value::Null),
                target("unix:/x", json!("nobody there"), json!({ "id": "1f", "up_s": 130, "restarts": 2 })),
            ], "lost": [{ "name": "unix:/y", "at": "2026-01-31T12:00:01Z", "why": "its lease ended" }] }],
            "hops": [{ "name": "decode", "module": "audio", "limit_ms": 150.0, "p50_ms": null, "p99_ms": null, "count": 0, "violations": 0 }],
            "changes": [],
        }));
        for line in [
            "cpu - of 2 cores (machine 1.50), memory 300 MiB, 41 MiB of it no module's; figures of the last 5 s",
            "Nothing can be said yet.",
            "module  runs   state  cpu   loaded   holds    wait p99  refused  detail",
            "audio   local  ready  0.25  256 MiB  0.9 MiB  -         3        serving",
            "loaded: measured, by how much the process grew; holds: counted now (audio: audio kept)",
            "audio   local    -                      yes      0.1.0    7 s                  closed   1/256  0        0      0       -       -",
            "unix:/x does not answer: nobody there",
            "audio   unix:/x  registry, lease 4.2 s  no       -        2 min, restarted 2x  closed   1/256  0        0      0       -       -",
            "unix:/y is asked no more: its lease ended at 12:00:01",
            "decode  audio   150       -       -       0      0",
        ] {
            assert!(said.lines().any(|said| said == line), "{line:?} is not in\n{said}");
        }
        assert!(!said.contains("changed"), "an empty table is not shown: {said}");
    }
}
