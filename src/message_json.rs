//! Protobuf messages read from JSON. Every mistake names its field by its path; an unknown field, the one that was probably meant.

use std::fmt;

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::Track;

use crate::spelling;

/// The message that a JSON text is.
///
/// # Errors
/// For what is not JSON, and for fields that the message does not have or that hold something else.
pub fn read(message: &MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, String> {
    let mut text = serde_json::Deserializer::from_slice(json);
    let mut place = Track::new();
    let read = DynamicMessage::deserialize(message.clone(), serde_path_to_error::Deserializer::new(&mut text, &mut place));
    match read {
        Ok(read) => text.end().map(|()| read).map_err(|error| error.to_string()),
        Err(error) if error.is_syntax() || error.is_eof() => Err(format!("the body is not JSON: {error}")),
        Err(error) => {
            let unknown = serde_json::from_slice(json).ok().and_then(|value| unknown_field(message, &value, ""));
            Err(unknown.unwrap_or_else(|| at(place, &error)))
        }
    }
}

/// The message that an object is.
///
/// # Errors
/// As [`read`], and for a field that is given by both of its names.
pub fn of_object(message: &MessageDescriptor, object: &Value) -> Result<DynamicMessage, String> {
    if let Some(mistake) = unknown_field(message, object, "") {
        return Err(mistake);
    }
    let mut place = Track::new();
    let read = DynamicMessage::deserialize(message.clone(), serde_path_to_error::Deserializer::new(object, &mut place));
    read.map_err(|error| at(place, &error))
}

/// The object that a JSON text is.
///
/// # Errors
/// For anything else, and for an object at any depth that has a field twice.
pub fn object(json: &[u8]) -> Result<Map<String, Value>, String> {
    let mut text = serde_json::Deserializer::from_slice(json);
    let mut place = Track::new();
    let read = Once.deserialize(serde_path_to_error::Deserializer::new(&mut text, &mut place));
    match read.and_then(|value| text.end().map(|()| value)) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("the body is not a JSON object".to_owned()),
        Err(error) if error.is_data() => Err(at(place, &error)),
        Err(error) => Err(format!("the body is not JSON: {error}")),
    }
}

/// The message that one record of a list is: a mistake names its field below `place`, such as `subjects[3]`.
///
/// # Errors
/// As [`object`] and [`of_object`].
pub fn record(message: &MessageDescriptor, json: &[u8], place: &str) -> Result<DynamicMessage, String> {
    let mut text = serde_json::Deserializer::from_slice(json);
    let mut track = Track::new();
    let read = Once.deserialize(serde_path_to_error::Deserializer::new(&mut text, &mut track));
    let value = match read.and_then(|value| text.end().map(|()| value)) {
        Ok(value) => value,
        // Line and column count from the record's first brace.
        Err(error) if error.line() > 0 => return Err(below(place, track, &format!("{error} of the record"))),
        Err(error) => return Err(below(place, track, &error)),
    };
    if let Some(mistake) = unknown_field(message, &value, &format!("{place}.")) {
        return Err(mistake);
    }
    let mut track = Track::new();
    let read = DynamicMessage::deserialize(message.clone(), serde_path_to_error::Deserializer::new(&value, &mut track));
    read.map_err(|error| below(place, track, &error))
}

fn below(place: &str, track: Track, error: &impl fmt::Display) -> String {
    match track.path().to_string() {
        path if path == "." => format!("{place}: {error}"),
        path => format!("{place}.{path}: {error}"),
    }
}

fn at(place: Track, error: &impl fmt::Display) -> String {
    match place.path().to_string() {
        path if path == "." => error.to_string(),
        path => format!("{path}: {error}"),
    }
}

/// The first field that the message, or one below it, does not have, or has twice.
fn unknown_field(message: &MessageDescriptor, value: &Value, path: &str) -> Option<String> {
    let Value::Object(fields) = value else { return None };
    if message.full_name().starts_with("google.protobuf.") {
        return None;
    }
    let mut seen: Vec<(u32, &str)> = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let Some(field) = message.fields().find(|field| field.name() == name || field.json_name() == name) else {
            let known: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
            let near = spelling::suggestion(name, known.iter().map(String::as_str));
            let known = spelling::listed(known.iter().map(String::as_str));
            return Some(format!("{path}{name}: there is no such field{near} (fields: {known})"));
        };
        if let Some((_, other)) = seen.iter().find(|(number, _)| *number == field.number()) {
            return Some(format!("{path}{name}: given twice, also as `{other}`"));
        }
        seen.push((field.number(), name));
        if let (true, Value::Object(_)) = (field.is_list(), value) {
            return Some(format!("{path}{name}: a list is expected: write it in brackets, `[{{…}}]`"));
        }
        let Kind::Message(below) = field.kind() else { continue };
        let found = match value {
            Value::Array(items) => {
                items.iter().enumerate().find_map(|(place, item)| unknown_field(&below, item, &format!("{path}{name}[{place}].")))
            }
            value => unknown_field(&below, value, &format!("{path}{name}.")),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Reads a value whose objects have each field once.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            if fields.contains_key(&name) {
                return Err(de::Error::custom(format!("`{name}` is given twice")));
            }
            let value = access.next_value_seed(Once)?;
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Once)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_a_record_are_named_below_its_place() {
        let pool = prost_reflect::DescriptorPool::decode(crate::admin::DESCRIPTOR_SET).unwrap();
        let subject = pool.get_message_by_name("weir.admin.v1.Subject").unwrap();
        for (json, expected) in [
            (r#"{"teir": "pro"}"#, "subjects[3].teir: there is no such field; did you mean `tier`?"),
            (r#"{"limits": [{"mothly": 1}]}"#, "subjects[3].limits[0].mothly: there is no such field"),
            (r#"{"limits": [{"daily": "x"}]}"#, "subjects[3].limits[0].daily: "),
            (r#"{"tier": "a", "tier": "b"}"#, "subjects[3]: `tier` is given twice at line 1 column 20 of the record"),
            (r#"{"tier" "a"}"#, "subjects[3]: expected `:` at line 1 column 9 of the record"),
        ] {
            let reason = record(&subject, json.as_bytes(), "subjects[3]").unwrap_err();
            assert!(reason.starts_with(expected), "{json}: {reason}");
        }
        assert!(record(&subject, br#"{"domain": "api"}"#, "subjects[3]").is_ok());
    }

    #[test]
    fn a_field_that_is_given_twice_is_an_error_at_any_depth() {
        for (json, expected) in [
            (r#"{"a": 1, "a": 2}"#, "`a` is given twice at line 1"),
            (r#"{"b": [{"a": 1, "a": 1}]}"#, "b[0]"),
            ("[1]", "the body is not a JSON object"),
            (r#"{"a": 1} x"#, "the body is not JSON: trailing"),
            ("{", "the body is not JSON: EOF"),
            (r#"{"a": [1"#, "the body is not JSON: EOF"),
        ] {
            let reason = object(json.as_bytes()).unwrap_err();
            assert!(reason.contains(expected), "{json}: {reason}");
        }
        let whole = r#"{"a": [1, -1, 1.5, "x", null, true], "b": {"a": {}}}"#;
        let expected: Map<String, Value> = serde_json::from_str(whole).unwrap();
        assert_eq!(object(whole.as_bytes()), Ok(expected));
    }
}
