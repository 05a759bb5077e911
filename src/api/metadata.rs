//! Dynamic metadata, for Envoy's access logs and later filters: what the settings ask of every answer (as
//! `envoyproxy/ratelimit` gives it), what a domain asks of its own, and what always must be said: a degraded answer, a delay.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use foldhash::fast::RandomState;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::AnswerSettings;
use super::headers::Told;
use super::proto::envoy::r#type::v3::RateLimitUnit;
use crate::limiter::Decided;
use crate::rules::decision::{Code, Status};
use crate::rules::plan::Source;
use crate::rules::request::{Descriptor, Request};
use crate::rules::{Domain, Rule, RuleId};

type Fields = BTreeMap<String, Value>;

/// The metadata of an answer; `None` when there is nothing to say.
pub(super) fn metadata(decided: &Decided, asked: &Request<'_>, settings: &AnswerSettings) -> Option<Struct> {
    let mut fields = Fields::new();
    if settings.dynamic_metadata {
        request(&mut fields, asked);
        if let Some(domain) = decided.domain() {
            passed(&mut fields, domain, &decided.decision.statuses);
        }
    }
    let decision = &decided.decision;
    if decided.domain().is_some_and(|domain| domain.response.metadata) {
        told(&mut fields, decided);
    }
    if let Some(degraded) = decision.degraded {
        fields.insert("degraded".to_owned(), string(degraded.name()));
    }
    let delay = decision.delay.saturating_sub(decision.hold);
    if delay > 0 {
        fields.insert("delay_ms".to_owned(), number(delay.div_ceil(1_000)));
    }
    (!fields.is_empty()).then_some(Struct { fields })
}

/// About the rule that the answer is about.
fn told(fields: &mut Fields, decided: &Decided) {
    let Some(told) = Told::of_any(decided) else { return };
    if told.is_operators_block() {
        fields.insert("blocked_by".to_owned(), string("operator"));
    }
    if let Some(rule) = told.rule {
        fields.insert("rule".to_owned(), string(rule.label()));
        fields.insert("layer".to_owned(), string(&*rule.layer));
    }
    if let Some(tier) = told.tier {
        fields.insert("tier".to_owned(), string(tier));
    }
    if let Some((limit, outcome)) = told.limit {
        fields.insert("limit".to_owned(), number(limit.limit.requests()));
        fields.insert("remaining".to_owned(), number(outcome.remaining()));
    }
    fields.insert("cost".to_owned(), number(told.status.cost));
}

/// What was asked.
fn request(fields: &mut Fields, asked: &Request<'_>) {
    fields.insert("domain".to_owned(), string(readable(asked.domain)));
    fields.insert("descriptors".to_owned(), list(asked.descriptors.iter().map(descriptor)));
    if asked.hits_addend != 0 {
        fields.insert("hitsAddend".to_owned(), number(u64::from(asked.hits_addend)));
    }
}

fn descriptor(asked: &Descriptor<'_>) -> Value {
    let entry = |key: &[u8], value: &[u8]| string(format!("{}={}", readable(key), readable(value)));
    let mut fields = Fields::new();
    fields.insert("entries".to_owned(), list(asked.entries.iter().map(|one| entry(one.key, one.value))));
    if let Some(limit) = &asked.limit {
        let unit =
            RateLimitUnit::try_from(limit.unit).map_or_else(|_| limit.unit.to_string(), |unit| unit.as_str_name().to_owned());
        let multiplier = limit.unit_multiplier.map(|by| format!(" unit_multiplier:{{value:{by}}}")).unwrap_or_default();
        let text = format!("requests_per_unit:{} unit:{unit}{multiplier}", limit.requests_per_unit);
        fields.insert("limit".to_owned(), string(text));
    }
    if let Some(hits) = asked.hits {
        fields.insert("hitsAddend".to_owned(), number(hits));
    }
    structure(fields)
}

/// The metadata of the rules whose limits let the request pass. The first rule to say something is right.
fn passed(fields: &mut Fields, domain: &Domain, statuses: &[Status]) {
    let mut merged = Fields::new();
    let mut seen: HashSet<RuleId, RandomState> = HashSet::default();
    for (id, rule) in statuses.iter().filter_map(|status| rule_that_passed(domain, status)) {
        // What a rule says again changes nothing.
        if rule.metadata.is_some() && seen.insert(id) {
            merge(&mut merged, rule.metadata.iter().flatten());
        }
    }
    if !merged.is_empty() {
        fields.insert("metadata".to_owned(), structure(merged));
    }
}

fn rule_that_passed<'a>(domain: &'a Domain, status: &Status) -> Option<(RuleId, &'a Rule)> {
    let id = status.rule?;
    let rule = domain.rule(id);
    let by_its_limits = status.limits.first().is_some_and(|limit| !matches!(limit.source, Source::Override(_)));
    (status.code == Code::Ok && (by_its_limits || rule.allow)).then_some((id, rule))
}

fn merge<'a>(known: &mut Fields, more: impl Iterator<Item = (&'a String, &'a serde_json::Value)>) {
    for (key, value) in more {
        match (known.get_mut(key).and_then(|known| known.kind.as_mut()), value) {
            (None, _) => {
                known.insert(key.clone(), from_json(value));
            }
            (Some(Kind::StructValue(known)), serde_json::Value::Object(more)) => merge(&mut known.fields, more.iter()),
            (Some(_), _) => {}
        }
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value { kind: Some(Kind::NullValue(0)) },
        Json::Bool(value) => Value { kind: Some(Kind::BoolValue(*value)) },
        Json::Number(value) => Value { kind: Some(Kind::NumberValue(value.as_f64().unwrap_or_default())) },
        Json::String(value) => string(value.as_str()),
        Json::Array(values) => list(values.iter().map(from_json)),
        Json::Object(fields) => structure(fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect()),
    }
}

fn string(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

/// JSON has doubles only: beyond 2^53 it is the nearest of them.
fn number(value: u64) -> Value {
    Value { kind: Some(Kind::NumberValue(value as f64)) }
}

fn list(values: impl Iterator<Item = Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.collect() })) }
}

fn structure(fields: Fields) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// Text as it is; bytes that are no UTF-8 escaped.
fn readable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.escape_ascii().to_string()),
    }
}
