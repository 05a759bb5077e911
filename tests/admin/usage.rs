//! What a subject has used, forgetting it, and its history: from memory and from Redis alike.

use serde_json::{Value, json};

use crate::client::{RULES, call, decide, done, open, subject, user};
use crate::support::eventually;
use crate::support::http;
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};

const LATER: &str = "2100-01-01T00:00:00Z";

/// The same against a weir that counts in memory and one that counts in Redis.
async fn in_both_stores(check: impl AsyncFn(&Weir)) {
    check(&open().start().await).await;
    let server = RedisServer::start();
    check(&open().redis(&server.url()).start().await).await;
}

async fn usage(weir: &Weir, path: &str) -> Vec<Value> {
    let usage = done(weir, "GET", &format!("{path}/usage"), json!(null)).await;
    usage["limits"].as_array().expect("a list").clone()
}

/// Rule, window, used, remaining.
fn row(limit: &Value) -> (String, String, u64, u64) {
    let text = |field: &str| limit[field].as_str().expect("a text").to_owned();
    let number = |field: &str| limit[field].as_u64().expect("a number");
    (text("policy"), text("window"), number("used"), number("remaining"))
}

fn rows(limits: &[Value]) -> Vec<(String, String, u64, u64)> {
    limits.iter().map(row).collect()
}

fn expected(rows: &[(&str, &str, u64, u64)]) -> Vec<(String, String, u64, u64)> {
    rows.iter().map(|(policy, window, used, remaining)| ((*policy).to_owned(), (*window).to_owned(), *used, *remaining)).collect()
}

#[tokio::test]
async fn usage_is_every_limit_with_what_is_left_of_it() {
    in_both_stores(async |weir| {
        assert_eq!(rows(&usage(weir, &subject("u1")).await), expected(&[("per-user", "1h", 0, 3)]), "unused");
        user(weir, "u1").await;
        user(weir, "u1").await;
        decide(weir, &[("path", "/ai"), ("user_id", "u1")]).await;
        user(weir, "u2").await;
        let limits = usage(weir, &subject("u1")).await;
        let expected_rows = [("ai/2-per-1h", "1h", 1, 1), ("ai/5-per-1d", "1d", 1, 4), ("per-user", "1h", 2, 1)];
        assert_eq!(rows(&limits), expected(&expected_rows));
        assert_eq!((&limits[0]["rule"], &limits[0]["kind"]), (&json!("ai"), &json!("rate")));
        assert_eq!(limits[0]["entries"], "path=/ai,user_id=u1");
        assert!(limits[0]["resets_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{limits:?}");
        done(weir, "PATCH", &subject("u1"), json!({"multiplier": 10})).await;
        assert_eq!(row(&usage(weir, &subject("u1")).await[2]), ("per-user".to_owned(), "1h".to_owned(), 2, 28));
        assert_eq!(user(weir, "u1").await, (true, 27), "looking has counted nothing");
    })
    .await;
}

#[tokio::test]
async fn a_quota_is_whole_again_at_the_edge_of_its_period() {
    in_both_stores(async |weir| {
        done(weir, "PATCH", &subject("u1"), json!({"limits": [{"rule": "per-user", "daily": 10, "monthly": 1}]})).await;
        user(weir, "u1").await;
        let limits = usage(weir, &subject("u1")).await;
        let times: Vec<&str> = limits[1..].iter().map(|limit| limit["resets_at"].as_str().expect("a time")).collect();
        assert!(times.len() == 2 && times.iter().all(|time| time.ends_with("T00:00:00Z")), "{limits:?}");
        let asked = json!({"descriptors": [{"entries": [{"key": "user_id", "value": "u1"}]}]});
        let said = done(weir, "POST", "/v1/domains/api/explain", asked).await;
        assert_eq!(said["retry_at"], times[1], "{said}");
        let limits = &said["descriptors"][0]["limits"];
        assert_eq!((&limits[1]["resets_at"], &limits[2]["retry_at"]), (&json!(times[0]), &json!(times[1])));
    })
    .await;
}

#[tokio::test]
async fn a_block_is_shown_while_it_lasts_and_lifted_by_an_exemption_or_a_reset() {
    in_both_stores(async |weir| {
        let path = "/v1/domains/api/subjects/remote_address=192.0.2.1";
        let address = [("remote_address", "192.0.2.1")];
        let kinds = async || {
            let limits = usage(weir, path).await;
            limits.iter().map(|limit| limit["kind"].as_str().expect("a kind").to_owned()).collect::<Vec<_>>()
        };
        for _ in 0..4 {
            decide(weir, &address).await;
        }
        assert_eq!(kinds().await, ["rate", "block"]);
        done(weir, "PATCH", path, json!({"multiplier": 100})).await;
        assert!(!decide(weir, &address).await.0, "blocked, whatever the limit is now");
        done(weir, "PATCH", path, json!({"allowed_until": LATER})).await;
        assert!(decide(weir, &address).await.0);
        done(weir, "PATCH", path, json!({"clear": ["allowed_until"]})).await;
        assert_eq!((kinds().await, decide(weir, &address).await.0), (vec!["rate".to_owned()], true));
        done(weir, "PATCH", path, json!({"clear": ["multiplier"]})).await;
        for _ in 0..2 {
            assert!(!decide(weir, &address).await.0);
        }
        done(weir, "POST", &format!("{path}/reset"), json!({"kind": "rate"})).await;
        assert_eq!(decide(weir, &address).await, (true, 2));
    })
    .await;
}

#[tokio::test]
async fn reset_forgets_what_it_is_told_to() {
    in_both_stores(async |weir| {
        for name in ["u1", "u2"] {
            let quotas = json!({"limits": [{"rule": "per-user", "daily": 10, "monthly": 20}]});
            done(weir, "PATCH", &subject(name), quotas).await;
            for _ in 0..2 {
                user(weir, name).await;
            }
        }
        let used = async |name: &str| {
            let limits = usage(weir, &subject(name)).await;
            limits.iter().map(|limit| (limit["kind"].to_string(), limit["used"].as_u64().expect("a number"))).collect::<Vec<_>>()
        };
        let all = |rate, daily, monthly| {
            [("rate", rate), ("daily", daily), ("monthly", monthly)].map(|(kind, used)| (format!("\"{kind}\""), used)).to_vec()
        };
        let reset = async |kind: &str| done(weir, "POST", &format!("{}/reset", subject("u1")), json!({"kind": kind})).await;
        assert_eq!(used("u1").await, all(2, 2, 2));
        assert_eq!(reset("daily").await, json!({"reset": 1}));
        assert_eq!(used("u1").await, all(2, 0, 2));
        reset("monthly").await;
        assert_eq!(used("u1").await, all(2, 0, 0));
        user(weir, "u1").await;
        reset("rate").await;
        assert_eq!(used("u1").await, all(0, 1, 1));
        user(weir, "u1").await;
        assert_eq!(reset("all").await, json!({"reset": 3}), "what was counted again since");
        assert_eq!(used("u1").await, all(0, 0, 0));
        assert_eq!(used("u2").await, all(2, 2, 2), "nobody else's");
        let answer = call(weir, "POST", &format!("{}/reset", subject("u1")), json!({"kind": "weekly"})).await;
        assert_eq!(answer.status, 400);
    })
    .await;
}

#[tokio::test]
async fn history_is_told_by_the_day_as_json_and_csv() {
    in_both_stores(async |weir| {
        for _ in 0..5 {
            user(weir, "u1").await;
        }
        done(weir, "PATCH", &subject("u2"), json!({"blocked_until": LATER})).await;
        user(weir, "u2").await;
        let days = async |name: &str| {
            let history = done(weir, "GET", &format!("{}/history", subject(name)), json!(null)).await;
            history["days"].as_array().expect("a list").clone()
        };
        let sum = |days: &[Value], field: &str| days.iter().map(|day| day[field].as_u64().expect("a number")).sum::<u64>();
        eventually("the history of a subject", async || {
            let (u1, u2) = (days("u1").await, days("u2").await);
            sum(&u1, "allowed") + sum(&u1, "refused") == 5 && sum(&u2, "refused") == 1
        })
        .await;
        let days = days("u1").await;
        assert_eq!((sum(&days, "allowed"), sum(&days, "refused"), sum(&days, "cost")), (3, 2, 3));
        let today = days[0]["date"].as_str().expect("a date").to_owned();
        let path = format!("{}/history?from={today}", subject("u1"));
        let csv = http::send(weir.admin, "GET", &path, &[("accept", b"text/csv")], b"").await.expect("an answer");
        assert_eq!(csv.header("content-type"), Some("text/csv"));
        let mut lines = csv.body.lines();
        assert_eq!(lines.next(), Some("date,allowed,refused,cost"));
        assert!(lines.next().is_some_and(|line| line.starts_with(&today)), "{}", csv.body);
        let before = format!("{}/history?to=2020-01-01", subject("u1"));
        assert_eq!(done(weir, "GET", &before, json!(null)).await["days"], json!([]));
        assert_eq!(call(weir, "GET", &format!("{}/history?from=soon", subject("u1")), json!(null)).await.status, 400);
    })
    .await;
}

#[tokio::test]
async fn what_one_replica_counted_another_one_tells_and_forgets() {
    let server = RedisServer::start();
    let one = open().redis(&server.url()).start().await;
    let other = open().redis(&server.url()).start().await;
    for _ in 0..3 {
        user(&one, "u1").await;
    }
    assert_eq!(rows(&usage(&other, &subject("u1")).await), expected(&[("per-user", "1h", 3, 0)]));
    done(&other, "POST", &format!("{}/reset", subject("u1")), json!({"kind": "all"})).await;
    assert_eq!(user(&one, "u1").await, (true, 2));
    done(&other, "POST", &format!("{}/reset", subject("u1")), json!({"kind": "all"})).await;
    assert_eq!(user(&one, "u1").await, (true, 2), "a counter that comes back is still known");
}

#[tokio::test]
async fn what_was_counted_without_redis_is_forgotten_too() {
    let mut redis = RedisServer::start();
    let rules = RULES.replace("\ndescriptors:", "\ndefaults: {on_store_failure: local}\ndescriptors:");
    let settings = Settings::with_rules(&rules).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true");
    let weir = settings.flag("--replicas", "1").start().await;
    let admitted = async || {
        let mut admitted = 0;
        for _ in 0..5 {
            admitted += u32::from(user(&weir, "u1").await.0);
        }
        admitted
    };
    redis.kill();
    assert_eq!((admitted().await, admitted().await), (3, 0), "by this process's own count");
    redis.restart();
    let reset = format!("{}/reset", subject("u1"));
    eventually("a reset", async || call(&weir, "POST", &reset, json!({"kind": "rate"})).await.status == 200).await;
    redis.kill();
    assert_eq!(admitted().await, 3);
}

#[tokio::test]
async fn history_is_told_of_the_days_that_it_is_kept_for() {
    let redis = RedisServer::start();
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let days: Vec<String> = (0..5).map(|ago| today.checked_sub(jiff::Span::new().days(ago)).expect("a date").to_string()).collect();
    for day in &days {
        let _: u64 = redis.command(&["HSET", &format!("w1|api|{{user_id=u1}}|history|{day}"), "allowed", "7", "cost", "9"]).await;
    }
    let weir = open().redis(&redis.url()).flag("--history-days", "3").start().await;
    let told = async |query: &str| {
        let history = done(&weir, "GET", &format!("{}/history{query}", subject("u1")), json!(null)).await;
        let days = history["days"].as_array().expect("a list").iter();
        days.map(|day| day["date"].as_str().expect("a date").to_owned()).collect::<Vec<_>>()
    };
    // Midnight may have passed since.
    let kept = [days[2].clone(), days[1].clone(), days[0].clone()];
    let is_kept = |told: &[String]| told == &kept[..] || told == &kept[1..];
    for query in ["", "?from=2020-01-01", "?to=2100-01-01"] {
        let told = told(query).await;
        assert!(is_kept(&told), "{query}: {told:?}");
    }
    assert_eq!(told(&format!("?from={}&to={}", days[1], days[1])).await, [days[1].clone()]);
    let none = open().flag("--history-days", "0").start().await;
    assert_eq!(call(&none, "GET", &format!("{}/history", subject("u1")), json!(null)).await.status, 400);
}

#[tokio::test]
async fn what_classes_leave_to_others_is_no_part_of_what_is_used() {
    let rules = "
domain: api
priority: {entry: priority, default: normal, reserve: {normal: 25%, low: 50%}}
descriptors: [{key: pool, name: shared, reserve: true, rate_limit: {unit: hour, requests_per_unit: 8}}]
";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    for class in ["low", "normal", "critical"] {
        for _ in 0..8 {
            decide(&weir, &[("pool", "p"), ("priority", class)]).await;
        }
        let usage = done(&weir, "GET", "/v1/domains/api/subjects/pool=p/usage", json!(null)).await;
        let shared = &usage["limits"][0];
        let used = match class {
            "low" => 4,
            "normal" => 6,
            _ => 8,
        };
        assert_eq!((&shared["requests"], &shared["used"]), (&json!(8), &json!(used)), "{usage}");
    }
}

#[tokio::test]
async fn a_tier_that_is_not_there_has_no_usage() {
    let rules = "
domain: api
tiers: {free: {limits: [2/hour]}, pro: {limits: [9/hour]}}
default_tier: free
descriptors: [{key: user_id, rate_limit: {tier: {entry: tier}}}]
";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let by_tier = |tier: &str| format!("{}/usage?tier={tier}", subject("u1"));
    assert_eq!(done(&weir, "GET", &by_tier("pro"), json!(null)).await["limits"][0]["requests"], 9);
    let unknown = call(&weir, "GET", &by_tier("gold"), json!(null)).await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("domain `api` has no tier `gold`: it has free, pro"), "{}", unknown.body);
}
