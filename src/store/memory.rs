//! Counters in this process's memory, for one replica and as the fallback of a store that is away.
//!
//! Sharded by subject; a request locks its shards in ascending order, so that all its checks are decided at once. Expired
//! counters go as others are used (a few are looked at on every call) and by [`MemoryStore::sweep`]; what a caller invents is
//! bounded by `max_counters`: when a shard is full, the counter that expires soonest of a small sample makes room.

mod reservations;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};
use std::borrow::Borrow;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use self::reservations::Reservations;
use super::{Clock, Group, Outcomes, Store, StoreError, Wait};
use crate::limit::{Check, Micros, Operation, State, decide};
use crate::rules::key::{self, Key};

/// Locks to share the counters among, at most; more than a machine has cores, so that they are seldom waited for. A power of two, as
/// every number of shards is.
const SHARDS: usize = 64;
/// A shard has room for so many at least: a few busy subjects in one of them are not to drive each other out.
const MIN_PER_SHARD: usize = 64;
/// Counters looked at for expiry on every call. Two a call outpaces the at most few that a call creates.
const SWEPT_PER_CALL: usize = 2;
/// Counters compared when a full shard must lose one.
const EVICTION_SAMPLE: usize = 8;
/// A shard with fewer slots than this is not worth shrinking.
const MIN_CAPACITY: usize = 64;
/// Keys up to this length, in bytes, are stored beside their counters; most are.
const INLINE_KEY: usize = 64;
/// The bound on live counters unless a setting says otherwise: about 200 MB at 200 bytes each, which most take; sliding-window
/// logs take 16 bytes more for each of their pairs.
pub const DEFAULT_MAX_COUNTERS: usize = 1_000_000;

/// A store in memory.
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    clock: Clock,
    max_per_shard: usize,
    evicted: AtomicU64,
    /// Locked before any shard is.
    reservations: Mutex<Reservations>,
}

#[derive(Default)]
struct Shard {
    counters: IndexMap<StoredKey, Counter, RandomState>,
    /// The next counter to look at for expiry.
    cursor: usize,
}

/// A key beside its counter rather than behind a pointer: one reach into cold memory less.
#[derive(PartialEq, Eq, Hash)]
struct StoredKey(SmallVec<[u8; INLINE_KEY]>);

impl Borrow<[u8]> for StoredKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

struct Counter {
    state: State,
    expires: Micros,
}

impl MemoryStore {
    /// With room for `max_counters`, or a few less where they do not go evenly into the shards; for one at least.
    pub fn new(clock: Clock, max_counters: usize) -> MemoryStore {
        let count = 1 << (max_counters / MIN_PER_SHARD).clamp(1, SHARDS).ilog2();
        let shards = (0..count).map(|_| Mutex::default()).collect();
        let max_per_shard = (max_counters / count).max(1);
        let (hasher, evicted, reservations) = (RandomState::default(), AtomicU64::new(0), Mutex::default());
        MemoryStore { shards, hasher, clock, max_per_shard, evicted, reservations }
    }

    /// What time it decides by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Live and not yet swept counters.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().counters.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counters that there is room for without asking for more memory.
    pub fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().counters.capacity()).sum()
    }

    /// Live counters dropped because the store was full, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Drops every expired counter and gives back the room they took.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.counters.retain(|_, counter| counter.expires > now);
            shard.shrink();
        }
        self.reservations.lock().forget_expired(now);
    }

    /// The live state of a counter.
    pub fn state(&self, key: &Key) -> Option<State> {
        let now = self.clock.now();
        let shard = self.shards[self.shard_of(key)].lock();
        shard.live(shard.find(key), now).cloned()
    }

    /// The counters of a subject: looks through the one shard that has them all.
    pub fn counters_of(&self, domain_prefix: &[u8], subject: &[u8]) -> Vec<Key> {
        let now = self.clock.now();
        let (domain, tag) = ([domain_prefix, b"|"].concat(), [b"|{", subject, b"}|"].concat());
        let is_its = |key: &[u8]| key.strip_prefix(&domain[..]).is_some() && key.windows(tag.len()).any(|window| window == tag);
        let shard = self.shards[self.shard_of(&Key::from_bytes(key::of_subject(domain_prefix, subject, "")))].lock();
        let live = shard.counters.iter().filter(|(key, counter)| counter.expires > now && is_its(&key.0));
        live.map(|(key, _)| Key::from_bytes(key.0.to_vec())).collect()
    }

    /// Forgets a counter; says whether it was there.
    pub fn forget(&self, key: &Key) -> bool {
        let now = self.clock.now();
        let mut shard = self.shards[self.shard_of(key)].lock();
        let place = shard.find(key);
        let was_there = shard.live(place, now).is_some();
        place.and_then(|place| shard.counters.swap_remove_index(place));
        was_there
    }

    /// Decides and counts at once: nothing to wait for.
    pub fn decide(&self, group: &Group) -> Outcomes {
        match (&group.keys[..], &group.checks[..]) {
            ([key], [check]) if check.is_plain() && !group.refused => self.decide_alone(key, check),
            _ => self.decide_together(group),
        }
    }

    /// What [`Self::decide_together`] does, for the most frequent of all requests.
    fn decide_alone(&self, key: &Key, check: &Check) -> Outcomes {
        let mut shard = self.shards[self.shard_of(key)].lock();
        let now = self.clock.now();
        let place = shard.find(key);
        let resolved = check.decide_alone(shard.live(place, now), now);
        if let Some((next, ttl)) = resolved.write {
            shard.put(key, place, Counter { state: next, expires: now + ttl }, now, self);
        }
        shard.sweep_some(now);
        smallvec![resolved.outcome]
    }

    fn decide_together(&self, group: &Group) -> Outcomes {
        let mut locked = self.lock(&group.keys);
        // Read under the locks, so that time never runs backwards between two requests on one counter.
        let now = self.clock.now();
        locked.decide(group, now)
    }

    /// Locks the counters of a group.
    fn lock(&self, keys: &[Key]) -> Locked<'_> {
        let shard_of: SmallVec<[usize; 4]> = keys.iter().map(|key| self.shard_of(key)).collect();
        let mut order = shard_of.clone();
        order.sort_unstable();
        order.dedup();
        let shards = order.iter().map(|&index| self.shards[index].lock()).collect();
        let position = |shard: &usize| order.binary_search(shard).expect("every shard of the group is locked");
        Locked { positions: shard_of.iter().map(position).collect(), shards, store: self }
    }

    fn shard_of(&self, key: &Key) -> usize {
        let last = self.shards.len() as u64 - 1;
        usize::try_from(self.hasher.hash_one(key.tag()) & last).expect("a shard index is small")
    }
}

/// The shards of a group's counters, and which of them each counter is in.
struct Locked<'s> {
    shards: SmallVec<[MutexGuard<'s, Shard>; 4]>,
    positions: SmallVec<[usize; 4]>,
    store: &'s MemoryStore,
}

impl Locked<'_> {
    /// Decides and counts the group that it was locked for.
    fn decide(&mut self, group: &Group, now: Micros) -> Outcomes {
        let Locked { shards: locked, positions, store } = self;
        let refunds = group.checks.iter().take_while(|check| check.operation == Operation::Refund).count();
        let mut outcomes = Outcomes::with_capacity(group.checks.len());
        for index in 0..refunds {
            let (key, check) = (&group.keys[index], &group.checks[index]);
            let shard = &mut locked[positions[index]];
            let place = shard.find(key);
            let step = check.limit.refund(shard.live(place, now), now, check.cost);
            if let Some(next) = step.next {
                shard.put(key, place, Counter { state: next, expires: now + step.ttl }, now, store);
            }
            outcomes.push(step.outcome);
        }
        let rest = refunds..group.checks.len();
        let places: SmallVec<[Option<usize>; 4]> =
            rest.clone().map(|index| locked[positions[index]].find(&group.keys[index])).collect();
        let states: SmallVec<[Option<&State>; 4]> =
            rest.clone().zip(&places).map(|(index, &place)| locked[positions[index]].live(place, now)).collect();
        let resolved = decide(&group.checks[refunds..], &states, now, group.refused);
        drop(states);
        for ((index, place), resolved) in rest.zip(places).zip(resolved) {
            if let Some((next, ttl)) = resolved.write {
                locked[positions[index]].put(&group.keys[index], place, Counter { state: next, expires: now + ttl }, now, store);
            }
            outcomes.push(resolved.outcome);
        }
        for shard in locked {
            shard.sweep_some(now);
        }
        outcomes
    }
}

impl Store for MemoryStore {
    async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        Ok(self.decide(group))
    }

    fn takes_time(&self) -> bool {
        false
    }
}

impl Shard {
    /// Where a counter is, until another one is removed.
    fn find(&self, key: &Key) -> Option<usize> {
        self.counters.get_index_of(key.as_bytes())
    }

    fn live(&self, place: Option<usize>, now: Micros) -> Option<&State> {
        let (_, counter) = self.counters.get_index(place?)?;
        (counter.expires > now).then_some(&counter.state)
    }

    /// Stores a counter that was found at a place, or was not there.
    fn put(&mut self, key: &Key, place: Option<usize>, counter: Counter, now: Micros, store: &MemoryStore) {
        if let Some(place) = place {
            let is_there = self.counters.get_index(place).is_some_and(|(stored, _)| *stored.0 == *key.as_bytes());
            // Else making room for another counter has moved this one, or removed it.
            let place = if is_there { Some(place) } else { self.find(key) };
            if let Some((_, known)) = place.and_then(|place| self.counters.get_index_mut(place)) {
                *known = counter;
                return;
            }
        }
        if self.counters.len() >= store.max_per_shard && self.evict(now) {
            store.evicted.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.insert(StoredKey(SmallVec::from_slice(key.as_bytes())), counter);
    }

    /// Makes room for one; says whether the one that went was still alive.
    fn evict(&mut self, now: Micros) -> bool {
        let size = self.counters.len();
        let sample = (0..EVICTION_SAMPLE.min(size)).map(|offset| (self.cursor + offset) % size);
        let soonest = sample.min_by_key(|&index| self.counters[index].expires);
        self.cursor += EVICTION_SAMPLE;
        match soonest.and_then(|index| self.counters.swap_remove_index(index)) {
            Some((_, counter)) => counter.expires > now,
            None => false,
        }
    }

    fn sweep_some(&mut self, now: Micros) {
        for _ in 0..SWEPT_PER_CALL {
            if self.cursor >= self.counters.len() {
                self.cursor = 0;
            }
            match self.counters.get_index(self.cursor) {
                Some((_, counter)) if counter.expires <= now => {
                    self.counters.swap_remove_index(self.cursor);
                    self.shrink();
                }
                Some(_) => self.cursor += 1,
                None => return,
            }
        }
    }

    /// Gives back the room of a table that is mostly empty.
    fn shrink(&mut self) {
        if self.counters.capacity() > MIN_CAPACITY.max(4 * self.counters.len()) {
            self.counters.shrink_to((2 * self.counters.len()).max(MIN_CAPACITY / 2));
        }
    }
}
