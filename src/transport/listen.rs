//! Taking connections in, as many as there is room for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::drain::Draining;

/// Before another try when the process can take in no more connections, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

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
pub async fn listen(setting: String, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|reason| ListenError { setting, address, reason })
}

/// Hands every connection to `serve`, with its share of `room`, until the server drains.
pub async fn accept(
    listener: TcpListener,
    room: Arc<Semaphore>,
    mut draining: Draining,
    mut serve: impl FnMut(TcpStream, OwnedSemaphorePermit),
) {
    let mut is_failing = false;
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = draining.begun() => return,
        };
        match accepted {
            Ok((stream, permit)) => {
                is_failing = false;
                serve(stream, permit);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "connections cannot be taken in");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
