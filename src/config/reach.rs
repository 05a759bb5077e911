//! Which descriptors of one list stand in each other's way: the same key and value twice, and patterns that an earlier one
//! covers, so that they can never match.

use std::collections::HashMap;

use super::problem::{Path, Report};
use super::raw::Span;
use crate::rules::tree::{Matcher, Pattern};

/// With how many earlier wildcards and expressions a pattern is compared: bounds the time for very long lists.
const MAX_COMPARED: usize = 200;

/// Where a descriptor is written: file, place in the list, line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) item: usize,
    pub(crate) at: Span,
}

/// The descriptors of one list, by key.
#[derive(Debug, Default)]
pub(crate) struct Siblings {
    keys: HashMap<String, Group>,
}

#[derive(Debug, Default)]
struct Group {
    any: Option<Place>,
    exact: HashMap<Box<[u8]>, Place>,
    patterns: Vec<(Pattern, Place)>,
    by_text: HashMap<Box<[u8]>, Place>,
}

impl Siblings {
    /// Notes a descriptor; the answer is an earlier one with the same key and value.
    pub(crate) fn add(&mut self, key: &str, matcher: &Matcher, place: Place) -> Option<Place> {
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), Group::default());
        }
        let group = self.keys.get_mut(key)?;
        match matcher {
            Matcher::Any if group.any.is_some() => group.any,
            Matcher::Any => {
                group.any = Some(place);
                None
            }
            Matcher::Exact(value) => first(&mut group.exact, value, place),
            Matcher::Pattern { pattern, text, .. } => {
                let earlier = first(&mut group.by_text, text, place);
                if earlier.is_none() {
                    group.patterns.push((pattern.clone(), place));
                }
                earlier
            }
        }
    }

    /// Reports descriptors that can never match.
    pub(crate) fn check(&self, list: &Path<'_>, reports: &mut [Report<'_>]) {
        for group in self.keys.values().filter(|group| !group.patterns.is_empty()) {
            for (index, (pattern, place)) in group.patterns.iter().enumerate() {
                if let Some(by) = group.covering(index, pattern) {
                    report(*place, by, list, reports);
                }
            }
            let everything = group.patterns.iter().find(|(pattern, _)| matches_everything(pattern));
            if let (Some(any), Some((_, by))) = (group.any, everything) {
                report(any, *by, list, reports);
            }
        }
    }
}

fn first(known: &mut HashMap<Box<[u8]>, Place>, text: &[u8], place: Place) -> Option<Place> {
    if let Some(earlier) = known.get(text) {
        return Some(*earlier);
    }
    known.insert(text.into(), place);
    None
}

fn report(place: Place, by: Place, list: &Path<'_>, reports: &mut [Report<'_>]) {
    let line = format!("{}:{}", reports[by.file].file, by.at.line);
    let message = format!("this descriptor can never match: {line} is tried before it and matches whatever it does");
    let problem = reports[place.file].warning(place.at, list.item(place.item), message);
    problem.hint("patterns are tried in their order, before the key alone; put the narrower one first");
}

impl Group {
    /// An earlier pattern (or, for a set, exact values) that leaves nothing for this one.
    fn covering(&self, index: usize, pattern: &Pattern) -> Option<Place> {
        let earlier = &self.patterns[..index];
        if let Some((_, by)) = earlier.iter().take(MAX_COMPARED).find(|(other, _)| matches_everything(other)) {
            return Some(*by);
        }
        match pattern {
            Pattern::Wildcard(pieces) => {
                // An asterisk is matched by an asterisk alone, so what matches the text matches all that it stands for.
                let text = pieces.join(&b'*');
                let wildcards = earlier.iter().take(MAX_COMPARED).filter(|(other, _)| matches!(other, Pattern::Wildcard(_)));
                wildcards.into_iter().find(|(other, _)| other.matches(&text)).map(|(_, by)| *by)
            }
            Pattern::Cidr(network) => {
                let contains = |other: &Pattern| matches!(other, Pattern::Cidr(other) if other.contains(&network.trunc()));
                earlier.iter().take(MAX_COMPARED).find(|(other, _)| contains(other)).map(|(_, by)| *by)
            }
            Pattern::OneOf(values) => {
                let by = |value: &[u8]| {
                    let pattern = earlier.iter().take(MAX_COMPARED).find(|(other, _)| other.matches(value));
                    self.exact.get(value).copied().or(pattern.map(|(_, by)| *by))
                };
                let all: Option<Vec<Place>> = values.iter().map(|value| by(value)).collect();
                all.and_then(|places| places.last().copied())
            }
            Pattern::Regex(_) => None,
        }
    }
}

fn matches_everything(pattern: &Pattern) -> bool {
    matches!(pattern, Pattern::Wildcard(pieces) if pieces.iter().all(|piece| piece.is_empty()))
}
