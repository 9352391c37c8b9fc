//! This process's modules, for other processes.
//!
//! Invariants:
//! - it listens before [`serve`] returns, on loopback or a Unix socket that only this user may open;
//! - stopping ends: new calls are refused at once, watches end, other calls get [`Server::GRACE`], then connections are cut.

use crate::{
    api, audio,
    connect::{CONNECTION_WINDOW, Liveness, STREAM_WINDOW},
    inference,
    served::Served,
    wire::quickcomm::{
        api::v1::conversations_server::ConversationsServer, audio::v1::audio_server::AudioServer,
        inference::v1::inference_server::InferenceServer,
    },
};
use contracts::{Audio, Conversations, Inference, audio::MAX_MESSAGE_BYTES};
use futures::Stream;
use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, Router};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

/// Calls and sessions on one connection. HTTP/2 libraries ship 200, and call 201 would wait without a word.
const STREAMS: u32 = 100_000;
/// Callers that give up, per connection, before a server takes it for an attack: ours drop calls whenever people hang up.
const RESETS: usize = 10_000;
/// After a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0:?} is no address to listen on: expected 127.0.0.1:PORT or unix:/PATH")]
    Malformed(String),
    #[error("listening on {0} would serve the network unprotected: until modules speak TLS, it is loopback or unix:/PATH")]
    NeedsTls(String),
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

/// A bound listener, ready to [`Server::run`].
pub struct Server {
    listener: Listener,
    address: String,
    services: Services,
    grace: Duration,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Binds `127.0.0.1:PORT` (0: any free one) or `unix:/PATH`.
pub async fn serve(listen: &str, services: Services) -> Result<Server, ServeError> {
    let (listener, address) = match listen.strip_prefix("unix:") {
        Some(path) => {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            if !path.is_absolute() {
                return Err(ServeError::Malformed(listen.into()));
            }
            let (listener, file) = bind_unix(&path).await?;
            (Listener::Unix(listener, file), format!("unix:{}", path.display()))
        }
        None => {
            let listener = bind_tcp(listen).await?;
            let bound = listener.local_addr().map_err(|source| ServeError::Bind { address: listen.into(), source })?;
            (Listener::Tcp(listener), format!("http://{bound}"))
        }
    };
    Ok(Server { listener, address, services, grace: Server::GRACE })
}

async fn bind_tcp(listen: &str) -> Result<TcpListener, ServeError> {
    let bare = listen.strip_prefix("http://").unwrap_or(listen);
    let addresses: Vec<SocketAddr> = match (bare.parse(), bare.strip_prefix("localhost:")) {
        (Ok(address), _) => vec![address],
        (Err(_), Some(_)) => bare.to_socket_addrs().map_err(|_| ServeError::Malformed(listen.into()))?.collect(),
        (Err(_), None) => return Err(ServeError::Malformed(listen.into())),
    };
    if addresses.iter().any(|address| !address.ip().is_loopback()) {
        return Err(ServeError::NeedsTls(listen.into()));
    }
    TcpListener::bind(&addresses[..]).await.map_err(|source| ServeError::Bind { address: listen.into(), source })
}

/// Takes over the file a dead process left behind, and nothing else.
async fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    let failed = |source| ServeError::Bind { address: format!("unix:{}", path.display()), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket(path.into())),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(ServeError::Taken(path.into())),
            Err(error) => return Err(failed(error)),
        },
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok((listener, SocketFile { path: path.into(), inode }))
}

/// Removed when we stop, unless another process has put its own there.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path); // a leftover is taken over at the next start
        }
    }
}

impl Server {
    /// For calls and sessions under way when the process stops.
    pub const GRACE: Duration = Duration::from_secs(3);

    /// What others connect to: `http://127.0.0.1:PORT` or `unix:/PATH`.
    pub fn address(&self) -> &str {
        &self.address
    }

    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Serves until `stop`, then ends as promised above.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        info!(address = self.address, "module calls are served");
        match self.listener {
            Listener::Tcp(listener) => {
                let accept = async |listener: &TcpListener| {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                };
                run(incoming::<_, TcpStream>(listener, accept), self.services, self.grace, stop).await
            }
            Listener::Unix(listener, _file) => {
                let accept = async |listener: &UnixListener| Ok(listener.accept().await?.0);
                run(incoming::<_, UnixStream>(listener, accept), self.services, self.grace, stop).await
            }
        }
    }
}

/// Accepts for ever: a connection that fails is its caller's loss, not the listener's end.
fn incoming<L, C>(listener: L, accept: impl AsyncFn(&L) -> io::Result<C>) -> impl Stream<Item = C> {
    futures::stream::unfold((listener, accept), |(listener, accept)| async {
        loop {
            match accept(&listener).await {
                Ok(connection) => return Some((connection, (listener, accept))),
                Err(error) => {
                    warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

pub(crate) async fn run<C>(
    incoming: impl Stream<Item = C>,
    services: Services,
    grace: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let served = Served { stopping: stop.clone(), leaving: CancellationToken::new() };
    let leaving = served.leaving.clone();
    let cut = CancellationToken::new();
    let (health, router) = routes(services, served).await;
    let connections = futures::StreamExt::map(incoming, |io| Ok::<_, io::Error>(Cuttable::new(io, cut.clone())));
    let serving = router.serve_with_incoming_shutdown(connections, stop.cancelled());
    let ending = async {
        stop.cancelled().await;
        for module in [audio::MODULE, inference::MODULE, api::MODULE, ""] {
            health.set_service_status(module, ServingStatus::NotServing).await;
        }
        tokio::time::sleep(grace).await;
        leaving.cancel(); // handlers still at work say so to their callers
        tokio::time::sleep(grace / 4).await;
        warn!("connections did not end in time and are cut");
        cut.cancel();
        std::future::pending().await
    };
    tokio::select! {
        served = serving => Ok(served?),
        never = ending => never,
    }
}

async fn routes(services: Services, served: Served) -> (HealthReporter, Router) {
    let liveness = Liveness::default();
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(liveness.ping_every))
        .http2_keepalive_timeout(Some(liveness.answer_within))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .add_service(health);
    // A macro, because each generated service is a type of its own with the same two methods.
    macro_rules! offer {
        ($module:expr, $service:ident, $server:expr) => {
            reporter.set_service_status($module, ServingStatus::Serving).await;
            let service = $service::new($server).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
            router = router.add_service(service);
        };
    }
    if let Some(module) = services.audio {
        offer!(audio::MODULE, AudioServer, audio::server::Server::new(module, served.leaving.clone()));
    }
    if let Some(module) = services.inference {
        offer!(inference::MODULE, InferenceServer, inference::server::Server::new(module, served.clone()));
    }
    if let Some(module) = services.conversations {
        offer!(api::MODULE, ConversationsServer, api::server::Server::new(module, served.clone()));
    }
    (reporter, router)
}

/// A connection that can be ended from outside; tonic's own shutdown waits for the last stream, however long it is.
struct Cuttable<C> {
    io: C,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<C> Cuttable<C> {
    fn new(io: C, cut: CancellationToken) -> Self {
        Self { io, cut: Box::pin(cut.cancelled_owned()) }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Cuttable<C> {
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

impl<C: AsyncWrite + Unpin> AsyncWrite for Cuttable<C> {
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

impl<C: Connected> Connected for Cuttable<C> {
    type ConnectInfo = C::ConnectInfo;
    fn connect_info(&self) -> C::ConnectInfo {
        self.io.connect_info()
    }
}
