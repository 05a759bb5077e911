//! Where a reservation is kept, `<prefix>w1|<domain>|{<subject>}|reservation|<idempotency key>`: beside its subject's counters, and
//! no counter. Its id is that name without prefix and version, as text: what is no visible ASCII, and `%`, is written `%XX`. Of what
//! nothing limits nothing is kept: its id, `unlimited|<estimate>`, is all there is of it.

use crate::limit::Cost;
use crate::limit::reservation::MAX_AMOUNT;
use crate::rules::key::{self, Key, STATE_VERSION};

/// The longest idempotency key, in bytes: a longer one would be cut in the name.
pub const MAX_IDEMPOTENCY_KEY: usize = key::MAX_PART;
/// The longest id, in bytes: more than any reservation has.
pub const MAX_ID: usize = 8 * key::MAX_KEY;

const WHAT: &[u8] = b"}|reservation|";
/// No reservation's id begins so: after a domain there is `|{`.
const UNLIMITED: &str = "unlimited|";

/// The name of a reservation of a subject in the domain whose counters begin so.
pub fn key_of(domain_prefix: &[u8], subject: &[u8], idempotency_key: &str) -> Key {
    let name = key::domain(idempotency_key.as_bytes());
    Key::from_bytes([domain_prefix, b"|{", subject, WHAT, &name].concat())
}

/// A reservation's id, where names begin with `prefix`.
pub fn shown(key: &Key, prefix: &str) -> String {
    let mut id = String::with_capacity(key.as_bytes().len());
    for &byte in key.as_bytes().get(prefix.len() + STATE_VERSION.len() + 1..).unwrap_or_default() {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => id.push_str(&format!("%{byte:02X}")),
            visible => id.push(char::from(visible)),
        }
    }
    id
}

/// The reservation of an id. `None` for what is no id: nobody reads or writes another key by making one up.
pub fn key_named(id: &str, prefix: &str) -> Option<Key> {
    let name = key::unescape(id.as_bytes());
    let open = name.iter().position(|&byte| byte == b'|')?;
    let (domain, rest) = name.split_at(open);
    let rest = rest.strip_prefix(b"|{")?;
    let close = rest.iter().position(|&byte| byte == b'}')?;
    let (subject, rest) = rest.split_at(close);
    let own = rest.strip_prefix(WHAT)?;
    let is_part = |part: &[u8]| !part.iter().any(|byte| matches!(byte, b'|' | b'{' | b'}'));
    if domain.is_empty() || own.is_empty() || id.len() > MAX_ID || ![domain, subject, own].into_iter().all(is_part) {
        return None;
    }
    let key = Key::from_bytes([prefix.as_bytes(), STATE_VERSION.as_bytes(), b"|", &name].concat());
    (shown(&key, prefix) == id).then_some(key)
}

/// The id of an estimate that nothing limits.
pub fn unlimited(estimate: Cost) -> String {
    format!("{UNLIMITED}{estimate}")
}

/// The estimate of an id that says it itself.
pub fn unlimited_estimate(id: &str) -> Option<Cost> {
    let estimate = id.strip_prefix(UNLIMITED)?.parse().ok()?;
    ((1..=MAX_AMOUNT).contains(&estimate) && unlimited(estimate) == id).then_some(estimate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::key::{Part, domain_prefix, subject};

    #[test]
    fn an_id_finds_its_reservation_whatever_is_in_it() {
        let long = "x".repeat(500);
        let subjects: [(&[u8], &[u8]); 6] = [
            (b"user", b"u1"),
            (b"us=er", b"a|b {c}"),
            (b"user", b"\xff\x00\n"),
            (b"user", "\u{e4}%41".as_bytes()),
            (b"user", long.as_bytes()),
            (b"", b""),
        ];
        for prefix in ["", "a|{b}%:"] {
            for domain in ["llm", "a|b{c}%\n", &long] {
                for (key, value) in subjects {
                    for name in ["call-1", "a|b {c} %20", "\u{e4}\n"] {
                        let part = Part { key, value, shared: false };
                        let key = key_of(&domain_prefix(prefix, domain.as_bytes()), &subject(part), name);
                        let id = shown(&key, prefix);
                        assert!(id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic()), "{id}");
                        assert_eq!(key_named(&id, prefix), Some(key), "{id}");
                    }
                }
            }
        }
        let key = key_of(b"p:w1|llm", b"user_id=u1", "call-1");
        assert_eq!(shown(&key, "p:"), "llm|{user_id=u1}|reservation|call-1");
    }

    #[test]
    fn what_nothing_limits_is_no_reservation() {
        for estimate in [1, 7, MAX_AMOUNT] {
            assert_eq!(unlimited_estimate(&unlimited(estimate)), Some(estimate));
            assert_eq!(key_named(&unlimited(estimate), ""), None);
        }
        let reservation = key_of(&domain_prefix("", b"unlimited"), b"7=", "7");
        let long = unlimited(MAX_AMOUNT + 1);
        for id in ["", "unlimited", "unlimited|", "unlimited|0", "unlimited|+7", "unlimited|07", &long, &shown(&reservation, "")] {
            assert_eq!(unlimited_estimate(id), None, "{id}");
        }
    }

    #[test]
    fn what_is_no_id_names_no_key() {
        let good = "llm|{user_id=u1}|reservation|call-1";
        assert!(key_named(good, "").is_some());
        let bad = [
            "",
            "call-1",
            "llm|{user_id=u1}|fixed_window|1m",
            "llm|{user_id=u1}|reservation|",
            "|{user_id=u1}|reservation|call-1",
            "llm|{user_id=u1}|reservation|call-1|more",
            "llm|path=a|{user_id=u1}|reservation|call-1",
            "llm|{user_id=u1}|reservation|%63all-1",
            "llm|{user_id=u1}|reservation|call 1",
            "{records}|reservation|x",
        ];
        for id in bad {
            assert_eq!(key_named(id, ""), None, "{id}");
        }
        assert_eq!(key_named(&format!("{good}{}", "x".repeat(MAX_ID)), ""), None);
    }
}
