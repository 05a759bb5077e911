//! What a plan is made of: named tiers with their limits, weights of requests, and classes of priority.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::calendar::Calendar;
use super::key::Part;
use super::request::{Descriptor, Request};
use super::subject::{self, Records};
use super::tier_definition::TierDefinition;
use super::{Domain, RuleLimit};
use crate::limit::{Cost, Limit};

/// What a domain's plans are made of.
#[derive(Clone, Debug)]
pub struct Plans {
    /// Indexed by [`TierId`].
    pub tiers: Vec<Tier>,
    /// What an unknown or absent tier name gets.
    pub default_tier: Option<TierId>,
    /// Weights by entry value; several multiply.
    pub costs: Vec<CostTable>,
    pub priority: Option<Priority>,
    /// The zone of its quotas' days and months.
    pub timezone: Box<str>,
    /// Days and months of its time zone, where it has quotas.
    pub calendar: Option<Arc<Calendar>>,
    /// The keys of entries that say something about a request and are no part of what it matches: those of costs, priority and
    /// tiers.
    pub attributes: Vec<Box<[u8]>>,
    /// Whether callers may bring their own limits, and give hits back.
    pub accept_overrides: bool,
    pub accept_refunds: bool,
}

impl Default for Plans {
    fn default() -> Plans {
        Plans {
            tiers: Vec::new(),
            default_tier: None,
            costs: Vec::new(),
            priority: None,
            timezone: "UTC".into(),
            calendar: None,
            attributes: Vec::new(),
            accept_overrides: true,
            accept_refunds: true,
        }
    }
}

impl Plans {
    pub fn tier_named(&self, name: &[u8]) -> Option<TierId> {
        let place = self.tiers.iter().position(|tier| tier.name.as_bytes() == name)?;
        u32::try_from(place).ok().map(TierId)
    }

    /// Whether the two are the same but for the dates that they were made on.
    pub fn means(&self, other: &Plans) -> bool {
        fn tiers(plans: &Plans) -> impl Iterator<Item = (&str, &TierDefinition)> {
            plans.tiers.iter().map(|tier| (&*tier.name, &tier.definition))
        }
        tiers(self).eq(tiers(other))
            && (self.default_tier, &self.costs, &self.priority) == (other.default_tier, &other.costs, &other.priority)
            && (&self.timezone, &self.attributes) == (&other.timezone, &other.attributes)
            && (self.accept_overrides, self.accept_refunds) == (other.accept_overrides, other.accept_refunds)
    }

    /// # Panics
    /// When the id is of another domain.
    pub fn tier(&self, id: TierId) -> &Tier {
        &self.tiers[id.0 as usize]
    }
}

/// A tier's place in its domain's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TierId(pub u32);

/// A named plan. Its limits stand in the rules that use it ([`RuleTiers`]).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tier {
    pub name: Box<str>,
    /// The class of its callers, where a request does not say.
    pub priority: Option<Class>,
    /// What it says, whatever rules use it.
    pub definition: TierDefinition,
    /// Where it is written, `file:line`; empty for one that was defined while weir runs.
    pub source: Box<str>,
}

/// The set of a tier's limits that a rule means when it does not say.
pub const DEFAULT_SET: &str = "default";

/// Where a rule's limits depend on the caller's tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTiers {
    pub source: TierSource,
    /// Which set of a tier's limits it means (`use`).
    pub set: Box<str>,
    /// Indexed by [`TierId`].
    pub limits: Vec<TierLimits>,
}

/// What one tier means for one rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TierLimits {
    /// Rate limits, then quotas.
    pub limits: Vec<RuleLimit>,
}

/// How a caller's tier is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierSource {
    /// The request says it, in an entry of this key.
    Entry(Box<[u8]>),
    /// It was assigned to the subject that the entry of this key names.
    Assigned(Box<[u8]>),
}

/// Weights by the value of one entry, such as `method: {GET: 1, POST: 2}`; what is not listed weighs 1.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CostTable {
    pub key: Box<[u8]>,
    pub weights: HashMap<Box<[u8]>, Cost, RandomState>,
}

/// How important a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Low,
    Normal,
    High,
    Critical,
}

impl Class {
    /// From the least to the most important.
    pub const ALL: [Class; 4] = [Class::Low, Class::Normal, Class::High, Class::Critical];

    pub fn name(self) -> &'static str {
        match self {
            Class::Low => "low",
            Class::Normal => "normal",
            Class::High => "high",
            Class::Critical => "critical",
        }
    }

    pub fn parse(name: &[u8]) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name().as_bytes().eq_ignore_ascii_case(name))
    }
}

/// A domain's classes: which entry names them, and what share of a limit each leaves free for the classes above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    pub key: Box<[u8]>,
    /// The class of a request that names none, or one that is unknown, and whose tier has none.
    pub default: Class,
    /// In millionths of a limit, indexed by [`Class`].
    pub reserve: [u32; 4],
}

/// A whole in [`Priority::reserve`].
pub const WHOLE: u32 = 1_000_000;

impl Priority {
    /// A limit as it is for a class, which may use limit − floor(limit × share) of it, at least 1. A bucket keeps its rate.
    pub fn usable(&self, limit: &Limit, class: Class) -> Limit {
        let share = self.reserve[class as usize];
        if share == 0 { *limit } else { limit.reserved(share, WHOLE) }
    }
}

/// What a request's tier is called, whether or not there is such a tier: by its own entry, or as it was assigned to the subject that an
/// entry names.
pub(super) fn name<'r>(
    domain: &Domain,
    attributes: &Attributes<'_, 'r>,
    descriptor: &Descriptor<'r>,
    source: &TierSource,
    records: &dyn Records,
) -> Option<Cow<'r, [u8]>> {
    match source {
        TierSource::Entry(key) => attributes.value(descriptor, key).map(Cow::Borrowed),
        TierSource::Assigned(_) if records.is_empty() => None,
        TierSource::Assigned(key) => {
            let value = attributes.value(descriptor, key)?;
            let subject = subject::name(domain.name.as_bytes(), Part { key, value, shared: false });
            let name = records.find(&subject)?.tier.clone()?;
            Some(Cow::Owned(name.into_string().into_bytes()))
        }
    }
}

/// From this many descriptors on, a map finds an attribute of another descriptor.
const MAP_FROM: usize = 16;

/// The attribute entries of a request.
pub(super) struct Attributes<'q, 'r> {
    request: &'q Request<'r>,
    /// Of many descriptors, the first value of each key.
    first: Option<HashMap<&'r [u8], &'r [u8], RandomState>>,
}

impl<'q, 'r> Attributes<'q, 'r> {
    pub(super) fn new(request: &'q Request<'r>) -> Attributes<'q, 'r> {
        let first = (request.descriptors.len() >= MAP_FROM).then(|| {
            let mut first = HashMap::default();
            for entry in request.descriptors.iter().flat_map(|descriptor| &descriptor.entries) {
                first.entry(entry.key).or_insert(entry.value);
            }
            first
        });
        Attributes { request, first }
    }

    /// The value of an attribute entry: the descriptor's own, else that of the first descriptor that has it.
    pub(super) fn value(&self, own: &Descriptor<'r>, key: &[u8]) -> Option<&'r [u8]> {
        let in_descriptor =
            |descriptor: &Descriptor<'r>| descriptor.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value);
        in_descriptor(own).or_else(|| match &self.first {
            None => self.request.descriptors.iter().find_map(in_descriptor),
            Some(first) => first.get(key).copied(),
        })
    }
}

/// The product of a request's weights; saturates.
pub(super) fn weight<'r>(tables: &[CostTable], attributes: &Attributes<'_, 'r>, own: &Descriptor<'r>) -> Cost {
    let weight_in =
        |table: &CostTable| attributes.value(own, &table.key).and_then(|value| table.weights.get(value)).copied().unwrap_or(1);
    tables.iter().map(weight_in).fold(1, Cost::saturating_mul)
}
