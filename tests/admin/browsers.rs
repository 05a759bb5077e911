//! What is open and what is not, over HTTP/1.1 and HTTP/2; and what a browser can be made to send by a page of another site.

use serde_json::json;

use crate::access::{CHANGE, READ, with_tokens};
use crate::client::{RULES, call, open, subject};
use crate::support::http::{self, Answer};
use crate::support::weir::{Settings, Weir};

const OWN: &str = "localhost";
const EVIL: &str = "http://evil.example";
const DECISION: &[u8] = br#"{"domain": "api", "descriptors": [{"entries": [{"key": "user_id", "value": "u"}]}]}"#;

/// One request over HTTP/2: its status, and whether the answer has a header whose name begins so.
async fn by_http2(port: u16, method: &str, path: &str, host: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<String>) {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("weir listens");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut request = ::http::Request::builder().method(method).uri(format!("http://{host}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    let (answer, mut sending) = client.send_request(request, body.is_empty()).expect("an open connection");
    if !body.is_empty() {
        // An answer may come before it is sent.
        let _ = sending.send_data(bytes::Bytes::copy_from_slice(body), true);
    }
    let answer = answer.await.expect("an answer");
    (answer.status().as_u16(), answer.headers().keys().map(ToString::to_string).collect())
}

/// The status of a GET without a token, over both versions.
async fn get(weir: &Weir, path: &str, host: &str, headers: &[(&str, &str)]) -> u16 {
    let of_one = with_host(weir.admin, "GET", path, host, headers, b"").await.status;
    let of_two = by_http2(weir.admin, "GET", path, host, headers, b"").await.0;
    assert_eq!(of_one, of_two, "{path} by HTTP/1.1 and HTTP/2");
    of_one
}

/// A request over HTTP/1.1 with another host than the one that tests have.
async fn with_host(port: u16, method: &str, path: &str, host: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    http::send_to(port, host, method, path, &headers, body).await.expect("an answer")
}

#[tokio::test]
async fn rules_are_for_those_who_may_look_and_metrics_for_everyone() {
    let (_directory, weir) = with_tokens().await;
    for path in ["/rules", "/rlconfig", "/v1/switch"] {
        assert_eq!(get(&weir, path, OWN, &[]).await, 401, "{path}");
        for (token, expected) in [("no-such-token-at-all", 401), (READ, 200), (CHANGE, 200)] {
            let bearer = format!("Bearer {token}");
            assert_eq!(get(&weir, path, "weir.example", &[("authorization", &bearer)]).await, expected, "{path} {token}");
        }
    }
    for path in ["/metrics", "/healthcheck", "/openapi.json"] {
        assert_eq!(get(&weir, path, "weir.example", &[]).await, 200, "{path}");
    }
    let refused = http::get(weir.admin, "/rules").await.expect("an answer");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert!(!refused.body.contains("per-user"), "{}", refused.body);
}

#[tokio::test]
async fn without_tokens_rules_are_for_this_machine() {
    let weir = Settings::with_rules(RULES).start().await;
    for path in ["/rules", "/rlconfig", "/v1/switch"] {
        for host in ["localhost", "127.0.0.1:6070", "[::1]"] {
            assert_eq!(get(&weir, path, host, &[]).await, 200, "{path} of {host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1"] {
            assert_eq!(get(&weir, path, host, &[]).await, 403, "{path} of {host}");
        }
        assert_eq!(get(&weir, path, OWN, &[("origin", EVIL)]).await, 403, "{path}");
    }
    assert_eq!(get(&weir, "/metrics", "evil.example", &[]).await, 200);
}

#[tokio::test]
async fn metrics_can_be_gated() {
    let (_directory, settings) = crate::access::token_settings();
    let weir = settings.flag("--metrics-access", "gated").start().await;
    assert_eq!(get(&weir, "/metrics", OWN, &[]).await, 401);
    let bearer = format!("Bearer {READ}");
    assert_eq!(get(&weir, "/metrics", "weir.example", &[("authorization", &bearer)]).await, 200);
    assert_eq!(get(&weir, "/healthcheck", "weir.example", &[]).await, 200);
    let local = Settings::with_rules(RULES).env("WEIR_METRICS_ACCESS", "gated").start().await;
    assert_eq!(get(&local, "/metrics", OWN, &[]).await, 200);
    assert_eq!(get(&local, "/metrics", "evil.example", &[]).await, 403);
}

#[tokio::test]
async fn a_page_of_another_origin_neither_changes_nor_decides() {
    let weir = open().start().await;
    let path = subject("u1");
    let own = format!("http://localhost:{}", weir.admin);
    let host = format!("localhost:{}", weir.admin);
    let body = json!({"multiplier": 2}).to_string();
    for (origin, expected) in [(EVIL, 403), ("null", 403), ("http://localhost", 403), (&own, 200)] {
        let headers = [("content-type", "application/json"), ("origin", origin)];
        for method in ["PATCH", "GET", "DELETE"] {
            let sent = if method == "PATCH" { body.as_bytes() } else { b"" };
            assert_eq!(with_host(weir.admin, method, &path, &host, &headers, sent).await.status, expected, "{method} {origin}");
            assert_eq!(by_http2(weir.admin, method, &path, &host, &headers, sent).await.0, expected, "{method} {origin}");
        }
        let grpc = [("content-type", "application/grpc"), ("origin", origin)];
        let switch = "/weir.admin.v1.AdminService/SetSwitch";
        let answer = with_host(weir.admin, "POST", switch, &host, &grpc, b"\0\0\0\0\0").await;
        assert_eq!(answer.header("grpc-status"), Some(if expected == 403 { "7" } else { "3" }), "{answer:?}");
        let import = with_host(weir.admin, "POST", "/v1/records", &host, &headers, b"{}").await;
        assert_eq!(import.status, expected, "{origin}: {import:?}");
    }
    let log = weir.log();
    assert!(log.contains("audit: refused") && log.contains("another origin"), "{log}");
    let of_port = format!("http://localhost:{}", weir.http);
    let host = format!("localhost:{}", weir.http);
    for (origin, expected) in [(EVIL, 403), ("null", 403), (&own, 403), (&of_port, 200)] {
        let answer = with_host(weir.http, "POST", "/json", &host, &[("origin", origin)], DECISION).await;
        assert_eq!(answer.status, expected, "{origin}: {answer:?}");
    }
}

#[tokio::test]
async fn bodies_are_of_the_kind_that_they_are_said_to_be() {
    let weir = open().start().await;
    let send = async |port: u16, method: &str, path: &str, kind: &str, body: &[u8]| {
        let headers = [("content-type", kind)];
        let headers = if kind.is_empty() { &[][..] } else { &headers[..] };
        with_host(port, method, path, OWN, headers, body).await.status
    };
    let switch = br#"{"switch": "off"}"#;
    // What is sent, and whether a POST of the admin API, a PUT of it, and POST /json take it.
    for (kind, expected) in [
        ("application/json", [200, 200, 200]),
        ("Application/JSON; charset=utf-8", [200, 200, 200]),
        ("application/jsonx", [415, 415, 415]),
        ("application/json-seq", [415, 415, 415]),
        ("text/plain", [415, 415, 415]),
        ("text/plain; application/json", [415, 415, 415]),
        ("multipart/form-data; boundary=x", [415, 415, 415]),
        ("application/x-www-form-urlencoded", [415, 200, 200]),
        ("", [415, 200, 200]),
    ] {
        let answered = [
            send(weir.admin, "POST", "/v1/records", kind, b"{}").await,
            send(weir.admin, "PUT", "/v1/switch", kind, switch).await,
            send(weir.http, "POST", "/json", kind, DECISION).await,
        ];
        assert_eq!(answered.map(|status| if status == 429 { 200 } else { status }), expected, "{kind}");
    }
    let history = format!("{}/history", subject("u1"));
    for (accept, expected) in [
        ("text/csv", "text/csv"),
        ("text/csvx", "application/json"),
        ("text/csv;q=0, */*", "application/json"),
        ("*/*", "application/json"),
    ] {
        let answer = with_host(weir.admin, "GET", &history, OWN, &[("accept", accept)], b"").await;
        assert_eq!(answer.header("content-type"), Some(expected), "{accept}");
    }
}

#[tokio::test]
async fn a_browser_that_asks_whether_it_may_is_told_nothing() {
    let weir = open().start().await;
    let asks = [
        ("origin", EVIL),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "content-type, authorization"),
    ];
    for (port, path) in [
        (weir.admin, "/v1/switch"),
        (weir.admin, "/v1/records"),
        (weir.admin, "/weir.admin.v1.AdminService/SetSwitch"),
        (weir.admin, "/rules"),
        (weir.admin, "/metrics"),
        (weir.http, "/json"),
    ] {
        let answer = with_host(port, "OPTIONS", path, OWN, &asks, b"").await;
        assert!([403, 405].contains(&answer.status), "{path}: {answer:?}");
        assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("access-control")), "{path}: {answer:?}");
        if port == weir.admin {
            let (status, names) = by_http2(port, "OPTIONS", path, OWN, &asks, b"").await;
            assert!([403, 405].contains(&status), "{path}: {status}");
            assert!(names.iter().all(|name| !name.starts_with("access-control")), "{path}: {names:?}");
        }
    }
    assert_eq!(call(&weir, "GET", "/v1/switch", json!(null)).await.status, 200);
}
