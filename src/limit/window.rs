//! A count for each window: of epoch-aligned ones, as `envoyproxy/ratelimit` counts, or of the days or months of a calendar.
//!
//! The edges of a calendar's periods come with the limit ([`Limit::on`]), computed outside: this period's start, its end, and the
//! next one's end. Which of the two it is, the step decides by its own clock. A state from an earlier window is empty; one from a
//! later window (the clock stepped back) is kept as the current one. Times are µs, whatever the window's length.

use super::{Algorithm, Cost, Limit, Micros, RetryAfter, State, Step, allowed, denied};

/// The current window.
struct Window {
    start: Micros,
    /// The hits already in it.
    count: u64,
    /// Until it ends.
    reset_after: Micros,
}

impl Window {
    fn current(limit: &Limit, state: Option<&State>, now: Micros) -> Window {
        let (start, reset_after) = if limit.algorithm == Algorithm::Calendar {
            let [this_start, this_end, next_end] = limit.edges;
            let (start, end) = if now < this_end { (this_start, this_end) } else { (this_end, next_end) };
            (start, end.saturating_sub(now).max(1))
        } else {
            let passed = now % limit.window;
            (now - passed, limit.window - passed)
        };
        let count = match state {
            Some(&State::Window { start: stored, count }) if stored >= start => count,
            _ => 0,
        };
        Window { start, count, reset_after }
    }

    fn with(self, count: u64) -> (State, Micros) {
        (State::Window { start: self.start, count }, self.reset_after)
    }
}

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Step {
    let window = Window::current(limit, state, now);
    let Window { count, reset_after, .. } = window;
    let capacity = limit.capacity();
    let room = capacity.saturating_sub(count);
    if cost > capacity || capacity == 0 {
        return denied(room, RetryAfter::Never { reset_after });
    }
    if count > capacity || cost > room {
        return denied(room, RetryAfter::In(reset_after));
    }
    if cost == 0 {
        return allowed(room, reset_after, 0, None, 0);
    }
    let (next, ttl) = window.with(count + cost);
    allowed(room - cost, reset_after, 0, Some(next), ttl)
}

pub(super) fn charge(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> (State, Micros) {
    let window = Window::current(limit, state, now);
    let count = window.count;
    let most = (2 * limit.requests).max(count);
    window.with(count + cost.min(most - count))
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let window = Window::current(limit, state, now);
    let count = window.count;
    (count > 0).then(|| window.with(count.saturating_sub(cost)))
}
