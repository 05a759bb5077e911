//! What operators use, on a port of its own: metrics, the rules in force, and what can be changed while weir runs.

pub mod access;
mod bounds;
mod calls;
mod convert;
mod effects;
mod explain;
pub mod http;
mod import;
mod names;
mod openapi;
mod operations;
mod problem;
mod rules;
mod usage;

use std::sync::Arc;

use ::http::HeaderMap;
use ::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;

use access::MetricsAccess;
pub use calls::{AdminApi, DESCRIPTOR_SET, SERVICE};
pub use operations::{Operations, OperatorStore};
pub use problem::Problem;

use crate::limiter::Shared;
use crate::telemetry::exposition::Format;

/// The messages of `weir.admin.v1`, generated.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/weir_admin.rs"));
}

/// `GET /metrics`, and for those who may look `GET /rules`, which operators of envoyproxy/ratelimit know as `/rlconfig`. `look`
/// brings the metrics up to date that are not counted as they happen.
pub fn router<S: OperatorStore + 'static>(
    api: &Arc<AdminApi<S>>,
    shared: Arc<Shared>,
    metrics: MetricsAccess,
    look: impl Fn() + Clone + Send + Sync + 'static,
) -> Router {
    let scrape = move |State(shared): State<Arc<Shared>>, headers: HeaderMap| async move {
        look();
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let format = Format::accepted(accepted);
        ([(CONTENT_TYPE, format.content_type()), (VARY, "accept")], shared.metrics().text(format))
    };
    let rules = |State(shared): State<Arc<Shared>>| async move { rules::text(&shared.rules()).into_response() };
    let metrics_route = Router::new().route("/metrics", get(scrape)).with_state(shared.clone());
    let metrics_route = match metrics {
        MetricsAccess::Open => metrics_route,
        MetricsAccess::Gated => http::gated(api, metrics_route),
    };
    let rules = Router::new().route("/rules", get(rules)).route("/rlconfig", get(rules)).with_state(shared);
    http::gated(api, rules).merge(metrics_route)
}
