//! What operators say of one subject, against what everybody else gets: which of the two holds, and in whose favour.

mod support {
    pub mod rules;
}

use support::rules::{NOW, Trial, blocking, descriptor, fixed, hits, limit, named, request, rule};
use weir::limit::{Algorithm, HOUR, Limit, MINUTE, Micros, Outcome, Period, RetryAfter, SECOND};
use weir::rules::decision::Code;
use weir::rules::plan::{Kind, Source, Verdict};
use weir::rules::request::{Descriptor, LimitOverride};
use weir::rules::subject::{SubjectLimits, SubjectRate, SubjectRecord};
use weir::rules::tier::{RuleTiers, Tier, TierId, TierLimits, TierSource};
use weir::rules::tier_definition::TierDefinition;
use weir::rules::{Rule, RuleLimit};

const LATER: Micros = NOW + HOUR;

fn blocked() -> SubjectRecord {
    SubjectRecord { blocked_until: Some(LATER), ..SubjectRecord::default() }
}

fn allowed() -> SubjectRecord {
    SubjectRecord { allowed_until: Some(LATER), ..SubjectRecord::default() }
}

fn tier(name: &str) -> SubjectRecord {
    SubjectRecord { tier: Some(name.into()), ..SubjectRecord::default() }
}

fn multiplied(multiplier: u64) -> SubjectRecord {
    SubjectRecord { multiplier: Some(multiplier), ..SubjectRecord::default() }
}

fn rate(requests: u64, window: Micros) -> SubjectRate {
    SubjectRate::new(requests, window, None, None).expect("a limit")
}

/// Other limits for a rule, or for all.
fn limited(rule: Option<&str>, rates: &[SubjectRate]) -> SubjectRecord {
    let limits = SubjectLimits { rule: rule.map(Into::into), rates: rates.to_vec(), ..SubjectLimits::default() };
    SubjectRecord { limits: vec![limits], ..SubjectRecord::default() }
}

fn user(value: &str) -> Descriptor<'_> {
    descriptor(&[("user", value)])
}

/// What is left to a user after one request: the outcome's part in the answer.
fn remaining(trial: &Trial, value: &str) -> Option<u64> {
    trial.statuses(&request([user(value)]))[0].1
}

/// The limit that the answer names.
fn shown(trial: &Trial, request: &weir::rules::request::Request<'_>) -> Option<(u64, Micros, Algorithm)> {
    let plan = trial.plan(request);
    let decision = trial.ask(request);
    let limit = decision.statuses[0].limit(&trial.domain, &plan.overrides)?.limit;
    Some((limit.requests(), limit.window(), limit.algorithm()))
}

#[test]
fn a_blocked_subject_is_refused_until_then_and_nothing_is_counted() {
    let trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE)), (&[("path", "")], fixed(5, MINUTE))]);
    trial.record("user=u1", blocked());
    let both = request([descriptor(&[("path", "/a")]), user("u1")]);
    let decision = trial.ask(&both);
    assert_eq!((decision.code, decision.limited_by), (Code::OverLimit, Some(1)));
    let refused = Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(HOUR) };
    assert_eq!((decision.statuses[1].outcome(), decision.statuses[1].code), (Some(refused), Code::OverLimit));
    assert_eq!(decision.statuses[0].code, Code::Ok);
    assert_eq!(trial.statuses(&request([descriptor(&[("path", "/a")])]))[0].1, Some(4), "the other layer was not spent");
    assert_eq!(trial.code(&request([user("u2")])), Code::Ok);
}

#[test]
fn a_block_needs_no_rule() {
    let trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE))]);
    trial.record("session=s1", blocked());
    assert_eq!(trial.code(&request([descriptor(&[("session", "s1")])])), Code::OverLimit);
}

#[test]
fn what_is_over_does_nothing() {
    let trial = Trial::new(&[(&[("user", "")], fixed(1, MINUTE))]);
    trial.record("user=u1", SubjectRecord { blocked_until: Some(NOW), allowed_until: Some(NOW), ..SubjectRecord::default() });
    let codes = [(); 2].map(|()| trial.code(&request([user("u1")])));
    assert_eq!(codes, [Code::Ok, Code::OverLimit]);
}

#[test]
fn an_exempt_subject_is_admitted_and_not_counted() {
    let trial = Trial::new(&[(&[("user", "")], fixed(1, MINUTE)), (&[("path", "")], fixed(1, MINUTE))]);
    trial.record("user=u1", allowed());
    for _ in 0..3 {
        assert_eq!(trial.code(&request([descriptor(&[("path", "/a")]), user("u1")])), Code::Ok);
    }
    assert_eq!(trial.statuses(&request([descriptor(&[("path", "/a")])]))[0], (Code::Ok, Some(0)));
}

#[test]
fn blocked_beats_allowed_beats_deny_beats_allow() {
    let deny = || Rule { deny: true, ..rule() };
    let allow = || Rule { allow: true, ..rule() };
    let trial = Trial::new(&[(&[("bad", "")], deny()), (&[("good", "")], allow()), (&[("user", "")], fixed(1, MINUTE))]);
    trial.record("user=blocked", blocked());
    trial.record("user=allowed", allowed());
    trial.record("user=both", SubjectRecord { allowed_until: Some(LATER), ..blocked() });
    let with = |key, value| request([descriptor(&[(key, "1")]), user(value)]);
    assert_eq!(trial.plan(&with("good", "blocked")).verdict, Verdict::Blocked { descriptor: 1 });
    assert_eq!(trial.plan(&with("bad", "allowed")).verdict, Verdict::Exempt { descriptor: 1 });
    assert_eq!(trial.plan(&with("bad", "both")).verdict, Verdict::Blocked { descriptor: 1 });
    assert_eq!(trial.plan(&request([user("allowed"), user("blocked")])).verdict, Verdict::Blocked { descriptor: 1 });
    assert!(matches!(trial.plan(&with("bad", "other")).verdict, Verdict::Denied { descriptor: 0, .. }));
}

#[test]
fn under_the_shadow_switch_a_block_only_tells() {
    let mut trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE))]);
    trial.settings.shadow = true;
    trial.record("user=u1", blocked());
    let decision = trial.ask(&request([user("u1")]));
    assert_eq!((decision.code, decision.statuses[0].code), (Code::Ok, Code::OverLimit));
}

#[test]
fn the_requests_own_limit_beats_the_subjects() {
    let trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE))]);
    trial.record("user=u1", SubjectRecord { multiplier: Some(2_000_000), ..limited(None, &[rate(50, MINUTE)]) });
    let own = LimitOverride { requests_per_unit: 7, unit: 2, unit_multiplier: None };
    let request = request([Descriptor { limit: Some(own), ..user("u1") }]);
    assert_eq!(shown(&trial, &request), Some((14, MINUTE, Algorithm::FixedWindow)), "and is multiplied");
}

#[test]
fn a_subjects_limit_replaces_the_rules_for_it_alone_and_keeps_what_was_used() {
    let per_user = Rule { limits: vec![limit(Algorithm::SlidingCounter, 5, MINUTE)], ..named("per-user", rule()) };
    let trial = Trial::new(&[(&[("user", "")], per_user)]);
    assert_eq!(remaining(&trial, "u1"), Some(4));
    trial.record("user=u1", limited(Some("per-user"), &[rate(50, MINUTE)]));
    assert_eq!(remaining(&trial, "u1"), Some(48), "one was used before");
    assert_eq!(shown(&trial, &request([user("u1")])), Some((50, MINUTE, Algorithm::SlidingCounter)));
    assert_eq!(remaining(&trial, "u2"), Some(4));
    trial.record("user=u1", limited(Some("another-rule"), &[rate(50, MINUTE)]));
    assert!(remaining(&trial, "u1").is_some_and(|left| left < 5));
}

#[test]
fn a_named_limit_beats_the_one_for_all_rules() {
    let trial = Trial::new(&[
        (&[("user", "")], named("a", fixed(5, MINUTE))),
        (&[("path", ""), ("user", "")], named("b", fixed(5, MINUTE))),
    ]);
    let mut trial = trial;
    trial.domain.subject = vec![b"user".as_slice().into()];
    let mut record = limited(None, &[rate(10, MINUTE)]);
    record.limits.extend(limited(Some("b"), &[rate(20, HOUR)]).limits);
    trial.record("user=u1", record);
    let both = request([user("u1"), descriptor(&[("path", "/a"), ("user", "u1")])]);
    let left: Vec<Option<u64>> = trial.statuses(&both).into_iter().map(|(_, left)| left).collect();
    assert_eq!(left, [Some(9), Some(19)]);
}

#[test]
fn another_algorithm_or_burst_is_taken_by_name() {
    let trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE))]);
    let bucket = SubjectRate::new(10, MINUTE, Some(30), None).expect("a limit");
    trial.record("user=u1", limited(None, &[bucket]));
    assert_eq!(shown(&trial, &request([user("u1")])), Some((10, MINUTE, Algorithm::TokenBucket)));
    assert_eq!(trial.code(&request([hits(29, user("u1"))])), Code::Ok);
}

/// They may be, once a rule counts by another algorithm than when they were said.
#[test]
fn of_limits_that_are_one_counter_the_smaller_one_holds() {
    let named = |requests, algorithm| SubjectRate::new(requests, MINUTE, None, Some(algorithm)).expect("a limit");
    for algorithm in [Algorithm::FixedWindow, Algorithm::TokenBucket] {
        let trial = Trial::new(&[(&[("user", "")], Rule { limits: vec![limit(algorithm, 5, MINUTE)], ..rule() })]);
        let (smaller, larger) = (rate(10, MINUTE), named(20, algorithm));
        for (place, rates) in
            [vec![smaller, larger], vec![larger, smaller], vec![larger, rate(90, HOUR), smaller]].iter().enumerate()
        {
            let value = format!("u{place}");
            trial.record(&format!("user={value}"), limited(None, rates));
            assert_eq!([(); 3].map(|()| remaining(&trial, &value)), [Some(9), Some(8), Some(7)], "{rates:?}");
            let plan = trial.plan(&request([user(&value)]));
            let sources: Vec<Source> = plan.descriptors[0].checks.iter().map(|check| check.source).collect();
            assert_eq!(sources, (0..rates.len() - 1).map(Source::Subject).collect::<Vec<_>>());
            let sizes: Vec<u64> = plan.overrides.iter().map(|limit| limit.limit.requests()).collect();
            assert_eq!(sizes, if place == 2 { vec![10, 90] } else { vec![10] });
        }
        let twice = request([user("u0"), user("u0")]);
        assert_eq!(trial.plan(&twice).group.checks[0].cost, 2, "several descriptors are summed as ever");
    }
}

#[test]
fn of_a_tiers_limits_that_are_one_counter_the_smaller_one_holds() {
    let trial = tiered(TierSource::Assigned(b"user".as_slice().into()), &[("free", 5)]);
    let larger = SubjectRate::new(20, MINUTE, Some(20), None).expect("a limit");
    let definition = TierDefinition { sets: vec![("default".into(), vec![larger, rate(10, MINUTE)])], ..TierDefinition::default() };
    let domain = trial.domain.with_tiers([("team", &definition)]);
    let limits: Vec<_> =
        domain.rules[0].limits_of(Some(TierId(1))).iter().map(|limit| (&*limit.policy, limit.limit.requests())).collect();
    assert_eq!(limits, [("per-user", 10)]);
}

#[test]
fn rates_and_quotas_are_replaced_apart() {
    let quota = RuleLimit::named(0, &[Limit::quota(Period::Day, 100).expect("a quota")], "per-user");
    let trial = Trial::new(&[(&[("user", "")], Rule { limits: vec![limit(Algorithm::FixedWindow, 5, MINUTE), quota], ..rule() })]);
    let limits = |trial: &Trial| {
        let checks = trial.plan(&request([user("u1")])).group.checks;
        checks.iter().map(|check| (check.limit.algorithm(), check.limit.requests())).collect::<Vec<_>>()
    };
    trial.record("user=u1", limited(None, &[rate(50, MINUTE)]));
    assert_eq!(limits(&trial), [(Algorithm::FixedWindow, 50), (Algorithm::Calendar, 100)]);
    let daily = SubjectLimits { quotas: vec![Limit::quota(Period::Day, 7).expect("a quota")], ..SubjectLimits::default() };
    trial.record("user=u1", SubjectRecord { limits: vec![daily.clone()], ..SubjectRecord::default() });
    assert_eq!(limits(&trial), [(Algorithm::FixedWindow, 5), (Algorithm::Calendar, 7)]);
    trial.record("user=u1", SubjectRecord { limits: vec![SubjectLimits { unlimited: true, ..daily }], ..SubjectRecord::default() });
    assert_eq!(limits(&trial), [(Algorithm::Calendar, 7)]);
}

#[test]
fn without_any_limit_left_a_subject_is_unlimited() {
    let trial = Trial::new(&[(&[("user", "")], fixed(1, MINUTE))]);
    let unlimited = SubjectLimits { unlimited: true, ..SubjectLimits::default() };
    trial.record("user=u1", SubjectRecord { limits: vec![unlimited], ..SubjectRecord::default() });
    let plan = trial.plan(&request([user("u1")]));
    assert_eq!((plan.descriptors[0].kind, plan.group.checks.len()), (Kind::Unlimited, 0));
}

#[test]
fn an_unlimited_rule_is_limited_for_a_subject_only_by_its_name() {
    let trial = Trial::new(&[(&[("user", "")], named("free", Rule { unlimited: true, ..rule() }))]);
    trial.record("user=u1", limited(None, &[rate(1, MINUTE)]));
    assert_eq!(remaining(&trial, "u1"), None);
    trial.record("user=u1", limited(Some("free"), &[rate(1, MINUTE)]));
    assert_eq!(remaining(&trial, "u1"), Some(0));
}

#[test]
fn the_multiplier_rounds_down_and_leaves_one() {
    let trial = Trial::new(&[(&[("user", "")], fixed(5, MINUTE)), (&[("none", "")], fixed(0, MINUTE))]);
    for (multiplier, expected) in [(1_500_000, 7), (999_999, 4), (0, 1), (1_000_000, 5)] {
        trial.record("user=u1", multiplied(multiplier));
        let limit = shown(&trial, &request([user("u1")])).expect("a limit");
        assert_eq!(limit.0, expected, "× {multiplier} millionths");
    }
    trial.record("none=1", multiplied(5_000_000));
    assert_eq!(trial.code(&request([descriptor(&[("none", "1")])])), Code::OverLimit);
}

#[test]
fn modes_and_blocks_of_the_rule_stay() {
    let shadow = Rule { shadow: true, ..fixed(1, MINUTE) };
    let trial = Trial::new(&[(&[("user", "")], shadow), (&[("login", "")], blocking(HOUR, fixed(5, MINUTE)))]);
    trial.record("user=u1", limited(None, &[rate(0, MINUTE)]));
    let decision = trial.ask(&request([user("u1")]));
    assert_eq!((decision.code, decision.statuses[0].shadowed), (Code::Ok, true));
    trial.record("login=u1", limited(None, &[rate(1, SECOND)]));
    let login = request([descriptor(&[("login", "u1")])]);
    assert_eq!([(); 2].map(|()| trial.code(&login)), [Code::Ok, Code::OverLimit]);
    let sources: Vec<Source> = trial.plan(&login).descriptors[0].checks.iter().map(|check| check.source).collect();
    assert_eq!(sources, [Source::Subject(0), Source::Block]);
    assert_eq!(trial.ask(&login).statuses[0].outcome(), Some(Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(HOUR) }));
}

/// A rule of tiers, each one of so many requests in a minute.
fn tiered(source: TierSource, tiers: &[(&str, u64)]) -> Trial {
    let limits = tiers.iter().map(|(_, requests)| TierLimits { limits: vec![limit(Algorithm::TokenBucket, *requests, MINUTE)] });
    let tiers_of_rule = RuleTiers { source, set: "default".into(), limits: limits.collect() };
    let mut trial = Trial::new(&[(&[("user", "")], Rule { tiers: Some(tiers_of_rule), ..named("per-user", rule()) })]);
    trial.domain.plans.tiers = tiers.iter().map(|(name, _)| Tier { name: (*name).into(), ..Tier::default() }).collect();
    trial.domain.plans.default_tier = Some(TierId(0));
    trial
}

#[test]
fn an_assigned_tier_holds_for_its_subject() {
    let trial = tiered(TierSource::Assigned(b"user".as_slice().into()), &[("free", 5), ("pro", 50)]);
    trial.record("user=u1", tier("pro"));
    assert_eq!([remaining(&trial, "u1"), remaining(&trial, "u2")], [Some(49), Some(4)]);
    assert_eq!(trial.plan(&request([user("u2")])).unknown_tiers, 0, "nobody has to be assigned one");
    trial.record("user=u1", tier("gone"));
    let plan = trial.plan(&request([user("u1")]));
    assert_eq!((plan.unknown_tiers, plan.descriptors[0].tier), (1, Some(TierId(0))));
}

#[test]
fn the_tier_may_be_that_of_another_subject_of_the_request() {
    let trial = tiered(TierSource::Assigned(b"account".as_slice().into()), &[("free", 5), ("pro", 50)]);
    trial.record("account=a1", tier("pro"));
    let of = |account| request([user("u1"), descriptor(&[("account", account)])]);
    assert_eq!(trial.statuses(&of("a1"))[0].1, Some(49));
    assert_eq!(trial.plan(&of("a2")).descriptors[0].tier, Some(TierId(0)));
}

#[test]
fn a_subjects_limit_beats_its_tiers() {
    let trial = tiered(TierSource::Assigned(b"user".as_slice().into()), &[("free", 5), ("pro", 50)]);
    trial.record("user=u1", SubjectRecord { multiplier: Some(2_000_000), ..tier("pro") });
    assert_eq!(remaining(&trial, "u1"), Some(99));
    trial.record("user=u1", SubjectRecord { tier: Some("pro".into()), ..limited(None, &[rate(7, MINUTE)]) });
    assert_eq!(remaining(&trial, "u1"), Some(5), "of the same bucket");
}

#[test]
fn a_tier_defined_at_run_time_is_as_good_as_one_of_the_rules() {
    let mut trial = tiered(TierSource::Assigned(b"user".as_slice().into()), &[("free", 5), ("pro", 50)]);
    let write = vec![rate(9, HOUR), rate(1, SECOND)];
    let definition = TierDefinition {
        priority: None,
        sets: vec![("default".into(), vec![rate(70, MINUTE)]), ("write".into(), write)],
        quotas: vec![Limit::quota(Period::Month, 1000).expect("a quota")],
    };
    trial.domain =
        std::sync::Arc::into_inner(trial.domain.with_tiers([("team", &definition), ("pro", &TierDefinition::default())]))
            .expect("nobody else has it");
    trial.record("user=u1", tier("team"));
    trial.record("user=u2", tier("pro"));
    let plan = trial.plan(&request([user("u1")]));
    let limits: Vec<_> = plan.group.checks.iter().map(|check| (check.limit.algorithm(), check.limit.requests())).collect();
    assert_eq!(limits, [(Algorithm::TokenBucket, 70), (Algorithm::Calendar, 1000)]);
    let policies: Vec<&str> = trial.domain.rules[0].limits_of(Some(TierId(2))).iter().map(|limit| &*limit.policy).collect();
    assert_eq!(policies, ["per-user", "per-user/monthly"]);
    assert_eq!(trial.plan(&request([user("u2")])).descriptors[0].kind, Kind::Unlimited, "pro is another one now");
    trial.domain.rules[0].tiers.as_mut().expect("it has tiers").set = "write".into();
    let with_set = trial.domain.with_tiers([("team", &definition)]);
    assert_eq!(with_set.rules[0].limits_of(Some(TierId(2))).len(), 3);
    trial.domain.rules[0].tiers.as_mut().expect("it has tiers").set = "read".into();
    let without_set = trial.domain.with_tiers([("team", &definition)]);
    let requests = without_set.rules[0].limits_of(Some(TierId(2))).iter().map(|limit| limit.limit.requests());
    assert_eq!(requests.collect::<Vec<_>>(), [70, 1000], "the default set");
}
