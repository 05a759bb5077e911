//! What the admin API does, whoever asks and by whichever protocol.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use prost_types::Timestamp;

use super::problem::{Mistake, Problem};
use super::proto::weir::admin::v1 as proto;
use super::usage::Kind;
use super::{convert, effects, names};
use crate::limit::SECOND;
use crate::limiter::Shared;
use crate::rules::subject::{SubjectLimits, SubjectRecord, Switch};
use crate::rules::tier_definition::TierDefinition;
use crate::rules::{Domain, Rule, RuleSet};
use crate::spelling::{listed, suggestion};
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

impl<S: OperatorStore> Operations<S> {
    pub fn new(shared: Arc<Shared>, store: S) -> Operations<S> {
        Operations { shared, store }
    }

    pub(super) async fn get_subject(&self, request: proto::GetSubjectRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        let (record, text) = self.read(&name).await?;
        if text.is_none() {
            self.domain(&request.domain)?;
        }
        Ok(self.shown_with_warnings(&name, &record))
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
        // Of a domain that is gone its records can still be seen, and removed.
        if page.records.is_empty() && request.page_token.is_empty() {
            self.domain(&request.domain)?;
        }
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
        if request.tier.is_empty() {
            return Err(Problem::Invalid(no_tier_named(&domain)));
        }
        names::has_tier(&domain, &request.tier).map_err(|mistake| mistake.below("tier"))?;
        self.change(&name, |record| {
            record.tier = Some(request.tier.as_str().into());
            Ok(())
        })
        .await
    }

    pub(super) async fn unassign_tier(&self, request: proto::UnassignTierRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        self.domain(&request.domain)?;
        self.change(&name, |record| {
            record.tier = None;
            Ok(())
        })
        .await
    }

    pub(super) async fn override_subject(&self, request: proto::OverrideSubjectRequest) -> Result<proto::Subject, Problem> {
        let name = self.subject_name(&request.domain, &request.subject)?;
        let domain = self.domain(&request.domain)?;
        one_change(&request)?;
        for (place, limits) in request.limits.iter().enumerate().filter(|(_, limits)| !limits.rule.is_empty()) {
            let known = names::has_rule(&domain, &limits.rule);
            known.map_err(|mistake| mistake.below("rule").below(format!("limits[{place}]")))?;
        }
        let limits: Vec<SubjectLimits> = convert::limits_records(&request.limits)?;
        countable(&limits, &domain)?;
        for (what, field, until) in
            [("a block", "blocked_until", &request.blocked_until), ("an exemption", "allowed_until", &request.allowed_until)]
        {
            self.must_be_ahead(what, until.as_ref()).map_err(|mistake| mistake.below(field))?;
        }
        let changed = self.change(&name, |record| overridden(record, &request, &limits)).await?;
        if request.allowed_until.is_some() {
            let lifted = self.forget_counters(&name, Kind::Block).await;
            lifted.map_err(|problem| problem.after("the override is in effect"))?;
        }
        Ok(changed)
    }

    pub(super) async fn remove_subject(
        &self,
        request: proto::RemoveSubjectRequest,
    ) -> Result<proto::RemoveSubjectResponse, Problem> {
        // What was said of an address before its domain counted by network stands under the address itself.
        let literal = convert::subject_name(&request.domain, &request.subject)?;
        let network = by_network(&self.shared.rules(), literal.clone());
        let literal = Some(literal).filter(|literal| *literal != network);
        let mut removed = self.remove(network).await?;
        if let Some(literal) = literal {
            let of_literal = self.remove(literal).await;
            removed |=
                of_literal.map_err(|problem| if removed { problem.after("the network's override is removed") } else { problem })?;
        }
        if !removed {
            self.domain(&request.domain)?;
        }
        Ok(proto::RemoveSubjectResponse { removed })
    }

    pub(super) async fn list_tiers(&self, request: proto::ListTiersRequest) -> Result<proto::ListTiersResponse, Problem> {
        let prefix = RecordName::tiers(&request.domain);
        let mut tiers: BTreeMap<String, proto::Tier> = BTreeMap::new();
        if let Some(domain) = self.shared.loaded().domains.get(request.domain.as_bytes()) {
            let of_file = domain.plans.tiers.iter().map(|tier| {
                let listed = convert::tier(&domain.name, &tier.name, &tier.definition);
                (tier.name.to_string(), proto::Tier { source: Some(tier.source.to_string()), ..listed })
            });
            tiers.extend(of_file);
        }
        let mut after = Some(String::new());
        while let Some(name) = after {
            let page = self.store.list(&prefix, &name, MAX_PAGE).await?;
            for (name, record) in readable(page.records) {
                if let (RecordName::Tier { domain, tier }, Record::Tier(definition)) = (name, record) {
                    let replaces_file = Some(tiers.contains_key(&*tier));
                    let listed = proto::Tier { replaces_file, ..convert::tier(&domain, &tier, &definition) };
                    tiers.insert(tier.into(), proto::Tier { source: Some(RUN_TIME.to_owned()), ..listed });
                }
            }
            after = page.next;
        }
        if tiers.is_empty() {
            self.domain(&request.domain)?;
        }
        Ok(proto::ListTiersResponse { tiers: tiers.into_values().collect() })
    }

    pub(super) async fn define_tier(&self, request: proto::DefineTierRequest) -> Result<proto::Tier, Problem> {
        let tier = request.tier.ok_or_else(|| Problem::Invalid("`tier` is missing".to_owned()))?;
        let name = convert::tier_name(&tier.domain, &tier.name)?;
        let domain = self.domain(&tier.domain)?;
        let definition = convert::tier_definition(&tier)?;
        tier_countable(&definition, &domain)?;
        names::has_sets(&domain, &definition)?;
        let shown = convert::tier(&tier.domain, &tier.name, &definition);
        let without_room = effects::of_bursts(definition.sets.iter().flat_map(|(_, rates)| rates));
        let loaded = self.shared.loaded();
        let in_file = loaded.domains.get(tier.domain.as_bytes());
        let replaces_file = in_file.is_some_and(|domain| domain.plans.tier_named(tier.name.as_bytes()).is_some());
        self.put(name, &Record::Tier(definition)).await?;
        Ok(proto::Tier {
            source: Some(RUN_TIME.to_owned()),
            replaces_file: Some(replaces_file),
            warnings: effects::of_tiers(&domain).into_iter().chain(without_room).collect(),
            ..shown
        })
    }

    pub(super) async fn remove_tier(&self, request: proto::RemoveTierRequest) -> Result<proto::RemoveTierResponse, Problem> {
        let name = convert::tier_name(&request.domain, &request.name)?;
        let removed = self.remove(name).await?;
        if !removed {
            let domain = self.domain(&request.domain)?;
            names::has_tier(&domain, &request.name).map_err(|mistake| mistake.below("name"))?;
            if let Some(problem) = self.tier_of_file(&request.domain, &request.name) {
                return Err(problem);
            }
        }
        Ok(proto::RemoveTierResponse { removed })
    }

    /// That a tier stands in a rules file, which no call changes.
    fn tier_of_file(&self, domain: &str, name: &str) -> Option<Problem> {
        let loaded = self.shared.loaded();
        let plans = &loaded.domains.get(domain.as_bytes())?.plans;
        let source = &plans.tier(plans.tier_named(name.as_bytes())?).source;
        let remedy = "only tiers that were defined while weir runs can be removed here; edit the file";
        Some(Problem::Invalid(format!("name: tier `{name}` is written in {source}: {remedy}")))
    }

    pub(super) async fn get_switch(&self, request: proto::GetSwitchRequest) -> Result<proto::Switch, Problem> {
        let name = convert::switch_name(&request.domain)?;
        let record = self.store.read(&name).await?.and_then(|text| Record::parse(&name, &text).ok());
        if record.is_none() && !request.domain.is_empty() {
            self.domain(&request.domain)?;
        }
        let switch = if let Some(Record::Switch(switch)) = record { switch } else { Switch::Off };
        Ok(proto::Switch { domain: request.domain, switch: switch.name().to_owned() })
    }

    pub(super) async fn set_switch(&self, request: proto::SetSwitchRequest) -> Result<proto::Switch, Problem> {
        let switch = convert::switch(&request.switch)?;
        let name = convert::switch_name(&request.domain)?;
        if !request.domain.is_empty() {
            // The switch of a domain that is gone can be put off.
            let is_known = switch == Switch::Off && self.store.read(&name).await?.is_some();
            if !is_known {
                self.domain(&request.domain)?;
            }
        }
        self.put(name, &Record::Switch(switch)).await?;
        Ok(proto::Switch { domain: request.domain, switch: request.switch })
    }

    /// What is over when it begins is a misspelling.
    fn must_be_ahead(&self, what: &str, until: Option<&Timestamp>) -> Result<(), Mistake> {
        let Some(until) = until else { return Ok(()) };
        let now = self.now();
        if convert::micros(until)? > now {
            return Ok(());
        }
        Err(Mistake::invalid(format!(
            "{what} until {until} is over already: it is {}",
            convert::timestamp(now - now % (SECOND / 1_000))
        )))
    }

    /// The name of a subject's record.
    pub(super) fn subject_name(&self, domain: &str, subject: &str) -> Result<RecordName, Problem> {
        Ok(convert::subject_name(domain, subject).map(|name| by_network(&self.shared.rules(), name))?)
    }

    /// A domain that the rules have: a change in another one would do nothing, and is a misspelling.
    pub(super) fn domain(&self, name: &str) -> Result<Arc<Domain>, Problem> {
        let rules = self.shared.rules();
        let domain = rules.domains.get(name.as_bytes()).cloned();
        domain.ok_or_else(|| names::unknown_domain(&rules, name).into())
    }

    /// A subject's record, with what of it has no effect.
    fn shown_with_warnings(&self, name: &RecordName, record: &SubjectRecord) -> proto::Subject {
        let RecordName::Subject { domain, subject } = name else { return proto::Subject::default() };
        let warnings = match self.shared.rules().domains.get(domain.as_bytes()) {
            Some(domain) => effects::of_record(domain, subject, record, self.now()),
            None => vec![format!("domain `{domain}` is not loaded: this has no effect")],
        };
        proto::Subject { warnings, ..shown(name, record) }
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
        change: impl Fn(&mut SubjectRecord) -> Result<(), Mistake>,
    ) -> Result<proto::Subject, Problem> {
        for _ in 0..MAX_TRIES {
            let (mut record, text) = self.read(name).await?;
            change(&mut record)?;
            let shown = self.shown_with_warnings(name, &record);
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

/// A subject that is an address is known by the network that it is counted by.
pub(super) fn by_network(rules: &RuleSet, name: RecordName) -> RecordName {
    let RecordName::Subject { domain, subject } = &name else { return name };
    let network = rules.domains.get(domain.as_bytes()).and_then(|domain| domain.addresses.subject(subject));
    match network {
        Some(network) => RecordName::Subject { domain: domain.clone(), subject: network.as_slice().into() },
        None => name,
    }
}

/// Where a tier comes from that is not in the rules files.
const RUN_TIME: &str = "run time";

/// A record that says nothing is none.
pub(super) fn change_to(name: RecordName, expected: Expected, record: &Record) -> Result<Change, Mistake> {
    let next = Some(record).filter(|record| !record.is_empty()).map(Record::text);
    match next.as_deref().map_or(0, str::len) {
        0..=MAX_TEXT => Ok(Change { name, expected, next }),
        length => Err(Mistake::invalid(format!("a record of {length} bytes; at most {MAX_TEXT}"))),
    }
}

/// # Errors
/// For limits that are not a counter each in every rule that they are for.
pub(super) fn countable(limits: &[SubjectLimits], domain: &Domain) -> Result<(), Mistake> {
    for (place, limits) in limits.iter().enumerate() {
        let is_meant = |rule: &&Rule| match limits.rule.as_deref() {
            Some(named) => rule.label() == named,
            None => !rule.limits.is_empty() || rule.tiers.is_some(),
        };
        if let Some(algorithm) = domain.rules.iter().filter(is_meant).find_map(|rule| limits.same_counter(rule)) {
            return Err(convert::same_counter(Some(algorithm)).below(format!("limits[{place}]")));
        }
    }
    Ok(())
}

/// # Errors
/// Likewise for a tier's.
pub(super) fn tier_countable(definition: &TierDefinition, domain: &Domain) -> Result<(), Mistake> {
    definition.same_counter(domain).map_or(Ok(()), |algorithm| Err(convert::same_counter(Some(algorithm))))
}

/// What can be cleared of a subject.
const CLEARABLE: [&str; 5] = ["tier", "blocked_until", "allowed_until", "multiplier", "limits"];

/// # Errors
/// For a request that changes nothing, or whose changes contradict each other.
fn one_change(request: &proto::OverrideSubjectRequest) -> Result<(), Mistake> {
    let (blocks, allows) = (request.blocked_until.is_some(), request.allowed_until.is_some());
    let sets = [
        ("blocked_until", blocks),
        ("allowed_until", allows),
        ("multiplier", request.multiplier.is_some()),
        ("limits", !request.limits.is_empty()),
    ];
    if request.clear.is_empty() && sets.iter().all(|(_, is_set)| !is_set) {
        let fields = sets.map(|(field, _)| field).join(", ");
        return Err(Mistake::invalid(format!("nothing to change: give {fields} or clear")));
    }
    if blocks && allows {
        return Err(Mistake::invalid("`blocked_until` and `allowed_until` contradict each other: give one of them"));
    }
    for (place, field) in request.clear.iter().enumerate() {
        let at = |reason: String| Mistake::invalid(reason).below(format!("clear[{place}]"));
        if !CLEARABLE.contains(&field.as_str()) {
            let near = suggestion(field, CLEARABLE.into_iter());
            let known = "tier, blocked_until, allowed_until, multiplier or limits";
            return Err(at(format!("`{field}` cannot be cleared: {known}{near}")));
        }
        if sets.contains(&(field.as_str(), true)) {
            return Err(at(format!("`{field}` is set in the same request: do one of the two")));
        }
    }
    Ok(())
}

fn no_tier_named(domain: &Domain) -> String {
    let remedy = "`weir assign --remove` (UnassignTier) takes a tier away";
    if domain.plans.tiers.is_empty() {
        return format!("`tier` is missing, and domain `{}` has no tiers; {remedy}", domain.name);
    }
    let known = listed(domain.plans.tiers.iter().map(|tier| &*tier.name));
    format!("`tier` is missing: name one of {known}; {remedy}")
}

fn overridden(
    record: &mut SubjectRecord,
    request: &proto::OverrideSubjectRequest,
    limits: &[SubjectLimits],
) -> Result<(), Mistake> {
    for field in &request.clear {
        match &**field {
            "tier" => record.tier = None,
            "blocked_until" => record.blocked_until = None,
            "allowed_until" => record.allowed_until = None,
            "multiplier" => record.multiplier = None,
            // Anything else was refused before.
            _ => record.limits.clear(),
        }
    }
    if let Some(until) = convert::time(request.blocked_until.as_ref(), "blocked_until")? {
        record.blocked_until = Some(until);
    }
    if let Some(until) = convert::time(request.allowed_until.as_ref(), "allowed_until")? {
        record.allowed_until = Some(until);
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

pub(super) fn readable(texts: Vec<(String, String)>) -> Vec<(RecordName, Record)> {
    records::readable(texts.into_iter().map(|(name, text)| (Cow::Owned(name), Cow::Owned(text))))
}
