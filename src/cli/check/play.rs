//! Plays a test of the rules against counters of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{RuleTest, TestStep};
use crate::limit::{Micros, SECOND};
use crate::rules::decision::{self, Code};
use crate::rules::plan::{Moment, PlanSettings, plan};
use crate::rules::request::{Descriptor, Entry, Request};
use crate::rules::{Domain, RuleSet};
use crate::store::Clock;
use crate::store::memory::{DEFAULT_MAX_COUNTERS, MemoryStore};

/// When every test begins: Monday, 1 January 2024, at midnight in UTC.
const BEGINNING: Micros = 1_704_067_200 * SECOND;

/// A test that does not hold.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The step that went otherwise, `file:line`.
    pub(super) source: String,
    pub(super) test: String,
    pub(super) domain: String,
    /// From 1.
    pub(super) step: usize,
    /// Which repetition of the step, from 1, of how many.
    pub(super) turn: u64,
    pub(super) repeat: u64,
    pub(super) expected: String,
    pub(super) found: String,
}

/// Plays a test to the first step that goes otherwise than it says.
pub(super) fn failure(rules: &RuleSet, test: &RuleTest) -> Option<Failure> {
    let domain = rules.domains.get(test.domain.as_bytes())?;
    let now = Arc::new(AtomicU64::new(BEGINNING));
    let store = MemoryStore::new(Clock::Manual(Arc::clone(&now)), DEFAULT_MAX_COUNTERS);
    for (place, step) in test.steps.iter().enumerate() {
        now.store(BEGINNING + step.at, Ordering::Relaxed);
        for turn in 1..=step.repeat {
            if let Some((expected, found)) = difference(domain, &store, step, BEGINNING + step.at) {
                return Some(Failure {
                    source: step.source.clone(),
                    test: test.name.clone(),
                    domain: test.domain.clone(),
                    step: place + 1,
                    turn,
                    repeat: step.repeat,
                    expected,
                    found,
                });
            }
        }
    }
    None
}

/// What a step expects and what it finds, where they differ.
fn difference(domain: &Domain, store: &MemoryStore, step: &TestStep, now: Micros) -> Option<(String, String)> {
    let descriptors = step.descriptors.iter().map(|entries| Descriptor {
        entries: entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() }).collect(),
        ..Descriptor::default()
    });
    let request = Request { domain: domain.name.as_bytes(), descriptors: descriptors.collect(), hits_addend: step.hits };
    let expected = words(step.expect, step.limited_by.as_deref());
    let plan = match plan(domain, &request, PlanSettings::default(), Moment { now, patience: None }, &()) {
        Ok(plan) => plan,
        Err(error) => return Some((expected, error.to_string())),
    };
    let outcomes = match store.decide(&plan.group) {
        Ok(outcomes) => outcomes,
        Err(error) => return Some((expected, error.to_string())),
    };
    let decision = decision::decide(domain, &plan, &outcomes, false);
    let rule = decision.limited_by.and_then(|place| decision.statuses[place].rule).map(|rule| domain.rule(rule).label());
    let is_as_expected = decision.code == step.expect && (step.limited_by.is_none() || step.limited_by.as_deref() == rule);
    (!is_as_expected).then(|| (expected, words(decision.code, rule)))
}

fn words(code: Code, rule: Option<&str>) -> String {
    match (code, rule) {
        (Code::Ok, _) => "ok".to_owned(),
        (Code::OverLimit, Some(rule)) => format!("over_limit by `{rule}`"),
        (Code::OverLimit, None) => "over_limit".to_owned(),
    }
}
