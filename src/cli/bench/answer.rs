//! What a decision's message says, read without building it: the loader's own work is part of what it measures.

use prost::encoding::{WireType, decode_key, decode_varint};

/// `Code.OK`, of a message and of a descriptor's status.
const OK: u64 = 1;
/// `limit_remaining` of a descriptor that a rule says is unlimited.
const UNLIMITED: u64 = u32::MAX as u64;
/// Fields of `RateLimitResponse`.
const OVERALL_CODE: u32 = 1;
const STATUSES: u32 = 2;
/// Fields of `DescriptorStatus`.
const CODE: u32 = 1;
const CURRENT_LIMIT: u32 = 2;
const LIMIT_REMAINING: u32 = 3;
const UNTIL_RESET: u32 = 4;

/// A decision, as far as the report tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// 0 for a message without one.
    pub overall_code: i32,
    /// The message has statuses, and every one is OK with no limit. A service that sends no statuses does not say what was met.
    pub met_no_rule: bool,
}

/// Reads a `RateLimitResponse`. What cannot be read counts as absent.
pub fn decision(message: &[u8]) -> Decision {
    let (mut overall_code, mut statuses, mut met_a_rule) = (0, 0, false);
    each_field(message, |field, value| match (field, value) {
        (OVERALL_CODE, Value::Number(code)) => overall_code = code,
        (STATUSES, Value::Bytes(status)) => {
            statuses += 1;
            met_a_rule = met_a_rule || meets_a_rule(status);
        }
        _ => {}
    });
    let met_no_rule = overall_code == OK && statuses > 0 && !met_a_rule;
    Decision { overall_code: i32::try_from(overall_code).unwrap_or(0), met_no_rule }
}

fn meets_a_rule(status: &[u8]) -> bool {
    let mut meets = false;
    each_field(status, |field, value| {
        meets |= match (field, value) {
            (CODE, Value::Number(code)) => code != OK,
            (CURRENT_LIMIT | UNTIL_RESET, _) => true,
            (LIMIT_REMAINING, Value::Number(remaining)) => remaining == UNLIMITED,
            _ => false,
        }
    });
    meets
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Every field up to the first that is no field.
fn each_field<'a>(mut message: &'a [u8], mut take: impl FnMut(u32, Value<'a>)) {
    while !message.is_empty() {
        let Ok((field, kind)) = decode_key(&mut message) else { return };
        match kind {
            WireType::Varint => {
                let Ok(number) = decode_varint(&mut message) else { return };
                take(field, Value::Number(number));
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut message).ok().and_then(|length| usize::try_from(length).ok());
                let Some((bytes, rest)) = length.and_then(|length| message.split_at_checked(length)) else { return };
                take(field, Value::Bytes(bytes));
                message = rest;
            }
            WireType::ThirtyTwoBit | WireType::SixtyFourBit => {
                let size = if matches!(kind, WireType::ThirtyTwoBit) { 4 } else { 8 };
                let Some(rest) = message.get(size..) else { return };
                message = rest;
            }
            WireType::StartGroup | WireType::EndGroup => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::proto::envoy::service::ratelimit::v3::RateLimitResponse;
    use crate::api::proto::envoy::service::ratelimit::v3::rate_limit_response::{DescriptorStatus, RateLimit};

    fn read(overall_code: i32, statuses: &[DescriptorStatus]) -> Decision {
        let statuses = statuses.to_vec();
        let response = RateLimitResponse { overall_code, statuses, raw_body: vec![1; 300], ..RateLimitResponse::default() };
        decision(&response.encode_to_vec())
    }

    #[test]
    fn a_call_meets_no_rule_where_no_descriptor_has_a_limit() {
        let none = DescriptorStatus { code: 1, ..DescriptorStatus::default() };
        let limited = DescriptorStatus { current_limit: Some(RateLimit::default()), ..none.clone() };
        let unlimited = DescriptorStatus { limit_remaining: u32::MAX, ..none.clone() };
        let blocked = DescriptorStatus { code: 2, ..none.clone() };
        let exempt = DescriptorStatus { duration_until_reset: Some(prost_types::Duration::default()), ..none.clone() };
        assert_eq!(read(1, &[none.clone(), none.clone()]), Decision { overall_code: 1, met_no_rule: true });
        for met in [limited, unlimited, blocked, exempt] {
            assert_eq!(read(1, &[none.clone(), met]), Decision { overall_code: 1, met_no_rule: false });
        }
        assert_eq!(read(2, &[none]), Decision { overall_code: 2, met_no_rule: false });
        assert_eq!(read(1, &[]), Decision { overall_code: 1, met_no_rule: false });
    }

    #[test]
    fn the_code_is_found_wherever_it_stands() {
        assert_eq!(decision(&[0x2a, 0x01, b'x', 0x08, 0x02]).overall_code, 2);
        assert_eq!(decision(&[0x3d, 1, 2, 3, 4, 0x39, 1, 2, 3, 4, 5, 6, 7, 8, 0x08, 0x02]).overall_code, 2);
        for broken in [&[][..], &[0x08], &[0x12, 0x7f], &[0x3d, 1], &[0x0b]] {
            assert_eq!(decision(broken), Decision::default(), "{broken:?}");
        }
    }
}
