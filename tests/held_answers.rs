//! How long an answer may be held back: its caller has it in time, whatever passed before and however long the store takes.

mod support {
    pub mod rules;
}

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use support::rules::{descriptor, domain, limit, request, rule};
use tokio::time::Instant;
use weir::limit::{Algorithm, Micros, Outcome, RetryAfter, SECOND};
use weir::limiter::reservations::{Arrival, Order};
use weir::limiter::{Limiter, LimiterSettings, RETURN_TIME, Shared};
use weir::rules::key::Key;
use weir::rules::plan::PlanSettings;
use weir::rules::{Rule, RuleLimit, RuleSet};
use weir::store::memory::MemoryStore;
use weir::store::reservations::{Gated, Kept, Passed, ReservationStore};
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

const STORE_TIMEOUT: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(100);
const MAX_WAIT: Micros = 1_000 * SECOND;

/// Refuses, and keeps what delay it might have admitted.
struct Refusing {
    takes_time: bool,
    max_delay: Mutex<Option<Micros>>,
}

impl Refusing {
    fn refuse(&self, group: &Group) -> Outcomes {
        *self.max_delay.lock() = group.checks[0].max_delay;
        [Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(SECOND) }].into_iter().collect()
    }
}

impl Store for Refusing {
    async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        Ok(self.refuse(group))
    }

    fn takes_time(&self) -> bool {
        self.takes_time
    }
}

impl ReservationStore for Refusing {
    async fn pass(&self, gated: &Gated, _: Wait) -> Result<Passed, StoreError> {
        Ok(Passed::Decided { outcomes: self.refuse(&gated.group), expires: None })
    }

    async fn kept(&self, _: &Key, _: Wait) -> Result<Option<Kept>, StoreError> {
        Ok(None)
    }
}

fn limiter(takes_time: bool) -> Limiter<Refusing> {
    let leaky = RuleLimit { max_wait: Some(MAX_WAIT), ..limit(Algorithm::LeakyBucket, 10, SECOND) };
    let rules: [(&[(&str, &str)], Rule); 1] = [(&[("a", "")], Rule { limits: vec![leaky], ..rule() })];
    let settings = LimiterSettings { plan: PlanSettings::default(), store_timeout: STORE_TIMEOUT };
    let shared = Shared::new(MemoryStore::new(Clock::System, 1_000), settings);
    let domains = [(Box::from(*b"d"), Arc::new(domain(&rules)))].into_iter().collect();
    shared.load(RuleSet { domains, revision: 1 });
    Limiter::new(Arc::new(shared), Refusing { takes_time, max_delay: Mutex::new(None) })
}

/// The longest delay that may be admitted of a call that came in `passed` ago, decided and reserved.
async fn longest(takes_time: bool, passed: Duration, patience: Option<Duration>) -> [Micros; 2] {
    let limiter = limiter(takes_time);
    let said = || limiter.store().max_delay.lock().take().expect("the limit waits");
    let request = request([descriptor(&[("a", "1")])]);
    let at = Instant::now() - passed;
    limiter.decide(&request, at, patience).await;
    let decided = said();
    let order = Order { request: &request, estimate: 1, idempotency_key: "k", ttl: 60 * SECOND };
    limiter.reserve(&order, "", Arrival { at, patience }).await.expect("an answer");
    [decided, said()]
}

fn micros(time: Duration) -> Micros {
    u64::try_from(time.as_micros()).expect("a short time")
}

#[tokio::test]
async fn a_store_may_take_its_time_before() {
    let expected = micros(PATIENCE - RETURN_TIME - STORE_TIMEOUT);
    assert_eq!(longest(true, Duration::ZERO, Some(PATIENCE)).await, [expected; 2]);
    for patience in [STORE_TIMEOUT, Duration::from_millis(20), RETURN_TIME, Duration::ZERO] {
        assert_eq!(longest(true, Duration::ZERO, Some(patience)).await, [0; 2], "{patience:?}");
    }
}

#[tokio::test]
async fn what_has_passed_is_gone() {
    let passed = Duration::from_secs(50);
    for takes_time in [true, false] {
        let most = micros(PATIENCE - RETURN_TIME - passed);
        for longest in longest(takes_time, passed, Some(PATIENCE)).await {
            assert!(longest > 0 && longest <= most, "{longest} of {most}");
        }
        assert_eq!(longest(takes_time, 2 * PATIENCE, Some(PATIENCE)).await, [0; 2]);
    }
}

#[tokio::test]
async fn memory_leaves_all_the_time_there_is() {
    for longest in longest(false, Duration::ZERO, Some(PATIENCE)).await {
        let without = micros(PATIENCE - RETURN_TIME - STORE_TIMEOUT);
        assert!(longest > without, "{longest}");
    }
}

#[tokio::test]
async fn without_a_deadline_the_rule_alone_says_how_long() {
    for takes_time in [true, false] {
        assert_eq!(longest(takes_time, 2 * PATIENCE, None).await, [MAX_WAIT; 2]);
    }
}
