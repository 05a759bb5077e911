//! Quota and shadow mode, globally and by rule: every request of up to three kinds of descriptor is refused as `envoyproxy/ratelimit`
//! refuses it, and counted only if it is allowed, in memory and in Redis.

mod support {
    pub mod redis;
    pub mod rules;
}

use std::sync::Arc;
use std::time::Duration;

use support::redis::RedisServer;
use support::rules::{NOW, Trial, descriptor, fixed, hits, limit, named, overridden, replacing, request, rule};
use weir::limit::reservation::Gate;
use weir::limit::{Algorithm, HOUR, MINUTE, Operation};
use weir::rules::Rule;
use weir::rules::decision::Code;
use weir::rules::plan::PlanSettings;
use weir::rules::request::{Descriptor, Request};
use weir::rules::reservation;
use weir::store::reservations::{Gated, Passed, ReservationStore};
use weir::store::{Clock, Store, Wait};

const SETTINGS: [PlanSettings; 4] = {
    let mut all = [PlanSettings { shadow: false, quota: false, charge: weir::rules::ChargeRule::Auto }; 4];
    all[1].quota = true;
    all[2].shadow = true;
    all[3].quota = true;
    all[3].shadow = true;
    all
};

/// A descriptor, by what its rule makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PlainOk,
    PlainOver,
    QuotaOk,
    QuotaOver,
    /// Only the second of its limits is over.
    QuotaOfTwoOver,
    QuotaLook,
    QuotaRefund,
    ShadowOver,
    ShadowQuotaOk,
    ShadowQuotaOver,
    Unlimited,
    Unmatched,
    /// A quota that is over, unless `Replacing` is in the request.
    Replaced,
    Replacing,
    /// With a limit of its own, in place of that of a quota in shadow mode.
    OverrideOk,
    OverrideOver,
}

use Kind::*;

const KINDS: [Kind; 16] = [
    PlainOk,
    PlainOver,
    QuotaOk,
    QuotaOver,
    QuotaOfTwoOver,
    QuotaLook,
    QuotaRefund,
    ShadowOver,
    ShadowQuotaOk,
    ShadowQuotaOver,
    Unlimited,
    Unmatched,
    Replaced,
    Replacing,
    OverrideOk,
    OverrideOver,
];

fn trial(settings: PlanSettings) -> Trial {
    let quota = |rule| Rule { quota: true, ..rule };
    let shadow = |rule| Rule { shadow: true, ..rule };
    let (room, none) = (|| fixed(100, HOUR), || fixed(0, HOUR));
    let two = vec![limit(Algorithm::FixedWindow, 100, MINUTE), limit(Algorithm::FixedWindow, 0, HOUR)];
    let rules: [(&[(&str, &str)], Rule); 14] = [
        (&[("PlainOk", "")], room()),
        (&[("PlainOver", "")], none()),
        (&[("QuotaOk", "")], quota(room())),
        (&[("QuotaOver", "")], quota(none())),
        (&[("QuotaOfTwoOver", "")], quota(Rule { limits: two, ..rule() })),
        (&[("QuotaLook", "")], quota(room())),
        (&[("QuotaRefund", "")], quota(room())),
        (&[("ShadowOver", "")], shadow(none())),
        (&[("ShadowQuotaOk", "")], shadow(quota(room()))),
        (&[("ShadowQuotaOver", "")], shadow(quota(none()))),
        (&[("Unlimited", "")], quota(Rule { unlimited: true, ..rule() })),
        (&[("Replaced", "")], named("old", quota(none()))),
        (&[("Replacing", "")], replacing(&["old"], room())),
        (&[("Overridden", "")], shadow(quota(room()))),
    ];
    Trial { settings, ..Trial::new(&rules) }
}

fn asked<'a>(kinds: &[Kind], names: &'a [String], value: &'a str) -> Request<'a> {
    let of = |(kind, name): (&Kind, &'a String)| match kind {
        QuotaLook => hits(0, descriptor(&[(name, value)])),
        QuotaRefund => Descriptor { is_negative_hits: true, ..descriptor(&[(name, value)]) },
        OverrideOk => overridden(100, 3, descriptor(&[("Overridden", value)])),
        OverrideOver => overridden(0, 3, descriptor(&[("Overridden", value)])),
        _ => descriptor(&[(name, value)]),
    };
    request(kinds.iter().zip(names).map(of))
}

fn names(kinds: &[Kind]) -> Vec<String> {
    kinds.iter().map(|kind| format!("{kind:?}")).collect()
}

/// Whether each descriptor is over, and whether the request is refused: as `shouldRateLimitWorker` decides there.
fn reference(settings: PlanSettings, kinds: &[Kind]) -> (Vec<bool>, bool) {
    let is_replaced = |kind| kind == Replaced && kinds.contains(&Replacing);
    // One counter with the smaller of its two sizes.
    let is_override_over = kinds.contains(&OverrideOver);
    let is_over = |kind: Kind| match kind {
        PlainOver | QuotaOver | QuotaOfTwoOver | OverrideOver => true,
        OverrideOk => is_override_over,
        Replaced => !is_replaced(kind),
        _ => false,
    };
    let is_quota = |kind: Kind| match kind {
        Unlimited => None,
        // There it is charged; here it asks for nothing.
        QuotaRefund => None,
        QuotaOk | QuotaOver | QuotaOfTwoOver | QuotaLook | ShadowQuotaOk | ShadowQuotaOver => Some(true),
        Replaced => Some(settings.quota || !is_replaced(kind)),
        _ => Some(settings.quota),
    };
    let plain_over = kinds.iter().any(|&kind| is_quota(kind) == Some(false) && is_over(kind));
    let mut quotas = kinds.iter().filter(|&&kind| is_quota(kind) == Some(true)).peekable();
    let quotas_over = quotas.peek().is_some() && quotas.all(|&kind| is_over(kind));
    (kinds.iter().map(|&kind| is_over(kind)).collect(), !settings.shadow && (plain_over || quotas_over))
}

fn requests(longest: usize) -> Vec<Vec<Kind>> {
    let mut all: Vec<Vec<Kind>> = vec![Vec::new()];
    let mut first = 0;
    for _ in 0..longest {
        let last = all.len();
        for place in first..last {
            all.extend(KINDS.map(|kind| [&all[place][..], &[kind]].concat()));
        }
        first = last;
    }
    all.split_off(1)
}

#[test]
fn requests_are_refused_as_the_reference_refuses_them_and_counted_if_they_are_not() {
    for settings in SETTINGS {
        // With everything in shadow mode nothing is refused: pairs say enough.
        for kinds in requests(if settings.shadow { 2 } else { 3 }) {
            let (trial, names) = (trial(settings), names(&kinds));
            let request = asked(&kinds, &names, "v");
            let (over, refused) = reference(settings, &kinds);
            let case = format!("{kinds:?} with {settings:?}");
            let decision = trial.ask(&request);
            assert_eq!(decision.code, if refused { Code::OverLimit } else { Code::Ok }, "{case}");
            let codes: Vec<bool> = decision.statuses.iter().map(|status| status.code == Code::OverLimit).collect();
            assert_eq!(codes, over, "{case}");
            assert_eq!(decision.limited_by.is_some(), refused, "{case}");
            assert!(decision.limited_by.is_none_or(|place| over[place]), "{case}: {:?}", decision.limited_by);
            let plan = trial.plan(&request);
            let counts = |kind: &Kind| matches!(kind, PlainOk | QuotaOk | ShadowQuotaOk | Replacing);
            let is_counted = !trial.store.is_empty();
            let expected = !refused && (kinds.iter().any(counts) || kinds.contains(&OverrideOk) && !kinds.contains(&OverrideOver));
            assert_eq!(is_counted, expected, "{case}");
            for (planned, kind) in plan.descriptors.iter().zip(&kinds).filter(|(_, kind)| counts(kind)) {
                let check = planned.checks[0].check;
                assert_eq!(plan.group.checks[check].operation, Operation::Take);
                let state = trial.store.state(&plan.group.keys[check]);
                assert_eq!(state.is_some(), !refused, "{kind:?} of {case}");
            }
        }
    }
}

#[tokio::test]
async fn redis_counts_what_memory_counts_and_reserves_what_is_allowed() {
    let server = RedisServer::start();
    let wait = Wait::of(Duration::from_secs(60));
    for (number, settings) in SETTINGS.into_iter().enumerate() {
        let trial = trial(settings);
        let redis = server.store(Clock::Manual(Arc::new(NOW.into()))).await;
        for (place, kinds) in requests(2).into_iter().enumerate() {
            let (names, value) = (names(&kinds), format!("{number}-{place}"));
            let request = asked(&kinds, &names, &value);
            let group = trial.plan(&request).group;
            if group.checks.is_empty() {
                continue;
            }
            let case = format!("{kinds:?} with {settings:?}");
            for _ in 0..2 {
                let by_redis = redis.apply(&group, wait).await.expect("Redis answers");
                assert_eq!(by_redis, trial.store.decide(&group).expect("there is room"), "{case}");
            }
            let key = reservation::key_of(&trial.domain.key_prefix, b"subject", &value);
            let gate = Gate::Reserve { estimate: 1, ttl: MINUTE };
            let gated = Gated { key, gate, memo: Arc::from(*b"memo"), group };
            let by_redis = redis.pass(&gated, wait).await;
            assert_eq!(by_redis, trial.store.pass(&gated, wait).await, "{case}");
            let Ok(Passed::Decided { expires, .. }) = by_redis else { panic!("{case}: {by_redis:?}") };
            assert_eq!(expires.is_none(), reference(settings, &kinds).1, "{case}");
        }
    }
}
