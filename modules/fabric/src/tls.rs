//! Certificates: ours from files, theirs by our authority.
//!
//! Invariants:
//! - TLS 1.3 with certificates at both ends, or no connection; a peer's name is its role, so certificates need no host names;
//! - files are looked at again for every new connection: replaced certificates are used from then on, without a restart. Files that do not
//!   fit together leave the previous ones in use.

use crate::role::{Caller, Role};
use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tracing::{error, info, warn};

/// How often the end of our certificate is looked at, and how long before it somebody is told.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authorities that peers' certificates must come from.
    pub ca: PathBuf,
    /// Ours, with intermediates.
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{0} holds no PEM {1}")]
    Empty(PathBuf, &'static str),
    #[error("{0} was not made by an authority in {1}")]
    Foreign(PathBuf, PathBuf),
    #[error("{0} names no role: expected a URI such as {uri} in its alternative names", uri = Role::Audio.uri())]
    NoRole(PathBuf),
    #[error("{0} and {1} do not work: {2}")]
    Unusable(PathBuf, PathBuf, rustls::Error),
}

/// This process's certificate and the authorities it believes.
pub struct Tls {
    files: Files,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamps: [Option<SystemTime>; 3],
    material: Arc<Material>,
}

pub(crate) struct Material {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    roles: Vec<Role>,
    expires: SystemTime,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// A certificate that has expired is loaded: peers refuse it and say so, while this process goes on with what needs no peers.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let stamps = files.stamps();
        let material = Arc::new(files.read()?);
        Ok(Self { files, loaded: Mutex::new(Loaded { stamps, material }) })
    }

    /// The roles in our certificate.
    pub fn roles(&self) -> Vec<Role> {
        self.current().roles.clone()
    }

    /// When our certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.current().expires
    }

    /// Tells an operator in time that the certificate ends, until dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let expires = self.expires();
            let at = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            metrics::gauge!(crate::metrics::CERTIFICATE_EXPIRES).set(at.as_secs_f64());
            let cert = self.files.cert.display();
            match expires.duration_since(SystemTime::now()) {
                Ok(left) if left > WARN_BEFORE => {}
                Ok(left) => warn!(%cert, hours_left = left.as_secs() / 3600, "our certificate ends soon: renew it, no restart is needed"),
                Err(_) => error!(%cert, "our certificate has expired: peers refuse this process"),
            }
        }
    }

    /// What a new connection uses.
    pub(crate) fn current(&self) -> Arc<Material> {
        let mut loaded = self.loaded.lock();
        let stamps = self.files.stamps();
        if stamps != loaded.stamps {
            match self.files.read() {
                Ok(material) => {
                    info!(cert = %self.files.cert.display(), "certificates were replaced");
                    *loaded = Loaded { stamps, material: Arc::new(material) };
                }
                // Perhaps only half of them are written yet: the next connection looks again.
                Err(error) => warn!(error = %error, "the new certificates do not work: the previous ones stay in use"),
            }
        }
        loaded.material.clone()
    }
}

impl Files {
    fn stamps(&self) -> [Option<SystemTime>; 3] {
        [&self.ca, &self.cert, &self.key].map(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
    }

    fn read(&self) -> Result<Material, TlsError> {
        let authorities = certificates(&self.ca)?;
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(authorities).0 == 0 {
            return Err(TlsError::Empty(self.ca.clone(), "certificate of an authority"));
        }
        let roots = Arc::new(roots);
        let chain = certificates(&self.cert)?;
        let own = chain.first().ok_or_else(|| TlsError::Empty(self.cert.clone(), "certificate"))?;
        let expires = end_of(own, &chain[1..], &roots).ok_or_else(|| TlsError::Foreign(self.cert.clone(), self.ca.clone()))?;
        let roles = roles_in(own);
        if roles.is_empty() {
            return Err(TlsError::NoRole(self.cert.clone()));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?);
        let key = key.map_err(|_| TlsError::Empty(self.key.clone(), "private key"))?;
        let (server, client) = configs(roots, chain, key).map_err(|e| TlsError::Unusable(self.cert.clone(), self.key.clone(), e))?;
        Ok(Material { server: Arc::new(server), client: Arc::new(client), roles, expires })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(|_| TlsError::Empty(path.into(), "certificate"))
}

/// Nothing is resumed: a session that skips the certificates would outlive their end.
fn configs(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ServerConfig, ClientConfig), rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let callers = callers.map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // rustls's word for one's own rule: ours asks for a role where the usual one asks for a host name
        .with_custom_certificate_verifier(Arc::new(ByAuthority { roots, provider }))
        .with_client_auth_cert(chain, key)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = Resumption::disabled();
    Ok((server, client))
}

/// Believes a server whose certificate our authority made. Whether it has the role that is wanted is asked by whoever called it.
#[derive(Debug)]
struct ByAuthority {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify(end_entity, intermediates, &self.roots, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

fn verify(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(end_entity)?, roots, intermediates, now, algorithms.all)
}

/// When a certificate of our authority ends; `None` for another's. The far future is asked, because only a refusal tells the end.
fn end_of(own: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], roots: &RootCertStore) -> Option<SystemTime> {
    const FAR: Duration = Duration::from_secs(8000 * 365 * 24 * 3600);
    let after = match verify(own, intermediates, roots, UnixTime::since_unix_epoch(FAR)) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => not_after.as_secs(),
        _ => return None,
    };
    // Asked within its time, it must hold.
    let within = Duration::from_secs(after.min(UnixTime::now().as_secs()));
    verify(own, intermediates, roots, UnixTime::since_unix_epoch(within)).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(after))
}

pub(crate) fn roles_in(certificate: &CertificateDer<'_>) -> Vec<Role> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return vec![] };
    certificate.valid_uri_names().filter_map(Role::from_uri).collect()
}

/// Who called, by the certificate that was checked in the handshake.
pub(crate) fn caller(certificates: Option<&[CertificateDer<'_>]>) -> Caller {
    let roles = certificates.and_then(<[_]>::first).map(roles_in).unwrap_or_default();
    Caller::Certified(roles.into())
}

/// What an operator can do something about. rustls's own words follow where ours end.
pub(crate) fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    match error {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => "its certificate was not made by our authority".into(),
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => "its certificate has expired".into(),
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => "its certificate is not valid yet".into(),
        Error::NoCertificatesPresented => "it has no certificate".into(),
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => "our certificate was not made by its authority".into(),
        Error::AlertReceived(Alert::CertificateExpired) => "our certificate has expired".into(),
        Error::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown) => "it does not take our certificate".into(),
        Error::AlertReceived(Alert::CertificateRequired) => "it asks for a certificate, and we have none".into(),
        Error::InvalidMessage(_) => "what is there does not speak TLS".into(),
        other => other.to_string(),
    }
}

/// The TLS error inside what a socket reported.
pub(crate) fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
