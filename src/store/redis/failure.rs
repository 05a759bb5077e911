//! Why Redis gave no reply to a call, and what that says about it: that it refuses everybody, that the connection is of no more
//! use, or neither.

use std::sync::Arc;

use deadpool_redis::redis::RedisError;

use crate::store::StoreError;
use crate::store::outage::Part;
use crate::store::shown::shown;

/// What a server answers that refuses all writes, or everything, whoever asks and for whatever. Absent are answers about one request
/// alone: `NOPERM` may be about its keys, `CROSSSLOT`, `MOVED`, `ASK` and `TRYAGAIN` are, as is `WRONGTYPE`.
const REFUSALS: [&str; 9] = ["READONLY", "OOM", "MISCONF", "NOREPLICAS", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH", "BUSY"];
/// Refusals of a server that others have taken the place of: a new connection may lead to them.
const REPLACED: [&str; 2] = ["READONLY", "MASTERDOWN"];
/// What Redis 7 adds to an error of a script: which one and where in it, which is no other reason.
const PLACE_IN_SCRIPT: &str = " script: ";

/// Why a call has no reply, and whether its connection can be used again.
pub(super) struct Failure {
    pub(super) reason: Arc<str>,
    pub(super) is_lost: bool,
    /// The server closed the connection.
    pub(super) is_closed: bool,
    /// The server refuses everybody.
    pub(super) is_refusal: bool,
}

impl Failure {
    /// The connection is of no more use.
    pub(super) fn lost(reason: &str) -> Failure {
        Failure { reason: shown(reason), is_lost: true, is_closed: false, is_refusal: false }
    }

    /// Tells the log why this part has no connection: the server itself said so, or it cannot be reached.
    pub(super) fn tell(&self, part: &mut Part) {
        if self.is_refusal || !self.is_lost { part.refused(&self.reason) } else { part.lost(&self.reason) }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Failure {
        let text = error.to_string();
        let refusal = error.code().and_then(|code| refusal(code, error.detail().unwrap_or_default()));
        let is_replaced = refusal.is_some_and(|refusal| REPLACED.contains(&refusal));
        let is_lost = error.is_io_error() || error.is_unrecoverable_error() || is_replaced;
        let is_closed = error.is_connection_dropped() && !error.is_connection_refusal();
        let reason = text.split(PLACE_IN_SCRIPT).next().unwrap_or(&text);
        Failure { reason: shown(reason), is_lost, is_closed, is_refusal: refusal.is_some() }
    }
}

/// The refusal that an error of the server is. Redis 6 wraps what stops a script: `ERR Error running script (…): …: -OOM command not
/// allowed …`.
fn refusal(code: &str, detail: &str) -> Option<&'static str> {
    let wrapped = detail.split(": -").nth(1).filter(|_| code == "ERR").and_then(|error| error.split(' ').next());
    REFUSALS.into_iter().find(|refusal| *refusal == wrapped.unwrap_or(code))
}

impl From<&Failure> for StoreError {
    fn from(failure: &Failure) -> StoreError {
        let reason = Arc::clone(&failure.reason);
        if failure.is_refusal { StoreError::Refused(reason) } else { StoreError::Unavailable(reason) }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        StoreError::from(&failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_by_its_code_also_where_a_script_wraps_it() {
        let script = "Error running script (call to f_1): @user_script:9: @user_script: 9: -";
        for (code, detail, expected) in [
            ("READONLY", "You can't write against a read only replica.", Some("READONLY")),
            ("OOM", "command not allowed when used memory > 'maxmemory'.", Some("OOM")),
            ("ERR", &*format!("{script}MISCONF Redis is configured to save"), Some("MISCONF")),
            ("ERR", &*format!("{script}WRONGTYPE Operation against a key"), None),
            ("ERR", "unknown command", None),
            ("NOPERM", "No permissions to access a key", None),
            ("WRONGTYPE", "Operation against a key: -OOM ", None),
            ("CROSSSLOT", "Keys in request don't hash to the same slot", None),
        ] {
            assert_eq!(refusal(code, detail), expected, "{code} {detail}");
        }
    }
}
