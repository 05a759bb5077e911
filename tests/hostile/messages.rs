//! Attacks a real process, on every port, with messages that are made to cost much. Each gets an answer in words, takes
//! little memory, and leaves other callers their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::weir::{Settings, Weir, ask, request};
use crate::table::Measured;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const RULES: &str = r"
domain: d
subject: [user]
costs: {method: {GET: 1, POST: 2}}
priority: {entry: class, default: normal, reserve: {low: 50%}}
descriptors:
  - {key: user, name: per-user, reserve: true, limits: ['1000000/hour', '2000000/day'], metadata: {plan: {name: basic}}}
  - key: path
    value: '/a/*/b/*/c'
    descriptors: [{key: user, rate_limit: {name: per-path, replaces: [{name: other}], unit: hour, requests_per_unit: 1000000}}]
  - {key: other, name: other, rate_limit: {unit: hour, requests_per_unit: 1000000}}
";
/// How much more memory may be taken at any time, in bytes.
const ALLOWED: u64 = 64 << 20;
/// The longest message that callers may send.
const LONGEST: usize = 1 << 20;
/// The longest that operators may send, but for imports.
const LONGEST_ADMIN: usize = 64 << 10;
/// Connections that attack at once.
const ATTACKERS: usize = 4;

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const RESERVE: &str = "/weir.v1.ReservationService/Reserve";
const COMMIT: &str = "/weir.v1.ReservationService/Commit";
const EXPLAIN: &str = "/weir.admin.v1.AdminService/Explain";
const OVERRIDE: &str = "/weir.admin.v1.AdminService/OverrideSubject";
const IMPORT: &str = "/weir.admin.v1.AdminService/ImportRecords";

const OK: &str = "0";
const INVALID_ARGUMENT: &str = "3";
const OUT_OF_RANGE: &str = "11";
const INTERNAL: &str = "13";

/// A weir that is attacked, and somebody who asks it all the while.
struct Attacked {
    weir: Weir,
    measured: Measured,
    is_over: Arc<AtomicBool>,
    bystander: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Attacked {
    async fn start() -> Attacked {
        let settings = Settings::with_rules(RULES).flag("--threads", "1").env("RESPONSE_DYNAMIC_METADATA", "true");
        let weir = settings.env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
        let (mut client, is_over) = (weir.client().await, Arc::new(AtomicBool::new(false)));
        ask(&mut client, request("d", &[&[("user", "bystander")]])).await;
        let (measured, over) = (Measured::of(&weir), is_over.clone());
        let bystander = tokio::spawn(async move {
            let mut waits = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                ask(&mut client, request("d", &[&[("user", "bystander")]])).await;
                waits.push(asked.elapsed());
            }
            waits
        });
        Attacked { weir, measured, is_over, bystander }
    }

    /// How many messages were refused as such.
    async fn invalid(&self) -> u64 {
        let metrics = http::get(self.weir.admin, "/metrics").await.expect("the admin port answers").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("weir_errors_total{kind=\"invalid\"} "));
        line.expect("it is there").parse().expect("a number")
    }

    /// Everybody else was answered, and memory stayed as it was.
    async fn survived(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let waits = self.bystander.await.expect("the bystander is answered");
        assert!(!waits.is_empty());
        waits.into_iter().for_each(|wait| self.measured.answered(wait));
        let (peak, before) = (self.weir.peak(), self.measured.rest());
        self.measured.memory(peak);
        assert!(peak < before + ALLOWED, "{} MiB at the most, {} before", peak >> 20, before >> 20);
    }
}

/// What a call of this message is answered on a connection of its own: its `grpc-status` and `grpc-message`.
async fn call(port: u16, path: &str, message: &[u8]) -> (String, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("weir listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let length = u32::try_from(message.len()).expect("a short one").to_be_bytes();
    let framed = Bytes::from([&[0][..], &length, message].concat());
    let head = ::http::Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
    let mut client = client.ready().await.expect("an open connection");
    let (response, mut sending) = client.send_request(head.body(()).expect("a request"), false).expect("an open connection");
    sending.send_data(framed, true).expect("an open stream");
    let (head, mut body) = response.await.expect("an answer").into_parts();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).expect("it was received");
    }
    // A call that is refused before all of it was sent may be reset after its answer.
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    let header = |name: &str| {
        let value = head.headers.get(name).or(trailers.get(name)).and_then(|value| value.to_str().ok());
        // What is escaped in these messages.
        value.unwrap_or_default().replace("%20", " ").replace("%60", "`")
    };
    (header("grpc-status"), header("grpc-message"))
}

/// Status and body of the answer to a request that may be refused before all of it is sent.
async fn post(port: u16, path: &str, body: &[u8]) -> (u16, String) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("weir listens");
    let (mut receiving, mut sending) = stream.into_split();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    let request = [head.as_bytes(), body].concat();
    let sent = tokio::spawn(async move {
        let _ = sending.write_all(&request).await;
        sending
    });
    let (mut answer, mut piece) = (Vec::new(), [0; 10_000]);
    while let Ok(length @ 1..) = receiving.read(&mut piece).await {
        answer.extend_from_slice(&piece[..length]);
    }
    sent.abort();
    let answer = String::from_utf8(answer).expect("an answer is text");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {answer}")), answer)
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).expect("seven bits"));
    field.extend_from_slice(bytes);
    field
}

/// So many times the same, up to this length.
fn repeated(what: &[u8], length: usize) -> Vec<u8> {
    what.repeat(length / what.len())
}

/// What a message of this kind is answered, from several connections at once.
async fn attack(port: u16, path: &'static str, message: Vec<u8>) -> (String, String) {
    let message = Arc::new(message);
    let mut calls = JoinSet::new();
    for _ in 0..ATTACKERS {
        let message = message.clone();
        calls.spawn(async move { call(port, path, &message).await });
    }
    let answers = calls.join_all().await;
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    answers[0].clone()
}

#[tokio::test]
async fn grpc_messages_are_counted_while_they_are_read() {
    let attacked = Attacked::start().await;
    let (port, room) = (attacked.weir.grpc, LONGEST - 100);
    let (domain, descriptor) = (field(1, b"d"), field(2, &field(1, &[field(1, b"user"), field(2, b"u")].concat())));
    let ask = [domain, descriptor].concat();
    let descriptors = repeated(b"\x12\0", room);
    let entries = field(2, &repeated(b"\x0a\0", room));
    let cases: [(&'static str, &str, Vec<u8>, &str, &str); 14] = [
        ("empty descriptors", SHOULD_RATE_LIMIT, descriptors.clone(), INVALID_ARGUMENT, "more than 1000 descriptors"),
        ("empty entries", SHOULD_RATE_LIMIT, entries.clone(), INVALID_ARGUMENT, "--max-message-entries"),
        ("more than is read", SHOULD_RATE_LIMIT, repeated(b"\x12\0", 4 * LONGEST), OUT_OF_RANGE, "at most 1048576 are read"),
        (
            "limits in parts",
            SHOULD_RATE_LIMIT,
            [&ask[..], &field(2, &repeated(b"\x12\0", room))].concat(),
            INVALID_ARGUMENT,
            "unit",
        ),
        ("unknown numbers", SHOULD_RATE_LIMIT, [&repeated(b"\x78\x01", room), &ask[..]].concat(), OK, ""),
        ("unknown messages", SHOULD_RATE_LIMIT, [&repeated(b"\x7a\0", room), &ask[..]].concat(), OK, ""),
        ("domains", SHOULD_RATE_LIMIT, [&repeated(b"\x0a\0", room), &ask[..]].concat(), OK, ""),
        ("groups", SHOULD_RATE_LIMIT, repeated(b"\x7b\x7c", room), INTERNAL, "cannot be decoded"),
        ("empty descriptors", RESERVE, descriptors, INVALID_ARGUMENT, "more than 1000 descriptors"),
        ("empty entries", RESERVE, entries, INVALID_ARGUMENT, "--max-message-entries"),
        ("groups", RESERVE, repeated(b"\x7b\x7c", room), INTERNAL, "cannot be decoded"),
        ("more than is read", RESERVE, repeated(b"\x12\0", 4 * LONGEST), OUT_OF_RANGE, "at most 1048576 are read"),
        ("unknown messages", COMMIT, repeated(b"\x7a\0", room), INVALID_ARGUMENT, "id"),
        ("names of services", "/grpc.health.v1.Health/Check", repeated(b"\x0a\0", LONGEST), OUT_OF_RANGE, "at most 4096 are read"),
    ];
    for (what, path, message, status, reason) in cases {
        let answer = attack(port, path_of(path), message).await;
        assert_eq!(answer.0, status, "{what} to {path}: {}", answer.1);
        assert!(answer.1.contains(reason), "{what} to {path}: {}", answer.1);
    }
    assert!(attacked.invalid().await >= 9 * ATTACKERS as u64, "{}", attacked.invalid().await);
    attacked.survived().await;
}

/// The paths above have all the time there is.
fn path_of(path: &str) -> &'static str {
    let known = [SHOULD_RATE_LIMIT, RESERVE, COMMIT, "/grpc.health.v1.Health/Check"];
    known.into_iter().find(|known| *known == path).expect("a path of this page")
}

#[tokio::test]
async fn json_is_counted_while_it_is_read() {
    let attacked = Attacked::start().await;
    let (port, room) = (attacked.weir.http, LONGEST - 1_000);
    let many = |what: &str| String::from_utf8(repeated(what.as_bytes(), room)).expect("text");
    let entry = |value: &str| format!(r#"{{"domain":"d","descriptors":[{{"entries":[{{"key":"user","value":"{value}"}}]}}]}}"#);
    let entries = many("{},");
    let cases = [
        ("descriptors", format!(r#"{{"descriptors":[{}{{}}]}}"#, many("{},")), 400, "more than 1000 descriptors"),
        ("entries", format!(r#"{{"descriptors":[{{"entries":[{entries}{{}}]}}]}}"#), 400, "--max-message-entries"),
        ("more than is read", " ".repeat(4 * LONGEST), 413, "--max-message-bytes"),
        ("fields that come again", format!(r#"{{{}"domain":""}}"#, many(r#""domain":"","#)), 400, "domain must not be empty"),
        (
            "lists that come again",
            format!(r#"{{{}"descriptors":[]}}"#, many(r#""descriptors":[{}],"#)),
            400,
            "more than 1000 descriptors",
        ),
        ("a long number", format!(r#"{{"hitsAddend":{}}}"#, many("9")), 400, "out of range"),
        ("a long fraction", format!(r#"{{"hitsAddend":0.{}}}"#, many("9")), 400, "domain must not be empty"),
        ("a deep list", many("["), 400, "expected a map"),
        ("a deep unknown field", format!(r#"{{"x":{}"#, many("[")), 400, "there is no such field"),
        ("white space", many(" "), 400, "EOF"),
        ("a long name", format!(r#"{{"{}":1}}"#, many("n")), 400, "there is no such field"),
        ("escapes", entry(&many("\\u00e4")), 200, "OK"),
        ("a long value", entry(&many("v")), 200, "OK"),
    ];
    for (what, body, status, reason) in cases {
        let answer = post(port, "/json", body.as_bytes()).await;
        assert_eq!(answer.0, status, "{what}: {}", &answer.1[..answer.1.len().min(1_000)]);
        assert!(answer.1.contains(reason), "{what}: {}", &answer.1[..answer.1.len().min(1_000)]);
        assert!(status == 200 || answer.1.len() < 1_000, "{what}: an answer of {} bytes", answer.1.len());
    }
    assert!(attacked.invalid().await >= 11, "{}", attacked.invalid().await);
    attacked.survived().await;
}

#[tokio::test]
async fn a_message_at_every_bound_at_once_is_decided() {
    let attacked = Attacked::start().await;
    // A thousand descriptors of four entries each, and of as many bytes as there is room for.
    let value = "v".repeat(200);
    let descriptor = |number: usize| {
        let entries =
            [("user", format!("{number}-{value}")), ("k", value.clone()), ("l", value.clone()), ("method", "POST".to_owned())];
        let entries: Vec<Value> = entries.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        json!({"entries": entries, "limit": {"requestsPerUnit": 5, "unit": "HOUR"}, "hitsAddend": "2"})
    };
    let body =
        json!({"domain": "d", "descriptors": (0..1_000).map(descriptor).collect::<Vec<Value>>(), "hitsAddend": 3}).to_string();
    assert!(body.len() < LONGEST && body.len() > LONGEST / 2, "{} bytes", body.len());
    for code in [200, 200, 429] {
        let answer = post(attacked.weir.http, "/json", body.as_bytes()).await;
        assert_eq!(answer.0, code, "{}", &answer.1[..answer.1.len().min(1_000)]);
    }
    let entry = |key: &str, value: &str| field(1, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let descriptor = |number: usize| {
        let entries =
            [entry("user", &format!("{number}-{value}")), entry("k", &value), entry("l", &value), entry("method", "POST")];
        field(2, &[entries.concat(), field(2, b"\x08\x05\x10\x03")].concat())
    };
    let descriptors: Vec<u8> = (0..1_000).flat_map(|number| descriptor(number + 1_000)).collect();
    let answer = attack(attacked.weir.grpc, SHOULD_RATE_LIMIT, [field(1, b"d"), descriptors].concat()).await;
    assert_eq!(answer.0, OK, "{}", answer.1);
    attacked.survived().await;
}

#[tokio::test]
async fn calls_of_the_admin_api_are_short() {
    let attacked = Attacked::start().await;
    let port = attacked.weir.admin;
    let subject = [field(1, b"d"), field(2, b"user=u")].concat();
    for (path, message, status, reason) in [
        (EXPLAIN, repeated(b"\x12\0", 4 << 20), OUT_OF_RANGE, "more than 65536 bytes"),
        (EXPLAIN, [field(1, b"d"), repeated(b"\x12\0", LONGEST_ADMIN - 100)].concat(), INVALID_ARGUMENT, "more descriptors"),
        (OVERRIDE, [&subject[..], &repeated(b"\x32\0", LONGEST_ADMIN - 100)].concat(), INVALID_ARGUMENT, "more than 1000 limits"),
        (IMPORT, repeated(b"\x0a\0", (4 << 20) - 100), INVALID_ARGUMENT, "more than 100000 values"),
        (IMPORT, field(1, &repeated(b"\x3a\0", (4 << 20) - 100)), INVALID_ARGUMENT, "more than 100000 values"),
        (IMPORT, repeated(b"\x0a\0", 5 << 20), OUT_OF_RANGE, "more than 4194304 bytes"),
    ] {
        let answer = call(port, path, &message).await;
        assert_eq!(answer.0, status, "{path}: {}", answer.1);
        assert!(answer.1.contains(reason), "{path}: {}", answer.1);
    }
    let many = |what: &str, length: usize| String::from_utf8(repeated(what.as_bytes(), length)).expect("text");
    let short = LONGEST_ADMIN - 100;
    for (what, body, status, reason) in [
        ("31 MB", format!(r#"{{"descriptors":[{}{{}}]}}"#, many("{},", 31 << 20)), 413, "longer than 65536 bytes"),
        ("descriptors", format!(r#"{{"descriptors":[{}{{}}]}}"#, many("{},", short)), 400, "more descriptors"),
        ("fields that come again", format!(r#"{{{}"hits":1}}"#, many(r#""hits":1,"#, short)), 400, "`hits` is given twice"),
        ("a deep list", format!(r#"{{"descriptors":{}"#, many("[", short)), 400, "recursion"),
    ] {
        let answer = post(port, "/v1/domains/d/explain", body.as_bytes()).await;
        assert_eq!(answer.0, status, "{what}: {}", answer.1);
        assert!(answer.1.contains(reason), "{what}: {}", answer.1);
    }
    attacked.survived().await;
}

#[tokio::test]
async fn many_large_requests_at_once_hold_little() {
    const CALLS: usize = 50;
    let attacked = Attacked::start().await;
    let users: Vec<String> = (0..1_000).map(|number| format!("u{number}")).collect();
    let entries: Vec<[(&str, &str); 1]> = users.iter().map(|user| [("user", &**user)]).collect();
    let descriptors: Vec<&[(&str, &str)]> = entries.iter().map(|entries| &entries[..]).collect();
    let large = request("d", &descriptors);
    let mut attackers = JoinSet::new();
    for _ in 0..ATTACKERS {
        let client = attacked.weir.client().await;
        for _ in 0..CALLS {
            let (mut client, large) = (client.clone(), large.clone());
            attackers.spawn(async move { ask(&mut client, large).await.statuses.len() });
        }
    }
    let answered = attackers.join_all().await;
    assert_eq!(answered, vec![users.len(); ATTACKERS * CALLS]);
    attacked.survived().await;
}
