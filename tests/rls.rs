//! The server as a client sees it: gRPC, health, reflection, JSON, what is malformed, and how it stops.

#[path = "support/in_process.rs"]
mod in_process;

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use in_process::{Served, descriptor, eventually, h2_connection, request, settings};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::{v1, v1alpha};
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use weir::server::Server;
use weir::settings::Settings;

const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";
const RULES: &str = "domain: d
descriptors:
  - key: user
    name: per-user
    rate_limit: {unit: hour, requests_per_unit: 2}
  - key: queued
    rate_limit: {algorithm: leaky_bucket, unit: second, requests_per_unit: 10, burst: 50, max_wait: 1s}
";

fn user(name: &str) -> RateLimitRequest {
    request("d", vec![descriptor(&[("user", name)])])
}

#[tokio::test]
async fn calls_are_counted_by_value() {
    let served = Served::rules(RULES).await;
    let mut client = served.client().await;
    let mut codes = Vec::new();
    for name in ["a", "a", "a", "b"] {
        codes.push(client.should_rate_limit(user(name)).await.unwrap().into_inner().overall_code);
    }
    assert_eq!(codes, [1, 1, 2, 1]);
    served.stop().await;
}

#[tokio::test]
async fn connections_share_their_counters_on_every_thread() {
    let served = Served::with(RULES, |settings| settings.threads = 3).await;
    let clients = join_all((0..6).map(|_| served.client())).await;
    let calls = clients.into_iter().map(|mut client| async move { client.should_rate_limit(user("a")).await });
    let codes: Vec<i32> = join_all(calls).await.into_iter().map(|answer| answer.unwrap().into_inner().overall_code).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 1).count(), 2, "{codes:?}");
    served.stop().await;
}

/// What a malformed call comes to: the code and message of its status, or the overall code of an answer.
async fn outcome(served: &Served, message: RateLimitRequest) -> Result<i32, (Code, String)> {
    let answer = served.client().await.should_rate_limit(message).await;
    answer.map(|answer| answer.into_inner().overall_code).map_err(|status| (status.code(), status.message().to_owned()))
}

fn entry(key: &[u8], value: &[u8]) -> RateLimitDescriptor {
    RateLimitDescriptor { entries: vec![Entry { key: key.into(), value: value.into() }], ..RateLimitDescriptor::default() }
}

fn overridden(unit: i32, requests_per_unit: u32, unit_multiplier: Option<u32>) -> RateLimitRequest {
    let limit = Some(RateLimitOverride { requests_per_unit, unit, unit_multiplier });
    request("d", vec![RateLimitDescriptor { limit, ..entry(b"user", b"o") }])
}

#[tokio::test]
async fn bad_input_has_its_answer() {
    const OK: Result<i32, (Code, &str)> = Ok(1);
    const OVER: Result<i32, (Code, &str)> = Ok(2);
    let served = Served::rules(RULES).await;
    let hits = |hits| RateLimitDescriptor { hits_addend: Some(hits), ..entry(b"user", b"h") };
    // With what stands around it, all of a message.
    let long = "x".repeat((1 << 20) - 100);
    let invalid = |reason| Err((Code::InvalidArgument, reason));
    let cases = [
        ("empty domain", request("", vec![entry(b"user", b"a")]), invalid("rate limit domain must not be empty")),
        ("nothing at all", RateLimitRequest::default(), invalid("rate limit domain must not be empty")),
        ("no descriptors", request("d", vec![]), invalid("rate limit descriptor list must not be empty")),
        ("a descriptor without entries", request("d", vec![RateLimitDescriptor::default()]), OK),
        ("an empty key", request("d", vec![entry(b"", b"")]), OK),
        ("an empty value", request("d", vec![entry(b"user", b"")]), OK),
        ("a domain that is no UTF-8", RateLimitRequest { domain: vec![0xff], ..user("a") }, OK),
        ("an unknown domain", request("unknown", vec![entry(b"user", b"a")]), OK),
        ("2^64-1 hits", request("d", vec![hits(u64::MAX)]), OVER),
        ("the same hits twice", request("d", vec![hits(u64::MAX), hits(u64::MAX)]), OVER),
        ("2^64-1 hits given back", request("d", vec![RateLimitDescriptor { is_negative_hits: true, ..hits(u64::MAX) }]), OK),
        ("2^32-1 hits", RateLimitRequest { hits_addend: u32::MAX, ..user("b") }, OVER),
        ("no hits", request("d", vec![hits(0)]), OK),
        ("unit 0", overridden(0, 5, None), invalid("descriptor 0: limit override has unknown unit 0; use 1 (second) to 7 (week)")),
        ("unit 8", overridden(8, 5, None), invalid("descriptor 0: limit override has unknown unit 8; use 1 (second) to 7 (week)")),
        (
            "a unit of -1",
            overridden(-1, 5, None),
            invalid("descriptor 0: limit override has unknown unit -1; use 1 (second) to 7 (week)"),
        ),
        ("an override of nothing", overridden(3, 0, None), OVER),
        ("an override of a week", overridden(7, 1, Some(0)), OK),
        (
            "an override of ages",
            overridden(6, 5, Some(u32::MAX)),
            invalid(
                "descriptor 0: limit override of 5 requests: a window of 18446744073709551615 µs is longer than ten years, the longest allowed",
            ),
        ),
        ("a value as long as a message", request("d", vec![entry(b"user", long.as_bytes())]), OK),
        (
            "as many entries as there may be",
            request("d", vec![RateLimitDescriptor { entries: vec![Entry::default(); 4_096], ..RateLimitDescriptor::default() }]),
            OK,
        ),
        (
            "one entry more",
            request("d", vec![RateLimitDescriptor { entries: vec![Entry::default(); 4_097], ..RateLimitDescriptor::default() }]),
            invalid("more than 4096 entries in one request: send them in several requests, or raise --max-message-entries"),
        ),
        ("a thousand descriptors", request("d", vec![entry(b"user", b"many"); 1_000]), OVER),
        (
            "a thousand and one",
            request("d", vec![entry(b"user", b"many"); 1_001]),
            invalid("more than 1000 descriptors in one request: send them in several requests"),
        ),
        (
            "ten megabytes of descriptors",
            request("d", vec![entry(b"user", long.as_bytes()); 10]),
            Err((Code::OutOfRange, "a message of 10484943 bytes; at most 1048576 are read")),
        ),
    ];
    for (what, message, expected) in cases {
        let expected = expected.map_err(|(code, reason)| (code, reason.to_owned()));
        assert_eq!(outcome(&served, message).await, expected, "{what}");
    }
    assert_eq!(outcome(&served, user("after")).await, Ok(1), "it lives");
    served.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_limited_like_any_value() {
    let served = Served::rules(RULES).await;
    let mut codes = Vec::new();
    for value in [&b"\xff\xfe"[..], b"\xff\xfe", b"\xff\xfe", b"\xff\xfd", "\u{fffd}\u{fffd}".as_bytes()] {
        codes.push(outcome(&served, request("d", vec![entry(b"user", value)])).await.unwrap());
    }
    assert_eq!(codes, [1, 1, 2, 1, 1]);
    served.stop().await;
}

/// A call of any method with any message.
async fn call(served: &Served, path: &'static str, message: Vec<u8>) -> Result<RateLimitResponse, Status> {
    let mut client = Grpc::new(served.channel().await);
    client.ready().await.expect("the server is there");
    // A message of bytes on the wire is what its bytes decode to.
    let message = RateLimitRequest::decode(message.as_slice()).unwrap_or_default();
    let codec = ProstCodec::<RateLimitRequest, RateLimitResponse>::default();
    client.unary(Request::new(message), PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn made_up_methods_are_unimplemented() {
    let served = Served::rules(RULES).await;
    for path in [
        "/envoy.service.ratelimit.v3.RateLimitService/MadeUp",
        "/envoy.service.ratelimit.v2.RateLimitService/ShouldRateLimit",
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit/",
        "/made.Up/Method",
        "/",
    ] {
        assert_eq!(call(&served, path, Vec::new()).await.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    served.stop().await;
}

#[tokio::test]
async fn broken_frames_close_their_connection_and_no_other() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let served = Served::rules(RULES).await;
    let mut client = served.client().await;
    let garbage: [(&str, Vec<u8>); 6] = [
        ("no preface", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("noise", (0..=255).cycle().take(70_000).collect()),
        ("a preface and noise", [PREFACE, &[0xff; 1_000]].concat()),
        ("a frame longer than allowed", [PREFACE, &[0xff, 0xff, 0xff, 0x04, 0, 0, 0, 0, 0]].concat()),
        ("data for no stream", [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 0, 0, 0, 0, 0, 1, 0xff]].concat()),
        ("headers that do not decode", [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0xff]].concat()),
    ];
    for (what, bytes) in garbage {
        let mut stream = TcpStream::connect(served.addresses().grpc).await.unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(client.should_rate_limit(user(what)).await.is_ok(), "{what}");
    }
    served.stop().await;
}

#[tokio::test]
async fn messages_that_do_not_decode_are_refused() {
    let served = Served::rules(RULES).await;
    let mut stream = h2_connection(&served).await;
    // (body, grpc-status)
    for (body, expected) in [
        (&b"\0\0\0\0\x03\x0a\xff\xff"[..], "13"),
        (b"\0\0\0\0\x01", "13"),
        (b"\0\xff\xff\xff\xff", "11"),
        (b"\x01\0\0\0\0", "12"),
        (b"", "13"),
    ] {
        assert_eq!(grpc_status(&mut stream, body).await.as_deref(), Some(expected), "{body:?}");
    }
    assert_eq!(outcome(&served, user("after")).await, Ok(1));
    drop(stream);
    served.stop().await;
}

async fn grpc_status(client: &mut h2::client::SendRequest<bytes::Bytes>, body: &'static [u8]) -> Option<String> {
    let request = http::Request::post(format!("http://localhost/{SERVICE}/ShouldRateLimit"));
    let request = request.header("content-type", "application/grpc").body(()).expect("a request");
    let (response, mut sending) = client.send_request(request, false).expect("an open connection");
    sending.send_data(bytes::Bytes::from_static(body), true).expect("an open stream");
    let (head, mut body) = response.await.expect("an answer").into_parts();
    while body.data().await.is_some() {}
    let trailers = body.trailers().await.expect("trailers").unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status"))?;
    Some(status.to_str().expect("a number").to_owned())
}

#[tokio::test]
async fn a_call_whose_deadline_has_passed_is_not_counted() {
    let served = Served::rules(RULES).await;
    let mut client = h2_connection(&served).await;
    let message = user("late").encode_to_vec();
    let body: &'static [u8] = Vec::leak([&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], &message[..]].concat());
    let request = http::Request::post(format!("http://localhost/{SERVICE}/ShouldRateLimit"));
    let request = request.header("content-type", "application/grpc").header("grpc-timeout", "0n").body(()).unwrap();
    let (response, mut sending) = client.send_request(request, false).unwrap();
    sending.send_data(bytes::Bytes::from_static(body), true).unwrap();
    assert_eq!(response.await.unwrap().headers()["grpc-status"], "4");
    drop(client);
    let codes = [outcome(&served, user("late")).await, outcome(&served, user("late")).await, outcome(&served, user("late")).await];
    assert_eq!(codes, [Ok(1), Ok(1), Ok(2)]);
    served.stop().await;
}

/// The reference's, those of the services, and the server's own.
const HEALTH_NAMES: [&str; 4] = ["", "ratelimit", SERVICE, "weir.v1.ReservationService"];

async fn health(served: &Served, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(served.channel().await).check(request).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

#[tokio::test]
async fn health_is_true_and_serving_begins_by_itself() {
    let served = Served::rules("domain: d\ndescriptors: 5\n").await;
    for service in HEALTH_NAMES {
        assert_eq!(health(&served, service).await, Ok(ServingStatus::NotServing));
    }
    assert_eq!(health(&served, "made.up.Service").await, Err(Code::NotFound));
    assert_eq!(served.get("/healthcheck").await, (503, "no rate limit configuration loaded".to_owned()));
    let unavailable = Err((Code::Unavailable, "no rate limit configuration loaded".to_owned()));
    assert_eq!(outcome(&served, user("a")).await, unavailable);

    let watch = HealthCheckRequest { service: "ratelimit".to_owned() };
    let mut watch = HealthClient::new(served.channel().await).watch(watch).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    fs::write(served.rules_file(), RULES).unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    for service in HEALTH_NAMES {
        assert_eq!(health(&served, service).await, Ok(ServingStatus::Serving));
    }
    assert_eq!(served.get("/healthcheck").await, (200, "OK".to_owned()));
    assert_eq!(outcome(&served, user("a")).await, Ok(1));
    served.stop().await;
    // An end, not a wait for the grace period.
    while let Ok(Some(last)) = watch.message().await {
        assert_eq!(last.status(), ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn reflection_is_served_in_both_versions() {
    let served = Served::rules(RULES).await;
    let channel = served.channel().await;
    macro_rules! services {
        ($version:ident) => {{
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let ask = |message_request| {
                let mut client = $version::server_reflection_client::ServerReflectionClient::new(channel.clone());
                let request = $version::ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
                async move {
                    let answer = client.server_reflection_info(futures_util::stream::iter([request])).await;
                    answer.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap()
                }
            };
            let file = ask(MessageRequest::FileContainingSymbol(SERVICE.to_owned())).await;
            assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
            let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
                panic!("no list")
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for expected in [SERVICE, "weir.v1.ReservationService", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|service| service == expected), "{expected} is not in {services:?}");
        }
    }
    served.stop().await;
}

#[tokio::test]
async fn json_says_what_grpc_says() {
    let served = Served::rules(RULES).await;
    let call = r#"{"domain": "d", "descriptors": [{"entries": [{"key": "user", "value": "json"}]}]}"#;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (status, body) = served.post("/json", call).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let limit = &body["statuses"][0]["currentLimit"];
        assert_eq!(*limit, serde_json::json!({"requestsPerUnit": 2, "unit": "HOUR", "name": "per-user"}));
        seen.push((status, body["overallCode"].as_str().unwrap().to_owned()));
    }
    assert_eq!(seen, [(200, "OK".to_owned()), (200, "OK".to_owned()), (429, "OVER_LIMIT".to_owned())]);
    assert_eq!(outcome(&served, user("json")).await, Ok(2), "one counter");
    let cases = [
        ("", 400, "EOF"),
        (r#"{"domian": "d"}"#, 400, "domian"),
        (r#"{"domain": "d"}"#, 400, "rate limit descriptor list must not be empty"),
        (r#"{"descriptors": []}"#, 400, "rate limit domain must not be empty"),
    ];
    for (call, status, reason) in cases {
        let answer = served.post("/json", call).await;
        assert!(answer.0 == status && answer.1.contains(reason), "{call}: {answer:?}");
    }
    assert_eq!(served.post("/json", &" ".repeat(5 << 20)).await.0, 413);
    assert_eq!(served.get("/json").await.0, 405);
    assert_eq!(served.get("/made/up").await.0, 404);
    served.stop().await;
    let empty = Served::rules("").await;
    let unavailable = (503, r#"{"error":"no rate limit configuration loaded"}"#.to_owned());
    assert_eq!(empty.post("/json", call).await, unavailable);
    empty.stop().await;
}

#[tokio::test]
async fn operators_see_metrics_and_rules() {
    let served = Served::rules(RULES).await;
    for _ in 0..3 {
        outcome(&served, user("a")).await.unwrap();
    }
    outcome(&served, request("d", vec![entry(b"unknown", b"EVIL")])).await.unwrap();
    outcome(&served, request("EVIL", vec![entry(b"user", b"a")])).await.unwrap();
    outcome(&served, request("", vec![])).await.unwrap_err();
    assert_eq!(served.post("/json", "{").await.0, 400);
    let (status, metrics) = served.get_admin("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "weir_decisions_total{domain=\"d\",rule=\"per-user\",outcome=\"ok\"} 2",
        "weir_decisions_total{domain=\"d\",rule=\"per-user\",outcome=\"over_limit\"} 1",
        "weir_unmatched_descriptors_total{domain=\"d\"} 1",
        "weir_unknown_domain_total 1",
        "weir_errors_total{kind=\"invalid\"} 2",
        "weir_memory_counters 1",
        "weir_config_revision 1",
        "weir_ready 1",
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("EVIL"), "{metrics}");
    let (_, rules) = served.get_admin("/rlconfig").await;
    assert!(rules.contains("user (per-user): 2/1h fixed_window"), "{rules}");
    assert_eq!(served.get_admin("/healthcheck").await.0, 200);
    served.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let served = Served::rules(RULES).await;
    let taken = served.addresses();
    let free = || settings(served.rules_file());
    let cases = [
        ("--grpc-listen", taken.grpc, Settings { grpc_listen: taken.grpc, ..free() }),
        ("--http-listen", taken.http, Settings { http_listen: taken.http, ..free() }),
        ("--admin-listen", taken.admin, Settings { admin_listen: taken.admin, ..free() }),
    ];
    for (flag, address, settings) in cases {
        let Err(error) = Server::start(settings).await else { panic!("{flag}: two servers on one port") };
        assert_eq!(error.to_string(), format!("{flag} {address}: Address already in use (os error 98)"));
    }
    served.stop().await;
}

#[tokio::test]
async fn stopping_lets_calls_finish() {
    let served = Served::rules(RULES).await;
    let mut client = served.client().await;
    let queued = |hits| request("d", vec![RateLimitDescriptor { hits_addend: Some(hits), ..entry(b"queued", b"x") }]);
    client.should_rate_limit(queued(9)).await.unwrap();
    // Held back by the server itself until those nine have drained: for most of a second.
    let mut other = client.clone();
    let held = tokio::spawn(async move { other.should_rate_limit(queued(20)).await });
    let counted = async || client.should_rate_limit(queued(0)).await.unwrap().into_inner().statuses[0].limit_remaining < 30;
    eventually("the call is counted", counted).await;
    assert!(!held.is_finished());
    let grpc = served.addresses().grpc;
    served.stop().await;
    assert_eq!(held.await.unwrap().unwrap().into_inner().overall_code, 1);
    assert!(TcpStream::connect(grpc).await.is_err(), "nobody listens any more");
}

/// Counters in memory leave all of the caller's time for the wait, however long a store might be given.
#[tokio::test]
async fn an_answer_is_held_back_for_as_long_as_its_caller_waits() {
    let served = Served::with(RULES, |settings| settings.store_timeout = Duration::from_secs(600)).await;
    let mut client = served.client().await;
    let mut ask = async |patience: Duration| {
        let descriptor = RateLimitDescriptor { hits_addend: Some(5), ..entry(b"queued", b"x") };
        let mut call = tonic::Request::new(request("d", vec![descriptor]));
        call.set_timeout(patience);
        client.should_rate_limit(call).await.unwrap().into_inner().overall_code
    };
    assert_eq!([ask(Duration::from_secs(300)).await, ask(Duration::from_secs(300)).await], [1, 1]);
    served.stop().await;
}

#[tokio::test]
async fn old_connections_are_replaced_without_a_lost_call() {
    let served = Served::with(RULES, |settings| settings.max_connection_age = Duration::from_millis(20)).await;
    let mut client = h2_connection(&served).await;
    let lost = async || {
        let request = http::Request::post(format!("http://localhost/{SERVICE}/ShouldRateLimit")).body(()).unwrap();
        match client.clone().ready().await {
            Ok(mut ready) => match ready.send_request(request, true) {
                Ok((response, _)) => response.await.is_err_and(|error| error.is_go_away() || error.is_io()),
                Err(_) => true,
            },
            Err(_) => true,
        }
    };
    eventually("the server sends GOAWAY", lost).await;
    client = h2_connection(&served).await;
    assert_eq!(grpc_status(&mut client, b"\0\0\0\0\0").await.as_deref(), Some("3"));
    drop(client);
    served.stop().await;
}
