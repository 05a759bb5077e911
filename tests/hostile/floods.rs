//! Frames that make work and are no calls.

use futures_util::future::join_all;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::beside::{Others, closed, settings};
use crate::http2::{
    self, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    head,
};
use crate::support::weir::request;

const CONNECTIONS: usize = 4;
/// More than any connection may send, in frames.
const FRAMES: usize = 4_000_000;
/// Frames that are written at once.
const AT_ONCE: usize = 1_000;

/// Sends frames, so many at once, until it is cut off: what it is told, and how many it sent.
async fn flood(mut stream: TcpStream, one: &[u8], at_once: usize) -> (Option<u32>, usize) {
    let (mut reader, mut writer) = stream.split();
    let many = one.repeat(at_once);
    let write = async {
        let mut sent = 0;
        while sent < FRAMES && writer.write_all(&many).await.is_ok() {
            sent += at_once;
            tokio::task::yield_now().await;
        }
        sent
    };
    tokio::join!(http2::goaway(&mut reader), write)
}

#[tokio::test]
async fn frames_without_calls_end_their_connection_and_hold_nobody_up() {
    let weir = settings().start().await;
    let mut others = Others::of(&weir).await;
    let kinds = [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("an unknown kind", frame(99, 0, 0, &[0; 20])),
    ];
    for port in [weir.grpc, weir.admin] {
        for (name, one) in &kinds {
            let floods = join_all((0..CONNECTIONS).map(async |_| flood(http2::connect(port, &[]).await, one, AT_ONCE).await));
            for (told, sent) in others.during(floods).await {
                assert!(sent < FRAMES, "{name}: {sent} frames were taken");
                assert!(told.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{name}: {told:?}");
            }
        }
    }
    let all = (2 * CONNECTIONS * kinds.len()) as u64;
    others.until("a count of all floods", async || closed(&weir, "control_frames").await == all).await;
}

#[tokio::test]
async fn who_floods_slowly_is_told_to_calm_down() {
    let weir = settings().start().await;
    // A little at a time, so that every word of weir is read before the connection breaks.
    let (told, _) = flood(http2::connect(weir.grpc, &[]).await, &frame(PING, 1, 0, &[0; 8]), 100).await;
    assert_eq!(told, Some(ENHANCE_YOUR_CALM));
}

/// As Envoy, grpc-go and others do at their worst.
#[tokio::test]
async fn a_client_with_frames_beside_each_call_is_never_cut_off() {
    const CALLS: u32 = 5_000;
    const IN_FLIGHT: u32 = 100;
    let weir = settings().start().await;
    let mut stream = http2::connect(weir.grpc, &[]).await;
    let body = http2::message(&request("d", &[&[("user", "u")]]).encode_to_vec());
    let head = head("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let (mut reader, mut writer) = stream.split();
    let ended = std::cell::Cell::new(0);
    let write = async {
        for number in 0..CALLS {
            while number >= ended.get() + IN_FLIGHT {
                tokio::task::yield_now().await;
            }
            let id = http2::stream(number);
            let call = [
                frame(HEADERS, END_HEADERS, id, &head),
                frame(DATA, 0, id, &body[..10]),
                frame(DATA, END_STREAM, id, &body[10..]),
                frame(PING, 0, 0, &[0; 8]),
                frame(WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0]),
                frame(WINDOW_UPDATE, 0, id, &[0, 0, 4, 0]),
                frame(PRIORITY, 0, id, &[0, 0, 0, 0, 1]),
            ];
            writer.write_all(&call.concat()).await.expect("an open connection");
        }
    };
    let read = async {
        while ended.get() < CALLS {
            let (kind, flags, _) = http2::next(&mut reader).await.expect("an open connection");
            assert_ne!(kind, http2::GOAWAY, "after {} answers", ended.get());
            ended.set(ended.get() + u32::from(kind == HEADERS && flags & END_STREAM != 0));
        }
    };
    tokio::join!(write, read);
}

/// As Envoy does when weir was late: it is out of patience with every call at once.
#[tokio::test]
async fn a_client_that_takes_many_calls_back_at_once_is_not_cut_off() {
    const CALLS: u32 = 300;
    const ROUNDS: u32 = 20;
    let weir = settings().start().await;
    let mut stream = http2::connect(weir.grpc, &[]).await;
    let body = http2::message(&request("d", &[&[("user", "u")]]).encode_to_vec());
    let head = head("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let call = |number: u32| {
        let id = http2::stream(number);
        [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, &body)].concat()
    };
    let cancel = 8_u32.to_be_bytes();
    // Those that are answered before they are taken back must not fill the window of the connection.
    assert!(http2::send(&mut stream, &frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes())).await);
    for round in 0..ROUNDS {
        let numbers = || round * CALLS..(round + 1) * CALLS;
        let taken_back = numbers().flat_map(|number| frame(RST_STREAM, 0, http2::stream(number), &cancel));
        let at_once: Vec<u8> = numbers().flat_map(call).chain(taken_back).collect();
        assert!(http2::send(&mut stream, &at_once).await, "round {round}");
    }
    let last = http2::stream(ROUNDS * CALLS);
    assert!(http2::send(&mut stream, &call(ROUNDS * CALLS)).await);
    loop {
        let (kind, flags, stream, _) = http2::next_of(&mut stream).await.expect("an open connection");
        assert_ne!(kind, http2::GOAWAY);
        if kind == HEADERS && flags & END_STREAM != 0 && stream == last {
            break;
        }
    }
}
