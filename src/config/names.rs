//! Names in the rules: domains, rules, tiers, sets, keys of entries. They stand in logs, metrics and headers, so none has a character
//! that would forge a line there. What callers send is another matter: a `value` may be anything, and is escaped where it is shown.

use super::problem::{Path, Report};
use super::raw::{Node, Scalar, Span, Value};
use crate::shown::{escaped, is_control};

/// The keys whose scalars are names.
const NAMED: [&str; 9] = ["domain", "name", "key", "subject", "addresses", "default_tier", "entry", "tier", "use"];

/// What the text below a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    /// A name, or a list of names.
    Names,
    /// Names as keys only, below other keys that are names.
    Other,
    /// Maps of callers' values: `costs`, by the key of an entry.
    Tables,
    /// A map whose keys are callers' values.
    Table,
    /// `tests`, whose `descriptors` are as callers send them.
    Tests,
}

/// Reports every name with a control character.
pub(super) fn check(document: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) {
    walk(document, Below::Other, path, report);
}

fn walk(node: &Node<'_>, below: Below, path: &Path<'_>, report: &mut Report<'_>) {
    match &node.value {
        Value::Scalar(Scalar { text, .. }) if below == Below::Names => name(text, node.at, path, report),
        Value::Scalar(_) => {}
        Value::List(items) => {
            for (place, item) in items.iter().enumerate() {
                walk(item, below, &path.item(place), report);
            }
        }
        Value::Map(entries) => {
            for (key, value) in entries {
                let Value::Scalar(Scalar { text, .. }) = &key.value else { continue };
                if below != Below::Table {
                    name(text, key.at, path, report);
                }
                let inner = match (below, &**text) {
                    // Any YAML, which callers get as JSON.
                    (_, "metadata") | (Below::Table, _) | (Below::Tests, "descriptors") => continue,
                    (Below::Tables, _) => Below::Table,
                    (_, "costs") => Below::Tables,
                    (_, key) if NAMED.contains(&key) => Below::Names,
                    (Below::Tests, _) | (_, "tests") => Below::Tests,
                    _ => Below::Other,
                };
                walk(value, inner, &path.key(text), report);
            }
        }
    }
}

fn name(text: &str, at: Span, path: &Path<'_>, report: &mut Report<'_>) {
    let Some(control) = text.chars().find(|c| is_control(*c)) else { return };
    let message = format!("a name has the control character `{}`", escaped(control.encode_utf8(&mut [0; 4])));
    let problem = report.error(at, path, message);
    problem.hint("names stand in logs, metrics and headers: take the character out, or write the name on one line");
}
