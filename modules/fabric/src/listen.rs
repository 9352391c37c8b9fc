//! Where callers come in.
//!
//! Invariants:
//! - a socket without TLS is on loopback, or a file that only this user may open;
//! - a caller who cannot show a certificate of our authority gets no further, and cannot keep others waiting;
//! - a connection that fails is its caller's loss, never the listener's end.

use crate::{
    link::Io,
    role::Caller,
    serve::ServeError,
    tls::{self, Tls},
};
use futures::{StreamExt, stream::BoxStream};
use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

/// After a failed accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For a caller to show its certificate.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);
/// Callers who are just showing theirs.
const HANDSHAKES: usize = 256;
/// A refused caller is listened to for this long, so that it reads why before the connection ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// A connection, and who is at its other end.
pub(crate) type Accepted = (Box<dyn Io>, Caller);

pub(crate) enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<Tls>),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Binds, and says what others connect to.
    pub(crate) async fn bind(listen: &str, tls: Option<Arc<Tls>>) -> Result<(Self, String), ServeError> {
        if let Some(path) = listen.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            if !path.is_absolute() {
                return Err(ServeError::Malformed(listen.into()));
            }
            let (listener, file) = bind_unix(&path).await?;
            return Ok((Self::Unix(listener, file), format!("unix:{}", path.display())));
        }
        if let Some(bare) = listen.strip_prefix("https://") {
            let tls = tls.ok_or_else(|| ServeError::NoCertificate(listen.into()))?;
            let (listener, bound) = bind_tcp(listen, bare, true).await?;
            return Ok((Self::Tls(listener, tls), format!("https://{bound}")));
        }
        let (listener, bound) = bind_tcp(listen, listen.strip_prefix("http://").unwrap_or(listen), false).await?;
        Ok((Self::Tcp(listener), format!("http://{bound}")))
    }

    /// Accepts for ever. Dropping the stream closes the listener and removes its file.
    pub(crate) fn connections(self) -> BoxStream<'static, Accepted> {
        match self {
            Self::Tcp(listener) => accepted(listener, accept_tcp).map(neighbor).boxed(),
            Self::Tls(listener, tls) => accepted(listener, accept_tcp)
                .map(move |stream| shake_hands(stream, tls.clone()))
                .buffer_unordered(HANDSHAKES)
                .filter_map(std::future::ready)
                .boxed(),
            Self::Unix(listener, file) => {
                let accept = async |(listener, _file): &(UnixListener, SocketFile)| Ok(listener.accept().await?.0);
                accepted((listener, file), accept).map(neighbor).boxed()
            }
        }
    }
}

fn neighbor(io: impl Io + 'static) -> Accepted {
    (Box::new(io), Caller::Neighbor)
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn accepted<L: Send, C: Send>(listener: L, accept: impl AsyncFn(&L) -> io::Result<C> + Send) -> impl futures::Stream<Item = C> {
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

/// `None` after telling the caller why.
async fn shake_hands(stream: TcpStream, tls: Arc<Tls>) -> Option<Accepted> {
    let from = stream.peer_addr().ok();
    let handshake = TlsAcceptor::from(tls.current().server.clone()).accept(stream).into_fallible();
    match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok(stream)) => {
            let caller = tls::caller(stream.get_ref().1.peer_certificates());
            Some((Box::new(stream), caller))
        }
        Ok(Err((error, stream))) => {
            let cause = tls::cause(&error).map_or_else(|| error.to_string(), tls::explain);
            warn!(from = ?from, cause, "a caller is refused");
            tokio::spawn(tokio::time::timeout(FAREWELL, farewell(stream)));
            None
        }
        Err(_) => {
            warn!(from = ?from, "a caller showed no certificate in time");
            None
        }
    }
}

/// Closing a socket that has unread bytes resets it, and takes the reason of the refusal away from the caller.
async fn farewell(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut unread = [0; 1024];
    while let Ok(1..) = stream.read(&mut unread).await {}
}

async fn bind_tcp(listen: &str, bare: &str, anywhere: bool) -> Result<(TcpListener, SocketAddr), ServeError> {
    let addresses: Vec<SocketAddr> = match (bare.parse(), bare.strip_prefix("localhost:")) {
        (Ok(address), _) => vec![address],
        (Err(_), Some(_)) => bare.to_socket_addrs().map_err(|_| ServeError::Malformed(listen.into()))?.collect(),
        (Err(_), None) => return Err(ServeError::Malformed(listen.into())),
    };
    if !anywhere && addresses.iter().any(|address| !address.ip().is_loopback()) {
        return Err(ServeError::NeedsTls(listen.into()));
    }
    let failed = |source| ServeError::Bind { address: listen.into(), source };
    let listener = TcpListener::bind(&addresses[..]).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
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
pub(crate) struct SocketFile {
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
