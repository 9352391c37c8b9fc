//! `quickcomm status`: what a running process says of itself on its admin port.

use anyhow::Context;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Options {
    /// Admin address of the process.
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "QUICKCOMM_ADMIN_URL")]
    admin: String,
    /// Print the answer as it came.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: ready; 1: not reachable or not ready.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let url = format!("{}/admin/status", options.admin.trim_end_matches('/'));
    let unreachable = || format!("no answer from {url}; is `quickcomm serve` running there, or is its admin port another one (--admin)?");
    let answer = super::http_client()?.get(&url).send().await.with_context(unreachable)?.error_for_status()?;
    let status: serde_json::Value = answer.json().await.context("reading the status")?;
    if options.json {
        println!("{status:#}");
    } else {
        print_for_people(&status);
    }
    let ready = status["modules"].as_array().is_some_and(|modules| modules.iter().all(|m| m["state"] == "ready"));
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_for_people(status: &serde_json::Value) {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    println!("quickcomm {}, up {} s, {} live", text(&status["version"]), status["uptime_s"], status["conversations"]["live"]);
    for module in status["modules"].as_array().into_iter().flatten() {
        println!("  {:<10} {:<7} {:<8} {}", text(&module["name"]), text(&module["mode"]), text(&module["state"]), text(&module["detail"]));
    }
    for tier in status["tiers"].as_array().into_iter().flatten() {
        println!("  {:<10} answered by {:<6} {}", text(&tier["task"]), text(&tier["tier"]), tier["degraded"].as_str().unwrap_or(""));
    }
}
