//! `quickcomm db`: the record's database, looked at, brought up to date, and moved from SQLite to PostgreSQL.

use crate::config::Config;
use anyhow::Context;
use api::record::{
    SchemaState,
    operate::{self, Copied, Progress},
};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::{path::PathBuf, process::ExitCode, time::Duration};

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Which steps the schema has had, and which it lacks.
    Status(Where),
    /// Bring the schema up to this release. The release before it may go on writing meanwhile.
    Migrate(Where),
    /// Copy the record from SQLite in the data folder to the PostgreSQL server of api.record.url. Beside a running server it copies what is
    /// there; when that is stopped, the rest, and compares every row.
    Copy(CopyOptions),
    /// Move the record from its PostgreSQL primary to a streaming standby of it, while servers write and read. Name both hosts in api.record.url
    /// before (`postgres://USER:PASSWORD@OLD,NEW/DATABASE`): a running server reads the saved file, and finds the one that takes writes.
    Move(super::db_move::Options),
}

#[derive(Debug, Args)]
struct CopyOptions {
    #[command(flatten)]
    at: Where,
    /// Give up when nobody could write for this long; the record in SQLite is then as it was. In seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pause_at_most: u64,
}

#[derive(Debug, Args)]
pub(super) struct Where {
    /// Configuration file; `api.record.url` says which database. Default: quickcomm.toml, where there is one.
    #[arg(long, env = "QUICKCOMM_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the record, where that is SQLite.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Where {
    pub(super) fn load(&self) -> Result<Config, ExitCode> {
        let mut flags = Map::new();
        if let Some(data) = &self.data {
            flags.insert("data".into(), json!(data));
        }
        Config::load(self.config.as_deref(), Value::Object(flags)).map_err(|error| {
            eprintln!("quickcomm: the configuration is not usable: {error}");
            ExitCode::from(2)
        })
    }
}

/// Exit code 0: done; 3: of `status`, steps are missing; of `copy`, a server still writes.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    match options.step {
        Step::Status(at) => match at.load() {
            Ok(config) => status(config, at.json).await,
            Err(code) => Ok(code),
        },
        Step::Migrate(at) => match at.load() {
            Ok(config) => migrate(config, at.json).await,
            Err(code) => Ok(code),
        },
        Step::Move(options) => super::db_move::run(options).await,
        Step::Copy(CopyOptions { at, pause_at_most }) => match at.load() {
            Ok(config) => copy(config, Duration::from_secs(pause_at_most), at.json).await,
            Err(code) => Ok(code),
        },
    }
}

async fn status(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    let schema = operate::schema(config.data, config.api.record).await?;
    let state = &schema.state;
    if json {
        let SchemaState { applied, pending, newer, fits } = state;
        println!("{}", json!({ "database": schema.database, "applied": applied, "pending": pending, "newer": newer, "fits": fits }));
    } else {
        println!("{}", schema.database);
        state.applied.iter().for_each(|step| println!("  done     {step}"));
        state.pending.iter().for_each(|step| println!("  missing  {step}; `quickcomm db migrate` does it"));
        let and = if state.fits { ", and this one still works" } else { "" };
        state.newer.iter().for_each(|step| println!("  newer    {step}: a later release has been here{and}"));
    }
    Ok(if state.pending.is_empty() && state.fits { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

async fn migrate(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    let ran = operate::migrate(config.data, config.api.record).await.context("bringing the schema up to date")?;
    if json {
        println!("{}", json!({ "ran": ran }));
    } else if ran.is_empty() {
        println!("The schema is up to date.");
    } else {
        ran.iter().for_each(|step| println!("done  {step}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn copy(config: Config, pause: Duration, json: bool) -> anyhow::Result<ExitCode> {
    let tell = |progress: Progress| match progress {
        Progress::Round { conversations, took } => {
            eprintln!("copied {conversations} conversations in {:.1} s beside a running server", took.as_secs_f64())
        }
        Progress::Pause { longest } => eprintln!("nobody writes from here on, for at most {} s", longest.as_secs()),
        Progress::Comparing { conversations } => eprintln!("comparing {conversations} conversations, row by row"),
    };
    let copied = operate::copy(config.data, config.api.record, pause, tell).await.context("copying the record")?;
    match copied {
        Copied::NotYet { expected_pause } => {
            let seconds = expected_pause.as_secs().max(1);
            if json {
                println!("{}", json!({ "equal": false, "expected_pause_s": seconds }));
            } else {
                println!("A server still writes. Stop it and copy again: nobody can write then for about {seconds} s.");
            }
            Ok(ExitCode::from(3))
        }
        Copied::Equal { conversations, rows, checksum, pause } => {
            let pause = pause.as_secs_f64();
            if json {
                println!(
                    "{}",
                    json!({ "equal": true, "conversations": conversations, "rows": rows, "checksum": checksum, "pause_s": pause })
                );
            } else {
                println!("Equal: {conversations} conversations, {rows} rows, SHA-256 {checksum}; nobody could write for {pause:.1} s.");
                println!("The next start with this api.record.url goes on there. The file in the data folder stays as it is.");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
