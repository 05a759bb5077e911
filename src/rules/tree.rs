//! Finds the rule of a descriptor: per level the exact value, then patterns in declaration order, then the key alone. No
//! backtracking, equal depth. Keys and values are looked up as a pair and never joined. What a level costs does not grow with
//! the number of its exact values, one_of values, networks, or wildcards that begin, end, or have one piece in between
//! differently; what is left, wildcards of more pieces and regular expressions, is tried as one set.

mod index;
mod trace;
mod trails;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use foldhash::fast::RandomState;
use ipnet::{IpNet, Ipv4Net};
use regex::bytes::Regex;
use smallvec::SmallVec;

use self::index::PatternIndex;
use super::RuleId;
use super::key::Part;
use super::request::Entry;
pub use trace::{End, Found, Trace};
pub use trails::{Level, Trail};

/// How a descriptor's value is matched.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Literal pieces with anything in between.
    Wildcard(Vec<Box<[u8]>>),
    OneOf(Vec<Box<[u8]>>),
    /// The value is an address or a network in this network, which is one of those that [`network`] gives.
    Cidr(IpNet),
    /// Found anywhere in the value, unless anchored.
    Regex(Regex),
}

impl Pattern {
    /// `text` split at its asterisks.
    pub fn wildcard(text: &str) -> Pattern {
        Pattern::Wildcard(text.split('*').map(|piece| piece.as_bytes().into()).collect())
    }

    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Pattern::Wildcard(pieces) => wildcard_matches(pieces, value),
            Pattern::OneOf(values) => values.iter().any(|one| **one == *value),
            Pattern::Cidr(network) => masked(value).is_some_and(|masked| network.contains(&masked)),
            Pattern::Regex(regex) => regex.is_match(value),
        }
    }

    /// The pieces of a wildcard that has one between two asterisks: before, between, after.
    fn around_middle(&self) -> Option<[&[u8]; 3]> {
        match self {
            Pattern::Wildcard(pieces) => match &pieces[..] {
                [first, middle, last] if !middle.is_empty() => Some([first, middle, last]),
                _ => None,
            },
            _ => None,
        }
    }

    fn as_regex(&self) -> Option<String> {
        match self {
            Pattern::Wildcard(pieces) => {
                let literal = |piece: &[u8]| piece.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
                let pieces: Vec<String> = pieces.iter().map(|piece| literal(piece)).collect();
                Some(format!("(?s-u:^{}$)", pieces.join(".*")))
            }
            Pattern::Regex(regex) => Some(regex.as_str().to_owned()),
            Pattern::OneOf(_) | Pattern::Cidr(_) => None,
        }
    }
}

fn wildcard_matches(pieces: &[Box<[u8]>], value: &[u8]) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| **only == *value);
    };
    let Some(rest) = value.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else { return false };
    let mut rest = rest;
    for piece in middle {
        let found = if piece.is_empty() { Some(0) } else { rest.windows(piece.len()).position(|window| *window == **piece) };
        match found {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

/// The address that a value is matched and counted as: `::ffff:192.0.2.1` is the IPv4 address that it contains.
pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(value).ok()?.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The network that a value is matched and counted as: an address alone, or a network such as `10.1.2.0/24`, which Envoy's
/// `masked_remote_address` sends. Bits beyond the prefix do not count; `::ffff:10.1.2.0/120` is the IPv4 network that it contains.
pub(super) fn masked(value: &[u8]) -> Option<IpNet> {
    let text = std::str::from_utf8(value).ok()?;
    let Some((address, bits)) = text.split_once('/') else { return address(value).map(IpNet::from) };
    let is_plain = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits = bits.parse().ok().filter(|_| is_plain)?;
    let written = IpNet::new(address.parse().ok()?, bits).ok()?;
    // One that is wider than all IPv4-mapped addresses has IPv6 addresses besides.
    Some(network(written).unwrap_or(written).trunc())
}

/// The network that an [`address`] can be in: `::ffff:192.0.2.0/120` is the IPv4 network that it contains.
///
/// # Errors
/// For one that is written with an IPv4-mapped address, or has those and else none that anybody has, and is wider than all of
/// them, such as `::ffff:192.0.2.0/24`: what is meant would never match. The IPv4 network that it could be.
pub fn network(written: IpNet) -> Result<IpNet, Ipv4Net> {
    /// The bits before the IPv4 address in an IPv4-mapped one: zeros, then ones.
    const MAPPED: u8 = 96;
    /// A network of no more bits has other addresses besides, such as ::1.
    const ZEROS: u8 = 80;
    let IpNet::V6(v6) = written else { return Ok(written) };
    let (ipv4, bits) = (v6.addr().to_ipv4_mapped(), v6.prefix_len());
    match (ipv4, bits.checked_sub(MAPPED)) {
        (Some(ipv4), Some(bits)) => Ok(IpNet::V4(Ipv4Net::new(ipv4, bits).expect("what is left of 128 bits is at most 32"))),
        (Some(ipv4), None) => Err(Ipv4Net::new(ipv4, bits).unwrap_or_default().trunc()),
        (None, None) if bits > ZEROS && v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()) => Err(Ipv4Net::default()),
        (None, _) => Ok(written),
    }
}

/// Which values of a key a descriptor stands for.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// The key alone.
    Any,
    Exact(Box<[u8]>),
    /// `text` is what it is called, and no other pattern is; a shared pattern's matches have one counter, named by it.
    Pattern {
        pattern: Pattern,
        text: Box<[u8]>,
        shared: bool,
    },
}

/// A level of the tree: what may follow, and the rule that ends here.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub rule: Option<RuleId>,
    keys: HashMap<Box<[u8]>, Branch, RandomState>,
}

#[derive(Clone, Debug, Default)]
struct Branch {
    exact: HashMap<Box<[u8]>, Node, RandomState>,
    patterns: Vec<PatternNode>,
    /// The place of each pattern's text in `patterns`.
    by_text: HashMap<Box<[u8]>, usize, RandomState>,
    index: PatternIndex,
    any: Option<Box<Node>>,
}

/// By what a value is found.
enum By<'t> {
    Value,
    Pattern(&'t PatternNode),
    Key,
}

#[derive(Clone, Debug)]
struct PatternNode {
    pattern: Pattern,
    text: Box<[u8]>,
    shared: bool,
    node: Node,
}

/// The rule of a descriptor, and its entries as they stand in counter keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    pub rule: RuleId,
    pub parts: SmallVec<[Part<'a>; 4]>,
}

impl Node {
    /// The node below this one for a key and matcher, made if it is not there; the flag says that it is new. A pattern is the
    /// same if its text is.
    pub fn child(&mut self, key: &str, matcher: Matcher) -> (&mut Node, bool) {
        let branch = self.keys.entry(key.as_bytes().into()).or_default();
        match matcher {
            Matcher::Any => {
                let is_new = branch.any.is_none();
                (branch.any.get_or_insert_default(), is_new)
            }
            Matcher::Exact(value) => {
                let is_new = !branch.exact.contains_key(&value);
                (branch.exact.entry(value).or_default(), is_new)
            }
            Matcher::Pattern { pattern, text, shared } => {
                let known = branch.by_text.get(&text).copied();
                let index = known.unwrap_or(branch.patterns.len());
                if known.is_none() {
                    branch.by_text.insert(text.clone(), index);
                    branch.patterns.push(PatternNode { pattern, text, shared, node: Node::default() });
                }
                (&mut branch.patterns[index].node, known.is_none())
            }
        }
    }

    /// Has nothing below it.
    pub fn is_leaf(&self) -> bool {
        self.keys.is_empty()
    }

    /// Prepares the patterns of the whole tree for look-up; to be called once, when everything is in.
    ///
    /// # Errors
    /// When a set of patterns is too large to compile; names them.
    pub fn seal(&mut self) -> Result<(), regex::Error> {
        for branch in self.keys.values_mut() {
            branch.index = PatternIndex::new(&branch.patterns)?;
            for node in branch.exact.values_mut().chain(branch.any.as_deref_mut()) {
                node.seal()?;
            }
            for pattern in &mut branch.patterns {
                pattern.node.seal()?;
            }
        }
        Ok(())
    }

    /// The rule at exactly this path.
    pub fn find<'a>(&'a self, entries: &[Entry<'a>]) -> Option<Match<'a>> {
        let mut node = self;
        let mut parts = SmallVec::with_capacity(entries.len());
        for entry in entries {
            let branch = node.keys.get(entry.key)?;
            let (next, part) = branch.find(entry)?;
            node = next;
            parts.push(part);
        }
        node.rule.map(|rule| Match { rule, parts })
    }
}

impl Branch {
    fn find<'a>(&'a self, entry: &Entry<'a>) -> Option<(&'a Node, Part<'a>)> {
        let literal = Part { key: entry.key, value: entry.value, shared: false };
        let (node, by) = self.step(entry.value)?;
        let part = match by {
            By::Pattern(found) if found.shared => Part { value: &found.text, shared: true, ..literal },
            _ => literal,
        };
        Some((node, part))
    }

    /// What follows a value, and by what it was found.
    fn step(&self, value: &[u8]) -> Option<(&Node, By<'_>)> {
        if let Some(node) = self.exact.get(value) {
            return Some((node, By::Value));
        }
        if let Some(place) = self.index.first(&self.patterns, value) {
            let found = &self.patterns[place];
            return Some((&found.node, By::Pattern(found)));
        }
        self.any.as_deref().map(|node| (node, By::Key))
    }
}

#[cfg(test)]
mod tests {
    use regex::bytes::RegexSet;

    use super::*;

    fn entry(key: &'static str, value: &'static str) -> Entry<'static> {
        Entry { key: key.as_bytes(), value: value.as_bytes() }
    }

    fn pattern(text: &str, pattern: Pattern) -> Matcher {
        Matcher::Pattern { pattern, text: text.as_bytes().into(), shared: false }
    }

    fn tree(patterns: Vec<Matcher>) -> Node {
        let mut root = Node::default();
        for (id, matcher) in patterns.into_iter().enumerate() {
            root.child("k", matcher).0.rule = Some(RuleId(u32::try_from(id).expect("few")));
        }
        root.seal().expect("compiles");
        root
    }

    fn found(root: &Node, value: &'static str) -> Option<u32> {
        root.find(&[entry("k", value)]).map(|found| found.rule.0)
    }

    #[test]
    fn exact_then_patterns_in_order_then_the_key() {
        let root = tree(vec![
            Matcher::Any,
            pattern("a*", Pattern::wildcard("a*")),
            pattern("ab*", Pattern::wildcard("ab*")),
            Matcher::Exact(b"abc"[..].into()),
        ]);
        assert_eq!([found(&root, "abc"), found(&root, "abd"), found(&root, "zzz")], [Some(3), Some(1), Some(0)]);
    }

    #[test]
    fn sets_find_what_single_patterns_find() {
        let texts: Vec<String> = (0..1500).map(|n| format!("*/v{n}/*/x{n}")).collect();
        let root = tree(texts.iter().map(|text| pattern(text, Pattern::wildcard(text))).collect());
        assert_eq!(found(&root, "a/v7/b/x7"), Some(7));
        assert_eq!(found(&root, "a/v1499/b/x1499"), Some(1499));
        assert_eq!(found(&root, "a/v7/b/x8"), None);
    }

    #[test]
    fn many_wildcards_find_what_each_alone_finds() {
        let mut texts: Vec<String> = (0..200).map(|n| format!("/p{n}/*")).collect();
        texts.extend((0..200).map(|n| format!("*.s{n}")));
        texts.extend((0..200).map(|n| format!("/same/*/m{n}/*/end")));
        texts.extend((0..200).map(|n| format!("/one/*/i{n}/*")));
        texts.extend((0..20).map(|n| format!("/one/*/i{n}*{}", n % 3)));
        texts.extend((0..20).map(|n| format!("*{n}{n}*{n}")));
        texts.extend(["/p*".to_owned(), "*/x".to_owned(), "/p1*/x".to_owned()]);
        let root = tree(texts.iter().map(|text| pattern(text, Pattern::wildcard(text))).collect());
        let values = [
            "/p7/x",
            "/p19/",
            "/p300",
            "/q/x",
            "a.s5",
            "/p3/a.s5",
            "/same/a/m7/b/end",
            "/same/m7/end",
            "none",
            "",
            "/p1/x",
            "/one/a/i7/b",
            "/one/i7/",
            "/one//i7/",
            "/one/a/i17/0",
            "/one/i1/i19/i18/x",
            "/one/a/i12",
            "/one/a/i12/i2/i1110",
            "555",
            "55",
            "1111",
            "9119",
            "x1717171717",
        ];
        for value in values {
            let alone = texts.iter().position(|text| Pattern::wildcard(text).matches(value.as_bytes()));
            assert_eq!(found(&root, value), alone.map(|place| u32::try_from(place).expect("few")), "{value}");
        }
    }

    #[test]
    fn expressions_too_large_for_one_set_are_found_in_several() {
        let expression = |n: usize| format!("^\\w{{60}}-{n}$");
        let large = |n| pattern(&expression(n), Pattern::Regex(Regex::new(&expression(n)).expect("compiles")));
        assert!(RegexSet::new((0..8).map(expression)).is_err(), "too large for one set");
        let root = tree((0..8).map(large).collect());
        let sixty = "abcdefghijklmnopqrstuvwxyz0123abcdefghijklmnopqrstuvwxyz0123-";
        let root_finds =
            |n: usize| root.find(&[Entry { key: b"k", value: format!("{sixty}{n}").as_bytes() }]).map(|found| found.rule.0);
        assert_eq!([root_finds(0), root_finds(7), root_finds(8)], [Some(0), Some(7), None]);
    }

    #[test]
    fn wildcards_cover_every_byte_once() {
        let matches = |text: &str, value: &str| Pattern::wildcard(text).matches(value.as_bytes());
        assert!(matches("*", "") && matches("a*", "a") && matches("a*b*c", "abc") && matches("a*b*c", "a--b--c"));
        assert!(!matches("ab*bc", "abc") && !matches("a*b*c", "acb") && !matches("a*", "ba"));
        let set = RegexSet::new([Pattern::wildcard("ab*bc").as_regex().expect("an expression")]).expect("compiles");
        assert!(!set.is_match(b"abc") && set.is_match(b"ab\xff\nbc"));
    }

    #[test]
    fn networks_match_addresses_of_their_family() {
        let network = |text: &str| pattern(text, Pattern::Cidr(text.parse().expect("a network")));
        let root = tree(vec![network("10.0.0.0/8"), network("10.1.0.0/16"), network("2001:db8::/32")]);
        assert_eq!([found(&root, "10.1.2.3"), found(&root, "::ffff:10.1.2.3")], [Some(0), Some(0)]);
        assert_eq!([found(&root, "2001:db8::1"), found(&root, "11.0.0.1"), found(&root, "10.1")], [Some(2), None, None]);
    }

    #[test]
    fn networks_match_networks_that_lie_inside_them() {
        let networks = ["10.1.0.0/16", "10.0.0.0/8", "2001:db8::/32", "::/0"];
        let network = |text: &&str| pattern(text, Pattern::Cidr(text.parse().expect("a network")));
        let root = tree(networks.iter().map(network).collect());
        let cases = [
            ("10.1.2.0/24", Some(0)),
            ("10.1.2.3/24", Some(0)),
            ("10.1.0.0/16", Some(0)),
            ("10.1.2.3/32", Some(0)),
            ("10.0.0.0/15", Some(1)),
            ("10.0.0.0/8", Some(1)),
            ("10.0.0.0/7", None),
            ("0.0.0.0/0", None),
            ("::ffff:10.1.2.0/120", Some(0)),
            ("::ffff:10.1.2.0/112", Some(0)),
            ("::ffff:10.1.2.0/104", Some(1)),
            ("::ffff:0:0/96", None),
            ("::ffff:0:0/90", Some(3)),
            ("2001:DB8:1::/48", Some(2)),
            ("2001:db8::/31", Some(3)),
            ("::/0", Some(3)),
            // None of these is a network.
            ("10.1.2.0/33", None),
            ("10.1.2.0/024", None),
            ("10.1.2.0/+24", None),
            ("10.1.2.0/", None),
            ("10.1.2.0/24 ", None),
            ("10.1.2.0/24/24", None),
            ("10.1.2.0:80/24", None),
            ("010.1.2.0/24", None),
            ("[2001:db8::]/48", None),
            ("2001:db8::/129", None),
            ("/24", None),
            ("", None),
        ];
        for (value, expected) in cases {
            assert_eq!(found(&root, value), expected, "{value}");
            let alone = networks.iter().position(|text| Pattern::Cidr(text.parse().expect("a network")).matches(value.as_bytes()));
            assert_eq!(alone.map(|place| u32::try_from(place).expect("few")), expected, "{value}, one by one");
        }
    }

    #[test]
    fn depth_must_be_equal_and_pairs_are_never_joined() {
        let mut root = Node::default();
        let (first, is_new) = root.child("a", Matcher::Exact(b"b_c"[..].into()));
        assert!(is_new);
        first.child("d", Matcher::Any).0.rule = Some(RuleId(0));
        root.seal().expect("compiles");
        assert!(root.find(&[entry("a", "b_c"), entry("d", "1")]).is_some());
        assert!(root.find(&[entry("a", "b_c")]).is_none() && root.find(&[entry("a_b", "c"), entry("d", "1")]).is_none());
        assert!(root.find(&[entry("a", "b_c"), entry("d", "1"), entry("e", "2")]).is_none());
    }
}
