//! An index over the patterns of one key: what a look-up costs does not grow with how many there are, as long as they differ in
//! a value, a network, or a literal piece. What is left, regular expressions and wildcards that share all their pieces with many
//! others, is tried as one set.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use foldhash::fast::RandomState;
use ipnet::IpNet;
use regex::bytes::RegexSet;

use super::{Pattern, PatternNode, masked};

/// From this many wildcards and regular expressions on one key, they are compiled into sets.
const SET_FROM: usize = 8;
/// How many different lengths of prefixes (or suffixes) are looked up one by one; of middle pieces, how many may end at one place.
const MAX_LENGTHS: usize = 64;
/// Patterns in one set: bounds the memory of its automaton.
const SET_SIZE: usize = 512;
/// Up to so many bytes of middle pieces, the automaton that finds them is the fastest: mostly of a few MB, at the
/// most some 30.
const MAX_FAST_PIECES: usize = 32 << 10;

/// What [`super::Node::seal`] makes of a branch's patterns, each by its place in the declaration order.
#[derive(Clone, Debug, Default)]
pub(super) struct PatternIndex {
    one_of: HashMap<Box<[u8]>, usize, RandomState>,
    networks: HashMap<IpNet, usize, RandomState>,
    /// Prefix lengths that occur, IPv4 and IPv6 apart.
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
    prefixes: EndIndex,
    suffixes: EndIndex,
    middles: MiddleIndex,
    /// Few wildcards and expressions: tried one by one.
    singles: Vec<usize>,
    /// Many: the set, and each member's place.
    sets: Vec<(RegexSet, Vec<usize>)>,
}

/// Wildcards by the literal piece that they begin (or end) with; few share one.
#[derive(Clone, Debug, Default)]
struct EndIndex {
    places: HashMap<Box<[u8]>, Vec<usize>, RandomState>,
    /// How long the pieces are.
    lengths: Vec<usize>,
}

impl EndIndex {
    /// Takes those wildcards that few others share their piece with, and gives the rest back.
    fn new(wildcards: Vec<(&[u8], usize)>) -> (EndIndex, Vec<usize>) {
        let mut index = EndIndex::default();
        for (piece, place) in wildcards {
            index.places.entry(piece.into()).or_default().push(place);
        }
        let mut rest = Vec::new();
        index.places.retain(|_, places| {
            if places.len() >= SET_FROM {
                rest.append(places);
            }
            !places.is_empty()
        });
        index.lengths = index.places.keys().map(|piece| piece.len()).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        if index.lengths.len() > MAX_LENGTHS {
            rest.extend(index.places.drain().flat_map(|(_, places)| places));
            index.lengths.clear();
        }
        rest.sort_unstable();
        (index, rest)
    }

    /// The places whose piece stands in the value where `cut` looks for it.
    fn candidates<'i>(&'i self, value: &'i [u8], cut: fn(&[u8], usize) -> &[u8]) -> impl Iterator<Item = usize> + 'i {
        let fitting = self.lengths.iter().take_while(|length| **length <= value.len());
        fitting.filter_map(move |length| self.places.get(cut(value, *length))).flatten().copied()
    }
}

/// Wildcards of one literal piece between two asterisks, by that piece; few share one. All pieces are found in one walk along
/// the value, and none is searched for again: a caller cannot make it long by what the value repeats.
#[derive(Clone, Debug, Default)]
struct MiddleIndex {
    pieces: Option<AhoCorasick>,
    /// By the piece's number.
    places: Vec<Vec<usize>>,
    /// The least that stands before and behind a piece, in bytes.
    margins: (usize, usize),
}

impl MiddleIndex {
    /// Takes those wildcards that few others share their piece with, and gives the rest back.
    fn new(patterns: &[PatternNode], wildcards: Vec<usize>) -> (MiddleIndex, Vec<usize>) {
        let (middles, mut rest): (Vec<usize>, Vec<usize>) =
            wildcards.into_iter().partition(|&place| patterns[place].pattern.around_middle().is_some());
        let piece = |place: usize| patterns[place].pattern.around_middle().map(|[_, piece, _]| (piece, place));
        let (by_piece, others) = EndIndex::new(middles.into_iter().filter_map(piece).collect());
        rest.extend(others);
        let (pieces, places): (Vec<_>, Vec<_>) = by_piece.places.into_iter().unzip();
        if pieces.is_empty() {
            return (MiddleIndex::default(), rest);
        }
        let size: usize = pieces.iter().map(|piece| piece.len()).sum();
        let kind = if size <= MAX_FAST_PIECES { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).kind(Some(kind)).build(&pieces);
        let around = || places.iter().flatten().filter_map(|&place| patterns[place].pattern.around_middle());
        let margins = (around().map(|[first, ..]| first.len()).min(), around().map(|[.., last]| last.len()).min());
        let margins = (margins.0.unwrap_or(0), margins.1.unwrap_or(0));
        match automaton {
            Ok(pieces) => (MiddleIndex { pieces: Some(pieces), places, margins }, rest),
            Err(_) => {
                rest.extend(places.into_iter().flatten());
                (MiddleIndex::default(), rest)
            }
        }
    }

    fn first(&self, patterns: &[PatternNode], value: &[u8]) -> Option<usize> {
        let (before, after) = self.margins;
        let middle = value.get(before..value.len().checked_sub(after)?)?;
        let found = self.pieces.as_ref()?.find_overlapping_iter(middle);
        let fits = |place: usize, start: usize, end: usize| {
            patterns[place].pattern.around_middle().is_some_and(|[first, _, last]| {
                start >= first.len() && end + last.len() <= value.len() && value.starts_with(first) && value.ends_with(last)
            })
        };
        let first_of = |piece: aho_corasick::Match| {
            let places = self.places[piece.pattern().as_usize()].iter().copied();
            places.filter(|&place| fits(place, before + piece.start(), before + piece.end())).min()
        };
        found.filter_map(first_of).min()
    }
}

/// One set of expressions, or as many as their size asks for: each alone is known to compile.
fn add_sets(sets: &mut Vec<(RegexSet, Vec<usize>)>, patterns: &[PatternNode], places: &[usize]) -> Result<(), regex::Error> {
    match RegexSet::new(places.iter().filter_map(|&place| patterns[place].pattern.as_regex())) {
        Ok(set) => sets.push((set, places.to_vec())),
        Err(error) if places.len() == 1 => return Err(error),
        Err(_) => {
            let (first, second) = places.split_at(places.len() / 2);
            add_sets(sets, patterns, first)?;
            add_sets(sets, patterns, second)?;
        }
    }
    Ok(())
}

impl PatternIndex {
    pub(super) fn new(patterns: &[PatternNode]) -> Result<PatternIndex, regex::Error> {
        let mut index = PatternIndex::default();
        let mut expressions = Vec::new();
        for (place, node) in patterns.iter().enumerate() {
            match &node.pattern {
                Pattern::OneOf(values) => {
                    for value in values {
                        index.one_of.entry(value.clone()).or_insert(place);
                    }
                }
                Pattern::Cidr(network) => {
                    index.networks.entry(network.trunc()).or_insert(place);
                    let lengths = if network.addr().is_ipv4() { &mut index.v4_lengths } else { &mut index.v6_lengths };
                    if !lengths.contains(&network.prefix_len()) {
                        lengths.push(network.prefix_len());
                    }
                }
                Pattern::Wildcard(_) | Pattern::Regex(_) => expressions.push(place),
            }
        }
        if expressions.len() < SET_FROM {
            index.singles = expressions;
            return Ok(index);
        }
        let end = |place: usize, last: bool| match &patterns[place].pattern {
            Pattern::Wildcard(pieces) => if last { pieces.last() } else { pieces.first() }.map(|piece| (&**piece, place)),
            _ => None,
        };
        let (wildcards, mut rest): (Vec<usize>, Vec<usize>) =
            expressions.into_iter().partition(|place| end(*place, false).is_some());
        let (prefixes, wildcards) = EndIndex::new(wildcards.into_iter().filter_map(|place| end(place, false)).collect());
        let (suffixes, wildcards) = EndIndex::new(wildcards.into_iter().filter_map(|place| end(place, true)).collect());
        (index.prefixes, index.suffixes) = (prefixes, suffixes);
        let (middles, wildcards) = MiddleIndex::new(patterns, wildcards);
        index.middles = middles;
        rest.extend(wildcards);
        rest.sort_unstable();
        for places in rest.chunks(SET_SIZE) {
            add_sets(&mut index.sets, patterns, places)?;
        }
        Ok(index)
    }

    /// The first pattern in declaration order that matches.
    pub(super) fn first(&self, patterns: &[PatternNode], value: &[u8]) -> Option<usize> {
        if patterns.is_empty() {
            return None;
        }
        let one_of = self.one_of.get(value).copied();
        let network = if self.networks.is_empty() { None } else { self.network(value) };
        let single = self.singles.iter().copied().find(|&place| patterns[place].pattern.matches(value));
        let in_set = self.sets.iter().find_map(|(set, places)| set.matches(value).iter().next().map(|member| places[member]));
        let prefixed = self.prefixes.candidates(value, |value, length| &value[..length]);
        let suffixed = self.suffixes.candidates(value, |value, length| &value[value.len() - length..]);
        let wildcard = prefixed.chain(suffixed).filter(|&place| patterns[place].pattern.matches(value)).min();
        let middle = self.middles.first(patterns, value);
        [one_of, network, single, wildcard, middle, in_set].into_iter().flatten().min()
    }

    fn network(&self, value: &[u8]) -> Option<usize> {
        let masked = masked(value)?;
        let lengths = if masked.addr().is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        let of_length = |length: &u8| {
            let network = IpNet::new(masked.addr(), *length).ok()?.trunc();
            self.networks.get(&network).copied()
        };
        lengths.iter().filter(|&&length| length <= masked.prefix_len()).filter_map(of_length).min()
    }
}
