//! Tiers that are defined while weir runs: as good as those of the rule files, and instead of one of the same name.

use std::sync::Arc;

use super::subject::SubjectRate;
use super::tier::{Class, DEFAULT_SET, RuleTiers, Tier, TierId, TierLimits};
use super::{Domain, RuleLimit};
use crate::limit::{Algorithm, Limit};

/// A tier by what it sells, whatever rules use it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TierDefinition {
    pub priority: Option<Class>,
    /// Sets of rate limits by name; a rule whose set is not there gets [`DEFAULT_SET`]. A set without limits is unlimited.
    pub sets: Vec<(Box<str>, Vec<SubjectRate>)>,
    pub quotas: Vec<Limit>,
}

impl TierDefinition {
    fn set(&self, name: &str) -> &[SubjectRate] {
        let named = |name: &str| self.sets.iter().find(|(set, _)| **set == *name).map(|(_, rates)| &**rates);
        named(name).or_else(|| named(DEFAULT_SET)).unwrap_or_default()
    }

    /// The set of limits that a rule of this domain asks for, where the definition has neither that set nor a default one. A definition
    /// without any sets limits by its quotas alone.
    pub fn missing_set<'d>(&self, domain: &'d Domain) -> Option<&'d str> {
        let has = |name: &str| self.sets.iter().any(|(set, _)| **set == *name);
        if self.sets.is_empty() || has(DEFAULT_SET) {
            return None;
        }
        let mut asked = domain.rules.iter().filter_map(|rule| Some(&*rule.tiers.as_ref()?.set));
        asked.find(|set| !has(set))
    }

    /// What two limits of a set count by that would be one counter with two sizes, in a rule of this domain.
    pub fn same_counter(&self, domain: &Domain) -> Option<Algorithm> {
        let tiers = domain.rules.iter().filter_map(|rule| rule.tiers.as_ref());
        tiers.into_iter().find_map(|tiers| SubjectRate::same_counter(self.set(&tiers.set), tiers.algorithm()))
    }

    /// What it means for a rule. Limits that name no algorithm count as the rule's other tiers do.
    fn limits(&self, tiers: &RuleTiers, label: &str) -> TierLimits {
        let algorithm = tiers.algorithm();
        let rates = SubjectRate::counted(self.set(&tiers.set), algorithm);
        let limits: Vec<Limit> = rates.into_iter().chain(self.quotas.iter().copied()).collect();
        TierLimits { limits: (0..limits.len()).map(|place| RuleLimit::named(place, &limits, label)).collect() }
    }
}

impl RuleTiers {
    /// What the rate limits of its tiers count by.
    pub fn algorithm(&self) -> Option<Algorithm> {
        let mut algorithms = self.limits.iter().flat_map(|tier| &tier.limits).map(|limit| limit.limit.algorithm());
        algorithms.find(|algorithm| *algorithm != Algorithm::Calendar)
    }
}

impl Domain {
    /// The same domain with these tiers besides, or instead of those of the same name.
    pub fn with_tiers<'a>(&self, defined: impl IntoIterator<Item = (&'a str, &'a TierDefinition)>) -> Arc<Domain> {
        let mut domain = self.clone();
        for (name, definition) in defined {
            let id = domain.plans.tier_named(name.as_bytes()).map_or(domain.plans.tiers.len(), |TierId(place)| place as usize);
            let (priority, definition_of) = (definition.priority, definition.clone());
            let tier = Tier { name: name.into(), priority, definition: definition_of, source: Box::default() };
            if id == domain.plans.tiers.len() {
                domain.plans.tiers.push(tier);
            } else {
                domain.plans.tiers[id] = tier;
            }
            for rule in &mut domain.rules {
                let label = rule.label().to_owned();
                let Some(tiers) = &mut rule.tiers else { continue };
                let limits = definition.limits(tiers, &label);
                tiers.limits.resize_with(tiers.limits.len().max(id + 1), TierLimits::default);
                tiers.limits[id] = limits;
            }
        }
        Arc::new(domain)
    }
}
