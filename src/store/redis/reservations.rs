//! Reservations in Redis: a gate is one more check of the script's, and goes there in a batch with the others. What is kept of a
//! reservation is read beside it.

use std::sync::Arc;

use deadpool_redis::redis::{RedisError, RedisResult};
use tokio::time::{Instant, timeout_at};

use super::batch::Status;
use super::bounded::bounded;
use super::connect::Link;
use super::failure::Failure;
use super::wire::{self, Encoded};
use super::{RedisStore, STRANGE, unavailable};
use crate::limit::Outcome;
use crate::rules::key::Key;
use crate::store::reservations::{Gated, Kept, Passed, ReservationStore};
use crate::store::{Outcomes, StoreError, Wait};

/// The longest reservation that is read, in bytes; as in `lua/reservation.lua`.
const MAX_KEPT: usize = 4 << 20;

impl ReservationStore for RedisStore {
    async fn pass(&self, gated: &Gated, wait: Wait) -> Result<Passed, StoreError> {
        let encoded = Encoded::gated(gated, &self.connector.listed.hasher);
        let encoded = encoded.ok_or(StoreError::TooLarge(gated.group.checks.len() + 1))?;
        let mut outcomes = self.queue(encoded, wait)?.await?;
        if outcomes.is_empty() {
            return Err(unavailable(STRANGE));
        }
        Ok(passed(outcomes.remove(0), outcomes))
    }

    async fn kept(&self, key: &Key, wait: Wait) -> Result<Option<Kept>, StoreError> {
        let mut link = self.link_unless_down(wait.deadline).await?;
        let command = bounded("GET", &[key.as_bytes()], MAX_KEPT);
        let answer = command.query_async(link.asking(1, MAX_KEPT + 64));
        let found: RedisResult<Option<Vec<u8>>> = timeout_at(wait.deadline, answer).await.map_err(|_| StoreError::Timeout)?;
        let foreign = || StoreError::Foreign(key.as_bytes().escape_ascii().to_string().into());
        match found {
            Ok(None) => Ok(None),
            Ok(Some(found)) if found.len() > MAX_KEPT => Err(foreign()),
            Ok(Some(found)) => wire::kept(&found).ok_or_else(foreign).map(Some),
            Err(error) if is_wrong_type(&error) => Err(foreign()),
            Err(error) => Err(Failure::from(error).into()),
        }
    }
}

/// Redis 6 says it within another error.
fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.detail().is_some_and(|detail| detail.contains("-WRONGTYPE "))
}

impl RedisStore {
    /// As a request in the queue: it waits for a connection that is being made, and fails at once when none could be.
    async fn link_unless_down(&self, deadline: Instant) -> Result<Link, StoreError> {
        let mut status = self.status.clone();
        match timeout_at(deadline, status.wait_for(|status| !matches!(status, Status::Connecting))).await {
            Ok(Ok(status)) => match &*status {
                Status::Ready(link) => Ok(link.clone()),
                Status::Down(reason) => Err(StoreError::Unavailable(Arc::clone(reason))),
                Status::Connecting => Err(StoreError::Timeout),
            },
            _ => Err(StoreError::Timeout),
        }
    }
}

/// What the script says of a gate is in the form of an outcome: that it opened, or what it found; until when the reservation is known;
/// the true number.
fn passed(gate: Outcome, outcomes: Outcomes) -> Passed {
    const ABSENT: u64 = 0;
    const COMMITTED: u64 = 2;
    const OPENED: u64 = 3;
    match gate {
        Outcome::Denied { .. } => Passed::Decided { outcomes, expires: None },
        Outcome::Allowed { remaining: OPENED, reset_after, .. } => Passed::Decided { outcomes, expires: Some(reset_after) },
        Outcome::Allowed { remaining: ABSENT, .. } => Passed::Absent,
        Outcome::Allowed { remaining: COMMITTED, delay, .. } => Passed::Shut { actual: Some(delay) },
        Outcome::Allowed { .. } => Passed::Shut { actual: None },
    }
}
