//! The loading itself: threads with a current-thread runtime each, connections of plain HTTP/2 frames (`h2`), and on each
//! connection as many slots as calls may be in flight. A slot makes one call after the other.
//!
//! Latency is counted for calls that were due in the measured time, from the moment they were due: in a closed loop that is when
//! they are sent, in an open loop it does not move when the service is slow. Answers are counted when they come.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::answer::decision;
use super::requests::{Random, Requests};
use super::tally::{Answer, Tally};

const METHOD_PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// How long answers are waited for after the end.
const DRAIN: Duration = Duration::from_secs(2);
/// The pause before a connection that broke is made anew.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Timers are exact to a millisecond; what is due sooner is waited for by looking at the clock.
const TIMER_GRAIN: Duration = Duration::from_millis(2);
/// Flow-control windows large enough that answers seldom need a window update.
const WINDOW: u32 = 8 << 20;
/// What stands before a gRPC message.
const PREFIX: usize = 5;

/// What to load, and how hard.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    pub authority: String,
    pub connections: usize,
    pub in_flight: usize,
    pub threads: usize,
    /// Calls a second over all threads; `None` is a closed loop.
    pub rate: Option<f64>,
    pub timeout: Option<Duration>,
    pub requests: Requests,
}

/// When to load and when to measure.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub begin: Instant,
    pub measured_from: Instant,
    pub end: Instant,
}

/// Threads at work. Each stays until its CPU time has been read: what a thread used cannot be seen once it is gone.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<Result<Tally>>>,
    /// Dropped to let the threads go.
    held: mpsc::Sender<()>,
}

impl Load {
    /// Starts all threads. They end by themselves, at the latest a little after the schedule's end.
    pub fn start(&self, schedule: Schedule) -> Result<Running> {
        let head = self.head()?;
        let (held, hold) = mpsc::channel::<()>();
        let hold = Arc::new(Mutex::new(hold));
        let threads = (0..self.threads).map(|number| {
            let connections = self.connections / self.threads + usize::from(number < self.connections % self.threads);
            let worker = Worker {
                load: self.clone(),
                schedule,
                head: head.clone(),
                pace: self.rate.map(|rate| Pace::new(rate / self.threads as f64, schedule)),
                tally: Mutex::new(Tally::default()),
            };
            let name = format!("load-{number}");
            let hold = hold.clone();
            let run = move || {
                let tally = worker.run(connections, number as u64);
                // An error is what is waited for: the other end was dropped.
                let _ = hold.lock().recv();
                tally
            };
            Ok(std::thread::Builder::new().name(name).spawn(run)?)
        });
        Ok(Running { threads: threads.collect::<Result<_>>()?, held })
    }

    fn head(&self) -> Result<Request<()>> {
        let mut head = Request::post(format!("http://{}{METHOD_PATH}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = self.timeout {
            head = head.header("grpc-timeout", format!("{}u", timeout.as_micros()));
        }
        head.body(()).with_context(|| format!("{} cannot stand in a request", self.authority))
    }
}

impl Running {
    /// Waits for all threads.
    pub fn finish(self) -> Result<Tally> {
        drop(self.held);
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().map_err(|_| anyhow::anyhow!("a loading thread panicked"))??;
            sum.add(&tally);
        }
        Ok(sum)
    }
}

/// Calls at fixed intervals, due whether or not there is a slot for them.
#[derive(Debug)]
struct Pace {
    begin: Instant,
    interval: f64,
    /// One for each call that is due and not yet taken; closed at the end.
    due: Semaphore,
    taken: AtomicU64,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // counts far below 2^53
impl Pace {
    fn new(rate: f64, schedule: Schedule) -> Pace {
        Pace { begin: schedule.begin, interval: 1.0 / rate, due: Semaphore::new(0), taken: AtomicU64::new(0) }
    }

    fn time_of(&self, number: u64) -> Instant {
        self.begin + Duration::from_secs_f64(number as f64 * self.interval)
    }

    /// How many calls are due before an instant.
    fn due_before(&self, instant: Instant) -> u64 {
        (instant.saturating_duration_since(self.begin).as_secs_f64() / self.interval).ceil() as u64
    }

    async fn next(&self, end: Instant) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        if Instant::now() >= end {
            return None;
        }
        Some(self.time_of(self.taken.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes calls due as their time comes, until the end.
    async fn keep(&self, end: Instant) {
        let mut made_due = 0;
        loop {
            let now = Instant::now();
            let due = self.due_before(now.min(end));
            self.due.add_permits((due - made_due) as usize);
            made_due = due;
            if now >= end {
                return self.due.close();
            }
            let pause = self.time_of(made_due).saturating_duration_since(now);
            if pause > TIMER_GRAIN {
                tokio::time::sleep(pause - TIMER_GRAIN).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// What the slots of one thread share.
#[derive(Debug)]
struct Worker {
    load: Load,
    schedule: Schedule,
    head: Request<()>,
    pace: Option<Pace>,
    tally: Mutex<Tally>,
}

impl Worker {
    fn run(self, connections: usize, seed: u64) -> Result<Tally> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Arc::new(self);
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for number in 0..connections {
                tasks.spawn(connection(worker.clone(), (seed << 32) + number as u64));
            }
            if let Some(pace) = &worker.pace {
                pace.keep(worker.schedule.end).await;
            }
            tasks.join_all().await;
        });
        let mut tally = std::mem::take(&mut *worker.tally.lock());
        if let Some(pace) = &worker.pace {
            worker.count_unsent(pace, &mut tally);
        }
        Ok(tally)
    }

    /// Calls that were due and found no slot waited at least until the end.
    fn count_unsent(&self, pace: &Pace, tally: &mut Tally) {
        let Schedule { measured_from, end, .. } = self.schedule;
        let first = pace.taken.load(Ordering::Relaxed).max(pace.due_before(measured_from));
        for number in first..pace.due_before(end) {
            tally.unsent += 1;
            tally.record(end.saturating_duration_since(pace.time_of(number)));
        }
    }

    /// When the next call is due; `None` after the end.
    async fn next(&self) -> Option<Instant> {
        match &self.pace {
            Some(pace) => pace.next(self.schedule.end).await,
            None => Some(Instant::now()).filter(|now| *now < self.schedule.end),
        }
    }

    /// Counts a call that was due at an instant and has just come to an end.
    fn count(&self, due: Instant, result: Option<Result<Answer, h2::Error>>) {
        let Schedule { measured_from, end, .. } = self.schedule;
        let now = Instant::now();
        let mut tally = self.tally.lock();
        // A call that failed took no time that says anything about a decision.
        if (measured_from..end).contains(&due) && !matches!(result, Some(Err(_))) {
            tally.record(now - due);
        }
        match result {
            Some(Ok(answer)) if (measured_from..end).contains(&now) => tally.answer(answer),
            Some(Err(error)) if now >= measured_from => tally.error(error.to_string()),
            None => tally.unanswered += 1,
            Some(_) => {}
        }
    }
}

/// Keeps one connection open and its slots busy. A server that closes it asks for another one: what it did not take is sent there.
async fn connection(worker: Arc<Worker>, seed: u64) {
    let random = |number| Random::new((seed << 16) + number as u64);
    let mut idle: Vec<Slot> = (0..worker.load.in_flight).map(|number| Slot { random: random(number), owed: None }).collect();
    while Instant::now() < worker.schedule.end {
        match connect(&worker.load).await {
            Ok((sender, driver)) => {
                let closing = Arc::new(watch::Sender::new(false));
                let driver = tokio::spawn({
                    let closing = closing.clone();
                    async move {
                        driver.await;
                        closing.send_replace(true);
                    }
                });
                let mut slots = JoinSet::new();
                for slot in idle.drain(..) {
                    slots.spawn(slot.run(worker.clone(), sender.clone(), closing.clone()));
                }
                idle = slots.join_all().await;
                driver.abort();
            }
            Err(error) => {
                worker.tally.lock().error(format!("connecting: {error:#}"));
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }
}

async fn connect(load: &Load) -> Result<(SendRequest<Bytes>, impl Future<Output = ()> + use<>)> {
    let stream = TcpStream::connect(load.target).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
    let (sender, connection) = builder.handshake(stream).await?;
    // How a connection ended is seen by the calls on it.
    let driver = async move {
        let _ = connection.await;
    };
    Ok((sender, driver))
}

/// Makes one call after the other.
struct Slot {
    random: Random,
    /// A call that the last connection did not take: when it was due, and what it asks.
    owed: Option<(Instant, Bytes)>,
}

impl Slot {
    /// Calls until the end, or until the connection takes no more calls.
    async fn run(mut self, worker: Arc<Worker>, sender: SendRequest<Bytes>, closing: Arc<watch::Sender<bool>>) -> Slot {
        let patience = Duration::from_secs_f64((worker.schedule.end + DRAIN - Instant::now()).as_secs_f64());
        let mut deadline = pin!(tokio::time::sleep(patience));
        let mut sender = sender;
        let mut is_closing = closing.subscribe();
        loop {
            let Ok(ready) = sender.ready().await else { return self };
            sender = ready;
            let (due, message) = match self.owed.take() {
                Some(owed) => owed,
                None => {
                    let due = tokio::select! {
                        biased;
                        due = worker.next() => due,
                        _ = is_closing.wait_for(|is_closing| *is_closing) => None,
                    };
                    let Some(due) = due else { return self };
                    (due, worker.load.requests.draw(&mut self.random))
                }
            };
            let result = call(&mut sender, worker.head.clone(), message.clone(), deadline.as_mut()).await;
            if let Some(Err(error)) = &result
                && error.is_go_away()
                && error.reason() == Some(Reason::NO_ERROR)
            {
                closing.send_replace(true);
                self.owed = Some((due, message));
                return self;
            }
            let is_last = result.is_none();
            worker.count(due, result);
            if is_last {
                return self;
            }
        }
    }
}

/// One call; `None` if the deadline comes first.
async fn call(
    sender: &mut SendRequest<Bytes>,
    head: Request<()>,
    message: Bytes,
    deadline: Pin<&mut Sleep>,
) -> Option<Result<Answer, h2::Error>> {
    tokio::select! {
        biased;
        answer = answer(sender, head, message) => Some(answer),
        () = deadline => None,
    }
}

async fn answer(sender: &mut SendRequest<Bytes>, head: Request<()>, message: Bytes) -> Result<Answer, h2::Error> {
    let (response, mut stream) = sender.send_request(head, false)?;
    stream.send_data(message, true)?;
    let response = response.await?;
    let mut answer = Answer::of_headers(response.status(), response.headers());
    let mut body = response.into_body();
    let mut message = Bytes::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        // Nearly every message comes in one piece.
        message = if message.is_empty() { data } else { Bytes::from([&message[..], &data].concat()) };
    }
    answer.decision = decision(message.get(PREFIX..).unwrap_or_default());
    if let Some(trailers) = body.trailers().await? {
        answer.read_status(&trailers);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_due_at_even_intervals() {
        let begin = Instant::now();
        let after = |millis| begin + Duration::from_millis(millis);
        let schedule = Schedule { begin, measured_from: after(100), end: after(200) };
        let pace = Pace::new(1_000.0, schedule);
        assert_eq!([0, 1, 100].map(|millis| pace.due_before(after(millis))), [0, 1, 100]);
        assert_eq!(pace.time_of(150), after(150));
    }
}
