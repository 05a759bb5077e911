//! Calls that begin and do not end, and answers that nobody takes.

use futures_util::future::join_all;
use prost::Message as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::beside::{Others, closed, metric, settings};
use crate::http2::{self, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, SETTINGS, WINDOW_UPDATE, frame};
use crate::support::eventually;
use crate::support::weir::{Weir, request};

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const PATHS: [&str; 6] = [
    SHOULD_RATE_LIMIT,
    "/weir.v1.ReservationService/Reserve",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// As many as one connection may have open.
const STREAMS: u32 = 1_000;
const CONNECTIONS: usize = 20;
/// Connections whose answers are more than all buffers between them and weir hold.
const CUT_OFF: usize = 2;

/// A connection on which calls have begun, each with references to one header that fill the list of headers.
async fn begun(port: u16, path: &str) -> TcpStream {
    let mut stream = http2::connect(port, &[]).await;
    let head = http2::head(path);
    let mut calls = frame(HEADERS, END_HEADERS, 1, &[head.clone(), http2::indexed("x", "y")].concat());
    for number in 1..STREAMS {
        calls.extend(frame(HEADERS, END_HEADERS, http2::stream(number), &[&head[..], &http2::references(440)].concat()));
    }
    http2::send(&mut stream, &calls).await;
    stream
}

/// Others are answered while calls begin on these paths, and while they are held.
async fn headers_are_dropped(weir: &Weir, port: u16, paths: &[&str]) {
    let mut others = Others::of(weir).await;
    for path in paths {
        let held = others.during(join_all((0..CONNECTIONS).map(|_| begun(port, path)))).await;
        let mut rounds = 0;
        others
            .until("several rounds of others", async || {
                rounds += 1;
                rounds > 20
            })
            .await;
        drop(held);
    }
}

#[tokio::test]
async fn headers_are_not_kept_while_a_body_does_not_come() {
    let weir = settings().start().await;
    headers_are_dropped(&weir, weir.grpc, &PATHS).await;
}

/// The same on the port for operators.
#[tokio::test]
async fn headers_are_not_kept_for_operators_either() {
    let weir = settings().env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    headers_are_dropped(&weir, weir.admin, &["/weir.admin.v1.AdminService/ImportRecords", "/v1/records", PATHS[4]]).await;
}

#[tokio::test]
async fn watching_and_reflection_are_bounded_for_a_connection_and_end() {
    let weir = settings().start().await;
    let mut others = Others::of(&weir).await;
    let refused = "weir_calls_refused_total{reason=\"open_streams\"}";
    for (path, body) in [(PATHS[3], http2::message(b"")), (PATHS[4], http2::message(&[0x3a, 0]))] {
        let before = metric(&weir, refused).await;
        let attack = async {
            let mut stream = http2::connect(weir.grpc, &[]).await;
            let head = http2::head(path);
            let flags = if path.ends_with("Watch") { END_STREAM } else { 0 };
            for number in 0..100 {
                let id = http2::stream(number);
                let call = [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, flags, id, &body)].concat();
                assert!(http2::send(&mut stream, &call).await);
            }
            eventually("refused streams", async || metric(&weir, refused).await >= before + 84).await;
            stream
        };
        drop(others.during(attack).await);
    }
}

/// A call whose answer is tens of KiB.
fn many_descriptors() -> Vec<u8> {
    let entries: Vec<[(&str, &str); 1]> = vec![[("user", "u")]; 900];
    let descriptors: Vec<&[(&str, &str)]> = entries.iter().map(|entries| &entries[..]).collect();
    request("d", &descriptors).encode_to_vec()
}

/// A connection that makes calls and takes nothing of the answers.
async fn unread(weir: &Weir, window: u32, body: &[u8]) -> TcpStream {
    let mut stream = http2::connect(weir.grpc, &[(INITIAL_WINDOW_SIZE, window)]).await;
    // The connection's own window is wide open.
    http2::send(&mut stream, &frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes())).await;
    let head = http2::head(SHOULD_RATE_LIMIT);
    for number in 0..STREAMS {
        let id = http2::stream(number);
        let call = [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, body)].concat();
        if !http2::send(&mut stream, &call).await {
            break;
        }
    }
    stream
}

#[tokio::test]
async fn answers_that_nobody_takes_end_their_connection() {
    let weir = settings().start().await;
    let mut others = Others::of(&weir).await;
    let small = http2::message(&request("d", &[&[("user", "u")]]).encode_to_vec());
    let large = http2::message(&many_descriptors());
    for (window, body, connections) in [(0, &small, CONNECTIONS), (1, &small, CONNECTIONS), (65_535, &large, 2)] {
        let attack = join_all((0..connections).map(|_| unread(&weir, window, body)));
        let mut held = others.during(attack).await;
        let told = others.during(join_all(held.iter_mut().map(http2::goaway))).await;
        assert_eq!(told.len(), connections, "every connection has ended");
    }
    assert!(closed(&weir, "unread").await + closed(&weir, "open_calls").await > 0);
}

/// The same below HTTP/2: nothing is read from the connection at all.
#[tokio::test]
async fn a_peer_that_reads_nothing_is_cut_off() {
    let weir = settings().start().await;
    let mut others = Others::of(&weir).await;
    let (body, head) = (http2::message(&many_descriptors()), http2::head(SHOULD_RATE_LIMIT));
    let attack = join_all((0..CUT_OFF).map(async |_| {
        let mut stream = http2::connect(weir.grpc, &[]).await;
        http2::send(&mut stream, &frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes())).await;
        for number in 0..STREAMS {
            let id = http2::stream(number);
            let call = [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, &body)].concat();
            // Until weir takes no more, and then ends it.
            if !http2::send(&mut stream, &call).await {
                break;
            }
        }
        stream
    }));
    let held = others.during(attack).await;
    others.until("a count of those cut off", async || closed(&weir, "write").await == CUT_OFF as u64).await;
    drop(held);
}

/// A few bytes ask for a page of tens of KiB.
#[tokio::test]
async fn pages_for_operators_that_nobody_takes_are_bounded() {
    const PAGES: u32 = 100;
    for (path, window) in [("/metrics", 0), ("/openapi.json", 0), ("/metrics", 0x7fff_ffff)] {
        // A new one for each: the allocator keeps for a while what the attack before took.
        let weir = settings().start().await;
        let mut others = Others::of(&weir).await;
        let attack = join_all((0..CONNECTIONS).map(async |_| {
            let mut stream = http2::connect(weir.admin, &[(INITIAL_WINDOW_SIZE, window)]).await;
            http2::send(&mut stream, &frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes())).await;
            let get = http2::get(path);
            let calls: Vec<u8> =
                (0..PAGES).flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, http2::stream(number), &get)).collect();
            http2::send(&mut stream, &calls).await;
            stream
        }));
        let mut held = others.during(attack).await;
        let rounds = others.rounds;
        others.until("rounds of others", async || true).await;
        assert!(others.rounds > rounds);
        if window == 0 {
            others.during(join_all(held.iter_mut().map(http2::goaway))).await;
        }
    }
}

/// One call on each connection, whose answer in JSON is tens of KiB, and nobody reads any.
#[tokio::test]
async fn long_answers_in_json_that_nobody_reads_are_bounded() {
    const CALLERS: usize = 300;
    let weir = settings().start().await;
    let mut others = Others::of(&weir).await;
    let descriptor = r#"{"entries":[{"key":"user","value":"u"}]}"#;
    let body = format!(r#"{{"domain":"d","descriptors":[{}]}}"#, vec![descriptor; 1_000].join(","));
    let call = format!("POST /json HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let attack = join_all((0..CALLERS).map(async |_| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(2 << 10).expect("a small buffer");
        let mut stream = socket.connect(([127, 0, 0, 1], weir.http).into()).await.expect("weir listens");
        // One that had to make room may be closed already.
        http2::send(&mut stream, call.as_bytes()).await;
        stream
    }));
    let held = others.during(attack).await;
    let mut rounds = 0;
    others
        .until("several rounds of others", async || {
            rounds += 1;
            rounds > 20
        })
        .await;
    drop(held);
}

/// Not an attack: a peer with small windows that opens them has its answers.
#[tokio::test]
async fn a_peer_with_small_windows_is_answered() {
    let weir = settings().start().await;
    let mut stream = http2::connect(weir.grpc, &[(INITIAL_WINDOW_SIZE, 1)]).await;
    let body = http2::message(&request("d", &[&[("user", "u")]]).encode_to_vec());
    let head = http2::head(SHOULD_RATE_LIMIT);
    let call = [frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, &body)].concat();
    assert!(http2::send(&mut stream, &call).await);
    let mut received = Vec::new();
    loop {
        let (kind, flags, payload) = http2::next(&mut stream).await.expect("an open connection");
        match kind {
            DATA => {
                let more = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
                received.extend(payload);
                assert!(http2::send(&mut stream, &frame(WINDOW_UPDATE, 0, 1, &more)).await);
            }
            HEADERS if flags & END_STREAM != 0 => break,
            SETTINGS if flags == 0 => assert!(http2::send(&mut stream, &frame(SETTINGS, 1, 0, &[])).await),
            _ => {}
        }
    }
    let length = u32::from_be_bytes(received[1..5].try_into().expect("a prefix")) as usize;
    assert_eq!(received.len(), 5 + length, "the whole answer");
}
