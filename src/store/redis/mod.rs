//! Counters in Redis, shared by all replicas. Decisions are made by a script in Redis that mirrors `limit` one for one
//! ([`script`], `lua/`); requests go there in batches over one connection per server thread ([`batch`]).

mod batch;
mod bounded;
mod connect;
mod dial;
mod failure;
mod listed;
mod probe;
mod records;
mod reservations;
mod script;
mod stream;
mod subjects;
mod wire;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use deadpool_redis::redis::{RedisResult, cmd};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use self::batch::{Lane, LastReply, MAX_QUEUED, Request, Status};
use self::connect::Link;
pub use self::connect::{Connector, RedisSettings, RedisSettingsError};
use self::failure::Failure;
pub use self::records::RedisRecords;
pub use self::subjects::RedisSubjects;
use self::wire::Encoded;
use super::guard::Probe;
use super::shown::shown;
use super::{Clock, Group, Outcomes, Store, StoreError, Wait};
use crate::rules::key::STATE_VERSION;

/// How long a replica counts as alive after its last heartbeat, in ms: three of them at one every five seconds.
const HEARTBEAT_TTL_MS: u64 = 15_000;

/// The most replicas that count.
const MAX_REPLICAS: u32 = 100_000;

/// One lane to Redis: a store for the thread that made it.
pub struct RedisStore {
    queue: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    wanted: Arc<Notify>,
    last_reply: Arc<LastReply>,
    connector: Connector,
    start: Instant,
    /// Of all that were queued; in ns since the start.
    latest_deadline: AtomicU64,
}

impl RedisStore {
    /// Starts the lane's task in the current runtime. It connects by itself, and again whenever it must, until the store is
    /// dropped: Redis need not be there yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(connector: &Connector, clock: Clock) -> RedisStore {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        let (status, seen) = watch::channel(Status::Connecting);
        let wanted = Arc::new(Notify::new());
        let last_reply = Arc::new(LastReply::new());
        let lane = Lane {
            queue: queued,
            waiting: VecDeque::new(),
            batch: Vec::new(),
            connector: connector.clone(),
            clock,
            status,
            wanted: Arc::clone(&wanted),
            last_reply: Arc::clone(&last_reply),
            part: connector.outage().part(),
        };
        tokio::spawn(lane.run());
        let (start, latest_deadline) = (Instant::now(), AtomicU64::new(0));
        RedisStore { queue, status: seen, wanted, last_reply, connector: connector.clone(), start, latest_deadline }
    }

    /// Waits, however long it takes, until the lane is connected and Redis knows the script.
    pub async fn ready(&self) {
        let mut status = self.status.clone();
        // An error would mean that the lane has ended, which it does not before the store is dropped.
        drop(status.wait_for(|status| matches!(status, Status::Ready(_))).await);
    }

    /// Whether the lane is connected.
    pub fn is_ready(&self) -> bool {
        matches!(*self.status.borrow(), Status::Ready(_))
    }

    /// Has Redis decide and count, as for any request, a counter of no one's, within the store timeout: what reads and cannot write
    /// is no store. Without a connection an attempt to make one is begun at once; a connection that does not answer is given up.
    ///
    /// # Errors
    /// When nothing was counted.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let wait = Wait::of(self.connector.settings.store_timeout);
        self.link(wait.deadline).await?;
        match self.send(&probe::group(&self.connector.settings.key_prefix), wait)?.await {
            // Somebody put something else there: still an answer.
            Ok(_) | Err(StoreError::Foreign(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that the replica `id` is alive, and counts those that are.
    ///
    /// # Errors
    /// When there is no answer within the store timeout.
    pub async fn heartbeat(&self, id: &str) -> Result<u32, StoreError> {
        let settings = &self.connector.settings;
        let key = format!("{}{STATE_VERSION}|replicas", settings.key_prefix);
        let mut link = self.link(Instant::now() + settings.store_timeout).await?;
        let mut command = cmd("EVAL");
        command.arg(include_str!("lua/heartbeat.lua")).arg(1).arg(key).arg(id).arg(HEARTBEAT_TTL_MS);
        let alive: RedisResult<u32> = match timeout(settings.store_timeout, command.query_async(link.asking(1, 0))).await {
            Ok(alive) => alive,
            Err(_) => return Err(StoreError::Timeout),
        };
        // The set is anyone's to write; nobody runs more replicas.
        alive.map(|alive| alive.clamp(1, MAX_REPLICAS)).map_err(|error| Failure::from(error).into())
    }

    /// Queues a group.
    fn send(&self, group: &Group, wait: Wait) -> Result<Queued<'_>, StoreError> {
        match Encoded::new(group, &self.connector.listed.hasher) {
            Some(encoded) => self.queue(encoded, wait),
            None => Err(StoreError::TooLarge(group.checks.len())),
        }
    }

    /// Queues a request. The lane does not watch a deadline that comes before that of one that was queued earlier.
    fn queue(&self, encoded: Encoded, wait: Wait) -> Result<Queued<'_>, StoreError> {
        let deadline = wait.deadline.saturating_duration_since(self.start).as_nanos();
        let deadline = u64::try_from(deadline).unwrap_or(u64::MAX);
        let is_watched = self.latest_deadline.fetch_max(deadline, Ordering::Relaxed) <= deadline;
        let (respond, answer) = oneshot::channel();
        let request = Request { encoded, wait, respond: Some(respond) };
        match self.queue.try_send(request) {
            Ok(()) if is_watched => Ok(Queued::Watched(answer)),
            Ok(()) => Ok(Queued::Unwatched(Box::pin(self.in_time(answer, wait, None)))),
            Err(TrySendError::Full(request)) => Ok(Queued::Unwatched(Box::pin(self.in_time(answer, wait, Some(request))))),
            Err(TrySendError::Closed(_)) => Err(unavailable(ENDED)),
        }
    }

    /// The answer to a request, by its deadline. One that is not in the queue yet waits for room: others are in front of it, whatever
    /// Redis does.
    async fn in_time(&self, answer: Answer, wait: Wait, outside: Option<Request>) -> Result<Outcomes, StoreError> {
        if let Some(request) = outside {
            let entered = timeout_at(wait.deadline, self.queue.send(request)).await.map_err(|_| StoreError::Busy)?;
            entered.map_err(|_| unavailable(ENDED))?;
        }
        let answer = timeout_at(wait.deadline, answer).await.map_err(|_| self.last_reply.why_none(wait.asked))?;
        answer.unwrap_or_else(|_| Err(unavailable(ENDED)))
    }

    /// The lane's connection, once there is one.
    async fn link(&self, deadline: Instant) -> Result<Link, StoreError> {
        let mut status = self.status.clone();
        if !self.is_ready() {
            self.wanted.notify_one();
        }
        let found = timeout_at(deadline, status.wait_for(|status| matches!(status, Status::Ready(_)))).await;
        match found {
            Ok(Ok(status)) => match &*status {
                Status::Ready(link) => Ok(link.clone()),
                _ => Err(StoreError::Timeout),
            },
            _ => match &*self.status.borrow() {
                Status::Down(reason) => Err(StoreError::Unavailable(Arc::clone(reason))),
                _ => Err(StoreError::Timeout),
            },
        }
    }
}

/// The answer to a request that the lane has, or will have.
enum Queued<'s> {
    /// It comes by the deadline at the latest.
    Watched(Answer),
    /// Boxed: it is seldom, and a call under way is not to be larger for it.
    Unwatched(Pin<Box<dyn Future<Output = Result<Outcomes, StoreError>> + Send + 's>>),
}

/// Where the lane puts the answer to a request.
type Answer = oneshot::Receiver<Result<Outcomes, StoreError>>;

impl Future for Queued<'_> {
    type Output = Result<Outcomes, StoreError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Queued::Watched(answer) => {
                Pin::new(answer).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(unavailable(ENDED))))
            }
            Queued::Unwatched(answer) => answer.as_mut().poll(context),
        }
    }
}

/// Why there is no answer from a lane that is no more.
const ENDED: &str = "the connection's task has ended";
const CLOSED: &str = "the connection was closed";
const STRANGE: &str = "a reply that is none of the script";

impl Store for RedisStore {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        if group.checks.is_empty() {
            return Ok(Outcomes::new());
        }
        self.send(group, wait)?.await
    }
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable(shown(reason))
}

impl Probe for RedisStore {
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        RedisStore::probe(self)
    }
}
