//! What a request's descriptors ask of the counters: hits, charges, merged checks, overrides, blocks and waits.

#[path = "support/rules.rs"]
mod support;

use support::{Trial, blocking, descriptor, domain, fixed, hits, kinds, limit, named, overridden, replacing, request, rule};
use weir::limit::{Algorithm, Charge, DAY, HOUR, MINUTE, Micros, Mode, Operation, RetryAfter, SECOND, WEEK};
use weir::rules::decision::Code;
use weir::rules::plan::{Kind, Moment, PlanError, PlanSettings, Source, plan};
use weir::rules::request::{Descriptor, LimitOverride, Request};
use weir::rules::{ChargeRule, Rule, RuleLimit};

mod hit_counts {
    use super::*;

    fn one_rule(requests: u64) -> Trial {
        Trial::new(&[(&[("a", "")], fixed(requests, MINUTE))])
    }

    #[test]
    fn a_descriptors_own_hits_win_and_the_requests_zero_is_one() {
        let trial = one_rule(100);
        let own = request([hits(7, descriptor(&[("a", "1")])), descriptor(&[("a", "2")])]);
        assert_eq!(trial.statuses(&own), [(Code::Ok, Some(93)), (Code::Ok, Some(99))]);
        let both = Request { hits_addend: 5, ..own };
        assert_eq!(trial.statuses(&both), [(Code::Ok, Some(86)), (Code::Ok, Some(94))]);
    }

    #[test]
    fn own_zero_looks() {
        let trial = one_rule(2);
        let look = request([hits(0, descriptor(&[("a", "1")]))]);
        let take = request([descriptor(&[("a", "1")])]);
        assert_eq!(trial.statuses(&look), [(Code::Ok, Some(2))]);
        assert!(trial.store.is_empty(), "a look writes nothing");
        trial.ask(&take);
        trial.ask(&take);
        assert_eq!(trial.statuses(&look), [(Code::Ok, Some(0))], "used == limit is not over");
        trial.ask(&request([hits(1, descriptor(&[("a", "1")]))]));
        assert_eq!(trial.statuses(&look), [(Code::OverLimit, Some(0))]);
    }

    #[test]
    fn negative_hits_give_back_before_the_rest_is_decided() {
        let trial = one_rule(3);
        let take = |n| Request { hits_addend: n, ..request([descriptor(&[("a", "1")])]) };
        let refund = |n| Descriptor { is_negative_hits: true, ..hits(n, descriptor(&[("a", "1")])) };
        assert_eq!(trial.statuses(&request([refund(2)])), [(Code::Ok, Some(3))]);
        assert!(trial.store.is_empty(), "nothing to give back to");
        assert_eq!(trial.statuses(&take(3)), [(Code::Ok, Some(0))]);
        let both = Request { hits_addend: 2, ..request([descriptor(&[("a", "1")]), refund(2)]) };
        assert_eq!(trial.statuses(&both), [(Code::Ok, Some(0)), (Code::Ok, Some(2))], "the take sees what the refund gave back");
        assert_eq!(trial.statuses(&request([refund(u64::MAX)])), [(Code::Ok, Some(3))], "never below empty");
    }

    #[test]
    fn a_refund_is_committed_though_the_request_is_refused() {
        let trial = Trial::new(&[(&[("a", "")], fixed(3, MINUTE)), (&[("b", "")], fixed(0, MINUTE))]);
        trial.ask(&Request { hits_addend: 3, ..request([descriptor(&[("a", "1")])]) });
        let refund = Descriptor { is_negative_hits: true, ..hits(2, descriptor(&[("a", "1")])) };
        assert_eq!(
            trial.statuses(&request([refund, descriptor(&[("b", "1")])])),
            [(Code::Ok, Some(2)), (Code::OverLimit, Some(0))]
        );
        assert_eq!(trial.statuses(&request([hits(0, descriptor(&[("a", "1")]))])), [(Code::Ok, Some(2))]);
    }

    #[test]
    fn hits_saturate() {
        let trial = one_rule(10);
        let huge = || hits(u64::MAX, descriptor(&[("a", "1")]));
        let plan = trial.plan(&request([huge(), huge()]));
        assert_eq!((plan.group.checks.len(), plan.group.checks[0].cost), (1, u64::MAX));
        assert_eq!(trial.statuses(&request([huge(), huge()])), [(Code::OverLimit, Some(0)); 2]);
    }
}

mod charges {
    use super::*;

    fn operation(charge: Option<ChargeRule>, setting: ChargeRule, own_hits: Option<u64>) -> (Operation, Charge) {
        let limit = RuleLimit { charge, ..limit(Algorithm::FixedWindow, 10, MINUTE) };
        let mut trial = Trial::new(&[(&[("a", "")], Rule { limits: vec![limit], ..rule() })]);
        trial.settings.charge = setting;
        let check = trial.plan(&request([Descriptor { hits: own_hits, ..descriptor(&[("a", "1")]) }])).group.checks[0];
        (check.operation, check.charge)
    }

    #[test]
    fn auto_charges_reports_alone() {
        use ChargeRule::{Admitted, Always, Auto};
        assert_eq!(operation(None, Auto, None), (Operation::Take, Charge::Admitted));
        assert_eq!(operation(None, Auto, Some(1)), (Operation::Report, Charge::Always));
        assert_eq!(operation(None, Auto, Some(0)), (Operation::Look, Charge::Admitted));
        assert_eq!(operation(None, Always, None), (Operation::Take, Charge::Always));
        assert_eq!(operation(None, Always, Some(0)), (Operation::Look, Charge::Admitted));
        assert_eq!(operation(Some(Admitted), Always, Some(5)), (Operation::Take, Charge::Admitted), "the rule's word is last");
        assert_eq!(operation(Some(Always), Admitted, None), (Operation::Take, Charge::Always));
    }

    #[test]
    fn a_report_is_charged_though_another_rule_refuses() {
        let trial = Trial::new(&[(&[("tokens", "")], fixed(10, MINUTE)), (&[("user", "")], fixed(0, MINUTE))]);
        let both = request([hits(4, descriptor(&[("tokens", "1")])), descriptor(&[("user", "u")])]);
        assert_eq!(trial.statuses(&both), [(Code::Ok, Some(6)), (Code::OverLimit, Some(0))]);
        assert_eq!(trial.statuses(&both), [(Code::Ok, Some(2)), (Code::OverLimit, Some(0))]);
    }
}

mod merging {
    use super::*;

    #[test]
    fn the_same_counter_twice_costs_the_sum_and_has_one_outcome() {
        let trial = Trial::new(&[(&[("a", "")], fixed(3, MINUTE))]);
        let twice = request([descriptor(&[("a", "1")]), descriptor(&[("a", "1")])]);
        let plan = trial.plan(&twice);
        assert_eq!((plan.group.checks.len(), plan.group.checks[0].cost), (1, 2));
        assert_eq!(trial.statuses(&twice), [(Code::Ok, Some(1)); 2]);
        assert_eq!(trial.statuses(&twice), [(Code::OverLimit, Some(1)); 2]);
        assert_eq!(trial.code(&request([descriptor(&[("a", "1")])])), Code::Ok);
    }

    #[test]
    fn a_shared_pattern_is_one_counter_and_a_plain_one_is_not() {
        let trial = Trial::new(&[(&[("shared", "a*~")], fixed(9, MINUTE)), (&[("plain", "a*")], fixed(9, MINUTE))]);
        let checks = |key| trial.plan(&request([descriptor(&[(key, "a1")]), descriptor(&[(key, "a2")])])).group.checks.len();
        assert_eq!((checks("shared"), checks("plain")), (1, 2));
    }

    #[test]
    fn a_thousand_descriptors_are_merged_by_the_map_as_by_the_list() {
        let names: Vec<String> = (0..500).map(|n| format!("v{n}")).collect();
        let limits = vec![limit(Algorithm::FixedWindow, 9, SECOND), limit(Algorithm::TokenBucket, 9, HOUR)];
        let rule = replacing(&["x"], named("y", blocking(MINUTE, Rule { limits, ..rule() })));
        let trial = Trial::new(&[(&[("a", "")], rule)]);
        let each = || names.iter().map(|name| descriptor(&[("a", name)]));
        let plan = trial.plan(&request(each().chain(each())));
        assert_eq!((plan.descriptors.len(), plan.group.checks.len()), (1_000, 1_500));
        for (place, planned) in plan.descriptors.iter().enumerate() {
            assert_eq!(planned.checks, plan.descriptors[place % 500].checks);
            let windows = planned.checks.iter().map(|check| plan.group.checks[check.check]);
            assert_eq!(windows.map(|check| (check.cost, check.owner)).collect::<Vec<_>>()[..2], [(2, (place % 500) as u16); 2]);
        }
        assert!(trial.statuses(&request(each().chain(each()))).iter().all(|status| *status == (Code::Ok, Some(7))));
    }

    #[test]
    fn refunds_come_first_and_keep_their_own_check() {
        let trial = Trial::new(&[(&[("a", "")], fixed(9, MINUTE))]);
        let refund = || Descriptor { is_negative_hits: true, ..descriptor(&[("a", "1")]) };
        let plan = trial.plan(&request([descriptor(&[("a", "1")]), refund(), descriptor(&[("a", "2")]), refund()]));
        let operations: Vec<Operation> = plan.group.checks.iter().map(|check| check.operation).collect();
        assert_eq!(operations, [Operation::Refund, Operation::Take, Operation::Take]);
        assert_eq!(plan.group.checks[0].cost, 2);
        let places: Vec<usize> = plan.descriptors.iter().map(|planned| planned.checks[0].check).collect();
        assert_eq!(places, [1, 0, 2, 0]);
        assert_eq!(plan.group.keys[0], plan.group.keys[1]);
    }
}

mod overrides {
    use super::*;

    #[test]
    fn an_override_replaces_all_limits_and_ignores_modes_and_name() {
        let limits = vec![limit(Algorithm::TokenBucket, 9, SECOND), limit(Algorithm::FixedWindow, 9, HOUR)];
        let base = Rule { shadow: true, quota: true, unlimited: true, limits, ..named("base", rule()) };
        let trial = Trial::new(&[(&[("a", "")], base), (&[("b", "")], replacing(&["base"], fixed(9, MINUTE)))]);
        let both = request([overridden(2, 3, descriptor(&[("a", "1")])), descriptor(&[("b", "1")])]);
        let plan = trial.plan(&both);
        assert_eq!(plan.descriptors[0].checks.len(), 1);
        let check = plan.group.checks[0];
        assert_eq!((check.limit.algorithm(), check.limit.requests(), check.limit.window()), (Algorithm::TokenBucket, 2, HOUR));
        assert_eq!((check.mode, plan.descriptors[0].checks[0].source), (Mode::Enforce, Source::Override(0)));
        let codes = [trial.code(&both), trial.code(&both), trial.code(&both)];
        assert_eq!(codes, [Code::Ok, Code::Ok, Code::OverLimit]);
        let decision = trial.ask(&both);
        assert_eq!((decision.limited_by, decision.statuses[0].code), (Some(0), Code::OverLimit));
        assert_eq!(decision.statuses[0].limit(&trial.domain, &plan.overrides).map(|limit| limit.limit.requests()), Some(2));
    }

    #[test]
    fn without_a_rule_an_override_counts_by_fixed_window() {
        let trial = Trial::new(&[(&[("a", "")], fixed(1, MINUTE))]);
        let check = trial.plan(&request([overridden(5, 2, descriptor(&[("new", "1")]))])).group.checks[0];
        assert_eq!((check.limit.algorithm(), check.limit.requests()), (Algorithm::FixedWindow, 5));
        assert_eq!(kinds(&trial.plan(&request([overridden(5, 2, descriptor(&[]))]))), [Kind::Unmatched]);
    }

    #[test]
    fn an_equal_shape_shares_the_counter() {
        let trial = Trial::new(&[(&[("a", "")], fixed(3, MINUTE))]);
        let plain = request([descriptor(&[("a", "1")])]);
        let minute = |requests| request([overridden(requests, 2, descriptor(&[("a", "1")]))]);
        trial.ask(&plain);
        assert_eq!(trial.statuses(&minute(10)), [(Code::Ok, Some(8))]);
        assert_eq!(trial.statuses(&minute(1)), [(Code::OverLimit, Some(0))]);
        assert_eq!(trial.statuses(&plain), [(Code::Ok, Some(0))], "a lower override does not stand in its way");
        assert_eq!(trial.statuses(&request([overridden(10, 3, descriptor(&[("a", "1")]))])), [(Code::Ok, Some(9))]);
    }

    #[test]
    fn checks_that_share_counters_across_rules_have_one_owner() {
        let limits = vec![limit(Algorithm::FixedWindow, 5, MINUTE), limit(Algorithm::FixedWindow, 9, HOUR)];
        let trial = Trial::new(&[(&[("a", "")], blocking(MINUTE, Rule { limits, ..rule() }))]);
        let plan = trial.plan(&request([overridden(7, 3, descriptor(&[("a", "1")])), descriptor(&[("a", "1")])]));
        let owners: Vec<u16> = plan.group.checks.iter().map(|check| check.owner).collect();
        assert_eq!(owners, [0, 0, 0]);
        assert_eq!(plan.group.checks[0].limit.requests(), 7, "the stricter of two sizes");
    }

    #[test]
    fn units_and_multipliers() {
        let trial = Trial::new(&[]);
        let window = |unit, unit_multiplier| {
            let limit = Some(LimitOverride { requests_per_unit: 5, unit, unit_multiplier });
            let planned = plan(
                &trial.domain,
                &request([Descriptor { limit, ..descriptor(&[("a", "1")]) }]),
                PlanSettings::default(),
                Moment::default(),
                &(),
            );
            planned.map(|plan| plan.group.checks[0].limit.window())
        };
        assert_eq!(window(1, None), Ok(SECOND));
        assert_eq!(window(2, Some(0)), Ok(MINUTE));
        assert_eq!(window(2, Some(5)), Ok(5 * MINUTE));
        assert_eq!(window(7, Some(1)), Ok(WEEK));
        for unit in [0, 8, -1, i32::MAX] {
            assert_eq!(window(unit, None), Err(PlanError::UnknownUnit { descriptor: 0, unit }));
        }
        assert!(matches!(window(6, Some(u32::MAX)), Err(PlanError::BadOverride { .. })), "no window is that long");
    }

    #[test]
    fn an_unknown_unit_is_an_error_whatever_the_rules_say() {
        for base in [Rule { allow: true, ..rule() }, Rule { deny: true, ..rule() }, fixed(1, MINUTE)] {
            let domain = domain(&[(&[("a", "")], base)]);
            let request = request([descriptor(&[("a", "1")]), overridden(1, 9, descriptor(&[("a", "2")]))]);
            let refused = plan(&domain, &request, PlanSettings::default(), Moment::default(), &()).map(|plan| plan.verdict);
            assert_eq!(refused, Err(PlanError::UnknownUnit { descriptor: 1, unit: 9 }));
        }
    }
}

mod blocks_and_waits {
    use super::*;

    #[test]
    fn a_block_shows_the_limit_that_led_to_it() {
        let trial = Trial::new(&[(&[("a", "")], blocking(DAY, fixed(1, MINUTE)))]);
        let one = request([descriptor(&[("a", "1")])]);
        assert_eq!([trial.code(&one), trial.code(&one)], [Code::Ok, Code::OverLimit]);
        let status = trial.ask(&one).statuses[0].clone();
        assert_eq!(status.shown.map(|shown| status.limits[shown].source), Some(Source::Block));
        assert_eq!(status.limit(&trial.domain, &[]).map(|limit| limit.limit.window()), Some(MINUTE));
        assert!(matches!(status.outcome(), Some(weir::limit::Outcome::Denied { retry_after: RetryAfter::In(DAY), .. })));
        let refund = Descriptor { is_negative_hits: true, ..descriptor(&[("a", "1")]) };
        assert_eq!(trial.code(&request([refund])), Code::Ok);
        assert_eq!(trial.code(&one), Code::OverLimit, "a refund does not lift it");
        assert_eq!(trial.code(&request([hits(0, descriptor(&[("a", "1")]))])), Code::OverLimit, "a look sees it");
        assert_eq!(trial.code(&request([descriptor(&[("a", "2")])])), Code::Ok);
    }

    #[test]
    fn a_shadow_rule_never_blocks() {
        let trial = Trial::new(&[(&[("a", "")], blocking(DAY, Rule { shadow: true, ..fixed(1, MINUTE) }))]);
        assert_eq!(trial.plan(&request([descriptor(&[("a", "1")])])).group.checks.len(), 1);
    }

    fn leaky(max_wait: Option<Micros>) -> Trial {
        let limit = RuleLimit { max_wait, ..limit(Algorithm::LeakyBucket, 10, SECOND) };
        Trial::new(&[(&[("a", "")], Rule { limits: vec![limit], ..rule() })])
    }

    #[test]
    fn a_leaky_admission_carries_its_delay_and_is_held_only_if_asked() {
        let one = request([descriptor(&[("a", "1")])]);
        for (max_wait, hold) in [(None, 0), (Some(SECOND), SECOND / 10)] {
            let trial = leaky(max_wait);
            assert_eq!(trial.ask(&one).delay, 0);
            let decision = trial.ask(&one);
            assert_eq!((decision.delay, decision.hold), (SECOND / 10, hold));
        }
    }

    #[test]
    fn weir_waits_no_longer_than_the_rule_and_the_caller_do() {
        let max_delay = |max_wait, patience| {
            let trial = leaky(max_wait);
            let planned = plan(
                &trial.domain,
                &request([descriptor(&[("a", "1")])]),
                PlanSettings::default(),
                Moment { patience, ..Moment::default() },
                &(),
            );
            planned.expect("a plan").group.checks[0].max_delay
        };
        assert_eq!(max_delay(Some(500), Some(200)), Some(200));
        assert_eq!(max_delay(Some(500), Some(900)), Some(500));
        assert_eq!(max_delay(Some(500), None), Some(500));
        assert_eq!(max_delay(None, Some(200)), None);
        let trial = leaky(Some(SECOND / 10));
        let one = request([descriptor(&[("a", "1")])]);
        assert_eq!([trial.code(&one), trial.code(&one), trial.code(&one)], [Code::Ok, Code::Ok, Code::OverLimit]);
    }
}
