//! Which rules are in force after a reading of the files: the new ones of a good document, the previous ones where a file is bad
//! or torn, and none of a domain that two readings no longer had.
//!
//! Pure: the time of a reading is given. Files come and go one by one while they are renamed or copied, so the first reading that
//! misses a domain keeps it, and a second one, a while later, removes it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::changes::same_settings;
use super::parse::Compiled;
use super::problem::{Problem, Severity, counted};
use crate::rules::{Domain, Rule, RuleSet};

/// The least time between the first reading that misses a domain and the one that removes it, unless a test has less patience.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// When the files are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Since any moment that all readings have in common.
    pub(crate) at: Duration,
    /// As [`GRACE`].
    pub(crate) grace: Duration,
}

/// Parts of domains (a domain's documents in one file) that the latest readings did not have, by domain and file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Absences(HashMap<(Box<str>, Box<str>), Absence>);

/// What the first good reading without a part found.
#[derive(Clone, Debug)]
struct Absence {
    since: Duration,
    /// The domains that the file had instead.
    replaced_by: Vec<String>,
}

/// A domain that is gone from the files, or the part of it that one of them had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub domain: String,
    /// The files that it was in.
    pub files: Vec<String>,
    /// How many rules went.
    pub rules: usize,
    /// Other files still have rules of the domain.
    pub is_part: bool,
    /// The domains that its files have instead.
    pub replaced_by: Vec<String>,
}

/// What a reading comes to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) rules: RuleSet,
    /// Domains that keep their previous rules.
    pub(crate) kept: Vec<String>,
    pub(crate) removed: Vec<Removed>,
    pub(crate) warnings: Vec<Problem>,
    /// When to read the files again although they do not change.
    pub(crate) read_again: Option<Duration>,
}

/// What becomes of a domain that was in force.
enum Fate<'d> {
    /// It is as its documents say now.
    Replaced,
    /// It stays as it was, for a reason that a problem or this warning says.
    Kept(Option<String>),
    /// These files do not have it any more, and had so many rules of it.
    Absent { files: Vec<&'d str>, rules: usize },
}

/// The rules after a reading. `is_good`: every file is good; only such a reading can remove anything.
pub(crate) fn next_rules(
    compiled: Compiled,
    previous: &RuleSet,
    is_good: bool,
    absences: &mut Absences,
    reading: Reading,
) -> Outcome {
    let rules = RuleSet { revision: previous.revision + 1, ..RuleSet::default() };
    let mut outcome = Outcome { rules, kept: Vec::new(), removed: Vec::new(), warnings: Vec::new(), read_again: None };
    let files = Files::of(&compiled);
    let good = compiled.domains.into_values().flatten();
    outcome.rules.domains.extend(good.map(|domain| (domain.name.as_bytes().into(), Arc::new(domain))));
    let before_absences = std::mem::take(absences);
    for (name, before) in &previous.domains {
        let now = outcome.rules.domains.get(name).cloned();
        let warning = match files.fate(before, now.as_deref()) {
            Fate::Replaced => continue,
            Fate::Kept(warning) => {
                // A bad reading does not tell whether the domain is still there.
                absences.carry(&before_absences, before, &files);
                warning
            }
            Fate::Absent { files: lost, rules } => {
                let is_part = now.is_some();
                let found = Absence { since: reading.at, replaced_by: files.new_domains(&lost, previous) };
                let (since, replaced_by) = absences.note(&before_absences, before, &lost, is_good, found);
                match since.map(|since| since + reading.grace) {
                    Some(due) if due <= reading.at => {
                        absences.forget(before);
                        outcome.removed.push(Removed {
                            domain: before.name.to_string(),
                            files: lost.into_iter().map(str::to_owned).collect(),
                            rules,
                            is_part,
                            replaced_by,
                        });
                        continue;
                    }
                    due => {
                        outcome.read_again = [outcome.read_again, due].into_iter().flatten().min();
                        Some(absent(before, &lost, rules, is_part, &replaced_by, due.map(|due| due - reading.at)))
                    }
                }
            }
        };
        outcome.kept.push(before.name.to_string());
        if let Some(message) = warning {
            let mut problem = Problem::of_file(Severity::Warning, &*before.file, message);
            let document = format!("`domain: {}` and `descriptors: []`", before.name);
            problem.hint(format!("to remove a domain at once, write a document with {document}"));
            outcome.warnings.push(problem);
        }
        outcome.rules.domains.insert(name.clone(), before.clone());
    }
    outcome.kept.sort();
    outcome.removed.sort_by(|a, b| a.domain.cmp(&b.domain));
    outcome
}

/// Why a domain that is not there any more stays for now.
fn absent(before: &Domain, lost: &[&str], rules: usize, is_part: bool, replaced_by: &[String], left: Option<Duration>) -> String {
    let (domain, files, count) = (&before.name, lost.join(", "), counted(rules, "rule"));
    let what = match (is_part, replaced_by) {
        (true, _) => format!("{files} no longer has its {count} of domain `{domain}`; weir keeps all rules of the domain"),
        (false, []) => format!("domain `{domain}` is in no file any more; weir keeps its {count}"),
        (false, others) => {
            let others = others.iter().map(|other| format!("`{other}`")).collect::<Vec<_>>().join(", ");
            format!("{files} now has domain {others} in place of `{domain}`; weir keeps the {count} of `{domain}`")
        }
    };
    match left {
        Some(left) => {
            let subject = if is_part { "that part" } else { "the domain" };
            format!("{what} in force, and removes {subject} unless it comes back within {:.0} s", left.as_secs_f64().ceil())
        }
        None => format!("{what} in force until every file is good"),
    }
}

impl Absences {
    /// Takes note of the parts that a reading does not have. Returns since when all of them are gone, if this reading can tell,
    /// and which domains their files had instead.
    fn note(
        &mut self,
        before: &Absences,
        domain: &Domain,
        lost: &[&str],
        is_good: bool,
        found: Absence,
    ) -> (Option<Duration>, Vec<String>) {
        let (mut latest, mut replaced_by) = (None, found.replaced_by.clone());
        for file in lost {
            let part = (domain.name.clone(), Box::from(*file));
            let Some(absence) = before.0.get(&part).or(is_good.then_some(&found)).cloned() else { continue };
            latest = latest.max(Some(absence.since));
            replaced_by.extend(absence.replaced_by.iter().cloned());
            self.0.insert(part, absence);
        }
        replaced_by.sort();
        replaced_by.dedup();
        (latest.filter(|_| is_good), replaced_by)
    }

    /// Keeps what is known of a domain's parts that are still not there.
    fn carry(&mut self, before: &Absences, domain: &Domain, files: &Files) {
        let is_gone = |file: &str| files.parts.get(&*domain.name).is_none_or(|has| !has.contains(file));
        let parts = before.0.iter().filter(|((name, file), _)| *name == domain.name && is_gone(file));
        self.0.extend(parts.map(|(part, absence)| (part.clone(), absence.clone())));
    }

    fn forget(&mut self, domain: &Domain) {
        self.0.retain(|(name, _), _| *name != domain.name);
    }
}

/// What the files have, apart from the rules.
struct Files {
    /// The files with documents of a domain, good or bad.
    parts: HashMap<String, BTreeSet<String>>,
    /// Domains with errors.
    bad: BTreeSet<String>,
    unreadable: BTreeSet<String>,
    /// Domains that look as if a file was not written to its end.
    unfinished: BTreeSet<String>,
}

impl Files {
    fn of(compiled: &Compiled) -> Files {
        let bad = compiled.domains.iter().filter(|(_, domain)| domain.is_none()).map(|(name, _)| name.clone());
        Files {
            parts: compiled.parts.clone(),
            bad: bad.collect(),
            unreadable: compiled.unreadable.iter().cloned().collect(),
            unfinished: compiled.unfinished.iter().cloned().collect(),
        }
    }

    fn fate<'d>(&self, before: &'d Domain, now: Option<&Domain>) -> Fate<'d> {
        let is_unreadable = before.files.iter().any(|file| self.unreadable.contains(&**file));
        let Some(now) = now else {
            let is_bad = is_unreadable || self.bad.contains(&*before.name);
            return match before.rules.len() {
                0 => Fate::Replaced,
                _ if is_bad => Fate::Kept(None),
                rules => Fate::Absent { files: before.files.iter().map(|file| &**file).collect(), rules },
            };
        };
        if is_unreadable && before.files.len() > 1 {
            return Fate::Kept(None);
        }
        if self.unfinished.contains(&*before.name) {
            let lost = lost_rules(before.rules.iter(), now);
            if lost > 0 {
                let rules = counted(before.rules.len(), "rule");
                let message =
                    format!("domain `{}` ends as if its file were not finished; weir keeps its {rules} in force", before.name);
                return Fate::Kept(Some(message));
            }
        }
        let has = self.parts.get(&*before.name);
        let gone: Vec<&str> =
            before.files.iter().map(|file| &**file).filter(|file| has.is_none_or(|has| !has.contains(*file))).collect();
        // A domain of one file has moved to another.
        if before.files.len() == 1 || gone.is_empty() {
            return Fate::Replaced;
        }
        let lost = lost_rules(before.rules.iter().filter(|rule| gone.contains(&file_of(rule))), now);
        // A file without rules has settings of the domain.
        let settings_only = gone.iter().any(|file| before.rules.iter().all(|rule| file_of(rule) != *file));
        if lost == 0 && (!settings_only || same_settings(before, now)) {
            return Fate::Replaced;
        }
        Fate::Absent { files: gone, rules: lost }
    }

    /// The domains that these files have now and did not have before.
    fn new_domains(&self, files: &[&str], previous: &RuleSet) -> Vec<String> {
        let had = |name: &str, file: &str| {
            let domain = previous.domains.get(name.as_bytes());
            domain.is_some_and(|domain| domain.files.iter().any(|had| &**had == file))
        };
        let is_new = |name: &str, has: &BTreeSet<String>| files.iter().any(|file| has.contains(*file) && !had(name, file));
        let mut names: Vec<String> =
            self.parts.iter().filter(|(name, has)| is_new(name, has)).map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }
}

/// How many of the rules are no longer there, by their paths.
fn lost_rules<'r>(rules: impl Iterator<Item = &'r Rule>, now: &Domain) -> usize {
    let paths: BTreeSet<&str> = now.rules.iter().map(|rule| &*rule.path).collect();
    rules.filter(|rule| !paths.contains(&*rule.path)).count()
}

fn file_of(rule: &Rule) -> &str {
    rule.source.rsplit_once(':').map_or("", |(file, _)| file)
}

#[cfg(test)]
mod tests {
    use super::super::files::{Found, SourceFile};
    use super::super::{LoadOptions, Loaded, compile};
    use super::*;
    use std::path::Path;

    /// A server's rules, read again and again.
    #[derive(Default)]
    struct Server {
        options: LoadOptions,
        rules: RuleSet,
        absences: Absences,
    }

    impl Server {
        fn started(files: &[(&str, &str)]) -> Server {
            let mut server = Server::default();
            assert!(server.read(0, files).problems.is_empty());
            server
        }

        fn merging(files: &[(&str, &str)]) -> Server {
            let options = LoadOptions { merge_domains: true, ..LoadOptions::default() };
            let mut server = Server { options, ..Server::default() };
            assert!(server.read(0, files).problems.is_empty());
            server
        }

        /// Reads these files at this second.
        fn read(&mut self, second: u64, files: &[(&str, &str)]) -> Loaded {
            let sources = files.iter().map(|(name, text)| SourceFile::new(*name, *text)).collect();
            let reading = Reading { at: Duration::from_secs(second), grace: GRACE };
            let found = Found::of(sources);
            let loaded = compile(found, Path::new("rules"), &self.options, &self.rules, &mut self.absences, reading);
            self.rules = loaded.rules.clone();
            loaded
        }

        /// How many rules a domain has; `None` for one that is not there.
        fn rules_of(&self, domain: &str) -> Option<usize> {
            self.rules.domains.get(domain.as_bytes()).map(|domain| domain.rules.len())
        }
    }

    const A: (&str, &str) = ("a.yaml", "domain: a\ndescriptors:\n  - {key: x, limits: 1/second}\n");
    const B: (&str, &str) = ("b.yaml", "domain: b\ndescriptors:\n  - {key: x, limits: 1/second}\n");
    const MORE_OF_A: (&str, &str) = ("more.yaml", "domain: a\ndescriptors:\n  - {key: y, limits: 1/second}\n");
    const TORN: (&str, &str) = ("b.yaml", "domain: b\ndescriptors: [\n");

    fn removed(loaded: &Loaded) -> Vec<&str> {
        loaded.removed.iter().map(|removed| &*removed.domain).collect()
    }

    #[test]
    fn the_second_reading_removes_a_domain() {
        let mut server = Server::started(&[A, B]);
        let first = server.read(100, &[B]);
        assert_eq!((server.rules_of("a"), &first.kept[..], removed(&first).len()), (Some(1), &["a".to_owned()][..], 0));
        let warning = first.warnings.iter().next().expect("a warning").message.clone();
        assert_eq!(
            warning,
            "domain `a` is in no file any more; weir keeps its 1 rule in force, and removes the domain unless it comes \
             back within 10 s"
        );
        assert_eq!(first.read_again, Some(Duration::from_secs(110)));
        assert_eq!((removed(&server.read(109, &[B])), server.rules_of("a")), (vec![], Some(1)));
        let second = server.read(110, &[B]);
        assert_eq!((removed(&second), server.rules_of("a"), second.read_again), (vec!["a"], None, None));
        assert_eq!((&second.changes.domains_removed[..], second.removed[0].rules), (&["a".to_owned()][..], 1));
        assert_eq!(removed(&server.read(200, &[B])), Vec::<&str>::new(), "it is removed once");
    }

    #[test]
    fn a_domain_that_comes_back_in_time_was_never_gone() {
        let mut server = Server::started(&[A, B]);
        server.read(100, &[B]);
        assert!(server.read(105, &[A, B]).kept.is_empty());
        assert_eq!((removed(&server.read(111, &[B])), server.rules_of("a")), (vec![], Some(1)), "time counts anew");
        assert_eq!(removed(&server.read(121, &[B])), ["a"]);
    }

    #[test]
    fn only_readings_with_every_file_good_count() {
        let mut server = Server::started(&[A, B]);
        let loaded = server.read(100, &[TORN]);
        assert_eq!((loaded.kept.len(), loaded.read_again), (2, None), "nothing to wait for before a file changes");
        assert_eq!((removed(&server.read(200, &[TORN])), server.rules_of("a")), (vec![], Some(1)));
        server.read(300, &[B]);
        assert_eq!((removed(&server.read(400, &[TORN])), server.rules_of("a")), (vec![], Some(1)));
        assert_eq!(removed(&server.read(401, &[B])), ["a"], "two good readings did not have it");
    }

    #[test]
    fn a_directory_without_a_good_document_keeps_everything() {
        let mut server = Server::started(&[A, B]);
        for (second, files) in [(100, &[][..]), (200, &[]), (300, &[TORN]), (400, &[("c.yaml", "# nothing\n")]), (500, &[])] {
            let loaded = server.read(second, files);
            assert!(loaded.removed.is_empty() && !loaded.problems.is_empty(), "{second}");
        }
        assert_eq!((server.rules_of("a"), server.rules_of("b")), (Some(1), Some(1)));
    }

    #[test]
    fn a_domain_may_move_to_another_file() {
        let mut server = Server::started(&[A, B]);
        let moved = ("c.yaml", A.1);
        assert!(server.read(100, &[moved, B]).kept.is_empty(), "renamed");
        let twice = server.read(101, &[A, B, moved]);
        assert!(twice.kept.contains(&"a".to_owned()) && !twice.problems.is_empty(), "copied, not yet deleted");
        assert!(server.read(102, &[A, B]).kept.is_empty());
        let both = [A.1, B.1].join("---\n");
        server.read(103, &[B]);
        assert!(server.read(104, &[("b.yaml", &both)]).kept.is_empty(), "deleted here, then added there");
        assert_eq!((server.rules_of("a"), server.rules_of("b")), (Some(1), Some(1)));
    }

    #[test]
    fn a_file_with_another_domain_is_named_with_both() {
        let mut server = Server::started(&[A, B]);
        let other = ("a.yaml", "domain: apple\ndescriptors:\n  - {key: x, limits: 1/second}\n");
        let first = server.read(100, &[other, B]);
        let warning = first.warnings.to_string();
        assert!(warning.contains("a.yaml now has domain `apple` in place of `a`"), "{warning}");
        assert_eq!((server.rules_of("a"), server.rules_of("apple")), (Some(1), Some(1)));
        let second = server.read(110, &[other, B]);
        assert_eq!((removed(&second), &second.removed[0].replaced_by[..]), (vec!["a"], &["apple".to_owned()][..]));
    }

    #[test]
    fn no_descriptors_remove_a_domain_at_once() {
        let mut server = Server::started(&[A, B]);
        let loaded = server.read(1, &[("a.yaml", "domain: a\ndescriptors: []\n"), B]);
        assert_eq!((server.rules_of("a"), loaded.kept.len()), (Some(0), 0));
        assert_eq!(loaded.changes.domains_removed, ["a"]);
        assert!(server.read(2, &[B]).kept.is_empty(), "nothing is left to lose");
        assert_eq!(server.rules_of("a"), None);
    }

    #[test]
    fn an_unfinished_document_removes_nothing() {
        for torn in [
            "domain: a\n",
            "domain: a\ndescriptors:\n",
            "domain: a\ndescriptors:\n  - {key: z, limits: 1/second}\n  - key: x\n    rate_limit:\n",
            "domain: a\ndescriptors:\n  - key: x\n    descriptors:\n",
        ] {
            let mut server = Server::started(&[A, B]);
            for second in [100, 200] {
                let loaded = server.read(second, &[("a.yaml", torn)]);
                assert!(loaded.problems.is_empty() && loaded.removed.is_empty(), "{torn}");
                assert_eq!((server.rules_of("a"), server.rules_of("b")), (Some(1), Some(1)), "{torn}");
            }
            let mut fresh = Server::default();
            assert!(
                fresh.read(0, &[("a.yaml", torn)]).problems.is_empty() && fresh.rules_of("a").is_some(),
                "at the start it loads"
            );
        }
    }

    #[test]
    fn a_part_of_a_merged_domain_is_removed_alone() {
        let mut server = Server::merging(&[A, MORE_OF_A]);
        assert_eq!(server.rules_of("a"), Some(2));
        let first = server.read(100, &[A]);
        assert_eq!((server.rules_of("a"), &first.kept[..]), (Some(2), &["a".to_owned()][..]));
        assert!(first.warnings.to_string().contains("more.yaml no longer has its 1 rule of domain `a`"), "{}", first.warnings);
        let second = server.read(110, &[A]);
        assert_eq!((server.rules_of("a"), removed(&second)), (Some(1), vec!["a"]));
        assert!(second.removed[0].is_part && second.removed[0].files == ["more.yaml"] && second.kept.is_empty());
    }

    #[test]
    fn a_part_also_goes_from_a_file_that_stays() {
        let both = [B.1, MORE_OF_A.1].join("---\n");
        let mut server = Server::merging(&[A, ("b.yaml", &both)]);
        assert_eq!((server.read(100, &[A, B]).kept.len(), server.rules_of("a")), (1, Some(2)));
        assert_eq!((removed(&server.read(110, &[A, B])), server.rules_of("a")), (vec!["a"], Some(1)));
    }

    #[test]
    fn a_part_that_moves_or_has_no_descriptors_does_not_wait() {
        let mut server = Server::merging(&[A, MORE_OF_A]);
        assert!(server.read(100, &[A, ("renamed.yaml", MORE_OF_A.1)]).kept.is_empty());
        assert_eq!(server.rules_of("a"), Some(2));
        assert!(server.read(101, &[A, ("renamed.yaml", "domain: a\ndescriptors: []\n")]).kept.is_empty());
        assert_eq!(server.rules_of("a"), Some(1));
    }

    #[test]
    fn the_settings_of_a_merged_domain_are_kept_likewise() {
        let settings = ("settings.yaml", "domain: a\nsubject: x\ndescriptors: []\n");
        let mut server = Server::merging(&[A, MORE_OF_A, settings]);
        let subject = |server: &Server| server.rules.domains[&b"a"[..]].subject.len();
        server.read(100, &[A, MORE_OF_A]);
        assert_eq!(subject(&server), 1);
        assert_eq!((removed(&server.read(110, &[A, MORE_OF_A])), subject(&server)), (vec!["a"], 0));
    }
}
