//! An answer in protobuf's JSON mapping. Statuses are written directly: a request may have a thousand of them, and by way of a
//! dynamic message they take tens of milliseconds. All else is written by the general way.

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use prost_types::Duration;
use serde::Serialize;

use crate::api::DESCRIPTOR_SET;
use crate::api::proto::envoy::service::ratelimit::v3::RateLimitResponse;
use crate::api::proto::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use crate::api::proto::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit};

/// What a status takes as JSON, in bytes, about.
const STATUS: usize = 160;

/// Puts answers into JSON.
pub(super) struct Answers(MessageDescriptor);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statuses<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    overall_code: Option<&'static str>,
    statuses: Vec<Status<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_limit: Option<Limit<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    limit_remaining: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_until_reset: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Limit<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    requests_per_unit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_multiplier: Option<u32>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Answers {
    pub(super) fn new() -> Answers {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptor set is compiled in");
        let response = pool.get_message_by_name("envoy.service.ratelimit.v3.RateLimitResponse");
        Answers(response.expect("the descriptor set has the service's messages"))
    }

    pub(super) fn json(&self, mut response: RateLimitResponse) -> Vec<u8> {
        let statuses = std::mem::take(&mut response.statuses);
        let Some(direct) = statuses_json(response.overall_code, &statuses) else {
            response.statuses = statuses;
            return self.general(&response);
        };
        response.overall_code = 0;
        let rest = self.general(&response);
        joined(direct, &rest)
    }

    /// Any answer.
    fn general(&self, response: &RateLimitResponse) -> Vec<u8> {
        let message = DynamicMessage::decode(self.0.clone(), response.encode_to_vec().as_slice());
        serde_json::to_vec(&message.expect("it is of this type")).expect("an answer has a JSON form")
    }
}

/// One object of the fields of two.
fn joined(mut first: Vec<u8>, second: &[u8]) -> Vec<u8> {
    if second != b"{}" {
        first.pop();
        first.push(b',');
        first.extend_from_slice(&second[1..]);
    }
    first
}

/// The code and the statuses of an answer as an object; `None` where they need the general way.
fn statuses_json(overall_code: i32, statuses: &[DescriptorStatus]) -> Option<Vec<u8>> {
    if statuses.is_empty() {
        return None;
    }
    let overall_code = code(overall_code)?;
    let statuses = statuses.iter().map(status).collect::<Option<Vec<Status<'_>>>>()?;
    let mut json = Vec::with_capacity(statuses.len() * STATUS);
    serde_json::to_writer(&mut json, &Statuses { overall_code, statuses }).ok()?;
    Some(json)
}

fn status(status: &DescriptorStatus) -> Option<Status<'_>> {
    if status.quota.is_some() {
        return None;
    }
    Some(Status {
        code: code(status.code)?,
        current_limit: match &status.current_limit {
            Some(current) => Some(limit(current)?),
            None => None,
        },
        limit_remaining: status.limit_remaining,
        duration_until_reset: match &status.duration_until_reset {
            Some(until) => Some(duration(until)?),
            None => None,
        },
    })
}

fn limit(limit: &RateLimit) -> Option<Limit<'_>> {
    let unit = Unit::try_from(limit.unit).ok()?;
    Some(Limit {
        name: &limit.name,
        requests_per_unit: limit.requests_per_unit,
        unit: (unit != Unit::Unknown).then(|| unit.as_str_name()),
        unit_multiplier: limit.unit_multiplier,
    })
}

/// Its name, which is not written where it is the first one; `None` for one without a name.
#[expect(clippy::option_option, reason = "a code without a name needs the general way, one that is not written does not")]
fn code(code: i32) -> Option<Option<&'static str>> {
    let code = Code::try_from(code).ok()?;
    Some((code != Code::Unknown).then(|| code.as_str_name()))
}

/// Seconds with three, six or nine decimals, or none.
fn duration(duration: &Duration) -> Option<String> {
    let (seconds, nanos) = (duration.seconds, duration.nanos);
    match nanos {
        _ if seconds < 0 => None,
        0 => Some(format!("{seconds}s")),
        1..1_000_000_000 if nanos % 1_000_000 == 0 => Some(format!("{seconds}.{:03}s", nanos / 1_000_000)),
        1..1_000_000_000 if nanos % 1_000 == 0 => Some(format!("{seconds}.{:06}s", nanos / 1_000)),
        1..1_000_000_000 => Some(format!("{seconds}.{nanos:09}s")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::envoy::config::core::v3::HeaderValue;

    #[test]
    fn an_answer_is_canonical_json() {
        let status = DescriptorStatus { code: 2, limit_remaining: 0, ..DescriptorStatus::default() };
        let response = RateLimitResponse { overall_code: 2, statuses: vec![status], ..RateLimitResponse::default() };
        let json = String::from_utf8(Answers::new().json(response)).unwrap();
        assert_eq!(json, r#"{"overallCode":"OVER_LIMIT","statuses":[{"code":"OVER_LIMIT"}]}"#);
    }

    #[test]
    fn both_ways_write_the_same() {
        let answers = Answers::new();
        let mut statuses = Vec::new();
        for code in [0, 1, 2] {
            for name in ["", "a \"name\"\n\u{1}\u{7f}é\u{2028}</"] {
                for (seconds, nanos) in [(0, 0), (1, 0), (1, 500_000_000), (0, 1_000), (3, 1), (86_400, 999_999_999)] {
                    for number in [0, 1, u32::MAX] {
                        let limit = RateLimit {
                            name: name.to_owned(),
                            requests_per_unit: number,
                            unit: i32::try_from(number % 7).unwrap(),
                            unit_multiplier: (number > 0).then(|| number - 1),
                        };
                        statuses.push(DescriptorStatus {
                            code,
                            current_limit: (number != 1).then_some(limit),
                            limit_remaining: number,
                            duration_until_reset: (nanos != 1).then_some(Duration { seconds, nanos }),
                            quota: None,
                        });
                    }
                }
            }
        }
        let header = HeaderValue { key: "x".to_owned(), value: "y".to_owned(), ..HeaderValue::default() };
        for overall_code in [0, 1, 2, 77] {
            for headers in [vec![], vec![header.clone()]] {
                for count in [0, 1, statuses.len()] {
                    let response = RateLimitResponse {
                        overall_code,
                        statuses: statuses[..count].to_vec(),
                        response_headers_to_add: headers.clone(),
                        raw_body: headers.iter().map(|_| 7).collect(),
                        ..RateLimitResponse::default()
                    };
                    let expected = String::from_utf8(answers.general(&response)).unwrap();
                    assert_eq!(String::from_utf8(answers.json(response)).unwrap(), expected);
                }
            }
        }
    }
}
