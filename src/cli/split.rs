//! `quickcomm split`: three processes of this binary on this machine, one per role, over Unix sockets in the data folder. With a Redis and a
//! PostgreSQL they share those, its own ones if asked for; then there may be two for the role api, behind HAProxy.
//!
//! Invariants: all of them stop before this command ends, the one that callers talk to first; one that ends by itself is shown and not
//! started again, and then the command fails in the end. When this command is killed they stop too, in the same order: each watches a
//! lock that the kernel gives away when its holders are gone.

mod private;

use crate::config::Config;
use anyhow::{Context, bail};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{BufRead, BufReader, IsTerminal},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the processes are looked at, and one that is stopping.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Loading models, on a machine that does much else.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A process finishes accepted calls before it ends.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// The kernel's limit on the path of a Unix socket.
const SOCKET_PATH_BYTES: usize = 107;

#[derive(Debug, Args)]
pub struct Options {
    /// Configuration file of all three. Default: quickcomm.toml, where there is one.
    #[arg(long, env = "QUICKCOMM_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the record, the recordings, the sockets and the logs.
    #[arg(long)]
    data: Option<PathBuf>,
    /// API, dashboard and callers' sockets; port 0 takes a free one.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Health and metrics of the api process; port 0 takes a free one. The others take free ones.
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Bring a Redis and a PostgreSQL along: on free ports of loopback, with their data in the data folder; they stop with this command.
    #[arg(long)]
    private: bool,
    /// Two api processes, and HAProxy in front of them. Needs a Redis and a PostgreSQL that they share.
    #[arg(long)]
    balanced: bool,
    /// Tell states as lines of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    /// It runs and says what it misses.
    Failing(String),
    Ended(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Ready => f.write_str("ready"),
            Self::Failing(why) => write!(f, "failing: {why}"),
            Self::Ended(how) => write!(f, "ended: {how}"),
        }
    }
}

struct Process {
    /// Its role, and its number where there are two of it.
    name: String,
    child: Child,
    pid: u32,
    /// As it announced them.
    addresses: Value,
    log: PathBuf,
    state: State,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config = Config::load(options.config.as_deref(), serde_json::json!({}))?;
    let shares_bus = config.shares_bus() || options.private;
    let shares_record = !config.api.record.url.expose().is_empty() || options.private;
    if options.balanced && !(shares_bus && shares_record) {
        bail!("--balanced needs a bus and a record that two api processes share: expected --private, or bus.url and api.record.url");
    }
    let data = options.data.clone().unwrap_or(config.data);
    let folder = data.join("split");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = folder.canonicalize().context("the folder that was just made")?;
    let socket = |role: &str| folder.join(format!("{role}.sock"));
    if socket("inference").as_os_str().len() > SOCKET_PATH_BYTES {
        bail!("{} is too long for a Unix socket: give a shorter --data", folder.display());
    }
    // The api process stops when this one is gone; the others when that one is gone too, because it holds its lock together with us.
    let (ours, shared) = (hold(&folder, "split.lock")?, hold(&folder, "api.lock")?);
    let apis: &[&str] = if options.balanced { &["api-1", "api-2"] } else { &["api"] };
    let remote = |command: &mut Command, module: &str| {
        let key = |name: &str| format!("QUICKCOMM_MODULES__{}__{name}", module.to_uppercase());
        let at: &[&str] = if module == "api" { apis } else { &[module] };
        let endpoints: Vec<String> = at.iter().map(|name| format!("\"unix:{}\"", socket(name).display())).collect();
        command.env(key("MODE"), "remote");
        command.env(key("ENDPOINTS"), format!("[{}]", endpoints.join(",")));
    };
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let view = View::new(options.json, ["audio", "inference"].iter().chain(apis));

    let mut ground = private::Ground { env: vec![], servers: vec![] };
    if options.private {
        view.say("starting a private Redis and PostgreSQL");
        ground = tokio::task::block_in_place(|| private::lay(&folder))?;
        ground.servers.iter().for_each(|server| view.show_server(server));
    }
    let mut processes = vec![];
    for name in ["audio", "inference"].iter().chain(apis).copied() {
        let role = name.split('-').next().unwrap_or(name);
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg("serve").args(["--json", "--roles", role]).envs(ground.env.iter().cloned());
        // Two that keep recordings keep them apart.
        command.arg("--data").arg(if options.balanced && role == "api" { data.join(name) } else { data.clone() });
        command.arg("--while-locked").arg(if role == "api" { &ours.path } else { &shared.path });
        if let Some(file) = &options.config {
            command.arg("--config").arg(file);
        }
        if role == "api" {
            let anywhere = options.balanced.then_some(SocketAddr::from(([127, 0, 0, 1], 0)));
            for (flag, addr) in [("--http", anywhere.or(options.http)), ("--admin", anywhere.or(options.admin))] {
                command.args(addr.map(|addr| [flag.to_owned(), addr.to_string()]).into_iter().flatten());
            }
            ["audio", "inference"].into_iter().for_each(|module| remote(&mut command, module));
            if shares_bus {
                command.args(["--grpc", &format!("unix:{}", socket(name).display())]);
            }
        } else {
            if shares_bus && role == "inference" {
                remote(&mut command, "api"); // the transcript worker is there, and asks who speaks
            }
            command.args(["--admin", "127.0.0.1:0", "--grpc", &format!("unix:{}", socket(name).display())]);
        }
        // What stdin is, the child keeps open, and with it the lock; it reads nothing from there.
        let stdin = if role == "api" { shared.file.try_clone().context("sharing a lock")?.into() } else { Stdio::null() };
        processes.push(start(name, command.stdin(stdin), &folder)?);
    }
    let front = options.balanced.then_some(options.http.unwrap_or(config.http.addr));
    let outcome = tokio::select! {
        outcome = watch(&mut processes, &mut ground.servers, front.map(|front| (front, &*folder)), &view) => outcome,
        () = told(&mut interrupt, &mut terminate) => Ok(()),
    };
    let lost = processes.iter().any(|process| matches!(process.state, State::Ended(_)));
    tokio::select! {
        () = stop(&mut processes, &view) => {}
        () = told(&mut interrupt, &mut terminate) => view.say("told twice: the processes are cut off"),
    }
    tokio::task::block_in_place(|| drop(ground));
    outcome?;
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn told(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}

/// A file and the lock on it, which ends with the last process that has it open.
struct Lock {
    path: PathBuf,
    file: File,
}

fn hold(folder: &Path, name: &str) -> anyhow::Result<Lock> {
    let path = folder.join(name);
    let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { path, file }),
        Err(TryLockError::WouldBlock) => {
            bail!("another `quickcomm split` runs in {}, or its processes are still stopping", folder.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

fn start(name: &str, command: &mut Command, folder: &Path) -> anyhow::Result<Process> {
    let log = folder.join(format!("{name}.log"));
    let said = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    // A group of its own: ctrl-c in the terminal reaches us alone, and we stop them in order.
    command.stdout(Stdio::piped()).stderr(said).process_group(0);
    let child = command.spawn().with_context(|| format!("starting the {name} process"))?;
    let pid = child.id();
    Ok(Process { name: name.into(), child, pid, addresses: Value::Null, log, state: State::Starting })
}

/// Until every process has ended.
async fn watch(
    processes: &mut [Process],
    servers: &mut Vec<private::Server>,
    balanced: Option<(SocketAddr, &Path)>,
    view: &View,
) -> anyhow::Result<()> {
    for process in processes.iter() {
        view.show(process);
    }
    let mut starting: Vec<_> = processes.iter_mut().map(announced).collect();
    futures::future::try_join_all(starting.drain(..)).await?;
    drop(starting);
    if let Some((front, folder)) = balanced {
        let at = |process: &Process, key: &str| process.addresses[key].as_str().map(str::to_owned);
        let nodes: Vec<_> = processes.iter().filter_map(|process| Some((at(process, "http")?, at(process, "admin")?))).collect();
        let front = if front.port() == 0 { private::free_port()? } else { front };
        let proxy = tokio::task::block_in_place(|| private::balance(folder, front, &nodes))?;
        view.show_server(&proxy);
        servers.push(proxy);
        view.say(&format!("dashboard  http://{front}/"));
    } else if let Some(front) = processes.iter().find_map(|process| process.addresses["http"].as_str()) {
        view.say(&format!("dashboard  http://{front}/"));
    }
    let client = super::http_client()?;
    let mut look = tokio::time::interval(LOOK_EVERY);
    while processes.iter().any(|process| !matches!(process.state, State::Ended(_))) {
        look.tick().await;
        for process in processes.iter_mut().filter(|process| !matches!(process.state, State::Ended(_))) {
            let state = process.look(&client).await;
            let changed = process.state != state;
            process.state = state;
            if changed || view.live() {
                view.show(process);
            }
        }
        for server in servers.iter_mut().filter(|server| !server.runs() && !server.ended) {
            server.ended = true;
            view.show_server(server);
        }
    }
    Ok(())
}

/// Waits for the line in which a process says where it listens; one that ends before says nothing.
async fn announced(process: &mut Process) -> anyhow::Result<()> {
    let stdout = process.child.stdout.take().context("its stdout is piped")?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let read = tokio::time::timeout(START_LIMIT, reading).await;
    let line = read.with_context(|| format!("the {} process did not start in {} s", process.name, START_LIMIT.as_secs()))??;
    process.addresses = serde_json::from_str(&line?).unwrap_or_default();
    Ok(())
}

impl Drop for Process {
    /// Whoever is left when this command ends is cut off.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// How it ended, if it has.
    async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look(&mut self, client: &reqwest::Client) -> State {
        match self.child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return State::Ended(format!("{status}; {}", self.last_words())),
            Err(error) => return State::Ended(error.to_string()),
        }
        let Some(admin) = self.addresses["admin"].as_str() else { return State::Starting };
        let answer = client.get(format!("http://{admin}/admin/status")).send().await;
        let status: Value = match answer {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => return State::Failing("it does not answer".into()),
        };
        let failing = status["modules"].as_array().into_iter().flatten().find(|module| module["state"] != "ready");
        match failing {
            Some(module) => {
                State::Failing(format!("{}: {}", module["name"].as_str().unwrap_or("?"), module["detail"].as_str().unwrap_or("?")))
            }
            None => State::Ready,
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
    }

    fn memory_mb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
    }

    fn place(&self) -> String {
        let address = ["http", "grpc"].iter().find_map(|key| self.addresses[*key].as_str()).unwrap_or("-");
        address.to_owned()
    }
}

/// The front first: it finishes its calls while the others still answer.
async fn stop(processes: &mut [Process], view: &View) {
    for process in processes.iter_mut().rev() {
        if matches!(process.child.try_wait(), Ok(Some(_))) {
            continue;
        }
        let asked = Command::new("kill").arg(process.pid.to_string()).status();
        if asked.is_err() {
            view.say("there is no `kill` here: the processes are cut off");
            return;
        }
        let ended = tokio::time::timeout(STOP_LIMIT, process.ended()).await;
        process.state = State::Ended(match ended {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                let _ = process.child.kill();
                format!("cut off after {} s", STOP_LIMIT.as_secs())
            }
        });
        view.show(process);
    }
}

/// A line per process that changes in place, or one after another where nobody looks.
struct View {
    bars: Option<(MultiProgress, Vec<(String, ProgressBar)>)>,
    json: bool,
}

impl View {
    fn new<'a>(json: bool, names: impl Iterator<Item = &'a &'static str>) -> Self {
        if json || !std::io::stdout().is_terminal() {
            return Self { bars: None, json };
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template("  {msg}").expect("a fixed template");
        let bars = names.map(|name| ((*name).to_owned(), all.add(ProgressBar::new_spinner().with_style(style.clone()))));
        let bars = bars.collect();
        Self { bars: Some((all, bars)), json }
    }

    fn live(&self) -> bool {
        self.bars.is_some()
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some((all, _)) => drop(all.println(text)),
            None if self.json => println!("{}", serde_json::json!({ "said": text })),
            None => println!("{text}"),
        }
    }

    fn show_server(&self, server: &private::Server) {
        let told = server.as_json();
        let state = told["state"].as_str().unwrap_or_default();
        match self.json {
            true => println!("{told}"),
            false => self.say(&format!("{:<10} pid {:<8} {:>8}  {:<40} {state}", server.name, server.pid, "", server.at)),
        }
    }

    fn show(&self, process: &Process) {
        let Process { name: role, pid, state, log, .. } = process;
        let (place, memory) = (process.place(), process.memory_mb());
        let line = format!("{role:<10} pid {pid:<8} {memory:>5} MB  {place:<40} {state}");
        match &self.bars {
            Some((_, bars)) => {
                for (_, bar) in bars.iter().filter(|(of, _)| of == role) {
                    bar.set_message(line.clone());
                }
            }
            None if self.json => {
                let state = state.to_string();
                println!(
                    "{}",
                    serde_json::json!({ "role": role, "pid": pid, "at": place, "state": state, "log": log, "memory_mb": memory })
                );
            }
            None => println!("{}", line.trim_end()),
        }
    }
}
