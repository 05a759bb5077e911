//! A document's `tests`: requests at times of a clock set by hand, with what must come of them. Read here, played by `weir check`.

use super::fields::{self, Amount, Fields};
use super::keys::Level;
use super::problem::{Path, Report};
use super::raw::Node;
use crate::limit::Micros;
use crate::rules::decision::Code;

/// One test of a domain's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTest {
    pub domain: String,
    pub name: String,
    /// Where it is written, `file:line`.
    pub source: String,
    pub steps: Vec<TestStep>,
}

/// A request, asked once or several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestStep {
    pub source: String,
    /// From the beginning of the test.
    pub at: Micros,
    pub descriptors: Vec<Vec<(String, String)>>,
    pub hits: u32,
    pub repeat: u64,
    pub expect: Code,
    /// The rule that refuses.
    pub limited_by: Option<String>,
}

/// The most that one step asks: a test is no load test.
pub(super) const MAX_REPEAT: u64 = 1_000_000;

pub(super) const CODES: [(&str, Code); 2] = [("ok", Code::Ok), ("over_limit", Code::OverLimit)];

pub(super) fn read(domain: &str, node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Vec<RuleTest> {
    let path = path.key("tests");
    let mut tests = Vec::new();
    for (place, node) in fields::items(node, &path, report).unwrap_or(&[]).iter().enumerate() {
        let path = path.item(place);
        let Some(fields) = Fields::read(node, Level::Test, &path, report) else { continue };
        let name = fields.given("name").and_then(|node| fields::text(node, &path.key("name"), report)).unwrap_or("unnamed");
        let Some(list) = fields.given("steps") else {
            if !fields.has_unknown(Level::Test) {
                report
                    .error(fields.at, path, "`steps` is missing: what is asked?")
                    .hint("steps: [{descriptors: [{key: value}], expect: ok}]");
            }
            continue;
        };
        let path = path.key("steps");
        let mut steps: Vec<TestStep> = Vec::new();
        for (place, node) in fields::items(list, &path, report).unwrap_or(&[]).iter().enumerate() {
            let earliest = steps.last().map_or(0, |step| step.at);
            steps.extend(step(node, earliest, &path.item(place), report));
        }
        let source = format!("{}:{}", report.file, node.at.line);
        tests.push(RuleTest { domain: domain.to_owned(), name: name.to_owned(), source, steps });
    }
    tests
}

fn step(node: &Node<'_>, earliest: Micros, path: &Path<'_>, report: &mut Report<'_>) -> Option<TestStep> {
    let fields = Fields::read(node, Level::Step, path, report)?;
    let at = fields.given("at").map_or(Some(earliest), |node| time(node, &path.key("at"), report))?;
    if at < earliest {
        report.error(fields.place("at"), path, "the step is before the one above it").hint("time only goes on");
    }
    let mut number = |key: &str, most: u64| {
        let Some(node) = fields.given(key) else { return Some(1) };
        match fields::amount(node, &path.key(key), report)? {
            Amount::Requests(number) if number <= most => Some(number),
            _ => {
                report.error(node.at, path.key(key), format!("`{key}` is a whole number up to {most}"));
                None
            }
        }
    };
    let (hits, repeat) = (number("hits", u64::from(u32::MAX))?, number("repeat", MAX_REPEAT)?);
    let (Some(expect), Some(list)) = (fields.given("expect"), fields.given("descriptors")) else {
        if !fields.has_unknown(Level::Step) {
            let problem = report.error(fields.at, path, "a step needs `descriptors` and `expect`");
            problem.hint("{descriptors: [{key: value}], expect: ok}");
        }
        return None;
    };
    let expect = fields::choice(expect, &CODES, "code", &path.key("expect"), report)?;
    let limited_by = fields.given("limited_by").and_then(|node| fields::text(node, &path.key("limited_by"), report));
    let path = path.key("descriptors");
    let mut descriptors = Vec::new();
    for (place, node) in fields::items(list, &path, report)?.iter().enumerate() {
        let path = path.item(place);
        let entries = fields::entries(node, &path, report).into_iter();
        let text = |(key, node, _): (&str, &Node<'_>, _)| Some((key.to_owned(), fields::text(node, &path, report)?.to_owned()));
        descriptors.push(entries.filter_map(text).collect());
    }
    let source = format!("{}:{}", report.file, node.at.line);
    let hits = u32::try_from(hits).unwrap_or(u32::MAX);
    Some(TestStep { source, at, descriptors, hits, repeat, expect, limited_by: limited_by.map(str::to_owned) })
}

/// A duration, or none at all.
fn time(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<Micros> {
    match fields::text(node, path, report)? {
        "0" | "0s" => Some(0),
        _ => fields::duration(node, path, report),
    }
}
