//! Calendar quota: a count for the day or month that the domain's time zone is in.
//!
//! The edges come with the limit ([`Limit::on`]), computed outside: this period's start, its end, and the next one's end. Which
//! of the two periods it is, the step decides by its own clock. A state from an earlier period is empty; one from a later
//! period (the clock stepped back) is kept as the current one. Times are µs.

use super::{Cost, Limit, Micros, RetryAfter, State, Step, allowed, denied};

/// The current period's start, the hits already in it, and the time until it ends.
fn current(limit: &Limit, state: Option<&State>, now: Micros) -> (Micros, u64, Micros) {
    let [this_start, this_end, next_end] = limit.edges;
    let (start, end) = if now < this_end { (this_start, this_end) } else { (this_end, next_end) };
    let reset_after = end.saturating_sub(now).max(1);
    match state {
        Some(&State::Window { start: stored, count }) if stored >= start => (start, count, reset_after),
        _ => (start, 0, reset_after),
    }
}

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Step {
    let (start, count, reset_after) = current(limit, state, now);
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
    let (start, count, reset_after) = current(limit, state, now);
    let most = (2 * limit.requests).max(count);
    (State::Window { start, count: count + cost.min(most - count) }, reset_after)
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let (start, count, reset_after) = current(limit, state, now);
    if count == 0 {
        return None;
    }
    Some((State::Window { start, count: count.saturating_sub(cost) }, reset_after))
}
