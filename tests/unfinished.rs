//! Requests that begin and do not end, over every port that anybody may call: what they hold is bounded in all and in time, and given back.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use support::eventually;
use support::weir::{Settings, Weir};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use weir::api::rls::Rls;
use weir::api::{AnswerSettings, MessageBounds, json};
use weir::limiter::{Limiter, LimiterSettings, Shared};
use weir::rules::plan::PlanSettings;
use weir::server::http::serve;
use weir::store::Clock;
use weir::store::memory::MemoryStore;
use weir::transport::connection::{Terms, Versions};
use weir::transport::drain::Drain;
use weir::transport::room::{Paths, Room, Size};

const RULES: &str = "domain: d\ndescriptors: []\n";
/// The longest message that is read.
const LONGEST: usize = 1 << 20;
/// What may be held in all, and as much again of what allocator and connections take.
const ALLOWED: u64 = 64 << 20;
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A connection on which a body of the longest length has begun, all of it but the last byte.
async fn begun_json(weir: &Weir) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", weir.http)).await.expect("weir listens");
    let head = format!("POST /json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {LONGEST}\r\n\r\n");
    // One that is refused may be closed before all of it is written.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&vec![b' '; LONGEST - 1]).await;
    stream
}

/// All that is answered on a connection until it closes.
async fn answer(mut stream: TcpStream) -> String {
    let (mut answer, mut piece) = (Vec::new(), [0; 1_000]);
    // One that closes with something unread may be reset after its answer.
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        answer.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(answer).expect("an answer is text")
}

/// What the first of them that is answered says.
async fn first(begun: &mut JoinSet<String>) -> String {
    let mut first = None;
    eventually("an answer to what has not ended", async || {
        first = begun.try_join_next();
        first.is_some()
    })
    .await;
    first.expect("it was waited for").expect("no call panics")
}

#[tokio::test]
async fn json_bodies_are_bounded_in_all_and_given_back() {
    let weir = Settings::with_rules(RULES).start().await;
    let before = weir.resident();
    let mut begun = JoinSet::new();
    for _ in 0..60 {
        begun.spawn(answer(begun_json(&weir).await));
    }
    let refused = first(&mut begun).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.ends_with("{\"error\":\"too many requests have begun and not ended\"}"), "{refused}");
    let now = weir.resident();
    assert!(now < before + ALLOWED, "{now} bytes resident, {before} before");
    begun.shutdown().await;
    eventually("room for a body in two parts", async || {
        let mut stream = begun_json(&weir).await;
        let _ = stream.write_all(b" ").await;
        answer(stream).await.starts_with("HTTP/1.1 400 ")
    })
    .await;
}

#[tokio::test]
async fn a_slow_json_body_is_told_so() {
    let store = || MemoryStore::new(Clock::System, 10);
    let limits = LimiterSettings { plan: PlanSettings::default(), store_timeout: Duration::from_secs(1) };
    let limiter = Limiter::new(Arc::new(Shared::new(store(), limits)), store());
    let rls = Arc::new(Rls { limiter, answers: AnswerSettings::default(), bounds: MessageBounds::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let (router, drain) = (json::router(rls, Duration::from_millis(1)), Drain::new());
    let room = Room::new(Size { connections: 10, probes: 1 }, Paths { is_probe: |_| false, lasting: |_| None }, Arc::default());
    let terms = Terms { versions: Versions::One, max_age: Duration::from_secs(3600), draining: drain.draining() };
    tokio::spawn(serve(listener, router, room, terms));
    for body in ["", "{", "{}"] {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let request = format!("POST /json HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.expect("the connection is open");
        let answer = answer(stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close\r\n"), "{body}: {answer}");
        assert!(answer.ends_with("{\"error\":\"the request had not come whole after 1ms\"}"), "{body}: {answer}");
    }
}

type Client = h2::client::SendRequest<Bytes>;

async fn h2_connection(weir: &Weir) -> Client {
    let stream = TcpStream::connect(("127.0.0.1", weir.grpc)).await.expect("weir listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}

/// A message of zeros, with its prefix.
fn message(length: usize) -> Bytes {
    let prefix = [&[0][..], &u32::try_from(length).expect("a short one").to_be_bytes()].concat();
    [prefix, vec![0; length]].concat().into()
}

/// What a call is answered: its `grpc-status`.
async fn status(client: Client, path: &str, message: Bytes, is_ended: bool) -> String {
    let request = http::Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc");
    let mut client = client.ready().await.expect("an open connection");
    let (response, mut sending) = client.send_request(request.body(()).expect("a request"), false).expect("an open connection");
    sending.send_data(message, is_ended).expect("an open stream");
    let (head, mut body) = response.await.expect("an answer").into_parts();
    while body.data().await.is_some() {}
    let trailers = body.trailers().await.expect("trailers").unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status")).expect("an end");
    status.to_str().expect("a number").to_owned()
}

#[tokio::test]
async fn grpc_messages_are_bounded_until_their_calls_end_and_given_back() {
    for path in [SHOULD_RATE_LIMIT, "/weir.v1.ReservationService/Reserve", "/weir.v1.ReservationService/Commit"] {
        const MESSAGES: usize = 5_000;
        // Each may have a thousand calls open.
        const CONNECTIONS: usize = 10;
        let weir = Settings::with_rules(RULES).start().await;
        let before = weir.resident();
        // Whole, but for the end of the stream.
        let (clients, small) = (join_all((0..CONNECTIONS).map(|_| h2_connection(&weir))).await, message(16_000));
        let mut begun = JoinSet::new();
        for client in clients.iter().cycle().take(MESSAGES) {
            begun.spawn(status(client.clone(), path, small.clone(), false));
        }
        assert_eq!(first(&mut begun).await, "8", "{path}");
        let now = weir.resident();
        assert!(now < before + ALLOWED, "{path}: {now} bytes resident, {before} before");
        let whole = status(h2_connection(&weir).await, path, small, true).await;
        assert_eq!(whole, "13", "{path}: what comes whole is read all the same");
        begun.shutdown().await;
        drop(clients);
        eventually("room for a message in many parts", async || {
            status(h2_connection(&weir).await, path, message(LONGEST), true).await == "13"
        })
        .await;
    }
}

#[tokio::test]
async fn health_and_reflection_read_no_long_messages() {
    let weir = Settings::with_rules(RULES).start().await;
    let client = h2_connection(&weir).await;
    // Reflection ends without a word.
    for (path, expected) in [
        ("/grpc.health.v1.Health/Check", "11"),
        ("/grpc.health.v1.Health/Watch", "11"),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "0"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "0"),
    ] {
        let mut begun = JoinSet::from_iter([status(client.clone(), path, message(LONGEST).slice(..100), false)]);
        assert_eq!(first(&mut begun).await, expected, "{path}");
    }
}
