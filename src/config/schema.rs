//! The rule language as a JSON Schema (draft 2020-12), for editors: made of [`language`], so it knows what the loader knows.
//!
//! It says what one document can get wrong by itself. What takes a look at the whole (a pattern that never matches, a name that
//! nobody has) only the loader tells.

use serde_json::{Map, Value, json};

use super::fields::DURATION_UNITS;
use super::keys::{self, Level};
use super::language::{self, Field, Names, Presence, Shape};
use crate::rules::Unit;

/// A number of requests inside of text; the scalar alone is a number to YAML, except for its underscores.
const AMOUNT: &str = r"(?:-1|0|0x[0-9A-Fa-f_]+|[1-9][0-9_]*(?:\.0+|(?:\.[0-9]+)?[eE]\+?[0-9]+)?)";

/// The schema of a document.
pub fn schema() -> Value {
    let mut definitions: Map<String, Value> = Level::ALL.into_iter().map(|level| (name(level).to_owned(), object(level))).collect();
    definitions.extend([
        ("amount".to_owned(), amount()),
        ("burst".to_owned(), burst()),
        ("duration".to_owned(), duration()),
        ("short_form".to_owned(), short_form()),
    ]);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weir rules",
        "description": "One document of a rules file: what is limited in one domain, and how.",
        "$ref": reference(Level::Document),
        "$defs": definitions,
    })
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Document => "document",
        Level::Defaults => "defaults",
        Level::Response => "response",
        Level::Address => "address",
        Level::Descriptor => "descriptor",
        Level::RateLimit => "rate_limit",
        Level::Limit => "limit",
        Level::Replaces => "replaces",
        Level::Value => "value",
        Level::Quota => "quota",
        Level::Tier => "tier",
        Level::TierSource => "tier_source",
        Level::Priority => "priority",
        Level::Test => "test",
        Level::Step => "step",
    }
}

fn reference(level: Level) -> String {
    format!("#/$defs/{}", name(level))
}

/// A map of this level's keys and no others.
fn object(level: Level) -> Value {
    let fields = language::fields(level);
    let mut properties: Map<String, Value> = fields.iter().map(|field| (field.name.to_owned(), property(field))).collect();
    for (key, _) in keys::ignored(level) {
        properties.insert(key.to_owned(), json!({"description": "Does nothing here.", "deprecated": true}));
    }
    for key in keys::harmful(level) {
        let nothing = json!([null, false, "", [], {}]);
        properties.insert(key.to_owned(), json!({"description": "Does nothing here.", "deprecated": true, "enum": nothing}));
    }
    let required: Vec<&str> = fields.iter().filter(|field| field.presence == Presence::Required).map(|field| field.name).collect();
    let mut object = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        object["required"] = required.into();
    }
    if let (Value::Object(object), Value::Object(together)) = (&mut object, together(level)) {
        object.extend(together);
    }
    let beside = keys::ignored(level).filter_map(|(key, other)| Some((key.to_owned(), some(other?))));
    let beside: Map<String, Value> = beside.collect();
    if !beside.is_empty() {
        object["dependentSchemas"] = beside.into();
    }
    object
}

/// What the keys of a level mean for each other.
fn together(level: Level) -> Value {
    let one = json!({"minProperties": 1, "maxProperties": 1});
    match level {
        Level::Limit => limit(json!({"anyOf": amounts()})),
        // Beside `limits` it may do with its names: its descriptor says whether there are any.
        Level::RateLimit => limit(json!({
            "dependentRequired": {"use": ["tier"]},
            "allOf": [{"if": {"required": ["tier"]}, "then": without(keys::of(Level::Limit).filter(|key| *key != "block_for"))}],
        })),
        Level::Descriptor => {
            let mut ways = amounts();
            ways.extend([json!({"required": ["tier"]}), json!({"not": {"type": "object"}}), json!({"maxProperties": 0})]);
            let decides = |key: &str| json!({"required": [key], "properties": {key: {"const": true}}});
            json!({
                "if": {"anyOf": [decides("allow"), decides("deny")]},
                "then": without(["rate_limit", "limits", "quota"].into_iter()),
                "not": {"allOf": [decides("allow"), decides("deny")]},
                "anyOf": [
                    {"required": ["limits"], "properties": {"rate_limit": without(keys::of(Level::Limit))}},
                    {"properties": {"rate_limit": {"anyOf": ways}}},
                ],
            })
        }
        Level::Tier => json!({"anyOf": [{"required": ["limits"]}, some("quota"), unlimited()]}),
        Level::Quota => json!({"anyOf": [some("daily"), some("monthly")]}),
        Level::Value | Level::TierSource => one,
        _ => json!({}),
    }
}

/// The ways to say how many, and in what time.
fn amounts() -> Vec<Value> {
    vec![json!({"required": ["requests_per_unit", "unit"]}), json!({"required": ["requests", "window"]}), unlimited()]
}

fn unlimited() -> Value {
    json!({"required": ["unlimited"], "properties": {"unlimited": {"const": true}}})
}

/// The key is there, and not null.
fn some(key: &str) -> Value {
    json!({"required": [key], "properties": {key: {"not": {"type": "null"}}}})
}

/// The keys are absent or null.
fn without<'k>(keys: impl Iterator<Item = &'k str>) -> Value {
    let absent: Map<String, Value> = keys.map(|key| (key.to_owned(), json!({"type": "null"}))).collect();
    json!({ "properties": absent })
}

/// What holds for every limit in map form.
fn limit(more: Value) -> Value {
    let mut limit = json!({
        "not": {"required": ["unit", "window"]},
        "if": unlimited(),
        // `unit` and `requests_per_unit` are accepted there, as envoyproxy/ratelimit does, with a warning.
        "then": without(keys::of(Level::Limit).filter(|key| !["unlimited", "unit", "requests_per_unit"].contains(key))),
        "else": {
            "dependentRequired": {
                "unit": ["requests_per_unit"],
                "requests_per_unit": ["unit"],
                "window": ["requests"],
                "requests": ["window"],
            },
        },
    });
    if let (Value::Object(limit), Value::Object(more)) = (&mut limit, more) {
        limit.extend(more);
    }
    limit
}

fn property(field: &Field) -> Value {
    let mut property = shape(&field.shape);
    if field.presence == Presence::Optional && !matches!(field.shape, Shape::Scalar) {
        property = or_null(property);
    }
    property["description"] = field.description.into();
    if let Some(default) = field.default {
        property["default"] = serde_json::from_str(default).unwrap_or_else(|_| default.into());
    }
    property
}

fn or_null(schema: Value) -> Value {
    match schema {
        Value::Object(mut schema) if schema.len() == 1 && schema.contains_key("anyOf") => {
            if let Some(Value::Array(ways)) = schema.get_mut("anyOf") {
                ways.push(json!({"type": "null"}));
            }
            Value::Object(schema)
        }
        Value::Object(mut schema) if schema.get("type").is_some_and(Value::is_string) => {
            let kind = schema.remove("type");
            schema.insert("type".to_owned(), json!([kind, "null"]));
            Value::Object(schema)
        }
        schema => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

fn shape(of: &Shape) -> Value {
    match of {
        Shape::Text => json!({"type": ["string", "number", "boolean"], "minLength": 1}),
        Shape::Scalar => json!({"type": ["string", "number", "boolean", "null"]}),
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::Amount => json!({"$ref": "#/$defs/amount"}),
        Shape::Count(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Shape::Burst => json!({"$ref": "#/$defs/burst"}),
        Shape::Duration => json!({"$ref": "#/$defs/duration"}),
        Shape::Time => json!({"anyOf": [{"const": 0}, {"enum": ["0", "0s"]}, {"$ref": "#/$defs/duration"}]}),
        Shape::ShortForm => json!({"$ref": "#/$defs/short_form"}),
        Shape::Network => json!({"type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"}),
        Shape::Choice(names) => json!({"enum": names()}),
        Shape::ChoiceOfAnyCase(names) => any_case(*names),
        Shape::Map(level) => json!({"$ref": reference(*level)}),
        Shape::MapOrNull(level) => or_null(shape(&Shape::Map(*level))),
        Shape::AnyMap => json!({"type": "object"}),
        Shape::List(item) => json!({"type": "array", "items": shape(item), "minItems": 1}),
        Shape::AnyList(item) => json!({"type": "array", "items": shape(item)}),
        Shape::Named(value) => json!({
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": shape(value),
        }),
        Shape::Weights => {
            let text = json!({"type": "string", "pattern": format!("^{AMOUNT}$"), "not": {"const": "-1"}});
            let weight = json!({"anyOf": [{"type": "integer", "minimum": 0}, text]});
            json!({"type": "object", "additionalProperties": weight, "minProperties": 1})
        }
        Shape::Entries => json!({"type": ["object", "null"], "additionalProperties": shape(&Shape::Scalar)}),
        Shape::Shares(names) => shares(*names),
        Shape::Either(shapes) => json!({"anyOf": shapes.iter().map(shape).collect::<Vec<_>>()}),
    }
}

/// The names as they are usually written, and in any other case.
fn any_case(names: Names) -> Value {
    let pattern = format!("^(?:{})$", names().into_iter().map(in_any_case).collect::<Vec<_>>().join("|"));
    json!({"anyOf": [{"enum": names()}, {"type": "string", "pattern": pattern}]})
}

fn in_any_case(name: &str) -> String {
    name.chars().map(|letter| format!("[{letter}{}]", letter.to_ascii_uppercase())).collect()
}

fn shares(names: Names) -> Value {
    let share = json!({
        "type": "string",
        "pattern": r"^(?:100(?:\.0{1,4})?|[0-9]{1,2}(?:\.[0-9]{1,4})?) *%$",
        "patternErrorMessage": "a percentage up to 100 with at most four decimals, such as 10% or 12.5%",
    });
    let properties: Map<String, Value> = names().into_iter().map(|name| (name.to_owned(), share.clone())).collect();
    let pattern = format!("^(?:{})$", names().into_iter().map(in_any_case).collect::<Vec<_>>().join("|"));
    json!({"type": "object", "properties": properties, "patternProperties": {pattern: share}, "additionalProperties": false})
}

fn amount() -> Value {
    json!({"anyOf": [
        {"type": "integer", "minimum": -1, "maximum": u64::MAX},
        // A number with underscores is text to YAML 1.2.
        {"type": "string", "pattern": "^[1-9][0-9]*(?:_[0-9]+)+$"},
    ]})
}

fn burst() -> Value {
    json!({"anyOf": [
        {"type": "integer", "minimum": 0},
        {
            "type": "string",
            "pattern": format!(r"^\+?{}$", AMOUNT.replace("-1|", "")),
            "patternErrorMessage": "50 is the bucket's capacity, +50 adds to the requests",
        },
    ]})
}

/// Longer than zero.
fn duration_pattern() -> String {
    let units = format!("(?:{})", DURATION_UNITS.map(|(name, _)| name).join("|"));
    format!("(?:0+{units})*0*[1-9][0-9]*{units}(?:[0-9]+{units})*")
}

fn duration() -> Value {
    json!({
        "type": "string",
        "pattern": format!("^\\s*{}\\s*$", duration_pattern()),
        "patternErrorMessage": "a duration is a number with its unit: 250ms, 30s, 5m, 1h30m, 1d, 1w",
        "examples": ["30s", "1h30m", "1d"],
    })
}

fn short_form() -> Value {
    let units = Unit::ALL.map(|unit| in_any_case(unit.name())).join("|");
    let limit = format!(r"\s*(?:unlimited|-1|{AMOUNT}\s*(?:/|\sper\s)\s*(?:{units}|{}))\s*", duration_pattern());
    json!({"anyOf": [
        {
            "type": "string",
            "pattern": format!("^{limit}(?:;{limit})*$"),
            "patternErrorMessage": super::short::SHORT_HINT,
            "examples": ["100/minute", "10 per 30s", "10/second;100/minute;1000/hour", "unlimited"],
        },
        {"const": -1},
    ]})
}
