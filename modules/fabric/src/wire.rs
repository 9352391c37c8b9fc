//! Between domain types and what crosses a wire: by hand, both ways.
//!
//! Invariant: what is decoded equals what was encoded, for every value of every type; what cannot be read is refused and named.

include!(concat!(env!("OUT_DIR"), "/quickcomm.rs"));

use contracts::{CallError, ChannelIndex, ErrorKind, Origin, Retry};
use std::time::Duration;

/// What came in is no message of this release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    pub(crate) fn missing(what: &str) -> Self {
        Self(format!("the message has no {what}"))
    }

    pub(crate) fn unknown(what: &str, number: impl std::fmt::Display) -> Self {
        Self(format!("{what} {number} is not known to this release"))
    }

    /// To whoever sent such a request.
    pub(crate) fn in_request(self) -> CallError {
        CallError::invalid(self.0).from(Origin::Transport)
    }

    /// To whoever waits for the answer.
    pub(crate) fn in_answer(self) -> CallError {
        CallError::new(ErrorKind::Unknown, Retry::Never, format!("the answer cannot be read: {}", self.0)).from(Origin::Transport)
    }
}

/// An upper bound of a message's encoded length, found without encoding it.
pub trait Weight {
    fn weight(&self) -> usize;
}

/// Tag and length of a nested message.
pub(crate) const HEAD: usize = 6;
/// Tag and value of the longest integer.
pub(crate) const NUMBER: usize = 11;
/// Tag, length and bytes of an id.
pub(crate) const ID: usize = 18;

pub(crate) fn text(text: &str) -> usize {
    HEAD + text.len()
}

pub(crate) fn maybe(text: &Option<String>) -> usize {
    text.as_deref().map_or(0, self::text)
}

pub(crate) fn sum<T: Weight>(items: &[T]) -> usize {
    items.iter().map(|item| HEAD + item.weight()).sum()
}

impl<T: Weight> Weight for Vec<T> {
    fn weight(&self) -> usize {
        sum(self)
    }
}

pub(crate) fn each<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

pub(crate) fn all<A, B: TryFrom<A, Error = Unreadable>>(items: Vec<A>) -> Result<Vec<B>, Unreadable> {
    items.into_iter().map(B::try_from).collect()
}

pub(crate) fn some<A, B: TryFrom<A, Error = Unreadable>>(item: Option<A>, what: &str) -> Result<B, Unreadable> {
    B::try_from(item.ok_or_else(|| Unreadable::missing(what))?)
}

/// Ids are 16 bytes, big-endian.
pub(crate) fn number(bytes: &[u8], what: &str) -> Result<u128, Unreadable> {
    let bytes = bytes.try_into().map_err(|_| Unreadable(format!("{what} of {} bytes: expected 16", bytes.len())))?;
    Ok(u128::from_be_bytes(bytes))
}

pub(crate) fn bytes(id: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.to_be_bytes())
}

pub(crate) fn channel(index: u32) -> Result<ChannelIndex, Unreadable> {
    u8::try_from(index).map(ChannelIndex).map_err(|_| Unreadable(format!("channel {index}: expected 0 to 255")))
}

/// Nanoseconds; 584 years is the longest.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
