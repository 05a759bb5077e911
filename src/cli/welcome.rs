//! What a server says when it has started: where it listens, what it loaded, and how to get a first decision.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use crate::api::rls;
use crate::rules::request::Entry;
use crate::rules::{Domain, Rule, RuleSet};
use crate::server::Addresses;
use crate::settings::{Settings, StoreSetting, redacted};
use crate::telemetry::logs;

/// What a server without rules says instead of how many there are.
const NO_RULES: &str = "no rules are in force; every call is answered UNAVAILABLE until they are mended";

/// A few lines for whoever started it; where logs are JSON, one line of JSON like theirs.
pub(super) fn text(settings: &Settings, addresses: Addresses, rules: &RuleSet, as_json: bool) -> String {
    let store = match &settings.store {
        StoreSetting::Memory => "memory".into(),
        StoreSetting::Redis { url, .. } => redacted(url),
    };
    if as_json { json_line(settings, addresses, rules, &store) } else { lines(settings, addresses, rules, &store) }
}

fn json_line(settings: &Settings, addresses: Addresses, rules: &RuleSet, store: &str) -> String {
    let message = if rules.revision == 0 { NO_RULES } else { "weir has started" };
    let line = json!({
        "timestamp": logs::now(),
        "level": "INFO",
        "message": message,
        "version": env!("CARGO_PKG_VERSION"),
        "store": store,
        "grpc": addresses.grpc.to_string(),
        "http": addresses.http.to_string(),
        "admin": addresses.admin.to_string(),
        "path": settings.rules.display().to_string(),
        "domains": rules.domains.len(),
        "rules": rules.rule_count(),
    });
    format!("{line}\n")
}

fn lines(settings: &Settings, addresses: Addresses, rules: &RuleSet, store: &str) -> String {
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
        let _ = writeln!(text, "  rules  {path}: {NO_RULES}");
        return text;
    }
    let _ = writeln!(text, "  rules  {path}: {} in {}", count(rules.rule_count(), "rule"), count(rules.domains.len(), "domain"));
    if let Some(call) = first_call(rules) {
        let call = call.replace('\'', "'\\''");
        let (http, grpc) = (reached(addresses.http, "/json"), reached(addresses.grpc, ""));
        let _ = writeln!(text, "A first decision:");
        let _ = writeln!(text, "  curl -s {http} -d '{call}'");
        let _ = writeln!(text, "  grpcurl -plaintext -d '{call}' {grpc} {}/ShouldRateLimit", rls::SERVICE);
    }
    text
}

/// What is typed in a shell to reach a listener from this machine; brackets would be taken for a pattern of files.
fn reached(address: SocketAddr, path: &str) -> String {
    match address.ip() {
        ip if ip.is_unspecified() => format!("localhost:{}{path}", address.port()),
        IpAddr::V4(_) => format!("{address}{path}"),
        IpAddr::V6(_) => format!("'{address}{path}'"),
    }
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
    fn the_first_call_goes_to_where_the_server_listens() {
        let loaded = load_texts(
            &[("a.yaml", "domain: d\ndescriptors: [{key: user, rate_limit: 1/second}]\n")],
            &LoadOptions::default(),
            &RuleSet::default(),
        );
        let said = |http: &str, grpc: &str| {
            let addresses =
                Addresses { grpc: grpc.parse().unwrap(), http: http.parse().unwrap(), admin: "127.0.0.1:6070".parse().unwrap() };
            text(&Settings::default(), addresses, &loaded.rules, false)
        };
        for (http, grpc, to) in [
            ("0.0.0.0:1", "[::]:2", ["curl -s localhost:1/json -d ", "' localhost:2 envoy."]),
            ("192.0.2.2:1", "127.0.0.1:2", ["curl -s 192.0.2.2:1/json -d ", "' 127.0.0.1:2 envoy."]),
            ("[2001:db8::1]:1", "[::1]:2", ["curl -s '[2001:db8::1]:1/json' -d ", "' '[::1]:2' envoy."]),
        ] {
            let said = said(http, grpc);
            assert!(to.iter().all(|to| said.contains(to)), "{said}");
        }
    }

    #[test]
    fn beside_logs_in_json_it_is_one_line_of_json() {
        let listens = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { grpc: listens(1), http: listens(2), admin: listens(3) };
        let rules = "domain: d\ndescriptors: [{key: user, rate_limit: 1/second}]\n";
        let loaded = load_texts(&[("a.yaml", rules)], &LoadOptions::default(), &RuleSet::default());
        for (rules, domains, message) in [(&loaded.rules, 1, "weir has started"), (&RuleSet::default(), 0, NO_RULES)] {
            let said = text(&Settings::default(), addresses, rules, true);
            assert_eq!(said.matches('\n').count(), 1, "{said}");
            let line: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!(message)));
            assert_eq!((&line["grpc"], &line["store"]), (&json!("127.0.0.1:1"), &json!("memory")));
            assert_eq!([&line["domains"], &line["rules"]], [&json!(domains), &json!(domains)]);
        }
    }

    #[test]
    fn a_value_that_reads_like_a_path_makes_no_wrong_example() {
        let rules = "domain: d\ndescriptors:\n  - key: a\n    value: \"x,b\"\n    rate_limit: 1/second\n  - key: c\n    rate_limit: 1/second\n";
        assert_eq!(first(rules), Some(json!({"domain": "d", "descriptors": [{"entries": [{"key": "c", "value": "ann"}]}]})));
    }
}
