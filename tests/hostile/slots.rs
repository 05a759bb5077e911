//! Connections that are there and do nothing, or next to nothing.

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::beside::{Others, closed, metric, settings};
use crate::http2;
use crate::support::eventually;
use crate::support::weir::{Weir, ask, request};

/// Few enough that a test fills every port.
const FILES: u32 = 1_024;
/// More than any port has places with that.
const MANY: usize = 700;

async fn connections(port: u16, count: usize, first: &[u8]) -> Vec<TcpStream> {
    join_all((0..count).map(async |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("weir listens");
        // One that had to make room may be closed already.
        let _ = stream.write_all(first).await;
        stream
    }))
    .await
}

/// Waits until weir has closed every one of them.
async fn all_closed(streams: Vec<TcpStream>) {
    join_all(streams.into_iter().map(async |mut stream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }))
    .await;
}

async fn silence(first: &[u8], ports: impl Fn(&Weir) -> Vec<u16>) {
    let weir = settings().open_files(FILES).start().await;
    let mut others = Others::of(&weir).await;
    let attack = async {
        let mut silent = Vec::new();
        for port in ports(&weir) {
            silent.extend(connections(port, MANY, first).await);
        }
        silent
    };
    let silent = others.during(attack).await;
    let rounds = others.rounds;
    others.during(all_closed(silent)).await;
    assert!(others.rounds > rounds, "nobody else came");
    others.until("places for those who call", async || closed(&weir, "handshake").await > 0).await;
    assert!(closed(&weir, "idle").await > 0);
}

#[tokio::test]
async fn silent_connections_block_no_port_and_are_closed() {
    silence(b"", |weir| vec![weir.grpc, weir.http, weir.admin]).await;
}

#[tokio::test]
async fn connections_with_one_byte_block_no_port_and_are_closed() {
    silence(b"P", |weir| vec![weir.grpc, weir.http, weir.admin]).await;
}

#[tokio::test]
async fn slow_heads_block_no_port_and_are_closed() {
    silence(b"POST /json HTTP/1.1\r\nhost: localhost\r\nx-slow: ", |weir| vec![weir.http, weir.admin]).await;
}

#[tokio::test]
async fn a_handshake_alone_holds_no_place_that_another_needs() {
    let weir = settings().open_files(FILES).start().await;
    let mut others = Others::of(&weir).await;
    let attack = join_all((0..MANY).map(|_| http2::connect(weir.grpc, &[])));
    let held = others.during(attack).await;
    others.until("places that were taken from the idle", async || closed(&weir, "idle").await > 0).await;
    drop(held);
}

#[tokio::test]
async fn bodies_that_do_not_come_block_neither_health_nor_other_callers() {
    let weir = settings().open_files(FILES).start().await;
    let mut others = Others::of(&weir).await;
    let head = b"POST /json HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    let slow = others.during(connections(weir.http, MANY, head)).await;
    others.during(all_closed(slow)).await;
    others.until("places that were taken from those who wait", async || closed(&weir, "idle").await > 0).await;
}

/// The second call of a queue is held back for three seconds: weir owes its caller an answer.
const QUEUE: &str = "domain: d
descriptors:
  - {key: user, rate_limit: {unit: day, requests_per_unit: 4000000000}}
  - {key: long, rate_limit: {window: 1s, requests: 10, burst: 1000, algorithm: leaky_bucket, max_wait: 60s}}
  - {key: queue, rate_limit: {window: 3s, requests: 1, burst: 100, algorithm: leaky_bucket, max_wait: 30s}}
";

#[tokio::test]
async fn a_connection_that_is_owed_an_answer_stays_and_the_one_idle_longest_goes() {
    let weir = crate::support::weir::Settings::with_rules(QUEUE).open_files(FILES).start().await;
    let mut owed = weir.client().await;
    ask(&mut owed, request("d", &[&[("queue", "q")]])).await;
    let mut same_connection = owed.clone();
    let mut held = Box::pin(owed.should_rate_limit(request("d", &[&[("queue", "q")]])));
    tokio::select! {
        biased;
        early = &mut held => panic!("not held back: {early:?}"),
        _ = ask(&mut same_connection, request("d", &[&[("user", "u")]])) => {}
    }
    let attack = async {
        let mut held = Vec::new();
        eventually("a connection that made room", async || {
            held.extend(connections(weir.grpc, MANY, b"P").await);
            closed(&weir, "idle").await > MANY as u64
        })
        .await;
    };
    let (answer, ()) = tokio::join!(held, attack);
    answer.expect("its connection stays, and it is answered");
}

#[tokio::test]
async fn probes_are_answered_when_every_place_is_busy() {
    let weir = crate::support::weir::Settings::with_rules(QUEUE).open_files(FILES).start().await;
    let others = Others::of(&weir).await;
    let body = br#"{"domain": "d", "descriptors": [{"entries": [{"key": "long", "value": "q"}]}]}"#;
    let call =
        [format!("POST /json HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body.as_slice()]
            .concat();
    // Each waits for its turn in the queue.
    let mut busy = connections(weir.http, MANY, &call).await;
    let refused = "weir_calls_refused_total{reason=\"probes_only\"}";
    eventually("calls that find no place", async || {
        busy.extend(connections(weir.http, 1, &call).await);
        others.assert_probes().await;
        metric(&weir, refused).await > 0
    })
    .await;
    drop(busy);
}

#[tokio::test]
async fn a_low_limit_of_open_files_is_raised_or_said() {
    let weir = settings().open_files(FILES).start().await;
    eventually("a warning", async || weir.log().contains("`ulimit -n 11512`")).await;
    let weir = settings().start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", weir.id())).expect("the process runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("Linux says it");
    let [soft, hard] = [3, 4].map(|column| line.split_whitespace().nth(column).expect("two limits"));
    assert_eq!(soft, hard);
}
