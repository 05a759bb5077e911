//! How a case is written: rules, then requests at times of a clock set by hand, with what must come of them.
//!
//! An entry of a descriptor is `key: value`; `hits`, `refund` and `limit` are the descriptor's own, `entries` is the long form for
//! pairs. A value is text, `{hex: ff00}` for bytes, or `{fill: a, times: 1000}`. Times count from the beginning of the case;
//! a step without one happens when the step before it did.

#![allow(unreachable_pub)] // It is a file of its own, used by one test file.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use std::collections::BTreeMap;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use weir::limit::{DAY, HOUR, MINUTE, Micros, SECOND};
use weir::rules::Unit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// A document without its `domain`, which is made of the case's name.
    #[serde(default)]
    pub rules: String,
    /// Instead: a file of `config/examples`, whose domain is called so too.
    pub example: Option<String>,
    #[serde(default)]
    pub settings: Settings,
    /// Why it cannot be asked of a running server; cases in which time passes are not asked anyway.
    pub grpc: Option<String>,
    pub steps: Vec<Step>,
}

/// What the settings say about all rules.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub shadow: bool,
    pub quota: bool,
    pub charge: Option<Charge>,
    /// Every answer has the legacy headers.
    pub headers: bool,
    /// Every answer has the request in its dynamic metadata.
    pub metadata: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Charge {
    Auto,
    Admitted,
    Always,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    #[serde(default)]
    pub at: Option<Time>,
    /// The case's own when absent.
    pub domain: Option<String>,
    pub descriptors: Vec<Descriptor>,
    #[serde(default)]
    pub hits: u32,
    /// Asked so many times; every answer must be as expected, and the rest is said about the last one.
    #[serde(default = "once")]
    pub repeat: u32,
    pub expect: Expected,
    /// The name of the rule that refused.
    pub limited_by: Option<String>,
    /// How long a leaky bucket asks the request to wait.
    pub delay: Option<Time>,
    pub statuses: Option<Vec<StatusExpected>>,
    /// Response headers, by name; `null` for one that is not there.
    #[serde(default)]
    pub headers: BTreeMap<String, Option<String>>,
    /// The body, as JSON; an empty string for none.
    pub body: Option<serde_json::Value>,
    /// Dynamic metadata, or a part of it; `{}` for none.
    pub metadata: Option<serde_json::Value>,
}

fn once() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    Ok,
    OverLimit,
    /// So many of the repetitions are allowed.
    Admits(u32),
    /// INVALID_ARGUMENT, with a message that has this in it.
    Invalid(String),
}

/// What is said about one descriptor's status; what is absent is not looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusExpected {
    /// `ok` or `over_limit`.
    pub code: Option<String>,
    /// `10/hour`, `2/5 minute`, `5/?` for a window that no unit divides, `none`.
    pub limit: Option<String>,
    pub name: Option<String>,
    pub remaining: Option<u32>,
    pub reset: Option<Reset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Micros);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    In(Micros),
    Never,
}

/// `1h20m`, `90s`, `1500ms`, `1us`.
fn duration(text: &str) -> Option<Micros> {
    let mut total = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = match unit {
            "d" => DAY,
            "h" => HOUR,
            "m" => MINUTE,
            "s" => SECOND,
            "ms" => 1_000,
            "us" => 1,
            _ => return None,
        };
        total += number.parse::<Micros>().ok()? * unit;
        rest = after;
    }
    Some(total)
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration(&text).map(Time).ok_or_else(|| D::Error::custom(format!("no duration: {text}")))
    }
}

impl<'de> Deserialize<'de> for Reset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reset, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "never" {
            return Ok(Reset::Never);
        }
        duration(&text).map(Reset::In).ok_or_else(|| D::Error::custom(format!("no duration: {text}")))
    }
}

/// As the message that is sent.
pub struct Descriptor(pub RateLimitDescriptor);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    requests_per_unit: u32,
    unit: UnitNumber,
    multiplier: Option<u32>,
}

/// A unit by its name, or any number.
struct UnitNumber(i32);

/// A value: text, or bytes.
struct Value(Vec<u8>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueForm {
    hex: Option<String>,
    fill: Option<String>,
    times: Option<usize>,
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Descriptor, D::Error> {
        deserializer.deserialize_map(DescriptorVisitor)
    }
}

struct DescriptorVisitor;

impl<'de> Visitor<'de> for DescriptorVisitor {
    type Value = Descriptor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a descriptor's entries, with hits, refund and limit")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Descriptor, A::Error> {
        let mut descriptor = RateLimitDescriptor::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "hits" => descriptor.hits_addend = Some(map.next_value()?),
                "refund" => descriptor.is_negative_hits = map.next_value()?,
                "limit" => {
                    let limit: Override = map.next_value()?;
                    descriptor.limit = Some(RateLimitOverride {
                        requests_per_unit: limit.requests_per_unit,
                        unit: limit.unit.0,
                        unit_multiplier: limit.multiplier,
                    });
                }
                "entries" => {
                    let pairs: Vec<(Value, Value)> = map.next_value()?;
                    descriptor.entries.extend(pairs.into_iter().map(|(key, value)| Entry { key: key.0, value: value.0 }));
                }
                _ => descriptor.entries.push(Entry { key: key.into_bytes(), value: map.next_value::<Value>()?.0 }),
            }
        }
        Ok(Descriptor(descriptor))
    }
}

impl<'de> Deserialize<'de> for UnitNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UnitNumber, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = Unit::parse(&text).map(|unit| unit as i32).or_else(|| text.parse().ok());
        number.map(UnitNumber).ok_or_else(|| D::Error::custom(format!("no unit: {text}")))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, {hex: …}, or {fill: …, times: …}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value(text.as_bytes().to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("a value is no list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let form = ValueForm::deserialize(MapAccessDeserializer::new(map))?;
        match (form.hex, form.fill, form.times) {
            (Some(hex), None, None) => {
                let pairs = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                pairs.map(byte).collect::<Option<_>>().map(Value).ok_or_else(|| A::Error::custom("no hexadecimal digits"))
            }
            (None, Some(fill), Some(times)) => Ok(Value(fill.repeat(times).into_bytes())),
            _ => Err(A::Error::custom("either `hex`, or `fill` and `times`")),
        }
    }
}

impl Case {
    /// What its domain is called.
    pub fn domain(&self) -> String {
        self.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    }

    /// Its rules as a whole document.
    pub fn document(&self) -> String {
        let Some(example) = &self.example else { return format!("domain: {}\n{}", self.domain(), self.rules) };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples").join(example);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| match line.strip_prefix("domain: ") {
            Some(_) => format!("domain: {}\n", self.domain()),
            None => format!("{line}\n"),
        });
        lines.collect()
    }

    /// Whether it can be asked of a server with a clock of its own.
    pub fn is_timeless(&self) -> bool {
        self.grpc.is_none() && self.steps.iter().all(|step| step.at.is_none_or(|at| at == Time(0)))
    }
}
