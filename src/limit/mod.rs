//! What one limit says about one request.
//!
//! Pure integer arithmetic: no clock, no I/O, no floating point. Each algorithm is a step from a stored
//! state, the time and a cost to an outcome and the state to store. The Redis scripts under
//! `store/redis/lua` mirror these steps one for one; the two change together. Every product stays below
//! 2^53 ([`MAX_EXACT`]), where a `u64` here and a double in Lua are the same number.

mod bucket;
mod decide;
mod outcome;
mod penalty;
mod refusal;
pub mod reservation;
mod sliding_counter;
mod sliding_log;
mod window;

pub use decide::{Charge, Check, Mode, Operation, Resolved, decide};
pub use outcome::{Outcome, RetryAfter, Step};
pub use sliding_log::{Hit, MAX_LOG_REQUESTS};

use outcome::{allowed, denied};

/// Microseconds: since the Unix epoch where it names a time, a length where it names a duration.
pub type Micros = u64;

/// How much a request takes: hits times weights. Saturates, never an error.
pub type Cost = u64;

/// Integers below this are exact both as `u64` and as the doubles that Lua computes with.
pub const MAX_EXACT: u64 = 1 << 53;

pub const SECOND: Micros = 1_000_000;
pub const MINUTE: Micros = 60 * SECOND;
pub const HOUR: Micros = 60 * MINUTE;
pub const DAY: Micros = 24 * HOUR;
pub const WEEK: Micros = 7 * DAY;
/// 30 days, as `envoyproxy/ratelimit` counts a month.
pub const MONTH: Micros = 30 * DAY;
/// 365 days, as `envoyproxy/ratelimit` counts a year.
pub const YEAR: Micros = 365 * DAY;
/// The longest window a limit may have.
pub const MAX_WINDOW: Micros = 10 * YEAR;

/// How a limit counts. The numbers are the ones that the Redis script knows the algorithms by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Algorithm {
    /// Epoch-aligned windows; a rolling window may see twice the limit.
    FixedWindow = 1,
    /// The exact count of the last window, kept as (time, count) pairs.
    SlidingLog = 2,
    /// Two aligned counts, the previous one weighted by how much of it the last window still covers.
    SlidingCounter = 3,
    /// `burst` tokens, refilled continuously at the limit's rate.
    TokenBucket = 4,
    /// A queue drained at the limit's rate; an admission carries the delay until its turn.
    LeakyBucket = 5,
    /// Refuses for a while after a limit of the same rule has refused (`block_for`).
    Penalty = 6,
    /// The day or month of a time zone.
    Calendar = 7,
}

impl Algorithm {
    /// By number.
    pub const ALL: [Algorithm; 7] = [
        Algorithm::FixedWindow,
        Algorithm::SlidingLog,
        Algorithm::SlidingCounter,
        Algorithm::TokenBucket,
        Algorithm::LeakyBucket,
        Algorithm::Penalty,
        Algorithm::Calendar,
    ];
    /// Those that a rate limit can name.
    pub const OF_RATES: [Algorithm; 5] =
        [Algorithm::FixedWindow, Algorithm::SlidingLog, Algorithm::SlidingCounter, Algorithm::TokenBucket, Algorithm::LeakyBucket];

    /// The algorithm that a rate limit names.
    pub fn of_rate(name: &str) -> Option<Algorithm> {
        Algorithm::OF_RATES.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The name that the rule files use, and that stands in counter keys.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::FixedWindow => "fixed_window",
            Algorithm::SlidingLog => "sliding_window_log",
            Algorithm::SlidingCounter => "sliding_window",
            Algorithm::TokenBucket => "token_bucket",
            Algorithm::LeakyBucket => "leaky_bucket",
            Algorithm::Penalty => "block",
            Algorithm::Calendar => "quota",
        }
    }

    pub fn is_bucket(self) -> bool {
        matches!(self, Algorithm::TokenBucket | Algorithm::LeakyBucket)
    }
}

/// What makes two limits share a counter: the algorithm and the window, never the size, so that a changed
/// size keeps what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    pub algorithm: Algorithm,
    pub window: Micros,
}

/// So many requests in a window, counted by an algorithm. Made by [`Limit::new`] alone, which refuses
/// whatever the arithmetic could not carry exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    algorithm: Algorithm,
    requests: u64,
    window: Micros,
    burst: u64,
    /// Of the capacity, what is kept free for others.
    held_back: u64,
    tick: Micros,
    period: u64,
    edges: Edges,
}

/// A calendar period's start and end, and the next one's end, in µs since the epoch; zeros on every other limit.
pub type Edges = [Micros; 3];

/// What a calendar quota counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    Day,
    Month,
}

impl Period {
    /// What a rule's limit of this period is called.
    pub fn name(self) -> &'static str {
        match self {
            Period::Day => "daily",
            Period::Month => "monthly",
        }
    }

    /// How long it nominally is: what stands in counter keys and answers.
    pub fn window(self) -> Micros {
        match self {
            Period::Day => DAY,
            Period::Month => MONTH,
        }
    }
}

/// Why a limit cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("a window must be longer than zero")]
    EmptyWindow,
    #[error("a window of {0} µs is longer than ten years, the longest allowed")]
    LongWindow(Micros),
    #[error("a window above {} must be a whole number of {}", if *.0 == 1_000 { "60 s" } else { "a day" }, if *.0 == 1_000 { "milliseconds" } else { "seconds" })]
    UnevenWindow(Micros),
    #[error("{requests} is more than this algorithm and window can count exactly; the largest is {largest}")]
    TooLarge { requests: u64, largest: u64 },
    #[error("a burst of {burst} is more than this window can count exactly; the largest is {largest}")]
    BurstTooLarge { burst: u64, largest: u64 },
    #[error("a sliding_window_log keeps every hit and counts to {MAX_LOG_REQUESTS} at most; use sliding_window for {0}")]
    LogTooLarge(u64),
    #[error("only token_bucket and leaky_bucket have a burst")]
    BurstWithoutBucket,
    #[error("a bucket of 0 requests never refills; leave the burst out, or use `deny: true`")]
    NeverRefills,
}

impl Limit {
    /// `burst` is a bucket's capacity, `requests` when absent.
    ///
    /// # Errors
    /// Refuses a window of zero or above ten years, a window that is no whole number of its ticks, and sizes whose
    /// arithmetic would reach 2^53, naming the largest that does not.
    pub fn new(algorithm: Algorithm, requests: u64, window: Micros, burst: Option<u64>) -> Result<Limit, LimitError> {
        if window == 0 {
            return Err(LimitError::EmptyWindow);
        }
        if window > MAX_WINDOW {
            return Err(LimitError::LongWindow(window));
        }
        if burst.is_some() && !algorithm.is_bucket() {
            return Err(LimitError::BurstWithoutBucket);
        }
        let tick = tick(window);
        if !window.is_multiple_of(tick) {
            return Err(LimitError::UnevenWindow(tick));
        }
        let period = window / tick;
        let burst = burst.unwrap_or(requests);
        let limit = Limit { algorithm, requests, window, burst, held_back: 0, tick, period, edges: [0; 3] };
        let largest = limit.largest();
        match algorithm {
            Algorithm::SlidingLog if requests > MAX_LOG_REQUESTS => return Err(LimitError::LogTooLarge(requests)),
            _ if requests > largest => return Err(LimitError::TooLarge { requests, largest }),
            _ if requests == 0 && burst > 0 => return Err(LimitError::NeverRefills),
            _ => {}
        }
        let largest = limit.largest_burst();
        if burst > largest {
            return Err(LimitError::BurstTooLarge { burst, largest });
        }
        Ok(limit)
    }

    /// A block of `block_for` µs after a refusal.
    ///
    /// # Errors
    /// As [`Limit::new`]: zero, or longer than ten years.
    pub fn penalty(block_for: Micros) -> Result<Limit, LimitError> {
        match block_for {
            0 => Err(LimitError::EmptyWindow),
            1..=MAX_WINDOW => {
                let (algorithm, window, period) = (Algorithm::Penalty, block_for, block_for);
                Ok(Limit { algorithm, requests: 0, window, burst: 0, held_back: 0, tick: 1, period, edges: [0; 3] })
            }
            _ => Err(LimitError::LongWindow(block_for)),
        }
    }

    /// So many requests in a day or month of the calendar. It says nothing until it knows its edges ([`Limit::on`]).
    ///
    /// # Errors
    /// As [`Limit::new`]: a number that is too large to count exactly.
    pub fn quota(period: Period, requests: u64) -> Result<Limit, LimitError> {
        let (algorithm, window) = (Algorithm::Calendar, period.window());
        let limit = Limit { algorithm, requests, window, burst: requests, held_back: 0, tick: 1, period: window, edges: [0; 3] };
        match limit.largest() {
            largest if requests > largest => Err(LimitError::TooLarge { requests, largest }),
            _ => Ok(limit),
        }
    }

    /// A quota in the period that these edges bound, or the one after it.
    pub fn on(&self, edges: Edges) -> Limit {
        Limit { edges, ..*self }
    }

    /// The edges of a calendar quota.
    pub fn edges(&self) -> Edges {
        self.edges
    }

    /// The period of a calendar quota.
    pub fn calendar(&self) -> Option<Period> {
        match (self.algorithm, self.window) {
            (Algorithm::Calendar, DAY) => Some(Period::Day),
            (Algorithm::Calendar, _) => Some(Period::Month),
            _ => None,
        }
    }

    /// The largest number of requests for which no product reaches 2^53: a weighted count may hold twice
    /// the largest limit in each of two windows, plus a cost; a debt burst + requests, plus a cost.
    fn largest(&self) -> u64 {
        match self.algorithm {
            Algorithm::FixedWindow | Algorithm::Penalty | Algorithm::Calendar => MAX_EXACT / 8,
            Algorithm::SlidingLog => MAX_LOG_REQUESTS,
            Algorithm::SlidingCounter | Algorithm::TokenBucket | Algorithm::LeakyBucket => MAX_EXACT / 8 / self.period - 1,
        }
    }

    /// The largest burst: no product reaches 2^53, nor does the time at which an empty bucket is full again
    /// (it fills within 2^51 µs, 71 years).
    fn largest_burst(&self) -> u64 {
        self.largest().min(self.requests.saturating_mul(MAX_EXACT / 4 / self.window))
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Requests allowed in a window; a bucket's refill in that time.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    pub fn window(&self) -> Micros {
        self.window
    }

    /// A bucket's capacity in requests; the number of requests for every other algorithm.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The unit of time that this limit's state is kept in: 1 µs up to a window of 60 s, 1 ms up to a day, 1 s above.
    pub fn tick(&self) -> Micros {
        self.tick
    }

    /// The window in ticks.
    pub fn period(&self) -> u64 {
        self.period
    }

    pub fn shape(&self) -> Shape {
        Shape { algorithm: self.algorithm, window: self.window }
    }

    /// The largest cost that can ever be admitted: the burst of a bucket, the requests of any other limit, less what is held back.
    pub fn capacity(&self) -> u64 {
        self.whole() - self.held_back
    }

    fn whole(&self) -> u64 {
        if self.algorithm.is_bucket() { self.burst } else { self.requests }
    }

    /// Whether its windows begin at fixed times, of the epoch or of a calendar, rather than with its requests.
    pub fn has_aligned_windows(&self) -> bool {
        matches!(self.algorithm, Algorithm::FixedWindow | Algorithm::SlidingCounter | Algorithm::Calendar)
    }

    /// Of the capacity, what is kept free for others.
    pub fn held_back(&self) -> u64 {
        self.held_back
    }

    /// No state of this limit matters for longer, in µs.
    pub fn longest_life(&self) -> Micros {
        match self.algorithm {
            Algorithm::FixedWindow | Algorithm::SlidingLog | Algorithm::Penalty => self.window,
            Algorithm::SlidingCounter => 2 * self.window,
            // A day has up to 25 hours, a month up to 31 days.
            Algorithm::Calendar => self.window + 2 * DAY,
            // A debt of the capacity and one period's refill.
            Algorithm::TokenBucket | Algorithm::LeakyBucket => {
                self.window.saturating_mul(self.burst.saturating_add(self.requests).div_ceil(self.requests.max(1)) + 1)
            }
        }
    }

    /// The same limit, `numerator / denominator` as large: rounded down, at least 1 where it was at least 1.
    ///
    /// # Panics
    /// When `denominator` is 0.
    pub fn scaled(&self, numerator: u64, denominator: u64) -> Limit {
        let scale = |n: u64| {
            let scaled = u128::from(n) * u128::from(numerator) / u128::from(denominator);
            u64::try_from(scaled).unwrap_or(u64::MAX).clamp(n.min(1), self.largest())
        };
        let scaled = Limit { requests: scale(self.requests), ..*self };
        let scaled = Limit { burst: scale(self.burst).min(scaled.largest_burst()), ..scaled };
        scaled.holding_back(scale(self.held_back))
    }

    /// The same limit with so much of its capacity kept free for others, of which at least 1 is left where there was 1. It admits
    /// less; what is counted, given back and owed goes by the whole limit.
    pub fn holding_back(&self, kept: u64) -> Limit {
        Limit { held_back: kept.min(self.whole().saturating_sub(1)), ..*self }
    }

    /// The same limit with `share / whole` of it, rounded down, kept free for others.
    ///
    /// # Panics
    /// When `whole` is 0.
    pub fn reserved(&self, share: u32, whole: u32) -> Limit {
        let kept = u128::from(self.whole()) * u128::from(share) / u128::from(whole);
        self.holding_back(u64::try_from(kept).unwrap_or(u64::MAX))
    }

    /// What a take of `cost` at `now` would do to `state`. Cost 0 is a look: over when more than the limit is used or the
    /// limit is 0, and nothing to store. `max_delay` bounds what a leaky bucket's admission may wait.
    pub fn step(&self, state: Option<&State>, now: Micros, cost: Cost, max_delay: Option<Micros>) -> Step {
        match self.algorithm {
            Algorithm::FixedWindow | Algorithm::Calendar => window::step(self, state, now, cost),
            Algorithm::SlidingLog => sliding_log::step(self, state, now, cost),
            Algorithm::SlidingCounter => sliding_counter::step(self, state, now, cost),
            Algorithm::TokenBucket => bucket::step(self, state, now, cost, None, false),
            Algorithm::LeakyBucket => bucket::step(self, state, now, cost, max_delay, true),
            Algorithm::Penalty => penalty::step(self, state, now),
        }
    }

    /// Counts `cost` although it was refused, into debt up to one further limit (a bucket: one window's refill). The
    /// outcome is the refusal: remaining 0, and the time at which a cost of 1 is admitted.
    pub fn charge(&self, state: Option<&State>, now: Micros, cost: Cost, max_delay: Option<Micros>) -> Step {
        if self.capacity() == 0 {
            return self.step(state, now, cost, max_delay);
        }
        let (next, ttl) = match self.algorithm {
            Algorithm::FixedWindow | Algorithm::Calendar => window::charge(self, state, now, cost),
            Algorithm::SlidingLog => sliding_log::charge(self, state, now, cost),
            Algorithm::SlidingCounter => sliding_counter::charge(self, state, now, cost),
            Algorithm::TokenBucket | Algorithm::LeakyBucket => bucket::charge(self, state, now, cost),
            Algorithm::Penalty => return self.step(state, now, 0, None),
        };
        let retry_after = match self.step(Some(&next), now, 1, max_delay).outcome {
            Outcome::Denied { retry_after, .. } => retry_after,
            Outcome::Allowed { .. } => RetryAfter::In(0),
        };
        Step { outcome: Outcome::Denied { remaining: 0, retry_after }, next: Some(next), ttl }
    }

    /// Gives `cost` back, never below empty. Always allowed; absent state stays absent.
    pub fn refund(&self, state: Option<&State>, now: Micros, cost: Cost) -> Step {
        let refunded = match self.algorithm {
            Algorithm::FixedWindow | Algorithm::Calendar => window::refund(self, state, now, cost),
            Algorithm::SlidingLog => sliding_log::refund(self, state, now, cost),
            Algorithm::SlidingCounter => sliding_counter::refund(self, state, now, cost),
            Algorithm::TokenBucket | Algorithm::LeakyBucket => bucket::refund(self, state, now, cost),
            Algorithm::Penalty => None,
        };
        let after = refunded.as_ref().map(|(next, _)| next).or(state);
        let outcome = match self.step(after, now, 0, None).outcome {
            denied @ Outcome::Denied { .. } => Outcome::Allowed { remaining: 0, reset_after: denied.reset_after(), delay: 0 },
            allowed => allowed,
        };
        match refunded {
            Some((next, ttl)) => Step { outcome, next: Some(next), ttl },
            None => Step { outcome, next: None, ttl: 0 },
        }
    }
}

/// 1 µs up to a window of 60 s, 1 ms up to a day, 1 s above: by the window, never by the size, which a reload may change.
fn tick(window: Micros) -> Micros {
    match window {
        0..=MINUTE => 1,
        _ if window <= DAY => 1_000,
        _ => SECOND,
    }
}

/// What a counter remembers between requests. Times are in the limit's ticks, except where they say µs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// `start` in µs.
    Window { start: Micros, count: u64 },
    /// `hits` oldest first, `total` their sum.
    Log { total: u64, hits: Vec<Hit> },
    /// `start` is the current window's first tick.
    Counter { start: u64, current: u64, previous: u64 },
    /// `debt` in units of one token over the period, as of tick `at`.
    Meter { at: u64, debt: u64 },
    /// `until` in µs.
    Blocked { until: Micros },
}
