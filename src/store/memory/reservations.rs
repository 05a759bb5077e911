//! Reservations in this process's memory, sharded by name. The lock of one shard is held while a request
//! behind its gate is decided; requests without a gate never meet it. Never evicted: when there is no room,
//! none is made.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::MemoryStore;
use crate::limit::reservation::{Gate, Reservation, is_refused};
use crate::limit::{Micros, Outcome};
use crate::rules::key::Key;
use crate::store::reservations::{Gated, Kept, Passed, ReservationStore};
use crate::store::{Group, Outcomes, StoreError, Wait};

/// Reservations that one process keeps at once: what callers make is theirs to bound.
const MAX_RESERVATIONS: usize = 100_000;
/// What they may take together, in bytes ([`bytes_of`]); most take less than a kilobyte.
const MAX_RESERVATION_BYTES: usize = 128 << 20;
/// Locks to share the reservations among.
const SHARDS: usize = 64;
/// Expired reservations that are forgotten under one lock: about 10 µs of work.
const FORGOTTEN_AT_ONCE: usize = 32;

pub(super) struct Reservations {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    taken: Taken,
}

/// What all shards have taken of the bounds, some room that is asked for and not used yet included.
#[derive(Default)]
struct Taken {
    reservations: AtomicUsize,
    bytes: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    by_key: HashMap<Key, Kept, RandomState>,
    /// Soonest first.
    by_expiry: BTreeSet<(Micros, Key)>,
}

impl Default for Reservations {
    fn default() -> Reservations {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Reservations { shards, hasher: RandomState::default(), taken: Taken::default() }
    }
}

impl Reservations {
    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        let last = self.shards.len() as u64 - 1;
        &self.shards[usize::try_from(self.hasher.hash_one(key.as_bytes()) & last).expect("a shard index is small")]
    }

    /// Forgets all that have expired, a few under each lock: nobody waits for all of them.
    pub(super) fn sweep(&self, now: Micros) {
        for shard in &self.shards {
            while shard.lock().forget_expired(&self.taken, now) == FORGOTTEN_AT_ONCE {}
        }
    }

    /// Forgets a few of each shard that is not in use. When there is no room, what has expired may be
    /// anywhere.
    fn forget_anywhere(&self, now: Micros) {
        for shard in &self.shards {
            if let Some(mut shard) = shard.try_lock() {
                shard.forget_expired(&self.taken, now);
            }
        }
    }
}

impl Taken {
    /// Takes room for one reservation; false when there is none.
    fn take(&self, bytes: usize) -> bool {
        let reservations = self.reservations.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = reservations < MAX_RESERVATIONS && before + bytes <= MAX_RESERVATION_BYTES;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.reservations.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Shard {
    /// Forgets a few that have expired; says how many.
    fn forget_expired(&mut self, taken: &Taken, now: Micros) -> usize {
        let mut forgotten = 0;
        while forgotten < FORGOTTEN_AT_ONCE && self.by_expiry.first().is_some_and(|(expires, _)| *expires <= now) {
            let Some((_, key)) = self.by_expiry.pop_first() else { break };
            if let Some(kept) = self.by_key.remove(&key) {
                taken.give_back(bytes_of(&key, &kept.memo, kept.outcomes.len()));
            }
            forgotten += 1;
        }
        forgotten
    }

    /// Keeps a reservation that room was taken for, in place of one of that name that has expired.
    fn make(&mut self, key: &Key, kept: Kept, taken: &Taken) {
        let expires = kept.reservation.expires;
        if let Some(before) = self.by_key.insert(key.clone(), kept) {
            taken.give_back(bytes_of(key, &before.memo, before.outcomes.len()));
            self.by_expiry.remove(&(before.reservation.expires, key.clone()));
        }
        self.by_expiry.insert((expires, key.clone()));
    }

    /// Keeps a reservation that is there as it is from now on.
    fn commit(&mut self, key: &Key, reservation: Reservation) {
        let Some(known) = self.by_key.get_mut(key) else { return };
        self.by_expiry.remove(&(known.reservation.expires, key.clone()));
        self.by_expiry.insert((reservation.expires, key.clone()));
        known.reservation = reservation;
    }
}

/// What one reservation takes: its two entries, its name in each of them, its outcomes and what its caller keeps. The tables' spare
/// room is not in it.
fn bytes_of(key: &Key, memo: &[u8], outcomes: usize) -> usize {
    const ENTRIES: usize = size_of::<(Key, Kept)>() + size_of::<(Micros, Key)>();
    ENTRIES + 2 * key.as_bytes().len() + memo.len() + outcomes * size_of::<Outcome>()
}

impl MemoryStore {
    /// Decides a group if its gate opens, at once.
    ///
    /// # Errors
    /// As [`MemoryStore::decide`]; then the gate stays shut.
    pub fn pass_gate(&self, gated: &Gated) -> Result<Passed, StoreError> {
        let Reservations { taken, .. } = &self.reservations;
        let is_reserve = matches!(gated.gate, Gate::Reserve { .. });
        let bytes = bytes_of(&gated.key, &gated.memo, gated.group.checks.len());
        let mut has_room = is_reserve && taken.take(bytes);
        if is_reserve && !has_room {
            self.reservations.forget_anywhere(self.clock.now());
            has_room = taken.take(bytes);
        }
        let passed = self.pass_gate_within(gated, has_room);
        let is_made = is_reserve && matches!(passed, Ok(Passed::Decided { expires: Some(_), .. }));
        if has_room && !is_made {
            taken.give_back(bytes);
        }
        passed
    }

    /// Decides a group if its gate opens, and keeps what is reserved in the room that was taken for it.
    fn pass_gate_within(&self, gated: &Gated, has_room: bool) -> Result<Passed, StoreError> {
        let Reservations { taken, .. } = &self.reservations;
        let mut reservations = self.reservations.shard(&gated.key).lock();
        let mut counters = self.lock(&gated.group.keys);
        // One time for the reservation and its counters: what is charged in a window is made in that window.
        let now = self.clock.now();
        reservations.forget_expired(taken, now);
        let known = reservations.by_key.get(&gated.key).filter(|kept| kept.reservation.expires > now);
        let Some(reservation) = gated.gate.step(known.map(|kept| &kept.reservation), now) else {
            return Ok(match known {
                Some(kept) => Passed::Shut { actual: kept.reservation.actual },
                None => Passed::Absent,
            });
        };
        let decided = match gated.gate {
            Gate::Commit { .. } => {
                let checks = gated.group.checks.iter().map(|check| reservation.settle(check, now)).collect();
                counters.decide(&Group { checks, ..gated.group.clone() }, now)
            }
            Gate::Reserve { .. } if !has_room => return Ok(Passed::Full),
            Gate::Reserve { .. } => counters.decide(&gated.group, now),
        };
        let turned_away = counters.turned_away;
        drop(counters);
        let opened = |outcomes: &Outcomes| match gated.gate {
            Gate::Commit { .. } => {
                reservations.commit(&gated.key, reservation);
                true
            }
            Gate::Reserve { .. } if is_refused(&gated.group.checks, outcomes, gated.group.refused) => false,
            Gate::Reserve { .. } => {
                let kept = Kept { reservation, outcomes: outcomes.clone(), memo: gated.memo.clone() };
                reservations.make(&gated.key, kept, taken);
                true
            }
        };
        let is_open = decided.as_ref().is_ok_and(opened);
        drop(reservations);
        self.turn_away(turned_away, now);
        let expires = is_open.then_some(reservation.expires);
        decided.map(|outcomes| Passed::Decided { outcomes, expires })
    }

    /// What is known of a reservation.
    pub fn reservation(&self, key: &Key) -> Option<Kept> {
        let now = self.clock.now();
        let kept = self.reservations.shard(key).lock().by_key.get(key).cloned();
        kept.filter(|kept| kept.reservation.expires > now)
    }

    /// Reservations that are known, some expired ones included.
    pub fn reservations(&self) -> usize {
        self.reservations.taken.reservations.load(Ordering::Relaxed)
    }
}

impl ReservationStore for MemoryStore {
    async fn pass(&self, gated: &Gated, _: Wait) -> Result<Passed, StoreError> {
        self.pass_gate(gated)
    }

    async fn kept(&self, key: &Key, _: Wait) -> Result<Option<Kept>, StoreError> {
        Ok(self.reservation(key))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::limit::{Algorithm, Charge, Check, Limit, MINUTE, Mode, Operation, SECOND};
    use crate::rules::key::key;
    use crate::store::Clock;

    fn store() -> (MemoryStore, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(1_000 * MINUTE));
        (MemoryStore::new(Clock::Manual(now.clone()), 100), now)
    }

    /// Takes one of a hundred a minute.
    fn reserve(number: usize, ttl: Micros, memo: usize) -> Gated {
        let limit = Limit::new(Algorithm::FixedWindow, 100, MINUTE, None).unwrap();
        let check = Check { mode: Mode::Shadow, charge: Charge::Always, ..Check::new(limit, Operation::Take, 1) };
        Gated {
            key: Key::from_bytes(number.to_string().into_bytes()),
            gate: Gate::Reserve { estimate: 1, ttl },
            memo: vec![0; memo].into(),
            group: Group {
                keys: [key(b"w1|d", b"|{k=v}", b"|x")].into_iter().collect(),
                checks: [check].into_iter().collect(),
                refused: false,
            },
        }
    }

    #[test]
    fn a_full_store_makes_none_charges_nothing_and_keeps_what_it_has() {
        let (store, now) = store();
        for number in 0..MAX_RESERVATIONS {
            // The first of them expires soonest.
            let ttl = if number == 0 { SECOND } else { MINUTE };
            assert!(matches!(store.pass_gate(&reserve(number, ttl, 0)), Ok(Passed::Decided { .. })));
        }
        let counter = reserve(0, MINUTE, 0).group.keys[0].clone();
        let before = store.state(&counter);
        assert_eq!(store.pass_gate(&reserve(MAX_RESERVATIONS, MINUTE, 0)), Ok(Passed::Full));
        assert_eq!((store.state(&counter), store.reservations()), (before, MAX_RESERVATIONS));
        assert_eq!(store.pass_gate(&reserve(1, MINUTE, 0)), Ok(Passed::Shut { actual: None }));
        now.fetch_add(SECOND, Ordering::AcqRel);
        let made = store.pass_gate(&reserve(MAX_RESERVATIONS, MINUTE, 0));
        assert!(matches!(made, Ok(Passed::Decided { .. })), "one has expired");
        assert_eq!(store.pass_gate(&reserve(0, MINUTE, 0)), Ok(Passed::Full));
    }

    #[test]
    fn both_names_the_entries_and_the_outcomes_are_counted() {
        let (store, _) = store();
        let alone = reserve(0, MINUTE, 0);
        let bytes = |store: &MemoryStore| store.reservations.taken.bytes.load(Ordering::Relaxed);
        store.pass_gate(&alone).unwrap();
        let of_one = bytes(&store);
        assert!(of_one >= size_of::<(Key, Kept)>() + size_of::<(Micros, Key)>() + 2, "{of_one}");
        let mut large = Gated { key: Key::from_bytes(vec![b'k'; 1 + 1_000]), memo: vec![0; 77].into(), ..alone.clone() };
        let more = |place: usize| key(b"w1|d", format!("|{{k={place}}}").as_bytes(), b"|x");
        large.group.keys.extend((0..10).map(more));
        large.group.checks.extend(vec![alone.group.checks[0]; 10]);
        store.pass_gate(&large).unwrap();
        assert_eq!(bytes(&store) - of_one, of_one + 2 * 1_000 + 77 + 10 * size_of::<Outcome>());
    }

    /// A clock that moves on while a counter is waited for.
    #[test]
    fn a_reservation_is_made_when_its_counters_are_charged() {
        let (store, now) = store();
        let gated = reserve(0, MINUTE, 0);
        std::thread::scope(|scope| {
            let held = store.shards[store.shard_of(&gated.group.keys[0])].lock();
            let passed = scope.spawn(|| store.pass_gate(&gated));
            while store.reservations.shard(&gated.key).try_lock().is_some() {
                std::thread::yield_now();
            }
            let later = now.fetch_add(MINUTE, Ordering::AcqRel) + MINUTE;
            drop(held);
            let expected = Some(later + MINUTE);
            assert!(matches!(passed.join(), Ok(Ok(Passed::Decided { expires, .. })) if expires == expected));
            assert_eq!(store.reservation(&gated.key).map(|kept| kept.reservation.made), Some(later));
        });
    }

    /// Reservations as they are counted, by name and by expiry.
    fn left(store: &MemoryStore) -> (usize, usize, usize) {
        let shards = &store.reservations.shards;
        let by_key = shards.iter().map(|shard| shard.lock().by_key.len()).sum();
        (store.reservations(), by_key, shards.iter().map(|shard| shard.lock().by_expiry.len()).sum())
    }

    #[test]
    fn a_name_that_has_expired_is_counted_once_when_it_is_reserved_again() {
        let (store, now) = store();
        // Those that expire first are more than are forgotten at once.
        let soon = (0..).map(|number| reserve(number, SECOND, 0));
        let shard = |gated: &Gated| std::ptr::from_ref(store.reservations.shard(&gated.key));
        let again = reserve(1_000_000, 2 * SECOND, 0);
        for gated in soon.filter(|gated| shard(gated) == shard(&again)).take(2 * FORGOTTEN_AT_ONCE) {
            assert!(store.pass_gate(&gated).is_ok());
        }
        store.pass_gate(&again).unwrap();
        now.fetch_add(2 * SECOND, Ordering::AcqRel);
        assert!(matches!(store.pass_gate(&again), Ok(Passed::Decided { expires: Some(_), .. })));
        assert_eq!(left(&store), (FORGOTTEN_AT_ONCE + 1, FORGOTTEN_AT_ONCE + 1, FORGOTTEN_AT_ONCE + 1), "a bounded step");
        store.sweep();
        assert_eq!(left(&store), (1, 1, 1));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_given_back() {
        const LARGE: usize = 64 << 10;
        let (store, now) = store();
        let made = (0..).take_while(|&number| store.pass_gate(&reserve(number, MINUTE, LARGE)) != Ok(Passed::Full)).count();
        // Beside the memo at most half a kilobyte each.
        assert!((MAX_RESERVATION_BYTES / (LARGE + 512)..MAX_RESERVATION_BYTES / LARGE).contains(&made), "{made}");
        let commit = |number, actual| {
            let gate = Gate::Commit { actual, made: 1_000 * MINUTE };
            store.pass_gate(&Gated { gate, group: Group::default(), ..reserve(number, 0, 0) })
        };
        // Known for as long again.
        now.fetch_add(MINUTE - 1, Ordering::AcqRel);
        assert!(matches!(commit(7, 3), Ok(Passed::Decided { .. })));
        now.fetch_add(1, Ordering::AcqRel);
        assert_eq!([commit(7, 3), commit(8, 3)], [Ok(Passed::Shut { actual: Some(3) }), Ok(Passed::Absent)]);
        store.sweep();
        assert_eq!(left(&store), (1, 1, 1));
        now.fetch_add(MINUTE, Ordering::AcqRel);
        store.sweep();
        assert_eq!((left(&store), store.reservations.taken.bytes.load(Ordering::Relaxed)), ((0, 0, 0), 0));
    }
}
