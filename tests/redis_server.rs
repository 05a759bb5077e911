//! A weir whose counters are in Redis, from outside: when it is ready, what it answers meanwhile, what its metrics say.

mod support;

use std::collections::BTreeMap;

use prost_types::value::Kind;
use support::redis::RedisServer;
use support::weir::{Settings, Weir, descriptor};
use support::{eventually, http};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

const RULES: &str = "domain: d
descriptors:
  - {key: error, rate_limit: 10/day}
  - {key: allow, rate_limit: 10/day, on_store_failure: allow}
  - {key: deny, rate_limit: 10/day, on_store_failure: deny}
  - {key: local, rate_limit: 10/day, on_store_failure: local}
  - {key: open, rate_limit: unlimited}
";

async fn ask(weir: &Weir, keys: &[&str]) -> Result<RateLimitResponse, (Code, String)> {
    let descriptors = keys.iter().map(|key| descriptor(&[(key, "x")])).collect();
    let request = RateLimitRequest { domain: "d".into(), descriptors, hits_addend: 0 };
    let answer = weir.client().await.should_rate_limit(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| (status.code(), status.message().to_owned()))
}

/// The overall code, and what the metadata says answered in the store's place.
async fn degraded(weir: &Weir, keys: &[&str]) -> (i32, Option<String>) {
    let answer = ask(weir, keys).await.expect("an answer");
    let mut fields = answer.dynamic_metadata.map_or_else(BTreeMap::new, |metadata| metadata.fields);
    let mode = fields.remove("degraded").and_then(|value| value.kind).map(|kind| match kind {
        Kind::StringValue(mode) => mode,
        other => panic!("{other:?}"),
    });
    assert!(fields.is_empty(), "nobody asked for {fields:?}");
    (answer.overall_code, mode)
}

async fn metric(weir: &Weir, name: &str) -> u64 {
    let scrape = http::get(weir.admin, "/metrics").await.expect("a scrape").body;
    let line = scrape.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let value = line.unwrap_or_else(|| panic!("no {name} in {scrape}")).rsplit(' ').next().expect("a value");
    value.parse().expect("a number")
}

#[tokio::test]
async fn without_redis_it_listens_is_not_ready_and_answers_as_the_rules_say() {
    let mut redis = RedisServer::start();
    redis.kill();
    let weir = Settings::with_rules(RULES).flag("--store", &redis.url()).launch().await;
    assert_eq!(weir.health().await, Some(ServingStatus::NotServing));
    let healthcheck = async || http::get(weir.http, "/healthcheck").await.expect("an answer");
    eventually("the rules are loaded", async || healthcheck().await.body == "the store is not available").await;
    assert_eq!(healthcheck().await.status, 503);

    assert_eq!(ask(&weir, &["error"]).await.expect_err("no answer").0, Code::Unavailable);
    assert_eq!(degraded(&weir, &["allow"]).await, (1, Some("allow".into())));
    assert_eq!(degraded(&weir, &["deny"]).await, (2, Some("deny".into())));
    assert_eq!(degraded(&weir, &["local"]).await, (1, Some("local".into())));
    assert_eq!(degraded(&weir, &["allow", "deny"]).await, (2, Some("deny".into())));
    assert_eq!(degraded(&weir, &["open"]).await, (1, None), "it has no limit to ask for");
    assert_eq!(ask(&weir, &["allow", "error"]).await.expect_err("no answer").0, Code::Unavailable);
    for (mode, expected) in [("allow", 1), ("deny", 2), ("local", 1)] {
        assert_eq!(metric(&weir, &format!("weir_degraded_decisions_total{{mode=\"{mode}\"}}")).await, expected, "{mode}");
    }
    assert_eq!(metric(&weir, "weir_errors_total{kind=\"unavailable\"}").await, 2);

    redis.restart();
    eventually("it is ready", async || weir.is_healthy().await).await;
    assert_eq!(weir.health().await, Some(ServingStatus::Serving));
    eventually("Redis decides", async || ask(&weir, &["error"]).await.is_ok()).await;
    assert_eq!(degraded(&weir, &["local"]).await, (1, None));
    assert!(metric(&weir, "weir_store_latency_seconds_count").await >= 2);
}

#[tokio::test]
async fn replicas_share_a_limit_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let start = || Settings::with_rules(RULES).redis(&redis.url()).start();
    let (first, second) = (start().await, start().await);
    // Each hears of the other with its next heartbeat.
    let replicas = async || redis.command::<u32>(&["ZCARD", "w1|replicas"]).await;
    eventually("both have said that they live", async || replicas().await == 2).await;
    for weir in [&first, &second] {
        eventually("it has heard of both", async || metric(weir, "weir_replicas").await == 2).await;
    }
    redis.kill();
    for weir in [&first, &second] {
        let mut codes = Vec::new();
        for _ in 0..7 {
            codes.push(degraded(weir, &["local"]).await);
        }
        let admitted = codes.iter().filter(|(code, _)| *code == 1).count();
        assert_eq!(admitted, 5, "half of ten: {codes:?}");
    }
}

#[tokio::test]
async fn a_fixed_number_of_replicas_is_taken_at_its_word() {
    let mut redis = RedisServer::start();
    redis.kill();
    let weir = Settings::with_rules(RULES).flag("--store", &redis.url()).flag("--replicas", "5").launch().await;
    eventually("the setting is in force", async || metric(&weir, "weir_replicas").await == 5).await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(degraded(&weir, &["local"]).await.0);
    }
    assert_eq!(codes, [1, 1, 2]);
}

#[tokio::test]
async fn refusals_need_not_be_asked_again_if_there_is_room_to_remember_them() {
    let redis = RedisServer::start();
    let settings = Settings::with_rules("domain: d\ndescriptors:\n  - {key: error, rate_limit: 0/day}\n");
    let weir = settings.redis(&redis.url()).env("LOCAL_CACHE_SIZE_IN_BYTES", "1000000").start().await;
    let asked = async || metric(&weir, "weir_store_latency_seconds_count").await;
    eventually("a refusal is remembered", async || {
        let before = asked().await;
        assert_eq!(ask(&weir, &["error"]).await.expect("an answer").overall_code, 2);
        assert_eq!(ask(&weir, &["error"]).await.expect("an answer").overall_code, 2);
        // A slow machine may take longer for the two than the second that it is remembered for.
        asked().await == before + 1
    })
    .await;
}
