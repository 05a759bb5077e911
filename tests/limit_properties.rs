//! What each algorithm promises, over random histories: how much a rolling window admits, exact retry times, monotone
//! denials, refunds, looks, time to live, clocks that step back, and changed sizes. The sizes at the edge of exact
//! arithmetic are in `limit_bounds.rs`, requests of several checks in `decide_properties.rs`.

use proptest::prelude::*;
use weir::limit::{Algorithm, Cost, DAY, HOUR, Limit, MINUTE, Micros, Outcome, RetryAfter, SECOND, State, Step, WEEK};

/// Both sides of every change of tick, and windows with an odd number of ticks.
const WINDOWS: [Micros; 10] = [1, 7, 1_000, SECOND, MINUTE, MINUTE + 1_000, HOUR, DAY, DAY + SECOND, WEEK];
/// 2026.
const EPOCH: Micros = 1_767_225_600 * SECOND;

#[derive(Clone, Copy, Debug)]
enum Gap {
    None,
    Ticks(u64),
    /// Thousandths of the window, and µs.
    Window(u64, Micros),
    /// As long as the last refusal said.
    Retry,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Take(Cost),
    /// A take that is counted although refused.
    Charge(Cost),
    Refund(Cost),
}

#[derive(Clone, Debug)]
struct History {
    limit: Limit,
    start: Micros,
    events: Vec<(Gap, Event)>,
}

impl Gap {
    fn micros(self, limit: &Limit, retry: Micros) -> Micros {
        match self {
            Gap::None => 0,
            Gap::Ticks(ticks) => ticks * limit.tick(),
            Gap::Window(thousandths, micros) => limit.window() * thousandths / 1000 + micros,
            Gap::Retry => retry,
        }
    }
}

fn gaps() -> impl Strategy<Value = Gap> {
    prop_oneof![
        2 => Just(Gap::None),
        2 => (1..20u64).prop_map(Gap::Ticks),
        3 => (0..400u64, 0..1_100u64).prop_map(|(thousandths, micros)| Gap::Window(thousandths, micros)),
        1 => (0..2_200u64, 0..1_100u64).prop_map(|(thousandths, micros)| Gap::Window(thousandths, micros)),
        3 => Just(Gap::Retry),
    ]
}

fn any_limit() -> impl Strategy<Value = Limit> {
    (limits(Algorithm::OF_RATES.to_vec(), 0..30), prop_oneof![3 => Just(0), 1 => 0..30u64])
        .prop_map(|(limit, kept)| limit.holding_back(kept))
}

fn limits(algorithms: Vec<Algorithm>, requests: std::ops::Range<u64>) -> impl Strategy<Value = Limit> {
    let sizes = (requests, proptest::option::of(1..40u64));
    (proptest::sample::select(algorithms), proptest::sample::select(&WINDOWS[..]), sizes).prop_map(
        |(algorithm, window, (requests, burst))| {
            let burst = burst.filter(|_| algorithm.is_bucket() && requests > 0);
            Limit::new(algorithm, requests, window, burst).expect("small sizes are exact")
        },
    )
}

fn starts() -> impl Strategy<Value = Micros> {
    (0..2 * WEEK).prop_map(|micros| EPOCH + micros)
}

fn histories(events: impl Strategy<Value = Event>) -> impl Strategy<Value = History> {
    let events = proptest::collection::vec((gaps(), events), 0..40);
    (any_limit(), starts(), events).prop_map(|(limit, start, events)| History { limit, start, events })
}

fn takes() -> impl Strategy<Value = Event> {
    prop_oneof![3 => Just(1), 1 => 1..12u64].prop_map(Event::Take)
}

fn any_event() -> impl Strategy<Value = Event> {
    let cost = || prop_oneof![8 => 1..12u64, 1 => 12..100u64, 1 => Just(u64::MAX)];
    prop_oneof![6 => takes(), 1 => cost().prop_map(Event::Charge), 1 => cost().prop_map(Event::Refund)]
}

fn look(limit: &Limit, state: Option<&State>, now: Micros) -> Outcome {
    limit.step(state, now, 0, None).outcome
}

fn retry_of(outcome: Outcome) -> Option<Micros> {
    match outcome {
        Outcome::Denied { retry_after: RetryAfter::In(retry), .. } => Some(retry),
        _ => None,
    }
}

fn apply(limit: &Limit, state: Option<&State>, now: Micros, event: Event) -> Step {
    match event {
        Event::Take(cost) => limit.step(state, now, cost, None),
        Event::Refund(cost) => limit.refund(state, now, cost),
        Event::Charge(cost) => match limit.step(state, now, cost, None) {
            step if step.outcome.is_allowed() => step,
            _ => limit.charge(state, now, cost, None),
        },
    }
}

/// One admission: when, of what, with what delay.
struct Admission {
    at: Micros,
    cost: Cost,
    delay: Micros,
}

impl History {
    /// Plays the events; the state and the time that they end in.
    fn play(&self) -> (Option<State>, Micros) {
        let (state, now, _) = self.play_recording();
        (state, now)
    }

    fn play_recording(&self) -> (Option<State>, Micros, Vec<Admission>) {
        let (mut state, mut now, mut retry, mut admissions) = (None, self.start, 0, Vec::new());
        for &(gap, event) in &self.events {
            now += gap.micros(&self.limit, retry);
            let step = apply(&self.limit, state.as_ref(), now, event);
            retry = retry_of(step.outcome).unwrap_or(0);
            if let (Event::Take(cost), Outcome::Allowed { delay, .. }) = (event, step.outcome) {
                admissions.push(Admission { at: now, cost, delay });
            }
            state = step.next.or(state);
        }
        (state, now, admissions)
    }
}

/// How many requests of 1 are admitted at once.
fn admitted_at_once(limit: &Limit, state: &Option<State>, now: Micros) -> u64 {
    let mut state = state.clone();
    for admitted in 0..=2 * limit.capacity() {
        match limit.step(state.as_ref(), now, 1, None) {
            Step { next: Some(next), outcome: Outcome::Allowed { .. }, .. } => state = Some(next),
            _ => return admitted,
        }
    }
    panic!("more than twice the limit at once");
}

/// The most that the algorithm may admit from one tick to another, both included.
fn most(limit: &Limit, ticks: u64) -> u64 {
    match limit.algorithm() {
        Algorithm::FixedWindow => 2 * limit.requests(),
        Algorithm::SlidingLog => limit.requests(),
        Algorithm::SlidingCounter => (2 * limit.requests()).saturating_sub(1),
        Algorithm::TokenBucket | Algorithm::LeakyBucket => limit.burst() + limit.requests() * ticks / limit.period(),
        Algorithm::Penalty | Algorithm::Calendar => unreachable!("admits by time alone"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_global_rejects: 1_000_000, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_rolling_window_admits_at_most_what_the_table_says(history in histories(takes())) {
        let limit = &history.limit;
        let (_, _, admissions) = history.play_recording();
        for (place, first) in admissions.iter().enumerate() {
            let mut sum = 0;
            for last in &admissions[place..] {
                let ticks = last.at / limit.tick() - first.at / limit.tick();
                if !limit.algorithm().is_bucket() && ticks >= limit.period() {
                    break;
                }
                sum += last.cost;
                prop_assert!(sum <= most(limit, ticks), "{sum} in {ticks} ticks");
            }
        }
    }

    /// Evenly spread traffic is what the weighted previous window assumes, and there the estimate is exact.
    #[test]
    fn a_sliding_window_admits_the_limit_of_smooth_traffic(
        limit in limits(vec![Algorithm::SlidingCounter], 2..30),
        a_window in 1..60u64,
        window in 0..1_000u64,
    ) {
        prop_assume!(limit.period() > 100 * a_window);
        let gap = limit.period().div_ceil(a_window) * limit.tick();
        let start = EPOCH - EPOCH % limit.window() + window * limit.window();
        let (mut state, mut admitted) = (None, Vec::new());
        for offer in 0..a_window * 4 {
            let now = start + offer * gap;
            let step = limit.step(state.as_ref(), now, 1, None);
            if step.outcome.is_allowed() {
                admitted.push(now);
            } else {
                prop_assert!(a_window >= limit.requests(), "refused below the limit");
            }
            state = step.next.or(state);
        }
        for (place, &first) in admitted.iter().enumerate() {
            let within = admitted[place..].iter().take_while(|&&at| at - first < limit.window()).count() as u64;
            prop_assert!(within <= limit.requests(), "{within} in a window");
        }
    }

    /// To the tick: an empty queue lets a request go at once, wherever in its tick that is.
    #[test]
    fn leaky_admissions_leave_evenly_spaced(mut history in histories(takes()), limit in limits(vec![Algorithm::LeakyBucket], 1..30)) {
        history.limit = limit;
        let (_, _, admissions) = history.play_recording();
        for pair in admissions.windows(2) {
            let interval = pair[0].cost * limit.period() / limit.requests() * limit.tick();
            let (first, second) = (pair[0].at + pair[0].delay, pair[1].at + pair[1].delay);
            prop_assert!(second + limit.tick() > first + interval, "{first}, then {second}: less than {interval}");
        }
    }

    #[test]
    fn max_delay_is_kept_and_its_retry_time_is_exact(
        mut history in histories(takes()),
        limit in limits(vec![Algorithm::LeakyBucket], 1..30),
        share in 0..1_500u64,
        cost in 1..5u64,
    ) {
        history.limit = limit;
        let longest = limit.window() * share / 1000;
        let max_delay = Some(longest);
        let (state, now) = history.play();
        let ask = |now| limit.step(state.as_ref(), now, cost, max_delay).outcome;
        match ask(now) {
            Outcome::Allowed { delay, .. } => prop_assert!(delay <= longest),
            Outcome::Denied { retry_after: RetryAfter::In(retry), .. } => {
                prop_assert!(retry > 0 && !ask(now + retry - 1).is_allowed() && ask(now + retry).is_allowed());
            }
            Outcome::Denied { retry_after: RetryAfter::Never { .. }, .. } => prop_assert!(cost > limit.burst()),
        }
        let charged = limit.charge(state.as_ref(), now, cost, max_delay);
        if let Some(retry) = retry_of(charged.outcome).filter(|_| !ask(now).is_allowed()) {
            let one = |now| limit.step(charged.next.as_ref(), now, 1, max_delay).outcome.is_allowed();
            prop_assert!(retry > 0 && !one(now + retry - 1) && one(now + retry));
        }
    }

    #[test]
    fn a_refusal_lasts_exactly_as_long_as_it_says(history in histories(any_event()), cost in 0..35u64, part in 0..1_000u64) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let ask = |now| limit.step(state.as_ref(), now, cost, None).outcome;
        match ask(now) {
            Outcome::Allowed { .. } => prop_assert!(cost <= limit.capacity()),
            Outcome::Denied { retry_after: RetryAfter::Never { reset_after }, .. } => {
                prop_assert!(cost.max(1) > limit.capacity());
                match limit.algorithm() {
                    Algorithm::FixedWindow => prop_assert_eq!(reset_after, limit.window() - now % limit.window()),
                    // A stepped clock may have shifted its windows.
                    Algorithm::SlidingCounter => prop_assert!((1..=limit.window()).contains(&reset_after)),
                    _ => prop_assert_eq!(reset_after, limit.window()),
                }
            }
            Outcome::Denied { retry_after: RetryAfter::In(retry), .. } => {
                prop_assert!(cost <= limit.capacity() && retry > 0);
                prop_assert!(!ask(now + (retry - 1) * part / 1000).is_allowed(), "admitted in between");
                prop_assert!(!ask(now + retry - 1).is_allowed(), "admitted 1 µs early");
                prop_assert!(ask(now + retry).is_allowed(), "refused at {retry}");
            }
        }
    }

    #[test]
    fn a_larger_cost_more_use_or_less_time_never_admit_more(
        history in histories(any_event()), cost in 1..35u64, more in 0..35u64, gap in gaps(),
    ) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let admits = |state: &Option<State>, now, cost| limit.step(state.as_ref(), now, cost, None).outcome.is_allowed();
        if !admits(&state, now, cost) {
            prop_assert!(!admits(&state, now, cost + more), "a larger cost");
        }
        let used_more = apply(limit, state.as_ref(), now, Event::Charge(more)).next.or(state.clone());
        if admits(&used_more, now, cost) {
            prop_assert!(admits(&state, now, cost), "less use");
        }
        if admits(&state, now, cost) {
            prop_assert!(admits(&state, now + gap.micros(limit, 0), cost), "later");
        }
    }

    #[test]
    fn remaining_is_what_is_admitted_at_once(history in histories(any_event())) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let remaining = look(limit, state.as_ref(), now).remaining();
        prop_assert_eq!(remaining, admitted_at_once(limit, &state, now));
        if remaining > 0 {
            let whole = limit.step(state.as_ref(), now, remaining, None);
            prop_assert_eq!(whole.outcome.remaining(), 0);
            prop_assert!(whole.outcome.is_allowed());
            prop_assert!(look(limit, whole.next.as_ref(), now).is_allowed(), "a look at used == limit");
        }
    }

    #[test]
    fn a_refund_in_the_same_period_undoes_the_take(
        history in histories(any_event()), cost in 1..12u64, gap in gaps(), later in gaps(), probe in 0..35u64,
    ) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let taken = limit.step(state.as_ref(), now, cost, None);
        prop_assume!(taken.outcome.is_allowed());
        let then = now + gap.micros(limit, 0);
        prop_assume!(same_period(limit, taken.next.as_ref(), now, then));
        let refunded = limit.refund(taken.next.as_ref(), then, cost);
        prop_assert!(refunded.outcome.is_allowed());
        let refunded = refunded.next.or(taken.next);
        for at in [then, then + later.micros(limit, 0)] {
            let (given_back, never_taken) = (limit.step(refunded.as_ref(), at, probe, None), limit.step(state.as_ref(), at, probe, None));
            prop_assert_eq!(given_back.outcome, never_taken.outcome);
        }
    }

    #[test]
    fn a_refund_never_goes_below_empty(history in histories(any_event()), probe in 0..35u64) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let emptied = limit.refund(state.as_ref(), now, u64::MAX).next.or(state);
        prop_assert_eq!(limit.step(emptied.as_ref(), now, probe, None).outcome, limit.step(None, now, probe, None).outcome);
        let absent = limit.refund(None, now, probe);
        prop_assert!(absent.outcome.is_allowed() && absent.next.is_none());
    }

    #[test]
    fn a_look_writes_nothing_and_a_refusal_stores_nothing(history in histories(any_event()), cost in 0..35u64) {
        let (state, now) = history.play();
        prop_assert_eq!(history.limit.step(state.as_ref(), now, 0, None).next, None);
        let step = history.limit.step(state.as_ref(), now, cost, None);
        prop_assert_eq!(step.next.is_some(), step.outcome.is_allowed() && cost > 0);
    }

    #[test]
    fn state_past_its_time_to_live_is_as_good_as_absent(
        history in histories(any_event()), event in any_event(), later in gaps(), cost in 0..35u64,
    ) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let Step { next: Some(next), ttl, .. } = apply(limit, state.as_ref(), now, event) else { return Ok(()) };
        for at in [now + ttl, now + ttl + later.micros(limit, 0)] {
            prop_assert_eq!(limit.step(Some(&next), at, cost, None).outcome, limit.step(None, at, cost, None).outcome);
            prop_assert_eq!(limit.refund(Some(&next), at, cost).next, None);
        }
    }

    #[test]
    fn an_emptied_limit_is_whole_again_when_it_says(history in histories(any_event())) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let Outcome::Allowed { reset_after, .. } = look(limit, state.as_ref(), now) else { return Ok(()) };
        prop_assert_eq!(look(limit, state.as_ref(), now + reset_after).remaining(), limit.capacity());
    }

    #[test]
    fn a_clock_that_steps_back_never_admits_more(
        history in histories(any_event()), back in prop_oneof![0..2_000u64, 0..2 * WEEK, Just(EPOCH)], more in histories(any_event()),
    ) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let before = now - back;
        prop_assert!(admitted_at_once(limit, &state, before) <= admitted_at_once(limit, &state, now));
        // And goes on from there.
        let (mut state, mut now) = (state, before);
        for (gap, event) in more.events {
            now += gap.micros(limit, 0);
            let step = apply(limit, state.as_ref(), now, event);
            prop_assert!(step.outcome.remaining() <= limit.capacity());
            state = step.next.or(state);
        }
    }

    #[test]
    fn a_clock_that_steps_back_keeps_the_counts(history in histories(takes()), cost in 1..12u64, back in 1..2 * WEEK) {
        let limit = &history.limit;
        let (state, now) = history.play();
        let taken = limit.step(state.as_ref(), now, cost, None);
        prop_assume!(taken.outcome.is_allowed());
        let remaining = look(limit, taken.next.as_ref(), now - back).remaining();
        if limit.algorithm() == Algorithm::SlidingCounter {
            prop_assert!(remaining <= taken.outcome.remaining());
        } else {
            prop_assert_eq!(remaining, taken.outcome.remaining());
        }
    }

    #[test]
    fn a_changed_size_keeps_what_was_used(history in histories(takes()), cost in 1..12u64, requests in 1..60u64, burst in 1..60u64) {
        let old = &history.limit;
        let (state, now) = history.play();
        let taken = old.step(state.as_ref(), now, cost, None);
        prop_assume!(taken.outcome.is_allowed());
        let used = old.capacity() - taken.outcome.remaining();
        let burst = old.algorithm().is_bucket().then_some(burst);
        let new = Limit::new(old.algorithm(), requests, old.window(), burst).expect("small sizes are exact");
        prop_assert_eq!(new.shape(), old.shape());
        let outcome = look(&new, taken.next.as_ref(), now);
        prop_assert_eq!(outcome.remaining(), new.capacity().saturating_sub(used));
        if let Some(retry) = retry_of(outcome) {
            prop_assert!(!look(&new, taken.next.as_ref(), now + retry - 1).is_allowed());
            prop_assert!(look(&new, taken.next.as_ref(), now + retry).is_allowed());
        }
    }

    /// Seen through a limit twice as large (a bucket: with room for one more refill), where debt is only use.
    #[test]
    fn a_charged_refusal_owes_at_most_one_further_limit(history in histories(any_event()), cost in 1..100u64) {
        let limit = &history.limit;
        let (state, now) = history.play();
        prop_assume!(limit.capacity() > 0 && !limit.step(state.as_ref(), now, cost, None).outcome.is_allowed());
        let double = match limit.algorithm() {
            bucket if bucket.is_bucket() => Limit::new(bucket, limit.requests(), limit.window(), Some(limit.burst() + limit.requests())),
            other => Limit::new(other, 2 * limit.requests(), limit.window(), None),
        };
        let double = double.expect("small sizes are exact");
        let charged = limit.charge(state.as_ref(), now, cost, None);
        let (before, after) = (look(&double, state.as_ref(), now), look(&double, charged.next.as_ref(), now));
        prop_assert!(after.is_allowed(), "more than one further limit");
        prop_assert_eq!(after.remaining(), before.remaining().saturating_sub(cost));
        prop_assert_eq!(charged.outcome.remaining(), 0);
        let retry = retry_of(charged.outcome).expect("a cost of 1 fits one day");
        let one = |now| limit.step(charged.next.as_ref(), now, 1, None).outcome.is_allowed();
        prop_assert!(retry > 0 && !one(now + retry - 1) && one(now + retry));
    }

    /// Who leaves some of a limit to others changes its state like everyone else, and waits until there is room beside what is left.
    #[test]
    fn what_is_held_back_is_asked_for_and_nothing_else(history in histories(any_event()), event in any_event(), kept in 0..60u64) {
        let whole = history.limit.holding_back(0);
        let (state, now) = history.play();
        let limit = whole.holding_back(kept);
        let (cost, changed) = match event {
            Event::Take(cost) => (cost, limit.step(state.as_ref(), now, cost, None)),
            Event::Charge(cost) => (cost, limit.charge(state.as_ref(), now, cost, None)),
            Event::Refund(cost) => (cost, limit.refund(state.as_ref(), now, cost)),
        };
        let of_whole = match event {
            Event::Take(_) if !changed.outcome.is_allowed() => None,
            Event::Take(_) => whole.step(state.as_ref(), now, cost, None).next,
            Event::Charge(_) => whole.charge(state.as_ref(), now, cost, None).next,
            Event::Refund(_) => whole.refund(state.as_ref(), now, cost).next,
        };
        prop_assert_eq!(&changed.next, &of_whole);
        let after = changed.next.or(state);
        let room = look(&whole, after.as_ref(), now).remaining().saturating_sub(limit.held_back());
        prop_assert_eq!(look(&limit, after.as_ref(), now).remaining(), room);
        prop_assert_eq!(admitted_at_once(&limit, &after, now), room);
    }

    #[test]
    fn a_limit_of_zero_refuses_every_take_and_every_look(history in histories(any_event()), window in proptest::sample::select(&WINDOWS[..])) {
        for algorithm in Algorithm::OF_RATES {
            let limit = Limit::new(algorithm, 0, window, None).expect("a limit of zero");
            let aligned = window - history.start % window;
            let reset_after = if limit.has_aligned_windows() { aligned } else { window };
            let refused = Outcome::Denied { remaining: 0, retry_after: RetryAfter::Never { reset_after } };
            prop_assert_eq!(limit.step(None, history.start, 1, None).outcome, refused);
            prop_assert_eq!(limit.charge(None, history.start, 1, None), Step { outcome: refused, next: None, ttl: 0 });
            prop_assert_eq!(look(&limit, None, history.start), refused);
        }
    }
}

/// Whether what was taken at `now` still counts as such at `then`.
fn same_period(limit: &Limit, taken: Option<&State>, now: Micros, then: Micros) -> bool {
    match (limit.algorithm(), taken) {
        (Algorithm::FixedWindow, _) => now / limit.window() == then / limit.window(),
        (Algorithm::SlidingCounter, Some(State::Counter { start, .. })) => then / limit.tick() - start < limit.period(),
        (Algorithm::SlidingLog, _) => then / limit.tick() - now / limit.tick() < limit.period(),
        _ => true,
    }
}
