//! Counters in this process's memory, for one replica and as the fallback of a store that is away.
//!
//! Sharded by subject; a request locks its shards in ascending order, so that all its checks are decided at
//! once. Expired counters go as others are used (a few are looked at on every call) and by
//! [`MemoryStore::sweep`]. What callers invent is bounded by `max_counters`: when a shard is full, a counter
//! that refuses nobody makes room ([`shard`]). Where every counter refuses someone, a new one gets no room,
//! and its request no decision.

mod reservations;
mod shard;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use smallvec::{SmallVec, smallvec};

use self::reservations::Reservations;
use self::shard::{Counter, Shard, refusal_ends};
use super::{Clock, Group, Outcomes, Store, StoreError, Wait};
use crate::limit::reservation::is_refused;
use crate::limit::{Algorithm, Check, MINUTE, Micros, Mode, Operation, Outcome, Resolved, State, decide};
use crate::rules::key::{self, Key};

/// Locks to share the counters among, at most; more than a machine has cores, so that they are seldom waited for. A power of two, as
/// every number of shards is.
const SHARDS: usize = 64;
/// A shard has room for so many at least: a few busy subjects in one of them are not to drive each other out.
const MIN_PER_SHARD: usize = 64;
/// Counters that get no room are in the log once, and again after this long without one, in µs.
const QUIET: Micros = MINUTE;
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
    turned_away: AtomicU64,
    /// When the last counter was turned away; 0: none yet.
    last_turned_away: AtomicU64,
    reservations: Reservations,
}

impl MemoryStore {
    /// With room for `max_counters`, or a few less where they do not go evenly into the shards; for one at least.
    pub fn new(clock: Clock, max_counters: usize) -> MemoryStore {
        let count = 1 << (max_counters / MIN_PER_SHARD).clamp(1, SHARDS).ilog2();
        let shards = (0..count).map(|_| Mutex::default()).collect();
        let max_per_shard = (max_counters / count).max(1);
        MemoryStore {
            shards,
            hasher: RandomState::default(),
            clock,
            max_per_shard,
            evicted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            last_turned_away: AtomicU64::new(0),
            reservations: Reservations::default(),
        }
    }

    /// What time it decides by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Live and not yet swept counters.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counters that there is room for without asking for more memory.
    pub fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().capacity()).sum()
    }

    /// Live counters dropped because the store was full, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// New counters that got no room, because the store was full of counters that refuse someone, since the
    /// start.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Drops every expired counter and gives back the room they took.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &self.shards {
            shard.lock().sweep(now);
        }
        self.reservations.sweep(now);
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
        shard.keys(now).filter(|key| is_its(key)).map(|key| Key::from_bytes(key.to_vec())).collect()
    }

    /// Forgets a counter; says whether it was there.
    pub fn forget(&self, key: &Key) -> bool {
        let now = self.clock.now();
        let mut shard = self.shards[self.shard_of(key)].lock();
        let place = shard.find(key);
        place.is_some_and(|place| shard.remove(place, now))
    }

    /// Decides and counts at once: nothing to wait for.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room for a counter of an allowed request; nothing was counted.
    pub fn decide(&self, group: &Group) -> Result<Outcomes, StoreError> {
        match (&group.keys[..], &group.checks[..]) {
            ([key], [check]) if check.is_plain() && !group.refused => self.decide_alone(key, check),
            _ => self.decide_together(group),
        }
    }

    /// What [`Self::decide_together`] does, for the most frequent of all requests.
    fn decide_alone(&self, key: &Key, check: &Check) -> Result<Outcomes, StoreError> {
        let mut shard = self.shards[self.shard_of(key)].lock();
        let now = self.clock.now();
        let place = shard.find(key);
        let Resolved { outcome, write } = check.decide_alone(shard.live(place, now), now);
        match write {
            Some(write) => {
                if place.is_none() && shard.len() >= self.max_per_shard {
                    if shard.room(1, 0, self.max_per_shard, now) == 0 {
                        drop(shard);
                        self.turn_away(1, now);
                        return if check.mode == Mode::Shadow { Ok(smallvec![outcome]) } else { Err(StoreError::Full) };
                    }
                    self.evicted.fetch_add(shard.make_room(1, self.max_per_shard, now), Ordering::Relaxed);
                }
                shard.put(key, place, Counter::new(check, &outcome, write, now), now);
            }
            None => shard.refused(key, place, refusal_ends(check, &outcome, now)),
        }
        shard.sweep_some(now);
        Ok(smallvec![outcome])
    }

    fn decide_together(&self, group: &Group) -> Result<Outcomes, StoreError> {
        let mut locked = self.lock(&group.keys);
        // Read under the locks, so that time never runs backwards between two requests on one counter.
        let now = self.clock.now();
        let decided = locked.decide(group, now);
        let turned_away = locked.turned_away;
        drop(locked);
        self.turn_away(turned_away, now);
        decided
    }

    /// Locks the counters of a group.
    fn lock(&self, keys: &[Key]) -> Locked<'_> {
        let shard_of: SmallVec<[usize; 4]> = keys.iter().map(|key| self.shard_of(key)).collect();
        let mut order = shard_of.clone();
        order.sort_unstable();
        order.dedup();
        let shards = order.iter().map(|&index| self.shards[index].lock()).collect();
        let position = |shard: &usize| order.binary_search(shard).expect("every shard of the group is locked");
        Locked { positions: shard_of.iter().map(position).collect(), shards, store: self, turned_away: 0 }
    }

    /// Counts new counters that got no room. Not under a lock: it may write a line to the log.
    fn turn_away(&self, counters: usize, now: Micros) {
        if counters == 0 {
            return;
        }
        self.turned_away.fetch_add(counters as u64, Ordering::Relaxed);
        let last = self.last_turned_away.swap(now.max(1), Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) > QUIET {
            let max_counters = self.max_per_shard * self.shards.len();
            tracing::warn!(
                max_counters,
                "memory is full of counters that refuse someone; new ones get no room, and their requests follow on_store_failure; \
                 raise memory_max_counters if these are real callers"
            );
        }
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
    /// New counters that got no room.
    turned_away: usize,
}

impl Locked<'_> {
    /// Decides and counts the group that it was locked for.
    fn decide(&mut self, group: &Group, now: Micros) -> Result<Outcomes, StoreError> {
        let most = self.store.max_per_shard;
        let is_tight = self.shards.iter().any(|shard| shard.len() + group.checks.len() > most);
        let refunds = group.checks.iter().take_while(|check| check.operation == Operation::Refund).count();
        let mut outcomes = Outcomes::with_capacity(group.checks.len());
        // Counters as they were before a refund, for a request that then comes to no decision.
        let mut before: SmallVec<[(usize, Counter); 2]> = SmallVec::new();
        for index in 0..refunds {
            let (key, check) = (&group.keys[index], &group.checks[index]);
            let shard = &mut self.shards[self.positions[index]];
            let place = shard.find(key);
            let step = check.limit.refund(shard.live(place, now), now, check.cost);
            if let Some(next) = step.next {
                before.extend(place.filter(|_| is_tight).and_then(|place| shard.copy(place)).map(|counter| (index, counter)));
                shard.put(key, place, Counter::new(check, &step.outcome, (next, step.ttl), now), now);
            }
            outcomes.push(step.outcome);
        }
        let rest = refunds..group.checks.len();
        let places: SmallVec<[Option<usize>; 4]> =
            rest.clone().map(|index| self.shards[self.positions[index]].find(&group.keys[index])).collect();
        let states: SmallVec<[Option<&State>; 4]> =
            rest.clone().zip(&places).map(|(index, &place)| self.shards[self.positions[index]].live(place, now)).collect();
        let mut resolved = decide(&group.checks[refunds..], &states, now, group.refused);
        drop(states);
        outcomes.extend(resolved.iter().map(|resolved| resolved.outcome));
        if is_tight && let Err(error) = self.make_room(group, &outcomes, &places, &mut resolved, now) {
            for (index, counter) in before.into_iter().rev() {
                self.shards[self.positions[index]].put_back(&group.keys[index], counter);
            }
            return Err(error);
        }
        for ((index, place), Resolved { outcome, write }) in rest.zip(places).zip(resolved) {
            let (shard, key, check) = (&mut self.shards[self.positions[index]], &group.keys[index], &group.checks[index]);
            match write {
                Some(write) => shard.put(key, place, Counter::new(check, &outcome, write, now), now),
                None => shard.refused(key, place, refusal_ends(check, &outcome, now)),
            }
        }
        for shard in &mut self.shards {
            shard.sweep_some(now);
        }
        Ok(outcomes)
    }

    /// Makes room for what `resolved` writes of new counters, never by a counter of the same group. What only
    /// watches, and what a refused request would leave, goes without a counter where there is none.
    fn make_room(
        &mut self,
        group: &Group,
        outcomes: &[Outcome],
        places: &[Option<usize>],
        resolved: &mut [Resolved],
        now: Micros,
    ) -> Result<(), StoreError> {
        let refunds = outcomes.len() - resolved.len();
        let most = self.store.max_per_shard;
        let is_needed = {
            let is_refused = is_refused(&group.checks, outcomes, group.refused);
            move |index: usize| !is_refused && group.checks[index].mode != Mode::Shadow
        };
        let is_block = |index: usize| group.checks[index].limit.algorithm() == Algorithm::Penalty;
        for (index, place) in (refunds..).zip(places) {
            place.iter().for_each(|&place| self.shards[self.positions[index]].hold(place));
        }
        let mut new_of: SmallVec<[usize; 4]> = SmallVec::from_elem(0, self.shards.len());
        let mut is_full = false;
        for (position, shard) in self.shards.iter_mut().enumerate() {
            let of_shard = (refunds..).zip(places).filter(|(index, _)| self.positions[*index] == position);
            let held = shard.idle_among(of_shard.clone().filter_map(|(_, place)| *place));
            let is_new = |(index, place): (usize, &Option<usize>)| {
                (place.is_none() && resolved[index - refunds].write.is_some()).then_some(index)
            };
            let mut new: SmallVec<[usize; 4]> = of_shard.filter_map(is_new).collect();
            let room = shard.room(new.len(), held, most, now);
            if room < new.len() {
                new.sort_by_key(|&index| (!is_needed(index), !is_block(index)));
                is_full |= is_needed(new[room]);
                self.turned_away += new.len() - room;
                for index in new.drain(room..) {
                    resolved[index - refunds].write = None;
                }
            }
            new_of[position] = new.len();
        }
        if !is_full {
            for (shard, new) in self.shards.iter_mut().zip(new_of) {
                self.store.evicted.fetch_add(shard.make_room(new, most, now), Ordering::Relaxed);
            }
        }
        for (index, _) in (refunds..).zip(places).filter(|(_, place)| place.is_some()) {
            self.shards[self.positions[index]].let_go(&group.keys[index]);
        }
        if is_full { Err(StoreError::Full) } else { Ok(()) }
    }
}

impl Store for MemoryStore {
    async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        self.decide(group)
    }

    fn takes_time(&self) -> bool {
        false
    }
}
