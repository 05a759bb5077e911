//! Which limits apply to a request, and what their outcomes mean. Pure: no clock, no I/O.
//!
//! A [`RuleSet`] is compiled by `config` and never changes; a reload makes another. [`tree`] finds the rule of a descriptor,
//! [`plan`] turns a request into the checks to decide, [`decision`] turns their outcomes into the answer; [`explain`] says why.

pub mod about;
pub mod address;
pub mod calendar;
pub mod decision;
pub mod explain;
pub mod key;
pub mod plan;
pub mod precedence;
mod quota;
pub mod request;
pub mod reservation;
pub mod subject;
pub mod tier;
pub mod tier_definition;
pub mod tree;

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::limit::{DAY, HOUR, Limit, MINUTE, MONTH, Micros, SECOND, WEEK, YEAR};
use address::Addresses;
use tier::{Plans, RuleTiers, TierId};
use tree::Node;

/// All domains that are loaded. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    pub domains: HashMap<Box<[u8]>, std::sync::Arc<Domain>, RandomState>,
    /// Counts the rule sets of this process, from 1; 0 is none loaded.
    pub revision: u64,
}

impl RuleSet {
    pub fn rule_count(&self) -> usize {
        self.domains.values().map(|domain| domain.rules.len()).sum()
    }
}

/// One `domain:` document (or several merged).
#[derive(Clone, Debug)]
pub struct Domain {
    pub name: Box<str>,
    /// The file that it came from, or the first of them, for messages.
    pub file: Box<str>,
    /// All files with documents of the domain.
    pub files: Vec<Box<str>>,
    /// What the keys of its counters begin with ([`key::domain_prefix`]).
    pub key_prefix: Vec<u8>,
    /// Entry keys: the first one that a descriptor has says who it is about; else its first entry does.
    pub subject: Vec<Box<[u8]>>,
    /// Entries that are counted by network.
    pub addresses: Addresses,
    pub response: ResponseOptions,
    pub tree: Node,
    /// Indexed by [`RuleId`].
    pub rules: Vec<Rule>,
    /// What request-level overrides that match no rule do when the store fails.
    pub on_store_failure: OnStoreFailure,
    /// Tiers, costs, classes: what a plan is made of.
    pub plans: Plans,
}

impl Domain {
    /// # Panics
    /// When the id is of another domain.
    pub fn rule(&self, id: RuleId) -> &Rule {
        &self.rules[id.0 as usize]
    }
}

/// A rule's place in its domain's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// A descriptor pattern with what applies to the descriptors that match it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `rate_limit.name`, else the descriptor's `name`.
    pub name: Option<Box<str>>,
    /// Its keys and patterns, such as `path=/api/ai/generate,user_id`: how messages and metrics call a rule without a name.
    pub path: Box<str>,
    /// Its keys alone, such as `path,user_id`: what layer of a request it limits.
    pub layer: Box<str>,
    /// Empty for a rule that is unlimited, allows or denies, or whose limits are a tier's.
    pub limits: Vec<RuleLimit>,
    /// Its limits are those of the caller's tier.
    pub tiers: Option<RuleTiers>,
    /// Keeps a share of its limits free for the classes above a request's (`priority`).
    pub reserve: bool,
    /// Refuses for a while after one of the limits had no room.
    pub block: Option<Block>,
    pub unlimited: bool,
    pub allow: bool,
    pub deny: bool,
    pub shadow: bool,
    pub quota: bool,
    /// Names of rules that this one stands in for when both match a request.
    pub replaces: Vec<Box<str>>,
    pub on_store_failure: OnStoreFailure,
    /// Merged into the dynamic metadata of requests that this rule lets pass.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Where it is written, `file:line`.
    pub source: Box<str>,
}

impl Rule {
    /// Its name, else its path.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.path)
    }

    /// Whether one of its limits follows the calendar.
    pub fn has_quota(&self) -> bool {
        let of_tiers = self.tiers.iter().flat_map(|tiers| &tiers.limits).flat_map(|tier| &tier.limits);
        self.limits.iter().chain(of_tiers).any(|limit| limit.limit.calendar().is_some())
    }

    /// Its limits for a tier, where they are a tier's; else its own.
    pub fn limits_of(&self, tier: Option<TierId>) -> &[RuleLimit] {
        match (&self.tiers, tier) {
            (Some(tiers), Some(tier)) => tiers.limits.get(tier.0 as usize).map_or(&[], |tier| &tier.limits),
            _ => &self.limits,
        }
    }
}

/// One limit of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleLimit {
    pub limit: Limit,
    /// What the keys of its counters end with ([`key::shape_suffix`]).
    pub key_suffix: Vec<u8>,
    /// `None`: as the settings say.
    pub charge: Option<ChargeRule>,
    /// How long weir holds a leaky admission back itself, in µs.
    pub max_wait: Option<Micros>,
    /// How response headers call it ([`RuleLimit::named`]).
    pub policy: Box<str>,
}

impl RuleLimit {
    pub fn new(limit: Limit, policy: impl Into<Box<str>>) -> RuleLimit {
        RuleLimit { key_suffix: key::shape_suffix(limit.shape()), limit, charge: None, max_wait: None, policy: policy.into() }
    }

    /// The limit at `place` of the limits that one rule, tier or override has, with a policy name that none of the others has: the
    /// label alone for the only rate limit, else with its size and window (and its algorithm, where an earlier one has the same
    /// size and window); `<label>/daily` or `<label>/monthly` for a calendar quota.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn named(place: usize, limits: &[Limit], label: &str) -> RuleLimit {
        let limit = limits[place];
        if let Some(period) = limit.calendar() {
            return RuleLimit::new(limit, format!("{label}/{}", period.name()));
        }
        let rates = |limits: &[Limit]| limits.iter().filter(|limit| limit.calendar().is_none()).count();
        if rates(limits) == 1 {
            return RuleLimit::new(limit, label);
        }
        let (requests, window) = (limit.requests(), limit.window());
        let is_alike = |other: &Limit| other.calendar().is_none() && (other.requests(), other.window()) == (requests, window);
        let size = format!("{label}/{requests}-per-{}", key::duration(window));
        if limits[..place].iter().any(is_alike) {
            return RuleLimit::new(limit, format!("{size}-{}", limit.algorithm().name()));
        }
        RuleLimit::new(limit, size)
    }
}

/// `block_for`: a limit of its own ([`Limit::penalty`]), one per rule and counter key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub limit: Limit,
    pub key_suffix: Vec<u8>,
}

impl Block {
    pub fn new(limit: Limit) -> Block {
        Block { key_suffix: key::shape_suffix(limit.shape()), limit }
    }
}

/// Which hits are counted although they are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChargeRule {
    /// Those of a descriptor that brings its own `hits_addend`: the cost of work already done.
    #[default]
    Auto,
    Admitted,
    Always,
}

/// What a rule's requests are answered when the store cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum OnStoreFailure {
    /// UNAVAILABLE: Envoy's own `failure_mode_deny` decides.
    #[default]
    Error,
    Allow,
    Deny,
    /// Decided by this process's memory, with its share of the limit.
    Local,
}

/// What an answer carries beyond codes and statuses. All off unless asked for: Envoy can make headers itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ResponseOptions {
    /// `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset` (or the names in the settings).
    pub legacy_headers: bool,
    /// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers.
    pub ratelimit_headers: bool,
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset`, `-Policy`, `-Layer`, and `x-ratelimit-delay-ms` for a leaky admission.
    pub x_ratelimit_headers: bool,
    pub retry_after_header: bool,
    /// `x-ratelimit-rule`: the rule that the answer is about.
    pub rule_header: bool,
    pub reset_format: ResetFormat,
    /// An `application/problem+json` body for refusals (RFC 9457).
    pub problem_body: bool,
    /// Dynamic metadata about the rule that the answer is about.
    pub metadata: bool,
}

/// How `X-RateLimit-Reset` and the legacy reset header give a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResetFormat {
    /// Seconds from now.
    #[default]
    Delta,
    /// Seconds since the epoch.
    Epoch,
    /// RFC 3339 in UTC.
    Iso,
}

/// A unit of `RateLimitResponse.RateLimit.Unit`, with its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Unit {
    Second = 1,
    Minute = 2,
    Hour = 3,
    Day = 4,
    Month = 5,
    Year = 6,
    Week = 7,
}

impl Unit {
    /// From the shortest to the longest.
    pub const ALL: [Unit; 7] = [Unit::Second, Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month, Unit::Year];

    pub fn window(self) -> Micros {
        match self {
            Unit::Second => SECOND,
            Unit::Minute => MINUTE,
            Unit::Hour => HOUR,
            Unit::Day => DAY,
            Unit::Week => WEEK,
            Unit::Month => MONTH,
            Unit::Year => YEAR,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Unit::Second => "second",
            Unit::Minute => "minute",
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
            Unit::Year => "year",
        }
    }

    /// By name, in any case.
    pub fn parse(name: &str) -> Option<Unit> {
        Unit::ALL.into_iter().find(|unit| unit.name().eq_ignore_ascii_case(name))
    }

    /// By its number in `envoy.type.v3.RateLimitUnit`, or in the response's enum (which adds 7, a week).
    pub fn from_number(number: i32) -> Option<Unit> {
        Unit::ALL.into_iter().find(|&unit| unit as i32 == number)
    }

    /// The largest unit that a window is a whole multiple of, with the multiple; `None` for a window with a part of a second.
    pub fn of_window(window: Micros) -> Option<(Unit, u32)> {
        let unit = Unit::ALL.into_iter().rev().find(|unit| window.is_multiple_of(unit.window()))?;
        u32::try_from(window / unit.window()).ok().map(|multiplier| (unit, multiplier))
    }
}
