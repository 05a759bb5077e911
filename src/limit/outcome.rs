//! What one limit answers, and what a step leaves behind.

use std::fmt;

use super::{Micros, State};

/// What a step came to. `next` is `None` where nothing is to be stored; `ttl` says for how long it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub outcome: Outcome,
    pub next: Option<State>,
    pub ttl: Micros,
}

/// The answer of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `remaining` requests are left. `reset_after` is when the whole limit is there again if nothing else comes
    /// (a fixed window: its end). `delay` is how long a leaky bucket asks this request to wait.
    Allowed {
        remaining: u64,
        reset_after: Micros,
        delay: Micros,
    },
    Denied {
        remaining: u64,
        retry_after: RetryAfter,
    },
}

impl Outcome {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Outcome::Allowed { .. })
    }

    pub fn remaining(&self) -> u64 {
        match *self {
            Outcome::Allowed { remaining, .. } | Outcome::Denied { remaining, .. } => remaining,
        }
    }

    /// When this outcome changes if nothing else comes, in µs from the decision: allowed, when the whole limit is there again;
    /// refused, when the cost fits; of a cost that never fits, when the window ends.
    pub fn reset_after(&self) -> Micros {
        match *self {
            Outcome::Allowed { reset_after, .. } => reset_after,
            Outcome::Denied { retry_after: RetryAfter::In(after) | RetryAfter::Never { reset_after: after }, .. } => after,
        }
    }

    /// When a refused cost fits, in µs from the decision; `None` for one that is allowed or never fits.
    pub fn retry_after(&self) -> Option<Micros> {
        match *self {
            Outcome::Denied { retry_after: RetryAfter::In(after), .. } => Some(after),
            _ => None,
        }
    }
}

/// When a refused cost would be admitted, if nothing else came in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryAfter {
    /// Refused until then, admitted at it.
    In(Micros),
    /// The cost is more than the limit can ever hold, or the limit is 0. `reset_after` is the time to the end of the window, in
    /// µs: of an aligned one (fixed window, sliding window, calendar quota) what is left of it, else its whole length.
    Never { reset_after: Micros },
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryAfter::In(micros) => write!(f, "{micros} µs"),
            RetryAfter::Never { .. } => f.write_str("never"),
        }
    }
}

pub(super) fn denied(remaining: u64, retry_after: RetryAfter) -> Step {
    Step { outcome: Outcome::Denied { remaining, retry_after }, next: None, ttl: 0 }
}

pub(super) fn allowed(remaining: u64, reset_after: Micros, delay: Micros, next: Option<State>, ttl: Micros) -> Step {
    Step { outcome: Outcome::Allowed { remaining, reset_after, delay }, next, ttl }
}
