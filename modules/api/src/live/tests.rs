//! The live feed as its readers see it: in the process through an outbox, and from outside through a socket.

use super::{
    hub::Hub,
    outbox::{Out, Outbox},
    topic::{RESUME_EVENTS, Reader},
    wire::TopicName,
};
use crate::{Settings, record::Change, rest::world::World};
use actix_web::{App, HttpServer};
use contracts::{CallError, ConversationId, TenantId, UtteranceId, inference::Task, signal::LiveBody, testing::Behavior};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

const PATIENCE: Duration = Duration::from_secs(20);

// ---- readers in the process

struct Inside {
    hub: Arc<Hub>,
    outbox: Arc<Outbox>,
    id: u64,
}

impl Inside {
    fn new(world: &World) -> Self {
        let hub = world.api.hub();
        Self { outbox: hub.outbox(), id: hub.next_reader(), hub }
    }

    fn subscribe(&self, world: &World, topic: TopicName, since: Option<(u64, &str)>) {
        let reader = Reader { id: self.id, outbox: self.outbox.clone(), partials: true };
        self.hub.subscribe(&world.tenant, topic, reader, since.map(|(seq, epoch)| (seq, epoch.to_owned())));
    }

    async fn next(&self) -> Value {
        match timeout(PATIENCE, self.outbox.next()).await.expect("something within 20 s") {
            Out::Frame(text) | Out::Notice(_, text) => serde_json::from_str(&text).unwrap(),
            Out::TooSlow => panic!("too slow"),
        }
    }

    /// Skips to the next frame of this type.
    async fn until(&self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }
}

/// What a client makes of snapshot and events; the same rules as the dashboard's.
#[derive(Default)]
struct Mirror {
    seq: u64,
    conversation: Value,
    utterances: BTreeMap<String, Value>,
    insights: BTreeMap<String, Value>,
    partials: BTreeMap<String, Value>,
    /// Events that repeated what was known: there must be none.
    repeated: usize,
}

impl Mirror {
    fn take(&mut self, frame: &Value) {
        let data = &frame["data"];
        if let Some(seq) = frame["seq"].as_u64() {
            if frame["type"] == "snapshot" {
                *self = Self { seq, ..Self::default() };
            } else {
                assert_eq!(seq, self.seq + 1, "no number is missing or repeated: {frame}");
                self.seq = seq;
            }
        }
        let key = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
        match frame["type"].as_str().unwrap() {
            "snapshot" => {
                self.conversation = data["conversation"].clone();
                for (kept, name, id) in [
                    (&mut self.utterances, "utterances", "id"),
                    (&mut self.insights, "insights", "id"),
                    (&mut self.partials, "partials", "utterance_id"),
                ] {
                    kept.extend(data[name].as_array().unwrap().iter().map(|row| (key(row, id), row.clone())));
                }
            }
            "utterance.final" => {
                let id = key(&data["utterance"], "id");
                self.partials.remove(&id);
                self.repeated += usize::from(self.utterances.insert(id, data["utterance"].clone()).is_some());
            }
            "utterance.partial" => {
                let id = key(data, "utterance_id");
                assert!(!self.utterances.contains_key(&id), "a partial after its final");
                self.partials.insert(id, data.clone());
            }
            "utterance.retracted" => drop(self.partials.remove(&key(data, "utterance_id"))),
            "insight.created" => {
                self.repeated += usize::from(self.insights.insert(key(&data["insight"], "id"), data["insight"].clone()).is_some());
            }
            "insight.superseded" => drop(self.insights.remove(&key(data, "insight_id"))),
            "conversation.updated" | "conversation.ended" => self.conversation = data["conversation"].clone(),
            "subscribed" | "metrics.tick" | "lag" | "link" | "speech.activity" => {}
            other => panic!("unexpected {other}"),
        }
    }
}

/// By way of text, so that numbers are as short as on the wire.
fn as_told(rows: &impl serde::Serialize) -> Value {
    serde_json::from_str(&serde_json::to_string(rows).unwrap()).unwrap()
}

/// One speaker's turns, each with its partials, its meaning, and now and then a second thought.
async fn talk(world: &World, id: ConversationId, channel: u8, turns: u32) {
    for turn in 0..turns {
        let next = world.next(id, channel);
        world.partial(id, channel, next, 1, "so far").await;
        let utterance = world.say(id, channel, &format!("turn {turn} of speaker {channel}")).await;
        world.partial(id, channel, utterance, 2, "too late").await;
        world.mean(id, utterance, Task::Intent, "billing_dispute", 1).await;
        if turn % 3 == 0 {
            world.mean(id, utterance, Task::Intent, "outage", 2).await;
        }
        if turn % 5 == 0 {
            world.gap(id, channel, 300).await;
        }
        world.silence(id, channel, 200).await;
    }
}

#[actix_web::test]
async fn snapshot_and_events_rebuild_the_record_whenever_a_reader_joins() {
    let world = World::new().await;
    let id = world.open("Billing").await;
    let topic = TopicName::Conversation(id);
    let (speakers, readers) = (
        async {
            tokio::join!(talk(&world, id, 0, 25), talk(&world, id, 1, 25));
            world.close(id).await;
        },
        futures::future::join_all((0..12u64).map(|n| {
            let world = &world;
            async move {
                tokio::time::sleep(Duration::from_millis(n * n * 7)).await; // spread over the talk, the first ones close together
                let reader = Inside::new(world);
                reader.subscribe(world, topic, None);
                let mut mirror = Mirror::default();
                while mirror.conversation["state"] != "complete" {
                    mirror.take(&reader.next().await);
                }
                mirror
            }
        })),
    );
    let ((), mirrors) = tokio::join!(speakers, readers);

    let row = |value: &Value| (value["id"].as_str().unwrap().to_owned(), value.clone());
    let by_id = |rows: Value| rows.as_array().unwrap().iter().map(row).collect::<BTreeMap<_, _>>();
    let utterances = by_id(as_told(&world.record.transcript(&world.tenant, id).await.unwrap()));
    let insights = by_id(as_told(&world.record.insights(&world.tenant, id, false, None).await.unwrap()));
    assert_eq!((utterances.len(), insights.len()), (60, 50));
    for mirror in mirrors {
        assert_eq!(mirror.utterances, utterances);
        assert_eq!(mirror.insights, insights);
        assert_eq!(mirror.conversation["utterance_count"], 50);
        assert!(mirror.partials.is_empty(), "{:?}", mirror.partials);
        assert_eq!(mirror.repeated, 0);
    }
}

#[actix_web::test]
async fn a_reader_who_comes_back_gets_what_it_missed_and_no_more() {
    let world = World::new().await;
    let id = world.open("Billing").await;
    let topic = TopicName::Conversation(id);
    let first = Inside::new(&world);
    first.subscribe(&world, topic, None);
    let mut mirror = Mirror::default();
    mirror.take(&first.until("snapshot").await);
    world.say(id, 0, "hello").await;
    while mirror.utterances.is_empty() {
        mirror.take(&first.next().await); // the opening may be told before
    }
    first.hub.unsubscribe(&world.tenant, topic, first.id);

    let missed = world.say(id, 1, "I was charged twice").await;
    let growing = world.next(id, 1);
    world.partial(id, 1, growing, 1, "and").await;
    // Another reader shows when the feed has come this far.
    let witness = Inside::new(&world);
    witness.subscribe(&world, topic, None);
    while !witness.next().await.to_string().contains(&growing.to_string()) {}

    let again = Inside::new(&world);
    again.subscribe(&world, topic, Some((mirror.seq, &again.hub.epoch)));
    assert_eq!(again.next().await["data"]["resumed"], true);
    // What is stored and what passes by come by different ways: in any order.
    while mirror.partials.is_empty() || !mirror.utterances.contains_key(&missed.to_string()) {
        mirror.take(&again.next().await);
    }
    assert_eq!(mirror.utterances.len(), 2);
    assert_eq!(mirror.repeated, 0);

    for (since, epoch) in [(mirror.seq, "another run"), (mirror.seq + 1000, again.hub.epoch.as_str())] {
        let stranger = Inside::new(&world);
        stranger.subscribe(&world, topic, Some((since, epoch)));
        assert_eq!(stranger.next().await["data"]["resumed"], false, "{since} {epoch}");
        assert_eq!(stranger.next().await["type"], "snapshot");
    }
}

#[actix_web::test]
async fn what_lies_too_far_back_is_answered_by_a_snapshot() {
    let world = World::new().await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Wall, None);
    let seq = reader.until("snapshot").await["seq"].as_u64().unwrap();
    reader.hub.unsubscribe(&world.tenant, TopicName::Wall, reader.id);
    let last = world.open("last").await;
    for n in 0..=RESUME_EVENTS {
        world.say(last, 0, &format!("word {n}")).await;
    }
    let witness = Inside::new(&world);
    let mut text = String::new();
    while !text.contains(&format!("word {RESUME_EVENTS}")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        witness.subscribe(&world, TopicName::Wall, None);
        text = witness.until("snapshot").await.to_string();
    }
    let back = Inside::new(&world);
    back.subscribe(&world, TopicName::Wall, Some((seq, &back.hub.epoch)));
    assert_eq!(back.next().await["data"]["resumed"], false);
}

#[actix_web::test]
async fn unfinished_text_goes_with_its_final_its_retraction_or_its_age() {
    let world =
        World::with(Settings { live: super::Settings { partial_ttl_ms: 1_000, ..super::Settings::default() }, ..Settings::default() })
            .await;
    let id = world.open("Billing").await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Conversation(id), None);
    reader.until("snapshot").await;
    let lost = UtteranceId::from_u128(1);
    world.partial(id, 0, lost, 2, "I have").await;
    assert_eq!(reader.until("utterance.partial").await["data"]["text"], "I have");
    world.partial(id, 0, lost, 1, "I").await; // overtaken on the way
    let taken_back = UtteranceId::from_u128(2);
    world.partial(id, 1, taken_back, 1, "hm").await;
    let partial = reader.until("utterance.partial").await;
    assert_eq!(
        (partial["data"]["utterance_id"].as_str(), partial["data"]["role"].as_str()),
        (Some(&*taken_back.to_string()), Some("customer"))
    );
    world.signal(id, 1, LiveBody::Retracted { utterance: taken_back }).await;
    world.partial(id, 1, taken_back, 9, "again").await;
    assert_eq!(reader.until("utterance.retracted").await["data"]["utterance_id"], taken_back.to_string());
    let aged = reader.until("utterance.retracted").await;
    assert_eq!(aged["data"]["utterance_id"], lost.to_string(), "its sender went silent");
}

#[actix_web::test]
async fn the_wall_shows_who_is_live_and_tells_what_happens() {
    let world = World::new().await;
    let old = world.open("before").await;
    let utterance = world.say(old, 1, "you charged me twice").await;
    world.mean(old, utterance, Task::Sentiment, "negative", 1).await;
    let reader = Inside::new(&world);
    let wall = loop {
        reader.subscribe(&world, TopicName::Wall, None);
        let wall = reader.until("snapshot").await;
        if wall.to_string().contains("negative") {
            break wall; // all that was said before has reached the feed
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let tile = &wall["data"]["conversations"][0];
    assert_eq!((tile["id"].as_str(), tile["last_text"].as_str()), (Some(&*old.to_string()), Some("you charged me twice")), "{wall}");
    assert_eq!(tile["sentiments"], json!([{ "at_ms": 0, "name": "negative", "score": 0.8 }]));
    assert_eq!(
        (tile["talking"].clone(), tile["connected"].clone(), tile["lag_ms"].clone()),
        (json!([false, false]), json!(true), json!(0))
    );

    let new = world.open("after").await;
    let started = reader.until("conversation.started").await;
    assert_eq!(
        (started["conversation_id"].as_str(), started["data"]["conversation"]["title"].as_str()),
        (Some(&*new.to_string()), Some("after"))
    );
    world.signal(new, 1, LiveBody::Activity { talking: true }).await;
    assert_eq!(reader.until("speech.activity").await["data"], json!({ "channel": 1, "talking": true }));
    world.signal(new, 1, LiveBody::Link { connected: false }).await;
    assert_eq!(reader.until("link").await["data"], json!({ "connected": false }));
    world.signal(new, 0, LiveBody::Lag { ms: 40 }).await;
    assert_eq!(reader.until("lag").await["data"], json!({ "ms": 40 }));
    world.say(new, 0, "hello").await;
    let said = reader.until("utterance.final").await;
    assert_eq!((said["data"]["utterance"]["text"].as_str(), &said["data"]["utterance"]["words"]), (Some("hello"), &json!([])));
    world.close(new).await;
    assert_eq!(reader.until("speech.activity").await["data"], json!({ "channel": 1, "talking": false }), "nobody talks after the end");
    assert_eq!(reader.until("conversation.ended").await["data"]["conversation"]["state"], "complete");
    while world.status.report().conversations.live != 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[actix_web::test]
async fn talk_metrics_follow_at_most_once_a_second() {
    let world = World::new().await;
    let id = world.open("Billing").await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Conversation(id), None);
    assert_eq!(reader.until("snapshot").await["data"]["metrics"]["channels"][0]["words"], 0);
    let start = tokio::time::Instant::now();
    let mut ticks = vec![];
    for _ in 0..3 {
        world.say(id, 0, "one two").await;
        world.say(id, 0, "three four").await;
        ticks.push(reader.until("metrics.tick").await);
    }
    assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());
    let told = as_told(&world.record.metrics(&world.tenant, id).await.unwrap());
    assert_eq!(ticks[2]["data"], told);
    assert!(ticks[2]["seq"].is_null());
}

#[actix_web::test]
async fn a_feed_that_fell_behind_the_record_starts_over_with_nothing_missing() {
    let world = World::new().await;
    let id = world.open("Billing").await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Conversation(id), None);
    let mut mirror = Mirror::default();
    mirror.take(&reader.until("snapshot").await);
    let mut changes = world.record.subscribe();
    world.say(id, 0, "hello").await;
    mirror.take(&reader.until("utterance.final").await);
    let before = mirror.seq;

    // Changes of somebody else's: they only push ours out.
    let foreign = Change { tenant: TenantId::new("stranger"), ..(*changes.recv().await.unwrap()).clone() };
    let missed = world.say(id, 1, "missed by the feed").await;
    while changes.recv().await.unwrap().conversation != id {}
    world.record.flood(&Arc::new(foreign));
    let snapshot = reader.until("snapshot").await;
    mirror.take(&snapshot);
    assert!(snapshot["seq"].as_u64().unwrap() > before);
    assert!(mirror.utterances.contains_key(&missed.to_string()), "{:?}", mirror.utterances);
    let next = world.say(id, 0, "and on").await;
    mirror.take(&reader.until("utterance.final").await);
    assert!(mirror.utterances.len() == 3 && mirror.utterances.contains_key(&next.to_string()));
    assert_eq!(mirror.repeated, 0);

    let back = Inside::new(&world);
    back.subscribe(&world, TopicName::Conversation(id), Some((before, &back.hub.epoch)));
    assert_eq!(back.next().await["data"]["resumed"], false, "what came before is not certain any more");
}

#[actix_web::test]
async fn another_tier_is_told_to_everyone_at_the_wall() {
    let world = World::new().await;
    world.open("Billing").await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Wall, None);
    reader.until("snapshot").await;
    while world.status.report().tiers.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.inference.behave(Behavior::Fail(CallError::unavailable("gone for lunch")));
    for task in Task::ALL {
        let told = reader.until("tier.changed").await;
        assert_eq!((told["data"]["task"].as_str(), told["data"]["tier"].as_str()), (Some(task.name()), Some("pending")));
        assert!(told["data"]["degraded"].as_str().unwrap().contains("gone for lunch"), "{told}");
        assert!(told["seq"].is_u64(), "who comes back is told too");
    }
    world.inference.behave(Behavior::Answer);
    assert_eq!(reader.until("tier.changed").await["data"]["tier"], "rules");
}

#[actix_web::test]
async fn an_ended_conversation_nobody_reads_is_forgotten_and_its_numbers_are_not_used_again() {
    let world = World::new().await;
    let id = world.open("Billing").await;
    let topic = TopicName::Conversation(id);
    let reader = Inside::new(&world);
    reader.subscribe(&world, topic, None);
    reader.until("snapshot").await;
    world.say(id, 0, "hello").await;
    world.close(id).await;
    let last = reader.until("conversation.ended").await["seq"].as_u64().unwrap();
    assert_eq!(reader.hub.watched(), 1);
    reader.hub.unsubscribe(&world.tenant, topic, reader.id);
    while reader.hub.watched() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = Inside::new(&world);
    back.subscribe(&world, topic, Some((last, &back.hub.epoch)));
    assert_eq!(back.next().await["data"]["resumed"], false);
    assert!(back.until("snapshot").await["seq"].as_u64().unwrap() > last);
}

#[actix_web::test]
async fn what_does_not_exist_cannot_be_watched() {
    let world = World::new().await;
    let reader = Inside::new(&world);
    reader.subscribe(&world, TopicName::Conversation(ConversationId::from_u128(9)), None);
    let refusal = reader.until("error").await;
    assert_eq!(refusal["data"]["code"], "not_found", "{refusal}");
    assert_eq!(reader.hub.watched(), 0);
}

// ---- readers at the other end of a socket

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next frame, or the code it was closed with.
    async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("something within 20 s") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(close))) => return Err(close.map_or(1005, |c| c.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(1006),
            }
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await.unwrap();
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }
}

/// Serves the world; ends with it.
fn serve(world: &World) -> String {
    let api = world.api.clone();
    let server =
        HttpServer::new(move || App::new().configure(|app| api.configure(app))).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let addr = server.addrs()[0];
    let running = server.run();
    let (handle, over) = (running.handle(), world.over.clone());
    actix_web::rt::spawn(running);
    actix_web::rt::spawn(async move {
        over.cancelled().await;
        handle.stop(false).await;
    });
    format!("ws://{addr}/v1/live")
}

async fn connect(url: &str) -> Client {
    Client(connect_async(url).await.unwrap().0)
}

async fn greet(url: &str) -> Client {
    let mut client = connect(url).await;
    client.say(json!({ "type": "hello", "protocol": 1 })).await;
    let welcome = client.until("welcome").await;
    assert_eq!((welcome["data"]["protocol"].as_u64(), welcome["data"]["resume_events"].as_u64()), (Some(1), Some(512)));
    client
}

fn small(live: super::Settings) -> Settings {
    Settings { live, ..Settings::default() }
}

#[actix_web::test]
async fn a_socket_carries_snapshot_and_events_and_answers_pings() {
    let world = World::new().await;
    let url = serve(&world);
    let id = world.open("Billing").await;
    let mut client = greet(&url).await;
    client.say(json!({ "type": "ping" })).await;
    client.until("pong").await;
    client.say(json!({ "type": "subscribe", "topic": format!("conversation:{id}"), "partials": true })).await;
    assert_eq!(client.until("subscribed").await["data"], json!({ "resumed": false }));
    let seq = client.until("snapshot").await["seq"].as_u64().unwrap();
    world.say(id, 1, "hello").await;
    assert_eq!(client.until("utterance.final").await["seq"], seq + 1);
    client.say(json!({ "type": "unsubscribe", "topic": format!("conversation:{id}") })).await;
    client.say(json!({ "type": "ping" })).await;
    client.until("pong").await;
    world.say(id, 1, "not told").await;
    client.say(json!({ "type": "ping" })).await;
    assert_eq!(client.next().await.unwrap()["type"], "pong");
    world.stop.cancel();
    assert_eq!(client.until("goodbye").await["data"]["reason"], "restarting");
    assert_eq!(client.closed().await, 1012);
}

#[actix_web::test]
async fn a_client_that_says_the_wrong_thing_is_told_what_was_expected() {
    let world = World::new().await;
    let url = serve(&world);
    let mut client = connect(&url).await;
    for (said, code) in [
        (json!({ "type": "ping" }), "no_hello"),
        (json!({ "type": "hello", "protocol": 9 }), "unknown_protocol"),
        (json!({ "type": "shout" }), "bad_message"),
        (json!(["hello"]), "bad_message"),
    ] {
        client.say(said).await;
        assert_eq!(client.until("error").await["data"]["code"], code);
    }
    client.say(json!({ "type": "hello", "protocol": 1 })).await;
    client.until("welcome").await;
    client.say(json!({ "type": "subscribe", "topic": "everything" })).await;
    let refusal = client.until("error").await;
    assert!(refusal["data"]["message"].as_str().unwrap().contains("expected wall or conversation:conv_"), "{refusal}");
    client.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(client.closed().await, 1003);

    let mut long = greet(&url).await;
    long.0.send(Message::text("x".repeat(20_000))).await.unwrap();
    assert_eq!(long.closed().await, 1009);

    let mut flood = greet(&url).await;
    for _ in 0..80 {
        let _ = flood.0.send(Message::text(r#"{"type":"ping"}"#)).await; // it may be closed before the last one
    }
    assert_eq!(flood.closed().await, 1008);
}

#[actix_web::test]
async fn a_page_from_elsewhere_is_refused_before_the_upgrade() {
    let world = World::with(small(super::Settings { max_connections: 1, ..super::Settings::default() })).await;
    let url = serve(&world);
    let own = url.replace("ws://", "http://").replace("/v1/live", "");
    let port = own.rsplit(':').next().unwrap().to_owned();
    let status = async |origin: Option<&str>, host: Option<&str>| {
        let mut request = url.as_str().into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        match connect_async(request).await {
            Ok(open) => (101, Some(open)),
            Err(tungstenite::Error::Http(answer)) => (answer.status().as_u16(), None),
            Err(other) => panic!("{other}"),
        }
    };
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"] {
        assert_eq!(status(Some(origin), None).await.0, 403, "{origin}");
    }
    let rebound = (format!("http://evil.example:{port}"), format!("evil.example:{port}"));
    assert_eq!(status(Some(&rebound.0), Some(&rebound.1)).await.0, 421);
    let (code, held) = status(Some(&own), None).await;
    assert_eq!(code, 101);
    assert_eq!(status(None, None).await.0, 503, "the only seat is taken");
    drop(held);
    timeout(PATIENCE, async { while status(None, None).await.0 != 101 {} }).await.expect("the seat is free again");
}

#[actix_web::test]
async fn a_silent_socket_is_closed() {
    let world = World::with(small(super::Settings { ping_ms: 100, idle_ms: 200, ..super::Settings::default() })).await;
    let url = serve(&world);
    let mut client = greet(&url).await;
    // A client that reads answers pings, and stays.
    assert!(timeout(Duration::from_millis(800), client.next()).await.is_err());
    client.say(json!({ "type": "ping" })).await;
    client.until("pong").await;
    // One that does not is gone, and its seat with it.
    let seats = world.api.hub().seats.available_permits();
    timeout(PATIENCE, async {
        while world.api.hub().seats.available_permits() == seats {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it was closed");
}

#[actix_web::test]
async fn a_slow_reader_is_told_and_closed_and_misses_no_final() {
    let world = World::with(small(super::Settings { queue_events: 16, ..super::Settings::default() })).await;
    let url = serve(&world);
    let id = world.open("long").await;
    let mut slow = greet(&url).await;
    slow.say(json!({ "type": "subscribe", "topic": format!("conversation:{id}") })).await;
    let mut mirror = Mirror::default();
    mirror.take(&slow.until("snapshot").await);

    let other = Inside::new(&world);
    other.subscribe(&world, TopicName::Conversation(id), None);
    other.until("snapshot").await;
    let text = ["word"; 400].join(" ");
    let turns = 300; // some 30 KB each: more than the kernel keeps for a socket nobody reads
    for n in 0..turns {
        world.say(id, 0, &format!("{n} {text}")).await;
        let told = timeout(PATIENCE, other.until("utterance.final")).await.expect("another reader is not held up");
        assert!(told["data"]["utterance"]["text"].as_str().unwrap().starts_with(&format!("{n} ")));
    }

    let mut gap = None;
    let code = loop {
        match slow.next().await {
            Ok(frame) if frame["type"] == "gap" => gap = Some(frame),
            Ok(frame) => mirror.take(&frame),
            Err(code) => break code,
        }
    };
    let got = mirror.utterances.len();
    assert!((1..turns).contains(&got), "{got}");
    assert_eq!(code, 4408);
    let gap = gap.expect("it is told before it is closed");
    assert_eq!(gap["data"]["from_seq"], mirror.seq + 1);

    let epoch = world.api.hub().epoch.clone();
    let mut back = greet(&url).await;
    back.say(json!({ "type": "subscribe", "topic": format!("conversation:{id}"), "since_seq": mirror.seq, "epoch": epoch })).await;
    while mirror.utterances.len() < turns {
        mirror.take(&back.next().await.unwrap());
    }
    assert_eq!(mirror.repeated, 0);
}
