//! From rules and a request to its decision: layers, rules that replace others, allow, deny, shadow and quotas. Hits,
//! merged checks and overrides are in `plan_checks.rs`.

#[path = "support/rules.rs"]
mod support;

use support::{Trial, descriptor, fixed, kinds, limit, named, overridden, replacing, request, rule};
use weir::limit::{Algorithm, DAY, HOUR, MINUTE, SECOND};
use weir::rules::Rule;
use weir::rules::decision::Code;
use weir::rules::plan::{Kind, Verdict};
use weir::rules::request::{Descriptor, Request};

mod layers {
    use super::*;

    #[test]
    fn refused_by_one_rule_is_counted_by_none_and_named() {
        let trial = Trial::new(&[(&[("ip", "")], fixed(1, MINUTE)), (&[("user", "")], fixed(5, HOUR))]);
        let both = request([descriptor(&[("ip", "1")]), descriptor(&[("user", "u")])]);
        assert_eq!(trial.statuses(&both), [(Code::Ok, Some(0)), (Code::Ok, Some(4))]);
        let refused = trial.ask(&both);
        assert_eq!((refused.code, refused.limited_by), (Code::OverLimit, Some(0)));
        assert_eq!(trial.statuses(&both), [(Code::OverLimit, Some(0)), (Code::Ok, Some(4))]);
    }

    #[test]
    fn of_several_that_refuse_the_longest_wait_is_named() {
        let trial =
            Trial::new(&[(&[("ip", "")], fixed(0, MINUTE)), (&[("user", "")], fixed(1, HOUR)), (&[("key", "")], fixed(1, DAY))]);
        let users = request([descriptor(&[("user", "u")]), descriptor(&[("key", "k")])]);
        trial.ask(&users);
        assert_eq!(trial.ask(&users).limited_by, Some(1), "a day is longer than an hour");
        let all = request([descriptor(&[("key", "k")]), descriptor(&[("ip", "1")]), descriptor(&[("user", "u")])]);
        assert_eq!(trial.ask(&all).limited_by, Some(1), "what can never fit waits longest");
        let twice = request([descriptor(&[("ip", "1")]), descriptor(&[("ip", "2")])]);
        assert_eq!(trial.ask(&twice).limited_by, Some(0), "of equals the first");
    }

    #[test]
    fn without_a_rule_there_is_nothing_to_ask() {
        let trial = Trial::new(&[(&[("a", "x")], fixed(1, MINUTE)), (&[("empty", "")], rule())]);
        let request = request([descriptor(&[("a", "y")]), descriptor(&[]), descriptor(&[("empty", "1")])]);
        let plan = trial.plan(&request);
        assert_eq!(kinds(&plan), [Kind::Unmatched; 3]);
        assert!(plan.group.checks.is_empty());
        assert_eq!(trial.statuses(&request), [(Code::Ok, None); 3]);
    }

    #[test]
    fn several_limits_show_the_refused_else_the_scarcest() {
        let limits = vec![limit(Algorithm::FixedWindow, 9, SECOND), limit(Algorithm::FixedWindow, 3, HOUR)];
        let trial = Trial::new(&[(&[("a", "")], Rule { limits, ..rule() })]);
        let one = request([descriptor(&[("a", "1")])]);
        let status = trial.ask(&one).statuses[0].clone();
        assert_eq!((status.shown, status.outcome().map(|outcome| outcome.remaining())), (Some(1), Some(2)));
        let four = Request { hits_addend: 4, ..one };
        let status = trial.ask(&four).statuses[0].clone();
        assert_eq!((status.code, status.shown, status.cost), (Code::OverLimit, Some(1), 4));
        assert!(status.limits[0].outcome.is_allowed());
        assert_eq!(status.limit(&trial.domain, &[]).map(|limit| limit.limit.window()), Some(HOUR));
    }

    #[test]
    fn unlimited_says_so() {
        let trial = Trial::new(&[(&[("a", "")], Rule { unlimited: true, ..rule() })]);
        let decision = trial.ask(&request([descriptor(&[("a", "1")])]));
        assert!(decision.statuses[0].unlimited && decision.code == Code::Ok && decision.statuses[0].shown.is_none());
    }
}

mod replaces {
    use super::*;

    #[test]
    fn a_replaced_rule_is_dropped() {
        let trial = Trial::new(&[
            (&[("ip", "")], named("base", fixed(0, MINUTE))),
            (&[("user", "")], replacing(&["base"], fixed(5, MINUTE))),
        ]);
        let both = request([descriptor(&[("ip", "1")]), descriptor(&[("user", "u")])]);
        assert_eq!(kinds(&trial.plan(&both)), [Kind::Replaced, Kind::Limited]);
        assert_eq!(trial.statuses(&both), [(Code::Ok, None), (Code::Ok, Some(4))]);
        assert_eq!(trial.code(&request([descriptor(&[("ip", "1")])])), Code::OverLimit, "alone it stands");
    }

    #[test]
    fn replaced_and_shadow_rules_still_replace() {
        let trial = Trial::new(&[
            (&[("a", "")], named("a", fixed(0, MINUTE))),
            (&[("b", "")], replacing(&["a"], named("b", fixed(0, MINUTE)))),
            (&[("c", "")], Rule { shadow: true, ..replacing(&["b"], fixed(0, MINUTE)) }),
        ]);
        let all = request([descriptor(&[("a", "1")]), descriptor(&[("b", "1")]), descriptor(&[("c", "1")])]);
        assert_eq!(kinds(&trial.plan(&all)), [Kind::Replaced, Kind::Replaced, Kind::Limited]);
        assert_eq!(trial.code(&all), Code::Ok);
    }

    #[test]
    fn a_replaced_deny_or_allow_is_dropped_too() {
        for base in [Rule { deny: true, ..rule() }, Rule { allow: true, ..rule() }] {
            let trial = Trial::new(&[(&[("a", "")], named("base", base)), (&[("b", "")], replacing(&["base"], fixed(1, MINUTE)))]);
            let both = request([descriptor(&[("a", "1")]), descriptor(&[("b", "1")])]);
            assert_eq!(kinds(&trial.plan(&both)), [Kind::Replaced, Kind::Limited]);
            assert_eq!([trial.code(&both), trial.code(&both)], [Code::Ok, Code::OverLimit]);
            let with_override = request([overridden(0, 2, descriptor(&[("a", "1")])), descriptor(&[("b", "2")])]);
            assert_eq!(kinds(&trial.plan(&with_override)), [Kind::Limited; 2], "its override has no name");
        }
    }
}

mod verdicts {
    use super::*;

    fn trial(shadow: bool) -> Trial {
        Trial::new(&[
            (&[("good", "")], Rule { allow: true, ..rule() }),
            (&[("bad", "")], Rule { deny: true, shadow, ..rule() }),
            (&[("user", "")], fixed(3, MINUTE)),
        ])
    }

    #[test]
    fn allow_answers_for_the_whole_request_and_counts_nothing() {
        let trial = trial(false);
        let allowed = request([descriptor(&[("user", "u")]), descriptor(&[("good", "1")])]);
        assert!(matches!(trial.plan(&allowed).verdict, Verdict::Allowed(_)));
        assert_eq!(trial.statuses(&allowed), [(Code::Ok, None), (Code::Ok, None)]);
        assert!(trial.store.is_empty());
    }

    #[test]
    fn deny_beats_allow_and_override_and_counts_nothing() {
        let trial = trial(false);
        let denied =
            request([descriptor(&[("user", "u")]), descriptor(&[("good", "1")]), overridden(9, 2, descriptor(&[("bad", "1")]))]);
        let decision = trial.ask(&denied);
        assert_eq!((decision.code, decision.limited_by), (Code::OverLimit, Some(2)));
        assert_eq!(decision.statuses.iter().map(|status| status.code).collect::<Vec<_>>(), [Code::Ok, Code::Ok, Code::OverLimit]);
        assert!(trial.store.is_empty());
        assert_eq!(trial.statuses(&request([descriptor(&[("user", "u")])])), [(Code::Ok, Some(2))]);
    }

    #[test]
    fn shadow_makes_deny_inert() {
        let decision = trial(true).ask(&request([descriptor(&[("bad", "1")]), descriptor(&[("user", "u")])]));
        assert_eq!((decision.code, decision.statuses[0].code), (Code::Ok, Code::Ok));
        let mut trial = trial(false);
        trial.settings.shadow = true;
        let decision = trial.ask(&request([descriptor(&[("bad", "1")]), descriptor(&[("user", "u")])]));
        assert_eq!((decision.code, decision.statuses[0].code), (Code::Ok, Code::OverLimit), "the truth in the status alone");
    }
}

mod modes {
    use super::*;

    #[test]
    fn a_shadow_rule_counts_tells_and_lets_pass() {
        let trial = Trial::new(&[(&[("a", "")], Rule { shadow: true, ..fixed(1, MINUTE) })]);
        let one = request([descriptor(&[("a", "1")])]);
        assert!(!trial.ask(&one).statuses[0].shadowed);
        let decision = trial.ask(&one);
        let status = &decision.statuses[0];
        assert_eq!((decision.code, status.code, status.shadowed), (Code::Ok, Code::Ok, true));
        assert_eq!(status.outcome().map(|outcome| outcome.remaining()), Some(0));
    }

    #[test]
    fn global_shadow_refuses_nothing_and_tells_the_truth() {
        let mut trial = Trial::new(&[(&[("a", "")], fixed(1, MINUTE))]);
        trial.settings.shadow = true;
        let one = request([descriptor(&[("a", "1")])]);
        trial.ask(&one);
        let decision = trial.ask(&one);
        assert_eq!((decision.code, decision.statuses[0].code, decision.limited_by), (Code::Ok, Code::OverLimit, None));
    }

    #[test]
    fn quotas_refuse_together_and_plain_rules_alone() {
        let quota = |requests| Rule { quota: true, ..fixed(requests, MINUTE) };
        let trial = Trial::new(&[(&[("a", "")], quota(1)), (&[("b", "")], quota(2)), (&[("c", "")], fixed(3, MINUTE))]);
        let quotas = request([descriptor(&[("a", "1")]), descriptor(&[("b", "1")])]);
        assert_eq!([trial.code(&quotas), trial.code(&quotas), trial.code(&quotas)], [Code::Ok, Code::Ok, Code::OverLimit]);
        assert_eq!(trial.ask(&quotas).limited_by, Some(0));
        let with_plain = request([descriptor(&[("b", "2")]), Descriptor { hits: Some(4), ..descriptor(&[("c", "1")]) }]);
        assert_eq!(trial.ask(&with_plain).limited_by, Some(1));
    }

    #[test]
    fn a_refund_is_no_quota_with_room() {
        let quota = Rule { quota: true, ..fixed(1, MINUTE) };
        let trial = Trial::new(&[(&[("a", "")], quota)]);
        let over = Request { hits_addend: 2, ..request([descriptor(&[("a", "1")])]) };
        let refund = Descriptor { is_negative_hits: true, ..descriptor(&[("a", "2")]) };
        assert_eq!(trial.code(&over), Code::OverLimit);
        let both = Request { hits_addend: 2, ..request([descriptor(&[("a", "1")]), refund]) };
        assert_eq!(trial.code(&both), Code::OverLimit);
    }

    #[test]
    fn global_quota_mode_makes_every_rule_a_quota() {
        let mut trial = Trial::new(&[(&[("a", "")], fixed(0, MINUTE)), (&[("b", "")], fixed(9, MINUTE))]);
        trial.settings.quota = true;
        assert_eq!(trial.code(&request([descriptor(&[("a", "1")]), descriptor(&[("b", "1")])])), Code::Ok);
        assert_eq!(trial.code(&request([descriptor(&[("a", "1")])])), Code::OverLimit);
    }
}
