//! When to stop asking a store that fails, and when to ask it again. Pure: no clock, no I/O; times are µs on a clock that never
//! steps back. Opens after a run of failures, when half of the last second's calls failed, or when the store says that it refuses
//! everybody; then probes, ever less often, say when it closes.

use crate::limit::{Micros, SECOND};

/// Failures in a row that open it.
pub const CONSECUTIVE: u64 = 5;
/// Fewer calls than this in [`WINDOW`] say nothing about the share that fails.
pub const MIN_CALLS: u64 = 20;
/// How long calls count towards the share that fails: half of them open it.
pub const WINDOW: Micros = SECOND;
/// The first pause before a probe; each bad probe doubles it.
pub const FIRST_PAUSE: Micros = 50_000;
/// The longest pause before a probe.
pub const LONGEST_PAUSE: Micros = SECOND;
/// Jitter is given in thousandths.
pub const JITTER: u64 = 1_000;

/// The window is counted in so many slots.
const SLOTS: usize = 10;
const SLOT: Micros = WINDOW / SLOTS as Micros;

/// Closed while the store answers, open while it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    state: State,
    /// Failures since the last success.
    consecutive: u64,
    slots: [Slot; SLOTS],
    pause: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `since` is when it last closed.
    Closed {
        since: Option<Micros>,
    },
    Open {
        since: Micros,
    },
}

/// Calls that ended in one part of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    number: u64,
    calls: u64,
    failures: u64,
}

/// It has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub open_for: Micros,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { state: State::Closed { since: None }, consecutive: 0, slots: [Slot::default(); SLOTS], pause: FIRST_PAUSE }
    }
}

impl Breaker {
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Calls that were answered since the last time that any were counted.
    pub fn succeeded(&mut self, now: Micros, calls: u64) {
        if calls == 0 || self.is_open() {
            return;
        }
        self.consecutive = 0;
        self.slot(now).calls += calls;
    }

    /// A call that was not answered; true when this opens the breaker. What comes in while it is open was asked before.
    pub fn failed(&mut self, now: Micros) -> bool {
        let State::Closed { since } = self.state else { return false };
        self.consecutive += 1;
        let slot = self.slot(now);
        slot.calls += 1;
        slot.failures += 1;
        let (calls, failures) = self.last_second(now);
        if self.consecutive < CONSECUTIVE && (calls < MIN_CALLS || 2 * failures < calls) {
            return false;
        }
        self.open(now, since)
    }

    /// The store said itself that it fails everybody, which is no blip; true when this opens the breaker.
    pub fn refused(&mut self, now: Micros) -> bool {
        let State::Closed { since } = self.state else { return false };
        self.open(now, since)
    }

    /// From closed since then, to open; true.
    fn open(&mut self, now: Micros, since: Option<Micros>) -> bool {
        // What closed a moment ago has not recovered: its pauses go on from where they were.
        let is_relapse = since.is_some_and(|since| now < since + WINDOW);
        self.pause = if is_relapse { LONGEST_PAUSE.min(2 * self.pause) } else { FIRST_PAUSE };
        self.state = State::Open { since: now };
        true
    }

    /// How long to wait before the next probe: between half of the pause and all of it. `jitter` is random, below [`JITTER`].
    pub fn pause(&self, jitter: u64) -> Micros {
        self.pause / 2 + self.pause / 2 * jitter.min(JITTER) / JITTER
    }

    /// What a probe came to.
    pub fn probed(&mut self, now: Micros, is_good: bool) -> Option<Closed> {
        let State::Open { since } = self.state else { return None };
        if !is_good {
            self.pause = LONGEST_PAUSE.min(2 * self.pause);
            return None;
        }
        *self = Breaker { state: State::Closed { since: Some(now) }, pause: self.pause, ..Breaker::default() };
        Some(Closed { open_for: now.saturating_sub(since) })
    }

    /// The slot of `now`, emptied if it was last used in an earlier window.
    fn slot(&mut self, now: Micros) -> &mut Slot {
        let number = now / SLOT;
        let slot = &mut self.slots[(number % SLOTS as u64) as usize];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot
    }

    fn last_second(&self, now: Micros) -> (u64, u64) {
        let number = now / SLOT;
        let recent = self.slots.iter().filter(|slot| slot.number + (SLOTS as u64) > number && slot.number <= number);
        recent.fold((0, 0), |(calls, failures), slot| (calls + slot.calls, failures + slot.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Micros = 7 * SECOND;

    fn opened(now: Micros) -> Breaker {
        let mut breaker = Breaker::default();
        while !breaker.failed(now) {}
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        let mut breaker = Breaker::default();
        assert_eq!([0; 4].map(|_: i32| breaker.failed(START)), [false; 4]);
        breaker.succeeded(START, 1);
        assert_eq!([0; 4].map(|_: i32| breaker.failed(START)), [false; 4], "a success starts the row anew");
        assert!(!breaker.is_open());
        assert!(breaker.failed(START) && breaker.is_open());
        assert!(!breaker.failed(START), "it opens once");
    }

    #[test]
    fn one_refusal_opens_it() {
        let mut breaker = Breaker::default();
        breaker.succeeded(START, 1_000);
        assert!(breaker.refused(START) && breaker.is_open());
        assert!(!breaker.refused(START), "it opens once");
        assert!(breaker.probed(START, true).is_some());
        assert!(breaker.refused(START + 1));
        assert_eq!(breaker.pause(JITTER), 2 * FIRST_PAUSE, "a relapse");
    }

    #[test]
    fn failures_in_a_row_count_however_far_apart() {
        let mut breaker = Breaker::default();
        assert!((0..4).all(|minute| !breaker.failed(START + minute * 60 * SECOND)));
        assert!(breaker.failed(START + 4 * 60 * SECOND));
    }

    /// Calls that fail and succeed in turn; after how many it opens.
    fn calls_until_open(failing_of_ten: u64, gap: Micros) -> Option<u64> {
        let mut breaker = Breaker::default();
        (0..1_000).find(|call| {
            let now = START + call * gap;
            // Evenly mixed, so that no five failures come in a row.
            if (call * failing_of_ten) % 10 < failing_of_ten {
                breaker.failed(now)
            } else {
                breaker.succeeded(now, 1);
                false
            }
        })
    }

    #[test]
    fn half_of_twenty_calls_in_a_second_open_it() {
        assert_eq!(calls_until_open(5, 1_000), Some(20), "the first failure after twenty calls");
        assert_eq!(calls_until_open(7, 1_000), Some(19), "the twentieth call");
        assert_eq!(calls_until_open(4, 1_000), None, "less than half fail");
        assert_eq!(calls_until_open(5, 60_000), None, "less than twenty a second");
    }

    #[test]
    fn calls_before_the_last_second_do_not_count() {
        let mut breaker = Breaker::default();
        breaker.succeeded(START, 1_000_000);
        let failing = |breaker: &mut Breaker, now| {
            (0..20).any(|_| {
                breaker.succeeded(now, 1);
                breaker.failed(now)
            })
        };
        assert!(!failing(&mut breaker, START + WINDOW - SLOT), "a million answered within the second");
        let mut breaker = Breaker::default();
        breaker.succeeded(START, 1_000_000);
        assert!(failing(&mut breaker, START + WINDOW));
    }

    #[test]
    fn pauses_double_to_a_second_and_are_jittered() {
        let mut breaker = opened(START);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push((breaker.pause(0), breaker.pause(JITTER)));
            assert_eq!(breaker.probed(START, false), None);
        }
        let longest = [50_000, 100_000, 200_000, 400_000, 800_000, SECOND, SECOND];
        assert_eq!(pauses, longest.map(|pause| (pause / 2, pause)));
    }

    #[test]
    fn a_good_probe_closes_it_and_all_is_forgotten() {
        let mut breaker = opened(START);
        breaker.probed(START + SECOND, false);
        assert_eq!(breaker.probed(START + 2 * SECOND, true), Some(Closed { open_for: 2 * SECOND }));
        assert!(!breaker.is_open());
        assert_eq!([0; 4].map(|_: i32| breaker.failed(START + 2 * SECOND)), [false; 4]);
        assert_eq!(breaker.probed(START + 3 * SECOND, true), None, "nothing to close");
    }

    #[test]
    fn a_relapse_goes_on_with_longer_pauses() {
        let mut breaker = opened(START);
        assert_eq!(breaker.pause(JITTER), FIRST_PAUSE);
        let fail = |breaker: &mut Breaker, now| while !breaker.failed(now) {};
        breaker.probed(START, true);
        fail(&mut breaker, START + WINDOW - 1);
        assert_eq!(breaker.pause(JITTER), 2 * FIRST_PAUSE);
        breaker.probed(START + SECOND, true);
        fail(&mut breaker, START + SECOND + WINDOW);
        assert_eq!(breaker.pause(JITTER), FIRST_PAUSE);
    }

    #[test]
    fn what_comes_in_while_it_is_open_was_asked_before() {
        let mut breaker = opened(START);
        let before = breaker.clone();
        breaker.succeeded(START, 100);
        assert!(!breaker.failed(START));
        assert_eq!(breaker, before);
    }
}
