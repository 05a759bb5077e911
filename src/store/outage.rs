//! What the log says of a store that is away: one line when it is lost, another for each reason that the store itself gives, and one
//! when it is back, however many connections a process has to it. That it cannot be reached is one reason: a server that goes away
//! closes connections, resets and refuses new ones, and leaves calls without an answer, all in one second. Every connection, and the circuit breaker, is a [`Part`] of the same [`Outage`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The most reasons that are told in one outage; reasons are the store's own words, and might differ each time.
const MAX_REASONS: usize = 8;
/// Outages that are logged in a minute: a store that comes and goes must not fill the log.
const MAX_LOGGED: u32 = 6;
const MINUTE: Duration = Duration::from_secs(60);

/// Whether a process has lost the store, as all parts of it see it.
#[derive(Debug, Default)]
pub struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Parts that are without the store.
    away: usize,
    since: Option<Instant>,
    was_connected: bool,
    /// The log has that it cannot be reached.
    is_unreachable: bool,
    /// The kinds of the store's own reasons that the log has.
    reasons: Vec<Arc<str>>,
    /// This outage is in the log.
    is_logged: bool,
    /// When the minute began in which so many outages were logged.
    minute: Option<Instant>,
    logged: u32,
    /// Outages since the last one in the log.
    left_out: u64,
}

/// One connection's view of the store, or the breaker's.
#[derive(Debug)]
pub struct Part {
    outage: Arc<Outage>,
    is_away: bool,
}

/// What changed for the whole process.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Connected,
    Lost { left_out: u64 },
    OtherReason,
    Back { away_ms: u64 },
}

impl Outage {
    /// One more part, which counts as connected until it says otherwise.
    pub fn part(self: &Arc<Outage>) -> Part {
        Part { outage: Arc::clone(self), is_away: false }
    }
}

impl Part {
    /// The store cannot be reached: a connection broke, an attempt to connect failed, or calls get no answer.
    pub fn lost(&mut self, reason: &str) {
        log(self.goes_away(reason, false), reason);
    }

    /// The store answers that it does nothing for anyone, and why.
    pub fn refused(&mut self, reason: &str) {
        log(self.goes_away(reason, true), reason);
    }

    /// This part has the store again, or for the first time.
    pub fn back(&mut self) {
        log(self.comes_back(), "");
    }

    fn goes_away(&mut self, reason: &str, by_store: bool) -> Option<News> {
        let mut state = self.outage.0.lock();
        if !std::mem::replace(&mut self.is_away, true) {
            state.away += 1;
        }
        let is_first = state.since.is_none();
        if is_first {
            state.since = Some(Instant::now());
            state.is_unreachable = false;
            state.reasons.clear();
            state.begin();
        }
        let is_news = if by_store { state.is_new(reason) } else { !std::mem::replace(&mut state.is_unreachable, true) };
        if !is_news || !state.is_logged {
            return None;
        }
        Some(if is_first { News::Lost { left_out: std::mem::take(&mut state.left_out) } } else { News::OtherReason })
    }

    fn comes_back(&mut self) -> Option<News> {
        let mut state = self.outage.0.lock();
        let was_away = std::mem::take(&mut self.is_away);
        state.away -= usize::from(was_away);
        let is_first = !std::mem::replace(&mut state.was_connected, true);
        if state.away > 0 {
            return None;
        }
        match state.since.take() {
            Some(since) => {
                let away_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                state.is_logged.then_some(News::Back { away_ms })
            }
            None => is_first.then_some(News::Connected),
        }
    }
}

/// The kind of a reason: its error code, or what stands before the first colon.
pub(crate) fn kind(reason: &str) -> &str {
    reason.split(':').next().unwrap_or(reason)
}

impl State {
    /// An outage begins, which the log gets unless it has had too many.
    fn begin(&mut self) {
        let now = Instant::now();
        if self.minute.is_none_or(|minute| now >= minute + MINUTE) {
            (self.minute, self.logged) = (Some(now), 0);
        }
        self.is_logged = self.logged < MAX_LOGGED;
        if self.is_logged {
            self.logged += 1;
        } else {
            self.left_out += 1;
        }
    }

    /// Notes a reason of the store.
    fn is_new(&mut self, reason: &str) -> bool {
        let reason = kind(reason);
        let is_new = self.reasons.len() < MAX_REASONS && self.reasons.iter().all(|told| **told != *reason);
        if is_new {
            self.reasons.push(Arc::from(reason));
        }
        is_new
    }
}

impl Drop for Part {
    /// A part that ends has no say any more, and says nothing.
    fn drop(&mut self) {
        let mut state = self.outage.0.lock();
        state.away -= usize::from(self.is_away);
        if state.away == 0 {
            state.since = None;
        }
    }
}

fn log(news: Option<News>, reason: &str) {
    match news {
        None => {}
        Some(News::Connected) => tracing::info!("connected to Redis"),
        Some(News::Lost { left_out: 0 }) => {
            tracing::warn!(reason, "Redis is failing; until it answers again, on_store_failure of each rule decides");
        }
        Some(News::Lost { left_out }) => tracing::warn!(
            reason,
            outages_left_out = left_out,
            "Redis is failing; until it answers again, on_store_failure of each rule decides"
        ),
        Some(News::OtherReason) => tracing::warn!(reason, "Redis is still failing, now for another reason"),
        Some(News::Back { away_ms }) => tracing::info!(away_ms, "Redis answers again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: News = News::Lost { left_out: 0 };
    const CLOSED: &str = "Redis closed the connection";
    const RESET: &str = "Connection reset by peer";
    const REFUSED: &str = "Connection refused";
    const NOAUTH: &str = "NOAUTH: Authentication required.";

    #[test]
    fn one_loss_is_news_once_however_many_connections_see_it() {
        let outage = Arc::new(Outage::default());
        let [mut one, mut other, mut breaker] = [outage.part(), outage.part(), outage.part()];
        assert_eq!([one.comes_back(), other.comes_back()], [Some(News::Connected), None]);
        assert_eq!([one.goes_away(CLOSED, false), other.goes_away(CLOSED, false)], [Some(LOST), None]);
        let attempts = [RESET, REFUSED, REFUSED].map(|reason| one.goes_away(reason, false));
        assert_eq!((attempts, breaker.goes_away("no answer in time", false)), ([None, None, None], None));
        assert_eq!([one.goes_away(NOAUTH, true), other.goes_away(NOAUTH, true)], [Some(News::OtherReason), None]);
        assert_eq!(one.goes_away(REFUSED, false), None, "it was told before");
        assert_eq!([one.comes_back(), breaker.comes_back()], [None, None]);
        assert!(matches!(other.comes_back(), Some(News::Back { .. })));
        assert_eq!(one.comes_back(), None);
        assert_eq!(one.goes_away(NOAUTH, true), Some(LOST), "the next outage is news again");
        assert_eq!(one.goes_away(CLOSED, false), Some(News::OtherReason));
    }

    #[test]
    fn a_store_that_was_never_there_is_told_of_once() {
        let outage = Arc::new(Outage::default());
        let [mut one, mut other] = [outage.part(), outage.part()];
        assert_eq!([one.goes_away(REFUSED, false), other.goes_away(REFUSED, false)], [Some(LOST), None]);
        drop(other);
        assert!(matches!(one.comes_back(), Some(News::Back { .. })));
    }

    #[test]
    fn a_store_that_comes_and_goes_does_not_fill_the_log() {
        let outage = Arc::new(Outage::default());
        let mut part = outage.part();
        part.comes_back();
        let mut lines = 0;
        for number in 0..1_000 {
            lines += u32::from(part.goes_away(&format!("ERR: {number}"), true).is_some());
            lines += u32::from(part.goes_away(&format!("ERR: other {number}"), true).is_some());
            lines += u32::from(part.comes_back().is_some());
        }
        assert_eq!(lines, 2 * MAX_LOGGED);
        outage.0.lock().minute = None;
        assert_eq!(part.goes_away(RESET, false), Some(News::Lost { left_out: 1_000 - u64::from(MAX_LOGGED) }));
    }

    #[test]
    fn reasons_are_bounded() {
        let outage = Arc::new(Outage::default());
        let mut part = outage.part();
        let told = (0..100).filter(|number| part.goes_away(&format!("reason {number}"), true).is_some()).count();
        assert_eq!(told, MAX_REASONS);
    }
}
