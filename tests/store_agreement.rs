//! Memory and Redis decide alike, to the last unit: both go through the same random requests on an injected
//! clock, and after each batch every outcome and every state must be equal. `AGREEMENT_SEED=n` explores from
//! another seed. What Redis does by its own clock alone is in `store_agreement_by_redis_clock`.

mod support {
    pub mod agreement;
    pub mod redis;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::cmd;
use futures_util::future::join_all;
use support::agreement::{Random, parse};
use support::redis::RedisServer;
use weir::limit::reservation::Gate;
use weir::limit::{
    Algorithm, Charge, Check, DAY, Edges, HOUR, Limit, LimitError, MAX_EXACT, MAX_LOG_REQUESTS, MINUTE, MONTH, Micros, Mode,
    Operation, Period, SECOND, State, WEEK, YEAR,
};
use weir::rules::key::{self, Key, Part};
use weir::rules::reservation;
use weir::store::memory::{DEFAULT_MAX_COUNTERS, MemoryStore};
use weir::store::redis::RedisStore;
use weir::store::reservations::{Gated, Passed, ReservationStore};
use weir::store::{Clock, Group, StoreError, Wait};

const SEEDS: [u64; 4] = [1, 2, 3, 4];
/// Requests decided by both stores for each seed.
const REQUESTS: usize = 30_000;
/// Batches on one set of counters, before another one is begun.
const ROUNDS: usize = 100;
const MAX_REQUESTS_A_BATCH: u64 = 64;

const TTLS: [Micros; 4] = [SECOND, MINUTE, HOUR, DAY];
const WINDOWS: [Micros; 11] = [250, SECOND, 10 * SECOND, MINUTE, 61 * SECOND, HOUR, DAY, DAY + SECOND, WEEK, YEAR, 10 * YEAR];

#[tokio::test]
async fn memory_and_redis_agree() {
    let seeds = match std::env::var("AGREEMENT_SEED") {
        Ok(seed) => vec![seed.parse().expect("AGREEMENT_SEED is a number")],
        Err(_) => SEEDS.to_vec(),
    };
    let server = RedisServer::start();
    for seed in seeds {
        let mut run = Run::new(&server, seed).await;
        run.decide(REQUESTS).await;
    }
}

/// Both stores on one clock.
struct Run {
    random: Random,
    seed: u64,
    now: Arc<AtomicU64>,
    memory: MemoryStore,
    redis: RedisStore,
    connection: MultiplexedConnection,
    counters: Vec<Counter>,
    reservations: Vec<Key>,
    decided: usize,
}

/// What both stores are asked.
#[derive(Debug)]
enum Asked {
    Plain(Group),
    Gated(Gated),
}

impl Asked {
    async fn of<S: ReservationStore>(&self, store: &S) -> Result<Passed, StoreError> {
        let wait = Wait::of(Duration::from_secs(60));
        match self {
            Asked::Plain(group) => store.apply(group, wait).await.map(|outcomes| Passed::Decided { outcomes, expires: None }),
            Asked::Gated(gated) => store.pass(gated, wait).await,
        }
    }
}

/// A counter that requests of this run share: its shape is fixed, its size is not.
struct Counter {
    key: Key,
    algorithm: Algorithm,
    window: Micros,
}

impl Run {
    async fn new(server: &RedisServer, seed: u64) -> Run {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Clock::Manual(Arc::clone(&now));
        let redis = server.store(clock.clone()).await;
        Run {
            random: Random(seed),
            seed,
            now,
            memory: MemoryStore::new(clock, DEFAULT_MAX_COUNTERS),
            redis,
            connection: server.connection().await,
            counters: Vec::new(),
            reservations: Vec::new(),
            decided: 0,
        }
    }

    async fn decide(&mut self, requests: usize) {
        for set in 0.. {
            self.begin(set);
            for _ in 0..ROUNDS {
                let batch: Vec<Asked> = (0..=self.random.below(MAX_REQUESTS_A_BATCH)).map(|_| self.asked()).collect();
                self.decide_batch(&batch).await;
                if self.decided >= requests {
                    return;
                }
                self.move_clock().await;
            }
        }
    }

    /// Fresh counters: few, so that requests of a batch meet; the tenth of them used by nearly everyone.
    fn begin(&mut self, set: usize) {
        self.now.store(1_700_000_000 * SECOND + self.random.below(YEAR), Ordering::Release);
        let few = 6 + self.random.below(60);
        self.counters = (0..few)
            .map(|number| {
                let algorithm = self.random.one_of(&Algorithm::ALL);
                let window = match algorithm {
                    Algorithm::Calendar => self.random.one_of(&[DAY, MONTH]),
                    _ => self.random.one_of(&WINDOWS),
                };
                let name = format!("{}-{set}-{number}", self.seed);
                let parts = [Part { key: b"counter", value: name.as_bytes(), shared: false }];
                let shape = weir::limit::Shape { algorithm, window };
                let key =
                    key::key(&key::domain_prefix("", b"agreement"), &key::entries(parts.into_iter(), 0), &key::shape_suffix(shape));
                Counter { key, algorithm, window }
            })
            .collect();
        let domain = key::domain_prefix("", b"agreement");
        let name = |number: u64| reservation::key_of(&domain, format!("{}-{set}", self.seed).as_bytes(), &number.to_string());
        self.reservations = (0..1 + few / 4).map(name).collect();
    }

    async fn decide_batch(&mut self, batch: &[Asked]) {
        let by_redis = join_all(batch.iter().map(|asked| asked.of(&self.redis))).await;
        let now = self.now.load(Ordering::Acquire);
        for (asked, by_redis) in batch.iter().zip(by_redis) {
            let by_memory = asked.of(&self.memory).await;
            self.decided += 1;
            assert_eq!(
                by_redis, by_memory,
                "seed {}, request {}, at {now}: Redis, then memory, for {asked:#?}",
                self.seed, self.decided
            );
        }
        self.compare_reservations(now).await;
        for (counter, by_redis) in self.counters.iter().zip(self.stored().await) {
            let by_memory = self.memory.state(&counter.key);
            let absent = by_memory.is_none() && by_redis.as_ref().is_some_and(|state| counter.is_over(state, now));
            assert!(
                by_redis == by_memory || absent,
                "seed {}, request {}, at {now}: {:?} is {by_redis:?} in Redis and {by_memory:?} in memory",
                self.seed,
                self.decided,
                counter.key
            );
        }
    }

    async fn compare_reservations(&self, now: Micros) {
        let wait = Wait::of(Duration::from_secs(60));
        for key in &self.reservations {
            let by_redis = self.redis.kept(key, wait).await.expect("Redis answers");
            let by_redis = by_redis.filter(|kept| kept.reservation.expires > now);
            assert_eq!(by_redis, self.memory.reservation(key), "seed {}, at {now}: Redis, then memory, of {key:?}", self.seed);
        }
    }

    async fn stored(&self) -> Vec<Option<State>> {
        let mut command = cmd("MGET");
        for counter in &self.counters {
            command.arg(counter.key.as_bytes());
        }
        let stored: Vec<Option<Vec<u8>>> = command.query_async(&mut self.connection.clone()).await.expect("Redis answers");
        let both = stored.into_iter().zip(&self.counters);
        both.map(|(stored, counter)| stored.map(|stored| parse(&stored, counter.algorithm))).collect()
    }

    /// Not at all, within a tick, within a window, over windows, and back. Redis expires by the real clock, so what is over by
    /// the injected one is deleted where that could be told: a bucket whose size will change, and all before a step back.
    async fn move_clock(&mut self) {
        let before = self.now.load(Ordering::Acquire);
        let window = self.random.one_of(&self.counters.iter().map(|counter| counter.window).collect::<Vec<_>>());
        let (steps_back, by) = match self.random.below(10) {
            0 | 1 => (false, 0),
            2 => (false, self.random.below(2_000)),
            3..=5 => (false, self.random.below(window / 4 + 1)),
            6 => (false, window),
            7 => (false, self.random.below(3 * window)),
            8 => (true, self.random.below(window / 2 + 1)),
            _ => (true, self.random.below(2 * window)),
        };
        if steps_back {
            self.memory.sweep();
            self.forget(|_| true).await;
        }
        let after = if steps_back { before - by } else { (before + by).min(4_000_000_000 * SECOND) };
        self.now.store(after, Ordering::Release);
        self.memory.sweep();
        self.forget(|counter| counter.algorithm.is_bucket()).await;
    }

    /// Deletes from Redis what has expired in memory.
    async fn forget(&self, which: impl Fn(&Counter) -> bool) {
        let over = self.counters.iter().filter(|counter| which(counter) && self.memory.state(&counter.key).is_none());
        let gone = self.reservations.iter().filter(|key| self.memory.reservation(key).is_none());
        let over: Vec<&[u8]> = over.map(|counter| counter.key.as_bytes()).chain(gone.map(Key::as_bytes)).collect();
        if !over.is_empty() {
            cmd("DEL").arg(over).exec_async(&mut self.connection.clone()).await.expect("Redis answers");
        }
    }

    fn asked(&mut self) -> Asked {
        if !self.random.one_in(4) {
            return Asked::Plain(self.group());
        }
        let key = self.reservations[self.random.index(self.reservations.len())].clone();
        let memo: Arc<[u8]> = self.random.next().to_string().into_bytes().into();
        if self.random.one_in(2) {
            let (estimate, ttl) = (1 + self.random.below(20), self.random.one_of(&TTLS));
            return Asked::Gated(Gated { key, gate: Gate::Reserve { estimate, ttl }, memo, group: self.group() });
        }
        // Of one that was there before this batch, or is made in it; now and then of another one.
        let now = self.now.load(Ordering::Acquire);
        let made = self.memory.reservation(&key).map_or(now, |kept| kept.reservation.made);
        let made = if self.random.one_in(5) { self.random.one_of(&[now, now - 1]) } else { made };
        let operation = self.random.one_of(&[Operation::Refund, Operation::Report]);
        let mut group = Group { refused: false, ..self.group() };
        // Nothing is there twice: refunds' counters may occur again behind them.
        let mut seen = std::collections::HashSet::new();
        let is_first: Vec<bool> = group.keys.iter().map(|key| seen.insert(key.clone())).collect();
        let mut keep = is_first.iter().copied();
        group.keys.retain(|_| keep.next().unwrap_or(false));
        let mut keep = is_first.iter().copied();
        group.checks.retain(|_| keep.next().unwrap_or(false));
        for check in &mut group.checks {
            check.operation = operation;
        }
        Asked::Gated(Gated { key, gate: Gate::Commit { actual: self.random.below(20), made }, memo, group })
    }

    /// A request: refunds first, then checks on distinct counters; a refund's counter may occur again.
    fn group(&mut self) -> Group {
        let mut group = Group { refused: self.random.one_in(20), ..Group::default() };
        let refunds = if self.random.one_in(5) { 1 + self.random.below(2) } else { 0 };
        let others = match self.random.below(8) {
            0..=3 => 1,
            4 | 5 => 2,
            _ => 1 + self.random.below(5),
        };
        let mut is_taken = vec![false; self.counters.len()];
        for place in 0..refunds + others {
            if place == refunds {
                is_taken.fill(false);
            }
            let number = self.random.index(self.counters.len());
            if !std::mem::replace(&mut is_taken[number], true) {
                let check = self.check(number, place < refunds);
                group.keys.push(self.counters[number].key.clone());
                group.checks.push(check);
            }
        }
        group
    }

    fn check(&mut self, number: usize, is_refund: bool) -> Check {
        let random = &mut self.random;
        let limit = self.counters[number].limit(random, self.now.load(Ordering::Acquire));
        let operation = match is_refund {
            true => Operation::Refund,
            false => random.one_of(&[Operation::Take, Operation::Take, Operation::Take, Operation::Look, Operation::Report]),
        };
        let cost = match random.below(12) {
            0 => 0,
            1..=5 => 1,
            6 | 7 => 1 + random.below(10),
            8 => limit.capacity() / 2 + 1,
            9 => limit.capacity(),
            10 => limit.capacity().saturating_add(1 + random.below(3)),
            _ => random.one_of(&[u64::MAX, u64::from(u32::MAX), 1 << 53, (1 << 53) - 1]),
        };
        Check {
            limit,
            operation,
            cost,
            mode: random.one_of(&[Mode::Enforce, Mode::Enforce, Mode::Shadow, Mode::Quota]),
            charge: random.one_of(&[Charge::Admitted, Charge::Admitted, Charge::Always]),
            max_delay: if random.one_in(3) { Some(random.below(2 * limit.window())) } else { None },
            owner: u16::try_from(random.below(3)).expect("it is small"),
        }
    }
}

impl Counter {
    fn period(&self) -> Option<Period> {
        let period = if self.window == DAY { Period::Day } else { Period::Month };
        (self.algorithm == Algorithm::Calendar).then_some(period)
    }

    /// Periods of unequal length: one in three begins an hour late, one two hours.
    fn edges(&self, number: u64) -> Edges {
        [0, 1, 2].map(|more| (number + more) * self.window + (number + more) % 3 * HOUR)
    }

    fn period_at(&self, now: Micros) -> u64 {
        let number = now / self.window;
        if self.edges(number)[0] > now { number - 1 } else { number }
    }

    /// Any size that this shape can have, small ones above all.
    fn limit(&self, random: &mut Random, now: Micros) -> Limit {
        if let Some(period) = self.period() {
            let few = 1 + random.below(12);
            let requests = random.one_of(&[0, few, few, few, MAX_EXACT / 8]);
            // A process whose clock is early or late names the period after or before.
            let number = self.period_at(now) + random.one_of(&[0, 0, 1]) - random.one_of(&[0, 0, 1]);
            return Limit::quota(period, requests).expect("a quota").on(self.edges(number));
        }
        if self.algorithm == Algorithm::Penalty {
            return Limit::penalty(1 + random.below(self.window)).expect("a short block is a block");
        }
        let build = |requests, burst| Limit::new(self.algorithm, requests, self.window, burst);
        let largest = match build(u64::MAX, None) {
            Err(LimitError::TooLarge { largest, .. }) => largest,
            _ => MAX_LOG_REQUESTS,
        };
        let requests = match random.below(20) {
            0 => 0,
            1 => largest,
            2 => 1 + random.below(largest),
            3..=5 => 1 + random.below(largest.min(1_000)),
            _ => 1 + random.below(12),
        };
        let largest_burst = match build(requests, Some(u64::MAX)) {
            Err(LimitError::BurstTooLarge { largest, .. }) => largest,
            _ => 0,
        };
        let burst = match random.below(8) {
            _ if !self.algorithm.is_bucket() || requests == 0 => None,
            0 => Some(0),
            1 => Some(largest_burst),
            2..=4 => Some(random.below(30).min(largest_burst)),
            _ => None,
        };
        let limit = build(requests, burst).expect("the size is within bounds");
        match random.below(4) {
            0 => limit.holding_back(random.below(limit.capacity() + 1)),
            _ => limit,
        }
    }

    /// Whether a state that Redis still keeps says no more than none would. Buckets are deleted in time instead.
    fn is_over(&self, state: &State, now: Micros) -> bool {
        let limit = match self.algorithm {
            Algorithm::Penalty => Limit::penalty(self.window),
            Algorithm::Calendar => {
                Limit::quota(self.period().expect("a period"), 1).map(|limit| limit.on(self.edges(self.period_at(now))))
            }
            algorithm => Limit::new(algorithm, 1, self.window, None),
        };
        let limit = limit.expect("it is a small limit");
        match self.algorithm {
            Algorithm::Penalty => limit.step(Some(state), now, 0, None).outcome.is_allowed(),
            algorithm => !algorithm.is_bucket() && limit.refund(Some(state), now, 1).next.is_none(),
        }
    }
}
