//! A Redis that answers and takes no writes: a replica after a failover, one without memory. That is known after one call, and stays
//! so until it takes them again, for calls, readiness, metrics and the log alike. Every test runs the real binary.

mod support;

use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request};
use support::{eventually, http};
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitResponse;

const RULES: &str = "domain: d
descriptors:
  - {key: user, on_store_failure: allow, rate_limit: {unit: day, requests_per_unit: 1000}}
";
/// Calls that Redis refuses before it is believed to be asked again and again: several of every thread's probes.
const REFUSED: u64 = 20;

async fn weir(redis: &RedisServer) -> Weir {
    Settings::with_rules(RULES).redis(&redis.url()).start().await
}

/// Asks about one user.
async fn ask_once(weir: &Weir) -> RateLimitResponse {
    ask(&mut weir.client().await, request("d", &[&[("user", "u")]])).await
}

/// What is left, said by Redis.
async fn remaining(weir: &Weir) -> Option<u32> {
    let answer = ask_once(weir).await;
    answer.statuses[0].current_limit.as_ref().map(|_| answer.statuses[0].limit_remaining)
}

async fn metric(weir: &Weir, name: &str) -> Option<String> {
    let answer = http::get(weir.admin, "/metrics").await?;
    answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
}

/// Whether all that tells of the store says that it is away.
async fn is_told_away(weir: &Weir) -> bool {
    let [open, ready] = [metric(weir, "weir_store_breaker_open").await, metric(weir, "weir_ready").await];
    !weir.is_healthy().await && open.as_deref() == Some("1") && ready.as_deref() == Some("0")
}

async fn failed_calls(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).expect("the script was called");
    let (_, failed) = line.trim().rsplit_once("failed_calls=").expect("Redis counts them");
    failed.parse().expect("a number of calls")
}

/// Nothing says that the store is there while it refuses call after call.
async fn stays_away(weir: &Weir, redis: &RedisServer) {
    let before = failed_calls(redis).await;
    eventually("probes that are refused", async || {
        assert!(is_told_away(weir).await, "{}", weir.log());
        failed_calls(redis).await >= before + REFUSED
    })
    .await;
}

/// How many lines of the log say this.
fn said(weir: &Weir, what: &str) -> usize {
    weir.log().lines().filter(|line| line.contains(what)).count()
}

async fn comes_back(weir: &Weir) {
    eventually("a store that is there again", async || {
        weir.is_healthy().await && metric(weir, "weir_store_breaker_open").await.as_deref() == Some("0")
    })
    .await;
}

/// One line when it went, one when it came back, and none for a connection.
fn is_told_once(weir: &Weir, connected: usize, reason: &str) {
    let log = weir.log();
    assert_eq!([said(weir, "Redis is failing"), said(weir, "Redis answers again")], [1, 1], "{log}");
    assert_eq!([said(weir, reason), said(weir, "still failing"), said(weir, "given up")], [1, 0, 0], "{log}");
    assert_eq!(said(weir, "connected to Redis"), connected, "{log}");
}

/// Refuses from one command on, and takes writes again from another one on; the log names the reason.
async fn refuses_and_recovers(refuse: &[&str], recover: &[&str], reason: &str) {
    let redis = RedisServer::start();
    let weir = weir(&redis).await;
    assert_eq!(remaining(&weir).await, Some(999));
    let connected = said(&weir, "connected to Redis");
    redis.command::<String>(refuse).await;
    ask_once(&weir).await;
    eventually("a store that is away", async || is_told_away(&weir).await).await;
    stays_away(&weir, &redis).await;
    redis.command::<String>(recover).await;
    comes_back(&weir).await;
    assert_eq!(remaining(&weir).await, Some(998), "a refused call was not counted");
    is_told_once(&weir, connected, reason);
}

#[tokio::test]
async fn one_that_became_a_replica() {
    refuses_and_recovers(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "read only replica").await;
}

#[tokio::test]
async fn one_without_memory() {
    refuses_and_recovers(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "maxmemory").await;
}

#[tokio::test]
async fn without_calls_it_is_told_too_and_so_is_another_reason() {
    let redis = RedisServer::start();
    let weir = weir(&redis).await;
    redis.command::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    eventually("a store that is away", async || is_told_away(&weir).await).await;
    redis.command::<String>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    eventually("the other reason", async || said(&weir, "read only replica") > 0).await;
    stays_away(&weir, &redis).await;
    let told = ["Redis is failing", "maxmemory", "still failing", "read only replica", "given up", "Redis answers again"];
    assert_eq!(told.map(|what| said(&weir, what)), [1, 1, 1, 1, 0, 0], "{}", weir.log());
}
