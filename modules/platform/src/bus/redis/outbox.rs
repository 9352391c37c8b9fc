//! What this process publishes and signals, many at once in one pipeline.
//!
//! Invariants:
//! - a publication is answered when Redis has, and each on its own; a signal is never waited for;
//! - a signal that finds no room is counted, and the next one of its topic tells its listeners so;
//! - while one pipeline is under way, the next one gathers.

use super::super::{BusError, NewEntry, metrics as names};
use super::{
    link::{CallFailed, Link, in_words, is_oom},
    scripts, shard,
};
use bytes::Bytes;
use parking_lot::Mutex;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind};
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait.
const QUEUE: usize = 8_192;
/// Requests in one pipeline; Redis takes the most in pipelines of about a hundred.
const BATCH: usize = 128;

pub(super) struct Outbox {
    orders: mpsc::Sender<Order>,
    dropped: Dropped,
}

/// Signals of each topic that could not be sent and of which nobody has been told.
type Dropped = Arc<Mutex<HashMap<&'static str, u64>>>;

enum Order {
    Publish {
        stream: &'static str,
        command: Cmd,
        entries: u64,
        answer: oneshot::Sender<Result<(), BusError>>,
    },
    /// `None`: nothing but how many were lost.
    Signal {
        topic: &'static str,
        stands_for: u64,
        payload: Option<Bytes>,
    },
}

impl Outbox {
    pub(super) fn start(link: Arc<Link>) -> Self {
        let (orders, waiting) = mpsc::channel(QUEUE);
        let dropped = Dropped::default();
        tokio::spawn(send(link, waiting, dropped.clone()));
        Self { orders, dropped }
    }

    pub(super) async fn publish(&self, stream: &'static str, capacity: usize, entries: Vec<NewEntry>) -> Result<(), BusError> {
        if entries.is_empty() {
            return Ok(());
        }
        let count = entries.len() as u64;
        let (answer, answered) = oneshot::channel();
        let order = Order::Publish { stream, command: publication(stream, capacity, entries), entries: count, answer };
        self.orders.send(order).await.map_err(|_| BusError::Closed)?;
        answered.await.map_err(|_| BusError::Closed)?
    }

    pub(super) fn signal(&self, topic: &'static str, payload: Bytes) -> Result<(), BusError> {
        let stands_for = 1 + self.dropped.lock().remove(topic).unwrap_or_default();
        match self.orders.try_send(Order::Signal { topic, stands_for, payload: Some(payload) }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(BusError::Closed),
            Err(mpsc::error::TrySendError::Full(_)) => {
                drop_signal(&self.dropped, topic, stands_for);
                Ok(())
            }
        }
    }
}

fn drop_signal(dropped: &Dropped, topic: &'static str, stands_for: u64) {
    *dropped.lock().entry(topic).or_default() += stands_for;
    metrics::counter!(names::SIGNALS_DROPPED, "topic" => topic).increment(1);
}

fn publication(stream: &'static str, capacity: usize, entries: Vec<NewEntry>) -> Cmd {
    let mut shards: Vec<u16> = vec![];
    let places: Vec<usize> = entries
        .iter()
        .map(|entry| {
            let of = shard::of(&entry.key);
            shards.iter().position(|known| *known == of).unwrap_or_else(|| {
                shards.push(of);
                shards.len() - 1
            })
        })
        .collect();
    let mut command = redis::cmd("EVALSHA");
    command.arg(scripts::PUBLISH.get_hash()).arg(shards.len());
    for of in &shards {
        command.arg(shard::stream(stream, *of));
    }
    command.arg(capacity);
    for (entry, place) in entries.iter().zip(places) {
        command.arg(place + 1).arg(&entry.key).arg(&entry.payload[..]).arg(entry.trace.to_string());
    }
    command
}

async fn send(link: Arc<Link>, mut waiting: mpsc::Receiver<Order>, dropped: Dropped) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased; // what was accepted is sent before this ends
            taken = waiting.recv_many(&mut batch, BATCH), if batch.is_empty() => if taken == 0 { return },
            () = std::future::ready(()), if !batch.is_empty() => {}
            () = link.stop.cancelled() => return,
        }
        let answers = pipeline(&link, &batch).await;
        let all_sent = answers.is_ok();
        settle(&link, batch.drain(..), answers, &dropped);
        if all_sent && waiting.is_empty() {
            // Nobody may come after the last one that was dropped, and its listeners should know all the same.
            batch.extend(dropped.lock().drain().map(|(topic, stands_for)| Order::Signal { topic, stands_for, payload: None }));
        }
    }
}

fn command(order: &Order) -> Cmd {
    match order {
        Order::Publish { command, .. } => command.clone(),
        Order::Signal { topic, stands_for, payload, .. } => {
            let mut command = redis::cmd("EVALSHA");
            command.arg(scripts::SIGNAL.get_hash()).arg(1).arg(counter(topic)).arg(*topic).arg(*stands_for);
            if let Some(payload) = payload {
                command.arg(&payload[..]);
            }
            command
        }
    }
}

/// Where the signals of a topic are counted.
pub(crate) fn counter(topic: &str) -> String {
    format!("signals:{topic}")
}

type Answers = Result<Vec<Result<i64, RedisError>>, CallFailed>;

async fn pipeline(link: &Link, orders: &[Order]) -> Answers {
    let send = async |only: &[usize]| {
        let mut pipeline = redis::Pipeline::with_capacity(only.len());
        pipeline.ignore_errors();
        for at in only {
            pipeline.add_command(command(&orders[*at]));
        }
        let answers = link.call("publish", async |c| pipeline.query_async::<Vec<Result<i64, RedisError>>>(c).await).await?;
        Ok::<_, CallFailed>(answers)
    };
    let mut answers = send(&(0..orders.len()).collect::<Vec<_>>()).await?;
    let unknown: Vec<usize> = (0..answers.len()).filter(|at| matches!(&answers[*at], Err(e) if is_no_script(e))).collect();
    if !unknown.is_empty() {
        for script in [&*scripts::PUBLISH, &*scripts::SIGNAL] as [&Script; 2] {
            link.call("load", async |c| script.load_async(c).await).await?;
        }
        for (at, answer) in unknown.iter().zip(send(&unknown).await?) {
            answers[*at] = answer;
        }
    }
    Ok(answers)
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn settle(link: &Link, orders: impl Iterator<Item = Order>, answers: Answers, dropped: &Dropped) {
    let mut answers = answers.map(Vec::into_iter);
    for order in orders {
        let answer = match &mut answers {
            Ok(answers) => answers.next().ok_or_else(|| BusError::Unavailable { reason: "an answer is missing".into() }),
            Err(failed) => Err(match &order {
                Order::Publish { stream, .. } => failed.for_stream(stream),
                Order::Signal { .. } => BusError::Unavailable { reason: failed.to_string() },
            }),
        };
        match order {
            Order::Publish { stream, entries, answer: asked, .. } => {
                let outcome = match answer {
                    Ok(Ok(-1)) => Ok(()),
                    Ok(Ok(held)) => Err(BusError::Full { stream, held: held as usize }),
                    Ok(Err(error)) => {
                        link.refused(&error);
                        Err(if is_oom(&error) {
                            BusError::OutOfMemory { stream }
                        } else {
                            BusError::Unavailable { reason: in_words(&error) }
                        })
                    }
                    Err(error) => Err(error),
                };
                match &outcome {
                    Ok(()) => metrics::counter!(names::PUBLISHED, "stream" => stream).increment(entries),
                    Err(error) => {
                        let reason = match error {
                            BusError::Full { .. } => "full",
                            BusError::OutOfMemory { .. } => "memory",
                            BusError::Unavailable { .. } | BusError::Closed => "unavailable",
                        };
                        metrics::counter!(names::REFUSED, "stream" => stream, "reason" => reason).increment(1);
                    }
                }
                let _ = asked.send(outcome); // who asked may have stopped waiting
            }
            Order::Signal { topic, stands_for, .. } => {
                if !matches!(answer, Ok(Ok(_))) {
                    drop_signal(dropped, topic, stands_for);
                }
            }
        }
    }
}
