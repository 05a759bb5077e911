//! Reserved headroom, over random traffic: however much low callers ask for, critical ones that keep within what is left free
//! for them are never refused.

#[path = "support/rules.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use support::{NOW, descriptor, request};
use weir::config::{LoadOptions, load_texts};
use weir::limit::{MINUTE, Micros, SECOND};
use weir::rules::RuleSet;
use weir::rules::decision::{self, Code};
use weir::rules::plan::{Moment, PlanSettings, plan};
use weir::store::Clock;
use weir::store::memory::MemoryStore;

const ALGORITHMS: [&str; 5] = ["fixed_window", "sliding_window_log", "sliding_window", "token_bucket", "leaky_bucket"];
const LIMIT: u64 = 20;
/// Rounds of ten times the limit from low callers, a tenth of a minute apart on the average.
const ROUNDS: usize = 60;

struct Pool {
    rules: RuleSet,
    store: MemoryStore,
    now: Arc<AtomicU64>,
}

impl Pool {
    fn new(algorithm: &str, share: u64) -> Pool {
        let text = format!(
            "domain: d\npriority: {{entry: priority, reserve: {{low: {share}%}}}}\ndescriptors:\n  - {{key: pool, reserve: true, \
             rate_limit: {{window: 1m, requests: {LIMIT}, algorithm: {algorithm}}}}}\n"
        );
        let rules = load_texts(&[("rules.yaml", &text)], &LoadOptions::default(), &RuleSet::default());
        assert!(rules.problems.is_empty(), "{}", rules.problems);
        let now = Arc::new(AtomicU64::new(NOW));
        let store = MemoryStore::new(Clock::Manual(Arc::clone(&now)), 100);
        Pool { rules: rules.rules, store, now }
    }

    fn is_allowed(&self, class: &str) -> bool {
        let domain = &self.rules.domains[&b"d"[..]];
        let asked = request([descriptor(&[("pool", "p"), ("priority", class)])]);
        let plan = plan(domain, &asked, PlanSettings::default(), Moment::default(), &()).expect("a plan");
        let outcomes = self.store.decide(&plan.group);
        decision::decide(domain, &plan, &outcomes, false).code == Code::Ok
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn no_critical_call_within_the_reserve_is_refused(
        algorithm in proptest::sample::select(&ALGORITHMS[..]),
        share in 5..=50u64,
        rounds in proptest::collection::vec((0..12 * SECOND, 0..4usize), ROUNDS),
    ) {
        let pool = Pool::new(algorithm, share);
        let reserve = usize::try_from(LIMIT * share / 100).expect("small");
        // The two windows that a sliding window weighs hold a call for up to two minutes.
        let counted = if algorithm == "sliding_window" { 2 * MINUTE } else { MINUTE };
        let mut critical: VecDeque<Micros> = VecDeque::new();
        let (mut low, mut total) = (0, 0);
        for (gap, wanted) in rounds {
            let now = pool.now.fetch_add(gap, Ordering::Relaxed) + gap;
            for _ in 0..10 * LIMIT {
                low += u64::from(pool.is_allowed("low"));
            }
            while critical.front().is_some_and(|&at| at + counted <= now) {
                critical.pop_front();
            }
            for _ in 0..wanted.min(reserve - critical.len()) {
                prop_assert!(pool.is_allowed("critical"), "{algorithm}: {} counted, {reserve} reserved", critical.len());
                critical.push_back(now);
                total += 1;
            }
        }
        prop_assert!(low > 0, "low callers go on, beside {total} critical ones");
    }

    #[test]
    fn low_callers_alone_never_take_the_reserve(algorithm in proptest::sample::select(&ALGORITHMS[..]), share in 5..=95u64) {
        let pool = Pool::new(algorithm, share);
        let low = (0..10 * LIMIT).filter(|_| pool.is_allowed("low")).count() as u64;
        let critical = (0..10 * LIMIT).filter(|_| pool.is_allowed("critical")).count() as u64;
        let reserve = LIMIT * share / 100;
        prop_assert_eq!((low, critical), (LIMIT - reserve, reserve));
    }
}
