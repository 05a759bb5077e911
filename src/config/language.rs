//! Every key of the rule language: what stands behind it, what holds without it, what it means. The loader refuses whatever is
//! not here, the JSON Schema is made of it, and `docs/rules.md` is checked against it.

use super::keys::Level;
use super::{limits, parse, plans, rule_tests};
use crate::limit::Algorithm;
use crate::rules::Unit;

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub shape: Shape,
    pub presence: Presence,
    /// What holds where it is left out, as it would be written; `None`: nothing, or what depends on something else.
    pub default: Option<&'static str>,
    /// For whoever is typing it.
    pub description: &'static str,
}

/// Whether it may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Required,
    /// Null is as good as absent.
    Optional,
    /// Null is an error.
    NotNull,
}

/// The names that may stand somewhere, from the table that the loader reads them by.
pub type Names = fn() -> Vec<&'static str>;

/// What may stand behind a key.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Any scalar as it is written, but not the empty text.
    Text,
    /// Any scalar as it is written, also none.
    Scalar,
    Boolean,
    /// A number of requests, or -1.
    Amount,
    /// A whole number from the first to the second.
    Count(u64, u64),
    Burst,
    Duration,
    /// A duration, or zero.
    Time,
    ShortForm,
    Network,
    Choice(Names),
    /// In upper or lower case.
    ChoiceOfAnyCase(Names),
    Map(Level),
    /// A map, or null for one that says nothing.
    MapOrNull(Level),
    /// A map of what the metadata of a rule may hold: anything.
    AnyMap,
    /// At least one item.
    List(&'static Shape),
    /// Also none.
    AnyList(&'static Shape),
    /// A map from names of the operator's own.
    Named(&'static Shape),
    /// Weights by the values of an entry, at least one.
    Weights,
    /// The entries of a descriptor, also none.
    Entries,
    /// A map from classes, in any case, to percentages.
    Shares(Names),
    Either(&'static [Shape]),
}

/// The first elements of a table.
pub(super) fn names<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(name, _)| *name).collect()
}

const fn field(name: &'static str, shape: Shape, description: &'static str) -> Field {
    Field { name, shape, presence: Presence::Optional, default: None, description }
}

impl Field {
    const fn or(self, default: &'static str) -> Field {
        Field { default: Some(default), ..self }
    }

    const fn required(self) -> Field {
        Field { presence: Presence::Required, ..self }
    }

    const fn not_null(self) -> Field {
        Field { presence: Presence::NotNull, ..self }
    }
}

const ALGORITHM: Shape = Shape::Choice(|| Algorithm::OF_RATES.map(Algorithm::name).to_vec());
const ON_STORE_FAILURE: Shape = Shape::Choice(|| names(&parse::ON_STORE_FAILURE));
const CLASS: Shape = Shape::Choice(|| names(&plans::CLASSES));
const LIMITS: Shape =
    Shape::Either(&[Shape::List(&Shape::Either(&[Shape::ShortForm, Shape::Map(Level::Limit)])), Shape::ShortForm]);

/// The keys of a level. Of the document's, what others depend on comes first.
pub const fn fields(level: Level) -> &'static [Field] {
    match level {
        Level::Document => DOCUMENT,
        Level::Defaults => DEFAULTS,
        Level::Response => RESPONSE,
        Level::Address => ADDRESS,
        Level::Descriptor => DESCRIPTOR,
        Level::RateLimit => RATE_LIMIT,
        Level::Limit => LIMIT,
        Level::Replaces => REPLACES,
        Level::Value => VALUE,
        Level::Quota => QUOTA,
        Level::Tier => TIER,
        Level::TierSource => TIER_SOURCE,
        Level::Priority => PRIORITY,
        Level::Test => TEST,
        Level::Step => STEP,
    }
}

const DOCUMENT: &[Field] = &[
    field("domain", Shape::Text, "The `domain` of Envoy's rate-limit filter.").required(),
    field("descriptors", Shape::AnyList(&Shape::Map(Level::Descriptor)), "The rules. [] is a domain without rules.").or("[]"),
    field(
        "subject",
        Shape::Either(&[Shape::AnyList(&Shape::Text), Shape::Text]),
        "Entry keys: the first of them that a descriptor has says whom it is about. Else its first entry does.",
    ),
    field(
        "addresses",
        Shape::Either(&[Shape::AnyList(&Shape::Text), Shape::Text, Shape::Named(&Shape::MapOrNull(Level::Address))]),
        "Keys of entries that hold addresses or networks, which are counted by network; as a map, with the lengths of their prefixes.",
    ),
    field("defaults", Shape::Map(Level::Defaults), "What holds for rules that do not say otherwise."),
    field("response", Shape::Map(Level::Response), "What an answer carries beside its verdict."),
    field(
        "timezone",
        Shape::Text,
        "In whose days and months quotas are counted: a name of the IANA database, such as Europe/Berlin.",
    )
    .or("UTC"),
    field("tiers", Shape::Named(&Shape::Map(Level::Tier)), "Named plans, for rules whose limits are those of the caller's tier."),
    field("default_tier", Shape::Text, "The tier of callers that name none, or one that is not there."),
    field(
        "costs",
        Shape::Named(&Shape::Weights),
        "What a request weighs, by the values of its entries: {method: {GET: 1, POST: 2}}. Several multiply; what is not listed is 1.",
    ),
    field("priority", Shape::Map(Level::Priority), "Classes of requests, and what of a shared limit each leaves free."),
    field("accept_overrides", Shape::Boolean, "Whether a request may bring its own limit.").or("true"),
    field("accept_refunds", Shape::Boolean, "Whether a request may give hits back.").or("true"),
    field("tests", Shape::AnyList(&Shape::Map(Level::Test)), "Requests with what must come of them, played by `weir check`."),
];

const DEFAULTS: &[Field] = &[
    field("algorithm", ALGORITHM, "How limits count that do not name an algorithm.").or("fixed_window"),
    field("on_store_failure", ON_STORE_FAILURE, "What holds when Redis cannot say, for rules that do not say.").or("error"),
];

const RESPONSE: &[Field] = &[
    field("headers", Shape::AnyList(&Shape::Choice(|| names(&parse::HEADERS))), "Which response headers an answer has.").or("[]"),
    field("body", Shape::Choice(|| names(&parse::BODIES)), "problem: refusals have an application/problem+json body.").or("none"),
    field("metadata", Shape::Boolean, "Dynamic metadata about the rule that the answer is about.").or("false"),
    field(
        "reset_format",
        Shape::Choice(|| names(&parse::RESET_FORMATS)),
        "How reset headers give a time. delta: seconds from now; epoch: seconds since 1970; iso: RFC 3339, in UTC.",
    )
    .or("delta"),
];

const ADDRESS: &[Field] = &[
    field("ipv4", Shape::Count(1, 32), "How many leading bits of an IPv4 address are one caller's.").or("32"),
    field("ipv6", Shape::Count(1, 128), "How many leading bits of an IPv6 address are one caller's.").or("64"),
];

const DESCRIPTOR: &[Field] = &[
    field("key", Shape::Text, "The key of an entry of Envoy's descriptor.").required(),
    field(
        "value",
        Shape::Either(&[Shape::Scalar, Shape::Map(Level::Value)]),
        "What the entry's value must be: one value; with `*`, a wildcard; a pattern; absent, any value.",
    ),
    field("rate_limit", Shape::Either(&[Shape::Map(Level::RateLimit), Shape::ShortForm]), "The limit."),
    field("limits", LIMITS, "Several limits, all of which must allow.").not_null(),
    field("quota", Shape::Map(Level::Quota), "Limits of the calendar, beside the others or alone."),
    field("descriptors", Shape::AnyList(&Shape::Map(Level::Descriptor)), "The next entry."),
    field("name", Shape::Scalar, "What headers, metrics and `replaces` call the rule; else its path."),
    field("block_for", Shape::Duration, "Once one of the rule's limits has refused, its counter refuses everything for so long."),
    field("allow", Shape::Boolean, "Requests that match are OK as a whole, and nothing is counted.").or("false"),
    field("deny", Shape::Boolean, "Requests that match are refused. Comes before `allow`.").or("false"),
    field("reserve", Shape::Boolean, "Of the limits, a share is kept free for the more important classes of `priority`.")
        .or("false"),
    field(
        "on_store_failure",
        ON_STORE_FAILURE,
        "When Redis cannot say, or memory is full. error: UNAVAILABLE, so that failure_mode_deny in Envoy decides; allow: OK; deny: refused; local: the \
         process decides by its own counters, with its share of the limit.",
    ),
    field("shadow_mode", Shape::Boolean, "The rule counts and never refuses.").or("false"),
    field(
        "quota_mode",
        Shape::Boolean,
        "The rule refuses only if all rules of the request in this mode are over; in shadow mode it never is.",
    )
    .or("false"),
    field("share_threshold", Shape::Boolean, "All values that match the pattern in `value` share one counter.").or("false"),
    field("detailed_metric", Shape::Boolean, "Accepted, without effect.").or("false"),
    field("value_to_metric", Shape::Boolean, "Accepted, without effect.").or("false"),
    field("metadata", Shape::AnyMap, "Merged into the dynamic metadata of answers that this rule lets pass."),
];

const UNIT: Field = field(
    "unit",
    Shape::ChoiceOfAnyCase(|| Unit::ALL.map(Unit::name).to_vec()),
    "In what time: a month is 30 days, a year 365. Goes with `requests_per_unit`; any other time is a `window`.",
)
.not_null();
const REQUESTS_PER_UNIT: Field =
    field("requests_per_unit", Shape::Amount, "How many in a `unit`. 0 refuses everything, -1 is unlimited.").not_null();
const WINDOW: Field =
    field("window", Shape::Duration, "Any time up to ten years: 250ms, 30s, 1h30m, 1d. Goes with `requests`.").not_null();
const REQUESTS: Field =
    field("requests", Shape::Amount, "How many in a `window`. 0 refuses everything, -1 is unlimited.").not_null();
const UNLIMITED: Field = field("unlimited", Shape::Boolean, "No limit.").or("false");
const OWN_ALGORITHM: Field = field(
    "algorithm",
    ALGORITHM,
    "fixed_window: counts from the full minute, hour, …; sliding_window: weighs the previous window in; sliding_window_log: exact, up to \
     10,000 requests; token_bucket: refilled continuously, `burst` at once; leaky_bucket: lets requests wait for their turn.",
);
const BURST: Field = field("burst", Shape::Burst, "A bucket's capacity; +50 is 50 more than the requests.");
const BLOCK_FOR: Field =
    field("block_for", Shape::Duration, "Once the limit has refused, its counter refuses everything for so long.");
const MAX_WAIT: Field = field(
    "max_wait",
    Shape::Duration,
    "leaky_bucket: weir holds the answer back itself until the request's turn, for so long at most.",
);
const CHARGE: Field = field(
    "charge",
    Shape::Choice(|| names(&limits::CHARGES)),
    "What is counted although it is refused. admitted: nothing; always: everything; auto: the cost of work already done.",
);

const RATE_LIMIT: &[Field] = &[
    UNIT,
    REQUESTS_PER_UNIT,
    WINDOW,
    REQUESTS,
    UNLIMITED,
    OWN_ALGORITHM,
    BURST,
    BLOCK_FOR,
    MAX_WAIT,
    CHARGE,
    field("tier", Shape::Map(Level::TierSource), "The limits are those of the caller's tier.").not_null(),
    field("use", Shape::Text, "Which set of the tier's limits; a tier without it has its default one, or its list.").or("default"),
    field("name", Shape::Scalar, "What headers, metrics and `replaces` call the rule; else the descriptor's name."),
    field(
        "replaces",
        Shape::AnyList(&Shape::Map(Level::Replaces)),
        "Rules that this one stands in for where both match a request.",
    ),
];

const LIMIT: &[Field] = &[UNIT, REQUESTS_PER_UNIT, WINDOW, REQUESTS, UNLIMITED, OWN_ALGORITHM, BURST, BLOCK_FOR, MAX_WAIT, CHARGE];

const REPLACES: &[Field] = &[field("name", Shape::Text, "The name of another rule of this domain.").required()];

const VALUE: &[Field] = &[
    field("one_of", Shape::List(&Shape::Scalar), "One of these values.").not_null(),
    field("cidr", Shape::Network, "An IPv4 or IPv6 address, or a network, in this network: 10.0.0.0/8, 2001:db8::/32.").not_null(),
    field("regex", Shape::Text, "Found anywhere in the value: write ^ and $ to match all of it.").not_null(),
];

const QUOTA: &[Field] = &[
    field("daily", Shape::Amount, "Requests a day of the domain's time zone. -1 is no quota."),
    field("monthly", Shape::Amount, "Requests a month of the domain's time zone. -1 is no quota."),
];

const TIER: &[Field] = &[
    field(
        "limits",
        Shape::Either(&[
            Shape::List(&Shape::Either(&[Shape::ShortForm, Shape::Map(Level::Limit)])),
            Shape::ShortForm,
            Shape::Named(&LIMITS),
        ]),
        "The limits; as a map, sets of them, of which a rule takes the one that it names with `use`, else `default`.",
    )
    .not_null(),
    field(
        "burst",
        Shape::Burst,
        "The capacity of the first limit of each set, which becomes a token_bucket if it does not name its algorithm.",
    ),
    field("quota", Shape::Map(Level::Quota), "Limits of the calendar, with every set."),
    field("priority", CLASS, "The class of its callers' requests that name none."),
    field("unlimited", Shape::Boolean, "No rate limit, whatever set a rule names.").or("false"),
];

const TIER_SOURCE: &[Field] = &[
    field("entry", Shape::Text, "The request says its tier in the entry of this key.").not_null(),
    field("assigned", Shape::Text, "The tier was assigned to the subject that the entry of this key names.").not_null(),
];

const PRIORITY: &[Field] = &[
    field("entry", Shape::Text, "The key of the entry that names a request's class: critical, high, normal or low.").required(),
    field("default", CLASS, "The class of requests that name none, and whose tier has none.").or("normal"),
    field(
        "reserve",
        Shape::Shares(|| plans::CLASSES.iter().skip(1).map(|(name, _)| *name).collect()),
        "What each class leaves free for those above it, such as {high: 10%, normal: 25%, low: 50%}.",
    ),
];

const TEST: &[Field] = &[
    field("name", Shape::Scalar, "What it shows.").or("unnamed"),
    field("steps", Shape::AnyList(&Shape::Map(Level::Step)), "What is asked, in order.").required(),
];

const STEP: &[Field] = &[
    field("at", Shape::Time, "When, from the beginning; else when the step before it was."),
    field("descriptors", Shape::AnyList(&Shape::Entries), "The request's descriptors, each a map of its entries.").required(),
    field("hits", Shape::Count(0, u32::MAX as u64), "The hits of the request.").or("1"),
    field("repeat", Shape::Count(0, rule_tests::MAX_REPEAT), "Asked so many times, each with the same answer.").or("1"),
    field("expect", Shape::Choice(|| names(&rule_tests::CODES)), "What must come of it.").required(),
    field("limited_by", Shape::Scalar, "The name of the rule that refuses, else its path."),
];
