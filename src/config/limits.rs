//! The limits of a descriptor: `rate_limit` and the items of `limits`.

use super::fields::{self, Amount, Fields, describe};
use super::keys::{self, Level};
use super::problem::{Path, Report};
use super::raw::{Kind, Node, Scalar, Span, Value};
use super::short::{self, SHORT_HINT};
use super::tiers::{self, TierUse};
use crate::limit::{Algorithm, Limit, LimitError, Micros, Period, Shape};
use crate::rules::{ChargeRule, Unit};

pub(super) const CHARGES: [(&str, ChargeRule); 3] =
    [("auto", ChargeRule::Auto), ("admitted", ChargeRule::Admitted), ("always", ChargeRule::Always)];

const QUOTAS: [(&str, Period); 2] = [("daily", Period::Day), ("monthly", Period::Month)];

/// What the limits of one descriptor come to.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    pub(crate) limits: Vec<Draft>,
    /// Where it says that there is no limit.
    pub(crate) unlimited: Option<Span>,
    /// Every `block_for`; only one may be.
    pub(crate) blocks: Vec<(Span, Micros)>,
    /// Limits that are written, good or bad.
    pub(crate) written: usize,
    /// The limits are those of tiers.
    pub(crate) tier: Option<TierUse>,
}

/// A limit that has no name yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) at: Span,
    pub(crate) limit: Limit,
    /// As it is written.
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) charge: Option<ChargeRule>,
    pub(crate) max_wait: Option<Micros>,
}

/// How a rule's `rate_limit` is called, and what it stands in for.
#[derive(Debug, Default)]
pub(crate) struct Naming<'n> {
    pub(crate) name: Option<&'n str>,
    pub(crate) replaces: Vec<(Span, &'n str)>,
}

/// Reads `rate_limit`. Beside `limits` it may do without a limit of its own.
pub(crate) fn rate_limit<'n>(
    node: &'n Node<'_>,
    beside_limits: bool,
    default: Option<Algorithm>,
    path: &Path<'_>,
    report: &mut Report<'_>,
    drafts: &mut Drafts,
) -> Naming<'n> {
    let path = path.key("rate_limit");
    match &node.value {
        Value::Scalar(Scalar { kind: Kind::Null, .. }) => {
            empty(node, &path, report);
            Naming::default()
        }
        Value::Scalar(_) => {
            short::limits(node, default, &path, report, drafts);
            Naming::default()
        }
        _ => {
            let Some(fields) = Fields::read(node, Level::RateLimit, &path, report) else {
                drafts.written += 1;
                return Naming::default();
            };
            if fields.is_empty() {
                empty(node, &path, report);
                return Naming::default();
            }
            let has_limit = ["unit", "requests_per_unit", "window", "requests"].iter().any(|key| fields.has(key));
            let has_limit = has_limit || fields.given("unlimited").is_some();
            if fields.has("use") && !fields.has("tier") {
                let problem = report.error(fields.place("use"), path, "`use` does nothing without `tier`");
                problem.hint("it picks a set of limits of the caller's tier");
            }
            if fields.has("tier") {
                by_tier(&fields, &path, report, drafts);
            } else if beside_limits && !has_limit {
                only_names(&fields, &path, report);
            } else {
                limit(&fields, Level::RateLimit, default, &path, report, drafts);
            }
            naming(&fields, &path, report)
        }
    }
}

/// A `rate_limit` without anything in it is as good as absent.
fn empty(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) {
    let problem = report.warning(node.at, path, "`rate_limit` is empty: it limits nothing");
    problem.hint("give it `unit` and `requests_per_unit`, or leave it out");
}

/// A `rate_limit` that says beside `limits` what they are called, and has no limit that the rest could be about.
fn only_names(fields: &Fields<'_, '_>, path: &Path<'_>, report: &mut Report<'_>) {
    if fields.has_unknown(Level::RateLimit) {
        return;
    }
    for key in keys::of(Level::Limit).filter(|key| fields.given(key).is_some()) {
        let message = format!("`{key}` does nothing in a `rate_limit` that has no limit of its own");
        report.error(fields.place(key), path, message).hint(match key {
            "block_for" => "write it on the descriptor, beside `limits`",
            _ => "write it in the items of `limits`, in their map form, or give this one `unit` and `requests_per_unit`",
        });
    }
}

/// A `rate_limit` whose limits are those of the caller's tier.
fn by_tier(fields: &Fields<'_, '_>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    drafts.written += 1;
    let own = keys::of(Level::Limit).find(|key| *key != "block_for" && fields.given(key).is_some());
    if let Some(key) = own {
        let problem = report.error(fields.place(key), path, format!("`{key}` does nothing beside `tier`"));
        problem.hint("the limits are those of the tiers: write it there");
    }
    if let Some(node) = fields.given("block_for") {
        let duration = fields::duration(node, &path.key("block_for"), report);
        drafts.blocks.extend(duration.map(|duration| (fields.place("block_for"), duration)));
    }
    drafts.tier = tiers::tier_use(fields, path, report);
}

fn naming<'n>(fields: &Fields<'n, '_>, path: &Path<'_>, report: &mut Report<'_>) -> Naming<'n> {
    let mut naming = Naming { name: name(fields, path, report), replaces: Vec::new() };
    let Some(node) = fields.get("replaces") else { return naming };
    let path = path.key("replaces");
    let Some(items) = fields::items(node, &path, report) else { return naming };
    for (place, item) in items.iter().enumerate() {
        let path = path.item(place);
        let Some(fields) = Fields::read(item, Level::Replaces, &path, report) else { continue };
        match fields.get("name") {
            Some(node) => match fields::text(node, &path, report) {
                Some("") => {
                    report.error(node.at, path, "the name of a rule to replace is empty");
                }
                Some(name) if naming.name == Some(name) => {
                    report.error(node.at, path, format!("`{name}` replaces itself")).hint("name the rule that it stands in for");
                }
                Some(name) => naming.replaces.push((node.at, name)),
                None => {}
            },
            None if fields.has_unknown(Level::Replaces) => {}
            None => {
                report.error(item.at, path, "`name` is missing: which rule does it replace?");
            }
        }
    }
    naming
}

/// The `name` of a descriptor or a `rate_limit`; null is none.
pub(crate) fn name<'n>(fields: &Fields<'n, '_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<&'n str> {
    let node = fields.given("name")?;
    let name = fields::text(node, &path.key("name"), report)?;
    if name.is_empty() {
        let problem = report.warning(node.at, path.key("name"), "the name is empty, so the rule has none");
        problem.hint("leave it out, or give the rule a name");
        return None;
    }
    Some(name)
}

/// Reads `limits`: a list of maps and short forms, or one short form.
pub(crate) fn limits(node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    list(node, default, &path.key("limits"), report, drafts);
}

/// As [`limits`], whatever the list is called.
pub(crate) fn list(node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    let items = match &node.value {
        Value::List(items) => items,
        Value::Scalar(Scalar { kind, .. }) if *kind != Kind::Null => return short::limits(node, default, path, report, drafts),
        _ => {
            drafts.written += 1;
            let message = format!("expected a list of limits or a short form, found {}", describe(node));
            report.error(node.at, path, message).hint(SHORT_HINT);
            return;
        }
    };
    if items.is_empty() {
        drafts.written += 1;
        report.error(node.at, path, "`limits` is empty: it limits nothing").hint("leave it out, or write [unlimited]");
    }
    for (place, item) in items.iter().enumerate() {
        let path = path.item(place);
        match &item.value {
            Value::Scalar(_) => short::limits(item, default, &path, report, drafts),
            _ => match Fields::read(item, Level::Limit, &path, report) {
                Some(fields) => limit(&fields, Level::Limit, default, &path, report, drafts),
                None => drafts.written += 1,
            },
        }
    }
}

/// Reads `quota`: calendar limits beside the others. `-1` is no quota.
pub(crate) fn quota(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    let path = path.key("quota");
    let is_only = drafts.written == 0;
    drafts.written += 1;
    let errors = report.errors();
    let Some(fields) = Fields::read(node, Level::Quota, &path, report) else { return };
    let mut given = 0;
    for (key, period) in QUOTAS {
        let Some(node) = fields.given(key) else { continue };
        given += 1;
        let Some(Amount::Requests(requests)) = fields::amount(node, &path.key(key), report) else { continue };
        match Limit::quota(period, requests) {
            Ok(limit) => drafts.limits.push(Draft { at: fields.place(key), limit, algorithm: None, charge: None, max_wait: None }),
            Err(error) => {
                report.error(node.at, path.key(key), error.to_string());
            }
        }
    }
    if given == 0 && report.errors() == errors {
        report.error(node.at, path, "`quota` is empty: it limits nothing").hint("give it `daily`, `monthly`, or both");
    } else if is_only && drafts.limits.is_empty() {
        drafts.unlimited = Some(node.at);
    }
}

/// The map form of a limit.
fn limit(
    fields: &Fields<'_, '_>,
    level: Level,
    default: Option<Algorithm>,
    path: &Path<'_>,
    report: &mut Report<'_>,
    drafts: &mut Drafts,
) {
    drafts.written += 1;
    match fields.get("unlimited").map(|node| fields::boolean(node, &path.key("unlimited"), report)) {
        Some(Some(true)) => return unlimited(fields, path, report, drafts),
        Some(None) => return,
        Some(Some(false)) | None => {}
    }
    if let Some(node) = fields.given("block_for") {
        let duration = fields::duration(node, &path.key("block_for"), report);
        drafts.blocks.extend(duration.map(|duration| (fields.place("block_for"), duration)));
    }
    let errors = report.errors();
    let algorithm = fields.given("algorithm").map(|node| algorithm(node, path, report));
    let amount = amount(fields, level, path, report);
    let window = window(fields, level, path, report);
    let charge = fields.given("charge").map(|node| fields::choice(node, &CHARGES, "charge", &path.key("charge"), report));
    let max_wait = fields.given("max_wait").map(|node| fields::duration(node, &path.key("max_wait"), report));
    let burst = fields.given("burst").map(|node| burst(node, path, report));
    let (Some(amount), Some(window)) = (amount, window) else { return };
    if report.errors() > errors {
        return;
    }
    let Amount::Requests(requests) = amount else {
        drafts.unlimited = Some(fields.at);
        return;
    };
    let burst = burst.flatten().map(|burst| burst.capacity(requests));
    let written = algorithm.flatten();
    let algorithm = match written {
        Some(algorithm) => algorithm,
        None if burst.is_some() => bucket(default),
        None => default.unwrap_or(Algorithm::FixedWindow),
    };
    if max_wait.is_some() && algorithm != Algorithm::LeakyBucket {
        let message = format!("`max_wait` does nothing with {}: only a leaky bucket asks callers to wait", algorithm.name());
        report.error(fields.place("max_wait"), path, message).hint("add `algorithm: leaky_bucket`, or leave it out");
        return;
    }
    match Limit::new(algorithm, requests, window, burst) {
        Ok(limit) => {
            if let Some(node) = fields.given("burst") {
                warn_of_no_room(&limit, node, path, report);
            }
            let (charge, max_wait) = (charge.flatten(), max_wait.flatten());
            drafts.limits.push(Draft { at: fields.at, limit, algorithm: written, charge, max_wait });
        }
        Err(error) => {
            let key = blamed(&error, fields);
            report.error(fields.get(key).map_or(fields.at, |node| node.at), path, error.to_string());
        }
    }
}

/// A bucket that is refilled and has no room admits nothing, which is seldom what was meant.
pub(super) fn warn_of_no_room(limit: &Limit, burst: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) {
    if limit.burst() == 0 && limit.requests() > 0 {
        let problem = report.warning(burst.at, path.key("burst"), "a bucket with a burst of 0 has no room: it refuses everything");
        problem.hint("`burst` is the capacity: leave it out for that of the requests, or write 1 for one at a time");
    }
}

/// What a burst implies where no algorithm is named.
pub(crate) fn bucket(default: Option<Algorithm>) -> Algorithm {
    default.filter(|default| default.is_bucket()).unwrap_or(Algorithm::TokenBucket)
}

/// The key whose value a limit is refused for.
fn blamed(error: &LimitError, fields: &Fields<'_, '_>) -> &'static str {
    let either = |one, other| if fields.has(one) { one } else { other };
    match error {
        LimitError::EmptyWindow | LimitError::LongWindow(_) | LimitError::UnevenWindow(_) => either("window", "unit"),
        LimitError::BurstTooLarge { .. } | LimitError::BurstWithoutBucket | LimitError::NeverRefills => "burst",
        LimitError::TooLarge { .. } | LimitError::LogTooLarge(_) => either("requests", "requests_per_unit"),
    }
}

fn unlimited(fields: &Fields<'_, '_>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    let needless = keys::of(Level::Limit).filter(|key| *key != "unlimited" && fields.given(key).is_some());
    for key in needless {
        let message = format!("`{key}` says nothing beside `unlimited: true`");
        let hint = "keep one of the two";
        match (key, fields.get(key)) {
            ("unit", _) => report.warning(fields.place(key), path, message).hint(hint),
            ("requests_per_unit", Some(node)) => {
                report.warning(fields.place(key), path, message).hint(hint);
                fields::kept_amount(node, &path.key(key), report);
            }
            _ => report.error(fields.place(key), path, message).hint(hint),
        }
    }
    drafts.unlimited = Some(fields.at);
}

pub(crate) fn algorithm(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Algorithm> {
    fields::choice(
        node,
        &Algorithm::OF_RATES.map(|algorithm| (algorithm.name(), algorithm)),
        "algorithm",
        &path.key("algorithm"),
        report,
    )
}

fn amount(fields: &Fields<'_, '_>, level: Level, path: &Path<'_>, report: &mut Report<'_>) -> Option<Amount> {
    let pairs = [("requests_per_unit", "unit", "window"), ("requests", "window", "unit")];
    let mut found = None;
    for (key, partner, stranger) in pairs {
        let Some(node) = fields.get(key) else { continue };
        if found.is_some() {
            let message = "`requests_per_unit` and `requests` both say how many requests are allowed";
            report.error(fields.place(key), path, message).hint("`unit` goes with `requests_per_unit`, `window` with `requests`");
            return None;
        }
        if !fields.has(partner) && fields.has(stranger) {
            let message = format!("`{key}` goes with `{partner}`, not with `{stranger}`");
            let hint = "`unit` goes with `requests_per_unit`, `window` with `requests`";
            report.error(fields.place(key), path, message).hint(hint);
            return None;
        }
        found = Some((key, node));
    }
    let Some((key, node)) = found else {
        if !fields.has_unknown(level) {
            let key = if fields.has("window") { "requests" } else { "requests_per_unit" };
            let problem = report.error(fields.at, path, format!("`{key}` is missing: how many requests are allowed?"));
            problem.hint(format!("`{key}: 0` refuses everything, `unlimited: true` allows everything"));
        }
        return None;
    };
    let read = if key == "requests_per_unit" { fields::kept_amount } else { fields::amount };
    read(node, &path.key(key), report)
}

fn window(fields: &Fields<'_, '_>, level: Level, path: &Path<'_>, report: &mut Report<'_>) -> Option<Micros> {
    match (fields.get("unit"), fields.get("window")) {
        (Some(_), Some(_)) => {
            report.error(fields.place("window"), path, "`unit` and `window` both say how long the limit's time is");
            None
        }
        (Some(node), None) => unit(node, &path.key("unit"), report),
        (None, Some(node)) => fields::duration(node, &path.key("window"), report),
        (None, None) => {
            if !fields.has_unknown(level) {
                let key = if fields.has("requests") { "window" } else { "unit" };
                let problem = report.error(fields.at, path, format!("`{key}` is missing: in which time?"));
                problem.hint(if key == "unit" { UNIT_HINT } else { "a duration such as 30s, 5m or 1h30m" });
            }
            None
        }
    }
}

const UNIT_HINT: &str = "one of second, minute, hour, day, week, month, year; any other time is a `window`";

fn unit(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Micros> {
    let written = fields::text(node, path, report)?;
    if let Some(unit) = Unit::parse(written) {
        return Some(unit.window());
    }
    let problem = report.error(node.at, path, format!("unknown unit {}", describe(node)));
    match keys::nearest(written, Unit::ALL.into_iter().map(Unit::name)) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None if fields::parse_duration(written).is_ok() => problem.hint(format!("write `window: {written}` with `requests`")),
        None => problem.hint(UNIT_HINT),
    }
    None
}

/// A bucket's capacity, as written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Burst {
    Capacity(u64),
    /// `+N`: on top of the requests.
    Above(u64),
}

impl Burst {
    pub(crate) fn capacity(self, requests: u64) -> u64 {
        match self {
            Burst::Capacity(capacity) => capacity,
            Burst::Above(more) => requests.saturating_add(more),
        }
    }
}

pub(crate) fn burst(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Burst> {
    let parsed = match &node.value {
        Value::Scalar(scalar) => match scalar.text.strip_prefix('+') {
            Some(more) => fields::parse_amount(more).map(|amount| (amount, true)),
            None => fields::parse_amount(&scalar.text).map(|amount| (amount, false)),
        },
        _ => Err(String::new()),
    };
    match parsed {
        Ok((Amount::Requests(more), true)) => Some(Burst::Above(more)),
        Ok((Amount::Requests(capacity), false)) => Some(Burst::Capacity(capacity)),
        Err(hint) if hint == fields::TOO_LARGE => {
            report.error(node.at, path.key("burst"), format!("a burst of {} is too large to count", describe(node)));
            None
        }
        _ => {
            let problem = report.error(node.at, path.key("burst"), format!("expected a burst, found {}", describe(node)));
            problem.hint("`burst: 50` is the bucket's capacity, `burst: +50` adds to the requests");
            None
        }
    }
}

impl Drafts {
    /// What only the limits together can get wrong.
    pub(crate) fn check(&self, path: &Path<'_>, report: &mut Report<'_>) {
        if let (Some(at), false) = (self.unlimited, self.limits.is_empty()) {
            report.error(at, path, "the rule is unlimited and has limits").hint("keep one of the two");
        }
        if let [_, (at, _), ..] = self.blocks[..] {
            report.error(at, path, "a rule has at most one `block_for`").hint("write it once, on the descriptor");
        }
        if let (Some(tier), true) = (&self.tier, self.written > 1) {
            report
                .error(tier.at, path, "the rule has limits beside those of the tiers")
                .hint("put them into the tiers, or into a rule of their own");
        }
        let mut seen: Vec<Shape> = Vec::with_capacity(self.limits.len());
        for draft in &self.limits {
            let shape = draft.limit.shape();
            if seen.contains(&shape) {
                let message = format!("two limits of {} over the same time are one counter with two sizes", shape.algorithm.name());
                report.error(draft.at, path, message).hint("keep the smaller one, or give one another algorithm");
            }
            seen.push(shape);
        }
    }
}
