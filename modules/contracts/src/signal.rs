//! What modules tell each other through the bus: the streams that must not lose anything, and passing signals that may.

use crate::{ChannelIndex, ConversationId, Epoch, SamplePos, TenantId, TraceCx, UtteranceId, audio::Word};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Finished segments ([`crate::conversation::Segment`] as JSON), read by the recorder and the transcript worker. Keyed by conversation.
pub const UTTERANCES: &str = "utterances";
/// What nobody has understood, or only a lower rung, is put there once more, with `"again": true` beside the segment's own fields.
pub const AGAIN: &str = "again";
/// Insights ([`crate::inference::Insight`] as JSON), read by the recorder. Keyed by conversation.
pub const INSIGHTS: &str = "insights";
/// Entries that nobody could work on ([`DeadLetter`] as JSON), read by the recorder. Keyed as they were.
pub const DEAD: &str = "dead";
/// [`Committed`], lossy: whoever misses one asks the record.
pub const COMMITTED: &str = "committed";
/// [`Live`], lossy: what is shown while people speak.
pub const LIVE: &str = "live";

/// The watermark of a channel has moved: everything before `safe` survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub conversation: ConversationId,
    pub channel: ChannelIndex,
    pub epoch: Epoch,
    pub next_seq: u64,
    pub safe: SamplePos,
}

/// An entry that was given up: as it was, with why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The stream it stood on, and to which it goes when it is replayed.
    pub stream: String,
    pub key: String,
    #[serde(with = "hex::serde")]
    pub payload: Vec<u8>,
    /// What went wrong the last time.
    pub error: String,
    /// Deliveries until it was given up.
    pub attempts: u32,
    pub trace: TraceCx,
    /// Of the release that gave it up.
    pub version: String,
}

impl DeadLetter {
    pub fn new(stream: &str, key: &str, payload: &Bytes, trace: TraceCx, attempts: u32, error: impl Into<String>) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Self { stream: stream.into(), key: key.into(), payload: payload.to_vec(), error: error.into(), attempts, trace, version }
    }

    /// Follows from what it is: given up twice, it is still one letter.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.stream.as_bytes(), self.key.as_bytes(), &self.payload] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("dead_{}", hex::encode(&hash.finalize()[..16]))
    }
}

/// Something to show that is not in the record (yet).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    pub tenant: TenantId,
    pub conversation: ConversationId,
    pub channel: ChannelIndex,
    pub trace: TraceCx,
    pub body: LiveBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LiveBody {
    /// The text of an utterance so far, already redacted; its first `stable_words` words will not change.
    Partial {
        utterance: UtteranceId,
        rev: u32,
        start_ms: u64,
        end_ms: u64,
        words: Vec<Word>,
        stable_words: u32,
    },
    /// It was no speech, or an older epoch's unfinished text.
    Retracted {
        utterance: UtteranceId,
    },
    Activity {
        talking: bool,
    },
    /// The caller's socket: gone and awaited, or back.
    Link {
        connected: bool,
    },
    /// How far the text is behind the audio received, in ms.
    Lag {
        ms: u32,
    },
}
