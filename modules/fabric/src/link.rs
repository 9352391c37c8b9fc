//! The way to one peer: a connection made when it is first needed, introduced before it is used, and made anew after every loss.
//!
//! Invariants:
//! - no call is sent before both processes have introduced themselves and accepted each other;
//! - making a connection takes at most [`CONNECT_LIMIT`], name lookup, certificates and introduction included; those who wait for it
//!   share its outcome;
//! - an endpoint of TLS is never spoken to without.

use crate::{
    connect::Address,
    error::{causes, from_status},
    hello::Introduction,
    role::{Role, names},
    tls::{self, Tls},
    wire::quickcomm::hello::v1::{self as pb, peers_client::PeersClient},
};
use contracts::{CallError, ErrorKind, Origin, Retry};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{Request, Response, Uri, header, uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use std::{
    error::Error,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tower::Service;

/// To have a connection on which calls can be sent.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Bytes one call may have under way before it is read: the largest message, so that a unary answer never waits for a window.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// And all calls of one connection.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;
/// Of an introduction.
const HELLO_BYTES: usize = 64 << 10;

/// When a silent peer counts as gone: a half-open connection is noticed after the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Liveness {
    pub(crate) ping_every: Duration,
    pub(crate) answer_within: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { ping_every: Duration::from_secs(5), answer_within: Duration::from_secs(5) }
    }
}

/// Why there is no connection. Nothing of the call has left this process.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoLink {
    #[error("nobody answers at {peer}: {cause}")]
    Unreachable { peer: Arc<str>, cause: String },
    #[error("no address is known for {peer}: {cause}")]
    Unresolved { peer: Arc<str>, cause: String },
    #[error("{peer} did not answer within {} s", CONNECT_LIMIT.as_secs())]
    Silent { peer: Arc<str> },
    #[error("no TLS connection to {peer}: {cause}")]
    Untrusted { peer: Arc<str>, cause: String },
    #[error("{peer} has a certificate for the role {roles}, not for {wanted}")]
    WrongRole { peer: Arc<str>, roles: String, wanted: Role },
    #[error("what answers at {peer} is no QuickComm process, or wants https: {cause}")]
    Stranger { peer: Arc<str>, cause: String },
    #[error("{peer} is refused: {cause}")]
    Refused { peer: Arc<str>, cause: String },
}

impl From<NoLink> for CallError {
    fn from(no: NoLink) -> Self {
        let (retry, origin) = match no {
            NoLink::Refused { .. } => (Retry::Never, Origin::Policy),
            _ => (Retry::Safe, Origin::Transport),
        };
        Self::new(ErrorKind::Unavailable, retry, no.to_string()).from(origin)
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Makes the bytes flow; all that differs between sockets, pipes and TLS.
pub(crate) type Dial = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Io>, NoLink>> + Send + Sync>;

/// Dials an address; over TLS only a peer that has the role `wanted`, if one is.
pub(crate) fn dial(address: Address, tls: Option<Arc<Tls>>, wanted: Option<Role>) -> Dial {
    let peer: Arc<str> = address.to_string().into();
    Arc::new(move || {
        let (peer, address, tls) = (peer.clone(), address.clone(), tls.clone());
        Box::pin(async move {
            Ok(match (address, tls) {
                (Address::Unix(path), _) => {
                    let stream = UnixStream::connect(path).await;
                    Box::new(stream.map_err(|e| NoLink::Unreachable { peer, cause: e.to_string() })?) as Box<dyn Io>
                }
                (Address::Tcp { host, port, tls: false }, _) => Box::new(tcp(&peer, &host, port).await?),
                (Address::Tcp { host, port, .. }, Some(tls)) => {
                    let stream = tcp(&peer, &host, port).await?;
                    Box::new(shake_hands(peer, stream, host, &tls, wanted).await?)
                }
                (Address::Tcp { .. }, None) => return Err(NoLink::Untrusted { peer, cause: "this process has no certificate".into() }),
            })
        })
    })
}

async fn tcp(peer: &Arc<str>, host: &str, port: u16) -> Result<TcpStream, NoLink> {
    let unresolved = |cause: io::Error| NoLink::Unresolved { peer: peer.clone(), cause: cause.to_string() };
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?.collect();
    let stream = TcpStream::connect(&addresses[..]).await.and_then(|stream| {
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    stream.map_err(|e| NoLink::Unreachable { peer: peer.clone(), cause: e.to_string() })
}

async fn shake_hands(peer: Arc<str>, stream: TcpStream, host: String, tls: &Tls, wanted: Option<Role>) -> Result<impl Io + use<>, NoLink> {
    let untrusted = |cause: String| NoLink::Untrusted { peer: peer.clone(), cause };
    // Only said, never checked: who is there is asked of the certificate's role.
    let name = ServerName::try_from(host).map_err(|_| untrusted("its name is no host name".into()))?;
    let connector = TlsConnector::from(tls.current().client.clone());
    let mut stream = connector.connect(name, stream).await.map_err(|error| untrusted(told(&error)))?;
    let roles = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(tls::roles_in).unwrap_or_default();
    match wanted {
        Some(wanted) if !roles.contains(&wanted) => {
            let roles = if roles.is_empty() { "of nobody".into() } else { names(&roles) };
            Err(NoLink::WrongRole { peer, roles, wanted })
        }
        _ => {
            // Whether it takes our certificate is in its first bytes, which an HTTP/2 server sends without being asked.
            let first = stream.fill_buf().await.map_err(|error| untrusted(told(&error)))?;
            if first.is_empty() { Err(untrusted("it ended the connection".into())) } else { Ok(stream) }
        }
    }
}

fn told(error: &io::Error) -> String {
    tls::cause(error).map_or_else(|| error.to_string(), tls::explain)
}

/// A connection in use.
#[derive(Clone)]
struct Live {
    send: SendRequest<Body>,
    peer: Arc<Introduction>,
}

type Dialing = Shared<BoxFuture<'static, Result<Live, NoLink>>>;

enum State {
    Idle,
    Dialing(Dialing),
    Live(Live),
}

/// A transport for generated clients.
#[derive(Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    peer: Arc<str>,
    origin: uri::Parts,
    dial: Dial,
    own: Arc<Introduction>,
    liveness: Liveness,
    state: Mutex<State>,
}

impl Link {
    pub(crate) fn new(peer: &str, dial: Dial, own: Arc<Introduction>, liveness: Liveness) -> Self {
        // HTTP/2 wants an authority; nothing looks at it.
        let origin = Uri::from_static("http://quickcomm").into_parts();
        Self { inner: Arc::new(Inner { peer: peer.into(), origin, dial, own, liveness, state: Mutex::new(State::Idle) }) }
    }

    /// Who is there, if anybody is.
    pub(crate) fn peer(&self) -> Option<Arc<Introduction>> {
        match &*self.inner.state.lock() {
            State::Live(live) if !live.send.is_closed() => Some(live.peer.clone()),
            _ => None,
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Incoming>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            let mut live = inner.live().await?;
            let sent = live.send.try_send_request(inner.addressed(request)).await;
            match sent {
                Ok(response) => Ok(response),
                // The connection ended before the request was on it: nothing has happened yet, so it goes over a new one.
                Err(mut failed) => match failed.take_message() {
                    Some(request) => Ok(inner.live().await?.send.send_request(request).await?),
                    None => Err(failed.into_error().into()),
                },
            }
        })
    }
}

impl Inner {
    /// The connection there is, or the one being made, or a new one.
    fn live(self: &Arc<Self>) -> Dialing {
        let mut state = self.state.lock();
        match &*state {
            State::Live(live) if !live.send.is_closed() => return std::future::ready(Ok(live.clone())).boxed().shared(),
            State::Dialing(dialing) => return dialing.clone(),
            State::Live(_) | State::Idle => {}
        }
        let inner = self.clone();
        // A task, so that a caller who gives up does not take the connection from the others.
        let dialing = tokio::spawn(async move {
            let made = tokio::time::timeout(CONNECT_LIMIT, inner.connect()).await;
            let made = made.unwrap_or_else(|_| Err(NoLink::Silent { peer: inner.peer.clone() }));
            *inner.state.lock() = match &made {
                Ok(live) => State::Live(live.clone()),
                Err(_) => State::Idle,
            };
            made
        });
        let peer = self.peer.clone();
        let dialing = async move { dialing.await.unwrap_or_else(|lost| Err(NoLink::Unreachable { peer, cause: lost.to_string() })) };
        let dialing = dialing.boxed().shared();
        *state = State::Dialing(dialing.clone());
        dialing
    }

    async fn connect(&self) -> Result<Live, NoLink> {
        let io = (self.dial)().await?;
        let stranger = |error: hyper::Error| NoLink::Stranger { peer: self.peer.clone(), cause: last(&error) };
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.liveness.ping_every)
            .keep_alive_timeout(self.liveness.answer_within)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(stranger)?;
        tokio::spawn(connection.map(drop)); // ends with the last handle and call; those are told how
        let peer = Arc::new(self.greet(send.clone()).await?);
        Ok(Live { send, peer })
    }

    async fn greet(&self, send: SendRequest<Body>) -> Result<Introduction, NoLink> {
        let peer = || self.peer.clone();
        let transport = tower::service_fn(|request| {
            let (mut send, request) = (send.clone(), self.addressed(request));
            async move { send.send_request(request).await }
        });
        let mut client = PeersClient::new(transport).max_decoding_message_size(HELLO_BYTES);
        let theirs = match client.hello(pb::Introduction::from(&*self.own)).await {
            Ok(theirs) => Introduction::from(theirs.into_inner()),
            Err(status) => {
                let error = match status.code() {
                    tonic::Code::Unimplemented => CallError::invalid("it does not introduce itself"),
                    _ => from_status(status),
                };
                return Err(match error.origin {
                    Origin::Policy => NoLink::Refused { peer: peer(), cause: error.detail },
                    Origin::Callee | Origin::Transport => NoLink::Stranger { peer: peer(), cause: error.detail },
                });
            }
        };
        self.own.accepts(&theirs).map_err(|refused| NoLink::Refused { peer: peer(), cause: refused.to_string() })?;
        Ok(theirs)
    }

    /// Puts in front of a method's path what HTTP/2 wants to have there.
    fn addressed(&self, mut request: Request<Body>) -> Request<Body> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = self.origin.scheme.clone();
        parts.authority = self.origin.authority.clone();
        *request.uri_mut() = Uri::from_parts(parts).expect("a scheme, an authority and the path of a method");
        request
            .headers_mut()
            .insert(header::USER_AGENT, header::HeaderValue::from_static(concat!("quickcomm/", env!("CARGO_PKG_VERSION"))));
        request
    }
}

/// "h2 protocol error" says less than what is behind it.
fn last(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}
