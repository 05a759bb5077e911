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
    /// Reads only: over when more than the limit is used.
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

/// A check's outcome, and what to store for how many µs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub outcome: Outcome,
    pub write: Option<(State, Micros)>,
}

/// Decides the checks of one request over their stored states, in order. `refused` is set when the request is refused whatever
/// the checks say (a `deny` rule). A refund is applied at once, so the caller resolves refunds before it reads the states of
/// checks on the same counters.
pub fn decide(checks: &[Check], states: &[Option<&State>], now: Micros, refused: bool) -> SmallVec<[Resolved; 4]> {
    let mut steps: SmallVec<[Step; 4]> = checks.iter().zip(states).map(|(check, state)| first_step(check, *state, now)).collect();
    let refused = refused || is_refused(checks, &steps);
    let over: SmallVec<[bool; 4]> = checks.iter().map(|check| owner_is_over(checks, &steps, check.owner)).collect();
    let mut resolved = SmallVec::with_capacity(checks.len());
    for (index, (check, state)) in checks.iter().zip(states).enumerate() {
        if check.limit.algorithm() == Algorithm::Penalty {
            resolved.push(resolve_penalty(checks, *state, &steps, index, now));
            continue;
        }
        // The outcome stays in place, for the penalty checks that look back at it.
        let step = Step { next: steps[index].next.take(), ..steps[index] };
        let counted = match check.mode {
            Mode::Enforce => !refused,
            Mode::Shadow | Mode::Quota => !refused && !over[index],
        };
        resolved.push(resolve(check, *state, step, now, counted));
    }
    resolved
}

fn first_step(check: &Check, state: Option<&State>, now: Micros) -> Step {
    match check.operation {
        Operation::Refund => check.limit.refund(state, now, check.cost),
        Operation::Look => check.limit.step(state, now, 0, None),
        Operation::Take | Operation::Report => check.limit.step(state, now, check.cost, check.max_delay),
    }
}

fn is_refused(checks: &[Check], steps: &[Step]) -> bool {
    let denied = |mode| checks.iter().zip(steps).any(move |(check, step)| check.mode == mode && !step.outcome.is_allowed());
    if denied(Mode::Enforce) {
        return true;
    }
    let mut quotas = checks.iter().filter(|check| check.mode == Mode::Quota).peekable();
    quotas.peek().is_some() && quotas.all(|check| owner_is_over(checks, steps, check.owner))
}

fn owner_is_over(checks: &[Check], steps: &[Step], owner: u16) -> bool {
    checks.iter().zip(steps).any(|(check, step)| check.owner == owner && !step.outcome.is_allowed())
}

fn resolve(check: &Check, state: Option<&State>, step: Step, now: Micros, counted: bool) -> Resolved {
    let commits = |step: Step| Resolved { outcome: step.outcome, write: step.next.map(|next| (next, step.ttl)) };
    match check.operation {
        Operation::Refund | Operation::Look => commits(step),
        Operation::Take | Operation::Report => {
            let always = check.charge == Charge::Always || check.operation == Operation::Report;
            match step.outcome {
                Outcome::Allowed { .. } if counted || always => commits(step),
                Outcome::Allowed { .. } => Resolved { outcome: check.limit.step(state, now, 0, None).outcome, write: None },
                Outcome::Denied { .. } if always => commits(check.limit.charge(state, now, check.cost, check.max_delay)),
                Outcome::Denied { .. } => commits(step),
            }
        }
    }
}

/// Blocks when a take of the same rule and counter key had no room in enforce mode.
fn resolve_penalty(checks: &[Check], state: Option<&State>, steps: &[Step], index: usize, now: Micros) -> Resolved {
    let check = &checks[index];
    let had_no_room = |(other, step): (&Check, &Step)| {
        other.owner == check.owner
            && other.limit.algorithm() != Algorithm::Penalty
            && other.operation == Operation::Take
            && other.mode == Mode::Enforce
            && matches!(step.outcome, Outcome::Denied { retry_after: RetryAfter::In(_), .. })
    };
    let blocked_already = !steps[index].outcome.is_allowed();
    if !blocked_already && checks.iter().zip(steps).any(had_no_room) {
        let step = penalty::block(&check.limit, now);
        return Resolved { outcome: step.outcome, write: step.next.map(|next| (next, step.ttl)) };
    }
    let write = if check.operation == Operation::Take { penalty::shorten(&check.limit, state, now) } else { None };
    Resolved { outcome: steps[index].outcome, write }
}
