//! Until when a counter refuses, by its state alone. Only the store in memory asks, for what it must not
//! forget; Lua has no mirror.

use super::{Algorithm, Limit, Micros, Outcome, RetryAfter, State, sliding_log};

impl Limit {
    /// Until when this state refuses a cost of 1, if nothing else comes, in µs since the epoch; 0: it does
    /// not. Copies nothing.
    pub fn refuses_until(&self, state: &State, now: Micros) -> Micros {
        if self.algorithm == Algorithm::SlidingLog {
            return sliding_log::refuses_until(self, state);
        }
        match self.step(Some(state), now, 1, None).outcome {
            Outcome::Denied { retry_after: RetryAfter::In(after), .. } => now + after,
            _ => 0,
        }
    }
}
