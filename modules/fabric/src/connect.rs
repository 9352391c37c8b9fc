//! Handles to modules in other processes, and what this process shows of itself to get them.
//!
//! A handle exists before its peer does: it connects when first called and again after every loss, so processes start in any order.
//! Invariant: without TLS nothing leaves this machine; `http` to anything but loopback is refused.

use crate::{
    api, audio,
    error::from_status,
    hello::Introduction,
    inference,
    link::{Link, Liveness, dial},
    role::Role,
    tls::Tls,
};
use contracts::{Audio, CallError, Conversations, Inference};
use http::Uri;
use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("{0:?} is no endpoint: expected https://HOST:PORT, http://127.0.0.1:PORT or unix:/PATH")]
    Malformed(String),
    #[error("{0} would leave this machine unprotected: an endpoint is https, or http on loopback, or unix:/PATH")]
    NeedsTls(String),
    #[error("{0} needs a certificate of our own: give ca, cert and key in [grpc.tls]; `quickcomm certs` makes them for development")]
    NoCertificate(String),
}

/// What a process is among others: its introduction, and its certificate if it has one.
#[derive(Clone, Debug, Default)]
pub struct Network {
    pub(crate) own: Arc<Introduction>,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Network {
    pub fn new(own: Introduction, tls: Option<Arc<Tls>>) -> Self {
        Self { own: Arc::new(own), tls }
    }

    /// The module `audio` at `endpoint`.
    pub fn audio(&self, endpoint: &str) -> Result<Arc<dyn Audio>, ConnectError> {
        Ok(Arc::new(audio::client::Remote::new(self.link(endpoint, Some(Role::Audio), Liveness::default())?, endpoint)))
    }

    /// The module `inference` at `endpoint`.
    pub fn inference(&self, endpoint: &str) -> Result<Arc<dyn Inference>, ConnectError> {
        Ok(Arc::new(inference::client::Remote::new(self.link(endpoint, Some(Role::Inference), Liveness::default())?, endpoint)))
    }

    /// The module `api` at `endpoint`.
    pub fn conversations(&self, endpoint: &str) -> Result<Arc<dyn Conversations>, ConnectError> {
        Ok(Arc::new(api::client::Remote::new(self.link(endpoint, Some(Role::Api), Liveness::default())?, endpoint)))
    }

    /// Whoever is at `endpoint`.
    pub fn health(&self, endpoint: &str) -> Result<Health, ConnectError> {
        Ok(Health::over(self.link(endpoint, None, Liveness::default())?))
    }

    pub(crate) fn link(&self, endpoint: &str, wanted: Option<Role>, liveness: Liveness) -> Result<Link, ConnectError> {
        let address = Address::parse(endpoint)?;
        if matches!(address, Address::Tcp { tls: true, .. }) && self.tls.is_none() {
            return Err(ConnectError::NoCertificate(endpoint.into()));
        }
        Ok(Link::new(endpoint, dial(address, self.tls.clone(), wanted), self.own.clone(), liveness))
    }
}

/// [`Network::audio`] for a process without a certificate.
pub fn audio(endpoint: &str) -> Result<Arc<dyn Audio>, ConnectError> {
    Network::default().audio(endpoint)
}

/// [`Network::inference`] for a process without a certificate.
pub fn inference(endpoint: &str) -> Result<Arc<dyn Inference>, ConnectError> {
    Network::default().inference(endpoint)
}

/// [`Network::conversations`] for a process without a certificate.
pub fn conversations(endpoint: &str) -> Result<Arc<dyn Conversations>, ConnectError> {
    Network::default().conversations(endpoint)
}

/// [`Network::health`] for a process without a certificate.
pub fn health(endpoint: &str) -> Result<Health, ConnectError> {
    Network::default().health(endpoint)
}

/// Asks a process about its modules, by the standard health service.
#[derive(Clone)]
pub struct Health {
    client: HealthClient<Link>,
    link: Link,
}

impl Health {
    pub(crate) fn over(link: Link) -> Self {
        Self { client: HealthClient::new(link.clone()), link }
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

    /// How the process introduced itself, while there is a connection to it.
    pub fn peer(&self) -> Option<Arc<Introduction>> {
        self.link.peer()
    }
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Address {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } if host.contains(':') => write!(f, "{}://[{host}]:{port}", if *tls { "https" } else { "http" }),
            Self::Tcp { host, port, tls } => write!(f, "{}://{host}:{port}", if *tls { "https" } else { "http" }),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    pub(crate) fn parse(endpoint: &str) -> Result<Self, ConnectError> {
        let malformed = || ConnectError::Malformed(endpoint.chars().take(200).collect());
        if let Some(path) = endpoint.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path); // both spellings are in use
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(malformed()) };
        }
        let uri: Uri = endpoint.parse().map_err(|_| malformed())?;
        let (Some(scheme), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else { return Err(malformed()) };
        if uri.path_and_query().is_some_and(|p| p != "/") {
            return Err(malformed());
        }
        let host = host.trim_matches(['[', ']']);
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let tls = match scheme {
            "https" => true,
            "http" if loopback => false,
            "http" => return Err(ConnectError::NeedsTls(endpoint.into())),
            _ => return Err(malformed()),
        };
        Ok(Self::Tcp { host: host.into(), port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_unix_sockets_and_whatever_speaks_tls_are_taken() {
        for good in ["http://127.0.0.1:7443", "http://127.8.8.8:1", "http://[::1]:7443", "http://localhost:7443/"] {
            assert!(matches!(Address::parse(good), Ok(Address::Tcp { tls: false, .. })), "{good}");
        }
        for good in ["https://10.0.0.7:7443", "https://audio:7443", "https://[fd00::7]:7443"] {
            let address = Address::parse(good).unwrap();
            assert!(matches!(address, Address::Tcp { tls: true, .. }) && address.to_string() == good, "{good}");
        }
        for good in ["unix:/run/quickcomm/audio.sock", "unix:///run/quickcomm/audio.sock"] {
            assert_eq!(Address::parse(good), Ok(Address::Unix("/run/quickcomm/audio.sock".into())), "{good}");
        }
    }

    #[test]
    fn whatever_would_leave_the_machine_in_the_open_is_refused_with_the_reason() {
        for far in ["http://10.0.0.7:7443", "http://audio:7443", "http://0.0.0.0:7443"] {
            let refused = Address::parse(far).unwrap_err();
            assert!(matches!(refused, ConnectError::NeedsTls(_)) && refused.to_string().contains("https"), "{far}: {refused}");
        }
        for bad in ["", "127.0.0.1:7443", "http://127.0.0.1", "unix:relative.sock", "ftp://127.0.0.1:1", "http://127.0.0.1:7443/path"] {
            assert!(matches!(Address::parse(bad), Err(ConnectError::Malformed(_))), "{bad}");
        }
        let bare = audio("https://10.0.0.7:7443").map(|_| ()).unwrap_err();
        assert!(matches!(bare, ConnectError::NoCertificate(_)) && bare.to_string().contains("quickcomm certs"), "{bare}");
    }
}
