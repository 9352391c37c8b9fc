//! Peers that write themselves down on a real Redis: they come, leave, die, and outlive that Redis. Through the public doors alone.

use contracts::{
    CallCx, Inference,
    route::{Dial, Mode, Routes, Source},
    testing::FakeInference,
};
use fabric::{
    Drain, Network, Services,
    discovery::Registration,
    route::{Dials, Place},
};
use platform::{
    bus::{Bus, Kind, Nodes, Redis, Settings, Url},
    testing::RedisServer,
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LEASE: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(20);

async fn registry(server: &RedisServer) -> (Redis, Nodes) {
    let url = Some(Url::try_from(server.url()).unwrap());
    let redis = Redis::connect(&Settings { kind: Kind::Redis, url, call_ms: 300, ..Settings::default() }).await.unwrap();
    let nodes = redis.nodes("quickcomm");
    (redis, nodes)
}

/// A process that serves inference and writes itself down.
struct Peer {
    address: String,
    registration: Arc<Registration>,
    stop: CancellationToken,
    keeping: JoinHandle<()>,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Peer {
    async fn start(nodes: &Nodes) -> Self {
        let network = Network::default();
        let services = Services { inference: Some(Arc::new(FakeInference::default())), ..Services::default() };
        let modules = services.names();
        let server = network.serve("http://127.0.0.1:0", services).await.unwrap().drain(Drain::within(Duration::from_millis(200)));
        let address = server.address().to_owned();
        let registration = Arc::new(Registration::new(&network, nodes.clone(), &address, modules, LEASE).unwrap());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.run(stop.clone()));
        let (kept, until) = (registration.clone(), stop.clone());
        let keeping = tokio::spawn(async move { kept.keep(until).await });
        Self { address, registration, stop, keeping, serving }
    }

    /// As kill -9 ends a process: nothing is said.
    fn die(self) -> String {
        self.keeping.abort();
        self.serving.abort();
        self.address
    }

    async fn drain(self) {
        self.registration.leave().await;
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// A process that asks whoever is in the registry.
struct Asks {
    dials: Arc<Dials>,
    handle: Arc<dyn Inference>,
    following: JoinHandle<()>,
}

impl Asks {
    fn start(nodes: &Nodes) -> Self {
        let mut dials = Dials::default();
        let place = Place { dial: Dial { mode: Mode::Remote, ..Dial::default() }, endpoints: vec![] };
        let handle =
            dials.inference(None, &place, Arc::new(|at| Ok((fabric::connect::inference(at)?, fabric::connect::health(at)?)))).unwrap();
        let dials = Arc::new(dials);
        let (follows, nodes) = (dials.clone(), nodes.clone());
        let following = tokio::spawn(async move { follows.follow(&nodes, None, LEASE, CancellationToken::new()).await });
        Self { dials, handle, following }
    }

    async fn call(&self) -> Result<(), String> {
        self.handle.tiers(CallCx::new(Duration::from_secs(2))).await.map(drop).map_err(|error| error.to_string())
    }

    fn targets(&self) -> Vec<String> {
        let mut names: Vec<String> = self.dials.views()[0].targets.iter().map(|target| target.name.clone()).collect();
        names.sort();
        names
    }

    /// Waits until exactly these are asked.
    async fn until(&self, mut peers: Vec<&str>) {
        peers.sort_unstable();
        let begun = tokio::time::Instant::now();
        while self.targets() != peers {
            assert!(begun.elapsed() < PATIENCE, "{:?} are asked, not {peers:?}", self.targets());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn lost(&self) -> Vec<(String, String)> {
        self.dials.views()[0].lost.iter().map(|lost| (lost.name.clone(), lost.why.clone())).collect()
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.following.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_asked_from_when_they_join_until_they_drain_or_their_lease_ends() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (_redis, nodes) = registry(&server).await;
    let asks = Asks::start(&nodes);
    let nobody = asks.call().await.unwrap_err();
    assert!(nobody.contains("no target"), "{nobody}");
    let (one, two) = (Peer::start(&nodes).await, Peer::start(&nodes).await);
    asks.until(vec![&one.address, &two.address]).await;
    asks.call().await.unwrap();
    let view = asks.dials.views().remove(0);
    for target in &view.targets {
        assert_eq!(target.source, Some(Source::Registry));
        assert!(target.lease_ms.is_some_and(|left| (1..=LEASE.as_millis() as u64).contains(&left)), "{target:?}");
    }

    let (one_at, two_at) = (one.address.clone(), two.address.clone());
    one.drain().await;
    asks.until(vec![&two_at]).await;
    assert_eq!(asks.lost(), [(one_at, "it left".to_owned())]);
    asks.call().await.unwrap();

    let dead = two.die();
    asks.until(vec![]).await;
    assert_eq!(asks.lost()[0], (dead, "its lease ended".to_owned()));
    assert!(asks.call().await.is_err());
    // Whoever comes later knows it too, and when.
    let later = Asks::start(&nodes);
    let begun = tokio::time::Instant::now();
    while later.lost().is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let apart = (later.dials.views()[0].lost[0].at - asks.dials.views()[0].lost[0].at).abs();
    assert!(apart.num_milliseconds() < 2_000, "{apart}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_answer_at_its_own_address_is_never_written_down() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let (_redis, nodes) = registry(&server).await;
    let registration = Registration::new(&Network::default(), nodes.clone(), "http://127.0.0.1:1", vec!["audio".into()], LEASE).unwrap();
    let stop = CancellationToken::new();
    tokio::join!(registration.keep(stop.clone()), async {
        let begun = tokio::time::Instant::now();
        while !registration.trouble().is_some_and(|why| why.contains("does not answer itself at http://127.0.0.1:1")) {
            assert!(begun.elapsed() < PATIENCE, "{:?}", registration.trouble());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    });
    assert!(nodes.list().await.unwrap().nodes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_known_peers_stand_while_redis_is_away_and_after_it_has_forgotten() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let (redis, nodes) = registry(&server).await;
    let asks = Asks::start(&nodes);
    let peer = Peer::start(&nodes).await;
    asks.until(vec![&peer.address]).await;
    let stands = async |what: &str, time: Duration| {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until {
            assert_eq!(asks.targets(), std::slice::from_ref(&peer.address), "{what}");
            asks.call().await.unwrap_or_else(|error| panic!("{what}: {error}"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    server.ask::<String>(&["FLUSHALL"]);
    stands("after FLUSHALL", LEASE * 3).await;
    server.kill();
    stands("without Redis", LEASE * 3).await;
    assert!(asks.dials.registry().contains("1 last known peers stand"), "{}", asks.dials.registry());
    assert!(redis.trouble().is_some());
    server.start_again(); // empty
    stands("after a restart", LEASE * 3).await;
    assert!(asks.dials.registry().starts_with("serving; 1 peers"), "{}", asks.dials.registry());
    // And it is not for ever.
    let dead = peer.die();
    asks.until(vec![]).await;
    assert_eq!(asks.lost()[0].0, dead);
}
