//! What a reservation is besides its estimate: where it is kept, what its caller calls it, and what must be known of the request
//! when its true number is said: the rules may have changed by then.

mod id;
mod memo;

pub use id::{MAX_ID, MAX_IDEMPOTENCY_KEY, key_named, key_of, shown, unlimited, unlimited_estimate};
pub use memo::{MAX_MEMO, Memo, MemoError};

use super::plan::Plan;
use crate::limit::{Charge, Check, Cost, Operation, Outcome, reservation};
use crate::rules::plan::Group;

/// Makes a plan of one hit one of `estimate` hits: what it weighs stays a weight.
pub fn of_estimate(plan: &mut Plan, estimate: Cost) {
    for check in &mut plan.group.checks {
        check.cost = check.cost.saturating_mul(estimate);
    }
    for planned in &mut plan.descriptors {
        planned.cost = planned.cost.saturating_mul(estimate);
    }
}

/// What a commit changes: the counters that the reservation was counted by, by the difference. `current` has the limits as they are
/// now, where there still are such; a counter that the rules have no more goes by the limit that it had.
pub fn difference(memo: &Memo<'_>, outcomes: &[Outcome], estimate: Cost, actual: Cost, current: &Group) -> Group {
    let mut group = Group::default();
    let operation = if actual < estimate { Operation::Refund } else { Operation::Report };
    if actual == estimate || outcomes.len() != memo.group.checks.len() {
        return group;
    }
    for (place, (key, charged)) in memo.group.keys.iter().zip(&memo.group.checks).enumerate() {
        if !reservation::is_charged(&memo.group.checks, outcomes, place) {
            continue;
        }
        let now = current.keys.iter().position(|other| other == key).map(|place| current.checks[place].limit);
        group.keys.push(key.clone());
        let charge = if operation == Operation::Report { Charge::Always } else { Charge::Admitted };
        let cost = charged.cost.saturating_mul(estimate.abs_diff(actual));
        group.checks.push(Check { charge, ..Check::new(now.unwrap_or(charged.limit), operation, cost) });
    }
    group
}
