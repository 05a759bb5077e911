//! Sliding-window counter: two aligned counts, the previous one weighted by the part of it that the last window
//! still covers. Multiplied through by the period, so that no fraction is ever rounded:
//! `previous × (period − elapsed) + (current + cost) × period ≤ requests × period`.

use super::{Cost, Limit, Micros, RetryAfter, State, Step, allowed, denied};

struct Counts {
    start: u64,
    elapsed: u64,
    current: u64,
    previous: u64,
}

/// The counts as of `now`: shifted by one window, or empty after two. State from the future (the clock stepped back) starts
/// now, so that the previous window weighs in full; its windows are no longer aligned until it has been empty once.
fn counts(limit: &Limit, state: Option<&State>, now: Micros) -> Counts {
    let tick = now / limit.tick;
    let aligned = tick - tick % limit.period;
    let (start, current, previous) = match state {
        Some(&State::Counter { start, current, previous }) => match tick.checked_sub(start) {
            None => (tick, current, previous),
            Some(elapsed) if elapsed < limit.period => (start, current, previous),
            Some(elapsed) if elapsed < 2 * limit.period => (start + limit.period, 0, current),
            Some(_) => (aligned, 0, 0),
        },
        _ => (aligned, 0, 0),
    };
    // Empty is as good as absent: a store may have dropped it already.
    let start = if (current, previous) == (0, 0) { aligned } else { start };
    Counts { start, elapsed: tick - start, current, previous }
}

impl Counts {
    /// Used so far, in units of one request over the period.
    fn used(&self, limit: &Limit) -> u64 {
        self.previous * (limit.period - self.elapsed) + self.current * limit.period
    }

    /// From `now` to the first µs of tick `start + ticks`.
    fn until(&self, limit: &Limit, now: Micros, ticks: u64) -> Micros {
        (self.start + ticks) * limit.tick - now
    }

    /// When nothing of what is counted weighs any more.
    fn reset_after(&self, limit: &Limit, now: Micros) -> Micros {
        match (self.current, self.previous) {
            (0, 0) => 0,
            (0, _) => self.until(limit, now, limit.period),
            _ => self.until(limit, now, 2 * limit.period),
        }
    }

    /// The first tick, counted from `start`, at which `cost` fits; `cost ≤ capacity`, and it does not fit now.
    fn fits_at(&self, limit: &Limit, cost: Cost) -> u64 {
        let room = limit.capacity() - cost;
        if self.current <= room {
            return limit.period - (room - self.current) * limit.period / self.previous;
        }
        2 * limit.period - (room * limit.period / self.current)
    }

    fn store(&self, limit: &Limit, now: Micros) -> (State, Micros) {
        let state = State::Counter { start: self.start, current: self.current, previous: self.previous };
        (state, self.reset_after(limit, now))
    }
}

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Step {
    let mut counts = counts(limit, state, now);
    let whole = limit.capacity() * limit.period;
    let used = counts.used(limit);
    let remaining = whole.saturating_sub(used) / limit.period;
    if cost > limit.capacity() || whole == 0 {
        return denied(remaining, RetryAfter::Never { reset_after: counts.until(limit, now, limit.period) });
    }
    if used + cost * limit.period > whole {
        return denied(remaining, RetryAfter::In(counts.until(limit, now, counts.fits_at(limit, cost))));
    }
    if cost == 0 {
        return allowed(remaining, counts.reset_after(limit, now), 0, None, 0);
    }
    counts.current += cost;
    let (next, ttl) = counts.store(limit, now);
    allowed(remaining - cost, ttl, 0, Some(next), ttl)
}

pub(super) fn charge(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> (State, Micros) {
    let mut counts = counts(limit, state, now);
    let room = (2 * limit.requests * limit.period).saturating_sub(counts.used(limit)) / limit.period;
    counts.current += cost.min(room);
    counts.store(limit, now)
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let mut counts = counts(limit, state, now);
    if counts.current == 0 && counts.previous == 0 {
        return None;
    }
    let from_current = cost.min(counts.current);
    counts.current -= from_current;
    counts.previous = counts.previous.saturating_sub(cost - from_current);
    Some(counts.store(limit, now))
}
