//! Where a page goes on: the key of the last row seen, opaque to callers.
//!
//! Invariant: a cursor is versioned and names its list, so one that is old, foreign or made up is refused, never misread.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::NaiveDateTime;
use contracts::CallError;
use serde::{Deserialize, Serialize};

pub const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 200;

/// Where a page starts and how long it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// `next_cursor` of the page before, as it was given out.
    pub cursor: Option<String>,
    /// 1 to [`MAX_LIMIT`]; other values are refused as invalid input. `None`: [`DEFAULT_LIMIT`].
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "list", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Key {
    Conversations { started_at: NaiveDateTime, id: String },
    Utterances { start_ms: i64, channel: i64, seq: i64 },
    Search { row: i64 },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u8,
    key: Key,
}

const VERSION: u8 = 1;

impl Key {
    pub(super) fn encode(self) -> String {
        let envelope = Envelope { v: VERSION, key: self };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&envelope).expect("a key is text and numbers"))
    }

    fn decode(cursor: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let envelope: Envelope = serde_json::from_slice(&bytes).ok()?;
        (envelope.v == VERSION).then_some(envelope.key)
    }
}

impl Cut {
    pub(super) fn limit(&self) -> Result<usize, CallError> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(CallError::invalid(format!("limit is {limit}: expected 1 to {MAX_LIMIT}")));
        }
        Ok(limit as usize)
    }

    /// Whether it is one of utterances.
    pub(crate) fn check_utterances(&self) -> Result<(), CallError> {
        super::transcript::place(self).and(self.limit()).map(|_| ())
    }

    pub(super) fn key(&self) -> Result<Option<Key>, CallError> {
        self.cursor.as_deref().map(|cursor| Key::decode(cursor).ok_or_else(bad)).transpose()
    }
}

fn bad() -> CallError {
    CallError::invalid("cursor is not one this server gave out: expected the next_cursor of the page before, or none")
}

/// A cursor of another list.
pub(super) fn foreign() -> CallError {
    CallError::invalid("cursor belongs to another list: expected the next_cursor of the page before, or none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_rubbish_is_refused() {
        let key = Key::Utterances { start_ms: 12_340, channel: 1, seq: 7 };
        let cut = Cut { cursor: Some(key.clone().encode()), limit: None };
        assert_eq!(cut.key().unwrap(), Some(key));
        for rubbish in ["", "!!", "e30", &URL_SAFE_NO_PAD.encode(br#"{"v":9,"key":{"list":"search","row":1}}"#)] {
            let refused = Cut { cursor: Some(rubbish.into()), limit: None }.key().unwrap_err();
            assert_eq!(refused.kind, contracts::ErrorKind::InvalidInput, "{rubbish}");
        }
    }

    #[test]
    fn a_limit_out_of_range_is_refused_and_not_bent() {
        assert_eq!(Cut::default().limit().unwrap(), 50);
        assert_eq!(Cut { limit: Some(200), cursor: None }.limit().unwrap(), 200);
        for limit in [0, 201] {
            assert!(Cut { limit: Some(limit), cursor: None }.limit().unwrap_err().detail.contains("expected 1 to 200"));
        }
    }
}
