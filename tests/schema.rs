//! The JSON Schema of rules files and the loader know the same language: what loads is valid, what is built wrongly is not, and no key
//! is known to one of them alone.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jsonschema::Validator;
use regex::Regex;
use serde_json::{Map, Value, json};
use weir::config::keys::Level;
use weir::config::language::{Field, Presence, fields};
use weir::config::schema::schema;
use weir::config::{LoadOptions, load_texts};
use weir::rules::RuleSet;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn validator() -> Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

/// The documents of a file as an editor sees them; none where it is no YAML, or has a key twice.
fn documents(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options::<Value>(text, options).unwrap_or_default()
}

/// What the loader complains of.
fn problems(document: &Value) -> Vec<String> {
    // JSON is YAML.
    let loaded = load_texts(&[("a.yaml", &document.to_string())], &LoadOptions::default(), &RuleSet::default());
    loaded.problems.iter().map(|problem| problem.message.clone()).collect()
}

fn complaints(validator: &Validator, document: &Value) -> Vec<String> {
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Files and examples that load, by where they stand.
fn good() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for directory in ["config/rules", "config/examples"] {
        for entry in fs::read_dir(project(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    for page in ["README.md", "docs/rules.md", "docs/algorithms.md", "docs/migrating.md"] {
        let text = fs::read_to_string(project(page)).unwrap();
        let blocks = text.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
        texts.extend(blocks.filter(|block| block.starts_with("domain:")).map(|block| (page.to_owned(), block.to_owned())));
    }
    for entry in fs::read_dir(project("tests/cases")).unwrap() {
        let path = entry.unwrap().path();
        let Some(cases) = documents(&fs::read_to_string(&path).unwrap()).into_iter().next() else { continue };
        for case in cases.as_array().into_iter().flatten() {
            let rules = case["rules"].as_str().unwrap_or("descriptors: []");
            texts.push((format!("{}: {}", path.display(), case["name"]), format!("domain: case\n{rules}")));
        }
    }
    assert!(texts.len() > 100, "the examples are there");
    texts
}

#[test]
fn it_is_a_schema_and_stands_in_the_project_as_it_is_printed() {
    assert!(jsonschema::draft202012::meta::is_valid(&schema()));
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_weir")).arg("schema").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), schema());
    let file = project("config/rules.schema.json");
    if std::env::var_os("REGENERATE").is_some() {
        fs::write(&file, &printed).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap() == printed, "REGENERATE=1 cargo test --test schema writes it anew");
}

#[test]
fn the_files_to_copy_say_where_the_schema_is() {
    let file = project("config/rules.schema.json").canonicalize().unwrap();
    for directory in ["config/rules", "config/examples"] {
        for entry in fs::read_dir(project(directory)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let modeline = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=");
            let schema = modeline.unwrap_or_else(|| panic!("{} begins with no modeline", path.display()));
            assert_eq!(path.parent().unwrap().join(schema).canonicalize().unwrap(), file, "{}", path.display());
        }
    }
}

#[test]
fn what_loads_is_valid() {
    let validator = validator();
    for (place, text) in good() {
        let documents = documents(&text);
        assert!(!documents.is_empty(), "{place}");
        for document in documents {
            assert_eq!(problems(&document), Vec::<String>::new(), "{place}");
            assert_eq!(complaints(&validator, &document), Vec::<String>::new(), "{place}: {document}");
        }
    }
}

/// What the schema must see, too: keys that are not there, missing ones, what is of the wrong kind, and forms that do not go together.
fn is_structural(message: &str) -> bool {
    static OF_ONE_PLACE: LazyLock<Regex> = LazyLock::new(|| {
        let misplaced = r"^unknown key|^`\w+` does nothing (in (the|a|an|`)|beside `(tier|allow|deny))|does not have `\w+` yet";
        let unfit = r"^expected |^unknown |is missing|is no limit|is empty|goes with|both say|exactly one of|cannot both|beside `unlimited|needs `|, found a list$";
        Regex::new(&format!("{misplaced}|{unfit}")).unwrap()
    });
    static OF_THE_WHOLE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"`default_tier` is missing|^unknown time zone|does nothing in a (tier|domain)|duration, found the text `\d{4}d`",
        )
        .unwrap()
    });
    OF_ONE_PLACE.is_match(message) && !OF_THE_WHOLE.is_match(message)
}

/// Where loader and schema differ about a document.
fn difference(validator: &Validator, document: &Value) -> Option<String> {
    let (problems, complaints) = (problems(document), complaints(validator, document));
    let is_broken = problems.iter().any(|message| is_structural(message));
    match (problems.is_empty(), complaints.is_empty()) {
        (true, false) => Some(format!("loads, and is not valid: {complaints:?}\n  {document}")),
        (false, true) if is_broken => Some(format!("is valid, and does not load: {problems:?}\n  {document}")),
        _ => None,
    }
}

/// The document without its descriptors, and with each of them alone.
fn parts(document: &Value) -> Vec<Value> {
    let Value::Object(whole) = document else { return vec![document.clone()] };
    let with = |descriptors: Value| {
        let mut part = whole.clone();
        part.insert("descriptors".to_owned(), descriptors);
        Value::Object(part)
    };
    match whole.get("descriptors") {
        Some(Value::Array(items)) => items.iter().map(|item| with(json!([item]))).chain([with(json!([]))]).collect(),
        _ => vec![document.clone()],
    }
}

#[test]
fn mistakes_are_mistakes_to_both() {
    let validator = validator();
    let (mut differences, mut refused) = (Vec::new(), 0);
    for entry in fs::read_dir(project("tests/config_problems")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for part in documents(&fs::read_to_string(&path).unwrap()).iter().flat_map(parts) {
            refused += usize::from(!complaints(&validator, &part).is_empty());
            differences.extend(difference(&validator, &part).map(|difference| format!("{}: {difference}", path.display())));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(refused > 80, "{refused}");
}

/// The document with one of its nodes changed, every node in every way.
fn mutations(document: &Value) -> Vec<Value> {
    let instead = [json!(null), json!(""), json!(-1), json!(1.5), json!(true), json!("x"), json!([]), json!({})];
    let mut mutated = Vec::new();
    let mut pointers = vec![String::new()];
    while let Some(pointer) = pointers.pop() {
        let node = document.pointer(&pointer).unwrap();
        let below: Vec<String> = match node {
            Value::Object(map) => map.keys().map(|key| key.replace('~', "~0").replace('/', "~1")).collect(),
            Value::Array(items) => (0..items.len()).map(|place| place.to_string()).collect(),
            _ => Vec::new(),
        };
        pointers.extend(below.iter().map(|key| format!("{pointer}/{key}")));
        let change = |change: &dyn Fn(&mut Value)| {
            let mut document = document.clone();
            change(document.pointer_mut(&pointer).unwrap());
            document
        };
        mutated.extend(instead.iter().map(|instead| change(&|node| *node = instead.clone())));
        if let Value::Object(map) = node {
            mutated.extend(map.keys().map(|key| change(&|node| drop(node.as_object_mut().unwrap().remove(key)))));
            mutated.push(change(&|node| drop(node.as_object_mut().unwrap().insert("no_such_key".to_owned(), json!(1)))));
        }
    }
    mutated
}

#[test]
fn loader_and_schema_agree_about_every_small_change() {
    let validator = validator();
    let mut differences = Vec::new();
    let mut tried = 0;
    for directory in ["config/examples", "config/rules"] {
        for entry in fs::read_dir(project(directory)).unwrap() {
            for document in documents(&fs::read_to_string(entry.unwrap().path()).unwrap()) {
                let changed = mutations(&document);
                tried += changed.len();
                differences.extend(changed.iter().filter_map(|changed| difference(&validator, changed)));
            }
        }
    }
    differences.truncate(20);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(tried > 1_000, "{tried}");
}

/// A document that has what each level needs, and at this level also the key.
fn document_with(level: Level, key: &str, value: &Value) -> Value {
    let put = |mut map: Value| {
        map.as_object_mut().unwrap().insert(key.to_owned(), value.clone());
        map
    };
    let at = |here: Level, map: Value| if here == level { put(map) } else { map };
    let limit = json!({"unit": "minute", "requests_per_unit": 5});
    let rate_limit = match (level, key) {
        (Level::TierSource, _) => json!({"tier": put(json!({}))}),
        (Level::RateLimit, "use") => put(json!({"tier": {"entry": "tier"}})),
        (Level::RateLimit, "tier") => put(json!({})),
        (Level::RateLimit, "window" | "requests") => put(json!({"window": "30s", "requests": 5})),
        (Level::Replaces, _) => json!({"unit": "minute", "requests_per_unit": 5, "replaces": [put(json!({}))]}),
        _ => at(Level::RateLimit, limit.clone()),
    };
    let item = match (level, key) {
        (Level::Limit, "window" | "requests") => put(json!({"window": "30s", "requests": 5})),
        (Level::Limit, _) => put(limit),
        _ => json!("5/minute"),
    };
    let value = if level == Level::Value { put(json!({})) } else { json!("v") };
    let quota = if level == Level::Quota { put(json!({"daily": 5, "monthly": 5})) } else { json!({"daily": 5}) };
    let step = at(Level::Step, json!({"descriptors": [{"k": "v"}], "expect": "ok"}));
    let limited = if level == Level::Limit {
        json!({"key": "k", "limits": [item]})
    } else {
        json!({"key": "k", "value": value, "rate_limit": rate_limit})
    };
    at(
        Level::Document,
        json!({
            "domain": "d",
            "defaults": at(Level::Defaults, json!({})),
            "response": at(Level::Response, json!({})),
            "addresses": {"remote_address": at(Level::Address, json!({}))},
            "tiers": {"free": at(Level::Tier, json!({"limits": ["5/minute"]}))},
            "default_tier": "free",
            "priority": at(Level::Priority, json!({"entry": "priority"})),
            "tests": [at(Level::Test, json!({"steps": [step]}))],
            "descriptors": [at(Level::Descriptor, limited), {"key": "q", "quota": quota}],
        }),
    )
}

fn all_fields() -> impl Iterator<Item = (Level, &'static Field)> {
    Level::ALL.into_iter().flat_map(|level| fields(level).iter().map(move |field| (level, field)))
}

#[test]
fn every_key_is_read_by_the_loader() {
    let validator = validator();
    for (level, field) in all_fields() {
        // Nothing takes a list of lists of lists.
        let document = document_with(level, field.name, &json!([[[]]]));
        let said = problems(&document);
        assert!(said.iter().any(|message| is_structural(message)), "{level:?} {}: {said:?}", field.name);
        assert!(!complaints(&validator, &document).is_empty(), "{level:?} {}", field.name);
        let unknown = document_with(level, &format!("{}_x", field.name), &json!(1));
        assert!(!problems(&unknown).is_empty() && !complaints(&validator, &unknown).is_empty(), "{level:?} {}_x", field.name);
    }
}

#[test]
fn beside_limits_a_rate_limit_has_a_limit_or_names_alone() {
    let validator = validator();
    let names = json!({"name": "n", "replaces": []});
    let check = |rate_limit: &Value, is_good: bool| {
        let document = json!({"domain": "d", "descriptors": [{"key": "k", "limits": ["5/minute"], "rate_limit": rate_limit}]});
        let problems = problems(&document);
        assert_eq!((problems.is_empty(), validator.is_valid(&document)), (is_good, is_good), "{rate_limit}: {problems:?}");
    };
    check(&names, true);
    let limit = [
        ("algorithm", json!("leaky_bucket")),
        ("burst", json!(9)),
        ("max_wait", json!("1s")),
        ("block_for", json!("1m")),
        ("charge", json!("always")),
        ("unlimited", json!(false)),
    ];
    assert!(fields(Level::Limit).iter().all(|field| {
        ["unit", "requests_per_unit", "window", "requests"].contains(&field.name) || limit.iter().any(|(key, _)| *key == field.name)
    }));
    for (key, value) in limit {
        let with = |value: &Value, mut rate_limit: Value| {
            rate_limit[key] = value.clone();
            rate_limit
        };
        check(&with(&value, names.clone()), false);
        check(&with(&Value::Null, names.clone()), true);
        let own = json!({"algorithm": "leaky_bucket", "unit": "hour", "requests_per_unit": 5});
        check(&with(&value, own), true);
    }
}

/// A domain as the loader understands it, if it does.
fn meaning(document: &Value) -> Option<String> {
    let loaded = load_texts(&[("a.yaml", &document.to_string())], &LoadOptions::default(), &RuleSet::default());
    let domain = loaded.rules.domains.values().next()?;
    let settings = (&domain.response, &domain.addresses, &domain.plans, domain.on_store_failure);
    Some(format!("{:?} {settings:?} {:?}", domain.rules, loaded.tests))
}

#[test]
fn a_default_written_out_means_what_leaving_it_out_means() {
    let (mut seen, without) = (0, |mut document: Value, level: Level, name: &str| {
        if level == Level::Document {
            document.as_object_mut().unwrap_or(&mut Map::new()).remove(name);
        }
        document
    });
    for (level, field) in all_fields() {
        let Some(default) = field.default else { continue };
        let value = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
        let written = document_with(level, field.name, &value);
        // Null is as good as absent.
        let absent = without(document_with(level, field.name, &Value::Null), level, field.name);
        assert!(meaning(&written).is_some(), "{level:?} {}: {:?}", field.name, problems(&written));
        assert_eq!(meaning(&written), meaning(&absent), "{level:?} {}: {default}", field.name);
        seen += 1;
    }
    assert!(seen > 20);
}

#[test]
fn what_is_required_is_required() {
    for (level, field) in all_fields().filter(|(_, field)| field.presence != Presence::Optional) {
        let null = document_with(level, field.name, &Value::Null);
        assert!(!problems(&null).is_empty(), "{level:?} {}", field.name);
    }
}

#[test]
fn short_forms_and_durations_read_as_the_loader_reads_them() {
    let validator = validator();
    let good = [
        "100/minute",
        "10 per 30s",
        "10/second;100/minute;1000/hour",
        "unlimited",
        " 5 / 1h30m ",
        "1_000/HOUR",
        "0/day",
        "-1",
        "1e6/day",
        "1.5e3/day",
        "0x10/day",
    ];
    let bad =
        ["", "100", "100/", "/minute", "100/fortnight", "1.5/minute", "010/minute", "5 a minute", "5/0s", "5/minute;", "5per30s"];
    for text in good.into_iter().chain(bad) {
        let document = json!({"domain": "d", "descriptors": [{"key": "k", "limits": text}]});
        assert_eq!(problems(&document).is_empty(), good.contains(&text), "{text}");
        assert_eq!(validator.is_valid(&document), good.contains(&text), "{text}");
    }
    for (text, is_good) in [
        ("250ms", true),
        ("1h30m", true),
        ("0h1s", true),
        ("0s", false),
        ("1.5h", false),
        ("30", false),
        ("s", false),
        ("-1s", false),
    ] {
        let document = json!({"domain": "d", "descriptors": [{"key": "k", "block_for": text, "limits": "1/second"}]});
        assert_eq!((problems(&document).is_empty(), validator.is_valid(&document)), (is_good, is_good), "{text}");
    }
}
