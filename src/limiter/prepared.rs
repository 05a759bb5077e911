//! A request by the rules in force, before anything is asked of the store.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::reservations::Arrival;
use super::{Decided, Held, Limiter, MAX_DESCRIPTORS, RETURN_TIME};
use crate::limit::{Micros, Outcome};
use crate::rules::Domain;
use crate::rules::decision::{self, Code, Decision};
use crate::rules::plan::{self, Moment, Plan};
use crate::rules::request::Request;
use crate::rules::subject::Switch;
use crate::store::{Store, Wait};

/// What the rules and the switch say to a request. Without a domain, or while everything is allowed, there is no plan.
pub(super) struct Prepared {
    /// Where the domain is in the rules in force; `None`: it is unknown.
    loaded: Option<(Held, usize)>,
    pub(super) plan: Option<Plan>,
    /// Whether everything is only watched.
    shadow: bool,
    pub(super) now: Micros,
}

/// Why a request comes to no decision.
pub(super) enum Undecided {
    Invalid(String),
    Unavailable(String),
}

impl Prepared {
    pub(super) fn domain(&self) -> Option<&Domain> {
        self.loaded.as_ref().map(|(held, place)| &*held.domains[*place].domain)
    }

    /// The domain with the plan, if there is one.
    pub(super) fn planned(&self) -> Option<(&Domain, &Plan)> {
        self.domain().zip(self.plan.as_ref())
    }

    /// What the store's outcomes come to.
    pub(super) fn decision(&self, request: &Request<'_>, outcomes: &[Outcome]) -> Decision {
        match self.planned() {
            Some((domain, plan)) => decision::decide(domain, plan, outcomes, self.shadow),
            None => unlimited(request),
        }
    }

    /// Leaves neither domain nor overrides behind.
    pub(super) fn decided(&mut self, decision: Decision) -> Box<Decided> {
        let loaded = self.loaded.take();
        let switched = loaded.is_some() && self.plan.is_none();
        let overrides = self.plan.as_mut().map(|plan| std::mem::take(&mut plan.overrides)).unwrap_or_default();
        Box::new(Decided { decision, loaded, switched, shadow: self.shadow, overrides })
    }
}

impl<S: Store> Limiter<S> {
    /// Plans a request whose answer may be held back for so long.
    pub(super) fn prepare(&self, request: &Request<'_>, longest_hold: Option<Duration>) -> Result<Prepared, Undecided> {
        well_formed(request).map_err(Undecided::Invalid)?;
        let held = self.held();
        if held.rules.revision == 0 {
            return Err(Undecided::Unavailable("no rate limit configuration loaded".to_owned()));
        }
        let (shared, now) = (&self.shared, self.shared.now());
        let Some(&place) = held.places.get(request.domain) else {
            return Ok(Prepared { loaded: None, plan: None, shadow: false, now });
        };
        let mut settings = shared.settings.plan;
        let switch = shared.records.switch(request.domain);
        settings.shadow |= switch == Switch::ShadowAll;
        let mut plan = None;
        if switch != Switch::AllowAll {
            let micros = |patience: Duration| u64::try_from(patience.as_micros()).unwrap_or(u64::MAX);
            let moment = Moment { now, patience: longest_hold.map(micros) };
            let planned = plan::plan(&held.domains[place].domain, request, settings, moment, &shared.records);
            plan = Some(planned.map_err(|problem| Undecided::Invalid(problem.to_string()))?);
        }
        Ok(Prepared { loaded: Some((held, place)), plan, shadow: settings.shadow, now })
    }

    /// The domain and the plan of a request whose subjects have a history.
    pub(super) fn remembered<'p>(&self, prepared: &'p Prepared) -> Option<(&'p Domain, &'p Plan)> {
        prepared.planned().filter(|(domain, _)| self.shared.history.is_kept() && !domain.subject.is_empty())
    }

    /// How long the store may take, asked now, for what is left of a call: all that it is asked is done within one store timeout of
    /// the call's arrival.
    pub(super) fn wait(&self, call: Arrival, now: Instant) -> Wait {
        wait(call, now, self.shared.settings.store_timeout)
    }

    /// How long the answer to a call may be held back for its caller to have it in time. A delay counts from when the store decides,
    /// which may be as late as its timeout allows: a delay that might not be over in time is not to be admitted.
    pub(super) fn longest_hold(&self, call: Arrival, now: Instant) -> Option<Duration> {
        let decided_after = if self.store.takes_time() { self.shared.settings.store_timeout } else { Duration::ZERO };
        usable(call.patience).map(|usable| usable.saturating_sub(decided_after.max(now.saturating_duration_since(call.at))))
    }
}

fn wait(call: Arrival, now: Instant, store_timeout: Duration) -> Wait {
    let timeout = usable(call.patience).map_or(store_timeout, |usable| usable.min(store_timeout));
    Wait { asked: now, deadline: call.at + timeout }
}

/// What of a caller's patience there is for a decision.
fn usable(patience: Option<Duration>) -> Option<Duration> {
    patience.map(|patience| patience.saturating_sub(RETURN_TIME))
}

fn well_formed(request: &Request<'_>) -> Result<(), String> {
    if request.domain.is_empty() {
        return Err("rate limit domain must not be empty".to_owned());
    }
    if request.descriptors.is_empty() {
        return Err("rate limit descriptor list must not be empty".to_owned());
    }
    if request.descriptors.len() > MAX_DESCRIPTORS {
        let count = request.descriptors.len();
        return Err(format!("{count} descriptors in one request; at most {MAX_DESCRIPTORS} are decided together"));
    }
    Ok(())
}

/// Every descriptor OK, without a limit: for an unknown domain, and when everything is allowed.
pub(super) fn unlimited(request: &Request<'_>) -> Decision {
    let status = decision::Status {
        code: Code::Ok,
        rule: None,
        tier: None,
        shadowed: false,
        unlimited: false,
        limits: SmallVec::new(),
        shown: None,
        cost: 0,
    };
    let statuses = SmallVec::from_elem(status, request.descriptors.len());
    Decision { code: Code::Ok, statuses, limited_by: None, delay: 0, hold: 0, degraded: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_store_is_asked_has_one_timeout() {
        const TIMEOUT: Duration = Duration::from_millis(100);
        let longest = Some(Duration::from_secs(9));
        let impatient = Some(Duration::from_millis(30) + RETURN_TIME);
        for (patience, expected) in [(None, 100), (longest, 100), (impatient, 30), (Some(Duration::ZERO), 0)] {
            for passed in [0, 70, 700] {
                let at = Instant::now();
                let now = at + Duration::from_millis(passed);
                let left = wait(Arrival { at, patience }, now, TIMEOUT);
                assert_eq!(left.deadline, at + Duration::from_millis(expected), "asked after {passed} ms");
                assert_eq!(left.asked, now);
            }
        }
    }
}
