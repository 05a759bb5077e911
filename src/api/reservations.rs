//! `weir.v1.ReservationService` over gRPC.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::proto::weir::v1::reservation_service_server::ReservationService;
use super::proto::weir::v1::{CommitRequest, CommitResponse, ReserveRequest, ReserveResponse};
use super::rls::{Rls, patience};
use super::{convert, decode};
use crate::limit::reservation::{MAX_AMOUNT, TTL_RANGE};
use crate::limit::{MINUTE, Micros, SECOND};
use crate::limiter::reservations::{Arrival, Order, Problem, Reserved};
use crate::rules::decision::Degraded;
use crate::rules::request;
use crate::rules::reservation::{MAX_ID, MAX_IDEMPOTENCY_KEY};
use crate::store::reservations::ReservationStore;

/// The service's full name.
pub const SERVICE: &str = "weir.v1.ReservationService";
/// How long a reservation can be committed whose caller does not say.
const DEFAULT_TTL: Micros = MINUTE;

/// Answers calls by the limiter of the rate-limit service beside it.
pub struct Reservations<S> {
    rls: Arc<Rls<S>>,
    /// What the keys of all counters begin with.
    key_prefix: Arc<str>,
}

impl<S> Reservations<S> {
    pub fn new(rls: Arc<Rls<S>>, key_prefix: Arc<str>) -> Reservations<S> {
        Reservations { rls, key_prefix }
    }
}

impl<S: ReservationStore> Rls<S> {
    /// Counts the descriptors and entries of a message to Reserve before generated code decodes it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for more than there may be; INTERNAL for what is no message.
    pub fn check_reserve(&self, path: &str, message: &[u8]) -> Result<(), Status> {
        if !path.ends_with("/Reserve") {
            return Ok(());
        }
        decode::count(message, self.bounds.entries).map_err(|error| {
            self.count_invalid();
            Status::from(error)
        })
    }
}

#[tonic::async_trait]
impl<S: ReservationStore + 'static> ReservationService for Reservations<S> {
    async fn reserve(&self, call: Request<ReserveRequest>) -> Result<Response<ReserveResponse>, Status> {
        let arrival = self.arrival(&call)?;
        let message = call.into_inner();
        let request = checked_request(&message)?;
        let estimate = in_range("estimate", message.estimate, 1)?;
        let idempotency_key = sized("idempotency_key", &message.idempotency_key, MAX_IDEMPOTENCY_KEY)?;
        let order = Order { request: &request, estimate, idempotency_key, ttl: ttl(&message)? };
        self.rls.limiter.give_way(&request).await;
        let reserved = self.rls.limiter.reserve(&order, &self.key_prefix, arrival).await.map_err(status)?;
        self.rls.limiter.give_way(&request).await;
        Ok(Response::new(self.response(&reserved, &request, arrival)))
    }

    async fn commit(&self, call: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let arrival = self.arrival(&call)?;
        let CommitRequest { id, actual } = call.into_inner();
        let id = sized("id", &id, MAX_ID)?;
        let actual = in_range("actual", actual, 0)?;
        let committed = self.rls.limiter.commit(id, actual, &self.key_prefix, arrival).await.map_err(status)?;
        Ok(Response::new(CommitResponse { estimate: committed.estimate, actual: committed.actual }))
    }
}

impl<S: ReservationStore> Reservations<S> {
    fn arrival<T>(&self, call: &Request<T>) -> Result<Arrival, Status> {
        let patience = patience(call.metadata().as_ref());
        if patience.is_some_and(|patience| patience.is_zero()) {
            self.rls.limiter.shared().metrics().errors.deadline_passed.inc();
            return Err(Status::deadline_exceeded("the call's deadline had passed before it was looked at"));
        }
        Ok(Arrival { at: Instant::now(), patience })
    }

    fn response(&self, reserved: &Reserved, request: &request::Request<'_>, arrival: Arrival) -> ReserveResponse {
        let reservation = reserved.reservation.as_ref();
        let degraded = reserved.decided.decision.degraded.map_or("", Degraded::name);
        ReserveResponse {
            answer: Some(convert::response(&reserved.decided, request, &self.rls.answers, arrival.at)),
            id: reservation.map(|named| named.id.clone()).unwrap_or_default(),
            expires_at: reservation.and_then(|named| named.expires).map(timestamp),
            degraded: degraded.to_owned(),
        }
    }
}

/// The request that the estimate is decided as.
fn checked_request(message: &ReserveRequest) -> Result<request::Request<'_>, Status> {
    for (place, descriptor) in message.descriptors.iter().enumerate() {
        let field = match (descriptor.hits_addend, descriptor.is_negative_hits) {
            (Some(_), _) => "hits_addend",
            (None, true) => "is_negative_hits",
            (None, false) => continue,
        };
        let reason = format!("descriptor {place}: {field} is not for reservations; `estimate` says how much");
        return Err(Status::invalid_argument(reason));
    }
    let descriptors = message.descriptors.iter().map(convert::descriptor).collect();
    Ok(request::Request { domain: &message.domain, descriptors, hits_addend: 1 })
}

fn in_range(field: &str, amount: u64, least: u64) -> Result<u64, Status> {
    match amount {
        amount if (least..=MAX_AMOUNT).contains(&amount) => Ok(amount),
        _ => Err(Status::invalid_argument(format!("{field}: {amount} is not from {least} to {MAX_AMOUNT}"))),
    }
}

fn sized<'a>(field: &str, text: &'a str, longest: usize) -> Result<&'a str, Status> {
    match text.len() {
        length if (1..=longest).contains(&length) => Ok(text),
        length => Err(Status::invalid_argument(format!("{field}: {length} bytes; 1 to {longest} are taken"))),
    }
}

fn ttl(message: &ReserveRequest) -> Result<Micros, Status> {
    let Some(given) = message.time_to_live else { return Ok(DEFAULT_TTL) };
    let seconds = u64::try_from(given.seconds).ok().and_then(|seconds| seconds.checked_mul(SECOND));
    let micros = seconds.zip(u64::try_from(given.nanos).ok()).and_then(|(micros, nanos)| micros.checked_add(nanos / 1_000));
    micros.filter(|micros| TTL_RANGE.contains(micros)).ok_or_else(|| {
        let (least, most) = (TTL_RANGE.start() / SECOND, TTL_RANGE.end() / SECOND);
        Status::invalid_argument(format!("time_to_live: it is not from {least} s to {most} s"))
    })
}

fn timestamp(micros: Micros) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(micros / SECOND).unwrap_or(i64::MAX),
        nanos: i32::try_from(micros % SECOND * 1_000).expect("less than a second"),
    }
}

fn status(problem: Problem) -> Status {
    let code = match problem {
        Problem::Invalid(_) => Code::InvalidArgument,
        Problem::Used => Code::AlreadyExists,
        Problem::Absent => Code::NotFound,
        Problem::Committed(_) => Code::FailedPrecondition,
        Problem::Full => Code::ResourceExhausted,
        Problem::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, problem.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lasting(seconds: i64, nanos: i32) -> Result<Micros, String> {
        let time_to_live = Some(prost_types::Duration { seconds, nanos });
        ttl(&ReserveRequest { time_to_live, ..ReserveRequest::default() }).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_time_to_live_is_of_a_second_to_a_day() {
        assert_eq!(ttl(&ReserveRequest::default()).map_err(|status| status.code()), Ok(60 * SECOND));
        assert_eq!([lasting(1, 0), lasting(1, 500_000_000), lasting(86_400, 0)], [Ok(SECOND), Ok(1_500_000), Ok(86_400 * SECOND)]);
        for (seconds, nanos) in [(0, 0), (0, 999_999_999), (86_400, 1_000), (-5, 0), (5, -1), (i64::MAX, i32::MAX)] {
            assert_eq!(lasting(seconds, nanos), Err("time_to_live: it is not from 1 s to 86400 s".to_owned()), "{seconds} {nanos}");
        }
    }
}
