//! Where keys stand, and what to say of one that stands wrongly. What the keys are is in [`language`].

use super::foreign;
use super::language::{self, Field};
use super::problem::Severity;
pub(crate) use crate::spelling::nearest;

/// Where in a document a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    Document,
    Defaults,
    Response,
    /// Of one key, in `addresses`.
    Address,
    Descriptor,
    RateLimit,
    /// An item of `limits`.
    Limit,
    Replaces,
    /// The map form of `value`.
    Value,
    Quota,
    /// A tier, in `tiers`.
    Tier,
    /// The `tier` of a `rate_limit`.
    TierSource,
    Priority,
    Test,
    /// A step of a test.
    Step,
}

impl Level {
    pub const ALL: [Level; 15] = [
        Level::Document,
        Level::Defaults,
        Level::Response,
        Level::Address,
        Level::Descriptor,
        Level::RateLimit,
        Level::Limit,
        Level::Replaces,
        Level::Value,
        Level::Quota,
        Level::Tier,
        Level::TierSource,
        Level::Priority,
        Level::Test,
        Level::Step,
    ];

    /// As it stands in a sentence: "in …".
    pub fn name(self) -> &'static str {
        match self {
            Level::Document => "the document",
            Level::Defaults => "`defaults`",
            Level::Response => "`response`",
            Level::Address => "an item of `addresses`",
            Level::Descriptor => "a descriptor",
            Level::RateLimit => "`rate_limit`",
            Level::Limit => "an item of `limits`",
            Level::Replaces => "an item of `replaces`",
            Level::Value => "`value`",
            Level::Quota => "`quota`",
            Level::Tier => "a tier",
            Level::TierSource => "`tier`",
            Level::Priority => "`priority`",
            Level::Test => "a test",
            Level::Step => "a step of a test",
        }
    }

    /// How to get there, for a key that stands elsewhere.
    fn place(self) -> &'static str {
        match self {
            Level::Document => "at the top of the document, beside `domain`",
            Level::Defaults => "in the document's `defaults`",
            Level::Response => "in the document's `response`",
            Level::Address => "in an item of the document's `addresses`",
            Level::Descriptor => "on the descriptor, beside `key`",
            Level::RateLimit => "in the descriptor's `rate_limit`",
            Level::Limit => "in an item of the descriptor's `limits`",
            Level::Replaces => "in an item of `replaces`",
            Level::Value => "in the map form of `value`",
            Level::Quota => "in a `quota`",
            Level::Tier => "in a tier, below `tiers`",
            Level::TierSource => "in the `tier` of a `rate_limit`",
            Level::Priority => "in the document's `priority`",
            Level::Test => "in an item of `tests`",
            Level::Step => "in a step of a test",
        }
    }
}

/// Keys that the language has and this version does not.
const PLANNED: [&str; 4] = ["adaptive", "consistency", "deny_body", "max_waiting"];

/// Keys of `envoyproxy/ratelimit`, which accepts each of them in any map and ignores it where it means nothing.
const KEPT: [&str; 16] = [
    "descriptors",
    "detailed_metric",
    "domain",
    "key",
    "metadata",
    "name",
    "quota_mode",
    "rate_limit",
    "replaces",
    "requests_per_unit",
    "shadow_mode",
    "share_threshold",
    "unit",
    "unlimited",
    "value",
    "value_to_metric",
];

/// What a misplaced key of [`KEPT`] comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misplaced {
    /// It does nothing: a warning.
    Ignored,
    /// It does nothing beside this key; without it, requests would go unlimited: an error.
    IgnoredBeside(&'static str),
    /// What was meant is lost, and requests would be refused or go unlimited by mistake: an error, unless the value says nothing
    /// (`false`, or empty).
    Harmful,
}

/// What a key comes to on a level that does not have it; `None` if `envoyproxy/ratelimit` refuses it, too.
pub(crate) fn misplaced(level: Level, key: &str) -> Option<Misplaced> {
    use Level::{Descriptor, Document, RateLimit, Replaces};
    if has(level, key) || !KEPT.contains(&key) || ![Document, Descriptor, RateLimit, Replaces].contains(&level) {
        return None;
    }
    Some(match (level, key) {
        // The rule would refuse where it should only count.
        (_, "shadow_mode" | "quota_mode") => Misplaced::Harmful,
        // Limits that limit nothing.
        (_, "rate_limit") | (RateLimit | Replaces, "descriptors") => Misplaced::Harmful,
        // The rule would hold for every value.
        (RateLimit | Replaces, "value") => Misplaced::Harmful,
        (Document, "requests_per_unit") => Misplaced::IgnoredBeside("descriptors"),
        (Descriptor, "requests_per_unit") => Misplaced::IgnoredBeside("rate_limit"),
        _ => Misplaced::Ignored,
    })
}

/// The keys that a level does not have and accepts with a warning.
pub(crate) fn ignored(level: Level) -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    KEPT.into_iter().filter_map(move |key| match misplaced(level, key)? {
        Misplaced::Ignored => Some((key, None)),
        Misplaced::IgnoredBeside(other) => Some((key, Some(other))),
        Misplaced::Harmful => None,
    })
}

/// The keys that a level does not have and accepts, with a warning, where their value says nothing.
pub(crate) fn harmful(level: Level) -> impl Iterator<Item = &'static str> {
    KEPT.into_iter().filter(move |key| misplaced(level, key) == Some(Misplaced::Harmful))
}

/// What is wrong with a key, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyProblem {
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// The keys of a level.
pub(crate) fn of(level: Level) -> impl Iterator<Item = &'static str> {
    language::fields(level).iter().map(|field: &Field| field.name)
}

pub(crate) fn has(level: Level, key: &str) -> bool {
    of(level).any(|known| known == key)
}

/// The keys at the top of a document that say something about the whole domain; those that others depend on come first.
pub(crate) fn settings() -> impl Iterator<Item = &'static str> {
    of(Level::Document).filter(|key| !["domain", "descriptors", "tests"].contains(key))
}

/// `None` for a key that stands rightly on this level, in a map with these `others`. `says_nothing`: its value is `false`, or empty.
pub(crate) fn check(level: Level, key: &str, says_nothing: bool, others: impl Fn(&str) -> bool) -> Option<KeyProblem> {
    if has(level, key) {
        return None;
    }
    let is_ignored = match misplaced(level, key) {
        Some(Misplaced::Ignored) => true,
        Some(Misplaced::IgnoredBeside(other)) => others(other),
        Some(Misplaced::Harmful) => says_nothing,
        None => false,
    };
    let severity = if is_ignored { Severity::Warning } else { Severity::Error };
    let problem = |message: String, hint: String| Some(KeyProblem { severity, message, hint });
    if PLANNED.contains(&key) {
        let hint = "leave it out; the rules without it mean what they say".to_owned();
        return problem(format!("this version of weir does not have `{key}` yet"), hint);
    }
    let places = places(key);
    if (level, key) == (Level::Document, "name") {
        return problem(
            "`name` does nothing in the document".to_owned(),
            "leave it out: a document is known by its `domain`".to_owned(),
        );
    }
    if !places.is_empty() {
        return problem(format!("`{key}` does nothing in {}", level.name()), format!("it belongs {}", places.join(", or ")));
    }
    let message = format!("unknown key `{key}` in {}", level.name());
    if let Some(hint) = foreign::hint(key) {
        return problem(message, hint);
    }
    if let Some(near) = nearest(key, of(level)) {
        return problem(message, format!("did you mean `{near}`?"));
    }
    let elsewhere = nearest(key, Level::ALL.into_iter().flat_map(of));
    match elsewhere.map(|near| (near, self::places(near))) {
        Some((near, places)) => problem(message, format!("did you mean `{near}`, which belongs {}?", places.join(", or "))),
        None => problem(message, format!("known here: {}", of(level).collect::<Vec<_>>().join(", "))),
    }
}

fn places(key: &str) -> Vec<&'static str> {
    Level::ALL.into_iter().filter(|level| has(*level, key)).map(Level::place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(level: Level, key: &str) -> String {
        check(level, key, false, |_| false).expect("a problem").hint
    }

    #[test]
    fn a_slip_is_recognized() {
        assert_eq!(hint(Level::RateLimit, "requestsPerUnit"), "did you mean `requests_per_unit`?");
        assert_eq!(hint(Level::Descriptor, "ratelimit"), "did you mean `rate_limit`?");
        assert_eq!(hint(Level::Document, "descriptor"), "did you mean `descriptors`?");
    }

    #[test]
    fn a_misplaced_key_is_told_where_it_belongs() {
        assert_eq!(hint(Level::RateLimit, "shadow_mode"), "it belongs on the descriptor, beside `key`");
        assert_eq!(
            hint(Level::RateLimit, "shadowmode"),
            "did you mean `shadow_mode`, which belongs on the descriptor, beside `key`?"
        );
    }

    #[test]
    fn a_key_of_another_file_is_not_taken_for_a_slip() {
        for level in [Level::Document, Level::Descriptor, Level::RateLimit, Level::Response] {
            for key in ["header_name", "descriptor_key", "request_headers", "actions", "stage", "source_cluster"] {
                let hint = hint(level, key);
                assert!(hint.contains("Envoy's configuration") && !hint.contains("did you mean"), "{key}: {hint}");
            }
        }
        assert!(hint(Level::Document, "apiVersion").contains("Kubernetes"));
        assert!(hint(Level::Descriptor, "max_value").contains("limitador"));
        assert_eq!(hint(Level::RateLimit, "requests_per_second"), "write `requests_per_unit` and `unit: second`");
    }

    #[test]
    fn a_guess_has_most_letters_in_common() {
        assert_eq!(nearest("header_name", ["headers"].into_iter()), None);
        assert_eq!(nearest("kay", ["key"].into_iter()), Some("key"));
        assert_eq!(nearest("header", ["headers"].into_iter()), Some("headers"));
    }

    #[test]
    fn what_is_ignored_elsewhere_is_a_warning_unless_it_does_harm() {
        let severity = |level, key| check(level, key, false, |_| false).expect("a problem").severity;
        for key in ["name", "unit", "detailed_metric", "key"] {
            assert_eq!(severity(Level::Document, key), Severity::Warning, "{key}");
        }
        for key in ["shadow_mode", "quota_mode", "value", "descriptors"] {
            assert_eq!(severity(Level::RateLimit, key), Severity::Error, "{key}");
        }
        assert_eq!(severity(Level::Descriptor, "requests_per_unit"), Severity::Error);
        let beside = check(Level::Descriptor, "requests_per_unit", false, |other| other == "rate_limit");
        assert_eq!(beside.expect("a problem").severity, Severity::Warning);
        assert_eq!(severity(Level::Limit, "name"), Severity::Error, "a map that only weir has");
    }

    #[test]
    fn no_key_is_there_twice_nor_both_built_and_planned() {
        for level in Level::ALL {
            let keys: Vec<&str> = of(level).collect();
            assert!(keys.iter().all(|key| !PLANNED.contains(key) && keys.iter().filter(|other| *other == key).count() == 1));
        }
    }
}
