//! `quickcomm db move`: from the primary to a standby of it, by four steps, while servers run.

use super::db::Where;
use anyhow::{Context, bail};
use api::{
    record::operate::{self, Plan, Relocated, Stage},
    settings::{DatabaseUrl, RecordSettings},
};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// For a standby that was asked to take over: nobody can hurry it, and going back needs a hand.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    at: Where,
    /// The primary, alone, reached as a superuser.
    #[arg(long, env = "QUICKCOMM_MOVE_FROM", hide_env_values = true)]
    from: String,
    /// A streaming standby of it, alone, reached as a superuser.
    #[arg(long, env = "QUICKCOMM_MOVE_TO", hide_env_values = true)]
    to: String,
    /// The last step to take. `replication` and `reads` change nothing, but `reads` waits for servers to read from the standby where
    /// api.record.replica_url names it, and refuses where that names another; `writes` stops them until the standby has all there is, and opens the
    /// primary again; `promote` moves.
    #[arg(long, value_enum, default_value_t = Until::Reads)]
    until: Until,
    /// Undo a move that was cut off in its pause: the primary takes writes again, unless the standby was promoted, or asked to take over and not
    /// restarted since.
    #[arg(long, conflicts_with = "until")]
    abort: bool,
    /// How long nobody may be able to write, in ms; when it is over before the standby has everything and is asked to take over, all is as before.
    /// How long it then takes to do so is up to the standby.
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pause_at_most: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Until {
    Replication,
    Reads,
    Writes,
    Promote,
}

/// Exit code 0: as far as was asked.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config = match options.at.load() {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let until = match options.until {
        Until::Replication => Stage::Replication,
        Until::Reads => Stage::Reads,
        Until::Writes => Stage::Writes,
        Until::Promote => Stage::Promote,
    };
    let (from, to) = (DatabaseUrl::new(options.from), DatabaseUrl::new(options.to));
    if options.abort {
        operate::abort_relocation(&from, &to, config.api.record.ca.as_ref()).await.context("undoing the move")?;
        println!("{}", if options.at.json { json!({ "aborted": true }).to_string() } else { "Writes go on at the primary.".into() });
        return Ok(ExitCode::SUCCESS);
    }
    if until == Stage::Promote {
        let known = operate::hosts(&config.api.record)?;
        for url in [&from, &to] {
            for host in operate::hosts(&RecordSettings { url: url.clone(), ..RecordSettings::default() })? {
                if !known.contains(&host) {
                    bail!(
                        "api.record.url does not name {host}: servers would not find it; expected both hosts there, separated by a comma"
                    );
                }
            }
        }
    }
    let reads_from = operate::replica_hosts(&config.api.record)?;
    let there = operate::hosts(&RecordSettings { url: to.clone(), ..RecordSettings::default() })?;
    if until >= Stage::Reads && !reads_from.is_empty() && reads_from != there {
        let (reads_from, there) = (reads_from.join(","), there.join(","));
        bail!(
            "api.record.replica_url sends reads to {reads_from}, and the move goes to {there}; expected {there} there, or no replica_url"
        );
    }
    let json = options.at.json;
    let tell = move |passed: operate::Passed| {
        // Whoever reads it may be gone, which is no reason to stop half way.
        let _ = match json {
            true => writeln!(io::stdout(), "{}", json!({ "passed": passed.stage.to_string(), "what": passed.what })),
            false => writeln!(io::stderr(), "{:<12} {}", passed.stage.to_string(), passed.what),
        };
    };
    let plan = Plan {
        until,
        pause: Duration::from_millis(options.pause_at_most),
        takes_over_within: TAKES_OVER_WITHIN,
        reads_there: !reads_from.is_empty(),
        ca: config.api.record.ca.clone(),
        stop: told_to_stop().context("listening for signals")?,
    };
    match operate::relocate(&from, &to, plan, tell).await.context("moving the record")? {
        Relocated::Ready { pause } => {
            let paused_ms = pause.map(|pause| pause.as_millis() as u64);
            match (json, paused_ms) {
                (true, _) => println!("{}", json!({ "moved": false, "pause_ms": paused_ms })),
                (false, Some(ms)) => println!("Ready: nobody could write for {ms} ms, and writes go on where they were."),
                (false, None) => println!("Ready: nothing was changed."),
            }
        }
        Relocated::Moved { pause, rows, checksum } => {
            let ms = pause.as_millis() as u64;
            if json {
                println!("{}", json!({ "moved": true, "pause_ms": ms, "rows": rows, "checksum": checksum }));
            } else {
                println!("Moved: {rows} rows, the same on both, SHA-256 {checksum}; nobody could write for {ms} ms.");
                println!("{AFTERWARDS}");
            }
        }
        Relocated::MovedBefore { segments } => {
            if json {
                println!("{}", json!({ "moved": true, "pause_ms": null, "rows": segments, "checksum": null }));
            } else {
                println!("Moved before: it takes writes already, and has the latest {segments} segments of the old primary.");
                println!("{AFTERWARDS}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

const AFTERWARDS: &str = "The old primary takes no writes any more. Take it out of api.record.url, or make it a standby of the new one; \
                          api.record.replica_url may then name it.";

/// Cancelled when this process is to stop, or its terminal goes. Told a second time it leaves at once.
fn told_to_stop() -> io::Result<CancellationToken> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    // Ends with the process.
    tokio::spawn(async move {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hangup.recv() => {} }
        told.cancel();
        let what = "told to stop: what can be undone is undone; once the standby was asked to take over, the move goes on to its end";
        let _ = writeln!(io::stderr(), "quickcomm: {what}");
        // A terminal that goes may say so twice.
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        let _ = writeln!(io::stderr(), "quickcomm: told twice, leaving at once; the same command again says how far it came");
        std::process::exit(130);
    });
    Ok(stop)
}
