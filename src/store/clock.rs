//! What time it is: by the machine, by a Redis server, or by a test.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::limit::{Micros, SECOND};

/// From how far the machine's clock is off the log says so, in µs.
const TOLD_FROM: u64 = SECOND;

/// What time a store decides by.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's (memory) or the Redis server's.
    #[default]
    System,
    /// The machine's, corrected by the clock of the Redis server that counts.
    Corrected(Arc<Correction>),
    /// Set by hand, in µs since the epoch: for tests and simulations.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The injected time; `None` where the store's own clock is to be read.
    pub fn injected(&self) -> Option<Micros> {
        match self {
            Clock::System | Clock::Corrected(_) => None,
            Clock::Manual(now) => Some(now.load(Ordering::Acquire)),
        }
    }

    /// Now, in µs since the epoch, by this process.
    pub fn now(&self) -> Micros {
        match self {
            Clock::System => machine(),
            Clock::Corrected(correction) => machine().saturating_add_signed(correction.ahead()),
            Clock::Manual(now) => now.load(Ordering::Acquire),
        }
    }
}

fn machine() -> Micros {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

/// How far a store's clock is ahead of the machine's, learnt from replies of the store that say its time.
#[derive(Debug, Default)]
pub struct Correction {
    /// In µs; negative: behind.
    ahead: AtomicI64,
}

impl Correction {
    /// In µs, off by half of the round trip that it was learnt from at most; negative: behind; 0 before the
    /// first reading.
    pub fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// Learns from a reading: the store said that it is `store` between `before` and `after` by the machine.
    /// What was known stays while it may still be right, so that time does not jitter. Only one thread reads
    /// at a time.
    pub fn learn(&self, before: Micros, store: Micros, after: Micros) {
        let (least, most) = (difference(store, after), difference(store, before));
        let known = self.ahead();
        // Or the machine's clock was set back meanwhile.
        if least > most || (least..=most).contains(&known) {
            return;
        }
        let ahead = least + (most - least) / 2;
        self.ahead.store(ahead, Ordering::Relaxed);
        match (known.unsigned_abs() >= TOLD_FROM, ahead.unsigned_abs() >= TOLD_FROM) {
            (false, true) => tracing::warn!(
                redis_ahead_seconds = ahead / 1_000_000,
                "this machine's clock differs from the clock of Redis; weir goes by the clock of Redis; set this machine's clock"
            ),
            (true, false) => tracing::info!("this machine's clock agrees with the clock of Redis again"),
            _ => {}
        }
    }
}

fn difference(one: Micros, other: Micros) -> i64 {
    let signed = |time: Micros| i64::try_from(time).unwrap_or(i64::MAX);
    signed(one) - signed(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::HOUR;

    const NOW: Micros = 1_000_000 * HOUR;

    #[test]
    fn a_reading_is_off_by_half_of_its_round_trip_at_most() {
        for (ahead, sent_after, answered_after) in [(5 * HOUR, 0, 900), (5 * HOUR, 900, 0), (7, 3, 3), (0, 400, 500)] {
            for is_ahead in [true, false] {
                let store = |machine: Micros| if is_ahead { machine + ahead } else { machine - ahead };
                let correction = Correction::default();
                correction.learn(NOW, store(NOW + sent_after), NOW + sent_after + answered_after);
                let expected = if is_ahead { ahead.cast_signed() } else { -ahead.cast_signed() };
                let error = (correction.ahead() - expected).unsigned_abs();
                assert!(2 * error <= sent_after + answered_after, "{error} off");
            }
        }
    }

    #[test]
    fn what_may_be_right_stays_and_what_cannot_be_goes() {
        let correction = Correction::default();
        correction.learn(NOW, NOW + HOUR + 50, NOW + 100);
        assert_eq!(correction.ahead(), HOUR.cast_signed());
        // Slower, and so less exact.
        correction.learn(NOW, NOW + HOUR + 3_000, NOW + 100_000);
        assert_eq!(correction.ahead(), HOUR.cast_signed());
        // The machine's clock was set back while the reply was on its way: this says nothing.
        correction.learn(NOW, NOW + HOUR, NOW - HOUR);
        assert_eq!(correction.ahead(), HOUR.cast_signed());
        // It was set right.
        correction.learn(NOW, NOW + 50, NOW + 100);
        assert_eq!(correction.ahead(), 0);
    }

    #[test]
    fn a_corrected_clock_is_the_machines_with_the_difference() {
        let correction = Arc::<Correction>::default();
        let clock = Clock::Corrected(Arc::clone(&correction));
        let is_machines = |clock: &Clock, ahead: u64| {
            let (before, now, after) = (machine(), clock.now(), machine());
            (before + ahead..=after + ahead).contains(&now)
        };
        assert!(is_machines(&clock, 0) && clock.injected().is_none());
        let now = machine();
        correction.learn(now, now + 3 * HOUR, now);
        assert!(is_machines(&clock, 3 * HOUR));
    }

    #[test]
    fn the_system_clock_is_microseconds_since_the_epoch() {
        assert!((1_767_225_600 * SECOND..1 << 52).contains(&Clock::System.now()));
    }
}
