//! What plans are made of, at the top of a document: weights of requests, and which entries say something about a request
//! rather than what it is for.

use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::fields::{self, Amount, Fields, describe};
use super::keys::{self, Level};
use super::problem::{Path, Report};
use super::raw::{Node, Span, Value};
use crate::limit::Cost;
use crate::rules::Rule;
use crate::rules::calendar::Calendar;
use crate::rules::tier::{Class, CostTable, Plans, Priority, TierSource, WHOLE};

/// `costs`: by entry key, weights by value.
pub(super) fn costs(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Vec<CostTable> {
    let mut tables = Vec::new();
    for (key, weights, at) in fields::entries(node, path, report) {
        if key.is_empty() {
            report.error(at, path, "the key of an entry is empty");
            continue;
        }
        let path = path.key(key);
        let mut table = CostTable { key: key.as_bytes().into(), ..CostTable::default() };
        for (value, node, _) in fields::entries(weights, &path, report) {
            if let Some(weight) = weight(node, &path.key(value), report) {
                table.weights.insert(value.as_bytes().into(), weight);
            }
        }
        if matches!(&weights.value, Value::Map(entries) if entries.is_empty()) || weights.is_null() {
            report
                .error(weights.at, path, "the table is empty: everything weighs 1")
                .hint("write weights such as {GET: 1, POST: 2}");
        }
        tables.push(table);
    }
    tables
}

fn weight(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Cost> {
    let parsed = match &node.value {
        Value::Scalar(scalar) => fields::parse_amount(&scalar.text),
        _ => Err(String::new()),
    };
    match parsed {
        Ok(Amount::Requests(weight)) => Some(weight),
        _ => {
            let problem = report.error(node.at, path, format!("expected a weight, found {}", describe(node)));
            problem.hint("a whole number: 2 counts a request twice, 0 does not count it");
            None
        }
    }
}

/// The keys of attribute entries, each once.
pub(super) fn attributes(plans: &Plans, rules: &[Rule]) -> Vec<Box<[u8]>> {
    let of_tiers = rules.iter().filter_map(|rule| match &rule.tiers.as_ref()?.source {
        TierSource::Entry(key) => Some(key),
        TierSource::Assigned(_) => None,
    });
    let of_costs = plans.costs.iter().map(|table| &table.key);
    let of_priority = plans.priority.iter().map(|priority| &priority.key);
    let mut keys: Vec<Box<[u8]>> = of_costs.chain(of_priority).chain(of_tiers).cloned().collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The most important first.
pub(super) const CLASSES: [(&str, Class); 4] =
    [("critical", Class::Critical), ("high", Class::High), ("normal", Class::Normal), ("low", Class::Low)];

pub(super) fn class(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Class> {
    fields::choice(node, &CLASSES, "class", path, report)
}

/// `priority`: which entry names a request's class, and what each class leaves free.
pub(super) fn priority(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Priority> {
    let fields = Fields::read(node, Level::Priority, path, report)?;
    let default = fields.given("default").and_then(|node| class(node, &path.key("default"), report)).unwrap_or(Class::Normal);
    let reserve = fields.given("reserve").map_or([0; 4], |node| reserve(node, &path.key("reserve"), report));
    let Some(node) = fields.given("entry") else {
        if !fields.has_unknown(Level::Priority) {
            report.error(fields.at, path, "`entry` is missing: which entry names a request's class?").hint("entry: priority");
        }
        return None;
    };
    let key = fields::text(node, &path.key("entry"), report)?;
    if key.is_empty() {
        report.error(node.at, path.key("entry"), "the key of an entry is empty");
    }
    Some(Priority { key: key.as_bytes().into(), default, reserve })
}

/// Shares by class, in millionths. A class that is not listed leaves as much free as the one above it.
fn reserve(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> [u32; 4] {
    let mut written: [Option<(u32, Span)>; 4] = [None; 4];
    for (name, node, at) in fields::entries(node, path, report) {
        match Class::parse(name.as_bytes()) {
            Some(Class::Critical) => {
                report.error(at, path, "nothing is above `critical` that it could leave room for").hint("leave it out");
            }
            Some(class) => written[class as usize] = share(node, &path.key(name), report).map(|share| (share, at)),
            None => {
                report.error(at, path, format!("unknown class `{}`", fields::shorten(name))).hint("known: high, normal, low");
            }
        }
    }
    let (mut reserve, mut above) = ([0; 4], 0);
    for class in [Class::High, Class::Normal, Class::Low] {
        if let Some((share, at)) = written[class as usize] {
            if share < above {
                let message = format!("`{}` would leave less free than the class above it", class.name());
                report.error(at, path, message).hint("the lower a class, the more it leaves");
            }
            above = share.max(above);
        }
        reserve[class as usize] = above;
    }
    reserve
}

/// `10%`, `12.5%`.
fn share(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<u32> {
    let parsed = match &node.value {
        Value::Scalar(scalar) => scalar.text.strip_suffix('%').and_then(millionths),
        _ => None,
    };
    if parsed.is_none() {
        let problem = report.error(node.at, path, format!("expected a share of the limit, found {}", describe(node)));
        problem.hint("a percentage up to 100 with at most four decimals, such as 10% or 12.5%");
    }
    parsed
}

fn millionths(percent: &str) -> Option<u32> {
    let (whole, part) = percent.trim_end().split_once('.').unwrap_or((percent, ""));
    if part.len() > 4 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: u32 = format!("{whole}{part:0<4}").parse().ok()?;
    (digits <= WHOLE).then_some(digits)
}

/// `timezone`: a name of the IANA database that comes with weir.
pub(super) fn timezone(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<TimeZone> {
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let name = fields::text(node, path, report)?;
    if let Ok(zone) = ZONES.get(name) {
        return Some(zone);
    }
    let names: Vec<String> = ZONES.available().map(|name| name.as_str().to_owned()).collect();
    let problem = report.error(node.at, path, format!("unknown time zone {}", describe(node)));
    match keys::nearest(name, names.iter().map(String::as_str)) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None => problem.hint("a name of the IANA database, such as UTC, Europe/Berlin or America/New_York"),
    }
    None
}

/// Makes the tables of days and months that the rules' quotas need.
pub(super) fn add_calendar(plans: &mut Plans, zone: Option<TimeZone>, rules: &[Rule]) {
    let zone = zone.unwrap_or(TimeZone::UTC);
    plans.timezone = zone.iana_name().unwrap_or("UTC").into();
    if !rules.iter().any(Rule::has_quota) {
        return;
    }
    let calendar = Calendar::of_zone(&plans.timezone);
    plans.calendar = Some(calendar.expect("the days of the tables are within what every zone can say"));
}
