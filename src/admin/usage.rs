//! What a subject has used, forgetting it, and its history. The index of its counters says which there are; the rules and its record
//! say what they mean now.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::operations::{Operations, OperatorStore};
use super::problem::Problem;
use super::proto::weir::admin::v1 as proto;
use super::{convert, effects, names};
use crate::limit::{Algorithm, DAY, Micros, Operation, Outcome, Period, Shape};
use crate::rules::Domain;
use crate::rules::key::{self, BLOCK_SUFFIX, Key};
use crate::rules::plan::{self, Moment, PlanSettings};
use crate::rules::request::{Descriptor, Entry, Request};
use crate::rules::subject::{Records, SubjectRecord};
use crate::rules::tier::TierSource;
use crate::spelling::suggestion;
use crate::store::history;
use crate::store::records::RecordName;
use crate::store::subjects::Day;
use crate::store::{Group, Outcomes};

mod standing;

/// Counters that are looked at, or forgotten, at once.
const MAX_AT_ONCE: usize = 500;

/// Which counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    All,
    Daily,
    Monthly,
    /// Rate limits, and the blocks after them.
    Rate,
    Block,
}

impl Kind {
    fn parse(name: &str) -> Result<Kind, Problem> {
        match name {
            "all" => Ok(Kind::All),
            "daily" => Ok(Kind::Daily),
            "monthly" => Ok(Kind::Monthly),
            "rate" => Ok(Kind::Rate),
            "" => Err(Problem::Invalid("`kind` is missing: all, daily, monthly or rate".to_owned())),
            _ => {
                let near = suggestion(name, ["all", "daily", "monthly", "rate"].into_iter());
                Err(Problem::Invalid(format!("kind: unknown kind `{name}`: all, daily, monthly or rate{near}")))
            }
        }
    }

    fn covers(self, key: &Key) -> bool {
        let ends = |period: Period| {
            let shape = Shape { algorithm: Algorithm::Calendar, window: period.window() };
            key.as_bytes().ends_with(&key::shape_suffix(shape))
        };
        let is_block = key.as_bytes().ends_with(BLOCK_SUFFIX);
        match self {
            Kind::All => true,
            Kind::Daily => ends(Period::Day),
            Kind::Monthly => ends(Period::Month),
            Kind::Rate => !ends(Period::Day) && !ends(Period::Month),
            Kind::Block => is_block,
        }
    }
}

/// A limit of the subject, with its counter.
struct Used {
    rule: String,
    policy: String,
    entries: Vec<u8>,
    check: usize,
}

impl<S: OperatorStore> Operations<S> {
    pub(super) async fn get_usage(&self, request: proto::GetUsageRequest) -> Result<proto::Usage, Problem> {
        let (domain, subject) = self.domain_and_subject(&request.domain, &request.subject)?;
        let record = self.read(&self.subject_name(&request.domain, &request.subject)?).await?.0;
        let tier = match &*request.tier {
            "" => self.last_tier(&domain, &subject).await?,
            tier => {
                names::has_tier(&domain, tier).map_err(|mistake| mistake.below("tier"))?;
                Some(tier.into())
            }
        };
        let counters = self.store.counters(&domain.key_prefix, &subject).await?;
        let mut group = Group::default();
        let mut used = Vec::new();
        for entries in entries(&domain, &subject, &counters) {
            self.add(&domain, &entries, tier.as_deref(), &mut group, &mut used);
        }
        let outcomes = self.look(&group).await?;
        let now = self.now();
        let limits = used.iter().filter_map(|used| shown(used, &group, outcomes[used.check], now)).collect();
        let unlimited = standing::unlimited(&domain, &subject, &record, tier.as_deref());
        let unused = || standing::unused(&domain, &subject, used.is_empty() && unlimited.is_empty());
        let warnings = effects::of_subject(&domain, &subject).or_else(unused).into_iter();
        let assigned = effects::of_assigned(&domain, &subject, &record);
        // Where an assigned tier has no effect, the limits are those of the tier that requests name.
        let shown_tier = if assigned.is_some() { tier.as_deref() } else { record.tier.as_deref().or(tier.as_deref()) };
        let shown_tier = shown_tier.unwrap_or_default().to_owned();
        let warnings = warnings.chain(assigned).collect();
        Ok(proto::Usage {
            unlimited,
            warnings,
            domain: request.domain,
            subject: key::shown(&subject),
            limits,
            tier: shown_tier,
            blocked_until: record.blocked_until.filter(|&until| until > now).map(convert::timestamp),
            allowed_until: record.allowed_until.filter(|&until| until > now).map(convert::timestamp),
        })
    }

    pub(super) async fn reset_usage(&self, request: proto::ResetUsageRequest) -> Result<proto::ResetUsageResponse, Problem> {
        let kind = Kind::parse(&request.kind)?;
        let (domain, subject) = self.domain_and_subject(&request.domain, &request.subject)?;
        let name = RecordName::Subject { domain: domain.name.clone(), subject: subject.clone() };
        let reset = self.forget_counters(&name, kind).await?;
        let warnings = effects::of_subject(&domain, &subject).filter(|_| reset == 0).into_iter().collect();
        Ok(proto::ResetUsageResponse { reset, warnings })
    }

    /// Forgets counters of a subject; says how many there were.
    pub(super) async fn forget_counters(&self, name: &RecordName, kind: Kind) -> Result<u64, Problem> {
        let RecordName::Subject { domain, subject } = name else { return Ok(0) };
        let domain = self.domain(domain)?;
        let mut counters = self.store.counters(&domain.key_prefix, subject).await?;
        let blocks = entries(&domain, subject, &counters).into_iter();
        counters.extend(blocks.map(|entries| key::key(&domain.key_prefix, &entries, BLOCK_SUFFIX)));
        counters.retain(|key| kind.covers(key));
        counters.sort_unstable_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
        counters.dedup();
        let mut forgotten = 0;
        for part in counters.chunks(MAX_AT_ONCE) {
            forgotten += self.store.forget(part).await.map_err(|error| Problem::uncertain(&error))?;
        }
        Ok(forgotten)
    }

    pub(super) async fn get_history(&self, request: proto::GetHistoryRequest) -> Result<proto::History, Problem> {
        let (domain, subject) = self.domain_and_subject(&request.domain, &request.subject)?;
        let kept = self.store.kept_days();
        if kept == 0 {
            return Err(Problem::Invalid("no history is kept (--history-days 0)".to_owned()));
        }
        if domain.subject.is_empty() {
            let reason =
                format!("no history is kept of domain `{}`: its rules do not say who its subjects are (`subject:`)", domain.name);
            return Err(Problem::Invalid(reason));
        }
        let today = self.now() / DAY;
        let oldest = (today + 1).saturating_sub(kept);
        let (from, to) = (day("from", &request.from)?, day("to", &request.to)?);
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(Problem::Invalid(format!("`from` {} is after `to` {}", request.from, request.to)));
        }
        let to = to.unwrap_or(today).min(today);
        let from = from.unwrap_or(oldest).max(oldest);
        let name = key::of_subject(&domain.key_prefix, &subject, history::NAME);
        let tallies = if from <= to { self.store.recall(&name, from, to).await? } else { Vec::new() };
        let days = tallies.into_iter().map(|(day, tally)| proto::Day {
            date: date(day),
            allowed: tally.allowed,
            refused: tally.refused,
            cost: tally.cost,
        });
        let days: Vec<proto::Day> = days.collect();
        let warnings = effects::of_subject(&domain, &subject).filter(|_| days.is_empty()).into_iter().collect();
        Ok(proto::History { domain: request.domain, subject: key::shown(&subject), days, warnings })
    }

    fn domain_and_subject(&self, domain: &str, subject: &str) -> Result<(Arc<Domain>, Box<[u8]>), Problem> {
        match self.subject_name(domain, subject)? {
            RecordName::Subject { domain, subject } => Ok((self.domain(&domain)?, subject)),
            _ => Err(Problem::Invalid("no subject".to_owned())),
        }
    }

    pub(super) fn now(&self) -> Micros {
        self.shared.now()
    }

    /// The tier that the subject's requests named last, today or yesterday.
    async fn last_tier(&self, domain: &Domain, subject: &[u8]) -> Result<Option<Box<str>>, Problem> {
        let reads_entries =
            |rule: &crate::rules::Rule| rule.tiers.as_ref().is_some_and(|tiers| matches!(tiers.source, TierSource::Entry(_)));
        if self.store.kept_days() == 0 || !domain.rules.iter().any(reads_entries) {
            return Ok(None);
        }
        let today = self.now() / DAY;
        let name = key::of_subject(&domain.key_prefix, subject, history::NAME);
        let days = self.store.recall(&name, today.saturating_sub(1), today).await?;
        Ok(days.into_iter().rev().find_map(|(_, tally)| tally.tier))
    }

    /// Adds looks at all limits that the rules have for these entries.
    fn add(&self, domain: &Domain, entries: &[u8], tier: Option<&str>, group: &mut Group, used: &mut Vec<Used>) {
        let Some(parts) = key::parts(entries) else { return };
        let looked = Descriptor {
            entries: parts.iter().map(|(key, value)| Entry { key, value: domain.addresses.matched(key, value) }).collect(),
            hits: Some(0),
            ..Descriptor::default()
        };
        let tier_entries = domain.rules.iter().filter_map(|rule| match &rule.tiers.as_ref()?.source {
            TierSource::Entry(key) => Some(Entry { key, value: tier?.as_bytes() }),
            TierSource::Assigned(_) => None,
        });
        let attributes =
            tier_entries.map(|entry| Descriptor { entries: [entry].into_iter().collect(), hits: Some(0), ..Descriptor::default() });
        let request = Request {
            domain: domain.name.as_bytes(),
            descriptors: std::iter::once(looked).chain(attributes).collect(),
            hits_addend: 0,
        };
        let records = WithoutTimes(self.shared.records());
        let moment = Moment { now: self.now(), patience: None };
        let Ok(plan) = plan::plan(domain, &request, PlanSettings::default(), moment, &records) else { return };
        let planned = &plan.descriptors[0];
        let Some(rule) = planned.rule.map(|rule| domain.rule(rule)) else { return };
        for of_rule in &planned.checks {
            let limit = of_rule.source.limit(Some(rule), planned.tier, &plan.overrides);
            let suffix = limit.map_or(BLOCK_SUFFIX, |limit| &limit.key_suffix);
            let policy = limit.map_or("block", |limit| &limit.policy);
            let mut check = plan.group.checks[of_rule.check];
            (check.operation, check.cost) = (Operation::Look, 0);
            // All of it, whatever the class that was looked for leaves to others.
            check.limit = check.limit.holding_back(0);
            group.keys.push(key::key(&domain.key_prefix, entries, suffix));
            group.checks.push(check);
            let (rule, policy) = (rule.label().to_owned(), policy.to_owned());
            used.push(Used { rule, policy, entries: entries.to_owned(), check: group.checks.len() - 1 });
        }
    }

    pub(super) async fn look(&self, group: &Group) -> Result<Outcomes, Problem> {
        let mut outcomes = Outcomes::new();
        for (keys, checks) in group.keys.chunks(MAX_AT_ONCE).zip(group.checks.chunks(MAX_AT_ONCE)) {
            let part =
                Group { keys: keys.iter().cloned().collect(), checks: checks.iter().copied().collect(), refused: group.refused };
            outcomes.extend(self.store.look(&part).await?);
        }
        Ok(outcomes)
    }
}

/// The entries that the subject's counters stand for, and the subject alone.
fn entries(domain: &Domain, subject: &[u8], counters: &[Key]) -> BTreeSet<Vec<u8>> {
    let alone = [b"|{", subject, b"}"].concat();
    let found = counters.iter().filter_map(|key| key.entries(&domain.key_prefix)).map(<[u8]>::to_vec);
    found.chain([alone]).collect()
}

/// A limit's part in the usage; a block only while it lasts.
fn shown(used: &Used, group: &Group, outcome: Outcome, now: Micros) -> Option<proto::LimitUsage> {
    let limit = &group.checks[used.check].limit;
    if limit.algorithm() == Algorithm::Penalty && outcome.is_allowed() {
        return None;
    }
    let resets_after = outcome.reset_after();
    let remaining = outcome.remaining().min(limit.capacity());
    let entries = key::shown(&used.entries).trim_start_matches('|').replace('|', ",").replace(['{', '}'], "");
    Some(proto::LimitUsage {
        rule: used.rule.clone(),
        policy: used.policy.clone(),
        entries,
        kind: convert::kind(limit).to_owned(),
        algorithm: limit.algorithm().name().to_owned(),
        requests: limit.capacity(),
        window: convert::window(limit),
        used: limit.capacity() - remaining,
        remaining,
        resets_at: (resets_after > 0).then(|| convert::turn(limit, now.saturating_add(resets_after))),
    })
}

/// Records without blocks and exemptions, which hide what the limits would say.
struct WithoutTimes<'a, R>(&'a R);

impl<R: Records> Records for WithoutTimes<'_, R> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, name: &[u8]) -> Option<Arc<SubjectRecord>> {
        let record = self.0.find(name)?;
        Some(Arc::new(SubjectRecord { blocked_until: None, allowed_until: None, ..SubjectRecord::clone(&record) }))
    }
}

fn day(field: &str, text: &str) -> Result<Option<Day>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let date: Date = text.parse().map_err(|_| Problem::Invalid(format!("{field}: `{text}` is no day: write it as 2026-11-21")))?;
    let start = date.to_zoned(TimeZone::UTC).map_err(|error| Problem::Invalid(error.to_string()))?;
    Ok(Some(Day::try_from(start.timestamp().as_second().div_euclid(86_400)).unwrap_or(0)))
}

fn date(day: Day) -> String {
    let seconds = i64::try_from(day * 86_400).unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::UTC).date().to_string()
}
