//! Quota mode: rules that refuse a request only when all of the request's quotas are over.

use super::Domain;
use super::plan::{Group, Kind, PlanSettings, Planned, Source};
use crate::limit::{Mode, Operation};

/// Finds the first descriptor that counts as a quota which is never over, so that no quota refuses the request, and makes the checks
/// of the quotas count without refusing. As in `envoyproxy/ratelimit`, a quota with a shadow rule is such a descriptor, and under the
/// setting `QUOTA_MODE` also one that no rule matches or whose rule is replaced. An unlimited rule is no quota.
pub(super) fn release(domain: &Domain, settings: PlanSettings, descriptors: &[Planned], group: &mut Group) -> Option<usize> {
    if !group.checks.iter().any(|check| check.mode == Mode::Quota) {
        return None;
    }
    let spare = descriptors.iter().position(|planned| is_spare(domain, settings, planned, group))?;
    for check in group.checks.iter_mut().filter(|check| check.mode == Mode::Quota) {
        check.mode = Mode::Shadow;
    }
    Some(spare)
}

fn is_spare(domain: &Domain, settings: PlanSettings, planned: &Planned, group: &Group) -> bool {
    let checks = || planned.checks.iter().map(|planned| &group.checks[planned.check]);
    match (planned.kind, planned.mode) {
        (Kind::Unmatched | Kind::Replaced, _) => settings.quota,
        (Kind::Limited, Mode::Shadow) => settings.quota || planned.rule.is_some_and(|rule| domain.rule(rule).quota),
        // The request's own limits share all of its counters. They refuse alone where one is over, and where none is, so is no quota.
        // What is given back is no quota.
        (Kind::Limited, Mode::Quota) => checks().all(|check| check.mode == Mode::Enforce && check.operation != Operation::Refund),
        _ => false,
    }
}

impl Planned {
    /// Whether it is a quota that can be over: a spare quota leaves none.
    pub(super) fn is_quota(&self, group: &Group) -> bool {
        let checks = self.checks.iter().map(|planned| &group.checks[planned.check]);
        checks.into_iter().any(|check| check.mode == Mode::Quota && check.operation != Operation::Refund)
    }

    /// Whether its limits come with the request: the modes of its rule do not hold for them.
    pub(super) fn is_overridden(&self) -> bool {
        self.checks.first().is_some_and(|first| matches!(first.source, Source::Override(_)))
    }
}
