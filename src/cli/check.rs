//! `weir check`: all problems of the rules, then their own `tests`, played on a clock set by hand with counters in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::bail;
use clap::Args;

use crate::config::{RuleTest, TestStep, load};
use crate::limit::{Micros, SECOND};
use crate::rules::decision::{self, Code};
use crate::rules::plan::{Moment, PlanSettings, plan};
use crate::rules::request::{Descriptor, Entry, Request};
use crate::rules::{Domain, RuleSet};
use crate::settings::{Given, load_options};
use crate::store::Clock;
use crate::store::memory::{DEFAULT_MAX_COUNTERS, MemoryStore};

/// When every test begins: Monday, 1 January 2024, at midnight in UTC.
const BEGINNING: Micros = 1_704_067_200 * SECOND;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A rules file, or a directory of them.
    #[arg(default_value = "config/rules")]
    rules: PathBuf,
    /// Several documents may add to one domain; so they may where the setting of a server says so (MERGE_DOMAIN_CONFIG).
    #[arg(long)]
    merge_domains: bool,
}

/// Prints what is wrong.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let flags = args.merge_domains.then(|| ("merge_domain_config", true.to_string()));
    let options = load_options(&Given::of(flags), &|variable| std::env::var_os(variable))?;
    let loaded = load(&args.rules, &options, &RuleSet::default());
    for problem in loaded.warnings.iter().chain(loaded.problems.iter()) {
        println!("{problem}\n");
    }
    if !loaded.problems.is_empty() {
        bail!("{} problems", loaded.problems.len());
    }
    let failures: Vec<String> = loaded.tests.iter().filter_map(|test| failure(&loaded.rules, test)).collect();
    for failure in &failures {
        println!("{failure}\n");
    }
    let (rules, tests) = (loaded.rules.rule_count(), loaded.tests.len());
    if !failures.is_empty() {
        bail!("{} of {tests} tests failed", failures.len());
    }
    println!("{rules} rules, {tests} tests: all is well");
    Ok(())
}

/// Plays a test; what went otherwise than it says.
fn failure(rules: &RuleSet, test: &RuleTest) -> Option<String> {
    let domain = rules.domains.get(test.domain.as_bytes())?;
    let now = Arc::new(AtomicU64::new(BEGINNING));
    let store = MemoryStore::new(Clock::Manual(Arc::clone(&now)), DEFAULT_MAX_COUNTERS);
    for (number, step) in test.steps.iter().enumerate() {
        now.store(BEGINNING + step.at, Ordering::Relaxed);
        for turn in 1..=step.repeat {
            if let Some(found) = difference(domain, &store, step, BEGINNING + step.at) {
                let turn = if step.repeat > 1 { format!(", time {turn} of {}", step.repeat) } else { String::new() };
                return Some(format!(
                    "{}: test failed: {}\n  in domain {}, step {}{turn}\n  {found}",
                    step.source,
                    test.name,
                    test.domain,
                    number + 1
                ));
            }
        }
    }
    None
}

fn difference(domain: &Domain, store: &MemoryStore, step: &TestStep, now: Micros) -> Option<String> {
    let descriptors = step.descriptors.iter().map(|entries| Descriptor {
        entries: entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect(),
        ..Descriptor::default()
    });
    let request = Request { domain: domain.name.as_bytes(), descriptors: descriptors.collect(), hits_addend: step.hits };
    let plan = match plan(domain, &request, PlanSettings::default(), Moment { now, patience: None }, &()) {
        Ok(plan) => plan,
        Err(error) => return Some(error.to_string()),
    };
    let outcomes = match store.decide(&plan.group) {
        Ok(outcomes) => outcomes,
        Err(error) => return Some(error.to_string()),
    };
    let decision = decision::decide(domain, &plan, &outcomes, false);
    let rule = decision.limited_by.and_then(|place| decision.statuses[place].rule).map(|rule| domain.rule(rule).label());
    let said = match (decision.code, rule) {
        (Code::Ok, _) => "ok".to_owned(),
        (Code::OverLimit, Some(rule)) => format!("over_limit by `{rule}`"),
        (Code::OverLimit, None) => "over_limit".to_owned(),
    };
    let expected = match (step.expect, &step.limited_by) {
        (Code::Ok, _) => "ok".to_owned(),
        (Code::OverLimit, Some(rule)) => format!("over_limit by `{rule}`"),
        (Code::OverLimit, None) => "over_limit".to_owned(),
    };
    let is_as_expected = decision.code == step.expect && (step.limited_by.is_none() || step.limited_by.as_deref() == rule);
    (!is_as_expected).then(|| format!("expected {expected}, found {said}"))
}
