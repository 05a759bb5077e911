//! Reserved headroom, over random traffic, in memory and in Redis: however much low callers ask for, critical ones that keep within
//! what is left free for them are never refused.

mod support {
    pub mod redis;
    pub mod rules;
}

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use support::redis::RedisServer;
use support::rules::{NOW, descriptor, request};
use tokio::runtime::Runtime;
use weir::config::{LoadOptions, load_texts};
use weir::limit::{MINUTE, Micros, SECOND};
use weir::rules::RuleSet;
use weir::rules::decision::{self, Code};
use weir::rules::plan::{Moment, PlanSettings, plan};
use weir::store::memory::MemoryStore;
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

const ALGORITHMS: [&str; 5] = ["fixed_window", "sliding_window_log", "sliding_window", "token_bucket", "leaky_bucket"];
const LIMIT: u64 = 20;
/// Rounds of ten times the limit from low callers, a tenth of a minute apart on the average.
const ROUNDS: usize = 60;
/// As many for Redis, where each takes longer.
const REDIS_ROUNDS: usize = 20;

/// A limit that classes share.
struct Pool<S> {
    rules: RuleSet,
    store: S,
    /// Its counter's own.
    name: String,
    now: Arc<AtomicU64>,
}

fn rules(algorithm: &str, share: u64) -> RuleSet {
    let text = format!(
        "domain: d\npriority: {{entry: priority, reserve: {{low: {share}%}}}}\ndescriptors:\n  - {{key: pool, reserve: true, \
         rate_limit: {{window: 1m, requests: {LIMIT}, algorithm: {algorithm}}}}}\n"
    );
    let rules = load_texts(&[("rules.yaml", &text)], &LoadOptions::default(), &RuleSet::default());
    assert!(rules.problems.is_empty(), "{}", rules.problems);
    rules.rules
}

fn in_memory(algorithm: &str, share: u64) -> Pool<MemoryStore> {
    let now = Arc::new(AtomicU64::new(NOW));
    let store = MemoryStore::new(Clock::Manual(Arc::clone(&now)), 100);
    Pool { rules: rules(algorithm, share), store, name: "p".to_owned(), now }
}

impl<S: Store> Pool<S> {
    /// How many of so many calls at once are admitted.
    async fn admitted(&self, class: &str, calls: u64) -> u64 {
        let domain = &self.rules.domains[&b"d"[..]];
        let asked = request([descriptor(&[("pool", &self.name), ("priority", class)])]);
        let plan = plan(domain, &asked, PlanSettings::default(), Moment::default(), &()).expect("a plan");
        let wait = Wait::of(Duration::from_secs(60));
        let answers = join_all((0..calls).map(|_| self.store.apply(&plan.group, wait))).await;
        let is_allowed = |outcomes: &_| decision::decide(domain, &plan, outcomes, false).code == Code::Ok;
        answers.into_iter().filter(|outcomes| is_allowed(outcomes.as_ref().expect("an answer"))).count() as u64
    }

    /// In each round ten times the limit of low calls, and then some critical ones, as many as the reserve has room for. Says how
    /// many low ones were admitted, or how many critical ones were counted when one was refused.
    async fn play(&self, algorithm: &str, reserve: usize, rounds: &[(Micros, usize)]) -> Result<u64, usize> {
        // The two windows that a sliding window weighs hold a call for up to two minutes.
        let counted = if algorithm == "sliding_window" { 2 * MINUTE } else { MINUTE };
        let mut critical: VecDeque<Micros> = VecDeque::new();
        let mut low = 0;
        for &(gap, wanted) in rounds {
            let now = self.now.fetch_add(gap, Ordering::Relaxed) + gap;
            low += self.admitted("low", 10 * LIMIT).await;
            while critical.front().is_some_and(|&at| at + counted <= now) {
                critical.pop_front();
            }
            for _ in 0..wanted.min(reserve - critical.len()) {
                if self.admitted("critical", 1).await == 0 {
                    return Err(critical.len());
                }
                critical.push_back(now);
            }
        }
        Ok(low)
    }
}

fn reserve(share: u64) -> usize {
    usize::try_from(LIMIT * share / 100).expect("small")
}

fn rounds(count: usize) -> impl Strategy<Value = Vec<(Micros, usize)>> {
    proptest::collection::vec((0..12 * SECOND, 0..4usize), count)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn no_critical_call_within_the_reserve_is_refused(
        algorithm in proptest::sample::select(&ALGORITHMS[..]),
        share in 5..=50u64,
        rounds in rounds(ROUNDS),
    ) {
        let played = runtime().block_on(in_memory(algorithm, share).play(algorithm, reserve(share), &rounds));
        prop_assert!(played.is_ok_and(|low| low > 0), "{algorithm}, {} reserved: {played:?}", reserve(share));
    }

    #[test]
    fn low_callers_alone_never_take_the_reserve(algorithm in proptest::sample::select(&ALGORITHMS[..]), share in 5..=95u64) {
        let pool = in_memory(algorithm, share);
        let (low, critical) = runtime().block_on(async {
            (pool.admitted("low", 10 * LIMIT).await, pool.admitted("critical", 10 * LIMIT).await)
        });
        let reserve = LIMIT * share / 100;
        prop_assert_eq!((low, critical), (LIMIT - reserve, reserve));
    }
}

/// One server for all cases: a counter for each.
#[test]
fn in_redis_no_critical_call_within_the_reserve_is_refused_either() {
    let runtime = runtime();
    let (server, now) = (RedisServer::start(), Arc::new(AtomicU64::new(NOW)));
    let store = runtime.block_on(server.store(Clock::Manual(Arc::clone(&now))));
    let store = Arc::new(store);
    let cases = AtomicU64::new(0);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(15) };
    proptest!(config, |(algorithm in proptest::sample::select(&ALGORITHMS[..]), share in 5..=50u64, rounds in rounds(REDIS_ROUNDS))| {
        let name = format!("p{}", cases.fetch_add(1, Ordering::Relaxed));
        let pool = Pool { rules: rules(algorithm, share), store: Shared(Arc::clone(&store)), name, now: Arc::clone(&now) };
        let played = runtime.block_on(pool.play(algorithm, reserve(share), &rounds));
        prop_assert!(played.is_ok_and(|low| low > 0), "{algorithm}, {} reserved: {played:?}", reserve(share));
    });
}

/// The property can fail: where nothing is reserved, the first critical call is refused.
#[test]
fn without_a_reserve_low_callers_leave_nothing() {
    for algorithm in ALGORITHMS {
        assert_eq!(runtime().block_on(in_memory(algorithm, 0).play(algorithm, 5, &[(SECOND, 1)])), Err(0), "{algorithm}");
    }
}

/// One store for all pools.
struct Shared<S>(Arc<S>);

impl<S: Store> Store for Shared<S> {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        self.0.apply(group, wait).await
    }
}
