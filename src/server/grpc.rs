//! What is served over gRPC: the rate-limit service by the shortest way, then reservations, health and reflection, then
//! UNIMPLEMENTED.

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::Builder;

use crate::api::DESCRIPTOR_SET;
use crate::api::proto::weir::v1::reservation_service_server::ReservationServiceServer;
use crate::api::reservations::{self, Reservations};
use crate::api::rls::{Rls, RlsService};
use crate::store::reservations::ReservationStore;

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
        let reservations = reservations.max_decoding_message_size(reservations::MAX_MESSAGE);
        GrpcService { rls: RlsService::new(rls), reservations, others }
    }
}

/// Health, and reflection in both versions that clients speak.
pub fn other_services(health: HealthServer<impl Health>) -> Routes {
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let is_encoded = "the descriptor sets are compiled in";
    Routes::new(health)
        .add_service(reflection().build_v1().expect(is_encoded))
        .add_service(reflection().build_v1alpha().expect(is_encoded))
        .prepare()
}

impl<S: ReservationStore + 'static> Service<Request<Incoming>> for GrpcService<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if RlsService::<S>::serves(request.uri().path()) {
            return self.rls.call(request);
        }
        if request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(reservations::SERVICE)).is_some() {
            return tower::Service::call(&mut self.reservations.clone(), request);
        }
        let mut others = Routes::clone(&self.others);
        Box::pin(tower::Service::call(&mut others, request))
    }
}
