//! Text → [`RuleSet`]: what operators write, checked and compiled.
//!
//! [`load`] reads a file or a directory; [`watch`] does so again whenever it changes. `raw` turns YAML into nodes with their
//! places, `parse` and `descriptor` turn nodes into domains and report all problems of all files at once. `reload` decides which
//! rules are in force then: a bad or torn file keeps the previous rules of its domains.

mod addresses;
mod changes;
mod descriptor;
mod fields;
mod files;
mod foreign;
pub mod keys;
pub mod language;
mod limits;
mod metadata;
mod names;
mod parse;
mod pattern;
mod plans;
pub mod problem;
pub(crate) mod raw;
mod reach;
pub mod reading;
mod reload;
mod rule_tests;
pub mod schema;
mod short;
mod tiers;
pub mod watch;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use changes::Changes;
pub(crate) use fields::parse_duration;
pub use files::Fingerprint;
pub use files::{MAX_FILE_BYTES, SourceFile, Unread};
pub use problem::{Problem, Problems, Severity};
pub use reload::Removed;

pub use rule_tests::{RuleTest, TestStep};
pub use short::parse_short;

use crate::rules::{Domain, RuleSet};
use parse::Compiled;
use reload::{Absences, Outcome, Reading};

/// What the settings say about loading.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// Several documents may add to one domain (`MERGE_DOMAIN_CONFIG`).
    pub merge_domains: bool,
    /// Warnings are errors (`STRICT`).
    pub strict: bool,
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
    /// Domains, and parts of domains, that two readings did not find any more.
    pub removed: Vec<Removed>,
    /// When to read the files again although they do not change, as [`Reading::at`]: something may then have to be removed.
    pub(crate) read_again: Option<Duration>,
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
    load_timed(path, options, previous, &reading::ReadingClock::default())
}

/// As [`load`]; `clock` runs while files are read.
pub fn load_timed(path: &Path, options: &LoadOptions, previous: &RuleSet, clock: &reading::ReadingClock) -> Loaded {
    let under_way = clock.begin();
    let found = files::find(path);
    drop(under_way);
    compile(found, path, options, previous, &mut Absences::default(), ONCE)
}

/// As [`load`] at a start, for several files and directories at once; problems call the files by these paths. `text` is one more
/// file, whose text is at hand.
pub fn load_all(paths: &[PathBuf], text: Option<Result<SourceFile, Unread>>, options: &LoadOptions) -> Loaded {
    let path = paths.first().map_or(Path::new(""), PathBuf::as_path);
    compile(files::find_all(paths, text), path, options, &RuleSet::default(), &mut Absences::default(), ONCE)
}

/// As [`load`], for rules at hand as text: (file name, text) pairs.
pub fn load_texts(texts: &[(&str, &str)], options: &LoadOptions, previous: &RuleSet) -> Loaded {
    let sources = texts.iter().map(|(name, text)| SourceFile::new(*name, *text));
    compile(files::Found::of(sources.collect()), Path::new(""), options, previous, &mut Absences::default(), ONCE)
}

/// A reading by itself: it removes nothing.
const ONCE: Reading = Reading { at: Duration::ZERO, grace: reload::GRACE };

fn compile(
    found: files::Found,
    path: &Path,
    options: &LoadOptions,
    previous: &RuleSet,
    absences: &mut Absences,
    reading: Reading,
) -> Loaded {
    let mut compiled = on_deep_stack(|| parse::compile(&found.sources, options));
    compiled.unreadable.extend(found.unreadable);
    let (mut warnings, mut problems): (Vec<Problem>, Vec<Problem>) = found
        .problems
        .into_iter()
        .chain(std::mem::take(&mut compiled.problems))
        .map(|problem| if options.strict { Problem { severity: Severity::Error, ..problem } } else { problem })
        .partition(|problem| problem.severity == Severity::Warning);
    if found.sources.is_empty() && compiled.unreadable.is_empty() && problems.is_empty() {
        let mut problem = Problem::of_file(Severity::Error, path.display().to_string(), "there is no *.yaml or *.yml file in it");
        problem.hint(files::NAME_RULES);
        problems.push(problem);
    }
    let tests = std::mem::take(&mut compiled.tests);
    let Outcome { mut rules, kept, removed, warnings: more, read_again } = if previous.revision == 0 {
        first_rules(compiled, &problems)
    } else {
        let is_good = problems.is_empty() && compiled.unfinished.is_empty();
        reload::next_rules(compiled, previous, is_good, absences, reading)
    };
    warnings.extend(more);
    let changes = Changes::between(previous, &rules);
    if previous.revision > 0 && changes.is_empty() {
        rules.revision = previous.revision;
    }
    let (problems, warnings) = (Problems::new(problems), Problems::new(warnings));
    Loaded { rules, problems, warnings, kept, removed, read_again, changes, tests, fingerprint: found.fingerprint }
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
fn first_rules(compiled: Compiled, problems: &[Problem]) -> Outcome {
    let mut rules = RuleSet::default();
    if problems.is_empty() {
        rules.revision = 1;
        rules.domains.extend(compiled.domains.into_values().flatten().map(entry));
    }
    Outcome { rules, kept: Vec::new(), removed: Vec::new(), warnings: Vec::new(), read_again: None }
}

fn entry(domain: Domain) -> (Box<[u8]>, Arc<Domain>) {
    (domain.name.as_bytes().into(), Arc::new(domain))
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
        let loaded = load_texts(
            &[("a.yaml", good), ("b.yaml", "domain: b\ndescriptors: x\n")],
            &LoadOptions::default(),
            &RuleSet::default(),
        );
        assert_eq!((loaded.rules.revision, loaded.rules.domains.len(), loaded.problems.len()), (0, 0, 1));
    }
}
