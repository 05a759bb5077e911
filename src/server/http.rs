//! What is served over HTTP: decisions as JSON, whether this server is ready, and what operators use.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Extension, Router};
use http::{Request, StatusCode, Version};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::readiness::Readiness;
use crate::admin::{self, access::Peer};
use crate::transport::connection::{Terms, serve_connection};
use crate::transport::room::{Paths, Room};
use crate::transport::{Counted, Lasting, listen, only};

/// Health and metrics are answered however busy a port is; a session with reflection goes on.
pub const PATHS: Paths = Paths {
    is_probe: |path| matches!(path, "/healthcheck" | "/metrics"),
    lasting: |path| path.starts_with("/grpc.reflection.").then_some(Lasting::Session),
};

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

/// Serves a listener until the server drains.
pub async fn serve(listener: TcpListener, router: Router, room: Arc<Room>, terms: Terms) {
    listen::accept(listener, room, terms.draining.clone(), |stream, slot| {
        let (router, terms) = (router.clone(), terms.clone());
        tokio::spawn(async move {
            let Ok(peer) = stream.peer_addr() else { return };
            let service = Slim(TowerToHyperService::new(router.layer(Extension(Peer(peer)))));
            serve_connection(stream, slot, service, terms).await;
        });
    })
    .await;
}

/// Drops headers that nothing here looks at, before anything waits: over HTTP/2 a peer may refer to one large header in each of a
/// thousand requests.
#[derive(Clone)]
struct Slim<S>(S);

impl<S: Service<Request<Counted>>> Service<Request<Counted>> for Slim<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Counted>) -> Self::Future {
        if request.version() == Version::HTTP_2 {
            *request.headers_mut() = only(request.headers(), &admin::http::HEADERS);
        }
        self.0.call(request)
    }
}
