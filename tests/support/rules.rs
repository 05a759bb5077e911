//! Rules and requests made by hand, for tests below the rule files.

#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use weir::limit::{Algorithm, Limit, Micros, SECOND};
use weir::rules::address::Addresses;
use weir::rules::decision::{self, Code, Decision};
use weir::rules::key::{self, domain_prefix};
use weir::rules::plan::{Kind, Moment, Plan, PlanSettings, plan};
use weir::rules::request::{Descriptor, Entry, LimitOverride, Request};
use weir::rules::subject::SubjectRecord;
use weir::rules::tier::Plans;
use weir::rules::tree::{Matcher, Node, Pattern};
use weir::rules::{Block, Domain, OnStoreFailure, ResponseOptions, Rule, RuleId, RuleLimit};
use weir::store::Clock;
use weir::store::memory::MemoryStore;
use weir::store::records::{Record, RecordName, RecordView};

/// The time at which trials stand still: the first second of 2026.
pub const NOW: Micros = 1_767_225_600 * SECOND;

/// A rule that says nothing yet.
pub fn rule() -> Rule {
    Rule {
        name: None,
        path: "rule".into(),
        layer: "rule".into(),
        limits: Vec::new(),
        block: None,
        tiers: None,
        reserve: false,
        unlimited: false,
        allow: false,
        deny: false,
        shadow: false,
        quota: false,
        replaces: Vec::new(),
        on_store_failure: OnStoreFailure::Error,
        metadata: None,
        source: "test.yaml:1".into(),
    }
}

pub fn limit(algorithm: Algorithm, requests: u64, window: Micros) -> RuleLimit {
    RuleLimit::new(Limit::new(algorithm, requests, window, None).expect("a limit"), "policy")
}

/// A rule of one fixed window.
pub fn fixed(requests: u64, window: Micros) -> Rule {
    Rule { limits: vec![limit(Algorithm::FixedWindow, requests, window)], ..rule() }
}

pub fn named(name: &str, rule: Rule) -> Rule {
    Rule { name: Some(name.into()), ..rule }
}

pub fn blocking(block_for: Micros, rule: Rule) -> Rule {
    Rule { block: Some(Block::new(Limit::penalty(block_for).expect("a block"))), ..rule }
}

/// A rule that stands in for others.
pub fn replacing(names: &[&str], rule: Rule) -> Rule {
    Rule { replaces: names.iter().map(|&name| name.into()).collect(), ..rule }
}

/// A path's rules; of an entry, the value `""` is the key alone and an asterisk makes a pattern, shared if it ends in `~`.
pub fn domain(rules: &[(&[(&str, &str)], Rule)]) -> Domain {
    let mut tree = Node::default();
    for (place, (path, _)) in rules.iter().enumerate() {
        let mut node = &mut tree;
        for (key, value) in *path {
            node = node.child(key, matcher(value)).0;
        }
        node.rule = Some(RuleId(u32::try_from(place).expect("few rules")));
    }
    tree.seal().expect("the patterns compile");
    Domain {
        name: "d".into(),
        file: "test.yaml".into(),
        files: vec!["test.yaml".into()],
        key_prefix: domain_prefix("", b"d"),
        subject: Vec::new(),
        addresses: Addresses::default(),
        response: ResponseOptions::default(),
        tree,
        rules: rules.iter().map(|(_, rule)| rule.clone()).collect(),
        on_store_failure: OnStoreFailure::Error,
        plans: Plans::default(),
    }
}

fn matcher(value: &str) -> Matcher {
    match value.strip_suffix('~').unwrap_or(value) {
        "" => Matcher::Any,
        text if text.contains('*') => {
            Matcher::Pattern { pattern: Pattern::wildcard(text), text: text.as_bytes().into(), shared: value.ends_with('~') }
        }
        text => Matcher::Exact(text.as_bytes().into()),
    }
}

pub fn descriptor<'a>(entries: &[(&'a str, &'a str)]) -> Descriptor<'a> {
    let entries = entries.iter().map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() });
    Descriptor { entries: entries.collect(), ..Descriptor::default() }
}

pub fn request<'a>(descriptors: impl IntoIterator<Item = Descriptor<'a>>) -> Request<'a> {
    Request { domain: b"d", descriptors: descriptors.into_iter().collect(), hits_addend: 0 }
}

pub fn hits(hits: u64, descriptor: Descriptor<'_>) -> Descriptor<'_> {
    Descriptor { hits: Some(hits), ..descriptor }
}

/// With a limit of its own.
pub fn overridden(requests_per_unit: u32, unit: i32, descriptor: Descriptor<'_>) -> Descriptor<'_> {
    Descriptor { limit: Some(LimitOverride { requests_per_unit, unit, unit_multiplier: None }), ..descriptor }
}

pub fn kinds(plan: &Plan) -> Vec<Kind> {
    plan.descriptors.iter().map(|planned| planned.kind).collect()
}

/// Rules with counters, at a time that stands still.
pub struct Trial {
    pub domain: Domain,
    pub settings: PlanSettings,
    pub store: MemoryStore,
    pub records: RecordView,
}

impl Trial {
    pub fn new(rules: &[(&[(&str, &str)], Rule)]) -> Trial {
        let clock = Clock::Manual(Arc::new(AtomicU64::new(NOW)));
        let store = MemoryStore::new(clock, 10_000);
        Trial { domain: domain(rules), settings: PlanSettings::default(), store, records: RecordView::default() }
    }

    /// What is known of a subject, `key=value`, from now on.
    pub fn record(&self, subject: &str, record: SubjectRecord) {
        let subject = key::subject_named(subject).expect("a subject").as_slice().into();
        let name = RecordName::Subject { domain: self.domain.name.clone(), subject };
        self.records.apply(vec![(name, Some(Record::Subject(record)))]);
    }

    pub fn plan(&self, request: &Request<'_>) -> Plan {
        let moment = Moment { now: self.store.clock().now(), patience: None };
        plan(&self.domain, request, self.settings, moment, &self.records).expect("a request that can be planned")
    }

    pub fn ask(&self, request: &Request<'_>) -> Decision {
        let plan = self.plan(request);
        let outcomes = self.store.decide(&plan.group).expect("there is room");
        decision::decide(&self.domain, &plan, &outcomes, self.settings.shadow)
    }

    /// The codes of descriptors, and what remains of each.
    pub fn statuses(&self, request: &Request<'_>) -> Vec<(Code, Option<u64>)> {
        let decision = self.ask(request);
        decision.statuses.iter().map(|status| (status.code, status.outcome().map(|outcome| outcome.remaining()))).collect()
    }

    pub fn code(&self, request: &Request<'_>) -> Code {
        self.ask(request).code
    }
}
