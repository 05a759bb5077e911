//! What a server says when it has started: where it listens, what it loaded, and how to get a first decision.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::json;

use crate::api::rls;
use crate::rules::request::Entry;
use crate::rules::{Domain, Rule, RuleSet};
use crate::server::Addresses;
use crate::settings::{Settings, StoreSetting, redacted};

/// A few lines for whoever started it.
pub(super) fn text(settings: &Settings, addresses: Addresses, rules: &RuleSet) -> String {
    let store = match &settings.store {
        StoreSetting::Memory => "memory".into(),
        StoreSetting::Redis { url, .. } => redacted(url),
    };
    let mut text = format!(
        "weir {} decides by counters in {store}\n  gRPC   {}\n  HTTP   {} (POST /json, GET /healthcheck)\n  admin  {} (GET /metrics, \
         GET /rules)\n",
        env!("CARGO_PKG_VERSION"),
        addresses.grpc,
        addresses.http,
        addresses.admin,
    );
    let path = settings.rules.display();
    if rules.revision == 0 {
        let _ = writeln!(text, "  rules  {path}: none in force; every call is answered UNAVAILABLE until they are mended");
        return text;
    }
    let _ = writeln!(text, "  rules  {path}: {} in {}", count(rules.rule_count(), "rule"), count(rules.domains.len(), "domain"));
    if let Some(call) = first_call(rules) {
        let call = call.replace('\'', "'\\''");
        let (http, grpc) = (addresses.http.port(), addresses.grpc.port());
        let _ = writeln!(text, "A first decision:");
        let _ = writeln!(text, "  curl -s localhost:{http}/json -d '{call}'");
        let _ = writeln!(text, "  grpcurl -plaintext -d '{call}' localhost:{grpc} {}/ShouldRateLimit", rls::SERVICE);
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A call that meets a rule: the first with a limit, as the files are written.
fn first_call(rules: &RuleSet) -> Option<String> {
    let mut domains: Vec<&Domain> = rules.domains.values().map(|domain| &**domain).collect();
    domains.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    domains.into_iter().find_map(|domain| {
        let limited = domain.rules.iter().enumerate().filter(|(_, rule)| !rule.limits.is_empty());
        let entries = limited.filter_map(|(place, rule)| entries_of(domain, place, rule)).next()?;
        let entries = entries.iter().map(|(key, value)| format!(r#"{{"key": {}, "value": {}}}"#, json!(key), json!(value)));
        let entries = entries.collect::<Vec<_>>().join(", ");
        Some(format!(r#"{{"domain": {}, "descriptors": [{{"entries": [{entries}]}}]}}"#, json!(&*domain.name)))
    })
}

/// Entries that this rule is found by. What its path says may be ambiguous, so they are tried.
fn entries_of(domain: &Domain, place: usize, rule: &Rule) -> Option<Vec<(String, String)>> {
    let entries: Vec<(String, String)> = rule
        .path
        .split(',')
        .map(|part| match part.split_once(['=', '~']) {
            Some((key, value)) => (key.to_owned(), value.replace('*', "any")),
            None => (part.to_owned(), example(part).to_owned()),
        })
        .collect();
    let keys: HashSet<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
    if keys.len() < entries.len() {
        return None;
    }
    let borrowed: Vec<Entry<'_>> =
        entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect();
    let found = domain.tree.find(&borrowed)?.rule.0 as usize;
    (found == place).then_some(entries)
}

/// A value for a key that takes any.
fn example(key: &str) -> &'static str {
    if key.contains("address") || key.ends_with("ip") { "203.0.113.7" } else { "ann" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoadOptions, load_texts};

    fn first(rules: &str) -> Option<serde_json::Value> {
        let loaded = load_texts(&[("a.yaml", rules)], &LoadOptions::default(), &RuleSet::default());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        first_call(&loaded.rules).map(|call| serde_json::from_str(&call).unwrap())
    }

    #[test]
    fn the_first_call_meets_the_first_rule_with_a_limit() {
        let rules = "domain: api\ndescriptors:\n  - key: internal\n    deny: true\n  - key: path\n    value: /ai/*\n    descriptors:\n      \
                     - key: remote_address\n        rate_limit: 5/second\n";
        let entries = json!([{"key": "path", "value": "/ai/any"}, {"key": "remote_address", "value": "203.0.113.7"}]);
        assert_eq!(first(rules), Some(json!({"domain": "api", "descriptors": [{"entries": entries}]})));
        assert_eq!(first("domain: api\ndescriptors: []\n"), None);
    }

    #[test]
    fn a_value_that_reads_like_a_path_makes_no_wrong_example() {
        let rules = "domain: d\ndescriptors:\n  - key: a\n    value: \"x,b\"\n    rate_limit: 1/second\n  - key: c\n    rate_limit: 1/second\n";
        assert_eq!(first(rules), Some(json!({"domain": "d", "descriptors": [{"entries": [{"key": "c", "value": "ann"}]}]})));
    }
}
