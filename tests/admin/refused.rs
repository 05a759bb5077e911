//! What the admin API does not take, and what it says of it.

use serde_json::{Value, json};

use crate::client::{call, done, open, subject};
use crate::support::weir::{Settings, Weir};

const RULES: &str = r"
domain: api
subject: [user_id, tenant]
default_tier: free
tiers: {free: {limits: [{unit: hour, requests_per_unit: 10, algorithm: token_bucket}]}}
descriptors:
  - {key: user_id, name: per-user, limits: [{unit: hour, requests_per_unit: 10, algorithm: token_bucket}]}
  - {key: path, name: per-path, rate_limit: {unit: hour, requests_per_unit: 3}}
  - {key: tenant, name: per-tenant, rate_limit: {tier: {assigned: tenant}}}
";

/// What is said of a call that is refused.
async fn refusal(weir: &Weir, method: &str, path: &str, body: Value) -> String {
    let answer = call(weir, method, path, body.clone()).await;
    assert_eq!(answer.status, 400, "{method} {path} {body}: {}", answer.body);
    answer.body
}

#[tokio::test]
async fn two_limits_that_would_be_one_counter() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let (plain, larger) = (json!({"limit": "4/minute"}), json!({"limit": "8/minute"}));
    let named = |algorithm: &str| json!({"limit": "8/minute", "algorithm": algorithm});
    let path = subject("u1");
    for (limits, expected) in [
        (json!({"limits": [plain, larger]}), "two limits over the same time"),
        (json!({"limits": [{"limit": "4/minute; 8/minute"}]}), "two limits over the same time"),
        (json!({"limits": [named("leaky_bucket"), named("leaky_bucket")]}), "two limits of leaky_bucket over the same time"),
        (json!({"rule": "per-user", "limits": [plain, named("token_bucket")]}), "two limits of token_bucket over the same time"),
        (json!({"rule": "per-path", "limits": [plain, named("fixed_window")]}), "two limits of fixed_window over the same time"),
        (json!({"rule": "per-tenant", "limits": [plain, named("token_bucket")]}), "two limits of token_bucket over the same time"),
        (json!({"limits": [plain, named("token_bucket")]}), "two limits of token_bucket over the same time"),
    ] {
        let said = refusal(&weir, "PATCH", &path, json!({"limits": [limits]})).await;
        assert!(said.contains(expected) && said.contains("one counter with two sizes"), "{limits}: {said}");
    }
    for limits in [
        json!({"limits": [plain, {"limit": "8/hour"}]}),
        json!({"rule": "per-user", "limits": [plain, named("fixed_window")]}),
        json!({"rule": "per-path", "limits": [plain, named("token_bucket")]}),
    ] {
        done(&weir, "PATCH", &path, json!({"limits": [limits]})).await;
    }
    let tier = "/v1/domains/api/tiers/team";
    for body in [
        json!({"limits": [plain, larger]}),
        json!({"limits": [], "sets": [{"name": "write", "limits": [plain, larger]}]}),
        json!({"limits": [plain, named("token_bucket")]}),
    ] {
        let said = refusal(&weir, "PUT", tier, body).await;
        assert!(said.contains("one counter with two sizes"), "{said}");
    }
    done(&weir, "PUT", tier, json!({"limits": [plain, named("fixed_window")]})).await;
}

#[tokio::test]
async fn records_whose_limits_would_be_one_counter_are_not_imported() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let (plain, larger) = (json!({"limit": "4/minute"}), json!({"limit": "8/minute"}));
    let named = |algorithm: &str| json!({"limit": "8/minute", "algorithm": algorithm});
    let good = json!({"domain": "api", "subject": "user_id=good", "multiplier": 2});
    let of = |domain: &str, rule: &str, limits: Value| json!({"domain": domain, "subject": "user_id=bad", "limits": [{"limits": [{"limit": "9/day"}]}, {"rule": rule, "limits": limits}]});
    for (rule, limits, expected) in [
        ("per-path", json!([plain, named("fixed_window")]), "two limits of fixed_window over the same time"),
        ("per-user", json!([plain, named("token_bucket")]), "two limits of token_bucket over the same time"),
        ("per-tenant", json!([plain, named("token_bucket")]), "two limits of token_bucket over the same time"),
        ("", json!([plain, named("token_bucket")]), "limits[0] is for all rules, too"),
        ("per-path", json!([plain, larger]), "two limits over the same time"),
    ] {
        let said = refusal(&weir, "POST", "/v1/records", json!({"subjects": [good, of("api", rule, limits.clone())]})).await;
        let whole = ["`user_id=bad`", "`api`", expected, "nothing was imported"];
        assert!(whole.iter().all(|part| said.contains(part)), "{rule} {limits}: {said}");
    }
    let tier = |domain: &str| json!({"domain": domain, "name": "team", "limits": [plain, named("token_bucket")]});
    let said = refusal(&weir, "POST", "/v1/records", json!({"subjects": [good], "tiers": [tier("api")]})).await;
    assert!(said.contains("`team`") && said.contains("two limits of token_bucket over the same time"), "{said}");
    assert_eq!(done(&weir, "GET", "/v1/records", json!(null)).await["subjects"], json!([]), "nothing is imported");

    let elsewhere = of("not-loaded", "per-path", json!([plain, named("fixed_window")]));
    let apart = of("api", "per-path", json!([plain, named("token_bucket")]));
    let records = json!({"subjects": [good, elsewhere, apart], "tiers": [tier("not-loaded")], "force": true});
    assert_eq!(done(&weir, "POST", "/v1/records", records).await["imported"], 4);
}

#[tokio::test]
async fn a_multiplier_that_is_no_sensible_number() {
    let weir = open().start().await;
    let path = subject("u1");
    for multiplier in [json!(0), json!(-1), json!(0.000_000_1), json!(1_000_000.1), json!(1e300), json!("NaN"), json!("Infinity")] {
        let said = refusal(&weir, "PATCH", &path, json!({"multiplier": multiplier})).await;
        assert!(said.contains("is no multiplier: a number above 0") && said.contains("at most 1000000"), "{multiplier}: {said}");
    }
    for multiplier in [0.000_001, 1_000_000.0] {
        assert_eq!(done(&weir, "PATCH", &path, json!({"multiplier": multiplier})).await["multiplier"], multiplier);
    }
}

#[tokio::test]
async fn a_block_or_an_exemption_that_is_over_already() {
    let weir = open().start().await;
    for (field, expected) in [("blocked_until", "a block until"), ("allowed_until", "an exemption until")] {
        for time in ["2020-01-01T00:00:00Z", "1960-01-01T00:00:00Z"] {
            let said = refusal(&weir, "PATCH", &subject("u1"), json!({field: time})).await;
            assert!(said.contains(&format!("{expected} {time} is over already")), "{said}");
        }
    }
    assert_eq!(done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await["subjects"], json!([]));
}

#[tokio::test]
async fn a_history_that_ends_before_it_begins() {
    let weir = open().start().await;
    let path = format!("{}/history?from=2026-11-21&to=2026-11-20", subject("u1"));
    let said = refusal(&weir, "GET", &path, json!(null)).await;
    assert!(said.contains("`from` 2026-11-21 is after `to` 2026-11-20"), "{said}");
    done(&weir, "GET", &path.replace("11-21", "11-20"), json!(null)).await;
}

#[tokio::test]
async fn the_switch_of_an_unknown_domain() {
    let weir = open().start().await;
    let asked = call(&weir, "GET", "/v1/switch?domain=apis", json!(null)).await;
    let set = call(&weir, "PUT", "/v1/switch", json!({"domain": "apis", "switch": "allow"})).await;
    assert!(asked.body.contains("no domain `apis` is loaded"), "{}", asked.body);
    assert_eq!((asked.status, asked.body), (set.status, set.body));
}
