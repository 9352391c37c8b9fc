//! `quickcomm completions SHELL`

use clap::{Args, CommandFactory};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Options {
    shell: clap_complete::Shell,
}

pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    clap_complete::generate(options.shell, &mut super::Arguments::command(), "quickcomm", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
