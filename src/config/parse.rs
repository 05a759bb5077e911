//! From nodes to domains. Every document is read to its end, so that all of its problems are told at once; a domain comes
//! about only if none of its documents has an error.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::addresses;
use super::descriptor::Compiler;
use super::fields::{self, Fields};
use super::keys::{self, Level};
use super::limits;
use super::names;
use super::plans;
use super::problem::{Path, Problem, Report, Severity};
use super::raw::{self, Node, Span};
use super::rule_tests::{self, RuleTest};
use super::tiers::{self, TierDraft};
use super::{LoadOptions, SourceFile};
use crate::limit::Algorithm;
use crate::rules::address::Addresses;
use crate::rules::tier::{Plans, Tier, TierId};
use crate::rules::{Domain, OnStoreFailure, ResetFormat, ResponseOptions, key};
use jiff::tz::TimeZone;

pub(crate) const ON_STORE_FAILURE: [(&str, OnStoreFailure); 4] = [
    ("error", OnStoreFailure::Error),
    ("allow", OnStoreFailure::Allow),
    ("deny", OnStoreFailure::Deny),
    ("local", OnStoreFailure::Local),
];

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    /// By name; `None` for a domain with errors.
    pub(crate) domains: HashMap<String, Option<Domain>>,
    /// The files with documents of a domain, good or bad, by its name.
    pub(crate) parts: HashMap<String, BTreeSet<String>>,
    /// Domains that look as if a file was not written to its end.
    pub(crate) unfinished: HashSet<String>,
    /// Files of which not even the domains are known.
    pub(crate) unreadable: HashSet<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) tests: Vec<RuleTest>,
}

/// What stands at the top of a domain's documents.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) subject: Vec<Box<[u8]>>,
    pub(crate) addresses: Addresses,
    pub(crate) response: ResponseOptions,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) on_store_failure: OnStoreFailure,
    pub(crate) plans: Plans,
    pub(crate) tiers: Vec<TierDraft>,
    /// Whether one is named, known or not.
    pub(crate) has_default_tier: bool,
    /// Whether there are classes, good or bad.
    pub(crate) has_priority: bool,
    /// `None`: UTC.
    pub(crate) zone: Option<TimeZone>,
}

/// One `domain:` document.
struct Document<'n, 's> {
    file: usize,
    name: &'n str,
    fields: Fields<'n, 's>,
    has_errors: bool,
    /// It has no `descriptors`, or stops where more should follow.
    is_unfinished: bool,
}

pub(crate) fn compile<'s>(sources: &'s [SourceFile], options: &LoadOptions) -> Compiled {
    let mut compiled = Compiled::default();
    let report = |source: &'s SourceFile| Report::new(&source.name, &source.text).strict(options.strict);
    let mut reports: Vec<Report<'_>> = sources.iter().map(report).collect();
    let mut room = raw::MAX_NODES;
    let mut trees: Vec<Vec<Node<'_>>> = Vec::with_capacity(sources.len());
    for (source, report) in sources.iter().zip(&mut reports) {
        let documents = read(source, room, report, &mut compiled.unreadable);
        room = room.saturating_sub(documents.iter().map(raw::count).sum());
        trees.push(documents);
    }
    let mut domains: Vec<(&str, Vec<Document<'_, '_>>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (file, tree) in trees.iter().enumerate() {
        for (place, node) in tree.iter().enumerate() {
            let Some(mut document) = document(file, place, node, &mut reports[file]) else {
                compiled.unreadable.insert(sources[file].name.clone());
                continue;
            };
            document.is_unfinished |= place + 1 == tree.len() && stops_early(node);
            let index = *places.entry(document.name).or_insert_with(|| {
                domains.push((document.name, Vec::new()));
                domains.len() - 1
            });
            domains[index].1.push(document);
        }
    }
    for (name, documents) in &domains {
        let domain = domain(name, documents, &mut reports, options);
        let errors = |reports: &[Report<'_>]| reports.iter().map(Report::errors).sum::<usize>();
        let before = errors(&reports);
        for document in documents {
            let Some(node) = document.fields.given("tests") else { continue };
            compiled.tests.extend(rule_tests::read(name, node, &Path::domain(name), &mut reports[document.file]));
        }
        let files = documents.iter().map(|document| sources[document.file].name.clone());
        compiled.parts.insert((*name).to_owned(), files.collect());
        if documents.iter().any(|document| document.is_unfinished) {
            compiled.unfinished.insert((*name).to_owned());
        }
        compiled.domains.insert((*name).to_owned(), domain.filter(|_| errors(&reports) == before));
    }
    compiled.problems = reports.into_iter().flat_map(Report::finish).collect();
    compiled
}

/// The documents of a file, where other files have left room for so many nodes.
fn read<'s>(source: &'s SourceFile, room: usize, report: &mut Report<'s>, unreadable: &mut HashSet<String>) -> Vec<Node<'s>> {
    match raw::read(&source.text, room) {
        Ok(documents) if documents.is_empty() => {
            unreadable.insert(source.name.clone());
            let mut problem = Problem::of_file(Severity::Error, source.name.clone(), "the file holds no rules");
            problem.hint("a document begins with `domain:`; delete the file if it is not needed");
            report.push(problem);
            documents
        }
        Ok(documents) => documents,
        Err(error) => {
            unreadable.insert(source.name.clone());
            let problem = report.error(error.at, "", error.message.clone());
            problem.snippet = error.snippet.clone();
            if let Some(hint) = error.hint {
                problem.hint(hint);
            } else if error.message.contains("alias") {
                problem.hint("a value that begins with `*` stands in quotes, or it is an alias: value: \"*.html\"");
            }
            Vec::new()
        }
    }
}

fn document<'n, 's>(file: usize, place: usize, node: &'n Node<'s>, report: &mut Report<'_>) -> Option<Document<'n, 's>> {
    let errors = report.errors();
    let path = domain_of(node).map_or_else(|| Path::document(place), Path::domain);
    let fields = Fields::read(node, Level::Document, &path, report)?;
    names::check(node, &path, report);
    let Some(domain) = fields.get("domain") else {
        if !fields.has_unknown(Level::Document) {
            report.error(fields.at, path, "`domain` is missing").hint("a document begins with `domain: <name>`");
        }
        return None;
    };
    let name = fields::text(domain, &path, report)?;
    if name.is_empty() {
        report.error(fields.place("domain"), path, "the domain is empty").hint("give it the `domain` of Envoy's filter");
        return None;
    }
    let is_unfinished = fields.given("descriptors").is_none();
    Some(Document { file, name, fields, has_errors: report.errors() > errors, is_unfinished })
}

/// Whether a file's last document ends with a key that something should follow.
fn stops_early(node: &Node<'_>) -> bool {
    let is_scalar = |node: &Node<'_>, wanted: &str| matches!(&node.value, raw::Value::Scalar(scalar) if scalar.text == wanted);
    match &node.value {
        raw::Value::Map(entries) => entries.last().is_some_and(|(key, value)| {
            let opens = ["descriptors", "rate_limit"].iter().any(|wanted| is_scalar(key, wanted));
            opens && value.is_null() && is_scalar(value, "") || stops_early(value)
        }),
        raw::Value::List(items) => items.last().is_some_and(stops_early),
        raw::Value::Scalar(_) => false,
    }
}

/// The name that a document gives its domain, before anything is checked.
fn domain_of<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    let raw::Value::Map(entries) = &node.value else { return None };
    let text = |node: &'n Node<'_>| match &node.value {
        raw::Value::Scalar(scalar) => Some(&*scalar.text),
        _ => None,
    };
    let entry = entries.iter().find(|(key, _)| text(key) == Some("domain"));
    entry.and_then(|(_, value)| text(value)).filter(|name| !name.is_empty())
}

fn domain(name: &str, documents: &[Document<'_, '_>], reports: &mut [Report<'_>], options: &LoadOptions) -> Option<Domain> {
    let errors = |reports: &[Report<'_>]| reports.iter().map(Report::errors).sum::<usize>();
    let before = errors(reports);
    let path = Path::domain(name);
    if let ([first, rest @ ..], false) = (documents, options.merge_domains) {
        for other in rest {
            let line = format!("{}:{}", reports[first.file].file, first.fields.place("domain").line);
            let message = format!("domain `{name}` is defined already, at {line}");
            let problem = reports[other.file].error(other.fields.place("domain"), path, message);
            problem.hint(
                "put the descriptors into one document, or set MERGE_DOMAIN_CONFIG=true (for `weir check` also --merge-domains)",
            );
        }
    }
    let settings = settings(&path, documents, reports);
    let mut compiler = Compiler::new(settings, reports);
    for document in documents {
        let Some(descriptors) = document.fields.get("descriptors").filter(|node| !node.is_null()) else {
            if !document.fields.has_unknown(Level::Document) {
                let at = document.fields.place(if document.fields.has("descriptors") { "descriptors" } else { "domain" });
                let message = "`descriptors` is missing: nothing is limited";
                let problem = compiler.reports[document.file].warning(at, path, message);
                problem.hint("a domain without rules is written `descriptors: []`");
            }
            continue;
        };
        compiler.document(document.file, descriptors, &path);
    }
    let (settings, tree, rules) = compiler.finish(&path, documents.first().map_or(0, |document| document.file));
    if errors(reports) > before || documents.iter().any(|document| document.has_errors) {
        return None;
    }
    let files: BTreeSet<&str> = documents.iter().map(|document| reports[document.file].file).collect();
    let mut plans = settings.plans;
    plans.attributes = plans::attributes(&plans, &rules);
    plans::add_calendar(&mut plans, settings.zone, &rules);
    Some(Domain {
        plans,
        name: name.into(),
        file: documents.first().map_or("", |document| reports[document.file].file).into(),
        files: files.into_iter().map(Into::into).collect(),
        key_prefix: key::domain_prefix(&options.key_prefix, name.as_bytes()),
        subject: settings.subject,
        addresses: settings.addresses,
        response: settings.response,
        tree,
        rules,
        on_store_failure: settings.on_store_failure,
    })
}

/// The settings of a domain: each may stand in one of its documents and holds for all. Those that others depend on are read
/// first, whichever document they stand in.
fn settings(path: &Path<'_>, documents: &[Document<'_, '_>], reports: &mut [Report<'_>]) -> Settings {
    let mut settings = Settings::default();
    let mut seen: HashMap<&str, (usize, Span)> = HashMap::new();
    let mut defaults_to = None;
    for key in keys::settings() {
        for document in documents {
            let Some(node) = document.fields.given(key) else { continue };
            let at = document.fields.place(key);
            if let Some((file, first)) = seen.insert(key, (document.file, at)) {
                let line = format!("{}:{}", reports[file].file, first.line);
                let message = format!("`{key}` of this domain stands in {line} already");
                reports[document.file].error(at, path, message).hint("it holds for the whole domain: keep one");
                continue;
            }
            let (path, report) = (path.key(key), &mut reports[document.file]);
            match key {
                "subject" => settings.subject = subject(node, &path, report),
                "addresses" => settings.addresses = addresses::addresses(node, &path, report),
                "response" => settings.response = response(node, &path, report),
                "timezone" => settings.zone = plans::timezone(node, &path, report),
                "tiers" => settings.tiers = tiers::tiers(node, settings.algorithm, &path, report),
                "default_tier" => {
                    settings.has_default_tier = true;
                    defaults_to = Some((document.file, node));
                }
                "priority" => {
                    settings.has_priority = true;
                    settings.plans.priority = plans::priority(node, &path, report);
                }
                "costs" => settings.plans.costs = plans::costs(node, &path, report),
                "accept_overrides" => settings.plans.accept_overrides = accepts(node, &path, report),
                "accept_refunds" => settings.plans.accept_refunds = accepts(node, &path, report),
                "defaults" => defaults(node, &path, report, &mut settings),
                // A test sees to it that every key is read.
                _ => {}
            }
        }
    }
    if let Some((file, node)) = defaults_to {
        let place = tiers::default_tier(node, &settings.tiers, &path.key("default_tier"), &mut reports[file]);
        settings.plans.default_tier = place.and_then(|place| u32::try_from(place).ok()).map(TierId);
    }
    let tiers_of = seen.get("tiers").map(|(file, _)| reports[*file].file.to_string()).unwrap_or_default();
    let tiers = settings.tiers.iter().map(|tier| Tier {
        name: tier.name.clone(),
        priority: tier.priority,
        definition: tier.definition(),
        source: format!("{}:{}", tiers_of, tier.line).into(),
    });
    settings.plans.tiers = tiers.collect();
    settings
}

/// What a domain's callers may do; an error, which keeps the domain from loading, counts as yes.
fn accepts(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> bool {
    fields::boolean(node, path, report).unwrap_or(true)
}

fn subject(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Vec<Box<[u8]>> {
    let items = match &node.value {
        raw::Value::Scalar(_) => std::slice::from_ref(node),
        _ => fields::items(node, path, report).unwrap_or(&[]),
    };
    let mut subject: Vec<Box<[u8]>> = Vec::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        match fields::text(item, &path.item(place), report) {
            Some("") => {
                report.error(item.at, path.item(place), "the key of an entry is empty");
            }
            Some(key) => subject.push(key.as_bytes().into()),
            None => {}
        }
    }
    subject
}

fn defaults(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>, settings: &mut Settings) {
    let Some(fields) = Fields::read(node, Level::Defaults, path, report) else { return };
    settings.algorithm = fields.given("algorithm").and_then(|node| limits::algorithm(node, path, report));
    let on_store_failure = fields.given("on_store_failure").and_then(|node| on_store_failure(node, path, report));
    settings.on_store_failure = on_store_failure.unwrap_or_default();
}

pub(crate) fn on_store_failure(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> Option<OnStoreFailure> {
    fields::choice(node, &ON_STORE_FAILURE, "on_store_failure", &path.key("on_store_failure"), report)
}

/// The names of response headers, as `response.headers` lists them.
#[derive(Clone, Copy)]
pub(super) enum Headers {
    Legacy,
    RateLimit,
    XRateLimit,
    RetryAfter,
    Rule,
}

pub(super) const HEADERS: [(&str, Headers); 5] = [
    ("legacy", Headers::Legacy),
    ("ratelimit", Headers::RateLimit),
    ("x_ratelimit", Headers::XRateLimit),
    ("retry_after", Headers::RetryAfter),
    ("rule", Headers::Rule),
];

/// Whether refusals have a body.
pub(super) const BODIES: [(&str, bool); 2] = [("none", false), ("problem", true)];

pub(super) const RESET_FORMATS: [(&str, ResetFormat); 3] =
    [("delta", ResetFormat::Delta), ("epoch", ResetFormat::Epoch), ("iso", ResetFormat::Iso)];

fn response(node: &Node<'_>, path: &Path<'_>, report: &mut Report<'_>) -> ResponseOptions {
    let mut response = ResponseOptions::default();
    let Some(fields) = Fields::read(node, Level::Response, path, report) else { return response };
    if let Some(node) = fields.given("headers") {
        let path = path.key("headers");
        for (place, item) in fields::items(node, &path, report).unwrap_or(&[]).iter().enumerate() {
            match fields::choice(item, &HEADERS, "header", &path.item(place), report) {
                Some(Headers::Legacy) => response.legacy_headers = true,
                Some(Headers::RateLimit) => response.ratelimit_headers = true,
                Some(Headers::XRateLimit) => response.x_ratelimit_headers = true,
                Some(Headers::RetryAfter) => response.retry_after_header = true,
                Some(Headers::Rule) => response.rule_header = true,
                None => {}
            }
        }
    }
    if let Some(node) = fields.given("body") {
        let body = fields::choice(node, &BODIES, "body", &path.key("body"), report);
        response.problem_body = body.unwrap_or(false);
    }
    if let Some(node) = fields.given("metadata") {
        response.metadata = fields::boolean(node, &path.key("metadata"), report).unwrap_or(false);
    }
    if let Some(node) = fields.given("reset_format") {
        let format = fields::choice(node, &RESET_FORMATS, "reset_format", &path.key("reset_format"), report);
        response.reset_format = format.unwrap_or_default();
    }
    response
}
