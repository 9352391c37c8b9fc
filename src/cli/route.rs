//! `quickcomm route`: where a module's calls go, shown or turned, through the admin port of a running process.

use anyhow::Context;
use clap::Args;
use contracts::route::{Dial, Mode, RouteChange, RouteView, Step, Turn, Turned};
use serde::Deserialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Options {
    /// audio or inference. Without anything to turn, its route is shown.
    module: Option<String>,
    /// Percentage of conversations that go to the endpoints.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    remote: Option<u8>,
    /// Percentage of calls also asked of the other side and compared.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    shadow: Option<u8>,
    /// Here, there, or by percentage.
    #[arg(long, value_parser = ["local", "remote", "routed"])]
    mode: Option<String>,
    /// One stage on: local, shadow, 1, 10, 50, 100, remote.
    #[arg(long, conflicts_with_all = ["remote", "shadow", "mode", "back", "undo"])]
    forward: bool,
    /// One stage back.
    #[arg(long, conflicts_with_all = ["remote", "shadow", "mode", "undo"])]
    back: bool,
    /// As it was before the last change.
    #[arg(long, conflicts_with_all = ["remote", "shadow", "mode"])]
    undo: bool,
    /// Live streams move too, each at the end of an utterance.
    #[arg(long)]
    move_live: bool,
    /// Check and say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Who turns it, told with the change. Default: who is logged in here.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why, told with the change.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Admin address of the process.
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "QUICKCOMM_ADMIN_URL")]
    admin: String,
    /// Print the answer as it came.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn turn(&self) -> anyhow::Result<Option<Turn>> {
        let mode = self.mode.as_deref().map(|name| serde_json::from_value(name.into())).transpose().context("--mode")?;
        let step = match (self.forward, self.back) {
            (true, _) => Some(Step::Forward),
            (_, true) => Some(Step::Back),
            (false, false) => None,
        };
        let turn = Turn {
            mode,
            remote_percent: self.remote,
            shadow_percent: self.shadow,
            step,
            undo: self.undo,
            move_live: self.move_live,
            dry_run: self.dry_run,
            ..Turn::default()
        };
        if turn == Turn::default() {
            anyhow::ensure!(self.by.is_none() && self.reason.is_none(), "nothing to turn: --by and --reason go with a change");
            return Ok(None);
        }
        let user = || std::env::var("USER").ok().filter(|name| !name.trim().is_empty());
        let by = self.by.clone().or_else(user).unwrap_or_else(|| "cli".into());
        let turn = Turn { by: Some(by), reason: self.reason.clone(), ..turn };
        turn.can_be_told()?;
        Ok(Some(turn))
    }
}

#[derive(Deserialize)]
struct Report {
    routes: Vec<RouteView>,
    changes: Vec<RouteChange>,
}

/// Exit code 0: done or shown; 1: refused or not reachable.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let url = format!("{}/admin/routes", options.admin.trim_end_matches('/'));
    let unreachable = || format!("no answer from {url}; is `quickcomm serve` running there, or is its admin port another one (--admin)?");
    let Some(turn) = options.turn()? else {
        let text = super::http_client()?.get(&url).send().await.with_context(unreachable)?.error_for_status()?.text().await?;
        if options.json {
            println!("{text}");
        } else {
            show(&serde_json::from_str(&text).context("reading the routes")?, options.module.as_deref());
        }
        return Ok(ExitCode::SUCCESS);
    };
    let module = options.module.as_deref().context("which module? expected audio or inference before the options")?;
    let body = serde_json::to_vec(&turn)?;
    let request = super::http_client()?.put(format!("{url}/{module}")).header("content-type", "application/json").body(body);
    let answer = request.send().await.with_context(unreachable)?;
    let (status, text) = (answer.status(), answer.text().await?);
    if !status.is_success() {
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        anyhow::bail!("refused: {}", problem["detail"].as_str().unwrap_or(&text));
    }
    if options.json {
        println!("{text}");
    } else {
        let turned: Turned = serde_json::from_str(&text).context("reading the answer")?;
        say(module, &turned);
    }
    Ok(ExitCode::SUCCESS)
}

fn say(module: &str, turned: &Turned) {
    let Turned { from, to, version, dry_run, asked_to_move } = turned;
    match (from == to, dry_run) {
        (true, _) => println!("{module} is {to}, version {version}"),
        (false, true) => println!("{module} would go from {from} to {to}; nothing has changed"),
        (false, false) => println!("{module} went from {from} to {to}, version {version}; --undo goes back"),
    }
    if *asked_to_move > 0 {
        println!("{asked_to_move} live streams move at the end of their utterances");
    }
}

fn show(report: &Report, module: Option<&str>) {
    let chosen = |name: &str| module.is_none_or(|module| module == name);
    for RouteView { module, version, dial, targets, .. } in report.routes.iter().filter(|route| chosen(&route.module)) {
        println!("{module:<10} {}, version {version}", standing(dial));
        for target in targets {
            let seen = &target.recent;
            let state = target.down.as_deref().unwrap_or("answers");
            println!(
                "  {:<40} {:>5} calls, {} failed, p50 {:.1} ms, p99 {:.1} ms, {} streams; {state}",
                target.name, seen.calls, seen.failed, seen.p50_ms, seen.p99_ms, target.streams
            );
        }
    }
    for change in report.changes.iter().filter(|change| chosen(&change.module)).take(10) {
        let at = change.at.format("%H:%M:%S");
        let who = change.who.as_ref().map(|who| format!(" {who}")).unwrap_or_default();
        let reason = change.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        println!("{at} {:<10} {} -> {} by {}{who}{reason}", change.module, change.from, change.to, change.by.name());
    }
}

fn standing(dial: &Dial) -> String {
    match dial.mode {
        Mode::Local => "here".into(),
        Mode::Remote => "at its endpoints".into(),
        Mode::Routed => dial.to_string(),
    }
}
