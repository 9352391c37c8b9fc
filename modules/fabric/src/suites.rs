//! The contracts' suites, in every place a module can be.

use crate::{
    api, audio,
    connect::{self, Health, Liveness, Peer, endpoint},
    inference, local,
    route::{self as dial, BreakerLimits, Connect, Dials, Limits},
    serve::{Services, run, serve},
};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, ConversationId, Conversations, Encoding, ErrorKind, EventStream, Inference, Origin, SampleRate,
    audio::{Session, StreamSpec},
    conversation::{Attach, Attached, Close, CommitOutcome, Conversation, ConversationView, OpenConversation, RecordEvent, Segment},
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
    route::{Dial, Mode},
    testing::{
        Behavior, FakeAudio, FakeConversations, FakeInference, Place, Sound, audio_suite, call_suite, conversations_suite, inference_suite,
    },
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Uri};

/// In this process, behind the rules.
struct Here;

#[async_trait]
impl Place for Here {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        local::audio(module)
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        local::inference(module)
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        local::conversations(module)
    }
}

/// Over gRPC on a pipe in memory.
#[derive(Default)]
pub(crate) struct Pipe {
    stops: Mutex<Vec<DropGuard>>,
}

impl Pipe {
    pub(crate) fn serve(&self, services: Services) -> Channel {
        let (connections, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        self.stops.lock().push(stop.clone().drop_guard());
        tokio::spawn(run(UnboundedReceiverStream::new(incoming), services, Duration::from_millis(100), stop));
        pipe_to(connections)
    }
}

fn pipe_to(connections: mpsc::UnboundedSender<DuplexStream>) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let sent = connections.send(theirs).map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        async move { sent.map(|()| TokioIo::new(ours)) }
    });
    endpoint(Uri::from_static("http://localhost"), Liveness::default()).connect_with_connector_lazy(connector)
}

#[async_trait]
impl Place for Pipe {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        Arc::new(audio::client::Remote::new(self.serve(Services { audio: Some(module), ..Default::default() }), "pipe"))
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        Arc::new(inference::client::Remote::new(self.serve(Services { inference: Some(module), ..Default::default() }), "pipe"))
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        Arc::new(api::client::Remote::new(self.serve(Services { conversations: Some(module), ..Default::default() }), "pipe"))
    }
}

/// Over a pipe, and everything that may be repeated arrives twice: as when an answer was lost and the call was made again.
#[derive(Default)]
struct Repeated {
    pipe: Pipe,
}

struct Twice<T: ?Sized>(Arc<T>);

#[async_trait]
impl Inference for Twice<dyn Inference> {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        let first = self.0.analyze(cx.clone(), request.clone()).await;
        assert_eq!(self.0.analyze(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        drop(self.0.summarize(cx.clone(), request.clone()).await);
        self.0.summarize(cx, request).await
    }
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        let first = self.0.tiers(cx.clone()).await;
        assert_eq!(self.0.tiers(cx).await, first, "the repetition is answered alike");
        first
    }
}

#[async_trait]
impl Conversations for Twice<dyn Conversations> {
    async fn open(&self, cx: CallCx, request: OpenConversation) -> Result<Conversation, CallError> {
        let first = self.0.open(cx.clone(), request.clone()).await;
        assert_eq!(self.0.open(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn attach(&self, cx: CallCx, request: Attach) -> Result<Attached, CallError> {
        self.0.attach(cx, request).await
    }
    async fn commit(&self, cx: CallCx, segments: Vec<Segment>) -> Result<Vec<CommitOutcome>, CallError> {
        let first = self.0.commit(cx.clone(), segments.clone()).await?;
        // What was ahead may fit by now, so it is no repetition.
        let done = segments.into_iter().zip(&first).filter(|(_, outcome)| **outcome == CommitOutcome::Committed);
        let again: Vec<Segment> = done.map(|(segment, _)| segment).collect();
        let outcomes = self.0.commit(cx, again).await?;
        assert!(outcomes.iter().all(|outcome| *outcome == CommitOutcome::Duplicate), "{outcomes:?}");
        Ok(first)
    }
    async fn record(&self, cx: CallCx, insights: Vec<Insight>) -> Result<u32, CallError> {
        let first = self.0.record(cx.clone(), insights.clone()).await;
        let _ = self.0.record(cx, insights).await; // nothing new now
        first
    }
    async fn close(&self, cx: CallCx, request: Close) -> Result<Conversation, CallError> {
        let first = self.0.close(cx.clone(), request.clone()).await;
        assert_eq!(self.0.close(cx, request).await, first, "the repetition is answered alike");
        first
    }
    async fn conversation(&self, cx: CallCx, id: ConversationId) -> Result<ConversationView, CallError> {
        self.0.conversation(cx, id).await
    }
    async fn watch(&self, cx: CallCx, id: ConversationId) -> Result<EventStream<RecordEvent>, CallError> {
        self.0.watch(cx, id).await
    }
}

#[async_trait]
impl Place for Repeated {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        self.pipe.audio(module).await
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        Arc::new(Twice(self.pipe.inference(module).await))
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        Arc::new(Twice(self.pipe.conversations(module).await))
    }
}

/// Half of the calls in this process, half over a pipe, and every one that can be is shadowed.
#[derive(Default)]
struct HalfAndHalf {
    pipe: Pipe,
}

impl HalfAndHalf {
    fn dials() -> (Dials, dial::Place) {
        // These suites fail calls on purpose, more than a breaker would bear.
        let breaker = BreakerLimits { at_least: u32::MAX, ..BreakerLimits::default() };
        let dial = Dial { mode: Mode::Routed, remote_percent: 50, shadow_percent: 100, ..Dial::default() };
        (Dials::with_limits(Limits { breaker, ..Limits::default() }), dial::Place { dial, endpoints: vec!["pipe".into()] })
    }
}

/// The suites count what a module is asked, so shadows are answered by another one.
struct Unshadowed {
    module: Arc<dyn Inference>,
    shadow: FakeInference,
}

impl Unshadowed {
    fn for_call(&self, cx: &CallCx) -> &dyn Inference {
        if cx.shadow { &self.shadow } else { &*self.module }
    }
}

#[async_trait]
impl Inference for Unshadowed {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.for_call(&cx).analyze(cx, request).await
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        self.for_call(&cx).summarize(cx, request).await
    }
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        self.for_call(&cx).tiers(cx).await
    }
}

#[async_trait]
impl Place for HalfAndHalf {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        let channel = self.pipe.serve(Services { audio: Some(module.clone()), ..Default::default() });
        let remote: Arc<dyn Audio> = Arc::new(audio::client::Remote::new(channel.clone(), "pipe"));
        let (mut dials, place) = Self::dials();
        let connect: Connect<dyn Audio> = Arc::new(move |_| Ok((remote.clone(), Health::over(channel.clone()))));
        dials.audio(Some(local::audio(module)), &place, connect).expect("a pipe is always there")
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        let module: Arc<dyn Inference> = Arc::new(Unshadowed { module, shadow: FakeInference::default() });
        let channel = self.pipe.serve(Services { inference: Some(module.clone()), ..Default::default() });
        let remote: Arc<dyn Inference> = Arc::new(inference::client::Remote::new(channel.clone(), "pipe"));
        let (mut dials, place) = Self::dials();
        let connect: Connect<dyn Inference> = Arc::new(move |_| Ok((remote.clone(), Health::over(channel.clone()))));
        dials.inference(Some(local::inference(module)), &place, connect).expect("a pipe is always there")
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        let channel = self.pipe.serve(Services { conversations: Some(module.clone()), ..Default::default() });
        let remote: Arc<dyn Conversations> = Arc::new(api::client::Remote::new(channel.clone(), "pipe"));
        let (mut dials, place) = Self::dials();
        let connect: Connect<dyn Conversations> = Arc::new(move |_| Ok((remote.clone(), Health::over(channel.clone()))));
        dials.conversations(Some(local::conversations(module)), &place, connect).expect("a pipe is always there")
    }
}

/// Over gRPC on a real socket: TCP on loopback, or a Unix socket in `folder`.
#[derive(Default)]
struct Socket {
    folder: Option<tempfile::TempDir>,
    stops: Mutex<Vec<DropGuard>>,
}

impl Socket {
    async fn serve(&self, services: Services) -> String {
        let listen = match &self.folder {
            Some(folder) => format!("unix:{}/{}.sock", folder.path().display(), self.stops.lock().len()),
            None => "127.0.0.1:0".into(),
        };
        let server = serve(&listen, services).await.expect("a free address");
        let address = server.address().to_owned();
        let stop = CancellationToken::new();
        self.stops.lock().push(stop.clone().drop_guard());
        tokio::spawn(server.run(stop));
        address
    }
}

#[async_trait]
impl Place for Socket {
    async fn audio(&self, module: Arc<dyn Audio>) -> Arc<dyn Audio> {
        connect::audio(&self.serve(Services { audio: Some(module), ..Default::default() }).await).expect("loopback")
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        connect::inference(&self.serve(Services { inference: Some(module), ..Default::default() }).await).expect("loopback")
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        connect::conversations(&self.serve(Services { conversations: Some(module), ..Default::default() }).await).expect("loopback")
    }
}

/// What holds for any implementation, held by the fakes behind `place`.
async fn contracts_hold(place: &dyn Place) {
    audio_suite(place.audio(Arc::new(FakeAudio::default())).await, Sound::noise()).await;
    inference_suite(place.inference(Arc::new(FakeInference::default())).await).await;
    conversations_suite(place.conversations(Arc::new(FakeConversations::default())).await).await;
}

fn unix() -> Socket {
    Socket { folder: Some(tempfile::tempdir().expect("a temporary folder")), ..Default::default() }
}

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
    let channel = || Peer::parse(&wire.address).expect("loopback").channel(liveness);
    let inference = inference::client::Remote::new(channel(), "wire");
    let cx = || CallCx::new(Duration::from_secs(30));
    let call = tokio::spawn(async move { inference.tiers(cx()).await });
    let spec = StreamSpec::live(Encoding::Mulaw, SampleRate::HZ_8000);
    let Session { mut frames, mut events, .. } = audio::client::Remote::new(channel(), "wire").open(cx(), spec).await.expect("a session");
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
    let server = server.expect("a free port").grace(Duration::from_millis(200));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_in_this_process() {
    contracts_hold(&Here).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_over_a_pipe() {
    contracts_hold(&Pipe::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_over_tcp() {
    contracts_hold(&Socket::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_over_a_unix_socket() {
    contracts_hold(&unix()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_alike_in_this_process() {
    call_suite(&Here).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_alike_over_a_pipe() {
    call_suite(&Pipe::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_alike_over_tcp() {
    call_suite(&Socket::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_alike_over_a_unix_socket() {
    call_suite(&unix()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_half_here_and_half_over_a_pipe() {
    contracts_hold(&HalfAndHalf::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_alike_half_here_and_half_over_a_pipe() {
    call_suite(&HalfAndHalf::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contracts_hold_when_calls_are_repeated() {
    contracts_hold(&Repeated::default()).await;
}
