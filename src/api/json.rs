//! `POST /json`: the same messages as over gRPC, in protobuf's own JSON mapping. For people with curl, and callers without gRPC.

mod answer;
mod request;
mod values;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::post;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Code, Status};

use self::answer::Answers;
use super::proto::envoy::service::ratelimit::v3::RateLimitResponse;
use super::rls::Rls;
use super::{convert, headers};
use crate::http_request;
use crate::limiter::abandoned::Call;
use crate::rules::decision;
use crate::store::Store;
use crate::transport::body::{self, Bounds, Unread};

/// A longer body is a long request, in bytes.
const LONG: usize = 8 << 10;
/// How many long requests are decided at once. Decoded they take ten times their length, and they are decided in parts, with
/// others in between; those that wait are not decoded.
static LONG_REQUESTS: Semaphore = Semaphore::const_new(16);

struct Service<S> {
    rls: Arc<Rls<S>>,
    answers: Answers,
    bounds: Bounds,
}

/// Answers `POST /json`. A body may take `body_time` to come whole.
pub fn router<S: Store + 'static>(rls: Arc<Rls<S>>, body_time: Duration) -> Router {
    let service = Arc::new(Service { rls, answers: Answers::new(), bounds: Bounds::within(body_time) });
    Router::new().route("/json", post(answer::<S>)).with_state(service)
}

async fn answer<S: Store + 'static>(State(service): State<Arc<Service<S>>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    admit(&parts.headers, &parts.uri).inspect_err(|_| service.rls.count_invalid())?;
    drop(parts);
    Call::new(decide(service, body)).await
}

/// # Errors
/// For what a web page of another site can have a browser send.
fn admit(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    if http_request::is_foreign(headers, uri) {
        let reason = "a web page of another origin asks, and such pages are not answered";
        return Err(Problem::unread(StatusCode::FORBIDDEN, reason.to_owned()));
    }
    if !http_request::may_be_json(headers) {
        return Err(Problem::unread(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send `content-type: application/json`".to_owned()));
    }
    Ok(())
}

async fn decide<S: Store + 'static>(service: Arc<Service<S>>, body: Body) -> Result<Response, Problem> {
    let bounds = service.rls.bounds;
    let body = read(body, service.bounds, bounds.bytes).await.inspect_err(|problem| {
        if problem.status == StatusCode::PAYLOAD_TOO_LARGE {
            service.rls.count_invalid();
        }
    })?;
    let _turn = match body.len() {
        LONG.. => LONG_REQUESTS.acquire().await.ok(),
        _ => None,
    };
    let arrival = Instant::now();
    let request = request::request(&body, bounds.entries).map_err(|reason| {
        service.rls.count_invalid();
        Problem::new(StatusCode::BAD_REQUEST, reason)
    })?;
    let request = convert::request(&request);
    let decided = service.rls.decide(&request, arrival, None).await?;
    let response = convert::response(&decided, &request, &service.rls.answers, arrival);
    let (status, retry_after) = match decided.decision.code {
        decision::Code::Ok => (StatusCode::OK, None),
        decision::Code::OverLimit => (StatusCode::TOO_MANY_REQUESTS, headers::retry_after(&decided.decision)),
    };
    let headers = response_headers(&response, retry_after);
    let body = service.answers.json(response);
    Ok((status, headers, body).into_response())
}

async fn read(body: Body, bounds: Bounds, longest: usize) -> Result<Bytes, Problem> {
    let check = |length| match usize::try_from(length) {
        Ok(length) if length <= longest => Ok(()),
        _ => {
            let reason = format!("{length} bytes; at most {longest} are read (--max-message-bytes)");
            Err(Problem::unread(StatusCode::PAYLOAD_TOO_LARGE, reason))
        }
    };
    // Before any of it comes, where it says how long it is.
    check(body.size_hint().lower())?;
    body::read(body, bounds, |begun| check(begun.len() as u64)).await
}

/// Why there is no decision.
struct Problem {
    status: StatusCode,
    reason: String,
    /// What is left of the body will not be read, and so nothing that comes after it.
    is_unread: bool,
}

impl Problem {
    fn new(status: StatusCode, reason: String) -> Problem {
        Problem { status, reason, is_unread: false }
    }

    fn unread(status: StatusCode, reason: String) -> Problem {
        Problem { status, reason, is_unread: true }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Problem {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(code, status.message().to_owned())
    }
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Problem {
        let status = match unread {
            Unread::Full => StatusCode::SERVICE_UNAVAILABLE,
            Unread::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Unread::BrokenOff(_) => StatusCode::BAD_REQUEST,
        };
        Problem::unread(status, unread.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.reason }).to_string();
        let close = self.is_unread.then_some(AppendHeaders([(CONNECTION, "close")]));
        (self.status, [(CONTENT_TYPE, "application/json")], close, body).into_response()
    }
}

/// The headers that Envoy would add to its answer, and always when to come back, in seconds, if that helps.
fn response_headers(response: &RateLimitResponse, retry_after: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for header in &response.response_headers_to_add {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&header.key), HeaderValue::try_from(&header.value)) {
            headers.append(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after.filter(|_| !headers.contains_key(RETRY_AFTER)) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    headers
}
