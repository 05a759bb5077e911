//! What plans are made of, at the top of a document: weights of requests, and which entries say something about a request
//! rather than what it is for.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use jiff::tz::{TimeZone, TimeZoneDatabase};
use parking_lot::Mutex;

use super::fields::{self, Amount, describe};
use super::keys;
use super::problem::{Path, Report};
use super::raw::{Node, Value};
use crate::limit::Cost;
use crate::rules::Rule;
use crate::rules::calendar::Calendar;
use crate::rules::tier::{CostTable, Plans};

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
pub(super) fn attributes(plans: &Plans) -> Vec<Box<[u8]>> {
    let mut keys: Vec<Box<[u8]>> = plans.costs.iter().map(|table| table.key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
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
    /// By zone, of which there are some six hundred.
    static CALENDARS: LazyLock<Mutex<HashMap<Box<str>, Arc<Calendar>>>> = LazyLock::new(Mutex::default);
    let zone = zone.unwrap_or(TimeZone::UTC);
    plans.timezone = zone.iana_name().unwrap_or("UTC").into();
    if !rules.iter().any(Rule::has_quota) {
        return;
    }
    let mut calendars = CALENDARS.lock();
    let calendar = calendars
        .entry(plans.timezone.clone())
        .or_insert_with(|| Arc::new(Calendar::new(&zone).expect("the days of the tables are within what every zone can say")));
    plans.calendar = Some(Arc::clone(calendar));
}
