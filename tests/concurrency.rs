//! Exactness under concurrency: thousands of calls at once, through two servers on one Redis and through one in memory, admit
//! what the limit says and not one more or less.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request};
use tonic::transport::Channel;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;

const CALLS: usize = 3_000;
const LIMIT: usize = 100;
/// Connections to each server.
const CONNECTIONS: usize = 4;
const ALGORITHMS: [&str; 5] = ["fixed_window", "sliding_window_log", "sliding_window", "token_bucket", "leaky_bucket"];

/// A rule of each algorithm, and two layers of which one has less room than the other.
const RULES: &str = "
domain: d
descriptors:
  - {key: fixed_window, rate_limit: {unit: hour, requests_per_unit: 100}}
  - {key: sliding_window_log, rate_limit: {unit: hour, requests_per_unit: 100, algorithm: sliding_window_log}}
  - {key: sliding_window, rate_limit: {unit: hour, requests_per_unit: 100, algorithm: sliding_window}}
  - {key: token_bucket, rate_limit: {unit: hour, requests_per_unit: 100, algorithm: token_bucket}}
  - {key: leaky_bucket, rate_limit: {unit: hour, requests_per_unit: 100, algorithm: leaky_bucket}}
  - {key: wide, rate_limit: {unit: day, requests_per_unit: 2000}}
  - {key: narrow, rate_limit: {unit: day, requests_per_unit: 100}}
";

async fn clients(servers: &[&Weir]) -> Vec<RateLimitServiceClient<Channel>> {
    let connections = servers.iter().flat_map(|server| std::iter::repeat_n(server, CONNECTIONS));
    join_all(connections.map(|server| server.client())).await
}

/// All calls at once, dealt out over the clients; how many were admitted.
async fn admitted(clients: &[RateLimitServiceClient<Channel>], descriptors: &[&[(&str, &str)]]) -> usize {
    let call = |number: usize| {
        let (mut client, request) = (clients[number % clients.len()].clone(), request("d", descriptors));
        async move { ask(&mut client, request).await.overall_code() == Code::Ok }
    };
    join_all((0..CALLS).map(call)).await.into_iter().filter(|&is_ok| is_ok).count()
}

/// Runs on counters of one value, and again on others when the clock passed an hour's edge meanwhile.
async fn within_one_window<T>(run: impl AsyncFn(&str) -> T) -> T {
    loop {
        let hour = hours_since_the_epoch();
        let outcome = run(&format!("hour {hour}")).await;
        if hour == hours_since_the_epoch() {
            return outcome;
        }
    }
}

fn hours_since_the_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs() / 3_600
}

async fn every_algorithm_admits_its_limit(servers: &[&Weir]) {
    let clients = clients(servers).await;
    for algorithm in ALGORITHMS {
        let admitted = within_one_window(async |value| admitted(&clients, &[&[(algorithm, value)]]).await).await;
        // A bucket gets one request back every 36 s, which may fall into the run.
        let is_bucket = algorithm.ends_with("bucket");
        let is_exact = admitted == LIMIT || is_bucket && admitted == LIMIT + 1;
        assert!(is_exact, "{algorithm}: {admitted} of {CALLS} admitted at a limit of {LIMIT}");
    }
}

/// What the narrow layer refuses must not be missing in the wide one.
async fn a_refused_request_is_counted_by_no_layer(servers: &[&Weir]) {
    let clients = clients(servers).await;
    let both = within_one_window(async |value| {
        let both = admitted(&clients, &[&[("wide", value)], &[("narrow", value)]]).await;
        (both, admitted(&clients, &[&[("wide", value)]]).await)
    });
    assert_eq!(both.await, (LIMIT, 2_000 - LIMIT));
}

async fn two_servers(redis: &RedisServer) -> [Weir; 2] {
    let server = || Settings::with_rules(RULES).redis(&redis.url()).start();
    let (first, second) = tokio::join!(server(), server());
    [first, second]
}

#[tokio::test]
async fn two_servers_on_one_redis_admit_the_limit() {
    let redis = RedisServer::start();
    let [first, second] = two_servers(&redis).await;
    every_algorithm_admits_its_limit(&[&first, &second]).await;
}

#[tokio::test]
async fn two_servers_on_one_redis_count_all_layers_or_none() {
    let redis = RedisServer::start();
    let [first, second] = two_servers(&redis).await;
    a_refused_request_is_counted_by_no_layer(&[&first, &second]).await;
}

#[tokio::test]
async fn one_server_in_memory_admits_the_limit() {
    let server = Settings::with_rules(RULES).start().await;
    every_algorithm_admits_its_limit(&[&server]).await;
}

#[tokio::test]
async fn one_server_in_memory_counts_all_layers_or_none() {
    let server = Settings::with_rules(RULES).start().await;
    a_refused_request_is_counted_by_no_layer(&[&server]).await;
}
