//! Calls for domains that no rules are loaded for: counted each time, and logged at most once a minute, with the name of the domain.
//! A call for a domain of the rules never gets here.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// At least so long is between two lines of the log.
const EVERY: Duration = Duration::from_secs(60);
/// The most bytes of a domain's name that a line shows, once it is escaped: callers invent names.
const MAX_SHOWN: usize = 64;
/// What stands for the rest of a longer name.
const CUT: &str = "...";

/// Shared by all threads.
#[derive(Debug)]
pub(super) struct UnknownDomains {
    start: Instant,
    /// When the next line may be logged, in ms after the start.
    next: AtomicU64,
    /// Calls since the last line.
    calls: AtomicU64,
}

impl Default for UnknownDomains {
    fn default() -> UnknownDomains {
        UnknownDomains { start: Instant::now(), next: AtomicU64::new(0), calls: AtomicU64::new(0) }
    }
}

impl UnknownDomains {
    /// Logs a call for this domain, unless there was a line within the last minute.
    pub(super) fn called(&self, domain: &[u8]) {
        if let Some(calls) = self.due(self.start.elapsed()) {
            let domain = shown(domain);
            tracing::warn!(domain, calls, "calls name a domain that no rules are loaded for; weir allows them all");
        }
    }

    /// Counts a call so long after the start. If a line is due, the calls since the last one.
    fn due(&self, elapsed: Duration) -> Option<u64> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now, next) = (millis(elapsed), self.next.load(Ordering::Relaxed));
        let is_due =
            now >= next && self.next.compare_exchange(next, now + millis(EVERY), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        is_due.then(|| self.calls.swap(0, Ordering::Relaxed))
    }
}

/// A name as a log may show it, in [`MAX_SHOWN`] bytes at most: printable ASCII as it is, any other byte as `%` and two digits, as in
/// an address. No backslash and no quote, which the formats of the log would escape once more.
fn shown(domain: &[u8]) -> String {
    let (mut shown, mut with_room) = (String::new(), 0);
    for &byte in domain {
        match byte {
            b'"' | b'\\' | b'%' => drop(write!(shown, "%{byte:02X}")),
            b' '..=b'~' => shown.push(char::from(byte)),
            _ => drop(write!(shown, "%{byte:02X}")),
        }
        if shown.len() > MAX_SHOWN {
            shown.truncate(with_room);
            shown.push_str(CUT);
            break;
        }
        if shown.len() + CUT.len() <= MAX_SHOWN {
            with_room = shown.len();
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_tells_the_calls_since_the_last_one() {
        let unknown = UnknownDomains::default();
        let calls =
            [(0, Some(1)), (1, None), (59_999, None), (60_000, Some(3)), (60_001, None), (600_000, Some(2)), (600_000, None)];
        for (millis, expected) in calls {
            assert_eq!(unknown.due(Duration::from_millis(millis)), expected, "{millis} ms after the start");
        }
    }

    #[test]
    fn a_name_is_shown_escaped_and_cut() {
        assert_eq!(shown(b"edge proxy/v1"), "edge proxy/v1");
        assert_eq!(shown(b"a\n\"\\%\x1b[31m\xff\0"), "a%0A%22%5C%25%1B[31m%FF%00");
        assert_eq!(shown(&[b'x'; 64]), "x".repeat(64));
        assert_eq!(shown(&[b'x'; 65]), "x".repeat(61) + "...");
        assert_eq!(shown(&[0xff; 100]), "%FF".repeat(20) + "...");
        assert_eq!(shown(&[&[b'x'; 61][..], &[0xff]].concat()), "x".repeat(61) + "%FF");
    }
}
