//! What a probe asks: to count in a key of its own, by the same script and the same commands as any decision.

use crate::limit::{Algorithm, Check, Limit, Operation, SECOND};
use crate::rules::key::{Key, STATE_VERSION};
use crate::store::Group;

/// Never reached in [`SECOND`]: a probe that was refused would write nothing.
const OUT_OF_REACH: u64 = u32::MAX as u64;

/// One hit on a counter that is gone within a second.
pub(super) fn group(key_prefix: &str) -> Group {
    let limit = Limit::new(Algorithm::FixedWindow, OUT_OF_REACH, SECOND, None).expect("it is far below what a counter holds");
    // No domain's: after theirs there is a bar.
    let key = Key::from_bytes(format!("{key_prefix}{STATE_VERSION}|probe").into_bytes());
    Group {
        keys: [key].into_iter().collect(),
        checks: [Check::new(limit, Operation::Take, 1)].into_iter().collect(),
        refused: false,
    }
}
