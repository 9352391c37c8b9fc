//! A reader of the live feed by the dashboard's rules: what was shown is replaced by a snapshot, continued by numbered events, and never told
//! twice.

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const PATIENCE: Duration = Duration::from_secs(30);

/// One conversation as it is shown.
pub struct Reader {
    topic: String,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    /// Of the feed that is read.
    pub epoch: Option<String>,
    /// Whose numbers, and the last of them.
    at: Option<(String, u64)>,
    /// Finals by id.
    pub utterances: BTreeMap<String, String>,
    /// Current ones.
    pub insights: BTreeSet<String>,
    pub partials: usize,
    pub snapshots: usize,
    pub state: String,
}

impl Reader {
    pub fn of(conversation: &str) -> Self {
        Self {
            topic: format!("conversation:{conversation}"),
            socket: None,
            epoch: None,
            at: None,
            utterances: BTreeMap::new(),
            insights: BTreeSet::new(),
            partials: 0,
            snapshots: 0,
            state: String::new(),
        }
    }

    /// Goes on at the node at `address`, from the last number there is. Says whether it was resumed; else a snapshot has been shown.
    pub async fn connect(&mut self, address: &str) -> bool {
        self.try_connect(address).await.expect("the node lives")
    }

    /// The same; `None`: the node is gone, or has gone meanwhile.
    pub async fn try_connect(&mut self, address: &str) -> Option<bool> {
        let (socket, _) = connect_async(format!("{}/v1/live", address.replace("http", "ws"))).await.ok()?;
        self.socket = Some(socket);
        self.say(json!({ "type": "hello", "protocol": 1 })).await?;
        let welcome = self.next().await?;
        self.epoch = Some(welcome["data"]["epoch"].as_str().unwrap().to_owned());
        let (since, epoch) = self.at.clone().map_or((None, None), |(epoch, seq)| (Some(seq), Some(epoch)));
        self.say(json!({ "type": "subscribe", "topic": self.topic, "partials": true, "since_seq": since, "epoch": epoch })).await?;
        let subscribed = self.next().await?;
        assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
        let resumed = subscribed["data"]["resumed"] == true;
        if !resumed {
            assert_eq!(self.hear().await?, "snapshot");
        }
        Some(resumed)
    }

    /// Without a goodbye, as a network that is gone.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    async fn say(&mut self, message: Value) -> Option<()> {
        self.socket.as_mut().expect("it is connected").send(Message::text(message.to_string())).await.ok()
    }

    /// The next frame; `None`: the node is gone.
    async fn next(&mut self) -> Option<Value> {
        let socket = self.socket.as_mut().expect("it is connected");
        loop {
            match timeout(PATIENCE, socket.next()).await.expect("a frame in time")? {
                Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Shows one more frame and names it; `None`: the node is gone.
    pub async fn hear(&mut self) -> Option<String> {
        let frame = self.next().await?;
        let kind = frame["type"].as_str().unwrap().to_owned();
        let data = &frame["data"];
        let epoch = self.epoch.clone().expect("it was welcomed");
        let id = |row: &Value| row["id"].as_str().unwrap().to_owned();
        let rows = |name: &str| data[name].as_array().into_iter().flatten();
        if kind == "snapshot" {
            self.at = Some((epoch, frame["seq"].as_u64().unwrap()));
            self.snapshots += 1;
            self.utterances = rows("utterances").map(|u| (id(u), u["text"].as_str().unwrap_or_default().to_owned())).collect();
            self.insights = rows("insights").map(id).collect();
            self.state = data["conversation"]["state"].as_str().unwrap().to_owned();
            return Some(kind);
        }
        if let Some(seq) = frame["seq"].as_u64() {
            let (of, last) = self.at.as_mut().expect("a snapshot came first");
            assert_eq!((&*of, seq), (&epoch, *last + 1), "a number is missing, or told twice: {frame}");
            *last = seq;
        }
        match kind.as_str() {
            "utterance.partial" => self.partials += 1,
            "utterance.final" => {
                let said = &data["utterance"];
                let before = self.utterances.insert(id(said), said["text"].as_str().unwrap_or_default().to_owned());
                assert_eq!(before, None, "told twice: {frame}");
            }
            "insight.created" => assert!(self.insights.insert(id(&data["insight"])), "told twice: {frame}"),
            "insight.superseded" => {
                self.insights.remove(data["insight_id"].as_str().unwrap());
            }
            "conversation.started" | "conversation.updated" | "conversation.ended" => {
                self.state = data["conversation"]["state"].as_str().unwrap().to_owned();
            }
            "error" => panic!("{frame}"),
            _ => {}
        }
        Some(kind)
    }
}
