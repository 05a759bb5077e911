//! Reservations from end to end: an estimate is decided as any other request and kept with its name; its true number finds the
//! counters that were charged, whatever the rules say by then.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::abandoned::asking;
use super::prepared::{Prepared, Undecided, unlimited};
use super::{Decided, Limiter, tallies};
use crate::limit::reservation::{Gate, Reservation};
use crate::limit::{Check, Cost, Micros, Outcome};
use crate::rules::decision::{Code, Decision};
use crate::rules::key::{self, Key, Part};
use crate::rules::plan::Group;
use crate::rules::request::Request;
use crate::rules::reservation::{self, MAX_MEMO, Memo, MemoError};
use crate::rules::{Domain, precedence};
use crate::store::StoreError;
use crate::store::reservations::{Gated, Kept, Passed, ReservationStore};

/// How often a reservation is looked at anew that was another one a moment before: it expires once in its time to live, which is
/// longer than all attempts.
const ATTEMPTS: usize = 3;

/// What a caller wants to be reserved. Every number is in its range.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a, 'r> {
    pub request: &'a Request<'r>,
    pub estimate: Cost,
    pub idempotency_key: &'a str,
    /// How long it can be committed, in µs.
    pub ttl: Micros,
}

/// When a call came, and for how long its caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub patience: Option<Duration>,
}

/// What Reserve comes to.
#[derive(Debug)]
pub struct Reserved {
    pub decided: Box<Decided>,
    /// `None`: refused, or decided without the store.
    pub reservation: Option<Named>,
}

/// What can be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub id: String,
    /// Until when, in µs since the epoch; `None`: nothing limits it and nothing is kept of it.
    pub expires: Option<Micros>,
}

/// What Commit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub estimate: Cost,
    pub actual: Cost,
}

/// Why there is no answer, by what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Mend the request.
    #[error("{0}")]
    Invalid(String),
    /// Take another idempotency key.
    #[error("idempotency_key: it was used for another request or estimate of this subject, whose reservation is still known")]
    Used,
    /// Nothing was changed: what was estimated stands.
    #[error("there is no such reservation: it has expired, and its estimate stands, or it never was")]
    Absent,
    /// What was said first holds.
    #[error("the reservation is committed already, with {0}")]
    Committed(Cost),
    /// Wait until others have expired.
    #[error("there are as many reservations in memory as it may hold; some expire soon")]
    Full,
    /// Ask again.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Undecided> for Problem {
    fn from(undecided: Undecided) -> Problem {
        match undecided {
            Undecided::Invalid(reason) => Problem::Invalid(reason),
            Undecided::Unavailable(reason) => Problem::Unavailable(reason),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::TooLarge(_) => Problem::Invalid(error.to_string()),
            _ => Problem::Unavailable(error.to_string()),
        }
    }
}

impl<S: ReservationStore> Limiter<S> {
    /// Charges an estimate. `key_prefix` is what the keys of all counters begin with.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn reserve(&self, order: &Order<'_, '_>, key_prefix: &str, arrival: Arrival) -> Result<Reserved, Problem> {
        let reserved = self.try_reserve(order, key_prefix, arrival).await;
        if let Err(problem) = &reserved {
            self.count_problem(problem);
        }
        reserved
    }

    async fn try_reserve(&self, order: &Order<'_, '_>, key_prefix: &str, arrival: Arrival) -> Result<Reserved, Problem> {
        let mut prepared = self.prepare(order.request, self.longest_hold(arrival, Instant::now()))?;
        self.count_unknown_tiers(&prepared);
        let of_one = group(&prepared);
        if let Some(plan) = &mut prepared.plan {
            reservation::of_estimate(plan, order.estimate);
        }
        let key = key_of(prepared.domain(), order, key_prefix);
        if of_one.checks.is_empty() {
            return self.reserve_unlimited(order, prepared, &key, key_prefix, arrival).await;
        }
        let memo: Arc<[u8]> = Memo::encode(order.request, &of_one).ok_or_else(too_much_to_keep)?.into();
        let gate = Gate::Reserve { estimate: order.estimate, ttl: order.ttl };
        let gated = Gated { key, gate, memo, group: group(&prepared) };
        for _ in 0..ATTEMPTS {
            match asking(pin!(self.store.pass(&gated, self.wait(arrival, Instant::now())))).await {
                Ok(Passed::Decided { outcomes, expires }) => {
                    let id = || reservation::shown(&gated.key, key_prefix);
                    let named = expires.map(|expires| Named { id: id(), expires: Some(expires) });
                    return Ok(self.made(order, prepared, &outcomes, named).await);
                }
                Ok(Passed::Shut { .. }) => {
                    let Some(kept) = self.store.kept(&gated.key, self.wait(arrival, Instant::now())).await? else { continue };
                    let id = reservation::shown(&gated.key, key_prefix);
                    return self.repeated(order, prepared, &of_one, &kept, id);
                }
                Ok(Passed::Full) => return Err(Problem::Full),
                Ok(Passed::Absent) => {}
                Err(error @ StoreError::TooLarge(_)) => return Err(error.into()),
                Err(error) => return self.reserve_without_store(order, prepared, &error).await,
            }
        }
        Err(Problem::Unavailable("the reservation expired while it was looked at".to_owned()))
    }

    /// Where nothing is counted, nothing is kept, unless it was reserved while something was: callers invent as many names as they
    /// like.
    async fn reserve_unlimited(
        &self,
        order: &Order<'_, '_>,
        prepared: Prepared,
        key: &Key,
        key_prefix: &str,
        arrival: Arrival,
    ) -> Result<Reserved, Problem> {
        match self.store.kept(key, self.wait(arrival, Instant::now())).await {
            Ok(Some(kept)) => self.repeated(order, prepared, &Group::default(), &kept, reservation::shown(key, key_prefix)),
            Ok(None) => {
                let named = Named { id: reservation::unlimited(order.estimate), expires: None };
                let is_refused = group(&prepared).refused;
                Ok(self.made(order, prepared, &[], (!is_refused).then_some(named)).await)
            }
            Err(error) => self.reserve_without_store(order, prepared, &error).await,
        }
    }

    /// The answer to a request that the store has decided.
    async fn made(&self, order: &Order<'_, '_>, prepared: Prepared, outcomes: &[Outcome], reservation: Option<Named>) -> Reserved {
        let decision = prepared.decision(order.request, outcomes);
        let metrics = &self.shared.metrics.reservations;
        if reservation.is_some() { &metrics.made } else { &metrics.refused }.inc();
        if let Some((domain, plan)) = self.remembered(&prepared) {
            let is_allowed = decision.code == Code::Ok;
            match &reservation {
                // Its commit will not know who it was.
                Some(Named { expires: None, .. }) => {
                    tallies::record(&self.recorder, domain, order.request, plan, &decision, prepared.now);
                }
                _ => tallies::record_reserved(&self.recorder, domain, order.request, plan, is_allowed, prepared.now),
            }
        }
        self.tell(order.request, prepared, decision, reservation).await
    }

    async fn tell(
        &self,
        request: &Request<'_>,
        mut prepared: Prepared,
        decision: Decision,
        reservation: Option<Named>,
    ) -> Reserved {
        let decided = prepared.decided(decision);
        self.count_decided(request, &decided);
        decided.hold().await;
        Reserved { decided, reservation }
    }

    /// The first answer again.
    fn repeated(
        &self,
        order: &Order<'_, '_>,
        mut prepared: Prepared,
        of_one: &Group,
        kept: &Kept,
        id: String,
    ) -> Result<Reserved, Problem> {
        let memo = self.memo(kept)?;
        let Reservation { estimate, expires, .. } = kept.reservation;
        if !memo.is_of(order.request) || estimate != order.estimate {
            return Err(Problem::Used);
        }
        self.shared.metrics.reservations.repeated.inc();
        let is_same = is_same(of_one, &memo.group) && kept.outcomes.len() == of_one.checks.len();
        let decision = is_same.then(|| prepared.decision(order.request, &kept.outcomes));
        // By other rules than then, all that is known is that it was allowed.
        let allowed = decision.filter(|decision| decision.code == Code::Ok);
        let mut decision = allowed.unwrap_or_else(|| unlimited(order.request));
        decision.hold = 0;
        Ok(Reserved { decided: prepared.decided(decision), reservation: Some(Named { id, expires: Some(expires) }) })
    }

    /// What `on_store_failure` says. Nothing is reserved.
    async fn reserve_without_store(
        &self,
        order: &Order<'_, '_>,
        prepared: Prepared,
        error: &StoreError,
    ) -> Result<Reserved, Problem> {
        let decision = self.decide_without_store(order.request, &prepared, error).map_err(Problem::Unavailable)?;
        if let Some((domain, plan)) = self.remembered(&prepared) {
            tallies::record(&self.recorder, domain, order.request, plan, &decision, prepared.now);
        }
        Ok(self.tell(order.request, prepared, decision, None).await)
    }

    /// Says the true number of a reservation.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn commit(&self, id: &str, actual: Cost, key_prefix: &str, arrival: Arrival) -> Result<Committed, Problem> {
        let committed = self.try_commit(id, actual, key_prefix, arrival).await;
        if let Err(problem) = &committed {
            self.count_problem(problem);
        }
        committed
    }

    async fn try_commit(&self, id: &str, actual: Cost, key_prefix: &str, arrival: Arrival) -> Result<Committed, Problem> {
        if let Some(estimate) = reservation::unlimited_estimate(id) {
            self.shared.metrics.reservations.committed.inc();
            return Ok(Committed { estimate, actual });
        }
        let key = reservation::key_named(id, key_prefix);
        let key = key.ok_or_else(|| Problem::Invalid("id: it is none that Reserve has answered".to_owned()))?;
        for _ in 0..ATTEMPTS {
            let kept = self.store.kept(&key, self.wait(arrival, Instant::now())).await?.ok_or(Problem::Absent)?;
            let Reservation { estimate, made, actual: first, .. } = kept.reservation;
            if let Some(first) = first {
                return self.committed_before(estimate, first, actual);
            }
            let memo = self.memo(&kept)?;
            // A request that can be planned no more has the limits that it had.
            let mut current = self.prepare(&memo.request, None).ok();
            let limits = current.as_ref().map(group).unwrap_or_default();
            let group = reservation::difference(&memo, &kept.outcomes, estimate, actual, &limits);
            let gated = Gated { key: key.clone(), gate: Gate::Commit { actual, made }, memo: kept.memo.clone(), group };
            match asking(pin!(self.store.pass(&gated, self.wait(arrival, Instant::now())))).await? {
                Passed::Decided { .. } => {
                    self.shared.metrics.reservations.committed.inc();
                    self.record_committed(&memo.request, current.as_mut(), actual);
                    return Ok(Committed { estimate, actual });
                }
                Passed::Shut { actual: Some(first) } => return self.committed_before(estimate, first, actual),
                Passed::Absent => return Err(Problem::Absent),
                Passed::Shut { actual: None } | Passed::Full => {}
            }
        }
        Err(Problem::Unavailable("the reservation changed while it was looked at".to_owned()))
    }

    /// What is kept of the request that reserved.
    fn memo<'k>(&self, kept: &'k Kept) -> Result<Memo<'k>, Problem> {
        Memo::decode(&kept.memo).map_err(|error| {
            if let MemoError::Newer(version) = error
                && !self.shared.has_met_newer_memo.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(version, "a newer weir makes reservations that this one cannot read; upgrade this replica");
            }
            Problem::Unavailable(error.to_string())
        })
    }

    fn committed_before(&self, estimate: Cost, first: Cost, actual: Cost) -> Result<Committed, Problem> {
        if first != actual {
            return Err(Problem::Committed(first));
        }
        self.shared.metrics.reservations.repeated.inc();
        Ok(Committed { estimate, actual })
    }

    fn record_committed(&self, request: &Request<'_>, current: Option<&mut Prepared>, actual: Cost) {
        let Some(prepared) = current else { return };
        if let Some(plan) = &mut prepared.plan {
            reservation::of_estimate(plan, actual);
        }
        if let Some((domain, plan)) = self.remembered(prepared) {
            tallies::record_committed(&self.recorder, domain, request, plan, prepared.now);
        }
    }

    fn count_problem(&self, problem: &Problem) {
        let metrics = &self.shared.metrics;
        match problem {
            Problem::Invalid(_) | Problem::Used | Problem::Committed(_) => metrics.errors.invalid.inc(),
            Problem::Unavailable(_) | Problem::Full => metrics.errors.unavailable.inc(),
            Problem::Absent => metrics.reservations.absent.inc(),
        };
    }
}

/// What the store is asked; as planned, that is for one hit.
fn group(prepared: &Prepared) -> Group {
    prepared.plan.as_ref().map(|plan| plan.group.clone()).unwrap_or_default()
}

/// By the subject of the first descriptor as it was asked, whatever limits it: a call that is repeated finds it after a reload or
/// with another tier.
fn key_of(domain: Option<&Domain>, order: &Order<'_, '_>, key_prefix: &str) -> Key {
    let request = order.request;
    let domain_prefix = match domain {
        Some(domain) => domain.key_prefix.clone(),
        None => key::domain_prefix(key_prefix, request.domain),
    };
    let entries: &[_] = request.descriptors.first().map(|descriptor| &descriptor.entries[..]).unwrap_or_default();
    let first = || entries.first().map(|entry| key::subject(Part { key: entry.key, value: entry.value, shared: false }));
    let subject = match domain {
        Some(domain) => precedence::subject_of(domain, entries),
        None => first().unwrap_or_default(),
    };
    reservation::key_of(&domain_prefix, &subject, order.idempotency_key)
}

/// Whether two groups are of the same limits: what the outcomes of one say holds for the other. A quota's edges are of its day.
fn is_same(one: &Group, other: &Group) -> bool {
    let undated = |check: &Check| Check { limit: check.limit.on([0; 3]), max_delay: None, ..*check };
    let checks = |group: &Group| group.checks.iter().map(undated).collect::<SmallVec<[Check; 2]>>();
    one.keys == other.keys && checks(one) == checks(other)
}

fn too_much_to_keep() -> Problem {
    Problem::Invalid(format!("descriptors: more than the {MAX_MEMO} bytes that are kept of a reservation, with their counters"))
}
