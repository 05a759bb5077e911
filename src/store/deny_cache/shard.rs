//! A part of the remembered refusals, bounded in bytes.

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::Refusal;
use crate::rules::key::Key;

/// Refusals compared when a full shard must forget one.
const EVICTION_SAMPLE: usize = 4;
/// What a refusal takes beyond its key: itself, its slot in the table twice over (a table doubles), the allocator's share.
pub(super) const OVERHEAD: usize = 2 * size_of::<(Key, Refusal)>() + 32;

#[derive(Default)]
pub(super) struct Shard {
    refusals: IndexMap<Key, Refusal, RandomState>,
    bytes: usize,
    cursor: usize,
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.refusals.len()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Refusal> {
        self.refusals.get(key)
    }

    /// Remembers a refusal if it, with its key, is no larger than `max_bytes`.
    pub(super) fn put(&mut self, key: &Key, refusal: Refusal, max_bytes: usize) {
        if let Some(known) = self.refusals.get_mut(key) {
            *known = refusal;
            return;
        }
        let bytes = bytes_of(key);
        while self.bytes + bytes > max_bytes {
            if !self.evict() {
                return;
            }
        }
        self.bytes += bytes;
        self.refusals.insert(key.clone(), refusal);
    }

    pub(super) fn forget(&mut self, key: &Key) {
        if self.refusals.swap_remove(key).is_some() {
            self.bytes -= bytes_of(key);
        }
    }

    /// Of a few, the one that expires soonest; false when there is none.
    fn evict(&mut self) -> bool {
        let size = self.refusals.len();
        let sample = (0..EVICTION_SAMPLE.min(size)).map(|offset| (self.cursor + offset) % size);
        let soonest = sample.min_by_key(|&index| self.refusals[index].expires);
        self.cursor = self.cursor.wrapping_add(EVICTION_SAMPLE);
        let Some((key, _)) = soonest.and_then(|index| self.refusals.swap_remove_index(index)) else { return false };
        self.bytes -= bytes_of(&key);
        true
    }
}

fn bytes_of(key: &Key) -> usize {
    OVERHEAD + key.as_bytes().len()
}
