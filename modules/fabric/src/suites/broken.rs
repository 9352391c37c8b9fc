//! Wires that break or hang in the middle of a call: what both sides are told, and how soon.

use super::socket::Socket;
use crate::{
    audio,
    connect::{self, Network},
    inference,
    link::Liveness,
    role::Role,
    serve::{Drain, Services, serve},
};
use contracts::{
    Audio, CallCx, Encoding, ErrorKind, Inference, Origin, SampleRate,
    audio::{Session, StreamSpec},
    testing::{Behavior, FakeAudio, FakeInference},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A wire between two processes that can be cut or left hanging.
struct Wire {
    address: String,
    hang: CancellationToken,
    cut: CancellationToken,
}

impl Wire {
    async fn to(address: &str) -> Self {
        let far = address.strip_prefix("http://").expect("a TCP address").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let wire = Self {
            address: format!("http://{}", listener.local_addr().expect("it is bound")),
            hang: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        let (hang, cut) = (wire.hang.clone(), wire.cut.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (far, hang, cut) = (far.clone(), hang.clone(), cut.clone());
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(far).await.expect("the far end listens");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.cancelled() => {}
                        () = hang.cancelled() => cut.cancelled().await, // both sockets stay open, and nothing passes
                    }
                });
            }
        });
        wire
    }
}

/// A session and a call whose wire breaks in the middle: what both are told, and how long that took.
async fn broken_in_the_middle(damage: impl FnOnce(&Wire)) -> Duration {
    let socket = Socket::default();
    let (ear, fake) = (FakeAudio::default(), FakeInference::default());
    fake.behave(Behavior::Hang);
    let services = Services { audio: Some(Arc::new(ear.clone())), inference: Some(Arc::new(fake.clone())), conversations: None };
    let wire = Wire::to(&socket.serve(services).await).await;
    let liveness = Liveness { ping_every: Duration::from_millis(200), answer_within: Duration::from_millis(200) };
    let link = |role| Network::default().link(&wire.address, Some(role), liveness).expect("loopback");
    let inference = inference::client::Remote::new(link(Role::Inference), "wire");
    let cx = || CallCx::new(Duration::from_secs(30));
    let call = tokio::spawn(async move { inference.tiers(cx()).await });
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let remote = audio::client::Remote::new(link(Role::Audio), "wire");
    let Session { mut frames, mut events, .. } = remote.open(cx(), spec).await.expect("a session");
    while fake.running() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    damage(&wire);
    let begun = Instant::now();
    let told = loop {
        if let Err(error) = events.next().await.expect("the error comes before the end") {
            break error;
        }
    };
    assert_eq!((told.kind, told.origin), (ErrorKind::Unknown, Origin::Transport), "{told}");
    assert_eq!(frames.send(vec![1; 8000].into()).await, Err(told));
    let call = call.await.expect("no panic").expect_err("the wire broke");
    assert_eq!((call.kind, call.origin), (ErrorKind::Unknown, Origin::Transport), "{call}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_killed_in_mid_call_leaves_an_unknown_outcome() {
    let took = broken_in_the_middle(|wire| wire.cut.cancel()).await;
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_peer_is_noticed_by_its_silence() {
    let took = broken_in_the_middle(|wire| wire.hang.cancel()).await;
    assert!(took > Duration::from_millis(150) && took < Duration::from_millis(1000), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_hangs_does_not_keep_a_process() {
    let server = serve("127.0.0.1:0", Services { audio: Some(Arc::new(FakeAudio::default())), ..Default::default() }).await;
    let server = server.expect("a free port").drain(Drain::within(Duration::from_millis(200)));
    let wire = Wire::to(server.address()).await;
    let stop = CancellationToken::new();
    let ended = tokio::spawn(server.run(stop.clone()));
    let hearing = connect::audio(&wire.address).expect("loopback");
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let session = hearing.open(CallCx::new(Duration::from_secs(5)), spec).await.expect("a session");
    wire.hang.cancel();
    let begun = Instant::now();
    stop.cancel();
    ended.await.expect("no panic").expect("no error");
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody acknowledges the goodbye: {:?}", begun.elapsed());
    drop(session);
}
