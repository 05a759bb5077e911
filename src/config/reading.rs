//! How long the reading of the rules takes that is under way. A network mount that hangs holds the thread that reads, and nothing else:
//! others look at this clock and say so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A reading that takes longer is stalled: a local disk takes milliseconds.
pub const STALLED: Duration = Duration::from_secs(10);

/// Cheap to clone; clones share the clock.
#[derive(Clone, Debug, Default)]
pub struct ReadingClock(Arc<Mutex<Option<Instant>>>);

/// Ends the reading when it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(ReadingClock);

impl ReadingClock {
    pub(super) fn begin(&self) -> UnderWay {
        *self.0.lock() = Some(Instant::now());
        UnderWay(self.clone())
    }

    /// Since when files are being read; `None` between readings.
    pub fn since(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

/// Something to log about stalled readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallNews {
    /// A reading takes long, and lasts so long already.
    Stalled(Duration),
    /// A reading that took long is over; it took so long at least.
    Over(Duration),
}

/// Tells a stalled reading once, and once that it is over.
#[derive(Debug, Default)]
pub struct Stalls {
    logged: Option<(Instant, Instant)>,
}

impl Stalls {
    /// Looks at the reading that began at `since`.
    pub fn look(&mut self, since: Option<Instant>, now: Instant) -> Option<StallNews> {
        let took = |since: Instant| now.saturating_duration_since(since);
        match (self.logged, since) {
            (Some((logged, _)), Some(since)) if logged == since => {
                self.logged = Some((since, now));
                None
            }
            (Some((logged, last)), _) => {
                self.logged = None;
                Some(StallNews::Over(last.saturating_duration_since(logged)))
            }
            (None, Some(since)) if took(since) >= STALLED => {
                self.logged = Some((since, now));
                Some(StallNews::Stalled(took(since)))
            }
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_reading_is_told_once_and_so_is_its_end() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut stalls = Stalls::default();
        assert_eq!(stalls.look(None, at(0)), None);
        assert_eq!(stalls.look(Some(begun), at(9)), None);
        assert_eq!(stalls.look(Some(begun), at(10)), Some(StallNews::Stalled(STALLED)));
        assert_eq!(stalls.look(Some(begun), at(11)), None);
        assert_eq!(stalls.look(None, at(12)), Some(StallNews::Over(Duration::from_secs(11))));
        assert_eq!(stalls.look(None, at(13)), None);
        assert_eq!(stalls.look(Some(at(14)), at(30)), Some(StallNews::Stalled(Duration::from_secs(16))));
        assert_eq!(stalls.look(Some(at(30)), at(31)), Some(StallNews::Over(Duration::from_secs(16))), "another one goes on");
    }

    #[test]
    fn a_reading_is_under_way_until_it_ends() {
        let clock = ReadingClock::default();
        assert_eq!(clock.since(), None);
        let under_way = clock.begin();
        assert!(clock.clone().since().is_some());
        drop(under_way);
        assert_eq!(clock.since(), None);
    }
}
