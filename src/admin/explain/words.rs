//! Why, in sentences.

use super::{Case, proto, store_failure_name};
use crate::config::keys;
use crate::limit::{Algorithm, Charge, Micros, Mode, Operation, Outcome, RetryAfter};
use crate::rules::decision::{Decision, Status};
use crate::rules::explain::{Reasons, TierReason};
use crate::rules::key;
use crate::rules::plan::{Kind, Planned, Source, Verdict};
use crate::rules::subject::SubjectRecord;
use crate::rules::tier::TierSource;
use crate::rules::tree::End;
use crate::rules::{Rule, subject, tier};

/// The most names that a sentence lists.
const LISTED: usize = 8;

/// What is said about a case.
pub(super) struct Sentences<'c, 'a, 'r>(pub(super) &'c Case<'a, 'r>);

impl Sentences<'_, '_, '_> {
    /// Why the request is refused.
    pub(super) fn refusal(&self, decision: &Decision) -> String {
        let explained = self.0.explained;
        let Some(place) = decision.limited_by else { return "a limit has no room".to_owned() };
        let (planned, status) = (&explained.plan.descriptors[place], &decision.statuses[place]);
        match (planned.kind, status.rule) {
            (Kind::Blocked(left), _) => self.operator_block(&key::shown(&explained.reasons[place].subject), left),
            (Kind::Deny, Some(rule)) => format!("rule `{}` says `deny: true`", self.0.domain.rule(rule).label()),
            _ => self.of_status(status).unwrap_or_else(|| "a limit has no room".to_owned()),
        }
    }

    fn operator_block(&self, subject: &str, left: Micros) -> String {
        format!("an operator has blocked {subject} until {}", self.time(left))
    }

    /// What is known while the store gives no answer, for a request that has counters.
    pub(super) fn without_store(&self, failure: &str) -> String {
        let domain = self.0.domain;
        let counted = self.0.explained.plan.descriptors.iter().filter(|planned| !planned.checks.is_empty());
        let policies = counted.map(|planned| {
            let policy = planned.rule.map_or(domain.on_store_failure, |rule| domain.rule(rule).on_store_failure);
            let label = planned.rule.map_or("the request's own limit", |rule| domain.rule(rule).label());
            format!("`{label}` answers by `on_store_failure: {}`", store_failure_name(policy))
        });
        let mut policies: Vec<String> = policies.collect();
        policies.dedup();
        let more = policies.len().saturating_sub(LISTED);
        policies.truncate(LISTED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        format!("usage unknown: {failure}; meanwhile {}{more}", policies.join(", "))
    }

    fn of_status(&self, status: &Status) -> Option<String> {
        let rule = self.0.domain.rule(status.rule?).label();
        let shown = status.limits.get(status.shown?)?;
        if shown.source == Source::Block {
            return Some(format!("rule `{rule}` still blocks after a refusal (`block_for`)"));
        }
        let limit = status.limit(self.0.domain, &self.0.explained.plan.overrides)?;
        Some(match shown.outcome {
            Outcome::Denied { retry_after: RetryAfter::Never { .. }, .. } if limit.limit.capacity() == 0 => {
                format!("limit `{}` of rule `{rule}` is 0: it refuses every request, also a look", limit.policy)
            }
            Outcome::Denied { retry_after: RetryAfter::Never { .. }, .. } => {
                format!("limit `{}` of rule `{rule}` can never hold a cost of {}", limit.policy, status.cost)
            }
            _ => format!("limit `{}` of rule `{rule}` has no room", limit.policy),
        })
    }

    /// Why it is admitted.
    pub(super) fn admission(&self, said: &[proto::ExplainedDescriptor]) -> String {
        let explained = self.0.explained;
        match explained.plan.verdict {
            Verdict::Exempt { descriptor } => {
                format!("{} is exempt: admitted, and nothing is counted", key::shown(&explained.reasons[descriptor].subject))
            }
            Verdict::Allowed(rule) => {
                format!(
                    "rule `{}` says `allow: true`: admitted as a whole, and nothing is counted",
                    self.0.domain.rule(rule).label()
                )
            }
            _ if said.iter().any(|descriptor| ["over_limit", "shadow"].contains(&&*descriptor.outcome)) => {
                "what has no room only watches, or does not refuse alone".to_owned()
            }
            _ if explained.plan.group.checks.is_empty() => "no rule limits it".to_owned(),
            _ => "every limit has room".to_owned(),
        }
    }

    /// What led to what becomes of a descriptor.
    pub(super) fn of_descriptor(&self, place: usize, status: Option<&Status>) -> Vec<String> {
        let (planned, reasons) = (&self.0.explained.plan.descriptors[place], &self.0.explained.reasons[place]);
        let mut said = self.of_match(place, reasons);
        said.extend(self.of_kind(planned, reasons));
        if let (Some(rule), Kind::Limited | Kind::Unlimited) = (planned.rule, planned.kind) {
            let rule = self.0.domain.rule(rule);
            said.extend(reasons.tier.as_ref().map(|tier| self.of_tier(tier, planned)));
            said.extend(reasons.record.as_deref().into_iter().flat_map(|record| of_record(record, rule, planned, reasons)));
            said.extend(self.of_class(planned));
            said.extend(self.of_mode(planned));
            said.extend(self.of_hits(planned).map(str::to_owned));
            said.extend(status.and_then(|status| self.of_block(rule, planned, status)));
        }
        let has_own_hits = self.0.request.descriptors[place].hits.is_some();
        if reasons.weight != 1 && !has_own_hits && planned.rule.is_some() {
            said.push(format!("it weighs {} (`costs`)", reasons.weight));
        }
        said
    }

    fn of_match(&self, place: usize, reasons: &Reasons<'_, '_>) -> Vec<String> {
        let trace = &reasons.trace;
        let mut said = Vec::new();
        let all = &self.0.request.descriptors[place].entries;
        let left_out: Vec<String> =
            all.iter().filter(|entry| !reasons.entries.contains(entry)).map(|entry| quoted(entry.key)).collect();
        if !left_out.is_empty() {
            said.push(format!("looked up without {}, which says something about the request", left_out.join(", ")));
        }
        let before: Vec<String> =
            reasons.entries.iter().take(trace.found.len()).map(|entry| pair(entry.key, entry.value)).collect();
        let after = if before.is_empty() { String::new() } else { format!("after {} ", before.join(", ")) };
        let next = reasons.entries.get(trace.found.len());
        match (&trace.end, next) {
            (End::Rule(_), _) => {}
            (End::Key { known }, Some(entry)) if known.is_empty() => {
                said.push(format!("{after}nothing follows in the rules, and {} does: both must end together", quoted(entry.key)));
            }
            (End::Key { known }, Some(entry)) => {
                said.push(format!("{after}no descriptor has the key {}: {}", quoted(entry.key), expected(entry.key, known)));
            }
            (End::Value { known }, Some(entry)) => {
                let (key, value) = (quoted(entry.key), quoted(entry.value));
                said.push(format!("{after}the key {key} has no value that matches {value}: {}", expected(entry.value, known)));
            }
            (End::NoRule { .. }, _) if reasons.entries.is_empty() => said.push("it has no entries".to_owned()),
            (End::NoRule { next }, _) if next.is_empty() => said.push("its descriptor has no limit: nothing is counted".to_owned()),
            (End::NoRule { next }, _) => said.push(format!("no rule ends here; after {} comes {}", before.join(", "), list(next))),
            (End::Key { .. } | End::Value { .. }, None) => {}
        }
        if let Some(rule) = trace.elsewhere {
            let rule = self.0.domain.rule(rule);
            let found = format!("rule `{}` ({}) would match by another way", rule.label(), rule.source);
            said.push(format!(
                "{found}: an exact value goes before patterns, patterns before the key alone, and there is no way back"
            ));
        }
        said
    }

    fn of_kind(&self, planned: &Planned, reasons: &Reasons<'_, '_>) -> Option<String> {
        let subject = key::shown(&reasons.subject);
        Some(match planned.kind {
            Kind::Blocked(left) => self.operator_block(&subject, left),
            Kind::Exempt => {
                let until = reasons.record.as_ref().and_then(|record| record.allowed_until).unwrap_or_default();
                format!("{subject} is exempt until {}", self.time(until.saturating_sub(self.0.now)))
            }
            Kind::Allow => "the rule says `allow: true`".to_owned(),
            Kind::Deny => "the rule says `deny: true`".to_owned(),
            Kind::Replaced => {
                let by = reasons.replaced_by?;
                let rule = self.0.explained.plan.descriptors[by].rule.map(|rule| self.0.domain.rule(rule).label());
                format!("rule `{}` of descriptor {} stands in for it (`replaces`)", rule?, by + 1)
            }
            Kind::Unlimited if reasons.tier.is_none() && !self.is_lifted(planned) => "the rule is unlimited".to_owned(),
            Kind::Unmatched if planned.rule.is_some() => "the rule limits nothing".to_owned(),
            _ => return None,
        })
    }

    /// It is unlimited by an override alone: the rule, or the tier, has limits.
    fn is_lifted(&self, planned: &Planned) -> bool {
        let rule = planned.rule.map(|rule| self.0.domain.rule(rule)).filter(|rule| !rule.unlimited);
        planned.kind == Kind::Unlimited && rule.is_some_and(|rule| !rule.limits_of(planned.tier).is_empty())
    }

    fn of_tier(&self, reason: &TierReason<'_>, planned: &Planned) -> String {
        let tier = planned.tier.map(|tier| &*self.0.domain.plans.tier(tier).name).unwrap_or_default();
        let is_unlimited = planned.kind == Kind::Unlimited && !self.is_lifted(planned);
        let unlimited = if is_unlimited { ", which is unlimited" } else { "" };
        match (reason.source, &reason.named) {
            (TierSource::Entry(key), Some(named)) if reason.is_known => {
                format!("tier `{tier}`: entry {} names it{unlimited}", pair(key, named.as_bytes()))
            }
            (TierSource::Entry(key), Some(named)) => {
                format!("tier `{tier}`, the default: entry {} names none that is there{unlimited}", pair(key, named.as_bytes()))
            }
            (TierSource::Entry(key), None) => format!("tier `{tier}`, the default: there is no entry {}{unlimited}", quoted(key)),
            (TierSource::Assigned(key), Some(_)) if reason.is_known => {
                format!("tier `{tier}`: assigned to the {}{unlimited}", text(key))
            }
            (TierSource::Assigned(key), Some(named)) => {
                format!("tier `{tier}`, the default: `{named}`, assigned to the {}, is not there{unlimited}", text(key))
            }
            (TierSource::Assigned(key), None) => {
                format!("tier `{tier}`, the default: none is assigned to the {}{unlimited}", text(key))
            }
        }
    }

    fn of_class(&self, planned: &Planned) -> Option<String> {
        let (class, priority) = (planned.class?, self.0.domain.plans.priority.as_ref()?);
        let free = priority.reserve[class as usize];
        let percent = format!("{}.{:04}", free / (tier::WHOLE / 100), free % (tier::WHOLE / 100));
        let percent = percent.trim_end_matches('0').trim_end_matches('.');
        Some(format!("class {} leaves {percent} % of the limit free for those above it", class.name()))
    }

    fn of_mode(&self, planned: &Planned) -> Option<String> {
        planned.checks.first()?;
        match (planned.mode, self.0.explained.plan.spare_quota) {
            (Mode::Enforce, _) => None,
            (Mode::Shadow, _) => Some("it only watches (shadow): counted, never refused".to_owned()),
            (Mode::Quota, None) => Some("in quota mode: refuses only if all rules in this mode are over".to_owned()),
            (Mode::Quota, Some(spare)) => {
                let spare = spare + 1;
                Some(format!("in quota mode: does not refuse, as descriptor {spare} counts as a quota that is not over"))
            }
        }
    }

    /// Hits that do not count as those of an ordinary request do.
    fn of_hits(&self, planned: &Planned) -> Option<&'static str> {
        let mut checks = planned.checks.iter().map(|of| &self.0.explained.plan.group.checks[of.check]);
        match checks.clone().next()?.operation {
            Operation::Look => Some("a cost of 0 looks: over where more than the limit is used, or the limit is 0"),
            Operation::Report => Some("its own hits report what was used: they count also where there is no room"),
            _ if checks.any(|check| check.charge == Charge::Always) => Some("refused hits count, too (`charge: always`)"),
            _ => None,
        }
    }

    /// A refusal now would block for a while.
    fn of_block(&self, rule: &Rule, planned: &Planned, status: &Status) -> Option<String> {
        let block = rule.block.as_ref()?;
        let checks = &self.0.explained.plan.group.checks;
        let sets = planned.checks.iter().zip(&status.limits).any(|(of, limit)| {
            let check = &checks[of.check];
            let has_no_room = matches!(limit.outcome, Outcome::Denied { retry_after: RetryAfter::In(_), .. });
            has_no_room && check.operation == Operation::Take && check.limit.algorithm() != Algorithm::Penalty
        });
        let is_set = status.limits.iter().any(|limit| limit.source == Source::Block && !limit.outcome.is_allowed());
        (sets && !is_set).then(|| format!("this refusal would block it for {}", key::duration(block.limit.window())))
    }

    fn time(&self, after: Micros) -> String {
        // To the millisecond, and never too early.
        let millis = i64::try_from(self.0.now.saturating_add(after).div_ceil(1_000)).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(millis).map_or_else(|_| "later".to_owned(), |time| time.to_string())
    }
}

/// What is said of the subject that bears on its limits.
fn of_record(record: &SubjectRecord, rule: &Rule, planned: &Planned, reasons: &Reasons<'_, '_>) -> Vec<String> {
    let subject = key::shown(&reasons.subject);
    let mut said = Vec::new();
    if record.limits.iter().any(|limits| limits.rule.is_none() || limits.rule.as_deref() == Some(rule.label())) {
        let whose = if planned.tier.is_some() { "tier" } else { "rule" };
        said.push(match planned.checks.is_empty() {
            true => format!("an override lifts the limits of the {whose} for {subject}"),
            false => format!("limits of its own stand for {subject} in place of the {whose}'s"),
        });
    }
    if let Some(multiplier) = record.multiplier {
        let (whole, part) = (multiplier / subject::WHOLE, multiplier % subject::WHOLE);
        let factor = format!("{whole}.{part:06}");
        said.push(format!("limits × {} for {subject}", factor.trim_end_matches('0').trim_end_matches('.')));
    }
    said
}

/// What should have stood there, the likeliest first.
fn expected(written: &[u8], known: &[&[u8]]) -> String {
    let names: Vec<String> = known.iter().map(|name| text(name)).collect();
    let near = keys::nearest(&text(written), names.iter().map(String::as_str));
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    format!("{near}known: {}", list(known))
}

fn list(names: &[&[u8]]) -> String {
    let shown = names.iter().take(LISTED).map(|name| text(name)).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(LISTED) {
        Some(more @ 1..) => format!("{shown}, and {more} more"),
        _ => shown,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn quoted(bytes: &[u8]) -> String {
    format!("`{}`", text(bytes))
}

fn pair(key: &[u8], value: &[u8]) -> String {
    format!("`{}={}`", text(key), text(value))
}
