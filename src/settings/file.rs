//! The settings file: YAML, a key and a single value on each line, with the place of each.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::config::syntax_error;

/// One setting, as it was written.
pub(super) struct Entry {
    /// From 1.
    pub(super) line: u64,
    pub(super) key: String,
    /// As it would stand on the command line; `None` for null.
    pub(super) value: Option<String>,
}

/// What a file cannot say.
pub(super) struct Mistake {
    /// From 1; 0 where the file as a whole is meant.
    pub(super) line: u64,
    /// The setting, where there is one.
    pub(super) key: Option<String>,
    pub(super) reason: String,
}

/// What is written, and what is wrong with the rest.
pub(super) fn read(text: &str) -> (Vec<Entry>, Vec<Mistake>) {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let documents = match serde_saphyr::from_multiple_with_options::<Spanned<Document>>(text, options) {
        Ok(documents) => documents,
        Err(error) => {
            let error = syntax_error(&error);
            return (Vec::new(), vec![Mistake { line: error.at.line.into(), key: None, reason: error.message }]);
        }
    };
    let (mut entries, mut mistakes) = (Vec::new(), Vec::new());
    for (place, document) in documents.into_iter().enumerate() {
        let whole = |reason: &str| Mistake { line: document.referenced.line(), key: None, reason: reason.to_owned() };
        match document.value {
            Document::Settings(written) if place == 0 => take(written, &mut entries, &mut mistakes),
            Document::Settings(_) => mistakes.push(whole("a settings file has one document")),
            Document::Other => mistakes.push(whole("a settings file has a key and its value on each line, such as `threads: 4`")),
        }
    }
    (entries, mistakes)
}

fn take(written: Vec<(Spanned<Value>, Spanned<Value>)>, entries: &mut Vec<Entry>, mistakes: &mut Vec<Mistake>) {
    for (key, value) in written {
        let line = key.referenced.line();
        let Value::Single(key) = key.value else {
            mistakes.push(Mistake { line, key: None, reason: "a key is the name of a setting".to_owned() });
            continue;
        };
        let value = match value.value {
            Value::Single(text) => Some(text),
            Value::Null => None,
            Value::Several(what) => {
                let reason = format!("{what} is not allowed; use a single value");
                mistakes.push(Mistake { line, key: Some(key), reason });
                continue;
            }
        };
        if entries.iter().any(|entry| entry.key == key) {
            mistakes.push(Mistake { line, key: Some(key), reason: "it stands here twice; keep one of the two".to_owned() });
            continue;
        }
        entries.push(Entry { line, key, value });
    }
}

enum Document {
    Settings(Vec<(Spanned<Value>, Spanned<Value>)>),
    Other,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Document, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Document::Settings(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Document, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Document::Other)
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document::Settings(Vec::new()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Document, E> {
        Ok(Document::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Document, E> {
        Ok(Document::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Document, E> {
        Ok(Document::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Document, E> {
        Ok(Document::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Document, E> {
        Ok(Document::Other)
    }
}

/// A key or a value: whatever stands there.
enum Value {
    Single(String),
    Null,
    Several(&'static str),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a single value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Single(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Single(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Single(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Single(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Single(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Several("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Several("a map"))
    }
}
