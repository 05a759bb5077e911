//! `envoy.service.ratelimit.v3.RateLimitService` over gRPC.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::{Code, Status};

use super::decode::{self, DecodeError};
use super::proto::envoy::service::ratelimit::v3::RateLimitResponse;
use super::{AnswerSettings, MessageBounds, convert, unary};
use crate::limiter::abandoned::Call;
use crate::limiter::{Answer, Decided, Limiter};
use crate::rules::request::Request;
use crate::store::Store;

/// The service's full name.
pub const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";
/// The path of its one method.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// The gRPC protocol's bound on the number in `grpc-timeout`.
const MAX_TIMEOUT_DIGITS: usize = 8;

/// Answers calls by a limiter.
pub struct Rls<S> {
    pub limiter: Limiter<S>,
    pub answers: AnswerSettings,
    pub bounds: MessageBounds,
}

impl<S: Store> Rls<S> {
    /// Counts a message that is refused before anything is decided.
    pub(super) fn count_invalid(&self) {
        self.limiter.shared().metrics().errors.invalid.inc();
    }

    /// Likewise, if it is longer than is read.
    pub fn count_too_long(&self, unread: &Status) {
        if unread.code() == Code::OutOfRange {
            self.count_invalid();
        }
    }

    /// Answers a request that came in at `arrival` from a caller that waits for `patience`.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED, and nothing counted, for a caller that has gone already; INVALID_ARGUMENT for a message that makes no sense,
    /// UNAVAILABLE when nothing can be said.
    pub async fn answer(
        &self,
        request: &Request<'_>,
        arrival: Instant,
        patience: Option<Duration>,
    ) -> Result<RateLimitResponse, Status> {
        let decided = self.decide(request, arrival, patience).await?;
        Ok(convert::response(&decided, request, &self.answers, arrival))
    }

    /// As [`Rls::answer`], before it is put into words.
    pub(super) async fn decide(
        &self,
        request: &Request<'_>,
        arrival: Instant,
        patience: Option<Duration>,
    ) -> Result<Box<Decided>, Status> {
        if patience.is_some_and(|patience| arrival.elapsed() >= patience) {
            self.limiter.shared().metrics().errors.deadline_passed.inc();
            return Err(Status::deadline_exceeded("the call's deadline had passed before it was looked at"));
        }
        self.limiter.give_way(request).await;
        let answer = self.limiter.decide(request, arrival, patience).await;
        self.limiter.give_way(request).await;
        match answer {
            Answer::Decided(decided) => Ok(decided),
            Answer::Invalid(reason) => Err(Status::invalid_argument(reason)),
            Answer::Unavailable(reason) => Err(Status::unavailable(reason)),
        }
    }
}

/// The service as HTTP/2 requests come in. What tonic generates does the same, costs more, and has no place for the time of
/// arrival.
pub struct RlsService<S>(Arc<Rls<S>>);

impl<S> RlsService<S> {
    pub fn new(rls: Arc<Rls<S>>) -> RlsService<S> {
        RlsService(rls)
    }

    /// What it answers by.
    pub fn shared(&self) -> Arc<Rls<S>> {
        self.0.clone()
    }

    /// Whether a request to this path is for this service.
    pub fn serves(path: &str) -> bool {
        path == SHOULD_RATE_LIMIT
    }
}

impl<S> Clone for RlsService<S> {
    fn clone(&self) -> RlsService<S> {
        RlsService(self.0.clone())
    }
}

impl<S: Store + 'static> RlsService<S> {
    /// Answers one call, from its HTTP/2 request on.
    pub fn call<B>(&self, request: http::Request<B>) -> Call<Result<http::Response<Body>, Infallible>>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let (arrival, patience) = (Instant::now(), patience(request.headers()));
        let (rls, body) = (self.0.clone(), request.into_body());
        Call::new(async move { Ok(unary::respond(answer(&rls, body, arrival, patience).await)) })
    }
}

async fn answer<S: Store, B>(
    rls: &Rls<S>,
    body: B,
    arrival: Instant,
    patience: Option<Duration>,
) -> Result<RateLimitResponse, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let message = unary::read(body, rls.bounds.bytes).await.inspect_err(|status| rls.count_too_long(status))?;
    let request = decode::request(&message, rls.bounds.entries).map_err(|error| {
        rls.count_invalid();
        Status::from(error)
    })?;
    rls.answer(&request, arrival, patience).await
}

impl From<DecodeError> for Status {
    fn from(error: DecodeError) -> Status {
        match error {
            DecodeError::TooMany(reason) => Status::invalid_argument(reason.to_string()),
            error => Status::internal(format!("the message cannot be decoded: {error}")),
        }
    }
}

/// How long the caller waits: the `grpc-timeout` header. One that makes no sense says nothing.
pub(super) fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_TIMEOUT_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_the_grpc_timeout() {
        let cases = [
            ("20m", Some(Duration::from_millis(20))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250000u", Some(Duration::from_millis(250))),
            ("0n", Some(Duration::ZERO)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("20", None),
            ("20x", None),
        ];
        for (text, expected) in cases {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
            assert_eq!(patience(&headers), expected, "{text}");
        }
        assert_eq!(patience(&HeaderMap::new()), None);
    }
}
