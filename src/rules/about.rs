//! Which rules a subject's counters may belong to: what tells an operator that a change has no effect.

use super::key;
use super::precedence;
use super::request::Entry;
use super::tree::Trail;
use super::{Domain, RuleId};

/// A subject as it stands in counter keys, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectEntry {
    pub key: Vec<u8>,
    value: Vec<u8>,
    /// The value is a pattern whose matches share one counter.
    is_shared: bool,
}

impl SubjectEntry {
    /// `None` for what is not a subject.
    pub fn of(subject: &[u8]) -> Option<SubjectEntry> {
        let split = subject.iter().position(|byte| matches!(byte, b'=' | b'~'))?;
        let (key, value) = (key::unescape(&subject[..split]), key::unescape(&subject[split + 1..]));
        Some(SubjectEntry { key, value, is_shared: subject[split] == b'~' })
    }
}

impl Domain {
    /// The rules whose counters may stand under this subject, in their order.
    pub fn rules_about(&self, subject: &[u8]) -> Vec<RuleId> {
        let Some(SubjectEntry { key, value, is_shared }) = SubjectEntry::of(subject) else { return Vec::new() };
        let value = self.addresses.matched(&key, &value);
        let is_about = |trail: &Trail<'_>| {
            let level = trail.levels.get(self.subject_level(trail));
            level.is_some_and(|level| level.key == key && level.covers(value, is_shared))
                && self.is_found(trail, &key, value, is_shared)
        };
        self.tree.trails().iter().filter(|trail| is_about(trail)).map(|trail| trail.rule).collect()
    }

    /// The keys of the entries that its rules' counters stand under, each once.
    pub fn subject_keys(&self) -> Vec<Vec<u8>> {
        let trails = self.tree.trails();
        let keys = trails.iter().filter_map(|trail| Some(trail.levels.get(self.subject_level(trail))?.key.to_vec()));
        let mut keys: Vec<Vec<u8>> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn subject_level(&self, trail: &Trail<'_>) -> usize {
        precedence::subject_place(self, trail.levels.iter().map(|level| level.key))
    }

    /// Of rules with one level, the one that a descriptor of this entry alone finds.
    fn is_found(&self, trail: &Trail<'_>, key: &[u8], value: &[u8], is_shared: bool) -> bool {
        is_shared || trail.levels.len() > 1 || self.tree.find(&[Entry { key, value }]).is_some_and(|found| found.rule == trail.rule)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{LoadOptions, load_texts};
    use crate::rules::{RuleSet, key};

    #[test]
    fn a_subject_has_the_rules_that_count_it() {
        let rules = "
domain: api
subject: [user_id]
descriptors:
  - {key: user_id, name: anyone, limits: [1/hour]}
  - {key: user_id, value: vip, name: vip, limits: [9/hour]}
  - key: path
    value: /ai
    name: ai
    limits: [7/hour]
    descriptors: [{key: user_id, name: ai-user, limits: [5/hour]}]
  - {key: tenant, value: 'eu-*', name: eu, limits: [3/hour]}
  - {key: agent, value: 'bot-*', share_threshold: true, name: bots, limits: [3/hour]}
";
        let loaded = load_texts(&[("a.yaml", rules)], &LoadOptions::default(), &RuleSet::default());
        let domain = loaded.rules.domains.values().next().expect("it loads").clone();
        let about = |subject: &str| {
            let subject = key::subject_named(subject).expect("a subject");
            domain.rules_about(&subject).into_iter().map(|rule| domain.rule(rule).label().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(about("user_id=u1"), ["anyone", "ai-user"]);
        assert_eq!(about("user_id=vip"), ["vip", "ai-user"]);
        assert_eq!(about("path=/ai"), ["ai"]);
        assert_eq!(
            [about("path=/x"), about("usr_id=u1"), about("tenant=us-1"), about("agent=bot-1")],
            [const { Vec::<String>::new() }; 4]
        );
        assert_eq!([about("tenant=eu-1"), about("agent~bot-*")], [["eu"], ["bots"]]);
        assert_eq!(domain.subject_keys(), [&b"agent"[..], b"path", b"tenant", b"user_id"]);
    }
}
