//! What a probe asks: to count in a key of its own, by the same script and the same commands as any decision.

use crate::limit::{Algorithm, Charge, Check, Limit, Mode, Operation, SECOND};
use crate::rules::key::{Key, STATE_VERSION};
use crate::store::Group;

/// Never reached in [`SECOND`]: a probe that was refused would write nothing.
const OUT_OF_REACH: u64 = u32::MAX as u64;

/// One hit on a counter that is gone within a second.
pub(super) fn group(key_prefix: &str) -> Group {
    let limit = Limit::new(Algorithm::FixedWindow, OUT_OF_REACH, SECOND, None).expect("it is far below what a counter holds");
    let check = Check {
        limit,
        operation: Operation::Take,
        cost: 1,
        mode: Mode::Enforce,
        charge: Charge::Admitted,
        max_delay: None,
        owner: 0,
    };
    // No domain's: after theirs there is a bar.
    let key = Key::from_bytes(format!("{key_prefix}{STATE_VERSION}|probe").into_bytes());
    Group { keys: [key].into_iter().collect(), checks: [check].into_iter().collect(), refused: false }
}
