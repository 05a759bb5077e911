//! Who may be connected to a port. When there is no room for another connection, the one goes that was of use longest ago, and
//! those that never made a call go first. A connection that weir owes an answer never goes. When all are like that, a newcomer
//! gets one of a few places that are kept for probes, for a short time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::account::{Account, Lasting, Reason, now, tick};
use crate::telemetry::connections::Connections;

/// How long a newcomer has before it gives way to another, where someone else can: milliseconds.
const GRACE: u64 = 1_000;
/// Connections that may stay open without ever having made a call. HTTP/2 keeps some 25 KB for each, so these take 50 MB at most;
/// Envoy connects when it has a call to make.
const MAX_FRESH: usize = 2_000;
/// Connections that are looked at to find one that can go. With more than that busy, the newcomer gets a place for probes.
const MAX_LOOKS: usize = 64;
/// Between two looks at all connections, milliseconds: with many, each takes a while.
const SORT: u64 = 100;
/// What a connection holds at least of the room for calls and answers, in bytes, when it is closed because there is no room.
const MANY: u32 = 64 << 10;

/// How many may be connected to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Connections, those for probes aside.
    pub connections: usize,
    /// Connections that are there for probes alone.
    pub probes: usize,
}

/// What a port's paths are.
#[derive(Clone, Copy, Debug)]
pub struct Paths {
    /// Asked by probes: answered however busy the port is.
    pub is_probe: fn(&str) -> bool,
    /// Answers that go on.
    pub lasting: fn(&str) -> Option<Lasting>,
}

/// The room of one port.
#[derive(Debug)]
pub struct Room {
    size: Size,
    paths: Paths,
    counts: Arc<Connections>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Account>>,
    /// Those that had made no call when they were last looked at, in the order they came.
    fresh: VecDeque<u64>,
    /// All others, by when they were of use when they were last looked at. Since then it can only be later.
    earned: BinaryHeap<Reverse<(u64, u64)>>,
    /// When those of `fresh` that have earned their place were last told from the others.
    sorted: u64,
    /// Those in places for probes, in the order they came.
    probes: VecDeque<u64>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    id: u64,
    pub(super) account: Arc<Account>,
    pub(super) room: Arc<Room>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.room.table.lock().open.remove(&self.id);
    }
}

impl Room {
    pub fn new(size: Size, paths: Paths, counts: Arc<Connections>) -> Arc<Room> {
        Arc::new(Room { size, paths, counts, table: Mutex::default() })
    }

    pub(super) fn counts(&self) -> &Connections {
        &self.counts
    }

    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// A place for one more connection. `None` when nobody can make room.
    pub fn enter(self: &Arc<Room>) -> Option<Slot> {
        let mut table = self.table.lock();
        let slot = table.enter(self.size);
        drop(table);
        let Some((id, account)) = slot else {
            self.counts.no_room.inc();
            return None;
        };
        Some(Slot { id, account, room: self.clone() })
    }

    /// Closes the connection that can best be done without; for when the process can open no more files.
    pub fn make_room(&self) {
        self.table.lock().close_one();
    }

    /// Closes the connection that holds most for calls that wait for their peer. Whether there was one.
    pub(super) fn relieve(&self) -> bool {
        let table = self.table.lock();
        let staying = table.open.values().filter(|account| account.reason().is_none());
        let heaviest = staying.max_by_key(|account| account.waiting_for_peer());
        heaviest.filter(|account| account.waiting_for_peer() >= MANY).inspect(|account| account.close(Reason::OpenCalls)).is_some()
    }

    /// Closes connections that have kept weir waiting for too long.
    pub(super) fn look(&self) {
        let (tick, now) = (tick(), now());
        let mut table = self.table.lock();
        for account in table.open.values() {
            account.look(tick, now);
        }
        table.close_surplus(MAX_FRESH, now);
    }
}

impl Table {
    fn enter(&mut self, size: Size) -> Option<(u64, Arc<Account>)> {
        self.close_surplus(MAX_FRESH, now());
        self.probes.retain(|id| self.open.contains_key(id));
        if self.open.len() - self.probes.len() < size.connections || self.close_one() {
            return Some(self.insert(false));
        }
        if self.probes.len() >= size.probes && !self.close_probe() {
            return None;
        }
        Some(self.insert(true))
    }

    fn insert(&mut self, is_reserve: bool) -> (u64, Arc<Account>) {
        let (id, account) = (self.next, Arc::new(Account::new(is_reserve)));
        self.next += 1;
        self.open.insert(id, account.clone());
        if is_reserve {
            self.probes.push_back(id)
        } else {
            self.fresh.push_back(id)
        }
        (id, account)
    }

    /// Closes the probe's connection that came first and is not being answered.
    fn close_probe(&mut self) -> bool {
        let position = self.probes.iter().position(|id| self.open.get(id).is_none_or(|account| !account.is_busy()));
        let Some(id) = position.and_then(|position| self.probes.remove(position)) else { return false };
        self.close(id);
        true
    }

    fn close(&mut self, id: u64) {
        if let Some(account) = self.open.remove(&id) {
            account.close(Reason::Idle);
        }
    }

    /// Closes those that never made a call and came first, but for the latest `kept`, and for those that came just now.
    fn close_surplus(&mut self, kept: usize, now: u64) {
        if self.fresh.len() <= kept {
            return;
        }
        if now.saturating_sub(self.sorted) >= SORT {
            self.sorted = now;
            self.sort();
        }
        while self.fresh.len() > kept
            && let Some((id, began)) = self.oldest_fresh()
            && now.saturating_sub(began) >= GRACE
        {
            self.fresh.pop_front();
            self.close(id);
        }
    }

    /// Whether there was one.
    fn close_one(&mut self) -> bool {
        let now = now();
        let fresh = self.oldest_fresh();
        if let Some((id, began)) = fresh
            && now.saturating_sub(began) >= GRACE
        {
            self.fresh.pop_front();
            self.close(id);
            return true;
        }
        if let Some(id) = self.idle_longest(now, GRACE) {
            self.close(id);
            return true;
        }
        // All came or were of use just now.
        let oldest = match fresh {
            Some((id, _)) => self.fresh.pop_front().map(|_| id),
            None => self.idle_longest(now, 0),
        };
        oldest.inspect(|&id| self.close(id)).is_some()
    }

    /// At the front of `fresh`, and since when.
    fn oldest_fresh(&mut self) -> Option<(u64, u64)> {
        while let Some(&id) = self.fresh.front() {
            match self.open.get(&id) {
                Some(account) if !account.has_earned() => return Some((id, account.began)),
                Some(account) => self.earned.push(Reverse((account.active(), id))),
                None => {}
            }
            self.fresh.pop_front();
        }
        None
    }

    /// Finds those that have earned their place behind others of `fresh` that have not.
    fn sort(&mut self) {
        let (open, earned) = (&self.open, &mut self.earned);
        self.fresh.retain(|id| match open.get(id) {
            Some(account) if account.has_earned() => {
                earned.push(Reverse((account.active(), *id)));
                false
            }
            account => account.is_some(),
        });
    }

    fn idle_longest(&mut self, now: u64, grace: u64) -> Option<u64> {
        if now.saturating_sub(self.sorted) >= SORT {
            self.sorted = now;
            self.sort();
        }
        for _ in 0..MAX_LOOKS {
            let Reverse((then, id)) = self.earned.pop()?;
            let Some(account) = self.open.get(&id) else { continue };
            let is_busy = account.is_busy();
            let active = if is_busy { now } else { account.active() };
            if active == then && !is_busy && now.saturating_sub(active) >= grace {
                return Some(id);
            }
            self.earned.push(Reverse((active, id)));
            if active == then && !is_busy {
                // All others were of use later.
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::account::Call;
    use super::*;

    const PATHS: Paths = Paths { is_probe: |path| path == "/health", lasting: |_| None };

    fn room(connections: usize, probes: usize) -> Arc<Room> {
        Room::new(Size { connections, probes }, PATHS, Arc::default())
    }

    fn is_closed(slot: &Slot) -> bool {
        slot.account.reason() == Some(Reason::Idle)
    }

    /// Makes a call that is over.
    fn earn(slot: &Slot, active: u64) {
        drop(Call::begin(&slot.account, None).unwrap());
        slot.account.touch_at(active);
    }

    #[test]
    fn nobody_goes_while_there_is_room() {
        let room = room(2, 1);
        let slots = [room.enter().unwrap(), room.enter().unwrap()];
        assert!(!slots.iter().any(|slot| is_closed(slot) || slot.account.is_reserve));
        drop(slots);
        let slots = [room.enter().unwrap(), room.enter().unwrap()];
        assert!(!slots.iter().any(is_closed), "places are given back");
    }

    #[test]
    fn who_never_called_goes_first_and_then_who_is_idle_longest() {
        let room = room(4, 1);
        let slots: Vec<Slot> = (0..4).map(|_| room.enter().unwrap()).collect();
        let later = now() + 10;
        // The first came first, but has called; of the others the third has not.
        for (slot, active) in [(0, later + 2), (1, later + 1), (3, later + 3)] {
            earn(&slots[slot], active);
        }
        let mut entered = Vec::new();
        for goes in [2, 1, 0, 3] {
            let slot = room.enter().unwrap();
            assert!(!slot.account.is_reserve);
            // It is in use itself.
            slot.account.touch_at(later + 100);
            let call = Call::begin(&slot.account, None).unwrap();
            entered.push((slot, call));
            let closed: Vec<usize> = (0..4).filter(|&slot| is_closed(&slots[slot])).collect();
            assert!(closed.contains(&goes) && closed.len() == entered.len(), "{closed:?} closed, not {goes}");
        }
    }

    #[test]
    fn of_many_that_never_called_the_first_go() {
        let room = room(10, 1);
        let slots: Vec<Slot> = (0..5).map(|_| room.enter().unwrap()).collect();
        earn(&slots[1], now());
        room.table.lock().close_surplus(2, slots[0].account.began);
        assert!(!slots.iter().any(is_closed), "all came just now");
        room.table.lock().close_surplus(2, slots[4].account.began + GRACE);
        assert_eq!([0, 1, 2, 3, 4].map(|slot| is_closed(&slots[slot])), [true, false, true, false, false]);
    }

    #[test]
    fn who_is_owed_an_answer_never_goes_and_newcomers_get_places_for_probes() {
        let room = room(2, 2);
        let busy: Vec<(Slot, Call)> = (0..2)
            .map(|_| {
                let slot = room.enter().unwrap();
                let call = Call::begin(&slot.account, None).unwrap();
                (slot, call)
            })
            .collect();
        let probes: Vec<Slot> = (0..2).map(|_| room.enter().unwrap()).collect();
        assert!(probes.iter().all(|slot| slot.account.is_reserve));
        // Another probe: the one that came first goes.
        let another = room.enter().unwrap();
        assert!(another.account.is_reserve && is_closed(&probes[0]) && !is_closed(&probes[1]));
        let calls = [&probes[1], &another].map(|slot| Call::begin(&slot.account, None).unwrap());
        assert!(room.enter().is_none(), "all are being answered");
        assert!(!busy.iter().any(|(slot, _)| is_closed(slot)));
        drop(calls);
        assert!(room.enter().is_some());
    }

    #[test]
    fn where_calls_find_no_room_the_one_that_holds_most_goes() {
        let room = room(3, 1);
        let slots: Vec<Slot> = (0..3).map(|_| room.enter().unwrap()).collect();
        let mut calls: Vec<Call> = slots.iter().map(|slot| Call::begin(&slot.account, None).unwrap()).collect();
        assert!(!room.relieve());
        calls[0].answered();
        calls[0].holds(10 << 10);
        assert!(!room.relieve());
        assert!(slots.iter().all(|slot| slot.account.reason().is_none()), "none holds much");
        calls[1].answered();
        calls[1].holds(100 << 10);
        // Owed an answer, it holds nothing of its own will.
        calls.extend((0..100).map(|_| Call::begin(&slots[2].account, None).unwrap()));
        assert!(room.relieve() && !room.relieve());
        let reasons = slots.iter().map(|slot| slot.account.reason());
        assert!(reasons.eq([None, Some(Reason::OpenCalls), None]));
        drop(calls);
        assert_eq!(slots[1].account.waiting_for_peer(), 0);
    }
}
