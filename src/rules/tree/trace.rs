//! How a descriptor is looked up, entry by entry, for whoever asks why. Of one opinion with [`Node::find`], and slower.

use super::{Branch, By, Node, Pattern};
use crate::rules::RuleId;
use crate::rules::request::Entry;

/// By what an entry was found.
#[derive(Clone, Copy, Debug)]
pub enum Found<'t> {
    Value,
    /// `text` is how the rule writes it.
    Pattern {
        pattern: &'t Pattern,
        text: &'t [u8],
    },
    /// The key alone.
    Key,
}

/// A look-up.
#[derive(Clone, Debug)]
pub struct Trace<'t> {
    /// One for each entry that was found, from the first on.
    pub found: Vec<Found<'t>>,
    pub end: End<'t>,
    /// A rule that would have matched by another way, for there is no way back.
    pub elsewhere: Option<RuleId>,
}

/// Where a look-up ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<'t> {
    Rule(RuleId),
    /// All entries were found, and no rule stands there; with these keys it goes on.
    NoRule {
        next: Vec<&'t [u8]>,
    },
    /// The next entry's key is none of these.
    Key {
        known: Vec<&'t [u8]>,
    },
    /// The next entry's key is known, and its value none of these values and patterns.
    Value {
        known: Vec<&'t [u8]>,
    },
}

impl Node {
    /// Looks a descriptor up as [`Node::find`] does.
    pub fn trace<'t>(&'t self, entries: &[Entry<'_>]) -> Trace<'t> {
        let (mut node, mut found) = (self, Vec::with_capacity(entries.len()));
        let mut end = None;
        for entry in entries {
            let Some(branch) = node.keys.get(entry.key) else {
                end = Some(End::Key { known: node.known_keys() });
                break;
            };
            let Some((next, by)) = branch.step(entry.value) else {
                end = Some(End::Value { known: branch.known_values() });
                break;
            };
            node = next;
            found.push(match by {
                By::Value => Found::Value,
                By::Pattern(found) => Found::Pattern { pattern: &found.pattern, text: &found.text },
                By::Key => Found::Key,
            });
        }
        let end = end.unwrap_or_else(|| match node.rule {
            Some(rule) => End::Rule(rule),
            None => End::NoRule { next: node.known_keys() },
        });
        let elsewhere = if matches!(end, End::Rule(_)) { None } else { self.anywhere(entries) };
        Trace { found, end, elsewhere }
    }

    /// The first rule that matches by whatever way. No node is visited twice: a node has one way to it.
    fn anywhere(&self, entries: &[Entry<'_>]) -> Option<RuleId> {
        let Some((entry, rest)) = entries.split_first() else { return self.rule };
        let branch = self.keys.get(entry.key)?;
        let exact = branch.exact.get(entry.value);
        let patterns = branch.patterns.iter().filter(|node| node.pattern.matches(entry.value)).map(|node| &node.node);
        exact.into_iter().chain(patterns).chain(branch.any.as_deref()).find_map(|node| node.anywhere(rest))
    }

    fn known_keys(&self) -> Vec<&[u8]> {
        let mut known: Vec<&[u8]> = self.keys.keys().map(|key| &**key).collect();
        known.sort_unstable();
        known
    }
}

impl Branch {
    fn known_values(&self) -> Vec<&[u8]> {
        let mut known: Vec<&[u8]> = self.exact.keys().map(|value| &**value).collect();
        known.sort_unstable();
        known.extend(self.patterns.iter().map(|pattern| &*pattern.text));
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tree::Matcher;

    const VALUES: [&str; 4] = ["x", "xy", "z", ""];

    /// `a=x`, `a=x*,b`, `a,b=z`, `a,b=z,a=x`.
    fn tree() -> Node {
        let exact = |value: &str| Matcher::Exact(value.as_bytes().into());
        let wildcard =
            |text: &str| Matcher::Pattern { pattern: Pattern::wildcard(text), text: text.as_bytes().into(), shared: false };
        let mut root = Node::default();
        root.child("a", exact("x")).0.rule = Some(RuleId(0));
        root.child("a", wildcard("x*")).0.child("b", Matcher::Any).0.rule = Some(RuleId(1));
        let deep = root.child("a", Matcher::Any).0.child("b", exact("z")).0;
        deep.rule = Some(RuleId(2));
        deep.child("a", exact("x")).0.rule = Some(RuleId(3));
        root.seal().expect("compiles");
        root
    }

    fn entry<'a>(key: &'a str, value: &'a str) -> Entry<'a> {
        Entry { key: key.as_bytes(), value: value.as_bytes() }
    }

    #[test]
    fn a_trace_finds_what_a_look_up_finds() {
        let (root, mut matched) = (tree(), 0);
        let pairs: Vec<Entry<'_>> = ["a", "b", "c"].iter().flat_map(|key| VALUES.iter().map(|value| entry(key, value))).collect();
        let mut requests: Vec<Vec<Entry<'_>>> = vec![Vec::new()];
        for _ in 0..3 {
            requests = requests.iter().flat_map(|known| pairs.iter().map(|next| [known.as_slice(), &[*next]].concat())).collect();
            for entries in &requests {
                let trace = root.trace(entries);
                let rule = if let End::Rule(rule) = trace.end { Some(rule) } else { None };
                assert_eq!(rule, root.find(entries).map(|found| found.rule), "{entries:?}");
                matched += usize::from(rule.is_some());
            }
        }
        assert!(matched > 5);
    }

    #[test]
    fn an_end_says_what_was_expected() {
        let root = tree();
        let end = |entries: &[Entry<'_>]| root.trace(entries).end;
        assert_eq!(end(&[entry("c", "x")]), End::Key { known: vec![b"a"] });
        assert_eq!(end(&[entry("a", "z"), entry("b", "q")]), End::Value { known: vec![b"z"] });
        assert_eq!(end(&[entry("a", "z")]), End::NoRule { next: vec![b"b"] });
        assert_eq!(end(&[entry("a", "x"), entry("b", "z")]), End::Key { known: Vec::new() });
        assert_eq!(root.trace(&[entry("a", "x"), entry("b", "z")]).elsewhere, Some(RuleId(1)));
        assert_eq!(root.trace(&[entry("a", "z"), entry("b", "q")]).elsewhere, None);
    }
}
