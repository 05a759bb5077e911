//! What the admin API does, whoever asks and by whichever protocol.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use prost_types::Timestamp;

use super::convert;
use super::proto::weir::admin::v1 as proto;
use super::usage::Kind;
use crate::limiter::Shared;
use crate::rules::subject::{SubjectLimits, SubjectRecord, Switch};
use crate::rules::tier_definition::TierDefinition;
use crate::rules::{Domain, Rule};
use crate::store::StoreError;
use crate::store::records::{self, Change, Expected, MAX_PAGE, MAX_TEXT, Record, RecordName, RecordStore, WriteError};
use crate::store::subjects::SubjectStore;

/// The size of a page that names none.
const DEFAULT_PAGE: usize = 100;
/// How often a change is tried again that another one came in between of.
const MAX_TRIES: usize = 5;

/// What operators change and look at is kept in one.
pub trait OperatorStore: RecordStore + SubjectStore {}

impl<S: RecordStore + SubjectStore> OperatorStore for S {}

/// The operations, over a store.
pub struct Operations<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) store: S,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Invalid(String),
    /// What the request names is not in the rules.
    #[error("{0}")]
    Unknown(String),
    #[error("others change the same record at the same time; try again")]
    Conflict,
    #[error("{0}")]
    Full(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        Problem::Unavailable(error.to_string())
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Problem {
        match error {
            WriteError::Conflict => Problem::Conflict,
            WriteError::Full => Problem::Full(error.to_string()),
            WriteError::Store(error) => error.into(),
        }
    }
}

impl<S: OperatorStore> Operations<S> {
    pub fn new(shared: Arc<Shared>, store: S) -> Operations<S> {
        Operations { shared, store }
    }

    pub(super) async fn get_subject(&self, request: proto::GetSubjectRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        let record = self.read(&name).await?.0;
        Ok(shown(&name, &record))
    }

    pub(super) async fn list_subjects(&self, request: proto::ListSubjectsRequest) -> Result<proto::ListSubjectsResponse, Problem> {
        if request.domain.is_empty() {
            return Err(Problem::Invalid("`domain` is missing".to_owned()));
        }
        let size = match request.page_size as usize {
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let page = self.store.list(&RecordName::subjects(&request.domain), &request.page_token, size).await?;
        let next_page_token = page.next.unwrap_or_default();
        let records = readable(page.records);
        let subjects = records.iter().filter_map(|(name, record)| match record {
            Record::Subject(record) => Some(shown(name, record)),
            _ => None,
        });
        Ok(proto::ListSubjectsResponse { subjects: subjects.collect(), next_page_token })
    }

    pub(super) async fn assign_tier(&self, request: proto::AssignTierRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        let domain = self.domain(&request.domain)?;
        if !request.tier.is_empty() {
            has_tier(&domain, &request.tier)?;
        }
        let tier = Some(request.tier).filter(|tier| !tier.is_empty());
        self.change(&name, |record| {
            record.tier = tier.as_deref().map(Into::into);
            Ok(())
        })
        .await
    }

    pub(super) async fn override_subject(&self, request: proto::OverrideSubjectRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        let domain = self.domain(&request.domain)?;
        for limits in &request.limits {
            if !limits.rule.is_empty() && !domain.rules.iter().any(|rule| rule.label() == limits.rule) {
                let known: Vec<&str> = domain.rules.iter().take(20).map(Rule::label).collect();
                let known = known.join(", ");
                return Err(Problem::Unknown(format!("domain `{}` has no rule `{}`: it has {known}", domain.name, limits.rule)));
            }
        }
        let limits: Vec<SubjectLimits> = request.limits.iter().map(convert::limits_record).collect::<Result<_, _>>()?;
        countable(&limits, &domain)?;
        for (what, until) in [("a block", &request.blocked_until), ("an exemption", &request.allowed_until)] {
            self.must_be_ahead(what, until.as_ref())?;
        }
        let said = self.change(&name, |record| overridden(record, &request, &limits)).await?;
        if request.allowed_until.is_some() {
            self.forget_counters(&name, Kind::Block).await?;
        }
        Ok(said)
    }

    pub(super) async fn remove_subject(
        &self,
        request: proto::RemoveSubjectRequest,
    ) -> Result<proto::RemoveSubjectResponse, Problem> {
        // What was said of an address before its domain counted by network stands under the address itself.
        let literal = convert::subject_name(&request.domain, &request.subject)?;
        let network = self.by_network(literal.clone());
        let literal = Some(literal).filter(|literal| *literal != network);
        let mut removed = self.remove(network).await?;
        if let Some(literal) = literal {
            removed |= self.remove(literal).await?;
        }
        Ok(proto::RemoveSubjectResponse { removed })
    }

    pub(super) async fn list_tiers(&self, request: proto::ListTiersRequest) -> Result<proto::ListTiersResponse, Problem> {
        let prefix = RecordName::tiers(&request.domain);
        let (mut tiers, mut after) = (Vec::new(), Some(String::new()));
        while let Some(name) = after {
            let page = self.store.list(&prefix, &name, MAX_PAGE).await?;
            for (name, record) in readable(page.records) {
                if let (RecordName::Tier { domain, tier }, Record::Tier(definition)) = (name, record) {
                    tiers.push(convert::tier(&domain, &tier, &definition));
                }
            }
            after = page.next;
        }
        Ok(proto::ListTiersResponse { tiers })
    }

    pub(super) async fn define_tier(&self, request: proto::DefineTierRequest) -> Result<proto::Tier, Problem> {
        let tier = request.tier.ok_or_else(|| Problem::Invalid("`tier` is missing".to_owned()))?;
        let name = convert::tier_name(&tier.domain, &tier.name)?;
        let domain = self.domain(&tier.domain)?;
        let definition = convert::tier_definition(&tier)?;
        tier_countable(&definition, &domain)?;
        let shown = convert::tier(&tier.domain, &tier.name, &definition);
        self.put(name, &Record::Tier(definition)).await?;
        Ok(shown)
    }

    pub(super) async fn remove_tier(&self, request: proto::RemoveTierRequest) -> Result<proto::RemoveTierResponse, Problem> {
        let name = convert::tier_name(&request.domain, &request.name)?;
        Ok(proto::RemoveTierResponse { removed: self.remove(name).await? })
    }

    pub(super) async fn get_switch(&self, request: proto::GetSwitchRequest) -> Result<proto::Switch, Problem> {
        let name = convert::switch_name(&request.domain);
        let record = self.store.read(&name).await?.and_then(|text| Record::parse(&name, &text).ok());
        if record.is_none() && !request.domain.is_empty() {
            self.domain(&request.domain)?;
        }
        let switch = if let Some(Record::Switch(switch)) = record { switch } else { Switch::Off };
        Ok(proto::Switch { domain: request.domain, switch: switch.name().to_owned() })
    }

    pub(super) async fn set_switch(&self, request: proto::SetSwitchRequest) -> Result<proto::Switch, Problem> {
        let switch = convert::switch(&request.switch)?;
        if !request.domain.is_empty() && switch != Switch::Off {
            self.domain(&request.domain)?;
        }
        self.put(convert::switch_name(&request.domain), &Record::Switch(switch)).await?;
        Ok(proto::Switch { domain: request.domain, switch: request.switch })
    }

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
        let records = self.one_of_a_network(convert::import(&request)?)?;
        self.all_countable(&records)?;
        let changes = records.iter().map(|(name, record)| {
            change_to(name.clone(), Expected::Anything, record).map_err(|problem| convert::in_record(name, problem))
        });
        let changes: Vec<Change> = changes.collect::<Result<_, _>>()?;
        for page in changes.chunks(MAX_PAGE) {
            self.store.write(page).await?;
        }
        Ok(proto::ImportRecordsResponse { imported: changes.len() as u64 })
    }

    /// The records by the names they are kept by. Of two that are of one network the later one would be all that stays.
    fn one_of_a_network(&self, records: Vec<(RecordName, Record)>) -> Result<Vec<(RecordName, Record)>, Problem> {
        let mut given: HashMap<RecordName, RecordName> = HashMap::with_capacity(records.len());
        let by_network = records.into_iter().map(|(literal, record)| {
            let name = self.by_network(literal.clone());
            match given.insert(name.clone(), literal.clone()) {
                Some(other) if other != literal => Err(convert::same_subject(&other, &literal, &name)),
                _ => Ok((name, record)),
            }
        });
        by_network.collect()
    }

    /// Records of domains that are loaded have to be such as could be said of them one by one.
    fn all_countable(&self, records: &[(RecordName, Record)]) -> Result<(), Problem> {
        let rules = self.shared.rules();
        for (name, record) in records {
            let (RecordName::Subject { domain, .. } | RecordName::Tier { domain, .. }) = name else { continue };
            let Some(domain) = rules.domains.get(domain.as_bytes()) else { continue };
            let checked = match record {
                Record::Subject(record) => countable(&record.limits, domain),
                Record::Tier(definition) => tier_countable(definition, domain),
                Record::Switch(_) => Ok(()),
            };
            checked.map_err(|problem| convert::in_record(name, problem))?;
        }
        Ok(())
    }

    /// What is over when it begins is a misspelling.
    fn must_be_ahead(&self, what: &str, until: Option<&Timestamp>) -> Result<(), Problem> {
        let Some(until) = until else { return Ok(()) };
        let now = self.now();
        if convert::micros(until)? > now {
            return Ok(());
        }
        Err(Problem::Invalid(format!("{what} until {until} is over already: it is {}", convert::timestamp(now))))
    }

    /// The name of a subject's record.
    pub(super) fn subject_name(&self, domain: &str, subject: &str) -> Result<RecordName, Problem> {
        convert::subject_name(domain, subject).map(|name| self.by_network(name))
    }

    /// A subject that is an address is known by the network that it is counted by.
    fn by_network(&self, name: RecordName) -> RecordName {
        let RecordName::Subject { domain, subject } = &name else { return name };
        let rules = self.shared.rules();
        let network = rules.domains.get(domain.as_bytes()).and_then(|domain| domain.addresses.subject(subject));
        match network {
            Some(network) => RecordName::Subject { domain: domain.clone(), subject: network.as_slice().into() },
            None => name,
        }
    }

    /// A domain that the rules have: a change in another one would do nothing, and is a misspelling.
    pub(super) fn domain(&self, name: &str) -> Result<Arc<Domain>, Problem> {
        let rules = self.shared.rules();
        let domain = rules.domains.get(name.as_bytes()).cloned();
        domain.ok_or_else(|| {
            let mut known: Vec<&str> = rules.domains.values().map(|domain| &*domain.name).collect();
            known.sort_unstable();
            Problem::Unknown(format!("no domain `{name}` is loaded: there are {}", known.join(", ")))
        })
    }

    /// A subject's record, and the text that it is read from. One that cannot be read is as good as none.
    pub(super) async fn read(&self, name: &RecordName) -> Result<(SubjectRecord, Option<String>), Problem> {
        let text = self.store.read(name).await?;
        let record = match text.as_deref().map(|text| Record::parse(name, text)) {
            Some(Ok(Record::Subject(record))) => record,
            _ => SubjectRecord::default(),
        };
        Ok((record, text))
    }

    /// Changes a subject's record on what it is: a change of someone else in between is not lost.
    async fn change(
        &self,
        name: &RecordName,
        change: impl Fn(&mut SubjectRecord) -> Result<(), Problem>,
    ) -> Result<proto::Subject, Problem> {
        for _ in 0..MAX_TRIES {
            let (mut record, text) = self.read(name).await?;
            change(&mut record)?;
            let shown = shown(name, &record);
            let next = change_to(name.clone(), Expected::Exactly(text), &Record::Subject(record))?;
            match self.store.write(&[next]).await {
                Ok(()) => return Ok(shown),
                Err(WriteError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Problem::Conflict)
    }

    async fn put(&self, name: RecordName, record: &Record) -> Result<(), Problem> {
        Ok(self.store.write(&[change_to(name, Expected::Anything, record)?]).await?)
    }

    /// Says whether there was something.
    async fn remove(&self, name: RecordName) -> Result<bool, Problem> {
        let was_there = self.store.read(&name).await?.is_some();
        self.store.write(&[Change { name, expected: Expected::Anything, next: None }]).await?;
        Ok(was_there)
    }
}

/// A record that says nothing is none.
fn change_to(name: RecordName, expected: Expected, record: &Record) -> Result<Change, Problem> {
    let next = Some(record).filter(|record| !record.is_empty()).map(Record::text);
    match next.as_deref().map_or(0, str::len) {
        0..=MAX_TEXT => Ok(Change { name, expected, next }),
        length => Err(Problem::Invalid(format!("a record of {length} bytes; at most {MAX_TEXT}"))),
    }
}

/// # Errors
/// For limits that are not a counter each in every rule that they are for.
fn countable(limits: &[SubjectLimits], domain: &Domain) -> Result<(), Problem> {
    let same_counter = |limits: &SubjectLimits| {
        let is_meant = |rule: &&Rule| match limits.rule.as_deref() {
            Some(named) => rule.label() == named,
            None => !rule.limits.is_empty() || rule.tiers.is_some(),
        };
        domain.rules.iter().filter(is_meant).find_map(|rule| limits.same_counter(rule))
    };
    limits.iter().find_map(same_counter).map_or(Ok(()), |algorithm| Err(convert::same_counter(Some(algorithm))))
}

/// # Errors
/// Likewise for a tier's.
fn tier_countable(definition: &TierDefinition, domain: &Domain) -> Result<(), Problem> {
    definition.same_counter(domain).map_or(Ok(()), |algorithm| Err(convert::same_counter(Some(algorithm))))
}

fn overridden(
    record: &mut SubjectRecord,
    request: &proto::OverrideSubjectRequest,
    limits: &[SubjectLimits],
) -> Result<(), Problem> {
    for field in &request.clear {
        match &**field {
            "tier" => record.tier = None,
            "blocked_until" => record.blocked_until = None,
            "allowed_until" => record.allowed_until = None,
            "multiplier" => record.multiplier = None,
            "limits" => record.limits.clear(),
            _ => {
                let known = "tier, blocked_until, allowed_until, multiplier or limits";
                return Err(Problem::Invalid(format!("`{field}` cannot be cleared: {known}")));
            }
        }
    }
    if let Some(time) = &request.blocked_until {
        record.blocked_until = Some(convert::micros(time)?);
    }
    if let Some(time) = &request.allowed_until {
        record.allowed_until = Some(convert::micros(time)?);
    }
    if let Some(multiplier) = request.multiplier {
        record.multiplier = Some(convert::multiplier(multiplier)?);
    }
    for limits in limits.iter().cloned() {
        match record.limits.iter_mut().find(|known| known.rule == limits.rule) {
            Some(known) => known.change(limits),
            None => record.limits.push(limits),
        }
    }
    Ok(())
}

fn shown(name: &RecordName, record: &SubjectRecord) -> proto::Subject {
    match name {
        RecordName::Subject { domain, subject } => convert::subject(domain, subject, record),
        _ => proto::Subject::default(),
    }
}

fn readable(texts: Vec<(String, String)>) -> Vec<(RecordName, Record)> {
    records::readable(texts.into_iter().map(|(name, text)| (Cow::Owned(name), Cow::Owned(text))))
}

/// # Errors
/// For a tier that the domain does not have; names those that it has.
pub(super) fn has_tier(domain: &Domain, tier: &str) -> Result<(), Problem> {
    if domain.plans.tier_named(tier.as_bytes()).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = domain.plans.tiers.iter().map(|tier| &*tier.name).collect();
    let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
    Err(Problem::Unknown(format!("domain `{}` has no tier `{tier}`: {known}", domain.name)))
}
