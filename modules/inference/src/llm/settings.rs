//! `[inference.llm]`: a language model above the classifier.

use crate::settings::expect;
use hyper::Uri;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmSettings {
    /// Where a server of OpenAI's chat API is, such as `http://127.0.0.1:8000/v1`. Default none: there is no language model.
    pub url: Option<String>,
    /// Its name for the model. Default none; expected with `url`.
    pub model: String,
    /// The environment variable that holds the key for it. Default none.
    pub key_env: Option<String>,
    /// The file that holds the key for it, read again when the server refuses the key. Default none.
    pub key_file: Option<PathBuf>,
    /// The authority that signed the certificate of an `https` server, as PEM. Default: those this machine trusts.
    pub ca: Option<PathBuf>,
    /// Time one answer may take, in ms; never more than the call leaves. Default 2000.
    pub deadline_ms: u64,
    /// With less time than this it is not asked, in ms. Default 500.
    pub least_ms: u64,
    /// Kept of a call's time for the rungs below, in ms. Default 300.
    pub fallback_ms: u64,
    /// Most tokens of an answer. Default 200.
    pub max_tokens: u32,
    /// Turns it is asked about at the same time. Default 16.
    pub concurrency: usize,
    /// Failures in a row after which it is left alone. Default 3.
    pub breaker_failures: u32,
    /// First pause after those, in ms; doubles up to 15 s. Default 1000.
    pub breaker_pause_ms: u64,
    /// Time a summary may take, in ms; never more than the call leaves beside 2 s for the rungs below. Default 12000.
    pub summary_ms: u64,
    /// Words of a call that are asked about at once; a longer one is asked about in parts, at most 8. Default 3000.
    pub summary_words: usize,
    /// Most tokens of a part's answer. Default 800.
    pub summary_tokens: u32,
    /// Parts of calls it is asked about at the same time. Default 4.
    pub summaries: usize,
    /// How long an answer is kept in the cache for the same question, in s. Default 3600, 0 for not at all.
    pub remember_s: u64,
    /// How long the cache is waited for, in ms; then the question is asked. Default 5.
    pub recall_ms: u64,
    /// More fields of the request, such as `chat_template_kwargs = { enable_thinking = false }`. With `max_completion_tokens` among them
    /// no `max_tokens` is sent, and of a summary the larger of it and `summary_tokens`. Default none.
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl Default for LlmSettings {
    fn default() -> Self {
        Self {
            url: None,
            model: String::new(),
            key_env: None,
            key_file: None,
            ca: None,
            deadline_ms: 2_000,
            least_ms: 500,
            fallback_ms: 300,
            max_tokens: 200,
            concurrency: 16,
            breaker_failures: 3,
            breaker_pause_ms: 1_000,
            summary_ms: 12_000,
            summary_words: 3_000,
            summary_tokens: 800,
            summaries: 4,
            remember_s: 3_600,
            recall_ms: 5,
            extra: BTreeMap::new(),
        }
    }
}

impl LlmSettings {
    /// # Errors
    /// Names the setting and what was expected.
    pub fn check(&self) -> Result<(), String> {
        expect("deadline_ms", self.deadline_ms, 1, 60_000)?;
        expect("least_ms", self.least_ms, 1, self.deadline_ms)?;
        expect("fallback_ms", self.fallback_ms, 0, 10_000)?;
        expect("max_tokens", u64::from(self.max_tokens), 16, 8_192)?;
        expect("concurrency", self.concurrency as u64, 1, 1_024)?;
        expect("breaker_failures", u64::from(self.breaker_failures), 1, 1_000)?;
        expect("breaker_pause_ms", self.breaker_pause_ms, 1, 15_000)?;
        expect("summary_ms", self.summary_ms, self.least_ms, 60_000)?;
        expect("summary_words", self.summary_words as u64, 200, 100_000)?;
        expect("summary_tokens", u64::from(self.summary_tokens), 16, 8_192)?;
        expect("summaries", self.summaries as u64, 1, 64)?;
        expect("remember_s", self.remember_s, 0, 86_400)?;
        expect("recall_ms", self.recall_ms, 1, 10_000)?;
        let Some(url) = &self.url else { return Ok(()) };
        let uri = address(url)?;
        if self.model.is_empty() {
            return Err("model is not given: expected the server's name for it".into());
        }
        if self.key_env.is_some() && self.key_file.is_some() {
            return Err("key_env and key_file are both given: expected one of them".into());
        }
        if let Some(name) = self.key_env.as_ref().filter(|name| name.starts_with("QUICKCOMM_")) {
            return Err(format!("key_env is {name}: expected another name, because those with QUICKCOMM_ are settings, which are printed"));
        }
        let keyed = self.key_env.is_some() || self.key_file.is_some();
        if keyed && uri.scheme_str() == Some("http") && !is_loopback(&uri) {
            return Err(format!("url is {url}: expected https, or the key could be read on the way"));
        }
        if self.ca.is_some() && uri.scheme_str() == Some("http") {
            return Err(format!("ca is for an https server, and {url} is none"));
        }
        match ["model", "messages", "response_format", "stream"].iter().find(|name| self.extra.contains_key(**name)) {
            Some(name) => Err(format!("extra holds {name}: expected fields that are not sent already")),
            None => Ok(()),
        }
    }

    /// Where answers are asked for. Call it after [`Self::check`].
    pub(super) fn endpoint(&self) -> Option<Uri> {
        let url = self.url.as_ref()?;
        format!("{}/chat/completions", url.trim_end_matches('/')).parse().ok()
    }
}

fn address(url: &str) -> Result<Uri, String> {
    // The text is not repeated: what stands before the @ is likely to be a secret.
    if url.contains('@') {
        return Err("url holds a name or a password: expected the key in key_env or key_file".into());
    }
    let uri: Option<Uri> = url.parse().ok();
    let fits = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
    uri.filter(fits).ok_or_else(|| format!("url is {url}: expected http://HOST:PORT/v1 or https://HOST/v1"))
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> LlmSettings {
        LlmSettings { url: Some(url.into()), model: "m".into(), ..LlmSettings::default() }
    }

    #[test]
    fn without_an_address_there_is_none_and_with_one_it_must_be_usable() {
        LlmSettings::default().check().unwrap();
        at("http://10.0.0.7:8000/v1").check().unwrap();
        assert_eq!(at("https://llm.example/v1/").endpoint().unwrap(), "https://llm.example/v1/chat/completions");
        let keyed = |url: &str| LlmSettings { key_env: Some("LLM_KEY".into()), ..at(url) };
        keyed("https://llm.example/v1").check().unwrap();
        keyed("http://127.0.0.1:8000/v1").check().unwrap();
        let twice = LlmSettings { key_file: Some("/x".into()), ..keyed("https://llm.example/v1") };
        let printed = LlmSettings { key_env: Some("QUICKCOMM_KEY".into()), ..at("https://llm.example/v1") };
        let extra = LlmSettings { extra: [("messages".to_owned(), serde_json::json!([]))].into(), ..at("http://127.0.0.1:1") };
        for (settings, says) in [
            (at("llm.example"), "expected http://HOST:PORT/v1"),
            (at("ftp://llm.example"), "expected http://HOST:PORT/v1"),
            (LlmSettings { model: String::new(), ..at("http://127.0.0.1:1") }, "model is not given"),
            (keyed("http://10.0.0.7:8000/v1"), "expected https"),
            (twice, "one of them"),
            (printed, "QUICKCOMM_"),
            (extra, "messages"),
            (LlmSettings { least_ms: 3_000, ..at("http://127.0.0.1:1") }, "least_ms is 3000: expected 1 to 2000"),
            (LlmSettings { ca: Some("/ca.pem".into()), ..at("http://127.0.0.1:1") }, "https"),
        ] {
            let refused = settings.check().unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        let secret = at("https://me:hunter2@llm.example/v1").check().unwrap_err();
        assert!(secret.contains("key_file") && !secret.contains("hunter2"), "{secret}");
    }
}
