//! The settings file: YAML, a key and a single value on each line, with the place of each.

use serde_saphyr::options::DuplicateKeyPolicy;

use crate::config::raw::{self, Kind, Node, Scalar, Value};

/// One setting, as it was written.
pub(super) struct Entry {
    /// From 1.
    pub(super) line: u32,
    pub(super) key: String,
    /// As it would stand on the command line; `None` for null.
    pub(super) value: Option<String>,
}

/// What a file cannot say.
pub(super) struct Mistake {
    /// From 1; 0 where the file as a whole is meant.
    pub(super) line: u32,
    /// The setting, where there is one.
    pub(super) key: Option<String>,
    pub(super) reason: String,
}

/// What is written, and what is wrong with the rest.
pub(super) fn read(text: &str) -> (Vec<Entry>, Vec<Mistake>) {
    let documents = match raw::read_with(text, serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins }) {
        Ok(documents) => documents,
        Err(error) => return (Vec::new(), vec![Mistake { line: error.at.line, key: None, reason: error.message }]),
    };
    let (mut entries, mut mistakes) = (Vec::new(), Vec::new());
    for (place, document) in documents.into_iter().enumerate() {
        let (line, is_null) = (document.at.line, document.is_null());
        let whole = |reason: &str| Mistake { line, key: None, reason: reason.to_owned() };
        let written = match document.value {
            Value::Map(written) => written,
            _ if is_null => Vec::new(),
            _ => {
                mistakes.push(whole("a settings file has a key and its value on each line, such as `threads: 4`"));
                continue;
            }
        };
        if place > 0 {
            mistakes.push(whole("a settings file has one document"));
            continue;
        }
        for (key, value) in written {
            match entry(key, value) {
                Ok(Entry { line, key, .. }) if entries.iter().any(|known: &Entry| known.key == key) => {
                    mistakes.push(Mistake { line, key: Some(key), reason: "it stands here twice; keep one of the two".to_owned() });
                }
                Ok(entry) => entries.push(entry),
                Err(mistake) => mistakes.push(mistake),
            }
        }
    }
    (entries, mistakes)
}

fn entry(key: Node<'_>, value: Node<'_>) -> Result<Entry, Mistake> {
    let line = key.at.line;
    let name = match key.value {
        Value::Scalar(scalar) => single(scalar),
        _ => None,
    };
    let key = name.ok_or_else(|| Mistake { line, key: None, reason: "a key is the name of a setting".to_owned() })?;
    let several = match value.value {
        Value::Scalar(scalar) => return Ok(Entry { line, key, value: single(scalar) }),
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    };
    Err(Mistake { line, key: Some(key), reason: format!("{several} is not allowed; use a single value") })
}

/// What is meant, as it would stand on the command line: `0x10` is 16. `None` for null.
fn single(scalar: Scalar<'_>) -> Option<String> {
    let text = scalar.text.into_owned();
    match scalar.kind {
        Kind::Null => None,
        Kind::Bool(value) => Some(value.to_string()),
        Kind::Integer => Some(serde_saphyr::from_str::<i128>(&text).map_or(text, |number| number.to_string())),
        Kind::Float => Some(serde_saphyr::from_str::<f64>(&text).map_or(text, |number| number.to_string())),
        Kind::Plain | Kind::Quoted => Some(text),
    }
}
