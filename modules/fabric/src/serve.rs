//! This process's modules, for other processes.
//!
//! Invariants:
//! - it listens before [`serve`] returns: with TLS anywhere, without on loopback or a Unix socket that only this user may open;
//! - over TLS, callers may call what their certificate's roles allow;
//! - stopping ends, as [`Drain`] limits it: new calls are refused at once, so that they go elsewhere; watches end; the callers of live
//!   sessions are told to move, and what was heard of those that stay is flushed; then connections are told to go, and cut.

use crate::{
    api, audio,
    connect::Network,
    hello::{self, Introduction},
    inference,
    link::{CONNECTION_WINDOW, Io, Liveness, STREAM_WINDOW},
    listen::{Accepted, Listener},
    role::{AllowListed, Caller},
    served::Served,
    wire::quickcomm::{
        api::v1::conversations_server::ConversationsServer, audio::v1::audio_server::AudioServer, hello::v1::peers_server::PeersServer,
        inference::v1::inference_server::InferenceServer,
    },
};
use contracts::{Audio, Conversations, Inference, audio::MAX_MESSAGE_BYTES};
use futures::{Stream, StreamExt};
use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, Router};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

/// Calls and sessions on one connection. HTTP/2 libraries ship 200, and call 201 would wait without a word.
const STREAMS: u32 = 100_000;
/// Callers that give up, per connection, before a server takes it for an attack: ours drop calls whenever people hang up.
const RESETS: usize = 10_000;
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0:?} is no address to listen on: expected 127.0.0.1:PORT, https://IP:PORT or unix:/PATH")]
    Malformed(String),
    #[error("listening on {0} would serve the network unprotected: expected https, or loopback, or unix:/PATH")]
    NeedsTls(String),
    #[error("listening on {0} needs a certificate: give ca, cert and key in [grpc.tls]; `quickcomm certs` makes them for development")]
    NoCertificate(String),
    #[error("another process listens on {0}")]
    Taken(PathBuf),
    #[error("{0} exists and is no socket: move it away")]
    NoSocket(PathBuf),
    #[error("listening on {address}")]
    Bind { address: String, source: io::Error },
}

/// What is offered; give the modules themselves, the rules of a call are added here.
#[derive(Clone, Default)]
pub struct Services {
    pub audio: Option<Arc<dyn Audio>>,
    pub inference: Option<Arc<dyn Inference>>,
    pub conversations: Option<Arc<dyn Conversations>>,
}

impl Services {
    /// The modules that are offered, as they are dialled.
    pub fn names(&self) -> Vec<String> {
        let offered = [
            (audio::MODULE, self.audio.is_some()),
            (inference::MODULE, self.inference.is_some()),
            (api::MODULE, self.conversations.is_some()),
        ];
        offered.into_iter().filter(|(_, offered)| *offered).map(|(name, _)| name.to_owned()).collect()
    }
}

/// A bound listener, ready to [`Server::run`].
pub struct Server {
    listener: Listener,
    address: String,
    own: Arc<Introduction>,
    services: Services,
    drain: Drain,
}

/// How long what is under way may go on when the process stops. All are counted from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Calls that are one question and its answers. Default 3 s.
    pub calls: Duration,
    /// Sessions whose callers were told to move. Default 12 s: a caller waits 10 s for the end of an utterance.
    pub sessions: Duration,
    /// And then, to flush what was heard of those that stayed. Default 1.5 s.
    pub tails: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { calls: Duration::from_secs(3), sessions: Duration::from_secs(12), tails: Duration::from_millis(1500) }
    }
}

impl Drain {
    /// All of it in `limit`; half of that is for sessions to move.
    pub fn within(limit: Duration) -> Self {
        Self { calls: limit, sessions: limit / 2, tails: limit / 2 }
    }

    /// Until connections that do not end are cut, after everything else.
    fn cut(self) -> Duration {
        self.calls / 4
    }

    /// What has not ended by then never will.
    pub fn limit(self) -> Duration {
        self.calls.max(self.sessions + self.tails) + self.cut()
    }
}

/// [`Network::serve`] for a process without a certificate.
pub async fn serve(listen: &str, services: Services) -> Result<Server, ServeError> {
    Network::default().serve(listen, services).await
}

impl Network {
    /// Binds `127.0.0.1:PORT` (0: any free one), `https://IP:PORT` or `unix:/PATH`.
    pub async fn serve(&self, listen: &str, services: Services) -> Result<Server, ServeError> {
        let (listener, address) = Listener::bind(listen, self.tls.clone()).await?;
        Ok(Server { listener, address, own: self.own.clone(), services, drain: Drain::default() })
    }
}

impl Server {
    /// What others connect to: `http://127.0.0.1:PORT` or `unix:/PATH`.
    pub fn address(&self) -> &str {
        &self.address
    }

    #[must_use]
    pub fn drain(mut self, drain: Drain) -> Self {
        self.drain = drain;
        self
    }

    /// Serves until `stop`, then ends as promised above.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        info!(address = self.address, "module calls are served");
        run(self.listener.connections(), self.own, self.services, self.drain, stop).await
    }
}

pub(crate) async fn run(
    incoming: impl Stream<Item = Accepted>,
    own: Arc<Introduction>,
    services: Services,
    drain: Drain,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let served = Served::new(stop.clone(), drain.sessions);
    let (leaving, parted, calls) = (served.leaving.clone(), served.parted.clone(), served.calls.clone());
    let away = CancellationToken::new();
    let cut = CancellationToken::new();
    let (health, router) = routes(own, services, served).await;
    let connections = incoming.map(|(io, caller)| Ok::<_, io::Error>(Connection::new(io, caller, cut.clone())));
    let serving = router.serve_with_incoming_shutdown(connections, away.cancelled());
    let ending = async {
        stop.cancelled().await;
        let asked = Instant::now();
        for module in [audio::MODULE, inference::MODULE, api::MODULE, ""] {
            health.set_service_status(module, ServingStatus::NotServing).await;
        }
        calls.close();
        // Connections stay until then: whoever calls is told that it is draining, not that nobody is there.
        let mut finished = timeout_at(asked + drain.calls, calls.wait()).await.is_ok();
        leaving.cancel(); // handlers still at work say so to their callers
        if !finished {
            finished = timeout_at(asked + drain.sessions + drain.tails, calls.wait()).await.is_ok();
        }
        parted.cancel();
        away.cancel();
        if !finished {
            warn!(calls = calls.len(), "calls did not end in time");
        }
        tokio::time::sleep(drain.cut()).await;
        warn!("connections did not end in time and are cut");
        cut.cancel();
        std::future::pending().await
    };
    tokio::select! {
        served = serving => Ok(served?),
        never = ending => never,
    }
}

async fn routes(own: Arc<Introduction>, services: Services, served: Served) -> (HealthReporter, Router<Stack<AllowListed, Identity>>) {
    let liveness = Liveness::default();
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(liveness.ping_every))
        .http2_keepalive_timeout(Some(liveness.answer_within))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .layer(AllowListed)
        .add_service(health)
        .add_service(PeersServer::new(hello::Server { own }));
    // A macro, because each generated service is a type of its own with the same two methods.
    macro_rules! offer {
        ($module:expr, $service:ident, $server:expr) => {
            reporter.set_service_status($module, ServingStatus::Serving).await;
            let service = $service::new($server).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
            router = router.add_service(service);
        };
    }
    if let Some(module) = services.audio {
        offer!(audio::MODULE, AudioServer, audio::server::Server::new(module, served.clone()));
    }
    if let Some(module) = services.inference {
        offer!(inference::MODULE, InferenceServer, inference::server::Server::new(module, served.clone()));
    }
    if let Some(module) = services.conversations {
        offer!(api::MODULE, ConversationsServer, api::server::Server::new(module, served.clone()));
    }
    (reporter, router)
}

/// A connection that knows its caller and can be ended from outside; tonic's own shutdown waits for the last stream, however long it is.
struct Connection {
    io: Box<dyn Io>,
    caller: Caller,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(io: Box<dyn Io>, caller: Caller, cut: CancellationToken) -> Self {
        Self { io, caller, cut: Box::pin(cut.cancelled_owned()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending => {
                ready!(self.cut.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}
