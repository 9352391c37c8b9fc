//! Which entries may go out next: the oldest first, and of each key nothing while somebody works on it.

use super::EntryId;
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Default)]
pub(super) struct Desk {
    /// Not delivered, or given back; with the deliveries so far.
    waiting: BTreeMap<EntryId, Waiting>,
    /// Keys being worked on, with the number of their entries that are out.
    busy: HashMap<String, usize>,
}

struct Waiting {
    key: String,
    attempts: u32,
}

impl Desk {
    pub(super) fn put(&mut self, id: EntryId, key: &str, attempts: u32) {
        self.waiting.insert(id, Waiting { key: key.into(), attempts });
    }

    pub(super) fn waits(&self, id: EntryId) -> bool {
        self.waiting.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = (EntryId, u32)> {
        self.waiting.iter().map(|(id, waiting)| (*id, waiting.attempts))
    }

    /// Up to `max` entries that `may` go out, each with the number of this delivery. Entries of one key may go together, in order.
    pub(super) fn take(&mut self, max: usize, may: impl Fn(EntryId) -> bool) -> Vec<(EntryId, u32)> {
        let mut mine: HashSet<&str> = HashSet::new();
        let mut taken = vec![];
        for (id, waiting) in &self.waiting {
            if taken.len() == max {
                break;
            }
            let key = waiting.key.as_str();
            if may(*id) && (mine.contains(key) || !self.busy.contains_key(key)) {
                mine.insert(key);
                taken.push((*id, waiting.attempts + 1));
            }
        }
        for (id, _) in &taken {
            let Waiting { key, .. } = self.waiting.remove(id).expect("it was seen a moment ago");
            *self.busy.entry(key).or_default() += 1;
        }
        taken
    }

    /// One entry of this key is out no more.
    pub(super) fn finish(&mut self, key: &str) {
        if let Some(out) = self.busy.get_mut(key) {
            *out -= 1;
            if *out == 0 {
                self.busy.remove(key);
            }
        }
    }

    pub(super) fn forget(&mut self, id: EntryId) {
        self.waiting.remove(&id);
    }
}
