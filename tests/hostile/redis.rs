//! Attacks a real process by its Redis: one that answers too much, nonsense or errors that are made to be shown; values that
//! somebody else put under weir's keys; scripts and connections that are taken away all the time. What weir says of it is short
//! and plain, its memory stays where it was, requests that have nothing to do with it are answered, and all is well afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::liar::{Attack, Liar};
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir, ask, request};
use crate::support::{eventually, http};
use futures_util::future::join_all;
use tokio::task::JoinSet;

const RULES: &str = r"
domain: d
subject: [user]
descriptors:
  - {key: user, name: window, rate_limit: 1000000/hour}
  - {key: log, rate_limit: {unit: hour, requests_per_unit: 1000, algorithm: sliding_window_log}}
  - {key: sliding, rate_limit: {unit: hour, requests_per_unit: 1000, algorithm: sliding_window}}
  - {key: bucket, rate_limit: {unit: hour, requests_per_unit: 1000, algorithm: token_bucket}}
";
/// How much more memory may be taken at any time, in bytes.
const ALLOWED: u64 = 64 << 20;
/// The longest message that a caller may see, in bytes.
const LONGEST_MESSAGE: usize = 400;
const JSON: &[(&str, &[u8])] = &[("content-type", b"application/json")];
const CALLERS: usize = 8;

fn address(server: &RedisServer) -> std::net::SocketAddr {
    server.url().trim_start_matches("redis://").parse().expect("an address")
}

/// What a caller is told, where there is an error.
async fn call(weir: &Weir, key: &str, value: &str) -> Result<i32, String> {
    let answer = weir.client().await.should_rate_limit(request("d", &[&[(key, value)]])).await;
    answer.map(|answer| answer.into_inner().overall_code).map_err(|status| status.message().to_owned())
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|letter| !letter.is_control() && !('\u{202a}'..='\u{202e}').contains(&letter))
}

#[tokio::test]
async fn replies_are_no_longer_than_what_was_asked_and_errors_are_short() {
    let server = RedisServer::start();
    let liar = Liar::before(address(&server)).await;
    let weir = Settings::with_rules(RULES).flag("--threads", "1").flag("--store", &liar.url()).flag("--store-timeout", "1s");
    let weir = weir.start().await;
    assert_eq!(call(&weir, "user", "u").await, Ok(1));
    let before = weir.resident();
    let says = |begins: &str| Attack { begins: begins.as_bytes().to_vec(), ..Attack::default() };
    let on = |begins: &str, goes_on: &str| Attack { goes_on: goes_on.as_bytes().to_vec(), ..says(begins) };
    let answer = |numbers: [f64; 3]| {
        let bytes: Vec<u8> = [1].into_iter().chain(numbers.into_iter().flat_map(f64::to_le_bytes)).collect();
        Attack { begins: [b"$25\r\n", &*bytes, b"\r\n"].concat(), ..Attack::default() }
    };
    let long = "\u{1b}[31mforged\u{202e} ".repeat(40_000);
    let attacks = [
        ("a long error", says(&format!("-ERR {long}\r\n"))),
        ("an error with controls", says("-ERR \u{1b}[2J\u{202e}wrong\u{2028} line\r\n")),
        ("a long error within bounds", says(&format!("-ERR {}\r\n", "x\u{1b}".repeat(20_000)))),
        ("an error that is no text", Attack { begins: b"-ERR \xff\xfe\x1b\r\n".to_vec(), ..Attack::default() }),
        ("an endless string", on("$9000000000000000000\r\n", "x")),
        ("a string of 4 GB", on("$4000000000\r\n", "x")),
        ("a line without an end", on("+", "x")),
        ("an error without an end", on("-ERR ", "\u{1b}")),
        ("a number without an end", on(":", "1")),
        ("a length without an end", on("$", "0")),
        ("an endless array", on("*9000000000000000000\r\n", "_\r\n")),
        ("a million elements", on("*1000000\r\n", ":1\r\n")),
        ("a map", on("%1000000\r\n", ":1\r\n")),
        ("attributes", on("", "|1\r\n+a\r\n+b\r\n")),
        ("push messages", on("", ">2\r\n+message\r\n+x\r\n")),
        ("deep nesting", on("", "*1\r\n")),
        ("replies to nobody", on("", "$25\r\n\u{1}2345678123456781234567\u{0}\u{0}\r\n")),
        ("zeros", on("", "\0")),
        ("another protocol", says("HTTP/1.1 200 OK\r\n\r\n")),
        ("a bulk error", on("!4000000\r\n", "x")),
        ("half a reply", Attack { closes: true, ..says("$25\r\n\u{1}234") }),
        ("nothing", Attack { closes: true, ..says("") }),
        ("other types", says("*3\r\n:1\r\n+a\r\n#t\r\n")),
        ("a short reply", says("$3\r\nabc\r\n")),
        ("a longer reply", says("$50\r\n12345678901234567890123456789012345678901234567890\r\n")),
        ("an unknown outcome", says("$25\r\n\u{9}234567812345678123456781\r\n")),
        ("what is left is no number", answer([f64::NAN, 0.0, 0.0])),
        ("a time that is no number", answer([1.0, f64::NAN, 0.0])),
        ("a time without an end", answer([1.0, f64::INFINITY, 0.0])),
        ("a time of 2^63", answer([1.0, 9.3e18, 0.0])),
        ("a negative time", answer([1.0, -5.0, 0.0])),
        ("a negative delay", answer([1.0, 0.0, -1e300])),
    ];
    let greetings = ["-NOAUTH \u{1b}[31m", "-ERR \u{1b}", "-WRONGPASS \u{1b}"].map(|error| {
        ("an error at the greeting", Attack { at_once: true, ..says(&format!("{error}{}\r\n", "y\u{1b}".repeat(10_000))) })
    });
    let endless = ("an endless greeting", Attack { at_once: true, ..on("$9000000000000000000\r\n", "x") });
    for (what, attack) in attacks.into_iter().chain(greetings).chain([endless]) {
        liar.set(Some(attack));
        eventually(what, async || {
            for told in join_all((0..CALLERS).map(|_| call(&weir, "user", "u"))).await {
                let message = told.expect_err(what);
                assert!(message.len() <= LONGEST_MESSAGE && is_plain(&message), "{what}: {} bytes: {message:?}", message.len());
            }
            liar.lies() > 0
        })
        .await;
        let health = http::get(weir.http, "/healthcheck").await.expect("the port answers");
        assert!(health.body.len() <= LONGEST_MESSAGE && is_plain(&health.body), "{what}: {}", health.body);
        let peak = weir.peak();
        assert!(peak <= before + ALLOWED, "{what}: {} KB more", (peak - before) >> 10);
        liar.set(None);
        eventually("Redis again", async || call(&weir, "user", "u").await.is_ok()).await;
    }
    let log = weir.log();
    assert!(log.len() < 64 << 10, "{} bytes of log", log.len());
    assert!(log.lines().all(is_plain), "{log}");
    let metrics = http::get(weir.admin, "/metrics").await.expect("the admin port answers").body;
    assert!(metrics.lines().all(is_plain) && !metrics.contains("forged"), "{metrics}");
}

#[tokio::test]
async fn a_poisoned_counter_is_an_error_of_its_own_requests() {
    let server = RedisServer::start();
    let settings = Settings::with_rules(RULES).flag("--threads", "1").flag("--store", &server.url());
    let weir = settings.flag("--store-timeout", "1s").start().await;
    for key in ["user", "log", "sliding", "bucket"] {
        assert_eq!(call(&weir, key, "poisoned").await, Ok(1));
    }
    let keys: Vec<String> = server.command(&["KEYS", "w1|*=poisoned*"]).await;
    let before = weir.resident();
    let is_counter = |key: &&String| !key.ends_with("index");
    for key in keys.iter().filter(is_counter) {
        server.command::<u64>(&["SETRANGE", key, "30000000", "x"]).await;
    }
    assert_eq!(keys.iter().filter(is_counter).count(), 4, "{keys:?}");
    for round in 0..10 {
        // In one batch: it waits while Redis sleeps.
        let (weir, neighbours) = (&weir, (0..CALLERS).map(|number| format!("{round}-{number}")));
        let poisoned = ["user", "log", "sliding", "bucket"].into_iter().cycle().take(16);
        let (errors, answers) = tokio::join!(
            join_all(poisoned.map(|key| call(weir, key, "poisoned"))),
            join_all(neighbours.map(|value| async move { call(weir, "user", &value).await })),
        );
        assert!(answers.iter().all(|answer| *answer == Ok(1)), "{answers:?}");
        let is_own = |error: &Result<i32, String>| error.as_ref().is_err_and(|error| error.contains("not one of ours"));
        assert!(errors.iter().all(is_own), "{errors:?}");
    }
    assert!(weir.peak() <= before + ALLOWED);
    assert!(!weir.log().contains("Redis is failing"), "{}", weir.log());
    for key in keys.iter().filter(is_counter) {
        server.command::<u64>(&["DEL", key]).await;
    }
    for key in ["user", "log", "sliding", "bucket"] {
        assert_eq!(call(&weir, key, "poisoned").await, Ok(1));
    }
}

/// Several callers at once until told to stop: how many answers and how many errors there were.
async fn under_load(weir: &Weir, attack: impl AsyncFnOnce()) -> (u64, u64, Vec<String>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let (mut client, is_over, answered) = (weir.client().await, is_over.clone(), answered.clone());
        callers.spawn(async move {
            let mut errors = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                match client.should_rate_limit(request("d", &[&[("user", &number.to_string())]])).await {
                    Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => errors.push(status.message().to_owned()),
                }
            }
            errors
        });
    }
    eventually("load", async || answered.load(Ordering::Relaxed) > 100).await;
    attack().await;
    is_over.store(true, Ordering::Relaxed);
    let errors: Vec<String> = callers.join_all().await.concat();
    (answered.load(Ordering::Relaxed), errors.len() as u64, errors)
}

#[tokio::test]
async fn a_script_that_is_flushed_all_the_time_fails_no_call() {
    let server = RedisServer::start();
    let weir = Settings::with_rules(RULES).flag("--threads", "1").redis(&server.url()).start().await;
    let (answered, failed, errors) = under_load(&weir, async || {
        let mut flushes = JoinSet::new();
        for _ in 0..4 {
            let mut connection = server.connection().await;
            flushes.spawn(async move {
                for _ in 0..500 {
                    let mut flush = deadpool_redis::redis::cmd("SCRIPT");
                    flush.arg("FLUSH").exec_async(&mut connection).await.expect("Redis answers");
                }
            });
        }
        flushes.join_all().await;
    })
    .await;
    assert!(answered > 0 && failed == 0, "{failed} of {answered}: {errors:?}");
}

#[tokio::test]
async fn connections_that_are_killed_all_the_time_fail_what_is_under_way_alone() {
    const KILLS: u64 = 200;
    let server = RedisServer::start();
    let weir = Settings::with_rules(RULES).flag("--threads", "1").redis(&server.url()).start().await;
    let (answered, failed, errors) = under_load(&weir, async || {
        let mut connection = server.connection().await;
        for _ in 0..KILLS {
            let mut kill = deadpool_redis::redis::cmd("CLIENT");
            kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
            kill.exec_async(&mut connection).await.expect("Redis answers");
        }
    })
    .await;
    assert!(failed <= KILLS * CALLERS as u64, "{failed} of {answered}");
    assert!(errors.iter().all(|error| !error.contains("not asked for now")), "the breaker opened: {errors:?}");
    let mut client = weir.client().await;
    ask(&mut client, request("d", &[&[("user", "u")]])).await;
}

#[tokio::test]
async fn poisoned_records_are_left_out_and_the_others_hold() {
    let server = RedisServer::start();
    let put = async |weir: &Weir, user: &str| {
        let path = format!("/v1/domains/d/subjects/user={user}");
        let answer = http::send(weir.admin, "PATCH", &path, JSON, br#"{"multiplier":2}"#).await.expect("the admin port answers");
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let first = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").redis(&server.url()).start().await;
    put(&first, "good").await;
    put(&first, "bad").await;
    let keys: Vec<String> = server.command(&["KEYS", "*{records}*user=bad"]).await;
    let prefix = keys[0].split("{records}|").next().expect("a prefix").to_owned() + "{records}|";
    let (index, feed) = (format!("{prefix}index"), format!("{prefix}feed"));
    let poison = "local huge = string.rep('z', 10000000) redis.call('SET', KEYS[1], huge) redis.call('ZADD', KEYS[2], 0, huge, 0, 'a\\27b') \
                  return redis.call('XADD', KEYS[3], '*', 'name', huge, 'next', huge)";
    server.command::<String>(&["EVAL", poison, "3", &keys[0], &index, &feed]).await;
    let second = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").redis(&server.url()).start().await;
    for weir in [&first, &second] {
        let before = weir.resident();
        eventually("the good one", async || {
            let answer = http::get(weir.admin, "/v1/domains/d/subjects/user=good").await.expect("the admin port answers");
            answer.body.contains("\"multiplier\":2")
        })
        .await;
        let bad = http::get(weir.admin, "/v1/domains/d/subjects/user=bad").await.expect("the admin port answers");
        assert!(bad.status == 200 && !bad.body.contains("multiplier"), "{bad:?}");
        assert_eq!(call(weir, "user", "good").await, Ok(1));
        assert!(weir.peak() <= before + ALLOWED, "{} KB more", (weir.peak() - before) >> 10);
        assert!(weir.log().len() < 64 << 10 && weir.log().lines().all(is_plain), "{}", &weir.log()[..10_000]);
    }
}
