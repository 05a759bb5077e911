//! A caller of the admin API over HTTP, and of the decisions that it changes.

use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::weir::{Settings, Weir};

pub(crate) const RULES: &str = r"
domain: api
subject: [user_id, remote_address]
descriptors:
  - key: user_id
    name: per-user
    rate_limit: {unit: hour, requests_per_unit: 3}
  - key: path
    value: /ai
    descriptors:
      - key: user_id
        name: ai
        limits: ['2/hour', '5/day']
  - key: remote_address
    name: per-address
    rate_limit: {unit: hour, requests_per_unit: 3}
    block_for: 15m
";

/// From memory, open to changes from this machine.
pub(crate) fn open() -> Settings {
    Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true")
}

/// One call of the admin API, without a token.
pub(crate) async fn call(weir: &Weir, method: &str, path: &str, body: Value) -> Answer {
    call_as(weir, None, method, path, body).await
}

pub(crate) async fn call_as(weir: &Weir, token: Option<&str>, method: &str, path: &str, body: Value) -> Answer {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers: Vec<(&str, &[u8])> = vec![("content-type", b"application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer.as_bytes())));
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    http::send(weir.admin, method, path, &headers, &body).await.expect("the admin port answers")
}

/// A call that is answered, and its answer.
pub(crate) async fn done(weir: &Weir, method: &str, path: &str, body: Value) -> Value {
    let answer = call(weir, method, path, body).await;
    assert_eq!(answer.status, 200, "{method} {path}: {}; {}", answer.body, weir.log());
    serde_json::from_str(&answer.body).expect("the answer is JSON")
}

/// Asks for a decision about these entries: whether it is admitted, and what remains.
pub(crate) async fn decide(weir: &Weir, entries: &[(&str, &str)]) -> (bool, u64) {
    let entries: Vec<Value> = entries.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let body = json!({"domain": "api", "descriptors": [{"entries": entries}]}).to_string();
    let answer = http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await.expect("weir answers");
    let json: Value = serde_json::from_str(&answer.body).expect("the answer is JSON");
    (answer.status == 200, json["statuses"][0]["limitRemaining"].as_u64().unwrap_or(0))
}

pub(crate) async fn user(weir: &Weir, name: &str) -> (bool, u64) {
    decide(weir, &[("user_id", name)]).await
}

/// The path of a subject, for a value that needs no escaping.
pub(crate) fn subject(name: &str) -> String {
    format!("/v1/domains/api/subjects/user_id={name}")
}
