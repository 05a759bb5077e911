//! Which counters this process has put into the indexes of their subjects lately: an index serves usage and reset, and need not
//! be written at every request. A table of fingerprints: one that is forgotten too early is written once more, and two counters
//! of one fingerprint are one in many billions.

use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::wire::{Encoded, Listing};
use crate::limit::{Algorithm, Charge, Check, Micros, Operation, SECOND};
use crate::rules::key;

/// Counters remembered: 2 MB of fingerprints.
const SLOTS: usize = 1 << 18;
/// Places that one counter may have.
const WAYS: usize = 4;
/// How long a counter counts as listed before it is listed again, in seconds. It stays listed twice as long besides its life.
const LISTED_FOR: u64 = 60;
/// Counters that live no longer are not listed, in µs: they are over before anyone asks, and made anew all the time.
const SHORT_LIFE: Micros = 10 * SECOND;
/// The part of a mark that says when: turns of [`LISTED_FOR`], which come around after more than four hours.
const TURNS: u64 = 0xff;

pub(super) struct Listed {
    sets: Box<[Set]>,
    /// Of keys: what marks are made of.
    pub(super) hasher: RandomState,
    start: Instant,
}

/// The places that one counter may have, in one line of the cache: it is seldom there.
#[derive(Default)]
#[repr(align(32))]
struct Set([AtomicU64; WAYS]);

impl Listed {
    pub(super) fn new() -> Listed {
        let sets = (0..SLOTS / WAYS).map(|_| Set::default()).collect();
        Listed { sets, hasher: RandomState::default(), start: Instant::now() }
    }

    /// What of a batch is to be listed: counters that it may create, unless they were listed lately. For all of it at once, as the
    /// table is seldom in the cache and its lines can then be waited for together. `now` may be a little off.
    pub(super) fn listings<'a>(&self, batch: impl Iterator<Item = &'a Encoded>, prefix: &str, now: Instant) -> Vec<Listing> {
        let seconds = now.saturating_duration_since(self.start).as_secs();
        let mut listings = Vec::new();
        for (place, (counter, key)) in (1..).zip(batch.flat_map(Encoded::counters)) {
            let hash = counter.hash;
            // Not all of them at one moment.
            let turn = (seconds + hash % LISTED_FOR) / LISTED_FOR + 1;
            let mark = (hash & !TURNS) | (turn & TURNS);
            if counter.life > 0 && !self.remembers(mark) {
                listings.extend(listing(place, key, counter.life, mark, prefix));
            }
        }
        listings
    }

    fn remembers(&self, mark: u64) -> bool {
        self.set(mark).iter().any(|slot| slot.load(Ordering::Relaxed) == mark)
    }

    pub(super) fn remember(&self, mark: u64) {
        let set = self.set(mark);
        let same = set.iter().find(|slot| slot.load(Ordering::Relaxed) & !TURNS == mark & !TURNS);
        let place = usize::try_from(mark & TURNS).expect("a turn is small") % WAYS;
        let free = set.iter().find(|slot| slot.load(Ordering::Relaxed) == 0);
        same.or(free).unwrap_or(&set[place]).store(mark, Ordering::Relaxed);
    }

    fn set(&self, mark: u64) -> &[AtomicU64; WAYS] {
        &self.sets[usize::try_from(mark >> 8).unwrap_or(0) % (SLOTS / WAYS)].0
    }
}

/// How long a counter may live, in µs, that a check may write where it was not there and that is to be listed; else 0. Blocks, which
/// are seldom there, are found by their rule.
pub(super) fn life(check: &Check, refused: bool) -> Micros {
    let counts = match check.operation {
        Operation::Take => !refused || check.charge == Charge::Always,
        Operation::Report => true,
        _ => false,
    };
    let life = if counts && check.limit.algorithm() != Algorithm::Penalty { check.limit.longest_life() } else { 0 };
    if life > SHORT_LIFE { life } else { 0 }
}

fn listing(place: u32, key: &[u8], life: Micros, mark: u64, prefix: &str) -> Option<Listing> {
    let (domain, subject) = key::domain_and_subject(key, prefix)?;
    let life = life.div_ceil(1_000).saturating_add(2 * LISTED_FOR * SECOND / 1_000);
    Some(Listing { place, index: key::of_subject(domain, subject, "index"), life: life as f64, mark })
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn what_is_remembered_is_known_until_many_others_came() {
        let listed = Listed::new();
        let marks: Vec<u64> = (0..1_000).map(|number| (listed.hasher.hash_one(number) & !TURNS) | 1).collect();
        for &mark in &marks {
            assert!(!listed.remembers(mark));
            listed.remember(mark);
            assert!(listed.remembers(mark) && !listed.remembers(mark + 1));
        }
        let known = |marks: &[u64]| marks.iter().filter(|&&mark| listed.remembers(mark)).count();
        assert!(known(&marks) > 990, "{} of 1000", known(&marks));
        listed.remember(marks[0] + 1);
        assert!(!listed.remembers(marks[0]), "a counter has one place");
        (0..10 * SLOTS).for_each(|number| listed.remember((listed.hasher.hash_one(number) & !TURNS) | 2));
        assert_eq!(known(&marks), 0);
    }
}
