//! A server of OpenAI's chat API that does what a test tells it to, well or badly.
#![allow(dead_code)] // each of those who use it uses its own part
#![allow(clippy::unwrap_used)] // as in any test

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

pub struct Scripted {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    most: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: String,
    pub body: Value,
}

pub enum Play {
    /// A completion with this content.
    Say(String),
    /// A completion with this choice.
    Choose(Value),
    /// Status line and more header lines, and a body.
    Reply(&'static str, String, Vec<u8>),
    Hang,
    /// The connection ends without a word.
    Cut,
    After(Duration, Box<Play>),
}

type Script = dyn Fn(&Seen) -> Play + Send + Sync;

impl Seen {
    /// The data in the user message.
    pub fn data(&self) -> Value {
        let message = self.body["messages"][1]["content"].as_str().unwrap();
        serde_json::from_str(message.strip_prefix("<call>").unwrap().strip_suffix("</call>").unwrap()).unwrap()
    }

    pub fn text(&self) -> String {
        self.data()["turn"]["text"].as_str().unwrap().into()
    }

    /// What the nested schema lets be answered.
    pub fn schema(&self) -> &Value {
        &self.body["response_format"]["json_schema"]["schema"]["properties"]
    }

    /// An answer that fits: of every task this label, or else the first, resting on the turn's first word.
    pub fn fitting(&self, label: &str) -> Value {
        let text = self.text();
        let quote = text.split_whitespace().next();
        let tasks = self.schema().as_object().unwrap().iter().map(|(task, answer)| {
            let labels = answer["properties"]["label"]["enum"].as_array().unwrap();
            let label = labels.iter().find(|l| *l == label).unwrap_or(&labels[0]);
            (task.clone(), json!({ "label": label, "certainty": "sure", "quote": quote }))
        });
        Value::Object(tasks.collect())
    }

    /// Of a call that is to be summed up, or a part of it.
    pub fn turns(&self) -> Vec<Value> {
        self.data()["turns"].as_array().unwrap().clone()
    }

    /// A summary that fits: a customer's first turn is the reason, the last one the outcome.
    pub fn pointing(&self) -> Value {
        let turns = self.turns();
        let first = turns.iter().find(|turn| turn["speaker"] == "customer").unwrap_or(&turns[0]);
        let mut answer = json!({ "actions": [] });
        for (asked, turn) in [("reason", first), ("outcome", turns.last().unwrap())] {
            if self.schema().get(asked).is_some() {
                answer[asked] = json!({ "turn": turn["n"], "quote": null });
            }
        }
        answer
    }

    pub fn answer(&self) -> Play {
        let is_summary = self.schema().get("actions").is_some();
        Play::Say(if is_summary { self.pointing() } else { self.fitting("cancel_service") }.to_string())
    }
}

impl Scripted {
    pub async fn start(script: impl Fn(&Seen) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, most, flying): (Arc<Mutex<Vec<Seen>>>, Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let script: Arc<Script> = Arc::new(script);
        let (kept, counted) = (seen.clone(), most.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let talk = Talk { script: script.clone(), seen: kept.clone(), most: counted.clone(), flying: flying.clone() };
                tokio::spawn(async move { talk.serve(socket).await });
            }
        });
        Self { addr, seen, most, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Requests that were there at the same time, at most.
    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Talk {
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
    most: Arc<AtomicUsize>,
    flying: Arc<AtomicUsize>,
}

impl Talk {
    /// Of a connection that was made some other way.
    pub fn new(script: impl Fn(&Seen) -> Play + Send + Sync + 'static) -> Self {
        Self { script: Arc::new(script), seen: Arc::default(), most: Arc::default(), flying: Arc::default() }
    }

    pub async fn serve(self, mut socket: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(request) = read(&mut socket).await {
            self.seen.lock().push(request.clone());
            self.most.fetch_max(self.flying.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut play = (self.script)(&request);
            while let Play::After(pause, next) = play {
                tokio::time::sleep(pause).await;
                play = *next;
            }
            self.flying.fetch_sub(1, Ordering::SeqCst);
            let (status, headers, body) = match play {
                Play::Say(content) => {
                    let choice = json!({ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": content } });
                    ("200 OK", String::new(), completion(&choice))
                }
                Play::Choose(choice) => ("200 OK", String::new(), completion(&choice)),
                Play::Reply(status, headers, body) => (status, headers, body),
                Play::Hang => std::future::pending().await,
                Play::Cut | Play::After(..) => return,
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
            if socket.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                return;
            }
        }
    }
}

fn completion(choice: &Value) -> Vec<u8> {
    let usage = json!({ "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107 });
    json!({ "id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage }).to_string().into_bytes()
}

async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = vec![];
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        (socket.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let length: usize = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    while bytes.len() < head + length {
        (socket.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    }
    let head_text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    Some(Seen { head: head_text, body: serde_json::from_slice(&bytes[head..head + length]).unwrap() })
}
