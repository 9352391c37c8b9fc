//! TLS to PostgreSQL, where its address asks for it.
//!
//! Invariant: whoever asks for TLS has the certificate and the server's name in it checked, or has no connection. Nothing falls back to plain
//! text. Channel binding is absent: the name is checked instead.

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject as _},
};
use std::{
    fs, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

/// Whose certificates are believed. Of an address that asks for no TLS it is never used.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// `ca`: PEM file of the authorities; without one, those of this machine.
    ///
    /// # Errors
    /// Why the file is of no use.
    pub(super) fn with(ca: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(path) => {
                let unusable =
                    |why: String| format!("the authorities in {} cannot be used: {why}; expected PEM certificates", path.display());
                let pem = fs::read(path).map_err(|e| unusable(e.to_string()))?;
                for found in CertificateDer::pem_slice_iter(&pem) {
                    roots.add(found.map_err(|e| unusable(e.to_string()))?).map_err(|e| unusable(e.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(unusable("it holds none".into()));
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        Ok(Self::believing(roots))
    }

    /// For a connection that does without.
    pub(super) fn unused() -> Self {
        Self::believing(RootCertStore::empty())
    }

    fn believing(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS needs")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// What was wrong with the server's certificate or its TLS, if that is what the driver complains about.
    pub(super) fn complaint(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
        let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
        source.get_ref()?.downcast_ref()
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Wrapped;
    type TlsConnect = Handshake;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, InvalidDnsNameError> {
        // A folder of a socket is no name; TLS is not spoken there either.
        Ok(Handshake(self.0.clone(), ServerName::try_from(domain.to_owned()).ok()))
    }
}

pub(super) struct Handshake(Arc<ClientConfig>, Option<ServerName<'static>>);

impl TlsConnect<Socket> for Handshake {
    type Stream = Wrapped;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Wrapped>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let Some(name) = self.1 else { return Err(io::Error::other("the host has no name that a certificate could hold")) };
            Ok(Wrapped(tokio_rustls::TlsConnector::from(self.0).connect(name, socket).await?))
        })
    }
}

pub(super) struct Wrapped(tokio_rustls::client::TlsStream<Socket>);

impl TlsStream for Wrapped {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Wrapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
