//! What of a record has no effect under the rules in force, and why: the warnings of answers about one subject or one tier.

use crate::limit::Micros;
use crate::rules::about::SubjectEntry;
use crate::rules::key;
use crate::rules::subject::{SubjectRate, SubjectRecord};
use crate::rules::tier::TierSource;
use crate::rules::{Domain, Rule, RuleId};
use crate::spelling::{listed, suggestion};

/// What of a subject's record has no effect.
pub(super) fn of_record(domain: &Domain, subject: &[u8], record: &SubjectRecord, now: Micros) -> Vec<String> {
    if record.is_empty() {
        return Vec::new();
    }
    let rules = domain.rules_about(subject);
    let of_tier = record.tier.as_deref().and_then(|tier| of_tier(domain, subject, tier));
    let mut warnings: Vec<String> = Vec::new();
    if rules.is_empty() {
        let effect = effect_without_rules(record, record.tier.is_some() && of_tier.is_none());
        warnings.extend(effect.map(|effect| format!("{effect}: {}", not_counted(domain, subject))));
    } else {
        warnings.extend(of_tier);
    }
    if !rules.is_empty() {
        warnings.extend(record.limits.iter().filter_map(|limits| of_limits(domain, limits.rule.as_deref()?, subject, &rules)));
    }
    warnings.extend(of_bursts(record.limits.iter().flat_map(|limits| &limits.rates)));
    if record.is_blocked(now) && record.is_allowed(now) {
        warnings.push("the block outweighs the exemption while both last".to_owned());
    }
    warnings
}

/// A bucket without room, as in the files: it refuses everything, whatever its limit says.
pub(super) fn of_bursts<'r>(rates: impl IntoIterator<Item = &'r SubjectRate>) -> Option<String> {
    let has_no_room = |rate: &&SubjectRate| rate.limit.requests() > 0 && rate.limit.capacity() == 0;
    let found = rates.into_iter().find(has_no_room).is_some();
    found.then(|| "a bucket with a burst of 0 has no room: it refuses everything".to_owned())
}

/// What has an effect of the record of a subject that no rule counts; `None`: all of it. A rule may read the tier that is assigned to an
/// entry that it does not count by.
fn effect_without_rules(record: &SubjectRecord, is_tier_read: bool) -> Option<&'static str> {
    let has_limits = record.multiplier.is_some() || !record.limits.is_empty() || (record.tier.is_some() && !is_tier_read);
    let is_held = record.blocked_until.or(record.allowed_until).is_some();
    match (has_limits, is_held, is_tier_read) {
        (false, false, _) => None,
        (true, false, false) => Some("this has no effect"),
        (true, false, true) => Some("only the tier has an effect"),
        (_, true, false) => Some("only a block or an exemption has an effect, on descriptors with this entry that match no rule"),
        (_, true, true) => Some("a block or an exemption has an effect only on descriptors with this entry that match no rule"),
    }
}

/// What one finds nothing of, where no rule counts the subject; `None` where one does.
pub(super) fn of_subject(domain: &Domain, subject: &[u8]) -> Option<String> {
    domain.rules_about(subject).is_empty().then(|| not_counted(domain, subject))
}

/// That the tiers of a domain have no effect.
pub(super) fn of_tiers(domain: &Domain) -> Option<String> {
    let goes_by_tiers = domain.rules.iter().any(|rule| rule.tiers.is_some());
    let reason = || format!("this has no effect: no rule of domain `{}` goes by tiers (`rate_limit: {{tier: …}}`)", domain.name);
    (!goes_by_tiers).then(reason)
}

fn not_counted(domain: &Domain, subject: &[u8]) -> String {
    let written = SubjectEntry::of(subject).map(|entry| key::shown(&entry.key)).unwrap_or_default();
    let keys: Vec<String> = domain.subject_keys().iter().map(|key| key::shown(key)).collect();
    let known = || keys.iter().map(String::as_str);
    let domain = &domain.name;
    if keys.is_empty() {
        return format!("domain `{domain}` has no rules");
    }
    if keys.contains(&written) {
        return format!(
            "no rule of domain `{domain}` counts `{}`: its rules count other values of `{written}`",
            key::shown(subject)
        );
    }
    let near = suggestion(&written, known());
    format!("no rule of domain `{domain}` counts by `{written}`: its rules count by {}{near}", listed(known()))
}

/// Why the tier that a subject was assigned has no effect, if so.
pub(super) fn of_assigned(domain: &Domain, subject: &[u8], record: &SubjectRecord) -> Option<String> {
    of_tier(domain, subject, record.tier.as_deref()?)
}

/// A tier that the domain no longer has, or that no rule reads from an assignment to this key.
fn of_tier(domain: &Domain, subject: &[u8], tier: &str) -> Option<String> {
    if domain.plans.tier_named(tier.as_bytes()).is_none() {
        let default = domain.plans.default_tier.map(|tier| &*domain.plans.tier(tier).name);
        let instead = default.map(|name| format!(": the default tier `{name}` holds")).unwrap_or_default();
        return Some(format!("domain `{}` has no tier `{tier}`{instead}", domain.name));
    }
    let written = SubjectEntry::of(subject)?.key;
    let sources: Vec<&TierSource> = domain.rules.iter().filter_map(|rule| Some(&rule.tiers.as_ref()?.source)).collect();
    let assigned = |source: &&TierSource| match source {
        TierSource::Assigned(key) => Some(key::shown(key)),
        TierSource::Entry(_) => None,
    };
    let keys: Vec<String> = sources.iter().filter_map(assigned).collect();
    let written = key::shown(&written);
    if keys.contains(&written) {
        return None;
    }
    let reason = match (keys.is_empty(), sources.iter().find(|source| matches!(source, TierSource::Entry(_)))) {
        (false, _) => format!("rules read the tier of {}", listed(keys.iter().map(String::as_str))),
        (true, Some(TierSource::Entry(key))) => format!("rules read a tier from the entry `{}` of the request", key::shown(key)),
        (true, _) => "no rule goes by tiers".to_owned(),
    };
    let domain = &domain.name;
    Some(format!("the assignment has no effect: no rule of domain `{domain}` reads the tier of a `{written}`; {reason}"))
}

/// Limits for a rule that does not count by this subject.
fn of_limits(domain: &Domain, named: &str, subject: &[u8], about: &[RuleId]) -> Option<String> {
    let is_named = |rule: &&Rule| rule.label() == named;
    let Some(rule) = domain.rules.iter().find(is_named) else {
        return Some(format!("domain `{}` has no rule `{named}`: its limits have no effect", domain.name));
    };
    if about.iter().any(|id| is_named(&domain.rule(*id))) {
        return None;
    }
    Some(format!("rule `{named}` ({}) does not count by `{}`: its limits have no effect on it", rule.path, key::shown(subject)))
}
