//! Rules as operators of `envoyproxy/ratelimit` have them: they load unchanged and mean the same.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use weir::config::{LoadOptions, Loaded, load_texts};
use weir::limit::{Algorithm, DAY, HOUR, MINUTE, MONTH, Micros, SECOND, WEEK, YEAR};
use weir::rules::request::Entry;
use weir::rules::{Domain, Rule, RuleSet};

fn load(text: &str) -> Loaded {
    load_texts(&[("rules.yaml", text)], &LoadOptions::default(), &RuleSet::default())
}

fn domain(text: &str) -> Arc<Domain> {
    let loaded = load(text);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    assert_eq!(loaded.rules.domains.len(), 1);
    loaded.rules.domains.values().next().unwrap().clone()
}

/// The rule of a descriptor, as (key, value) pairs.
fn find<'d>(domain: &'d Domain, entries: &[(&str, &str)]) -> Option<&'d Rule> {
    let entries: Vec<Entry<'_>> =
        entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect();
    domain.tree.find(&entries).map(|found| domain.rule(found.rule))
}

/// How many requests in what time.
fn limit(domain: &Domain, entries: &[(&str, &str)]) -> Option<(u64, Micros)> {
    let rule = find(domain, entries)?;
    let [limit] = &rule.limits[..] else { panic!("one limit in {rule:?}") };
    assert_eq!(limit.limit.algorithm(), Algorithm::FixedWindow, "as these operators expect");
    Some((limit.limit.requests(), limit.limit.window()))
}

#[test]
fn nested_descriptors_match_at_equal_depth() {
    let domain = domain(
        "---
domain: mail
descriptors:
  # Marketing mail to one address.
  - key: kind
    value: marketing
    descriptors:
      - key: to
        rate_limit:
          unit: day
          requests_per_unit: 5

  - key: to
    rate_limit:
      requests_per_unit: 100
      unit: day
",
    );
    assert_eq!(limit(&domain, &[("kind", "marketing"), ("to", "+49 30")]), Some((5, DAY)));
    assert_eq!(limit(&domain, &[("to", "+49 30")]), Some((100, DAY)));
    assert_eq!(limit(&domain, &[("kind", "marketing")]), None);
    assert_eq!(limit(&domain, &[("to", "+49 30"), ("kind", "marketing")]), None);
    assert_eq!(limit(&domain, &[("kind", "other"), ("to", "+49 30")]), None);
}

#[test]
fn a_value_wins_over_the_key_alone_and_may_lift_it() {
    let domain = domain(
        "domain: edge
descriptors:
  - key: remote_address
    rate_limit: {unit: second, requests_per_unit: 10}
  - key: remote_address
    value: 50.0.0.5
    rate_limit: {unit: second, requests_per_unit: 0}
  - key: remote_address
    value: 50.0.0.6
",
    );
    assert_eq!(limit(&domain, &[("remote_address", "50.0.0.1")]), Some((10, SECOND)));
    assert_eq!(limit(&domain, &[("remote_address", "50.0.0.5")]), Some((0, SECOND)));
    assert_eq!(limit(&domain, &[("remote_address", "50.0.0.6")]), None, "a value without a limit lifts it");
}

#[test]
fn units_in_any_case() {
    let units =
        [("second", SECOND), ("MINUTE", MINUTE), ("Hour", HOUR), ("day", DAY), ("week", WEEK), ("month", MONTH), ("YEAR", YEAR)];
    let rules = units.map(|(unit, _)| format!("  - key: {unit}\n    rate_limit: {{unit: {unit}, requests_per_unit: 7}}\n"));
    let domain = domain(&format!("domain: units\ndescriptors:\n{}", rules.concat()));
    for (unit, window) in units {
        assert_eq!(limit(&domain, &[(unit, "x")]), Some((7, window)), "{unit}");
    }
}

#[test]
fn wildcards_stand_anywhere_and_the_first_wins() {
    let domain = domain(
        "domain: wild
descriptors:
  - {key: path, value: /api/*/action, rate_limit: {unit: minute, requests_per_unit: 1}}
  - {key: path, value: /api/*, rate_limit: {unit: minute, requests_per_unit: 2}}
  - {key: path, value: '*.html', rate_limit: {unit: minute, requests_per_unit: 3}}
  - {key: path, value: /api/exact, rate_limit: {unit: minute, requests_per_unit: 4}}
  - {key: path, rate_limit: {unit: minute, requests_per_unit: 5}}
  - {key: route, value: a*b*c, rate_limit: {unit: minute, requests_per_unit: 6}}
",
    );
    let requests = |key, value| limit(&domain, &[(key, value)]).map(|(requests, _)| requests);
    let paths =
        ["/api/1/action", "/api/1/other", "/index.html", "/api/exact", "/", "/api/x.html"].map(|path| requests("path", path));
    assert_eq!(paths, [Some(1), Some(2), Some(3), Some(4), Some(5), Some(2)]);
    assert_eq!([requests("route", "a-b-c"), requests("route", "a-c-b")], [Some(6), None]);
}

#[test]
fn a_shared_threshold_has_one_counter() {
    let domain = domain(
        "domain: shared
descriptors:
  - key: files
    value: files/*
    share_threshold: true
    rate_limit: {unit: hour, requests_per_unit: 10}
  - key: own
    value: own/*
    share_threshold: false
    rate_limit: {unit: hour, requests_per_unit: 10}
  - key: route
    value: api/*
    share_threshold: true
    value_to_metric: true
    descriptors:
      - key: method
        rate_limit: {unit: minute, requests_per_unit: 60}
",
    );
    let parts = |entries: &[(&'static str, &'static str)]| {
        let entries: Vec<Entry<'static>> =
            entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect();
        let found = domain.tree.find(&entries).unwrap();
        found.parts.iter().map(|part| String::from_utf8_lossy(part.value).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(parts(&[("files", "files/a")]), ["files/*"]);
    assert_eq!(parts(&[("own", "own/a")]), ["own/a"]);
    assert_eq!(parts(&[("route", "api/v1"), ("method", "GET")]), ["api/*", "GET"]);
}

#[test]
fn unlimited_shadow_quota_names_and_metadata() {
    let domain = domain(
        "domain: flags
descriptors:
  - key: free
    rate_limit:
      unlimited: true
  - key: watched
    shadow_mode: true
    rate_limit: {unit: second, requests_per_unit: 10}
  - key: shared
    quota_mode: true
    detailed_metric: true
    rate_limit:
      name: banned
      unit: minute
      requests_per_unit: 1
    metadata:
      service_with_quota: {name: one, weight: 2, ratio: 0.5, on: [true, null]}
  - key: stronger
    rate_limit:
      replaces:
        - name: banned
      unit: minute
      requests_per_unit: 2
",
    );
    let rule = |key| find(&domain, &[(key, "x")]).unwrap();
    assert!(rule("free").unlimited && rule("free").limits.is_empty());
    assert!(rule("watched").shadow && !rule("watched").quota);
    assert!(rule("shared").quota && rule("shared").label() == "banned");
    assert_eq!(*rule("stronger").replaces, [Box::from("banned")]);
    let metadata = serde_json::json!({"service_with_quota": {"name": "one", "weight": 2, "ratio": 0.5, "on": [true, null]}});
    assert_eq!(rule("shared").metadata.clone().map(serde_json::Value::Object), Some(metadata));
}

#[test]
fn yaml_1_1_booleans_mean_what_they_meant() {
    for (written, meant) in [("yes", true), ("On", true), ("Y", true), ("no", false), ("OFF", false), ("n", false), ("True", true)]
    {
        let loaded = load(&format!(
            "domain: d\ndescriptors:\n  - key: k\n    shadow_mode: {written}\n    quota_mode: {written}\n    rate_limit:\n      \
             unit: second\n      requests_per_unit: 1\n"
        ));
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        let lines: Vec<u32> =
            loaded.warnings.iter().flat_map(|warning| [vec![warning.line], warning.also_on.clone()].concat()).collect();
        assert_eq!(lines, if written == "True" { vec![] } else { vec![4, 5] }, "{written}: {}", loaded.warnings);
        let domain = loaded.rules.domains.values().next().unwrap();
        assert_eq!((domain.rules[0].shadow, domain.rules[0].quota), (meant, meant), "{written}");
    }
}

#[test]
fn scalars_that_are_no_text_are_compared_as_written() {
    let domain = domain(
        "domain: 2024
descriptors:
  - {key: code, value: 404, rate_limit: {unit: second, requests_per_unit: 1}}
  - {key: version, value: 1.10, rate_limit: {unit: second, requests_per_unit: 2}}
  - {key: enabled, value: true, rate_limit: {unit: second, requests_per_unit: 3}}
  - {key: answer, value: yes, rate_limit: {unit: second, requests_per_unit: 4}}
  - {key: none, value: null, rate_limit: {unit: second, requests_per_unit: 5}}
  - {key: empty, value: '', rate_limit: {unit: second, requests_per_unit: 6}}
",
    );
    assert_eq!(&*domain.name, "2024");
    let cases = [("code", "404"), ("version", "1.10"), ("enabled", "true"), ("answer", "yes"), ("none", "any"), ("empty", "any")];
    for (place, (key, value)) in cases.into_iter().enumerate() {
        assert_eq!(limit(&domain, &[(key, value)]), Some((place as u64 + 1, SECOND)), "{key}");
    }
    assert_eq!(limit(&domain, &[("version", "1.1")]), None);
}

#[test]
fn numbers_as_yaml_1_1_wrote_them() {
    for (written, requests) in [("1_000", 1000), ("0x10", 16), ("1e3", 1000), ("4294967295", u64::from(u32::MAX))] {
        let domain = domain(&format!(
            "domain: d\ndescriptors:\n  - key: k\n    rate_limit: {{unit: second, requests_per_unit: {written}}}\n"
        ));
        assert_eq!(limit(&domain, &[("k", "v")]), Some((requests, SECOND)), "{written}");
    }
}

#[test]
fn anchors_and_merge_keys() {
    let domain = domain(
        "domain: anchors
descriptors:
  - key: a
    rate_limit: &limit {unit: minute, requests_per_unit: 7}
  - key: b
    rate_limit: *limit
  - key: c
    rate_limit: {<<: *limit, requests_per_unit: 8}
",
    );
    let requests = ["a", "b", "c"].map(|key| limit(&domain, &[(key, "x")]).unwrap().0);
    assert_eq!(requests, [7, 7, 8]);
}

#[test]
fn domains_are_merged_when_asked_for() {
    let texts = [
        ("one.yaml", "domain: d\ndescriptors:\n  - {key: a, rate_limit: {unit: minute, requests_per_unit: 1}}\n"),
        ("two.yaml", "domain: d\ndescriptors:\n  - {key: b, rate_limit: {unit: minute, requests_per_unit: 2}}\n"),
    ];
    let merging = LoadOptions { merge_domains: true, ..LoadOptions::default() };
    let loaded = load_texts(&texts, &merging, &RuleSet::default());
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    let domain = loaded.rules.domains.values().next().unwrap();
    assert_eq!([limit(domain, &[("a", "x")]), limit(domain, &[("b", "x")])], [Some((1, MINUTE)), Some((2, MINUTE))]);
    assert_eq!(load_texts(&texts, &LoadOptions::default(), &RuleSet::default()).problems.len(), 1);
}

/// Whichever file a setting stands in, and whatever that is called.
#[test]
fn settings_of_merged_domains_do_not_depend_on_the_order_of_files() {
    let parts = [
        "tiers: {free: {limits: [100/hour], burst: +10}, pro: {limits: {default: [1000/hour], read: 9/hour}, quota: {daily: 5}}}\ndescriptors: []\n",
        "defaults: {algorithm: leaky_bucket, on_store_failure: deny}\ndescriptors: []\n",
        "default_tier: pro\ntimezone: Europe/Berlin\ndescriptors: []\n",
        "priority: {entry: class, reserve: {low: 50%}}\ncosts: {method: {POST: 2}}\nsubject: user\naddresses: ip\ndescriptors: []\n",
        "descriptors:\n  - {key: user, rate_limit: {tier: {entry: tier}}}\n  - {key: ip, limits: 5/minute, reserve: true}\n",
    ];
    let merging = LoadOptions { merge_domains: true, ..LoadOptions::default() };
    let load = |order: &[usize]| {
        let named = order.iter().map(|&part| format!("domain: d\n{}", parts[part])).enumerate();
        let files: Vec<(String, String)> = named.map(|(place, text)| (format!("{place}.yaml"), text)).collect();
        let texts: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
        let loaded = load_texts(&texts, &merging, &RuleSet::default());
        assert!(loaded.problems.is_empty(), "{order:?}: {}", loaded.problems);
        loaded.rules.domains.values().next().unwrap().clone()
    };
    let first = load(&[0, 1, 2, 3, 4]);
    let counted = &first.rules[0].tiers.as_ref().unwrap().limits[0].limits[0].limit;
    assert_eq!((counted.algorithm(), counted.burst()), (Algorithm::LeakyBucket, 110));
    for order in [[4, 3, 2, 1, 0], [1, 0, 4, 2, 3], [2, 4, 0, 3, 1]] {
        let other = load(&order);
        let rules = |domain: &Domain| -> Vec<_> {
            let rules = domain.rules.iter().cloned();
            rules.map(|rule| (rule.limits, rule.tiers, rule.reserve, rule.on_store_failure)).collect()
        };
        assert_eq!(rules(&first), rules(&other), "{order:?}");
        assert!(first.plans.means(&other.plans), "{order:?}");
        assert_eq!(
            (&first.subject, &first.addresses, first.on_store_failure),
            (&other.subject, &other.addresses, other.on_store_failure)
        );
    }
}

#[test]
fn pairs_are_never_joined() {
    let domain = domain(
        "domain: pairs
descriptors:
  - {key: a, value: b_c, rate_limit: {unit: minute, requests_per_unit: 1}}
  - {key: a_b, value: c, rate_limit: {unit: minute, requests_per_unit: 2}}
",
    );
    assert_eq!([limit(&domain, &[("a", "b_c")]), limit(&domain, &[("a_b", "c")])], [Some((1, MINUTE)), Some((2, MINUTE))]);
}

#[test]
fn fifty_thousand_rules_load() {
    let rule = |n| format!("  - {{key: user, value: u{n}, rate_limit: {{unit: minute, requests_per_unit: {n}}}}}\n");
    let domain = domain(&format!("domain: big\ndescriptors:\n{}", (0..50_000).map(rule).collect::<String>()));
    assert_eq!(domain.rules.len(), 50_000);
    assert_eq!(limit(&domain, &[("user", "u49999")]), Some((49_999, MINUTE)));
}

/// What that service accepts, and what would refuse or admit everything by mistake.
#[test]
fn harmful_mistakes_are_errors_here() {
    let mistakes = [
        ("no number", "  - {key: a, rate_limit: {unit: minute}}\n"),
        ("shadow_mode in rate_limit", "  - {key: a, rate_limit: {unit: minute, requests_per_unit: 1, shadow_mode: true}}\n"),
        ("the same key twice", "  - {key: a, key: a, rate_limit: {unit: minute, requests_per_unit: 1}}\n"),
        ("a limit beside the key", "  - {key: a, unit: minute, requests_per_unit: 1}\n"),
    ];
    for (mistake, descriptors) in mistakes {
        let loaded = load(&format!("domain: d\ndescriptors:\n{descriptors}"));
        assert_eq!(loaded.problems.len(), 1, "{mistake}: {}", loaded.problems);
        assert_eq!(loaded.rules.revision, 0);
    }
    assert_eq!(load("domain: d\ndescriptors: []\n---\ndomain: d\ndescriptors: []\n").problems.len(), 1, "the second document");
}

/// What that service accepts and ignores.
#[test]
fn idle_keys_are_warnings_here() {
    let idle = [
        ("an empty limit", "  - key: a\n    rate_limit:\n"),
        ("a mode without a limit", "  - {key: a, shadow_mode: true, descriptors: [{key: b}]}\n"),
        ("an unknown rule", "  - {key: a, rate_limit: {unit: minute, requests_per_unit: 1, replaces: [{name: b}]}}\n"),
        ("a number nobody reads", "  - {key: a, rate_limit: {unlimited: true, requests_per_unit: 1}}\n"),
        ("a unit nobody reads", "  - {key: a, rate_limit: {unlimited: true, unit: fortnight}}\n"),
        ("no name", "  - {key: a, rate_limit: {unit: minute, requests_per_unit: 1, name: ''}}\n"),
        (
            "a wildcard that cannot match",
            "  - {key: a, value: x*, rate_limit: {unit: minute, requests_per_unit: 1}}\n  - {key: a, value: xy*, rate_limit: {unit: \
             minute, requests_per_unit: 1}}\n",
        ),
    ];
    for (what, descriptors) in idle {
        let loaded = load(&format!("domain: d\ndescriptors:\n{descriptors}"));
        assert_eq!((loaded.problems.len(), loaded.warnings.len()), (0, 1), "{what}: {}", loaded.problems);
        assert_eq!(loaded.rules.domains.len(), 1);
    }
    for document in ["domain: d\n", "domain: d\ndescriptors:\n", "name: d\ndomain: d\ndescriptors: []\n"] {
        let loaded = load(document);
        assert_eq!((loaded.problems.len(), loaded.warnings.len()), (0, 1), "{document}: {}", loaded.problems);
    }
}
