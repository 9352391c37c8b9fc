//! Names of things. Each id prints with its prefix (`conv_…`) and parses only with it, so a mix-up is an error, not a miss.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Text that is not an id of the expected kind.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an id: expected {prefix}_ and 32 hexadecimal digits")]
pub struct BadId {
    text: String,
    prefix: &'static str,
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u128);

        impl $name {
            pub const PREFIX: &'static str = $prefix;
            pub const fn from_u128(value: u128) -> Self { Self(value) }
            pub const fn as_u128(self) -> u128 { self.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "_{:032x}"), self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|hex| u128::from_str_radix(hex, 16).ok())
                    .map(Self)
                    .ok_or_else(|| BadId { text: text.chars().take(64).collect(), prefix: $prefix })
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

prefixed_id! {
    /// One recorded conversation. A UUIDv7, so ids sort by the time they were made.
    ConversationId, "conv"
}
prefixed_id! {
    /// One utterance; derived, see [`UtteranceId::of`].
    UtteranceId, "utt"
}
prefixed_id! {
    /// One insight; derived from its run and what it speaks of, see [`InsightId::of`].
    InsightId, "ins"
}
prefixed_id! {
    /// One run of an analysis: same configuration, same trigger.
    RunId, "run"
}

impl ConversationId {
    /// A new id, made of the current time and chance (UUIDv7).
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().as_u128())
    }
}

impl UtteranceId {
    /// The id follows from where the utterance stands, so its first partial already has it and a replay finds it again.
    pub fn of(conversation: ConversationId, channel: ChannelIndex, epoch: Epoch, seq: u64) -> Self {
        Self(digest(&[&conversation.0.to_be_bytes(), &[channel.0], &epoch.0.to_be_bytes(), &seq.to_be_bytes()]))
    }
}

impl RunId {
    /// A live run is one per conversation, task and configuration: a repeated analysis lands in the same run.
    pub fn live(conversation: ConversationId, task: &str, config_hash: &str) -> Self {
        Self(digest(&[&conversation.0.to_be_bytes(), task.as_bytes(), b"\0", config_hash.as_bytes()]))
    }
}

impl InsightId {
    pub fn of(run: RunId, utterance: UtteranceId) -> Self {
        Self(digest(&[&run.0.to_be_bytes(), &utterance.0.to_be_bytes()]))
    }
}

fn digest(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let bytes: [u8; 32] = hash.finalize().into();
    u128::from_be_bytes(bytes[..16].try_into().expect("a SHA-256 is longer than 16 bytes"))
}

/// Whose data it is. One tenant at first; it stands in every key and index from the first migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(std::sync::Arc<str>);

impl TenantId {
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl Default for TenantId {
    fn default() -> Self {
        Self::new("default")
    }
}
impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One speaker's audio in a conversation, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelIndex(pub u8);

impl fmt::Display for ChannelIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Raised in the record each time someone attaches to a channel; whoever holds an older one is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_parses_only_with_its_own_prefix() {
        let id = ConversationId::fresh();
        assert_eq!(id.to_string().parse::<ConversationId>().unwrap(), id);
        assert!(id.to_string().parse::<UtteranceId>().is_err());
        assert!("conv_12".parse::<ConversationId>().is_err());
        assert!("conv_+0000000000000000000000000000001".parse::<ConversationId>().is_err());
    }

    #[test]
    fn an_utterance_id_depends_on_every_part_of_its_place() {
        let c = ConversationId::from_u128(7);
        let ids = [(0, 1, 1), (1, 1, 1), (0, 2, 1), (0, 1, 2)].map(|(ch, e, s)| UtteranceId::of(c, ChannelIndex(ch), Epoch(e), s));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(ids[0], UtteranceId::of(c, ChannelIndex(0), Epoch(1), 1));
    }
}
