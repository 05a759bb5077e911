//! What is kept in Redis, and what becomes of reservations when Redis is away.

use tonic::Code;

use super::client::{Answered as _, Caller, Ordered as _, order};
use super::support::redis::RedisServer;
use super::support::weir::Settings;

const RULES: &str = "
domain: llm
descriptors:
  - {key: user, rate_limit: {unit: year, requests_per_unit: 100}}
  - {key: allow, on_store_failure: allow, rate_limit: {unit: year, requests_per_unit: 100}}
  - {key: deny, on_store_failure: deny, rate_limit: {unit: year, requests_per_unit: 100}}
  - {key: local, on_store_failure: local, rate_limit: {unit: year, requests_per_unit: 100}}
";

#[tokio::test]
async fn a_reservation_stands_beside_its_counters_for_as_long_as_it_is_known() {
    let redis = RedisServer::start();
    let server = Settings::with_rules(RULES).flag("--cache-key-prefix", "p:").redis(&redis.url()).start().await;
    let caller = Caller::of(&server).await;
    let reserved = caller.reserve(order(&[&[("user", "a")]], 40, "call-1")).await.unwrap();
    assert_eq!(reserved.id, "llm|{user=a}|reservation|call-1");
    let name = "p:w1|llm|{user=a}|reservation|call-1";
    let left: i64 = redis.command(&["PTTL", name]).await;
    assert!((1..=60_000).contains(&left), "{left} ms");
    let listed: Vec<String> = redis.command(&["ZRANGE", "p:w1|llm|{user=a}|index", "0", "-1"]).await;
    assert_eq!(listed, ["p:w1|llm|{user=a}|fixed_window|365d"], "what is reset is no reservation");
    assert_eq!(caller.commit(&reserved.id, 1).await, Ok((40, 1)));
    let left: i64 = redis.command(&["PTTL", name]).await;
    assert!((1..=60_000).contains(&left), "{left} ms");
}

#[tokio::test]
async fn nothing_is_kept_of_what_nothing_limits() {
    let redis = RedisServer::start();
    let server = Settings::with_rules(RULES).redis(&redis.url()).start().await;
    let caller = Caller::of(&server).await;
    let keys = async || redis.command::<Vec<String>>(&["KEYS", "*reservation*"]).await;
    for domain in ["llm", "unknown"] {
        let reserved = caller.reserve(order(&[&[("nobody", "limits")]], 40, "one").in_domain(domain)).await.unwrap();
        assert_eq!((reserved.is_allowed(), &*reserved.id, reserved.expires_at), (true, "unlimited|40", None));
        assert_eq!(keys().await, Vec::<String>::new(), "{domain}");
    }
    caller.reserve(order(&[&[("user", "a")]], 40, "one")).await.unwrap();
    assert_eq!(keys().await, ["w1|llm|{user=a}|reservation|one"]);
}

#[tokio::test]
async fn without_redis_there_is_no_reservation_to_commit() {
    let mut redis = RedisServer::start();
    let server = Settings::with_rules(RULES).redis(&redis.url()).start().await;
    let caller = Caller::of(&server).await;
    let before = caller.reserve(order(&[&[("user", "a")]], 40, "before")).await.unwrap();
    redis.kill();
    let refused = caller.reserve(order(&[&[("user", "a")]], 40, "one")).await.unwrap_err();
    assert_eq!((refused.0, caller.commit(&before.id, 1).await.unwrap_err().0), (Code::Unavailable, Code::Unavailable));
    for (mode, is_allowed) in [("allow", true), ("deny", false), ("local", true)] {
        let reserved = caller.reserve(order(&[&[(mode, "a")]], 40, "one")).await.unwrap();
        assert_eq!((reserved.is_allowed(), &*reserved.degraded, &*reserved.id), (is_allowed, mode, ""), "{reserved:?}");
        assert_eq!(reserved.expires_at, None);
    }
    // Its own memory has counted 40 by then.
    let reserved = caller.reserve(order(&[&[("local", "a")]], 61, "two")).await.unwrap();
    assert_eq!((reserved.is_allowed(), &*reserved.degraded), (false, "local"));
    redis.restart();
    super::support::eventually("Redis to be asked again", async || {
        let again = caller.commit(&before.id, 1).await.unwrap_err();
        assert!(matches!(again.0, Code::Unavailable | Code::NotFound), "{again:?}");
        again.0 == Code::NotFound
    })
    .await;
}

#[tokio::test]
async fn what_is_no_reservation_is_left_as_it_is() {
    let redis = RedisServer::start();
    let server = Settings::with_rules(RULES).redis(&redis.url()).start().await;
    let caller = Caller::of(&server).await;
    let name = "w1|llm|{user=a}|reservation|one";
    for foreign in [&["SET", name, "x"], &["LPUSH", name, "x"]] {
        redis.command::<deadpool_redis::redis::Value>(&["DEL", name]).await;
        redis.command::<deadpool_redis::redis::Value>(foreign).await;
        let refused = caller.reserve(order(&[&[("user", "a")]], 40, "one")).await.unwrap_err();
        assert_eq!(refused.0, Code::Unavailable, "{}", refused.1);
        assert!(refused.1.contains("not one of ours"), "{}", refused.1);
        let refused = caller.commit("llm|{user=a}|reservation|one", 1).await.unwrap_err();
        assert_eq!(refused.0, Code::Unavailable, "{}", refused.1);
        assert_eq!(caller.remaining(&[("user", "a")]).await, 100);
    }
}

/// As a replica meets it whose upgrade is still to come.
#[tokio::test]
async fn a_reservation_of_a_newer_weir_is_called_so() {
    let redis = RedisServer::start();
    let server = Settings::with_rules(RULES).redis(&redis.url()).start().await;
    let caller = Caller::of(&server).await;
    let reserved = caller.reserve(order(&[&[("user", "a")]], 40, "one")).await.unwrap();
    // After the reservation's numbers and the outcome of its one check; its version is the fourth byte of
    // what is kept.
    let version = (42 + 25 + 3).to_string();
    redis.command::<i64>(&["SETRANGE", "w1|llm|{user=a}|reservation|one", &version, "\u{1}"]).await;
    for _ in 0..3 {
        let again = caller.reserve(order(&[&[("user", "a")]], 40, "one")).await.unwrap_err();
        let committed = caller.commit(&reserved.id, 1).await.unwrap_err();
        for (code, reason) in [again, committed] {
            assert_eq!(code, Code::Unavailable);
            assert!(reason.contains("a newer weir made this reservation") && reason.contains("version 1"), "{reason}");
        }
    }
    assert_eq!(caller.remaining(&[("user", "a")]).await, 60, "what was estimated stands");
    let told = || server.log().lines().filter(|line| line.contains("upgrade this replica")).count();
    super::support::eventually("a line in the log", async || told() > 0).await;
    assert_eq!(told(), 1, "once, not for each call");
}
