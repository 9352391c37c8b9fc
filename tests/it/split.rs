//! The same demo calls through three processes: api (with bus and record), audio, inference.

use crate::{
    calls::{play, recorded_text},
    certs::{borrowed, certificate},
    support::{ROOT, Server, demo_calls, eventually, models, script_text, texts, words},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread")]
async fn demo_calls_run_through_three_processes() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let socket = format!("unix:{}", path("audio.sock").display());
    // One over a Unix socket, one over TCP with certificates.
    let hears = Server::start(&path("a"), &["--roles", "audio", "--grpc", &socket], &[]);
    let of_inference = certificate(&path("certs"), "inference");
    let understands = Server::start(&path("i"), &["--roles", "inference", "--grpc", "https://127.0.0.1:0"], &borrowed(&of_inference));
    let endpoint = understands.grpc.clone().expect("it says where it serves");
    assert!(endpoint.starts_with("https://"), "{endpoint}");
    let remote = |endpoint: &str| format!("[\"{endpoint}\"]");
    let (audio, inference) = (remote(&socket), remote(&endpoint));
    let of_api = certificate(&path("certs"), "api");
    let mut env = vec![
        ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
        ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", audio.as_str()),
        ("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"),
        ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", inference.as_str()),
    ];
    env.extend(borrowed(&of_api));
    let front = Server::start(&path("f"), &["--roles", "api"], &env);
    let calls: Vec<_> = demo_calls().into_iter().take(4).collect();
    let (mut wrong, mut of) = (0, 0);
    for (call, id, events) in play(calls, &front.http).await {
        let told = texts(&events, call.channels.len());
        for channel in 0..2u8 {
            let (errors, reference) = words::errors(&script_text(&call, channel), &told[usize::from(channel)]);
            (wrong, of) = (wrong + errors, of + reference);
            assert_eq!(recorded_text(&front, &id, channel.into()).await, told[usize::from(channel)]);
        }
        eventually("insights come from the other process", Duration::from_secs(20), async || {
            let got = front.get(&format!("/v1/conversations/{id}/insights")).await["data"].as_array()?.clone();
            got.iter().any(|i| i["provenance"]["tier"] == "local" || i["provenance"]["tier"] == "rules").then_some(())
        })
        .await;
    }
    assert!(wrong * 100 <= of * 6, "{wrong} word errors in {of} words");
    let status = front.get("/v1/admin/status").await;
    let modes: Vec<_> =
        status["modules"].as_array().unwrap().iter().map(|m| (m["name"].as_str().unwrap(), m["mode"].as_str().unwrap())).collect();
    assert!(
        modes.contains(&("audio", "remote")) && modes.contains(&("inference", "remote")) && modes.contains(&("api", "local")),
        "{modes:?}"
    );
    let peer = &status["peers"]["inference"];
    assert_eq!((&peer["endpoint"], &peer["cluster"], &peer["roles"][0]), (&json!(endpoint), &json!("quickcomm"), &json!("inference")));
    assert!(peer["models"]["minilm-l6-v2"].is_string(), "{peer}");
    for server in [front, hears, understands] {
        assert!(server.stop(), "SIGTERM did not end in exit code 0");
    }
}

/// `quickcomm split`, and what it tells as lines.
pub struct Split {
    child: Child,
    lines: Box<dyn Iterator<Item = Value>>,
}

impl Split {
    fn start(data: &std::path::Path) -> Self {
        Self::start_with(data, &[], &[])
    }

    pub fn start_with(data: &std::path::Path, options: &[&str], env: &[(String, String)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_quickcomm"))
            .args(["split", "--json", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(options)
            .envs(env.iter().map(|(key, value)| (key, value)))
            .current_dir(ROOT)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(serde_json::from_str(&line).unwrap()))
        });
        // A line that never comes must not hold the test for ever.
        let lines = std::iter::from_fn(move || told.recv_timeout(Duration::from_secs(60)).ok());
        Self { child, lines: Box::new(lines) }
    }

    /// The first line that tells this, and the pid in it.
    pub fn wait_for(&mut self, role: &str, state: &str) -> u32 {
        let told = |line: &Value| line["role"] == role && line["state"].as_str().is_some_and(|told| told.starts_with(state));
        let line = self.lines.find(told).unwrap_or_else(|| panic!("{role} was never {state}"));
        u32::try_from(line["pid"].as_u64().unwrap()).unwrap()
    }

    /// The first lines that tell this of each of them.
    pub fn wait_for_all<const N: usize>(&mut self, roles: [&str; N], state: &str) -> [Value; N] {
        let mut told = [const { Value::Null }; N];
        while told.contains(&Value::Null) {
            let line = self.lines.next().unwrap_or_else(|| panic!("{roles:?} were never {state}: {told:?}"));
            let at = roles.iter().position(|role| line["role"] == *role && line["state"] == state);
            if let Some(at) = at {
                told[at] = line;
            }
        }
        told
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Where callers and viewers connect; told before anybody is ready.
    pub fn front(&mut self) -> String {
        let dashboard = |line: &Value| line["said"].as_str().is_some_and(|said| said.starts_with("dashboard"));
        let said = self.lines.find(dashboard).expect("it says where the dashboard is");
        said["said"].as_str().unwrap().rsplit(' ').next().unwrap().trim_end_matches('/').to_owned()
    }

    /// Ctrl-c, and the exit code.
    pub fn interrupt(mut self) -> Option<i32> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        let begun = Instant::now();
        self.lines.by_ref().for_each(drop);
        let status = self.child.wait().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        status.code()
    }
}

impl Drop for Split {
    /// A test that fails leaves no processes behind.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
            let _ = self.child.wait();
        }
    }
}

pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn split_starts_three_processes_and_stops_them_together() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut split = Split::start(folder.path());
    let front = split.front();
    assert!(reqwest::get(&front).await.unwrap().status().is_success(), "{front}");
    let mut pids = vec![];
    for role in ["audio", "inference"] {
        // The front is ready last: it has looked at both.
        pids.push(split.wait_for(role, "ready"));
    }
    pids.push(split.wait_for("api", "ready"));
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    assert_eq!(split.interrupt(), Some(0));
    assert!(!pids.iter().any(|pid| runs(*pid)), "{pids:?} outlive their parent");
}

/// Cut off when a test fails.
struct Left(Vec<u32>);

impl Drop for Left {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|pid| runs(**pid)) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_that_is_killed_leaves_no_process_behind() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut split = Split::start(folder.path());
    let mut pids = Left(["audio", "inference"].map(|role| split.wait_for(role, "ready")).to_vec());
    pids.0.push(split.wait_for("api", "ready"));
    assert!(pids.0.iter().all(|pid| runs(*pid)), "{:?}", pids.0);
    let second = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["split", "--data"]).arg(folder.path()).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && said.contains("another `quickcomm split` runs in"), "{said}");

    split.kill();
    eventually("all three end", Duration::from_secs(40), async || (!pids.0.iter().any(|pid| runs(*pid))).then_some(())).await;
    for role in ["audio", "inference", "api"] {
        let log = std::fs::read_to_string(folder.path().join("split").join(format!("{role}.log"))).unwrap();
        assert!(log.contains("whoever held the lock is gone") && log.contains("stopped"), "{role} drained and was not cut: {log}");
    }
    let mut again = Split::start(folder.path());
    again.wait_for("api", "ready");
    assert_eq!(again.interrupt(), Some(0), "nothing is left in the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn split_tells_when_a_process_is_lost_and_does_not_hide_it() {
    if models().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut split = Split::start(folder.path());
    let inference = split.wait_for("inference", "ready");
    split.wait_for("api", "ready");
    Command::new("kill").args(["-9", &inference.to_string()]).status().unwrap();
    assert_eq!(split.wait_for("inference", "ended: signal: 9"), inference);
    split.wait_for("api", "failing: inference: nobody answers at unix:");
    assert_eq!(split.interrupt(), Some(1), "a loss is no success");
}
