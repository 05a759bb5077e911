//! What the log tells of a Redis that is lost, and of calls for domains that no rules know: one line, however often it happens.

mod support;

use serde_json::json;
use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request};
use support::{eventually, http};
use weir::api::proto::weir::v1::ReserveRequest;
use weir::api::proto::weir::v1::reservation_service_client::ReservationServiceClient;

const RULES: &str = "domain: d\ndescriptors:\n  - {key: user, rate_limit: {unit: day, requests_per_unit: 1000000}}\n";

/// The lines of the log that say this.
fn lines(weir: &Weir, what: &str) -> Vec<String> {
    weir.log().lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
}

async fn metric(weir: &Weir, name: &str) -> Option<String> {
    let scrape = http::get(weir.admin, "/metrics").await?.body;
    let line = scrape.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next().map(str::to_owned)
}

#[tokio::test]
async fn a_lost_redis_is_one_warning_and_one_line_when_it_is_back() {
    let mut redis = RedisServer::start();
    let weir = Settings::with_rules(RULES).redis(&redis.url()).flag("--threads", "4").start().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = weir.client().await;
        ask(&mut client, request("d", &[&[("user", "u")]])).await;
        clients.push(client);
    }
    assert_eq!(lines(&weir, "connected to Redis").len(), 1, "{}", weir.log());

    redis.kill();
    eventually("a breaker that is open", async || {
        for client in &mut clients {
            // Without Redis there is no answer; that is what opens the breaker.
            let _ = client.should_rate_limit(request("d", &[&[("user", "u")]])).await;
        }
        metric(&weir, "weir_store_breaker_open").await.as_deref() == Some("1")
    })
    .await;
    eventually("a feed that is lost", async || {
        metric(&weir, "weir_records_sync_failures_total").await.is_some_and(|failures| failures != "0")
    })
    .await;
    redis.restart();
    eventually("Redis is back", async || !lines(&weir, "Redis answers again").is_empty()).await;
    eventually("health", async || weir.is_healthy().await).await;

    let log = weir.log();
    assert_eq!(lines(&weir, "WARN").len(), 1, "{log}");
    assert!(lines(&weir, "WARN")[0].contains("reason="), "{log}");
    let back = lines(&weir, "Redis answers again");
    assert!(back.len() == 1 && back[0].contains("INFO") && back[0].contains("away_ms="), "{log}");
    assert_eq!(lines(&weir, "connected to Redis").len(), 1, "{log}");
}

#[tokio::test]
async fn another_reason_for_a_lost_redis_is_another_warning() {
    let mut redis = RedisServer::start();
    let weir = Settings::with_rules(RULES).redis(&redis.url()).flag("--threads", "2").start().await;
    redis.kill();
    eventually("a word about it", async || !lines(&weir, "WARN").is_empty()).await;
    redis.restart_with(&["--requirepass", "unguessable"]);
    eventually("the other reason", async || !lines(&weir, "NOAUTH").is_empty()).await;
    let failures = async || metric(&weir, "weir_records_sync_failures_total").await.and_then(|text| text.parse::<u64>().ok());
    let before = failures().await.expect("a number");
    eventually("more attempts", async || failures().await.is_some_and(|now| now > before + 2)).await;
    assert_eq!(lines(&weir, "WARN").len(), 2, "{}", weir.log());
}

#[tokio::test]
async fn calls_for_unknown_domains_are_counted_and_logged_once_a_minute() {
    let weir = Settings::with_rules(RULES).start().await;
    let name = "mis\u{1b}[31mtyped\nname";
    for _ in 0..3 {
        ask(&mut weir.client().await, request(name, &[&[("user", "secret-user")]])).await;
    }
    let body = json!({"domain": name, "descriptors": [{"entries": [{"key": "user", "value": "secret-user"}]}]}).to_string();
    assert_eq!(http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await.expect("an answer").status, 200);
    let mut reservations = ReservationServiceClient::new(weir.channel().await);
    let message = request(name, &[&[("user", "secret-user")]]);
    let order = ReserveRequest {
        domain: message.domain,
        descriptors: message.descriptors,
        estimate: 5,
        idempotency_key: "once".to_owned(),
        time_to_live: None,
    };
    reservations.reserve(order).await.expect("what nothing limits is reserved");
    ask(&mut weir.client().await, request("d", &[&[("user", "secret-user")]])).await;
    assert_eq!(metric(&weir, "weir_unknown_domain_total").await.as_deref(), Some("5"));
    let told = lines(&weir, "no rules are loaded for");
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("calls=1"), "{}", weir.log());
    assert!(told[0].contains("domain=\"mis%1B[31mtyped%0Aname\""), "{}", told[0]);
    assert!(!weir.log().contains("secret-user"), "{}", weir.log());
}
