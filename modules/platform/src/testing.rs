//! A Redis of one's own for a test: a real one, on a free port, in a folder of its own, stopped by pid.

use redis::FromRedisValue;
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// For a Redis to come up; it takes some ms.
const START: Duration = Duration::from_secs(20);

pub struct RedisServer {
    child: Child,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// `None` after saying loudly that the test is skipped: there is no redis-server on this machine.
    ///
    /// # Panics
    /// When it is there and does not start.
    pub fn start(options: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: no redis-server; `.ci/need redis-server` installs it");
            return None;
        }
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        // Somebody else may take the port between these two.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port is free").port();
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let mut server = Self { child: launch(port, &folder, &options), port, folder, options: options.clone() };
            if server.is_up() {
                return Some(server);
            }
        }
        panic!("redis-server {options:?} did not start");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }

    /// The same command again on the same folder and port; after [`Self::kill`].
    pub fn start_again(&mut self) {
        self.child = launch(self.port, &self.folder, &self.options);
        assert!(self.is_up(), "redis-server did not come back");
    }

    /// The same, on a folder that holds nothing any more.
    pub fn start_empty(&mut self) {
        self.folder = tempfile::tempdir().expect("a temporary folder can be made");
        self.start_again();
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {name} failed");
    }

    /// One command by a connection of its own.
    ///
    /// # Panics
    /// When Redis refuses it.
    pub fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// # Errors
    /// As Redis says.
    pub fn try_ask<T: FromRedisValue>(&self, command: &[&str]) -> Result<T, String> {
        let client = redis::Client::open(self.url()).map_err(|e| e.to_string())?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).map_err(|e| e.to_string())?;
        let mut ask = redis::cmd(command[0]);
        for part in &command[1..] {
            ask.arg(*part);
        }
        ask.query(&mut connection).map_err(|e| e.to_string())
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            match self.try_ask::<String>(&["PING"]) {
                Ok(_) => return true,
                Err(said) if said.contains("NOAUTH") => return true,
                Err(_) => {}
            }
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // also when it is stopped
        let _ = self.child.wait();
    }
}

fn launch(port: u16, folder: &TempDir, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
        .arg(folder.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is there")
}
