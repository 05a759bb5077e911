//! Looks at every record of an import before one is written. Holds no records: hashes of their names, and the first mistakes.

use std::collections::HashMap;
use std::sync::Arc;

use super::seen::{NameHash, Seen};
use super::{Given, Part};
use crate::admin::bounds::cut;
use crate::admin::operations::{by_network, change_to, countable, tier_countable};
use crate::admin::problem::{Mistake, Problem};
use crate::admin::{convert, names};
use crate::rules::{Domain, RuleSet};
use crate::store::records::{Change, Expected, Record, RecordName};

/// The most mistakes that an answer lists.
const MAX_LISTED: usize = 100;
/// The longest line about one of them, in bytes.
const MAX_LINE: usize = 1_000;

/// What is known of the records that have come. All of them are checked by the same rules.
pub(super) struct Check {
    rules: Arc<RuleSet>,
    seen: Seen,
    count: usize,
    /// Mistakes that `force` does not allow.
    malformed: Lines,
    /// Names of more than one record, and the first of each in the second look.
    repeated: HashMap<NameHash, Option<(String, RecordName)>>,
    /// A record names a domain or a rule that the rules do not have, or a tier that has not come yet.
    names_unknown: bool,
    /// Names that exist neither in the rules nor in the import.
    unknown: Lines,
}

/// A record by the name that it is kept by.
struct Checked {
    /// As it was given.
    literal: RecordName,
    name: RecordName,
    record: Record,
}

impl Check {
    pub(super) fn new(rules: Arc<RuleSet>) -> Check {
        Check {
            rules,
            seen: Seen::new(),
            count: 0,
            malformed: Lines::default(),
            repeated: HashMap::new(),
            names_unknown: false,
            unknown: Lines::default(),
        }
    }

    /// How many records have come.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether a record has a mistake of its own.
    pub(super) fn is_malformed(&self) -> bool {
        self.malformed.count > 0
    }

    /// Looks at what a record says by itself.
    pub(super) fn look(&mut self, place: usize, given: &Given) {
        self.count += 1;
        let checked = match self.checked(given) {
            Ok(checked) => checked,
            Err(mistake) => return self.malformed.add(|| located(mistake, place, given)),
        };
        let name = NameHash::of(&checked.name);
        if !self.seen.insert(name) && self.repeated.len() < MAX_LISTED {
            self.repeated.insert(name, None);
        }
        self.names_unknown |= !self.has_names_of(&checked);
    }

    /// A record that cannot be read; the line names its place.
    pub(super) fn unreadable(&mut self, line: &str) {
        self.count += 1;
        self.malformed.add(|| line);
    }

    /// Whether all records have to be looked at again, now that all their names are known.
    pub(super) fn needs_second_look(&self) -> bool {
        !self.is_malformed() && (self.names_unknown || !self.repeated.is_empty())
    }

    /// Looks at a record again: what it names, and whether it is there twice.
    pub(super) fn look_again(&mut self, place: usize, given: &Given) {
        let Ok(checked) = self.checked(given) else { return };
        if let Some(first) = self.repeated.get_mut(&NameHash::of(&checked.name)) {
            match first {
                None => *first = Some((at(place, given), checked.literal)),
                Some((other_place, other)) => {
                    let mistake = convert::same_subject(other, &checked.literal, &checked.name);
                    self.malformed.add(|| format!("{} (see {other_place})", located(mistake, place, given)));
                }
            }
            return;
        }
        if self.has_names_of(&checked) {
            return;
        }
        match self.unknown.has_room() {
            true => self.unknown_names(&checked).into_iter().for_each(|mistake| {
                self.unknown.add(|| located(mistake, place, given));
            }),
            // Which names were probably meant takes long to find.
            false => self.unknown.count += 1,
        }
    }

    /// All records were looked at: the names that do not exist, as warnings.
    ///
    /// # Errors
    /// For mistakes, and without `force` for names that do not exist.
    pub(super) fn finish(&mut self, force: bool) -> Result<Vec<String>, Problem> {
        if self.malformed.count > 0 {
            return Err(Problem::Invalid(format!("{}\nnothing was imported", self.malformed.take().join("\n"))));
        }
        let unknown = self.unknown.take();
        if !unknown.is_empty() && !force {
            let hint = "nothing was imported; mend the names, or import with `force` (`weir import --force`)";
            return Err(Problem::Invalid(format!("{}\n{hint}", unknown.join("\n"))));
        }
        Ok(unknown)
    }

    /// The change that a record is.
    ///
    /// # Errors
    /// For one that [`Check::look`] found a mistake in.
    pub(super) fn change(&self, given: &Given) -> Result<Change, Mistake> {
        let Checked { name, record, .. } = self.convert(given)?;
        change_to(name, Expected::Anything, &record)
    }

    fn checked(&self, given: &Given) -> Result<Checked, Mistake> {
        let checked = self.convert(given)?;
        if let Some(domain) = self.domain(&checked.name) {
            match &checked.record {
                Record::Subject(record) => countable(&record.limits, domain)?,
                Record::Tier(definition) => tier_countable(definition, domain)?,
                Record::Switch(_) => {}
            }
        }
        change_to(checked.name.clone(), Expected::Anything, &checked.record)?;
        Ok(checked)
    }

    fn convert(&self, given: &Given) -> Result<Checked, Mistake> {
        let (literal, record) = match given {
            Given::Subject(subject) => {
                let name = convert::subject_name(&subject.domain, &subject.subject)?;
                (name, Record::Subject(convert::subject_record(subject)?))
            }
            Given::Tier(tier) => (convert::tier_name(&tier.domain, &tier.name)?, Record::Tier(convert::tier_definition(tier)?)),
            Given::Switch(switch) => (convert::switch_name(&switch.domain)?, Record::Switch(convert::switch(&switch.switch)?)),
        };
        Ok(Checked { name: by_network(&self.rules, literal.clone()), literal, record })
    }

    /// The domain that a record is of, where the rules have it.
    fn domain(&self, name: &RecordName) -> Option<&Arc<Domain>> {
        self.rules.domains.get(domain_of(name)?.as_bytes())
    }

    /// Whether all that a record names is in the rules, or among the names that have come.
    fn has_names_of(&self, checked: &Checked) -> bool {
        let Some(domain) = self.domain(&checked.name) else { return domain_of(&checked.name).is_none() };
        let record = match &checked.record {
            Record::Subject(record) => record,
            Record::Tier(definition) => return names::has_sets(domain, definition).is_ok(),
            Record::Switch(_) => return true,
        };
        let is_rule = |rule: &str| names::knows_rule(domain, rule);
        record.tier.as_deref().is_none_or(|tier| self.has_tier(domain, tier))
            && record.limits.iter().filter_map(|limits| limits.rule.as_deref()).all(is_rule)
    }

    fn has_tier(&self, domain: &Domain, tier: &str) -> bool {
        let name = || NameHash::of(&RecordName::Tier { domain: domain.name.clone(), tier: tier.into() });
        names::knows_tier(domain, tier) || self.seen.contains(name())
    }

    fn unknown_names(&self, checked: &Checked) -> Vec<Mistake> {
        let Some(domain) = self.domain(&checked.name) else {
            let named = domain_of(&checked.name).unwrap_or_default();
            return vec![names::unknown_domain(&self.rules, named).below("domain")];
        };
        let record = match &checked.record {
            Record::Subject(record) => record,
            Record::Tier(definition) => return names::has_sets(domain, definition).err().into_iter().collect(),
            Record::Switch(_) => return Vec::new(),
        };
        let tier = record.tier.as_deref().filter(|tier| !self.has_tier(domain, tier));
        let tier = tier.and_then(|tier| names::has_tier(domain, tier).err()).map(|mistake| mistake.below("tier"));
        let rules = record.limits.iter().enumerate().filter_map(|(place, limits)| {
            let mistake = names::has_rule(domain, limits.rule.as_deref()?).err()?;
            Some(mistake.below("rule").below(format!("limits[{place}]")))
        });
        tier.into_iter().chain(rules).take(MAX_LISTED).collect()
    }
}

fn domain_of(name: &RecordName) -> Option<&str> {
    match name {
        RecordName::Subject { domain, .. } | RecordName::Tier { domain, .. } => Some(domain),
        RecordName::Switch { domain } => domain.as_deref(),
    }
}

/// Where a record is: `subjects[3]`.
fn at(place: usize, given: &Given) -> String {
    let part = match given {
        Given::Subject(_) => Part::Subjects,
        Given::Tier(_) => Part::Tiers,
        Given::Switch(_) => Part::Switches,
    };
    format!("{}[{place}]", part.name())
}

/// Whom a record is about, in words.
fn about(given: &Given) -> String {
    match given {
        Given::Subject(subject) => format!("`{}` of domain `{}`", subject.subject, subject.domain),
        Given::Tier(tier) => format!("tier `{}` of domain `{}`", tier.name, tier.domain),
        Given::Switch(switch) if switch.domain.is_empty() => "the switch of all domains".to_owned(),
        Given::Switch(switch) => format!("the switch of domain `{}`", switch.domain),
    }
}

fn located(mistake: Mistake, place: usize, given: &Given) -> Mistake {
    mistake.below(at(place, given)).of(&about(given))
}

/// The first lines of many, and how many there are.
#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    count: usize,
}

impl Lines {
    fn has_room(&self) -> bool {
        self.lines.len() < MAX_LISTED
    }

    fn add<L: ToString>(&mut self, line: impl FnOnce() -> L) {
        self.count += 1;
        if self.has_room() {
            let line = cut(line().to_string(), MAX_LINE);
            self.lines.push(line);
        }
    }

    /// The lines; of many, how many more there are.
    fn take(&mut self) -> Vec<String> {
        let more = self.count - self.lines.len();
        let mut lines = std::mem::take(&mut self.lines);
        lines.extend((more > 0).then(|| format!("and {more} more")));
        lines
    }
}
