//! `quickcomm serve`: this process with its roles, until it is told to stop.

use crate::{
    assembly::StartEngine,
    config::{Config, Role},
};
use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

#[derive(Debug, Args)]
pub struct Options {
    /// Configuration file. Default: quickcomm.toml, where there is one.
    #[arg(long, env = "QUICKCOMM_CONFIG")]
    config: Option<PathBuf>,
    /// What this process hosts.
    #[arg(long, value_delimiter = ',')]
    roles: Vec<Role>,
    /// API, dashboard and callers' sockets; port 0 takes a free one.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Serve this process's modules to others: https://IP:PORT, http://127.0.0.1:PORT or unix:/PATH.
    #[arg(long)]
    grpc: Option<String>,
    /// Health and metrics; port 0 takes a free one.
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Folder of the record and the recordings.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print the configuration as it would be used, without secrets, and exit.
    #[arg(long)]
    print_config: bool,
    /// Say where it listens as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Stop when no other process holds a lock on this file any more: `split` ties its processes to itself by one, however it ends.
    #[arg(long, value_name = "FILE")]
    while_locked: Option<PathBuf>,
}

impl Options {
    fn flags(&self) -> Value {
        let mut flags = Map::new();
        if !self.roles.is_empty() {
            flags.insert("roles".into(), json!(self.roles));
        }
        if let Some(addr) = self.http {
            flags.insert("http".into(), json!({ "addr": addr }));
        }
        if let Some(listen) = &self.grpc {
            flags.insert("grpc".into(), json!({ "listen": listen }));
        }
        if let Some(addr) = self.admin {
            flags.insert("admin".into(), json!({ "addr": addr }));
        }
        if let Some(data) = &self.data {
            flags.insert("data".into(), json!(data));
        }
        Value::Object(flags)
    }
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    run_on(options, crate::assembly::engine_on_models).await
}

/// The same with another engine.
pub async fn run_on(options: Options, start_engine: StartEngine) -> anyhow::Result<ExitCode> {
    let config = match Config::load(options.config.as_deref(), options.flags()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("quickcomm: the configuration is not usable: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    if options.print_config {
        print!("{}", toml::to_string_pretty(&config).context("printing the configuration")?);
        return Ok(ExitCode::SUCCESS);
    }
    let metrics = platform::telemetry::start(&config.log)?;
    platform::trace::start(&config.otlp, &config.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect::<Vec<_>>().join(","))
        .context("otlp.endpoint")?;
    let stop = CancellationToken::new();
    if let Some(file) = &options.while_locked {
        stop_when_unlocked(file, stop.clone())?;
    }
    let told = stop.clone();
    let json = options.json;
    let announce = move |addresses: &crate::Addresses| say_where(addresses, json);
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
        for first in [true, false] {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if !first {
                eprintln!("quickcomm: told twice, leaving at once");
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    let ended = crate::run(config, start_engine, metrics, stop, announce).await;
    let _ = tokio::task::spawn_blocking(platform::trace::stop).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// The kernel gives a dead process's locks away, so nobody has to say goodbye.
fn stop_when_unlocked(path: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("--while-locked {}", path.display()))?;
    // A thread of its own: it waits as long as the process lives, and a runtime would wait for it in turn.
    std::thread::Builder::new().name("api-parent".into()).spawn(move || {
        match file.lock_shared() {
            Ok(()) => info!("whoever held the lock is gone; this process stops"),
            Err(error) => error!(%error, "the lock cannot be watched; this process stops"),
        }
        stop.cancel();
    })?;
    Ok(())
}

fn say_where(addresses: &crate::Addresses, json: bool) {
    let mut out = std::io::stdout().lock();
    // Nobody reading it is no reason to stop.
    let _ = if json {
        writeln!(out, "{}", serde_json::to_string(addresses).unwrap_or_default())
    } else {
        let mut text = String::from("\nQuickComm is ready.\n");
        if let Some(http) = addresses.http {
            text += &format!(
                "  dashboard  http://{http}/\n  try it     http://{http}/try      speak, or drop a file\n  API        http://{http}/docs\n"
            );
        }
        text += &format!("  health     http://{}/readyz\n", addresses.admin);
        if let Some(grpc) = &addresses.grpc {
            text += &format!("  modules    {grpc}\n");
        }
        if addresses.http.is_some() {
            text += "`make demo` in another terminal plays calls. Ctrl-C stops.\n";
        }
        writeln!(out, "{text}")
    };
    let _ = out.flush();
}
