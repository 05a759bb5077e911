//! What a reload changes, for the log.

use std::collections::HashMap;
use std::fmt;

use crate::rules::{Domain, Rule, RuleSet};

/// The difference between two rule sets. Rules are told apart by their path, and are the same if they mean the same:
/// moving a rule within its file changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    pub domains_added: Vec<String>,
    pub domains_changed: Vec<String>,
    /// Gone, or left without rules.
    pub domains_removed: Vec<String>,
    pub rules_added: usize,
    pub rules_changed: usize,
    pub rules_removed: usize,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    pub(crate) fn between(old: &RuleSet, new: &RuleSet) -> Changes {
        let mut changes = Changes::default();
        let mut names: Vec<&[u8]> = old.domains.keys().chain(new.domains.keys()).map(|name| &**name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (before, after) = (old.domains.get(name), new.domains.get(name));
            if let (Some(before), Some(after)) = (before, after)
                && std::sync::Arc::ptr_eq(before, after)
            {
                continue;
            }
            changes.domain(&String::from_utf8_lossy(name), before.map(|domain| &**domain), after.map(|domain| &**domain));
        }
        changes
    }

    fn domain(&mut self, name: &str, before: Option<&Domain>, after: Option<&Domain>) {
        let rules = |domain: Option<&Domain>| domain.map_or(0, |domain| domain.rules.len());
        let counts = (self.rules_added, self.rules_changed, self.rules_removed);
        let mut old: HashMap<&str, &Rule> = HashMap::with_capacity(rules(before));
        old.extend(before.iter().flat_map(|domain| &domain.rules).map(|rule| (&*rule.path, rule)));
        for rule in after.iter().flat_map(|domain| &domain.rules) {
            match old.remove(&*rule.path) {
                None => self.rules_added += 1,
                Some(before) if !same(before, rule) => self.rules_changed += 1,
                Some(_) => {}
            }
        }
        self.rules_removed += old.len();
        let is_removed = rules(before) > 0 && rules(after) == 0;
        let name = name.to_owned();
        match (before, after) {
            (None, Some(_)) => self.domains_added.push(name),
            _ if is_removed => self.domains_removed.push(name),
            (Some(before), Some(after))
                if counts != (self.rules_added, self.rules_changed, self.rules_removed) || !same_settings(before, after) =>
            {
                self.domains_changed.push(name);
            }
            _ => {}
        }
    }
}

/// Everything but where it is written.
fn same(a: &Rule, b: &Rule) -> bool {
    let flags = |rule: &Rule| [rule.unlimited, rule.allow, rule.deny, rule.shadow, rule.quota, rule.reserve];
    (&a.name, &a.limits, &a.block, &a.replaces, &a.metadata) == (&b.name, &b.limits, &b.block, &b.replaces, &b.metadata)
        && a.tiers == b.tiers
        && a.on_store_failure == b.on_store_failure
        && flags(a) == flags(b)
}

pub(super) fn same_settings(a: &Domain, b: &Domain) -> bool {
    a.subject == b.subject
        && a.addresses == b.addresses
        && a.response == b.response
        && a.on_store_failure == b.on_store_failure
        && a.key_prefix == b.key_prefix
        && a.plans.means(&b.plans)
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing changed");
        }
        let domains = [("added", &self.domains_added), ("changed", &self.domains_changed), ("removed", &self.domains_removed)];
        let rules = [("added", self.rules_added), ("changed", self.rules_changed), ("removed", self.rules_removed)];
        let domains = domains.into_iter().filter(|(_, names)| !names.is_empty());
        let parts = domains.map(|(what, names)| format!("domains {what}: {}", bounded(names)));
        let parts =
            parts.chain(rules.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("rules {what}: {count}")));
        f.write_str(&parts.collect::<Vec<_>>().join("; "))
    }
}

/// The first few names.
fn bounded(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::super::{LoadOptions, load_texts};
    use super::*;

    fn changes(before: &[(&str, &str)], after: &[(&str, &str)]) -> String {
        let options = LoadOptions::default();
        let before = load_texts(before, &options, &RuleSet::default());
        let after = load_texts(after, &options, &before.rules);
        assert!(before.problems.is_empty() && after.problems.is_empty(), "{}{}", before.problems, after.problems);
        after.changes.to_string()
    }

    #[test]
    fn a_reload_tells_what_it_changed() {
        let a = "domain: a\ndescriptors:\n  - {key: x, limits: 1/second}\n  - {key: y, limits: 1/second}\n";
        let moved = "# Moved down.\ndomain: a\ndescriptors:\n  - {key: y, limits: 1/second}\n  - {key: x, limits: 1/second}\n";
        let other = "domain: a\ndescriptors:\n  - {key: x, limits: 2/second}\n  - {key: z, limits: 1/second}\n";
        let settings = "domain: a\nsubject: x\ndescriptors:\n  - {key: x, limits: 1/second}\n  - {key: y, limits: 1/second}\n";
        assert_eq!(changes(&[("a.yaml", a)], &[("a.yaml", moved)]), "nothing changed");
        assert_eq!(
            changes(&[("a.yaml", a)], &[("a.yaml", other)]),
            "domains changed: a; rules added: 1; rules changed: 1; rules removed: 1"
        );
        assert_eq!(changes(&[("a.yaml", a)], &[("a.yaml", settings)]), "domains changed: a");
        let b = "domain: b\ndescriptors: [{key: x, limits: 1/second}]\n";
        let removed = "domain: b\ndescriptors: []\n";
        assert_eq!(changes(&[("a.yaml", a)], &[("a.yaml", a), ("b.yaml", b)]), "domains added: b; rules added: 1");
        assert_eq!(changes(&[("b.yaml", b)], &[("b.yaml", removed)]), "domains removed: b; rules removed: 1");
    }
}
