//! What is known of one subject beyond the rules: its tier, a block or an exemption for a while, limits of its own, a multiplier.
//! Written while weir runs, and kept in the store; [`super::plan`] asks for the record of every subject that a request is about.

use std::sync::Arc;

use super::key::{self, EntriesText, Part};
use super::{Rule, RuleLimit};
use crate::limit::{Algorithm, Limit, LimitError, Micros, Period, Shape};

/// A whole in [`SubjectRecord::multiplier`].
pub const WHOLE: u64 = 1_000_000;

/// What an operator said about one subject.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SubjectRecord {
    /// What `tier: {assigned}` finds. The name of a tier that is not there counts as none.
    pub tier: Option<Box<str>>,
    /// Refused until then, in µs since the epoch.
    pub blocked_until: Option<Micros>,
    /// Admitted and not counted until then, in µs since the epoch.
    pub allowed_until: Option<Micros>,
    /// In millionths: every limit is so many times as large, rounded down, at least 1.
    pub multiplier: Option<u64>,
    /// At most one for each rule, and one for all others.
    pub limits: Vec<SubjectLimits>,
}

/// Limits in place of a rule's, for one subject.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SubjectLimits {
    /// By its label; `None`: every rule that has limits and is not named.
    pub rule: Option<Box<str>>,
    /// Instead of the rule's rate limits, unless empty.
    pub rates: Vec<SubjectRate>,
    /// Instead of the rule's quotas of the same period.
    pub quotas: Vec<Limit>,
    /// Quotas of the rule that do not hold; a period is not in `quotas`, too.
    pub lifted_quotas: Vec<Period>,
    /// No rate limit at all. Quotas stay.
    pub unlimited: bool,
}

/// A rate limit of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectRate {
    /// By the algorithm that was named; else fixed_window, until the rule says what it counts by.
    pub limit: Limit,
    pub names_algorithm: bool,
}

/// What holds whatever the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Switch {
    /// Nothing: the rules decide.
    #[default]
    Off,
    /// Everything is admitted, nothing is counted.
    AllowAll,
    /// Everything is counted, nothing is refused.
    ShadowAll,
}

impl Switch {
    pub const ALL: [Switch; 3] = [Switch::Off, Switch::AllowAll, Switch::ShadowAll];

    pub fn name(self) -> &'static str {
        match self {
            Switch::Off => "off",
            Switch::AllowAll => "allow",
            Switch::ShadowAll => "shadow",
        }
    }

    pub fn parse(name: &str) -> Option<Switch> {
        Switch::ALL.into_iter().find(|switch| switch.name() == name)
    }
}

/// Where records are looked up while a request is planned. Knows all of them: nothing is waited for.
pub trait Records {
    /// Whether there are none at all.
    fn is_empty(&self) -> bool;
    /// The record of the subject of this [`name`].
    fn find(&self, name: &[u8]) -> Option<Arc<SubjectRecord>>;
}

/// No records.
impl Records for () {
    fn is_empty(&self) -> bool {
        true
    }

    fn find(&self, _: &[u8]) -> Option<Arc<SubjectRecord>> {
        None
    }
}

/// What a subject is called among the records of all domains: `<domain>|<key>=<value>`, escaped as in counter keys.
pub fn name(domain: &[u8], part: Part<'_>) -> EntriesText {
    joined(domain, &key::subject(part))
}

/// As [`name`], for the text that stands in braces in the subject's counter keys.
pub fn joined(domain: &[u8], subject: &[u8]) -> EntriesText {
    let mut name = key::domain(domain);
    name.push(b'|');
    name.extend_from_slice(subject);
    name
}

impl SubjectRecord {
    /// Says nothing, and need not be kept.
    pub fn is_empty(&self) -> bool {
        *self == SubjectRecord::default()
    }

    pub fn is_blocked(&self, now: Micros) -> bool {
        self.blocked_until.is_some_and(|until| until > now)
    }

    /// A block outweighs it.
    pub fn is_allowed(&self, now: Micros) -> bool {
        self.allowed_until.is_some_and(|until| until > now)
    }

    /// The limits of a rule as they are for this subject: `own` are those that the rule, or the subject's tier, has. `None`: as
    /// they are.
    pub fn limits(&self, rule: &Rule, own: &[RuleLimit]) -> Option<Vec<RuleLimit>> {
        let given = self.limits_for(rule);
        if given.is_none() && self.multiplier.is_none() {
            return None;
        }
        let mut limits = given.map_or_else(|| own.to_vec(), |given| given.instead_of(own, rule.label()));
        for limit in &mut limits {
            limit.limit = self.multiplied(&limit.limit);
        }
        Some(limits)
    }

    /// Whether it has limits for a rule that has none by itself.
    pub fn limits_by_name(&self, rule: &Rule) -> bool {
        self.limits_for(rule).is_some_and(|limits| limits.rule.is_some() && !(limits.rates.is_empty() && limits.quotas.is_empty()))
    }

    pub fn multiplied(&self, limit: &Limit) -> Limit {
        self.multiplier.map_or(*limit, |multiplier| limit.scaled(multiplier, WHOLE))
    }

    fn limits_for(&self, rule: &Rule) -> Option<&SubjectLimits> {
        let named = self.limits.iter().find(|limits| limits.rule.as_deref() == Some(rule.label()));
        named.or_else(|| self.limits.iter().find(|limits| limits.rule.is_none()))
    }
}

impl SubjectLimits {
    /// Replaces what the other one says: the rate limits, the daily and the monthly quota are each a thing of their own.
    pub fn change(&mut self, other: SubjectLimits) {
        self.quotas.retain(|known| !other.says_of(known.calendar()));
        self.lifted_quotas.retain(|period| !other.says_of(Some(*period)));
        if other.unlimited || !other.rates.is_empty() {
            (self.rates, self.unlimited) = (other.rates, other.unlimited);
        }
        self.quotas.extend(other.quotas);
        self.lifted_quotas.extend(other.lifted_quotas);
        self.quotas.sort_by_key(Limit::window);
        self.lifted_quotas.sort_unstable();
    }

    /// Whether it replaces or lifts the quota of this period.
    fn says_of(&self, period: Option<Period>) -> bool {
        let is_replaced = self.quotas.iter().any(|quota| quota.calendar() == period);
        is_replaced || period.is_some_and(|period| self.lifted_quotas.contains(&period))
    }

    fn instead_of(&self, own: &[RuleLimit], label: &str) -> Vec<RuleLimit> {
        let first = own.iter().find(|own| own.limit.calendar().is_none());
        let counted = SubjectRate::counted(&self.rates, first.map(|first| first.limit.algorithm()));
        let rates = (0..counted.len()).map(|place| {
            let limit = RuleLimit::named(place, &counted, label);
            RuleLimit { charge: first.and_then(|first| first.charge), max_wait: first.and_then(|first| first.max_wait), ..limit }
        });
        let quotas = self.quotas.iter().map(|quota| {
            let same = own.iter().find(|own| own.limit.calendar() == quota.calendar());
            same.map_or_else(|| RuleLimit::named(0, &[*quota], label), |same| RuleLimit { limit: *quota, ..same.clone() })
        });
        let replaces_rates = self.unlimited || !self.rates.is_empty();
        let stays = |own: &&RuleLimit| match own.limit.calendar() {
            None => !replaces_rates,
            period => !self.says_of(period),
        };
        rates.chain(own.iter().filter(stays).cloned()).chain(quotas).collect()
    }
}

impl SubjectLimits {
    /// What two of the rate limits count by that would be one counter with two sizes, in this rule: whatever the subject's tier.
    pub fn same_counter(&self, rule: &Rule) -> Option<Algorithm> {
        let tiers = rule.tiers.iter().flat_map(|tiers| &tiers.limits).map(|tier| &*tier.limits);
        let first = |own: &[RuleLimit]| own.iter().find(|own| own.limit.calendar().is_none()).map(|own| own.limit.algorithm());
        let mut rules = std::iter::once(&*rule.limits).chain(tiers).map(first);
        rules.find_map(|algorithm| SubjectRate::same_counter(&self.rates, algorithm))
    }
}

impl SubjectRate {
    /// A burst means a token bucket, unless an algorithm is named.
    ///
    /// # Errors
    /// As [`Limit::new`].
    pub fn new(requests: u64, window: Micros, burst: Option<u64>, algorithm: Option<Algorithm>) -> Result<SubjectRate, LimitError> {
        let names_algorithm = algorithm.is_some() || burst.is_some();
        let unnamed = if burst.is_some() { Algorithm::TokenBucket } else { Algorithm::FixedWindow };
        let limit = Limit::new(algorithm.unwrap_or(unnamed), requests, window, burst)?;
        Ok(SubjectRate { limit, names_algorithm })
    }

    /// What two of these count by that would be one counter with two sizes, in a rule that counts by this algorithm.
    pub fn same_counter(rates: &[SubjectRate], rules: Option<Algorithm>) -> Option<Algorithm> {
        let mut seen: Vec<Shape> = Vec::with_capacity(rates.len());
        for rate in rates {
            let shape = rate.counted_by(rules).shape();
            if seen.contains(&shape) {
                return Some(shape.algorithm);
            }
            seen.push(shape);
        }
        None
    }

    /// Each as the rule counts. Of those that are one counter by now, since the rule has changed, the smaller one: counted twice, a
    /// request would cost twice as much.
    pub fn counted(rates: &[SubjectRate], rules: Option<Algorithm>) -> Vec<Limit> {
        let mut limits: Vec<Limit> = Vec::with_capacity(rates.len());
        for limit in rates.iter().map(|rate| rate.counted_by(rules)) {
            match limits.iter_mut().find(|known| known.shape() == limit.shape()) {
                Some(known) if (limit.requests(), limit.burst()) < (known.requests(), known.burst()) => *known = limit,
                Some(_) => {}
                None => limits.push(limit),
            }
        }
        limits
    }

    /// As the rule counts, where that can carry it.
    fn counted_by(&self, rules: Option<Algorithm>) -> Limit {
        match rules {
            Some(algorithm) if !self.names_algorithm => {
                Limit::new(algorithm, self.limit.requests(), self.limit.window(), None).unwrap_or(self.limit)
            }
            _ => self.limit,
        }
    }
}
