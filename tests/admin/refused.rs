//! What the admin API does not take, and what it says of it.

use serde_json::{Value, json};

use crate::client::{call, done, subject};
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
