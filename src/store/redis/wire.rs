//! Requests and replies of the script as bytes: packed little-endian numbers, doubles wherever Lua counts (whole and below 2^53,
//! so exact). `lua/decide.lua` reads and writes the same layout.

use std::collections::HashMap;
use std::sync::Arc;

use deadpool_redis::redis::Cmd;
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::script;
use crate::limit::{Algorithm, Check, MAX_EXACT, Micros, Operation, Outcome, RetryAfter};
use crate::store::{Group, Outcomes, StoreError};

/// A check: algorithm, operation, mode, charge, owner; cost, max_delay, requests, window, burst, tick.
const CHECK_SIZE: usize = 4 + 2 + 6 * 8;
/// The number of checks, and whether the request is refused.
const GROUP_HEADER: usize = 2 + 1;
/// The time; how many requests, distinct requests, and keys that occur again.
const CALL_HEADER: usize = 8 + 3 * 2;
/// A place of a key that occurs again, and its first place.
const REPEATED_SIZE: usize = 2 * 2;
/// Most requests of a batch are alike, and Redis unpacks only those that differ: by more than so many, they may as well.
const MAX_COMPARED: usize = 8;
/// A check's part in the reply: its kind; remaining, after, delay.
const ANSWER_SIZE: usize = 1 + 3 * 8;
/// A listing: its counter's place, its life.
const LISTING_SIZE: usize = 4 + 8;
/// The most checks of one request: bounds how long the script may hold Redis up.
pub(super) const MAX_CHECKS: usize = 16_384;

/// One request, ready to be sent: nothing of it belongs to its caller any more.
pub(super) struct Encoded {
    /// The packed checks, then the keys.
    bytes: Vec<u8>,
    key_lengths: SmallVec<[u32; 4]>,
    /// Counters to put into their subjects' indexes; mostly none.
    listings: Vec<Listing>,
}

/// A counter to put into the index of its subject, if the counter is there when the call is done.
pub(super) struct Listing {
    /// Which check's counter.
    pub(super) check: usize,
    pub(super) index: Vec<u8>,
    /// How long it stays listed, in ms.
    pub(super) life: f64,
    /// What it is known by when it was listed.
    pub(super) mark: u64,
}

impl Encoded {
    /// `None` for more than [`MAX_CHECKS`].
    pub(super) fn new(group: &Group, listings: Vec<Listing>) -> Option<Encoded> {
        let count = u16::try_from(group.checks.len()).ok().filter(|&count| usize::from(count) <= MAX_CHECKS)?;
        let keys: usize = group.keys.iter().map(|key| key.as_bytes().len()).sum();
        let mut bytes = Vec::with_capacity(GROUP_HEADER + group.checks.len() * CHECK_SIZE + keys);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.push(u8::from(group.refused));
        for check in &group.checks {
            pack(&mut bytes, check);
        }
        for key in &group.keys {
            bytes.extend_from_slice(key.as_bytes());
        }
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Some(Encoded { bytes, key_lengths: group.keys.iter().map(|key| length(key.as_bytes())).collect(), listings })
    }

    pub(super) fn listings(&self) -> &[Listing] {
        &self.listings
    }

    /// How many checks, and so keys, it has.
    pub(super) fn checks(&self) -> usize {
        self.key_lengths.len()
    }

    fn packed(&self) -> &[u8] {
        &self.bytes[..GROUP_HEADER + self.checks() * CHECK_SIZE]
    }

    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[self.packed().len()..];
        self.key_lengths.iter().map(move |&length| {
            let (key, others) = rest.split_at(length as usize);
            rest = others;
            key
        })
    }
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
    for number in [exact(cost), max_delay, exact(limit.requests()), exact(window), exact(burst), exact(tick)] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Costs and delays saturate below 2^53; nothing else comes near.
fn exact(number: u64) -> f64 {
    number.min(MAX_EXACT - 1) as f64
}

/// One EVALSHA for all `requests`, which are at most 255. `now` of `None` is the server's own clock.
pub(super) fn call<'a>(requests: impl ExactSizeIterator<Item = &'a Encoded> + Clone, now: Option<Micros>) -> Cmd {
    let checks = requests.clone().map(Encoded::checks).sum::<usize>();
    let bytes: usize = requests.clone().map(|request| request.bytes.len()).sum();
    let listings = requests.clone().map(|request| request.listings.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(4 + checks + 2 * listings, 64 + CALL_HEADER + bytes);
    command.arg("EVALSHA").arg(script::digest()).arg(checks + listings);
    let mut places: HashMap<&[u8], u16, RandomState> = HashMap::with_capacity_and_hasher(checks, RandomState::default());
    let mut repeated: SmallVec<[(u16, u16); 8]> = SmallVec::new();
    let mut distinct: SmallVec<[&[u8]; 16]> = SmallVec::new();
    let mut kinds: SmallVec<[u8; 64]> = SmallVec::new();
    for (key, place) in requests.clone().flat_map(Encoded::keys).zip(1..) {
        command.arg(key);
        let first = *places.entry(key).or_insert(place);
        if first != place {
            repeated.push((place, first));
        }
    }
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
    for listing in requests.clone().flat_map(|request| &request.listings) {
        command.arg(&listing.index);
    }
    command.arg(packed);
    if listings > 0 {
        command.arg(listed(requests, listings));
    }
    command
}

/// For each listing the place of its counter among the keys, and its life.
fn listed<'a>(requests: impl Iterator<Item = &'a Encoded>, listings: usize) -> Vec<u8> {
    let mut packed = Vec::with_capacity(listings * LISTING_SIZE);
    let mut first = 1;
    for request in requests {
        for Listing { check, life, .. } in &request.listings {
            packed.extend_from_slice(&u32::try_from(first + check).expect("a batch is bounded").to_le_bytes());
            packed.extend_from_slice(&life.to_le_bytes());
        }
        first += request.checks();
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
    for (answer, key) in answer.chunks_exact(ANSWER_SIZE).zip(request.keys()) {
        let [remaining, after, delay] = [1, 9, 17].map(|at| number(&answer[at..at + 8]));
        outcomes.push(match answer[0] {
            // The largest double that Lua sends, 2^64, saturates to u64::MAX: nothing limits.
            1 => Outcome::Allowed { remaining: remaining as u64, reset_after: after as u64, delay: delay as u64 },
            0 if after < 0.0 => Outcome::Denied { remaining: remaining as u64, retry_after: RetryAfter::Never },
            0 => Outcome::Denied { remaining: remaining as u64, retry_after: RetryAfter::In(after as u64) },
            2 => return Some(Err(StoreError::Foreign(Arc::from(key.escape_ascii().to_string())))),
            // Another key of this request is foreign.
            3 => continue,
            _ => return None,
        });
    }
    Some(Ok(outcomes))
}

fn number(bytes: &[u8]) -> f64 {
    f64::from_le_bytes(bytes.try_into().expect("a double has eight bytes"))
}
