//! A store behind a circuit breaker. While the breaker is closed a call costs a look at the clock and a count of its own thread;
//! while it is open calls are refused at once, and a task of its own probes until the store answers again.
//!
//! A failure is a store that refuses everybody, which opens the breaker at once, one that cannot be reached, or one that had
//! (nearly) the whole store timeout and did not answer. A caller that waits for less says nothing about the store when it runs out
//! of patience, nor does one who waited in our own queue while others were answered.

use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::breaker::{Breaker, JITTER};
use super::outage::{Outage, Part};
use super::reservations::{Gated, Kept, Passed, ReservationStore};
use super::{Group, Outcomes, Store, StoreError, Wait};
use crate::limit::Micros;
use crate::rules::key::Key;

/// Successes are brought to the breaker this often, in µs, so that it knows in which part of its second they came.
const TALLY_INTERVAL: Micros = 100_000;
/// A probe that takes longer than this has failed, whatever it waits for.
const LONGEST_PROBE: Duration = Duration::from_secs(1);
/// What a call may lose of its store timeout before it gets here, as a divisor: it still had the whole of it.
const QUEUEING_SHARE: u32 = 8;

/// Asks a store whether it would answer: by counting something, as a request does.
pub trait Probe: Send + Sync {
    /// Without a connection, tries to make one.
    ///
    /// # Errors
    /// When there is no answer within the store's own timeout.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// One thread's way to the store.
pub struct Guard<S> {
    store: Arc<S>,
    shared: Arc<SharedBreaker>,
    tally: Arc<Tally>,
}

/// The breaker of all threads.
pub struct SharedBreaker {
    is_open: AtomicBool,
    /// When successes are next brought to the breaker, in µs after `start`.
    next_tally: AtomicU64,
    start: Instant,
    /// A timeout after at least this long is the store's failure.
    patience: Duration,
    counted: Mutex<Counted>,
    /// Of the last failure that was counted. Kept, so that no other reason has its address.
    last_reason: Mutex<Option<Arc<str>>>,
    /// What the last change of state made it.
    open: watch::Sender<bool>,
    /// What the breaker tells the log.
    part: Mutex<Part>,
}

#[derive(Default)]
struct Counted {
    breaker: Breaker,
    tallies: Vec<Arc<Tally>>,
    probes: Vec<ProbeOne>,
}

/// `None` when the store is gone.
type ProbeOne = Box<dyn Fn() -> Option<Probing> + Send>;
type Probing = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// Calls that a thread saw answered since they were last counted. Alone on its cache line: threads do not wait for each other.
#[derive(Default)]
#[repr(align(128))]
struct Tally(AtomicU64);

impl<S: Store + Probe + 'static> Guard<S> {
    pub fn new(store: S, shared: &Arc<SharedBreaker>) -> Guard<S> {
        let (store, tally) = (Arc::new(store), Arc::new(Tally::default()));
        let probed = Arc::downgrade(&store);
        let mut counted = shared.counted.lock();
        counted.tallies.push(Arc::clone(&tally));
        counted.probes.push(Box::new(move || {
            let store = Weak::upgrade(&probed)?;
            Some(Box::pin(async move { store.probe().await }))
        }));
        drop(counted);
        Guard { store, shared: Arc::clone(shared), tally }
    }
}

impl<S> Guard<S> {
    /// The guarded store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Says what the store answered, for the breaker to count.
    fn heard<T>(&self, answer: &Result<T, StoreError>, wait: Wait) {
        match answer {
            Ok(_) | Err(StoreError::Foreign(_)) => self.shared.succeeded(wait.asked, &self.tally),
            Err(StoreError::Timeout) if wait.deadline.saturating_duration_since(wait.asked) < self.shared.patience => {}
            Err(error @ (StoreError::Timeout | StoreError::Unavailable(_))) => self.shared.failed(error),
            Err(error @ StoreError::Refused(_)) => self.shared.refused(error),
            Err(StoreError::Busy | StoreError::Open | StoreError::TooLarge(_) | StoreError::Full) => {}
        }
    }
}

impl<S: Store + Probe + 'static> Store for Guard<S> {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        if self.shared.is_open() {
            return Err(StoreError::Open);
        }
        let answer = self.store.apply(group, wait).await;
        self.heard(&answer, wait);
        answer
    }
}

impl<S: ReservationStore + Probe + 'static> ReservationStore for Guard<S> {
    async fn pass(&self, gated: &Gated, wait: Wait) -> Result<Passed, StoreError> {
        if self.shared.is_open() {
            return Err(StoreError::Open);
        }
        let answer = self.store.pass(gated, wait).await;
        self.heard(&answer, wait);
        answer
    }

    async fn kept(&self, key: &Key, wait: Wait) -> Result<Option<Kept>, StoreError> {
        if self.shared.is_open() {
            return Err(StoreError::Open);
        }
        let answer = self.store.kept(key, wait).await;
        self.heard(&answer, wait);
        answer
    }
}

impl SharedBreaker {
    /// Closed. `store_timeout` is how long a store may take to answer a caller that waits for it.
    pub fn new(store_timeout: Duration) -> SharedBreaker {
        SharedBreaker {
            is_open: AtomicBool::new(false),
            next_tally: AtomicU64::new(TALLY_INTERVAL),
            start: Instant::now(),
            patience: store_timeout - store_timeout / QUEUEING_SHARE,
            counted: Mutex::default(),
            last_reason: Mutex::default(),
            open: watch::Sender::new(false),
            part: Mutex::new(Arc::<Outage>::default().part()),
        }
    }

    /// Tells the log of the store's failures together with everything else that notices them.
    pub fn within(mut self, outage: &Arc<Outage>) -> SharedBreaker {
        *self.part.get_mut() = outage.part();
        self
    }

    /// The store is failing: calls are refused.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Sees every change of [`SharedBreaker::is_open`].
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Probes whenever the breaker is open. To be spawned once; ends never.
    ///
    /// All threads' connections are probed together, so that all of them are there again when calls are; one good answer is
    /// enough, so that one thread's trouble is not everyone's.
    pub async fn probe_while_open(self: Arc<Self>) {
        let mut open = self.open.subscribe();
        while open.wait_for(|open| *open).await.is_ok() {
            let pause = self.counted.lock().breaker.pause(random_below(JITTER));
            sleep(Duration::from_micros(pause)).await;
            let probes = self.live_probes().into_iter().map(|probe| timeout(LONGEST_PROBE, probe));
            let answers = join_all(probes.map(|probe| async { probe.await.unwrap_or(Err(StoreError::Timeout)) })).await;
            self.probed(&answers);
        }
    }

    fn live_probes(&self) -> Vec<Probing> {
        let mut begun = Vec::new();
        self.counted.lock().probes.retain(|probe| {
            let future = probe();
            let is_live = future.is_some();
            begun.extend(future);
            is_live
        });
        begun
    }

    fn since_start(&self, now: Instant) -> Micros {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    fn succeeded(&self, asked: Instant, tally: &Tally) {
        tally.0.fetch_add(1, Ordering::Relaxed);
        let now = self.since_start(asked);
        if now >= self.next_tally.load(Ordering::Relaxed) {
            self.next_tally.store(now + TALLY_INTERVAL, Ordering::Relaxed);
            self.counted.lock().tally(now);
        }
    }

    /// Calls that one event failed, such as the end of their connection, share its reason and count as one.
    fn failed(&self, error: &StoreError) {
        if let StoreError::Unavailable(reason) = error {
            let mut last = self.last_reason.lock();
            if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, reason)) {
                return;
            }
            *last = Some(Arc::clone(reason));
        }
        self.count_failure(error, Breaker::failed);
    }

    /// The store said that it refuses everybody, whoever of them was told so.
    pub fn refused(&self, error: &StoreError) {
        self.count_failure(error, Breaker::refused);
    }

    fn count_failure(&self, error: &StoreError, count: fn(&mut Breaker, Micros) -> bool) {
        let now = self.since_start(Instant::now());
        let mut counted = self.counted.lock();
        counted.tally(now);
        if count(&mut counted.breaker, now) {
            self.is_open.store(true, Ordering::Relaxed);
            self.open.send_replace(true);
            drop(counted);
            match error {
                StoreError::Refused(reason) => self.part.lock().refused(reason),
                StoreError::Unavailable(reason) => self.part.lock().lost(reason),
                error => self.part.lock().lost(&error.to_string()),
            }
        }
    }

    fn probed(&self, answers: &[Result<(), StoreError>]) {
        let now = self.since_start(Instant::now());
        let is_good = answers.iter().any(Result::is_ok);
        let mut counted = self.counted.lock();
        let closed = counted.breaker.probed(now, is_good);
        if let Some(refusal) = answers.iter().find_map(refusal).filter(|_| !is_good) {
            self.part.lock().refused(refusal);
        }
        if closed.is_some() {
            // What was answered before it opened is no news.
            counted.take_tallies();
            self.is_open.store(false, Ordering::Relaxed);
            self.open.send_replace(false);
            drop(counted);
            self.part.lock().back();
        }
    }
}

impl Counted {
    fn tally(&mut self, now: Micros) {
        let answered = self.take_tallies();
        self.breaker.succeeded(now, answered);
    }

    fn take_tallies(&mut self) -> u64 {
        // A tally that only this list holds belonged to a thread that has ended.
        self.tallies.retain(|tally| Arc::strong_count(tally) > 1 || tally.0.load(Ordering::Relaxed) > 0);
        self.tallies.iter().map(|tally| tally.0.swap(0, Ordering::Relaxed)).sum()
    }
}

fn refusal(answer: &Result<(), StoreError>) -> Option<&str> {
    match answer {
        Err(StoreError::Refused(reason)) => Some(reason),
        _ => None,
    }
}

/// Not for secrets: for replicas not to probe at one instant.
fn random_below(bound: u64) -> u64 {
    foldhash::fast::RandomState::default().hash_one(()) % bound
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE_TIMEOUT: Duration = Duration::from_millis(10);

    /// Answers as it is told, and counts what it is asked.
    #[derive(Default)]
    struct Told {
        answer: Mutex<Option<StoreError>>,
        calls: AtomicU64,
        probes: AtomicU64,
    }

    impl Told {
        fn say(&self, answer: Option<StoreError>) {
            *self.answer.lock() = answer;
        }

        /// Each an event of its own.
        fn error(&self) -> Option<StoreError> {
            self.answer.lock().clone().map(|error| match error {
                StoreError::Unavailable(reason) => StoreError::Unavailable(Arc::from(&*reason)),
                error => error,
            })
        }
    }

    impl Store for Told {
        async fn apply(&self, _: &Group, _: Wait) -> Result<Outcomes, StoreError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.error().map_or(Ok(Outcomes::new()), Err)
        }
    }

    impl Probe for Told {
        async fn probe(&self) -> Result<(), StoreError> {
            self.probes.fetch_add(1, Ordering::Relaxed);
            self.error().map_or(Ok(()), Err)
        }
    }

    fn guard() -> (Guard<Told>, Arc<SharedBreaker>) {
        let shared = Arc::new(SharedBreaker::new(STORE_TIMEOUT));
        (Guard::new(Told::default(), &shared), shared)
    }

    fn away() -> StoreError {
        StoreError::Unavailable("refused".into())
    }

    async fn ask(guard: &Guard<Told>, patience: Duration) -> Result<Outcomes, StoreError> {
        guard.apply(&Group::default(), Wait::of(patience)).await
    }

    /// Asks ten times while the store answers so; whether the breaker is open then.
    async fn opens(answer: StoreError, patience: Duration) -> bool {
        let (guard, shared) = guard();
        guard.store().say(Some(answer));
        for _ in 0..10 {
            assert!(ask(&guard, patience).await.is_err());
        }
        shared.is_open()
    }

    #[test]
    fn calls_that_one_lost_connection_failed_count_once() {
        let (guard, shared) = guard();
        let error = away();
        (0..100).for_each(|_| shared.failed(&error));
        assert!(!shared.is_open());
        (0..4).for_each(|_| shared.failed(&away()));
        assert!(shared.is_open());
        drop(guard);
    }

    #[tokio::test]
    async fn a_store_that_fails_is_not_asked_again() {
        let (guard, shared) = guard();
        guard.store().say(Some(away()));
        for _ in 0..5 {
            assert_eq!(ask(&guard, STORE_TIMEOUT).await, Err(away()));
        }
        assert!(shared.is_open());
        assert_eq!(ask(&guard, STORE_TIMEOUT).await, Err(StoreError::Open));
        assert_eq!(guard.store().calls.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn only_the_stores_own_failures_open_it() {
        assert!(opens(StoreError::Timeout, 100 * STORE_TIMEOUT).await);
        assert!(!opens(StoreError::Timeout, STORE_TIMEOUT / 2).await, "the caller had less patience");
        assert!(opens(away(), STORE_TIMEOUT / 2).await);
        assert!(!opens(StoreError::Foreign("a list".into()), STORE_TIMEOUT).await);
        assert!(!opens(StoreError::Busy, STORE_TIMEOUT).await, "it answered others");
        assert!(!opens(StoreError::TooLarge(100_000), STORE_TIMEOUT).await, "what a caller asks for is not the store's failure");
    }

    #[tokio::test]
    async fn one_refusal_opens_it() {
        let (guard, shared) = guard();
        guard.store().say(Some(StoreError::Refused("READONLY".into())));
        assert!(ask(&guard, STORE_TIMEOUT / 2).await.is_err());
        assert!(shared.is_open());
    }

    #[tokio::test]
    async fn answers_in_between_keep_it_closed() {
        let (guard, shared) = guard();
        for call in 0..1_000 {
            guard.store().say((call % 3 == 0).then(away));
            assert_eq!(ask(&guard, STORE_TIMEOUT).await.is_err(), call % 3 == 0);
        }
        assert!(!shared.is_open());
    }

    #[tokio::test]
    async fn a_good_probe_of_any_thread_closes_it_for_all() {
        let (first, shared) = guard();
        let second = Guard::new(Told::default(), &shared);
        let gone = Guard::new(Told::default(), &shared);
        drop(gone);
        for guard in [&first, &second] {
            guard.store().say(Some(away()));
        }
        tokio::spawn(Arc::clone(&shared).probe_while_open());
        let mut open = shared.watch();
        while !shared.is_open() {
            assert!(ask(&first, STORE_TIMEOUT).await.is_err());
        }
        assert_eq!(ask(&second, STORE_TIMEOUT).await, Err(StoreError::Open));
        second.store().say(None);
        open.wait_for(|open| !open).await.expect("the breaker lives");
        assert!(ask(&second, STORE_TIMEOUT).await.is_ok());
        assert_eq!(first.store().probes.load(Ordering::Relaxed), second.store().probes.load(Ordering::Relaxed));
        assert_eq!(shared.counted.lock().probes.len(), 2, "of the thread that has ended nothing is left");
    }
}
