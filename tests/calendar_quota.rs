//! What a calendar quota promises, over random histories in zones with unequal days: each day and month admits its limit and no
//! more, refusals last exactly until the period's end, and a process whose clock is a little off names the same periods.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use weir::limit::{DAY, HOUR, Limit, MINUTE, Micros, Outcome, Period, RetryAfter, SECOND, State};
use weir::rules::calendar::Calendar;

/// Days of 23 and 25 hours, of 23.5 and 24.5, one without its midnight, and none of these.
const ZONES: [&str; 4] = ["Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "UTC"];
/// 2026.
const EPOCH: Micros = 1_767_225_600 * SECOND;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("a known zone")
}

/// The period that a time is in, by the calendar itself.
fn named(zone: &TimeZone, period: Period, now: Micros) -> String {
    let time = Timestamp::from_microsecond(i64::try_from(now).expect("in range")).expect("in range").to_zoned(zone.clone());
    time.strftime(if period == Period::Day { "%F" } else { "%Y-%m" }).to_string()
}

fn gaps() -> impl Strategy<Value = Micros> {
    prop_oneof![Just(0), 0..HOUR, 0..2 * DAY, (20..40u64).prop_map(|days| days * DAY), Just(DAY), Just(23 * HOUR), Just(HOUR / 2)]
}

/// The edges as a process knows them whose clock is up to a minute off.
fn dated(limit: &Limit, calendar: &Calendar, now: Micros, skew: Micros) -> Limit {
    let period = limit.calendar().expect("a quota");
    limit.on(calendar.edges(period, now + skew - MINUTE))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn each_period_admits_its_limit(
        name in proptest::sample::select(&ZONES[..]),
        period in proptest::sample::select(&[Period::Day, Period::Month][..]),
        requests in 0..6u64,
        start in 0..365 * DAY,
        events in proptest::collection::vec((gaps(), 1..4u64, 0..=2 * MINUTE), 1..80),
    ) {
        let (zone, limit) = (zone(name), Limit::quota(period, requests).expect("a quota"));
        let calendar = Calendar::new(&zone).expect("a zone with days");
        let (mut now, mut state) = (EPOCH + start, None);
        let mut used: HashMap<String, u64> = HashMap::new();
        for (gap, cost, skew) in events {
            now += gap;
            let used = used.entry(named(&zone, period, now)).or_default();
            let step = dated(&limit, &calendar, now, skew).step(state.as_ref(), now, cost, None);
            let fits = *used + cost <= requests;
            prop_assert_eq!(step.outcome.is_allowed(), fits, "{} used at {}", used, named(&zone, period, now));
            if fits {
                *used += cost;
            }
            prop_assert_eq!(step.outcome.remaining(), requests - *used);
            if let Outcome::Denied { retry_after: RetryAfter::In(retry), .. } = step.outcome {
                let ask = |now| dated(&limit, &calendar, now, skew).step(state.as_ref(), now, cost, None).outcome.is_allowed();
                prop_assert!(!ask(now + retry - 1) && ask(now + retry));
                prop_assert_ne!(named(&zone, period, now + retry - 1), named(&zone, period, now + retry));
            }
            if let Outcome::Allowed { reset_after, .. } = step.outcome {
                prop_assert_eq!(named(&zone, period, now + reset_after - 1), named(&zone, period, now));
                prop_assert!(step.ttl == reset_after, "kept until the period's end");
            }
            state = step.next.or(state);
        }
    }

    #[test]
    fn a_clock_that_steps_back_forgets_nothing(
        name in proptest::sample::select(&ZONES[..]), start in 0..365 * DAY, used in 1..6u64, back in 0..3 * DAY,
    ) {
        let (zone, limit) = (zone(name), Limit::quota(Period::Day, 6).expect("a quota"));
        let calendar = Calendar::new(&zone).expect("a zone with days");
        let now = EPOCH + 5 * DAY + start;
        let taken = dated(&limit, &calendar, now, MINUTE).step(None, now, used, None).next;
        let before = now - back;
        let outcome = dated(&limit, &calendar, before, MINUTE).step(taken.as_ref(), before, 0, None).outcome;
        prop_assert_eq!(outcome.remaining(), 6 - used);
    }

    #[test]
    fn charges_and_refunds_stay_within_bounds(requests in 1..10u64, charge in 0..40u64, refund in 0..40u64) {
        let calendar = Calendar::new(&TimeZone::UTC).expect("a zone with days");
        let limit = Limit::quota(Period::Month, requests).expect("a quota").on(calendar.edges(Period::Month, EPOCH));
        let charged = limit.charge(None, EPOCH, charge, None).next.expect("a charge is stored");
        let count = |state: &State| match state {
            State::Window { count, .. } => *count,
            other => panic!("{other:?} is no state of a quota"),
        };
        prop_assert_eq!(count(&charged), charge.min(2 * requests));
        if let Some(refunded) = limit.refund(Some(&charged), EPOCH, refund).next {
            prop_assert_eq!(count(&refunded), count(&charged).saturating_sub(refund));
        }
    }
}
