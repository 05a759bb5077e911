//! The name of a counter: what a person reads in redis-cli, and what two replicas must agree on.
//!
//! `<prefix>w1|<domain>|<entry>|<entry>|<algorithm>|<window>`, an entry being `key=value`, or `key~pattern` where all values of
//! a pattern share one counter. `w1` is the version of the state behind it. The entry that says who the request is about stands in
//! braces: it is the Redis Cluster hash tag, so that one subject's counters share a slot, and the memory store's shard.
//! `%`, `|`, `{` and `}` are written `%XX`, in an entry's key also `=` and `~`: no two counters have one name, whatever
//! bytes a caller sends. A part longer than [`MAX_PART`] is cut and ends in `%#` and its SHA-256; so does a name
//! longer than [`MAX_KEY`].

use ring::digest;
use smallvec::SmallVec;

use crate::limit::{Algorithm, DAY, HOUR, MINUTE, Micros, SECOND, Shape};
use crate::shown::is_control;

/// The version of what the stores keep behind a key. Another version never reads this one's state.
pub const STATE_VERSION: &str = "w1";
/// The longest key or value of an entry that a counter's name spells out, in bytes.
pub const MAX_PART: usize = 128;
/// The longest name of a counter, in bytes, its prefix and domain aside.
pub const MAX_KEY: usize = 1024;
/// How much of an overlong part stays readable before its digest.
const CUT: usize = 32;

/// Bytes that are written `%XX`, and those that are in an entry's key.
const SPECIAL: [bool; 256] = table(b"%|{}");
const SPECIAL_IN_KEYS: [bool; 256] = table(b"%|{}=~");

const fn table(bytes: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut place = 0;
    while place < bytes.len() {
        table[bytes[place] as usize] = true;
        place += 1;
    }
    table
}

/// A counter's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

impl Key {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes between the first braces: what decides the cluster slot and the memory shard.
    pub fn tag(&self) -> &[u8] {
        let Some(open) = self.0.iter().position(|&byte| byte == b'{') else { return &self.0 };
        let tag = &self.0[open + 1..];
        match tag.iter().position(|&byte| byte == b'}') {
            Some(close) => &tag[..close],
            None => &self.0,
        }
    }
}

impl Key {
    /// The subject that it stands under, in a domain whose counters begin so.
    pub fn subject(&self, domain_prefix: &[u8]) -> Option<&[u8]> {
        subject_in(self.0.get(domain_prefix.len()..)?)
    }

    /// The matched entries, between what it begins with and what it ends with.
    pub fn entries(&self, domain_prefix: &[u8]) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(domain_prefix)?;
        let mut bars = rest.iter().enumerate().rev().filter(|(_, byte)| **byte == b'|').map(|(place, _)| place);
        let end = bars.nth(usize::from(!rest.ends_with(BLOCK_SUFFIX)))?;
        Some(&rest[..end])
    }

    /// A name that is read back: one that a store lists.
    pub fn from_bytes(bytes: Vec<u8>) -> Key {
        Key(bytes)
    }
}

/// What a key begins with ([`domain_prefix`]) and the subject that it stands under, where it begins with `prefix` as all do.
pub fn domain_and_subject<'k>(key: &'k [u8], prefix: &str) -> Option<(&'k [u8], &'k [u8])> {
    let domain = prefix.len() + STATE_VERSION.len() + 1;
    let end = domain + key.get(domain..)?.iter().position(|&byte| byte == b'|')?;
    Some((&key[..end], subject_in(&key[end..])?))
}

/// What stands between the braces.
fn subject_in(text: &[u8]) -> Option<&[u8]> {
    let open = text.iter().position(|&byte| byte == b'{')? + 1;
    let length = text[open..].iter().position(|&byte| byte == b'}')?;
    Some(&text[open..open + length])
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// One matched entry, as it stands in a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// The value is a pattern whose matches share one counter.
    pub shared: bool,
}

/// What the keys of all of a domain's counters begin with.
pub fn domain_prefix(prefix: &str, domain: &[u8]) -> Vec<u8> {
    [format!("{prefix}{STATE_VERSION}|").as_bytes(), &self::domain(domain)].concat()
}

/// What the keys of all blocks end with.
pub const BLOCK_SUFFIX: &[u8] = b"|block";

/// The entries of a key, read back.
pub fn parts(entries: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let part = |text: &[u8]| {
        let text = text.strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}")).unwrap_or(text);
        let split = text.iter().position(|byte| matches!(byte, b'=' | b'~'))?;
        Some((unescape(&text[..split]), unescape(&text[split + 1..])))
    };
    entries.strip_prefix(b"|")?.split(|&byte| byte == b'|').map(part).collect()
}

/// What the keys of all counters of this shape end with. A block's length is no part of it: a changed `block_for`
/// still finds the block.
pub fn shape_suffix(shape: Shape) -> Vec<u8> {
    match shape.algorithm {
        Algorithm::Penalty => format!("|{}", shape.algorithm.name()).into_bytes(),
        Algorithm::Calendar if shape.window == DAY => b"|quota|day".to_vec(),
        Algorithm::Calendar => b"|quota|month".to_vec(),
        algorithm => format!("|{}|{}", algorithm.name(), duration(shape.window)).into_bytes(),
    }
}

/// The text of a descriptor's entries; most need no allocation.
pub type EntriesText = SmallVec<[u8; 128]>;

/// The entries between prefix and suffix; `subject` is the index of the one that says who the request is about.
pub fn entries<'a>(parts: impl Iterator<Item = Part<'a>>, subject: usize) -> EntriesText {
    let mut text = EntriesText::new();
    for (index, part) in parts.enumerate() {
        text.extend_from_slice(if index == subject { b"|{" } else { b"|" });
        escape(&mut text, part.key, true);
        text.push(if part.shared { b'~' } else { b'=' });
        escape(&mut text, part.value, false);
        if index == subject {
            text.push(b'}');
        }
    }
    if text.len() > MAX_KEY {
        let digest = digest_of(&text);
        text.clear();
        text.extend_from_slice(b"|{%#");
        text.extend_from_slice(&digest);
        text.push(b'}');
    }
    text
}

/// The text between the braces of a counter whose subject is this entry.
pub fn subject(part: Part<'_>) -> EntriesText {
    let mut text = EntriesText::new();
    escape(&mut text, part.key, true);
    text.push(if part.shared { b'~' } else { b'=' });
    escape(&mut text, part.value, false);
    text
}

/// A subject as a person writes it, `key=value`, as it stands in counter keys. `%XX` is the byte XX; what has to be escaped and
/// is not, is. `None` without a key.
pub fn subject_named(written: &str) -> Option<EntriesText> {
    let split = written.find(['=', '~'])?;
    let (key, value) = (unescape(&written.as_bytes()[..split]), &written[split + 1..]);
    if key.is_empty() {
        return None;
    }
    let shared = written.as_bytes()[split] == b'~';
    if is_cut(value) {
        // The rest of the value is not known: only its name in counter keys.
        let mut text = subject(Part { key: &key, value: b"", shared });
        text.extend_from_slice(value.as_bytes());
        return Some(text);
    }
    Some(subject(Part { key: &key, value: &unescape(value.as_bytes()), shared }))
}

/// A subject's text as something that can be shown, and read back by [`subject_named`].
pub fn shown(subject: &[u8]) -> String {
    let mut text = String::with_capacity(subject.len());
    for chunk in subject.utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_control(c) {
                true => text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("%{byte:02X}"))),
                false => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    text
}

/// A value that was too long and ends in its digest.
fn is_cut(value: &str) -> bool {
    let digest = value.rsplit_once("%#").map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The bytes that escaped text stands for.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| text[at] == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit())).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 3;
            }
            None => {
                bytes.push(text[at]);
                at += 1;
            }
        }
    }
    bytes
}

/// A domain as it stands in keys.
pub fn domain(name: &[u8]) -> EntriesText {
    let mut text = EntriesText::new();
    escape(&mut text, name, false);
    text
}

/// What a subject's own keys are called, such as the index of its counters: in the cluster slot of its counters, and no counter.
pub fn of_subject(domain_prefix: &[u8], subject: &[u8], what: &str) -> Vec<u8> {
    [domain_prefix, b"|{", subject, b"}|", what.as_bytes()].concat()
}

/// A whole name.
pub fn key(domain_prefix: &[u8], entries: &[u8], shape_suffix: &[u8]) -> Key {
    let mut text = Vec::with_capacity(domain_prefix.len() + entries.len() + shape_suffix.len());
    text.extend_from_slice(domain_prefix);
    text.extend_from_slice(entries);
    text.extend_from_slice(shape_suffix);
    Key(text)
}

fn escape(text: &mut EntriesText, part: &[u8], is_key: bool) {
    let start = text.len();
    let kept = if part.len() > MAX_PART { &part[..CUT] } else { part };
    let special = if is_key { &SPECIAL_IN_KEYS } else { &SPECIAL };
    let mut rest = kept;
    // Nearly always there is nothing to escape.
    while let Some(at) = rest.iter().position(|&byte| special[usize::from(byte)]) {
        text.extend_from_slice(&rest[..at]);
        text.extend_from_slice(format!("%{:02X}", rest[at]).as_bytes());
        rest = &rest[at + 1..];
    }
    text.extend_from_slice(rest);
    if part.len() > MAX_PART {
        text.extend_from_slice(b"%#");
        text.extend_from_slice(&digest_of(part));
    }
    debug_assert!(text.len() - start <= 3 * MAX_PART);
}

fn digest_of(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

const UNITS: [(Micros, &str); 6] = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (1_000, "ms"), (1, "us")];

/// A duration in the largest unit that divides it: `60s` is `1m`, 90 s is `90s`.
pub fn duration(micros: Micros) -> String {
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| micros.is_multiple_of(*unit)).unwrap_or((1, "us"));
    format!("{}{name}", micros / unit)
}

/// What [`duration`] wrote.
pub fn micros(duration: &str) -> Option<Micros> {
    let digits = duration.bytes().take_while(u8::is_ascii_digit).count();
    let (count, name) = duration.split_at(digits);
    let (unit, _) = UNITS.into_iter().find(|(_, unit)| *unit == name)?;
    count.parse::<Micros>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[(&str, &str)], subject: usize) -> String {
        let parts = parts.iter().map(|(key, value)| Part { key: key.as_bytes(), value: value.as_bytes(), shared: false });
        let shape = Shape { algorithm: Algorithm::FixedWindow, window: MINUTE };
        let key = key(&domain_prefix("", b"api"), &entries(parts, subject), &shape_suffix(shape));
        format!("{key:?}")
    }

    #[test]
    fn a_key_reads_as_its_entries() {
        assert_eq!(text(&[("path", "/a:b=c"), ("user_id", "u1")], 1), "w1|api|path=/a:b=c|{user_id=u1}|fixed_window|1m");
    }

    #[test]
    fn joined_text_never_makes_two_counters_one() {
        let pairs: [&[(&str, &str)]; 8] = [
            &[("a", "b=c")],
            &[("a=b", "c")],
            &[("a", "b|c=d")],
            &[("a", "b"), ("c", "d")],
            &[("a", "b%7Cc=d")],
            &[("a", "b}")],
            &[("a", "")],
            &[("a~b", "c")],
        ];
        let mut seen: Vec<String> = pairs.iter().map(|parts| text(parts, 0)).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), pairs.len());
    }

    #[test]
    fn a_pattern_is_no_literal_value() {
        let part = |shared| entries([Part { key: b"path", value: b"/a*", shared }].into_iter(), 0);
        assert_ne!(part(true), part(false));
    }

    #[test]
    fn length_is_bounded_and_long_values_stay_apart() {
        let long = |last: char| format!("{}{last}", "x".repeat(100_000));
        let (a, b) = (text(&[("k", &long('a'))], 0), text(&[("k", &long('b'))], 0));
        assert_ne!(a, b);
        assert!(a.len() < 300, "{a}");
        let many: Vec<(String, String)> = (0..5000).map(|n| (format!("k{n}"), "v".into())).collect();
        let parts = many.iter().map(|(k, v)| Part { key: k.as_bytes(), value: v.as_bytes(), shared: false });
        assert!(entries(parts, 0).len() <= MAX_KEY);
    }

    #[test]
    fn the_tag_is_the_subject() {
        let parts = [Part { key: b"p{", value: b"}", shared: false }, Part { key: b"user", value: b"u{1}", shared: false }];
        let key = key(b"w1|d", &entries(parts.into_iter(), 1), b"|x");
        assert_eq!(key.tag(), b"user=u%7B1%7D");
    }

    #[test]
    fn a_written_subject_is_the_tag_of_its_counters() {
        let long = "x".repeat(200);
        let cases: [(&[u8], &[u8]); 7] = [
            (b"user", b"u1"),
            (b"user", b"100%"),
            (b"us=er", b"a=b~c"),
            (b"us~er", b""),
            (b"user", b"{a|b}"),
            (b"user", b"%41\xff\xc3\xa4"),
            (b"user", long.as_bytes()),
        ];
        for (key, value) in cases {
            let tag = subject(Part { key, value, shared: false });
            let entries = entries([Part { key, value, shared: false }].into_iter(), 0);
            assert_eq!(super::key(b"w1|d", &entries, b"|x").tag(), &tag[..]);
            assert_eq!(subject_named(&shown(&tag)), Some(tag));
        }
        let named = |written| subject_named(written).map(|text| shown(&text));
        assert_eq!(named("user=a|b 5%"), Some("user=a%7Cb 5%25".to_owned()));
        assert_eq!([named("user"), named("=u1"), named("")], [None, None, None]);
    }

    #[test]
    fn a_key_says_whose_it_is() {
        let parts = [Part { key: b"path", value: b"/{a}|b", shared: false }, Part { key: b"user", value: b"u1", shared: false }];
        for prefix in ["", "p|{q}:"] {
            let domain = domain_prefix(prefix, b"a|pi");
            let key = key(&domain, &entries(parts.into_iter(), 1), b"|fixed_window|1m");
            assert_eq!(domain_and_subject(key.as_bytes(), prefix), Some((&domain[..], &b"user=u1"[..])));
            let written = super::parts(key.entries(&domain).unwrap()).unwrap();
            assert_eq!(written, [(b"path".to_vec(), b"/{a}|b".to_vec()), (b"user".to_vec(), b"u1".to_vec())]);
        }
        assert_eq!(domain_and_subject(b"w1|api", ""), None);
    }

    #[test]
    fn durations_use_their_largest_unit() {
        let texts = [60 * SECOND, 90 * SECOND, 7 * DAY, 1_500, 250_000].map(duration);
        assert_eq!(texts, ["1m", "90s", "7d", "1500us", "250ms"]);
        assert_eq!(texts.map(|text| micros(&text)), [60 * SECOND, 90 * SECOND, 7 * DAY, 1_500, 250_000].map(Some));
        assert_eq!(["", "1", "d", "1w", "-1d", "99999999999999d"].map(micros), [None; 6]);
    }
}
