//! What stores know of one subject: its counters, for usage and reset, and its history by days.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::history::Tally;
use super::memory::MemoryStore;
use super::{Group, Outcomes, StoreError};
use crate::rules::key::Key;

/// The most counters of a subject that are told: its oldest entries go first.
pub const MAX_COUNTERS: usize = 10_000;
/// Days of subjects that are kept in memory at most: about 100 bytes each.
const MAX_DAYS_IN_MEMORY: usize = 200_000;

/// A day, counted from the epoch, in UTC.
pub type Day = u64;

/// What came of adding to histories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// How many tallies were taken.
    pub written: u64,
    /// Why the others were not, where it is not for want of room.
    pub failure: Option<StoreError>,
}

/// Administrative: these calls may take their time, and no decision waits for them.
pub trait SubjectStore: Send + Sync {
    /// For how many days histories are kept; 0: not at all.
    fn kept_days(&self) -> Day;

    /// The counters of a subject that are there, and some that may be.
    fn counters(&self, domain_prefix: &[u8], subject: &[u8]) -> impl Future<Output = Result<Vec<Key>, StoreError>> + Send;

    /// Decides a group of looks.
    fn look(&self, group: &Group) -> impl Future<Output = Result<Outcomes, StoreError>> + Send;

    /// Forgets these counters, all of one subject; says how many there were.
    fn forget(&self, counters: &[Key]) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Adds to histories, each by the name of [`crate::rules::key::of_subject`].
    fn remember(&self, tallies: Vec<(Box<[u8]>, Day, Tally)>) -> impl Future<Output = Remembered> + Send;

    /// What is known of these days, both included, ascending.
    fn recall(&self, history: &[u8], from: Day, to: Day) -> impl Future<Output = Result<Vec<(Day, Tally)>, StoreError>> + Send;
}

/// In this process's memory.
pub struct MemorySubjects {
    store: Arc<MemoryStore>,
    histories: Mutex<Histories>,
    kept_days: Day,
}

#[derive(Default)]
struct Histories {
    by_name: HashMap<Box<[u8]>, BTreeMap<Day, Tally>, RandomState>,
    /// Days of all subjects together.
    days: usize,
    oldest: Day,
}

impl Histories {
    /// While there are as many days as there may be, subjects that are new today are not remembered: false.
    fn add(&mut self, name: Box<[u8]>, day: Day, tally: &Tally) -> bool {
        let is_full = self.days >= MAX_DAYS_IN_MEMORY;
        if is_full && !self.by_name.get(&name).is_some_and(|days| days.contains_key(&day)) {
            return false;
        }
        let days = self.by_name.entry(name).or_default();
        let before = days.len();
        days.entry(day).or_default().add(tally);
        self.days += days.len() - before;
        true
    }

    /// Once a day.
    fn drop_before(&mut self, oldest: Day) {
        if oldest <= self.oldest {
            return;
        }
        self.oldest = oldest;
        self.by_name.retain(|_, days| {
            *days = days.split_off(&oldest);
            !days.is_empty()
        });
        self.days = self.by_name.values().map(BTreeMap::len).sum();
    }
}

impl MemorySubjects {
    pub fn new(store: Arc<MemoryStore>, kept_days: u32) -> MemorySubjects {
        MemorySubjects { store, histories: Mutex::default(), kept_days: kept_days.into() }
    }
}

impl SubjectStore for MemorySubjects {
    fn kept_days(&self) -> Day {
        self.kept_days
    }

    async fn counters(&self, domain_prefix: &[u8], subject: &[u8]) -> Result<Vec<Key>, StoreError> {
        Ok(self.store.counters_of(domain_prefix, subject))
    }

    async fn look(&self, group: &Group) -> Result<Outcomes, StoreError> {
        Ok(self.store.decide(group))
    }

    async fn forget(&self, counters: &[Key]) -> Result<u64, StoreError> {
        Ok(counters.iter().map(|key| u64::from(self.store.forget(key))).sum())
    }

    async fn remember(&self, tallies: Vec<(Box<[u8]>, Day, Tally)>) -> Remembered {
        let mut histories = self.histories.lock();
        let mut remembered = Remembered::default();
        for (name, day, tally) in tallies {
            histories.drop_before((day + 1).saturating_sub(self.kept_days));
            remembered.written += u64::from(histories.add(name, day, &tally));
        }
        remembered
    }

    async fn recall(&self, history: &[u8], from: Day, to: Day) -> Result<Vec<(Day, Tally)>, StoreError> {
        let histories = self.histories.lock();
        let known = histories.by_name.get(history).into_iter().flat_map(|days| days.range(from..=to));
        Ok(known.map(|(day, tally)| (*day, tally.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_go_when_they_are_old_and_strangers_when_it_is_full() {
        let mut histories = Histories::default();
        let name = |number: usize| number.to_string().into_bytes().into_boxed_slice();
        let one = Tally { allowed: 1, ..Tally::default() };
        let added = (0..MAX_DAYS_IN_MEMORY + 10).filter(|&number| histories.add(name(number), 7, &one)).count();
        assert_eq!(added, MAX_DAYS_IN_MEMORY);
        assert!(histories.add(name(1), 7, &one));
        assert_eq!((histories.days, histories.by_name.len()), (MAX_DAYS_IN_MEMORY, MAX_DAYS_IN_MEMORY));
        assert_eq!(histories.by_name[&name(1)][&7].allowed, 2);
        histories.drop_before(8);
        histories.add(name(3), 8, &one);
        assert_eq!((histories.days, histories.by_name.len()), (1, 1));
    }
}
