//! Memory and Redis decide alike also as in production, where Redis goes by its own clock: it asks itself for
//! the time, keys expire, and a state that ends when the stored one does keeps its time to live. Redis
//! decides first; a reservation in the same call tells the time that it decided by, and memory is set to
//! that. A batch at which a counter expires, give or take a few ms, is left out, as Redis expires by the
//! millisecond. `AGREEMENT_SEED=n` explores from another seed.

mod support {
    pub mod agreement;
    pub mod redis;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Value, cmd, from_redis_value, pipe};
use futures_util::future::join_all;
use support::agreement::{Random, parse};
use support::redis::RedisServer;
use weir::limit::reservation::Gate;
use weir::limit::{
    Algorithm, Charge, Check, DAY, Edges, HOUR, Limit, MINUTE, Micros, Mode, Operation, Period, SECOND, Shape, State,
};
use weir::rules::key::{self, Key, Part};
use weir::store::memory::{DEFAULT_MAX_COUNTERS, MemoryStore};
use weir::store::redis::RedisStore;
use weir::store::reservations::{Gated, Passed, ReservationStore};
use weir::store::{Clock, Group, Store, StoreError, Wait};

/// Requests whose outcomes and states are compared.
const REQUESTS: usize = 10_000;
/// In one call; together with the two that tell the time.
const MAX_REQUESTS_A_BATCH: u64 = 40;
/// Every so many batches Redis forgets the script.
const FORGETS_EVERY: u64 = 50;
/// Redis expires so early or late at most, in µs: by the millisecond, counted from when the script began.
const BLUR: Micros = 3_000;
/// With ticks of 1 µs, 1 ms and 1 s; the short ones end many times in a run.
const WINDOWS: [Micros; 6] = [SECOND / 4, SECOND / 4, SECOND, MINUTE, 61 * SECOND, DAY + SECOND];
/// How long a day of this test's calendar is: its edges come with the limit.
const A_DAY: Micros = 700_000;

struct Counter {
    key: Key,
    algorithm: Algorithm,
    window: Micros,
    /// Of a bucket, which is forgotten when it is whole: its size stays.
    requests: u64,
}

impl Counter {
    fn limit(&self, random: &mut Random, now: Micros) -> Limit {
        let few = 1 + random.below(12);
        let limit = match self.algorithm {
            Algorithm::Calendar => {
                let number = now / A_DAY + random.one_of(&[0, 0, 1]) - random.one_of(&[0, 0, 1]);
                Limit::quota(Period::Day, few).map(|limit| limit.on(edges(number)))
            }
            Algorithm::Penalty => Limit::penalty(self.window),
            algorithm if algorithm.is_bucket() => Limit::new(algorithm, self.requests, self.window, None),
            algorithm => Limit::new(algorithm, few, self.window, None),
        };
        limit.expect("it is a small limit")
    }

    /// When a state of this counter is over, in µs since the epoch.
    fn expires(&self, state: &State) -> Micros {
        let limit = Limit::new(Algorithm::FixedWindow, 1, self.window, None).expect("it is a small limit");
        let (tick, period) = (limit.tick(), limit.period());
        match state {
            State::Window { start, .. } if self.algorithm == Algorithm::Calendar => start + A_DAY,
            State::Window { start, .. } => start + self.window,
            State::Log { hits, .. } => hits.last().map_or(0, |hit| (hit.at + period) * tick),
            State::Counter { current: 0, previous: 0, .. } => 0,
            State::Counter { start, current: 0, .. } => (start + period) * tick,
            State::Counter { start, .. } => (start + 2 * period) * tick,
            State::Meter { at, debt } => (at + debt.div_ceil(self.requests)) * tick,
            State::Blocked { until } => *until,
        }
    }
}

fn edges(number: u64) -> Edges {
    [0, 1, 2].map(|more| (number + more) * A_DAY)
}

struct Run {
    random: Random,
    now: Arc<AtomicU64>,
    memory: MemoryStore,
    redis: RedisStore,
    connection: MultiplexedConnection,
    counters: Vec<Counter>,
    /// The longest that a call took, in µs: Redis counts a time to live from when it writes, which is later
    /// than when it decided.
    slowest: Micros,
    batches: u64,
    sets: u64,
}

impl Run {
    /// Fresh counters, as those of before may differ by what expired a moment early or late.
    fn begin(&mut self) {
        self.sets += 1;
        let (sets, random) = (self.sets, &mut self.random);
        let counter = |number: usize| {
            let algorithm = Algorithm::ALL[number % Algorithm::ALL.len()];
            let window = if algorithm == Algorithm::Calendar { DAY } else { random.one_of(&WINDOWS) };
            let name = format!("{sets}-{number}");
            let parts = [Part { key: b"counter", value: name.as_bytes(), shared: false }];
            let suffix = key::shape_suffix(Shape { algorithm, window });
            let key = key::key(&key::domain_prefix("", b"agreement"), &key::entries(parts.into_iter(), 0), &suffix);
            Counter { key, algorithm, window, requests: 1 + random.below(12) }
        };
        self.counters = (0..2 * Algorithm::ALL.len()).map(counter).collect();
    }

    fn group(&mut self) -> Group {
        let mut group = Group { refused: self.random.one_in(20), ..Group::default() };
        let first = self.random.index(self.counters.len());
        let refunds = usize::from(self.random.one_in(5));
        for place in 0..refunds + 1 + self.random.index(3) {
            let (random, now) = (&mut self.random, self.now.load(Ordering::Acquire));
            let counter = &self.counters[(first + place) % self.counters.len()];
            let limit = counter.limit(random, now);
            let operations = [Operation::Take, Operation::Take, Operation::Take, Operation::Look, Operation::Report];
            let operation = if place < refunds { Operation::Refund } else { random.one_of(&operations) };
            group.keys.push(counter.key.clone());
            group.checks.push(Check {
                limit,
                operation,
                cost: random.one_of(&[0, 1, 1, 1, 2, 5]),
                mode: random.one_of(&[Mode::Enforce, Mode::Enforce, Mode::Shadow, Mode::Quota]),
                charge: random.one_of(&[Charge::Admitted, Charge::Admitted, Charge::Always]),
                max_delay: None,
                owner: u16::try_from(random.below(2)).expect("it is small"),
            });
        }
        group
    }

    /// Asks Redis for what a reservation's expiry tells, which is its time.
    async fn tell_time(&self, name: &str) -> Result<Micros, StoreError> {
        let gate = Gate::Reserve { estimate: 1, ttl: SECOND };
        let key = Key::from_bytes(format!("w1|agreement|{{{name}}}|reservation|{}", self.batches).into_bytes());
        let gated = Gated { key, gate, memo: Arc::default(), group: Group::default() };
        match self.redis.pass(&gated, patience()).await? {
            Passed::Decided { expires: Some(expires), .. } => Ok(expires - SECOND),
            other => panic!("a new reservation is made: {other:?}"),
        }
    }

    /// How many requests were compared: none where a counter expires as they are decided.
    async fn decide_batch(&mut self) -> usize {
        self.batches += 1;
        if self.batches.is_multiple_of(FORGETS_EVERY) {
            cmd("SCRIPT").arg("FLUSH").exec_async(&mut self.connection).await.expect("Redis answers");
        }
        let groups: Vec<Group> = (0..=self.random.below(MAX_REQUESTS_A_BATCH)).map(|_| self.group()).collect();
        let decided = join_all(groups.iter().map(|group| self.redis.apply(group, patience())));
        let (first, by_redis, last) = tokio::join!(biased; self.tell_time("first"), decided, self.tell_time("last"));
        let now = first.expect("Redis answers");
        assert_eq!(Ok(now), last, "one call, which has one time");
        let before: Vec<Option<State>> = self.counters.iter().map(|counter| self.memory.state(&counter.key)).collect();
        self.now.store(now, Ordering::Release);
        let ends = |(counter, state): (&Counter, &Option<State>)| {
            state.as_ref().is_some_and(|state| counter.expires(state).abs_diff(now) <= BLUR)
        };
        if self.counters.iter().zip(&before).any(ends) {
            self.begin();
            return 0;
        }
        for (group, by_redis) in groups.iter().zip(by_redis) {
            let by_memory = self.memory.decide(group);
            assert_eq!(by_redis, by_memory, "batch {}, at {now}: Redis, then memory: {group:#?}", self.batches);
        }
        self.compare_states(now).await;
        groups.len()
    }

    async fn compare_states(&mut self, now: Micros) {
        let mut calls = pipe();
        let keys = || self.counters.iter().map(|counter| counter.key.as_bytes());
        calls.cmd("MGET").arg(keys().collect::<Vec<_>>());
        for key in keys() {
            calls.cmd("PEXPIRETIME").arg(key);
        }
        calls.cmd("TIME");
        let mut answers: Vec<Value> = calls.query_async(&mut self.connection).await.expect("Redis answers");
        let time: (Micros, Micros) = from_redis_value(answers.pop().expect("TIME")).expect("a time");
        let looked_at = time.0 * SECOND + time.1;
        self.slowest = self.slowest.max(looked_at - now);
        let all_ends = answers.split_off(1);
        let stored: Vec<Option<Vec<u8>>> = from_redis_value(answers.remove(0)).expect("states");
        for ((counter, stored), ends) in self.counters.iter().zip(stored).zip(all_ends) {
            let what = format!("batch {}, at {now}: {:?}", self.batches, counter.key);
            let Some(state) = self.memory.state(&counter.key) else {
                let by_redis = stored.map(|stored| parse(&stored, counter.algorithm));
                // What was given back to the last hit is over at once, which Redis says a moment later.
                let is_over = by_redis.as_ref().is_none_or(|state| counter.expires(state) <= now + BLUR);
                assert!(is_over, "{what}: {by_redis:?} in Redis, nothing in memory");
                continue;
            };
            let expires = counter.expires(&state);
            let Some(stored) = stored else {
                assert!(expires <= looked_at + BLUR, "{what}: gone from Redis, {state:?} in memory until {expires}");
                continue;
            };
            assert_eq!(parse(&stored, counter.algorithm), state, "{what}: Redis, then memory");
            let ends: i64 = from_redis_value(ends).expect("a time");
            let ends = u64::try_from(ends).unwrap_or(0) * 1_000;
            // Gone since it was read, or over at once.
            let is_over = ends == 0 && expires <= looked_at + BLUR || expires <= now;
            let expected = expires.saturating_sub(BLUR)..=expires + BLUR + self.slowest;
            assert!(is_over || expected.contains(&ends), "{what}: {state:?} ends at {ends}, not {expires}");
        }
    }
}

fn patience() -> Wait {
    Wait::of(Duration::from_secs(60))
}

#[tokio::test]
async fn memory_and_redis_agree_by_the_clock_of_redis() {
    let seed = std::env::var("AGREEMENT_SEED").map_or(1, |seed| seed.parse().expect("AGREEMENT_SEED is a number"));
    let server = RedisServer::start();
    // For the edges of the first checks, before the first call tells the time.
    let now = Arc::new(AtomicU64::new(Clock::System.now() / HOUR * HOUR));
    let mut run = Run {
        random: Random(seed),
        memory: MemoryStore::new(Clock::Manual(Arc::clone(&now)), DEFAULT_MAX_COUNTERS),
        now,
        redis: server.store(Clock::System).await,
        connection: server.connection().await,
        counters: Vec::new(),
        slowest: 0,
        batches: 0,
        sets: 0,
    };
    run.begin();
    let mut compared = 0;
    while compared < REQUESTS {
        compared += run.decide_batch().await;
    }
    println!("{compared} requests in {} batches, on {} sets of counters", run.batches, run.sets);
}
