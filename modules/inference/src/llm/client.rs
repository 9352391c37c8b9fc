//! One question to a server of OpenAI's chat API, over HTTP.
//!
//! Invariants: no redirect is followed, so the key goes nowhere else; a body is read up to a limit; what a server says in words is never
//! repeated, because it may repeat what it was asked.

use super::{Reason, settings::LlmSettings};
use crate::StartError;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;
use std::{env, fs, path::PathBuf, sync::Arc, time::Duration};

/// An answer has a few hundred bytes.
const LONGEST_BODY: usize = 256 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Longer than a server may send us away for: nobody could call us back.
const LONGEST_REST: Duration = Duration::from_secs(3_600);

pub(super) struct Client {
    http: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    key: Key,
}

/// A model's answer, as far as it is one.
#[derive(Debug)]
pub(super) struct Completion {
    pub content: String,
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub prompt_tokens: u64,
    #[serde(default)]
    pub completion_tokens: u64,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub reason: Reason,
    /// For people.
    pub detail: String,
    /// The server asked to be left alone for this long.
    pub rest: Option<Duration>,
    pub usage: Usage,
}

impl Failure {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), rest: None, usage: Usage::default() }
    }
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

impl Client {
    /// `None` where no server is named.
    ///
    /// # Errors
    /// A key or an authority that cannot be read.
    pub(super) fn new(settings: &LlmSettings) -> Result<Option<Self>, StartError> {
        let Some(endpoint) = settings.endpoint() else { return Ok(None) };
        let wrong = |what: String| StartError::Setting(format!("llm.{what}"));
        let key = Key::of(settings).map_err(wrong)?;
        let tls = tls(settings).map_err(wrong)?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        let mut pool = Pool::builder(TokioExecutor::new());
        let http = pool.pool_idle_timeout(IDLE_LIMIT).pool_timer(TokioTimer::new()).timer(TokioTimer::new()).build(connector);
        Ok(Some(Self { http, endpoint, key }))
    }

    /// As long as it takes: the caller watches the time.
    pub(super) async fn complete(&self, body: Bytes) -> Result<Completion, Failure> {
        let mut request = Request::builder().method(Method::POST).uri(self.endpoint.clone()).header(CONTENT_TYPE, "application/json");
        if let Some(key) = self.key.header() {
            request = request.header(AUTHORIZATION, key);
        }
        let request = request.body(Full::new(body)).expect("its parts were checked when they were set");
        let cut = |error: &dyn std::error::Error| Failure::new(Reason::Unreachable, innermost(error));
        let (head, body) = self.http.request(request).await.map_err(|e| cut(&e))?.into_parts();
        let said = match Limited::new(body, LONGEST_BODY).collect().await {
            Ok(said) => said.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(Failure::new(Reason::Garbage, format!("its answer is longer than {LONGEST_BODY} bytes")));
            }
            Err(error) => return Err(cut(&*error)),
        };
        match head.status {
            StatusCode::OK => read(&said),
            status => {
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    self.key.renew();
                }
                Err(refusal(status, &head.headers))
            }
        }
    }
}

/// The cause, not the layers it came through.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn read(said: &[u8]) -> Result<Completion, Failure> {
    let garbage = |what: &str| Failure::new(Reason::Garbage, format!("its answer is no chat completion: {what}"));
    let reply: Reply = serde_json::from_slice(said).map_err(|e| garbage(&format!("{:?} error at column {}", e.classify(), e.column())))?;
    let usage = reply.usage.unwrap_or_default();
    let choice = reply.choices.into_iter().next().ok_or_else(|| garbage("it has no choice"))?;
    let failed = |reason, detail: &str| Err(Failure { usage, ..Failure::new(reason, detail) });
    if choice.message.refusal.is_some_and(|text| !text.is_empty()) || choice.finish_reason.as_deref() == Some("content_filter") {
        return failed(Reason::Declined, "it declined to answer");
    }
    if choice.finish_reason.as_deref() == Some("length") {
        return failed(Reason::Truncated, "its answer was cut off at max_tokens");
    }
    match choice.message.content {
        Some(content) => Ok(Completion { content, usage }),
        None => failed(Reason::Garbage, "its answer has no content"),
    }
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    let reason = match status.as_u16() {
        429 => Reason::Limited,
        503 => Reason::Overloaded,
        400..500 => Reason::Refused,
        500.. => Reason::Failed,
        _ => Reason::Garbage, // a redirect is not followed
    };
    let rest = matches!(reason, Reason::Limited | Reason::Overloaded).then(|| rest(headers, Utc::now())).flatten();
    Failure { rest, ..Failure::new(reason, format!("it answers {status}")) }
}

/// `Retry-After` in seconds or as a date, or OpenAI's `retry-after-ms`.
fn rest(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    let in_ms = || seconds(text("retry-after-ms")?.parse::<f64>().ok()? / 1_000.0);
    let in_seconds = || seconds(text(RETRY_AFTER.as_str())?.parse().ok()?);
    let by_date = || (DateTime::parse_from_rfc2822(text(RETRY_AFTER.as_str())?).ok()?.to_utc() - now).to_std().ok();
    in_ms().or_else(in_seconds).or_else(by_date).map(|rest| rest.min(LONGEST_REST))
}

/// Shown to nobody but the server.
struct Key {
    file: Option<PathBuf>,
    header: Mutex<Option<HeaderValue>>,
}

impl Key {
    fn of(settings: &LlmSettings) -> Result<Self, String> {
        let header = match (&settings.key_env, &settings.key_file) {
            (Some(name), _) => {
                let key = env::var(name).map_err(|_| format!("key_env is {name}: expected a variable of that name in the environment"))?;
                Some(bearer(&key).ok_or(format!("key_env: {name} holds no key: expected one line of plain characters"))?)
            }
            (None, Some(file)) => Some(read_key(file)?),
            (None, None) => None,
        };
        Ok(Self { file: settings.key_file.clone(), header: Mutex::new(header) })
    }

    fn header(&self) -> Option<HeaderValue> {
        self.header.lock().clone()
    }

    /// A key is replaced by writing its file.
    fn renew(&self) {
        if let Some(Ok(header)) = self.file.as_ref().map(read_key) {
            *self.header.lock() = Some(header);
        }
    }
}

fn read_key(file: &PathBuf) -> Result<HeaderValue, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("key_file {}: {e}", file.display()))?;
    bearer(&text).ok_or_else(|| format!("key_file {} holds no key: expected one line of plain characters", file.display()))
}

fn bearer(key: &str) -> Option<HeaderValue> {
    let key = key.trim();
    if key.is_empty() {
        return None;
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn tls(settings: &LlmSettings) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(file) => {
            let at_fault = |cause: String| format!("ca {}: {cause}", file.display());
            let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
            let found = found.map_err(|e| at_fault(e.to_string()))?;
            let (taken, _) = roots.add_parsable_certificates(found);
            if taken == 0 {
                return Err(at_fault("it holds no certificate: expected PEM".into()));
            }
        }
        // What this machine trusts takes a while to read, and nobody asks for it without https.
        None if settings.url.as_ref().is_some_and(|url| url.starts_with("https")) => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("url is https, and this machine trusts no authority: expected ca, or the package ca-certificates".into());
            }
        }
        None => {}
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_in_three_ways_when_to_come_back() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z").unwrap().to_utc();
        let said = |name: &'static str, value: &str| rest(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]), now);
        assert_eq!(said("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(said("retry-after", " 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(said("retry-after-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(said("retry-after", "Sun, 01 Mar 2026 12:00:20 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(said("retry-after", "999999"), Some(LONGEST_REST));
        for nothing in ["", "soon", "-3", "NaN", "1e400", "Sun, 01 Mar 2026 11:00:00 GMT"] {
            assert_eq!(said("retry-after", nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_key_is_read_from_where_it_is_named_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let settings = LlmSettings { url: Some("http://127.0.0.1:1/v1".into()), key_file: Some(file.clone()), ..LlmSettings::default() };
        assert!(Key::of(&settings).err().unwrap().contains("key_file"));
        fs::write(&file, "\n").unwrap();
        assert!(Key::of(&settings).err().unwrap().contains("holds no key"));
        fs::write(&file, "sk-one\n").unwrap();
        let key = Key::of(&settings).unwrap();
        let header = key.header().unwrap();
        assert_eq!(header, "Bearer sk-one");
        assert!(!format!("{header:?}").contains("sk-one"));
        fs::write(&file, "sk-two").unwrap();
        key.renew();
        assert_eq!(key.header().unwrap(), "Bearer sk-two");
        let absent = LlmSettings { key_env: Some("LLM_KEY_THAT_IS_NOT_SET".into()), key_file: None, ..settings };
        assert!(Key::of(&absent).err().unwrap().contains("LLM_KEY_THAT_IS_NOT_SET"));
    }
}
