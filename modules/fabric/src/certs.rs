//! A development authority and its certificates. What a real authority issues works the same, if the role stands in it.

use crate::{role::Role, tls::Files};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks differ between machines.
const BACKDATED: Duration = Duration::from_secs(3600);
const AUTHORITY_DAYS: u32 = 3650;

#[derive(Debug, thiserror::Error)]
#[error("making a certificate failed")]
pub struct CertsError(#[from] rcgen::Error);

/// Signs certificates. Its name is fixed, so that the key alone is enough to issue more under the same authority.
pub struct Authority {
    signer: CertifiedIssuer<'static, KeyPair>,
}

/// PEM texts.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Result<Self, CertsError> {
        Self::with_key(KeyPair::generate()?)
    }

    /// The authority whose key this is.
    pub fn from_key(pem: &str) -> Result<Self, CertsError> {
        Self::with_key(KeyPair::from_pem(pem)?)
    }

    fn with_key(key: KeyPair) -> Result<Self, CertsError> {
        let mut params = valid(CertificateParams::default(), SystemTime::now(), DAY * AUTHORITY_DAYS);
        params.distinguished_name.push(DnType::CommonName, "QuickComm development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { signer: CertifiedIssuer::self_signed(params, key)? })
    }

    pub fn pair(&self) -> Pair {
        Pair { certificate: self.signer.pem(), key: self.signer.key().serialize_pem() }
    }

    /// A certificate for a process with these roles, from now on.
    pub fn issue(&self, roles: &[Role], days: u32) -> Result<Pair, CertsError> {
        self.issue_from(SystemTime::now(), roles, DAY * days)
    }

    /// The same, from another day on.
    pub fn issue_from(&self, start: SystemTime, roles: &[Role], lifetime: Duration) -> Result<Pair, CertsError> {
        let mut params = valid(CertificateParams::default(), start, lifetime);
        params.distinguished_name.push(DnType::CommonName, format!("quickcomm {}", crate::role::names(roles)));
        for role in roles {
            params.subject_alt_names.push(SanType::URI(role.uri().try_into()?));
        }
        // One certificate for both ends: a process calls and is called.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.signer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl Pair {
    /// As `NAME.pem` and `NAME.key` in `folder`, beside `ca.pem`. Each file appears whole, over what was there; only this user reads the key.
    pub fn write(&self, folder: &Path, name: &str, authority: &str) -> io::Result<Files> {
        let at = |name: String| folder.join(name);
        let files = Files { ca: at("ca.pem".into()), cert: at(format!("{name}.pem")), key: at(format!("{name}.key")) };
        for (path, text, mode) in [(&files.ca, authority, 0o644), (&files.key, &self.key, 0o600), (&files.cert, &self.certificate, 0o644)] {
            if fs::read_to_string(path).is_ok_and(|found| found == text) {
                continue;
            }
            let new = path.with_extension("new");
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?.write_all(text.as_bytes())?;
            fs::rename(&new, path)?;
        }
        Ok(files)
    }
}

fn valid(mut params: CertificateParams, start: SystemTime, lifetime: Duration) -> CertificateParams {
    params.not_before = (start - BACKDATED).into();
    params.not_after = (start + lifetime).into();
    params
}
