//! From the outcomes of a plan's checks to the answer of the request.

use smallvec::SmallVec;

use super::plan::{Kind, Plan, Planned, PlannedCheck, Source};
use super::tier::TierId;
use super::{Domain, RuleId, RuleLimit};
use crate::limit::reservation::quotas_refuse;
use crate::limit::{Micros, Mode, Outcome, RetryAfter};

/// The answer to one request. `limits` are grouped by descriptor, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub code: Code,
    pub statuses: SmallVec<[Status; 2]>,
    /// The descriptor whose rule refused the request; of several, the one with the longest retry time.
    pub limited_by: Option<usize>,
    /// How long the request should wait before it goes on: a leaky bucket's delay, in µs.
    pub delay: Micros,
    /// How long of that weir waits itself.
    pub hold: Micros,
    /// The store could not be asked; this says what answered instead.
    pub degraded: Option<Degraded>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    Ok,
    OverLimit,
}

/// Which `on_store_failure` answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Degraded {
    Allow,
    Deny,
    Local,
}

impl Degraded {
    pub fn name(self) -> &'static str {
        match self {
            Degraded::Allow => "allow",
            Degraded::Deny => "deny",
            Degraded::Local => "local",
        }
    }
}

/// The answer of one descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub rule: Option<RuleId>,
    pub tier: Option<TierId>,
    /// It would have been refused, but its rule only watches.
    pub shadowed: bool,
    pub unlimited: bool,
    /// Every limit's part in it, blocks included.
    pub limits: SmallVec<[LimitStatus; 2]>,
    /// Which of `limits` stands for them all: refused, the one with the longest retry time; else the least remaining.
    pub shown: Option<usize>,
    /// Hits, weighted.
    pub cost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitStatus {
    pub source: Source,
    pub outcome: Outcome,
}

impl Status {
    /// The outcome that stands for all limits.
    pub fn outcome(&self) -> Option<Outcome> {
        self.shown.map(|shown| self.limits[shown].outcome)
    }

    /// The limit that stands for all; a block shows the first.
    pub fn limit<'a>(&self, domain: &'a Domain, overrides: &'a [RuleLimit]) -> Option<&'a RuleLimit> {
        self.limit_at(self.shown?, domain, overrides)
    }

    /// The limit behind one of `limits`.
    pub fn limit_at<'a>(&self, place: usize, domain: &'a Domain, overrides: &'a [RuleLimit]) -> Option<&'a RuleLimit> {
        let mut source = self.limits.get(place)?.source;
        if source == Source::Block {
            source = self.limits.iter().map(|limit| limit.source).find(|source| *source != Source::Block)?;
        }
        source.limit(self.rule.map(|rule| domain.rule(rule)), self.tier, overrides)
    }

    fn silent(planned: &Planned) -> Status {
        let Planned { kind, rule, tier, cost, .. } = *planned;
        let code = if matches!(kind, Kind::Deny | Kind::Blocked(_)) { Code::OverLimit } else { Code::Ok };
        let unlimited = kind == Kind::Unlimited;
        let mut limits = SmallVec::new();
        if let Kind::Blocked(left) = kind {
            let outcome = Outcome::Denied { remaining: 0, retry_after: RetryAfter::In(left) };
            limits.push(LimitStatus { source: Source::Blocked, outcome });
        }
        Status { code, rule, tier, shadowed: false, unlimited, limits, shown: None, cost }
    }
}

/// Puts the outcomes of a plan's checks together. `shadow` is the switch that shadows everything: statuses tell the truth,
/// the request is allowed.
pub fn decide(domain: &Domain, plan: &Plan, outcomes: &[Outcome], shadow: bool) -> Decision {
    let mut decision = Decision { code: Code::Ok, statuses: SmallVec::new(), limited_by: None, delay: 0, hold: 0, degraded: None };
    for planned in &plan.descriptors {
        let mut status = Status::silent(planned);
        if plan.verdict.admits() {
            status.code = Code::Ok;
        }
        let limits = planned.checks.iter().map(|check| LimitStatus { source: check.source, outcome: outcomes[check.check] });
        status.limits.extend(limits);
        status.shown = shown(&status.limits);
        let over = status.outcome().is_some_and(|outcome| !outcome.is_allowed());
        if !planned.checks.is_empty() {
            let rule_shadows = planned.rule.is_some_and(|rule| domain.rule(rule).shadow) && !planned.is_overridden();
            status.shadowed = over && rule_shadows;
            status.code = if over && !rule_shadows { Code::OverLimit } else { Code::Ok };
        }
        decision.statuses.push(status);
    }
    let quotas_refuse = quotas_refuse(&plan.group.checks, outcomes);
    let refuses = |planned: &Planned, status: &Status| {
        let enforced = |(check, limit): (&PlannedCheck, &LimitStatus)| {
            plan.group.checks[check.check].mode == Mode::Enforce && !limit.outcome.is_allowed()
        };
        planned.checks.is_empty()
            || planned.checks.iter().zip(&status.limits).any(enforced)
            || quotas_refuse && planned.is_quota(&plan.group)
    };
    if !shadow {
        let over = decision.statuses.iter().enumerate().filter(|(_, status)| status.code == Code::OverLimit);
        let refusing = over.filter(|(place, status)| refuses(&plan.descriptors[*place], status));
        decision.limited_by =
            refusing.max_by_key(|(place, status)| (retry_after(status), std::cmp::Reverse(*place))).map(|(place, _)| place);
    }
    if decision.limited_by.is_some() {
        decision.code = Code::OverLimit;
        return decision;
    }
    for (planned, status) in plan.descriptors.iter().zip(&decision.statuses) {
        for (check, limit) in planned.checks.iter().zip(&status.limits) {
            let (Outcome::Allowed { delay, .. }, check) = (limit.outcome, &plan.group.checks[check.check]) else { continue };
            // A quota that does not refuse, as the request has a spare one, delays all the same.
            if check.mode != Mode::Shadow || planned.mode != Mode::Shadow {
                decision.delay = decision.delay.max(delay);
                if check.max_delay.is_some() {
                    decision.hold = decision.hold.max(delay);
                }
            }
        }
    }
    decision
}

/// A `deny` rule, which has no limit, waits longest of all; then a cost that never fits.
fn retry_after(status: &Status) -> RetryAfter {
    match status.outcome() {
        Some(Outcome::Denied { retry_after, .. }) => retry_after,
        _ => RetryAfter::Never { reset_after: Micros::MAX },
    }
}

fn shown(limits: &[LimitStatus]) -> Option<usize> {
    let refused = limits.iter().enumerate().filter_map(|(place, limit)| match limit.outcome {
        Outcome::Denied { retry_after, .. } => Some((retry_after, std::cmp::Reverse(place))),
        Outcome::Allowed { .. } => None,
    });
    match refused.max() {
        Some((_, place)) => Some(place.0),
        None => {
            let counted = limits.iter().enumerate().filter(|(_, limit)| limit.source != Source::Block);
            counted.min_by_key(|(_, limit)| limit.outcome.remaining()).map(|(place, _)| place)
        }
    }
}
