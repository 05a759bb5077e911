//! A reservation is a gate before a request: an estimate is charged once for each name, and its true number is said once. What is
//! behind the gate is decided as any other request. Mirrored by `store/redis/lua/reservation.lua`.

use smallvec::SmallVec;

use super::{Algorithm, Check, Cost, Limit, Micros, Mode, Operation, Outcome, SECOND};

/// The shortest and the longest time for which a reservation is known, in µs.
pub const TTL_RANGE: std::ops::RangeInclusive<Micros> = SECOND..=super::DAY;
/// The largest estimate and the largest true number: the largest that both stores count exactly.
pub const MAX_AMOUNT: Cost = super::MAX_EXACT - 1;

/// An estimate that was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub estimate: Cost,
    /// The true number, once it was said.
    pub actual: Option<Cost>,
    /// When it was made, in µs since the epoch.
    pub made: Micros,
    /// From when on nothing is known of it, in µs since the epoch.
    pub expires: Micros,
    /// How long it is known after it was made, and again after it was committed.
    pub ttl: Micros,
}

/// What a request behind a gate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Charges an estimate, unless that was done under this name.
    Reserve { estimate: Cost, ttl: Micros },
    /// Says the true number of the reservation that was made then, unless one was said.
    Commit { actual: Cost, made: Micros },
}

impl Gate {
    /// What the reservation is once the request behind the gate is decided; `None` where the gate stays shut: nothing is decided.
    pub fn step(&self, known: Option<&Reservation>, now: Micros) -> Option<Reservation> {
        let known = known.filter(|known| known.expires > now);
        match (*self, known) {
            (Gate::Reserve { estimate, ttl }, None) => {
                Some(Reservation { estimate, actual: None, made: now, expires: now + ttl, ttl })
            }
            (Gate::Commit { actual, made }, Some(known)) if known.actual.is_none() && known.made == made => {
                Some(Reservation { actual: Some(actual), expires: known.expires.max(now + known.ttl), ..*known })
            }
            _ => None,
        }
    }
}

impl Reservation {
    /// A check of its commit as it is at `now`: what a window that is over was charged is not taken from the one that has begun.
    pub fn settle(&self, check: &Check, now: Micros) -> Check {
        match check.operation {
            Operation::Refund if !counts(&check.limit, self.made, now) => Check { cost: 0, ..*check },
            _ => *check,
        }
    }
}

/// Whether what was charged at `made` is still in the counter at `now`. A bucket's debt has no age.
fn counts(limit: &Limit, made: Micros, now: Micros) -> bool {
    match limit.algorithm() {
        Algorithm::FixedWindow => made >= now - now % limit.window(),
        Algorithm::Calendar => {
            let [start, end, _] = limit.edges();
            made >= if now >= end { end } else { start }
        }
        Algorithm::SlidingLog | Algorithm::SlidingCounter => made + limit.window() > now,
        Algorithm::TokenBucket | Algorithm::LeakyBucket | Algorithm::Penalty => true,
    }
}

/// Whether these outcomes refuse the request: what [`super::decide()`] went by.
pub fn is_refused(checks: &[Check], outcomes: &[Outcome], refused: bool) -> bool {
    let enforced = |(check, outcome): (&Check, &Outcome)| check.mode == Mode::Enforce && !outcome.is_allowed();
    refused || checks.iter().zip(outcomes).any(enforced) || quotas_refuse(checks, outcomes)
}

/// Whether there are quotas and all of them are over. A refund asks for nothing: it is no quota that could have room.
pub fn quotas_refuse(checks: &[Check], outcomes: &[Outcome]) -> bool {
    let is_quota = |check: &&Check| check.mode == Mode::Quota && check.operation != Operation::Refund;
    let mut quotas = checks.iter().filter(is_quota).peekable();
    if quotas.peek().is_none() {
        return false;
    }
    let denied = checks.iter().zip(outcomes).filter(|(_, outcome)| !outcome.is_allowed());
    let mut over: SmallVec<[u16; 4]> = denied.map(|(check, _)| check.owner).collect();
    over.sort_unstable();
    quotas.all(|check| over.binary_search(&check.owner).is_ok())
}

/// Whether a check of an allowed request was counted in full.
pub fn is_charged(checks: &[Check], outcomes: &[Outcome], place: usize) -> bool {
    let check = &checks[place];
    let counts = check.operation == Operation::Take && check.limit.algorithm() != Algorithm::Penalty && check.cost > 0;
    let is_counted =
        check.mode == Mode::Enforce || check.charge == super::Charge::Always || !is_over(checks, outcomes, check.owner);
    counts && outcomes[place].is_allowed() && is_counted
}

fn is_over(checks: &[Check], outcomes: &[Outcome], owner: u16) -> bool {
    checks.iter().zip(outcomes).any(|(check, outcome)| check.owner == owner && !outcome.is_allowed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Charge, HOUR, MINUTE, Period, RetryAfter};

    const NOW: Micros = 1_000 * HOUR + MINUTE;
    const RESERVE: Gate = Gate::Reserve { estimate: 10, ttl: MINUTE };

    fn made() -> Reservation {
        RESERVE.step(None, NOW).unwrap()
    }

    fn commit(actual: Cost, known: &Reservation, now: Micros) -> Option<Reservation> {
        Gate::Commit { actual, made: known.made }.step(Some(known), now)
    }

    #[test]
    fn a_name_is_reserved_once_until_it_expires() {
        let made = made();
        assert_eq!(made, Reservation { estimate: 10, actual: None, made: NOW, expires: NOW + MINUTE, ttl: MINUTE });
        assert_eq!(RESERVE.step(Some(&made), NOW), None);
        assert_eq!(RESERVE.step(Some(&made), NOW + MINUTE - 1), None);
        assert_eq!(RESERVE.step(Some(&made), NOW + MINUTE).map(|again| again.made), Some(NOW + MINUTE));
    }

    #[test]
    fn a_true_number_is_said_once_and_known_for_as_long_again() {
        let made = made();
        let committed = commit(0, &made, NOW + MINUTE - 1).unwrap();
        assert_eq!(committed, Reservation { actual: Some(0), expires: NOW + 2 * MINUTE - 1, ..made });
        assert_eq!(commit(0, &committed, NOW + MINUTE), None);
        assert_eq!(commit(1, &committed, NOW + MINUTE), None);
        assert_eq!(commit(0, &made, NOW + MINUTE), None, "it has expired");
        assert_eq!(Gate::Commit { actual: 0, made: NOW - 1 }.step(Some(&made), NOW), None, "another one of that name");
        assert_eq!(Gate::Commit { actual: 0, made: NOW }.step(None, NOW), None);
        assert_eq!(commit(0, &made, NOW - HOUR).unwrap().expires, made.expires, "a clock stepped back takes nothing away");
    }

    fn check(limit: Limit, mode: Mode, owner: u16) -> Check {
        Check { mode, owner, ..Check::new(limit, Operation::Take, 1) }
    }

    fn of(algorithm: Algorithm) -> Limit {
        Limit::new(algorithm, 10, HOUR, None).unwrap()
    }

    #[test]
    fn what_a_window_that_is_over_was_charged_is_not_given_back() {
        let day = Limit::quota(Period::Day, 10).unwrap().on([960 * HOUR, 984 * HOUR, 1_008 * HOUR]);
        // How long after NOW, which is a minute past the hour, it still counts.
        let cases = [
            (of(Algorithm::FixedWindow), Some(59 * MINUTE)),
            (of(Algorithm::SlidingLog), Some(HOUR)),
            (of(Algorithm::SlidingCounter), Some(HOUR)),
            (of(Algorithm::TokenBucket), None),
            (of(Algorithm::LeakyBucket), None),
            (day.on([984 * HOUR, 1_008 * HOUR, 1_032 * HOUR]), Some(8 * HOUR - MINUTE)),
        ];
        for (limit, counts_for) in cases {
            let refund = Check { operation: Operation::Refund, ..check(limit, Mode::Enforce, 0) };
            let cost = |after| made().settle(&refund, NOW + after).cost;
            let counts_for = counts_for.unwrap_or(1_000 * HOUR);
            assert_eq!(cost(counts_for - 1), 1, "{limit:?}");
            if !limit.algorithm().is_bucket() {
                assert_eq!(cost(counts_for), 0, "{limit:?}");
            }
            let report = Check { operation: Operation::Report, ..refund };
            assert_eq!(made().settle(&report, NOW + counts_for), report, "what it took more is charged whenever it is said");
        }
        let before = Check { operation: Operation::Refund, ..check(day, Mode::Enforce, 0) };
        assert_eq!(made().settle(&before, NOW).cost, 1, "edges of the day before: this is its next one");
        assert_eq!(Reservation { made: 983 * HOUR, ..made() }.settle(&before, NOW).cost, 0);
    }

    #[test]
    fn only_what_has_counted_in_full_is_charged() {
        let (ok, over) = (
            Outcome::Allowed { remaining: 1, reset_after: 0, delay: 0 },
            Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after: 0 } },
        );
        let limit = of(Algorithm::FixedWindow);
        let shadows = [check(limit, Mode::Shadow, 1), check(limit, Mode::Shadow, 1), check(limit, Mode::Enforce, 2)];
        let charged = |checks: &[Check], outcomes: &[Outcome]| {
            (0..checks.len()).map(|place| is_charged(checks, outcomes, place)).collect::<Vec<_>>()
        };
        assert_eq!(charged(&shadows, &[ok, ok, ok]), [true, true, true]);
        assert_eq!(charged(&shadows, &[ok, over, ok]), [false, false, true], "a rule that is over counts by none of its limits");
        let always = shadows.map(|check| Check { charge: Charge::Always, ..check });
        assert_eq!(charged(&always, &[ok, over, ok]), [true, false, true]);
        let look =
            [Check { operation: Operation::Look, cost: 0, ..shadows[2] }, check(Limit::penalty(HOUR).unwrap(), Mode::Enforce, 2)];
        assert_eq!(charged(&look, &[ok, ok]), [false, false]);
    }

    #[test]
    fn a_refusal_is_what_decide_says() {
        let (ok, over) = (
            Outcome::Allowed { remaining: 1, reset_after: 0, delay: 0 },
            Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after: 0 } },
        );
        let limit = of(Algorithm::FixedWindow);
        let [enforce, shadow, quota, other] = [(Mode::Enforce, 0), (Mode::Shadow, 1), (Mode::Quota, 2), (Mode::Quota, 3)]
            .map(|(mode, owner)| check(limit, mode, owner));
        let cases: [(&[Check], &[Outcome], bool); 6] = [
            (&[enforce, shadow], &[ok, over], false),
            (&[enforce, shadow], &[over, ok], true),
            (&[quota, other], &[over, ok], false),
            (&[quota, other], &[over, over], true),
            (&[shadow], &[over], false),
            (&[], &[], false),
        ];
        for (checks, outcomes, expected) in cases {
            assert_eq!(is_refused(checks, outcomes, false), expected, "{outcomes:?}");
            assert!(is_refused(checks, outcomes, true));
        }
    }
}
