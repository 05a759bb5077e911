//! The counters of one shard, in two parts: in front those that refuse someone, which never make room for
//! others; behind them the rest, of which the one that loses least makes room when the shard is full. A
//! counter moves to the front when it becomes full or refuses a request, and back when room is looked for and
//! its refusal is over.

use std::borrow::Borrow;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use smallvec::SmallVec;

use crate::limit::{Check, Micros, Mode, Outcome, RetryAfter, State};
use crate::rules::key::Key;

/// Counters looked at for expiry on every call. Two a call outpaces the at most few that a call creates.
const SWEPT_PER_CALL: usize = 2;
/// Counters compared when a full shard must lose one.
const EVICTION_SAMPLE: usize = 8;
/// Refusing counters looked at for one whose refusal is over, when no other can make room.
const RELEASE_SAMPLE: usize = 16;
/// A shard with fewer slots than this is not worth shrinking.
const MIN_CAPACITY: usize = 64;
/// Keys up to this length, in bytes, are stored beside their counters; most are.
const INLINE_KEY: usize = 64;
/// The share of its limit that a full counter has used, in [`Counter::used`].
const WHOLE: u64 = 255;

#[derive(Default)]
pub(super) struct Shard {
    counters: IndexMap<StoredKey, Counter, RandomState>,
    /// How many counters in front refuse someone, as far as they were looked at.
    refusing: usize,
    /// The next counter to look at for expiry.
    swept: usize,
    /// The next counter to compare, counted from the first that may make room.
    sampled: usize,
    /// The next refusing counter to look at.
    released: usize,
}

/// A key beside its counter rather than behind a pointer: one reach into cold memory less.
#[derive(PartialEq, Eq, Hash)]
struct StoredKey(SmallVec<[u8; INLINE_KEY]>);

impl Borrow<[u8]> for StoredKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone)]
pub(super) struct Counter {
    state: State,
    expires: Micros,
    /// It refuses requests until then; 0: none.
    refuses_until: Micros,
    /// The share of its limit that is used, in 255ths.
    used: u8,
    /// How often it was written since it was made, 255 at most.
    writes: u8,
    /// A request that is being decided has this counter: it does not make room for others of that request.
    is_held: bool,
}

impl Counter {
    /// What a check stores, for `ttl` µs.
    pub(super) fn new(check: &Check, outcome: &Outcome, (state, ttl): (State, Micros), now: Micros) -> Counter {
        let capacity = check.limit.capacity().max(1);
        let used = (capacity - outcome.remaining().min(capacity)) * WHOLE / capacity;
        let refuses_until = match outcome {
            Outcome::Allowed { remaining: 0, .. } if check.mode != Mode::Shadow => check.limit.refuses_until(&state, now),
            _ => refusal_ends(check, outcome, now),
        };
        let used = u8::try_from(used).unwrap_or(u8::MAX);
        Counter { state, expires: now + ttl, refuses_until, used, writes: 1, is_held: false }
    }

    fn refuses(&self, now: Micros) -> bool {
        self.refuses_until.min(self.expires) > now
    }

    /// What is lost with it: a limit that is mostly used, or was counted often, is worth more than the single
    /// hit of a value that somebody made up. Of equal ones the first to be whole again goes.
    fn worth(&self, now: Micros) -> (u16, Micros) {
        let is_live = self.expires > now;
        (if is_live { 1 + u16::from(self.used) + u16::from(self.writes) } else { 0 }, self.expires)
    }
}

/// When a check's refusal ends, in µs since the epoch; 0 where it refuses nobody.
pub(super) fn refusal_ends(check: &Check, outcome: &Outcome, now: Micros) -> Micros {
    match *outcome {
        Outcome::Denied { retry_after: RetryAfter::In(after), .. } if check.mode != Mode::Shadow => now + after,
        _ => 0,
    }
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.counters.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.counters.capacity()
    }

    /// Where a counter is, until another one is written or removed.
    pub(super) fn find(&self, key: &Key) -> Option<usize> {
        self.counters.get_index_of(key.as_bytes())
    }

    pub(super) fn live(&self, place: Option<usize>, now: Micros) -> Option<&State> {
        let (_, counter) = self.counters.get_index(place?)?;
        (counter.expires > now).then_some(&counter.state)
    }

    /// All live counters' keys.
    pub(super) fn keys(&self, now: Micros) -> impl Iterator<Item = &[u8]> {
        self.counters.iter().filter(move |(_, counter)| counter.expires > now).map(|(key, _)| &key.0[..])
    }

    /// A copy of a counter, for [`Shard::put_back`].
    pub(super) fn copy(&self, place: usize) -> Option<Counter> {
        self.counters.get_index(place).map(|(_, counter)| counter.clone())
    }

    /// Makes a counter again what it was.
    pub(super) fn put_back(&mut self, key: &Key, counter: Counter) {
        if let Some(known) = self.counters.get_mut(key.as_bytes()) {
            *known = counter;
        }
    }

    /// Stores a counter that was found at a place, or was not there. Room for a new one is made before
    /// ([`Shard::make_room`]).
    pub(super) fn put(&mut self, key: &Key, place: Option<usize>, mut counter: Counter, now: Micros) {
        let refuses = |counter: &Counter| counter.refuses(now);
        let (place, is_refusing) = match self.place_of(key, place) {
            Some(place) => {
                let known = &mut self.counters[place];
                if known.expires > now {
                    counter.writes = known.writes.saturating_add(1);
                    // A larger cost may still be refused.
                    counter.refuses_until = counter.refuses_until.max(known.refuses_until).min(counter.expires);
                }
                let is_refusing = refuses(&counter);
                *known = counter;
                (place, is_refusing)
            }
            None => {
                let is_refusing = refuses(&counter);
                (self.counters.insert_full(StoredKey(SmallVec::from_slice(key.as_bytes())), counter).0, is_refusing)
            }
        };
        if is_refusing {
            self.protect(place);
        }
    }

    /// A counter that was found at a place has refused a request that it would refuse until then.
    pub(super) fn refused(&mut self, key: &Key, place: Option<usize>, until: Micros) {
        // Mostly it is known: it has not moved, and has refused others.
        let is_known = |counter: &Counter| counter.refuses_until >= until;
        if until == 0 || place.and_then(|place| self.counters.get_index(place)).is_none_or(|(_, counter)| is_known(counter)) {
            return;
        }
        if let Some(place) = self.place_of(key, place) {
            let counter = &mut self.counters[place];
            counter.refuses_until = until.max(counter.refuses_until);
            self.protect(place);
        }
    }

    /// Where a counter is that was found at a place: others that were written or removed since may have moved
    /// it.
    fn place_of(&self, key: &Key, place: Option<usize>) -> Option<usize> {
        let place = place?;
        let is_there = self.counters.get_index(place).is_some_and(|(stored, _)| *stored.0 == *key.as_bytes());
        if is_there { Some(place) } else { self.find(key) }
    }

    /// Removes a counter that was found at a place; says whether it was alive.
    pub(super) fn remove(&mut self, place: usize, now: Micros) -> bool {
        let place = if place < self.refusing { self.release(place) } else { place };
        self.counters.swap_remove_index(place).is_some_and(|(_, counter)| counter.expires > now)
    }

    /// To the front.
    fn protect(&mut self, place: usize) {
        if place >= self.refusing {
            self.counters.swap_indices(place, self.refusing);
            self.refusing += 1;
        }
    }

    /// From the front; says where it is now.
    fn release(&mut self, place: usize) -> usize {
        self.refusing -= 1;
        self.counters.swap_indices(place, self.refusing);
        self.refusing
    }

    /// Keeps a counter from making room for others, until [`Shard::let_go`].
    pub(super) fn hold(&mut self, place: usize) {
        self.counters[place].is_held = true;
    }

    pub(super) fn let_go(&mut self, key: &Key) {
        if let Some(counter) = self.counters.get_mut(key.as_bytes()) {
            counter.is_held = false;
        }
    }

    /// How many new counters there is room for, up to `wanted`: up to `most` in all, and in place of others
    /// that refuse nobody, of which `held` are held.
    pub(super) fn room(&mut self, wanted: usize, held: usize, most: usize, now: Micros) -> usize {
        let room = |shard: &Shard| {
            let idle = (shard.len() - shard.refusing).saturating_sub(held);
            (most.saturating_sub(shard.len()) + idle).min(most)
        };
        if room(self) < wanted {
            self.release_some(now);
        }
        room(self).min(wanted)
    }

    /// How many of these counters are among those that may make room.
    pub(super) fn idle_among(&self, places: impl Iterator<Item = usize>) -> usize {
        places.filter(|place| *place >= self.refusing).count()
    }

    /// Makes room for `new` counters, no more than [`Shard::room`] has said; says how many live ones went.
    pub(super) fn make_room(&mut self, new: usize, most: usize, now: Micros) -> u64 {
        let excess = (self.len() + new).saturating_sub(most);
        (0..excess).map(|_| u64::from(self.evict(now))).sum()
    }

    /// Of a few counters that refuse nobody, the one that is worth least goes; says whether it was still
    /// alive.
    fn evict(&mut self, now: Micros) -> bool {
        let idle = self.len() - self.refusing;
        // Spread: those that came at one time are next to each other.
        let apart = idle.div_ceil(EVICTION_SAMPLE).max(1);
        let place = |number: usize| self.refusing + (self.sampled + number) % idle;
        let is_free = |place: &usize| !self.counters[*place].is_held;
        let sample = (0..idle).step_by(apart).map(place).filter(is_free);
        let least = sample.min_by_key(|&place| self.counters[place].worth(now));
        let least = least.or_else(|| (0..idle).map(place).find(is_free));
        self.sampled = (self.sampled + 1) % idle.max(1);
        least.is_some_and(|place| self.remove(place, now))
    }

    /// Looks at a few refusing counters for those that refuse nobody any more.
    fn release_some(&mut self, now: Micros) {
        for _ in 0..RELEASE_SAMPLE.min(self.refusing) {
            if self.released >= self.refusing {
                self.released = 0;
            }
            let counter = &self.counters[self.released];
            if counter.refuses(now) || counter.is_held {
                self.released += 1;
            } else {
                self.release(self.released);
                if self.refusing == 0 {
                    return;
                }
            }
        }
    }

    /// Removes all expired counters.
    pub(super) fn sweep(&mut self, now: Micros) {
        let (refusing, mut place, mut gone) = (self.refusing, 0, 0);
        self.counters.retain(|_, counter| {
            let is_live = counter.expires > now;
            gone += usize::from(!is_live && place < refusing);
            place += 1;
            is_live
        });
        self.refusing -= gone;
        let mut place = 0;
        while place < self.refusing {
            if self.counters[place].refuses(now) {
                place += 1;
            } else {
                self.release(place);
            }
        }
        self.shrink();
    }

    pub(super) fn sweep_some(&mut self, now: Micros) {
        for _ in 0..SWEPT_PER_CALL {
            if self.swept >= self.counters.len() {
                self.swept = 0;
            }
            match self.counters.get_index(self.swept) {
                Some((_, counter)) if counter.expires <= now => {
                    self.remove(self.swept, now);
                    self.shrink();
                }
                Some(_) => self.swept += 1,
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
