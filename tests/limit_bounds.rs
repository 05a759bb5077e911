//! The edge of exact arithmetic: what `Limit::new` refuses, that nothing it accepts reaches 2^53 or overflows whatever is
//! asked and whenever, and what `scaled` makes of a limit.

use proptest::prelude::*;
use weir::limit::{
    Algorithm, DAY, HOUR, Hit, Limit, LimitError, MAX_EXACT, MAX_LOG_REQUESTS, MAX_WINDOW, MINUTE, Micros, Outcome, RetryAfter,
    SECOND, State, Step, YEAR,
};

const WINDOWS: [Micros; 9] = [1, 999, SECOND, MINUTE, MINUTE + 1_000, HOUR, DAY, YEAR, MAX_WINDOW];
/// Late in the year 2112.
const LATEST: Micros = (1 << 52) - 1;

fn largest_requests(algorithm: Algorithm, window: Micros) -> u64 {
    match Limit::new(algorithm, u64::MAX, window, None) {
        Err(LimitError::TooLarge { largest, .. }) => largest,
        Err(LimitError::LogTooLarge(_)) => MAX_LOG_REQUESTS,
        other => panic!("{algorithm:?} takes anything: {other:?}"),
    }
}

fn largest_burst(algorithm: Algorithm, requests: u64, window: Micros) -> u64 {
    match Limit::new(algorithm, requests, window, Some(u64::MAX)) {
        Err(LimitError::BurstTooLarge { largest, .. }) => largest,
        other => panic!("{algorithm:?} takes any burst: {other:?}"),
    }
}

/// Sizes from 1 to the largest, the edges more often.
fn up_to(largest: u64, selector: u64) -> u64 {
    match selector % 4 {
        0 => largest,
        1 => 1,
        2 => largest.saturating_sub(selector / 4 % 1_000).max(1),
        _ => 1 + selector % largest,
    }
}

fn limits() -> impl Strategy<Value = Limit> {
    let sizes = (any::<u64>(), any::<u64>(), prop_oneof![Just(0), any::<u64>()]);
    (proptest::sample::select(&Algorithm::OF_RATES[..]), proptest::sample::select(&WINDOWS[..]), sizes).prop_map(
        |(algorithm, window, (requests, burst, kept))| {
            let requests = up_to(largest_requests(algorithm, window), requests);
            let burst = algorithm.is_bucket().then(|| up_to(largest_burst(algorithm, requests, window), burst));
            let limit = Limit::new(algorithm, requests, window, burst).expect("no larger than the largest");
            limit.holding_back(up_to(limit.capacity(), kept))
        },
    )
}

fn numbers_of(state: &State) -> Vec<u64> {
    match state {
        State::Window { start, count } => vec![*start, *count],
        State::Log { total, hits } => hits.iter().flat_map(|hit| [hit.at, hit.count]).chain([*total]).collect(),
        State::Counter { start, current, previous } => vec![*start, *current, *previous],
        State::Meter { at, debt } => vec![*at, *debt],
        State::Blocked { until } => vec![*until],
    }
}

fn times_of(outcome: Outcome) -> Vec<Micros> {
    match outcome {
        Outcome::Allowed { reset_after, delay, .. } => vec![reset_after, delay],
        denied @ Outcome::Denied { .. } => vec![denied.reset_after()],
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Take,
    Charge,
    Refund,
    /// Another size of the same shape is in force from now on.
    Resize(u64, u64),
}

fn resized(limit: &Limit, requests: u64, burst: u64) -> Limit {
    let (algorithm, window) = (limit.algorithm(), limit.window());
    let requests = up_to(largest_requests(algorithm, window), requests);
    let burst = algorithm.is_bucket().then(|| up_to(largest_burst(algorithm, requests, window), burst));
    Limit::new(algorithm, requests, window, burst).expect("no larger than the largest")
}

fn events() -> impl Strategy<Value = (Event, u64, Micros)> {
    let event = prop_oneof![
        4 => Just(Event::Take),
        3 => Just(Event::Charge),
        1 => Just(Event::Refund),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(requests, burst)| Event::Resize(requests, burst)),
    ];
    let now = prop_oneof![Just(0), Just(LATEST), 0..=LATEST, LATEST - 1_000..=LATEST, LATEST - YEAR..=LATEST];
    (event, any::<u64>(), now)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Built with overflow checks, this also shows that no step on the way overflows.
    #[test]
    fn what_is_accepted_stays_exact(limit in limits(), events in proptest::collection::vec(events(), 1..30)) {
        let (mut limit, mut state) = (limit, None);
        for (event, size, now) in events {
            for cost in [0, up_to(limit.capacity(), size), u64::MAX] {
                let max_delay = (size % 2 == 0).then_some(size);
                let step = match event {
                    Event::Take => limit.step(state.as_ref(), now, cost, max_delay),
                    Event::Charge => limit.charge(state.as_ref(), now, cost, max_delay),
                    Event::Refund => limit.refund(state.as_ref(), now, cost),
                    Event::Resize(requests, burst) => {
                        limit = resized(&limit, requests, burst);
                        limit.step(state.as_ref(), now, 0, max_delay)
                    }
                };
                let Step { outcome, next, ttl } = step;
                for time in times_of(outcome).into_iter().chain([ttl]) {
                    prop_assert!(now + time < MAX_EXACT, "{time} after {now}");
                }
                prop_assert!(outcome.remaining() <= limit.capacity());
                let numbers = next.iter().flat_map(numbers_of);
                prop_assert!(numbers.max().unwrap_or(0) < MAX_EXACT, "{next:?}");
                state = next.or(state);
            }
        }
    }

    #[test]
    fn retry_times_are_exact_at_the_largest_sizes(limit in limits(), used in any::<u64>(), cost in any::<u64>(), now in 0..=LATEST) {
        let used = up_to(limit.capacity(), used);
        let cost = up_to(limit.capacity(), cost);
        let taken = limit.step(None, now, used, None);
        prop_assert!(taken.outcome.is_allowed());
        let ask = |now| limit.step(taken.next.as_ref(), now, cost, None).outcome;
        match ask(now) {
            Outcome::Denied { retry_after: RetryAfter::In(retry), .. } => {
                prop_assert!(retry > 0 && !ask(now + retry - 1).is_allowed() && ask(now + retry).is_allowed());
            }
            outcome => prop_assert!(outcome.is_allowed() && used + cost <= limit.capacity()),
        }
    }

    #[test]
    fn a_scaled_limit_is_a_limit(limit in limits(), numerator in any::<u64>(), denominator in 1..=u64::MAX) {
        let scaled = limit.scaled(numerator, denominator);
        let burst = limit.algorithm().is_bucket().then_some(scaled.burst());
        let whole = scaled.holding_back(0);
        prop_assert_eq!(Limit::new(limit.algorithm(), scaled.requests(), limit.window(), burst), Ok(whole));
        prop_assert_eq!(scaled.shape(), limit.shape());
        prop_assert!(scaled.requests() >= 1 && scaled.burst() >= 1 && scaled.capacity() >= 1);
    }

    #[test]
    fn a_share_is_rounded_down_and_at_least_one(requests in 0..100_000u64, share in 1..1_000u64) {
        for algorithm in Algorithm::OF_RATES {
            let limit = Limit::new(algorithm, requests.min(MAX_LOG_REQUESTS), MINUTE, None).expect("a limit");
            let scaled = limit.scaled(1, share);
            prop_assert_eq!(scaled.requests(), (limit.requests() / share).max(limit.requests().min(1)));
            prop_assert_eq!(scaled.capacity(), scaled.requests());
            prop_assert_eq!(limit.scaled(share, share), limit);
        }
    }
}

#[test]
fn one_more_than_the_largest_is_refused_by_name() {
    for algorithm in Algorithm::OF_RATES {
        for window in WINDOWS {
            let largest = largest_requests(algorithm, window);
            assert!(Limit::new(algorithm, largest, window, None).is_ok(), "{algorithm:?} {window}");
            let refused = Limit::new(algorithm, largest + 1, window, None).expect_err("too large");
            assert!(matches!(refused, LimitError::TooLarge { .. } | LimitError::LogTooLarge(_)), "{refused}");
            if algorithm.is_bucket() {
                let largest = largest_burst(algorithm, 3, window);
                assert!(Limit::new(algorithm, 3, window, Some(largest)).is_ok(), "{algorithm:?} {window} {largest}");
                let refused = Limit::new(algorithm, 3, window, Some(largest + 1));
                assert_eq!(refused, Err(LimitError::BurstTooLarge { burst: largest + 1, largest }));
            }
        }
    }
}

#[test]
fn a_window_is_whole_ticks_from_one_microsecond_to_ten_years() {
    let window = |window| Limit::new(Algorithm::SlidingCounter, 1, window, None).map(|limit| (limit.tick(), limit.period()));
    assert_eq!(window(0), Err(LimitError::EmptyWindow));
    assert_eq!(window(1), Ok((1, 1)));
    assert_eq!(window(MINUTE), Ok((1, MINUTE)));
    assert_eq!(window(MINUTE + 1), Err(LimitError::UnevenWindow(1_000)));
    assert_eq!(window(MINUTE + 1_000), Ok((1_000, 60_001)));
    assert_eq!(window(DAY), Ok((1_000, 86_400_000)));
    assert_eq!(window(DAY + 1_000), Err(LimitError::UnevenWindow(SECOND)));
    assert_eq!(window(DAY + SECOND), Ok((SECOND, 86_401)));
    assert_eq!(window(MAX_WINDOW), Ok((SECOND, MAX_WINDOW / SECOND)));
    assert_eq!(window(MAX_WINDOW + SECOND), Err(LimitError::LongWindow(MAX_WINDOW + SECOND)));
}

#[test]
fn a_burst_needs_a_bucket_that_refills() {
    assert_eq!(Limit::new(Algorithm::FixedWindow, 10, MINUTE, Some(5)), Err(LimitError::BurstWithoutBucket));
    assert_eq!(Limit::new(Algorithm::TokenBucket, 0, MINUTE, Some(5)), Err(LimitError::NeverRefills));
    // A million tokens at one in ten years would take longer to fill than exact times reach.
    let slow = Limit::new(Algorithm::TokenBucket, 1, MAX_WINDOW, Some(1_000_000));
    assert_eq!(slow, Err(LimitError::BurstTooLarge { burst: 1_000_000, largest: 7 }));
    assert_eq!(Limit::penalty(0), Err(LimitError::EmptyWindow));
    assert_eq!(Limit::penalty(MAX_WINDOW + 1), Err(LimitError::LongWindow(MAX_WINDOW + 1)));
}

/// What operators write: these must never be too large.
#[test]
fn usual_sizes_fit_every_algorithm() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingCounter, Algorithm::TokenBucket, Algorithm::LeakyBucket] {
        for (requests, window) in
            [(700_000, SECOND), (10_000_000, MINUTE), (100_000_000, HOUR), (10_000_000, DAY), (30_000_000, YEAR)]
        {
            assert!(Limit::new(algorithm, requests, window, None).is_ok(), "{requests} in {window} by {algorithm:?}");
        }
    }
    assert!(Limit::new(Algorithm::FixedWindow, u64::from(u32::MAX), YEAR, None).is_ok());
}

/// What docs/algorithms.md says of the memory that it takes.
#[test]
fn a_log_in_debt_is_twice_as_long_and_no_longer() {
    const LIMIT: u64 = 100;
    let limit = Limit::new(Algorithm::SlidingLog, LIMIT, MINUTE, None).expect("a limit");
    let mut state = None;
    let mut longest = [0, 0];
    for tick in 0..6 * LIMIT {
        let is_charged = tick >= 3 * LIMIT;
        let step = if is_charged { Limit::charge } else { Limit::step }(&limit, state.as_ref(), HOUR + tick, 1, None);
        state = step.next.or(state);
        let Some(State::Log { hits, .. }) = &state else { panic!("a log, not {state:?}") };
        let longest = &mut longest[usize::from(is_charged)];
        *longest = hits.len().max(*longest);
    }
    assert_eq!(longest.map(|pairs| pairs as u64), [LIMIT, 2 * LIMIT]);
    assert_eq!((2 * MAX_LOG_REQUESTS, 2 * MAX_LOG_REQUESTS * size_of::<Hit>() as u64), (20_000, 320_000));
    let page = include_str!("../docs/algorithms.md");
    assert!(page.contains("at most 20,000 pairs") && page.contains("320 KB"), "the page says so");
}
