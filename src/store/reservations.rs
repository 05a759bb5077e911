//! Reservations: requests that a gate lets through once. Apart from [`Store`], whose calls cost nothing for them.

use std::future::Future;
use std::sync::Arc;

use super::{Group, Outcomes, Store, StoreError, Wait};
use crate::limit::reservation::{Gate, Reservation};
use crate::limit::{Cost, Micros};
use crate::rules::key::Key;

/// A group that is decided only if its gate opens; both atomically.
#[derive(Clone, Debug)]
pub struct Gated {
    /// Where the reservation is kept.
    pub key: Key,
    pub gate: Gate,
    /// What is kept with a reservation that is made ([`crate::rules::reservation::Memo`]).
    pub memo: Arc<[u8]>,
    pub group: Group,
}

/// A reservation with what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub reservation: Reservation,
    /// Of the request that reserved.
    pub outcomes: Outcomes,
    pub memo: Arc<[u8]>,
}

/// What became of a gated group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// It was decided.
    Decided {
        outcomes: Outcomes,
        /// Until when the reservation is known, in µs since the epoch; `None`: the group was refused, and there is none.
        expires: Option<Micros>,
    },
    /// The gate stayed shut: to be reserved, the reservation was there; to be committed, it was committed, or is another one.
    Shut { actual: Option<Cost> },
    /// There is nothing to commit.
    Absent,
    /// There are as many reservations as this process may keep.
    Full,
}

/// Where reservations are kept, beside the counters that they are charged to.
pub trait ReservationStore: Store {
    /// Decides the group if its gate opens, by the deadline at the latest.
    ///
    /// # Errors
    /// As [`Store::apply`]. Unlike there, it may be asked again: the gate opens once.
    fn pass(&self, gated: &Gated, wait: Wait) -> impl Future<Output = Result<Passed, StoreError>> + Send;

    /// What is known of a reservation.
    ///
    /// # Errors
    /// When nothing can be said about it.
    fn kept(&self, key: &Key, wait: Wait) -> impl Future<Output = Result<Option<Kept>, StoreError>> + Send;
}
