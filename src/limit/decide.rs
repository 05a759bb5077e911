//! All checks of one request decided together: an allowed request is counted by all of them, a refused one by none,
//! except what `charge` and `block_for` say. Mirrored by `store/redis/lua/decide.lua`.

use smallvec::SmallVec;

use super::{Algorithm, Cost, Limit, Micros, Outcome, RetryAfter, State, Step, penalty};

/// What a check does to its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Counted if the whole request is allowed.
    Take = 0,
    /// Reads only: over when more than the limit is used, or the limit is 0.
    Look = 1,
    /// Gives back; always allowed, committed whatever the other checks say.
    Refund = 2,
    /// The cost of work already done: counted whatever is decided, and it never sets a block.
    Report = 3,
}

/// What a check's refusal means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// The request is refused.
    Enforce = 0,
    /// Nothing: counted, never refuses.
    Shadow = 1,
    /// The request is refused only if every quota owner is over.
    Quota = 2,
}

/// Whether a refused take is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Charge {
    /// Only what is admitted counts.
    Admitted = 0,
    /// Refused hits count too, into debt up to one further limit.
    Always = 1,
}

/// One limit to ask, with how much to take and what its answer means. Checks of one rule and counter key share an `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub limit: Limit,
    pub operation: Operation,
    pub cost: Cost,
    pub mode: Mode,
    pub charge: Charge,
    /// The longest a leaky admission may wait, in µs; `None`: as long as the bucket is deep.
    pub max_delay: Option<Micros>,
    pub owner: u16,
}

impl Check {
    /// One that refuses what it has no room for and counts what it admits, alone of its owner.
    pub fn new(limit: Limit, operation: Operation, cost: Cost) -> Check {
        Check { limit, operation, cost, mode: Mode::Enforce, charge: Charge::Admitted, max_delay: None, owner: 0 }
    }
}

/// A check's outcome, and what to store for how many µs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub outcome: Outcome,
    pub write: Option<(State, Micros)>,
}

impl From<Step> for Resolved {
    /// Stored as it steps.
    fn from(step: Step) -> Resolved {
        Resolved { outcome: step.outcome, write: step.next.map(|next| (next, step.ttl)) }
    }
}

impl Check {
    /// Whether it is stored just as it steps when it is the only check of its request.
    pub fn is_plain(&self) -> bool {
        self.operation == Operation::Take && self.charge == Charge::Admitted && self.limit.algorithm() != Algorithm::Penalty
    }

    /// What [`decide`] says of a plain check that is alone in a request which is not refused beforehand; most requests are that.
    pub fn decide_alone(&self, state: Option<&State>, now: Micros) -> Resolved {
        self.limit.step(state, now, self.cost, self.max_delay).into()
    }
}

/// Decides the checks of one request over their stored states, in order. `refused` is set when the request is refused whatever
/// the checks say (a `deny` rule). A refund is applied at once, so the caller resolves refunds before it reads the states of
/// checks on the same counters.
pub fn decide(checks: &[Check], states: &[Option<&State>], now: Micros, refused: bool) -> SmallVec<[Resolved; 4]> {
    let mut steps: SmallVec<[Step; 4]> = checks.iter().zip(states).map(|(check, state)| first_step(check, *state, now)).collect();
    let is_penalty = |check: &Check| check.limit.algorithm() == Algorithm::Penalty;
    if !refused && steps.iter().all(|step| step.outcome.is_allowed()) && !checks.iter().any(is_penalty) {
        // Nobody refuses, nobody is blocked.
        return steps.into_iter().map(Resolved::from).collect();
    }
    let over = owners(checks, &steps, |_, outcome| !outcome.is_allowed());
    let without_room = owners(checks, &steps, had_no_room);
    let refused = refused || is_refused(checks, &steps, &over);
    let mut resolved = SmallVec::with_capacity(checks.len());
    for (index, (check, state)) in checks.iter().zip(states).enumerate() {
        if is_penalty(check) {
            let has_room = without_room.binary_search(&check.owner).is_err();
            resolved.push(resolve_penalty(check, *state, steps[index].outcome, now, has_room));
            continue;
        }
        let step = Step { next: steps[index].next.take(), ..steps[index] };
        let counted = match check.mode {
            Mode::Enforce => !refused,
            Mode::Shadow | Mode::Quota => !refused && over.binary_search(&check.owner).is_err(),
        };
        resolved.push(resolve(check, *state, step, now, counted));
    }
    resolved
}

/// The owners of the checks that `is_so`, ascending.
fn owners(checks: &[Check], steps: &[Step], is_so: fn(&Check, &Outcome) -> bool) -> SmallVec<[u16; 4]> {
    let so = checks.iter().zip(steps).filter(|(check, step)| is_so(check, &step.outcome));
    let mut owners: SmallVec<[u16; 4]> = so.map(|(check, _)| check.owner).collect();
    owners.sort_unstable();
    owners
}

fn first_step(check: &Check, state: Option<&State>, now: Micros) -> Step {
    match check.operation {
        Operation::Refund => check.limit.refund(state, now, check.cost),
        Operation::Look => check.limit.step(state, now, 0, None),
        Operation::Take | Operation::Report => check.limit.step(state, now, check.cost, check.max_delay),
    }
}

fn is_refused(checks: &[Check], steps: &[Step], over: &[u16]) -> bool {
    let enforced = |(check, step): (&Check, &Step)| check.mode == Mode::Enforce && !step.outcome.is_allowed();
    if checks.iter().zip(steps).any(enforced) {
        return true;
    }
    let mut quotas = checks.iter().filter(|check| check.mode == Mode::Quota).peekable();
    quotas.peek().is_some() && quotas.all(|check| over.binary_search(&check.owner).is_ok())
}

/// A take that there was no room for, in enforce mode: what sets a block.
fn had_no_room(check: &Check, outcome: &Outcome) -> bool {
    check.limit.algorithm() != Algorithm::Penalty
        && check.operation == Operation::Take
        && check.mode == Mode::Enforce
        && matches!(outcome, Outcome::Denied { retry_after: RetryAfter::In(_), .. })
}

fn resolve(check: &Check, state: Option<&State>, step: Step, now: Micros, counted: bool) -> Resolved {
    match check.operation {
        Operation::Refund | Operation::Look => step.into(),
        Operation::Take | Operation::Report => {
            let always = check.charge == Charge::Always || check.operation == Operation::Report;
            match step.outcome {
                Outcome::Allowed { .. } if counted || always => step.into(),
                Outcome::Allowed { .. } => Resolved { outcome: check.limit.step(state, now, 0, None).outcome, write: None },
                Outcome::Denied { .. } if always => check.limit.charge(state, now, check.cost, check.max_delay).into(),
                Outcome::Denied { .. } => step.into(),
            }
        }
    }
}

/// Blocks when a take of the same rule and counter key had no room.
fn resolve_penalty(check: &Check, state: Option<&State>, outcome: Outcome, now: Micros, has_room: bool) -> Resolved {
    if outcome.is_allowed() && !has_room {
        return penalty::block(&check.limit, now).into();
    }
    let write = if check.operation == Operation::Take { penalty::shorten(&check.limit, state, now) } else { None };
    Resolved { outcome, write }
}
