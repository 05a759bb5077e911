//! Between the protocol's messages and what the limiter speaks. Nothing here decides: a message becomes a [`Request`] that
//! borrows from it, and a decision becomes an answer field by field.

use tokio::time::Instant;

use super::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use super::proto::envoy::service::ratelimit::v3::rate_limit_response::{self, DescriptorStatus, RateLimit};
use super::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use super::{AnswerSettings, headers, metadata};
use crate::limit::{Limit, Micros};
use crate::limiter::Decided;
use crate::rules::decision::{Code, Status};
use crate::rules::plan::Source;
use crate::rules::request::{Descriptor, Entry, LimitOverride, Request};
use crate::rules::{Domain, RuleLimit, Unit};

/// What an unlimited descriptor has left.
const UNLIMITED: u32 = u32::MAX;

/// A call's message, as the limiter reads it.
pub fn request(message: &RateLimitRequest) -> Request<'_> {
    Request {
        domain: &message.domain,
        descriptors: message.descriptors.iter().map(descriptor).collect(),
        hits_addend: message.hits_addend,
    }
}

pub(super) fn descriptor(message: &RateLimitDescriptor) -> Descriptor<'_> {
    Descriptor {
        entries: message.entries.iter().map(|entry| Entry { key: &entry.key, value: &entry.value }).collect(),
        limit: message.limit.map(|limit| LimitOverride {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit,
            unit_multiplier: limit.unit_multiplier,
        }),
        hits: message.hits_addend,
        is_negative_hits: message.is_negative_hits,
    }
}

/// The answer to a call that came in at `arrival`.
pub fn response(decided: &Decided, request: &Request<'_>, settings: &AnswerSettings, arrival: Instant) -> RateLimitResponse {
    let decision = &decided.decision;
    let statuses = decision.statuses.iter();
    let mut response = RateLimitResponse {
        overall_code: code(decision.code),
        statuses: statuses.map(|status| descriptor_status(status, decided.domain(), &decided.overrides)).collect(),
        response_headers_to_add: headers::headers(decided, settings, arrival),
        dynamic_metadata: metadata::metadata(decided, request, settings),
        ..RateLimitResponse::default()
    };
    if let Some((content_type, body)) = headers::problem(decided) {
        response.response_headers_to_add.push(content_type);
        response.raw_body = body;
    }
    response
}

fn code(code: Code) -> i32 {
    match code {
        Code::Ok => rate_limit_response::Code::Ok as i32,
        Code::OverLimit => rate_limit_response::Code::OverLimit as i32,
    }
}

fn descriptor_status(status: &Status, domain: Option<&Domain>, overrides: &[RuleLimit]) -> DescriptorStatus {
    let mut answer = DescriptorStatus { code: code(status.code), ..DescriptorStatus::default() };
    if status.unlimited {
        answer.limit_remaining = UNLIMITED;
    }
    let (Some(shown), Some(domain)) = (status.shown.map(|shown| status.limits[shown]), domain) else { return answer };
    answer.limit_remaining = saturating(shown.outcome.remaining());
    answer.duration_until_reset = Some(whole_seconds(shown.outcome.reset_after()));
    // Where a subject is blocked, no limit has a part in it.
    let Some(limit) = status.limit(domain, overrides) else { return answer };
    // A limit that came with the request has no name; a quota has its own.
    let is_rules = !matches!(shown.source, Source::Override(_));
    let name = match limit.limit.calendar() {
        Some(_) => Some(&*limit.policy),
        None => status.rule.filter(|_| is_rules).and_then(|rule| domain.rule(rule).name.as_deref()),
    };
    answer.current_limit = Some(current_limit(&limit.limit, name.unwrap_or_default()));
    answer
}

fn current_limit(limit: &Limit, name: &str) -> RateLimit {
    let unit = Unit::of_window(limit.window());
    RateLimit {
        name: name.to_owned(),
        requests_per_unit: saturating(limit.requests()),
        unit: unit.map_or(rate_limit_response::rate_limit::Unit::Unknown as i32, |(unit, _)| unit as i32),
        unit_multiplier: unit.map(|(_, multiplier)| multiplier).filter(|&multiplier| multiplier > 1),
    }
}

/// Rounded up: Envoy and most clients read only the seconds, and must not come back too early.
fn whole_seconds(micros: Micros) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(headers::seconds(micros)).unwrap_or(i64::MAX), nanos: 0 }
}

fn saturating(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
