//! Which side, and which peer of it. Pure: every process that has the same table picks the same.

use contracts::{ConversationId, call_cx::RouteKey};

const BUCKETS: u64 = 10_000;

/// Whether a call goes to the remote side. Raising the percentage moves only the conversations it adds.
pub(super) fn goes_remote(module: &str, key: RouteKey, percent: u8) -> bool {
    let bucket = match key {
        RouteKey::Conversation(id) => hash(module, id) % BUCKETS,
        RouteKey::None => rand::random_range(0..BUCKETS),
    };
    bucket < u64::from(percent) * BUCKETS / 100
}

/// Rendezvous: sorts peers so that a conversation's comes first. A peer that joins or leaves moves only its own conversations.
pub(super) fn rank<P>(peers: &mut [P], id: ConversationId, name: impl Fn(&P) -> &str) {
    peers.sort_by_cached_key(|peer| std::cmp::Reverse(hash(name(peer), id)));
}

/// For calls without a key: the less busy of two peers taken at random comes first.
pub(super) fn less_busy_of_two<P>(peers: &mut [P], busy: impl Fn(&P) -> usize) {
    if peers.len() < 2 {
        return;
    }
    let one = rand::random_range(0..peers.len());
    let other = (one + rand::random_range(1..peers.len())) % peers.len();
    let first = if busy(&peers[other]) < busy(&peers[one]) { other } else { one };
    peers.swap(0, first);
}

/// FNV-1a with a last mix: the same in every process and release, which the standard library's hash is not.
fn hash(salt: &str, id: ConversationId) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in salt.bytes().chain(id.as_u128().to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn raising_the_percentage_moves_nobody_back(id: u128, low in 0u8..=100, more in 0u8..=100) {
            let key = RouteKey::Conversation(ConversationId::from_u128(id));
            let high = low.saturating_add(more).min(100);
            prop_assert!(!goes_remote("audio", key, low) || goes_remote("audio", key, high));
            prop_assert!(!goes_remote("audio", key, 0) && goes_remote("audio", key, 100));
        }

        #[test]
        fn a_peer_that_leaves_moves_only_its_own(id: u128, gone in 0usize..5) {
            let id = ConversationId::from_u128(id);
            let names: Vec<String> = (0..5).map(|n| format!("http://127.0.0.1:{n}")).collect();
            let first = |names: &[String]| {
                let mut peers: Vec<&String> = names.iter().collect();
                rank(&mut peers, id, |peer| peer.as_str());
                peers[0].clone()
            };
            let before = first(&names);
            let mut left = names.clone();
            left.remove(gone);
            prop_assert!(before == names[gone] || first(&left) == before);
        }
    }

    #[test]
    fn the_share_is_what_was_asked_for_and_modules_are_dealt_apart() {
        // Times in the high bits and something of everything below, as real ids have; always the same ones, so that chance fails nobody.
        let ids: Vec<_> = (0..20_000_u128)
            .map(|n| (0x019a_0000_0000 + n) << 80 | n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c) & ((1 << 80) - 1))
            .map(|id| RouteKey::Conversation(ConversationId::from_u128(id)))
            .collect();
        for percent in [1, 10, 50] {
            let remote = ids.iter().filter(|key| goes_remote("inference", **key, percent)).count();
            let expected = ids.len() * usize::from(percent) / 100;
            assert!(remote.abs_diff(expected) < ids.len() / 100, "{remote} of {} at {percent} %", ids.len());
        }
        let alike = ids.iter().filter(|key| goes_remote("audio", **key, 50) == goes_remote("inference", **key, 50)).count();
        assert!(alike.abs_diff(ids.len() / 2) < ids.len() / 50, "{alike} are dealt alike");
    }

    #[test]
    fn the_busiest_of_many_is_never_first() {
        for _ in 0..200 {
            let mut peers = [3, 9, 1, 2];
            less_busy_of_two(&mut peers, |calls| *calls);
            assert_ne!(peers[0], 9);
        }
    }
}
