//! Sliding-window log: the exact count over the last window, as (tick, count) pairs, oldest first. A hit at tick t
//! counts until tick t + period. Hits of one tick share a pair; twice the limit bounds the pairs: what is charged although it is
//! refused goes into debt of one further limit.

use super::{Cost, Limit, Micros, RetryAfter, State, Step, allowed, denied};

/// The largest limit of a sliding-window log: every hit is kept, at 16 bytes a pair, so with debt up to 320 KB.
pub const MAX_LOG_REQUESTS: u64 = 10_000;

/// `count` hits taken in tick `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    pub at: u64,
    pub count: u64,
}

struct Log {
    tick: u64,
    total: u64,
    hits: Vec<Hit>,
}

/// The hits that still count at `now`. Hits from the future (the clock stepped back) are kept, as of now.
fn log(limit: &Limit, state: Option<&State>, now: Micros) -> Log {
    let tick = now / limit.tick;
    let Some(State::Log { total, hits }) = state else {
        return Log { tick, total: 0, hits: Vec::new() };
    };
    let gone = hits.iter().take_while(|hit| hit.at + limit.period <= tick).count();
    let total = total - hits[..gone].iter().map(|hit| hit.count).sum::<u64>();
    let mut hits = hits[gone..].to_vec();
    if hits.last().is_some_and(|hit| hit.at > tick) {
        let kept = hits.iter().take_while(|hit| hit.at < tick).count();
        let count = hits[kept..].iter().map(|hit| hit.count).sum();
        hits.truncate(kept);
        hits.push(Hit { at: tick, count });
    }
    Log { tick, total, hits }
}

impl Log {
    /// From `now` until all counted hits have left.
    fn reset_after(&self, limit: &Limit, now: Micros) -> Micros {
        self.hits.last().map_or(0, |hit| (hit.at + limit.period) * limit.tick - now)
    }

    /// From `now` until `excess` hits have left, oldest first.
    fn until_gone(&self, limit: &Limit, now: Micros, excess: u64) -> Micros {
        let mut gone = 0;
        for hit in &self.hits {
            gone += hit.count;
            if gone >= excess {
                return (hit.at + limit.period) * limit.tick - now;
            }
        }
        self.reset_after(limit, now)
    }

    fn add(&mut self, count: u64) {
        self.total += count;
        match self.hits.last_mut() {
            Some(hit) if hit.at == self.tick => hit.count += count,
            _ => self.hits.push(Hit { at: self.tick, count }),
        }
    }

    fn store(self, limit: &Limit, now: Micros) -> (State, Micros) {
        let ttl = self.reset_after(limit, now).max(1);
        (State::Log { total: self.total, hits: self.hits }, ttl)
    }
}

pub(super) fn step(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Step {
    let mut log = log(limit, state, now);
    let capacity = limit.capacity();
    let remaining = capacity.saturating_sub(log.total);
    if cost > capacity || capacity == 0 {
        return denied(remaining, RetryAfter::Never { reset_after: limit.window });
    }
    if log.total + cost > capacity {
        let excess = log.total + cost - capacity;
        return denied(remaining, RetryAfter::In(log.until_gone(limit, now, excess)));
    }
    if cost == 0 {
        return allowed(remaining, log.reset_after(limit, now), 0, None, 0);
    }
    log.add(cost);
    let (next, ttl) = log.store(limit, now);
    allowed(remaining - cost, ttl, 0, Some(next), ttl)
}

/// When a cost of 1 fits again, of a state without expired hits; 0: it fits now.
pub(super) fn refuses_until(limit: &Limit, state: &State) -> Micros {
    let State::Log { total, hits } = state else { return 0 };
    let capacity = limit.capacity();
    if capacity == 0 || *total < capacity {
        return 0;
    }
    let (mut gone, excess) = (0, total + 1 - capacity);
    let last = hits.iter().find(|hit| {
        gone += hit.count;
        gone >= excess
    });
    last.map_or(0, |hit| (hit.at + limit.period) * limit.tick)
}

pub(super) fn charge(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> (State, Micros) {
    let mut log = log(limit, state, now);
    let most = (2 * limit.requests).max(log.total);
    let count = cost.min(most - log.total);
    if count > 0 {
        log.add(count);
    }
    log.store(limit, now)
}

pub(super) fn refund(limit: &Limit, state: Option<&State>, now: Micros, cost: Cost) -> Option<(State, Micros)> {
    let mut log = log(limit, state, now);
    if log.total == 0 {
        return None;
    }
    let mut left = cost;
    while left > 0 {
        let Some(hit) = log.hits.last_mut() else { break };
        let count = left.min(hit.count);
        hit.count -= count;
        log.total -= count;
        left -= count;
        if hit.count == 0 {
            log.hits.pop();
        }
    }
    Some(log.store(limit, now))
}
