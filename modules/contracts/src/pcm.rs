//! Sound as callers send it: encoding, rate, and positions counted in samples.

use serde::{Deserialize, Serialize};
use std::{fmt, ops, time::Duration};

/// What a caller may declare. Anything else is a container and is decoded before it becomes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Signed 16-bit, little-endian.
    Linear16,
    /// 32-bit float, little-endian, full scale ±1.
    Float32,
    /// G.711 µ-law.
    Mulaw,
    /// G.711 A-law.
    Alaw,
}

impl Encoding {
    pub const ALL: [Self; 4] = [Self::Linear16, Self::Float32, Self::Mulaw, Self::Alaw];

    pub fn bytes_per_sample(self) -> usize {
        match self {
            Self::Linear16 => 2,
            Self::Float32 => 4,
            Self::Mulaw | Self::Alaw => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Linear16 => "linear16",
            Self::Float32 => "float32",
            Self::Mulaw => "mulaw",
            Self::Alaw => "alaw",
        }
    }
}

impl std::str::FromStr for Encoding {
    type Err = BadAudio;
    fn from_str(text: &str) -> Result<Self, BadAudio> {
        Self::ALL
            .into_iter()
            .find(|e| e.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| BadAudio::Encoding(text.chars().take(32).collect()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAudio {
    #[error("encoding {0:?} is not known: expected linear16, float32, mulaw or alaw")]
    Encoding(String),
    #[error("a sample rate of {0} Hz is not supported: expected 8000 to 48000")]
    Rate(u32),
    #[error("{0} channels are not supported: expected 1 or 2")]
    Channels(u32),
}

/// Samples per second of one channel, 8000 to 48000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SampleRate(u32);

impl SampleRate {
    pub const HZ_8000: Self = Self(8_000);
    pub const HZ_16000: Self = Self(16_000);
    pub const HZ_48000: Self = Self(48_000);

    pub fn new(hz: u32) -> Result<Self, BadAudio> {
        if (8_000..=48_000).contains(&hz) { Ok(Self(hz)) } else { Err(BadAudio::Rate(hz)) }
    }
    pub const fn hz(self) -> u32 {
        self.0
    }
    /// Whole samples in `time`, rounded down.
    pub fn samples_in(self, time: Duration) -> u64 {
        (time.as_micros() * u128::from(self.0) / 1_000_000) as u64
    }
    pub fn time_of(self, samples: u64) -> Duration {
        Duration::from_nanos((u128::from(samples) * 1_000_000_000 / u128::from(self.0)) as u64)
    }
    /// Milliseconds from the channel's first sample to `pos`, rounded down.
    pub fn ms_at(self, pos: SamplePos) -> u64 {
        (u128::from(pos.0) * 1000 / u128::from(self.0)) as u64
    }
}

impl TryFrom<u32> for SampleRate {
    type Error = BadAudio;
    fn try_from(hz: u32) -> Result<Self, BadAudio> {
        Self::new(hz)
    }
}
impl From<SampleRate> for u32 {
    fn from(rate: SampleRate) -> u32 {
        rate.0
    }
}
impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.0)
    }
}

/// A sample's index in its channel, at the channel's own rate. Sample 0 is the start of the conversation, in every channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SamplePos(pub u64);

impl SamplePos {
    pub const ZERO: Self = Self(0);
    /// Samples from `earlier` to here; 0 if it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
impl ops::Add<u64> for SamplePos {
    type Output = Self;
    fn add(self, samples: u64) -> Self {
        Self(self.0 + samples)
    }
}
impl fmt::Display for SamplePos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
