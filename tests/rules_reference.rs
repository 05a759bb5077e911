//! `docs/rules.md` and the examples in `config` say what the code does.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use weir::config::keys::{KEYS, Level};
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

/// The first cells of the table below a heading.
fn documented(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
    let rows = section.take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once('`')).map(|(key, _)| key.to_owned()).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let page = fs::read_to_string(project("docs/rules.md")).unwrap();
    for (level, keys) in KEYS {
        let known: BTreeSet<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(documented(&page, heading(level)), known, "{}", heading(level));
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
