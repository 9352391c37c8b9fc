//! Where an entry of a key goes: one of 64 shards, each a stream of its own, and what is kept beside it.

use super::super::EntryId;
use sha2::{Digest, Sha256};

pub(super) const SHARDS: u16 = 64;

/// The same for every process and release: readers on both sides of an upgrade must agree.
pub(super) fn of(key: &str) -> u16 {
    let hash = Sha256::digest(key.as_bytes());
    u16::from_be_bytes([hash[0], hash[1]]) % SHARDS
}

// The braces make what belongs to one shard stay together.
pub(super) fn stream(stream: &str, shard: u16) -> String {
    format!("{stream}:{{{shard}}}")
}

pub(super) fn lease(stream: &str, group: &str, shard: u16) -> String {
    format!("lease:{group}:{stream}:{{{shard}}}")
}

/// Counts the leases there have been.
pub(super) fn epoch(stream: &str, group: &str, shard: u16) -> String {
    format!("epoch:{group}:{stream}:{{{shard}}}")
}

/// Readers of a group, by the time at which they were last heard of.
pub(super) fn members(stream: &str, group: &str) -> String {
    format!("members:{group}:{stream}")
}

impl EntryId {
    pub(super) fn on(shard: u16, id: &str) -> Option<Self> {
        let (ms, seq) = id.split_once('-')?;
        Some(Self { ms: ms.parse().ok()?, seq: seq.parse().ok()?, shard })
    }

    pub(super) fn shard(self) -> u16 {
        self.shard
    }

    /// As Redis writes it.
    pub(super) fn text(self) -> String {
        format!("{}-{}", self.ms, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spread_and_names_have_their_braces() {
        let mut counts = [0; SHARDS as usize];
        for n in 0..6_400 {
            counts[usize::from(of(&format!("conv_{n:032x}")))] += 1;
        }
        assert!(counts.iter().all(|n| (50..200).contains(n)), "{counts:?}");
        assert_eq!(of("conv_00000000000000000000000000000001"), of("conv_00000000000000000000000000000001"));
        assert_eq!(stream("utterances", 17), "utterances:{17}");
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = EntryId::on(3, "1763787600000-12").unwrap();
        assert_eq!((id.text().as_str(), id.shard()), ("1763787600000-12", 3));
        assert!(id < EntryId::on(2, "1763787600000-13").unwrap());
        assert_eq!(EntryId::on(3, "x"), None);
    }
}
