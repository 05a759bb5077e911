//! What operators use, on a port of its own: metrics, and the rules in force.

mod rules;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header::CONTENT_TYPE;

use crate::limiter::Shared;
use crate::telemetry::metrics;

/// `GET /metrics` and `GET /rules`, which operators of envoyproxy/ratelimit know as `/rlconfig`. `look` brings the metrics up to
/// date that are not counted as they happen.
pub fn router(shared: Arc<Shared>, look: impl Fn() + Clone + Send + Sync + 'static) -> Router {
    let scrape = move |State(shared): State<Arc<Shared>>| async move {
        look();
        ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], shared.metrics().text())
    };
    let rules = |State(shared): State<Arc<Shared>>| async move { rules::text(&shared.rules()).into_response() };
    Router::new().route("/metrics", get(scrape)).route("/rules", get(rules)).route("/rlconfig", get(rules)).with_state(shared)
}
