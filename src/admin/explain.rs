//! What would be decided of a request now, and why. The plan is the one that a decision goes by; its counters are asked, not counted.

mod words;

use prost::Message;
use prost_reflect::DescriptorPool;
use serde_json::Value;

use super::calls::{self, DESCRIPTOR_SET, SERVICE};
use super::convert;
use super::operations::{Operations, OperatorStore};
use super::problem::Problem;
use super::proto::weir::admin::v1 as proto;
use crate::limit::{Algorithm, Check, Micros, Mode, Outcome, RetryAfter};
use crate::limiter::MAX_DESCRIPTORS;
use crate::message_json;
use crate::rules::decision::{self, Code, Decision, Status};
use crate::rules::explain::{self, Explained};
use crate::rules::key;
use crate::rules::plan::{Kind, Moment, Source};
use crate::rules::request::{Descriptor, Entry, Request};
use crate::rules::subject::Switch;
use crate::rules::tier::TierId;
use crate::rules::tree::{Found, Pattern};
use crate::rules::{Domain, OnStoreFailure, Rule};
use crate::store::Outcomes;
use words::Sentences;

/// A request as it is explained, with what is known about it.
struct Case<'a, 'r> {
    domain: &'a Domain,
    request: &'a Request<'r>,
    explained: &'a Explained<'a, 'r>,
    /// `None`: the store does not answer.
    outcomes: Option<&'a Outcomes>,
    /// Whether the records of subjects, tiers and switches have been loaded.
    records_known: bool,
    now: Micros,
}

impl<S: OperatorStore> Operations<S> {
    /// The call `Explain` for whoever has the operations at hand: request and answer as over HTTP.
    ///
    /// # Errors
    /// For a request that makes no sense, and where no rules are in force.
    pub async fn explain_json(&self, asked: &Value) -> Result<Value, Problem> {
        let invalid = |error: &dyn std::fmt::Display| Problem::Invalid(error.to_string());
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).expect("the descriptor set is compiled in");
        let methods = pool.get_service_by_name(SERVICE).expect("the service is compiled in");
        let method = methods.methods().find(|method| method.name() == "Explain").expect("it is a call of the service");
        let asked = message_json::of_object(&method.input(), asked).map_err(Problem::Invalid)?;
        let asked: proto::ExplainRequest = asked.transcode_to().map_err(|error| invalid(&error))?;
        let said = self.explain(asked).await?;
        Ok(serde_json::from_slice(&calls::json(method.output(), &said.encode_to_vec())).expect("it was made as JSON here"))
    }

    pub(super) async fn explain(&self, asked: proto::ExplainRequest) -> Result<proto::Explanation, Problem> {
        let request = request(&asked)?;
        let (rules, now) = (self.shared.rules(), self.now());
        if rules.revision == 0 {
            return Err(Problem::Unavailable("no rate limit configuration loaded: every call is UNAVAILABLE".to_owned()));
        }
        let domain = self.domain(&asked.domain)?;
        let switch = self.shared.records().switch(request.domain);
        let settings = self.shared.plan_settings(request.domain);
        let moment = Moment { now, patience: None };
        let explained = explain::explain(&domain, &request, settings, moment, self.shared.records());
        let explained = explained.map_err(|error| Problem::Invalid(error.to_string()))?;
        let (outcomes, failure) = match self.look(&explain::question(&explained.plan.group)).await {
            Ok(outcomes) => (Some(outcomes), None),
            Err(problem) => (None, Some(problem.to_string())),
        };
        let records_known = self.store.are_known();
        let case =
            Case { domain: &domain, request: &request, explained: &explained, outcomes: outcomes.as_ref(), records_known, now };
        // Without the store, what blocks and `deny` rules say is known: they refuse whatever the counters hold.
        let is_known = outcomes.is_some() || explained.plan.group.refused;
        let assumed = || explained.plan.group.checks.iter().map(|_| NOT_REFUSED).collect();
        let counted = outcomes.clone().unwrap_or_else(assumed);
        let decision = is_known.then(|| decision::decide(&domain, &explained.plan, &counted, settings.shadow));
        let mut explanation = proto::Explanation {
            domain: asked.domain.clone(),
            switch: switch.name().to_owned(),
            descriptors: (0..request.descriptors.len()).map(|place| case.descriptor(place, decision.as_ref())).collect(),
            at: Some(convert::timestamp(now)),
            ..proto::Explanation::default()
        };
        case.conclude(&mut explanation, decision.as_ref(), switch, failure.as_deref());
        Ok(explanation)
    }
}

/// What stands for the outcome of a counter that cannot be asked, where it does not matter.
const NOT_REFUSED: Outcome = Outcome::Allowed { remaining: 0, reset_after: 0, delay: 0 };

/// As a caller would send it.
fn request(asked: &proto::ExplainRequest) -> Result<Request<'_>, Problem> {
    let invalid = |reason: &str| Err(Problem::Invalid(reason.to_owned()));
    if asked.domain.is_empty() {
        return invalid("`domain` is missing");
    }
    match asked.descriptors.len() {
        0 => return invalid("`descriptors` is missing: what is asked?"),
        1..=MAX_DESCRIPTORS => {}
        _ => return invalid("more descriptors than are decided together"),
    }
    let descriptors = asked.descriptors.iter().map(|descriptor| Descriptor {
        entries: descriptor
            .entries
            .iter()
            .map(|entry| Entry { key: entry.key.as_bytes(), value: entry.value.as_bytes() })
            .collect(),
        hits: descriptor.hits,
        ..Descriptor::default()
    });
    Ok(Request { domain: asked.domain.as_bytes(), descriptors: descriptors.collect(), hits_addend: asked.hits })
}

impl Case<'_, '_> {
    /// Says what the whole comes to.
    fn conclude(&self, said: &mut proto::Explanation, decision: Option<&Decision>, switch: Switch, failure: Option<&str>) {
        let words = Sentences(self);
        let counts = !self.explained.plan.group.checks.is_empty();
        (said.decision, said.reason) = match (switch, decision) {
            _ if !self.records_known => {
                let failure = failure.map_or_else(|| "the store (Redis) has not answered yet".to_owned(), str::to_owned);
                let missing = "overrides, tiers defined at run time and switches are not loaded";
                ("unknown".to_owned(), format!("{failure}: {missing}, and usage is unknown; this is what the rules say"))
            }
            (Switch::AllowAll, _) => ("ok".to_owned(), "the switch allows everything, and nothing is counted".to_owned()),
            (_, None) if counts => ("unknown".to_owned(), words.without_store(failure.unwrap_or_default())),
            (_, None) => ("ok".to_owned(), words.admission(&said.descriptors)),
            (_, Some(decision)) if decision.code == Code::Ok => ("ok".to_owned(), words.admission(&said.descriptors)),
            (_, Some(decision)) => {
                self.blame(said, decision);
                ("over_limit".to_owned(), words.refusal(decision))
            }
        };
    }

    /// Names the rule and the limit that refuse.
    fn blame(&self, said: &mut proto::Explanation, decision: &Decision) {
        let Some(place) = decision.limited_by else { return };
        let status = &decision.statuses[place];
        let cause = Cause::of(status, self.explained.plan.descriptors[place].kind);
        said.cause = cause.name().to_owned();
        if let Some(rule) = status.rule.map(|rule| self.domain.rule(rule)).filter(|_| cause != Cause::OperatorBlock) {
            said.limited_by = rule.label().to_owned();
            said.layer = rule.layer.to_string();
            said.tier = self.tier(status.tier);
        }
        let limit = status.limit(self.domain, &self.explained.plan.overrides);
        said.policy = limit.map(|limit| limit.policy.to_string()).unwrap_or_default();
        if let Some(after) = status.outcome().and_then(|outcome| outcome.retry_after()) {
            let at = self.now.saturating_add(after);
            let checks = &self.explained.plan.descriptors[place].checks;
            // A subject that is blocked is not checked.
            let shown =
                status.shown.and_then(|shown| checks.get(shown)).map(|of| &self.explained.plan.group.checks[of.check].limit);
            said.retry_at = Some(shown.map_or_else(|| convert::timestamp(at), |limit| convert::turn(limit, at)));
        }
    }

    fn descriptor(&self, place: usize, decision: Option<&Decision>) -> proto::ExplainedDescriptor {
        let (planned, reasons) = (&self.explained.plan.descriptors[place], &self.explained.reasons[place]);
        let is_known = self.outcomes.is_some() || planned.checks.is_empty();
        let status = decision.filter(|_| is_known).map(|decision| &decision.statuses[place]);
        let entries = &self.request.descriptors[place].entries;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = reasons.entries.iter().zip(&reasons.trace.found).enumerate().map(|(number, (entry, found))| {
            let (by, pattern) = found_by(found);
            let counted = reasons.counted.get(number).filter(|counted| ***counted != *entry.value);
            let counted_as = counted.map(|counted| text(counted)).unwrap_or_default();
            proto::FoundEntry { key: text(entry.key), value: text(entry.value), by: by.to_owned(), pattern, counted_as }
        });
        proto::ExplainedDescriptor {
            entries: entries.iter().map(|entry| proto::Entry { key: text(entry.key), value: text(entry.value) }).collect(),
            found: found.collect(),
            rule: planned.rule.map(|rule| self.rule(self.domain.rule(rule), place)),
            kind: kind_name(planned.kind).to_owned(),
            outcome: outcome_name(status).to_owned(),
            reasons: Sentences(self).of_descriptor(place, status),
            subject: key::shown(&reasons.subject),
            tier: self.tier(planned.tier),
            cost: planned.cost,
            limits: (0..planned.checks.len()).map(|number| self.limit(place, number)).collect(),
        }
    }

    fn tier(&self, tier: Option<TierId>) -> String {
        tier.map(|tier| self.domain.plans.tier(tier).name.to_string()).unwrap_or_default()
    }

    fn rule(&self, rule: &Rule, place: usize) -> proto::ExplainedRule {
        let planned = &self.explained.plan.descriptors[place];
        let mode = if planned.checks.is_empty() && rule.shadow { Mode::Shadow } else { planned.mode };
        proto::ExplainedRule {
            name: rule.label().to_owned(),
            path: rule.path.to_string(),
            layer: rule.layer.to_string(),
            source: rule.source.to_string(),
            mode: match mode {
                Mode::Enforce => "enforce",
                Mode::Shadow => "shadow",
                Mode::Quota => "quota",
            }
            .to_owned(),
            on_store_failure: store_failure_name(rule.on_store_failure).to_owned(),
        }
    }

    fn limit(&self, place: usize, number: usize) -> proto::ExplainedLimit {
        let plan = &self.explained.plan;
        let planned = &plan.descriptors[place];
        let of = planned.checks[number];
        let check = &plan.group.checks[of.check];
        let rule = planned.rule.map(|rule| self.domain.rule(rule));
        let limit = of.source.limit(rule, planned.tier, &plan.overrides);
        let from = match of.source {
            Source::Rule(_) if planned.tier.is_some() => "tier",
            Source::Rule(_) => "rule",
            Source::Subject(_) => "subject",
            Source::Override(_) => "request",
            Source::Block | Source::Blocked => "block_for",
        };
        let mut said = proto::ExplainedLimit {
            policy: limit.map_or_else(|| "block".to_owned(), |limit| limit.policy.to_string()),
            kind: convert::kind(&check.limit).to_owned(),
            from: from.to_owned(),
            algorithm: check.limit.algorithm().name().to_owned(),
            requests: check.limit.requests(),
            window: convert::window(&check.limit),
            capacity: check.limit.capacity(),
            cost: check.cost,
            outcome: "unknown".to_owned(),
            counter: key::shown(plan.group.keys[of.check].as_bytes()),
            ..proto::ExplainedLimit::default()
        };
        if let Some(outcomes) = self.outcomes {
            self.state(&mut said, check, outcomes[of.check]);
        }
        said
    }

    /// Adds what the counter says. Outcomes of a question tell what remains before the request.
    fn state(&self, said: &mut proto::ExplainedLimit, check: &Check, outcome: Outcome) {
        let at = |after: Micros| Some(convert::turn(&check.limit, self.now.saturating_add(after)));
        let is_block = check.limit.algorithm() == Algorithm::Penalty;
        if !is_block {
            said.remaining = outcome.remaining().min(said.capacity);
            said.used = said.capacity - said.remaining;
        }
        said.outcome = if outcome.is_allowed() { "ok" } else { "over_limit" }.to_owned();
        match outcome {
            Outcome::Allowed { reset_after, .. } => {
                said.resets_at = at(reset_after).filter(|_| reset_after > 0 && said.used > 0);
                said.delay = explain::delay(check, &outcome);
            }
            Outcome::Denied { retry_after: RetryAfter::In(after), .. } => said.retry_at = at(after),
            Outcome::Denied { retry_after: RetryAfter::Never { .. }, .. } => {}
        }
    }
}

/// What refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Limit,
    /// A block after a refusal.
    BlockFor,
    Deny,
    OperatorBlock,
}

impl Cause {
    /// Why the descriptor of this status refuses.
    fn of(status: &Status, kind: Kind) -> Cause {
        let shown = status.shown.and_then(|shown| status.limits.get(shown)).map(|limit| limit.source);
        match (kind, shown) {
            (Kind::Blocked(_), _) => Cause::OperatorBlock,
            (Kind::Deny, _) => Cause::Deny,
            (_, Some(Source::Block)) => Cause::BlockFor,
            _ => Cause::Limit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Cause::Limit => "limit",
            Cause::BlockFor => "block_for",
            Cause::Deny => "deny",
            Cause::OperatorBlock => "operator_block",
        }
    }
}

fn found_by(found: &Found<'_>) -> (&'static str, String) {
    match found {
        Found::Value => ("value", String::new()),
        Found::Key => ("key", String::new()),
        Found::Pattern { pattern, text } => {
            let by = match pattern {
                Pattern::Wildcard(_) => "wildcard",
                Pattern::OneOf(_) => "one_of",
                Pattern::Cidr(_) => "cidr",
                Pattern::Regex(_) => "regex",
            };
            (by, String::from_utf8_lossy(text).into_owned())
        }
    }
}

fn store_failure_name(policy: OnStoreFailure) -> &'static str {
    match policy {
        OnStoreFailure::Error => "error",
        OnStoreFailure::Allow => "allow",
        OnStoreFailure::Deny => "deny",
        OnStoreFailure::Local => "local",
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Unmatched => "unmatched",
        Kind::Replaced => "replaced",
        Kind::Unlimited => "unlimited",
        Kind::Allow => "allow",
        Kind::Deny => "deny",
        Kind::Blocked(_) => "blocked",
        Kind::Exempt => "exempt",
        Kind::Limited => "limited",
    }
}

fn outcome_name(status: Option<&Status>) -> &'static str {
    match status {
        None => "unknown",
        Some(status) if status.shadowed => "shadow",
        Some(Status { code: Code::OverLimit, .. }) => "over_limit",
        Some(_) => "ok",
    }
}
