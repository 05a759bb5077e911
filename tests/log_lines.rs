//! What the log tells of calls for domains that no rules know: one line, however often it happens.

mod support;

use serde_json::json;
use support::weir::{Settings, Weir, ask, request};
use support::http;
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
