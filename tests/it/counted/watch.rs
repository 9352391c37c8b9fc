//! Who is told of a call: a reader of the live feed, as the dashboard is one, and a webhook. Each of them hears of everything once.

use crate::{finishing::receiver, support::feed::Reader};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// A screen shows everything after this.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a screen shows of a call when everything has been said: utterances with their texts, and current insights.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub utterances: BTreeMap<String, String>,
    pub insights: BTreeSet<String>,
}

/// Reads a call's feed at a node that may die, until its screen shows what is `wanted`. The reader itself finds what is told twice or left out.
pub async fn follow(node: String, id: String, mut wanted: oneshot::Receiver<Shown>) {
    let mut reader = Reader::of(&id);
    let mut whole: Option<(Shown, Instant)> = None;
    loop {
        if reader.try_connect(&node).await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        loop {
            let shown = Shown { utterances: reader.utterances.clone(), insights: reader.insights.clone() };
            let limit = match &whole {
                Some((whole, _)) if *whole == shown => return,
                Some((_, told)) => *told + PATIENCE,
                None => Instant::now() + PATIENCE,
            };
            tokio::select! {
                heard = reader.hear() => if heard.is_none() { break },
                told = &mut wanted, if whole.is_none() => whole = Some((told.expect("whoever started this tells it"), Instant::now())),
                () = tokio::time::sleep_until(limit), if whole.is_some() => panic!("{id}: the screen shows {shown:#?} instead of {whole:#?}"),
            }
        }
    }
}

/// A webhook's receiver.
pub struct Sink {
    url: String,
    told: mpsc::Receiver<String>,
    /// By conversation and version of its result, the ids of what it was told.
    seen: BTreeMap<(String, u64), BTreeSet<String>>,
}

impl Sink {
    pub fn open() -> Self {
        let (url, told) = receiver();
        Self { url, told, seen: BTreeMap::new() }
    }

    /// What makes a record tell it.
    pub fn settings(&self) -> Vec<(String, String)> {
        let set = |name: &str, value: &str| (format!("QUICKCOMM_API__FINALIZE__WEBHOOK_{name}"), value.to_owned());
        vec![set("URL", &self.url), set("SECRET", "a secret of more than 24 characters"), set("PRIVATE", "true")]
    }

    /// That it is told of the conversation, of each of its results by one id however often.
    pub async fn check(&mut self, id: &str) {
        let mut patience = 600;
        loop {
            while let Ok(said) = self.told.try_recv() {
                let (head, body) = said.split_once("\r\n\r\n").expect("it is a request");
                let own = head.lines().find_map(|line| line.to_lowercase().strip_prefix("webhook-id: ").map(str::to_owned));
                let body: Value = serde_json::from_str(body).expect("it is JSON");
                assert_eq!(body["type"], "conversation.finalized", "{body}");
                let of = body["data"]["conversation"]["id"].as_str().expect("it says of whom").to_owned();
                let version = body["data"]["result"]["version"].as_u64().expect("it says of which result");
                self.seen.entry((of, version)).or_default().insert(own.expect("it has an id"));
            }
            let told: Vec<_> = self.seen.iter().filter(|((of, _), _)| of == id).collect();
            assert!(told.iter().all(|(_, ids)| ids.len() == 1), "one result was told by several ids: {told:?}");
            if !told.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            patience -= 1;
            assert!(patience > 0, "the webhook was never told of {id}");
        }
    }
}
