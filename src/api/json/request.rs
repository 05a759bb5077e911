//! Reads a `RateLimitRequest` from protobuf's JSON mapping in one pass and counts as it goes. A test compares it with
//! `prost-reflect`.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;

use super::values::{Number, Unit};
use crate::api::bounds::Count;
use crate::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use crate::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use crate::api::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use crate::spelling;

/// The longest reason that a caller is told, in bytes: it repeats what the caller sent.
const MAX_REASON: usize = 500;
/// How much of it may be the place, in bytes.
const MAX_PATH: usize = 200;

/// One message, of at most `max_entries`. An unknown field is an error: it is misspelt.
///
/// # Errors
/// The reason, with the field that it is about.
pub(super) fn request(body: &[u8], max_entries: usize) -> Result<RateLimitRequest, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let (mut place, mut count) = (Track::new(), Count::new(max_entries));
    let fields = RequestFields { message: RateLimitRequest::default(), count: &mut count };
    let read = Object(fields).deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut place));
    let read = read.map_err(|error| match place.path().to_string() {
        path if path == "." || error.is_eof() => error.to_string(),
        path => format!("{}: {error}", cut(path, MAX_PATH)),
    });
    let message = read.and_then(|fields| json.end().map(|()| fields.message).map_err(|error| error.to_string()));
    message.map_err(|reason| cut(reason, MAX_REASON))
}

fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A message that is filled field by field. A field that comes twice has its last value.
trait Fields {
    /// The names of its fields, as the protocol has them.
    const NAMES: &'static [&'static str];

    /// Reads the value of one field; false when there is no such field.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// Puts a value where it belongs; null is the same as no value.
fn put<T, V: Into<T>>(field: &mut T, value: Option<V>) {
    if let Some(value) = value {
        *field = value.into();
    }
}

struct RequestFields<'c> {
    message: RateLimitRequest,
    count: &'c mut Count,
}

impl Fields for RequestFields<'_> {
    const NAMES: &'static [&'static str] = &["domain", "descriptors", "hits_addend"];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        let message = &mut self.message;
        match name {
            "domain" => put(&mut message.domain, map.next_value::<Option<String>>()?),
            "descriptors" => put(&mut message.descriptors, map.next_value_seed(OrNull(Descriptors(self.count)))?),
            "hitsAddend" | "hits_addend" => put(&mut message.hits_addend, number::<u32, A>(map)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

struct DescriptorFields<'c> {
    message: RateLimitDescriptor,
    count: &'c mut Count,
}

impl Fields for DescriptorFields<'_> {
    const NAMES: &'static [&'static str] = &["entries", "limit", "hits_addend", "is_negative_hits"];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        let message = &mut self.message;
        match name {
            "entries" => put(&mut message.entries, map.next_value_seed(OrNull(Entries(self.count)))?),
            "limit" => {
                let read = map.next_value_seed(OrNull(Object(OverrideFields::default())))?;
                put(&mut message.limit, read.map(|fields| fields.0));
            }
            "hitsAddend" | "hits_addend" => put(&mut message.hits_addend, number::<u64, A>(map)?),
            "isNegativeHits" | "is_negative_hits" => put(&mut message.is_negative_hits, map.next_value::<Option<bool>>()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Default)]
struct EntryFields(Entry);

impl Fields for EntryFields {
    const NAMES: &'static [&'static str] = &["key", "value"];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "key" => put(&mut self.0.key, map.next_value::<Option<String>>()?),
            "value" => put(&mut self.0.value, map.next_value::<Option<String>>()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Default)]
struct OverrideFields(RateLimitOverride);

impl Fields for OverrideFields {
    const NAMES: &'static [&'static str] = &["requests_per_unit", "unit", "unit_multiplier"];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "requestsPerUnit" | "requests_per_unit" => put(&mut self.0.requests_per_unit, number::<u32, A>(map)?),
            "unit" => put(&mut self.0.unit, map.next_value::<Option<Unit>>()?.map(|unit| unit.0)),
            "unitMultiplier" | "unit_multiplier" => put(&mut self.0.unit_multiplier, number::<u32, A>(map)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn number<'de, T, A>(map: &mut A) -> Result<Option<T>, A::Error>
where
    Number<T>: Deserialize<'de>,
    A: MapAccess<'de>,
{
    Ok(map.next_value::<Option<Number<T>>>()?.map(|number| number.0))
}

/// A JSON object that is a message.
struct Object<F>(F);

impl<'de, F: Fields> DeserializeSeed<'de> for Object<F> {
    type Value = F;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<F, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: Fields> Visitor<'de> for Object<F> {
    type Value = F;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<F, A::Error> {
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            if !self.0.read(&name, &mut map)? {
                // As its value's mistake, so that the field is part of the place.
                match map.next_value_seed(NoSuchField(&name, F::NAMES))? {}
            }
        }
        Ok(self.0)
    }
}

/// A field that the message does not have, and those that it has.
struct NoSuchField<'n>(&'n str, &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for NoSuchField<'_> {
    type Value = Infallible;

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<Infallible, D::Error> {
        let names = || self.1.iter().copied();
        let (near, known) = (spelling::suggestion(self.0, names()), spelling::listed(names()));
        Err(D::Error::custom(format!("there is no such field{near} (fields: {known})")))
    }
}

/// `None` for null.
struct OrNull<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for OrNull<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for OrNull<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("option")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// The list of a message's descriptors.
struct Descriptors<'c>(&'c mut Count);

impl<'de> DeserializeSeed<'de> for Descriptors<'_> {
    type Value = Vec<RateLimitDescriptor>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Descriptors<'_> {
    type Value = Vec<RateLimitDescriptor>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut descriptors = Vec::new();
        loop {
            let fields = DescriptorFields { message: RateLimitDescriptor::default(), count: self.0 };
            let Some(fields) = list.next_element_seed(Object(fields))? else { return Ok(descriptors) };
            descriptors.push(fields.message);
            self.0.descriptor().map_err(A::Error::custom)?;
        }
    }
}

/// The list of a descriptor's entries.
struct Entries<'c>(&'c mut Count);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<Entry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(fields) = list.next_element_seed(Object(EntryFields::default()))? {
            entries.push(fields.0);
            self.0.entry().map_err(A::Error::custom)?;
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::{DescriptorPool, DynamicMessage};

    use super::*;
    use crate::api::DESCRIPTOR_SET;
    use crate::limiter::MAX_DESCRIPTORS;

    const MAX_ENTRIES: usize = 7;

    fn request(json: &str) -> Result<RateLimitRequest, String> {
        super::request(json.as_bytes(), MAX_ENTRIES)
    }

    /// As `prost-reflect` reads it, by the published messages.
    fn reflected(json: &str) -> Result<RateLimitRequest, String> {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptor set is compiled in");
        let message = pool.get_message_by_name("envoy.service.ratelimit.v3.RateLimitRequest").expect("it is there");
        let mut json = serde_json::Deserializer::from_str(json);
        let message = DynamicMessage::deserialize(message, &mut json).map_err(|error| error.to_string())?;
        json.end().map_err(|error| error.to_string())?;
        RateLimitRequest::decode(message.encode_to_vec().as_slice()).map_err(|error| error.to_string())
    }

    #[test]
    fn json_is_read_as_by_reflection() {
        let numbers = [
            "0",
            "7",
            "-0",
            "-1",
            "4294967295",
            "4294967296",
            "1e3",
            "1.0",
            "1.5",
            "1e300",
            "18446744073709551615",
            "18446744073709551616",
            "\"7\"",
            "\"-7\"",
            "\"\"",
            "\" 7\"",
            "null",
            "true",
            "{}",
            "[]",
            "[1]",
            "NaN",
        ];
        let others = [
            "null",
            "true",
            "\"x\"",
            "\"\"",
            "\"HOUR\"",
            "\"hour\"",
            "3",
            "\"3\"",
            "-1",
            "99",
            "2.0",
            "9999999999",
            "[]",
            "[{}]",
            "[null]",
            "{}",
            "[{\"entries\": []}]",
            "[{\"entries\": null}]",
            "[{\"entries\": [{}, {\"key\": null, \"value\": \"v\"}]}]",
        ];
        let fields = ["domain", "descriptors", "hitsAddend", "hits_addend", "hits-addend", "", "descriptor"];
        let of_descriptor = ["entries", "limit", "hitsAddend", "hits_addend", "isNegativeHits", "is_negative_hits", "hits"];
        let of_limit = ["requestsPerUnit", "requests_per_unit", "unit", "unitMultiplier", "unit_multiplier", "Unit"];
        let mut texts: Vec<String> = [
            "",
            "{",
            "{}",
            "{} ",
            " {}x",
            "[]",
            "null",
            "5",
            "{\"domain\": \"a\", \"domain\": \"b\"}",
            "{\"domain\": \"a\", \"domain\": null}",
            "{\"descriptors\": [{}], \"descriptors\": [{}, {}]}",
            "{\"domain\": \"\\ud800\"}",
            "{\"\\u0064omain\": \"\\u00e4\\n\"}",
        ]
        .map(str::to_owned)
        .to_vec();
        for value in numbers.iter().chain(&others) {
            texts.extend(fields.map(|name| format!("{{\"{name}\": {value}}}")));
            texts.extend(of_descriptor.map(|name| format!("{{\"descriptors\": [{{\"{name}\": {value}}}]}}")));
            texts.extend(of_limit.map(|name| format!("{{\"descriptors\": [{{\"limit\": {{\"{name}\": {value}}}}}]}}")));
            texts.extend(
                ["key", "value", "k"].map(|name| format!("{{\"descriptors\": [{{\"entries\": [{{\"{name}\": {value}}}]}}]}}")),
            );
        }
        for text in &texts {
            match (request(text), reflected(text)) {
                (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{text}"),
                (Err(_), Err(_)) => {}
                (ours, theirs) => panic!("{text}: {ours:?} but {theirs:?}"),
            }
        }
        assert!(texts.iter().filter(|text| request(text).is_ok()).count() > 100);
    }

    #[test]
    fn reading_stops_at_the_bounds() {
        let of = |descriptors: usize, entries: usize, end: &str| {
            let first = format!("{{\"entries\":[{}]}}", vec!["{}"; entries].join(","));
            let all = [vec![first], vec!["{}".to_owned(); descriptors - 1]].concat();
            format!("{{\"descriptors\":[{}]{end}", all.join(","))
        };
        let read = |descriptors, entries, end| request(&of(descriptors, entries, end)).map(|message| message.descriptors.len());
        assert_eq!(read(MAX_DESCRIPTORS, MAX_ENTRIES, "}"), Ok(MAX_DESCRIPTORS));
        // What comes after the bound is not looked at: it is no JSON.
        let reason = read(MAX_DESCRIPTORS + 1, 0, "!").unwrap_err();
        assert!(reason.starts_with("descriptors") && reason.contains("more than 1000 descriptors in one request"), "{reason}");
        let reason = read(1, MAX_ENTRIES + 1, "!").unwrap_err();
        assert!(reason.contains("more than 7 entries in one request") && reason.contains("--max-message-entries"), "{reason}");
        // A list that comes again replaces the one before it, and is read all the same.
        let again = "{\"descriptors\":[{\"entries\":[{},{},{}]}],\"descriptors\":[{\"entries\":[{},{},{},{},{}]}]}";
        assert!(request(again).unwrap_err().contains("more than 7 entries"));
    }

    #[test]
    fn a_reason_is_short_whatever_was_sent() {
        for json in [
            format!("{{\"{}\": 1}}", "ä".repeat(100_000)),
            format!("{{\"hitsAddend\": \"{}\"}}", "x".repeat(100_000)),
            "[".repeat(100_000),
        ] {
            let reason = request(&json).unwrap_err();
            assert!(reason.len() <= MAX_REASON + '…'.len_utf8(), "{} bytes", reason.len());
        }
        let long = format!("{{\"hitsAddend\": {}}}", "9".repeat(1 << 20));
        assert!(request(&long).unwrap_err().contains("out of range"));
    }

    #[test]
    fn json_is_the_message() {
        let json = r#"{"domain": "d", "hitsAddend": 2, "descriptors": [
            {"entries": [{"key": "k", "value": "v\u0000ä"}], "hits_addend": "0", "isNegativeHits": true,
             "limit": {"requestsPerUnit": 5, "unit": "HOUR", "unit_multiplier": 3}}]}"#;
        let request = request(json).unwrap();
        let descriptor = &request.descriptors[0];
        assert_eq!((&request.domain[..], request.hits_addend), (&b"d"[..], 2));
        assert_eq!((&descriptor.entries[0].key[..], &descriptor.entries[0].value[..]), (&b"k"[..], "v\0ä".as_bytes()));
        assert_eq!((descriptor.hits_addend, descriptor.is_negative_hits), (Some(0), true));
        let limit = descriptor.limit.unwrap();
        assert_eq!((limit.requests_per_unit, limit.unit, limit.unit_multiplier), (5, 3, Some(3)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            (r#"{"domian": "d"}"#, "domian: there is no such field; did you mean `domain`?"),
            (
                r#"{"descriptors": [{"entries": [{"kay": "k"}]}]}"#,
                "descriptors[0].entries[0].kay: there is no such field; did you mean `key`?",
            ),
            (r#"{"domain": 5}"#, "string"),
            (r#"{"domain": "d"} x"#, "trailing"),
            (r#"{"descriptors": [{"limit": {"unit": "FORTNIGHT"}}]}"#, "FORTNIGHT"),
            (
                r#"{"descriptors": [{"limit": {"unit": "MINUT"}}]}"#,
                "descriptors[0].limit.unit: unknown unit `MINUT`: SECOND, MINUTE,",
            ),
            (r#"{"descriptors": [{"limit": {"unit": "minute"}}]}"#, "did you mean `MINUTE`?"),
            (r#"{"hits_addend": -1}"#, "hits_addend: out of range"),
            (r#"{"descriptors": [{"entries": []}, {"hitsAddend": "x"}]}"#, "descriptors[1].hitsAddend: expected a whole number"),
            ("", "EOF"),
        ];
        for (json, expected) in cases {
            let reason = request(json).unwrap_err();
            assert!(reason.contains(expected), "{json}: {reason}");
        }
    }
}
