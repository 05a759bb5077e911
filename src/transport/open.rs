//! How many calls this process holds open. Each thread borrows room in blocks and counts by itself within them: a call costs no
//! look at what all threads share.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

/// Open calls of the whole process. One that waits costs some 2 KiB, so they keep within 32 MiB.
pub(super) const MAX_OPEN: u32 = 16_384;
/// What an open call counts when connections are compared, in bytes.
pub(super) const CALL_BYTES: u32 = 2 << 10;
/// Bytes of long answers of the whole process that may wait for their peers.
const MAX_HELD: u64 = 16 << 20;
/// Open calls of one connection that are let in for as long as there is any room. A connection with more gives way when half of
/// the room is taken, so that one caller cannot take all of it from the others.
const FAIR: u32 = 64;
/// What a thread borrows at once.
const BLOCK: u32 = 32;
/// Streams of this process whose answers go on, such as health's Watch.
const MAX_LASTING: u32 = 4_096;

static BORROWED: AtomicU32 = AtomicU32::new(0);
static LASTING: AtomicU32 = AtomicU32::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);
/// Told when a call or an answer found no room: some connection must give way.
pub(super) static SHORT: Notify = Notify::const_new();

thread_local! {
    /// Of this thread: open calls, and the room that it has borrowed for them.
    static HERE: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Takes room for a call on a connection that has so many open.
pub(super) fn take(open: u32) -> bool {
    if open >= FAIR && BORROWED.load(Relaxed) >= MAX_OPEN / 2 {
        SHORT.notify_waiters();
        return false;
    }
    let (taken, room) = HERE.get();
    if taken < room {
        HERE.set((taken + 1, room));
        return true;
    }
    if BORROWED.fetch_add(BLOCK, Relaxed) >= MAX_OPEN {
        BORROWED.fetch_sub(BLOCK, Relaxed);
        SHORT.notify_waiters();
        return false;
    }
    HERE.set((taken + 1, room + BLOCK));
    true
}

/// Holds bytes of an answer that is there already. Whether there was room.
pub(super) fn hold(bytes: u32) -> bool {
    let has_room = HELD.fetch_add(u64::from(bytes), Relaxed) + u64::from(bytes) <= MAX_HELD;
    if !has_room {
        SHORT.notify_waiters();
    }
    has_room
}

/// Whether long answers hold more than they may.
pub(super) fn holds_too_much() -> bool {
    HELD.load(Relaxed) > MAX_HELD
}

pub(super) fn release(bytes: u32) {
    HELD.fetch_sub(u64::from(bytes), Relaxed);
}

pub(super) fn give() {
    let (taken, room) = HERE.get();
    let taken = taken.saturating_sub(1);
    // One block stays, so that a thread whose calls come and go does not borrow for each.
    let spare = (room.saturating_sub(taken) / BLOCK).saturating_sub(1) * BLOCK;
    if spare > 0 {
        BORROWED.fetch_sub(spare, Relaxed);
    }
    HERE.set((taken, room - spare));
}

pub(super) fn take_lasting() -> bool {
    let has_room = LASTING.fetch_add(1, Relaxed) < MAX_LASTING;
    if !has_room {
        LASTING.fetch_sub(1, Relaxed);
    }
    has_room
}

pub(super) fn give_lasting() {
    LASTING.fetch_sub(1, Relaxed);
}
