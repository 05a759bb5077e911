//! The admin API over HTTP: the messages of the gRPC service as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{Query, RawPathParams, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN, TE, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use tonic::service::Routes;

use super::access::{Caller, Peer, Refusal};
use super::bounds::{MAX_IMPORT_MESSAGE, MAX_MESSAGE, bounded, is_too_long, no_turn, why_unread};
use super::calls::{self, AdminApi, CALLS, Call, CallError, DESCRIPTOR_SET, Head, IMPORT};
use super::import::{Flags, Import, NotWhole, receive};
use super::openapi;
use super::operations::OperatorStore;
use super::problem::Problem;
use super::proto::weir::admin::v1::admin_service_server::AdminServiceServer;
use super::proto::weir::admin::v1::{History, Records};
use crate::grpc_request::{self, NotACall};
use crate::http_request;
use crate::message_json;
use crate::reflection::with_reflection;
use crate::transport::body::{MAX_TIME, Timed, Unread};

/// How long an import may take, from its first byte to its last record: a connection gets no older by
/// default.
const IMPORT_TIME: Duration = Duration::from_secs(5 * 60);
/// How long a call over gRPC may take from its first byte on: the longest import, and its answer.
const GRPC_TIME: Duration = Duration::from_secs(65);

/// How much of a refused call over gRPC is read, for the audit, and how long it may take to come.
const MAX_REFUSED: (usize, Duration) = (4 << 10, MAX_TIME);
/// How long a request that is not a gRPC call may take to come, before it is refused.
const MAX_NO_CALL: Duration = Duration::from_secs(1);
/// The headers that this API and its guards look at. Others are dropped from requests over HTTP/2.
pub const HEADERS: [HeaderName; 10] = [
    ACCEPT,
    AUTHORIZATION,
    CONTENT_TYPE,
    HOST,
    ORIGIN,
    TE,
    USER_AGENT,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("sec-fetch-site"),
];
/// Where imports are sent.
const RECORDS: &str = "/v1/records";
const REFLECTION: &str = "/grpc.reflection.";

/// The API over HTTP and, with reflection, over gRPC, and `GET /openapi.json`, beside what `others` answer: a path that none of
/// them has is refused in words. Whoever serves it says where each connection comes from ([`Peer`]).
pub fn router<S: OperatorStore + 'static>(api: Arc<AdminApi<S>>, others: Router) -> Router {
    let description = Bytes::from(openapi::description(&api.pool).to_string());
    let mut router = Router::new()
        .route("/openapi.json", get(move || async move { ([(CONTENT_TYPE, "application/json")], description.clone()) }));
    for call in CALLS {
        let filter = MethodFilter::try_from(call.method.clone()).expect("a method of every day");
        let handler =
            async move |State(api): State<Arc<AdminApi<S>>>, params: PathParams, query: Query<Params>, request: Request| {
                let Ok(params) = params else {
                    return problem(StatusCode::BAD_REQUEST, "the path, percent-decoded, is no UTF-8");
                };
                let params = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
                answer(&api, call, params, query.0, request).await.unwrap_or_else(|failure| failure)
            };
        router = router.route(call.path, on(filter, handler));
    }
    let grpc = AdminServiceServer::from_arc(api.clone()).max_decoding_message_size(MAX_IMPORT_MESSAGE);
    let grpc = with_reflection(Routes::new(grpc), &[DESCRIPTOR_SET]);
    let grpc = grpc.into_axum_router().layer(from_fn_with_state(api.clone(), bounded::<S>));
    let grpc = grpc.layer(from_fn_with_state(api.clone(), refuse_early::<S>)).layer(from_fn(only_grpc));
    let api = router.with_state(api).merge(grpc).layer(from_fn(in_time)).merge(others).layer(from_fn(with_host));
    api.method_not_allowed_fallback(no_such_method).fallback(no_such_path)
}

/// Routes that only those are answered who may look.
pub(super) fn gated<S: OperatorStore + 'static>(api: &Arc<AdminApi<S>>, routes: Router) -> Router {
    routes.route_layer(from_fn_with_state(api.clone(), may_look::<S>))
}

async fn may_look<S: OperatorStore + 'static>(State(api): State<Arc<AdminApi<S>>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let head = Head { headers: request.headers(), uri: request.uri(), peer };
    match api.admit_reader(&head) {
        Ok(_) => next.run(request).await,
        Err(refusal) => failure(&refusal.into()),
    }
}

async fn no_such_method(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    problem(StatusCode::METHOD_NOT_ALLOWED, &format!("`{path}` does not take {method}: see `GET /openapi.json`"))
}

/// Callers by gRPC look for its own code; to everyone else that answer looks like success.
async fn no_such_path(method: Method, headers: HeaderMap, uri: Uri) -> Response {
    if grpc_request::check(&method, &headers).is_ok() {
        return tonic::Status::unimplemented("").into_http();
    }
    problem(StatusCode::NOT_FOUND, &format!("nothing is at `{}`: `GET /openapi.json` says what there is", uri.path()))
}

/// An answer to HEAD has no body: HTTP/2 clients take one for a broken stream.
async fn only_grpc(request: Request, next: Next) -> Response {
    let Err(reason) = grpc_request::check(request.method(), request.headers()) else {
        let in_time = timeout(GRPC_TIME, next.run(request)).await;
        return in_time.unwrap_or_else(|_| tonic::Status::deadline_exceeded("the request did not come whole in time").into_http());
    };
    let (path, hint) = (request.uri().path(), reason.hint());
    let text = format!("`{path}` speaks gRPC: {hint}; `GET /openapi.json` says where the same calls are in JSON");
    let mut response = problem(reason.status(), &text);
    if reason == NotACall::Method {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if *request.method() == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    // An answer before the request's end resets the stream, and curl then shows the reset in place of the answer.
    drop(timeout(MAX_NO_CALL, to_bytes(request.into_body(), MAX_REFUSED.0)).await);
    response
}

/// The service itself asks who calls when it has read the whole message.
async fn refuse_early<S: OperatorStore + 'static>(State(api): State<Arc<AdminApi<S>>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let head = Head { headers: &parts.headers, uri: &parts.uri, peer: parts.extensions.get::<Peer>().copied() };
    let Some(call) = calls::by_path(parts.uri.path()) else { return next.run(Request::from_parts(parts, body)).await };
    let Err(refusal) = api.look(call.name, &head) else { return next.run(Request::from_parts(parts, body)).await };
    match timeout(MAX_REFUSED.1, to_bytes(body, MAX_REFUSED.0)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, body.into())).await,
        _ => calls::status(api.refuse(call.name, &head, refusal, String::new)).into_http(),
    }
}

/// A body must come whole in time, and a session with reflection ends then.
async fn in_time(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let request = match path {
        // It bounds the time for each piece by itself, and keeps little of what comes.
        RECORDS => request,
        path if path.starts_with(REFLECTION) => request.map(|body| Body::new(Timed::ending(body, MAX_TIME))),
        _ => request.map(|body| Body::new(Timed::breaking_off(body, MAX_TIME))),
    };
    next.run(request).await
}

/// HTTP/2 has the host in the address.
async fn with_host(mut request: Request, next: Next) -> Response {
    let authority = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = authority.filter(|_| !request.headers().contains_key(HOST)) {
        request.headers_mut().insert(HOST, host);
    }
    next.run(request).await
}

type Params = Vec<(String, String)>;
type PathParams = Result<RawPathParams, RawPathParamsRejection>;

/// Who calls is asked before anything of the request is read but its path.
async fn answer<S: OperatorStore + 'static>(
    api: &Arc<AdminApi<S>>,
    call: &Call,
    path: Params,
    query: Params,
    request: Request,
) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().copied();
    let head = Head { headers: &parts.headers, uri: &parts.uri, peer };
    let known = || Value::from_iter(path.iter().cloned()).to_string();
    let caller = api.admit(call.name, &head, known).map_err(|error| failure(&error))?;
    let unread = |status, reason: String| {
        api.audit_unread(call.name, &caller, known(), &reason);
        problem(status, &reason)
    };
    let is_json = match parts.method {
        // A page in a browser cannot send this type to another origin without asking whether it may.
        Method::POST => http_request::is_json(&parts.headers),
        // Nor one of these methods.
        Method::PUT | Method::PATCH => http_request::may_be_json(&parts.headers),
        _ => true,
    };
    if !is_json {
        return Err(unread(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send `content-type: application/json`".to_owned()));
    }
    let bad_request = |reason: String| unread(StatusCode::BAD_REQUEST, reason);
    let is_csv = http_request::prefers(&parts.headers, "text/csv");
    drop(parts);
    let method = api.method(call.name).ok_or_else(|| problem(StatusCode::NOT_FOUND, "no such call"))?;
    if call.name == IMPORT {
        let query = message(call, &method.input(), query.into_iter(), &[]).map_err(bad_request)?;
        let query = Records::decode(&query.encode_to_vec()[..]).expect("it was encoded here");
        return import(api, &method, caller, query, body).await;
    }
    let no_turn = || unread(StatusCode::SERVICE_UNAVAILABLE, no_turn(call.name));
    let _turn = api.turns.of_call().await.ok_or_else(no_turn)?;
    let body = to_bytes(body, MAX_MESSAGE).await.map_err(|error| match is_too_long(&error) {
        true => unread(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {MAX_MESSAGE} bytes")),
        false => unread(unread_status(&error), error.to_string()),
    })?;
    let request = message(call, &method.input(), path.iter().cloned().chain(query), &body).map_err(bad_request)?;
    let answer = api.dispatch(call.name, &caller, &request.encode_to_vec()).await.map_err(|error| failure(&error))?;
    if call.name == "GetHistory" && is_csv {
        return Ok(([(CONTENT_TYPE, "text/csv")], csv(&answer)).into_response());
    }
    Ok(([(CONTENT_TYPE, "application/json")], calls::json(method.output(), &answer)).into_response())
}

/// The status of a body that did not come whole.
fn unread_status(error: &axum::Error) -> StatusCode {
    match why_unread(error) {
        Some(Unread::Slow(_)) => StatusCode::REQUEST_TIMEOUT,
        Some(Unread::Full) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The one call whose body is not read whole before it is looked at. Once it has come and is good, it is written whole even
/// where the caller goes away.
async fn import<S: OperatorStore + 'static>(
    api: &Arc<AdminApi<S>>,
    method: &MethodDescriptor,
    caller: Caller,
    query: Records,
    body: Body,
) -> Result<Response, Response> {
    let unread = |NotWhole { status, reason }, known: String| {
        let reason = format!("{reason}; nothing was imported");
        api.audit_unread(IMPORT, &caller, known, &reason);
        problem(status, &reason)
    };
    let Some(turn) = api.turns.of_import() else {
        return Err(problem(StatusCode::SERVICE_UNAVAILABLE, &no_turn(IMPORT)));
    };
    let until = Instant::now() + IMPORT_TIME;
    let mut import = Import::new(api.operations.shared.rules());
    let received = receive(body, &api.pool, &mut import, until).await;
    let received = received.map_err(|problem| unread(problem, format!("after {} records", import.count())))?;
    for (field, in_query, in_body) in [("force", query.force, received.force), ("dry_run", query.dry_run, received.dry_run)] {
        if in_query.is_some() && in_body.is_some() {
            let reason = format!("{field}: it stands in the query: leave it out of the body");
            return Err(unread(NotWhole { status: StatusCode::BAD_REQUEST, reason }, received.shown));
        }
    }
    let is_set = |in_query: Option<bool>, in_body: Option<bool>| in_query.or(in_body) == Some(true);
    let flags = Flags { force: is_set(query.force, received.force), dry_run: is_set(query.dry_run, received.dry_run) };
    let api = api.clone();
    let written = tokio::spawn(async move {
        let how = if flags.force { " (force)" } else { "" };
        let shown = format!("{} records{how}:{}", import.count(), received.shown);
        let answer = import.finish(&api.operations.store, flags, until).await.map_err(Problem::unchanged);
        api.audit(IMPORT, &caller, shown, flags.dry_run, &answer);
        drop(turn);
        answer
    });
    let unknown = |_| problem(StatusCode::INTERNAL_SERVER_ERROR, "the import ended early: import it again, which is safe");
    let answer = written.await.map_err(unknown)?.map_err(|error| failure(&error.into()))?;
    Ok(([(CONTENT_TYPE, "application/json")], calls::json(method.output(), &answer.encode_to_vec())).into_response())
}

/// A history as a table, a line for each day.
fn csv(history: &[u8]) -> String {
    let history = History::decode(history).expect("it was encoded here");
    let lines = history.days.iter().map(|day| format!("{},{},{},{}\n", day.date, day.allowed, day.refused, day.cost));
    std::iter::once("date,allowed,refused,cost\n".to_owned()).chain(lines).collect()
}

/// The request: the fields of its path, query and body.
fn message(
    call: &Call,
    request: &MessageDescriptor,
    params: impl Iterator<Item = (String, String)>,
    body: &[u8],
) -> Result<DynamicMessage, String> {
    let within = call.within.and_then(|name| request.get_field_by_name(name));
    let Some(within) = within else {
        return message_json::of_object(request, &Value::Object(fields(request, params, body)?));
    };
    let Kind::Message(inner) = within.kind() else { return Err("no such call".to_owned()) };
    let inner = message_json::of_object(&inner, &Value::Object(fields(&inner, params, body)?))?;
    let mut request = DynamicMessage::new(request.clone());
    request.set_field(&within, prost_reflect::Value::Message(inner));
    Ok(request)
}

/// They as one object.
fn fields(
    message: &MessageDescriptor,
    params: impl Iterator<Item = (String, String)>,
    body: &[u8],
) -> Result<Map<String, Value>, String> {
    let mut fields = if body.is_empty() { Map::new() } else { message_json::object(body)? };
    let mut given: Vec<String> = Vec::new();
    for (name, text) in params {
        if given.contains(&name) {
            return Err(format!("{name}: given twice in the path and the query"));
        }
        let is_flag = message.get_field_by_name(&name).is_some_and(|field| field.kind() == Kind::Bool);
        let value = match &*text {
            "true" | "false" if is_flag => Value::Bool(text == "true"),
            _ => Value::String(text),
        };
        if fields.insert(name.clone(), value).is_some() {
            return Err(format!("{name}: it stands in the path or the query: leave it out of the body"));
        }
        given.push(name);
    }
    Ok(fields)
}

fn failure(error: &CallError) -> Response {
    let status = match error {
        CallError::Refused(Refusal::Unauthenticated(_)) => StatusCode::UNAUTHORIZED,
        CallError::Refused(Refusal::Forbidden { .. }) => StatusCode::FORBIDDEN,
        CallError::Problem(Problem::Invalid(_)) => StatusCode::BAD_REQUEST,
        CallError::Problem(Problem::Unknown(_)) => StatusCode::NOT_FOUND,
        CallError::Problem(Problem::Conflict) => StatusCode::CONFLICT,
        CallError::Problem(Problem::Full(_)) => StatusCode::INSUFFICIENT_STORAGE,
        CallError::Problem(Problem::Unavailable(_) | Problem::Uncertain(_)) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = problem(status, &error.to_string());
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn problem(status: StatusCode, reason: &str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], serde_json::json!({ "error": reason }).to_string()).into_response()
}
