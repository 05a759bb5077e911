//! Names that the rules in force do not have, and what they have instead.

use super::problem::Mistake;
use crate::rules::tier::DEFAULT_SET;
use crate::rules::tier_definition::TierDefinition;
use crate::rules::{Domain, Rule, RuleSet};
use crate::spelling::{listed, suggestion};

/// A domain that is not loaded.
pub(super) fn unknown_domain(rules: &RuleSet, name: &str) -> Mistake {
    let mut known: Vec<&str> = rules.domains.values().map(|domain| &*domain.name).collect();
    known.sort_unstable();
    if known.is_empty() {
        return Mistake::unknown(format!("no domain `{name}` is loaded: no rules are loaded"));
    }
    let near = suggestion(name, known.iter().copied());
    Mistake::unknown(format!("no domain `{name}` is loaded: the rules have {}{near}", listed(known.into_iter())))
}

pub(super) fn knows_tier(domain: &Domain, tier: &str) -> bool {
    domain.plans.tier_named(tier.as_bytes()).is_some()
}

pub(super) fn knows_rule(domain: &Domain, rule: &str) -> bool {
    domain.rules.iter().any(|known| known.label() == rule)
}

/// # Errors
/// For a tier that the domain does not have; names those that it has.
pub(super) fn has_tier(domain: &Domain, tier: &str) -> Result<(), Mistake> {
    if knows_tier(domain, tier) {
        return Ok(());
    }
    let known = || domain.plans.tiers.iter().map(|tier| &*tier.name);
    Err(unknown(domain, "tier", tier, known))
}

/// # Errors
/// For a rule that the domain does not have; names those that it has.
pub(super) fn has_rule(domain: &Domain, rule: &str) -> Result<(), Mistake> {
    if knows_rule(domain, rule) {
        return Ok(());
    }
    Err(unknown(domain, "rule", rule, || domain.rules.iter().map(Rule::label)))
}

/// # Errors
/// For a tier with neither the set of limits that a rule names nor default ones: that rule would not limit it.
pub(super) fn has_sets(domain: &Domain, definition: &TierDefinition) -> Result<(), Mistake> {
    let Some(set) = definition.missing_set(domain) else { return Ok(()) };
    let missing = if set == DEFAULT_SET {
        format!("a rule of domain `{}` names no set, and the tier has no limits for it", domain.name)
    } else {
        format!(
            "a rule of domain `{}` uses the set `{set}`, and the tier has neither that set nor limits to take instead",
            domain.name
        )
    };
    let hint = "give `limits`; `limits: [{limit: unlimited}]` for none";
    Err(Mistake::invalid(format!("{missing}: {hint}")).below("limits"))
}

fn unknown<'d, N: Iterator<Item = &'d str>>(domain: &Domain, what: &str, name: &str, known: impl Fn() -> N) -> Mistake {
    let listed = if known().next().is_none() { "it has none".to_owned() } else { format!("it has {}", listed(known())) };
    Mistake::unknown(format!("domain `{}` has no {what} `{name}`: {listed}{}", domain.name, suggestion(name, known())))
}
