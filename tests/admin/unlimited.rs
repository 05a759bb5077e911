//! What `usage` and `tiers` say where a limit does not count: an unlimited tier, a key that no rule counts by, -1.

use serde_json::{Value, json};

use crate::client::done;
use crate::mistakes::{of, start, warnings};
use crate::support::weir::Settings;

#[tokio::test]
async fn usage_says_what_is_unlimited_and_what_is_not_counted() {
    let weir = start().await;
    let usage = async |subject: &str| done(&weir, "GET", &of(subject, "/usage"), json!(null)).await;
    let unlimited = |usage: &Value| -> Vec<(String, String, String)> {
        let text = |rule: &Value, field: &str| rule[field].as_str().expect("a text").to_owned();
        let rules = usage["unlimited"].as_array().expect("a list");
        rules.iter().map(|rule| (text(rule, "rule"), text(rule, "by"), text(rule, "tier"))).collect()
    };
    let of_rule = |rule: &str, by: &str, tier: &str| (rule.to_owned(), by.to_owned(), tier.to_owned());
    assert!(unlimited(&usage("user_id=u1").await).is_empty());
    done(&weir, "PUT", &of("user_id=u1", "/tier"), json!({"tier": "enterprise"})).await;
    let by_tier = usage("user_id=u1").await;
    assert_eq!(unlimited(&by_tier), [of_rule("per-user", "tier", "enterprise")]);
    assert_eq!((&by_tier["limits"], &by_tier["tier"]), (&json!([]), &json!("enterprise")));
    assert_eq!(unlimited(&usage("remote_address=10.0.0.1").await), [of_rule("internal", "rule", "")]);
    done(&weir, "PATCH", &of("tenant=t1", ""), json!({"limits": [{"unlimited": true, "monthly": -1}]})).await;
    assert_eq!(unlimited(&usage("tenant=t1").await), [of_rule("per-tenant", "override", "")]);
    let nested = Settings::with_rules(
        "{domain: api, subject: [user_id], descriptors: [{key: path, descriptors: [{key: user_id, name: ai, limits: [1/hour]}]}]}",
    );
    let usage = done(&nested.start().await, "GET", &of("user_id=u1", "/usage"), json!(null)).await;
    assert_eq!(warnings(&usage), ["nothing of user_id=u1 is counted yet; rules that count it: `ai` (path,user_id)"]);
}

#[tokio::test]
async fn usage_says_what_decides_without_counting() {
    let rules = r"
domain: api
subject: [path, user_id]
descriptors:
  - {key: path, value: /internal/*, name: internal, deny: true}
  - {key: path, value: /health, name: health, allow: true}
";
    let weir = Settings::with_rules(rules).start().await;
    for (path, expected) in [
        ("%2Finternal%2Fx", "rules that refuse it and count nothing (`deny: true`): `internal` (path=/internal/*)"),
        ("%2Fhealth", "rules that admit it and count nothing (`allow: true`): `health` (path=/health)"),
    ] {
        let usage = done(&weir, "GET", &of(&format!("path={path}"), "/usage"), json!(null)).await;
        assert_eq!(warnings(&usage), [expected]);
    }
}

#[tokio::test]
async fn usage_shows_the_tier_whose_limits_it_shows() {
    let rules = r"
domain: api
subject: user_id
tiers: {free: {limits: [2/hour]}, pro: {limits: [9/hour]}}
default_tier: free
descriptors:
  - {key: user_id, name: per-user, rate_limit: {tier: {entry: tier}}}
";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    done(&weir, "PUT", &of("user_id=u1", "/tier"), json!({"tier": "pro"})).await;
    for (query, tier) in [("", ""), ("?tier=free", "free")] {
        let usage = done(&weir, "GET", &of("user_id=u1", &format!("/usage{query}")), json!(null)).await;
        assert_eq!((&usage["tier"], &usage["limits"][0]["requests"]), (&json!(tier), &json!(2)));
        assert!(warnings(&usage)[0].starts_with("the assignment has no effect"), "{usage}");
    }
}

#[tokio::test]
async fn minus_one_is_unlimited_as_in_the_files() {
    let weir = start().await;
    let policies = async || {
        let usage = done(&weir, "GET", &of("tenant=t1", "/usage"), json!(null)).await;
        let limits = usage["limits"].as_array().expect("a list").clone();
        limits.iter().map(|limit| limit["policy"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(policies().await, ["per-tenant", "per-tenant/monthly"]);
    let change =
        async |limits: Value| done(&weir, "PATCH", &of("tenant=t1", ""), json!({"limits": [limits]})).await["limits"][0].clone();
    assert_eq!(change(json!({"monthly": -1})).await["monthly"], -1);
    assert_eq!(policies().await, ["per-tenant"]);
    let exported = done(&weir, "GET", "/v1/records", json!(null)).await;
    assert_eq!(exported["subjects"][0]["limits"][0]["monthly"], -1);
    done(&weir, "POST", "/v1/records", exported.clone()).await;
    assert_eq!(done(&weir, "GET", "/v1/records", json!(null)).await, exported);
    assert_eq!(change(json!({"monthly": 7})).await["monthly"], 7);
    assert_eq!(change(json!({"limits": [{"limit": "-1/hour"}]})).await["unlimited"], true);
    assert_eq!(policies().await, ["per-tenant/monthly"]);
    let tier = done(&weir, "PUT", "/v1/domains/api/tiers/pro", json!({"limits": [{"limit": "1/hour"}], "daily": -1})).await;
    assert!(tier.get("daily").is_none(), "{tier}");
}

#[tokio::test]
async fn tiers_are_those_of_the_files_and_those_of_the_run_time() {
    let weir = start().await;
    done(&weir, "PUT", "/v1/domains/api/tiers/pro", json!({"limits": [{"limit": "99/hour"}]})).await;
    done(&weir, "PUT", "/v1/domains/api/tiers/team", json!({"limits": [{"limit": "7/hour"}]})).await;
    let listed = done(&weir, "GET", "/v1/domains/api/tiers", json!(null)).await;
    let text = |tier: &Value, field: &str| tier[field].as_str().unwrap_or_default().to_owned();
    let rows: Vec<_> = listed["tiers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|tier| (text(tier, "name"), text(tier, "source"), tier["replaces_file"] == true, text(&tier["limits"][0], "limit")))
        .collect();
    let row = |name: &str, source: &str, replaces, limit: &str| (name.to_owned(), source.to_owned(), replaces, limit.to_owned());
    assert_eq!(
        rows,
        [
            row("enterprise", "rules.yaml:7", false, "unlimited"),
            row("free", "rules.yaml:5", false, "2/hour"),
            row("pro", "run time", true, "99/hour"),
            row("team", "run time", false, "7/hour"),
        ]
    );
    done(&weir, "DELETE", "/v1/domains/api/tiers/pro", json!(null)).await;
    let listed = done(&weir, "GET", "/v1/domains/api/tiers", json!(null)).await;
    let pro = &listed["tiers"][2];
    assert_eq!((&pro["source"], &pro["daily"], &pro["priority"]), (&json!("rules.yaml:6"), &json!(50), &json!("high")));
    assert_eq!((&pro["sets"][0]["name"], &pro["sets"][0]["limits"][0]["limit"]), (&json!("write"), &json!("3/hour")));
}
