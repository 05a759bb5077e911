//! One HTTP/2 connection, from its first byte to its last. Generic over the service, so that what a connection itself costs
//! can be measured with a service that does nothing.

use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::codegen::StdError;

use super::drain::Draining;

/// Calls in flight on one connection; Envoy opens one connection a worker and sends everything over it.
pub const MAX_STREAMS: u32 = 10_000;
/// Decoded headers of one request, in bytes; gRPC's own are a few hundred.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// How long a connection may stay silent before it sends anything at all.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is still there, and how long it has to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// How long calls in flight may take to finish once a connection is told to go.
pub const GRACE: Duration = Duration::from_secs(30);

/// Serves one connection until the peer closes it, it is too old, or the server drains.
pub async fn serve_connection<S>(stream: TcpStream, service: S, max_age: Duration, mut draining: Draining)
where
    S: Service<Request<Incoming>, Response = Response<Body>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<StdError>,
{
    // Small answers must not wait for the acknowledgement of earlier ones. A peer that has gone already is seen below.
    let _ = stream.set_nodelay(true);
    tokio::select! {
        ready = timeout(FIRST_BYTE, stream.readable()) => if !matches!(ready, Ok(Ok(()))) { return },
        () = draining.begun() => return,
    }
    let io = TokioIo::new(stream);
    let mut connection = pin!(builder().serve_connection(io, service));
    tokio::select! {
        biased;
        ended = &mut connection => return closed(ended),
        () = sleep(jittered(max_age)) => {}
        () = draining.begun() => {}
    }
    connection.as_mut().graceful_shutdown();
    match timeout(GRACE, connection).await {
        Ok(ended) => closed(ended),
        Err(_) => tracing::debug!("a connection had calls in flight after its grace period and was cut"),
    }
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        // No caller reads it.
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1);
    builder
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
