//! What beats what: blocked until, allowed until, `deny`, `allow`, the request's own limit, the subject's, its tier's, the rule's.
//! Decided before any counter is read; [`super::plan`] makes checks of what is left to count.

use std::collections::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::key::{self, EntriesText, Part};
use super::plan::{self, PlanError, PlanSettings};
use super::request::{Descriptor, Entry, LimitOverride, Request};
use super::subject::{self, Records, SubjectRecord};
use super::tree::Match;
use super::{Domain, Rule, RuleId};
use crate::limit::Micros;

/// What the rules alone say about the whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The counters decide.
    Counted,
    /// This descriptor's subject is blocked for now.
    Blocked { descriptor: usize },
    /// A descriptor's subject is exempt for now: OK, and nothing is counted.
    Exempt { descriptor: usize },
    /// An `allow` rule answers OK and nothing is counted.
    Allowed(RuleId),
    /// A `deny` rule of this descriptor refuses.
    Denied { descriptor: usize, rule: RuleId },
}

impl Verdict {
    /// Answers OK, whatever the counters say.
    pub fn admits(&self) -> bool {
        matches!(self, Verdict::Exempt { .. } | Verdict::Allowed(_))
    }

    pub(super) fn refuses(&self) -> bool {
        matches!(self, Verdict::Blocked { .. } | Verdict::Denied { .. })
    }
}

/// How far the rules and the records go for one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No rule, or none that has anything to say.
    Unmatched,
    /// Dropped because another rule of the request replaces it.
    Replaced,
    Unlimited,
    Allow,
    Deny,
    /// Its subject is blocked for so long yet.
    Blocked(Micros),
    /// Its subject is exempt for now.
    Exempt,
    Limited,
}

/// The records of the descriptors' subjects, in order; empty where nobody has any.
pub(super) type Known = SmallVec<[Option<Arc<SubjectRecord>>; 2]>;

pub(super) fn known(domain: &Domain, request: &Request<'_>, found: &[Option<Match<'_>>], records: &dyn Records) -> Known {
    if records.is_empty() {
        return Known::new();
    }
    let of_descriptor = |(descriptor, found): (&Descriptor<'_>, &Option<Match<'_>>)| {
        let part = subject_part(domain, descriptor, found.as_ref())?;
        records.find(&subject::name(domain.name.as_bytes(), part))
    };
    request.descriptors.iter().zip(found).map(of_descriptor).collect()
}

/// The entry that says who a descriptor is about: as its rule counts it, else as it is.
pub(super) fn subject_part<'p>(domain: &Domain, descriptor: &'p Descriptor<'_>, found: Option<&'p Match<'_>>) -> Option<Part<'p>> {
    match found {
        Some(found) => found.parts.get(subject_place(domain, found.parts.iter().map(|part| part.key))).copied(),
        None => {
            let entry = descriptor.entries.get(subject_place(domain, descriptor.entries.iter().map(|entry| entry.key)))?;
            Some(Part { key: entry.key, value: entry.value, shared: false })
        }
    }
}

/// Whom a descriptor of these entries is about, as it stands in counter keys, whatever rule it has; empty without entries.
pub fn subject_of(domain: &Domain, entries: &[Entry<'_>]) -> EntriesText {
    let Some(entry) = entries.get(subject_place(domain, entries.iter().map(|entry| entry.key))) else { return EntriesText::new() };
    let value = domain.addresses.counted(entry.key, entry.value);
    key::subject(Part { key: entry.key, value: &value, shared: false })
}

/// Which entry says who a descriptor is about.
pub fn subject_place<'k>(domain: &Domain, keys: impl Iterator<Item = &'k [u8]> + Clone) -> usize {
    domain.subject.iter().find_map(|name| keys.clone().position(|key| *key == **name)).unwrap_or(0)
}

/// The limit that a descriptor brings, from a caller that may.
pub(super) fn given_limit(domain: &Domain, descriptor: &Descriptor<'_>) -> Option<LimitOverride> {
    descriptor.limit.filter(|_| domain.plans.accept_overrides)
}

/// What each descriptor comes to. Names to replace are collected from all matched rules, also from those that are replaced or
/// only watch.
pub(super) fn kinds(
    domain: &Domain,
    request: &Request<'_>,
    found: &[Option<Match<'_>>],
    known: &Known,
    now: Micros,
) -> Result<SmallVec<[Kind; 2]>, PlanError> {
    let rules = || found.iter().map(|found| found.as_ref().map(|found| domain.rule(found.rule)));
    // Each rule once: a thousand descriptors of one that replaces a thousand others are a million names.
    let mut replacing: SmallVec<[RuleId; 4]> = found.iter().flatten().map(|found| found.rule).collect();
    replacing.retain(|rule| !domain.rule(*rule).replaces.is_empty());
    replacing.sort_unstable();
    replacing.dedup();
    let names = replacing.iter().flat_map(|rule| &domain.rule(*rule).replaces);
    let replaced: HashSet<&str, foldhash::fast::RandomState> = names.map(|name| &**name).collect();
    let kinds = request.descriptors.iter().zip(rules()).enumerate();
    kinds
        .map(|(place, (descriptor, rule))| {
            let limit = given_limit(domain, descriptor);
            if let Some(limit) = limit {
                plan::unit(place, limit)?;
            }
            let record = known.get(place).and_then(Option::as_deref);
            if let Some(kind) = record.and_then(|record| kind_of_subject(record, now)) {
                return Ok(kind);
            }
            let is_replaced = rule.and_then(|rule| rule.name.as_deref()).is_some_and(|name| replaced.contains(name));
            let kind = kind(limit.is_some() && !descriptor.entries.is_empty(), rule, record, is_replaced);
            // What is given back asks for nothing that could be denied.
            Ok(if kind == Kind::Deny && descriptor.is_negative_hits { Kind::Unmatched } else { kind })
        })
        .collect()
}

fn kind_of_subject(record: &SubjectRecord, now: Micros) -> Option<Kind> {
    match record.blocked_until {
        Some(until) if until > now => Some(Kind::Blocked(until - now)),
        _ if record.is_allowed(now) => Some(Kind::Exempt),
        _ => None,
    }
}

fn kind(is_overridden: bool, rule: Option<&Rule>, record: Option<&SubjectRecord>, is_replaced: bool) -> Kind {
    let is_named = |rule: &Rule| record.is_some_and(|record| record.limits_by_name(rule));
    match rule {
        Some(rule) if rule.deny && !rule.shadow && !is_replaced => Kind::Deny,
        Some(rule) if rule.allow && !rule.shadow && !is_replaced => Kind::Allow,
        _ if is_overridden => Kind::Limited,
        None => Kind::Unmatched,
        Some(rule) if rule.unlimited && !is_named(rule) => Kind::Unlimited,
        Some(_) if is_replaced => Kind::Replaced,
        Some(rule) if rule.limits.is_empty() && rule.tiers.is_none() && !is_named(rule) => Kind::Unmatched,
        Some(_) => Kind::Limited,
    }
}

/// A block beats an exemption, that `deny`, that `allow`; the first of each counts, of blocks the longest.
pub(super) fn verdict(kinds: &[Kind], found: &[Option<Match<'_>>], settings: PlanSettings) -> Verdict {
    let first = |wanted: Kind| {
        let place = kinds.iter().position(|&kind| kind == wanted)?;
        found[place].as_ref().map(|found| (place, found.rule))
    };
    let blocked = kinds.iter().enumerate().filter_map(|(place, kind)| match kind {
        Kind::Blocked(left) => Some((*left, std::cmp::Reverse(place))),
        _ => None,
    });
    if let Some((_, descriptor)) = blocked.max().filter(|_| !settings.shadow) {
        return Verdict::Blocked { descriptor: descriptor.0 };
    }
    if let Some(descriptor) = kinds.iter().position(|&kind| kind == Kind::Exempt) {
        return Verdict::Exempt { descriptor };
    }
    match (first(Kind::Deny), first(Kind::Allow)) {
        (Some((descriptor, rule)), _) if !settings.shadow => Verdict::Denied { descriptor, rule },
        (_, Some((_, rule))) => Verdict::Allowed(rule),
        _ => Verdict::Counted,
    }
}
