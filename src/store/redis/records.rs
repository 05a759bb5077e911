//! Records in Redis: a key each, an index of their names to page through, and a feed of what changed. A task of every process
//! loads them all and then follows the feed, over a connection of its own; decisions never wait for it.

mod follow;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deadpool_redis::redis::{Cmd, FromRedisValue, Pipeline, RedisError, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use self::follow::{Follower, Position, Status};
use super::bounded::{MAX_NAME, MAX_TEXTS, NAMES_REPLY, TEXTS_REPLY, bounded};
use super::connect::{Connector, Link};
use super::failure::Failure;
use super::{STRANGE, unavailable};
use crate::rules::key::STATE_VERSION;
use crate::store::StoreError;
use crate::store::records::{
    Change, Expected, MAX_PAGE, MAX_RECORDS, MAX_TEXT, Page, RecordName, RecordStore, Subscriber, WriteError,
};

/// How long one step of an operator's call may take, the wait for a connection included. No decision waits for one.
const STEP_TIME: Duration = Duration::from_secs(2);
/// How long the follower, and who brings histories, wait for one reply: a page of large records takes its time.
pub(super) const BACKGROUND_TIME: Duration = Duration::from_secs(5);
/// How long a writer waits for its own process to have heard of what it wrote.
const ECHO: Duration = Duration::from_secs(1);
/// About how many changes the feed keeps: a process that is further behind loads everything anew.
const FEED_LENGTH: usize = 10_000;

/// The records of one Redis server. Cheap to clone.
#[derive(Clone)]
pub struct RedisRecords {
    keys: Arc<Keys>,
    status: watch::Receiver<Status>,
    wanted: Arc<Notify>,
}

/// What the keys are called. One hash tag: a change writes several of them.
struct Keys {
    prefix: String,
    index: String,
    feed: String,
}

impl Keys {
    fn new(key_prefix: &str) -> Keys {
        let prefix = format!("{key_prefix}{STATE_VERSION}|{{records}}|");
        Keys { index: format!("{prefix}index"), feed: format!("{prefix}feed"), prefix }
    }

    fn record(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl RedisRecords {
    /// Starts to follow, in the current runtime, until the last clone is dropped. Redis need not be there yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(connector: &Connector, subscriber: Arc<dyn Subscriber>) -> RedisRecords {
        let keys = Arc::new(Keys::new(&connector.settings.key_prefix));
        let (status, seen) = watch::channel(Status::default());
        let wanted = Arc::new(Notify::new());
        let (connector, wanted_too) = (connector.clone(), wanted.clone());
        tokio::spawn(Follower { connector, keys: keys.clone(), subscriber, status, wanted: wanted_too }.run());
        RedisRecords { keys, status: seen, wanted }
    }

    /// Waits, however long it takes, until all records are known.
    pub async fn loaded(&self) {
        let mut status = self.status.clone();
        // An error would mean that the task has ended, which it does not before the last clone is dropped.
        drop(status.wait_for(|status| status.position.is_some()).await);
    }

    /// When this process was last seen to know all records, and how often following them has failed.
    pub fn synced(&self) -> (Option<SystemTime>, u64) {
        let status = self.status.borrow();
        (status.synced, status.failures)
    }

    /// The connection that the feed is followed over, once there is one; or why the next attempt to make one failed.
    pub(super) async fn link(&self, deadline: Instant) -> Result<Link, StoreError> {
        let mut status = self.status.clone();
        let failures = status.borrow().failures;
        if status.borrow().link.is_none() {
            self.wanted.notify_one();
        }
        let is_settled = |status: &Status| status.link.is_some() || status.failures > failures;
        // Nothing can be told of a wait that ended without news.
        drop(timeout_at(deadline, status.wait_for(is_settled)).await);
        let status = self.status.borrow();
        match (&status.link, &status.obstacle) {
            (Some(link), _) => Ok(link.clone()),
            (None, Some(reason)) => Err(StoreError::Unavailable(Arc::clone(reason))),
            (None, None) => Err(StoreError::Timeout),
        }
    }

    /// When one step of an operator's call has to be over that begins now.
    pub(super) fn step() -> Instant {
        Instant::now() + STEP_TIME
    }

    /// The reply has `longest` bytes at most, or as many as any reply.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd, longest: usize) -> Result<T, StoreError> {
        let deadline = RedisRecords::step();
        let mut link = self.link(deadline).await?;
        let mut asked = link.clone();
        let answer = command.query_async(asked.asking(1, longest));
        answered(&mut link, deadline, answer).await.map_err(without_answer)
    }

    pub(super) async fn ask_all<T: FromRedisValue>(&self, pipeline: &Pipeline, deadline: Instant) -> Result<T, StoreError> {
        let mut link = self.link(deadline).await?;
        let mut asked = link.clone();
        let answer = pipeline.query_async(asked.asking(pipeline.len(), 0));
        answered(&mut link, deadline, answer).await.map_err(without_answer)
    }
}

fn without_answer(error: Option<RedisError>) -> StoreError {
    error.map_or(StoreError::Timeout, |error| Failure::from(error).into())
}

/// Why a script that writes has no reply. What Redis answered with an error, it did not carry out.
fn not_written(error: Option<RedisError>) -> WriteError {
    let is_refused = error.as_ref().is_some_and(|error| error.code().is_some());
    let error = without_answer(error);
    if is_refused { WriteError::Store(error) } else { WriteError::Uncertain(error) }
}

/// `None`: no answer in time; the connection is given up.
async fn answer<T: FromRedisValue>(link: &mut Link, command: &Cmd, longest: usize) -> Result<T, Option<RedisError>> {
    let mut asked = link.clone();
    let answer = command.query_async(asked.asking(1, longest));
    answered(link, Instant::now() + BACKGROUND_TIME, answer).await
}

/// `None`: no answer by the deadline; the connection is given up.
pub(super) async fn answered<T, E>(
    link: &mut Link,
    deadline: Instant,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Option<E>> {
    match timeout_at(deadline, answer).await {
        Ok(answered) => answered.map_err(Some),
        Err(_) => {
            link.give_up();
            Err(None)
        }
    }
}

/// Names in order, from the first that begins with `prefix` and comes after `after`.
fn page(keys: &Keys, prefix: &str, after: &[u8], count: usize) -> Cmd {
    let min = match (prefix, after) {
        ("", b"") => b"-".to_vec(),
        (prefix, after) if after < prefix.as_bytes() => [b"[", prefix.as_bytes()].concat(),
        (_, after) => [b"(", after].concat(),
    };
    let mut command = bounded("ZRANGEBYLEX", &[&keys.index], MAX_NAME);
    command.arg(min);
    // Names are UTF-8, which has no byte 0xff.
    match prefix {
        "" => command.arg("+"),
        prefix => command.arg([b"[", prefix.as_bytes(), b"\xff"].concat()),
    };
    command.arg("LIMIT").arg(0).arg(count);
    command
}

/// A page of names as it was read: those that can be one of ours, and after what the next page begins.
struct Names {
    named: Vec<String>,
    after: Vec<u8>,
    others: usize,
}

impl Names {
    fn new(read: Vec<Vec<u8>>) -> Names {
        let mut after = read.last().cloned().unwrap_or_default();
        if after.len() > MAX_NAME {
            // Behind every name that begins like this.
            after.push(0xff);
        }
        let count = read.len();
        let readable = read.into_iter().filter(|name| name.len() <= MAX_NAME);
        let named: Vec<String> = readable.filter_map(|name| String::from_utf8(name).ok()).collect();
        Names { others: count - named.len(), named, after }
    }
}

/// Of [`MAX_TEXTS`] names at most.
fn texts(keys: &Keys, names: &[String]) -> Cmd {
    bounded("MGET", &names.iter().map(|name| keys.record(name)).collect::<Vec<_>>(), MAX_TEXT)
}

/// A text that may be one of ours.
fn text(found: Option<Vec<u8>>) -> Option<Vec<u8>> {
    found.filter(|text| text.len() <= MAX_TEXT)
}

impl RecordStore for RedisRecords {
    fn are_known(&self) -> bool {
        self.status.borrow().position.is_some()
    }

    async fn read(&self, name: &RecordName) -> Result<Option<String>, StoreError> {
        let command = bounded("GET", &[self.keys.record(&name.text())], MAX_TEXT);
        let found = self.ask(&command, TEXTS_REPLY).await?;
        Ok(text(found).map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    async fn list(&self, prefix: &str, after: &str, count: usize) -> Result<Page, StoreError> {
        let count = count.min(MAX_PAGE);
        let read = self.ask(&page(&self.keys, prefix, after.as_bytes(), count), NAMES_REPLY).await?;
        let Names { named, others, .. } = Names::new(read);
        let mut records = Vec::with_capacity(named.len());
        for names in named.chunks(MAX_TEXTS) {
            let found: Vec<Option<Vec<u8>>> = self.ask(&texts(&self.keys, names), TEXTS_REPLY).await?;
            let found = found.into_iter().map(|found| text(found).map(|text| String::from_utf8_lossy(&text).into_owned()));
            records.extend(names.iter().cloned().zip(found));
        }
        Ok(Page::new(records, count - others.min(count)))
    }

    async fn write(&self, changes: &[Change]) -> Result<(), WriteError> {
        if changes.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = changes.iter().map(|change| change.name.text()).collect();
        let mut command = cmd("EVAL");
        command.arg(include_str!("lua/record.lua")).arg(2 + changes.len()).arg(&self.keys.index).arg(&self.keys.feed);
        command.arg(names.iter().map(|name| self.keys.record(name)).collect::<Vec<_>>());
        command.arg(MAX_RECORDS).arg(FEED_LENGTH);
        let written = |text: &Option<String>| text.as_ref().map_or_else(|| "-".to_owned(), |text| format!("={text}"));
        for (name, change) in names.iter().zip(changes) {
            let expected = match &change.expected {
                Expected::Anything => "*".to_owned(),
                Expected::Exactly(text) => written(text),
            };
            command.arg(name).arg(expected).arg(written(&change.next));
        }
        let deadline = RedisRecords::step();
        let mut link = self.link(deadline).await?;
        let mut asked = link.clone();
        let reply = answered(&mut link, deadline, command.query_async(asked.asking(1, 0))).await;
        let reply: String = reply.map_err(not_written)?;
        match (&*reply, Position::parse(&reply)) {
            ("conflict", _) => Err(WriteError::Conflict),
            ("full", _) => Err(WriteError::Full),
            (_, Some(position)) => {
                self.wanted.notify_one();
                let mut status = self.status.clone();
                // It is written whether or not this process hears of it in time.
                drop(timeout(ECHO, status.wait_for(|status| status.position.is_some_and(|seen| seen.has_seen(position)))).await);
                Ok(())
            }
            _ => Err(WriteError::Store(unavailable(STRANGE))),
        }
    }
}
