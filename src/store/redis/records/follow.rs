//! Following the records in Redis: load all of them, then what changes, several times a second. Whoever falls behind the feed, or
//! finds another one (data was lost, or a replica took over), loads everything anew. While Redis is away, the last known stands.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deadpool::managed::Object;
use deadpool_redis::redis::{Pipeline, RedisError};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{BACKGROUND_TIME, Keys, Names, answer, answered, page, text, texts};
use crate::limit::{MAX_EXACT, Micros, SECOND};
use crate::store::Clock;
use crate::store::outage::kind;
use crate::store::records::{MAX_PAGE, MAX_RECORDS, MAX_TEXT, Record, RecordName, Subscriber, readable};
use crate::store::redis::CLOSED;
use crate::store::redis::bounded::{MAX_NAME, MAX_TEXTS, NAMES_REPLY, TEXTS_REPLY, bounded};
use crate::store::redis::connect::{Connector, Link, Pauses};
use crate::store::redis::failure::Failure;

/// How often the feed is looked at: a change is in effect everywhere within this and a round trip.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest id of a change, in bytes.
const MAX_ID: usize = 64;

/// A place in the feed: its beginning, in ms since the epoch, and how many changes there were since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    beginning: u64,
    number: u64,
}

impl Position {
    /// Before the first change ever.
    const NONE: Position = Position { beginning: 0, number: 0 };

    pub(super) fn parse(id: &str) -> Option<Position> {
        let (beginning, number) = id.split_once('-')?;
        Some(Position { beginning: beginning.parse().ok()?, number: number.parse().ok()? })
    }

    /// A later feed has been loaded whole.
    pub(super) fn has_seen(self, other: Position) -> bool {
        self >= other
    }

    /// `None` after the last that there can be.
    fn next(self) -> Option<Position> {
        Some(Position { number: self.number.checked_add(1)?, ..self })
    }

    fn id(self) -> String {
        format!("{}-{}", self.beginning, self.number)
    }
}

/// How far the task has come.
#[derive(Clone, Default)]
pub(super) struct Status {
    pub(super) link: Option<Link>,
    /// Why there is no connection.
    pub(super) obstacle: Option<Arc<str>>,
    /// When that was last seen to be all that there is.
    pub(super) synced: Option<SystemTime>,
    /// Times that a connection for it failed, or was lost.
    pub(super) failures: u64,
    /// What the subscriber knows; `None` before everything was loaded once.
    pub(super) position: Option<Position>,
}

pub(super) struct Follower {
    pub(super) connector: Connector,
    pub(super) keys: Arc<Keys>,
    pub(super) subscriber: Arc<dyn Subscriber>,
    pub(super) status: watch::Sender<Status>,
    /// Someone waits for a connection, or for news.
    pub(super) wanted: Arc<Notify>,
}

type Answered<T> = Result<T, Option<RedisError>>;
/// Ids, and fields with their values in turn.
type Entries = Vec<(String, Vec<Vec<u8>>)>;

impl Follower {
    /// Until nobody asks any more.
    pub(super) async fn run(self) {
        let status = self.status.clone();
        tokio::select! {
            () = status.closed() => {}
            () = self.follow_forever() => {}
        }
    }

    async fn follow_forever(&self) {
        let mut part = self.connector.outage().part();
        let (mut pauses, mut logged) = (Pauses::default(), None);
        loop {
            match self.connector.connect().await {
                Ok(object) => {
                    let link = Link::clone(&object);
                    self.status.send_modify(|status| (status.link, status.obstacle) = (Some(link.clone()), None));
                    part.back();
                    let (has_loaded, failure) = self.follow(link).await;
                    if has_loaded {
                        (pauses, logged) = (Pauses::default(), None);
                    }
                    if failure.is_lost || failure.is_refusal {
                        failure.tell(&mut part);
                    } else if logged.as_deref().is_none_or(|logged| kind(logged) != kind(&failure.reason)) {
                        // Not for each attempt, but for each kind of reason.
                        let reason = &*failure.reason;
                        tracing::warn!(reason, "lost the feed of overrides; weir uses the last known ones and tries again");
                        logged = Some(Arc::clone(&failure.reason));
                    }
                    drop(Object::take(object));
                    self.has_failed(failure.reason);
                }
                Err(failure) => {
                    failure.tell(&mut part);
                    self.has_failed(failure.reason);
                }
            }
            tokio::select! { () = sleep(pauses.next()) => {}, () = self.wanted.notified() => {} }
        }
    }

    fn has_failed(&self, reason: Arc<str>) {
        self.status.send_modify(|status| {
            (status.link, status.obstacle) = (None, Some(reason));
            status.failures += 1;
        });
    }

    /// Until the connection is of no more use; says whether it was of any, and why not any more.
    async fn follow(&self, mut link: Link) -> (bool, Failure) {
        match self.load(&mut link).await {
            Ok(position) => (true, self.follow_from(position, link).await),
            Err(error) => (false, failure(error)),
        }
    }

    async fn follow_from(&self, mut position: Position, mut link: Link) -> Failure {
        let mut every = interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = link.lost();
        loop {
            self.status.send_if_modified(|status| {
                status.synced = Some(SystemTime::now());
                status.position.replace(position) != Some(position)
            });
            tokio::select! {
                _ = lost.wait_for(|&lost| lost) => return Failure::lost(CLOSED),
                _ = every.tick() => {}
                () = self.wanted.notified() => {}
            }
            position = match self.look(&mut link, position).await {
                Ok(ControlFlow::Continue(position)) => position,
                Ok(ControlFlow::Break(())) => match self.load(&mut link).await {
                    Ok(position) => position,
                    Err(error) => return failure(error),
                },
                Err(error) => return failure(error),
            };
        }
    }

    /// Where the feed ends. What time it is there is asked at once: blocks and exemptions end by that clock.
    async fn end(&self, link: &mut Link) -> Answered<Position> {
        let mut calls = Pipeline::new();
        let mut last = bounded("XREVRANGE", &[&self.keys.feed], MAX_ID);
        last.arg("+").arg("-").arg("COUNT").arg(1);
        calls.add_command(last).cmd("TIME");
        let mut asked = link.clone();
        let connection = asked.asking(2, 0);
        let before = Clock::System.now();
        let deadline = Instant::now() + BACKGROUND_TIME;
        let answer = answered(link, deadline, calls.query_async(connection));
        let (last, (seconds, micros)): (Entries, (Micros, Micros)) = answer.await?;
        let store = seconds.saturating_mul(SECOND).saturating_add(micros);
        // Beyond this nothing counts; see `limit::MAX_EXACT`.
        if store < MAX_EXACT {
            self.subscriber.clock_was_read(before, store, Clock::System.now());
        }
        Ok(last.first().and_then(|(id, _)| Position::parse(id)).unwrap_or(Position::NONE))
    }

    /// Tells the subscriber everything there is. What changes while it is loaded is in the feed after the position returned.
    async fn load(&self, link: &mut Link) -> Answered<Position> {
        let position = self.end(link).await?;
        let mut records: Vec<(RecordName, Record)> = Vec::new();
        let (mut after, mut others) = (Vec::new(), 0);
        while records.len() + others < MAX_RECORDS {
            let read: Vec<Vec<u8>> = answer(link, &page(&self.keys, "", &after, MAX_PAGE), NAMES_REPLY).await?;
            let names = Names::new(read);
            // A page that does not go on would come for ever.
            if names.after <= after {
                break;
            }
            after = names.after;
            others += names.others;
            for names in names.named.chunks(MAX_TEXTS) {
                let found: Vec<Option<Vec<u8>>> = answer(link, &texts(&self.keys, names), TEXTS_REPLY).await?;
                let found: Vec<Option<Vec<u8>>> = found.into_iter().map(text).collect();
                let named = names.iter().zip(&found).filter_map(|(name, text)| Some((Cow::from(&**name), lossy(text.as_ref()?))));
                records.extend(readable(named));
            }
        }
        // Loaded anew after an outage: the line that tells of its end is enough.
        if self.status.borrow().position.is_none() {
            tracing::info!(records = records.len(), "overrides, tiers and switches are loaded");
        }
        self.subscriber.replaced(records);
        Ok(position)
    }

    /// Tells the subscriber what came after `position`; `Break`: this cannot be known.
    async fn look(&self, link: &mut Link, mut position: Position) -> Answered<ControlFlow<(), Position>> {
        let end = self.end(link).await?;
        if end.beginning != position.beginning || end < position {
            return Ok(if end == position { ControlFlow::Continue(position) } else { ControlFlow::Break(()) });
        }
        while position < end {
            let Some(from) = position.next() else { return Ok(ControlFlow::Break(())) };
            // What stands before a text, and the text.
            let mut command = bounded("XRANGE", &[&self.keys.feed], MAX_TEXT + 1);
            command.arg(from.id()).arg("+").arg("COUNT").arg(MAX_TEXTS);
            let entries: Entries = answer(link, &command, TEXTS_REPLY).await?;
            let mut changes = Vec::with_capacity(entries.len());
            for (id, fields) in &entries {
                let next = position.next();
                let Some(next) = next.filter(|_| Position::parse(id) == next) else { return Ok(ControlFlow::Break(())) };
                position = next;
                changes.extend(change(fields));
            }
            if entries.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            self.subscriber.changed(changes);
        }
        Ok(ControlFlow::Continue(position))
    }
}

fn failure(error: Option<RedisError>) -> Failure {
    error.map_or_else(|| Failure::lost("no answer in time"), Failure::from)
}

fn lossy(text: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(text)
}

/// `name`, the name, `next`, what it is from now on. What cannot be read counts as none.
fn change(fields: &[Vec<u8>]) -> Option<(RecordName, Option<Record>)> {
    let [_, name, _, next] = fields else { return None };
    if name.len() > MAX_NAME || next.len() > MAX_TEXT + 1 {
        return None;
    }
    let name = lossy(name);
    let parsed = RecordName::parse(&name)?;
    let text = next.strip_prefix(b"=").map(|text| (name, lossy(text)));
    Some((parsed, readable(text.into_iter()).pop().map(|(_, record)| record)))
}
