//! Taking connections in, as many as there is room for.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::account::TICK;
use super::drain::Draining;
use super::open;
use super::room::{Room, Slot};

/// Connections that the kernel completes before they are taken in. When a server restarts, all its clients come at once. The
/// kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// Before another try when the process can take in no more connections, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two connections that are closed because too many calls are open: so long it takes to see the effect of one.
const RELIEF: Duration = Duration::from_millis(10);
/// How many are closed so before others are taken in again.
const RELIEFS: usize = 10;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{setting} {address}: {reason}")]
pub struct ListenError {
    /// Where it was asked for: a flag, an environment variable, or a place in the settings file.
    pub setting: String,
    pub address: SocketAddr,
    pub reason: std::io::Error,
}

/// Listens on an address alone: a port that another process listens on is an error, never shared with it.
///
/// # Errors
/// Names the setting and the address.
pub fn listen(setting: String, address: SocketAddr) -> Result<TcpListener, ListenError> {
    open_listener(address).map_err(|reason| ListenError { setting, address, reason })
}

fn open_listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a process before this one may still be closing. This does not share the port, as SO_REUSEPORT would.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Hands every connection to `serve`, with its place in `room`, until the server drains. Meanwhile it looks after the room.
pub async fn accept(listener: TcpListener, room: Arc<Room>, mut draining: Draining, mut serve: impl FnMut(TcpStream, Slot)) {
    let mut is_failing = false;
    let mut look = interval(TICK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = look.tick() => {
                room.look();
                continue;
            }
            () = open::SHORT.notified() => {
                for _ in 0..RELIEFS {
                    let has_closed = room.relieve();
                    sleep(RELIEF).await;
                    if !has_closed || !open::holds_too_much() {
                        break;
                    }
                }
                continue;
            }
            () = draining.begun() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                is_failing = false;
                if let Some(slot) = room.enter() {
                    serve(stream, slot);
                }
            }
            // That one had gone before it was taken in.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => {
                room.make_room();
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "connections cannot be taken in; closing idle ones");
                }
                sleep(PAUSE).await;
            }
        }
    }
}
