//! What callers make up costs no lasting memory: a million domains and values that nobody will use again, refused, unknown or
//! expired, leave the server where it was.

mod support;

use futures_util::future::join_all;
use support::eventually;
use support::weir::{Settings, Weir, descriptor};
use tonic::transport::Channel;
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;

/// Descriptors of a call: few calls, and none that is itself much to keep in memory.
const PER_CALL: usize = 50;
const CONNECTIONS: usize = 4;
/// Calls under way on a connection.
const IN_FLIGHT: usize = 4;
/// How much more may be resident afterwards. A kind that left 27 bytes behind for each thing made up would show.
const ALLOWED: u64 = 5 << 20;
/// Calls on a connection between two looks at memory.
const QUIET: usize = 20;
/// Looks at memory that find it no smaller, after which it is taken for settled.
const SETTLED: usize = 300;

const RULES: &str = "
domain: d
descriptors:
  - {key: nothing, rate_limit: {unit: day, requests_per_unit: 0}}
  - {key: counted, rate_limit: {unit: day, requests_per_unit: 5}}
  - {key: short, rate_limit: {unit: second, requests_per_unit: 5}}
";

/// Something to make up a value of its own for each number from.
type Kind = fn(usize) -> RateLimitRequest;

/// Kinds of requests with what they are answered and how many calls of them are made: a million things made up in all.
const KINDS: [(&str, Kind, Code, usize); 5] = [
    ("values refused by their own limit", |number| values("nothing", number), Code::OverLimit, 5_000),
    ("values refused by another layer", refused_by_another_layer, Code::OverLimit, 4_000),
    ("values that expire", |number| values("short", number), Code::Ok, 5_000),
    ("values that no rule knows", |number| values("unknown", number), Code::Ok, 4_000),
    ("domains", |number| one_in_a_domain(number), Code::Ok, 100_000),
];

/// A call with many descriptors, each with a value of its own.
fn values(key: &str, number: usize) -> RateLimitRequest {
    let value = |place: usize| format!("a made-up value number {}", number * PER_CALL + place);
    let descriptors = (0..PER_CALL).map(|place| descriptor(&[(key, &value(place))])).collect();
    RateLimitRequest { domain: "d".into(), descriptors, hits_addend: 0 }
}

fn refused_by_another_layer(number: usize) -> RateLimitRequest {
    let mut request = values("counted", number);
    request.descriptors.push(descriptor(&[("nothing", "here")]));
    request
}

fn one_in_a_domain(number: usize) -> RateLimitRequest {
    let domain = format!("a made-up domain number {number}").into();
    RateLimitRequest { domain, descriptors: vec![descriptor(&[("counted", "value")])], hits_addend: 0 }
}

/// Makes the calls of these numbers, spread over connections, with so many under way on each.
async fn call_all(weir: &Weir, numbers: std::ops::Range<usize>, kind: Kind, expected: Code) {
    let connections = join_all((0..CONNECTIONS).map(|_| weir.client())).await;
    let next = std::cell::Cell::new(numbers.start);
    let lane = async |mut client: RateLimitServiceClient<Channel>| {
        while next.get() < numbers.end {
            let number = next.replace(next.get() + 1);
            let answer = client.should_rate_limit(kind(number)).await.expect("an answer");
            assert_eq!(answer.into_inner().overall_code(), expected);
        }
    };
    let lanes = connections.iter().flat_map(|client| std::iter::repeat_n(client, IN_FLIGHT));
    join_all(lanes.map(|client| lane(client.clone()))).await;
}

/// Waits until resident memory is as a look at it asks, while calls that make up nothing go on: an allocator gives back what is free
/// as it works, a second or more after it became free.
async fn wait_for_memory(weir: &Weir, what: &str, mut is_so: impl FnMut(u64) -> bool) {
    let clients = join_all((0..CONNECTIONS).map(|_| weir.client())).await;
    eventually(what, async || {
        let calls = clients.iter().flat_map(|client| std::iter::repeat_n(client, QUIET));
        let ask = async |mut client: RateLimitServiceClient<Channel>| client.should_rate_limit(one_in_a_domain(0)).await;
        for answer in join_all(calls.map(|client| ask(client.clone()))).await {
            assert!(answer.is_ok(), "{answer:?}");
        }
        is_so(weir.resident())
    })
    .await;
}

/// Resident memory once it shrinks no more.
async fn settled(weir: &Weir) -> u64 {
    let (mut least, mut looks) = (u64::MAX, 0);
    wait_for_memory(weir, "memory that has settled", |now| {
        looks = if now < least { 0 } else { looks + 1 };
        least = least.min(now);
        looks == SETTLED
    })
    .await;
    least
}

#[tokio::test]
async fn a_million_made_up_domains_and_values_leave_memory_where_it_was() {
    let weir = Settings::with_rules(RULES).start().await;
    // A tenth of each kind first: what allocator, connections and tables take once.
    for (_, kind, expected, calls) in KINDS {
        call_all(&weir, 0..calls / 10, kind, expected).await;
    }
    let before = settled(&weir).await;
    for (name, kind, expected, calls) in KINDS {
        call_all(&weir, calls..2 * calls, kind, expected).await;
        println!("{name}: {} bytes resident, {before} before", weir.resident());
    }
    wait_for_memory(&weir, &format!("memory of at most {ALLOWED} bytes more than the {before} before"), |now| {
        now <= before + ALLOWED
    })
    .await;
}
