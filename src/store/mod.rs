//! Where counters live. A store reads the states of a request's checks, decides them together and writes what
//! changed, atomically. It knows one concept, the check: windows, layers and blocks are all checks to it.

pub mod breaker;
mod clock;
pub mod deny_cache;
pub mod guard;
pub mod history;
pub mod memory;
pub mod outage;
pub mod records;
pub mod redis;
pub mod reservations;
mod shown;
pub mod subjects;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

pub use self::clock::{Clock, Correction};
use crate::limit::Outcome;
pub use crate::rules::plan::Group;

/// An outcome for each check of a group, in order.
pub type Outcomes = SmallVec<[Outcome; 2]>;

/// Atomic counters.
pub trait Store: Send + Sync {
    /// Decides the group and counts it, by the deadline at the latest.
    ///
    /// # Errors
    /// When nothing can be said about the group; see [`StoreError`] for whether it may have been counted.
    fn apply(&self, group: &Group, wait: Wait) -> impl Future<Output = Result<Outcomes, StoreError>> + Send;

    /// Whether an answer may take as long as the [`Wait`] allows, because someone else is asked for it.
    fn takes_time(&self) -> bool {
        true
    }
}

/// How long a store may take. It is told when it was asked because many want to know, and a look at the clock costs as much
/// as finding a counter.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub asked: Instant,
    pub deadline: Instant,
}

impl Wait {
    /// From now on.
    pub fn of(patience: Duration) -> Wait {
        let asked = Instant::now();
        Wait { asked, deadline: asked + patience }
    }
}

/// Why a store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer in time, and none to others meanwhile. It may have been counted; never retried.
    #[error("the store did not answer in time")]
    Timeout,
    /// The store cannot be reached, or the connection broke. What was under way may have been counted.
    #[error("the store is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The store said that it takes no writes, or nothing at all, from anyone: it was made a replica, is out of memory, or loads its
    /// data. Nothing was counted.
    #[error("the store refuses all calls: {0}")]
    Refused(Arc<str>),
    /// No answer in time, though others were answered meanwhile: too many requests wait for the store, which this says nothing
    /// of. It may have been counted; never retried.
    #[error("too many requests are waiting for the store")]
    Busy,
    /// Not asked: the circuit breaker is open.
    #[error("the store is failing and is not asked for now")]
    Open,
    /// This request's own keys hold something else; other requests are not affected. Nothing was counted.
    #[error("a counter of this request is not one of ours: {0}")]
    Foreign(Arc<str>),
    /// This request has more checks than are decided at once; other requests are not affected. Nothing was counted.
    #[error("{0} checks in one request are more than the store decides at once")]
    TooLarge(usize),
    /// Memory holds as many counters as it may, and none of them can make room: each refuses someone, or is
    /// of this request. Nothing was counted.
    #[error("memory has no room for this request's counters: every counter there refuses someone")]
    Full,
}
