//! Between the messages of the admin API and records.

use prost_types::Timestamp;

use super::operations::Problem;
use super::proto::weir::admin::v1 as proto;
use crate::config::parse_short;
use crate::limit::{Algorithm, Limit, Micros, Period, SECOND};
use crate::rules::Unit;
use crate::rules::key;
use crate::rules::subject::{SubjectLimits, SubjectRate, SubjectRecord, Switch, WHOLE};
use crate::rules::tier::{Class, DEFAULT_SET};
use crate::rules::tier_definition::TierDefinition;
use crate::store::records::{self, Record, RecordName};

/// The latest time that a timestamp can say: the last second of the year 9999.
const LATEST: Micros = 253_402_300_799 * SECOND;

fn invalid(reason: impl ToString) -> Problem {
    Problem::Invalid(reason.to_string())
}

/// The name of a subject's record.
pub(super) fn subject_name(domain: &str, subject: &str) -> Result<RecordName, Problem> {
    if domain.is_empty() {
        return Err(invalid("`domain` is missing"));
    }
    let named = key::subject_named(subject)
        .ok_or_else(|| invalid(format!("`{subject}` is no subject: write key=value, such as user_id=u1")))?;
    Ok(RecordName::Subject { domain: domain.into(), subject: named.as_slice().into() })
}

/// Two names that are both this one.
pub(super) fn same_subject(one: &RecordName, other: &RecordName, both: &RecordName) -> Problem {
    let [one, other, both] = [one, other, both].map(|name| match name {
        RecordName::Subject { subject, .. } => key::shown(subject),
        name => name.text(),
    });
    invalid(format!("`{one}` and `{other}` are both `{both}`: one record of it can be imported; nothing was"))
}

pub(super) fn micros(time: &Timestamp) -> Result<Micros, Problem> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(time.seconds), u64::try_from(time.nanos)) else { return Ok(0) };
    match seconds.saturating_mul(SECOND).saturating_add(nanos / 1_000) {
        micros if micros <= LATEST => Ok(micros),
        _ => Err(invalid("a time after the year 9999")),
    }
}

pub(super) fn timestamp(micros: Micros) -> Timestamp {
    let micros = micros.min(LATEST);
    Timestamp {
        seconds: i64::try_from(micros / SECOND).expect("the year 9999 is not far"),
        nanos: i32::try_from(micros % SECOND * 1_000).expect("less than a second"),
    }
}

/// A time at which a limit is whole again, or has room. By the clocks of this process and of the store, which differ: of a quota, the
/// edge of its period that is meant.
pub(super) fn turn(limit: &Limit, at: Micros) -> Timestamp {
    let edges = limit.edges().into_iter().filter(|_| limit.calendar().is_some());
    timestamp(edges.min_by_key(|edge| edge.abs_diff(at)).unwrap_or(at))
}

/// What sort of limit it is.
pub(super) fn kind(limit: &Limit) -> &'static str {
    match (limit.algorithm(), limit.calendar()) {
        (Algorithm::Penalty, _) => "block",
        (_, Some(period)) => period.name(),
        _ => "rate",
    }
}

/// How long it counts: `1m`, `day`.
pub(super) fn window(limit: &Limit) -> String {
    match limit.calendar() {
        Some(Period::Day) => "day".to_owned(),
        Some(Period::Month) => "month".to_owned(),
        None => key::duration(limit.window()),
    }
}

pub(super) fn subject(domain: &str, subject: &[u8], record: &SubjectRecord) -> proto::Subject {
    proto::Subject {
        domain: domain.to_owned(),
        subject: key::shown(subject),
        tier: record.tier.as_deref().unwrap_or_default().to_owned(),
        blocked_until: record.blocked_until.map(timestamp),
        allowed_until: record.allowed_until.map(timestamp),
        multiplier: record.multiplier.map(|multiplier| multiplier as f64 / WHOLE as f64),
        limits: record.limits.iter().map(subject_limits).collect(),
    }
}

pub(super) fn subject_record(subject: &proto::Subject) -> Result<SubjectRecord, Problem> {
    Ok(SubjectRecord {
        tier: Some(subject.tier.as_str()).filter(|tier| !tier.is_empty()).map(Into::into),
        blocked_until: subject.blocked_until.as_ref().map(micros).transpose()?,
        allowed_until: subject.allowed_until.as_ref().map(micros).transpose()?,
        multiplier: subject.multiplier.map(multiplier).transpose()?,
        limits: subject.limits.iter().map(limits_record).collect::<Result<_, _>>()?,
    })
}

pub(super) fn multiplier(number: f64) -> Result<u64, Problem> {
    records::multiplier(number).map_err(|records::Malformed(reason)| invalid(format!("`multiplier`: {reason}")))
}

fn subject_limits(limits: &SubjectLimits) -> proto::SubjectLimits {
    let (daily, monthly) = quotas(&limits.quotas);
    proto::SubjectLimits {
        rule: limits.rule.as_deref().unwrap_or_default().to_owned(),
        limits: limits.rates.iter().map(limit).collect(),
        daily,
        monthly,
        unlimited: limits.unlimited,
    }
}

pub(super) fn limits_record(limits: &proto::SubjectLimits) -> Result<SubjectLimits, Problem> {
    let (rates, is_unlimited) = rates(&limits.limits)?;
    let record = SubjectLimits {
        rule: Some(limits.rule.as_str()).filter(|rule| !rule.is_empty()).map(Into::into),
        rates,
        quotas: quota_limits(limits.daily, limits.monthly)?,
        unlimited: limits.unlimited || is_unlimited,
    };
    if record.unlimited && !record.rates.is_empty() {
        return Err(invalid("`unlimited` beside limits: keep one of the two"));
    }
    if !record.unlimited && record.rates.is_empty() && record.quotas.is_empty() {
        return Err(invalid("`limits` that limit nothing: give `limits`, `daily`, `monthly` or `unlimited`"));
    }
    Ok(record)
}

fn quotas(quotas: &[Limit]) -> (Option<u64>, Option<u64>) {
    let of = |period| quotas.iter().find(|quota| quota.calendar() == Some(period)).map(Limit::requests);
    (of(Period::Day), of(Period::Month))
}

fn quota_limits(daily: Option<u64>, monthly: Option<u64>) -> Result<Vec<Limit>, Problem> {
    let given = [(Period::Day, daily), (Period::Month, monthly)];
    let limits = given.into_iter().filter_map(|(period, requests)| requests.map(|requests| Limit::quota(period, requests)));
    limits.map(|limit| limit.map_err(invalid)).collect()
}

/// As the loader of rules says it. `None`: whatever they count by.
pub(super) fn same_counter(algorithm: Option<Algorithm>) -> Problem {
    let of = algorithm.map(|algorithm| format!(" of {}", algorithm.name())).unwrap_or_default();
    invalid(format!(
        "two limits{of} over the same time are one counter with two sizes: keep the smaller one, or give one another algorithm"
    ))
}

/// As the rules write it.
pub(super) fn limit(rate: &SubjectRate) -> proto::Limit {
    let limit = &rate.limit;
    let text = match Unit::of_window(limit.window()) {
        Some((unit, 1)) => format!("{}/{}", limit.requests(), unit.name()),
        _ => format!("{} per {}", limit.requests(), key::duration(limit.window())),
    };
    let algorithm = if rate.names_algorithm { limit.algorithm().name() } else { "" };
    proto::Limit {
        limit: text,
        algorithm: algorithm.to_owned(),
        burst: Some(limit.burst()).filter(|&burst| burst != limit.requests()),
    }
}

/// The limits, and whether one of them is `unlimited`.
fn rates(limits: &[proto::Limit]) -> Result<(Vec<SubjectRate>, bool), Problem> {
    let (mut rates, mut is_unlimited) = (Vec::new(), false);
    for limit in limits {
        let algorithm = match &*limit.algorithm {
            "" => None,
            name => {
                let known = Algorithm::of_rate(name);
                Some(known.ok_or_else(|| invalid(format!("unknown algorithm `{name}`")))?)
            }
        };
        let parts: Vec<&str> = limit.limit.split(';').map(str::trim).collect();
        if limit.burst.is_some() && parts.len() > 1 {
            return Err(invalid("a `burst` beside several limits: give them one by one"));
        }
        for part in parts {
            match parse_short(part).map_err(|hint| invalid(format!("`{part}` is no limit: {hint}")))? {
                Some((requests, window)) => {
                    rates.push(SubjectRate::new(requests, window, limit.burst, algorithm).map_err(invalid)?);
                }
                None => is_unlimited = true,
            }
        }
    }
    // Whatever the rules count by; limits of which only some name an algorithm depend on the rule.
    let (named, unnamed): (Vec<SubjectRate>, Vec<SubjectRate>) = rates.iter().partition(|rate| rate.names_algorithm);
    match (SubjectRate::same_counter(&named, None), SubjectRate::same_counter(&unnamed, None)) {
        (Some(algorithm), _) => Err(same_counter(Some(algorithm))),
        (None, Some(_)) => Err(same_counter(None)),
        (None, None) => Ok((rates, is_unlimited)),
    }
}

pub(super) fn tier(domain: &str, name: &str, definition: &TierDefinition) -> proto::Tier {
    let (daily, monthly) = quotas(&definition.quotas);
    let limits = |rates: &[SubjectRate]| rates.iter().map(limit).collect();
    let default = definition.sets.iter().find(|(set, _)| **set == *DEFAULT_SET);
    let others = definition.sets.iter().filter(|(set, _)| **set != *DEFAULT_SET);
    proto::Tier {
        domain: domain.to_owned(),
        name: name.to_owned(),
        priority: definition.priority.map_or("", Class::name).to_owned(),
        limits: default.map(|(_, rates)| limits(rates)).unwrap_or_default(),
        sets: others.map(|(name, rates)| proto::LimitSet { name: name.to_string(), limits: limits(rates) }).collect(),
        daily,
        monthly,
    }
}

pub(super) fn tier_definition(tier: &proto::Tier) -> Result<TierDefinition, Problem> {
    let priority = match &*tier.priority {
        "" => None,
        name => {
            let class = Class::parse(name.as_bytes());
            Some(class.ok_or_else(|| invalid(format!("unknown priority `{name}`: low, normal, high or critical")))?)
        }
    };
    let set = |name: &str, limits: &[proto::Limit]| match rates(limits)? {
        (rates, true) if !rates.is_empty() => Err(invalid("`unlimited` beside limits: keep one of the two")),
        (rates, _) => Ok((Box::from(name), rates)),
    };
    let mut sets = vec![set(DEFAULT_SET, &tier.limits)?];
    for given in &tier.sets {
        if given.name.is_empty() || sets.iter().any(|(name, _): &(Box<str>, _)| **name == *given.name) {
            return Err(invalid("each of `sets` has a name of its own; `limits` is the one called default"));
        }
        sets.push(set(&given.name, &given.limits)?);
    }
    sets.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(TierDefinition { priority, sets, quotas: quota_limits(tier.daily, tier.monthly)? })
}

pub(super) fn switch(name: &str) -> Result<Switch, Problem> {
    Switch::parse(name).ok_or_else(|| invalid(format!("unknown switch `{name}`: off, allow or shadow")))
}

/// Adds a record to those that are exported.
pub(super) fn export(records: &mut proto::Records, name: &RecordName, record: &Record) {
    match (name, record) {
        (RecordName::Subject { domain, subject: named }, Record::Subject(record)) => {
            records.subjects.push(subject(domain, named, record));
        }
        (RecordName::Tier { domain, tier: name }, Record::Tier(definition)) => records.tiers.push(tier(domain, name, definition)),
        (RecordName::Switch { domain }, Record::Switch(switch)) => {
            let domain = domain.as_deref().unwrap_or_default().to_owned();
            records.switches.push(proto::Switch { domain, switch: switch.name().to_owned() });
        }
        // A record is parsed by its name.
        _ => {}
    }
}

/// Everything that was exported.
pub(super) fn import(records: &proto::Records) -> Result<Vec<(RecordName, Record)>, Problem> {
    let subjects = records.subjects.iter().map(|subject| {
        let name = subject_name(&subject.domain, &subject.subject)?;
        named(name, subject_record(subject).map(Record::Subject))
    });
    let tiers =
        records.tiers.iter().map(|tier| named(tier_name(&tier.domain, &tier.name)?, tier_definition(tier).map(Record::Tier)));
    let switches =
        records.switches.iter().map(|given| named(switch_name(&given.domain), switch(&given.switch).map(Record::Switch)));
    subjects.chain(tiers).chain(switches).collect()
}

fn named(name: RecordName, record: Result<Record, Problem>) -> Result<(RecordName, Record), Problem> {
    match record {
        Ok(record) => Ok((name, record)),
        Err(problem) => Err(in_record(&name, problem)),
    }
}

/// What is wrong with one of the records of an import.
pub(super) fn in_record(name: &RecordName, problem: Problem) -> Problem {
    let name = match name {
        RecordName::Subject { domain, subject } => format!("`{}` of domain `{domain}`", key::shown(subject)),
        RecordName::Tier { domain, tier } => format!("tier `{tier}` of domain `{domain}`"),
        RecordName::Switch { domain: Some(domain) } => format!("the switch of domain `{domain}`"),
        RecordName::Switch { domain: None } => "the switch of all domains".to_owned(),
    };
    invalid(format!("{name}: {problem}; nothing was imported"))
}

pub(super) fn tier_name(domain: &str, tier: &str) -> Result<RecordName, Problem> {
    if domain.is_empty() || tier.is_empty() {
        return Err(invalid("`domain` or the tier's `name` is missing"));
    }
    Ok(RecordName::Tier { domain: domain.into(), tier: tier.into() })
}

pub(super) fn switch_name(domain: &str) -> RecordName {
    RecordName::Switch { domain: Some(domain).filter(|domain| !domain.is_empty()).map(Into::into) }
}
