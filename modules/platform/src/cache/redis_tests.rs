//! The suite and the interleavings on a real Redis, and what only processes that share one do to each other.

use super::{first_level::FirstLevel, interleavings::try_every_order, *};
use crate::{bus, testing::RedisServer};
use contracts::CallError;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

fn settings(server: &RedisServer) -> Settings {
    Settings { kind: Kind::Redis, url: Some(bus::Url::try_from(server.url()).unwrap()), call_ms: 200, ..Settings::default() }
}

async fn cache(server: &RedisServer) -> Redis {
    Redis::connect(&Settings { call_ms: 2_000, ..settings(server) }, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_passes_the_suite() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let make = async || {
        server.ask::<String>(&["FLUSHALL"]); // each case has a cache of its own
        Arc::new(cache(&server).await)
    };
    // Redis keeps its own clock: long waits are made by setting what it has back.
    let pass = async |by: Duration| {
        tokio::time::sleep(by.min(Duration::from_millis(150))).await;
        if by > Duration::from_secs(1) {
            set_back(&server, by);
        }
    };
    suite::run(make, pass).await;
}

/// Makes everything that Redis holds older.
fn set_back(server: &RedisServer, by: Duration) {
    let script = r#"
        for _, key in ipairs(redis.call('KEYS', 'cache:*:of:*')) do
          local found = redis.call('HGETALL', key)
          for i = 1, #found, 2 do
            local field, text = found[i], found[i + 1]
            if string.sub(field, 1, 2) == 'l:' then
              local holder, ends = string.match(text, '^(%d+):(%d+)$')
              redis.call('HSET', key, field, holder .. ':' .. string.format('%.0f', ends - ARGV[1]))
            elseif string.sub(field, 1, 2) == 'v:' then
              local head, born, rest = string.match(text, '^(%d+:%d+:%d+:)(%d+)(:.*)$')
              redis.call('HSET', key, field, head .. string.format('%.0f', born - ARGV[1]) .. rest)
            end
          end
        end
        return 0"#;
    server.ask::<i64>(&["EVAL", script, "0", &by.as_millis().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_of_steps_leaves_something_stale_on_redis_and_without_its_guards_some_do() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let cache = cache(&server).await;
    try_every_order(|guards| Arc::new(cache.unguarded(guards))).await;
}

/// A process that reads through the cache, with what its loads say.
struct Process {
    front: Arc<Front>,
    stop: CancellationToken,
    loads: AtomicU64,
}

impl Process {
    async fn start(server: &RedisServer) -> Self {
        let redis = Redis::connect(&settings(server), None).await.unwrap();
        let first = FirstLevel::new(1 << 20, Duration::from_secs(5));
        let front = Arc::new(Front::on(Some(Arc::new(redis)), Some(first), 8));
        let stop = CancellationToken::new();
        tokio::spawn(front.clone().run(stop.clone()));
        Self { front, stop, loads: AtomicU64::new(0) }
    }

    async fn read(&self, key: &Key, database: &AtomicU64) -> Answer {
        self.try_read(key, database).await.unwrap()
    }

    async fn try_read(&self, key: &Key, database: &AtomicU64) -> Result<Answer, CallError> {
        let load = || async {
            self.loads.fetch_add(1, Ordering::SeqCst);
            let ver = database.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await; // a query takes its time
            let stamp = Stamp { ver, mark: Mark { timeline: 1, at: ver } };
            Ok(Loaded { stamp, body: Some(ver.to_string().into()) })
        };
        self.front.read(key.clone(), None, load).await
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> Key {
    Scope::new("tenant", "conv_1").part("row")
}

async fn eventually(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !check().await {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn shown(answer: &Answer) -> &str {
    std::str::from_utf8(answer.body.as_deref().unwrap()).unwrap()
}

/// Stores the next version and announces it by this process.
fn change(process: &Process, database: &AtomicU64) -> u64 {
    let floor = database.fetch_add(1, Ordering::SeqCst) + 1;
    process.front.void(vec![Void { scope: key().scope, floor }]);
    floor
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_in_two_processes_cost_one_read_of_the_database() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let processes = [Process::start(&server).await, Process::start(&server).await];
    let (database, key) = (AtomicU64::new(1), key());
    for round in 1..=3 {
        let answers = futures::future::join_all((0..1_000).map(|n| processes[n % 2].read(&key, &database))).await;
        assert!(answers.iter().all(|answer| shown(answer) == round.to_string()));
        assert_eq!(processes.iter().map(Process::loads).sum::<u64>(), round, "one fill per key");
        change(&processes[0], &database);
        let forgotten = async || processes.iter().all(|process| !process.front.holds(&key));
        eventually("both have heard of the change", Duration::from_secs(5), forgotten).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_announces_a_change_sees_it_at_once_and_others_when_they_hear() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let [here, there] = [Process::start(&server).await, Process::start(&server).await];
    let (database, key) = (AtomicU64::new(1), key());
    for process in [&here, &there] {
        process.read(&key, &database).await;
    }
    assert_eq!(there.read(&key, &database).await.from, From::First);
    for _ in 0..100 {
        let now = change(&here, &database);
        assert_eq!(shown(&here.read(&key, &database).await), now.to_string(), "without waiting for Redis");
    }
    let newest = database.load(Ordering::SeqCst).to_string();
    eventually("the other sees it", Duration::from_secs(5), async || shown(&there.read(&key, &database).await) == newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_is_heard_by_its_message_alone() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let here = Process::start(&server).await;
    let redis = Arc::new(Redis::connect(&settings(&server), None).await.unwrap());
    // Longer than this test; and nobody looks for generations.
    let first = FirstLevel::new(1 << 20, Duration::from_secs(600));
    let front = Arc::new(Front::on(Some(redis.clone()), Some(first), 8));
    let there = Process { front: front.clone(), stop: CancellationToken::new(), loads: AtomicU64::new(0) };
    let hearing = tokio::spawn(async move { front.hear_voids(&*redis).await });
    let listeners = async || server.ask::<(String, u64)>(&["PUBSUB", "NUMSUB", "cache"]).1;
    eventually("both listen", Duration::from_secs(5), async || listeners().await == 2).await;
    let (database, key) = (AtomicU64::new(1), key());
    for _ in 0..5 {
        there.read(&key, &database).await;
        assert_eq!(there.read(&key, &database).await.from, From::First);
        change(&here, &database);
        eventually("it is heard", Duration::from_secs(5), async || !there.front.holds(&key)).await;
        let newest = database.load(Ordering::SeqCst).to_string();
        eventually("it is told", Duration::from_secs(5), async || here.front.is_told()).await;
        assert_eq!(shown(&there.read(&key, &database).await), newest);
    }
    hearing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_that_nobody_heard_of_is_found_by_the_generation() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let process = Process::start(&server).await;
    let (database, key) = (AtomicU64::new(1), key());
    process.read(&key, &database).await;
    let count = async || server.ask::<Option<u64>>(&["GET", "cache:1:generation:tenant"]).unwrap_or_default();
    // Met and counted once, so that what follows is not the first poll.
    change(&process, &database);
    eventually("the void is told", Duration::from_secs(5), async || count().await == 1).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await; // one poll
    process.read(&key, &database).await;
    assert_eq!(process.read(&key, &database).await.from, From::First);
    // As another process's void does, without its message.
    database.fetch_add(1, Ordering::SeqCst);
    server.ask::<i64>(&["DEL", "cache:1:of:6:tenant:conv_1"]);
    server.ask::<i64>(&["INCR", "cache:1:generation:tenant"]);
    let newest = database.load(Ordering::SeqCst).to_string();
    let begun = Instant::now();
    eventually("it is seen", Duration::from_secs(4), async || shown(&process.read(&key, &database).await) == newest).await;
    println!("a lost void was found after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_voided_while_the_subscription_was_cut_is_not_given_when_it_is_back() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let [here, there] = [Process::start(&server).await, Process::start(&server).await];
    let (database, key) = (AtomicU64::new(1), key());
    there.read(&key, &database).await;
    for _ in 0..5 {
        server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        change(&here, &database);
        let newest = database.load(Ordering::SeqCst).to_string();
        eventually("it is seen", Duration::from_secs(4), async || shown(&there.read(&key, &database).await) == newest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_database_answers_and_when_it_is_back_empty_nobody_storms() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let process = Process::start(&server).await;
    let (database, key) = (AtomicU64::new(1), key());
    process.read(&key, &database).await;
    server.kill();
    let begun = Instant::now();
    for _ in 0..50 {
        let now = change(&process, &database);
        assert_eq!(shown(&process.read(&key, &database).await), now.to_string(), "own changes are seen without Redis");
    }
    // Of the same key at once: still one read.
    let before = process.loads();
    futures::future::join_all((0..500).map(|_| process.read(&key, &database))).await;
    assert!(process.loads() - before <= 2, "{} reads of the database", process.loads() - before);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: somebody waited for Redis", begun.elapsed());
    assert!(process.front.trouble().is_some());

    server.start_again(); // with nothing in it
    eventually("it is used again", Duration::from_secs(10), async || {
        process.read(&key, &database).await;
        process.front.trouble().is_none()
    })
    .await;
    let before = process.loads();
    let keys: Vec<Key> = (0..50).map(|n| Scope::new("tenant", format!("conv_{n}")).part("all")).collect();
    futures::future::join_all((0..5_000).map(|n| process.read(&keys[n % 50], &database))).await;
    assert_eq!(process.loads() - before, 50, "one read per key");
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_redis_that_stands_still_holds_nobody_up_for_long() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let process = Process::start(&server).await;
    let (database, key) = (AtomicU64::new(1), key());
    process.read(&key, &database).await;
    server.freeze();
    let mut slowest = Duration::ZERO;
    for n in 0..300 {
        let begun = Instant::now();
        let key = Scope::new("tenant", format!("other_{n}")).part("row");
        process.read(&key, &database).await;
        slowest = slowest.max(begun.elapsed());
    }
    // One call's limit, then the database.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    println!("slowest read beside a Redis that stands still: {slowest:?}");
    let newest = change(&process, &database).to_string();
    assert_eq!(shown(&process.read(&key, &database).await), newest);
    server.thaw();
    eventually("it is used again", Duration::from_secs(10), async || {
        let fresh = Scope::new("tenant", format!("{:?}", Instant::now())).part("row");
        process.read(&fresh, &database).await;
        process.front.trouble().is_none()
    })
    .await;
    eventually("and knows the change", Duration::from_secs(5), async || !process.front.holds(&key)).await;
    assert_eq!(shown(&process.read(&key, &database).await), newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_be_used_is_named_with_the_setting() {
    let nobody =
        Settings { url: Some(bus::Url::try_from("redis://127.0.0.1:1".to_owned()).unwrap()), kind: Kind::Redis, ..Settings::default() };
    let absent = Redis::connect(&nobody, None).await.err().expect("nobody is there").to_string();
    assert!(absent.contains("redis://127.0.0.1:1") && absent.contains("cache.url"), "{absent}");
    let Some(server) = RedisServer::start(&["--requirepass", "secret"]) else { return };
    let refused = Redis::connect(&settings(&server), None).await.err().expect("a password is needed").to_string();
    assert!(refused.contains("cache.url") && refused.contains("expected redis://user:password@"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stands_on_the_connections_of_the_bus_where_that_is_the_same_redis() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let url = Some(bus::Url::try_from(server.url()).unwrap());
    let bus = bus::Redis::connect(&bus::Settings { kind: bus::Kind::Redis, url, ..bus::Settings::default() }).await.unwrap();
    let connected = || server.ask::<String>(&["CLIENT", "LIST"]).lines().count();
    let before = connected();
    let cache = Redis::connect(&Settings { kind: Kind::Redis, ..Settings::default() }, Some(&bus)).await.unwrap();
    for n in 0..100 {
        cache.look(&Scope::new("tenant", n.to_string()).part("row"), None).await.unwrap();
    }
    assert!(connected() <= before + 1, "{} connections, {before} before", connected());
}

const LIFE: Duration = Duration::from_secs(3_600);
/// More than Redis takes on a busy machine.
const PATIENT: Duration = Duration::from_secs(5);

async fn known(process: &Process, key: &Key, limit: Duration) -> Option<Bytes> {
    match process.front.recall(key, limit).await {
        Recalled::Known(body) => Some(body),
        Recalled::Unknown(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_has_worked_out_another_knows_however_long_it_took() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let [here, there] = [Process::start(&server).await, Process::start(&server).await];
    for (n, took) in [Duration::ZERO, 2 * LEASE].into_iter().enumerate() {
        let key = Scope::new("tenant", format!("worked out {n}")).part("answer");
        let Recalled::Unknown(place) = here.front.recall(&key, PATIENT).await else { panic!("nobody has worked it out") };
        assert_eq!(known(&there, &key, PATIENT).await, None, "nobody waits for who is at it");
        set_back(&server, took);
        here.front.keep(&key, place, "an answer".into(), LIFE, PATIENT).await;
        assert_eq!(known(&there, &key, PATIENT).await, Some("an answer".into()), "after {took:?}");
        server.ask::<()>(&["FLUSHALL"]);
        assert_eq!(known(&there, &key, PATIENT).await, Some("an answer".into()), "it is near as well");
    }
    let key = Scope::new("tenant", "never asked for").part("answer");
    here.front.keep(&key, Place::default(), "an answer".into(), LIFE, PATIENT).await;
    assert_eq!(known(&there, &key, PATIENT).await, Some("an answer".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_worked_out_is_not_waited_for_when_redis_stands_still_and_known_again_when_it_does_not() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let process = Process::start(&server).await;
    let key = |n: usize| Scope::new("tenant", format!("worked out {n}")).part("answer");
    Process::start(&server).await.front.keep(&key(0), Place::default(), "an answer".into(), LIFE, PATIENT).await;
    server.freeze();
    let limit = Duration::from_millis(5);
    for n in 0..1_000 {
        // It would hold each up for `call_ms`.
        assert_eq!(known(&process, &key(2 * n), limit).await, None);
        process.front.keep(&key(2 * n + 1), Place::default(), "an answer".into(), LIFE, limit).await;
        assert_eq!(known(&process, &key(2 * n + 1), limit).await, Some("an answer".into()), "this process has it near");
    }
    server.thaw();
    eventually("it is used again", Duration::from_secs(10), async || known(&process, &key(0), PATIENT).await.is_some()).await;
}
