//! The store in memory under many threads, and what it keeps of what callers make up.

#[path = "support/rules.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use support::{NOW, descriptor, domain, fixed, limit, request, rule};
use weir::limit::{Algorithm, Charge, Check, HOUR, MINUTE, Micros, Mode, Operation, SECOND, State};
use weir::rules::key::{Key, Part, domain_prefix, entries, key};
use weir::rules::plan::{Moment, PlanSettings, plan};
use weir::rules::{Rule, RuleLimit};
use weir::store::memory::MemoryStore;
use weir::store::{Clock, Group, StoreError};

const THREADS: usize = 8;
/// Enough for every shard to grow its table a dozen times over.
const MADE_UP: usize = 250_000;

fn clock() -> (Clock, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(NOW));
    (Clock::Manual(Arc::clone(&now)), now)
}

/// A take of one from each of these counters.
fn group(limit: &RuleLimit, names: &[&str]) -> Group {
    let check = |owner| {
        let (operation, mode, charge) = (Operation::Take, Mode::Enforce, Charge::Admitted);
        Check { limit: limit.limit, operation, cost: 1, mode, charge, max_delay: None, owner }
    };
    Group {
        keys: names.iter().map(|name| key_of(limit, name)).collect(),
        checks: (0..).take(names.len()).map(check).collect(),
        refused: false,
    }
}

fn key_of(limit: &RuleLimit, name: &str) -> Key {
    let part = Part { key: b"k", value: name.as_bytes(), shared: false };
    key(&domain_prefix("", b"d"), &entries([part].into_iter(), 0), &limit.key_suffix)
}

fn is_allowed(store: &MemoryStore, group: &Group) -> bool {
    store.decide(group).is_ok_and(|outcomes| outcomes.iter().all(weir::limit::Outcome::is_allowed))
}

/// `calls` in all, from several threads at once; how many were allowed.
fn allowed_at_once(store: &MemoryStore, calls: usize, group: impl Fn(usize) -> Group + Sync) -> usize {
    thread::scope(|scope| {
        let caller = |thread: usize| {
            let group = &group;
            move || (thread..calls).step_by(THREADS).filter(|&call| is_allowed(store, &group(call))).count()
        };
        let callers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(caller(thread))).collect();
        callers.into_iter().map(|caller| caller.join().expect("no caller panics")).sum()
    })
}

#[test]
fn three_thousand_calls_at_once_at_a_limit_of_a_hundred_admit_a_hundred() {
    for algorithm in Algorithm::OF_RATES {
        let store = MemoryStore::new(clock().0, 1_000);
        let limit = limit(algorithm, 100, HOUR);
        assert_eq!(allowed_at_once(&store, 3_000, |_| group(&limit, &["one"])), 100, "{algorithm:?}");
    }
}

#[test]
fn several_counters_are_taken_together_or_not_at_all() {
    let store = MemoryStore::new(clock().0, 1_000);
    let limit = limit(Algorithm::FixedWindow, 100, HOUR);
    let names: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    // Every counter is in every third request or so, in changing order and company.
    let names_of = |call: usize| -> Vec<&str> {
        let mut picked: Vec<&str> = (0..3).map(|turn| &*names[(call * (7 + 4 * turn) + turn * turn) % names.len()]).collect();
        picked.sort_unstable_by_key(|name| (name.len() + call) % 5);
        picked.dedup();
        picked
    };
    let taken: Vec<AtomicU64> = names.iter().map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, limit, names, taken, names_of) = (&store, &limit, &names, &taken, &names_of);
            scope.spawn(move || {
                for call in (thread..8_000).step_by(THREADS) {
                    let picked = names_of(call);
                    if has_distinct(&picked) && is_allowed(store, &group(limit, &picked)) {
                        for name in picked {
                            let place = names.iter().position(|known| known == name).expect("a known name");
                            taken[place].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let mut full = 0;
    for (name, taken) in names.iter().zip(&taken) {
        let (counted, taken) = (count(store.state(&key_of(&limit, name))), taken.load(Ordering::Relaxed));
        assert_eq!(counted, taken, "{name}: counted without being admitted, or the other way round");
        assert!(taken <= 100);
        full += usize::from(taken == 100);
    }
    assert!(full > 0, "no limit was reached");
}

fn has_distinct(names: &[&str]) -> bool {
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

fn count(state: Option<State>) -> u64 {
    match state {
        Some(State::Window { count, .. }) => count,
        None => 0,
        other => panic!("not a fixed window's: {other:?}"),
    }
}

#[test]
fn a_request_of_several_rules_is_decided_at_once() {
    let limits = vec![limit(Algorithm::FixedWindow, 50, HOUR), limit(Algorithm::TokenBucket, 70, MINUTE)];
    let domain = domain(&[(&[("user", "")], Rule { limits, ..rule() }), (&[("ip", "")], fixed(60, HOUR))]);
    let store = MemoryStore::new(clock().0, 1_000);
    let both = request([descriptor(&[("user", "u")]), descriptor(&[("ip", "1")])]);
    let group = plan(&domain, &both, PlanSettings::default(), Moment::default(), &()).expect("a plan").group;
    assert_eq!(allowed_at_once(&store, 3_000, |_| group.clone()), 50);
    let ip = request([descriptor(&[("ip", "1")])]);
    let group = plan(&domain, &ip, PlanSettings::default(), Moment::default(), &()).expect("a plan").group;
    assert_eq!(allowed_at_once(&store, 3_000, |_| group.clone()), 10, "the refused left no trace");
}

fn make_up(store: &MemoryStore, limit: &RuleLimit, names: std::ops::Range<usize>) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let names = names.clone().skip(thread).step_by(THREADS);
            scope.spawn(move || {
                let mut group = group(limit, &["any"]);
                let prefix = domain_prefix("", b"d");
                for name in names {
                    let name = name.to_string();
                    let part = Part { key: b"k", value: name.as_bytes(), shared: false };
                    group.keys[0] = key(&prefix, &entries([part].into_iter(), 0), &limit.key_suffix);
                    let _ = store.decide(&group);
                }
            });
        }
    });
}

#[test]
fn made_up_counters_go_when_their_time_is_over() {
    let (clock, now) = clock();
    let store = MemoryStore::new(clock, 10_000_000);
    let limit = limit(Algorithm::FixedWindow, 5, MINUTE);
    make_up(&store, &limit, 0..MADE_UP);
    assert_eq!(store.len(), MADE_UP);
    now.fetch_add(MINUTE, Ordering::Relaxed);
    assert_eq!(store.state(&key_of(&limit, "7")), None);
    store.sweep();
    assert_eq!((store.len(), store.evicted()), (0, 0));
    assert!(store.capacity() < 10_000, "room for {}", store.capacity());
}

#[test]
fn expired_counters_are_no_more_than_the_live_ones_without_a_sweep() {
    let (clock, now) = clock();
    let store = MemoryStore::new(clock, 10_000_000);
    let limit = limit(Algorithm::TokenBucket, 1, SECOND);
    for thousand in 0..100 {
        make_up(&store, &limit, thousand * 1_000..(thousand + 1) * 1_000);
        now.fetch_add(SECOND / 10, Ordering::Relaxed);
    }
    assert!(store.len() < 25_000, "{} where 10,000 live", store.len());
}

#[test]
fn refused_requests_leave_nothing_behind() {
    let store = MemoryStore::new(clock().0, 1_000);
    let limit = limit(Algorithm::TokenBucket, 0, HOUR);
    make_up(&store, &limit, 0..10_000);
    assert_eq!(store.len(), 0);
}

#[test]
fn the_bound_is_a_maximum_however_small() {
    let limit = limit(Algorithm::FixedWindow, 2, MINUTE);
    for most in [2, 10, 63, 100, 1_000, 5_000] {
        let store = MemoryStore::new(clock().0, most);
        for call in 0..10_000 {
            is_allowed(&store, &group(&limit, &[&format!("{call}"), &format!("other {call}")]));
        }
        assert!(store.len() <= most && store.len() * 10 >= most * 9, "{} of {most}", store.len());
        assert_eq!((store.evicted() as usize, store.turned_away()), (20_000 - store.len(), 0));
    }
    // Two counters never fit where there is room for one, and neither makes room for the other.
    let store = MemoryStore::new(clock().0, 1);
    assert_eq!(store.decide(&group(&limit, &["one", "other"])), Err(StoreError::Full));
    assert!(is_allowed(&store, &group(&limit, &["one"])) && store.len() == 1);
}

#[test]
fn live_counters_are_bounded_and_the_soonest_to_expire_make_room() {
    let store = MemoryStore::new(clock().0, 6_400);
    let (short, long) = (limit(Algorithm::FixedWindow, 5, MINUTE), limit(Algorithm::FixedWindow, 5, HOUR));
    make_up(&store, &long, 0..1_000);
    make_up(&store, &short, 0..100_000);
    assert!(store.len() <= 6_400, "{}", store.len());
    assert!(store.evicted() >= 100_000 + 1_000 - 6_400);
    let kept = (0..1_000).filter(|name| store.state(&key_of(&long, &name.to_string())).is_some()).count();
    assert!(kept > 900, "{kept} of 1,000 that live longer");
}

#[test]
fn the_system_clock_is_microseconds_since_the_epoch() {
    let (before, now): (Micros, Micros) = (NOW, Clock::System.now());
    assert!(now > before && now < 1 << 52);
}
