//! The command line: one file per subcommand. Errors go to stderr with what to do next; 0 is done, 1 failed, 2 was asked wrongly.

pub mod certs;
pub mod completions;
pub mod db;
mod db_move;
pub mod demo;
pub mod dlq;
pub mod route;
pub mod serve;
pub mod split;
pub mod status;
pub mod transcribe;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Real-time conversation intelligence in one binary.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start this process with its roles.
    Serve(serve::Options),
    /// Play the bundled calls into a server, in real time.
    Demo(demo::Options),
    /// Turn a recording into text, here, without a server.
    Transcribe(transcribe::Options),
    /// Show how a running process does.
    Status(status::Options),
    /// Show or turn where a module's calls go.
    Route(route::Options),
    /// Make a development authority and certificates for module calls.
    Certs(certs::Options),
    /// Look at the record's database, or bring its schema up to date.
    Db(db::Options),
    /// Start api, audio and inference as three processes on this machine.
    Split(split::Options),
    /// List, show and replay what could not be worked on.
    Dlq(dlq::Options),
    /// Print shell completions.
    Completions(completions::Options),
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Serve(options) => serve::run(options).await,
        Command::Demo(options) => demo::run(options).await,
        Command::Transcribe(options) => transcribe::run(options).await,
        Command::Status(options) => status::run(options).await,
        Command::Route(options) => route::run(options).await,
        Command::Certs(options) => certs::run(options).await,
        Command::Db(options) => db::run(options).await,
        Command::Split(options) => split::run(options).await,
        Command::Dlq(options) => dlq::run(options).await,
        Command::Completions(options) => completions::run(&options),
    }
}

/// For calls to a QuickComm process.
fn http_client() -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().timeout(std::time::Duration::from_secs(5)).build()?)
}
