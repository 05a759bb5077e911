//! Text → [`RuleSet`]: what operators write, checked and compiled.
//!
//! [`load`] reads a file or a directory; [`watch`] does so again whenever it changes. `raw` turns YAML into nodes with their
//! places, `parse` and `descriptor` turn nodes into domains and tell all problems of all files at once. A reload never takes
//! limits away by accident: what is bad, torn or gone keeps its previous rules, domain by domain.

mod addresses;
mod changes;
mod descriptor;
mod fields;
mod files;
pub mod keys;
pub mod language;
mod limits;
mod metadata;
mod parse;
mod pattern;
mod plans;
pub mod problem;
pub(crate) mod raw;
mod reach;
mod rule_tests;
pub mod schema;
mod short;
mod tiers;
pub mod watch;
mod writing;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

pub use changes::Changes;
pub(crate) use fields::parse_duration;
pub use files::Fingerprint;
use files::SourceFile;
pub use problem::{Problem, Problems, Severity};

pub use rule_tests::{RuleTest, TestStep};
pub use short::parse_short;

use crate::rules::{Domain, Rule, RuleSet};
use parse::Compiled;

/// What the settings say about loading.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// Several documents may add to one domain (`MERGE_DOMAIN_CONFIG`).
    pub merge_domains: bool,
    /// What the keys of all counters begin with (`CACHE_KEY_PREFIX`).
    pub key_prefix: String,
}

/// What came of reading the rules.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The rules to put in force. Revision 0, without domains: there are none that could be, so nothing can be decided.
    pub rules: RuleSet,
    /// What is wrong. At the start, any problem leaves no rules in force; later, those of the domains concerned stay.
    pub problems: Problems,
    pub warnings: Problems,
    /// Domains whose rules are those of before, because their files are bad or gone.
    pub kept: Vec<String>,
    /// Against the rules of before.
    pub changes: Changes,
    /// The documents' own tests.
    pub tests: Vec<RuleTest>,
    /// Of the files as they were read.
    pub fingerprint: Fingerprint,
}

/// Reads and compiles a file, or the `*.yaml` and `*.yml` of a directory. `previous` are the rules in force; with revision 0
/// this is a start, and all must be well.
pub fn load(path: &Path, options: &LoadOptions, previous: &RuleSet) -> Loaded {
    compile(files::find(path), path, options, previous)
}

/// As [`load`], for rules at hand as text: (file name, text) pairs.
pub fn load_texts(texts: &[(&str, &str)], options: &LoadOptions, previous: &RuleSet) -> Loaded {
    let sources = texts.iter().map(|(name, text)| SourceFile { name: (*name).to_owned(), text: (*text).to_owned() });
    compile(files::Found::of(sources.collect()), Path::new(""), options, previous)
}

fn compile(found: files::Found, path: &Path, options: &LoadOptions, previous: &RuleSet) -> Loaded {
    let mut compiled = on_deep_stack(|| parse::compile(&found.sources, options));
    compiled.files = found.sources.iter().map(|source| &source.name).chain(&found.unreadable).cloned().collect();
    compiled.unreadable.extend(found.unreadable);
    let (mut warnings, mut problems): (Vec<Problem>, Vec<Problem>) = found
        .problems
        .into_iter()
        .chain(std::mem::take(&mut compiled.problems))
        .partition(|problem| problem.severity == Severity::Warning);
    if found.sources.is_empty() && compiled.unreadable.is_empty() && problems.is_empty() {
        let mut problem = Problem::of_file(Severity::Error, path.display().to_string(), "there is no *.yaml or *.yml file in it");
        problem.hint("put a file with a `domain` and its `descriptors` there");
        problems.push(problem);
    }
    let mut kept = Vec::new();
    let tests = std::mem::take(&mut compiled.tests);
    let mut rules = if previous.revision == 0 {
        first_rules(compiled, &problems)
    } else {
        next_rules(compiled, previous, &mut kept, &mut warnings)
    };
    let changes = Changes::between(previous, &rules);
    if previous.revision > 0 && changes.is_empty() {
        rules.revision = previous.revision;
    }
    let (problems, warnings) = (Problems::new(problems), Problems::new(warnings));
    Loaded { rules, problems, warnings, kept, changes, tests, fingerprint: found.fingerprint }
}

/// What rules as deep as they may be take many times over; a thread's usual 2 MiB are too few for a build without optimization.
const STACK: usize = 16 << 20;

/// Does it on a thread of its own, or on this one if there is none to be had.
fn on_deep_stack<T: Send>(work: impl Fn() -> T + Sync) -> T {
    std::thread::scope(|scope| match std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, &work) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_) => work(),
    })
}

/// At the start all domains are good, or none is in force: the callers of the bad one would go unlimited.
fn first_rules(compiled: Compiled, problems: &[Problem]) -> RuleSet {
    let mut rules = RuleSet::default();
    if problems.is_empty() {
        rules.revision = 1;
        rules.domains.extend(compiled.domains.into_values().flatten().map(entry));
    }
    rules
}

fn entry(domain: Domain) -> (Box<[u8]>, Arc<Domain>) {
    (domain.name.as_bytes().into(), Arc::new(domain))
}

/// New where it is good, as before where it is bad or gone.
fn next_rules(compiled: Compiled, previous: &RuleSet, kept: &mut Vec<String>, warnings: &mut Vec<Problem>) -> RuleSet {
    let mut rules = RuleSet { revision: previous.revision + 1, ..RuleSet::default() };
    let (good, bad): (Vec<_>, Vec<_>) = compiled.domains.into_iter().partition(|(_, domain)| domain.is_some());
    let bad: HashSet<String> = bad.into_iter().map(|(name, _)| name).collect();
    rules.domains.extend(good.into_iter().filter_map(|(_, domain)| domain).map(entry));
    for (name, before) in &previous.domains {
        let files = files_of(before);
        let unreadable = files.iter().any(|file| compiled.unreadable.contains(*file));
        let gone = |file: &str| !compiled.files.contains(file);
        let vanished = match rules.domains.get(name) {
            Some(_) if unreadable && files.len() > 1 => None,
            Some(now) => match lost_rules(before, now, gone) {
                0 => continue,
                rules => {
                    Some(format!("a file is gone, and with it {rules} rules of domain `{}`; all of its rules stay", before.name))
                }
            },
            None if before.rules.is_empty() => continue,
            None if unreadable || bad.contains(&*before.name) => None,
            None => {
                Some(format!("domain `{}` is in no file any more; its {} rules stay in force", before.name, before.rules.len()))
            }
        };
        if let Some(message) = vanished {
            let mut problem = Problem::of_file(Severity::Warning, &*before.file, message);
            problem
                .hint(format!("to remove them on purpose, write a document with `domain: {}` and `descriptors: []`", before.name));
            warnings.push(problem);
        }
        kept.push(before.name.to_string());
        rules.domains.insert(name.clone(), before.clone());
    }
    kept.sort();
    rules
}

/// Rules that went with a file that is gone, of a domain that other files still describe.
fn lost_rules(before: &Domain, now: &Domain, gone: impl Fn(&str) -> bool) -> usize {
    let lost: Vec<&Rule> = before.rules.iter().filter(|rule| gone(file_of(rule))).collect();
    if lost.is_empty() || now.rules.is_empty() || files_of(before).len() == 1 {
        return 0;
    }
    let paths: HashSet<&str> = now.rules.iter().map(|rule| &*rule.path).collect();
    lost.iter().filter(|rule| !paths.contains(&*rule.path)).count()
}

fn file_of(rule: &Rule) -> &str {
    rule.source.rsplit_once(':').map_or("", |(file, _)| file)
}

/// The files that a domain was made of.
fn files_of(domain: &Domain) -> BTreeSet<&str> {
    domain.rules.iter().map(file_of).chain([&*domain.file]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(text: &str) -> Loaded {
        load_texts(&[("a.yaml", text)], &LoadOptions::default(), &RuleSet::default())
    }

    #[test]
    fn a_rule_has_its_names_and_limits() {
        let loaded = first(
            "domain: api\ndescriptors:\n  - key: path\n    value: /ai\n    descriptors:\n      - key: user\n        name: ai\n        \
             limits: [2/second, {window: 1h, requests: 10, algorithm: token_bucket, burst: +5}]\n        block_for: 15m\n",
        );
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        let rule = &loaded.rules.domains[&b"api"[..]].rules[0];
        assert_eq!((rule.label(), &*rule.path, &*rule.layer, &*rule.source), ("ai", "path=/ai,user", "path,user", "a.yaml:6"));
        let policies: Vec<&str> = rule.limits.iter().map(|limit| &*limit.policy).collect();
        assert_eq!(policies, ["ai/2-per-1s", "ai/10-per-1h"]);
        assert_eq!(rule.limits[1].limit.burst(), 15);
        assert!(rule.block.is_some());
    }

    #[test]
    fn rules_are_as_deep_as_there_is_room_for_and_no_deeper() {
        let nested = |levels: usize| {
            let opened = "{key: k, descriptors: [".repeat(levels - 1);
            let rule = "{key: k, rate_limit: {unit: second, requests_per_unit: 1}}";
            first(&format!("domain: d\ndescriptors: [{opened}{rule}{}]\n", "]}".repeat(levels - 1)))
        };
        assert_eq!(nested(63).rules.rule_count(), 1);
        let problems = nested(64).problems;
        let problem = problems.iter().next().unwrap();
        assert_eq!(problem.message, "lists and maps stand inside each other more than 128 deep");
        assert_eq!(problem.hint.as_deref(), Some("there is room for 63 levels of `descriptors`"));
    }

    #[test]
    fn a_start_with_a_problem_has_no_rules() {
        let good = "domain: a\ndescriptors: []\n";
        let loaded = load_texts(&[("a.yaml", good), ("b.yaml", "domain: b\n")], &LoadOptions::default(), &RuleSet::default());
        assert_eq!((loaded.rules.revision, loaded.rules.domains.len(), loaded.problems.len()), (0, 0, 1));
    }
}
