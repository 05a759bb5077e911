//! A TCP proxy that breaks connections where a test says: before a request is passed on, or before its answer is.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

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
    behaviour: Arc<Behaviour>,
}

struct Behaviour {
    /// The flag: for the next request alone, and what is left of its connection.
    mode: Mutex<(Mode, bool)>,
}

impl Proxy {
    /// Passes everything on, in the current runtime, until it ends.
    pub async fn to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let behaviour = Arc::new(Behaviour { mode: Mutex::new((Mode::Pass, false)) });
        let proxy = Proxy { address, behaviour: Arc::clone(&behaviour) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server, Arc::clone(&behaviour)));
            }
        });
        proxy
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        *self.behaviour.mode.lock().expect("nobody panics") = (mode, false);
    }

    /// For the next request, and its connection; whatever connects anew passes.
    pub fn once(&self, mode: Mode) {
        *self.behaviour.mode.lock().expect("nobody panics") = (mode, true);
    }
}

impl Behaviour {
    fn of_request(&self) -> Mode {
        let mut mode = self.mode.lock().expect("nobody panics");
        let (now, once) = *mode;
        if once {
            *mode = (Mode::Pass, false);
        }
        now
    }

    fn mutes(&self) -> bool {
        *self.mode.lock().expect("nobody panics") == (Mode::Mute, false)
    }
}

async fn relay(client: TcpStream, server: SocketAddr, behaviour: Arc<Behaviour>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let is_muted = AtomicBool::new(false);
    tokio::select! {
        () = requests(from_client, to_server, &behaviour, &is_muted) => {}
        () = answers(from_server, to_client, &behaviour, &is_muted) => {}
    }
}

async fn requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, behaviour: &Behaviour, is_muted: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = client.read(&mut bytes).await {
        let mode = behaviour.of_request();
        is_muted.fetch_or(mode == Mode::Mute, Ordering::Relaxed);
        if mode == Mode::CutBefore || server.write_all(&bytes[..length]).await.is_err() || mode == Mode::CutAfter {
            return;
        }
    }
}

async fn answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, behaviour: &Behaviour, is_muted: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = server.read(&mut bytes).await {
        if is_muted.load(Ordering::Relaxed) || behaviour.mutes() {
            continue;
        }
        if client.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
