//! Requests and replies of the script as bytes: packed little-endian numbers, doubles wherever Lua counts (whole and below 2^53,
//! so exact). `lua/decide.lua` reads and writes the same layout.

use std::hash::BuildHasher;
use std::sync::Arc;

use deadpool_redis::redis::Cmd;
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::{listed, script};
use crate::limit::reservation::{Gate, Reservation};
use crate::limit::{Algorithm, Charge, Check, MAX_EXACT, Micros, Operation, Outcome, RetryAfter};
use crate::store::reservations::{Gated, Kept};
use crate::store::{Group, Outcomes, StoreError};

/// A check: algorithm, operation, mode, charge, owner; cost, max_delay, requests, window, burst, tick, capacity.
const CHECK_SIZE: usize = 4 + 2 + 7 * 8;
/// The number of checks, and whether the request is refused.
const GROUP_HEADER: usize = 2 + 1;
/// The time; how many requests, distinct requests, and keys that occur again.
const CALL_HEADER: usize = 8 + 3 * 2;
/// A place of a key that occurs again, and its first place.
const REPEATED_SIZE: usize = 2 * 2;
/// Keys of a batch that need no allocation to be compared.
const FEW_KEYS: usize = 64;
/// Most requests of a batch are alike, and Redis unpacks only those that differ: by more than so many, they may as well.
const MAX_COMPARED: usize = 8;
/// A check's part in the reply: its kind; remaining, after, delay.
const ANSWER_SIZE: usize = 1 + 3 * 8;
/// What the script knows a gate by: its algorithm, and its operations.
const RESERVATION: u8 = 8;
const RESERVE: u8 = 4;
const COMMIT: u8 = 5;
/// What stands before a reservation's outcomes: five numbers, and how many outcomes.
const RESERVATION_HEADER: usize = 5 * 8 + 2;
/// A listing: its counter's place, its life.
const LISTING_SIZE: usize = 4 + 8;
/// The most checks of one request: bounds how long the script may hold Redis up.
pub(super) const MAX_CHECKS: usize = 16_384;

/// What the script keeps of one hit in a sliding-window log, in bytes (`lua/sliding_log.lua`).
const LOG_PAIR: u64 = 2 * 8;

/// One request, ready to be sent: nothing of it belongs to its caller any more.
pub(super) struct Encoded {
    /// The packed checks, then the keys.
    bytes: Vec<u8>,
    /// What the script loads, and may write again, in bytes at most: the states that grow. The others take
    /// less than their keys.
    states: u64,
    counters: SmallVec<[Counter; 2]>,
    /// What is kept with a reservation that is made; mostly there is none to be made.
    memo: Option<Arc<[u8]>>,
}

/// The counter of a check.
pub(super) struct Counter {
    /// Of its key, in bytes.
    length: u32,
    /// Of its key.
    pub(super) hash: u64,
    /// How long it lives at most, in µs, if the check may create it and it is to be listed; else 0.
    pub(super) life: Micros,
}

/// A counter to put into the index of its subject, if the counter is there when the call is done.
pub(super) struct Listing {
    /// The place of its key in the call, from 1 on.
    pub(super) place: u32,
    pub(super) index: Vec<u8>,
    /// How long it stays listed, in ms.
    pub(super) life: f64,
    /// What it is known by when it was listed.
    pub(super) mark: u64,
}

impl Encoded {
    /// `None` for more than [`MAX_CHECKS`].
    pub(super) fn new(group: &Group, hasher: &RandomState) -> Option<Encoded> {
        let count = u16::try_from(group.checks.len()).ok().filter(|&count| usize::from(count) <= MAX_CHECKS)?;
        let keys: usize = group.keys.iter().map(|key| key.as_bytes().len()).sum();
        let mut bytes = Vec::with_capacity(GROUP_HEADER + group.checks.len() * CHECK_SIZE + keys);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.push(u8::from(group.refused));
        for check in &group.checks {
            pack(&mut bytes, check);
        }
        let mut counters = SmallVec::with_capacity(group.checks.len());
        for (key, check) in group.keys.iter().zip(&group.checks) {
            let key = key.as_bytes();
            bytes.extend_from_slice(key);
            let length = u32::try_from(key.len()).expect("keys are short");
            counters.push(Counter { length, hash: hasher.hash_one(key), life: listed::life(check, group.refused) });
        }
        let states = group.checks.iter().map(largest_state).sum();
        Some(Encoded { bytes, states, counters, memo: None })
    }

    /// A group with its gate for a first check. `None` for more than [`MAX_CHECKS`].
    pub(super) fn gated(gated: &Gated, hasher: &RandomState) -> Option<Encoded> {
        let group = Encoded::new(&gated.group, hasher)?;
        let checks = group.checks() + 1;
        let count = u16::try_from(checks).ok().filter(|_| checks <= MAX_CHECKS)?;
        let key = gated.key.as_bytes();
        let mut bytes = Vec::with_capacity(group.bytes.len() + CHECK_SIZE + key.len());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.push(u8::from(gated.group.refused));
        pack_gate(&mut bytes, &gated.gate);
        bytes.extend_from_slice(&group.packed()[GROUP_HEADER..]);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(&group.bytes[group.packed().len()..]);
        let mut counters = group.counters;
        counters.insert(0, Counter { length: u32::try_from(key.len()).ok()?, hash: hasher.hash_one(key), life: 0 });
        let memo = matches!(gated.gate, Gate::Reserve { .. }).then(|| gated.memo.clone());
        // What is kept of the reservation is loaded to commit it, and to see that it was reserved before.
        let kept = gated.memo.len() + checks * ANSWER_SIZE;
        Some(Encoded { bytes, states: group.states + kept as u64, counters, memo })
    }

    /// How much the script moves for it, in bytes at most: what is sent, the states, and the reply.
    pub(super) fn weight(&self) -> u64 {
        let sent = self.bytes.len() + self.memo.as_ref().map_or(0, |memo| memo.len());
        (sent + answer_length(self)) as u64 + self.states
    }

    /// How many checks, and so counters, it has.
    pub(super) fn checks(&self) -> usize {
        self.counters.len()
    }

    fn packed(&self) -> &[u8] {
        &self.bytes[..GROUP_HEADER + self.checks() * CHECK_SIZE]
    }

    /// Counters with their keys.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&Counter, &[u8])> {
        let mut rest = &self.bytes[self.packed().len()..];
        self.counters.iter().map(move |counter| {
            let (key, others) = rest.split_at(counter.length as usize);
            rest = others;
            (counter, key)
        })
    }
}

/// The largest state that a check may find, where states grow: a pair for each hit of a log, and its debt
/// where refused hits are charged. An estimate by the limit, as a larger one that a rule had before a reload
/// may have left more.
fn largest_state(check: &Check) -> u64 {
    if check.limit.algorithm() != Algorithm::SlidingLog {
        return 0;
    }
    let owes = check.charge == Charge::Always || check.operation == Operation::Report;
    check.limit.requests() * LOG_PAIR * if owes { 2 } else { 1 }
}

fn pack(bytes: &mut Vec<u8>, check: &Check) {
    let limit = &check.limit;
    bytes.extend_from_slice(&[limit.algorithm() as u8, check.operation as u8, check.mode as u8, check.charge as u8]);
    bytes.extend_from_slice(&check.owner.to_le_bytes());
    let cost = if check.operation == Operation::Look { 0 } else { check.cost };
    let max_delay = check.max_delay.map_or(-1.0, exact);
    // A calendar quota has edges where the others have their window, burst and tick.
    let [window, burst, tick] = match limit.algorithm() {
        Algorithm::Calendar => limit.edges(),
        _ => [limit.window(), limit.burst(), limit.tick()],
    };
    let of_limit = [limit.requests(), window, burst, tick, limit.capacity()].map(exact);
    for number in [exact(cost), max_delay].into_iter().chain(of_limit) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// The gate of a reservation in the form of a check: its window is how long a new one is known, or when the one to commit was made.
fn pack_gate(bytes: &mut Vec<u8>, gate: &Gate) {
    let (operation, cost, window) = match *gate {
        Gate::Reserve { estimate, ttl } => (RESERVE, estimate, ttl),
        Gate::Commit { actual, made } => (COMMIT, actual, made),
    };
    bytes.extend_from_slice(&[RESERVATION, operation, 0, 0, 0, 0]);
    for number in [exact(cost), -1.0, 0.0, exact(window), 0.0, 1.0, 0.0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Costs and delays saturate below 2^53; nothing else comes near.
fn exact(number: u64) -> f64 {
    number.min(MAX_EXACT - 1) as f64
}

/// One EVALSHA for all `requests`, which are at most 255. `now` of `None` is the server's own clock.
pub(super) fn call<'a>(
    requests: impl ExactSizeIterator<Item = &'a Encoded> + Clone,
    listings: &[Listing],
    now: Option<Micros>,
) -> Cmd {
    let keys: SmallVec<[(u64, &[u8]); FEW_KEYS]> =
        requests.clone().flat_map(Encoded::counters).map(|(counter, key)| (counter.hash, key)).collect();
    let bytes: usize = requests.clone().map(|request| request.bytes.len()).sum();
    let mut command = Cmd::with_capacity(4 + keys.len() + 2 * listings.len(), 64 + CALL_HEADER + bytes);
    command.arg("EVALSHA").arg(script::digest()).arg(keys.len() + listings.len());
    keys.iter().for_each(|(_, key)| {
        command.arg(*key);
    });
    let repeated = repeated(&keys);
    let mut distinct: SmallVec<[&[u8]; 16]> = SmallVec::new();
    let mut kinds: SmallVec<[u8; 64]> = SmallVec::new();
    for request in requests.clone() {
        let packed = request.packed();
        let known = distinct.iter().take(MAX_COMPARED).position(|other| *other == packed);
        let kind = known.unwrap_or_else(|| {
            distinct.push(packed);
            distinct.len() - 1
        });
        kinds.push(u8::try_from(kind + 1).expect("a batch is bounded"));
    }
    let short = |length: usize| u16::try_from(length).expect("a batch is bounded").to_le_bytes();
    let size =
        CALL_HEADER + repeated.len() * REPEATED_SIZE + distinct.iter().map(|packed| packed.len()).sum::<usize>() + kinds.len();
    let mut packed = Vec::with_capacity(size);
    packed.extend_from_slice(&exact(now.unwrap_or(0)).to_le_bytes());
    packed.extend([requests.len(), distinct.len(), repeated.len()].into_iter().flat_map(short));
    packed.extend(repeated.iter().flat_map(|&(place, first)| [place, first]).flat_map(u16::to_le_bytes));
    distinct.iter().for_each(|request| packed.extend_from_slice(request));
    packed.extend_from_slice(&kinds);
    for listing in listings {
        command.arg(&listing.index);
    }
    command.arg(packed);
    let has_memos = requests.clone().any(|request| request.memo.is_some());
    if has_memos || !listings.is_empty() {
        command.arg(packed_listings(listings));
    }
    for memo in requests.filter_map(|request| request.memo.as_deref()) {
        command.arg(memo);
    }
    command
}

/// The places, from 1 on, of keys that occur again, each with that of its first occurrence. A table of places with twice as much
/// room as there are keys.
fn repeated(keys: &[(u64, &[u8])]) -> SmallVec<[(u16, u16); 8]> {
    let mut repeated = SmallVec::new();
    let mask = (2 * keys.len()).next_power_of_two() - 1;
    let mut places: SmallVec<[u16; 2 * FEW_KEYS]> = SmallVec::from_elem(0, mask + 1);
    for (place, (hash, key)) in (1..).zip(keys) {
        let mut slot = usize::try_from(hash & 0xffff_ffff).expect("32 bits") & mask;
        loop {
            match places[slot] {
                0 => break places[slot] = place,
                first if keys[usize::from(first) - 1].1 == *key => break repeated.push((place, first)),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
    repeated
}

/// For each listing the place of its counter among the keys, and its life.
fn packed_listings(listings: &[Listing]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(listings.len() * LISTING_SIZE);
    for Listing { place, life, .. } in listings {
        packed.extend_from_slice(&place.to_le_bytes());
        packed.extend_from_slice(&life.to_le_bytes());
    }
    packed
}

/// How much of the reply is the answer to this request, in bytes.
pub(super) fn answer_length(request: &Encoded) -> usize {
    request.checks() * ANSWER_SIZE
}

/// Takes the answer to one request off the front of the reply. `None` when it is not a reply of our script.
pub(super) fn take_answer(reply: &mut &[u8], request: &Encoded) -> Option<Result<Outcomes, StoreError>> {
    let (answer, rest) = reply.split_at_checked(answer_length(request))?;
    *reply = rest;
    let mut outcomes = Outcomes::with_capacity(request.checks());
    for (answer, (_, key)) in answer.chunks_exact(ANSWER_SIZE).zip(request.counters()) {
        outcomes.push(match answer[0] {
            0 | 1 if is_sound(answer) => outcome(answer),
            2 => return Some(Err(StoreError::Foreign(Arc::from(key.escape_ascii().to_string())))),
            // Another key of this request is foreign.
            3 => continue,
            _ => return None,
        });
    }
    Some(Ok(outcomes))
}

/// Whether these can be numbers of the script: what is left, a time or [`NEVER`], and another time.
///
/// [`NEVER`]: RetryAfter::Never
fn is_sound(answer: &[u8]) -> bool {
    const MOST: f64 = 18_446_744_073_709_551_616.0;
    let [remaining, after, delay] = [1, 9, 17].map(|at| number(&answer[at..at + 8]));
    let is_time = |time: f64| (0.0..MAX_EXACT as f64).contains(&time);
    let is_never = answer[0] == 0 && after == -1.0;
    (0.0..=MOST).contains(&remaining) && (is_time(after) || is_never) && is_time(delay)
}

/// One that was decided.
fn outcome(answer: &[u8]) -> Outcome {
    let [remaining, after, delay] = [1, 9, 17].map(|at| number(&answer[at..at + 8]));
    // The largest double that Lua sends, 2^64, saturates to u64::MAX: nothing limits.
    match answer[0] {
        1 => Outcome::Allowed { remaining: remaining as u64, reset_after: after as u64, delay: delay as u64 },
        _ if after < 0.0 => {
            Outcome::Denied { remaining: remaining as u64, retry_after: RetryAfter::Never { reset_after: delay as u64 } }
        }
        _ => Outcome::Denied { remaining: remaining as u64, retry_after: RetryAfter::In(after as u64) },
    }
}

/// A reservation as the script keeps it (`lua/reservation.lua`); `None` for a value that is none.
pub(super) fn kept(state: &[u8]) -> Option<Kept> {
    let (header, rest) = state.split_at_checked(RESERVATION_HEADER)?;
    let numbers = [0, 8, 16, 24, 32].map(|at| number(&header[at..at + 8]));
    let is_whole = |number: f64| number.fract() == 0.0 && (0.0..MAX_EXACT as f64).contains(&number);
    // The first alone may be negative: no true number was said.
    if !numbers[1..].iter().all(|&number| is_whole(number)) || !(is_whole(numbers[0]) || numbers[0] == -1.0) {
        return None;
    }
    let [actual, estimate, made, expires, ttl] = numbers.map(|number| number as u64);
    let actual = (numbers[0] >= 0.0).then_some(actual);
    let count = usize::from(u16::from_le_bytes([header[40], header[41]]));
    let (outcomes, memo) = rest.split_at_checked(count * ANSWER_SIZE)?;
    let reservation = Reservation { estimate, actual, made, expires, ttl };
    Some(Kept { reservation, outcomes: outcomes.chunks_exact(ANSWER_SIZE).map(outcome).collect(), memo: memo.into() })
}

fn number(bytes: &[u8]) -> f64 {
    f64::from_le_bytes(bytes.try_into().expect("a double has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_occurs_again_is_known_whatever_the_hashes() {
        let keys: [&[u8]; 6] = [b"a", b"b", b"a", b"c", b"b", b"a"];
        for hashes in [[7; 3], [0, 1, 2], [u64::MAX, 15, 31]] {
            let keys: Vec<(u64, &[u8])> = keys.iter().map(|&key| (hashes[usize::from(key[0] - b'a')], key)).collect();
            assert_eq!(repeated(&keys).as_slice(), [(3, 1), (5, 2), (6, 1)]);
        }
        let many: Vec<[u8; 2]> = (0..1_000_u16).map(u16::to_le_bytes).collect();
        let mut many: Vec<(u64, &[u8])> = many.iter().map(|key| (u64::from(key[0]), &key[..])).collect();
        assert_eq!(repeated(&many).as_slice(), []);
        many.push(many[999]);
        assert_eq!(repeated(&many).as_slice(), [(1_001, 1_000)]);
        assert_eq!(repeated(&[]).as_slice(), []);
    }
}
