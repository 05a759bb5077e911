//! How a subject stands to rules that its usage has no counters of: those that do not limit it, and those it has not used.

use super::super::proto::weir::admin::v1 as proto;
use crate::rules::about::SubjectEntry;
use crate::rules::key;
use crate::rules::subject::SubjectRecord;
use crate::rules::tier::{TierId, TierSource};
use crate::rules::{Domain, Rule};

/// The rules that do not limit a subject of this record; `tier` is the one that its requests name.
pub(super) fn unlimited(domain: &Domain, subject: &[u8], record: &SubjectRecord, tier: Option<&str>) -> Vec<proto::Unlimited> {
    let rules = domain.rules_about(subject).into_iter().map(|rule| domain.rule(rule));
    rules.filter_map(|rule| of_rule(domain, rule, subject, record, tier)).collect()
}

fn of_rule(domain: &Domain, rule: &Rule, subject: &[u8], record: &SubjectRecord, tier: Option<&str>) -> Option<proto::Unlimited> {
    let said = |by: &str, tier: &str| {
        Some(proto::Unlimited {
            rule: rule.label().to_owned(),
            path: rule.path.to_string(),
            by: by.to_owned(),
            tier: tier.to_owned(),
        })
    };
    if rule.allow || rule.deny {
        return None;
    }
    if rule.unlimited {
        return if record.limits_by_name(rule) { None } else { said("rule", "") };
    }
    let tier = rule.tiers.as_ref().and_then(|tiers| tier_of(domain, &tiers.source, subject, record, tier));
    let own = rule.limits_of(tier);
    let limits = record.limits(rule, own);
    if !limits.as_deref().unwrap_or(own).is_empty() || (own.is_empty() && rule.tiers.is_none()) {
        return None;
    }
    if !own.is_empty() {
        return said("override", "");
    }
    said("tier", tier.map_or("", |tier| &domain.plans.tier(tier).name))
}

/// The tier whose limits a rule has for the subject.
fn tier_of(domain: &Domain, source: &TierSource, subject: &[u8], record: &SubjectRecord, seen: Option<&str>) -> Option<TierId> {
    let named = match source {
        TierSource::Entry(_) => seen,
        TierSource::Assigned(key) => {
            let is_its_own = SubjectEntry::of(subject).is_some_and(|entry| *entry.key == **key);
            record.tier.as_deref().filter(|_| is_its_own)
        }
    };
    named.and_then(|name| domain.plans.tier_named(name.as_bytes())).or(domain.plans.default_tier)
}

/// Why a subject that is unused has no counters: which rules would count it, and which decide without counting.
pub(super) fn unused(domain: &Domain, subject: &[u8], is_unused: bool) -> Option<String> {
    if !is_unused {
        return None;
    }
    let rules: Vec<&Rule> = domain.rules_about(subject).into_iter().map(|rule| domain.rule(rule)).collect();
    let those = |picked: fn(&Rule) -> bool| rules.iter().copied().filter(|rule| picked(rule)).collect::<Vec<_>>();
    let subject = key::shown(subject);
    let sentences = [
        (those(|rule| !rule.deny && !rule.allow), format!("nothing of {subject} is counted yet; rules that count it")),
        (those(|rule| rule.deny && !rule.shadow), "rules that refuse it and count nothing (`deny: true`)".to_owned()),
        (
            those(|rule| rule.allow && !rule.deny && !rule.shadow),
            "rules that admit it and count nothing (`allow: true`)".to_owned(),
        ),
    ];
    let said = sentences.into_iter().filter(|(rules, _)| !rules.is_empty());
    let said = said.map(|(rules, what)| format!("{what}: {}", named(&rules))).collect::<Vec<_>>().join("; ");
    Some(said).filter(|said| !said.is_empty())
}

/// The first few rules.
fn named(rules: &[&Rule]) -> String {
    /// The most rules that a sentence names.
    const NAMED: usize = 8;
    let named = rules.iter().take(NAMED).map(|rule| format!("`{}` ({})", rule.label(), rule.path));
    let named = named.collect::<Vec<_>>().join(", ");
    if rules.len() > NAMED { format!("{named} and {} more", rules.len() - NAMED) } else { named }
}
