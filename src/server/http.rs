//! What is served over HTTP: decisions as JSON, whether this server is ready, and what operators use.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Extension, Router};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::readiness::Readiness;
use crate::admin::access::Peer;
use crate::transport::connection::GRACE;
use crate::transport::drain::Draining;
use crate::transport::listen;

/// How long the head of a request may take to come in, the first or a later one.
const HEAD: Duration = Duration::from_secs(30);

/// `GET /healthcheck`: 200 when calls may come, 503 and the reason when not.
pub fn healthcheck(readiness: Arc<Readiness>) -> Router {
    let answer = |State(readiness): State<Arc<Readiness>>| async move {
        match readiness.obstacle() {
            None => (StatusCode::OK, "OK"),
            Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
        }
    };
    Router::new().route("/healthcheck", get(answer)).with_state(readiness)
}

/// Which versions of HTTP a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    One,
    /// HTTP/2 too, without TLS, for gRPC.
    OneAndTwo,
}

/// Serves a listener, `room` connections at a time, until the server drains.
pub async fn serve(listener: TcpListener, router: Router, versions: Versions, room: usize, max_age: Duration, draining: Draining) {
    let connections = draining.clone();
    listen::accept(listener, Arc::new(Semaphore::new(room)), draining, |stream, permit| {
        let (router, draining) = (router.clone(), connections.clone());
        tokio::spawn(async move {
            let _permit = permit;
            serve_connection(stream, router, versions, max_age, draining).await;
        });
    })
    .await;
}

async fn serve_connection(stream: TcpStream, router: Router, versions: Versions, max_age: Duration, mut draining: Draining) {
    let _ = stream.set_nodelay(true);
    let Ok(peer) = stream.peer_addr() else { return };
    let router = router.layer(Extension(Peer(peer)));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new());
    if versions == Versions::One {
        builder = builder.http1_only();
    }
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::select! {
        biased;
        _ = &mut connection => return,
        () = sleep(max_age) => {}
        () = draining.begun() => {}
    }
    connection.as_mut().graceful_shutdown();
    if timeout(GRACE, connection).await.is_err() {
        tracing::debug!("an HTTP connection had a request in flight after its grace period and was cut");
    }
}
