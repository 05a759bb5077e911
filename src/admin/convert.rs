//! Between the messages of the admin API and records.

use prost_types::Timestamp;

use super::problem::Mistake;
use super::proto::weir::admin::v1 as proto;
use crate::config::parse_short;
use crate::limit::{Algorithm, Limit, Micros, Period, SECOND};
use crate::rules::Unit;
use crate::rules::key;
use crate::rules::subject::{SubjectLimits, SubjectRate, SubjectRecord, Switch, WHOLE};
use crate::rules::tier::{Class, DEFAULT_SET};
use crate::rules::tier_definition::TierDefinition;
use crate::shown::{escaped, is_control};
use crate::spelling::{listed, suggestion};
use crate::store::records::{self, Record, RecordName};

/// The most rate limits, and the most rules with limits, of one record: far more than fit its text.
const MAX_LIMITS: usize = 1_000;

/// The latest time that a timestamp can say: the last second of the year 9999.
const LATEST: Micros = 253_402_300_799 * SECOND;

fn invalid(reason: impl ToString) -> Mistake {
    Mistake::invalid(reason.to_string())
}

/// # Errors
/// For a name with a control character: names stand in logs, metrics and headers.
fn plain(name: &str, field: &str) -> Result<(), Mistake> {
    let Some(control) = name.chars().find(|c| is_control(*c)) else { return Ok(()) };
    let control = escaped(control.encode_utf8(&mut [0; 4])).into_owned();
    Err(invalid(format!("a name has the control character `{control}`: take it out")).below(field))
}

/// The name of a subject's record.
pub(super) fn subject_name(domain: &str, subject: &str) -> Result<RecordName, Mistake> {
    plain(domain, "domain")?;
    plain(subject.split(['=', '~']).next().unwrap_or_default(), "subject")?;
    if domain.is_empty() {
        return Err(invalid("`domain` is missing"));
    }
    let named = key::subject_named(subject)
        .ok_or_else(|| invalid(format!("`{subject}` is no subject: write key=value, such as user_id=u1")).below("subject"))?;
    Ok(RecordName::Subject { domain: domain.into(), subject: named.as_slice().into() })
}

/// Two names that are both this one.
pub(super) fn same_subject(one: &RecordName, other: &RecordName, both: &RecordName) -> Mistake {
    let [one, other, both] = [one, other, both].map(|name| match name {
        RecordName::Subject { subject, .. } => key::shown(subject),
        name => name.text(),
    });
    if one == other {
        return invalid(format!("there are two records of `{both}`: keep one"));
    }
    invalid(format!("`{one}` and `{other}` are both `{both}`: keep one"))
}

pub(super) fn micros(time: &Timestamp) -> Result<Micros, Mistake> {
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
        warnings: Vec::new(),
    }
}

pub(super) fn subject_record(subject: &proto::Subject) -> Result<SubjectRecord, Mistake> {
    plain(&subject.tier, "tier")?;
    Ok(SubjectRecord {
        tier: Some(subject.tier.as_str()).filter(|tier| !tier.is_empty()).map(Into::into),
        blocked_until: time(subject.blocked_until.as_ref(), "blocked_until")?,
        allowed_until: time(subject.allowed_until.as_ref(), "allowed_until")?,
        multiplier: subject.multiplier.map(multiplier).transpose()?,
        limits: limits_records(&subject.limits)?,
    })
}

/// The time that a field gives.
pub(super) fn time(time: Option<&Timestamp>, field: &str) -> Result<Option<Micros>, Mistake> {
    time.map(micros).transpose().map_err(|mistake| mistake.below(field))
}

/// # Errors
/// For more limits than one record has.
fn not_too_many(limits: usize) -> Result<(), Mistake> {
    if limits > MAX_LIMITS { Err(invalid(format!("more than {MAX_LIMITS} limits in one record"))) } else { Ok(()) }
}

pub(super) fn multiplier(number: f64) -> Result<u64, Mistake> {
    records::multiplier(number).map_err(|records::Malformed(reason)| invalid(reason).below("multiplier"))
}

fn subject_limits(limits: &SubjectLimits) -> proto::SubjectLimits {
    let (daily, monthly) = quotas(&limits.quotas);
    let lifted = |period| limits.lifted_quotas.contains(&period).then_some(UNLIMITED);
    let (daily, monthly) = (daily.or(lifted(Period::Day)), monthly.or(lifted(Period::Month)));
    proto::SubjectLimits {
        rule: limits.rule.as_deref().unwrap_or_default().to_owned(),
        limits: limits.rates.iter().map(limit).collect(),
        daily,
        monthly,
        unlimited: limits.unlimited,
    }
}

/// What an amount is that sets no limit, as in the rules.
const UNLIMITED: i64 = -1;

/// Limits of a subject, of each rule once.
pub(super) fn limits_records(limits: &[proto::SubjectLimits]) -> Result<Vec<SubjectLimits>, Mistake> {
    not_too_many(limits.len()).map_err(|mistake| mistake.below("limits"))?;
    let mut records: Vec<SubjectLimits> = Vec::with_capacity(limits.len());
    for (place, limits) in limits.iter().enumerate() {
        let at = |mistake: Mistake| mistake.below(format!("limits[{place}]"));
        let record = limits_record(limits).map_err(at)?;
        if let Some(other) = records.iter().position(|known| known.rule == record.rule) {
            let of = record.rule.as_deref().map_or_else(|| "all rules".to_owned(), |rule| format!("rule `{rule}`"));
            return Err(at(invalid(format!("limits[{other}] is for {of}, too: put both into one"))));
        }
        records.push(record);
    }
    Ok(records)
}

fn limits_record(limits: &proto::SubjectLimits) -> Result<SubjectLimits, Mistake> {
    plain(&limits.rule, "rule")?;
    let (rates, is_unlimited) = rates(&limits.limits)?;
    let (quotas, lifted_quotas) = quota_limits(limits.daily, limits.monthly)?;
    let record = SubjectLimits {
        rule: Some(limits.rule.as_str()).filter(|rule| !rule.is_empty()).map(Into::into),
        rates,
        quotas,
        lifted_quotas,
        unlimited: limits.unlimited || is_unlimited,
    };
    if record.unlimited && !record.rates.is_empty() {
        return Err(invalid("`unlimited` beside limits: keep one of the two"));
    }
    let says_nothing = record.rates.is_empty() && record.quotas.is_empty() && record.lifted_quotas.is_empty();
    if !record.unlimited && says_nothing {
        return Err(invalid("`limits` that limit nothing: give `limits`, `daily`, `monthly` or `unlimited`"));
    }
    Ok(record)
}

fn quotas(quotas: &[Limit]) -> (Option<i64>, Option<i64>) {
    let of = |period| {
        let quota = quotas.iter().find(|quota| quota.calendar() == Some(period))?;
        Some(i64::try_from(quota.requests()).unwrap_or(i64::MAX))
    };
    (of(Period::Day), of(Period::Month))
}

/// Quotas, and the periods that have none by the request.
fn quota_limits(daily: Option<i64>, monthly: Option<i64>) -> Result<(Vec<Limit>, Vec<Period>), Mistake> {
    let (mut limits, mut lifted) = (Vec::new(), Vec::new());
    for (period, requests) in [(Period::Day, daily), (Period::Month, monthly)] {
        let at = |mistake: Mistake| mistake.below(period.name());
        match requests {
            None => {}
            Some(UNLIMITED) => lifted.push(period),
            Some(requests) => {
                let requests = u64::try_from(requests)
                    .map_err(|_| at(invalid(format!("{requests} is no number of requests: 0 or more, or -1 for unlimited"))))?;
                limits.push(Limit::quota(period, requests).map_err(|error| at(invalid(error)))?);
            }
        }
    }
    Ok((limits, lifted))
}

/// As the loader of rules says it. `None`: whatever they count by.
pub(super) fn same_counter(algorithm: Option<Algorithm>) -> Mistake {
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
fn rates(limits: &[proto::Limit]) -> Result<(Vec<SubjectRate>, bool), Mistake> {
    let (mut rates, mut is_unlimited) = (Vec::new(), false);
    for (place, limit) in limits.iter().enumerate() {
        let is_lifted = add_rates(limit, &mut rates).map_err(|mistake| mistake.below(format!("limits[{place}]")))?;
        is_unlimited |= is_lifted;
        not_too_many(rates.len()).map_err(|mistake| mistake.below("limits"))?;
    }
    // Whatever the rules count by; limits of which only some name an algorithm depend on the rule.
    let (named, unnamed): (Vec<SubjectRate>, Vec<SubjectRate>) = rates.iter().partition(|rate| rate.names_algorithm);
    match (SubjectRate::same_counter(&named, None), SubjectRate::same_counter(&unnamed, None)) {
        (Some(algorithm), _) => Err(same_counter(Some(algorithm))),
        (None, Some(_)) => Err(same_counter(None)),
        (None, None) => Ok((rates, is_unlimited)),
    }
}

/// Adds a limit, or those of its short form; says whether one is `unlimited`.
fn add_rates(limit: &proto::Limit, rates: &mut Vec<SubjectRate>) -> Result<bool, Mistake> {
    let algorithm = match &*limit.algorithm {
        "" => None,
        name => Some(Algorithm::of_rate(name).ok_or_else(|| {
            let known = || Algorithm::OF_RATES.into_iter().map(Algorithm::name);
            invalid(format!("unknown algorithm `{name}`: {}{}", listed(known()), suggestion(name, known()))).below("algorithm")
        })?),
    };
    let parts: Vec<&str> = limit.limit.split(';').map(str::trim).take(MAX_LIMITS + 1).collect();
    if limit.burst.is_some() && parts.len() > 1 {
        return Err(invalid("a `burst` beside several limits: give them one by one").below("burst"));
    }
    let mut is_unlimited = false;
    for part in parts {
        match parse_short(part).map_err(|hint| invalid(format!("`{part}` is no limit: {hint}")).below("limit"))? {
            Some((requests, window)) => {
                rates.push(SubjectRate::new(requests, window, limit.burst, algorithm).map_err(invalid)?);
            }
            None => is_unlimited = true,
        }
    }
    Ok(is_unlimited)
}

pub(super) fn tier(domain: &str, name: &str, definition: &TierDefinition) -> proto::Tier {
    let (daily, monthly) = quotas(&definition.quotas);
    let unlimited = || vec![proto::Limit { limit: "unlimited".to_owned(), ..proto::Limit::default() }];
    let limits = |rates: &[SubjectRate]| if rates.is_empty() { unlimited() } else { rates.iter().map(limit).collect() };
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
        ..proto::Tier::default()
    }
}

pub(super) fn tier_definition(tier: &proto::Tier) -> Result<TierDefinition, Mistake> {
    let priority = match &*tier.priority {
        "" => None,
        name => {
            let class = Class::parse(name.as_bytes());
            let near = suggestion(name, Class::ALL.into_iter().map(Class::name));
            let unknown = || invalid(format!("unknown priority `{name}`: low, normal, high or critical{near}")).below("priority");
            Some(class.ok_or_else(unknown)?)
        }
    };
    let set = |name: &str, limits: &[proto::Limit]| match rates(limits)? {
        (rates, true) if !rates.is_empty() => Err(invalid("`unlimited` beside limits: keep one of the two")),
        (rates, _) => Ok((Box::from(name), rates)),
    };
    not_too_many(tier.sets.len()).map_err(|mistake| mistake.below("sets"))?;
    // Without `limits`, named sets are all that there is; a tier without either has no rate limits.
    let has_default = !tier.limits.is_empty() || tier.sets.is_empty();
    let mut sets = if has_default { vec![set(DEFAULT_SET, &tier.limits)?] } else { Vec::new() };
    for (place, given) in tier.sets.iter().enumerate() {
        let at = |mistake: Mistake| mistake.below(format!("sets[{place}]"));
        plain(&given.name, "name").map_err(at)?;
        let is_taken = |name: &str| name == DEFAULT_SET || sets.iter().any(|(set, _): &(Box<str>, _)| **set == *name);
        if given.name.is_empty() || is_taken(&given.name) {
            return Err(at(invalid("each of `sets` has a name of its own; `limits` is the one called default").below("name")));
        }
        sets.push(set(&given.name, &given.limits).map_err(at)?);
    }
    sets.sort_by(|(one, _), (other, _)| one.cmp(other));
    // A tier has no quotas but its own: to lift one is to have none.
    let (quotas, _) = quota_limits(tier.daily, tier.monthly)?;
    if tier.limits.is_empty() && tier.sets.is_empty() && quotas.is_empty() && priority.is_none() {
        let hint =
            "give `limits`, `sets`, `daily`, `monthly` or `priority`; `limits: [{limit: unlimited}]` for a tier without limits";
        return Err(invalid(format!("a tier that says nothing: {hint}")));
    }
    Ok(TierDefinition { priority, sets, quotas })
}

pub(super) fn switch(name: &str) -> Result<Switch, Mistake> {
    Switch::parse(name).ok_or_else(|| match name {
        "" => invalid("`switch` is missing: off, allow or shadow"),
        name => {
            let near = suggestion(name, Switch::ALL.into_iter().map(Switch::name));
            invalid(format!("unknown switch `{name}`: off, allow or shadow{near}")).below("switch")
        }
    })
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

pub(super) fn tier_name(domain: &str, tier: &str) -> Result<RecordName, Mistake> {
    plain(domain, "domain")?;
    plain(tier, "name")?;
    if domain.is_empty() || tier.is_empty() {
        return Err(invalid("`domain` or the tier's `name` is missing"));
    }
    Ok(RecordName::Tier { domain: domain.into(), tier: tier.into() })
}

pub(super) fn switch_name(domain: &str) -> Result<RecordName, Mistake> {
    plain(domain, "domain")?;
    Ok(RecordName::Switch { domain: Some(domain).filter(|domain| !domain.is_empty()).map(Into::into) })
}
