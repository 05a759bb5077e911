//! `addresses`, at the top of a document: which entries hold addresses, and by what part of them they are counted.

use super::fields::{self, Amount, Fields, describe};
use super::keys::Level;
use super::problem::{Path, Report};
use super::raw::{Kind, Node, Scalar, Value};
use crate::rules::address::{Addresses, Prefix};

/// A key, a list of keys, or a map of keys to lengths of prefixes.
pub(super) fn addresses(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Addresses {
    let keys = match &node.value {
        Value::Map(_) => {
            let entries = fields::entries(node, path, report).into_iter();
            entries.filter_map(|(key, lengths, _)| Some((key, prefix(lengths, &path.key(key), report)?))).collect()
        }
        Value::Scalar(_) => listed(std::slice::from_ref(node), path, report),
        Value::List(items) => listed(items, path, report),
    };
    if keys.iter().any(|(key, _)| key.is_empty()) {
        report.error(node.at, path, "the key of an entry is empty");
    }
    keys.into_iter().map(|(key, prefix)| (key.as_bytes().into(), prefix)).collect()
}

fn listed<'n>(items: &'n [Node<'_>], path: &Path<'_>, report: &mut Report<'_>) -> Vec<(&'n str, Prefix)> {
    let keys = items.iter().enumerate().filter_map(|(place, item)| fields::text(item, &path.item(place), report));
    keys.map(|key| (key, Prefix::default())).collect()
}

fn prefix(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Prefix> {
    if node.is_null() {
        return Some(Prefix::default());
    }
    let fields = Fields::read(node, Level::Address, path, report)?;
    let Prefix { ipv4, ipv6 } = Prefix::default();
    let mut given = |key, longest| fields.given(key).and_then(|node| length(node, longest, &path.key(key), report));
    Some(Prefix { ipv4: given("ipv4", 32).unwrap_or(ipv4), ipv6: given("ipv6", 128).unwrap_or(ipv6) })
}

fn length(node: &Node<'_>, longest: u8, path: &Path<'_>, report: &mut Report<'_>) -> Option<u8> {
    let written = match &node.value {
        Value::Scalar(Scalar { kind: Kind::Integer | Kind::Float, text }) => fields::parse_amount(text).ok(),
        _ => None,
    };
    let length = match written {
        Some(Amount::Requests(length)) => u8::try_from(length).ok().filter(|length| (1..=longest).contains(length)),
        _ => None,
    };
    if length.is_none() {
        let problem = report.error(node.at, path, format!("expected the length of a prefix, found {}", describe(node)));
        problem.hint(format!("how many leading bits make a caller: 1 to {longest}"));
    }
    length
}
