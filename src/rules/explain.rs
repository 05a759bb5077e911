//! Why a request is decided as it is: the plan, with what led to it for each descriptor, and the question what its counters would say.

use std::sync::Arc;

use super::address::Found;
use super::key::{self, EntriesText};
use super::plan::{self, Group, Moment, Plan, PlanError, PlanSettings};
use super::precedence;
use super::request::{Descriptor, Entry, Request};
use super::subject::{Records, SubjectRecord};
use super::tier::{self, Attributes, TierSource};
use super::tree::{Match, Trace};
use super::{Domain, RuleId};
use crate::limit::{Algorithm, Charge, Check, Micros, Operation, Outcome};

/// The owner of blocks that are asked about: nobody's, so that none is set. Requests have fewer descriptors.
const NOBODY: u16 = u16::MAX;

/// A plan, explained: of a domain and a request.
#[derive(Debug)]
pub struct Explained<'d, 'r> {
    pub plan: Plan,
    /// One for each descriptor, in order.
    pub reasons: Vec<Reasons<'d, 'r>>,
}

/// What led to what a plan says about one descriptor.
#[derive(Debug)]
pub struct Reasons<'d, 'r> {
    /// The entries that were looked up: all, or those that are no attributes.
    pub entries: Vec<Entry<'r>>,
    pub trace: Trace<'d>,
    /// What stands for the value of each entry in counter keys, where a rule was found: the network of an address, the pattern that
    /// values share.
    pub counted: Vec<Box<[u8]>>,
    /// Whom it is about, as it stands in counter keys; empty without entries.
    pub subject: EntriesText,
    /// What is said of the subject.
    pub record: Option<Arc<SubjectRecord>>,
    /// The descriptor whose rule replaces this one's.
    pub replaced_by: Option<usize>,
    pub tier: Option<TierReason<'d>>,
    pub weight: u64,
}

/// How a tier came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierReason<'a> {
    pub source: &'a TierSource,
    /// The name that the request or the record gives; it need not be that of a tier.
    pub named: Option<Box<str>>,
    /// Whether there is such a tier. Else it is the default one.
    pub is_known: bool,
}

/// Plans a request and says why.
///
/// # Errors
/// As [`plan::plan`].
pub fn explain<'d, 'r>(
    domain: &'d Domain,
    request: &Request<'r>,
    settings: PlanSettings,
    moment: Moment,
    records: &dyn Records,
) -> Result<Explained<'d, 'r>, PlanError> {
    let plan = plan::plan(domain, request, settings, moment, records)?;
    let found: Found<'_> = request.descriptors.iter().map(|descriptor| plan::find(domain, &descriptor.entries)).collect();
    // Looked up as it came, counted by network.
    let networks = domain.addresses.networks(request);
    let (by_network, found) = (networks.request(request), networks.found(request, &found));
    let known = precedence::known(domain, &by_network, &found, records);
    let attributes = Attributes::new(&by_network);
    let reasons = request.descriptors.iter().zip(&found).enumerate().map(|(place, (descriptor, of_descriptor))| {
        let all = domain.tree.trace(&descriptor.entries);
        let (entries, trace) = match plan::without_attributes(domain, &descriptor.entries) {
            Some(others) if domain.tree.find(&descriptor.entries).is_none() => {
                let trace = domain.tree.trace(&others);
                (others.to_vec(), trace)
            }
            _ => (descriptor.entries.to_vec(), all),
        };
        let rule = of_descriptor.as_ref().map(|found| found.rule);
        let parts = of_descriptor.iter().flat_map(|found| &found.parts);
        let descriptor = &by_network.descriptors[place];
        Reasons {
            entries,
            trace,
            counted: parts.map(|part| part.value.into()).collect(),
            subject: precedence::subject_part(domain, descriptor, of_descriptor.as_ref()).map(key::subject).unwrap_or_default(),
            record: known.get(place).cloned().flatten(),
            replaced_by: rule.and_then(|rule| replaced_by(domain, &found, rule)),
            tier: rule.and_then(|rule| tier_reason(domain, &attributes, descriptor, rule, records)),
            weight: tier::weight(&domain.plans.costs, &attributes, descriptor),
        }
    });
    let reasons = reasons.collect();
    Ok(Explained { plan, reasons })
}

/// The group as a question: each outcome says whether there is room for its cost now, and what remains before it. Nothing is counted,
/// since the request counts as refused; nothing is charged; and no block is set, since blocks have no part in it.
pub fn question(group: &Group) -> Group {
    let mut asked = Group { refused: true, ..group.clone() };
    for check in &mut asked.checks {
        check.charge = Charge::Admitted;
        if check.limit.algorithm() == Algorithm::Penalty {
            (check.operation, check.owner) = (Operation::Look, NOBODY);
            continue;
        }
        check.operation = match check.operation {
            Operation::Report | Operation::Take => Operation::Take,
            Operation::Refund | Operation::Look => Operation::Look,
        };
    }
    asked
}

/// How long a leaky bucket asks the request to wait, by the outcome of a [`question`]: until what is ahead of it has drained.
pub fn delay(check: &Check, outcome: &Outcome) -> Micros {
    match *outcome {
        Outcome::Allowed { reset_after, .. } if check.limit.algorithm() == Algorithm::LeakyBucket && check.cost > 0 => reset_after,
        _ => 0,
    }
}

/// The first descriptor whose rule names this one in `replaces`.
fn replaced_by(domain: &Domain, found: &[Option<Match<'_>>], rule: RuleId) -> Option<usize> {
    let name = domain.rule(rule).name.as_deref()?;
    let replaces = |other: &Match<'_>| domain.rule(other.rule).replaces.iter().any(|replaced| **replaced == *name);
    found.iter().position(|other| other.as_ref().is_some_and(replaces))
}

fn tier_reason<'a, 'r>(
    domain: &'a Domain,
    attributes: &Attributes<'_, 'r>,
    descriptor: &Descriptor<'r>,
    rule: RuleId,
    records: &dyn Records,
) -> Option<TierReason<'a>> {
    let source = &domain.rule(rule).tiers.as_ref()?.source;
    let named = tier::name(domain, attributes, descriptor, source, records);
    let is_known = named.as_deref().is_some_and(|name| domain.plans.tier_named(name).is_some());
    let named = named.map(|name| String::from_utf8_lossy(&name).into_owned().into_boxed_str());
    Some(TierReason { source, named, is_known })
}
