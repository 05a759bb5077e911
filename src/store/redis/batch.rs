//! The lane to Redis: one connection, one batch in flight. What arrives while a call is under way queues and goes out as the
//! next call, so batches grow with load and nobody waits for a timer.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool::managed::Object;
use deadpool_redis::redis::{Cmd, ServerErrorKind, Value};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connect::{Connector, Dialer, Link, Pauses};
use super::failure::Failure;
use super::wire::{self, Encoded, Listing};
use super::{CLOSED, STRANGE, script, unavailable};
use crate::store::outage::Part;
use crate::store::{Clock, Outcomes, StoreError, Wait};

/// Requests in the channel, and as many again that were taken off it, wait for the call under way; more than 10 ms of them at full
/// speed.
pub(super) const MAX_QUEUED: usize = 2_048;
/// Requests of one call: a larger batch saves Redis little and makes everyone wait for the last.
const MAX_BATCH: usize = 64;
/// Checks of one call, unless a single request has more.
const MAX_BATCH_CHECKS: usize = 512;
/// What Redis moves for one call ([`Encoded::weight`]), in bytes, unless a single request moves more: it
/// serves nobody else meanwhile. A log of 320 KB, full of debt, takes it about 5 ms; sixty-four of them in
/// one call took 350 ms.
const MAX_BATCH_BYTES: u64 = 512 << 10;

/// What stands around a reply, in bytes.
const REPLY_FRAME: usize = 64;
/// How long after the loss of a connection requests wait while new ones are closed as they are made.
const PATIENT_FOR: Duration = Duration::from_secs(1);
/// Between attempts in that time.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

/// A request in the queue. It outlives its caller, who may have stopped waiting.
pub(super) struct Request {
    pub(super) encoded: Encoded,
    pub(super) wait: Wait,
    /// `None` once it is answered.
    pub(super) respond: Option<oneshot::Sender<Result<Outcomes, StoreError>>>,
}

impl Request {
    fn is_wanted(&self, now: Instant) -> bool {
        self.wait.deadline > now && self.respond.as_ref().is_some_and(|respond| !respond.is_closed())
    }

    fn answer(&mut self, answer: Result<Outcomes, StoreError>) {
        if let Some(respond) = self.respond.take() {
            // Nobody is there any more: nothing to do.
            drop(respond.send(answer));
        }
    }

    /// Answers it if its deadline has passed.
    fn expire(&mut self, now: Instant, last_reply: &LastReply) {
        if self.wait.deadline <= now {
            self.answer(Err(last_reply.why_none(self.wait.asked)));
        }
    }
}

/// When Redis last answered a call over the lane's connection.
pub(super) struct LastReply {
    start: Instant,
    /// In ns after the start; 0 before the first one.
    after: AtomicU64,
}

impl LastReply {
    pub(super) fn new() -> LastReply {
        LastReply { start: Instant::now(), after: AtomicU64::new(0) }
    }

    fn has_come(&self) {
        self.after.store(self.since_start(Instant::now()).max(1), Ordering::Relaxed);
    }

    fn forget(&self) {
        self.after.store(0, Ordering::Relaxed);
    }

    /// Why there is no answer in time to who asked then. While others are answered, they are what it waits for: even if it was sent
    /// in the end, the store had not its whole time for it.
    pub(super) fn why_none(&self, asked: Instant) -> StoreError {
        let is_answering = self.after.load(Ordering::Relaxed) > self.since_start(asked);
        if is_answering { StoreError::Busy } else { StoreError::Timeout }
    }

    fn since_start(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Whether the lane has a connection.
#[derive(Clone)]
pub(super) enum Status {
    /// The first attempt, or the first after a connection was lost: requests wait for it.
    Connecting,
    Ready(Link),
    /// The last attempt failed: requests fail at once.
    Down(Arc<str>),
}

/// One lane's work, as a task. It answers requests when their deadline passes, in the order they came in, so that they need no
/// timers of their own unless they have less patience than those before them.
pub(super) struct Lane {
    pub(super) queue: mpsc::Receiver<Request>,
    /// Taken off the queue, and not yet sent.
    pub(super) waiting: VecDeque<Request>,
    /// The call under way.
    pub(super) batch: Vec<Request>,
    pub(super) connector: Connector,
    pub(super) clock: Clock,
    pub(super) status: watch::Sender<Status>,
    /// Someone asks for a connection: no reason to pause any longer.
    pub(super) wanted: Arc<Notify>,
    pub(super) last_reply: Arc<LastReply>,
    /// What this lane tells the log.
    pub(super) part: Part,
}

impl Lane {
    /// Until the store is dropped.
    pub(super) async fn run(mut self) {
        let mut was_connected = false;
        while let ControlFlow::Continue(link) = self.connect(was_connected).await {
            was_connected = true;
            self.status.send_replace(Status::Ready(Link::clone(&link)));
            self.part.back();
            let given_up = self.serve(&link).await;
            self.status.send_replace(Status::Connecting);
            self.last_reply.forget();
            // Closes it, once nobody else uses it.
            drop(Object::take(link));
            let ControlFlow::Continue(Failure { reason, is_refusal, .. }) = given_up else { return };
            // The breaker logs that the server refuses what it is asked; it still takes connections.
            if !is_refusal {
                self.part.lost(&reason);
            }
        }
    }

    /// Attempts until there is a connection, or no store any more.
    async fn connect(&mut self, was_connected: bool) -> ControlFlow<(), Object<Dialer>> {
        let patient_until = was_connected.then(|| Instant::now() + PATIENT_FOR);
        let mut down: Option<Arc<str>> = None;
        let mut pauses = Pauses::default();
        loop {
            let connector = self.connector.clone();
            match self.attend(connector.connect(), down.as_ref()).await? {
                Ok(link) => return ControlFlow::Continue(link),
                Err(failure) if failure.is_closed && patient_until.is_some_and(|until| Instant::now() < until) => {
                    self.attend(sleep(SHORT_PAUSE), None).await?;
                    continue;
                }
                Err(failure) => {
                    failure.tell(&mut self.part);
                    self.status.send_replace(Status::Down(Arc::clone(&failure.reason)));
                    down = Some(failure.reason);
                }
            }
            let wanted = Arc::clone(&self.wanted);
            let pause = pauses.next();
            let rest = async {
                tokio::select! { () = sleep(pause) => (), () = wanted.notified() => () }
            };
            self.attend(rest, down.as_ref()).await?;
        }
    }

    /// Waits for `future`, and meanwhile answers those whose deadline passes. While `down` says why there is no connection, all get
    /// that for an answer. Breaks when there is no store any more.
    async fn attend<T>(&mut self, future: impl Future<Output = T>, down: Option<&Arc<str>>) -> ControlFlow<(), T> {
        let mut future = pin!(future);
        if let Some(reason) = down {
            self.waiting.drain(..).for_each(|mut request| request.answer(Err(unavailable(reason))));
        }
        loop {
            let unanswered = self.batch.iter().filter(|request| request.respond.is_some());
            let next = unanswered.chain(self.waiting.front()).map(|request| request.wait.deadline).min();
            let overdue = async {
                if let Some(next) = next {
                    sleep_until(next).await
                }
            };
            tokio::select! {
                biased;
                done = &mut future => return ControlFlow::Continue(done),
                () = overdue, if next.is_some() => self.expire(),
                request = self.queue.recv(), if next.is_none() => match (request, down) {
                    // Each of them a failure of its own, which the breaker counts.
                    (Some(mut request), Some(reason)) => request.answer(Err(unavailable(reason))),
                    (Some(request), None) => self.waiting.push_back(request),
                    (None, _) => return ControlFlow::Break(()),
                },
            }
        }
    }

    /// Answers all whose deadline has passed.
    fn expire(&mut self) {
        let now = Instant::now();
        self.batch.iter_mut().for_each(|request| request.expire(now, &self.last_reply));
        while self.waiting.len() < MAX_QUEUED
            && let Ok(request) = self.queue.try_recv()
        {
            self.waiting.push_back(request);
        }
        self.waiting.iter_mut().for_each(|request| request.expire(now, &self.last_reply));
        self.waiting.retain(|request| request.respond.is_some());
    }

    /// Sends batch after batch until the connection is of no more use (and why), or no store is left.
    async fn serve(&mut self, link: &Link) -> ControlFlow<(), Failure> {
        let mut lost = link.lost();
        loop {
            if *lost.borrow() {
                return ControlFlow::Continue(Failure::lost(CLOSED));
            }
            if self.waiting.is_empty() {
                let first = tokio::select! {
                    biased;
                    _ = lost.wait_for(|&lost| lost) => return ControlFlow::Continue(Failure::lost(CLOSED)),
                    first = self.queue.recv() => first,
                };
                let Some(first) = first else { return ControlFlow::Break(()) };
                self.waiting.push_back(first);
            }
            // Whoever is ready to run may have a request too.
            yield_now().await;
            let now = Instant::now();
            self.fill(now);
            if self.batch.is_empty() {
                continue;
            }
            let Connector { listed, settings, .. } = &self.connector;
            let requests = self.batch.iter().map(|request| &request.encoded);
            let listings = listed.listings(requests.clone(), &settings.key_prefix, now);
            let command = wire::call(requests, &listings, self.clock.injected());
            let length = self.batch.iter().map(|request| wire::answer_length(&request.encoded)).sum::<usize>() + listings.len();
            let sent_before = link.sent();
            let mut asked = link.clone();
            let call = timeout(settings.store_timeout, evaluate(&mut asked, &command, length));
            let Ok(reply) = (match self.attend(call, None).await {
                ControlFlow::Continue(reply) => reply,
                ControlFlow::Break(()) => return ControlFlow::Break(()),
            }) else {
                self.fail_all(&StoreError::Timeout);
                return ControlFlow::Continue(Failure::lost("a call got no answer in time"));
            };
            match reply {
                Ok(reply) => {
                    self.last_reply.has_come();
                    self.answer_all(&reply, &listings);
                }
                // The connection was gone before: they wait for the next one.
                Err(failure) if failure.is_lost && link.sent() == sent_before => {
                    self.batch.drain(..).rev().for_each(|request| self.waiting.push_front(request));
                    return ControlFlow::Continue(failure);
                }
                Err(failure) => {
                    self.fail_all(&StoreError::from(&failure));
                    if failure.is_lost {
                        return ControlFlow::Continue(failure);
                    }
                }
            }
        }
    }

    /// Takes what goes out together. Requests that nobody waits for are left out: they are never counted.
    fn fill(&mut self, now: Instant) {
        let (mut checks, mut bytes) = (0, 0);
        while self.batch.len() < MAX_BATCH
            && checks < MAX_BATCH_CHECKS
            && let Some(mut request) = self.waiting.pop_front().or_else(|| self.queue.try_recv().ok())
        {
            if !request.is_wanted(now) {
                request.answer(Err(self.last_reply.why_none(request.wait.asked)));
                continue;
            }
            bytes += request.encoded.weight();
            if bytes > MAX_BATCH_BYTES && !self.batch.is_empty() {
                // The first of the next call.
                self.waiting.push_front(request);
                break;
            }
            checks += request.encoded.checks();
            self.batch.push(request);
        }
    }

    fn answer_all(&mut self, mut reply: &[u8], listings: &[Listing]) {
        let answers: usize = self.batch.iter().map(|request| wire::answer_length(&request.encoded)).sum();
        let were_listed = reply.get(answers..).unwrap_or_default();
        for (listing, _) in listings.iter().zip(were_listed).filter(|(_, was_listed)| **was_listed == 1) {
            self.connector.listed.remember(listing.mark);
        }
        for mut request in self.batch.drain(..) {
            let answer = wire::take_answer(&mut reply, &request.encoded);
            request.answer(answer.unwrap_or_else(|| Err(unavailable(STRANGE))));
        }
    }

    fn fail_all(&mut self, error: &StoreError) {
        for mut request in self.batch.drain(..) {
            request.answer(Err(error.clone()));
        }
    }
}

/// Runs the script, whose reply has so many bytes. A server that does not know it ran nothing: it is told it for the next calls, and
/// sent the script itself with this one, which others who flush scripts then cannot fail. (Redis 7.4 forgets what EVAL alone brought.)
pub(super) async fn evaluate(link: &mut Link, command: &Cmd, length: usize) -> Result<Vec<u8>, Failure> {
    let longest = length + REPLY_FRAME;
    let mut reply = link.asking(1, longest).send_packed_command(command).await?;
    if matches!(&reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript)) {
        script::load(link.asking(1, 0)).await?;
        let whole = script::with_source(command);
        reply = link.asking(1, longest).send_packed_command(&whole).await?;
    }
    match reply.extract_error()? {
        Value::BulkString(reply) if reply.len() == length => Ok(reply),
        // Perhaps that of another call: the connection cannot be trusted any more.
        _ => Err(Failure::lost(STRANGE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_while_others_are_answered_says_nothing_of_the_store() {
        let last_reply = LastReply::new();
        let asked = Instant::now();
        let is_busy = || matches!(last_reply.why_none(asked), StoreError::Busy);
        assert!(!is_busy(), "nobody was answered yet");
        while Instant::now() == asked {}
        last_reply.has_come();
        assert!(is_busy());
        assert!(matches!(last_reply.why_none(Instant::now()), StoreError::Timeout), "nobody was answered since");
        last_reply.forget();
        assert!(!is_busy(), "what came over another connection");
    }
}
