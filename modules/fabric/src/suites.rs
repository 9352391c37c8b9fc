//! The contracts' suites, in every place a module can be.

use crate::{
    api, audio,
    connect::{self, Liveness, endpoint},
    inference, local,
    serve::{Services, run, serve},
};
use async_trait::async_trait;
use contracts::{
    Audio, Conversations, Inference,
    testing::{FakeAudio, FakeConversations, FakeInference, Place, Sound, audio_suite, call_suite, conversations_suite, inference_suite},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{io::DuplexStream, sync::mpsc};
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
struct Pipe {
    stops: Mutex<Vec<DropGuard>>,
}

impl Pipe {
    fn serve(&self, services: Services) -> Channel {
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
        Arc::new(audio::client::Remote::new(self.serve(Services { audio: Some(module), ..Default::default() })))
    }
    async fn inference(&self, module: Arc<dyn Inference>) -> Arc<dyn Inference> {
        Arc::new(inference::client::Remote::new(self.serve(Services { inference: Some(module), ..Default::default() })))
    }
    async fn conversations(&self, module: Arc<dyn Conversations>) -> Arc<dyn Conversations> {
        Arc::new(api::client::Remote::new(self.serve(Services { conversations: Some(module), ..Default::default() })))
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
