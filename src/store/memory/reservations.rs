//! Reservations in this process's memory. All of them behind one lock, which is held while a request behind a gate is decided;
//! requests without one never meet it. Never evicted: when there is no room, none is made.

use std::collections::{BTreeSet, HashMap};

use super::MemoryStore;
use crate::limit::reservation::{Gate, is_refused};
use crate::limit::{Micros, Outcome};
use crate::rules::key::Key;
use crate::store::reservations::{Gated, Kept, Passed, ReservationStore};
use crate::store::{Group, StoreError, Wait};
use foldhash::fast::RandomState;

/// Reservations that one process keeps at once: what callers make is theirs to bound.
const MAX_RESERVATIONS: usize = 100_000;
/// What they may take together, in bytes ([`bytes_of`]); most take less than a kilobyte.
const MAX_RESERVATION_BYTES: usize = 128 << 20;

#[derive(Default)]
pub(super) struct Reservations {
    by_key: HashMap<Key, Kept, RandomState>,
    /// Soonest first.
    by_expiry: BTreeSet<(Micros, Key)>,
    bytes: usize,
}

impl Reservations {
    pub(super) fn forget_expired(&mut self, now: Micros) {
        while self.by_expiry.first().is_some_and(|(expires, _)| *expires <= now) {
            let Some((_, key)) = self.by_expiry.pop_first() else { return };
            if let Some(kept) = self.by_key.remove(&key) {
                self.bytes -= bytes_of(&key, &kept.memo, kept.outcomes.len());
            }
        }
    }

    fn has_room(&self, gated: &Gated) -> bool {
        let bytes = bytes_of(&gated.key, &gated.memo, gated.group.checks.len());
        self.by_key.len() < MAX_RESERVATIONS && self.bytes + bytes <= MAX_RESERVATION_BYTES
    }

    fn put(&mut self, key: &Key, kept: Kept) {
        self.bytes += bytes_of(key, &kept.memo, kept.outcomes.len());
        self.by_expiry.insert((kept.reservation.expires, key.clone()));
        if let Some(before) = self.by_key.insert(key.clone(), kept) {
            self.bytes -= bytes_of(key, &before.memo, before.outcomes.len());
            let after = self.by_key[key].reservation.expires;
            if before.reservation.expires != after {
                self.by_expiry.remove(&(before.reservation.expires, key.clone()));
            }
        }
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
    pub fn pass_gate(&self, gated: &Gated) -> Passed {
        let mut reservations = self.reservations.lock();
        let mut counters = self.lock(&gated.group.keys);
        // One time for the reservation and its counters: what is charged in a window is made in that window.
        let now = self.clock.now();
        reservations.forget_expired(now);
        let known = reservations.by_key.get(&gated.key);
        let Some(reservation) = gated.gate.step(known.map(|kept| &kept.reservation), now) else {
            return match known {
                Some(kept) => Passed::Shut { actual: kept.reservation.actual },
                None => Passed::Absent,
            };
        };
        let expires = Some(reservation.expires);
        match (gated.gate, known) {
            (Gate::Commit { .. }, Some(known)) => {
                let checks = gated.group.checks.iter().map(|check| reservation.settle(check, now)).collect();
                let known = Kept { reservation, ..known.clone() };
                let outcomes = counters.decide(&Group { checks, ..gated.group.clone() }, now);
                reservations.put(&gated.key, known);
                Passed::Decided { outcomes, expires }
            }
            _ if !reservations.has_room(gated) => Passed::Full,
            _ => {
                let outcomes = counters.decide(&gated.group, now);
                if is_refused(&gated.group.checks, &outcomes, gated.group.refused) {
                    return Passed::Decided { outcomes, expires: None };
                }
                let kept = Kept { reservation, outcomes: outcomes.clone(), memo: gated.memo.clone() };
                reservations.put(&gated.key, kept);
                Passed::Decided { outcomes, expires }
            }
        }
    }

    /// What is known of a reservation.
    pub fn reservation(&self, key: &Key) -> Option<Kept> {
        let now = self.clock.now();
        let kept = self.reservations.lock().by_key.get(key).cloned();
        kept.filter(|kept| kept.reservation.expires > now)
    }

    /// Reservations that are known, some expired ones included.
    pub fn reservations(&self) -> usize {
        self.reservations.lock().by_key.len()
    }
}

impl ReservationStore for MemoryStore {
    async fn pass(&self, gated: &Gated, _: Wait) -> Result<Passed, StoreError> {
        Ok(self.pass_gate(gated))
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
            assert!(matches!(store.pass_gate(&reserve(number, ttl, 0)), Passed::Decided { .. }));
        }
        let counter = reserve(0, MINUTE, 0).group.keys[0].clone();
        let before = store.state(&counter);
        assert_eq!(store.pass_gate(&reserve(MAX_RESERVATIONS, MINUTE, 0)), Passed::Full);
        assert_eq!((store.state(&counter), store.reservations()), (before, MAX_RESERVATIONS));
        assert_eq!(store.pass_gate(&reserve(1, MINUTE, 0)), Passed::Shut { actual: None });
        now.fetch_add(SECOND, Ordering::AcqRel);
        assert!(matches!(store.pass_gate(&reserve(MAX_RESERVATIONS, MINUTE, 0)), Passed::Decided { .. }), "one has expired");
        assert_eq!(store.pass_gate(&reserve(0, MINUTE, 0)), Passed::Full);
    }

    #[test]
    fn both_names_the_entries_and_the_outcomes_are_counted() {
        let (store, _) = store();
        let alone = reserve(0, MINUTE, 0);
        let bytes = |store: &MemoryStore| store.reservations.lock().bytes;
        store.pass_gate(&alone);
        let of_one = bytes(&store);
        assert!(of_one >= size_of::<(Key, Kept)>() + size_of::<(Micros, Key)>() + 2, "{of_one}");
        let mut large = Gated { key: Key::from_bytes(vec![b'k'; 1 + 1_000]), memo: vec![0; 77].into(), ..alone.clone() };
        let more = |place: usize| key(b"w1|d", format!("|{{k={place}}}").as_bytes(), b"|x");
        large.group.keys.extend((0..10).map(more));
        large.group.checks.extend(vec![alone.group.checks[0]; 10]);
        store.pass_gate(&large);
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
            while store.reservations.try_lock().is_some() {
                std::thread::yield_now();
            }
            let later = now.fetch_add(MINUTE, Ordering::AcqRel) + MINUTE;
            drop(held);
            let expected = Some(later + MINUTE);
            assert!(matches!(passed.join(), Ok(Passed::Decided { expires, .. }) if expires == expected));
            assert_eq!(store.reservation(&gated.key).map(|kept| kept.reservation.made), Some(later));
        });
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_given_back() {
        const LARGE: usize = 64 << 10;
        let (store, now) = store();
        let made = (0..).take_while(|&number| store.pass_gate(&reserve(number, MINUTE, LARGE)) != Passed::Full).count();
        // Beside the memo at most half a kilobyte each.
        assert!((MAX_RESERVATION_BYTES / (LARGE + 512)..MAX_RESERVATION_BYTES / LARGE).contains(&made), "{made}");
        let commit = |number, actual| {
            let gate = Gate::Commit { actual, made: 1_000 * MINUTE };
            store.pass_gate(&Gated { gate, group: Group::default(), ..reserve(number, 0, 0) })
        };
        // Known for as long again.
        now.fetch_add(MINUTE - 1, Ordering::AcqRel);
        assert!(matches!(commit(7, 3), Passed::Decided { .. }));
        now.fetch_add(1, Ordering::AcqRel);
        assert_eq!([commit(7, 3), commit(8, 3)], [Passed::Shut { actual: Some(3) }, Passed::Absent]);
        store.sweep();
        assert_eq!((store.reservations(), store.reservations.lock().by_expiry.len()), (1, 1));
        now.fetch_add(MINUTE, Ordering::AcqRel);
        store.sweep();
        let left = store.reservations.lock();
        assert_eq!((left.by_key.len(), left.by_expiry.len(), left.bytes), (0, 0, 0));
    }
}
