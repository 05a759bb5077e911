//! What subjects were allowed, refused and charged: added up by each thread, and brought to the store by one task.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::subjects::Day;

/// Subjects that one thread adds up between two flushes; of any further ones nothing is remembered.
const MAX_PENDING: usize = 50_000;

/// As much as is counted of anything: what Redis can add up to.
pub const MAX_COUNT: u64 = i64::MAX as u64;

/// A day, or a part of one. Its counts stop at [`MAX_COUNT`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    pub allowed: u64,
    pub refused: u64,
    pub cost: u64,
    /// The tier that its last request named, where the rules read it from an entry.
    pub tier: Option<Box<str>>,
}

impl Tally {
    fn count(&mut self, request: &Remembered<'_>) {
        self.allowed += u64::from(request.is_allowed);
        self.refused += u64::from(!request.is_allowed);
        self.spend(request.cost);
        if request.tier.is_some() && self.tier.as_deref() != request.tier {
            self.tier = request.tier.map(Into::into);
        }
    }

    pub fn add(&mut self, other: &Tally) {
        self.allowed = sum(self.allowed, other.allowed);
        self.refused = sum(self.refused, other.refused);
        self.spend(other.cost);
        if other.tier.is_some() {
            self.tier.clone_from(&other.tier);
        }
    }

    fn spend(&mut self, cost: u64) {
        self.cost = sum(self.cost, cost);
    }
}

fn sum(one: u64, other: u64) -> u64 {
    one.saturating_add(other).min(MAX_COUNT)
}

/// What all threads have added up; nothing before [`History::keep`].
#[derive(Default)]
pub struct History {
    is_kept: AtomicBool,
    threads: Mutex<Vec<Arc<Mutex<Pending>>>>,
    dropped: AtomicU64,
}

/// By the name of the subject's history; the day is that of the last request, as flushes are far shorter than days.
type Pending = HashMap<Box<[u8]>, (Day, Tally), RandomState>;

/// One thread's part. Nobody else touches it but for a flush.
pub struct Recorder {
    pending: Arc<Mutex<Pending>>,
    history: Arc<History>,
}

impl History {
    /// From now on, requests are added up, of subjects in domains that say who their subjects are.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    pub fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    pub fn recorder(self: &Arc<History>) -> Recorder {
        let pending = Arc::<Mutex<Pending>>::default();
        self.threads.lock().push(pending.clone());
        Recorder { pending, history: self.clone() }
    }

    /// Takes what was added up since the last time.
    pub fn take(&self) -> Vec<(Box<[u8]>, Day, Tally)> {
        let mut all: HashMap<(Box<[u8]>, Day), Tally, RandomState> = HashMap::default();
        for pending in self.threads.lock().iter() {
            let pending = std::mem::take(&mut *pending.lock());
            for (name, (day, tally)) in pending {
                all.entry((name, day)).or_default().add(&tally);
            }
        }
        all.into_iter().map(|((name, day), tally)| (name, day, tally)).collect()
    }

    /// Requests that were not remembered, because there were too many subjects at once.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// One request, as it is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Remembered<'a> {
    pub domain_prefix: &'a [u8],
    pub subject: &'a [u8],
    pub day: Day,
    pub is_allowed: bool,
    pub cost: u64,
    pub tier: Option<&'a str>,
}

impl Recorder {
    pub fn record(&self, request: &Remembered<'_>) {
        self.add(request, |tally| tally.count(request));
    }

    /// What a request cost that was counted before.
    pub fn record_cost(&self, request: &Remembered<'_>) {
        self.add(request, |tally| tally.spend(request.cost));
    }

    fn add(&self, request: &Remembered<'_>, add: impl FnOnce(&mut Tally)) {
        let mut name: SmallVec<[u8; 128]> = SmallVec::from_slice(request.domain_prefix);
        for part in [b"|{", request.subject, b"}|", NAME.as_bytes()] {
            name.extend_from_slice(part);
        }
        let mut pending = self.pending.lock();
        let has_room = pending.len() < MAX_PENDING;
        match pending.get_mut(name.as_slice()) {
            Some((day, tally)) => {
                *day = request.day;
                add(tally);
            }
            None if has_room => {
                let mut tally = Tally::default();
                add(&mut tally);
                pending.insert(name.as_slice().into(), (request.day, tally));
            }
            None => {
                self.history.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What a history is called ([`crate::rules::key::of_subject`]); stores add the day.
pub const NAME: &str = "history";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::key;

    fn request(subject: &[u8]) -> Remembered<'_> {
        Remembered { domain_prefix: b"w1|api", subject, day: 7, is_allowed: true, cost: 0, tier: None }
    }

    #[test]
    fn threads_add_up_and_are_taken_once() {
        let history = Arc::<History>::default();
        let recorders = [history.recorder(), history.recorder()];
        for (turn, recorder) in (0..10).zip(recorders.iter().cycle()) {
            recorder.record(&Remembered { cost: turn, ..request(b"user=u1") });
        }
        recorders[0].record(&Remembered { is_allowed: false, tier: Some("pro"), ..request(b"user=u2") });
        let mut taken = history.take();
        taken.sort_by(|one, other| one.0.cmp(&other.0));
        let name = |subject: &[u8]| key::of_subject(b"w1|api", subject, NAME).into_boxed_slice();
        let expected = [
            (name(b"user=u1"), 7, Tally { allowed: 10, refused: 0, cost: 45, tier: None }),
            (name(b"user=u2"), 7, Tally { refused: 1, tier: Some("pro".into()), ..Tally::default() }),
        ];
        assert_eq!(taken, expected);
        assert_eq!(history.take(), []);
    }

    #[test]
    fn what_callers_invent_is_bounded() {
        let history = Arc::<History>::default();
        let recorder = history.recorder();
        for number in 0..MAX_PENDING + 5 {
            recorder.record(&request(format!("user=u{number}").as_bytes()));
        }
        assert_eq!((history.take().len(), history.dropped()), (MAX_PENDING, 5));
    }
}
