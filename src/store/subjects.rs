//! What stores know of one subject: its counters, for usage and reset, and its history by days.

use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::history::Tally;
use super::memory::MemoryStore;
use super::{Group, Outcomes, StoreError};
use crate::rules::key::Key;

/// The most counters of a subject that are told: its oldest entries go first.
pub const MAX_COUNTERS: usize = 10_000;
/// Days of subjects that are kept in memory at most: about 4 MB of them.
const MAX_DAYS_IN_MEMORY: usize = 25_000;
/// Subjects compared when one must make room.
const EVICTION_SAMPLE: usize = 8;

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
    by_name: IndexMap<Box<[u8]>, Days, RandomState>,
    /// Days of all subjects together.
    days: usize,
    oldest: Day,
    /// Where subjects are looked at next when one must make room.
    cursor: usize,
}

/// Ascending. Most subjects are seen on one day alone.
type Days = SmallVec<[(Day, Tally); 1]>;

impl Histories {
    fn add(&mut self, name: &[u8], day: Day, tally: &Tally) {
        // A copy, beside the others that are kept: where the name comes from, most of them go.
        let days = match self.by_name.get_index_of(name) {
            Some(place) => &mut self.by_name[place],
            None => self.by_name.entry(name.into()).or_default(),
        };
        let place = days.binary_search_by_key(&day, |(day, _)| *day).unwrap_or_else(|place| {
            days.insert(place, (day, Tally::default()));
            self.days += 1;
            place
        });
        days[place].1.add(tally);
    }

    /// Of a few subjects the one that was seen least makes room, while there are more days than there may be: those that callers make
    /// up are not seen again.
    fn bound(&mut self) {
        while self.days > MAX_DAYS_IN_MEMORY {
            let size = self.by_name.len();
            // Spread: those who came at one time are next to each other.
            let apart = size.div_ceil(EVICTION_SAMPLE);
            let sample = (0..size.div_ceil(apart)).map(|number| (self.cursor + number * apart) % size);
            let seen = |(_, tally): &(Day, Tally)| tally.allowed.saturating_add(tally.refused);
            let least = sample.min_by_key(|&index| self.by_name[index].iter().map(seen).fold(0, u64::saturating_add));
            self.cursor = (self.cursor + 1) % size;
            if let Some((_, days)) = least.and_then(|index| self.by_name.swap_remove_index(index)) {
                self.days -= days.len();
            }
        }
    }

    /// Once a day.
    fn drop_before(&mut self, oldest: Day) {
        if oldest <= self.oldest {
            return;
        }
        self.oldest = oldest;
        self.by_name.retain(|_, days| {
            days.retain(|(day, _)| *day >= oldest);
            !days.is_empty()
        });
        self.by_name.shrink_to_fit();
        self.days = self.by_name.values().map(SmallVec::len).sum();
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
        self.store.decide(group)
    }

    async fn forget(&self, counters: &[Key]) -> Result<u64, StoreError> {
        Ok(counters.iter().map(|key| u64::from(self.store.forget(key))).sum())
    }

    async fn remember(&self, tallies: Vec<(Box<[u8]>, Day, Tally)>) -> Remembered {
        let mut histories = self.histories.lock();
        let mut remembered = Remembered::default();
        for (name, day, tally) in tallies {
            histories.drop_before((day + 1).saturating_sub(self.kept_days));
            histories.add(&name, day, &tally);
            histories.bound();
            remembered.written += 1;
        }
        remembered
    }

    async fn recall(&self, history: &[u8], from: Day, to: Day) -> Result<Vec<(Day, Tally)>, StoreError> {
        let histories = self.histories.lock();
        let known = histories.by_name.get(history).into_iter().flatten();
        Ok(known.filter(|(day, _)| (from..=to).contains(day)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Box<[u8]> {
        number.to_string().into_bytes().into_boxed_slice()
    }

    #[test]
    fn strangers_make_room_for_each_other() {
        let mut histories = Histories::default();
        let (one, two) = (Tally { allowed: 1, ..Tally::default() }, Tally { refused: 2, ..Tally::default() });
        let known = 100;
        for number in 0..known {
            histories.add(&name(number), 7, &one);
            histories.add(&name(number), 8, &two);
        }
        for number in known..3 * MAX_DAYS_IN_MEMORY {
            histories.add(&name(number), 8, &one);
            histories.bound();
            assert!(histories.days <= MAX_DAYS_IN_MEMORY);
        }
        assert_eq!(histories.days, histories.by_name.values().map(SmallVec::len).sum::<usize>());
        let kept = (0..known).filter(|&number| histories.by_name.contains_key(&name(number))).count();
        assert_eq!(kept, known, "those that were seen more often stay");
    }

    #[test]
    fn days_go_when_they_are_old() {
        let mut histories = Histories::default();
        let one = Tally { allowed: 1, ..Tally::default() };
        for (number, day) in [(1, 8), (1, 7), (1, 8), (2, 7)] {
            histories.add(&name(number), day, &one);
        }
        let of = |histories: &Histories, number| -> Vec<(Day, u64)> {
            histories.by_name.get(&name(number)).into_iter().flatten().map(|(day, tally)| (*day, tally.allowed)).collect()
        };
        assert_eq!((of(&histories, 1), histories.days), (vec![(7, 1), (8, 2)], 3));
        histories.drop_before(8);
        assert_eq!((of(&histories, 1), of(&histories, 2), histories.days), (vec![(8, 2)], vec![], 1));
    }
}
