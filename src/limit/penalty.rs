//! Penalty: refuses until a time, set when a limit of the same rule had no room (`block_for`). A block that would
//! last longer than the rule now says (a clock stepped back, a shortened setting) starts afresh at the next take.

use super::{Limit, Micros, RetryAfter, State, Step, allowed, denied};

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros) -> Step {
    match state {
        Some(&State::Blocked { until }) if until > now => denied(0, RetryAfter::In((until - now).min(limit.window))),
        _ => allowed(u64::MAX, 0, 0, None, 0),
    }
}

/// Blocked from `now` on.
pub(super) fn block(limit: &Limit, now: Micros) -> Step {
    Step { next: Some(State::Blocked { until: now + limit.window }), ttl: limit.window, ..denied(0, RetryAfter::In(limit.window)) }
}

/// What a take makes of a block that would last longer than the rule now says.
pub(super) fn shorten(limit: &Limit, state: Option<&State>, now: Micros) -> Option<(State, Micros)> {
    match state {
        Some(&State::Blocked { until }) if until > now + limit.window => {
            Some((State::Blocked { until: now + limit.window }, limit.window))
        }
        _ => None,
    }
}
