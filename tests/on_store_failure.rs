//! What a request of several rules comes to when the store gives no answer.

mod support {
    pub mod rules;
}

use std::sync::Arc;
use std::time::Duration;

use support::rules::{blocking, descriptor, domain, fixed, request, rule};
use tokio::time::Instant;
use weir::limit::{HOUR, Outcome, RetryAfter, SECOND};
use weir::limiter::{Answer, Limiter, LimiterSettings, Shared};
use weir::rules::decision::{Code, Decision, Degraded};
use weir::rules::plan::PlanSettings;
use weir::rules::request::{Descriptor, LimitOverride, Request};
use weir::rules::{OnStoreFailure, Rule, RuleSet};
use weir::store::memory::MemoryStore;
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

struct Away;

impl Store for Away {
    async fn apply(&self, _: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        Err(StoreError::Open)
    }
}

fn limiter() -> Limiter<Away> {
    let limited = |on_store_failure| Rule { on_store_failure, ..fixed(1, HOUR) };
    let quota = |on_store_failure| Rule { quota: true, ..limited(on_store_failure) };
    let rules: [(&[(&str, &str)], Rule); 15] = [
        (&[("error", "")], limited(OnStoreFailure::Error)),
        (&[("allow", "")], limited(OnStoreFailure::Allow)),
        (&[("deny", "")], limited(OnStoreFailure::Deny)),
        (&[("local", "")], limited(OnStoreFailure::Local)),
        (&[("shadow", "")], Rule { shadow: true, ..limited(OnStoreFailure::Error) }),
        (&[("denied", "")], Rule { deny: true, ..rule() }),
        (&[("allowed", "")], Rule { allow: true, ..rule() }),
        (&[("nothing", "")], Rule { on_store_failure: OnStoreFailure::Deny, ..fixed(0, HOUR) }),
        (&[("nothing_local", "")], Rule { on_store_failure: OnStoreFailure::Local, ..fixed(0, HOUR) }),
        (&[("blocking", "")], blocking(HOUR, limited(OnStoreFailure::Local))),
        (&[("quota-error", "")], quota(OnStoreFailure::Error)),
        (&[("quota-allow", "")], quota(OnStoreFailure::Allow)),
        (&[("quota-deny", "")], quota(OnStoreFailure::Deny)),
        (&[("quota-local", "")], quota(OnStoreFailure::Local)),
        (&[("quota-shadow", "")], Rule { shadow: true, ..quota(OnStoreFailure::Error) }),
    ];
    let settings = LimiterSettings { plan: PlanSettings::default(), store_timeout: Duration::from_secs(1) };
    let shared = Shared::new(MemoryStore::new(Clock::System, 1_000), settings);
    let domains = [(Box::from(*b"d"), Arc::new(domain(&rules)))].into_iter().collect();
    shared.load(RuleSet { domains, revision: 1 });
    Limiter::new(Arc::new(shared), Away)
}

/// `None`: unavailable.
async fn decide(limiter: &Limiter<Away>, request: &Request<'_>) -> Option<Decision> {
    match limiter.decide(request, Instant::now(), None).await {
        Answer::Decided(decided) => Some(decided.decision),
        Answer::Unavailable(_) => None,
        Answer::Invalid(reason) => panic!("{reason}"),
    }
}

async fn decision(descriptors: &[Descriptor<'static>]) -> Option<(Code, Option<Degraded>)> {
    let decision = decide(&limiter(), &request(descriptors.iter().cloned())).await;
    decision.map(|decision| (decision.code, decision.degraded))
}

fn on(key: &'static str) -> Descriptor<'static> {
    descriptor(&[(key, "1")])
}

#[tokio::test]
async fn rules_that_disagree() {
    let ok = |by| Some((Code::Ok, Some(by)));
    let over = |by| Some((Code::OverLimit, Some(by)));
    let refund = |key| Descriptor { is_negative_hits: true, ..on(key) };
    let cases = [
        (vec![on("error")], None),
        (vec![on("allow")], ok(Degraded::Allow)),
        (vec![on("deny")], over(Degraded::Deny)),
        (vec![on("local")], ok(Degraded::Local)),
        (vec![on("allow"), on("error")], None),
        (vec![on("local"), on("error")], None),
        (vec![on("error"), on("deny")], over(Degraded::Deny)),
        (vec![on("allow"), on("local")], ok(Degraded::Local)),
        (vec![on("local"), on("local")], over(Degraded::Local)),
        (vec![on("shadow")], ok(Degraded::Allow)),
        (vec![on("unknown")], Some((Code::Ok, None))),
        (vec![on("denied"), on("error")], over(Degraded::Allow)),
        (vec![on("allowed"), on("error")], Some((Code::Ok, None))),
        (vec![refund("deny")], ok(Degraded::Allow)),
        (vec![refund("error")], None),
        (vec![on("quota-deny")], over(Degraded::Deny)),
        (vec![on("quota-deny"), on("quota-allow")], ok(Degraded::Allow)),
        (vec![on("quota-deny"), on("quota-error")], None),
        (vec![on("quota-deny"), on("quota-local")], ok(Degraded::Local)),
        (vec![on("quota-deny"), on("quota-shadow")], ok(Degraded::Allow)),
        (vec![on("quota-error"), on("quota-shadow")], ok(Degraded::Allow)),
        (vec![on("quota-deny"), on("deny")], over(Degraded::Deny)),
    ];
    for (descriptors, expected) in cases {
        assert_eq!(decision(&descriptors).await, expected, "{descriptors:?}");
    }
}

#[tokio::test]
async fn an_override_without_a_rule_does_what_the_domain_says() {
    let limit = Some(LimitOverride { requests_per_unit: 5, unit: 2, unit_multiplier: None });
    assert_eq!(decision(&[Descriptor { limit, ..on("unknown") }]).await, None);
    assert!(decision(&[Descriptor { limit, ..on("allow") }]).await.is_some());
}

#[tokio::test]
async fn deny_says_when_to_come_back() {
    let decision = decide(&limiter(), &request([on("deny")])).await.expect("an answer");
    let expected = Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(SECOND) };
    assert_eq!((decision.limited_by, decision.statuses[0].outcome()), (Some(0), Some(expected)));
}

#[tokio::test]
async fn no_wait_for_the_store_helps_a_cost_that_never_fits() {
    let report = |hits| Descriptor { hits: Some(hits), ..on("deny") };
    let look = Descriptor { hits: Some(0), ..on("nothing") };
    let local_look = Descriptor { hits: Some(0), ..on("nothing_local") };
    for (one, hits_addend, helps) in [
        (on("deny"), 1, true),
        (on("deny"), 2, false),
        (report(2), 1, true),
        (on("nothing"), 1, false),
        (look, 1, false),
        (on("nothing_local"), 1, false),
        (local_look, 1, false),
    ] {
        let asked = Request { hits_addend, ..request([one.clone()]) };
        let outcome = decide(&limiter(), &asked).await.and_then(|decision| decision.statuses[0].outcome()).expect("an outcome");
        assert!(!outcome.is_allowed() && outcome.remaining() == 0, "{one:?}: {outcome:?}");
        assert_eq!(outcome.retry_after().is_some(), helps, "{one:?} of {hits_addend}: {outcome:?}");
        assert!((1..=HOUR).contains(&outcome.reset_after()), "{one:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn what_deny_refuses_is_not_counted_locally() {
    let limiter = limiter();
    let both = request([on("local"), on("deny")]);
    for _ in 0..3 {
        assert_eq!(decide(&limiter, &both).await.map(|decision| decision.code), Some(Code::OverLimit));
    }
    assert_eq!(decide(&limiter, &request([on("local")])).await.map(|decision| decision.code), Some(Code::Ok));
}

#[tokio::test]
async fn quotas_that_disagree_count_locally_what_they_allow() {
    let room = async |key: &'static str| {
        let limiter = limiter();
        // The first fills the quota of one; with the others it does not refuse.
        for _ in 0..2 {
            let all = request([on("quota-local"), on(key), on("local")]);
            decide(&limiter, &all).await.expect("an answer");
        }
        let alone = async |key| decide(&limiter, &request([on(key)])).await.map(|decision| decision.code);
        [alone("quota-local").await, alone("local").await]
    };
    for key in ["quota-allow", "quota-deny", "quota-shadow"] {
        assert_eq!(room(key).await, [Some(Code::OverLimit); 2], "with {key}");
    }
}

#[tokio::test]
async fn a_local_refusal_blocks_nobody() {
    let limiter = limiter();
    let one = request([on("blocking")]);
    assert_eq!(decide(&limiter, &one).await.map(|decision| decision.code), Some(Code::Ok));
    let refused = decide(&limiter, &one).await.expect("an answer");
    assert_eq!((refused.code, refused.statuses[0].shown), (Code::OverLimit, Some(0)), "by the limit, not by a block");
    assert_eq!(limiter.shared().local().len(), 1);
}
