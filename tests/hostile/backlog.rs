//! Many clients that connect at once, as after a restart.

use std::fs;

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::beside::settings;
use crate::support::http;

/// More than what a queue of the usual length takes.
const CLIENTS: usize = 2_000;

#[tokio::test]
async fn clients_that_come_back_at_once_are_connected_at_once() {
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux says it");
    let clients = CLIENTS.min(most.trim().parse().expect("a number"));
    let weir = settings().start().await;
    // Nobody takes a connection in: only the kernel's queue does.
    weir.signal("STOP");
    for port in [weir.grpc, weir.http, weir.admin] {
        let connected = join_all((0..clients).map(|_| TcpStream::connect(("127.0.0.1", port)))).await;
        assert!(connected.iter().all(Result::is_ok));
    }
    weir.signal("CONT");
    assert!(http::get(weir.http, "/healthcheck").await.is_some_and(|answer| answer.status == 200));
}
