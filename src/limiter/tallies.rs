//! Adds a decided request to the histories of its subjects.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::limit::{DAY, Micros};
use crate::rules::Domain;
use crate::rules::decision::{Code, Decision};
use crate::rules::key::EntriesText;
use crate::rules::plan::{Kind, Plan, Planned};
use crate::rules::precedence;
use crate::rules::request::{Descriptor, Request};
use crate::rules::tier::TierSource;
use crate::store::history::{Recorder, Remembered};

/// A request counts once for each of its subjects, with the cost of the first descriptor that is about it.
pub(super) fn record(recorder: &Recorder, domain: &Domain, request: &Request<'_>, plan: &Plan, decision: &Decision, now: Micros) {
    remembered(domain, request, plan, decision.code == Code::Ok, now, |remembered| recorder.record(remembered));
}

/// A request that reserves counts; what it costs is known when it is committed.
pub(super) fn record_reserved(
    recorder: &Recorder,
    domain: &Domain,
    request: &Request<'_>,
    plan: &Plan,
    is_allowed: bool,
    now: Micros,
) {
    remembered(domain, request, plan, is_allowed, now, |remembered| recorder.record(&Remembered { cost: 0, ..*remembered }));
}

/// What a reservation has cost. The request was counted when it reserved.
pub(super) fn record_committed(recorder: &Recorder, domain: &Domain, request: &Request<'_>, plan: &Plan, now: Micros) {
    remembered(domain, request, plan, true, now, |remembered| recorder.record_cost(remembered));
}

fn remembered(
    domain: &Domain,
    request: &Request<'_>,
    plan: &Plan,
    is_allowed: bool,
    now: Micros,
    record: impl Fn(&Remembered<'_>),
) {
    let mut seen = Seen::default();
    for (descriptor, planned) in request.descriptors.iter().zip(&plan.descriptors) {
        if is_no_request(descriptor, planned) {
            continue;
        }
        // The counter's name has it already, if there is a counter, and it is not too long for all of it.
        let of_counter = planned.checks.first().and_then(|check| plan.group.keys[check.check].subject(&domain.key_prefix));
        let of_counter = of_counter.filter(|subject| !subject.starts_with(b"%#"));
        let of_entries =
            if of_counter.is_none() { precedence::subject_of(domain, &descriptor.entries) } else { EntriesText::new() };
        let subject = of_counter.unwrap_or(&of_entries);
        if request.descriptors.len() > 1 && !seen.add(subject) {
            continue;
        }
        // Work that is done is charged whatever was decided.
        let cost = if is_allowed || descriptor.hits.is_some() { planned.cost } else { 0 };
        let (domain_prefix, tier) = (&domain.key_prefix, tier(domain, planned));
        record(&Remembered { domain_prefix, subject, day: now / DAY, is_allowed, cost, tier });
    }
}

/// From this many subjects on, they are found by a set rather than by looking along the list.
const SET_FROM: usize = 16;

/// The subjects of a request that were recorded.
#[derive(Default)]
struct Seen {
    few: SmallVec<[SmallVec<[u8; 32]>; 2]>,
    many: Option<HashSet<SmallVec<[u8; 32]>, RandomState>>,
}

impl Seen {
    /// Says whether it is a new one.
    fn add(&mut self, subject: &[u8]) -> bool {
        if self.few.len() < SET_FROM {
            let is_new = self.few.iter().all(|known| **known != *subject);
            if is_new {
                self.few.push(SmallVec::from_slice(subject));
            }
            return is_new;
        }
        let is_new = self.few.iter().all(|known| **known != *subject);
        is_new && self.many.get_or_insert_default().insert(SmallVec::from_slice(subject))
    }
}

/// A look, a refund, and what no rule has anything to say about.
fn is_no_request(descriptor: &Descriptor<'_>, planned: &Planned) -> bool {
    planned.cost == 0 || descriptor.is_negative_hits || matches!(planned.kind, Kind::Unmatched | Kind::Replaced)
}

/// The tier by which the request went, where it said so itself.
fn tier<'d>(domain: &'d Domain, planned: &Planned) -> Option<&'d str> {
    let tiers = domain.rule(planned.rule?).tiers.as_ref()?;
    match tiers.source {
        TierSource::Entry(_) => planned.tier.map(|tier| &*domain.plans.tier(tier).name),
        TierSource::Assigned(_) => None,
    }
}
