//! Refusals remembered in this process, so that a caller who keeps asking costs the store nothing. A refusal stands for as long as
//! it said that it would, and for a second at most: what another replica gives back, or a reload changes, is seen by then.
//!
//! Only what can be answered without the store is: one plain take of one limit, with its rule's own block if it has one. Looks,
//! reports, refunds, shadow and quota rules, `charge: always` and held admissions always go to the store. A remembered refusal is
//! for one counter, one size and its own cost; also for larger ones where these would wait as long.

mod shard;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::shard::Shard;
use super::reservations::{Gated, Kept, Passed, ReservationStore};
use super::{Group, Outcomes, Store, StoreError, Wait};
use crate::limit::{Algorithm, Charge, Check, Cost, Limit, Micros, Mode, Operation, Outcome, RetryAfter, SECOND};
use crate::rules::key::Key;

/// The longest that a refusal is remembered.
const LONGEST: Micros = SECOND;
/// Locks to share the refusals among.
const SHARDS: usize = 16;

/// A store with a memory for its refusals.
pub struct DenyCache<S> {
    store: S,
    refusals: Arc<Refusals>,
}

/// The refusals that all threads remember.
pub struct Refusals {
    shards: Box<[Mutex<Shard>]>,
    /// How many there are: mostly none, and then there is no need to look for one.
    count: AtomicUsize,
    hasher: RandomState,
    max_bytes_per_shard: usize,
    longest: Micros,
}

#[derive(Clone, Debug)]
struct Refusal {
    limit: Limit,
    block: Option<Limit>,
    cost: Cost,
    outcomes: Outcomes,
    /// When the store was heard.
    heard: Instant,
    expires: Instant,
}

impl<S> DenyCache<S> {
    pub fn new(store: S, refusals: Arc<Refusals>) -> DenyCache<S> {
        DenyCache { store, refusals }
    }

    /// The store behind it.
    pub fn store(&self) -> &S {
        &self.store
    }
}

impl<S: Store> Store for DenyCache<S> {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        if self.refusals.max_bytes_per_shard == 0 {
            return self.store.apply(group, wait).await;
        }
        let Some(question) = Question::of(group) else {
            let answer = self.store.apply(group, wait).await;
            // Now, not before: what is heard meanwhile is forgotten, too.
            self.refusals.forget_refunded(group);
            return answer;
        };
        if let Some(outcomes) = self.refusals.recall(&question, wait.asked) {
            return Ok(outcomes);
        }
        let answer = self.store.apply(group, wait).await;
        if let Ok(outcomes) = &answer
            && outcomes.iter().any(|outcome| !outcome.is_allowed())
        {
            self.refusals.remember(&question, outcomes, wait.asked);
        }
        answer
    }
}

/// A gate is the store's alone; what a commit gives back makes room.
impl<S: ReservationStore> ReservationStore for DenyCache<S> {
    async fn pass(&self, gated: &Gated, wait: Wait) -> Result<Passed, StoreError> {
        let answer = self.store.pass(gated, wait).await;
        if self.refusals.max_bytes_per_shard > 0 {
            self.refusals.forget_refunded(&gated.group);
        }
        answer
    }

    async fn kept(&self, key: &Key, wait: Wait) -> Result<Option<Kept>, StoreError> {
        self.store.kept(key, wait).await
    }
}

/// A group that a remembered refusal may answer.
struct Question<'a> {
    key: &'a Key,
    check: &'a Check,
    block: Option<Limit>,
}

impl Question<'_> {
    fn of(group: &Group) -> Option<Question<'_>> {
        let (check, block) = match &group.checks[..] {
            [check] => (check, None),
            [check, block] if block.limit.algorithm() == Algorithm::Penalty && block.owner == check.owner => {
                (check, Some(block.limit))
            }
            _ => return None,
        };
        let is_plain = check.operation == Operation::Take
            && check.charge == Charge::Admitted
            && check.mode == Mode::Enforce
            && check.max_delay.is_none()
            && !group.refused;
        is_plain.then_some(Question { key: &group.keys[0], check, block })
    }

    fn is_answered_by(&self, refusal: &Refusal, now: Instant) -> bool {
        let covers = self.check.cost == refusal.cost || self.check.cost > refusal.cost && self.waits_as_long_as(refusal);
        covers && refusal.limit == self.check.limit && refusal.block == self.block && now < refusal.expires
    }

    /// Of a larger cost than the one that was refused. Where the block alone refused, the limit's own answer is of that cost only.
    fn waits_as_long_as(&self, refusal: &Refusal) -> bool {
        let limit = &self.check.limit;
        match refusal.outcomes.first() {
            Some(Outcome::Denied { retry_after: RetryAfter::Never { .. }, .. }) => true,
            // Until the period ends. In all others room comes back little by little.
            Some(Outcome::Denied { retry_after: RetryAfter::In(_), .. }) => {
                matches!(limit.algorithm(), Algorithm::FixedWindow | Algorithm::Calendar) && self.check.cost <= limit.capacity()
            }
            _ => false,
        }
    }
}

impl Refusals {
    /// Takes `max_bytes` of memory at most, about; 0 remembers nothing.
    pub fn new(max_bytes: usize) -> Refusals {
        Refusals::lasting(LONGEST, max_bytes)
    }

    fn lasting(longest: Micros, max_bytes: usize) -> Refusals {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (count, hasher) = (AtomicUsize::new(0), RandomState::default());
        Refusals { shards, count, hasher, max_bytes_per_shard: max_bytes / SHARDS, longest }
    }

    /// Forgets everything: for other rules.
    pub fn clear(&self) {
        for shard in &self.shards {
            self.change(shard, |shard| *shard = Shard::default());
        }
    }

    /// Refusals that are remembered, expired ones included.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        let shard = self.hasher.hash_one(key) % SHARDS as u64;
        &self.shards[usize::try_from(shard).expect("a shard index is small")]
    }

    /// Changes a shard, and counts what is in it then.
    fn change<T>(&self, shard: &Mutex<Shard>, change: impl FnOnce(&mut Shard) -> T) -> T {
        let mut shard = shard.lock();
        let before = shard.len();
        let changed = change(&mut shard);
        self.count.fetch_add(shard.len(), Ordering::Relaxed);
        self.count.fetch_sub(before, Ordering::Relaxed);
        changed
    }

    fn recall(&self, question: &Question<'_>, now: Instant) -> Option<Outcomes> {
        if self.is_empty() {
            return None;
        }
        let place = self.shard(question.key);
        let shard = place.lock();
        let refusal = shard.get(question.key)?;
        if now >= refusal.expires {
            drop(shard);
            self.change(place, |shard| shard.forget(question.key));
            return None;
        }
        let passed = micros(now.saturating_duration_since(refusal.heard));
        let is_aligned = refusal.limit.has_aligned_windows();
        let later = |outcome: &Outcome| later(*outcome, passed, is_aligned);
        question.is_answered_by(refusal, now).then(|| refusal.outcomes.iter().map(later).collect())
    }

    /// `asked` is when the store was not yet asked: counted from then, a refusal is never kept for longer than it lasts.
    fn remember(&self, question: &Question<'_>, outcomes: &Outcomes, asked: Instant) {
        // One that never fits, too: its answer tells the end of this window, not of the next.
        let refused = outcomes.iter().filter(|outcome| !outcome.is_allowed());
        let lasts = refused.map(Outcome::reset_after);
        let lasts = lasts.min().map_or(self.longest, |lasts| lasts.min(self.longest));
        let refusal = Refusal {
            limit: question.check.limit,
            block: question.block,
            cost: question.check.cost,
            outcomes: outcomes.clone(),
            heard: Instant::now(),
            expires: asked + Duration::from_micros(lasts),
        };
        self.change(self.shard(question.key), |shard| shard.put(question.key, refusal, self.max_bytes_per_shard));
    }

    /// What is given back makes room before the time that a refusal said.
    fn forget_refunded(&self, group: &Group) {
        if self.is_empty() {
            return;
        }
        let refunds = group.checks.iter().take_while(|check| check.operation == Operation::Refund);
        for (key, _) in group.keys.iter().zip(refunds) {
            self.change(self.shard(key), |shard| shard.forget(key));
        }
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// An outcome as it is `passed` µs later, if nothing else came. `is_aligned`: its limit's windows begin at fixed times.
fn later(outcome: Outcome, passed: Micros, is_aligned: bool) -> Outcome {
    match outcome {
        Outcome::Denied { remaining, retry_after: RetryAfter::In(retry) } => {
            Outcome::Denied { remaining, retry_after: RetryAfter::In(retry.saturating_sub(passed).max(1)) }
        }
        Outcome::Allowed { remaining, reset_after, delay } => {
            Outcome::Allowed { remaining, reset_after: reset_after.saturating_sub(passed), delay }
        }
        Outcome::Denied { remaining, retry_after: RetryAfter::Never { reset_after } } if is_aligned => {
            let reset_after = reset_after.saturating_sub(passed).max(1);
            Outcome::Denied { remaining, retry_after: RetryAfter::Never { reset_after } }
        }
        Outcome::Denied { .. } => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::limit::{DAY, HOUR, MINUTE, Period};
    use crate::rules::key::{Part, domain_prefix, entries, key, shape_suffix};

    const ROOM: usize = 1 << 20;

    fn limit(requests: u64) -> Limit {
        Limit::new(Algorithm::FixedWindow, requests, MINUTE, None).expect("a limit")
    }

    fn key_of(name: &str, limit: &Limit) -> Key {
        let part = Part { key: b"k", value: name.as_bytes(), shared: false };
        key(&domain_prefix("", b"d"), &entries([part].into_iter(), 0), &shape_suffix(limit.shape()))
    }

    fn take(name: &str, requests: u64, cost: Cost) -> Group {
        let check = Check::new(limit(requests), Operation::Take, cost);
        Group { keys: [key_of(name, &check.limit)].into_iter().collect(), checks: [check].into_iter().collect(), refused: false }
    }

    fn blocking(mut group: Group, block_for: Micros) -> Group {
        let limit = Limit::penalty(block_for).expect("a block");
        group.keys.push(key_of("k", &limit));
        group.checks.push(Check { limit, cost: 0, ..group.checks[0] });
        group
    }

    fn denied(retry: Micros) -> Outcome {
        Outcome::Denied { remaining: 2, retry_after: RetryAfter::In(retry) }
    }

    const ALLOWED: Outcome = Outcome::Allowed { remaining: 3, reset_after: HOUR, delay: 0 };

    /// Refuses everything for a minute, and counts.
    #[derive(Default)]
    struct Refusing(AtomicUsize);

    impl Store for Refusing {
        async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(group.checks.iter().map(|_| denied(MINUTE)).collect())
        }
    }

    fn cache(max_bytes: usize) -> DenyCache<Refusing> {
        // As long as the refusals themselves: however slow the machine, they last for the test.
        DenyCache::new(Refusing::default(), Arc::new(Refusals::lasting(HOUR, max_bytes)))
    }

    /// How many of these groups, one after the other, reached the store.
    async fn asked(cache: &DenyCache<Refusing>, groups: &[Group]) -> usize {
        let before = cache.store().0.load(Ordering::Relaxed);
        for group in groups {
            let outcomes = cache.apply(group, Wait::of(Duration::from_secs(60))).await.expect("an answer");
            assert!(outcomes.len() == group.checks.len() && outcomes.iter().all(|outcome| !outcome.is_allowed()));
        }
        cache.store().0.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn a_refusal_answers_the_same_counter_size_and_costs_as_large() {
        let cache = cache(ROOM);
        let known = take("a", 5, 3);
        assert_eq!(asked(&cache, &[known.clone(), known.clone(), take("a", 5, 4), take("a", 5, 5)]).await, 1);
        assert_eq!(asked(&cache, &[take("b", 5, 3)]).await, 1, "another counter");
        assert_eq!(asked(&cache, &[take("a", 5, 2)]).await, 1, "a smaller cost");
        assert_eq!(asked(&cache, &[take("a", 6, 3)]).await, 1, "another size");
        assert_eq!(asked(&cache, &[take("a", 5, 3)]).await, 1, "one refusal a counter, the last");
        cache.refusals.clear();
        assert_eq!(asked(&cache, &[known]).await, 1);
    }

    #[test]
    fn a_larger_cost_is_never_told_to_wait_less_than_it_would() {
        let of = |limit: Limit, cost| {
            let mut group = take("a", 5, cost);
            group.checks[0].limit = limit;
            group
        };
        let never = Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after: MINUTE } };
        let limits = [
            (Limit::new(Algorithm::FixedWindow, 5, MINUTE, None), true),
            (Limit::quota(Period::Day, 5), true),
            (Limit::new(Algorithm::SlidingCounter, 5, MINUTE, None), false),
            (Limit::new(Algorithm::SlidingLog, 5, MINUTE, None), false),
            (Limit::new(Algorithm::TokenBucket, 5, MINUTE, None), false),
            (Limit::new(Algorithm::LeakyBucket, 5, MINUTE, None), false),
        ];
        for (limit, waits_as_long) in limits.map(|(limit, waits)| (limit.expect("a limit"), waits)) {
            let answers = |outcome, cost| recalled(&[outcome], &of(limit, 2), 0, &of(limit, cost)).is_some();
            assert!(answers(denied(MINUTE), 2) && !answers(denied(MINUTE), 1), "{limit:?}");
            assert_eq!(answers(denied(MINUTE), 3), waits_as_long, "{limit:?}");
            assert!(!answers(denied(MINUTE), 6), "{limit:?}: what can never fit is told so");
            assert!(answers(never, 6) && !answers(never, 1), "{limit:?}");
        }
    }

    #[test]
    fn a_quota_of_another_day_is_another_limit() {
        let on = |day: Micros| {
            let mut group = take("a", 5, 1);
            let edges = [day, day + 1, day + 2].map(|day| day * DAY);
            group.checks[0].limit = Limit::quota(Period::Day, 5).expect("a quota").on(edges);
            group
        };
        assert!(recalled(&[denied(HOUR)], &on(7), 0, &on(7)).is_some());
        assert!(recalled(&[denied(HOUR)], &on(7), 0, &on(8)).is_none());
        assert!(recalled(&[denied(500)], &on(7), 500, &on(7)).is_none(), "the day is over");
    }

    #[tokio::test]
    async fn what_is_no_plain_take_always_asks() {
        let change = |change: fn(&mut Group)| {
            let mut group = take("a", 5, 1);
            change(&mut group);
            group
        };
        let others = [
            change(|group| group.checks[0].operation = Operation::Look),
            change(|group| group.checks[0].operation = Operation::Report),
            change(|group| group.checks[0].charge = Charge::Always),
            change(|group| group.checks[0].mode = Mode::Shadow),
            change(|group| group.checks[0].mode = Mode::Quota),
            change(|group| group.checks[0].max_delay = Some(SECOND)),
            change(|group| group.refused = true),
            change(|group| {
                group.keys.push(group.keys[0].clone());
                group.checks.push(group.checks[0]);
            }),
        ];
        for other in others {
            let cache = cache(ROOM);
            assert_eq!(asked(&cache, &[other.clone(), other.clone()]).await, 2, "{other:?}");
            assert_eq!(asked(&cache, &[take("a", 5, 1), take("a", 5, 1)]).await, 1, "it left something: {other:?}");
            assert_eq!(asked(&cache, std::slice::from_ref(&other)).await, 1, "answered from memory: {other:?}");
        }
    }

    #[tokio::test]
    async fn a_refund_makes_it_ask_again() {
        let cache = cache(ROOM);
        let mut refund = take("a", 5, 1);
        refund.checks[0].operation = Operation::Refund;
        assert_eq!(asked(&cache, &[take("a", 5, 1), refund, take("a", 5, 1)]).await, 3);
    }

    #[tokio::test]
    async fn no_room_means_off() {
        let cache = cache(0);
        assert_eq!(asked(&cache, &[take("a", 5, 1), take("a", 5, 1)]).await, 2);
        assert!(cache.refusals.is_empty());
    }

    fn recalled(outcomes: &[Outcome], group: &Group, later: Micros, then: &Group) -> Option<Outcomes> {
        let refusals = Refusals::new(ROOM);
        let asked = Instant::now();
        refusals.remember(&Question::of(group).expect("a question"), &outcomes.iter().copied().collect(), asked);
        refusals.recall(&Question::of(then).expect("a question"), asked + Duration::from_micros(later))
    }

    #[test]
    fn it_lasts_as_long_as_the_refusal_and_at_most_a_second() {
        let group = take("a", 5, 1);
        let after = |outcome, later| recalled(&[outcome], &group, later, &group).is_some();
        assert!(after(denied(1_000), 999) && !after(denied(1_000), 1_000));
        assert!(after(denied(HOUR), SECOND - 1) && !after(denied(HOUR), SECOND));
        let never = Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after: MINUTE } };
        assert!(after(never, SECOND - 1) && !after(never, SECOND));
        let never = Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after: 1_000 } };
        assert!(after(never, 999) && !after(never, 1_000), "it tells the end of a window that is over then");
    }

    #[test]
    fn the_retry_time_counts_down() {
        assert_eq!(later(denied(MINUTE), SECOND, false), denied(MINUTE - SECOND));
        assert_eq!(later(denied(5), 10, true), denied(1), "not yet at once: the store has not said so");
        let never = |reset_after| Outcome::Denied { remaining: 2, retry_after: RetryAfter::Never { reset_after } };
        assert_eq!(later(never(MINUTE), SECOND, true), never(MINUTE - SECOND));
        assert_eq!(later(never(MINUTE), SECOND, false), never(MINUTE), "the length of the window");
        let group = take("a", 5, 1);
        let outcomes = recalled(&[denied(HOUR)], &group, SECOND / 2, &group).expect("remembered");
        let Outcome::Denied { remaining: 2, retry_after: RetryAfter::In(retry) } = outcomes[0] else { panic!("{outcomes:?}") };
        assert!((HOUR - SECOND / 2..=HOUR).contains(&retry));
    }

    #[test]
    fn a_block_is_remembered_with_its_limit() {
        let (one, two) = (blocking(take("a", 5, 1), HOUR), blocking(take("a", 5, 2), HOUR));
        let blocked = [ALLOWED, denied(HOUR)];
        assert!(recalled(&blocked, &one, 0, &one).is_some());
        assert!(recalled(&blocked, &one, 0, &two).is_none(), "what the limit says of 2 is not known");
        assert!(recalled(&[denied(MINUTE), denied(HOUR)], &one, 0, &two).is_some());
        assert!(recalled(&[denied(500), denied(HOUR)], &one, 500, &one).is_none(), "the limit has room again");
        assert!(recalled(&blocked, &one, 0, &blocking(take("a", 5, 1), MINUTE)).is_none(), "another block");
        assert!(recalled(&[denied(MINUTE)], &take("a", 5, 1), 0, &one).is_none(), "without a block");
        let other_owner = {
            let mut group = one.clone();
            group.checks[1].owner = 1;
            group
        };
        assert!(Question::of(&other_owner).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let refusals = Refusals::lasting(HOUR, ROOM);
        let names: Vec<String> = (0..20_000).map(|name| format!("{name:0>100}")).collect();
        for name in &names {
            let group = take(name, 5, 1);
            let question = Question::of(&group).expect("a question");
            refusals.remember(&question, &[denied(HOUR)].into_iter().collect(), Instant::now());
            assert!(refusals.recall(&question, Instant::now()).is_some(), "the newest is kept");
        }
        let bytes: usize = refusals.shards.iter().map(|shard| shard.lock().bytes()).sum();
        assert!(bytes <= ROOM && bytes > ROOM / 2, "{bytes}");
        assert!(refusals.len() * shard::OVERHEAD <= ROOM);
        let counted: usize = refusals.shards.iter().map(|shard| shard.lock().len()).sum();
        assert_eq!(refusals.len(), counted);
        refusals.clear();
        assert!(refusals.is_empty());
    }
}
