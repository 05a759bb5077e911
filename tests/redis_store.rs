//! What the Redis store keeps, and what it does with a Redis that forgot the script, is full, or holds something else.

mod support {
    pub mod redis;
}

use std::time::Duration;

use deadpool_redis::redis::{Value, cmd};
use futures_util::future::join_all;
use support::redis::RedisServer;
use tokio::time::Instant;
use weir::limit::reservation::Gate;
use weir::limit::{Algorithm, Check, DAY, HOUR, Limit, MINUTE, Micros, Operation, Outcome, SECOND};
use weir::rules::key::{self, Key, Part};
use weir::store::redis::RedisStore;
use weir::store::reservations::{Gated, Passed, ReservationStore};
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

fn limit(algorithm: Algorithm, requests: u64, window: Micros) -> Limit {
    Limit::new(algorithm, requests, window, None).expect("it is a limit")
}

fn key(limit: &Limit, user: &str) -> Key {
    let parts = [Part { key: b"user_id", value: user.as_bytes(), shared: false }];
    key::key(&key::domain_prefix("", b"api"), &key::entries(parts.into_iter(), 0), &key::shape_suffix(limit.shape()))
}

fn group(checks: &[(Check, &str)]) -> Group {
    Group {
        keys: checks.iter().map(|(check, user)| key(&check.limit, user)).collect(),
        checks: checks.iter().map(|(check, _)| *check).collect(),
        refused: false,
    }
}

fn take(limit: Limit, user: &str) -> Group {
    group(&[(Check::new(limit, Operation::Take, 1), user)])
}

async fn apply(store: &RedisStore, group: &Group) -> Result<Outcomes, StoreError> {
    store.apply(group, Wait::of(Duration::from_secs(60))).await
}

async fn remaining(store: &RedisStore, limit: Limit, user: &str) -> u64 {
    let look = group(&[(Check::new(limit, Operation::Look, 0), user)]);
    apply(store, &look).await.expect("Redis answers")[0].remaining()
}

fn is_foreign(answer: &Result<Outcomes, StoreError>, user: &str) -> bool {
    matches!(answer, Err(StoreError::Foreign(key)) if key.contains(user))
}

/// Sets a raw key.
async fn set(server: &RedisServer, key: &Key, value: &[u8]) {
    cmd("SET").arg(key.as_bytes()).arg(value).exec_async(&mut server.connection().await).await.expect("Redis answers");
}

/// ms that a key still has to live.
async fn pttl(server: &RedisServer, key: &Key) -> i64 {
    cmd("PTTL").arg(key.as_bytes()).query_async(&mut server.connection().await).await.expect("Redis answers")
}

/// Two stores on one Redis, as two servers have them.
async fn two_stores(server: &RedisServer) -> [RedisStore; 2] {
    [server.store(Clock::System).await, server.store(Clock::System).await]
}

#[tokio::test]
async fn three_thousand_at_once_through_two_stores_get_a_hundred() {
    let server = RedisServer::start();
    let stores = two_stores(&server).await;
    for algorithm in Algorithm::OF_RATES {
        let group = take(limit(algorithm, 100, HOUR), "u1");
        let answers = join_all((0..3_000).map(|call| apply(&stores[call % 2], &group))).await;
        let admitted = answers.iter().filter(|answer| answer.as_ref().expect("Redis answers")[0].is_allowed()).count();
        // A token comes back every 36 s: one may while this runs.
        let most = if algorithm.is_bucket() { 101 } else { 100 };
        assert!((100..=most).contains(&admitted), "{algorithm:?} admitted {admitted}");
    }
}

#[tokio::test]
async fn what_arrives_together_goes_out_together() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let limit = limit(Algorithm::FixedWindow, 1_000, HOUR);
    let groups: Vec<Group> = (0..64).map(|user| take(limit, &format!("u{user}"))).collect();
    for answer in join_all(groups.iter().map(|group| apply(&store, group))).await {
        assert!(answer.expect("Redis answers")[0].is_allowed());
    }
    let stats: String = server.command(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).expect("scripts were called");
    assert_eq!(calls.split(',').next(), Some("1"));
}

#[tokio::test]
async fn a_request_of_thousands_of_checks_is_one_decision() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let users: Vec<String> = (0..3_000).map(|user| format!("u{user}")).collect();
    let limit = limit(Algorithm::FixedWindow, 1, HOUR);
    let all: Vec<(Check, &str)> = users.iter().map(|user| (Check::new(limit, Operation::Take, 1), user.as_str())).collect();
    let outcomes = apply(&store, &group(&all)).await.expect("Redis answers");
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_allowed()).count(), 3_000);
    // One of them has no room now, so nothing is counted for one more user.
    let both = group(&[(Check::new(limit, Operation::Take, 1), "u2999"), (Check::new(limit, Operation::Take, 1), "one more")]);
    assert!(!apply(&store, &both).await.expect("Redis answers")[0].is_allowed());
    assert_eq!(remaining(&store, limit, "one more").await, 1);
    let too_many: Vec<(Check, &str)> = (0..20_000).map(|_| (Check::new(limit, Operation::Take, 1), "u1")).collect();
    assert_eq!(apply(&store, &group(&too_many)).await, Err(StoreError::TooLarge(20_000)));
}

#[tokio::test]
async fn a_forgotten_script_is_loaded_again() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let limit = limit(Algorithm::TokenBucket, 10, DAY);
    assert!(apply(&store, &take(limit, "u1")).await.is_ok());
    server.command::<String>(&["SCRIPT", "FLUSH"]).await;
    let answers = join_all((0..5).map(|_| async { apply(&store, &take(limit, "u1")).await })).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(remaining(&store, limit, "u1").await, 4, "each was counted once");
}

#[tokio::test]
async fn a_probe_loads_a_forgotten_script() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    server.command::<String>(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(store.probe().await, Ok(()));
    let before: String = server.command(&["INFO", "commandstats"]).await;
    assert!(before.contains("script|load:calls=2,"), "{before}");
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error_of_its_own_request() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    for algorithm in Algorithm::OF_RATES {
        let limit = limit(algorithm, 10, HOUR);
        let listed = key(&limit, "listed");
        let mut connection = server.connection().await;
        cmd("RPUSH").arg(listed.as_bytes()).arg("a").exec_async(&mut connection).await.expect("Redis answers");
        let groups = ["good", "listed", "good", "listed", "better"].map(|user| take(limit, user));
        let answers = join_all(groups.iter().map(|group| apply(&store, group))).await;
        for (answer, group) in answers.iter().zip(&groups) {
            let is_listed = group.keys[0] == listed;
            assert_eq!(is_foreign(answer, "listed"), is_listed, "{algorithm:?}: {answer:?}");
            assert_eq!(answer.is_ok(), !is_listed);
        }
        assert_eq!(remaining(&store, limit, "good").await, 8);
        let kind: String = cmd("TYPE").arg(listed.as_bytes()).query_async(&mut connection).await.expect("Redis answers");
        assert_eq!(kind, "list", "it is left as it was");
    }
}

#[tokio::test]
async fn values_that_are_not_ours_are_errors_and_stay() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let (nan, huge, negative, half) = (f64::NAN, 1e300f64, -1f64, 0.5f64);
    let doubles = |numbers: &[f64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let values = [
        b"".to_vec(),
        b"1".to_vec(),
        b"not quite a state".to_vec(),
        b"sixteen letters!".to_vec(),
        doubles(&[nan]),
        doubles(&[nan, nan]),
        doubles(&[huge, huge, huge]),
        doubles(&[negative, negative]),
        doubles(&[half, half, half]),
        doubles(&[3.0, nan, nan]),
    ];
    let penalty = Limit::penalty(MINUTE).expect("it is a block");
    let limits = Algorithm::OF_RATES.map(|algorithm| limit(algorithm, 10, HOUR)).into_iter().chain([penalty]);
    for (place, limit) in limits.enumerate() {
        for (number, value) in values.iter().enumerate() {
            let user = format!("u{place}-{number}");
            set(&server, &key(&limit, &user), value).await;
            for operation in [Operation::Take, Operation::Look, Operation::Report, Operation::Refund] {
                let answer = apply(&store, &group(&[(Check::new(limit, operation, 1), &user)])).await;
                assert!(is_foreign(&answer, &user), "{:?} of {value:?}: {answer:?}", limit.algorithm());
            }
            let mut connection = server.connection().await;
            let kept: Vec<u8> =
                cmd("GET").arg(key(&limit, &user).as_bytes()).query_async(&mut connection).await.expect("Redis answers");
            assert_eq!(&kept, value);
        }
    }
}

#[tokio::test]
async fn a_request_with_a_foreign_key_counts_nothing_and_refunds_nothing() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let limit = limit(Algorithm::FixedWindow, 10, HOUR);
    for _ in 0..3 {
        assert!(apply(&store, &take(limit, "u1")).await.is_ok());
    }
    set(&server, &key(&limit, "foreign"), b"?").await;
    let [refund, report, taken] =
        [Operation::Refund, Operation::Report, Operation::Take].map(|operation| Check::new(limit, operation, 2));
    for request in [
        group(&[(refund, "u1"), (report, "u1"), (taken, "foreign")]),
        group(&[(refund, "u1"), (refund, "foreign")]),
        group(&[(taken, "u1"), (taken, "u2"), (taken, "foreign")]),
    ] {
        // Another request of the same batch is not affected by it.
        let other = take(limit, "u3");
        let (answer, other) = tokio::join!(apply(&store, &request), apply(&store, &other));
        assert!(is_foreign(&answer, "foreign"), "{answer:?}");
        assert!(other.is_ok());
    }
    assert_eq!(remaining(&store, limit, "u1").await, 7);
    assert_eq!(remaining(&store, limit, "u2").await, 10);
    assert_eq!(remaining(&store, limit, "u3").await, 7);
}

#[tokio::test]
async fn without_memory_nothing_is_written_and_looks_still_work() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let limit = limit(Algorithm::FixedWindow, 10, HOUR);
    assert!(apply(&store, &take(limit, "u1")).await.is_ok());
    server.command::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let both = group(&[(Check::new(limit, Operation::Take, 1), "u1"), (Check::new(limit, Operation::Take, 1), "u2")]);
    let (first, second) = tokio::join!(apply(&store, &both), apply(&store, &both));
    for answer in [first, second] {
        assert!(matches!(&answer, Err(StoreError::Refused(reason)) if reason.contains("OOM")), "{answer:?}");
    }
    assert_eq!(server.command::<u64>(&["DBSIZE"]).await, 2, "a counter, and the index of its subject");
    assert_eq!(remaining(&store, limit, "u1").await, 9);
    server.command::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert!(apply(&store, &both).await.is_ok());
}

#[tokio::test]
async fn every_key_lives_as_long_as_it_matters() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    for (algorithm, window) in Algorithm::OF_RATES.into_iter().flat_map(|algorithm| [(algorithm, 10 * SECOND), (algorithm, DAY)]) {
        let limit = limit(algorithm, 3, window);
        // The third finds a state that may keep its time to live; the fourth is refused; the others are not plain takes.
        for (operation, cost) in [
            (Operation::Take, 1),
            (Operation::Take, 1),
            (Operation::Take, 1),
            (Operation::Take, 1),
            (Operation::Report, 2),
            (Operation::Refund, 1),
            (Operation::Look, 0),
        ] {
            let before = Instant::now();
            let outcomes = apply(&store, &group(&[(Check::new(limit, operation, cost), "u1")])).await.expect("Redis answers");
            let ttl = pttl(&server, &key(&limit, "u1")).await;
            let since = i64::try_from(before.elapsed().as_millis()).expect("it is not long ago");
            assert!(ttl > 0, "{algorithm:?} after {operation:?} has no time to live: {ttl}");
            // A report may owe one further window, which the sliding counter then weighs for another.
            assert!(
                u64::try_from(ttl).expect("it is positive") <= 3 * window / 1_000,
                "{algorithm:?} after {operation:?}: {ttl} ms"
            );
            if let (Operation::Take, Outcome::Allowed { reset_after, .. }) = (operation, outcomes[0]) {
                // What Redis calls now may be a little later than what it called now for the time to live.
                let expected = i64::try_from(reset_after.div_ceil(1_000)).expect("ms are fewer");
                assert!(ttl <= expected + since + 1, "{algorithm:?} after {operation:?}: {ttl} ms, of {expected}");
                assert!(ttl >= expected - since - 1, "{algorithm:?} after {operation:?}: {ttl} ms, of {expected}");
            }
        }
    }
    let penalty = Limit::penalty(MINUTE).expect("it is a block");
    let no_room = group(&[
        (Check::new(limit(Algorithm::FixedWindow, 1, HOUR), Operation::Take, 1), "u2"),
        (Check::new(penalty, Operation::Take, 0), "u2"),
    ]);
    for is_allowed in [true, false] {
        assert_eq!(apply(&store, &no_room).await.expect("Redis answers")[0].is_allowed(), is_allowed);
    }
    let ttl = pttl(&server, &key(&penalty, "u2")).await;
    assert!((1..=60_000).contains(&ttl), "a block lives for {ttl} ms");
}

#[tokio::test]
async fn keys_made_and_met_again_in_one_batch_have_a_time_to_live() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingCounter] {
        let limit = limit(algorithm, 100, DAY);
        let alone = take(limit, "u1");
        let pair = group(&[(Check::new(limit, Operation::Take, 1), "u2"), (Check::new(limit, Operation::Take, 1), "u3")]);
        let with_look = group(&[(Check::new(limit, Operation::Look, 0), "u4"), (Check::new(limit, Operation::Take, 1), "u5")]);
        for request in [&alone, &pair, &with_look] {
            let answers = join_all((0..4).map(|_| apply(&store, request))).await;
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        }
        for user in ["u1", "u2", "u3", "u5"] {
            assert_eq!(remaining(&store, limit, user).await, 96);
            assert!(pttl(&server, &key(&limit, user)).await > 0, "{algorithm:?}: {user} lives for ever");
        }
    }
}

#[tokio::test]
async fn refused_and_only_looked_at_leave_no_key() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    for algorithm in Algorithm::OF_RATES {
        let (none, some) = (limit(algorithm, 0, HOUR), limit(algorithm, 5, HOUR));
        for request in [
            take(none, "u1"),
            group(&[(Check::new(some, Operation::Take, 6), "u2")]),
            group(&[(Check::new(some, Operation::Look, 0), "u3")]),
            group(&[(Check::new(some, Operation::Refund, 3), "u4")]),
            Group { refused: true, ..take(some, "u5") },
            Group::default(),
        ] {
            assert!(apply(&store, &request).await.is_ok());
        }
    }
    assert_eq!(server.command::<Value>(&["KEYS", "*"]).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn replicas_that_are_alive_are_counted() {
    let server = RedisServer::start();
    let [one, other] = two_stores(&server).await;
    assert_eq!(one.heartbeat("a").await, Ok(1));
    assert_eq!(other.heartbeat("b").await, Ok(2));
    assert_eq!(one.heartbeat("a").await, Ok(2));
    // One that was last heard of in 1970.
    server.command::<u64>(&["ZADD", "w1|replicas", "1", "c"]).await;
    assert_eq!(one.heartbeat("a").await, Ok(2));
    let ttl: i64 = server.command(&["PTTL", "w1|replicas"]).await;
    assert!((1..=15_000).contains(&ttl), "{ttl}");
}

/// How often the script is called for requests that are asked at once.
async fn calls(server: &RedisServer, store: &RedisStore, groups: &[Group]) -> usize {
    server.command::<String>(&["CONFIG", "RESETSTAT"]).await;
    for answer in join_all(groups.iter().map(|group| apply(store, group))).await {
        answer.expect("Redis answers");
    }
    let stats: String = server.command(&["INFO", "commandstats"]).await;
    let calls = stats.split("cmdstat_evalsha:calls=").nth(1).and_then(|rest| rest.split(',').next());
    calls.and_then(|calls| calls.parse().ok()).expect("EVALSHA was called")
}

#[tokio::test]
async fn one_call_moves_a_bounded_number_of_bytes() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let groups = |check: Check, checks: usize| -> Vec<Group> {
        let of_one = |request: usize| {
            let users: Vec<String> = (0..checks).map(|number| format!("{request}-{number}")).collect();
            group(&users.iter().map(|user| (check, &**user)).collect::<Vec<_>>())
        };
        (0..64).map(of_one).collect()
    };
    let log = |requests| limit(Algorithm::SlidingLog, requests, HOUR);
    let take = |limit| Check::new(limit, Operation::Take, 1);
    let report = Check::new(log(10_000), Operation::Report, 1);
    let long = "x".repeat(20_000);
    let cases = [
        (groups(take(limit(Algorithm::FixedWindow, 10, HOUR)), 1), 1, "counters of a few bytes"),
        (groups(take(log(100)), 1), 1, "short logs"),
        (groups(take(log(10_000)), 1), 64_usize.div_ceil(3), "160 KB each"),
        (groups(report, 1), 64, "320 KB each, with debt"),
        (groups(take(log(10_000)), 9), 64, "more than a call may move: each goes alone"),
    ];
    for (groups, expected, what) in cases {
        assert_eq!(calls(&server, &store, &groups).await, expected, "{what}");
    }
    // What is kept with a reservation is moved as well.
    let gated = |number: usize| {
        let group = group(&[(take(limit(Algorithm::FixedWindow, 10, HOUR)), &format!("gated {number}"))]);
        let gate = Gate::Reserve { estimate: 1, ttl: MINUTE };
        Gated { key: Key::from_bytes(format!("reservation {number}").into_bytes()), gate, memo: long.as_bytes().into(), group }
    };
    server.command::<String>(&["CONFIG", "RESETSTAT"]).await;
    let gated: Vec<Gated> = (0..64).map(gated).collect();
    for passed in join_all(gated.iter().map(|gated| store.pass(gated, Wait::of(Duration::from_secs(60))))).await {
        assert!(matches!(passed, Ok(Passed::Decided { expires: Some(_), .. })), "{passed:?}");
    }
    let stats: String = server.command(&["INFO", "commandstats"]).await;
    assert!(stats.contains("cmdstat_evalsha:calls=5,"), "thirteen a call, each sent and written: {stats}");
}
