//! Adds a decided request to the histories of its subjects.

use smallvec::SmallVec;

use crate::limit::{DAY, Micros};
use crate::rules::Domain;
use crate::rules::decision::{Code, Decision};
use crate::rules::key::{self, EntriesText, Part};
use crate::rules::plan::{Kind, Plan, Planned};
use crate::rules::precedence;
use crate::rules::request::{Descriptor, Request};
use crate::rules::tier::TierSource;
use crate::store::history::{Recorder, Tally};

/// A request counts once for each of its subjects, with the cost of the first descriptor that is about it.
pub(super) fn record(recorder: &Recorder, domain: &Domain, request: &Request<'_>, plan: &Plan, decision: &Decision, now: Micros) {
    let mut seen: SmallVec<[EntriesText; 2]> = SmallVec::new();
    for (descriptor, planned) in request.descriptors.iter().zip(&plan.descriptors) {
        if is_no_request(descriptor, planned) {
            continue;
        }
        let subject = subject(domain, descriptor);
        if seen.contains(&subject) {
            continue;
        }
        let allowed = u64::from(decision.code == Code::Ok);
        // Work that is done is charged whatever was decided.
        let cost = if allowed == 1 || descriptor.hits.is_some() { planned.cost } else { 0 };
        let tally = Tally { allowed, refused: 1 - allowed, cost, tier: tier(domain, planned) };
        recorder.record(&domain.key_prefix, &subject, now / DAY, &tally);
        seen.push(subject);
    }
}

/// A look, a refund, and what no rule has anything to say about.
fn is_no_request(descriptor: &Descriptor<'_>, planned: &Planned) -> bool {
    planned.cost == 0 || descriptor.is_negative_hits || matches!(planned.kind, Kind::Unmatched | Kind::Replaced)
}

fn subject(domain: &Domain, descriptor: &Descriptor<'_>) -> EntriesText {
    let place = precedence::subject_place(domain, descriptor.entries.iter().map(|entry| entry.key));
    let part = descriptor.entries.get(place).map(|entry| Part { key: entry.key, value: entry.value, shared: false });
    part.map(key::subject).unwrap_or_default()
}

/// The tier by which the request went, where it said so itself.
fn tier(domain: &Domain, planned: &Planned) -> Option<Box<str>> {
    let tiers = domain.rule(planned.rule?).tiers.as_ref()?;
    match tiers.source {
        TierSource::Entry(_) => planned.tier.map(|tier| domain.plans.tier(tier).name.clone()),
        TierSource::Assigned(_) => None,
    }
}
