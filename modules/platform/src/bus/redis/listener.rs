//! Signals from Redis to whoever listens in this process: one subscription per topic.
//!
//! Every signal carries its number, so what is lost is known exactly: by a slow reader, by Redis cutting a slow connection, or while there
//! was none.

use super::super::{BusError, Heard, Listener, metrics as names};
use super::{link::Link, outbox};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use redis::RedisError;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};

/// Signals a listener may be behind.
const BACKLOG: usize = 4_096;
/// A connection that brings nothing may be half open: it is asked this often.
const PING: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Topics(Mutex<HashMap<&'static str, Topic>>);

#[derive(Clone)]
struct Topic {
    told: broadcast::Sender<Heard>,
    subscribed: watch::Receiver<bool>,
}

impl Topics {
    /// Returns once whatever is signalled from now on will be heard.
    pub(crate) async fn listen(&self, link: &Arc<Link>, topic: &'static str) -> Result<Box<dyn Listener>, BusError> {
        let Topic { told, mut subscribed } = self.0.lock().entry(topic).or_insert_with(|| start(link.clone(), topic)).clone();
        let rx = told.subscribe();
        let limit = Duration::from_millis(link.settings.call_ms) * 2;
        match timeout(limit, subscribed.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(Box::new(Ears(rx))),
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_) => Err(BusError::Unavailable { reason: format!("no subscription to {topic} within {} ms", limit.as_millis()) }),
        }
    }
}

struct Ears(broadcast::Receiver<Heard>);

#[async_trait]
impl Listener for Ears {
    async fn next(&mut self) -> Option<Heard> {
        match self.0.recv().await {
            Ok(heard) => Some(heard),
            Err(broadcast::error::RecvError::Lagged(n)) => Some(Heard::Missed(n)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

fn start(link: Arc<Link>, topic: &'static str) -> Topic {
    let (told, _) = broadcast::channel(BACKLOG);
    let (ready, subscribed) = watch::channel(false);
    let tell = told.clone();
    tokio::spawn(async move {
        let mut count = Count { topic, last: None, tell };
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = link.stop.cancelled() => return,
                ended = subscription(&link, &mut count, &ready) => {
                    link.complain(&format!("signals of {topic}: {}", ended.map_or_else(|e| e.to_string(), |()| "the connection has ended".into())));
                }
            }
            pause = if ready.send_replace(false) { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = link.stop.cancelled() => return }
        }
    });
    Topic { told, subscribed }
}

/// As long as one connection lasts.
async fn subscription(link: &Link, count: &mut Count, ready: &watch::Sender<bool>) -> Result<(), RedisError> {
    let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    let limit = Duration::from_millis(link.settings.call_ms);
    let mut pubsub = timeout(limit, link.client.get_async_pubsub()).await.map_err(late)??;
    timeout(limit, pubsub.subscribe(count.topic)).await.map_err(late)??;
    let (mut asking, mut messages) = pubsub.split();
    if count.last.is_some() {
        let key = outbox::counter(count.topic);
        let now = link.call("signals", async |c| redis::cmd("GET").arg(key).query_async::<Option<u64>>(c).await).await;
        if let Ok(now) = now {
            count.stands_at(now.unwrap_or_default());
        }
    }
    ready.send_replace(true);
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => count.hear(message.get_payload_bytes()),
                None => return Ok(()),
            },
            _ = ping.tick() => {
                timeout(limit, asking.ping::<redis::Value>()).await.map_err(late)??;
            }
        }
    }
}

struct Count {
    topic: &'static str,
    /// Number of the last signal heard of.
    last: Option<u64>,
    tell: broadcast::Sender<Heard>,
}

impl Count {
    /// `number:payload`, or `number!` for some that could not be sent.
    fn hear(&mut self, message: &[u8]) {
        let Some(digits) = message.iter().position(|b| !b.is_ascii_digit()) else { return };
        let number: Option<u64> = std::str::from_utf8(&message[..digits]).ok().and_then(|text| text.parse().ok());
        let (Some(number), mark) = (number, message[digits]) else { return };
        if mark != b':' {
            return self.stands_at(number);
        }
        self.stands_at(number.saturating_sub(1));
        self.last = Some(number);
        let _ = self.tell.send(Heard::Signal(Bytes::copy_from_slice(&message[digits + 1..]))); // an error only says that nobody listens
    }

    /// Everything up to this number has been sent.
    fn stands_at(&mut self, number: u64) {
        let missed = match self.last {
            None => 0,
            Some(last) if number >= last => number - last,
            Some(_) => number.max(1), // Redis has forgotten how many there were
        };
        self.last = Some(number);
        if missed > 0 {
            metrics::counter!(names::SIGNALS_MISSED, "topic" => self.topic).increment(missed);
            let _ = self.tell.send(Heard::Missed(missed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_between_two_signals_is_counted() {
        let (tell, mut heard) = broadcast::channel(64);
        let mut count = Count { topic: "t", last: None, tell };
        let mut after = |message: &str| {
            count.hear(message.as_bytes());
            std::iter::from_fn(|| heard.try_recv().ok()).collect::<Vec<_>>()
        };
        let said = |text: &'static str| Heard::Signal(Bytes::from_static(text.as_bytes()));
        assert_eq!(after("7:a:b"), [said("a:b")], "what came before it began to listen is not missed");
        assert_eq!(after("8:x"), [said("x")]);
        assert_eq!(after("11:y"), [Heard::Missed(2), said("y")]);
        assert_eq!(after("14!"), [Heard::Missed(3)]);
        assert_eq!(after("2:z"), [Heard::Missed(1), said("z")], "the counter began anew");
        assert_eq!(after("nonsense"), []);
    }
}
