//! One request of several checks: all are counted or none, but for what `charge`, `block_for` and modes say.

use proptest::prelude::*;
use weir::limit::{
    Algorithm, Charge, Check, Cost, HOUR, Limit, MINUTE, Micros, Mode, Operation, Outcome, Resolved, RetryAfter, SECOND, State,
    decide,
};

const NOW: Micros = 1_767_225_600 * SECOND + 123_456;

fn check(limit: Limit, cost: Cost, owner: u16) -> Check {
    Check { owner, ..Check::new(limit, Operation::Take, cost) }
}

fn limit(algorithm: Algorithm, requests: u64) -> Limit {
    Limit::new(algorithm, requests, HOUR, None).expect("a limit")
}

fn fixed(requests: u64) -> Limit {
    limit(Algorithm::FixedWindow, requests)
}

fn block(window: Micros, owner: u16) -> Check {
    check(Limit::penalty(window).expect("a block"), 0, owner)
}

/// `used` of the limit, taken now.
fn used(limit: &Limit, used: u64) -> Option<State> {
    let taken = limit.step(None, NOW, used, None);
    assert!(taken.outcome.is_allowed());
    taken.next
}

fn decided(checks: &[Check], states: &[Option<State>], now: Micros) -> Vec<Resolved> {
    let states: Vec<Option<&State>> = states.iter().map(Option::as_ref).collect();
    decide(checks, &states, now, false).into_vec()
}

/// Counts as a store does: what is written stands until its time is over.
#[derive(Default)]
struct Counters {
    states: Vec<Option<(State, Micros)>>,
}

impl Counters {
    fn decide(&mut self, checks: &[Check], now: Micros) -> Vec<Outcome> {
        self.states.resize(checks.len(), None);
        let live = self.states.iter().map(|state| state.clone().filter(|(_, expires)| *expires > now).map(|(state, _)| state));
        let states: Vec<Option<State>> = live.collect();
        let resolved = decided(checks, &states, now);
        for (state, resolved) in self.states.iter_mut().zip(&resolved) {
            if let Some((next, ttl)) = &resolved.write {
                *state = Some((next.clone(), now + ttl));
            }
        }
        resolved.iter().map(|resolved| resolved.outcome).collect()
    }
}

fn denied(retry: Micros) -> Outcome {
    Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(retry) }
}

/// A check with the state that it meets.
fn met_checks() -> impl Strategy<Value = (Check, Option<State>)> {
    let algorithms = [
        Algorithm::FixedWindow,
        Algorithm::SlidingLog,
        Algorithm::SlidingCounter,
        Algorithm::TokenBucket,
        Algorithm::LeakyBucket,
        Algorithm::Penalty,
    ];
    let operations = [Operation::Take, Operation::Take, Operation::Take, Operation::Look, Operation::Report];
    let modes = [Mode::Enforce, Mode::Enforce, Mode::Shadow, Mode::Quota];
    let charges = [Charge::Admitted, Charge::Admitted, Charge::Always];
    let select = (
        proptest::sample::select(algorithms.to_vec()),
        proptest::sample::select(operations.to_vec()),
        proptest::sample::select(modes.to_vec()),
        proptest::sample::select(charges.to_vec()),
    );
    (select, 0..4u16, 1..8u64, 1..6u64, 0..8u64).prop_map(
        |((algorithm, operation, mode, charge), owner, requests, cost, used_before)| {
            if algorithm == Algorithm::Penalty {
                let state = (used_before > 6).then_some(State::Blocked { until: NOW + MINUTE });
                let operation = if operation == Operation::Look { Operation::Look } else { Operation::Take };
                return (Check { operation, ..block(HOUR, owner) }, state);
            }
            let limit = limit(algorithm, requests);
            let state = if used_before > requests {
                limit.charge(used(&limit, requests).as_ref(), NOW, used_before - requests, None).next
            } else {
                used(&limit, used_before)
            };
            (Check { operation, mode, charge, ..check(limit, cost, owner) }, state)
        },
    )
}

fn alone(check: &Check, state: &Option<State>) -> weir::limit::Step {
    let cost = if check.operation == Operation::Look { 0 } else { check.cost };
    check.limit.step(state.as_ref(), NOW, cost, None)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn a_request_is_counted_by_all_of_its_checks_or_by_none(met in proptest::collection::vec(met_checks(), 1..7), refuse in any::<bool>()) {
        let (checks, states): (Vec<Check>, Vec<Option<State>>) = met.into_iter().unzip();
        let borrowed: Vec<Option<&State>> = states.iter().map(Option::as_ref).collect();
        let resolved = decide(&checks, &borrowed, NOW, refuse);
        let allows: Vec<bool> = checks.iter().zip(&states).map(|(check, state)| alone(check, state).outcome.is_allowed()).collect();
        let over = |owner: u16| checks.iter().zip(&allows).any(|(check, allows)| check.owner == owner && !allows);
        let enforced = checks.iter().zip(&allows).any(|(check, allows)| check.mode == Mode::Enforce && !allows);
        let mut quotas = checks.iter().filter(|check| check.mode == Mode::Quota).peekable();
        let refused = refuse || enforced || quotas.peek().is_some() && quotas.all(|check| over(check.owner));
        for (((check, state), allows), resolved) in checks.iter().zip(&states).zip(&allows).zip(&resolved) {
            let alone = alone(check, state);
            let always = check.charge == Charge::Always || check.operation == Operation::Report;
            let counted = !refused && (check.mode == Mode::Enforce || !over(check.owner));
            if check.limit.algorithm() == Algorithm::Penalty {
                continue;
            } else if check.operation == Operation::Look {
                prop_assert_eq!((&resolved.write, resolved.outcome), (&None, alone.outcome));
            } else if *allows && (counted || always) {
                prop_assert_eq!(resolved.outcome, alone.outcome);
                prop_assert_eq!(resolved.write.clone(), alone.next.map(|next| (next, alone.ttl)));
            } else if *allows {
                let look = check.limit.step(state.as_ref(), NOW, 0, None).outcome;
                prop_assert_eq!((&resolved.write, resolved.outcome), (&None, look));
            } else if always {
                let charged = check.limit.charge(state.as_ref(), NOW, check.cost, None);
                prop_assert_eq!(resolved.outcome, charged.outcome);
                prop_assert_eq!(resolved.write.clone(), charged.next.map(|next| (next, charged.ttl)));
            } else {
                prop_assert_eq!((&resolved.write, resolved.outcome), (&None, alone.outcome));
            }
        }
    }

    #[test]
    fn a_plain_take_alone_is_decided_as_among_others((check, state) in met_checks().prop_filter("plain", |(check, _)| check.is_plain())) {
        prop_assert_eq!(check.decide_alone(state.as_ref(), NOW), decide(&[check], &[state.as_ref()], NOW, false).remove(0));
    }

    #[test]
    fn a_block_is_set_by_an_enforced_take_without_room_alone(met in proptest::collection::vec(met_checks(), 1..7)) {
        let counted = |check: &Check| check.limit.algorithm() != Algorithm::Penalty;
        let mut checks: Vec<Check> = met.into_iter().map(|(check, _)| check).filter(counted).collect();
        let states: Vec<Option<State>> = checks.iter().map(|check| used(&check.limit, check.limit.requests())).chain([None]).collect();
        let no_room = |check: &Check| {
            check.owner == 0 && check.operation == Operation::Take && check.mode == Mode::Enforce && check.cost <= check.limit.requests()
        };
        let sets = checks.iter().any(no_room);
        checks.push(block(MINUTE, 0));
        let blocked = decided(&checks, &states, NOW).pop().expect("the block's own");
        if sets {
            prop_assert_eq!(blocked, Resolved { outcome: denied(MINUTE), write: Some((State::Blocked { until: NOW + MINUTE }, MINUTE)) });
        } else {
            prop_assert!(blocked.outcome.is_allowed() && blocked.write.is_none());
        }
    }
}

#[test]
fn refused_by_one_means_counted_by_none() {
    let checks = [check(fixed(5), 2, 0), check(fixed(1), 2, 1)];
    let mut counters = Counters::default();
    let outcomes = counters.decide(&checks, NOW);
    assert!(outcomes[0].is_allowed() && outcomes[0].remaining() == 5 && !outcomes[1].is_allowed());
    assert_eq!(counters.states, [None, None]);
}

#[test]
fn shadow_counts_and_never_refuses() {
    let checks = [check(fixed(5), 1, 0), Check { mode: Mode::Shadow, ..check(fixed(1), 1, 1) }];
    let mut counters = Counters::default();
    for expected in [[true, true], [true, false], [true, false]] {
        let outcomes = counters.decide(&checks, NOW);
        assert_eq!([outcomes[0].is_allowed(), outcomes[1].is_allowed()], expected);
    }
    assert_eq!(counters.decide(&[checks[0]], NOW)[0].remaining(), 1);
}

#[test]
fn quotas_refuse_when_all_are_over() {
    let quota = |limit, owner| Check { mode: Mode::Quota, ..check(limit, 1, owner) };
    let checks = [quota(fixed(1), 0), quota(fixed(2), 1), check(fixed(9), 1, 2)];
    let mut counters = Counters::default();
    let counted = |counters: &mut Counters| counters.decide(&checks, NOW)[2].remaining();
    assert_eq!([counted(&mut counters), counted(&mut counters)], [8, 7], "one quota has room");
    assert_eq!(counted(&mut counters), 7, "refused: counted by none");
}

#[test]
fn several_limits_of_one_quota_are_over_together() {
    let quota = |limit, owner| Check { mode: Mode::Quota, ..check(limit, 1, owner) };
    let checks = [quota(fixed(1), 0), quota(fixed(9), 0), quota(fixed(9), 1)];
    let mut counters = Counters::default();
    counters.decide(&checks, NOW);
    let outcomes = counters.decide(&checks, NOW);
    assert_eq!([outcomes[1].remaining(), outcomes[2].remaining()], [8, 7], "the first quota is over, the second counts");
}

#[test]
fn always_is_charged_whatever_the_others_say() {
    let always = |limit, owner| Check { charge: Charge::Always, ..check(limit, 3, owner) };
    let checks = [always(fixed(4), 0), check(fixed(2), 3, 1)];
    let mut counters = Counters::default();
    assert_eq!(counters.decide(&checks, NOW)[0].remaining(), 1);
    let over = counters.decide(&checks, NOW)[0];
    assert!(matches!(over, Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(_) }));
    assert!(matches!(counters.states[0], Some((State::Window { count: 6, .. }, _))));
    for _ in 0..5 {
        counters.decide(&checks, NOW);
    }
    assert!(matches!(counters.states[0], Some((State::Window { count: 8, .. }, _))), "at most one further limit");
    assert_eq!(counters.states[1], None);
}

#[test]
fn a_report_larger_than_what_is_left_is_charged() {
    let report = Check { operation: Operation::Report, ..check(fixed(10), 100, 0) };
    let mut counters = Counters::default();
    assert!(!counters.decide(&[report], NOW)[0].is_allowed());
    let look = Check { operation: Operation::Look, ..report };
    assert!(!counters.decide(&[look], NOW)[0].is_allowed(), "the budget is spent");
}

#[test]
fn a_block_runs_its_time_and_refusals_do_not_extend_it() {
    let checks = [check(limit(Algorithm::TokenBucket, 3_600), 3_600, 0), block(MINUTE, 0)];
    let take_one = [Check { cost: 1, ..checks[0] }, checks[1]];
    let mut counters = Counters::default();
    assert!(counters.decide(&checks, NOW).iter().all(Outcome::is_allowed));
    assert_eq!(counters.decide(&take_one, NOW)[1], denied(MINUTE), "no room: blocked");
    let after = NOW + 10 * SECOND;
    let outcomes = counters.decide(&take_one, after);
    assert!(outcomes[0].is_allowed(), "tokens are back");
    assert_eq!(outcomes[1], denied(50 * SECOND), "and still blocked");
    assert_eq!(outcomes[0].remaining(), 10, "nothing is counted while blocked");
    counters.decide(&checks, after);
    assert_eq!(counters.decide(&take_one, NOW + MINUTE - 1)[1], denied(1));
    assert!(counters.decide(&take_one, NOW + MINUTE).iter().all(Outcome::is_allowed));
}

#[test]
fn looks_reports_and_costs_that_never_fit_set_no_block() {
    let full = [used(&fixed(1), 1), None];
    let sets = |check: Check| decided(&[check, block(MINUTE, 0)], &full, NOW)[1].write.is_some();
    assert!(sets(check(fixed(1), 1, 0)));
    assert!(!sets(check(fixed(1), 2, 0)), "can never fit");
    assert!(!sets(Check { operation: Operation::Report, ..check(fixed(1), 1, 0) }));
    assert!(!sets(Check { operation: Operation::Look, ..check(fixed(1), 0, 0) }));
    assert!(!sets(Check { mode: Mode::Shadow, ..check(fixed(1), 1, 0) }));
    assert!(!sets(check(fixed(1), 1, 1)), "another rule's");
}

#[test]
fn a_look_sees_a_block_and_the_block_refuses_the_other_checks() {
    let blocked = [None, Some(State::Blocked { until: NOW + SECOND }), None];
    let checks = [check(fixed(5), 1, 0), block(MINUTE, 0), check(fixed(5), 1, 1)];
    let resolved = decided(&checks, &blocked, NOW);
    assert_eq!(resolved[1].outcome, denied(SECOND));
    assert!(resolved.iter().all(|resolved| resolved.write.is_none()));
    let looks = checks.map(|check| Check { operation: Operation::Look, ..check });
    assert_eq!(decided(&looks, &blocked, NOW)[1].outcome, denied(SECOND));
}

#[test]
fn a_block_longer_than_its_rule_now_says_starts_afresh() {
    let checks = [check(fixed(5), 1, 0), block(MINUTE, 0)];
    let mut counters = Counters { states: vec![None, Some((State::Blocked { until: NOW + HOUR }, NOW + HOUR))] };
    let looks = checks.map(|check| Check { operation: Operation::Look, ..check });
    assert_eq!(counters.decide(&looks, NOW)[1], denied(MINUTE));
    assert!(matches!(counters.states[1], Some((State::Blocked { until }, _)) if until == NOW + HOUR), "a look writes nothing");
    assert_eq!(counters.decide(&checks, NOW)[1], denied(MINUTE));
    assert_eq!(counters.decide(&checks, NOW + MINUTE - 1)[1], denied(1));
    assert!(counters.decide(&checks, NOW + MINUTE)[1].is_allowed());
}

#[test]
fn a_deny_rule_refuses_whatever_the_counters_say() {
    let checks = [check(fixed(5), 1, 0), Check { charge: Charge::Always, ..check(fixed(5), 1, 1) }];
    let resolved = decide(&checks, &[None, None], NOW, true);
    assert_eq!(resolved[0].write, None);
    assert!(resolved[1].write.is_some());
}
