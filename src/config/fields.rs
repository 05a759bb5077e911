//! Typed values out of nodes, each with its problem when it is none: text, booleans, whole numbers, durations, choices.

use std::collections::HashSet;

use super::keys::{self, Level};
use super::problem::{Path, Report, Severity};
use super::raw::{Kind, Node, Scalar, Span, Value};
use crate::limit::{DAY, HOUR, MAX_WINDOW, MINUTE, Micros, SECOND, WEEK};

/// The entries of a map whose keys have been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'n, 's> {
    /// Where the map begins.
    pub(crate) at: Span,
    entries: &'n [(Node<'s>, Node<'s>)],
}

impl<'n, 's> Fields<'n, 's> {
    /// Reports keys that are unknown, misplaced, not built yet or repeated; `None` where there is no map.
    pub(crate) fn read(node: &'n Node<'s>, level: Level, path: &Path<'_>, report: &mut Report<'_>) -> Option<Fields<'n, 's>> {
        let Value::Map(entries) = &node.value else {
            let message = format!(
                "expected {} to be a map with {}, found {}",
                level.name(),
                list(&keys::of(level).collect::<Vec<_>>()),
                describe(node)
            );
            report.error(node.at, path, message);
            return None;
        };
        let mut seen = HashSet::with_capacity(entries.len());
        for (key, value) in entries {
            let Value::Scalar(Scalar { text, .. }) = &key.value else {
                report.error(key.at, path, format!("a key must be text, found {}", describe(key)));
                continue;
            };
            if !seen.insert(&**text) {
                report.error(key.at, path, format!("`{text}` stands here twice")).hint("keep one of the two");
            } else if report.is_full() && keys::of(level).all(|known| known != text) {
                // Only counted: finding out what was meant takes far longer.
                report.error(key.at, path, "");
            } else if let Some(problem) = keys::check(level, text, says_nothing(value), |other| has_value(entries, other)) {
                report.complain(problem.severity, key.at, path, problem.message).hint(problem.hint);
            }
        }
        Some(Fields { at: node.at, entries })
    }

    /// The value of a key, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node<'s>> {
        self.entry(key).map(|(_, value)| value)
    }

    /// The value of a key, unless it is absent or null.
    pub(crate) fn given(&self, key: &str) -> Option<&'n Node<'s>> {
        self.get(key).filter(|value| !value.is_null())
    }

    /// Where a key is written.
    pub(crate) fn place(&self, key: &str) -> Span {
        self.entry(key).map_or(self.at, |(key, _)| key.at)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Whether any of its keys is an error by itself: another may then be missing only because it is misspelt.
    pub(crate) fn has_unknown(&self, level: Level) -> bool {
        let known = |key: &Node<'_>, value: &Node<'_>| match &key.value {
            Value::Scalar(Scalar { text, .. }) => {
                let problem = keys::check(level, text, says_nothing(value), |other| has_value(self.entries, other));
                problem.is_none_or(|problem| problem.severity == Severity::Warning)
            }
            _ => false,
        };
        self.entries.iter().any(|(key, value)| !known(key, value))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&self, wanted: &str) -> Option<&'n (Node<'s>, Node<'s>)> {
        self.entries.iter().find(|(key, _)| matches!(&key.value, Value::Scalar(scalar) if scalar.text == wanted))
    }
}

/// Whether a map has a key, with a value that is not null.
fn has_value(entries: &[(Node<'_>, Node<'_>)], wanted: &str) -> bool {
    let is_wanted = |key: &Node<'_>| matches!(&key.value, Value::Scalar(scalar) if scalar.text == wanted);
    entries.iter().any(|(key, value)| is_wanted(key) && !value.is_null())
}

/// Whether a value is what a key has that is absent: `false`, or empty.
fn says_nothing(value: &Node<'_>) -> bool {
    match &value.value {
        Value::Scalar(Scalar { kind: Kind::Quoted, text }) => text.is_empty(),
        Value::Scalar(Scalar { text, .. }) => value.is_null() || text.eq_ignore_ascii_case("false"),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
    }
}

/// What a node is, for "found …".
pub(crate) fn describe(node: &Node<'_>) -> String {
    match &node.value {
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => "nothing".to_owned(),
        Value::Scalar(Scalar { kind: Kind::Quoted, text }) => format!("the text `{}`", shorten(text)),
        Value::Scalar(Scalar { text, .. }) => format!("`{}`", shorten(text)),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
    }
}

/// Text for a message: its first line, bounded.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let line = text.lines().next().unwrap_or("");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// The first few names.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { shown + ", …" } else { shown }
}

/// The text of a scalar, as written; null is the empty text.
pub(crate) fn text<'n>(node: &'n Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => Some(""),
        Value::Scalar(scalar) => Some(&scalar.text),
        _ => {
            report.error(node.at, path, format!("expected text, found {}", describe(node)));
            None
        }
    }
}

/// The items of a list; null is the empty list.
pub(crate) fn items<'n, 's>(node: &'n Node<'s>, path: &Path<'_>, report: &mut Report<'_>) -> Option<&'n [Node<'s>]> {
    match &node.value {
        Value::List(items) => Some(items),
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => Some(&[]),
        _ => {
            report.error(node.at, path, format!("expected a list, found {}", describe(node)));
            None
        }
    }
}

/// The entries of a map whose keys are the operator's own; null is the empty map.
pub(crate) fn entries<'n, 's>(node: &'n Node<'s>, path: &Path<'_>, report: &mut Report<'_>) -> Vec<(&'n str, &'n Node<'s>, Span)> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => &[],
        _ => {
            report.error(node.at, path, format!("expected a map, found {}", describe(node)));
            &[]
        }
    };
    let mut found: Vec<(&str, &Node<'_>, Span)> = Vec::with_capacity(entries.len());
    let mut seen = HashSet::with_capacity(entries.len());
    for (key, value) in entries {
        let Some(name) = text(key, path, report) else { continue };
        if seen.insert(name) {
            found.push((name, value, key.at));
        } else {
            report.error(key.at, path, format!("`{name}` stands here twice")).hint("keep one of the two");
        }
    }
    found
}

/// `true` or `false`; null is `false`. What YAML 1.1 takes for a boolean is accepted with a warning.
pub(crate) fn boolean(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<bool> {
    let yaml11 = match &node.value {
        Value::Scalar(Scalar { kind: Kind::Bool(value), .. }) => return Some(*value),
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => return Some(false),
        Value::Scalar(Scalar { kind: Kind::Plain, text }) => yaml11_boolean(text),
        _ => None,
    };
    match yaml11 {
        Some(value) => {
            let message = format!("{} is a boolean in YAML 1.1 only; it is taken as {value}", describe(node));
            report.warning(node.at, path, message).hint(format!("write `{value}`"));
        }
        None => {
            report.error(node.at, path, format!("expected true or false, found {}", describe(node)));
        }
    }
    yaml11
}

/// The booleans of YAML 1.1 that are text in YAML 1.2.
pub(crate) fn yaml11_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "on" => Some(true),
        "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A number of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Requests(u64),
    /// Written -1.
    Unlimited,
}

pub(crate) fn amount(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Amount> {
    let found = match &node.value {
        Value::Scalar(Scalar { kind: Kind::Integer | Kind::Float, text }) => parse_amount(text),
        Value::Scalar(Scalar { kind: Kind::Quoted, text }) if parse_amount(text).is_ok() => {
            Err("write it without quotes".to_owned())
        }
        Value::Scalar(Scalar { kind: Kind::Plain, text }) => Err(parse_amount(text).err().unwrap_or_default()),
        _ => Err(String::new()),
    };
    match found {
        Ok(amount) => Some(amount),
        Err(hint) => {
            let problem = report.error(node.at, path, format!("expected a whole number of requests, found {}", describe(node)));
            problem.hint(if hint.is_empty() { "0 refuses everything, -1 is unlimited".to_owned() } else { hint });
            None
        }
    }
}

/// As [`amount`], for a key that other services have, too: the whole numbers of YAML 1.1 are accepted with a warning.
pub(crate) fn kept_amount(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Amount> {
    let yaml11 = match &node.value {
        Value::Scalar(Scalar { kind: Kind::Integer | Kind::Float, text }) if parse_amount(text).is_err() => yaml11_number(text),
        Value::Scalar(Scalar { kind: Kind::Plain, text }) => yaml11_number(text),
        _ => None,
    };
    let Some(requests) = yaml11 else { return amount(node, path, report) };
    let problem = report.warning(node.at, path, format!("{} is taken as {requests}", describe(node)));
    problem.hint(format!("write {requests}: YAML 1.1 and YAML 1.2 read such numbers differently"));
    Some(Amount::Requests(requests))
}

/// A whole number as YAML 1.1 reads it: with a leading zero it is octal.
fn yaml11_number(text: &str) -> Option<u64> {
    let digits = text.replace('_', "");
    let digits =
        digits.strip_prefix(['+', '-']).filter(|rest| !text.starts_with('-') || rest.bytes().all(|b| b == b'0')).unwrap_or(&digits);
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-') || digits.starts_with(['+', '-']) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    match lower.as_bytes() {
        [b'0', b'x', ..] => u64::from_str_radix(&lower[2..], 16).ok(),
        [b'0', b'b', ..] => u64::from_str_radix(&lower[2..], 2).ok(),
        [b'0', b'o', ..] => u64::from_str_radix(&lower[2..], 8).ok(),
        [b'0', _, ..] => u64::from_str_radix(&lower[1..], 8).ok(),
        _ => lower.parse().ok(),
    }
}

/// The hint for a number that no limit has.
pub(super) const TOO_LARGE: &str = "it is too large to count; -1 is unlimited";

/// A whole number of requests, or -1; the error is a hint.
pub(crate) fn parse_amount(text: &str) -> Result<Amount, String> {
    let digits = text.replace('_', "");
    if digits == "-1" {
        return Ok(Amount::Unlimited);
    }
    let too_large = || TOO_LARGE.to_owned();
    if let Some(hex) = digits.strip_prefix("0x") {
        let is_number = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(hex, 16).map(Amount::Requests).map_err(|_| if is_number { too_large() } else { String::new() });
    }
    if let Some(requests) = digits.strip_prefix("0o").and_then(|octal| u64::from_str_radix(octal, 8).ok()) {
        return Err(format!("write it as a decimal number: {requests}"));
    }
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "YAML 1.1 reads a leading zero as octal, YAML 1.2 as decimal: write {}",
            digits.trim_start_matches('0').parse::<u64>().unwrap_or(0)
        ));
    }
    if let Ok(requests) = digits.parse() {
        return Ok(Amount::Requests(requests));
    }
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    whole(&digits).map(Amount::Requests).ok_or_else(|| if is_number || is_huge(&digits) { too_large() } else { String::new() })
}

/// `1e40`: a number with an exponent beyond those of numbers that can be counted.
fn is_huge(digits: &str) -> bool {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, ""));
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
    mantissa.bytes().next().is_some_and(|first| matches!(first, b'1'..=b'9')) && exponent.parse().is_ok_and(|power: u32| power > 19)
}

/// `1e6` and `100.0` are whole numbers too.
fn whole(digits: &str) -> Option<u64> {
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix('+').unwrap_or(exponent).parse::<usize>().ok()?),
        None => (digits, 0),
    };
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    if exponent > 19 || fraction.len() > exponent {
        return None;
    }
    format!("{integer}{fraction}{}", "0".repeat(exponent - fraction.len())).parse().ok()
}

pub(crate) fn duration(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Micros> {
    let found = match &node.value {
        Value::Scalar(scalar) => parse_duration(&scalar.text),
        _ => Err(DURATION_HINT),
    };
    match found {
        Ok(micros) => Some(micros),
        Err(hint) => {
            report.error(node.at, path, format!("expected a duration, found {}", describe(node))).hint(hint);
            None
        }
    }
}

const DURATION_HINT: &str = "a duration is a number with its unit: 250ms, 30s, 5m, 1h30m, 1d, 1w";

/// The units of a duration, longest name first among those that begin alike.
pub(super) const DURATION_UNITS: [(&str, Micros); 8] =
    [("ms", 1_000), ("us", 1), ("µs", 1), ("s", SECOND), ("m", MINUTE), ("h", HOUR), ("d", DAY), ("w", WEEK)];

/// `1h30m` and the like, in µs; the error is a hint.
pub(crate) fn parse_duration(text: &str) -> Result<Micros, &'static str> {
    let mut rest = text.trim();
    let mut micros: Micros = 0;
    if rest.is_empty() {
        return Err(DURATION_HINT);
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().map_err(|_| DURATION_HINT)?;
        rest = &rest[digits..];
        let (name, unit) = DURATION_UNITS.iter().find(|(name, _)| rest.starts_with(name)).ok_or(DURATION_HINT)?;
        rest = &rest[name.len()..];
        let total = number.checked_mul(*unit).and_then(|part| micros.checked_add(part));
        micros = total.filter(|total| *total <= MAX_WINDOW).ok_or("the longest duration is ten years, 3650d")?;
    }
    if micros == 0 { Err("a duration must be longer than zero") } else { Ok(micros) }
}

/// One of a few names.
pub(crate) fn choice<T: Copy>(
    node: &Node<'_>,
    choices: &[(&str, T)],
    what: &str,
    path: &Path<'_>,
    report: &mut Report<'_>,
) -> Option<T> {
    let written = text(node, path, report)?;
    if let Some((_, found)) = choices.iter().find(|(name, _)| *name == written) {
        return Some(*found);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let problem = report.error(node.at, path, format!("unknown {what} {}", describe(node)));
    match keys::nearest(written, names.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean `{near}`? known: {}", names.join(", "))),
        None => problem.hint(format!("known: {}", names.join(", "))),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        let parsed = |text| parse_duration(text).ok();
        assert_eq!(parsed("250ms"), Some(250_000));
        assert_eq!(parsed("1h30m"), Some(90 * MINUTE));
        assert_eq!([parsed("1w"), parsed("7d"), parsed("168h")], [Some(WEEK); 3]);
        assert_eq!(parsed("10us"), Some(10));
        for bad in ["", "5", "m", "5x", "-5s", "1.5h", "0s", "4000d", "99999999999999999999s"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn whole_numbers_of_yaml_1_1() {
        for (text, number) in [
            ("010", 8),
            ("0o10", 8),
            ("0b101", 5),
            ("0X10", 16),
            ("-0", 0),
            ("1__0", 10),
            ("1_", 1),
            ("00", 0),
            ("+5", 5),
            ("0_7", 7),
        ] {
            assert_eq!(yaml11_number(text), Some(number), "{text}");
        }
        for bad in ["08", "-5", "1.5", "1e3", "_1", "x", "", "+-0", "0x"] {
            assert_eq!(yaml11_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_are_whole_numbers() {
        let parsed = |text| parse_amount(text).ok();
        for (text, requests) in [("100", 100), ("1_000", 1000), ("0x10", 16), ("1e6", 1_000_000), ("1.5e3", 1500), ("20.0", 20)] {
            assert_eq!(parsed(text), Some(Amount::Requests(requests)), "{text}");
        }
        assert_eq!(parsed("-1"), Some(Amount::Unlimited));
        for bad in ["-2", "1.5", "010", "1e40", "x", "", "18446744073709551616"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        for huge in ["18446744073709551616", "99999999999999999999", "0xfffffffffffffffff", "1e40"] {
            assert_eq!(parse_amount(huge), Err(TOO_LARGE.to_owned()), "{huge}");
        }
        assert_eq!(parse_amount("0o10"), Err("write it as a decimal number: 8".to_owned()));
        assert_eq!(["-2", "1.5", "x", "0x", "0o9"].map(parse_amount), [const { Err(String::new()) }; 5]);
    }
}
