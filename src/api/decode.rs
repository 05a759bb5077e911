//! Reads a `RateLimitRequest` where it lies: a request that borrows from the message, with nothing copied. Takes and refuses
//! what the generated code takes and refuses, which a test holds it to.

use super::bounds::{Count, TooMany};
use crate::rules::request::{Descriptor, Entry, LimitOverride, Request};

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("a field is longer than what it stands in")]
    Truncated,
    #[error("a number of more than 64 bits")]
    Varint,
    #[error("field {field} has another type than the protocol gives it")]
    Type { field: u64 },
    #[error("no field has such a key: {0}")]
    Key(u64),
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

type Result<T> = std::result::Result<T, DecodeError>;

/// One `RateLimitRequest`, of at most so many entries.
pub(super) fn request(message: &[u8], max_entries: usize) -> Result<Request<'_>> {
    let mut count = Count::new(max_entries);
    let mut request = Request::default();
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => request.domain = value.bytes(field)?,
            2 => {
                count.descriptor()?;
                request.descriptors.push(descriptor(value.bytes(field)?, &mut count)?);
            }
            3 => request.hits_addend = value.u32(field)?,
            _ => {}
        }
    }
    Ok(request)
}

/// Counts the descriptors and entries of a message that generated code decodes. Its field 2 holds its descriptors, as in
/// `ReserveRequest`.
///
/// # Errors
/// For more than there may be. Also for a malformed field: the count ends there, and a decoder might go on.
pub(super) fn count(message: &[u8], max_entries: usize) -> Result<()> {
    let mut count = Count::new(max_entries);
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        if field == 2 {
            count.descriptor()?;
            let mut fields = Fields(value.bytes(field)?);
            while let Some((field, _)) = fields.next()? {
                if field == 1 {
                    count.entry()?;
                }
            }
        }
    }
    Ok(())
}

fn descriptor<'a>(message: &'a [u8], count: &mut Count) -> Result<Descriptor<'a>> {
    let mut descriptor = Descriptor::default();
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => {
                count.entry()?;
                descriptor.entries.push(entry(value.bytes(field)?)?);
            }
            2 => {
                let known =
                    descriptor.limit.take().unwrap_or(LimitOverride { requests_per_unit: 0, unit: 0, unit_multiplier: None });
                descriptor.limit = Some(limit(value.bytes(field)?, known)?);
            }
            3 => descriptor.hits = Some(wrapped(value.bytes(field)?, descriptor.hits)?),
            4 => descriptor.is_negative_hits = value.varint(field)? != 0,
            _ => {}
        }
    }
    Ok(descriptor)
}

fn entry(message: &[u8]) -> Result<Entry<'_>> {
    let mut entry = Entry { key: b"", value: b"" };
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => entry.key = value.bytes(field)?,
            2 => entry.value = value.bytes(field)?,
            _ => {}
        }
    }
    Ok(entry)
}

/// A message that comes in parts adds to what is known.
fn limit(message: &[u8], mut known: LimitOverride) -> Result<LimitOverride> {
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => known.requests_per_unit = value.u32(field)?,
            2 => known.unit = value.u32(field)?.cast_signed(),
            3 => {
                let multiplier = wrapped(value.bytes(field)?, known.unit_multiplier.map(u64::from))?;
                known.unit_multiplier = Some(low(multiplier));
            }
            _ => {}
        }
    }
    Ok(known)
}

/// `google.protobuf.UInt32Value` and `UInt64Value`.
fn wrapped(message: &[u8], known: Option<u64>) -> Result<u64> {
    let mut wrapped = known.unwrap_or(0);
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next()? {
        if field == 1 {
            wrapped = value.varint(field)?;
        }
    }
    Ok(wrapped)
}

/// A 32-bit field keeps the low bits of what it is sent.
#[allow(clippy::cast_possible_truncation)] // that is what the protocol asks for
fn low(number: u64) -> u32 {
    number as u32
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes; none of our fields.
    Fixed,
}

impl<'a> Value<'a> {
    fn bytes(self, field: u64) -> Result<&'a [u8]> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(DecodeError::Type { field }) }
    }

    fn varint(self, field: u64) -> Result<u64> {
        if let Value::Varint(number) = self { Ok(number) } else { Err(DecodeError::Type { field }) }
    }

    fn u32(self, field: u64) -> Result<u32> {
        self.varint(field).map(low)
    }
}

/// The rest of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and value.
    #[inline]
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = key >> 3;
        if field == 0 || key > u64::from(u32::MAX) {
            return Err(DecodeError::Key(key));
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            // Groups went out of use before this protocol began.
            _ => return Err(DecodeError::Key(key)),
        };
        Ok(Some((field, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64> {
        match self.0.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.0 = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(DecodeError::Varint);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::Varint)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bounds::MessageBounds;
    use super::super::convert;
    use super::super::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
    use super::super::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
    use super::super::proto::envoy::service::ratelimit::v3::RateLimitRequest;
    use super::*;
    use crate::limiter::MAX_DESCRIPTORS;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use prost::Message;

    prop_compose! {
        fn limits()(requests_per_unit: u32, unit in -1..9, unit_multiplier in option::of(any::<u32>())) -> RateLimitOverride {
            RateLimitOverride { requests_per_unit, unit, unit_multiplier }
        }
    }

    prop_compose! {
        fn entries()(key in vec(any::<u8>(), 0..5), value in vec(any::<u8>(), 0..200)) -> Entry {
            Entry { key, value }
        }
    }

    prop_compose! {
        fn descriptors()(
            entries in vec(entries(), 0..6),
            limit in option::of(limits()),
            hits_addend in option::of(any::<u64>()),
            is_negative_hits: bool,
        ) -> RateLimitDescriptor {
            RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits }
        }
    }

    prop_compose! {
        fn messages()(
            domain in vec(any::<u8>(), 0..20),
            descriptors in vec(descriptors(), 0..4),
            hits_addend: u32,
        ) -> RateLimitRequest {
            RateLimitRequest { domain, descriptors, hits_addend }
        }
    }

    fn request(bytes: &[u8]) -> Result<Request<'_>> {
        super::request(bytes, MessageBounds::default().entries)
    }

    /// Read here as by the generated code, or refused by both.
    fn assert_alike(bytes: &[u8]) {
        let theirs = RateLimitRequest::decode(bytes);
        match (request(bytes), &theirs) {
            (Ok(ours), Ok(theirs)) => assert_eq!(ours, convert::request(theirs), "{bytes:x?}"),
            (Err(_), Err(_)) => {}
            // Skipping a group is the one thing left out.
            (Err(DecodeError::Key(key)), Ok(_)) if key & 7 == 3 => {}
            (ours, theirs) => panic!("{ours:?} but {theirs:?}: {bytes:x?}"),
        }
    }

    proptest! {
        #[test]
        fn messages_are_read_as_the_generated_code_reads_them(message in messages()) {
            let bytes = message.encode_to_vec();
            prop_assert_eq!(request(&bytes), Ok(convert::request(&message)));
        }

        #[test]
        fn damaged_messages_are_read_or_refused_alike(
            message in messages(),
            more in messages(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            length in any::<prop::sample::Index>(),
        ) {
            // Two messages in a row are one message that comes in parts.
            let mut bytes = [message.encode_to_vec(), more.encode_to_vec()].concat();
            for (place, byte) in damage.iter().filter(|_| !message.encode_to_vec().is_empty()) {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            assert_alike(&bytes);
            assert_alike(&bytes[..length.index(bytes.len() + 1)]);
        }

        #[test]
        fn any_bytes_are_read_or_refused_alike(bytes in vec(0_u8..40, 0..40)) {
            assert_alike(&bytes);
        }
    }

    #[test]
    fn numbers_have_their_bounds() {
        let varint = |bytes: &[u8]| Fields(bytes).varint();
        assert_eq!(varint(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), Ok(u64::MAX));
        assert_eq!(varint(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), Err(DecodeError::Varint));
        assert_eq!(varint(b"\xff"), Err(DecodeError::Truncated));
        assert_eq!(request(b"\x0a\x05abc"), Err(DecodeError::Truncated));
        assert_eq!(request(b"\x08\x01"), Err(DecodeError::Type { field: 1 }));
        assert_eq!(request(b"\x00"), Err(DecodeError::Key(0)));
    }

    /// A message of so many descriptors, the first with so many empty entries.
    fn of(descriptors: usize, entries: usize) -> Vec<u8> {
        let first = RateLimitDescriptor { entries: vec![Entry::default(); entries], ..RateLimitDescriptor::default() };
        let rest = vec![RateLimitDescriptor::default(); descriptors - 1];
        let descriptors = [vec![first], rest].concat();
        RateLimitRequest { descriptors, ..RateLimitRequest::default() }.encode_to_vec()
    }

    #[test]
    fn reading_stops_at_the_bounds() {
        const MAX_ENTRIES: usize = 7;
        let (descriptors, entries) = (Some(TooMany::Descriptors), Some(TooMany::Entries(MAX_ENTRIES)));
        let (fits, one_more) = (MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1);
        for (message, expected) in [
            (of(fits, MAX_ENTRIES), None),
            (of(one_more, MAX_ENTRIES), descriptors),
            (of(fits, MAX_ENTRIES + 1), entries),
            // What comes after the bound is not looked at: it is no message.
            ([of(one_more, 0), b"\xff".to_vec()].concat(), descriptors),
            ([of(1, MAX_ENTRIES + 1), b"\xff".to_vec()].concat(), entries),
        ] {
            let expected = expected.map(DecodeError::TooMany);
            assert_eq!(super::request(&message, MAX_ENTRIES).err(), expected);
            assert_eq!(count(&message, MAX_ENTRIES).err(), expected);
        }
        // Over all descriptors, not for each.
        let three_each = RateLimitDescriptor { entries: vec![Entry::default(); 3], ..RateLimitDescriptor::default() };
        let message = RateLimitRequest { descriptors: vec![three_each; 3], ..RateLimitRequest::default() }.encode_to_vec();
        assert_eq!(super::request(&message, MAX_ENTRIES).err(), entries.map(DecodeError::TooMany));
        assert_eq!(count(&message, 9), Ok(()));
        assert_eq!(count(b"\x13", 9), Err(DecodeError::Key(0x13)), "a group would hide what comes after it");
    }
}
