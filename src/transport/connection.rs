//! One connection, from its first byte to its last. Generic over the service, so that what a connection itself costs can be
//! measured with a service that does nothing.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::codegen::StdError;

use super::account::{Account, Reason};
use super::calls::{Counted, Counting, PIECE};
use super::drain::Draining;
use super::room::Slot;
use super::stream::Guarded;

/// Calls open on one connection; Envoy opens one connection a worker and sends everything over it.
pub const MAX_STREAMS: u32 = 1_000;
/// The same where HTTP/1 is spoken too: operators make few calls at once, and theirs are larger.
const MAX_OPERATORS_STREAMS: u32 = 100;
/// Head of a request, in bytes; gRPC's own are a few hundred.
const MAX_HEAD: u32 = 16 << 10;
/// How long a handshake, or a first request without one, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is still there, and how long it has to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// How long a connection of HTTP/1 may wait for its next request. One whose head has begun has [`HANDSHAKE`].
const KEPT: Duration = Duration::from_secs(75);
/// How long a connection in a place for probes may stay.
const PROBE: Duration = Duration::from_secs(10);
/// How long an idle connection that makes room has to take leave.
const LEAVE: Duration = Duration::from_secs(1);
/// How long calls in flight may take to finish once a connection is told to go.
pub const GRACE: Duration = Duration::from_secs(30);

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of a frame.
const FRAME_HEAD: usize = 9;
/// What is waited for of a peer's first SETTINGS frame, at most.
const MAX_SETTINGS: usize = 256;

/// Which versions of HTTP a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    One,
    /// Without TLS, by prior knowledge.
    Two,
    /// As the peer begins.
    OneAndTwo,
}

/// A connection's bounds that are not the same everywhere.
#[derive(Clone)]
pub struct Terms {
    pub versions: Versions,
    /// How old it gets, give or take 10 %.
    pub max_age: Duration,
    pub draining: Draining,
}

/// Serves one connection until the peer closes it, it reaches a bound, or the server drains.
pub async fn serve_connection<S, B>(mut stream: TcpStream, slot: Slot, service: S, mut terms: Terms)
where
    S: Service<Request<Counted>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    // Small answers must not wait for the acknowledgement of earlier ones. A peer that has gone already is seen below.
    let _ = stream.set_nodelay(true);
    let began = tokio::select! {
        began = timeout(HANDSHAKE, handshake(&mut stream, terms.versions)) => began,
        () = slot.account.closed() => Ok(None),
        () = terms.draining.begun() => return,
    };
    let began = began.unwrap_or_else(|_| {
        slot.account.close(Reason::Handshake);
        None
    });
    if let Some((before, is_http2)) = began {
        // In a box: until here, a connection costs next to nothing.
        Box::pin(serve(stream, &slot, before, is_http2, service, terms)).await;
    }
    if let Some(reason) = slot.account.reason() {
        reason.count(slot.room.counts());
    }
}

/// Reads as much as shows which version of HTTP the peer speaks, and, of HTTP/2, its handshake. `None` when it has gone.
async fn handshake(stream: &mut TcpStream, versions: Versions) -> Option<(Vec<u8>, bool)> {
    if versions == Versions::One {
        return Some((Vec::new(), false));
    }
    let mut before = Vec::new();
    let mut wanted = PREFACE.len() + FRAME_HEAD;
    while before.len() < wanted {
        let missing = wanted - before.len();
        if !matches!(stream.take(missing as u64).read_buf(&mut before).await, Ok(1..)) {
            return None;
        }
        let compared = before.len().min(PREFACE.len());
        if before[..compared] != PREFACE[..compared] {
            // HTTP/2 alone tells the peer what is wrong.
            return Some((before, versions == Versions::Two));
        }
        if let Some([0, high, low, ..]) = before.get(PREFACE.len()..PREFACE.len() + FRAME_HEAD) {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            wanted = PREFACE.len() + FRAME_HEAD + length.min(MAX_SETTINGS);
        }
    }
    Some((before, true))
}

async fn serve<S, B>(stream: TcpStream, slot: &Slot, before: Vec<u8>, is_http2: bool, service: S, terms: Terms)
where
    S: Service<Request<Counted>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    let account = &slot.account;
    let service = Counting { service, account: account.clone(), room: slot.room.clone() };
    let io = TokioIo::new(Guarded::new(stream, account.clone(), before, is_http2));
    if is_http2 {
        let streams = if terms.versions == Versions::Two { MAX_STREAMS } else { MAX_OPERATORS_STREAMS };
        let connection = two(streams).serve_connection(io, service);
        drive(connection, http2::Connection::graceful_shutdown, slot, None, terms).await;
    } else {
        let connection = one(!account.is_reserve).serve_connection(io, service);
        drive(connection, http1::Connection::graceful_shutdown, slot, Some(HANDSHAKE), terms).await;
    }
}

fn two(streams: u32) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        // No caller reads it.
        .auto_date_header(false)
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEAD)
        // What is left of a long answer stays where it is counted.
        .max_send_buf_size(PIECE)
        // When weir is late, a client that is out of patience takes all its calls back at once, and they are read together with
        // the calls. What is read in one turn bounds their number and their memory.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1);
    builder
}

fn one(is_kept: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(KEPT).keep_alive(is_kept).max_buf_size(MAX_HEAD as usize);
    builder
}

pin_project! {
    /// A connection that reads so much at most each time it is polled. HTTP/2 would else read before it takes in each single call,
    /// and hold the headers of a thousand calls at once.
    struct InTurns<'a, C> {
        #[pin]
        connection: C,
        account: &'a Account,
    }
}

impl<C: Future> Future for InTurns<'_, C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.project();
        this.account.begin_turn();
        this.connection.poll(context)
    }
}

/// Runs a connection to its end. Its first call must come `within` a time.
async fn drive<C>(connection: C, take_leave: fn(Pin<&mut C>), slot: &Slot, within: Option<Duration>, mut terms: Terms)
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let account = &slot.account;
    let mut connection = std::pin::pin!(InTurns { connection, account });
    let age = if account.is_reserve { PROBE } else { jittered(terms.max_age) };
    let first_call = async {
        match within {
            Some(within) => sleep(within).await,
            None => std::future::pending().await,
        }
        if account.has_earned() {
            std::future::pending().await
        }
    };
    let mut grace = tokio::select! {
        biased;
        ended = &mut connection => return closed(ended),
        () = first_call => return account.close(Reason::Handshake),
        // Nothing is lost with one that never made a call.
        () = account.closed() => match account.reason() {
            Some(Reason::Idle) if account.has_earned() => LEAVE,
            _ => return,
        },
        () = sleep(age) => if account.is_reserve { LEAVE } else { GRACE },
        () = terms.draining.begun() => GRACE,
    };
    take_leave(connection.as_mut().project().connection);
    loop {
        let ended = tokio::select! {
            biased;
            ended = timeout(grace, connection.as_mut()) => ended,
            () = account.closed(), if grace > LEAVE => {
                grace = LEAVE;
                continue;
            }
        };
        match ended {
            Ok(ended) => closed(ended),
            Err(_) => tracing::debug!("a connection had calls in flight after its grace period and was cut"),
        }
        return;
    }
}

fn closed(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Ten per cent either way, so that connections opened together do not all come back together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1_000;
    age.mul_f64(0.9 + random as f64 / 5_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_ten_per_cent_either_way() {
        let age = Duration::from_secs(300);
        let ages: Vec<Duration> = (0..100).map(|_| jittered(age)).collect();
        assert!(ages.iter().all(|&one| one >= age.mul_f64(0.9) && one < age.mul_f64(1.1)));
        assert!(ages.iter().any(|one| *one != ages[0]));
    }
}
