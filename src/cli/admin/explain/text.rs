//! An explanation for people: what would be decided, then each descriptor with its rule, the reasons, and its limits as a table.

use jiff::Timestamp;
use serde_json::Value;

use super::super::table::table;
use super::super::{items, text as field};

pub(super) fn text(said: &Value, by: &str) -> String {
    let at = time(said, "at").unwrap_or_default();
    let retry = time(said, "retry_at").map(|time| format!("; retry {}", after(at, time))).unwrap_or_default();
    let mut lines = vec![
        format!("{}: {}{retry}", field(said, "decision"), field(said, "reason")),
        format!("domain {}, by {by}", field(said, "domain")),
    ];
    if !field(said, "limited_by").is_empty() {
        let tier = Some(field(said, "tier")).filter(|tier| !tier.is_empty()).map(|tier| format!(", tier {tier}"));
        let (rule, layer) = (field(said, "limited_by"), field(said, "layer"));
        lines.push(format!("refused by rule {rule}, layer {layer}{}", tier.unwrap_or_default()));
    }
    if field(said, "cause") == "operator_block" {
        lines.push("refused by an operator's block, not by a rule; `weir override … --clear block` lifts it".to_owned());
    }
    if !["off", ""].contains(&field(said, "switch")) {
        lines.push(format!("the switch is `{}`", field(said, "switch")));
    }
    for (place, descriptor) in items(said, "descriptors").iter().enumerate() {
        lines.push(String::new());
        lines.push(format!("{}. {}: {}", place + 1, entries(descriptor), outcome(descriptor)));
        lines.extend(facts(descriptor).into_iter().map(|(name, fact)| format!("   {name:<7}  {fact}").trim_end().to_owned()));
        lines.extend(limits(descriptor, at).lines().map(|line| format!("   {line}")));
    }
    lines.join("\n") + "\n"
}

fn entries(descriptor: &Value) -> String {
    let entry = |entry: &Value| format!("{}={}", field(entry, "key"), field(entry, "value"));
    items(descriptor, "entries").iter().map(entry).collect::<Vec<_>>().join(", ")
}

fn outcome(descriptor: &Value) -> String {
    match (field(descriptor, "outcome"), field(descriptor, "kind")) {
        ("shadow", _) => "over_limit, and only watched".to_owned(),
        (outcome, "limited") => outcome.to_owned(),
        (outcome, kind) => format!("{outcome} ({kind})"),
    }
}

/// Names with what is to be said; a name that would be repeated is left out.
fn facts(descriptor: &Value) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let rule = &descriptor["rule"];
    if !rule.is_null() {
        let (name, path) = (field(rule, "name"), field(rule, "path"));
        let path = if name == path { String::new() } else { format!(" ({path})") };
        facts.push(("rule", format!("{name}{path}, {}", field(rule, "source"))));
    }
    let found: Vec<String> = items(descriptor, "found").iter().map(found).collect();
    if !found.is_empty() {
        facts.push(("found", found.join(", ")));
    }
    match (field(descriptor, "subject"), field(descriptor, "tier")) {
        ("", _) => {}
        _ if rule.is_null() && field(descriptor, "kind") == "unmatched" => {}
        (subject, "") => facts.push(("subject", subject.to_owned())),
        (subject, tier) => facts.push(("subject", format!("{subject}, tier {tier}"))),
    }
    if field(descriptor, "outcome") == "unknown" && !items(descriptor, "limits").is_empty() {
        facts
            .push(("usage", format!("unknown: the store does not answer (on_store_failure: {})", field(rule, "on_store_failure"))));
    }
    let names = std::iter::once("why").chain(std::iter::repeat(""));
    facts.extend(names.zip(items(descriptor, "reasons").iter().filter_map(Value::as_str).map(str::to_owned)));
    facts
}

fn found(entry: &Value) -> String {
    let by = match (field(entry, "by"), field(entry, "pattern")) {
        ("value", _) => "its value".to_owned(),
        ("key", _) => "its key alone".to_owned(),
        ("wildcard", pattern) => format!("the wildcard {pattern}"),
        (_, pattern) => pattern.to_owned(),
    };
    let counted = match field(entry, "counted_as") {
        "" => String::new(),
        counted => format!(" (counted as {counted})"),
    };
    format!("{}={} by {by}{counted}", field(entry, "key"), field(entry, "value"))
}

fn limits(descriptor: &Value, at: Timestamp) -> String {
    let limits = items(descriptor, "limits");
    if limits.is_empty() {
        return String::new();
    }
    let headings = ["limit", "from", "algorithm", "size", "cost", "used", "remaining", "whole", "now"];
    let rows: Vec<Vec<String>> = limits.iter().map(|limit| row(limit, at)).collect();
    table(&headings, &rows)
}

fn row(limit: &Value, at: Timestamp) -> Vec<String> {
    let word = |name| field(limit, name).to_owned();
    let number = |name: &str| limit[name].as_u64().unwrap_or(0);
    let (is_block, is_known) = (field(limit, "kind") == "block", field(limit, "outcome") != "unknown");
    let counted = |name| if is_block || !is_known { "-".to_owned() } else { number(name).to_string() };
    let whole = match time(limit, "resets_at") {
        Some(time) => after(at, time),
        None => "-".to_owned(),
    };
    let cost = if is_block { "-".to_owned() } else { number("cost").to_string() };
    let mut row = vec![word("policy"), word("from"), word("algorithm"), size(limit), cost];
    row.extend([counted("used"), counted("remaining"), whole, now(limit, at)]);
    row
}

fn size(limit: &Value) -> String {
    let (requests, window) = (&limit["requests"], field(limit, "window"));
    match field(limit, "kind") {
        "block" => window.to_owned(),
        _ if limit["capacity"] != *requests => format!("{requests}/{window}, burst {}", limit["capacity"]),
        _ => format!("{requests}/{window}"),
    }
}

fn now(limit: &Value, at: Timestamp) -> String {
    let retry = time(limit, "retry_at").map(|time| after(at, time));
    match (field(limit, "outcome"), field(limit, "kind"), retry) {
        ("ok", "block", _) => "not blocked".to_owned(),
        ("ok", ..) => match limit["delay"].as_u64().unwrap_or(0) {
            0 => "room".to_owned(),
            delay => format!("room, after {}", duration(delay)),
        },
        ("over_limit", "block", Some(retry)) => format!("blocked, free {retry}"),
        ("over_limit", _, Some(retry)) => format!("no room, again {retry}"),
        ("over_limit", _, None) => "never fits".to_owned(),
        (other, ..) => other.to_owned(),
    }
}

fn time(value: &Value, name: &str) -> Option<Timestamp> {
    field(value, name).parse().ok()
}

/// `in 41m12s`.
fn after(at: Timestamp, time: Timestamp) -> String {
    let micros = time.as_microsecond().saturating_sub(at.as_microsecond());
    format!("in {}", duration(u64::try_from(micros).unwrap_or(0)))
}

/// Never less than it is: in milliseconds below a second, in seconds above, the two largest units from an hour on.
fn duration(micros: u64) -> String {
    if micros < 1_000_000 {
        return format!("{}ms", micros.div_ceil(1_000));
    }
    let seconds = micros.div_ceil(1_000_000);
    let (minutes, hours) = (seconds.div_ceil(60), seconds.div_ceil(3_600));
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", minutes / 60, minutes % 60),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_never_too_short() {
        let said = [1, 999_500, 1_000_001, 61_000_000, 3_599_000_000, 3_661_000_000, 7_199_000_000, 90_000_000_001].map(duration);
        assert_eq!(said, ["1ms", "1000ms", "2s", "1m1s", "59m59s", "1h2m", "2h0m", "1d2h"]);
    }
}
