//! The one who is told of finished conversations, over HTTPS.
//!
//! Invariants:
//! - a name is resolved once per try, every address of it is judged, and the connection goes to one that was judged: an address that changes
//!   between look and call is never called;
//! - no redirect is followed and no proxy asked; an answer of more than 64 KiB, or one that takes longer than 5 s, is a failure;
//! - what is sent is signed over its id, the time and its bytes, by every living secret (Standard Webhooks, `v1`).
//!
//! Deliberately absent: when it is tried again (`crate::finalizer`).

use super::settings::Settings;
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use ring::hmac;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use url::{Host, Url};

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_ANSWER: usize = 64 << 10;

pub(crate) struct Webhook {
    target: Target,
    keys: Vec<hmac::Key>,
    tls: tokio_rustls::TlsConnector,
}

/// Where it is, as far as an address alone can be judged.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    url: Url,
    private: bool,
}

impl Target {
    /// # Errors
    /// What is wrong with the address, and what was expected.
    pub(crate) fn parse(url: &str, private: bool) -> Result<Self, String> {
        let expected = if private { "https:// or http://, a host and a path" } else { "https://, a public host and a path" };
        let url = Url::parse(url).map_err(|e| format!("it cannot be read ({e}); expected {expected}"))?;
        if url.scheme() != "https" && !(private && url.scheme() == "http") {
            return Err(format!("its scheme is {}; expected {expected}", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("it holds a user or a password; expected {expected}"));
        }
        let target = Self { url, private };
        match target.url.host() {
            None => return Err(format!("it names no host; expected {expected}")),
            Some(Host::Ipv4(ip)) => target.judge(ip.into())?,
            Some(Host::Ipv6(ip)) => target.judge(ip.into())?,
            Some(Host::Domain(_)) => {}
        }
        Ok(target)
    }

    fn judge(&self, ip: IpAddr) -> Result<(), String> {
        if self.private || is_public(ip) {
            return Ok(());
        }
        Err(format!("{ip} is no address of the public internet; `api.finalize.webhook_private = true` allows it"))
    }

    /// Addresses to try, each of them judged.
    async fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let port = self.url.port_or_known_default().context("the webhook's address has no port")?;
        let found: Vec<SocketAddr> = match self.url.host().context("the webhook's address has no host")? {
            Host::Ipv4(ip) => vec![(ip, port).into()],
            Host::Ipv6(ip) => vec![(ip, port).into()],
            Host::Domain(name) => tokio::net::lookup_host((name, port)).await.with_context(|| format!("{name} is not found"))?.collect(),
        };
        // One address that is not allowed makes the name suspicious, whichever would be chosen.
        for addr in &found {
            self.judge(addr.ip()).map_err(anyhow::Error::msg)?;
        }
        Ok(found)
    }
}

/// Reached over the internet, by anybody.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let special = ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_broadcast()
                || ip.is_documentation()
                || a == 0
                || a >= 224
                || (a == 100 && (64..128).contains(&b)) // carriers' own
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && (b == 18 || b == 19));
            !special
        }
        IpAddr::V6(ip) => {
            let parts = ip.segments();
            // An IPv4 address in one of the forms that IPv6 has for it.
            let inner = match parts {
                [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                    Some((parts[6], parts[7]))
                }
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = inner {
                return is_public(IpAddr::from(((u32::from(high) << 16) | u32::from(low)).to_be_bytes()));
            }
            // Global unicast, less what is not: documentation, benchmarks, Teredo and other protocol assignments.
            let global = parts[0] & 0xe000 == 0x2000;
            global && !(parts[0] == 0x2001 && (parts[1] < 0x200 || parts[1] == 0xdb8)) && parts[0] != 0x3fff
        }
    }
}

impl Webhook {
    /// `None`: nobody is told.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let Some(url) = &settings.webhook_url else { return Ok(None) };
        let target = Target::parse(url, settings.webhook_private).map_err(anyhow::Error::msg).context("api.finalize.webhook_url")?;
        let secrets = [&settings.webhook_secret, &settings.webhook_old_secret];
        let keys = secrets.into_iter().filter(|secret| !secret.expose().is_empty());
        let keys = keys.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())).collect();
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &settings.webhook_ca {
            let told = || format!("api.finalize.webhook_ca {}", file.display());
            for found in CertificateDer::pem_file_iter(file).with_context(told)? {
                roots.add(found.with_context(told)?).with_context(told)?;
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Self { target, keys, tls: Arc::new(tls).into() }))
    }

    /// Tells it once.
    ///
    /// # Errors
    /// Why it was not taken, for the log: no word of the conversation, no secret.
    pub(crate) async fn tell(&self, event: &str, body: String, at: i64) -> anyhow::Result<()> {
        let told = tokio::time::timeout(PATIENCE, self.try_tell(event, body, at)).await;
        told.unwrap_or_else(|_| bail!("it has not answered within {PATIENCE:?}"))
    }

    async fn try_tell(&self, event: &str, body: String, at: i64) -> anyhow::Result<()> {
        let url = &self.target.url;
        let mut failed = anyhow::anyhow!("its name has no address");
        for addr in self.target.addresses().await? {
            match TcpStream::connect(addr).await {
                Err(error) => failed = anyhow::Error::new(error).context(format!("{addr} cannot be reached")),
                Ok(socket) if url.scheme() == "http" => return self.post(socket, event, body, at).await,
                Ok(socket) => {
                    let name = ServerName::try_from(url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned())?;
                    let socket = self.tls.connect(name, socket).await.context("no TLS with it")?;
                    return self.post(socket, event, body, at).await;
                }
            }
        }
        Err(failed)
    }

    async fn post<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        socket: S,
        event: &str,
        body: String,
        at: i64,
    ) -> anyhow::Result<()> {
        let url = &self.target.url;
        let signature = sign(&self.keys, event, at, &body);
        let host = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
            None => url.host_str().unwrap_or_default().to_owned(),
        };
        let request = Request::post(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("quickcomm/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", event)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(Full::new(bytes::Bytes::from(body)))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let asked = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            // Read to its end, so that a receiver is not cut off in the middle of what it says.
            let read = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
            anyhow::ensure!(status.is_success(), "it answered {status}; expected 200 to 299");
            read.map_err(|_| anyhow::anyhow!("its answer is longer than {LONGEST_ANSWER} bytes"))?;
            Ok(())
        };
        tokio::pin!(asked, connection);
        tokio::select! {
            answered = &mut asked => answered,
            ended = &mut connection => match ended {
                Err(error) => Err(error.into()),
                Ok(()) => asked.await, // it was closed after the answer
            },
        }
    }
}

/// One `v1,…` for each living secret.
fn sign(keys: &[hmac::Key], event: &str, at: i64, body: &str) -> String {
    let signed = format!("{event}.{at}.{body}");
    let each = keys.iter().map(|key| format!("v1,{}", STANDARD.encode(hmac::sign(key, signed.as_bytes()))));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_called() {
        let private = [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:0a00:0001::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:2::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ];
        for ip in private {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["1.1.1.1", "8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn an_address_says_what_is_wrong_with_it() {
        let refused = |url: &str| Target::parse(url, false).expect_err(url);
        for (url, says) in [
            ("x", "cannot be read"),
            ("http://example.com/", "its scheme is http"),
            ("file:///etc/passwd", "its scheme is file"),
            ("https://me:hunter2@example.com/", "a user or a password"),
            ("https://10.0.0.1/", "10.0.0.1 is no address of the public internet"),
            // What the standard makes of these is what is judged.
            ("https://2130706433/", "127.0.0.1"),
            ("https://0x7f.1/", "127.0.0.1"),
            ("https://0177.0.0.1/", "127.0.0.1"),
            ("https://[::ffff:127.0.0.1]/", "no address of the public internet"),
        ] {
            let said = refused(url);
            assert!(said.contains(says) && !said.contains("hunter2"), "{url}: {said}");
        }
        Target::parse("https://example.com/hook?x=1", false).expect("as it should be");
        Target::parse("http://127.0.0.1:9/hook", true).expect("allowed by a setting");
    }

    /// The example of the Standard Webhooks specification, whose secret is base64 there.
    #[test]
    fn the_signature_is_that_of_the_standard() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed = sign(&[key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
