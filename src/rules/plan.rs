//! From a request to the checks that decide it: finds the rules, applies `replaces`, `allow`, `deny` and overrides, and merges
//! checks of one counter.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::address::Found;
use super::calendar::Calendar;
use super::key::{self, Key, Part};
use super::precedence::{self, Known};
pub use super::precedence::{Kind, Verdict};
use super::request::{Descriptor, Entry, LimitOverride, Request};
use super::subject::Records;
use super::tier::{self, Attributes, Class, RuleTiers, TierId, TierSource};
use super::tree::Match;
use super::{ChargeRule, Domain, Rule, RuleId, RuleLimit, Unit, quota};
use crate::limit::{Algorithm, Charge, Check, Limit, Micros, Mode, Operation};

/// From this many checks on, equal counters are found by a map rather than by looking along the list.
const MAP_FROM: usize = 16;

/// The checks of one request that are decided atomically; `keys[i]` is the counter of `checks[i]`. Refunds come first, and only
/// a refund's key may occur once more.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Group {
    pub keys: SmallVec<[Key; 2]>,
    pub checks: SmallVec<[Check; 2]>,
    /// The request is refused whatever the checks say: only refunds and what is always charged are counted.
    pub refused: bool,
}

/// What a request comes to before its counters are read.
#[derive(Debug)]
pub struct Plan {
    pub group: Group,
    /// One for each descriptor, in order.
    pub descriptors: SmallVec<[Planned; 2]>,
    /// Limits that are not the rules': those that came with the request, and those of a subject's record. [`Source::Override`]
    /// and [`Source::Subject`] count into it.
    pub overrides: Vec<RuleLimit>,
    pub verdict: Verdict,
    /// How many descriptors named a tier that is not there, or none, and got the default one.
    pub unknown_tiers: usize,
    /// The first descriptor that counts as a quota which is never over: the request's other quotas do not refuse.
    pub spare_quota: Option<usize>,
}

/// What applies to one descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub rule: Option<RuleId>,
    pub kind: Kind,
    /// The tier whose limits apply, where the rule's are a tier's.
    pub tier: Option<TierId>,
    /// The request's class, where the rule keeps a share of its limits free.
    pub class: Option<Class>,
    /// What its own refusal means for the request. Its checks may be stricter, where another descriptor counts by them too.
    pub mode: Mode,
    /// Its checks in the group.
    pub checks: SmallVec<[PlannedCheck; 2]>,
    /// Hits, weighted.
    pub cost: u64,
}

/// A check of a descriptor: its place in the group, and the limit behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCheck {
    pub check: usize,
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The rule's limit of this place; where the rule's limits are a tier's, that tier's.
    Rule(usize),
    /// The plan's override of this place: it came with the request.
    Override(usize),
    /// The plan's override of this place: the rule's limit as it is for this subject.
    Subject(usize),
    /// The subject is blocked; no limit has a part in it.
    Blocked,
    /// The rule's `block_for`.
    Block,
}

impl Source {
    /// The limit that it stands for, of this rule and tier; `None` for blocks.
    pub fn limit<'a>(self, rule: Option<&'a Rule>, tier: Option<TierId>, overrides: &'a [RuleLimit]) -> Option<&'a RuleLimit> {
        match self {
            Source::Rule(number) => rule?.limits_of(tier).get(number),
            Source::Override(number) | Source::Subject(number) => overrides.get(number),
            Source::Blocked | Source::Block => None,
        }
    }
}

/// What the settings say about all rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PlanSettings {
    pub shadow: bool,
    pub quota: bool,
    pub charge: ChargeRule,
}

/// Why a request cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("descriptor {descriptor}: limit override has unknown unit {unit}; use 1 (second) to 7 (week)")]
    UnknownUnit { descriptor: usize, unit: i32 },
    #[error("descriptor {descriptor}: limit override of {requests} requests: {reason}")]
    BadOverride { descriptor: usize, requests: u32, reason: crate::limit::LimitError },
}

/// When a request came, and what time it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moment {
    /// By the clock of the store as this process knows it, in µs since the epoch: which day and month it is
    /// for calendar quotas (a minute early or late), and whether a subject's block or exemption is over.
    pub now: Micros,
    /// How long an answer may be held back, in µs, by the caller's deadline.
    pub patience: Option<Micros>,
}

/// Plans a request.
///
/// # Errors
/// For a limit override that is no limit.
pub fn plan(
    domain: &Domain,
    request: &Request<'_>,
    settings: PlanSettings,
    moment: Moment,
    records: &dyn Records,
) -> Result<Plan, PlanError> {
    let found: Found<'_> = request.descriptors.iter().map(|descriptor| find(domain, &descriptor.entries)).collect();
    if domain.addresses.is_empty() {
        return planned(domain, request, &found, settings, moment, records);
    }
    let networks = domain.addresses.networks(request);
    planned(domain, &networks.request(request), &networks.found(request, &found), settings, moment, records)
}

/// Plans a request whose rules are known.
fn planned(
    domain: &Domain,
    request: &Request<'_>,
    found: &[Option<Match<'_>>],
    settings: PlanSettings,
    moment: Moment,
    records: &dyn Records,
) -> Result<Plan, PlanError> {
    let known = precedence::known(domain, request, found, records);
    let kinds = precedence::kinds(domain, request, found, &known, moment.now)?;
    let verdict = precedence::verdict(&kinds, found, settings);
    let mut planner = Planner {
        domain,
        request,
        attributes: Attributes::new(request),
        by_tier: domain.plans.priority.as_ref().and_then(|_| by_tier(domain, found)),
        settings,
        moment,
        records,
        known,
        group: Group::default(),
        index: HashMap::default(),
        overrides: Vec::new(),
        unknown_tiers: 0,
    };
    planner.group.refused = verdict.refuses();
    let mut descriptors: SmallVec<[Planned; 2]> = SmallVec::with_capacity(kinds.len());
    for (place, ((descriptor, found), kind)) in request.descriptors.iter().zip(found).zip(kinds).enumerate() {
        let rule = found.as_ref().map(|found| found.rule);
        let cost = planner.cost(descriptor);
        let mut planned = Planned { rule, kind, tier: None, class: None, mode: Mode::Enforce, checks: SmallVec::new(), cost };
        if kind == Kind::Limited && !verdict.admits() {
            planner.add(place, descriptor, found.as_ref(), &mut planned)?;
        }
        descriptors.push(planned);
    }
    let Planner { mut group, overrides, unknown_tiers, .. } = planner;
    let spare_quota = quota::release(domain, settings, &descriptors, &mut group);
    refunds_first(&mut group, &mut descriptors);
    Ok(Plan { group, descriptors, overrides, verdict, unknown_tiers, spare_quota })
}

/// The rule of a descriptor: by all its entries; failing that, by those that are no attributes.
pub(super) fn find<'a>(domain: &'a Domain, entries: &[Entry<'a>]) -> Option<Match<'a>> {
    domain.tree.find(entries).or_else(|| domain.tree.find(&without_attributes(domain, entries)?))
}

/// The entries that are no attributes; `None` where none is one.
pub(super) fn without_attributes<'a>(domain: &Domain, entries: &[Entry<'a>]) -> Option<SmallVec<[Entry<'a>; 4]>> {
    let is_attribute = |entry: &Entry<'_>| domain.plans.attributes.iter().any(|key| **key == *entry.key);
    let has_attributes = !domain.plans.attributes.is_empty() && entries.iter().any(is_attribute);
    has_attributes.then(|| entries.iter().copied().filter(|entry| !is_attribute(entry)).collect())
}

fn by_tier<'d>(domain: &'d Domain, found: &[Option<Match<'_>>]) -> Option<(usize, &'d RuleTiers)> {
    let tiers = |found: &Option<Match<'_>>| domain.rule(found.as_ref()?.rule).tiers.as_ref();
    found.iter().enumerate().find_map(|(place, found)| Some((place, tiers(found)?)))
}

struct Planner<'a, 'r> {
    domain: &'a Domain,
    request: &'a Request<'r>,
    attributes: Attributes<'a, 'r>,
    /// The first descriptor whose rule goes by tiers, where there are classes: their tier may have one.
    by_tier: Option<(usize, &'a RuleTiers)>,
    settings: PlanSettings,
    moment: Moment,
    records: &'a dyn Records,
    known: Known,
    group: Group,
    /// Places of counters, once there are many: by key and whether the check is a refund.
    index: HashMap<(Key, bool), usize, foldhash::fast::RandomState>,
    overrides: Vec<RuleLimit>,
    unknown_tiers: usize,
}

impl<'r> Planner<'_, 'r> {
    /// A descriptor's own hits as they are; else the request's, weighted.
    fn cost(&self, descriptor: &Descriptor<'r>) -> u64 {
        descriptor.hits.unwrap_or_else(|| {
            let hits = u64::from(self.request.hits_addend.max(1));
            hits.saturating_mul(tier::weight(&self.domain.plans.costs, &self.attributes, descriptor))
        })
    }

    /// The limits of a rule for this descriptor: its own, or those of the caller's tier.
    fn limits<'d>(&mut self, rule: &'d Rule, descriptor: &Descriptor<'r>, planned: &mut Planned) -> &'d [RuleLimit] {
        let Some(tiers) = &rule.tiers else { return &rule.limits };
        let (named, is_unknown) = self.named_tier(tiers, descriptor);
        self.unknown_tiers += usize::from(is_unknown);
        planned.tier = named.or(self.domain.plans.default_tier);
        planned.tier.and_then(|tier| tiers.limits.get(tier.0 as usize)).map_or(&[], |tier| &tier.limits)
    }

    /// The caller's tier, if it is a known one; and whether it should have been. Nobody has to be assigned one.
    fn named_tier(&self, tiers: &RuleTiers, descriptor: &Descriptor<'r>) -> (Option<TierId>, bool) {
        let name = tier::name(self.domain, &self.attributes, descriptor, &tiers.source, self.records);
        let is_expected = name.is_some() || matches!(tiers.source, TierSource::Entry(_));
        let named = name.and_then(|name| self.domain.plans.tier_named(&name));
        (named, is_expected && named.is_none())
    }

    /// How important the request is: what it says, else what the tier of its first rule by tier says, else the domain's default.
    fn class(&self, descriptor: &Descriptor<'r>) -> Option<Class> {
        let priority = self.domain.plans.priority.as_ref()?;
        let named = self.attributes.value(descriptor, &priority.key).and_then(Class::parse);
        let of_tier = || {
            let (place, tiers) = self.by_tier?;
            let descriptor = &self.request.descriptors[place];
            let tier = self.named_tier(tiers, descriptor).0.or(self.domain.plans.default_tier)?;
            self.domain.plans.tier(tier).priority
        };
        named.or_else(of_tier).or(Some(priority.default))
    }

    fn add(
        &mut self,
        place: usize,
        descriptor: &Descriptor<'r>,
        found: Option<&Match<'_>>,
        planned: &mut Planned,
    ) -> Result<(), PlanError> {
        let domain = self.domain;
        let entries = match found {
            Some(found) => self.entries(found.parts.iter().copied()),
            None => self.entries(descriptor.entries.iter().map(|entry| Part { key: entry.key, value: entry.value, shared: false })),
        };
        let rule = found.map(|found| domain.rule(found.rule));
        let record = self.known.get(place).cloned().flatten();
        let owner = u16::try_from(place).unwrap_or(u16::MAX);
        if let Some(limit) = precedence::given_limit(domain, descriptor) {
            let mut limit = override_limit(place, limit, rule)?;
            if let Some(record) = &record {
                limit.limit = record.multiplied(&limit.limit);
            }
            planned.mode = self.mode(None);
            let check = self.check(descriptor, &limit, planned.cost, planned.mode, owner);
            let key = key::key(&domain.key_prefix, &entries, &limit.key_suffix);
            self.overrides.push(limit);
            let check = self.merge(key, check);
            planned.checks.push(PlannedCheck { check, source: Source::Override(self.overrides.len() - 1) });
            return Ok(());
        }
        let Some(rule) = rule else { return Ok(()) };
        planned.mode = self.mode(Some(rule));
        let mode = planned.mode;
        let own = self.limits(rule, descriptor, planned);
        let given = record.and_then(|record| record.limits(rule, own));
        let limits = given.as_deref().unwrap_or(own);
        let first_given = self.overrides.len();
        if limits.is_empty() {
            planned.kind = Kind::Unlimited;
            return Ok(());
        }
        planned.class = if rule.reserve { self.class(descriptor) } else { None };
        for (number, limit) in limits.iter().enumerate() {
            let mut check = self.check(descriptor, limit, planned.cost, mode, owner);
            // What was done, or is given back, is no question of what is kept free.
            let asks = matches!(check.operation, Operation::Take | Operation::Look);
            if let (true, Some(priority), Some(class), None) = (asks, &domain.plans.priority, planned.class, limit.limit.calendar())
            {
                check.limit = priority.usable(&check.limit, class);
            }
            let key = key::key(&domain.key_prefix, &entries, &limit.key_suffix);
            let check = self.merge(key, check);
            let source = if given.is_some() { Source::Subject(first_given + number) } else { Source::Rule(number) };
            planned.checks.push(PlannedCheck { check, source });
        }
        self.overrides.extend(given.into_iter().flatten());
        let owner = self.own(planned, owner);
        if let Some(block) = rule.block.as_ref().filter(|_| mode == Mode::Enforce && !descriptor.is_negative_hits) {
            let key = key::key(&domain.key_prefix, &entries, &block.key_suffix);
            let operation = if planned.cost == 0 { Operation::Look } else { Operation::Take };
            let check = Check { limit: block.limit, operation, cost: 0, mode, charge: Charge::Admitted, max_delay: None, owner };
            let check = self.merge(key, check);
            planned.checks.push(PlannedCheck { check, source: Source::Block });
        }
        Ok(())
    }

    /// The mode of a rule's limits, or of those that come with the request, for which only the settings hold.
    fn mode(&self, rule: Option<&Rule>) -> Mode {
        match self.settings {
            PlanSettings { shadow: true, .. } => Mode::Shadow,
            _ if rule.is_some_and(|rule| rule.shadow) => Mode::Shadow,
            PlanSettings { quota: true, .. } => Mode::Quota,
            _ if rule.is_some_and(|rule| rule.quota) => Mode::Quota,
            _ => Mode::Enforce,
        }
    }

    /// One owner for all of a descriptor's checks, also those that were merged into an earlier one's.
    fn own(&mut self, planned: &Planned, owner: u16) -> u16 {
        let checks = &mut self.group.checks;
        let owner = planned.checks.iter().map(|planned| checks[planned.check].owner).min().unwrap_or(owner);
        for planned in &planned.checks {
            checks[planned.check].owner = owner;
        }
        owner
    }

    fn entries<'p>(&self, parts: impl Iterator<Item = Part<'p>> + Clone) -> key::EntriesText {
        let subject = precedence::subject_place(self.domain, parts.clone().map(|part| part.key));
        key::entries(parts, subject)
    }

    fn check(&self, descriptor: &Descriptor<'_>, limit: &RuleLimit, cost: u64, mode: Mode, owner: u16) -> Check {
        let rule = limit.charge.unwrap_or(self.settings.charge);
        let has_own_hits = descriptor.hits.is_some();
        let cost = if descriptor.is_negative_hits && !self.domain.plans.accept_refunds { 0 } else { cost };
        let (operation, charge) = match rule {
            _ if descriptor.is_negative_hits => (Operation::Refund, Charge::Admitted),
            _ if cost == 0 => (Operation::Look, Charge::Admitted),
            ChargeRule::Auto | ChargeRule::Always if has_own_hits => (Operation::Report, Charge::Always),
            ChargeRule::Always => (Operation::Take, Charge::Always),
            ChargeRule::Auto | ChargeRule::Admitted => (Operation::Take, Charge::Admitted),
        };
        let max_delay = limit.max_wait.map(|max_wait| self.moment.patience.map_or(max_wait, |patience| patience.min(max_wait)));
        Check { limit: self.dated(&limit.limit), operation, cost, mode, charge, max_delay, owner }
    }

    /// A calendar quota with its edges; any other limit as it is.
    fn dated(&self, limit: &Limit) -> Limit {
        let Some(period) = limit.calendar() else { return *limit };
        let edges = |calendar: &Calendar| limit.on(calendar.edges(period, self.moment.now));
        match &self.domain.plans.calendar {
            Some(calendar) => edges(calendar),
            // A domain whose rules have no quotas, but a subject does.
            None => Calendar::of_zone(&self.domain.plans.timezone).map_or(*limit, |calendar| edges(&calendar)),
        }
    }

    /// Adds a check, or adds it to the one of the same counter: costs summed, one outcome for both.
    fn merge(&mut self, key: Key, check: Check) -> usize {
        let is_refund = check.operation == Operation::Refund;
        let group = &mut self.group;
        if group.checks.len() == MAP_FROM && self.index.is_empty() {
            let known = group.keys.iter().zip(&group.checks).enumerate();
            self.index = known.map(|(place, (key, check))| ((key.clone(), check.operation == Operation::Refund), place)).collect();
        }
        let same = |(other, known): (&Key, &Check)| *other == key && (known.operation == Operation::Refund) == is_refund;
        let known = match group.checks.len() {
            0..MAP_FROM => group.keys.iter().zip(&group.checks).position(same),
            _ => self.index.get(&(key.clone(), is_refund)).copied(),
        };
        match known {
            Some(place) => {
                merge_into(&mut group.checks[place], check);
                place
            }
            None => {
                if !self.index.is_empty() {
                    self.index.insert((key.clone(), is_refund), group.checks.len());
                }
                group.keys.push(key);
                group.checks.push(check);
                group.checks.len() - 1
            }
        }
    }
}

/// One outcome for both: the stricter of two sizes, mode, operation and charge.
fn merge_into(known: &mut Check, other: Check) {
    let size = |limit: &Limit| (limit.requests(), limit.burst(), limit.capacity());
    if size(&other.limit) < size(&known.limit) {
        known.limit = other.limit;
    }
    known.cost = known.cost.saturating_add(other.cost);
    known.mode = match (known.mode, other.mode) {
        (Mode::Enforce, _) | (_, Mode::Enforce) => Mode::Enforce,
        (Mode::Quota, _) | (_, Mode::Quota) => Mode::Quota,
        _ => Mode::Shadow,
    };
    known.operation = match (known.operation, other.operation) {
        (Operation::Take, _) | (_, Operation::Take) => Operation::Take,
        (Operation::Report, _) | (_, Operation::Report) => Operation::Report,
        (same, _) => same,
    };
    if other.charge == Charge::Always {
        known.charge = Charge::Always;
    }
    known.max_delay = match (known.max_delay, other.max_delay) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

/// The limit of a request-level override: by the algorithm of the rule that it replaces, else fixed_window.
fn override_limit(descriptor: usize, given: LimitOverride, rule: Option<&Rule>) -> Result<RuleLimit, PlanError> {
    let unit = unit(descriptor, given)?;
    let window = unit.window().saturating_mul(u64::from(given.unit_multiplier.unwrap_or(1).max(1)));
    // A quota is no algorithm that a limit of any time could have.
    let first = rule.and_then(|rule| rule.limits.first()).filter(|first| first.limit.calendar().is_none());
    let algorithm = first.map_or(Algorithm::FixedWindow, |first| first.limit.algorithm());
    let requests = given.requests_per_unit;
    let limit = Limit::new(algorithm, u64::from(requests), window, None);
    let limit = limit.map_err(|reason| PlanError::BadOverride { descriptor, requests, reason })?;
    let mut limit = RuleLimit::named(0, &[limit], rule.map_or("override", Rule::label));
    if let Some(first) = first {
        limit.charge = first.charge;
        limit.max_wait = first.max_wait;
    }
    Ok(limit)
}

pub(super) fn unit(descriptor: usize, given: LimitOverride) -> Result<Unit, PlanError> {
    Unit::from_number(given.unit).ok_or(PlanError::UnknownUnit { descriptor, unit: given.unit })
}

/// Refunds are committed whatever the rest says, so stores take them before they read the other checks.
fn refunds_first(group: &mut Group, descriptors: &mut [Planned]) {
    if group.checks.iter().all(|check| check.operation != Operation::Refund) {
        return;
    }
    let mut order: Vec<usize> = (0..group.checks.len()).collect();
    order.sort_by_key(|&place| group.checks[place].operation != Operation::Refund);
    let mut new_place = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        new_place[old] = new;
    }
    group.keys = order.iter().map(|&place| group.keys[place].clone()).collect();
    group.checks = order.iter().map(|&place| group.checks[place]).collect();
    for check in descriptors.iter_mut().flat_map(|planned| &mut planned.checks) {
        check.check = new_place[check.check];
    }
}
