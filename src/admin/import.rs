//! All records, out and in again. An import is checked whole before anything of it is written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::convert;
use super::names;
use super::operations::{Operations, OperatorStore, change_to, countable, readable, tier_countable};
use super::problem::{Mistake, Problem};
use super::proto::weir::admin::v1 as proto;
use crate::rules::subject::SubjectRecord;
use crate::rules::{Domain, RuleSet};
use crate::store::records::{Change, Expected, MAX_PAGE, Record, RecordName};

/// The most mistakes that an answer lists.
const MAX_LISTED: usize = 100;

/// A record of an import.
struct Imported {
    /// Where it is: `subjects[3]`.
    place: String,
    /// Whom it is about, in words.
    about: String,
    /// As it was given.
    literal: RecordName,
    name: RecordName,
    record: Record,
}

impl Imported {
    fn mistake(&self, mistake: Mistake) -> Mistake {
        located(mistake, &self.place, &self.about)
    }
}

fn located(mistake: Mistake, place: &str, about: &str) -> Mistake {
    mistake.below(place).of(about)
}

impl<S: OperatorStore> Operations<S> {
    pub(super) async fn export_records(&self, request: proto::ExportRecordsRequest) -> Result<proto::Records, Problem> {
        let size = match request.page_size as usize {
            0 => MAX_PAGE,
            size => size.min(MAX_PAGE),
        };
        let page = self.store.list("", &request.page_token, size).await?;
        let mut records = proto::Records { next_page_token: page.next.unwrap_or_default(), ..proto::Records::default() };
        for (name, record) in readable(page.records) {
            convert::export(&mut records, &name, &record);
        }
        Ok(records)
    }

    pub(super) async fn import_records(&self, request: proto::Records) -> Result<proto::ImportRecordsResponse, Problem> {
        let (records, mut malformed) = self.imported(&request);
        let rules = self.shared.rules();
        malformed.extend(same_names(&records));
        malformed.extend(records.iter().filter_map(|imported| uncountable(&rules, imported)));
        let mut changes: Vec<Change> = Vec::with_capacity(records.len());
        for imported in &records {
            match change_to(imported.name.clone(), Expected::Anything, &imported.record) {
                Ok(change) => changes.push(change),
                Err(mistake) => malformed.push(imported.mistake(mistake)),
            }
        }
        if !malformed.is_empty() {
            return Err(Problem::Invalid(format!("{}\nnothing was imported", lines(&malformed).join("\n"))));
        }
        let unknown = unknown_names(&rules, &records);
        if !unknown.is_empty() && request.force != Some(true) {
            let hint = "nothing was imported; mend the names, or import with `force` (`weir import --force`)";
            return Err(Problem::Invalid(format!("{}\n{hint}", lines(&unknown).join("\n"))));
        }
        let answer = proto::ImportRecordsResponse { imported: changes.len() as u64, warnings: lines(&unknown) };
        if request.dry_run == Some(true) {
            return Ok(answer);
        }
        let mut imported = 0;
        for page in changes.chunks(MAX_PAGE) {
            let written = self.store.write(page).await.map_err(Problem::from);
            written.map_err(
                |problem| if imported == 0 { problem } else { problem.after(&format!("{imported} records were imported")) },
            )?;
            imported += page.len();
        }
        Ok(answer)
    }

    /// The records by the names they are kept by, and what is wrong with the others.
    fn imported(&self, request: &proto::Records) -> (Vec<Imported>, Vec<Mistake>) {
        let subjects = request.subjects.iter().map(|subject| {
            let name = convert::subject_name(&subject.domain, &subject.subject);
            (
                format!("`{}` of domain `{}`", subject.subject, subject.domain),
                name,
                convert::subject_record(subject).map(Record::Subject),
            )
        });
        let tiers = request.tiers.iter().map(|tier| {
            let name = convert::tier_name(&tier.domain, &tier.name);
            (format!("tier `{}` of domain `{}`", tier.name, tier.domain), name, convert::tier_definition(tier).map(Record::Tier))
        });
        let switches = request.switches.iter().map(|given| {
            let about = match &*given.domain {
                "" => "the switch of all domains".to_owned(),
                domain => format!("the switch of domain `{domain}`"),
            };
            (about, convert::switch_name(&given.domain), convert::switch(&given.switch).map(Record::Switch))
        });
        let placed = |list: &'static str| move |(number, given)| (format!("{list}[{number}]"), given);
        let (subjects, tiers) = (subjects.enumerate().map(placed("subjects")), tiers.enumerate().map(placed("tiers")));
        let (mut records, mut malformed) = (Vec::new(), Vec::new());
        for (place, (about, name, record)) in subjects.chain(tiers).chain(switches.enumerate().map(placed("switches"))) {
            match name.and_then(|name| Ok((name, record?))) {
                Ok((literal, record)) => {
                    let name = self.by_network(literal.clone());
                    records.push(Imported { place, about, literal, name, record });
                }
                Err(mistake) => malformed.push(located(mistake, &place, &about)),
            }
        }
        (records, malformed)
    }
}

/// Records of one name, of which the last one would be all that stays.
fn same_names(records: &[Imported]) -> Vec<Mistake> {
    let mut first: HashMap<&RecordName, &Imported> = HashMap::with_capacity(records.len());
    let mut mistakes = Vec::new();
    for imported in records {
        if let Some(other) = first.insert(&imported.name, imported) {
            mistakes.push(imported.mistake(convert::same_subject(&other.literal, &imported.literal, &imported.name)));
        }
    }
    mistakes
}

/// A record of a domain that is loaded has to be such as could be written by itself.
fn uncountable(rules: &RuleSet, imported: &Imported) -> Option<Mistake> {
    let domain = domain_of(rules, &imported.name)?;
    let checked = match &imported.record {
        Record::Subject(record) => countable(&record.limits, domain),
        Record::Tier(definition) => tier_countable(definition, domain),
        Record::Switch(_) => Ok(()),
    };
    checked.err().map(|mistake| imported.mistake(mistake))
}

fn domain_of<'r>(rules: &'r RuleSet, name: &RecordName) -> Option<&'r Arc<Domain>> {
    let (RecordName::Subject { domain, .. } | RecordName::Tier { domain, .. } | RecordName::Switch { domain: Some(domain) }) = name
    else {
        return None;
    };
    rules.domains.get(domain.as_bytes())
}

/// Domains, rules and tiers that records name and that are neither in the rules nor in the import.
fn unknown_names(rules: &RuleSet, records: &[Imported]) -> Vec<Mistake> {
    let tiers = records.iter().filter(|imported| matches!(imported.record, Record::Tier(_)));
    let defined: HashSet<&RecordName> = tiers.map(|imported| &imported.name).collect();
    let mut mistakes = Vec::new();
    for imported in records {
        let (RecordName::Subject { domain: named, .. }
        | RecordName::Tier { domain: named, .. }
        | RecordName::Switch { domain: Some(named) }) = &imported.name
        else {
            continue;
        };
        let Some(domain) = domain_of(rules, &imported.name) else {
            mistakes.push(imported.mistake(names::unknown_domain(rules, named).below("domain")));
            continue;
        };
        if let Record::Subject(record) = &imported.record {
            let is_defined = |tier: &str| defined.contains(&RecordName::Tier { domain: named.clone(), tier: tier.into() });
            mistakes.extend(unknown_in(domain, record, is_defined).into_iter().map(|mistake| imported.mistake(mistake)));
        }
    }
    mistakes
}

fn unknown_in(domain: &Domain, record: &SubjectRecord, is_defined: impl Fn(&str) -> bool) -> Vec<Mistake> {
    let tier = record.tier.as_deref().filter(|tier| !is_defined(tier));
    let tier = tier.and_then(|tier| names::has_tier(domain, tier).err()).map(|mistake| mistake.below("tier"));
    let rules = record.limits.iter().enumerate().filter_map(|(place, limits)| {
        let mistake = names::has_rule(domain, limits.rule.as_deref()?).err()?;
        Some(mistake.below("rule").below(format!("limits[{place}]")))
    });
    tier.into_iter().chain(rules).collect()
}

/// A line for each; of many, how many more there are.
fn lines(mistakes: &[Mistake]) -> Vec<String> {
    let shown = mistakes.iter().take(MAX_LISTED).map(ToString::to_string);
    let more = mistakes.len().saturating_sub(MAX_LISTED);
    shown.chain((more > 0).then(|| format!("and {more} more"))).collect()
}
