//! Reads of what anyone with access to Redis may have written: no string of the reply is longer than it may be.

use deadpool_redis::redis::{Cmd, ToRedisArgs, cmd};

use crate::store::records::MAX_TEXT;

/// The longest name of a record or counter that weir reads, in bytes: a domain, a subject and more.
pub(super) const MAX_NAME: usize = 4 << 10;
/// Texts of records, or changes, that are read at once.
pub(super) const MAX_TEXTS: usize = 250;
/// The longest reply of names, in bytes: those of a subject's counters.
pub(super) const NAMES_REPLY: usize = 16 << 20;
/// The longest reply of texts, in bytes.
pub(super) const TEXTS_REPLY: usize = MAX_TEXTS * (MAX_TEXT + MAX_NAME + 256);

/// A command that reads `keys`, whose strings come with `longest` bytes at most; of a longer one comes one byte more.
pub(super) fn bounded<K: ToRedisArgs>(name: &str, keys: &[K], longest: usize) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(include_str!("lua/read.lua")).arg(keys.len()).arg(keys).arg(longest).arg(name);
    command
}
