//! What a decision costs Redis: µs of its CPU, kernel and network included, by algorithm and by decisions in a batch. Prints a
//! table.
//!
//! `cargo bench --bench redis_cpu`. The build profile hardly matters: what is measured is redis-server.

#[path = "../tests/support/redis.rs"]
mod redis;

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use redis::RedisServer;
use weir::limit::{Algorithm, Check, HOUR, Limit, Operation};
use weir::rules::key::{self, Part};
use weir::store::redis::RedisStore;
use weir::store::{Clock, Group, Store, Wait};

const BATCHES: [usize; 4] = [1, 8, 32, 64];
const KEYS: usize = 10_000;
/// Every algorithm and batch size is measured so often, over all counters; the pass that other work on the machine disturbed
/// least counts.
const PASSES: usize = 5;

/// What is measured: a name, and the limits that each request asks.
const CASES: [(&str, &[Algorithm], u64); 9] = [
    ("fixed_window", &[Algorithm::FixedWindow], 1_000_000),
    ("sliding_window", &[Algorithm::SlidingCounter], 100_000),
    ("token_bucket", &[Algorithm::TokenBucket], 100_000),
    ("leaky_bucket", &[Algorithm::LeakyBucket], 100_000),
    ("sliding_window_log of 10", &[Algorithm::SlidingLog], 10),
    ("sliding_window_log of 1000", &[Algorithm::SlidingLog], 1_000),
    ("fixed_window, refused", &[Algorithm::FixedWindow], 0),
    ("fixed_window and token_bucket", &[Algorithm::FixedWindow, Algorithm::TokenBucket], 100_000),
    (
        "fixed_window, token_bucket, sliding_window",
        &[Algorithm::FixedWindow, Algorithm::TokenBucket, Algorithm::SlidingCounter],
        100_000,
    ),
];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:<52}{}", "µs of Redis CPU a decision, batch of", BATCHES.map(|batch| format!("{batch:>8}")).concat());
    for (name, algorithms, requests) in CASES {
        let mut row = String::new();
        for batch in BATCHES {
            let cpu = measure(algorithms, requests, batch).await;
            row.push_str(&format!("{cpu:>8.2}"));
        }
        println!("{name:<52}{row}");
    }
}

async fn measure(algorithms: &[Algorithm], requests: u64, batch: usize) -> f64 {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let groups: Vec<Group> = (0..KEYS).map(|number| group(algorithms, requests, number)).collect();
    // Every counter is there before it counts.
    decide(&store, &groups, batch).await;
    let mut least = f64::INFINITY;
    for _ in 0..PASSES {
        let before = cpu_micros(&server);
        decide(&store, &groups, batch).await;
        least = least.min((cpu_micros(&server) - before) / groups.len() as f64);
    }
    least
}

/// A decision on every counter, in batches.
async fn decide(store: &RedisStore, groups: &[Group], batch: usize) {
    for groups in groups.chunks(batch) {
        let wait = Wait::of(Duration::from_secs(10));
        let decided = join_all(groups.iter().map(|group| store.apply(group, wait))).await;
        assert!(decided.iter().all(Result::is_ok), "{decided:?}");
    }
}

fn group(algorithms: &[Algorithm], requests: u64, number: usize) -> Group {
    let mut group = Group::default();
    for &algorithm in algorithms {
        let limit = Limit::new(algorithm, requests, HOUR, None).expect("the limit is good");
        let user = format!("u{number}");
        let parts = [Part { key: b"user_id", value: user.as_bytes(), shared: false }];
        let entries = key::entries(parts.into_iter(), 0);
        group.keys.push(key::key(&key::domain_prefix("", b"api"), &entries, &key::shape_suffix(limit.shape())));
        group.checks.push(Check::new(limit, Operation::Take, 1));
    }
    group
}

/// User and system time so far of the thread that serves.
fn cpu_micros(server: &RedisServer) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/schedstat", server.pid())).expect("the server's process exists");
    let nanos: f64 = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("nanoseconds come first");
    nanos / 1_000.0
}
