//! What the benches share: the server as a process, speech with known ends, callers in real time, and order statistics.

#![allow(dead_code)] // each bench uses its part

pub mod collector;
pub mod house;
pub mod load;
pub mod questions;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A `quickcomm serve` of its own, stopped when dropped.
pub struct Server {
    child: Child,
    pub http: String,
    pub admin: String,
}

impl Server {
    pub fn start(data: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_as(data, &[], env)
    }

    /// With options such as its roles.
    pub fn start_as(data: &Path, options: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_on(None, data, options, env)
    }

    /// On these cores only, as `taskset` takes them.
    pub fn start_on(cores: Option<&str>, data: &Path, options: &[&str], env: &[(&str, &str)]) -> Self {
        let binary = env!("CARGO_BIN_EXE_quickcomm");
        let mut command = match cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", cores, binary]);
                command
            }
            None => Command::new(binary),
        };
        let mut child = command
            .args(["serve", "--json", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(options)
            .envs(env.iter().copied())
            .env("QUICKCOMM_LOG__FILTER", "warn")
            .current_dir(ROOT)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("the binary says where it listens");
        let addresses: serde_json::Value = serde_json::from_str(&line).expect("it says so in JSON; its errors are above");
        let url = |key: &str| format!("http://{}", addresses[key].as_str().unwrap_or_default());
        Self { http: url("http"), admin: url("admin"), child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds a process has used, all threads, from `/proc`.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().filter_map(|n| fields.get(*n)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Resident memory in MB.
pub fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kb = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kb.unwrap_or(0.0) / 1024.0
}

/// The value below which `share` of the samples lie; NaN of nothing.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * share).round() as usize]
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(&mut samples.to_vec(), 0.5)
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A scratch folder under the target directory: on the disk that the product would use, not in memory.
pub fn scratch() -> tempfile::TempDir {
    let target = PathBuf::from(ROOT).join("target");
    tempfile::tempdir_in(target).expect("the target folder is writable")
}

/// `BENCH=quick` makes every bench short: to see that it runs, not to quote it.
pub fn quick() -> bool {
    std::env::var("BENCH").is_ok_and(|v| v == "quick")
}
