//! What a scrape tells of what operators said, and of what is kept for them.

use serde_json::json;

use crate::client::{RULES, decide, done, open, subject, user};
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};
use crate::support::{eventually, http};

async fn metric(weir: &Weir, name: &str) -> u64 {
    let scrape = http::get(weir.admin, "/metrics").await.expect("a scrape").body;
    let line = scrape.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let value = line.unwrap_or_else(|| panic!("no {name} in {scrape}")).rsplit(' ').next().expect("a value");
    value.parse().expect("a number")
}

async fn in_force(weir: &Weir) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, kind) in counts.iter_mut().zip(["subject", "tier", "switch"]) {
        *count = metric(weir, &format!("weir_records{{kind=\"{kind}\"}}")).await;
    }
    counts
}

async fn say(weir: &Weir) {
    for name in ["u1", "u2"] {
        done(weir, "PATCH", &subject(name), json!({"multiplier": 2})).await;
    }
    done(weir, "PUT", "/v1/domains/api/tiers/team", json!({"limits": [{"limit": "1/hour"}]})).await;
    done(weir, "PUT", "/v1/switch", json!({"domain": "api", "switch": "shadow"})).await;
}

#[tokio::test]
async fn records_are_counted_where_they_are_in_force() {
    let weir = open().start().await;
    assert_eq!(in_force(&weir).await, [0, 0, 0]);
    say(&weir).await;
    assert_eq!(in_force(&weir).await, [2, 1, 1]);
    done(&weir, "DELETE", &subject("u1"), json!(null)).await;
    assert_eq!(in_force(&weir).await, [1, 1, 1]);
    assert_eq!(metric(&weir, "weir_records_last_sync_timestamp_seconds").await, 0, "there is nothing to follow");
}

#[tokio::test]
async fn a_replica_tells_whether_it_follows_and_what_of_the_history_is_lost() {
    let mut redis = RedisServer::start();
    let rules = RULES.replace("\ndescriptors:", "\ndefaults: {on_store_failure: allow}\ndescriptors:");
    let start = || Settings::with_rules(&rules).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start();
    let (one, other) = (start().await, start().await);
    say(&one).await;
    eventually("the other one knows", async || in_force(&other).await == [2, 1, 1]).await;
    user(&other, "u1").await;
    eventually("a history is written", async || metric(&other, "weir_history_written_rows_total").await == 1).await;
    let synced = async || metric(&other, "weir_records_last_sync_timestamp_seconds").await;
    let before = synced().await;
    assert!(before > 0);
    eventually("it goes on following", async || synced().await > before).await;
    assert_eq!(metric(&other, "weir_records_sync_failures_total").await, 0);

    redis.kill();
    eventually("it follows no more", async || metric(&other, "weir_records_sync_failures_total").await > 0).await;
    let last = synced().await;
    user(&other, "u1").await;
    user(&other, "u2").await;
    let lost = "weir_history_dropped_total{reason=\"store\"}";
    eventually("the history of two subjects is lost", async || metric(&other, lost).await == 2).await;
    assert_eq!(synced().await, last);
    assert_eq!(in_force(&other).await, [2, 1, 1], "the last known stands");
    redis.restart();
    eventually("it follows again, an empty Redis", async || in_force(&other).await == [0, 0, 0] && synced().await > last).await;
}

#[tokio::test]
async fn callers_of_no_known_tier_are_counted() {
    let rules = "
domain: api
tiers: {free: {limits: [1/hour]}, pro: {limits: [5/hour]}}
default_tier: free
descriptors:
  - {key: user_id, rate_limit: {tier: {entry: tier}}}
  - {key: tenant, rate_limit: {tier: {assigned: tenant}}}
";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let unknown = async || metric(&weir, "weir_unknown_tier_total").await;
    for tier in ["free", "pro"] {
        decide(&weir, &[("user_id", "u1"), ("tier", tier)]).await;
    }
    assert_eq!(unknown().await, 0);
    assert_eq!(decide(&weir, &[("user_id", "u2"), ("tier", "gold")]).await, (true, 0));
    assert_eq!(decide(&weir, &[("user_id", "u3")]).await, (true, 0));
    assert_eq!(unknown().await, 2);
    assert_eq!(decide(&weir, &[("tenant", "t1")]).await, (true, 0));
    assert_eq!(unknown().await, 2, "nobody has to be assigned one");
    let call = (json!({"tier": "pro"}), "/v1/domains/api/subjects/tenant=t1/tier");
    done(&weir, "PUT", call.1, call.0).await;
    assert_eq!(decide(&weir, &[("tenant", "t1")]).await, (true, 3));
}

#[tokio::test]
async fn what_the_switch_allows_is_no_request_without_a_rule() {
    let rules = "{domain: api, descriptors: [{key: user_id, rate_limit: {unit: hour, requests_per_unit: 1}}]}";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let unmatched = "weir_unmatched_descriptors_total{domain=\"api\"}";
    done(&weir, "PUT", "/v1/switch", json!({"switch": "allow"})).await;
    for _ in 0..3 {
        assert!(decide(&weir, &[("user_id", "u1")]).await.0);
    }
    assert_eq!((metric(&weir, "weir_allowed_by_switch_total").await, metric(&weir, unmatched).await), (3, 0));
    done(&weir, "PUT", "/v1/switch", json!({"switch": "off"})).await;
    decide(&weir, &[("tenant", "t1")]).await;
    assert_eq!((metric(&weir, "weir_allowed_by_switch_total").await, metric(&weir, unmatched).await), (3, 1));
}
