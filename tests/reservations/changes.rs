//! Rules, tiers and sizes may change between Reserve and Commit: the counters that were charged are adjusted, and no others.

use std::fs;

use serde_json::{Value, json};
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitResponse;

use super::RULES;
use super::client::{Answered as _, Caller, each_server, order};
use super::support::weir::{Weir, ask, request};
use super::support::{eventually, http};

const WITHOUT: &str = "domain: llm\ndescriptors: [{key: other, rate_limit: {unit: year, requests_per_unit: 7}}]\n";

/// Puts other rules in force: when a descriptor's limit is of that size, or there is none.
async fn reload(weir: &Weir, caller: &Caller, rules: &str, entries: &[(&str, &str)], size: Option<u32>) {
    fs::write(weir.rules_file(), rules).expect("the rules are writable");
    eventually("other rules", async || limit(&look(caller, entries).await) == size).await;
}

async fn look(caller: &Caller, entries: &[(&str, &str)]) -> RateLimitResponse {
    let mut look = request("llm", &[entries]);
    look.descriptors[0].hits_addend = Some(0);
    ask(&mut caller.limits.clone(), look).await
}

fn limit(answer: &RateLimitResponse) -> Option<u32> {
    answer.statuses[0].current_limit.as_ref().map(|limit| limit.requests_per_unit)
}

#[tokio::test]
async fn a_rule_that_is_gone_is_still_adjusted_and_there_again_later() {
    each_server(RULES, async |weir: &Weir, caller: Caller| {
        let entries: &[(&str, &str)] = &[("user", "a")];
        let asked = order(&[entries, &[("wide", "w")]], 80, "one");
        let reserved = caller.reserve(asked.clone()).await.unwrap();
        reload(weir, &caller, WITHOUT, entries, None).await;
        // Its name is in the domain of before: the reservation is still known, its limits are not.
        let again = caller.reserve(asked).await.unwrap();
        assert_eq!((again.is_allowed(), &again.id, again.expires_at), (true, &reserved.id, reserved.expires_at));
        assert_eq!(caller.commit(&reserved.id, 5).await, Ok((80, 5)));
        reload(weir, &caller, RULES, entries, Some(100)).await;
        assert_eq!((caller.remaining(entries).await, caller.remaining(&[("wide", "w")]).await), (95, 995));
        assert_eq!(caller.commit(&reserved.id, 5).await, Ok((80, 5)));
        assert_eq!(caller.remaining(entries).await, 95);
    })
    .await;
}

#[tokio::test]
async fn a_counter_is_adjusted_by_its_size_of_now() {
    each_server(RULES, async |weir: &Weir, caller: Caller| {
        for key in ["bucket", "user"] {
            let entries: &[(&str, &str)] = &[(key, "a")];
            let reserved = caller.reserve(order(&[entries], 80, "one")).await.unwrap();
            let larger = RULES.replace("requests_per_unit: 100}", "requests_per_unit: 1000}");
            reload(weir, &caller, &larger, entries, Some(1_000)).await;
            let mut more = request("llm", &[entries]);
            more.hits_addend = 500;
            ask(&mut caller.limits.clone(), more).await;
            // By the size of before, all that is above a debt of 200 would be forgotten.
            assert_eq!(caller.commit(&reserved.id, 10).await, Ok((80, 10)));
            assert_eq!(caller.remaining(entries).await, 490, "{key}");
            reload(weir, &caller, RULES, entries, Some(100)).await;
        }
    })
    .await;
}

const PLANS: &str = "
domain: llm
subject: user
tiers: {free: {limits: [100/year]}, pro: {limits: [1000 per 300d]}}
default_tier: free
descriptors:
  - {key: user, rate_limit: {tier: {assigned: user}}}
";

async fn assign(weir: &Weir, caller: &Caller, tier: &str, size: Option<u32>) {
    let body = json!({ "tier": tier }).to_string();
    let path = "/v1/domains/llm/subjects/user=a/tier";
    let headers: &[(&str, &[u8])] = &[("content-type", b"application/json")];
    let answer = http::send(weir.admin, "PUT", path, headers, body.as_bytes()).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    eventually("another tier", async || limit(&look(caller, &[("user", "a")]).await) == size).await;
}

#[tokio::test]
async fn another_tier_is_not_charged_for_what_the_first_one_was() {
    each_server(PLANS, async |weir: &Weir, caller: Caller| {
        let entries: &[(&str, &str)] = &[("user", "a")];
        let (one, two) = (order(&[entries], 40, "one"), order(&[entries], 20, "two"));
        let reserved = [caller.reserve(one).await.unwrap().id, caller.reserve(two).await.unwrap().id];
        assign(weir, &caller, "pro", Some(1_000)).await;
        assert_eq!(caller.commit(&reserved[0], 5).await, Ok((40, 5)));
        assert_eq!(caller.commit(&reserved[1], 30).await, Ok((20, 30)));
        assert_eq!(caller.remaining(entries).await, 1_000);
        assign(weir, &caller, "free", Some(100)).await;
        assert_eq!(caller.remaining(entries).await, 65);
    })
    .await;
}

/// The first descriptor is limited by the free tier alone.
const HALF_LIMITED: &str = "
domain: llm
subject: user
tiers: {free: {limits: [100/year]}, pro: {limits: [-1]}}
default_tier: free
descriptors:
  - {key: user, rate_limit: {tier: {assigned: user}}}
  - {key: wide, rate_limit: {unit: year, requests_per_unit: 1000}}
";

#[tokio::test]
async fn what_is_asked_again_by_another_tier_and_other_rules_is_charged_once() {
    each_server(HALF_LIMITED, async |weir: &Weir, caller: Caller| {
        let asked = order(&[&[("user", "a")], &[("wide", "w")]], 40, "one");
        let first = caller.reserve(asked.clone()).await.unwrap();
        let assert_same = async |caller: &Caller| {
            let again = caller.reserve(asked.clone()).await.unwrap();
            assert_eq!((again.is_allowed(), &again.id, again.expires_at), (true, &first.id, first.expires_at));
            assert_eq!(caller.remaining(&[("wide", "w")]).await, 960);
        };
        // What was first of its counters is not there any more.
        assign(weir, &caller, "pro", None).await;
        assert_same(&caller).await;
        let renamed = HALF_LIMITED.replace("{key: user, rate_limit: {tier: {assigned: user}}}", "{key: other, limits: [7/year]}");
        reload(weir, &caller, &renamed.replace("1000}", "1001}"), &[("wide", "w")], Some(1_001)).await;
        let again = caller.reserve(asked.clone()).await.unwrap();
        assert_eq!((&again.id, caller.remaining(&[("wide", "w")]).await), (&first.id, 961));
        assert_eq!(caller.commit(&first.id, 10).await, Ok((40, 10)));
        assert_eq!(caller.remaining(&[("wide", "w")]).await, 991);
    })
    .await;
}

/// The days of a subject's history, as sums: allowed, refused, cost.
async fn history(weir: &Weir) -> [u64; 3] {
    let answer = http::get(weir.admin, "/v1/domains/llm/subjects/user=a/history").await.expect("an answer");
    let history: Value = serde_json::from_str(&answer.body).expect("JSON");
    let days = history["days"].as_array().expect("a list").clone();
    ["allowed", "refused", "cost"].map(|field| days.iter().map(|day| day[field].as_u64().expect("a number")).sum())
}

#[tokio::test]
async fn history_has_the_true_cost() {
    each_server(PLANS, async |weir: &Weir, caller: Caller| {
        let entries: &[(&str, &str)] = &[("user", "a")];
        for (name, actual) in [("one", 7), ("two", 50)] {
            let reserved = caller.reserve(order(&[entries], 40, name)).await.unwrap();
            assert_eq!(caller.commit(&reserved.id, actual).await, Ok((40, actual)));
        }
        assert!(!caller.reserve(order(&[entries], 90, "three")).await.unwrap().is_allowed());
        eventually("a history of two requests and a refusal", async || history(weir).await == [2, 1, 57]).await;
    })
    .await;
}
