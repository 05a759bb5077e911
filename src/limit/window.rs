//! Fixed window: a count for each epoch-aligned window, as `envoyproxy/ratelimit` counts.
//!
//! A state from an earlier window is empty; one from a later window (the clock stepped back) is kept as the
//! current one. Times are µs, whatever the window's length.

use super::{Cost, Limit, Micros, RetryAfter, State, Step, allowed, denied};

/// The current window's start and the hits already in it.
fn current(limit: &Limit, state: Option<&State>, now: Micros) -> (Micros, u64) {
    let start = now - now % limit.window;
    match state {
        Some(&State::Window { start: stored, count }) if stored >= start => (start, count),
        _ => (start, 0),
    }
}

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Step {
    let (start, count) = current(limit, state, now);
    let reset_after = start + limit.window - now;
    let room = limit.requests.saturating_sub(count);
    if cost > limit.requests {
        return denied(room, RetryAfter::Never);
    }
    if count > limit.requests || cost > room {
        return denied(room, RetryAfter::In(reset_after));
    }
    if cost == 0 {
        return allowed(room, reset_after, 0, None, 0);
    }
    allowed(room - cost, reset_after, 0, Some(State::Window { start, count: count + cost }), reset_after)
}

pub(super) fn charge(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> (State, Micros) {
    let (start, count) = current(limit, state, now);
    let most = (2 * limit.requests).max(count);
    let count = count + cost.min(most - count);
    (State::Window { start, count }, start + limit.window - now)
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let (start, count) = current(limit, state, now);
    if count == 0 {
        return None;
    }
    Some((State::Window { start, count: count.saturating_sub(cost) }, start + limit.window - now))
}
