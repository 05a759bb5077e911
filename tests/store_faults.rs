//! A Redis that is killed, hangs, is slow, absent, emptied or cut off: every call is answered as the rules say, nothing is asked
//! twice, and decisions are exact again once it is back.

mod support {
    pub mod proxy;
    pub mod redis;
    pub mod rules;
}

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use support::proxy::{Mode, Proxy};
use support::redis::RedisServer;
use support::rules::{descriptor, domain, fixed, hits, request};
use tokio::time::{Instant, timeout};
use weir::limit::HOUR;
use weir::limiter::{Answer, Limiter, LimiterSettings, Shared};
use weir::rules::decision::{Code, Degraded};
use weir::rules::plan::PlanSettings;
use weir::rules::{OnStoreFailure, Rule, RuleSet};
use weir::store::Clock;
use weir::store::deny_cache::{DenyCache, Refusals};
use weir::store::guard::{Guard, SharedBreaker};
use weir::store::memory::MemoryStore;
use weir::store::redis::{Connector, RedisSettings, RedisStore};

/// Longer than a busy machine makes a healthy Redis wait.
const STORE_TIMEOUT: Duration = Duration::from_millis(300);
/// No test lasts this long; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// The limit of every rule here, an hour.
const LIMIT: u64 = 4;

const POLICIES: [(&str, OnStoreFailure); 4] = [
    ("error", OnStoreFailure::Error),
    ("allow", OnStoreFailure::Allow),
    ("deny", OnStoreFailure::Deny),
    ("local", OnStoreFailure::Local),
];

type GuardedStore = DenyCache<Guard<RedisStore>>;

/// weir without its network, in front of a Redis.
struct Trial {
    limiters: Vec<Limiter<GuardedStore>>,
    breaker: Arc<SharedBreaker>,
    shared: Arc<Shared>,
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Ok,
    Over,
    /// By `on_store_failure`.
    Degraded(Degraded, Code),
    Unavailable,
}

impl Answered {
    fn is_degraded(self) -> bool {
        matches!(self, Answered::Degraded(..) | Answered::Unavailable)
    }
}

impl Trial {
    /// With a rule for each policy, keyed by its name, on `threads` connections to `url`.
    fn new(url: &str, threads: usize) -> Trial {
        Trial::with(0, STORE_TIMEOUT, url, threads)
    }

    /// With so many bytes for refusals, and so much time for the store.
    fn with(bytes: usize, store_timeout: Duration, url: &str, threads: usize) -> Trial {
        let settings = RedisSettings {
            url: url.to_owned(),
            ca_file: None,
            key_prefix: String::new(),
            connect_timeout: store_timeout,
            store_timeout,
        };
        let connector = Connector::new(settings).expect("an address of Redis");
        let breaker = Arc::new(SharedBreaker::new(store_timeout));
        tokio::spawn(Arc::clone(&breaker).probe_while_open());
        let limiter = LimiterSettings { plan: PlanSettings::default(), store_timeout };
        let shared = Arc::new(Shared::new(MemoryStore::new(Clock::System, 1_000), limiter));
        shared.load(RuleSet { domains: domains(), revision: 1 });
        let refusals = Arc::new(Refusals::new(bytes));
        let store = || DenyCache::new(Guard::new(RedisStore::new(&connector, Clock::System), &breaker), Arc::clone(&refusals));
        let limiters = (0..threads).map(|_| Limiter::new(Arc::clone(&shared), store())).collect();
        Trial { limiters, breaker, shared }
    }

    async fn connected(url: &str, threads: usize) -> Trial {
        let trial = Trial::new(url, threads);
        for thread in 0..threads {
            trial.redis(thread).ready().await;
        }
        trial
    }

    fn redis(&self, thread: usize) -> &RedisStore {
        self.limiters[thread].store().store().store()
    }

    async fn ask_on(&self, thread: usize, key: &str, value: &str) -> Answered {
        let answer = self.limiters[thread].decide(&request([descriptor(&[(key, value)])]), Instant::now(), None).await;
        answered(&answer)
    }

    async fn ask(&self, key: &str, value: &str) -> Answered {
        self.ask_on(0, key, value).await
    }

    /// How much of a counter is used, seen by a rule whose limit is out of reach.
    async fn used(&self, value: &str) -> u64 {
        let look = request([hits(0, descriptor(&[("large", value)]))]);
        match self.limiters[0].decide(&look, Instant::now(), None).await {
            Answer::Decided(decided) if decided.decision.degraded.is_none() => {
                let outcome = decided.decision.statuses[0].outcome().expect("a limited status");
                u64::from(u32::MAX) - outcome.remaining()
            }
            other => panic!("the store is there again: {other:?}"),
        }
    }

    /// Asks until the breaker is open: every call is answered as its rule says, by Redis or without it.
    async fn ask_until_open(&self, value: &str) {
        while !self.breaker.is_open() {
            join_all(POLICIES.iter().chain(&POLICIES).map(|(name, _)| self.ask(name, value))).await;
        }
    }

    async fn until_closed(&self) {
        self.breaker.watch().wait_for(|open| !open).await.expect("the breaker lives");
    }

    /// The store answers by itself again, and the limit is the limit.
    async fn is_exact(&self, value: &str) {
        for (name, _) in POLICIES {
            let mut answers = Vec::new();
            for _ in 0..=LIMIT {
                answers.push(self.ask(name, value).await);
            }
            let mut exact = vec![Answered::Ok; LIMIT as usize];
            exact.push(Answered::Over);
            assert_eq!(answers, exact, "{name}");
        }
    }
}

fn domains() -> HashMap<Box<[u8]>, Arc<weir::rules::Domain>, foldhash::fast::RandomState> {
    let rule = |policy| Rule { on_store_failure: policy, ..fixed(LIMIT, HOUR) };
    let [error, allow, deny, local] = POLICIES.map(|(name, policy)| ([(name, "")], rule(policy)));
    let large = ([("large", "")], fixed(u64::from(u32::MAX), HOUR));
    let rules = [error, allow, deny, local, large];
    let rules: Vec<(&[(&str, &str)], Rule)> = rules.iter().map(|(path, rule)| (&path[..], rule.clone())).collect();
    [(Box::from(*b"d"), Arc::new(domain(&rules)))].into_iter().collect()
}

fn answered(answer: &Answer) -> Answered {
    match answer {
        Answer::Decided(decided) => match (decided.decision.degraded, decided.decision.code) {
            (Some(by), code) => Answered::Degraded(by, code),
            (None, Code::Ok) => Answered::Ok,
            (None, Code::OverLimit) => Answered::Over,
        },
        Answer::Unavailable(_) => Answered::Unavailable,
        Answer::Invalid(reason) => panic!("{reason}"),
    }
}

/// What the rules of each policy answer without the store; the fifth local one is over.
async fn assert_degraded(trial: &Trial, value: &str) {
    for call in 0..=LIMIT {
        assert_eq!(trial.ask("error", value).await, Answered::Unavailable);
        assert_eq!(trial.ask("allow", value).await, Answered::Degraded(Degraded::Allow, Code::Ok));
        assert_eq!(trial.ask("deny", value).await, Answered::Degraded(Degraded::Deny, Code::OverLimit));
        let code = if call < LIMIT { Code::Ok } else { Code::OverLimit };
        assert_eq!(trial.ask("local", value).await, Answered::Degraded(Degraded::Local, code));
    }
}

/// Fails rather than hangs.
async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(PATIENCE, test).await.expect("every call is answered")
}

#[tokio::test]
async fn killed_and_started_again() {
    in_time(async {
        let mut redis = RedisServer::start();
        let trial = Trial::connected(&redis.url(), 2).await;
        trial.is_exact("before").await;
        redis.kill();
        trial.ask_until_open("failing").await;
        assert_degraded(&trial, "while").await;
        assert!(trial.breaker.is_open(), "probes without a server are bad");
        redis.restart();
        trial.until_closed().await;
        trial.is_exact("before").await;
        for thread in 0..2 {
            assert_eq!(trial.ask_on(thread, "error", &format!("thread {thread}")).await, Answered::Ok, "both connections are back");
        }
    })
    .await;
}

#[tokio::test]
async fn absent_at_the_start() {
    in_time(async {
        let mut redis = RedisServer::start();
        redis.kill();
        let trial = Trial::new(&redis.url(), 1);
        trial.ask_until_open("failing").await;
        assert_degraded(&trial, "while").await;
        redis.restart();
        trial.until_closed().await;
        trial.is_exact("after").await;
    })
    .await;
}

/// Stopped without a closed connection: what was sent waits in the socket, and may be counted when it goes on.
#[tokio::test]
async fn hung() {
    in_time(async {
        let redis = RedisServer::start();
        let trial = Trial::connected(&redis.url(), 1).await;
        assert_eq!(trial.ask("large", "u").await, Answered::Ok);
        redis.pause();
        let mut calls = 0;
        while !trial.breaker.is_open() {
            let some = join_all((0..3).map(|_| trial.ask("large", "u"))).await;
            assert_eq!(some, [Answered::Unavailable; 3]);
            calls += 3;
        }
        assert_degraded(&trial, "while").await;
        redis.resume();
        trial.until_closed().await;
        let used = trial.used("u").await;
        assert!((1..=1 + calls).contains(&used), "{used} of {calls} calls and one before");
        trial.is_exact("after").await;
    })
    .await;
}

/// Busy for longer than the store timeout, again and again.
#[tokio::test]
async fn slow() {
    in_time(async {
        let redis = RedisServer::start_with(&["--enable-debug-command", "yes"]);
        let trial = Trial::connected(&redis.url(), 1).await;
        for round in 0..2 {
            let mut own = redis.connection().await;
            let sleeping = tokio::spawn(async move {
                let mut sleep = deadpool_redis::redis::cmd("DEBUG");
                sleep.arg("SLEEP").arg(2).query_async::<()>(&mut own).await
            });
            let value = format!("round {round}");
            trial.ask_until_open(&value).await;
            assert_eq!(trial.ask("error", &value).await, Answered::Unavailable);
            trial.until_closed().await;
            drop(sleeping);
            trial.is_exact(&format!("after {round}")).await;
        }
    })
    .await;
}

/// More requests at once than the lane has room for: they wait for it, and what is short of room says nothing of Redis, which answers.
#[tokio::test]
async fn a_full_queue_in_front_of_a_good_redis_leaves_the_breaker_closed() {
    in_time(async {
        let redis = RedisServer::start();
        let trial = Trial::with(0, PATIENCE, &redis.url(), 1);
        trial.redis(0).ready().await;
        let open = trial.breaker.watch();
        let answers = join_all((0..10_000).map(|_| trial.ask("large", "u"))).await;
        assert!(answers.iter().all(|&answer| answer == Answered::Ok));
        assert!(!trial.breaker.is_open() && !open.has_changed().expect("the breaker lives"), "Redis answered all along");
        assert_eq!(trial.used("u").await, 10_000);
    })
    .await;
}

#[tokio::test]
async fn emptied_of_data_and_of_scripts() {
    in_time(async {
        let redis = RedisServer::start();
        let trial = Trial::connected(&redis.url(), 1).await;
        trial.is_exact("u").await;
        redis.command::<String>(&["FLUSHALL"]).await;
        trial.is_exact("u").await;
        assert_eq!(trial.ask("error", "u").await, Answered::Over);
        redis.command::<String>(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(trial.ask("error", "u").await, Answered::Over, "nothing was run: told the script, and asked again");
        trial.is_exact("v").await;
        assert!(!trial.breaker.is_open());
    })
    .await;
}

/// Connections are killed by the server while calls are under way.
#[tokio::test]
async fn cut_by_the_server_under_load() {
    in_time(async {
        let redis = RedisServer::start();
        let trial = Trial::connected(&redis.url(), 2).await;
        let (mut allowed, mut calls) = (0, 0);
        for round in 0..20 {
            let some = (0..40).map(|call| trial.ask_on(call % 2, "large", "u"));
            let killing = redis.command::<u64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            let (answers, _) = tokio::join!(join_all(some), killing);
            calls += answers.len() as u64;
            allowed += answers.iter().filter(|&&answer| answer == Answered::Ok).count() as u64;
            assert!(answers.iter().all(|&answer| answer == Answered::Ok || answer == Answered::Unavailable), "round {round}");
            trial.until_closed().await;
        }
        while trial.ask("error", "probe").await.is_degraded() {
            trial.until_closed().await;
        }
        let used = trial.used("u").await;
        assert!(allowed <= used && used <= calls, "{allowed} admitted, {used} counted, {calls} asked");
        trial.is_exact("after").await;
    })
    .await;
}

async fn behind_proxy(redis: &RedisServer) -> (Proxy, Trial) {
    let address = redis.url().trim_start_matches("redis://").parse().expect("an address");
    let proxy = Proxy::to(address).await;
    let trial = Trial::connected(&format!("redis://{}", proxy.address()), 1).await;
    (proxy, trial)
}

/// However the connection breaks, a call is counted once at most, and is not asked again.
#[tokio::test]
async fn a_call_whose_answer_is_lost_is_counted_once_at_most() {
    in_time(async {
        let redis = RedisServer::start();
        for (mode, counted) in [(Mode::Mute, 1), (Mode::CutAfter, 1), (Mode::CutBefore, 0)] {
            let (proxy, trial) = behind_proxy(&redis).await;
            let value = format!("{mode:?}");
            assert_eq!(trial.ask("large", &value).await, Answered::Ok);
            // Asked again over another connection, it would be answered.
            proxy.once(mode);
            assert_eq!(trial.ask("large", &value).await, Answered::Unavailable, "{mode:?}");
            trial.redis(0).ready().await;
            while trial.ask("error", &value).await.is_degraded() {
                trial.until_closed().await;
            }
            assert_eq!(trial.used(&value).await, 1 + counted, "{mode:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_in_one_batch_with_a_broken_one_are_all_answered() {
    in_time(async {
        let redis = RedisServer::start();
        let (proxy, trial) = behind_proxy(&redis).await;
        for mode in [Mode::CutAfter, Mode::Mute, Mode::CutBefore] {
            proxy.set(mode);
            let answers = join_all((0..200).map(|_| trial.ask("large", "u"))).await;
            assert!(answers.iter().all(|&answer| answer == Answered::Unavailable), "{mode:?}");
            assert!(trial.breaker.is_open());
            proxy.set(Mode::Pass);
            trial.until_closed().await;
            assert_eq!(trial.ask("large", "u").await, Answered::Ok);
        }
        assert!(trial.used("u").await <= 603);
    })
    .await;
}

#[tokio::test]
async fn replicas_share_a_limit_while_each_decides_by_itself() {
    in_time(async {
        let mut redis = RedisServer::start();
        redis.kill();
        let trial = Trial::new(&redis.url(), 1);
        trial.shared.set_replicas(2);
        let mut codes = Vec::new();
        for _ in 0..3 {
            codes.push(trial.ask("local", "u").await);
        }
        let local = |code| Answered::Degraded(Degraded::Local, code);
        assert_eq!(codes, [local(Code::Ok), local(Code::Ok), local(Code::OverLimit)]);
    })
    .await;
}

#[tokio::test]
async fn a_refused_caller_who_keeps_asking_costs_redis_little() {
    in_time(async {
        let redis = RedisServer::start();
        let trial = Trial::with(1 << 20, STORE_TIMEOUT, &redis.url(), 1);
        trial.redis(0).ready().await;
        trial.is_exact("u").await;
        let before = script_calls(&redis).await;
        for _ in 0..300 {
            assert_eq!(trial.ask("error", "u").await, Answered::Over);
        }
        let asked = script_calls(&redis).await - before;
        assert!(asked < 100, "{asked} of 300 went to Redis");
    })
    .await;
}

async fn script_calls(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).expect("the script was called");
    line.split(['=', ',']).nth(1).and_then(|calls| calls.parse().ok()).expect("a number of calls")
}
