//! In a process of its own. The fakes there are told what to do, and asked what they saw, over a line of JSON each way.

use crate::{connect, serve::Services};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, Conversations, Inference,
    testing::{Behavior, Conduct, FakeAudio, FakeConversations, FakeInference, Place, Seen, Strings},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::UnixListener,
};
use tokio_util::sync::CancellationToken;

/// Where the process that starts another holds its strings.
const STRINGS: &str = "FABRIC_TEST_STRINGS";

#[derive(Serialize, Deserialize)]
enum Order {
    Audio(FakeAudio),
    Inference,
    Conversations,
    Behave(usize, Behavior),
    Seen(usize),
    Running(usize),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    /// The conducts of a new fake count from `first`.
    Serves {
        endpoint: String,
        first: usize,
    },
    Behaves,
    Seen(Vec<Seen>),
    Running(usize),
}

pub(super) struct Child {
    process: std::process::Child,
    line: Line,
    _folder: tempfile::TempDir,
}

#[derive(Clone)]
struct Line(Arc<Mutex<BufReader<UnixStream>>>);

impl Line {
    fn ask(&self, order: &Order) -> Answer {
        let mut line = self.0.lock();
        let mut text = serde_json::to_string(order).expect("an order is plain");
        text.push('\n');
        line.get_mut().write_all(text.as_bytes()).expect("the other process lives");
        text.clear();
        line.read_line(&mut text).expect("the other process lives");
        serde_json::from_str(&text).expect("an answer")
    }
}

/// One conduct of a fake there, held from here.
struct Held {
    line: Line,
    conduct: usize,
}

impl Strings for Held {
    fn behave(&self, behavior: Behavior) {
        self.line.ask(&Order::Behave(self.conduct, behavior));
    }
    fn seen(&self) -> Vec<CallCx> {
        let Answer::Seen(seen) = self.line.ask(&Order::Seen(self.conduct)) else { panic!("another answer") };
        seen.into_iter().map(CallCx::from).collect()
    }
    fn running(&self) -> usize {
        let Answer::Running(running) = self.line.ask(&Order::Running(self.conduct)) else { panic!("another answer") };
        running
    }
}

impl Child {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("strings.sock");
        let listener = UnixListener::bind(&path).expect("a fresh path");
        let process = Command::new(std::env::current_exe().expect("a test has a file"))
            .args(["--ignored", "--exact", "suites::child::a_process_of_its_own"])
            .env(STRINGS, &path)
            .stdout(Stdio::null())
            .spawn()
            .expect("it can be started again");
        let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.expect("the process comes up");
        let stream = accepted.expect("a connection").0.into_std().expect("a socket");
        stream.set_nonblocking(false).expect("a socket");
        Self { process, line: Line(Arc::new(Mutex::new(BufReader::new(stream)))), _folder: folder }
    }

    /// Where the new fake is reached, when `conducts` are those of the one there.
    fn serve(&self, order: &Order, conducts: &[Arc<Conduct>]) -> String {
        let Answer::Serves { endpoint, first } = self.line.ask(order) else { panic!("another answer") };
        for (n, conduct) in conducts.iter().enumerate() {
            conduct.is_elsewhere(Box::new(Held { line: self.line.clone(), conduct: first + n }));
        }
        endpoint
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[async_trait]
impl Place for Child {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio> {
        connect::audio(&self.serve(&Order::Audio(fake.clone()), &[fake.conduct()])).expect("a Unix socket")
    }
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference> {
        connect::inference(&self.serve(&Order::Inference, &[fake.conduct(), fake.midway()])).expect("a Unix socket")
    }
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations> {
        connect::conversations(&self.serve(&Order::Conversations, &[fake.conduct()])).expect("a Unix socket")
    }
}

/// No test: what [`Child`] starts, and what ends when nobody holds its strings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by a test, as a process of its own"]
async fn a_process_of_its_own() {
    let Ok(path) = std::env::var(STRINGS) else { return };
    let folder = std::path::Path::new(&path).parent().expect("a socket in a folder").to_owned();
    let (orders, mut answers) = tokio::net::UnixStream::connect(&path).await.expect("who started this one").into_split();
    let mut orders = tokio::io::BufReader::new(orders).lines();
    let mut conducts: Vec<Arc<Conduct>> = vec![];
    while let Some(order) = orders.next_line().await.expect("a line") {
        let mut serve = async |services: Services, its: Vec<Arc<Conduct>>| {
            let first = conducts.len();
            conducts.extend(its);
            let server = crate::serve(&format!("unix:{}/{first}.sock", folder.display()), services).await.expect("a fresh path");
            let endpoint = server.address().to_owned();
            tokio::spawn(server.run(CancellationToken::new()));
            Answer::Serves { endpoint, first }
        };
        let answer = match serde_json::from_str(&order).expect("an order") {
            Order::Audio(fake) => {
                let its = vec![fake.conduct()];
                serve(Services { audio: Some(Arc::new(fake)), ..Default::default() }, its).await
            }
            Order::Inference => {
                let fake = FakeInference::default();
                let its = vec![fake.conduct(), fake.midway()];
                serve(Services { inference: Some(Arc::new(fake)), ..Default::default() }, its).await
            }
            Order::Conversations => {
                let fake = FakeConversations::default();
                let its = vec![fake.conduct()];
                serve(Services { conversations: Some(Arc::new(fake)), ..Default::default() }, its).await
            }
            Order::Behave(conduct, behavior) => {
                conducts[conduct].behave(behavior);
                Answer::Behaves
            }
            Order::Seen(conduct) => Answer::Seen(conducts[conduct].seen().into_iter().map(Seen::from).collect()),
            Order::Running(conduct) => Answer::Running(conducts[conduct].running()),
        };
        let mut text = serde_json::to_string(&answer).expect("an answer is plain");
        text.push('\n');
        answers.write_all(text.as_bytes()).await.expect("who asked");
    }
}
