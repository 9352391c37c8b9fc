//! Processes that come, go and hang, as their callers see it: over real sockets, through the public doors alone.

use contracts::{
    CallCx, ConversationId, Encoding, ErrorKind, Origin, Retry, SampleRate,
    audio::{Session, SpeechEvent, StreamSpec},
    conversation::OpenConversation,
    route::{Dial, Mode},
    testing::{Behavior, FakeAudio, FakeConversations, FakeInference},
};
use fabric::{
    Drain, ServeError, Services, connect, local,
    route::{Dials, Place},
    serve,
};
use futures::StreamExt;
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_millis(400);

fn cx() -> CallCx {
    CallCx::new(Duration::from_secs(5))
}

struct Process {
    address: String,
    stop: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    async fn start(listen: &str, services: Services) -> Self {
        let server = serve(listen, services).await.expect("a free address").drain(Drain::within(GRACE));
        let address = server.address().to_owned();
        let stop = CancellationToken::new();
        Self { address, ended: tokio::spawn(server.run(stop.clone())), stop }
    }

    /// Returns how long it took.
    async fn stop(self) -> Duration {
        let begun = Instant::now();
        self.stop.cancel();
        timeout(PATIENCE, self.ended).await.expect("stopping ends").expect("no panic").expect("no error");
        begun.elapsed()
    }
}

fn all() -> Services {
    Services {
        audio: Some(Arc::new(FakeAudio::default())),
        inference: Some(Arc::new(FakeInference::default())),
        conversations: Some(Arc::new(FakeConversations::default())),
    }
}

fn only_inference(fake: &FakeInference) -> Services {
    Services { inference: Some(Arc::new(fake.clone())), ..Default::default() }
}

fn spec() -> StreamSpec {
    StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000)
}

#[tokio::test]
async fn a_handle_exists_before_its_peer_and_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/inference.sock", folder.path().display());
    let handle = connect::inference(&listen).unwrap();
    let absent = handle.tiers(cx()).await.unwrap_err();
    assert_eq!((absent.kind, absent.retry, absent.origin), (ErrorKind::Unavailable, Retry::Safe, Origin::Transport));
    assert!(absent.detail.contains("No such file"), "it says why: {absent}");
    for round in 0..3 {
        let process = Process::start(&listen, all()).await;
        assert!(handle.tiers(cx()).await.is_ok(), "round {round}: the first call after the start is answered");
        assert!(process.stop().await < GRACE, "an idle process stops at once");
        let gone = handle.tiers(cx()).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::Unavailable, "round {round}: {gone}");
    }
}

#[tokio::test]
async fn nobody_on_a_port_is_unavailable() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let handle = connect::audio(&format!("http://{port}")).unwrap();
    let absent = handle.open(cx(), spec()).await.map(|_| ()).unwrap_err();
    assert_eq!((absent.kind, absent.retry, absent.origin), (ErrorKind::Unavailable, Retry::Safe, Origin::Transport));
    assert!(absent.detail.contains("refused"), "it says why: {absent}");
}

#[tokio::test]
async fn a_module_hosted_elsewhere_is_named_and_health_knows_each() {
    let process = Process::start("127.0.0.1:0", only_inference(&FakeInference::default())).await;
    let error = connect::audio(&process.address).unwrap().open(cx(), spec()).await.map(|_| ()).unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Never));
    assert!(error.detail.contains("does not host"), "{error}");
    let health = connect::health(&process.address).unwrap();
    assert_eq!(health.check("inference", PATIENCE).await, Ok(()));
    assert!(health.check("audio", PATIENCE).await.unwrap_err().detail.contains("not hosted"));
    process.stop().await;
    assert_eq!(health.check("inference", PATIENCE).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn open_calls_have_their_time_when_a_process_stops() {
    let fake = FakeInference::default();
    let process = Process::start("127.0.0.1:0", only_inference(&fake)).await;
    let handle = connect::inference(&process.address).unwrap();
    fake.behave(Behavior::Slow(GRACE / 2));
    let call = tokio::spawn(async move { handle.tiers(cx()).await });
    while fake.running() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = process.stop().await;
    assert!(call.await.unwrap().is_ok(), "an accepted call is answered");
    assert!(took < GRACE, "and nothing is waited for beyond it: {took:?}");
}

#[tokio::test]
async fn what_never_ends_does_not_keep_a_process() {
    let (audio, fake, record) = (FakeAudio::default(), FakeInference::default(), FakeConversations::default());
    let services = Services {
        audio: Some(Arc::new(audio.clone())),
        inference: Some(Arc::new(fake.clone())),
        conversations: Some(Arc::new(record.clone())),
    };
    let process = Process::start("127.0.0.1:0", services).await;
    let id = ConversationId::fresh();
    let conversations = connect::conversations(&process.address).unwrap();
    let opening = OpenConversation {
        id,
        external_id: None,
        title: None,
        source: "native".into(),
        language: "en".into(),
        tags: vec![],
        channels: vec![],
        started_at: chrono::DateTime::UNIX_EPOCH,
    };
    conversations.open(cx(), opening).await.unwrap();
    let mut watch = conversations.watch(cx(), id).await.unwrap();
    let hearing = connect::audio(&process.address).unwrap();
    let Session { mut frames, mut events, .. } = hearing.open(cx(), spec()).await.unwrap();
    fake.behave(Behavior::Hang);
    let inference = connect::inference(&process.address).unwrap();
    let hung = tokio::spawn(async move { inference.tiers(cx()).await });
    while fake.running() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    process.stop.cancel();
    let told = watch.next().await.unwrap().unwrap_err();
    assert_eq!((told.kind, told.retry), (ErrorKind::Unavailable, Retry::Safe), "a watch would never end by itself: {told}");
    assert!(begun.elapsed() < GRACE / 2, "so it ends at once");
    let told = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert_eq!(told, Ok(SpeechEvent::Handover), "a session is told to move");
    assert!(begun.elapsed() < GRACE / 2, "at once");
    let told = timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!((told.kind, told.retry), (ErrorKind::Unavailable, Retry::Safe), "one that stays is ended: {told}");
    assert!(begun.elapsed() >= GRACE / 2, "when it has had its time");
    assert_eq!(timeout(PATIENCE, frames.send(vec![1; 8000].into())).await.unwrap().unwrap_err(), told);
    assert_eq!(hung.await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    process.stop().await;
    assert!(begun.elapsed() < 2 * GRACE, "{:?}", begun.elapsed());
    assert_eq!((audio.running(), fake.running(), record.running()), (0, 0, 0), "nothing is left behind");
}

#[tokio::test]
async fn a_reader_who_does_not_read_does_not_keep_a_process() {
    // A raw connection that says hello and then nothing: tonic's own shutdown would wait for it.
    let process = Process::start("127.0.0.1:0", all()).await;
    let hearing = connect::audio(&process.address).unwrap();
    let session = hearing.open(cx(), spec()).await.unwrap();
    let raw = tokio::net::TcpStream::connect(process.address.strip_prefix("http://").unwrap()).await.unwrap();
    let took = process.stop().await;
    assert!(took < 3 * GRACE, "{took:?}");
    drop((raw, session));
}

#[tokio::test]
async fn a_socket_left_by_a_dead_process_is_taken_over_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audio.sock");
    let listen = format!("unix:{}", path.display());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // a killed process leaves its file
    let process = Process::start(&listen, all()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "only this user may call");
    let second = serve(&listen, all()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&second, ServeError::Taken(taken) if *taken == path), "{second}");
    assert!(connect::inference(&listen).unwrap().tiers(cx()).await.is_ok(), "the first one still answers");
    process.stop().await;
    assert!(!path.exists(), "nothing is left behind");
    std::fs::write(&path, "someone's notes").unwrap();
    let file = serve(&listen, all()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&file, ServeError::NoSocket(_)), "{file}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "someone's notes");
}

#[tokio::test]
async fn a_listener_the_network_could_reach_is_refused_with_the_reason() {
    for far in ["0.0.0.0:0", "10.0.0.7:7443", "[::]:7443", "http://192.168.1.1:7443"] {
        let refused = serve(far, all()).await.map(|_| ()).unwrap_err();
        assert!(matches!(refused, ServeError::NeedsTls(_)) && refused.to_string().contains("https"), "{far}: {refused}");
    }
    for bad in ["", "7443", "unix:relative", "audio:7443", "127.0.0.1"] {
        assert!(matches!(serve(bad, all()).await.map(|_| ()), Err(ServeError::Malformed(_))), "{bad}");
    }
    let process = Process::start("127.0.0.1:0", all()).await;
    let taken = serve(process.address.strip_prefix("http://").unwrap(), all()).await.map(|_| ()).unwrap_err();
    assert!(matches!(taken, ServeError::Bind { .. }), "{taken}");
}

/// Where [`a_process_of_its_own`] listens.
const LISTEN: &str = "FABRIC_TEST_LISTEN";
/// How long its inference takes, so that calls are under way when it dies.
const SLOWNESS: Duration = Duration::from_millis(100);

/// No test: what the tests below start as a child, and kill.
#[tokio::test]
#[ignore = "serves fakes until it is killed"]
async fn a_process_of_its_own() {
    let Ok(listen) = std::env::var(LISTEN) else { return };
    let inference = FakeInference::default();
    inference.behave(Behavior::Slow(SLOWNESS));
    let services = Services { inference: Some(Arc::new(inference)), ..all() };
    serve(&listen, services).await.unwrap().run(CancellationToken::new()).await.unwrap();
}

struct Far {
    child: Child,
    endpoint: String,
}

impl Far {
    async fn start(folder: &Path) -> Self {
        let endpoint = format!("unix:{}/far.sock", folder.display());
        let child = Command::new(std::env::current_exe().expect("a test has a file"))
            .args(["--ignored", "--exact", "processes::a_process_of_its_own"])
            .env(LISTEN, &endpoint)
            .stdout(Stdio::null())
            .spawn()
            .expect("it can be started again");
        let far = Self { child, endpoint };
        let health = connect::health(&far.endpoint).expect("a Unix socket");
        let begun = Instant::now();
        while health.check("audio", PATIENCE).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the process does not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        far
    }

    /// kill -9.
    fn kill(&mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("the child is ours");
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_was_doing_goes_on_here() {
    let folder = tempfile::tempdir().unwrap();
    let mut far = Far::start(folder.path()).await;
    let place = Place { dial: Dial { mode: Mode::Routed, remote_percent: 100, ..Dial::default() }, endpoints: vec![far.endpoint.clone()] };
    let (ear, mind) = (FakeAudio::default(), FakeInference::default());
    let mut dials = Dials::default();
    let hearing = dials
        .audio(
            Some(local::audio(Arc::new(ear.clone()))),
            &place,
            Arc::new(|endpoint: &str| Ok((connect::audio(endpoint)?, connect::health(endpoint)?))),
        )
        .unwrap();
    let understanding = dials
        .inference(
            Some(local::inference(Arc::new(mind.clone()))),
            &place,
            Arc::new(|endpoint: &str| Ok((connect::inference(endpoint)?, connect::health(endpoint)?))),
        )
        .unwrap();
    let Session { mut frames, mut events, .. } = hearing.open(cx(), spec()).await.unwrap();
    frames.send(vec![1; 2000].into()).await.unwrap();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let understanding = understanding.clone();
            tokio::spawn(async move { understanding.tiers(cx()).await })
        })
        .collect();
    tokio::time::sleep(SLOWNESS / 2).await;
    assert_eq!((ear.seen().len(), mind.seen().len()), (0, 0), "all of it is in the other process");
    far.kill();
    let killed = Instant::now();
    for call in calls {
        call.await.unwrap().expect("a call under way is answered here");
    }
    assert_eq!(mind.seen().len(), 50);
    let told = async {
        loop {
            if let Err(error) = events.next().await.expect("the error comes before the end") {
                return error;
            }
        }
    };
    let told = timeout(PATIENCE, told).await.unwrap();
    assert_eq!((told.kind, told.origin), (ErrorKind::Unknown, Origin::Transport), "{told}");
    let again = CallCx { attempt: 1, ..cx() };
    hearing.open(again, spec()).await.expect("a stream is opened here");
    understanding.tiers(cx()).await.expect("and so are new calls");
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
}
