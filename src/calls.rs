//! The bundled demo calls: sound, script and ground truth. They serve the demo, the journeys and the benches.

use anyhow::Context;
use bytes::Bytes;
use contracts::{Encoding, SampleRate, audio::Role};
use rust_embed::Embed;
use serde::Deserialize;

#[derive(Embed)]
#[folder = "tests/fixtures/calls"]
#[include = "*.json"]
#[include = "*.wav"]
#[include = "*.flac"]
#[include = "*.ogg"]
struct Files;

/// A scripted two-party call.
#[derive(Clone, Debug)]
pub struct DemoCall {
    pub script: Script,
    /// Per channel, encoded as a caller would send it.
    pub channels: Vec<Bytes>,
    pub encoding: Encoding,
    pub rate: SampleRate,
}

/// What was said, as the file beside the recording tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct Script {
    pub name: String,
    pub title: String,
    pub file: String,
    /// With `mulaw` in it for telephony; anything else is sent as 16-bit samples, or as float at 48 kHz.
    pub encoding: String,
    pub duration_s: f64,
    pub turns: Vec<Turn>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    pub index: usize,
    pub speaker: Role,
    pub channel: u8,
    pub text: String,
    /// First and last voiced sample, in seconds from the start.
    pub start_s: f64,
    pub end_s: f64,
    pub intent: String,
    pub sentiment: String,
}

/// Names of the bundled calls, in order.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = Files::iter().filter_map(|f| f.strip_suffix(".json").map(str::to_owned)).collect();
    names.sort();
    names
}

/// Reads one bundled call and brings it into the form in which a caller sends it.
pub fn load(name: &str) -> anyhow::Result<DemoCall> {
    let file =
        |name: &str| Files::get(name).with_context(|| format!("there is no bundled call {name:?}; there are {}", names().join(", ")));
    let script: Script = serde_json::from_slice(&file(&format!("{name}.json"))?.data).with_context(|| format!("reading {name}.json"))?;
    let sound = file(&script.file)?.data.into_owned();
    let decoded =
        audio::engine::decode::file::bytes(sound.into(), Default::default()).with_context(|| format!("decoding {}", script.file))?;
    let encoding = match (script.encoding.contains("mulaw"), decoded.rate.hz()) {
        (true, _) => Encoding::Mulaw,
        (_, 48_000) => Encoding::Float32,
        _ => Encoding::Linear16,
    };
    let channels = decoded.channels.iter().map(|samples| encode(encoding, samples)).collect();
    Ok(DemoCall { script, channels, encoding, rate: decoded.rate })
}

/// Samples at full scale ±1 as a caller's bytes. A-law is nothing our callers here send.
pub fn encode(encoding: Encoding, samples: &[f32]) -> Bytes {
    let pcm = |x: &f32| (x * 32768.0).clamp(-32768.0, 32767.0) as i16;
    match encoding {
        Encoding::Linear16 => samples.iter().flat_map(|x| pcm(x).to_le_bytes()).collect(),
        Encoding::Float32 => samples.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Encoding::Mulaw | Encoding::Alaw => samples.iter().map(|x| mulaw(pcm(x))).collect(),
    }
}

/// G.711 µ-law of a 16-bit sample.
fn mulaw(sample: i16) -> u8 {
    const BIAS: i32 = 0x84;
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = (i32::from(sample).abs().min(32_635)) + BIAS;
    let exponent = 31 - (magnitude as u32).leading_zeros() as i32 - 7;
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}
