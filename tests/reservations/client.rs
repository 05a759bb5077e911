//! A caller of the reservation service, and the servers that it calls.

use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Code;
use tonic::transport::Channel;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use weir::api::proto::weir::v1::reservation_service_client::ReservationServiceClient;
use weir::api::proto::weir::v1::{CommitRequest, ReserveRequest, ReserveResponse};

use super::support::redis::RedisServer;
use super::support::weir::{Settings, Weir, ask, descriptor, request};

pub(crate) type Refused = (Code, String);

/// Over one connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) service: ReservationServiceClient<Channel>,
    pub(crate) limits: RateLimitServiceClient<Channel>,
}

pub(crate) trait Answered {
    fn is_allowed(&self) -> bool;
}

impl Answered for ReserveResponse {
    fn is_allowed(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.overall_code() == rate_limit_response::Code::Ok)
    }
}

/// What is asked to be reserved, in the domain of the rules.
pub(crate) fn order(descriptors: &[&[(&str, &str)]], estimate: u64, idempotency_key: &str) -> ReserveRequest {
    ReserveRequest {
        domain: "llm".into(),
        descriptors: descriptors.iter().map(|entries| descriptor(entries)).collect(),
        estimate,
        idempotency_key: idempotency_key.to_owned(),
        time_to_live: None,
    }
}

pub(crate) trait Ordered {
    fn known_for(self, seconds: i64) -> Self;
    fn in_domain(self, domain: &str) -> Self;
}

impl Ordered for ReserveRequest {
    fn known_for(self, seconds: i64) -> ReserveRequest {
        ReserveRequest { time_to_live: Some(prost_types::Duration { seconds, nanos: 0 }), ..self }
    }

    fn in_domain(self, domain: &str) -> ReserveRequest {
        ReserveRequest { domain: domain.into(), ..self }
    }
}

impl Caller {
    pub(crate) async fn of(server: &Weir) -> Caller {
        let channel = server.channel().await;
        Caller {
            service: ReservationServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            limits: RateLimitServiceClient::new(channel),
        }
    }

    pub(crate) async fn reserve(&self, order: ReserveRequest) -> Result<ReserveResponse, Refused> {
        let answer = self.service.clone().reserve(order).await;
        answer.map(tonic::Response::into_inner).map_err(|status| (status.code(), status.message().to_owned()))
    }

    /// Estimate and true number.
    pub(crate) async fn commit(&self, id: &str, actual: u64) -> Result<(u64, u64), Refused> {
        let answer = self.service.clone().commit(CommitRequest { id: id.to_owned(), actual }).await;
        let committed = answer.map_err(|status| (status.code(), status.message().to_owned()))?.into_inner();
        Ok((committed.estimate, committed.actual))
    }

    /// What ShouldRateLimit sees, without counting anything.
    pub(crate) async fn remaining(&self, entries: &[(&str, &str)]) -> u32 {
        let mut look = request("llm", &[entries]);
        look.descriptors[0].hits_addend = Some(0);
        ask(&mut self.limits.clone(), look).await.statuses[0].limit_remaining
    }

    pub(crate) async fn give_back(&self, entries: &[(&str, &str)], hits: u64) {
        let mut refund = request("llm", &[entries]);
        refund.descriptors[0].hits_addend = Some(hits);
        refund.descriptors[0].is_negative_hits = true;
        ask(&mut self.limits.clone(), refund).await;
    }
}

/// Whether the time until which it can be committed has passed, by this machine's clock, which is the servers' too.
pub(crate) fn has_expired(reserved: &ReserveResponse) -> bool {
    let expires = reserved.expires_at.expect("it was reserved");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    let expires = std::time::Duration::new(expires.seconds.unsigned_abs(), expires.nanos.unsigned_abs());
    now > expires
}

/// Against a server with these rules and counters in memory, then against one with counters in Redis. Whoever is on this machine
/// may change what is said of subjects.
pub(crate) async fn each_server(rules: &str, run: impl AsyncFn(&Weir, Caller)) {
    let settings = || Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true");
    let in_memory = settings().start().await;
    run(&in_memory, Caller::of(&in_memory).await).await;
    let redis = RedisServer::start();
    let in_redis = settings().redis(&redis.url()).start().await;
    run(&in_redis, Caller::of(&in_redis).await).await;
}

/// Likewise, for who only calls.
pub(crate) async fn each_store(rules: &str, run: impl AsyncFn(Caller)) {
    each_server(rules, async |_: &Weir, caller: Caller| run(caller).await).await;
}
