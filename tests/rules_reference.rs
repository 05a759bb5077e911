//! `docs/rules.md` and the examples in `config` say what the code does.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use weir::config::keys::Level;
use weir::config::language::{Presence, fields};
use weir::config::{LoadOptions, load, load_texts};
use weir::rules::RuleSet;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn heading(level: Level) -> &'static str {
    match level {
        Level::Document => "Document",
        Level::Defaults => "Defaults",
        Level::Response => "Response",
        Level::Address => "Addresses",
        Level::Descriptor => "Descriptor",
        Level::RateLimit => "rate_limit",
        Level::Limit => "limits",
        Level::Replaces => "replaces",
        Level::Value => "Value",
        Level::Quota => "Quota",
        Level::Tier => "Tiers",
        Level::TierSource => "Tier of a rule",
        Level::Priority => "Priority",
        Level::Test => "Tests",
        Level::Step => "Test steps",
    }
}

/// The table below a heading: keys, with what the column `default` says of them.
fn documented(page: &str, heading: &str) -> BTreeMap<String, Option<String>> {
    let section = page.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
    let section: Vec<&str> = section.take_while(|line| !line.starts_with("## ")).collect();
    let has_defaults = section.contains(&"| key | type | default | meaning |");
    let cells = section.into_iter().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect::<Vec<_>>());
    let row = |cells: Vec<&str>| (cells[0].trim_matches(['|', ' ', '`']).to_owned(), has_defaults.then(|| cells[2].to_owned()));
    cells.map(row).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let page = fs::read_to_string(project("docs/rules.md")).unwrap();
    for level in Level::ALL {
        let documented = documented(&page, heading(level));
        let known: BTreeSet<&str> = fields(level).iter().map(|field| field.name).collect();
        assert_eq!(documented.keys().map(String::as_str).collect::<BTreeSet<_>>(), known, "{}", heading(level));
        for field in fields(level) {
            let Some(default) = &documented[field.name] else { continue };
            let place = format!("{} in {}", field.name, heading(level));
            assert_eq!(default == "required", field.presence == Presence::Required, "{place}");
            let written = default
                .strip_prefix('`')
                .and_then(|rest| rest.strip_suffix('`'))
                .or(default.parse::<u64>().ok().and(Some(default)));
            assert!(written.is_none() || written == field.default, "{place}: {default}");
        }
    }
}

#[test]
fn the_rules_on_the_page_load() {
    let page = fs::read_to_string(project("docs/rules.md")).unwrap();
    let blocks: Vec<&str> = page.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        let loaded = load_texts(&[("rules.md", block)], &LoadOptions::default(), &RuleSet::default());
        assert!(loaded.problems.is_empty() && loaded.warnings.is_empty(), "{}{}", loaded.problems, loaded.warnings);
    }
}

#[test]
fn the_files_to_copy_load_without_a_word() {
    for directory in ["config/rules", "config/examples"] {
        let loaded = load(&project(directory), &LoadOptions::default(), &RuleSet::default());
        assert!(loaded.problems.is_empty() && loaded.warnings.is_empty(), "{}{}", loaded.problems, loaded.warnings);
        assert!(loaded.rules.rule_count() >= 5, "{directory}");
    }
}
