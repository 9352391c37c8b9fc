//! Handles to modules in other processes.
//!
//! A handle exists before its peer does: it connects when first called and again after every loss, so processes start in any order.
//! Invariant: without TLS nothing leaves this machine; anything but loopback and Unix sockets is refused.

use crate::{api, audio, error::from_status, inference};
use contracts::{Audio, CallError, Conversations, Inference};
use hyper_util::rt::TokioIo;
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Loopback answers or refuses at once; this is for a machine that is overwhelmed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes one call may have under way before it is read: the largest message, so that a unary answer never waits for a window.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// And all calls of one connection.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("{0:?} is no endpoint: expected http://127.0.0.1:PORT or unix:/PATH")]
    Malformed(String),
    #[error("{0} would leave this machine unprotected: until modules speak TLS, an endpoint is http on loopback, or unix:/PATH")]
    NeedsTls(String),
}

/// The module `audio` at `endpoint`.
pub fn audio(endpoint: &str) -> Result<Arc<dyn Audio>, ConnectError> {
    Ok(Arc::new(audio::client::Remote::new(Peer::parse(endpoint)?.channel(Liveness::default()), endpoint)))
}

/// The module `inference` at `endpoint`.
pub fn inference(endpoint: &str) -> Result<Arc<dyn Inference>, ConnectError> {
    Ok(Arc::new(inference::client::Remote::new(Peer::parse(endpoint)?.channel(Liveness::default()), endpoint)))
}

/// The module `api` at `endpoint`.
pub fn conversations(endpoint: &str) -> Result<Arc<dyn Conversations>, ConnectError> {
    Ok(Arc::new(api::client::Remote::new(Peer::parse(endpoint)?.channel(Liveness::default()), endpoint)))
}

/// Asks a process about its modules, by the standard health service.
#[derive(Clone)]
pub struct Health {
    client: HealthClient<Channel>,
}

pub fn health(endpoint: &str) -> Result<Health, ConnectError> {
    Ok(Health::over(Peer::parse(endpoint)?.channel(Liveness::default())))
}

impl Health {
    pub(crate) fn over(channel: Channel) -> Self {
        Self { client: HealthClient::new(channel) }
    }

    /// Whether `module` (`audio`, `inference`, `api`) is served there, within `patience`.
    pub async fn check(&self, module: &str, patience: Duration) -> Result<(), CallError> {
        let request = HealthCheckRequest { service: module.into() };
        let asked = tokio::time::timeout(patience, self.client.clone().check(request)).await.map_err(|_| CallError::deadline())?;
        match asked {
            Ok(reply) if reply.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err(CallError::unavailable(format!("{module} is stopping"))),
            Err(status) if status.code() == tonic::Code::NotFound => Err(CallError::unavailable(format!("{module} is not hosted there"))),
            Err(status) => Err(from_status(status)),
        }
    }
}

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

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Peer {
    Tcp(Uri),
    Unix(PathBuf),
}

impl Peer {
    pub(crate) fn parse(endpoint: &str) -> Result<Self, ConnectError> {
        let malformed = || ConnectError::Malformed(endpoint.chars().take(200).collect());
        if let Some(path) = endpoint.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path); // both spellings are in use
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(malformed()) };
        }
        let uri: Uri = endpoint.parse().map_err(|_| malformed())?;
        let (Some(scheme), Some(host), Some(_)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else { return Err(malformed()) };
        if uri.path_and_query().is_some_and(|p| p != "/") {
            return Err(malformed());
        }
        let loopback = host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        match scheme {
            "http" if loopback => Ok(Self::Tcp(uri)),
            "http" | "https" => Err(ConnectError::NeedsTls(endpoint.into())),
            _ => Err(malformed()),
        }
    }

    pub(crate) fn channel(self, liveness: Liveness) -> Channel {
        match self {
            Self::Tcp(uri) => endpoint(uri, liveness).connect_lazy(),
            Self::Unix(path) => {
                let connector = tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // HTTP/2 wants an authority; nothing is looked up.
                endpoint(Uri::from_static("http://localhost"), liveness).connect_with_connector_lazy(connector)
            }
        }
    }
}

pub(crate) fn endpoint(uri: Uri, liveness: Liveness) -> Endpoint {
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(liveness.ping_every)
        .keep_alive_timeout(liveness.answer_within)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unix_sockets_are_taken() {
        for good in ["http://127.0.0.1:7443", "http://127.8.8.8:1", "http://[::1]:7443", "http://localhost:7443/"] {
            assert!(matches!(Peer::parse(good), Ok(Peer::Tcp(_))), "{good}");
        }
        for good in ["unix:/run/quickcomm/audio.sock", "unix:///run/quickcomm/audio.sock"] {
            assert_eq!(Peer::parse(good), Ok(Peer::Unix("/run/quickcomm/audio.sock".into())), "{good}");
        }
    }

    #[test]
    fn whatever_would_leave_the_machine_is_refused_with_the_reason() {
        for far in ["http://10.0.0.7:7443", "https://10.0.0.7:7443", "https://127.0.0.1:7443", "http://audio:7443", "http://0.0.0.0:7443"] {
            let refused = Peer::parse(far).unwrap_err();
            assert!(matches!(refused, ConnectError::NeedsTls(_)) && refused.to_string().contains("TLS"), "{far}: {refused}");
        }
        for bad in ["", "127.0.0.1:7443", "http://127.0.0.1", "unix:relative.sock", "ftp://127.0.0.1:1", "http://127.0.0.1:7443/path"] {
            assert!(matches!(Peer::parse(bad), Err(ConnectError::Malformed(_))), "{bad}");
        }
    }
}
