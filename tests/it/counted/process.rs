//! A process of the product whose engine counts: this file of tests, started again as a child.

use super::sound;
use clap::Parser;
use quickcomm::cli::serve;
use std::{env, process::Command};

/// What the child was asked, as a JSON list of arguments.
const ASKED: &str = "COUNTING_PROCESS";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: serve::Options,
}

/// `quickcomm`, but for its engine: takes `serve` and its options.
pub fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(env::current_exe().expect("a test has a file"));
    command.args(["--ignored", "--exact", "counted::process::a_process_that_hears_by_counting", "--nocapture", "--test-threads", "1"]);
    command.env(ASKED, serde_json::to_string(arguments).expect("texts are JSON"));
    command
}

/// No test: what journeys start as a child, and kill. The rest of it is what `main` runs.
#[test]
#[ignore = "serves until it is told to stop"]
fn a_process_that_hears_by_counting() {
    let Ok(asked) = env::var(ASKED) else { return };
    let arguments: Vec<String> = serde_json::from_str(&asked).unwrap();
    let line = Line::parse_from(arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).thread_name("api-io").build().unwrap();
    let ended = runtime.block_on(serve::run_on(line.options, sound::engine));
    if let Err(error) = &ended {
        eprintln!("quickcomm: {error:#}");
    }
    // The harness would say on a closed stdout how its test went, and fail.
    std::process::exit(ended.is_err().into());
}
