//! One decision from end to end: look up, plan, ask the store, decide. Total: whatever the caller sends and whatever the
//! store does, there is an answer, by the deadline.

pub mod abandoned;
mod large;
mod prepared;
pub mod reservations;
mod tallies;
mod unknown_domains;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use self::prepared::{Prepared, Undecided};
use self::reservations::Arrival;
use self::unknown_domains::UnknownDomains;
use crate::limit::reservation::is_refused;
use crate::limit::{Algorithm, Charge, Check, Micros, Mode, Operation, Outcome, RetryAfter, SECOND};
use crate::rules::decision::{Code, Decision, Degraded};
use crate::rules::plan::{Plan, PlanSettings, Planned};
use crate::rules::request::Request;
use crate::rules::subject::Switch;
use crate::rules::{Domain, OnStoreFailure, Rule, RuleLimit, RuleSet};
use crate::store::history::{History, Recorder};
use crate::store::memory::MemoryStore;
use crate::store::records::{Record, RecordName, RecordView, Subscriber};
use crate::store::{Clock, Group, Outcomes, Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::rule_counters::{DomainCounters, RuleOutcome};

/// What is left of a caller's deadline for the way back.
pub const RETURN_TIME: Duration = Duration::from_millis(3);
/// The most descriptors a request may have: bounds the time and the memory of one decision.
pub const MAX_DESCRIPTORS: usize = 1_000;
/// When to come back after `on_store_failure: deny`: the longest a circuit breaker waits between its probes.
const RETRY_AFTER_DEGRADED: RetryAfter = RetryAfter::In(SECOND);

/// Decides requests by the rules that are loaded. One per server thread, sharing rules and fallback.
pub struct Limiter<S> {
    shared: Arc<Shared>,
    held: Mutex<Held>,
    store: S,
    recorder: Recorder,
}

/// A thread's own hold on the rules in force, taken anew at the first request after a reload. A request holds this one: a count of
/// references that all threads change would cost more, the more threads there are.
type Held = Arc<Arc<InForce>>;

/// What all threads share.
pub struct Shared {
    /// The rules in force: those that were loaded, with the tiers that were defined since.
    in_force: ArcSwap<InForce>,
    /// As they were loaded; locked while the rules in force are made of it.
    loaded: Mutex<RuleSet>,
    /// What operators said of single subjects, of tiers, and of everything.
    records: RecordView,
    history: Arc<History>,
    /// Decides for `on_store_failure: local`.
    local: MemoryStore,
    /// How many replicas share a limit while the store is away.
    replicas: AtomicU32,
    settings: LimiterSettings,
    metrics: Arc<Metrics>,
    /// It is in the log that a newer weir makes reservations.
    has_met_newer_memo: AtomicBool,
    unknown_domains: UnknownDomains,
}

#[derive(Clone, Copy, Debug)]
pub struct LimiterSettings {
    pub plan: PlanSettings,
    /// How long the store may take, counted from a request's arrival.
    pub store_timeout: Duration,
}

/// What a call comes to.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every answer is a decision")]
pub enum Answer {
    Decided(Box<Decided>),
    /// The request is malformed: INVALID_ARGUMENT, with the reason.
    Invalid(String),
    /// Nothing can be said: UNAVAILABLE, with the reason.
    Unavailable(String),
}

/// A decision with what is needed to put it into words.
#[derive(Debug)]
pub struct Decided {
    pub decision: Decision,
    /// Where the domain is in the rules in force; `None`: it is unknown.
    loaded: Option<(Held, usize)>,
    /// Allowed by the switch: nobody looked at the rules.
    switched: bool,
    /// Everything was shadowed when it was planned, whatever the switch says by now.
    shadow: bool,
    /// The limits that came with the request.
    pub overrides: Vec<RuleLimit>,
}

impl Decided {
    /// `None`: an unknown domain.
    pub fn domain(&self) -> Option<&Domain> {
        self.loaded().map(|loaded| &*loaded.domain)
    }

    fn loaded(&self) -> Option<&LoadedDomain> {
        self.loaded.as_ref().map(|(held, place)| &held.domains[*place])
    }

    /// Waits until it is time to answer.
    async fn hold(&self) {
        if self.decision.hold > 0 {
            Box::pin(tokio::time::sleep(Duration::from_micros(self.decision.hold))).await;
        }
    }
}

impl From<Undecided> for Answer {
    fn from(undecided: Undecided) -> Answer {
        match undecided {
            Undecided::Invalid(reason) => Answer::Invalid(reason),
            Undecided::Unavailable(reason) => Answer::Unavailable(reason),
        }
    }
}

/// Rules in force, each domain with what its decisions are counted by.
#[derive(Debug, Default)]
struct InForce {
    rules: Arc<RuleSet>,
    domains: Vec<LoadedDomain>,
    /// By name.
    places: HashMap<Box<[u8]>, usize, RandomState>,
}

#[derive(Debug)]
struct LoadedDomain {
    domain: Arc<Domain>,
    counters: Arc<DomainCounters>,
}

impl Shared {
    pub fn new(local: MemoryStore, settings: LimiterSettings) -> Shared {
        let (metrics, loaded, records) = (Arc::new(Metrics::new()), Mutex::default(), RecordView::default());
        let (history, unknown_domains) = (Arc::default(), UnknownDomains::default());
        metrics.replicas.set(1);
        let (in_force, replicas, has_met_newer_memo) = (ArcSwap::default(), AtomicU32::new(1), AtomicBool::new(false));
        Shared { in_force, loaded, records, history, local, replicas, settings, metrics, has_met_newer_memo, unknown_domains }
    }

    /// The rules in force; revision 0 while none are.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.in_force.load().rules.clone()
    }

    /// The rules as they were loaded: what the next load is compared with.
    pub fn loaded(&self) -> RuleSet {
        self.loaded.lock().clone()
    }

    /// Puts other rules in force. Requests under way keep theirs.
    pub fn load(&self, rules: RuleSet) {
        let mut loaded = self.loaded.lock();
        *loaded = rules;
        self.put_in_force(&loaded);
    }

    fn put_in_force(&self, loaded: &RuleSet) {
        let mut rules = loaded.clone();
        for (name, defined) in self.records.tiers().iter() {
            if let Some(domain) = rules.domains.get_mut(name.as_bytes()) {
                *domain = domain.with_tiers(defined.iter().map(|(name, definition)| (&**name, definition)));
            }
        }
        let labels = rules.domains.values().map(|domain| (&*domain.name, domain.rules.iter().map(Rule::label)));
        let counters = self.metrics.rules.load(labels);
        let with_counters = rules.domains.values().zip(counters);
        let domains = with_counters.map(|(domain, counters)| LoadedDomain { domain: domain.clone(), counters }).collect();
        let places = rules.domains.keys().cloned().zip(0..).collect();
        self.in_force.store(Arc::new(InForce { rules: Arc::new(rules), domains, places }));
    }

    /// What the settings and the switch say about all rules of a domain.
    pub fn plan_settings(&self, domain: &[u8]) -> PlanSettings {
        let mut settings = self.settings.plan;
        settings.shadow |= self.records.switch(domain) == Switch::ShadowAll;
        settings
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What operators said while weir runs, as every decision goes by it.
    pub fn records(&self) -> &RecordView {
        &self.records
    }

    /// What subjects were allowed and refused, to be brought to the store.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// How many replicas share each limit when every one decides by itself.
    pub fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
        self.metrics.replicas.set(i64::from(replicas.max(1)));
    }

    /// Now, in µs since the epoch, by the clock that counters go by.
    pub fn now(&self) -> Micros {
        self.local.clock().now()
    }

    /// The store of `on_store_failure: local`. Its clock is that of the store that it stands in for, as last
    /// known.
    pub fn local(&self) -> &MemoryStore {
        &self.local
    }
}

/// Goes by what changes in a store of records.
impl Subscriber for Shared {
    fn changed(&self, changes: Vec<(RecordName, Option<Record>)>) {
        let loaded = self.loaded.lock();
        if self.records.apply(changes) {
            self.put_in_force(&loaded);
        }
    }

    fn replaced(&self, records: Vec<(RecordName, Record)>) {
        let loaded = self.loaded.lock();
        self.records.replace(records);
        self.put_in_force(&loaded);
    }

    fn clock_was_read(&self, before: Micros, store: Micros, after: Micros) {
        if let Clock::Corrected(correction) = self.local.clock() {
            correction.learn(before, store, after);
        }
    }
}

impl<S: Store> Limiter<S> {
    pub fn new(shared: Arc<Shared>, store: S) -> Limiter<S> {
        let recorder = shared.history.recorder();
        Limiter { shared, held: Mutex::default(), store, recorder }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// Lets others have their turn between two parts of a large request.
    pub(crate) async fn give_way(&self, request: &Request<'_>) {
        large::give_way(request).await;
    }

    /// Decides a request that came in at `arrival` from a caller that waits for `patience` (its gRPC deadline).
    // All but the waiting is in functions of their own: what they work with is no part of the future, which is as large as a
    // call under way is.
    pub async fn decide(&self, request: &Request<'_>, arrival: Instant, patience: Option<Duration>) -> Answer {
        let (call, now) = (Arrival { at: arrival, patience }, Instant::now());
        let mut prepared = match self.prepare(request, self.longest_hold(call, now)) {
            Ok(prepared) => prepared,
            Err(undecided) => {
                let answer = Answer::from(undecided);
                self.count(request, &answer);
                return answer;
            }
        };
        self.count_unknown_tiers(&prepared);
        large::give_way(request).await;
        let outcomes = match &prepared.plan {
            Some(plan) if !plan.group.checks.is_empty() => {
                abandoned::asking(pin!(self.store.apply(&plan.group, self.wait(call, now)))).await
            }
            _ => Ok(Outcomes::new()),
        };
        large::give_way(request).await;
        let answer = self.conclude(request, &mut prepared, outcomes);
        // Before it is held back: the store has counted it, and the caller may go away meanwhile.
        self.count(request, &answer);
        if let Answer::Decided(decided) = &answer {
            decided.hold().await;
        }
        answer
    }

    /// Puts what the store said into an answer.
    fn conclude(&self, request: &Request<'_>, prepared: &mut Prepared, outcomes: Result<Outcomes, StoreError>) -> Answer {
        let decision = match outcomes {
            Ok(outcomes) => prepared.decision(request, &outcomes),
            Err(error @ StoreError::TooLarge(_)) => return Answer::Invalid(error.to_string()),
            Err(error) => match self.decide_without_store(request, prepared, &error) {
                Ok(decision) => decision,
                Err(reason) => return Answer::Unavailable(reason),
            },
        };
        if let Some((domain, plan)) = self.remembered(prepared) {
            tallies::record(&self.recorder, domain, request, plan, &decision, prepared.now);
        }
        Answer::Decided(prepared.decided(decision))
    }

    fn held(&self) -> Held {
        let in_force = self.shared.in_force.load();
        let mut held = self.held.lock();
        if !Arc::ptr_eq(&**held, &*in_force) {
            *held = Arc::new(Arc::clone(&in_force));
        }
        held.clone()
    }

    fn count(&self, request: &Request<'_>, answer: &Answer) {
        let metrics = &self.shared.metrics;
        match answer {
            Answer::Decided(decided) => self.count_decided(request, decided),
            Answer::Invalid(_) => {
                metrics.errors.invalid.inc();
            }
            Answer::Unavailable(_) => {
                metrics.errors.unavailable.inc();
            }
        }
    }

    fn count_unknown_tiers(&self, prepared: &Prepared) {
        let unknown = prepared.plan.as_ref().map_or(0, |plan| plan.unknown_tiers);
        if unknown > 0 {
            self.shared.metrics.unknown_tiers.inc_by(unknown as u64);
        }
    }

    fn count_decided(&self, request: &Request<'_>, decided: &Decided) {
        let (metrics, decision) = (&self.shared.metrics, &decided.decision);
        let Some(loaded) = decided.loaded() else {
            metrics.unknown_domains.inc();
            self.shared.unknown_domains.called(request.domain);
            return;
        };
        if decided.switched {
            metrics.allowed_by_switch.inc();
            return;
        }
        for status in &decision.statuses {
            let Some(rule) = status.rule else {
                loaded.counters.unmatched();
                continue;
            };
            let outcome = match status.code {
                Code::Ok if status.shadowed => RuleOutcome::ShadowOverLimit,
                Code::Ok => RuleOutcome::Ok,
                Code::OverLimit if decided.shadow => RuleOutcome::ShadowOverLimit,
                Code::OverLimit => RuleOutcome::OverLimit,
            };
            loaded.counters.decided(rule.0 as usize, outcome);
        }
        match decision.degraded {
            None => {}
            Some(Degraded::Allow) => {
                metrics.degraded.allow.inc();
            }
            Some(Degraded::Deny) => {
                metrics.degraded.deny.inc();
            }
            Some(Degraded::Local) => {
                metrics.degraded.local.inc();
            }
        }
    }

    /// What `on_store_failure` says.
    fn decide_without_store(&self, request: &Request<'_>, prepared: &Prepared, error: &StoreError) -> Result<Decision, String> {
        let (outcomes, by) = match prepared.planned() {
            Some((domain, plan)) => self.without_store(domain, plan, prepared.now, error)?,
            None => (Outcomes::new(), Degraded::Allow),
        };
        Ok(Decision { degraded: Some(by), ..prepared.decision(request, &outcomes) })
    }

    /// What the rules say for a store that gives no answer: a `deny` refuses whatever the others say; else one `error`
    /// leaves the whole request without an answer; `allow` and `local` answer for their own limits. What a rule refuses
    /// outright stays refused, and what is given back is not.
    fn without_store(&self, domain: &Domain, plan: &Plan, now: Micros, error: &StoreError) -> Result<(Outcomes, Degraded), String> {
        let checks = &plan.group.checks;
        // Memory that has no room for the counter is what `local` would ask.
        let is_full = *error == StoreError::Full;
        let mut policies: SmallVec<[OnStoreFailure; 4]> = SmallVec::from_elem(OnStoreFailure::Allow, checks.len());
        for planned in &plan.descriptors {
            for planned_check in &planned.checks {
                let check = &checks[planned_check.check];
                policies[planned_check.check] = match on_store_failure(domain, planned) {
                    // A quota that does not refuse, as the request has a spare one, is still charged to the local count.
                    OnStoreFailure::Local if planned.mode != Mode::Shadow && !is_full => OnStoreFailure::Local,
                    _ if check.mode == Mode::Shadow => OnStoreFailure::Allow,
                    OnStoreFailure::Local if is_full => OnStoreFailure::Error,
                    OnStoreFailure::Deny if check.operation == Operation::Refund => OnStoreFailure::Allow,
                    policy => policy,
                };
            }
        }
        let mut outcomes: Outcomes = plan
            .group
            .checks
            .iter()
            .zip(&policies)
            .map(|(check, policy)| match policy {
                OnStoreFailure::Deny => denied_without_store(check, now),
                _ => Outcome::Allowed { remaining: check.limit.capacity(), reset_after: 0, delay: 0 },
            })
            .collect();
        // A quota's `deny` refuses only with the other quotas.
        let denies = is_refused(checks, &outcomes, false);
        if policies.contains(&OnStoreFailure::Error) && !denies && !plan.group.refused {
            return Err(error.to_string());
        }
        // No block is set: lack of room in one replica's share is no offence.
        let is_local =
            |&place: &usize| policies[place] == OnStoreFailure::Local && checks[place].limit.algorithm() != Algorithm::Penalty;
        let places: SmallVec<[usize; 4]> = (0..policies.len()).filter(is_local).collect();
        if places.is_empty() {
            return Ok((outcomes, if denies { Degraded::Deny } else { Degraded::Allow }));
        }
        // One that `allow` answers is not over: the local ones do not refuse.
        let has_spare_quota = checks.iter().zip(&policies).any(|(check, policy)| {
            check.mode == Mode::Quota && check.operation != Operation::Refund && *policy == OnStoreFailure::Allow
        });
        let replicas = u64::from(self.shared.replicas.load(Ordering::Relaxed));
        let mut local = Group { refused: plan.group.refused || denies, ..Group::default() };
        for &place in &places {
            let mut check = plan.group.checks[place];
            check.limit = check.limit.scaled(1, replicas);
            if check.mode == Mode::Quota && has_spare_quota {
                check.mode = Mode::Shadow;
            }
            local.keys.push(plan.group.keys[place].clone());
            local.checks.push(check);
        }
        let decided = self.shared.local.decide(&local).map_err(|full| full.to_string())?;
        for (place, outcome) in places.iter().zip(decided) {
            outcomes[*place] = outcome;
        }
        Ok((outcomes, if denies { Degraded::Deny } else { Degraded::Local }))
    }
}

/// `on_store_failure: deny`: come back when the store may be there again, unless the cost never fits.
fn denied_without_store(check: &Check, now: Micros) -> Outcome {
    // What is charged although it is refused waits for a cost of 1.
    let is_charged = check.charge == Charge::Always || check.operation == Operation::Report;
    let cost = if is_charged { check.cost.min(1) } else { check.cost };
    let retry_after = match check.limit.step(None, now, cost, None).outcome {
        Outcome::Denied { retry_after, .. } => retry_after,
        Outcome::Allowed { .. } => RETRY_AFTER_DEGRADED,
    };
    Outcome::Denied { remaining: 0, retry_after }
}

fn on_store_failure(domain: &Domain, planned: &Planned) -> OnStoreFailure {
    planned.rule.map_or(domain.on_store_failure, |rule| domain.rule(rule).on_store_failure)
}
