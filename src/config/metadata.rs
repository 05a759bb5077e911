//! A rule's `metadata`: any YAML map, as JSON.

use serde_json::{Map, Number, Value as Json};

use super::fields::{self, describe};
use super::problem::{Path, Report};
use super::raw::{Kind, Node, Scalar, Value};

/// `None` for an empty map, and for what is no map (reported).
pub(crate) fn read(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Map<String, Json>> {
    match &node.value {
        Value::Map(entries) if entries.is_empty() => None,
        Value::Map(entries) => Some(map(entries, path, report)),
        _ => {
            report.error(node.at, path, format!("expected a map, found {}", describe(node)));
            None
        }
    }
}

fn map(entries: &[(Node<'_>, Node<'_>)], path: &Path<'_>, report: &mut Report<'_>) -> Map<String, Json> {
    let mut map = Map::new();
    for (key, value) in entries {
        let Some(key_text) = fields::text(key, path, report) else { continue };
        let value = json(value, &path.key(key_text), report);
        if map.insert(key_text.to_owned(), value).is_some() {
            report.error(key.at, path, format!("`{}` stands here twice", fields::shorten(key_text))).hint("keep one of the two");
        }
    }
    map
}

fn json(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Json {
    match &node.value {
        Value::Map(entries) => Json::Object(map(entries, path, report)),
        Value::List(items) => {
            Json::Array(items.iter().enumerate().map(|(place, item)| json(item, &path.item(place), report)).collect())
        }
        Value::Scalar(scalar) => self::scalar(node, scalar, path, report),
    }
}

fn scalar(node: &Node<'_>, scalar: &Scalar<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Json {
    let text = || Json::String(scalar.text.clone().into_owned());
    match scalar.kind {
        Kind::Null => Json::Null,
        Kind::Bool(value) => Json::Bool(value),
        Kind::Plain if fields::yaml11_boolean(&scalar.text).is_some() => {
            Json::Bool(fields::boolean(node, path, report).unwrap_or(false))
        }
        Kind::Integer | Kind::Float => {
            let digits = scalar.text.replace('_', "");
            let number = digits.parse::<i64>().ok().map(Number::from);
            number.or_else(|| digits.parse().ok().and_then(Number::from_f64)).map_or_else(text, Json::Number)
        }
        Kind::Plain | Kind::Quoted => text(),
    }
}
