//! A TCP proxy that breaks connections where a test says: before a request is passed on, or before its answer is.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to what goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Requests arrive, answers are swallowed.
    Mute,
    /// The connection breaks when a request comes, which never arrives.
    CutBefore,
    /// The connection breaks once a request has arrived.
    CutAfter,
}

/// Between a client and the server at an address.
pub struct Proxy {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    /// Passes everything on, in the current runtime, until it ends.
    pub async fn to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let accepting = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server, accepting.subscribe()));
            }
        });
        Proxy { address, mode }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn relay(client: TcpStream, server: SocketAddr, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = requests(from_client, to_server, mode.clone()) => {}
        () = answers(from_server, to_client, mode) => {}
    }
}

async fn requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, mode: watch::Receiver<Mode>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = client.read(&mut bytes).await {
        let mode = *mode.borrow();
        if mode == Mode::CutBefore || server.write_all(&bytes[..length]).await.is_err() || mode == Mode::CutAfter {
            return;
        }
    }
}

async fn answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, mode: watch::Receiver<Mode>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = server.read(&mut bytes).await {
        let mode = *mode.borrow();
        if mode == Mode::Pass && client.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
