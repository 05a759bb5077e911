//! What operators change while weir runs: what is known of single subjects, tiers, the switch. Every record has a name and a
//! readable text; stores keep texts, and every process holds all of them in a [`RecordView`], so that no decision reads a store.

mod memory;
mod text;
mod view;

use std::borrow::Cow;
use std::sync::Arc;

pub use memory::MemoryRecords;
pub use text::{Malformed, multiplier};
pub use view::{RecordView, Tiers};

use super::StoreError;
use super::shown::shown;
use crate::limit::Micros;
use crate::rules::key;
use crate::rules::subject::{SubjectRecord, Switch};
use crate::rules::tier_definition::TierDefinition;

/// The most records of a store: bounds what every process holds, about 200 bytes each.
pub const MAX_RECORDS: usize = 1_000_000;
/// The longest text of a record, in bytes.
pub const MAX_TEXT: usize = 16 << 10;
/// The most records that are written, or listed, at once.
pub const MAX_PAGE: usize = 1_000;

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordName {
    /// `subject` as it stands in braces in counter keys.
    Subject {
        domain: Box<str>,
        subject: Box<[u8]>,
    },
    Tier {
        domain: Box<str>,
        tier: Box<str>,
    },
    /// `None`: of all domains.
    Switch {
        domain: Option<Box<str>>,
    },
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Subject(SubjectRecord),
    Tier(TierDefinition),
    Switch(Switch),
}

/// A record as it is to be from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: RecordName,
    pub expected: Expected,
    /// `None`: gone.
    pub next: Option<String>,
}

/// What a change is made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Anything,
    /// This text, or none.
    Exactly(Option<String>),
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("a record has changed in the meantime")]
    Conflict,
    #[error("there are {MAX_RECORDS} records, as many as there may be")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store gave no answer: it may have been written.
    #[error("{0}; it may have been written")]
    Uncertain(StoreError),
}

/// Who is to know of every change: called in the order of the changes, from one thread at a time.
pub trait Subscriber: Send + Sync {
    /// These records are so from now on, or gone.
    fn changed(&self, changes: Vec<(RecordName, Option<Record>)>);
    /// These are all that there are.
    fn replaced(&self, records: Vec<(RecordName, Record)>);
    /// The store said that it is `store`, between `before` and `after` by this machine; all in µs since the
    /// epoch.
    fn clock_was_read(&self, _before: Micros, _store: Micros, _after: Micros) {}
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Names and texts, in order. Also of a page in between there may be fewer than were asked for, or none: a record may go
    /// while its page is read.
    pub records: Vec<(String, String)>,
    /// After which name the next page begins; `None` after the last one.
    pub next: Option<String>,
}

impl Page {
    /// Of the names as they were read, `count` at most, with what was found under them.
    pub(super) fn new(named: Vec<(String, Option<String>)>, count: usize) -> Page {
        let next = named.last().filter(|_| named.len() >= count).map(|(name, _)| name.clone());
        Page { records: named.into_iter().filter_map(|(name, text)| Some((name, text?))).collect(), next }
    }
}

/// Where records are kept.
pub trait RecordStore: Send + Sync {
    /// Whether this process has loaded the records once: before that, decisions go by none of them.
    fn are_known(&self) -> bool;

    fn read(&self, name: &RecordName) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// At most `count` records in the order of their texts' names, from the first that begins with `prefix` and comes after
    /// `after`.
    fn list(&self, prefix: &str, after: &str, count: usize) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Writes all or nothing. This process goes by it when it returns; every other one does within half a second.
    fn write(&self, changes: &[Change]) -> impl Future<Output = Result<(), WriteError>> + Send;
}

impl RecordName {
    /// `subject|<domain>|<key>=<value>`, `tier|<domain>|<tier>`, `switch|<domain>`, `switch`; escaped as in counter keys.
    pub fn text(&self) -> String {
        let escaped = |name: &str| key::shown(&key::domain(name.as_bytes()));
        match self {
            RecordName::Subject { domain, subject } => format!("subject|{}|{}", escaped(domain), key::shown(subject)),
            RecordName::Tier { domain, tier } => format!("tier|{}|{}", escaped(domain), escaped(tier)),
            RecordName::Switch { domain: Some(domain) } => format!("switch|{}", escaped(domain)),
            RecordName::Switch { domain: None } => "switch".to_owned(),
        }
    }

    /// What the names of all subjects of a domain begin with.
    pub fn subjects(domain: &str) -> String {
        RecordName::Subject { domain: domain.into(), subject: Box::default() }.text()
    }

    /// What the names of all tiers of a domain begin with.
    pub fn tiers(domain: &str) -> String {
        RecordName::Tier { domain: domain.into(), tier: "".into() }.text()
    }

    /// `None` for what [`RecordName::text`] does not write.
    pub fn parse(text: &str) -> Option<RecordName> {
        let plain = |escaped: &str| String::from_utf8(key::unescape(escaped.as_bytes())).ok().map(String::into_boxed_str);
        let parts: Vec<&str> = text.split('|').collect();
        let name = match parts[..] {
            ["subject", domain, subject] => {
                RecordName::Subject { domain: plain(domain)?, subject: key::subject_named(subject)?.as_slice().into() }
            }
            ["tier", domain, tier] => RecordName::Tier { domain: plain(domain)?, tier: plain(tier)? },
            ["switch", domain] => RecordName::Switch { domain: Some(plain(domain)?) },
            ["switch"] => RecordName::Switch { domain: None },
            _ => return None,
        };
        Some(name)
    }
}

impl Record {
    /// What says nothing need not be kept.
    pub fn is_empty(&self) -> bool {
        match self {
            Record::Subject(subject) => subject.is_empty(),
            Record::Tier(_) => false,
            Record::Switch(switch) => *switch == Switch::Off,
        }
    }
}

/// The records of these texts. What cannot be read (a later version wrote it, or a person) is left out and told.
pub fn readable<'t>(texts: impl Iterator<Item = (Cow<'t, str>, Cow<'t, str>)>) -> Vec<(RecordName, Record)> {
    let (mut records, mut unreadable, mut first) = (Vec::new(), 0_u64, None);
    for (name, text) in texts {
        match record(&name, &text) {
            Some(Ok(named)) => records.push(named),
            other => {
                unreadable += 1;
                first = first.or_else(|| Some(other.and_then(Result::err).map(|reason| reason.to_string())));
            }
        }
    }
    if let Some(reason) = first {
        let reason = reason.unwrap_or_else(|| "a record of an unknown kind".to_owned());
        tracing::warn!(reason = &*shown(&reason), unreadable, "records cannot be read and count as absent");
    }
    records
}

fn record(name: &str, text: &str) -> Option<Result<(RecordName, Record), Malformed>> {
    let name = RecordName::parse(name)?;
    Some(Record::parse(&name, text).map(|record| (name, record)))
}

/// What follows a store's records: nothing to tell anyone.
impl Subscriber for Arc<RecordView> {
    fn changed(&self, changes: Vec<(RecordName, Option<Record>)>) {
        self.apply(changes);
    }

    fn replaced(&self, records: Vec<(RecordName, Record)>) {
        self.replace(records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let subject = |text: &str| key::subject_named(text).unwrap().as_slice().into();
        let names = [
            RecordName::Subject { domain: "api".into(), subject: subject("user=a|b 100%") },
            RecordName::Subject {
                domain: "a|b".into(),
                subject: key::subject(key::Part { key: b"k", value: b"\xff{", shared: true }).as_slice().into(),
            },
            RecordName::Tier { domain: "api".into(), tier: "p|ro=1".into() },
            RecordName::Switch { domain: Some("ä".into()) },
            RecordName::Switch { domain: None },
        ];
        for name in names {
            assert_eq!(RecordName::parse(&name.text()), Some(name));
        }
        assert_eq!(["", "subject|api", "tier|a|b|c", "other|x"].map(RecordName::parse), [const { None }; 4]);
    }

    #[test]
    fn a_domain_never_begins_with_another() {
        assert!(!RecordName::subjects("apis").starts_with(&RecordName::subjects("api")));
    }
}
