//! What is served over gRPC: the rate-limit service by the shortest way, then reservations, health and reflection, then
//! UNIMPLEMENTED.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, TE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::service::Service;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::api::proto::weir::v1::reservation_service_server::ReservationServiceServer;
use crate::api::reservations::{self, Reservations};
use crate::api::rls::{Rls, RlsService};
use crate::api::{DESCRIPTOR_SET, unary};
use crate::grpc_request::{self, NotACall};
use crate::limiter::abandoned::Call;
use crate::reflection::with_reflection;
use crate::store::reservations::ReservationStore;
use crate::transport::body::{self, Bounds, MAX_TIME, Timed, Unread};
use crate::transport::room::Paths;
use crate::transport::{Counted, Lasting, only};

const HEALTH: &str = "grpc.health.v1.Health";
/// What the services here may need of a request's head. The rest goes before a body is waited for: a peer may refer to one large
/// header in each of a thousand requests.
const NEEDED: [HeaderName; 4] =
    [CONTENT_TYPE, HeaderName::from_static("grpc-timeout"), HeaderName::from_static("grpc-encoding"), TE];
/// The longest path of a method.
const MAX_PATH: usize = 128;
/// The longest message to health: it names a service.
const MAX_HEALTH: usize = 4 << 10;

/// How much of a request that is not a gRPC call is read, in bytes, and how long it may take to come.
const MAX_REFUSED: (usize, Duration) = (4 << 10, Duration::from_secs(1));

/// Everything that one gRPC port answers.
pub struct GrpcService<S> {
    rls: RlsService<S>,
    reservations: ReservationServiceServer<Reservations<S>>,
    others: Arc<Routes>,
}

impl<S> Clone for GrpcService<S> {
    fn clone(&self) -> GrpcService<S> {
        let (reservations, others) = (self.reservations.clone(), self.others.clone());
        GrpcService { rls: self.rls.clone(), reservations, others }
    }
}

impl<S: ReservationStore + 'static> GrpcService<S> {
    pub fn new(rls: Arc<Rls<S>>, key_prefix: Arc<str>, others: Arc<Routes>) -> GrpcService<S> {
        let reservations = ReservationServiceServer::new(Reservations::new(rls.clone(), key_prefix));
        let reservations = reservations.max_decoding_message_size(rls.bounds.bytes);
        GrpcService { rls: RlsService::new(rls), reservations, others }
    }
}

/// Health, and reflection in both versions that clients speak.
pub fn other_services(health: HealthServer<impl Health>) -> Routes {
    with_reflection(Routes::new(health), &[DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET]).prepare()
}

impl<S: ReservationStore + 'static> Service<Request<Counted>> for GrpcService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call<Result<Self::Response, Infallible>>;

    fn call(&self, mut request: Request<Counted>) -> Self::Future {
        if let Err(reason) = grpc_request::check(request.method(), request.headers()) {
            let answer = refusal(reason, request.method());
            return Call::new(async {
                read_on(request.into_body()).await;
                Ok(answer)
            });
        }
        if RlsService::<S>::serves(request.uri().path()) {
            return self.rls.call(request);
        }
        if request.uri().path().len() > MAX_PATH {
            return Call::new(std::future::ready(Ok(Status::unimplemented("").into_http())));
        }
        // Now, not in the future: those of many calls come to be before the first of them runs.
        *request.headers_mut() = only(request.headers(), &NEEDED);
        match service_of(request.uri().path()) {
            reservations::SERVICE => {
                let (rls, service) = (self.rls.shared(), self.reservations.clone());
                Call::new(async move {
                    let path = request.uri().path().to_owned();
                    let check = |message: &[u8]| rls.check_reserve(&path, message);
                    let whole = unary::whole(request, rls.bounds.bytes, check).await;
                    once_whole(service, whole.inspect_err(|status| rls.count_too_long(status))).await
                })
            }
            HEALTH => {
                let service = Routes::clone(&self.others);
                Call::new(async { once_whole(service, unary::whole(request, MAX_HEALTH, |_| Ok(())).await).await })
            }
            _ => {
                let request = request.map(|body| Timed::ending(body, MAX_TIME));
                Call::new(tower::Service::call(&mut Routes::clone(&self.others), request))
            }
        }
    }
}

/// Reads what a refused request sends, within bounds: an answer before its end resets the stream, and curl then shows the reset in
/// place of the answer.
async fn read_on(body: Counted) {
    let check = |begun: &[u8]| if begun.len() > MAX_REFUSED.0 { Err(Unread::Full) } else { Ok(()) };
    drop(body::read(body, Bounds::within(MAX_REFUSED.1), check).await);
}

/// The answer to a request that is not a gRPC call, whatever its path. An answer to HEAD has no body: HTTP/2 clients take one for a
/// broken stream.
fn refusal(reason: NotACall, method: &Method) -> Response<Body> {
    let text = format!("this port speaks gRPC: {}\n", reason.hint());
    let body = if *method == Method::HEAD { Body::empty() } else { Body::new(Full::new(Bytes::from(text))) };
    let mut response = Response::new(body);
    *response.status_mut() = reason.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if reason == NotACall::Method {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// Health, which is answered however busy the port is, and answers that go on.
pub const PATHS: Paths = Paths { is_probe: |path| service_of(path) == HEALTH, lasting };

fn lasting(path: &str) -> Option<Lasting> {
    let path = path.strip_prefix("/grpc.")?;
    match path {
        "health.v1.Health/Watch" => Some(Lasting::Endless),
        _ => path.starts_with("reflection.").then_some(Lasting::Session),
    }
}

/// `package.Service` of `/package.Service/Method`.
fn service_of(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.split('/').next()).unwrap_or_default()
}

/// Answers a call with one message, which has come whole, and was checked, before the service hears of it.
async fn once_whole<S>(mut service: S, whole: Result<Request<Full<Bytes>>, Status>) -> Result<Response<Body>, Infallible>
where
    S: tower::Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible>,
{
    match whole {
        // In a box, so that a call that waits for its body is small.
        Ok(request) => Box::pin(service.call(request)).await,
        Err(status) => Ok(status.into_http()),
    }
}
