//! What stands in the query of `/v1/listen`. Unknown parameters are tolerated: SDKs send more than anybody can know.

use super::super::refusal::pairs;
use contracts::{Encoding, SampleRate, audio::Endpointing};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ListenQuery {
    /// As the caller named it; any name means the one local model.
    pub(super) model: String,
    pub(super) language: String,
    /// Absent: a container, which says itself what it holds.
    pub(super) encoding: Option<Encoding>,
    pub(super) rate: Option<SampleRate>,
    pub(super) channels: usize,
    pub(super) multichannel: bool,
    pub(super) interim_results: bool,
    pub(super) endpointing: Endpointing,
    pub(super) utterance_end: Option<Duration>,
    pub(super) vad_events: bool,
    pub(super) utterances: bool,
    pub(super) paragraphs: bool,
    /// `tag`, and `extra` as `key:value`.
    pub(super) tags: Vec<String>,
    /// Asked for and not given; the caller is told in the answer's metadata.
    pub(super) not_given: Vec<&'static str>,
}

impl Default for ListenQuery {
    fn default() -> Self {
        Self {
            model: "general".into(),
            language: "en".into(),
            encoding: None,
            rate: None,
            channels: 1,
            multichannel: false,
            interim_results: false,
            // The vendor's default. The engine takes anything below 100 ms for 250 ms.
            endpointing: Endpointing::Silence(Duration::from_millis(10)),
            utterance_end: None,
            vad_events: false,
            utterances: false,
            paragraphs: false,
            tags: vec![],
            not_given: vec![],
        }
    }
}

/// Features of the vendor's that are not offered; asking for them is no error.
const NOT_OFFERED: [&str; 12] = [
    "diarize",
    "diarize_model",
    "detect_language",
    "detect_entities",
    "summarize",
    "sentiment",
    "topics",
    "intents",
    "custom_topic",
    "custom_intent",
    "search",
    "replace",
];

impl ListenQuery {
    /// # Errors
    /// Names the parameter and what was expected.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in pairs(query).map_err(|refusal| refusal.detail)? {
            match name.as_str() {
                "model" => parsed.model = short(&value),
                "language" => parsed.language = language(&value)?,
                "encoding" => parsed.encoding = Some(encoding(&value)?),
                "sample_rate" => parsed.rate = Some(rate(&value)?),
                "channels" => parsed.channels = number(&name, &value, 1, 8)? as usize,
                "multichannel" => parsed.multichannel = boolean(&name, &value)?,
                "interim_results" => parsed.interim_results = boolean(&name, &value)?,
                "endpointing" => parsed.endpointing = endpointing(&value)?,
                "utterance_end_ms" if value.eq_ignore_ascii_case("false") => parsed.utterance_end = None,
                "utterance_end_ms" => parsed.utterance_end = Some(Duration::from_millis(number(&name, &value, 1, 60_000)?)),
                "vad_events" => parsed.vad_events = boolean(&name, &value)?,
                "utterances" => parsed.utterances = boolean(&name, &value)?,
                "paragraphs" => parsed.paragraphs = boolean(&name, &value)?,
                "tag" | "extra" => parsed.tags.push(short(&value)),
                "callback" => return Err("callback is not offered yet: expected a request that waits for its answer".into()),
                other => {
                    let wanted = !value.eq_ignore_ascii_case("false") && !value.is_empty();
                    parsed.not_given.extend(NOT_OFFERED.into_iter().filter(|known| *known == other && wanted));
                }
            }
        }
        parsed.tags.truncate(20);
        parsed.not_given.dedup();
        Ok(parsed)
    }
}

fn short(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn boolean(name: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(format!("{name} is {:?}: expected true or false", short(value))),
    }
}

fn number(name: &str, value: &str, from: u64, to: u64) -> Result<u64, String> {
    let given = value.parse().ok().filter(|n| (from..=to).contains(n));
    given.ok_or_else(|| format!("{name} is {:?}: expected a number from {from} to {to}", short(value)))
}

fn language(value: &str) -> Result<String, String> {
    let main = value.split(['-', '_']).next().unwrap_or_default();
    if main.eq_ignore_ascii_case("en") {
        return Ok(value.to_ascii_lowercase());
    }
    Err(format!("no model for language {:?}: expected en", short(value)))
}

fn encoding(value: &str) -> Result<Encoding, String> {
    match value.to_ascii_lowercase().as_str() {
        "linear16" => Ok(Encoding::Linear16),
        "linear32" | "float32" => Ok(Encoding::Float32),
        "mulaw" => Ok(Encoding::Mulaw),
        "alaw" => Ok(Encoding::Alaw),
        _ => Err(format!(
            "encoding {:?} is not supported: expected linear16, linear32, mulaw or alaw, or none for a container",
            short(value)
        )),
    }
}

fn rate(value: &str) -> Result<SampleRate, String> {
    let hz: u32 = value.parse().map_err(|_| format!("sample_rate is {:?}: expected 8000 to 48000", short(value)))?;
    SampleRate::new(hz).map_err(|error| error.to_string())
}

fn endpointing(value: &str) -> Result<Endpointing, String> {
    match value.to_ascii_lowercase().as_str() {
        "false" => Ok(Endpointing::Off),
        "true" => Ok(ListenQuery::default().endpointing),
        ms => match ms.parse() {
            Ok(ms @ 0..=10_000) => Ok(Endpointing::Silence(Duration::from_millis(ms))),
            _ => Err(format!("endpointing is {:?}: expected 0 to 10000 ms, or false", short(value))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_sdks_send_is_understood() {
        let query = "model=nova-3&encoding=linear16&sample_rate=16000&interim_results=True&endpointing=300&utterance_end_ms=1000\
                     &vad_events=%22true%22&tag=a&tag=b&extra=k%3Av&no_delay=true&smart_format=true&mip_opt_out=false&keyterm=x&channels=2\
                     &multichannel=TRUE";
        let query = query.replace("%22true%22", "true");
        let parsed = ListenQuery::parse(&query).unwrap();
        let expected = ListenQuery {
            model: "nova-3".into(),
            encoding: Some(Encoding::Linear16),
            rate: Some(SampleRate::HZ_16000),
            interim_results: true,
            endpointing: Endpointing::Silence(Duration::from_millis(300)),
            utterance_end: Some(Duration::from_secs(1)),
            vad_events: true,
            channels: 2,
            multichannel: true,
            tags: vec!["a".into(), "b".into(), "k:v".into()],
            ..Default::default()
        };
        assert_eq!(parsed, expected);
        assert_eq!(ListenQuery::parse("endpointing=false").unwrap().endpointing, Endpointing::Off);
        assert_eq!(ListenQuery::parse("diarize=true&summarize=false").unwrap().not_given, ["diarize"]);
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected() {
        for (query, says) in [
            ("encoding=opus", "expected linear16"),
            ("encoding=amr-nb", "expected linear16"),
            ("sample_rate=96000", "8000 to 48000"),
            ("sample_rate=x", "8000 to 48000"),
            ("interim_results=maybe", "expected true or false"),
            ("language=de", "expected en"),
            ("endpointing=soon", "or false"),
            ("channels=9", "from 1 to 8"),
            ("callback=http%3A%2F%2Fx", "not offered"),
        ] {
            let refused = ListenQuery::parse(query).unwrap_err();
            assert!(refused.contains(says), "{query}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in ".{0,200}", name in "[a-z_]{1,16}", value in ".{0,20}") {
            let _ = ListenQuery::parse(&query);
            let _ = ListenQuery::parse(&format!("{name}={value}&endpointing={value}&channels={value}&utterance_end_ms={value}"));
        }
    }
}
