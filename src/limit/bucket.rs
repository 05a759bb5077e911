//! Token bucket and leaky bucket: one meter. Its debt is what has been taken and not yet refilled (or drained), in
//! units of one token over the period, so that every rate is exact: each tick pays back `requests` units, a token
//! costs `period` units. A token bucket admits at once; a leaky one says how long the queue ahead takes to drain.

use super::{Cost, Limit, Micros, Outcome, RetryAfter, State, Step, denied};

struct Meter {
    at: u64,
    debt: u64,
}

/// The debt as of `now`. State from the future (the clock stepped back) is kept, as of now.
fn meter(limit: &Limit, state: Option<&State>, now: Micros) -> Meter {
    let tick = now / limit.tick;
    let Some(&State::Meter { at, debt }) = state else { return Meter { at: tick, debt: 0 } };
    let debt = debt.min(most_debt(limit));
    let elapsed = tick.saturating_sub(at);
    let debt = if elapsed >= drain_ticks(limit, debt) { 0 } else { debt - elapsed * limit.requests };
    Meter { at: tick, debt }
}

/// The most that is owed: the whole bucket and one further refill. A larger bucket of before may have left more; what
/// is above is forgotten, so that the time to pay it back stays exact. A bucket of 0 requests owes nothing.
fn most_debt(limit: &Limit) -> u64 {
    (limit.burst + limit.requests) * limit.period
}

/// Ticks until `debt` units are paid back.
fn drain_ticks(limit: &Limit, debt: u64) -> u64 {
    if debt == 0 { 0 } else { debt.div_ceil(limit.requests) }
}

impl Meter {
    /// From `now` to the first µs of the tick in which `debt` units are paid back.
    fn until_paid(&self, limit: &Limit, now: Micros, debt: u64) -> Micros {
        match debt {
            0 => 0,
            debt => (self.at + drain_ticks(limit, debt)) * limit.tick - now,
        }
    }

    fn remaining(&self, limit: &Limit) -> u64 {
        (limit.capacity() * limit.period).saturating_sub(self.debt) / limit.period
    }

    fn store(&self, limit: &Limit, now: Micros) -> (State, Micros) {
        (State::Meter { at: self.at, debt: self.debt }, self.until_paid(limit, now, self.debt).max(1))
    }
}

/// `leaky` says whether an admission carries the delay until its turn; `max_delay` (µs) refuses one that would wait longer.
pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost, max_delay: Option<Micros>, leaky: bool) -> Step {
    let mut meter = meter(limit, state, now);
    let remaining = meter.remaining(limit);
    if cost > limit.capacity() || limit.capacity() == 0 {
        return denied(remaining, RetryAfter::Never { reset_after: limit.window });
    }
    // The debt at which this cost fits: the bucket holds it, and the queue ahead drains in time.
    let mut fits_at = (limit.capacity() - cost) * limit.period;
    if let Some(max_delay) = max_delay.filter(|_| cost > 0) {
        fits_at = fits_at.min((max_delay / limit.tick).min(limit.period * limit.capacity()).saturating_mul(limit.requests));
    }
    if meter.debt > fits_at {
        return denied(remaining, RetryAfter::In(meter.until_paid(limit, now, meter.debt - fits_at)));
    }
    let delay = if leaky && cost > 0 { meter.until_paid(limit, now, meter.debt) } else { 0 };
    if cost == 0 {
        let reset_after = meter.until_paid(limit, now, meter.debt);
        return Step { outcome: Outcome::Allowed { remaining, reset_after, delay }, next: None, ttl: 0 };
    }
    meter.debt += cost * limit.period;
    let (next, ttl) = meter.store(limit, now);
    Step { outcome: Outcome::Allowed { remaining: remaining - cost, reset_after: ttl, delay }, next: Some(next), ttl }
}

pub(super) fn charge(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> (State, Micros) {
    let mut meter = meter(limit, state, now);
    let most = most_debt(limit);
    let room = most - meter.debt;
    meter.debt = if cost >= room.div_ceil(limit.period) { most } else { meter.debt + cost * limit.period };
    meter.store(limit, now)
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let mut meter = meter(limit, state, now);
    if meter.debt == 0 {
        return None;
    }
    meter.debt = if cost >= meter.debt.div_ceil(limit.period) { 0 } else { meter.debt - cost * limit.period };
    Some(meter.store(limit, now))
}
