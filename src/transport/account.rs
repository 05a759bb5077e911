//! What one connection holds: its open calls, who each of them waits for, and when it was last of use. Everything of a connection
//! runs on one thread, which alone writes these numbers; other threads read them to find the connection that has to go.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::open;
use crate::telemetry::connections::Connections;

/// How long an answer may wait for a peer that takes nothing of it.
pub const MAX_UNREAD: Duration = Duration::from_secs(10);
/// Between two looks at what connections hold.
pub(super) const TICK: Duration = Duration::from_secs(2);
/// Bytes that a peer must take in [`MAX_UNREAD`] while it has an old answer to take.
const PROGRESS: u64 = 64 << 10;
/// [`MAX_UNREAD`] in ticks.
const OLD: u32 = 5;
/// How many ticks answers are told apart by; older ones are taken for younger, which only delays the end.
const AGES: usize = 32;
/// The flow-control window of a stream and of a connection, before the peer says otherwise (RFC 9113, 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;
/// From so many bytes on an answer is counted by its length.
const LONG: u32 = 2 << 10;
/// What one answer counts at most, in bytes: an export of tens of MB is one answer on its connection.
const MAX_HELD: u32 = 1 << 20;
/// What the other answers of a connection hold, in bytes, when one more that finds no room ends the connection at once.
const MANY_HELD: u32 = 256 << 10;
/// Streams of one connection whose answers go on, such as health's Watch.
const MAX_LASTING: u32 = 16;

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU32);

impl Count {
    pub(super) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    pub(super) fn add(&self, amount: u32) {
        self.0.store(self.get().wrapping_add(amount), Relaxed);
    }

    pub(super) fn subtract(&self, amount: u32) {
        self.0.store(self.get().wrapping_sub(amount), Relaxed);
    }
}

/// Why weir closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    Handshake = 1,
    Idle,
    Write,
    Unread,
    ControlFrames,
    OpenCalls,
}

impl Reason {
    const ALL: [Reason; 6] =
        [Reason::Handshake, Reason::Idle, Reason::Write, Reason::Unread, Reason::ControlFrames, Reason::OpenCalls];

    pub(super) fn count(self, counts: &Connections) {
        let counter = match self {
            Reason::Handshake => &counts.handshake,
            Reason::Idle => &counts.idle,
            Reason::Write => &counts.write,
            Reason::Unread => &counts.unread,
            Reason::ControlFrames => &counts.control_frames,
            Reason::OpenCalls => &counts.open_calls,
        };
        counter.inc();
    }
}

/// An answer that goes on until its caller or weir ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// For as long as the connection: health's Watch.
    Endless,
    /// Ends by itself within twice [`MAX_UNREAD`]: reflection.
    Session,
}

/// Why a call is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Too many calls are open.
    Calls,
    /// Too many answers go on.
    Streams,
    /// The connection has a place for probes.
    ProbesOnly,
}

/// The numbers of one connection.
#[derive(Debug)]
pub struct Account {
    /// Calls whose answers have not been handed over whole.
    open: Count,
    /// Open calls that have been answered.
    answered: Count,
    /// Open calls whose requests have not come whole.
    awaiting: Count,
    /// Open calls with lasting answers.
    lasting: Count,
    /// Bytes of long answers that wait for the peer.
    held: Count,
    /// Calls made so far, modulo 2^32.
    calls: Count,
    /// Answered calls by the tick when they were.
    unread: [Count; AGES],
    /// Bytes written so far.
    written: AtomicU64,
    /// `written` at the last [`OLD`] looks.
    written_before: [AtomicU64; OLD as usize],
    /// Looks so far.
    looks: Count,
    /// Bytes read in this turn of the connection, see [`begin_turn`](Account::begin_turn).
    turn: Count,
    /// What the peer takes of a stream before it says more.
    window: AtomicU32,
    /// What the peer takes of the connection, less what it was given.
    credit: AtomicI64,
    /// Milliseconds from the start of the process, see [`now`].
    pub(super) began: u64,
    /// When the last call was last seen to begin; 0 before the first.
    active: AtomicU64,
    /// Since when a head of HTTP/1 has been coming in; 0 when none is.
    head: AtomicU64,
    reason: AtomicU8,
    close: Notify,
    /// It has a place that is kept for probes.
    pub(super) is_reserve: bool,
}

/// Milliseconds since the process first asked.
pub(super) fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(|| Instant::now() - Duration::from_millis(1));
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The tick of the last look at connections.
static NOW: AtomicU32 = AtomicU32::new(0);

/// Brings the tick up to date.
pub(super) fn tick() -> u32 {
    let tick = u32::try_from(now() / u64::try_from(TICK.as_millis()).unwrap_or(1)).unwrap_or(u32::MAX);
    NOW.store(tick, Relaxed);
    tick
}

impl Account {
    pub(super) fn new(is_reserve: bool) -> Account {
        Account {
            open: Count::default(),
            answered: Count::default(),
            awaiting: Count::default(),
            lasting: Count::default(),
            held: Count::default(),
            calls: Count::default(),
            unread: Default::default(),
            written: AtomicU64::new(0),
            written_before: Default::default(),
            looks: Count::default(),
            turn: Count::default(),
            window: AtomicU32::new(DEFAULT_WINDOW),
            credit: AtomicI64::new(i64::from(DEFAULT_WINDOW)),
            began: now(),
            active: AtomicU64::new(0),
            head: AtomicU64::new(0),
            reason: AtomicU8::new(0),
            close: Notify::new(),
            is_reserve,
        }
    }

    /// Calls made so far, modulo 2^32.
    pub(super) fn calls(&self) -> u32 {
        self.calls.get()
    }

    /// It has made a call.
    pub(super) fn has_earned(&self) -> bool {
        self.calls() != 0
    }

    /// Whether weir owes it an answer.
    pub(super) fn is_busy(&self) -> bool {
        self.open.get() > self.answered.get().saturating_add(self.awaiting.get())
    }

    /// What it holds of the room for calls that wait for their peer, to send or to take more, in bytes.
    pub(super) fn waiting_for_peer(&self) -> u32 {
        let calls = self.answered.get().saturating_add(self.awaiting.get()).saturating_sub(self.lasting.get());
        self.held.get().saturating_add(calls.saturating_mul(open::CALL_BYTES))
    }

    /// When it was last of use.
    pub(super) fn active(&self) -> u64 {
        self.active.load(Relaxed).max(self.began)
    }

    pub(super) fn touch(&self) {
        self.touch_at(now());
    }

    pub(super) fn touch_at(&self, now: u64) {
        self.active.store(now, Relaxed);
    }

    pub(super) fn head_begins(&self) {
        if self.open.get() == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(now(), Relaxed);
        }
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.store(self.written.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// The connection is polled. It may read so many bytes in all until it is polled again.
    pub(super) fn begin_turn(&self) {
        self.turn.0.store(0, Relaxed);
    }

    pub(super) fn read(&self, bytes: usize) {
        self.turn.add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Bytes read in this turn.
    pub(super) fn turn(&self) -> u32 {
        self.turn.get()
    }

    pub(super) fn awaits(&self, is_awaiting: bool) {
        if is_awaiting { self.awaiting.add(1) } else { self.awaiting.subtract(1) }
    }

    pub(super) fn set_window(&self, window: u32) {
        self.window.store(window, Relaxed);
    }

    pub(super) fn add_credit(&self, bytes: i64) {
        self.credit.store(self.credit.load(Relaxed).saturating_add(bytes), Relaxed);
    }

    /// Without windows: HTTP/1.
    pub(super) fn has_no_windows(&self) {
        self.set_window(u32::MAX);
        self.add_credit(i64::MAX / 2);
    }

    /// Whether the peer's windows may not take so many bytes at once.
    pub(super) fn is_narrow(&self, bytes: usize) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        bytes > i64::from(self.window.load(Relaxed)) || bytes > self.credit.load(Relaxed)
    }

    /// Has the connection closed; the first reason counts.
    pub(super) fn close(&self, reason: Reason) {
        let _ = self.reason.compare_exchange(0, reason as u8, Relaxed, Relaxed);
        self.close.notify_one();
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        let reason = self.reason.load(Relaxed);
        Reason::ALL.into_iter().find(|&one| one as u8 == reason)
    }

    /// Returns when the connection is to close.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Closes a connection that has kept weir waiting for too long.
    pub(super) fn look(&self, tick: u32, now: u64) {
        let head = self.head.load(Relaxed);
        if head != 0 && now.saturating_sub(head) > u64::try_from(MAX_UNREAD.as_millis()).unwrap_or(u64::MAX) {
            self.close(Reason::Handshake);
        }
        let written = self.written.load(Relaxed);
        // The one thread that looks writes these.
        let before = self.written_before[(self.looks.get() % OLD) as usize].swap(written, Relaxed);
        self.looks.add(1);
        let is_old = (OLD..AGES as u32 - OLD).any(|age| self.unread[tick.wrapping_sub(age) as usize % AGES].get() != 0);
        if is_old && written - before < PROGRESS {
            self.close(Reason::Unread);
        }
    }
}

/// An open call: from its head until its answer has been handed over, or it was given up.
#[derive(Debug)]
pub(super) struct Call {
    account: Arc<Account>,
    /// Bytes of its answer that are counted.
    held: u32,
    lasting: Option<Lasting>,
    is_answered: bool,
    /// Where it is among the unread answers; `None` where it may go on for as long as it likes.
    unread: Option<usize>,
}

impl Call {
    /// # Errors
    /// When too many calls are open, or too many whose answers go on.
    pub(super) fn begin(account: &Arc<Account>, lasting: Option<Lasting>) -> Result<Call, Refusal> {
        let has_place = lasting.is_none() || account.lasting.get() < MAX_LASTING && open::take_lasting();
        if !has_place {
            return Err(Refusal::Streams);
        }
        if !open::take(account.open.get()) {
            if lasting.is_some() {
                open::give_lasting();
            }
            return Err(Refusal::Calls);
        }
        if lasting.is_some() {
            account.lasting.add(1);
        }
        account.open.add(1);
        account.calls.add(1);
        if account.head.load(Relaxed) != 0 {
            account.head.store(0, Relaxed);
        }
        Ok(Call { account: account.clone(), held: 0, lasting, is_answered: false, unread: None })
    }

    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The answer, or its beginning, is there and is being handed over.
    pub(super) fn answered(&mut self) {
        let tick = NOW.load(Relaxed);
        self.is_answered = true;
        self.unread = match self.lasting {
            None => Some(tick),
            Some(Lasting::Session) => Some(tick.wrapping_add(OLD)),
            Some(Lasting::Endless) => None,
        }
        .map(|tick| tick as usize % AGES);
        self.account.answered.add(1);
        if let Some(age) = self.unread {
            self.account.unread[age].add(1);
        }
    }

    /// A piece of the answer leaves weir for HTTP/2's own buffers.
    pub(super) fn hands_over(&mut self, bytes: usize) {
        self.account.add_credit(-i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A piece of the answer is there. A long one is counted until the peer has taken all of it.
    pub(super) fn holds(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = bytes.min(MAX_HELD.saturating_sub(self.held));
        if bytes >= LONG && more > 0 {
            self.held += more;
            let others = self.account.held.get();
            self.account.held.add(more);
            if !open::hold(more) && others >= MANY_HELD {
                self.account.close(Reason::OpenCalls);
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let account = &self.account;
        account.open.subtract(1);
        if self.is_answered {
            account.answered.subtract(1);
        }
        if let Some(age) = self.unread {
            account.unread[age].subtract(1);
        }
        if self.lasting.is_some() {
            account.lasting.subtract(1);
            open::give_lasting();
        }
        if self.held > 0 {
            account.held.subtract(self.held);
            open::release(self.held);
        }
        open::give();
    }
}
