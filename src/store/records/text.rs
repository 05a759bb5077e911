//! Records as JSON: what a person reads in redis-cli and in an export.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Record, RecordName};
use crate::limit::{Algorithm, Limit, Micros, Period};
use crate::rules::key;
use crate::rules::subject::{SubjectLimits, SubjectRate, SubjectRecord, Switch, WHOLE};
use crate::rules::tier::Class;
use crate::rules::tier_definition::TierDefinition;

/// Why a text is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record: {0}")]
pub struct Malformed(pub String);

#[derive(Serialize, Deserialize)]
struct SubjectText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tier: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocked_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allowed_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    multiplier: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    limits: Vec<LimitsText>,
}

#[derive(Serialize, Deserialize)]
struct LimitsText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unlimited: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rates: Vec<RateText>,
    #[serde(flatten)]
    quotas: QuotaText,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    no_daily: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    no_monthly: bool,
}

#[derive(Serialize, Deserialize)]
struct RateText {
    requests: u64,
    window: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    algorithm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct QuotaText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    daily: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monthly: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct TierText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
    #[serde(default)]
    sets: BTreeMap<Box<str>, Vec<RateText>>,
    #[serde(flatten)]
    quotas: QuotaText,
}

#[derive(Serialize, Deserialize)]
struct SwitchText {
    switch: String,
}

impl Record {
    pub fn text(&self) -> String {
        let text = match self {
            Record::Subject(subject) => serde_json::to_string(&SubjectText::from(subject)),
            Record::Tier(tier) => serde_json::to_string(&TierText::from(tier)),
            Record::Switch(switch) => serde_json::to_string(&SwitchText { switch: switch.name().to_owned() }),
        };
        text.expect("records are of strings and numbers")
    }

    /// The record of this name.
    ///
    /// # Errors
    /// When it is no JSON, lacks something, or has a limit that cannot be. Unknown keys are passed over: a later version may
    /// write them.
    pub fn parse(name: &RecordName, text: &str) -> Result<Record, Malformed> {
        let malformed = |error: serde_json::Error| Malformed(error.to_string());
        match name {
            RecordName::Subject { .. } => {
                serde_json::from_str::<SubjectText>(text).map_err(malformed)?.try_into().map(Record::Subject)
            }
            RecordName::Tier { .. } => serde_json::from_str::<TierText>(text).map_err(malformed)?.try_into().map(Record::Tier),
            RecordName::Switch { .. } => {
                let SwitchText { switch } = serde_json::from_str(text).map_err(malformed)?;
                Switch::parse(&switch).map(Record::Switch).ok_or_else(|| Malformed(format!("unknown switch `{switch}`")))
            }
        }
    }
}

impl From<&SubjectRecord> for SubjectText {
    fn from(subject: &SubjectRecord) -> SubjectText {
        SubjectText {
            tier: subject.tier.clone(),
            blocked_until: subject.blocked_until.map(timestamp),
            allowed_until: subject.allowed_until.map(timestamp),
            multiplier: subject.multiplier.map(|multiplier| multiplier as f64 / WHOLE as f64),
            limits: subject.limits.iter().map(LimitsText::from).collect(),
        }
    }
}

impl TryFrom<SubjectText> for SubjectRecord {
    type Error = Malformed;

    fn try_from(text: SubjectText) -> Result<SubjectRecord, Malformed> {
        Ok(SubjectRecord {
            tier: text.tier,
            blocked_until: text.blocked_until.map(micros),
            allowed_until: text.allowed_until.map(micros),
            multiplier: text.multiplier.map(read_multiplier).transpose()?,
            limits: text.limits.into_iter().map(SubjectLimits::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&SubjectLimits> for LimitsText {
    fn from(limits: &SubjectLimits) -> LimitsText {
        LimitsText {
            rule: limits.rule.clone(),
            unlimited: limits.unlimited,
            rates: limits.rates.iter().map(RateText::from).collect(),
            quotas: QuotaText::from(&limits.quotas[..]),
            no_daily: limits.lifted_quotas.contains(&Period::Day),
            no_monthly: limits.lifted_quotas.contains(&Period::Month),
        }
    }
}

impl TryFrom<LimitsText> for SubjectLimits {
    type Error = Malformed;

    fn try_from(text: LimitsText) -> Result<SubjectLimits, Malformed> {
        let lifted = [(Period::Day, text.no_daily), (Period::Month, text.no_monthly)];
        Ok(SubjectLimits {
            lifted_quotas: lifted.into_iter().filter_map(|(period, is_lifted)| is_lifted.then_some(period)).collect(),
            rule: text.rule,
            rates: text.rates.into_iter().map(SubjectRate::try_from).collect::<Result<_, _>>()?,
            quotas: text.quotas.limits()?,
            unlimited: text.unlimited,
        })
    }
}

impl From<&SubjectRate> for RateText {
    fn from(rate: &SubjectRate) -> RateText {
        let limit = &rate.limit;
        RateText {
            requests: limit.requests(),
            window: key::duration(limit.window()),
            algorithm: rate.names_algorithm.then(|| limit.algorithm().name().to_owned()),
            burst: Some(limit.burst()).filter(|&burst| burst != limit.requests()),
        }
    }
}

impl TryFrom<RateText> for SubjectRate {
    type Error = Malformed;

    fn try_from(text: RateText) -> Result<SubjectRate, Malformed> {
        let window = key::micros(&text.window).ok_or_else(|| Malformed(format!("`{}` is no window", text.window)))?;
        let algorithm = match text.algorithm.as_deref() {
            Some(name) => {
                let named = Algorithm::of_rate(name);
                Some(named.ok_or_else(|| Malformed(format!("unknown algorithm `{name}`")))?)
            }
            None => None,
        };
        SubjectRate::new(text.requests, window, text.burst, algorithm).map_err(|error| Malformed(error.to_string()))
    }
}

impl From<&[Limit]> for QuotaText {
    fn from(quotas: &[Limit]) -> QuotaText {
        let of = |period| quotas.iter().find(|quota| quota.calendar() == Some(period)).map(Limit::requests);
        QuotaText { daily: of(Period::Day), monthly: of(Period::Month) }
    }
}

impl QuotaText {
    fn limits(&self) -> Result<Vec<Limit>, Malformed> {
        let quotas = [(Period::Day, self.daily), (Period::Month, self.monthly)];
        let given = quotas.into_iter().filter_map(|(period, requests)| requests.map(|requests| Limit::quota(period, requests)));
        given.map(|limit| limit.map_err(|error| Malformed(error.to_string()))).collect()
    }
}

impl From<&TierDefinition> for TierText {
    fn from(tier: &TierDefinition) -> TierText {
        TierText {
            priority: tier.priority.map(|class| class.name().to_owned()),
            sets: tier.sets.iter().map(|(name, rates)| (name.clone(), rates.iter().map(RateText::from).collect())).collect(),
            quotas: QuotaText::from(&tier.quotas[..]),
        }
    }
}

impl TryFrom<TierText> for TierDefinition {
    type Error = Malformed;

    fn try_from(text: TierText) -> Result<TierDefinition, Malformed> {
        let class = |name: &str| Class::parse(name.as_bytes()).ok_or_else(|| Malformed(format!("unknown priority `{name}`")));
        let rates = |rates: Vec<RateText>| rates.into_iter().map(SubjectRate::try_from).collect::<Result<_, _>>();
        let sets = text.sets.into_iter().map(|(name, set)| Ok((name, rates(set)?)));
        Ok(TierDefinition {
            priority: text.priority.as_deref().map(class).transpose()?,
            sets: sets.collect::<Result<_, _>>()?,
            quotas: text.quotas.limits()?,
        })
    }
}

/// The largest multiplier that may be given: a limit that is a million times as large is none.
const MAX_MULTIPLIER: f64 = 1e6;
/// The largest one that is read: more than may be given, so that a store's records stay what they are.
const MAX_READ_MULTIPLIER: f64 = 1e9;

/// In millionths.
///
/// # Errors
/// For what is no number, less than a millionth, or beyond a million.
pub fn multiplier(number: f64) -> Result<u64, Malformed> {
    let millionths = number * WHOLE as f64;
    match millionths.round() as u64 {
        1.. if number <= MAX_MULTIPLIER => Ok(millionths.round() as u64),
        _ => Err(Malformed(format!("{number} is no multiplier: a number above 0, to the millionth, and at most {MAX_MULTIPLIER}"))),
    }
}

fn read_multiplier(number: f64) -> Result<u64, Malformed> {
    match number {
        0.0..=MAX_READ_MULTIPLIER => Ok((number * WHOLE as f64).round() as u64),
        _ => Err(Malformed(format!("{number} is no multiplier"))),
    }
}

/// The latest time that has a date is taken for what is later.
fn timestamp(time: Micros) -> Timestamp {
    i64::try_from(time).ok().and_then(|time| Timestamp::from_microsecond(time).ok()).unwrap_or(Timestamp::MAX)
}

/// Times before the epoch are as good as the epoch: over.
fn micros(time: Timestamp) -> Micros {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{HOUR, MINUTE, SECOND};

    fn subject() -> RecordName {
        RecordName::Subject { domain: "api".into(), subject: b"user=u1".as_slice().into() }
    }

    #[test]
    fn a_record_reads_well_and_is_read_back() {
        let rate = |requests, window, burst, algorithm| SubjectRate::new(requests, window, burst, algorithm).unwrap();
        let record = Record::Subject(SubjectRecord {
            tier: Some("pro".into()),
            blocked_until: Some(1_800_000_000 * SECOND),
            allowed_until: Some(1_800_000_000 * SECOND + 1),
            multiplier: Some(1_500_000),
            limits: vec![
                SubjectLimits {
                    rule: Some("per-user".into()),
                    rates: vec![rate(500, MINUTE, None, None), rate(9, HOUR, Some(20), None)],
                    quotas: vec![Limit::quota(Period::Month, 7).unwrap()],
                    lifted_quotas: vec![Period::Day],
                    unlimited: false,
                },
                SubjectLimits { unlimited: true, ..SubjectLimits::default() },
            ],
        });
        let text = record.text();
        assert_eq!(
            text,
            r#"{"tier":"pro","blocked_until":"2027-01-15T08:00:00Z","allowed_until":"2027-01-15T08:00:00.000001Z","multiplier":1.5,"limits":[{"rule":"per-user","rates":[{"requests":500,"window":"1m"},{"requests":9,"window":"1h","algorithm":"token_bucket","burst":20}],"monthly":7,"no_daily":true},{"unlimited":true}]}"#
        );
        assert_eq!(Record::parse(&subject(), &text), Ok(record));
    }

    #[test]
    fn every_multiplier_is_read_back() {
        for multiplier in [0, 1, 333_333, 1_000_000, 1_000_001, 123_456_789, 999_999_999_999_999] {
            let record = Record::Subject(SubjectRecord { multiplier: Some(multiplier), ..SubjectRecord::default() });
            assert_eq!(Record::parse(&subject(), &record.text()), Ok(record));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases = [
            ("{", "EOF"),
            (r#"{"multiplier": -1}"#, "multiplier"),
            (r#"{"limits": [{"rates": [{"requests": 1, "window": "0s"}]}]}"#, "longer than zero"),
            (r#"{"limits": [{"rates": [{"requests": 1, "window": "soon"}]}]}"#, "no window"),
            (r#"{"limits": [{"rates": [{"requests": 1, "window": "1s", "algorithm": "block"}]}]}"#, "unknown algorithm"),
            (r#"{"blocked_until": "tomorrow"}"#, "tomorrow"),
        ];
        for (text, expected) in cases {
            let Malformed(reason) = Record::parse(&subject(), text).unwrap_err();
            assert!(reason.contains(expected) || reason.contains("column"), "{text}: {reason}");
        }
    }

    #[test]
    fn tiers_and_switches_are_read_back() {
        let tier = Record::Tier(TierDefinition {
            priority: Some(Class::High),
            sets: vec![("default".into(), Vec::new()), ("write".into(), vec![SubjectRate::new(1, SECOND, None, None).unwrap()])],
            quotas: vec![Limit::quota(Period::Day, 1).unwrap(), Limit::quota(Period::Month, 2).unwrap()],
        });
        let name = RecordName::Tier { domain: "api".into(), tier: "pro".into() };
        assert_eq!(Record::parse(&name, &tier.text()), Ok(tier));
        for switch in Switch::ALL.map(Record::Switch) {
            assert_eq!(Record::parse(&RecordName::Switch { domain: None }, &switch.text()), Ok(switch));
        }
    }
}
