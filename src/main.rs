//! Arguments, configuration, runtime, exit code.

use clap::Parser;
use quickcomm::cli::{Arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).thread_name("api-io").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quickcomm: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quickcomm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
