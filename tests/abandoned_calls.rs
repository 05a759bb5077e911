//! Calls whose caller goes away while the store is asked or while the answer is held back: metrics and histories count what the store
//! counted, under the switch as it was when the call was planned.

#[path = "support/rules.rs"]
mod rules;
mod support;

use std::future::{self, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use rules::{descriptor, domain, fixed, limit, named, request};
use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request as message};
use support::{eventually, http};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use weir::limit::{Algorithm, HOUR, Micros, Outcome, RetryAfter, SECOND};
use weir::limiter::abandoned::Call;
use weir::limiter::reservations::{Arrival, Order};
use weir::limiter::{Limiter, LimiterSettings, Shared};
use weir::rules::key::Key;
use weir::rules::plan::PlanSettings;
use weir::rules::{Rule, RuleLimit, RuleSet};
use weir::store::memory::MemoryStore;
use weir::store::records::{Record, RecordName, Subscriber as _};
use weir::store::reservations::{Gated, Kept, Passed, ReservationStore};
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};
use weir::telemetry::exposition::Format;

/// A store that answers once the test lets it, all checks alike.
struct Slow {
    gate: Semaphore,
    outcome: Mutex<Outcome>,
}

impl Slow {
    async fn outcomes(&self, group: &Group) -> Outcomes {
        self.gate.acquire().await.expect("the gate is not closed").forget();
        let outcome = *self.outcome.lock();
        group.checks.iter().map(|_| outcome).collect()
    }
}

impl Store for Slow {
    async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        Ok(self.outcomes(group).await)
    }
}

impl ReservationStore for Slow {
    async fn pass(&self, gated: &Gated, _: Wait) -> Result<Passed, StoreError> {
        Ok(Passed::Decided { outcomes: self.outcomes(&gated.group).await, expires: Some(HOUR) })
    }

    async fn kept(&self, _: &Key, _: Wait) -> Result<Option<Kept>, StoreError> {
        Ok(None)
    }
}

const ALLOWED: Outcome = Outcome::Allowed { remaining: 1, reset_after: SECOND, delay: 0 };
const REFUSED: Outcome = Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(SECOND) };

struct Trial(Arc<Limiter<Slow>>);

impl Trial {
    fn new(outcome: Outcome) -> Trial {
        let held = RuleLimit { max_wait: Some(HOUR), ..limit(Algorithm::LeakyBucket, 10, SECOND) };
        let rules: [(&[(&str, &str)], Rule); 2] = [
            (&[("user", "")], named("user", fixed(9, HOUR))),
            (&[("held", "")], named("held", Rule { limits: vec![held], ..fixed(9, HOUR) })),
        ];
        let domain = weir::rules::Domain { subject: vec![b"user".as_slice().into()], ..domain(&rules) };
        let settings = LimiterSettings { plan: PlanSettings::default(), store_timeout: Duration::from_secs(60) };
        let shared = Shared::new(MemoryStore::new(Clock::System, 1_000), settings);
        shared.load(RuleSet { domains: [(Box::from(*b"d"), Arc::new(domain))].into_iter().collect(), revision: 1 });
        shared.history().keep();
        let store = Slow { gate: Semaphore::new(0), outcome: Mutex::new(outcome) };
        Trial(Arc::new(Limiter::new(Arc::new(shared), store)))
    }

    fn call(&self, key: &'static str) -> Call<()> {
        let limiter = self.0.clone();
        Call::new(async move {
            limiter.decide(&request([descriptor(&[(key, "u1")])]), Instant::now(), None).await;
        })
    }

    /// Lets the store answer one call.
    fn answer(&self) {
        self.0.store().gate.add_permits(1);
    }

    fn is_counted(&self, line: &str) -> bool {
        self.0.shared().metrics().text(Format::Prometheus).lines().any(|one| one == line)
    }

    /// Requests in the histories of all subjects: allowed, refused.
    fn remembered(&self) -> (u64, u64) {
        let taken = self.0.shared().history().take();
        taken.iter().fold((0, 0), |(allowed, refused), (_, _, tally)| (allowed + tally.allowed, refused + tally.refused))
    }

    fn switch(&self, to: &str) {
        let name = RecordName::Switch { domain: None };
        let record = Record::parse(&name, &format!(r#"{{"switch": "{to}"}}"#)).expect("a switch");
        self.0.shared().changed(vec![(name, Some(record))]);
    }
}

/// Polls once.
async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_pending())).await
}

fn decisions(rule: &str, outcome: &str) -> String {
    format!("weir_decisions_total{{domain=\"d\",rule=\"{rule}\",outcome=\"{outcome}\"}} 1")
}

#[tokio::test]
async fn what_the_store_counted_for_a_caller_that_went_away_is_counted() {
    for (outcome, label, history) in [(ALLOWED, "ok", (1, 0)), (REFUSED, "over_limit", (0, 1))] {
        let trial = Trial::new(outcome);
        let mut call = trial.call("user");
        assert!(is_pending(&mut call).await, "the store is asked");
        drop(call);
        trial.answer();
        eventually("it is counted", async || trial.is_counted(&decisions("user", label))).await;
        assert_eq!(trial.remembered(), history, "{label}");
    }
}

#[tokio::test]
async fn a_reservation_whose_caller_went_away_is_counted() {
    let trial = Trial::new(ALLOWED);
    let limiter = trial.0.clone();
    let mut call = Call::new(async move {
        let request = request([descriptor(&[("user", "u1")])]);
        let order = Order { request: &request, estimate: 1, idempotency_key: "k", ttl: 60 * SECOND };
        limiter.reserve(&order, "", Arrival { at: Instant::now(), patience: None }).await.is_ok()
    });
    assert!(is_pending(&mut call).await, "the store is asked");
    drop(call);
    trial.answer();
    eventually("it is counted", async || trial.is_counted("weir_reservations_total{result=\"made\"} 1")).await;
    assert!(trial.is_counted(&decisions("user", "ok")));
    assert_eq!(trial.remembered(), (1, 0));
}

#[tokio::test]
async fn a_caller_that_goes_away_while_its_answer_is_held_back_was_counted_before() {
    const DELAY: Micros = HOUR;
    let trial = Trial::new(Outcome::Allowed { remaining: 1, reset_after: DELAY, delay: DELAY });
    trial.answer();
    let mut call = trial.call("held");
    assert!(is_pending(&mut call).await, "its answer is held back");
    drop(call);
    assert!(trial.is_counted(&decisions("held", "ok")));
}

#[tokio::test]
async fn a_call_that_is_dropped_before_the_store_is_asked_is_not_finished() {
    let (is_alive, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    struct Alive(Arc<AtomicBool>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
    let alive = Alive(is_alive.clone());
    let reading = seen.clone();
    let mut call = Call::new(async move {
        // As while its message comes.
        future::pending::<()>().await;
        reading.store(false, Ordering::Relaxed);
        drop(alive);
    });
    assert!(is_pending(&mut call).await);
    drop(call);
    assert!(!is_alive.load(Ordering::Relaxed), "it is gone at once");
    assert!(seen.load(Ordering::Relaxed));
}

#[tokio::test]
async fn an_outcome_is_labelled_by_the_switch_as_it_was_when_the_call_was_planned() {
    for (then, now, label) in
        [("shadow", "off", "shadow_over_limit"), ("off", "shadow", "over_limit"), ("off", "allow", "over_limit")]
    {
        let trial = Trial::new(REFUSED);
        trial.switch(then);
        let mut call = trial.call("user");
        assert!(is_pending(&mut call).await, "the store is asked");
        trial.switch(now);
        trial.answer();
        call.await;
        assert!(trial.is_counted(&decisions("user", label)), "{then}, then {now}");
    }
}

#[tokio::test]
async fn a_call_that_is_reset_while_redis_hangs_is_counted_as_redis_counts_it() {
    let redis = RedisServer::start();
    let rules = "domain: d\ndescriptors:\n  - {key: user, rate_limit: 9/day}\n";
    let weir = Settings::with_rules(rules).redis(&redis.url()).start().await;
    let decided = decisions("user", "ok");
    let mut client = weir.client().await;
    redis.pause();
    let mut other = client.clone();
    {
        let mut reset = pin!(client.should_rate_limit(message("d", &[&[("user", "u1")]])));
        // Both go over one connection, in order: the answer to the second says that the first has come.
        assert!(is_pending(&mut reset).await);
        ask(&mut other, message("unknown", &[&[("user", "u1")]])).await;
        assert!(is_pending(&mut reset).await, "Redis hangs");
    }
    // The reset goes before this one.
    ask(&mut other, message("unknown", &[&[("user", "u1")]])).await;
    redis.resume();
    eventually("it is counted", async || scrape(&weir).await.lines().any(|line| line == decided)).await;
    eventually("it is finished", async || scrape(&weir).await.contains("weir_abandoned_calls_total{result=\"finished\"} 1")).await;
    let keys: Vec<String> = redis.command(&["KEYS", "*user*"]).await;
    assert!(!keys.is_empty(), "Redis has counted it");
}

async fn scrape(weir: &Weir) -> String {
    http::get(weir.admin, "/metrics").await.expect("a scrape").body
}
