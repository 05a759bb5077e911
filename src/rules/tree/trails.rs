//! The rules of a tree, each with the levels that lead to it.

use super::{Branch, Node, Pattern};
use crate::rules::RuleId;

/// A rule and its levels, from the first entry to the last.
#[derive(Clone, Debug)]
pub struct Trail<'t> {
    pub rule: RuleId,
    pub levels: Vec<Level<'t>>,
}

/// One entry of the descriptors that a rule matches.
#[derive(Clone, Copy, Debug)]
pub struct Level<'t> {
    pub key: &'t [u8],
    values: Values<'t>,
}

#[derive(Clone, Copy, Debug)]
enum Values<'t> {
    Any,
    Exact(&'t [u8]),
    Pattern { pattern: &'t Pattern, text: &'t [u8], shared: bool },
}

impl Level<'_> {
    /// Whether an entry of this value may be counted here. A shared pattern is counted by its text, which `is_shared` says of `value`.
    pub fn covers(&self, value: &[u8], is_shared: bool) -> bool {
        match self.values {
            Values::Pattern { text, shared: true, .. } => is_shared && text == value,
            _ if is_shared => false,
            Values::Any => true,
            Values::Exact(exact) => exact == value,
            Values::Pattern { pattern, .. } => pattern.matches(value),
        }
    }
}

impl Node {
    /// Every rule below this level.
    pub fn trails(&self) -> Vec<Trail<'_>> {
        let mut trails = Vec::new();
        self.add_trails(&mut Vec::new(), &mut trails);
        trails.sort_by_key(|trail| trail.rule);
        trails
    }

    fn add_trails<'t>(&'t self, levels: &mut Vec<Level<'t>>, trails: &mut Vec<Trail<'t>>) {
        if let Some(rule) = self.rule {
            trails.push(Trail { rule, levels: levels.clone() });
        }
        for (key, branch) in &self.keys {
            for (values, node) in branch.nodes() {
                levels.push(Level { key, values });
                node.add_trails(levels, trails);
                levels.pop();
            }
        }
    }
}

impl Branch {
    fn nodes(&self) -> impl Iterator<Item = (Values<'_>, &Node)> {
        let exact = self.exact.iter().map(|(value, node)| (Values::Exact(value), node));
        let patterns = self
            .patterns
            .iter()
            .map(|known| (Values::Pattern { pattern: &known.pattern, text: &known.text, shared: known.shared }, &known.node));
        exact.chain(patterns).chain(self.any.as_deref().map(|node| (Values::Any, node)))
    }
}
