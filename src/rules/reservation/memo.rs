//! What is kept of a request that reserved, as bytes: the request, to find its limits as they are when it is committed, and the
//! checks that it came to, to find its counters when the rules have changed. Numbers are little-endian.
//!
//! The first number is the length of the request in its lower three bytes and the memo's version in the upper
//! one. Memos from before there was a version have 0 there, as no request is that long, so version 0 is what
//! they are.

use crate::limit::{Algorithm, Charge, Check, DAY, Limit, Mode, Operation, Period};
use crate::rules::key::Key;
use crate::rules::plan::Group;
use crate::rules::request::{Descriptor, Entry, LimitOverride, Request};

/// The most bytes that are kept of one request.
pub const MAX_MEMO: usize = 64 << 10;
/// The version of memos as they are written here. Raise it when the layout changes, or what a part of it
/// means.
const VERSION: u8 = 0;
/// Where in a memo its version is.
const VERSION_PLACE: usize = 3;

/// Why bytes are no memo that can be read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoError {
    /// A later version of weir wrote it.
    #[error("a newer weir made this reservation (its memo has version {0}, this weir reads up to {VERSION})")]
    Newer(u8),
    #[error("the reservation's key holds data that weir did not write")]
    Foreign,
}

/// What is kept of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Memo<'a> {
    pub request: Request<'a>,
    /// The request's checks, with the cost of one hit.
    pub group: Group,
    request_bytes: &'a [u8],
}

impl<'a> Memo<'a> {
    /// Of a group that was planned for one hit. `None` when it is more than [`MAX_MEMO`].
    pub fn encode(request: &Request<'_>, group: &Group) -> Option<Vec<u8>> {
        let mut writer = Writer(Vec::new());
        writer.bytes(&request_bytes(request));
        writer.0[VERSION_PLACE] = VERSION;
        writer.u32(group.checks.len());
        for (key, check) in group.keys.iter().zip(&group.checks) {
            writer.bytes(key.as_bytes());
            writer.check(check);
        }
        (writer.0.len() <= MAX_MEMO).then_some(writer.0)
    }

    /// # Errors
    /// [`MemoError`], by what can be done about it.
    pub fn decode(bytes: &'a [u8]) -> Result<Memo<'a>, MemoError> {
        match bytes.get(VERSION_PLACE) {
            Some(&version) if version > VERSION => Err(MemoError::Newer(version)),
            _ => Memo::parse(bytes).ok_or(MemoError::Foreign),
        }
    }

    /// A memo of this version.
    fn parse(bytes: &'a [u8]) -> Option<Memo<'a>> {
        let mut reader = Reader(bytes);
        let request_bytes = reader.bytes()?;
        let request = request(request_bytes)?;
        let mut group = Group::default();
        for _ in 0..reader.u32()? {
            group.keys.push(Key::from_bytes(reader.bytes()?.to_vec()));
            group.checks.push(reader.check()?);
        }
        reader.0.is_empty().then_some(Memo { request, group, request_bytes })
    }

    /// Whether it is the same that is asked.
    pub fn is_of(&self, request: &Request<'_>) -> bool {
        self.request_bytes == request_bytes(request)
    }
}

/// Domain, entries and overrides: what a reservation is told apart by, its estimate aside.
fn request_bytes(request: &Request<'_>) -> Vec<u8> {
    let mut writer = Writer(Vec::new());
    writer.bytes(request.domain);
    writer.u32(request.descriptors.len());
    for descriptor in &request.descriptors {
        writer.u32(descriptor.entries.len());
        for entry in &descriptor.entries {
            writer.bytes(entry.key);
            writer.bytes(entry.value);
        }
        let limit = descriptor.limit.as_ref();
        writer.0.push(u8::from(limit.is_some()));
        if let Some(LimitOverride { requests_per_unit, unit, unit_multiplier }) = limit {
            writer.number((*requests_per_unit).into());
            writer.number(unit.cast_unsigned().into());
            writer.number(unit_multiplier.map_or(u64::MAX, u64::from));
        }
    }
    writer.0
}

fn request(bytes: &[u8]) -> Option<Request<'_>> {
    let mut reader = Reader(bytes);
    let mut request = Request { domain: reader.bytes()?, ..Request::default() };
    for _ in 0..reader.u32()? {
        let mut descriptor = Descriptor::default();
        for _ in 0..reader.u32()? {
            descriptor.entries.push(Entry { key: reader.bytes()?, value: reader.bytes()? });
        }
        if reader.u8()? == 1 {
            descriptor.limit = Some(LimitOverride {
                requests_per_unit: u32::try_from(reader.number()?).ok()?,
                unit: u32::try_from(reader.number()?).ok()?.cast_signed(),
                unit_multiplier: u32::try_from(reader.number()?).ok(),
            });
        }
        request.descriptors.push(descriptor);
    }
    reader.0.is_empty().then_some(request)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u32(&mut self, length: usize) {
        self.0.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn check(&mut self, check: &Check) {
        let limit = &check.limit;
        self.0.extend_from_slice(&[limit.algorithm() as u8, check.operation as u8, check.mode as u8, check.charge as u8]);
        self.0.extend_from_slice(&check.owner.to_le_bytes());
        let numbers = [check.cost, limit.requests(), limit.window(), limit.burst(), limit.held_back()];
        numbers.into_iter().chain(limit.edges()).for_each(|number| self.number(number));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]: [u8; 1]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn check(&mut self) -> Option<Check> {
        let [algorithm, operation, mode, charge] = self.take()?;
        let owner = u16::from_le_bytes(self.take()?);
        let mut numbers = [0; 8];
        for number in &mut numbers {
            *number = self.number()?;
        }
        let [cost, requests, window, burst, held_back, edges @ ..] = numbers;
        let limit = match of_number(&Algorithm::ALL, algorithm, |algorithm| algorithm as u8)? {
            Algorithm::Penalty => Limit::penalty(window),
            Algorithm::Calendar => {
                let period = if window == DAY { Period::Day } else { Period::Month };
                Limit::quota(period, requests).map(|limit| limit.on(edges))
            }
            algorithm => Limit::new(algorithm, requests, window, algorithm.is_bucket().then_some(burst)),
        };
        Some(Check {
            limit: limit.ok()?.holding_back(held_back),
            operation: of_number(&[Operation::Take, Operation::Look, Operation::Refund, Operation::Report], operation, |one| {
                one as u8
            })?,
            cost,
            mode: of_number(&[Mode::Enforce, Mode::Shadow, Mode::Quota], mode, |one| one as u8)?,
            charge: of_number(&[Charge::Admitted, Charge::Always], charge, |one| one as u8)?,
            max_delay: None,
            owner,
        })
    }
}

fn of_number<T: Copy>(all: &[T], number: u8, number_of: impl Fn(T) -> u8) -> Option<T> {
    all.iter().copied().find(|&one| number_of(one) == number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{HOUR, MINUTE};

    fn checks() -> Vec<Check> {
        let check = |limit| Check {
            limit,
            operation: Operation::Take,
            cost: 3,
            mode: Mode::Quota,
            charge: Charge::Always,
            max_delay: None,
            owner: 7,
        };
        let of = |algorithm, burst| Limit::new(algorithm, 100, MINUTE, burst).unwrap();
        let mut checks: Vec<Check> = [
            of(Algorithm::FixedWindow, None),
            of(Algorithm::SlidingLog, None).scaled(1, 3),
            of(Algorithm::SlidingCounter, None).reserved(1, 10),
            of(Algorithm::TokenBucket, Some(7)).reserved(1, 2),
            of(Algorithm::LeakyBucket, None),
            Limit::penalty(HOUR).unwrap(),
            Limit::quota(Period::Month, 5).unwrap().on([1, 2, 3]),
        ]
        .map(check)
        .to_vec();
        checks[5].operation = Operation::Look;
        checks
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let entries = [Entry { key: b"k", value: b"\xff" }, Entry { key: b"", value: b"" }];
        let limit = Some(LimitOverride { requests_per_unit: 5, unit: -1, unit_multiplier: Some(3) });
        let descriptors = [
            Descriptor { entries: entries.into_iter().collect(), limit, ..Descriptor::default() },
            Descriptor { limit: limit.map(|limit| LimitOverride { unit_multiplier: None, ..limit }), ..Descriptor::default() },
            Descriptor::default(),
        ];
        let request = Request { domain: b"d", descriptors: descriptors.into_iter().collect(), hits_addend: 0 };
        let checks = checks();
        let keys = (0..checks.len()).map(|number| Key::from_bytes(format!("w1|d|{number}").into_bytes())).collect();
        let group = Group { keys, checks: checks.into(), refused: false };
        assert_found_again(&request, &group);
    }

    fn assert_found_again(request: &Request<'_>, group: &Group) {
        let bytes = Memo::encode(request, group).unwrap();
        let memo = Memo::decode(&bytes).unwrap();
        assert_eq!((format!("{:?}", memo.request), &memo.group), (format!("{request:?}"), group));
        assert!(memo.is_of(request) && !memo.is_of(&Request { domain: b"e", ..request.clone() }));
        for length in 0..bytes.len() {
            assert_eq!(Memo::decode(&bytes[..length]), Err(MemoError::Foreign), "cut at {length}");
        }
        assert_eq!(Memo::decode(&[&bytes[..], b"x"].concat()), Err(MemoError::Foreign));
    }

    #[test]
    fn a_newer_memo_is_known_as_one_and_an_older_one_is_read() {
        // As weir wrote it before memos had a version: `length of the request, request, checks`.
        let request = Request { domain: b"d", ..Request::default() };
        let of_old = [&9_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), b"d", &[0; 4], &0_u32.to_le_bytes()].concat();
        assert_eq!(Memo::encode(&request, &Group::default()).as_ref(), Some(&of_old));
        assert!(Memo::decode(&of_old).unwrap().is_of(&request));
        let newer = [&[1, 2, 3, VERSION + 1][..], b"whatever it says"].concat();
        assert_eq!(Memo::decode(&newer), Err(MemoError::Newer(VERSION + 1)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = vec![b'x'; MAX_MEMO];
        let entries = [Entry { key: b"k", value: &long }].into_iter().collect();
        let descriptors = [Descriptor { entries, ..Descriptor::default() }].into_iter().collect();
        assert_eq!(Memo::encode(&Request { domain: b"d", descriptors, hits_addend: 0 }, &Group::default()), None);
    }
}
