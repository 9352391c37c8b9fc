//! The suite, and what only a real Redis does: it restarts, forgets, stops answering, runs out of memory, trims what is pending.

#[path = "../../../../../tests/it/support/volume.rs"]
mod volume;

use super::*;
use crate::{
    bus::{Delivery, Kind, Url, suite},
    testing::RedisServer,
};
use contracts::TraceCx;
use redis::FromRedisValue;
use std::{collections::BTreeSet, time::Instant};

const STREAM: &str = "stream";
const GROUP: &str = "group";
/// A second, so that tests do not wait for long.
const LEASE_MS: u64 = 1_000;

fn settings(server: &RedisServer) -> Settings {
    Settings {
        kind: Kind::Redis,
        url: Some(Url::try_from(server.url()).unwrap()),
        lease_ms: LEASE_MS,
        block_ms: 300,
        keep: 0,
        ..Settings::default()
    }
}

async fn bus(server: &RedisServer) -> Redis {
    Redis::connect(&settings(server)).await.unwrap()
}

fn entry(key: &str, n: u32) -> NewEntry {
    NewEntry { key: key.into(), payload: Bytes::from(n.to_string()), trace: TraceCx::root() }
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.payload).unwrap().parse().unwrap()
}

/// Keeps publishing until the bus has taken it, as a producer's journal does.
async fn publish(bus: &Redis, entries: Vec<NewEntry>) {
    while let Err(error) = bus.publish(STREAM, entries.clone()).await {
        assert!(!matches!(error, BusError::Closed), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads and acknowledges until each of these has come.
async fn collect(consumer: &mut Box<dyn Consumer>, wanted: impl IntoIterator<Item = u32>) {
    let mut missing: BTreeSet<u32> = wanted.into_iter().collect();
    let begun = Instant::now();
    while !missing.is_empty() {
        let next = tokio::time::timeout(Duration::from_secs(20), consumer.next(64)).await;
        let got = next.unwrap_or_else(|_| panic!("{} have not come: {missing:?}", missing.len())).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{missing:?} have not come");
        for delivery in &got {
            missing.remove(&number(delivery));
        }
        consumer.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    }
}

async fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_passes_the_suite() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let make = async |capacity| {
        server.ask::<String>(&["FLUSHALL"]); // each case has a bus of its own
        Arc::new(Redis::connect(&Settings { capacity, ..settings(&server) }).await.unwrap())
    };
    suite::run(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_a_redis_that_is_killed_and_restarted_gives_back_everything() {
    let Some(mut server) = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]) else { return };
    let bus = bus(&server).await;
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, (0..100).map(|n| entry(&format!("k{}", n % 7), n)).collect()).await;
    let held = consumer.next(10).await.unwrap(); // in work while it dies
    let epoch = bus.epoch();
    server.kill();
    let refused = bus.publish(STREAM, vec![entry("k0", 100)]).await;
    assert!(matches!(refused, Err(BusError::Unavailable { .. })), "{refused:?}");
    eventually("trouble is told", Duration::from_secs(5), || bus.trouble().is_some()).await;
    server.start_again();
    publish(&bus, (100..200).map(|n| entry(&format!("k{}", n % 7), n)).collect()).await;
    let had: BTreeSet<u32> = held.iter().map(number).collect();
    consumer.ack(&held.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    collect(&mut consumer, (0..200).filter(|n| !had.contains(n))).await;
    eventually("producers are told to publish again", Duration::from_secs(5), || bus.epoch() > epoch).await;
    eventually("the trouble is over", Duration::from_secs(5), || bus.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_redis_that_has_forgotten_everything_is_noticed_and_its_groups_are_made_at_the_oldest_entry() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let bus = bus(&server).await;
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 0)]).await;
    collect(&mut consumer, [0]).await;
    let epoch = bus.epoch();
    server.ask::<String>(&["FLUSHALL"]);
    // Before anybody has made the group again: it must not begin at the newest entry.
    publish(&bus, (1..50).map(|n| entry(&format!("k{n}"), n)).collect()).await;
    collect(&mut consumer, 1..50).await;
    eventually("the new epoch", Duration::from_secs(5), || bus.epoch() > epoch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_destroyed_is_made_again_without_a_storm_of_complaints() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let bus = bus(&server).await;
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 0)]).await;
    collect(&mut consumer, [0]).await;
    let epoch = bus.epoch();
    let of = shard::stream(STREAM, shard::of("a"));
    for round in 1..4 {
        server.ask::<i64>(&["XGROUP", "DESTROY", &of, GROUP]);
        publish(&bus, vec![entry("a", round)]).await;
        collect(&mut consumer, [round]).await;
    }
    assert!(bus.epoch() > epoch);
    // Evicted: the stream itself is gone, and comes back without its group.
    server.ask::<i64>(&["DEL", &of]);
    publish(&bus, vec![entry("a", 9)]).await;
    collect(&mut consumer, [9]).await;
    let calls: String = server.ask(&["INFO", "commandstats"]);
    let made = calls.lines().find(|l| l.starts_with("cmdstat_xgroup|create")).unwrap_or_default();
    let calls: u32 = made.split(&['=', ','][..]).nth(1).unwrap().parse().unwrap();
    assert!(calls < 64 + 64, "the group was made again and again: {made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_redis_that_stands_still_holds_nobody_up_and_exhausts_no_pool() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let bus = Arc::new(Redis::connect(&Settings { call_ms: 300, ..settings(&server) }).await.unwrap());
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 0)]).await;
    collect(&mut consumer, [0]).await;
    server.freeze();
    let begun = Instant::now();
    let waiting: Vec<_> = (1..64)
        .map(|n| {
            let bus = bus.clone();
            tokio::spawn(async move { bus.publish(STREAM, vec![entry(&format!("k{n}"), n)]).await })
        })
        .collect();
    for publication in waiting {
        let outcome = publication.await.unwrap();
        assert!(matches!(outcome, Err(BusError::Unavailable { .. })), "{outcome:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "each call has its own deadline: {:?}", begun.elapsed());
    bus.signal("t", Bytes::new()).await.unwrap(); // waits for nobody
    // Longer than the lease: whoever comes back must win its shards again.
    tokio::time::sleep(Duration::from_millis(LEASE_MS * 2)).await;
    server.thaw();
    publish(&bus, (1..64).map(|n| entry(&format!("k{n}"), n)).collect()).await;
    collect(&mut consumer, 1..64).await;
    server.ask::<String>(&["CLIENT", "PAUSE", "1500", "ALL"]);
    publish(&bus, vec![entry("a", 64)]).await;
    collect(&mut consumer, [64]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_a_redis_without_memory_refuses_and_goes_on_when_readers_have_caught_up() {
    let Some(server) = RedisServer::start(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]) else { return };
    // What is confirmed may stay, and nobody would get so far that it may not.
    let bus = Redis::connect(&Settings { keep: Settings::default().keep, ..settings(&server) }).await.unwrap();
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    let big = |n: u32| NewEntry { payload: Bytes::from(format!("{n:>10000}")), ..entry(&format!("k{}", n % 50), n) };
    let mut taken = 0;
    let refused = loop {
        match bus.publish(STREAM, vec![big(taken)]).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 10_000, "4 MB never fill");
    };
    assert!(matches!(refused, BusError::OutOfMemory { stream: STREAM }), "{refused}");
    let told = bus.trouble().expect("what is refused is told");
    assert!(told.contains("OOM") && told.contains("raise its `maxmemory`"), "{told}");
    let mut missing: BTreeSet<u32> = (0..taken).collect();
    while !missing.is_empty() {
        let got = tokio::time::timeout(Duration::from_secs(20), consumer.next(16)).await.expect("nothing that was taken is lost").unwrap();
        for delivery in &got {
            missing.remove(&std::str::from_utf8(&delivery.payload).unwrap().trim().parse().unwrap());
        }
        consumer.ack(&got.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    }
    let trimmed = tokio::time::timeout(Duration::from_secs(20), publish(&bus, vec![big(taken)]));
    trimmed.await.expect("what is confirmed makes room");
    assert_eq!(consumer.next(16).await.unwrap().len(), 1);
    eventually("the trouble is over", Duration::from_secs(10), || bus.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_memory_that_is_used_up_is_told_although_nobody_publishes_and_so_is_its_end() {
    let Some(server) = RedisServer::start(&["--maxmemory-policy", "noeviction"]) else { return };
    let bus = bus(&server).await;
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    eventually("it is told", Duration::from_secs(5), || bus.trouble().is_some_and(|why| why.contains("raise its `maxmemory`"))).await;
    // Whoever starts now may be the one who reads, and so frees it.
    Redis::connect(&settings(&server)).await.unwrap();
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("the trouble is over", Duration::from_secs(10), || bus.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    let Some(volume) = volume::Volume::of(8) else { return };
    let Some(server) = RedisServer::start(&["--appendonly", "yes", "--dir", volume.path().to_str().unwrap()]) else { return };
    let bus = bus(&server).await;
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 0)]).await;
    collect(&mut consumer, [0]).await;
    volume.fill();
    let mut next = 1;
    let refused = loop {
        match bus.publish(STREAM, vec![entry(&format!("k{}", next % 50), next)]).await {
            Ok(()) => next += 1,
            Err(error) => break error.to_string(),
        }
        assert!(next < 100_000, "the disk is not full");
    };
    let told = bus.trouble().expect("what is refused is told");
    let late = Redis::connect(&settings(&server)).await.err().expect("nobody can stand on it").to_string();
    assert!(late.contains(&server.url()), "{late}");
    for said in [refused, told, late] {
        for part in ["cannot write its disk", "MISCONF: Errors writing to the AOF file: No space left on device", "make room"] {
            assert!(said.contains(part), "{said:?} does not say {part:?}");
        }
    }
    volume.make_room();
    publish(&bus, vec![entry("a", next)]).await;
    collect(&mut consumer, 1..=next).await;
    eventually("the trouble is over", Duration::from_secs(10), || bus.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_entries_trimmed_while_pending_raise_the_alarm() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let bus = bus(&server).await;
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 1), entry("a", 2)]).await;
    let held = consumer.next(1).await.unwrap();
    let epoch = bus.epoch();
    server.ask::<i64>(&["XTRIM", &shard::stream(STREAM, shard::of("a")), "MAXLEN", "0"]);
    eventually("the loss is told", Duration::from_secs(10), || bus.epoch() > epoch).await;
    // What is here already is finished; the bus goes on.
    consumer.ack(&[held[0].id]).await.unwrap();
    publish(&bus, vec![entry("a", 3)]).await;
    collect(&mut consumer, [3]).await;
    // And as another reader finds it, after the first was lost with it.
    publish(&bus, vec![entry("a", 4)]).await;
    let held = consumer.next(1).await.unwrap();
    assert_eq!(held.len(), 1);
    drop(consumer);
    bus.close().await;
    let epoch = bus.epoch();
    server.ask::<i64>(&["XTRIM", &shard::stream(STREAM, shard::of("a")), "MAXLEN", "0"]);
    let mut other = bus.consume(STREAM, GROUP).await.unwrap();
    eventually("the loss is told", Duration::from_secs(10), || bus.epoch() > epoch).await;
    publish(&bus, vec![entry("a", 5)]).await;
    collect(&mut other, [5]).await;
}

#[test]
fn what_a_reader_left_without_a_word_is_taken_over_and_counted_and_the_old_reader_can_do_nothing_more() {
    let Some(server) = RedisServer::start(&[]) else { return };
    // Nothing runs here between two calls of `block_on`: as a process that was stopped, and does not know.
    let stopped = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let entries: Vec<NewEntry> = (0..20).map(|n| entry(&format!("k{n}"), n)).collect();
    let published = Instant::now();
    let (mut zombie, held, _bus) = stopped.block_on(async {
        let bus = bus(&server).await;
        let mut zombie = bus.consume(STREAM, GROUP).await.unwrap();
        publish(&bus, entries.clone()).await;
        let mut held = vec![];
        while held.len() < 20 {
            held.extend(zombie.next(20).await.unwrap());
        }
        (zombie, held, bus)
    });
    let running = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (_successor, _bus) = running.block_on(async {
        let bus = bus(&server).await;
        let begun = Instant::now();
        let mut successor = bus.consume(STREAM, GROUP).await.unwrap();
        let mut got = vec![];
        while got.len() < 20 {
            let next = tokio::time::timeout(Duration::from_secs(15), successor.next(20)).await;
            got.extend(next.expect("taken over within 15 s").unwrap());
        }
        assert!(begun.elapsed() >= Duration::from_millis(LEASE_MS / 4), "the lease was not respected");
        assert!(got.iter().all(|d| d.attempt == 2), "it was delivered before");
        for taken in &got {
            assert_eq!(taken.trace, entries[number(taken) as usize].trace, "its tree goes on");
            let waited = published.elapsed();
            let second = Duration::from_secs(1); // what the two took to publish and to be asked
            assert!(taken.age <= waited + second && taken.age + second >= begun.duration_since(published), "{:?} of {waited:?}", taken.age);
        }
        (successor, bus)
    });
    stopped.block_on(zombie.ack(&held.iter().map(|d| d.id).collect::<Vec<_>>())).unwrap();
    let mut pending = 0;
    for of in 0..shard::SHARDS {
        let summary: Vec<redis::Value> = server.ask(&["XPENDING", &shard::stream(STREAM, of), GROUP]);
        pending += i64::from_redis_value_ref(&summary[0]).unwrap();
    }
    assert_eq!(pending, 20, "an acknowledgement by the old reader took an entry from the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_everybody_has_confirmed_is_trimmed() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let bus = bus(&server).await;
    let (mut fast, slow) = (bus.consume(STREAM, GROUP).await.unwrap(), bus.consume(STREAM, "slow").await.unwrap());
    publish(&bus, (0..500).map(|n| entry("a", n)).collect()).await;
    collect(&mut fast, 0..500).await;
    tokio::time::sleep(Duration::from_millis(LEASE_MS)).await; // several rounds of upkeep
    let of = shard::stream(STREAM, shard::of("a"));
    assert_eq!(server.ask::<u64>(&["XLEN", &of]), 500, "the slow group has read nothing");
    let mut slow = slow;
    collect(&mut slow, 0..500).await;
    eventually("trimmed", Duration::from_secs(5), || server.ask::<u64>(&["XLEN", &of]) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_lost_while_there_was_no_connection_are_counted() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (here, there) = (bus(&server).await, bus(&server).await);
    let mut listener = here.listen("t").await.unwrap();
    there.signal("t", Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(listener.next().await, Some(crate::bus::Heard::Signal(Bytes::from_static(b"one"))));
    server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for _ in 0..5 {
        there.signal("t", Bytes::from_static(b"lost, or not")).await.unwrap();
    }
    let mut accounted = 0;
    while accounted < 5 {
        match tokio::time::timeout(Duration::from_secs(10), listener.next()).await.expect("all five are accounted for").unwrap() {
            crate::bus::Heard::Signal(_) => accounted += 1,
            crate::bus::Heard::Missed(n) => accounted += n,
        }
    }
    assert_eq!(accounted, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_be_used_is_named_with_what_to_do() {
    let Some(server) = RedisServer::start(&["--requirepass", "right"]) else { return };
    let at = |url: String| Settings { url: Some(Url::try_from(url).unwrap()), kind: Kind::Redis, ..Settings::default() };
    let said = async |settings: Settings| Redis::connect(&settings).await.err().map(|e| e.to_string()).unwrap_or_default();
    for (url, says) in [
        (format!("redis://u:wrong@127.0.0.1:{}", server.port()), "refuses the user or password"),
        (format!("redis://:wrong@127.0.0.1:{}", server.port()), "refuses the user or password"),
        (server.url(), "refuses the user or password"),
        ("redis://127.0.0.1:1".into(), "no Redis answers at redis://127.0.0.1:1"),
    ] {
        let text = said(at(url)).await;
        assert!(text.contains(says) && !text.contains("wrong@"), "{text:?} does not say {says:?}");
    }
    assert_eq!(said(at(format!("redis://:right@127.0.0.1:{}", server.port()))).await, "");
    let Some(primary) = RedisServer::start(&[]) else { return };
    let port = primary.port().to_string();
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1", &port]) else { return };
    assert!(said(at(replica.url())).await.contains("is a replica"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_while_it_is_used_is_told() {
    let Some(server) = RedisServer::start(&[]) else { return };
    server.ask::<String>(&["ACL", "SETUSER", "calls", "on", ">right", "~*", "&*", "+@all"]);
    let url = Url::try_from(format!("redis://calls:right@127.0.0.1:{}", server.port())).unwrap();
    let bus = Redis::connect(&Settings { url: Some(url), ..settings(&server) }).await.unwrap();
    server.ask::<String>(&["ACL", "SETUSER", "calls", "resetpass", ">other"]);
    server.ask::<i64>(&["CLIENT", "KILL", "USER", "calls"]);
    eventually("it is told", Duration::from_secs(5), || bus.trouble().is_some_and(|why| why.contains("refuses the user or password")))
        .await;
    server.ask::<String>(&["ACL", "SETUSER", "calls", "resetpass", ">right"]);
    eventually("the trouble is over", Duration::from_secs(10), || bus.trouble().is_none()).await;
}

/// What stands between this process and a Redis: an address that stays when the server behind it changes, or a link that goes dead.
struct Way {
    port: u16,
    /// 0: what is sent disappears, and nothing comes back.
    to: tokio::sync::watch::Sender<u16>,
}

impl Way {
    async fn to(server: &RedisServer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, told) = tokio::sync::watch::channel(server.port());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut told = told.clone();
                let target = *told.borrow_and_update();
                tokio::spawn(async move {
                    if target == 0 {
                        let _ = told.changed().await; // accepted, and never answered
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let dead = tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
                        _ = told.changed() => *told.borrow_and_update() == 0,
                    };
                    if dead {
                        let _ = told.changed().await; // half open: neither end hears of the other's
                    }
                });
            }
        });
        Self { port, to }
    }

    fn url(&self) -> Url {
        Url::try_from(format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_half_open_is_given_up_and_made_anew() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let way = Way::to(&server).await;
    let settings = Settings { url: Some(way.url()), call_ms: 300, ..settings(&server) };
    let bus = Redis::connect(&settings).await.unwrap();
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, vec![entry("a", 0)]).await;
    collect(&mut consumer, [0]).await;
    way.to.send_replace(0);
    let begun = Instant::now();
    let refused = bus.publish(STREAM, vec![entry("a", 1)]).await;
    assert!(matches!(refused, Err(BusError::Unavailable { .. })) && begun.elapsed() < Duration::from_secs(3), "{refused:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    way.to.send_replace(server.port());
    publish(&bus, vec![entry("a", 1)]).await;
    collect(&mut consumer, [1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f09_a_replica_that_is_promoted_goes_on_and_what_it_never_got_is_sent_again() {
    let Some(mut primary) = RedisServer::start(&[]) else { return };
    let port = primary.port().to_string();
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1", &port]) else { return };
    eventually("the replica follows", Duration::from_secs(20), || {
        replica.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let way = Way::to(&primary).await;
    let bus = Redis::connect(&Settings { url: Some(way.url()), ..settings(&primary) }).await.unwrap();
    let mut consumer = bus.consume(STREAM, GROUP).await.unwrap();
    publish(&bus, (0..50).map(|n| entry(&format!("k{n}"), n)).collect()).await;
    collect(&mut consumer, 0..50).await;
    eventually("the replica has it", Duration::from_secs(10), || {
        (0..shard::SHARDS).any(|of| replica.ask::<i64>(&["EXISTS", &shard::stream(STREAM, of)]) == 1)
    })
    .await;
    let epoch = bus.epoch();
    // Cut off first, so that the last entries were taken and are lost.
    replica.ask::<String>(&["REPLICAOF", "NO", "ONE"]);
    publish(&bus, (50..100).map(|n| entry(&format!("k{n}"), n)).collect()).await;
    primary.kill();
    way.to.send_replace(replica.port());
    eventually("producers are told", Duration::from_secs(15), || bus.epoch() > epoch).await;
    publish(&bus, (50..100).map(|n| entry(&format!("k{n}"), n)).collect()).await;
    collect(&mut consumer, 50..100).await;
}
