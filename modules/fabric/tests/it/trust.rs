//! Who may call whom, over real sockets: certificates that are right, wrong, late and new, and ports where something else answers.

use contracts::{CallCx, CallError, Encoding, ErrorKind, Origin, Retry, SampleRate, audio::StreamSpec, testing::FakeInference};
use fabric::{
    Files, Introduction, Network, Role, ServeError, Services, Tls,
    certs::{Authority, Pair},
    connect,
};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::{CancellationToken, DropGuard};

const DAY: Duration = Duration::from_secs(24 * 3600);

struct House {
    folder: TempDir,
    authority: Authority,
}

impl House {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new().unwrap() }
    }

    fn write(&self, name: &str, pair: &Pair) -> Files {
        pair.write(self.folder.path(), name, &self.authority.pair().certificate).unwrap()
    }

    fn network(&self, roles: &[Role]) -> Network {
        let name = roles.iter().map(|r| r.name()).collect::<String>();
        member(self.write(&name, &self.authority.issue(roles, 1).unwrap()))
    }

    /// A certificate that ended an hour ago.
    fn expired(&self, role: Role) -> Network {
        member(self.write("expired", &self.authority.issue_from(SystemTime::now() - 2 * DAY, &[role], DAY).unwrap()))
    }
}

fn member(files: Files) -> Network {
    Network::new(Introduction::default(), Some(Arc::new(Tls::load(files).unwrap())))
}

struct Process {
    address: String,
    _stop: DropGuard,
}

/// Serves `inference`, and says that it is `audio` too where its certificate allows.
async fn serve(network: &Network, listen: &str) -> Process {
    let inference = FakeInference::default();
    let server = network.serve(listen, Services { inference: Some(Arc::new(inference)), ..Default::default() }).await.unwrap();
    let address = server.address().to_owned();
    let stop = CancellationToken::new();
    tokio::spawn(server.run(stop.clone()));
    Process { address, _stop: stop.drop_guard() }
}

/// One call, and what its caller is told. Nothing may take longer than the limit on connecting.
async fn call(network: &Network, endpoint: &str) -> Result<(), CallError> {
    let begun = Instant::now();
    let answer = network.inference(endpoint).unwrap().tiers(CallCx::new(Duration::from_secs(20))).await.map(drop);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?} until {answer:?}", begun.elapsed());
    answer
}

#[track_caller]
fn refused(answer: Result<(), CallError>, says: &[&str]) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    for part in says {
        assert!(error.detail.contains(part), "{error} does not say {part:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_the_same_authority_is_a_welcome() {
    let house = House::new();
    let process = serve(&house.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    assert!(process.address.starts_with("https://127.0.0.1:"), "{}", process.address);
    let front = house.network(&[Role::Api]);
    call(&front, &process.address).await.unwrap();
    // By name as by number: a certificate is for a role, not for a host.
    call(&front, &process.address.replace("127.0.0.1", "localhost")).await.unwrap();
    let health = front.health(&process.address).unwrap();
    health.check("inference", DAY).await.unwrap();
    assert_eq!(health.peer().unwrap().build, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_both_ends() {
    let (ours, theirs) = (House::new(), House::new());
    let process = serve(&ours.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    refused(call(&theirs.network(&[Role::Api]), &process.address).await, &["TLS", &process.address, "not made by our authority"]);
    // One who believes us, but whom we do not believe.
    let half = Files { ca: ours.folder.path().join("ca.pem"), ..theirs.write("half", &theirs.authority.issue(&[Role::Api], 1).unwrap()) };
    let both = theirs.folder.path().join("both.pem");
    let of = |house: &House| std::fs::read_to_string(house.folder.path().join("ca.pem")).unwrap();
    std::fs::write(&both, of(&ours) + &of(&theirs)).unwrap();
    refused(call(&member(Files { ca: both, ..half }), &process.address).await, &["our certificate was not made by its authority"]);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_ends() {
    let house = House::new();
    let late = serve(&house.expired(Role::Inference), "https://127.0.0.1:0").await;
    refused(call(&house.network(&[Role::Api]), &late.address).await, &["its certificate has expired"]);
    let process = serve(&house.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    refused(call(&house.expired(Role::Api), &process.address).await, &["our certificate has expired"]);
}

#[tokio::test]
async fn a_wrong_role_is_refused_by_both_ends() {
    let house = House::new();
    let impostor = serve(&house.network(&[Role::Audio]), "https://127.0.0.1:0").await;
    refused(call(&house.network(&[Role::Api]), &impostor.address).await, &["for the role audio, not for inference"]);
    let process = serve(&house.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    let forbidden = call(&house.network(&[Role::Audio]), &process.address).await;
    assert_eq!(forbidden.as_ref().map_err(|e| (e.retry, e.origin)), Err((Retry::Never, Origin::Policy)));
    refused(forbidden, &["the role audio may not call /quickcomm.inference.v1.Inference/Tiers"]);
    // Who may do nothing may still ask how it is.
    house.network(&[Role::Audio]).health(&process.address).unwrap().check("inference", DAY).await.unwrap();
}

#[tokio::test]
async fn nothing_falls_back_to_plaintext() {
    let house = House::new();
    let front = house.network(&[Role::Api]);
    let sealed = serve(&house.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    let open = sealed.address.replace("https", "http");
    refused(call(&front, &open).await, &[&open, "wants https"]);
    let open = serve(&Network::default(), "127.0.0.1:0").await;
    let sealed = open.address.replace("http", "https");
    refused(call(&front, &sealed).await, &[&sealed, "TLS"]);
    call(&front, &open.address).await.unwrap();
    let bare = Network::default().inference(&sealed).map(drop).unwrap_err();
    assert!(matches!(bare, connect::ConnectError::NoCertificate(_)), "{bare}");
    let bare = Network::default().serve("https://127.0.0.1:0", Services::default()).await.map(drop).unwrap_err();
    assert!(matches!(bare, ServeError::NoCertificate(_)), "{bare}");
    let far = front.serve("http://0.0.0.0:0", Services::default()).await.map(drop).unwrap_err();
    assert!(matches!(far, ServeError::NeedsTls(_)), "{far}");
    // With certificates the network may come.
    front.serve("https://0.0.0.0:0", Services::default()).await.unwrap();
}

#[tokio::test]
async fn whatever_is_on_the_port_is_named_and_nobody_waits_for_it() {
    let front = House::new().network(&[Role::Api]);
    let endpoints = |port: u16| [format!("http://127.0.0.1:{port}"), format!("https://127.0.0.1:{port}")];
    // One who listens and says nothing, one who talks another language, one who hangs up.
    let (silent, talker, rude) = (listen().await, listen().await, listen().await);
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let ports = [port(&silent), port(&talker), port(&rude)];
    tokio::spawn(async move {
        let mut held = vec![];
        while let Ok((socket, _)) = silent.accept().await {
            held.push(socket);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = talker.accept().await {
            let mut said = [0; 512];
            let _ = socket.read(&mut said).await;
            let _ = socket.write_all(b"220 mail.example ESMTP, and a good day to you\r\n").await;
        }
    });
    tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    for endpoint in endpoints(ports[0]) {
        refused(call(&front, &endpoint).await, &[&endpoint, "did not answer within 2 s"]);
    }
    let [open, sealed] = endpoints(ports[1]);
    refused(call(&front, &open).await, &[&open, "no QuickComm process"]);
    refused(call(&front, &sealed).await, &[&sealed, "does not speak TLS"]);
    for endpoint in endpoints(ports[2]) {
        refused(call(&front, &endpoint).await, &[&endpoint]);
    }
    let nobody = listen().await.local_addr().unwrap().port();
    for endpoint in endpoints(nobody) {
        refused(call(&front, &endpoint).await, &["nobody answers", &endpoint, "refused"]);
    }
    // A resolver may say that there is no such name, or not answer in time.
    let nameless = call(&front, "https://no-such-host.invalid:7443").await.unwrap_err();
    assert_eq!((nameless.kind, nameless.retry), (ErrorKind::Unavailable, Retry::Safe), "{nameless}");
    let says = ["no address is known for https://no-such-host.invalid:7443", "https://no-such-host.invalid:7443 did not answer within 2 s"];
    assert!(says.iter().any(|says| nameless.detail.contains(says)), "{nameless}");
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn those_who_wait_for_a_connection_share_its_outcome() {
    let silent = listen().await;
    let handle = connect::inference(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let begun = Instant::now();
    let calls = (0..20).map(|_| handle.tiers(CallCx::new(DAY)));
    for answer in futures::future::join_all(calls).await {
        refused(answer.map(drop), &["did not answer"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // A caller with less patience does not wait for the rest.
    let begun = Instant::now();
    let hasty = handle.tiers(CallCx::new(Duration::from_millis(50))).await.unwrap_err();
    assert!(hasty.kind == ErrorKind::DeadlineExceeded && begun.elapsed() < Duration::from_millis(500), "{hasty}");
}

#[tokio::test]
async fn new_certificates_are_used_from_the_next_connection_on() {
    let house = House::new();
    let files = house.write("inference", &house.authority.issue(&[Role::Inference], 1).unwrap());
    let process = serve(&member(files.clone()), "https://127.0.0.1:0").await;
    let front = house.network(&[Role::Api]);
    let (before, endpoint) = (front.inference(&process.address).unwrap(), process.address.as_str());
    before.tiers(CallCx::new(DAY)).await.unwrap();
    // Replaced by one of another role: nobody who connects from now on takes it for inference.
    house.write("inference", &house.authority.issue(&[Role::Audio], 1).unwrap());
    refused(call(&front, endpoint).await, &["for the role audio"]);
    before.tiers(CallCx::new(DAY)).await.expect("a connection that is there stays");
    // Half of a change is not taken.
    std::fs::write(&files.key, house.authority.issue(&[Role::Inference], 1).unwrap().key).unwrap();
    refused(call(&front, endpoint).await, &["for the role audio"]);
    house.write("inference", &house.authority.issue(&[Role::Inference], 1).unwrap());
    call(&front, endpoint).await.unwrap();
}

#[tokio::test]
async fn callers_who_show_nothing_do_not_keep_others_waiting() {
    let house = House::new();
    let process = serve(&house.network(&[Role::Inference]), "https://127.0.0.1:0").await;
    let door = process.address.strip_prefix("https://").unwrap();
    let mut idle = vec![];
    for _ in 0..100 {
        idle.push(tokio::net::TcpStream::connect(door).await.unwrap());
    }
    call(&house.network(&[Role::Api]), &process.address).await.unwrap();
}

#[tokio::test]
async fn files_that_do_not_work_are_named() {
    let house = House::new();
    let files = house.write("api", &house.authority.issue(&[Role::Api], 30).unwrap());
    let at = |name: &str| house.folder.path().join(name);
    let fails = |files: Files| {
        let error = Tls::load(files).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    assert!(fails(Files { key: at("absent.key"), ..files.clone() }).contains("absent.key: No such file"));
    assert!(fails(Files { key: files.cert.clone(), ..files.clone() }).contains("api.pem holds no PEM private key"));
    std::fs::write(at("empty.pem"), "").unwrap();
    assert!(fails(Files { cert: at("empty.pem"), ..files.clone() }).contains("empty.pem holds no PEM certificate"));
    assert!(fails(Files { ca: at("empty.pem"), ..files.clone() }).contains("empty.pem holds no PEM certificate of an authority"));
    let other = house.write("other", &house.authority.issue(&[Role::Api], 1).unwrap());
    assert!(fails(Files { key: other.key, ..files.clone() }).contains("do not work"));
    let nobody = house.write("nobody", &house.authority.issue(&[], 1).unwrap());
    assert!(fails(nobody).contains("quickcomm://role/audio"));
    let stranger = House::new();
    let foreign = Files { ca: files.ca.clone(), ..stranger.write("api", &stranger.authority.issue(&[Role::Api], 1).unwrap()) };
    assert!(fails(foreign).contains("was not made by an authority in"));
    let tls = Tls::load(files).unwrap();
    assert_eq!(tls.roles(), [Role::Api]);
    let left = tls.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left > 29 * DAY && left < 31 * DAY, "{left:?}");
}

/// Processes of different clusters and releases: what each side tells a caller.
#[tokio::test]
async fn another_cluster_and_an_old_release_are_refused_by_name() {
    let process = serve(&Network::default(), "127.0.0.1:0").await;
    let staging = Network::new(Introduction { cluster: "staging".into(), ..Default::default() }, None);
    let other = call(&staging, &process.address).await;
    assert_eq!(other.as_ref().map_err(|e| (e.retry, e.origin)), Err((Retry::Never, Origin::Policy)));
    refused(other, &["refused", "other cluster", "\"staging\"", "\"quickcomm\""]);
    let newer = Introduction { build: "9.0.0".into(), contracts: 7..=9, ..Default::default() };
    refused(call(&Network::new(newer.clone(), None), &process.address).await, &["version out of range", "7 to 9", "1 to 1"]);
    let tomorrow = serve(&Network::new(newer, None), "127.0.0.1:0").await;
    let health = connect::health(&tomorrow.address).unwrap();
    let told = health.check("inference", DAY).await.unwrap_err();
    assert!(told.detail.contains("version out of range"), "the status page shows it: {told}");
    assert!(health.peer().is_none());
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let session = connect::audio(&tomorrow.address).unwrap().open(CallCx::new(DAY), spec).await;
    refused(session.map(drop), &["version out of range"]);
}

#[tokio::test]
async fn a_peer_introduces_itself_again_after_it_came_back_as_another() {
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", Path::new(folder.path()).join("i.sock").display());
    let today = serve(&Network::default(), &listen).await;
    let handle = connect::inference(&listen).unwrap();
    handle.tiers(CallCx::new(DAY)).await.unwrap();
    drop(today);
    let gone = Instant::now();
    while Path::new(folder.path()).join("i.sock").exists() {
        assert!(gone.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _tomorrow = serve(&Network::new(Introduction { contracts: 2..=2, ..Default::default() }, None), &listen).await;
    refused(handle.tiers(CallCx::new(DAY)).await.map(drop), &["version out of range"]);
}
