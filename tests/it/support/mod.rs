//! What journeys stand on: the real binary on free ports with a data folder of its own, stopped by pid.

#![allow(dead_code)] // each journey uses its part

pub mod faults;
pub mod feed;
pub mod ground;
pub mod postgres;
pub mod volume;
pub mod wire;
pub mod words;

use crate::counted;
use parking_lot::Mutex;
use quickcomm::{
    calls::{self, DemoCall},
    client::{Event, ServerMessage},
};
use serde_json::Value;
use std::{
    env,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, SemaphorePermit};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Model folders, or `None` after saying loudly that the test is skipped.
pub fn models() -> Option<PathBuf> {
    let path = env::var_os("QUICKCOMM_MODELS").map(PathBuf::from).unwrap_or_else(|| Path::new(ROOT).join(".quickcomm/models"));
    if path.join("moonshine-tiny-en/model.toml").is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED: no models in {}; `make models` fetches them", path.display());
    None
}

/// Journeys with many callers at once, or that tell how long something took.
const AT_ONCE: u32 = 2;
static ROOM: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// For one of those: as many at a time as two cores have room for.
pub async fn room() -> SemaphorePermit<'static> {
    ROOM.acquire().await.unwrap()
}

/// For one that loads every core: none of the others meanwhile.
pub async fn alone() -> SemaphorePermit<'static> {
    ROOM.acquire_many(AT_ONCE).await.unwrap()
}

/// What is started as a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Quickcomm,
    /// The same, but that its engine hears by counting samples.
    Counting,
}

/// A running `quickcomm serve`.
pub struct Server {
    child: Child,
    program: Program,
    pub http: String,
    pub admin: String,
    pub grpc: Option<String>,
    pub data: PathBuf,
    options: Vec<String>,
    env: Vec<(String, String)>,
    log: Arc<Mutex<String>>,
    /// Told when the last of it was read.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Server {
    /// Starts with models and a fresh data folder; waits until it has said where it listens.
    pub fn start(data: &Path, options: &[&str], env: &[(&str, &str)]) -> Self {
        Self::try_start(data, options, env).unwrap_or_else(|error| panic!("the server did not start: {error}"))
    }

    /// The same, or what it said on stderr and its exit code.
    pub fn try_start(data: &Path, options: &[&str], env: &[(&str, &str)]) -> Result<Self, String> {
        Self::try_start_as(Program::Quickcomm, data, options, env)
    }

    /// The same of another program.
    pub fn try_start_as(program: Program, data: &Path, options: &[&str], env: &[(&str, &str)]) -> Result<Self, String> {
        let own = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        launch(program, data, options.iter().map(|o| (*o).to_owned()).collect(), own(env))
    }

    /// kill -9, as a power cut for the process.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// kill -9, then the same command again on the same folder and the same ports.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        let (data, options, env) = (self.data.clone(), self.options.clone(), self.env.clone());
        *self = launch(self.program, &data, options, env).unwrap_or_else(|error| panic!("the server did not come back: {error}"));
    }

    /// SIGTERM, then waits for the exit.
    pub fn stop(mut self) -> bool {
        Command::new("kill").arg(self.child.id().to_string()).status().expect("kill is there");
        let deadline = Instant::now() + Duration::from_secs(40);
        let mut ended = None;
        while ended.is_none() && Instant::now() < deadline {
            ended = self.child.try_wait().expect("the child is ours");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let well = ended.is_some_and(|status| status.success());
        if !well {
            let log = self.log();
            println!("it ended with {ended:?} after: {}", &log[log.floor_char_boundary(log.len().saturating_sub(4000))..]);
        }
        well
    }

    /// SIGTERM, then all that it has logged.
    pub fn stop_and_read_log(mut self) -> String {
        let (log, ended) = (self.log.clone(), std::mem::replace(&mut self.ended, Mutex::new(mpsc::channel().1)));
        assert!(self.stop(), "SIGTERM did not end in exit code 0");
        ended.into_inner().recv_timeout(Duration::from_secs(5)).expect("the log ends with the process");
        log.lock().clone()
    }

    /// What it has said on stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Turns a dial, as `quickcomm route` does.
    pub async fn turn(&self, module: &str, turn: Value) -> Value {
        self.try_turn(module, &turn).await.unwrap_or_else(|refused| panic!("{module} with {turn}: {refused}"))
    }

    /// The same, or the refusal.
    pub async fn try_turn(&self, module: &str, turn: &Value) -> Result<Value, String> {
        let url = format!("{}/admin/routes/{module}", self.admin);
        let request = reqwest::Client::new().put(&url).header("content-type", "application/json").body(turn.to_string());
        let answer = request.send().await.unwrap_or_else(|e| panic!("{url}: {e}"));
        let status = answer.status();
        let text = answer.text().await.expect("the answer is text");
        if status.is_success() { Ok(serde_json::from_str(&text).expect("the answer is JSON")) } else { Err(format!("{status}: {text}")) }
    }

    /// What the admin port says of a counter or gauge, all its labels together; 0 before it was first counted.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.admin)).await.expect("the admin port answers").text().await.expect("text");
        let of = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse().ok()).flatten()
        };
        text.lines().filter_map(of).sum()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `-STOP`: it stands still; `-CONT`: it goes on.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {name} failed");
    }

    pub async fn get(&self, path: &str) -> Value {
        get(&self.http, path).await
    }
}

/// Its address.
impl AsRef<str> for Server {
    fn as_ref(&self) -> &str {
        &self.http
    }
}

/// What the API at an address answers.
pub async fn get(address: &str, path: &str) -> Value {
    let url = format!("{address}{path}");
    let answer = reqwest::get(&url).await.unwrap_or_else(|e| panic!("{url}: {e}"));
    let status = answer.status();
    let text = answer.text().await.expect("the answer is text");
    assert!(status.is_success(), "{url}: {status}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{url}: {e}: {text}"))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(program: Program, data: &Path, options: Vec<String>, env: Vec<(String, String)>) -> Result<Server, String> {
    let mut arguments = vec!["serve".to_owned(), "--json".into(), "--data".into(), data.display().to_string()];
    let given = |name: &str| options.iter().any(|o| o == name);
    for (name, value) in [("--http", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
        if !given(name) {
            arguments.extend([name.to_owned(), value.to_owned()]);
        }
    }
    arguments.extend(options.iter().cloned());
    let mut command = match program {
        Program::Quickcomm => Command::new(env!("CARGO_BIN_EXE_quickcomm")),
        Program::Counting => counted::process::command(&arguments),
    };
    if program == Program::Quickcomm {
        command.args(&arguments);
    }
    command.env("QUICKCOMM_LOG__FILTER", "warn").envs(env.iter().map(|(k, v)| (k, v)));
    command.current_dir(ROOT).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let (said, ended) = mpsc::channel();
    let log: Arc<Mutex<String>> = Arc::default();
    let kept = log.clone();
    std::thread::spawn(move || {
        // Kept whole: a failing journey shows what the server said.
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stderr.read(&mut buffer) {
            let part = String::from_utf8_lossy(&buffer[..n]);
            eprint!("{part}");
            kept.lock().push_str(&part);
        }
        let _ = said.send(());
    });
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    // A program that is a test is announced as one first.
    let line = stdout.find_map(|line| line.ok().and_then(|line| Some(line[line.find("{\"http\"")?..].to_owned()))).unwrap_or_default();
    if line.is_empty() {
        let status = child.wait().map_err(|e| e.to_string())?;
        let _ = ended.recv_timeout(Duration::from_secs(5));
        return Err(format!("exit {}: {}", status.code().unwrap_or(-1), log.lock()));
    }
    let addresses: Value = serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))?;
    let url = |key: &str| addresses[key].as_str().map(|a| format!("http://{a}")).unwrap_or_default();
    // The ports are kept for a restart, as a service's would be.
    let mut options = options;
    for (flag, key) in [("--http", "http"), ("--admin", "admin")] {
        if let Some(addr) = addresses[key].as_str()
            && !options.iter().any(|o| o == flag)
        {
            options.extend([flag.to_owned(), addr.to_owned()]);
        }
    }
    Ok(Server {
        child,
        program,
        http: url("http"),
        admin: url("admin"),
        grpc: addresses["grpc"].as_str().map(str::to_owned),
        data: data.to_owned(),
        options,
        env,
        log,
        ended: Mutex::new(ended),
    })
}

/// All bundled calls.
pub fn demo_calls() -> Vec<DemoCall> {
    calls::names().iter().map(|name| calls::load(name).expect("a bundled call loads")).collect()
}

/// Finals per channel, joined, in the order they came.
pub fn texts(events: &[Event], channels: usize) -> Vec<String> {
    let mut texts = vec![String::new(); channels];
    for event in events {
        if let ServerMessage::Final(said) = &event.message {
            let text = &mut texts[usize::from(said.channel)];
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&said.text);
        }
    }
    texts
}

/// Words that should have been heard on a channel.
pub fn script_text(call: &DemoCall, channel: u8) -> String {
    call.script.turns.iter().filter(|t| t.channel == channel).map(|t| t.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Polls until `check` gives an answer; the condition is another process's, so there is no event to await.
pub async fn eventually<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
