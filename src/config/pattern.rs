//! What a descriptor's `value` stands for: one value, a wildcard, a set, a network, a regular expression. A pattern's text is its
//! name in labels and in shared counters; no two patterns have the same one, so that it also tells them apart.

use ipnet::IpNet;
use regex::bytes::Regex;

use super::fields::{self, Fields, describe};
use super::keys::Level;
use super::problem::{Path, Report};
use super::raw::{Node, Value};
use crate::rules::tree::{self, Matcher, Pattern};

/// The matcher of a `value`; absent, null and the empty text are the key alone.
pub(crate) fn matcher(value: Option<&Node<'_>>, shared: bool, path: &Path<'_>, report: &mut Report<'_>) -> Option<Matcher> {
    let Some(node) = value else { return Some(Matcher::Any) };
    let path = path.key("value");
    match &node.value {
        Value::Scalar(_) => {
            let text = fields::text(node, &path, report)?;
            if text.is_empty() {
                return Some(Matcher::Any);
            }
            if text.contains('*') {
                let (pattern, text) = (Pattern::wildcard(text), wildcard_name(text));
                return Some(Matcher::Pattern { pattern, text: text.into_bytes().into(), shared });
            }
            Some(Matcher::Exact(text.as_bytes().into()))
        }
        Value::List(_) => {
            report.error(node.at, path, "`value` is one value or a pattern, found a list").hint("write value: {one_of: [...]}");
            None
        }
        Value::Map(_) => {
            let (pattern, text) = mapped(node, &path, report)?;
            Some(Matcher::Pattern { pattern, text: text.into_bytes().into(), shared })
        }
    }
}

fn mapped(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<(Pattern, String)> {
    let fields = Fields::read(node, Level::Value, path, report)?;
    let kinds = ["one_of", "cidr", "regex"];
    let given: Vec<&str> = kinds.into_iter().filter(|kind| fields.has(kind)).collect();
    let [kind] = given[..] else {
        if !fields.has_unknown(Level::Value) || given.len() > 1 {
            let message = format!("a pattern is exactly one of `one_of`, `cidr` and `regex`, found {}", given.len());
            report.error(node.at, path, message);
        }
        return None;
    };
    let (value, path) = (fields.get(kind)?, path.key(kind));
    match kind {
        "one_of" => one_of(value, &path, report),
        "cidr" => cidr(value, &path, report),
        _ => regex(value, &path, report),
    }
}

fn one_of(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<(Pattern, String)> {
    let items = fields::items(node, path, report)?;
    if items.is_empty() {
        report.error(node.at, path, "`one_of` names no values, so it never matches");
        return None;
    }
    let mut values: Vec<&str> = Vec::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        let value = fields::text(item, &path.item(place), report)?;
        if value.contains('*') {
            let message = format!("`*` is an ordinary character in one_of: `{}`", fields::shorten(value));
            report.warning(item.at, path.item(place), message).hint("a wildcard is a `value` of its own");
        }
        values.push(value);
    }
    let name = one_of_name(&values);
    Some((Pattern::OneOf(values.into_iter().map(|value| value.as_bytes().into()).collect()), name))
}

/// What the names of patterns that are no wildcards may begin with, and contain an asterisk.
const NAMES: [&str; 4] = ["one_of(", "one_of[", "regex(", "wildcard("];

/// A wildcard is called as it is written, unless another pattern could be called so.
fn wildcard_name(text: &str) -> String {
    let is_taken = NAMES.iter().any(|name| text.starts_with(name));
    if is_taken { format!("wildcard({text})") } else { text.to_owned() }
}

/// The values with commas between them. Where a value has one itself, it is escaped, and the name in brackets: what stands in
/// parentheses could be any values without.
fn one_of_name(values: &[&str]) -> String {
    if values.iter().all(|value| !value.contains(',')) {
        return format!("one_of({})", values.join(","));
    }
    let escaped: Vec<String> = values.iter().map(|value| value.replace('\\', "\\\\").replace(',', "\\,")).collect();
    format!("one_of[{}]", escaped.join(","))
}

fn cidr(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<(Pattern, String)> {
    let text = fields::text(node, path, report)?;
    let Ok(written) = text.parse::<IpNet>() else {
        let problem = report.error(node.at, path, format!("{} is no network", describe(node)));
        problem.hint(match text.parse::<std::net::IpAddr>() {
            Ok(address) => format!("one address is {}", IpNet::from(address.to_canonical())),
            Err(_) => "a network is an address and the number of its leading bits: 10.0.0.0/8, 2001:db8::/32".to_owned(),
        });
        return None;
    };
    let network = match tree::network(written) {
        Ok(network) => network,
        Err(meant) => {
            let message = format!("`{text}` is wider than all IPv4-mapped addresses, which are matched as IPv4 addresses");
            report.error(node.at, path, message).hint(format!("write the IPv4 network that is meant, such as {meant}"));
            return None;
        }
    };
    if network.trunc() != network {
        let message = format!("`{text}` has bits beyond its prefix; it is taken as {}", network.trunc());
        report.warning(node.at, path, message).hint(format!("write {}", network.trunc()));
    }
    Some((Pattern::Cidr(network), format!("cidr({})", network.trunc())))
}

fn regex(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<(Pattern, String)> {
    let text = fields::text(node, path, report)?;
    if text.is_empty() {
        report.error(node.at, path, "the regular expression is empty").hint("the key alone matches every value");
        return None;
    }
    match Regex::new(text) {
        Ok(regex) => Some((Pattern::Regex(regex), format!("regex({text})"))),
        Err(error) => {
            report.error(node.at, path, format!("the regular expression does not compile: {}", reason(&error)));
            None
        }
    }
}

/// The reason of the regex crate, which draws a caret under the expression, with its character as a number.
fn reason(error: &regex::Error) -> String {
    let regex::Error::Syntax(text) = error else { return error.to_string().trim_end_matches('.').to_owned() };
    let reason = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(text);
    let caret = text.lines().find_map(|line| line.strip_prefix("    ").filter(|line| line.trim_start().starts_with('^')));
    match caret.and_then(|line| line.find('^')) {
        Some(column) => format!("at its character {}: {reason}", column + 1),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw;

    /// What a `value` is called in labels, and in the names of shared counters.
    fn text(value: &str) -> String {
        let documents = raw::read(value, raw::MAX_NODES).expect("YAML");
        let mut report = Report::new("test.yaml", value);
        match matcher(documents.first(), false, &Path::document(0), &mut report) {
            Some(Matcher::Pattern { text, .. }) => String::from_utf8(text.into()).expect("UTF-8"),
            other => panic!("{value} is no pattern: {other:?}"),
        }
    }

    /// Another text would be another counter.
    #[test]
    fn patterns_keep_their_names() {
        assert_eq!(text("eu-*"), "eu-*");
        assert_eq!(text("{one_of: [a, 'b c', '', 'c\\d']}"), "one_of(a,b c,,c\\d)");
        assert_eq!(text("{one_of: [a]}"), "one_of(a)");
        assert_eq!(text("{cidr: 10.0.0.0/8}"), "cidr(10.0.0.0/8)");
        assert_eq!(text("{cidr: '::ffff:10.0.0.0/104'}"), "cidr(10.0.0.0/8)");
        assert_eq!(text("{regex: '^a,b*$'}"), "regex(^a,b*$)");
    }

    #[test]
    fn no_two_patterns_have_one_name() {
        let patterns = [
            "{one_of: [a, b]}",
            "{one_of: ['a,b']}",
            "{one_of: ['a\\', b]}",
            "{one_of: ['a\\,b']}",
            "{one_of: ['a\\', 'b,']}",
            "{one_of: ['a\\,b,']}",
            "{one_of: ['a,b', c]}",
            "{one_of: [a, 'b,c']}",
            "{one_of: [a, '*']}",
            "one_of(a,*)",
            "wildcard(one_of(a,*))",
            "{one_of: ['a,', '*']}",
            "'one_of[a\\,,*]'",
            "{regex: 'a*'}",
            "regex(a*)",
        ];
        let mut texts: Vec<String> = patterns.iter().map(|value| text(value)).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), patterns.len(), "{texts:?}");
    }
}
