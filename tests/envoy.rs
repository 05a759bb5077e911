//! A real Envoy in front of a real weir.

mod support;

use serde_json::{Value, json};
use support::envoy::{Envoy, Front};
use support::http::Answer;
use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request};
use support::{eventually, free_port};

const RULES: &str = "
domain: envoy
response: {metadata: true}
descriptors:
  - {key: generic_key, value: few, name: few, rate_limit: {unit: day, requests_per_unit: 3}}
  - {key: generic_key, value: many, name: many, rate_limit: {unit: day, requests_per_unit: 1000}}
  - {key: agent, name: agents, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: user, name: users, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: tokens, name: budget, rate_limit: {unit: day, requests_per_unit: 100}}
";

/// An action that makes the descriptor `generic_key: value`.
fn generic(value: &str) -> Value {
    json!({"actions": [{"generic_key": {"descriptor_value": value}}]})
}

/// An action that copies a request header.
fn header(name: &str, key: &str) -> Value {
    json!({"actions": [{"request_headers": {"header_name": name, "descriptor_key": key}}]})
}

async fn statuses(envoy: &Envoy, headers: &[(&str, &[u8])], times: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..times {
        statuses.push(envoy.get(headers).await.status);
    }
    statuses
}

/// What is left of a counter, seen without counting.
async fn remaining(weir: &Weir, entry: (&str, &str)) -> u32 {
    let mut look = request("envoy", &[&[entry]]);
    look.descriptors[0].hits_addend = Some(0);
    ask(&mut weir.client().await, look).await.statuses[0].limit_remaining
}

#[tokio::test]
async fn requests_pass_until_the_limit_and_are_429_then() {
    let weir = Settings::with_rules(RULES).start().await;
    let envoy = Front::asking(weir.grpc).rate_limits(json!([generic("few")])).start().await;
    assert_eq!(statuses(&envoy, &[], 5).await, [200, 200, 200, 429, 429]);
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.ok").await, 3);
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.over_limit").await, 2);
}

/// The file that users start from, beside the rules that weir starts with; what it protects is weir's own HTTP port.
#[tokio::test]
async fn the_example_configuration_works_with_the_example_rules() {
    let weir = Settings::with_rules(include_str!("../config/rules/example.yaml")).start().await;
    let mut config = include_str!("../config/envoy.yaml").to_owned();
    for (port, free) in [(10_000, 0), (8_081, weir.grpc), (8_000, weir.http)] {
        let (written, wanted) = (format!("port_value: {port}}}"), format!("port_value: {free}}}"));
        assert!(config.contains(&written), "{port}");
        // Without the timeout of a quick answer, which a busy machine may not give.
        config = config.replace(&written, &wanted).replace("timeout: 0.02s", "timeout: 10s");
    }
    let envoy = Envoy::of_yaml(&config).await;
    let ann: [(&str, &[u8]); 1] = [("x-login", b"ann")];
    let answers = statuses(&envoy, &ann, 5).await;
    assert_eq!(answers[3..], [429, 429], "three attempts a minute: {answers:?}");
    assert!(answers[..3].iter().all(|&status| status != 429), "{answers:?}");
    assert_ne!(envoy.get(&[("x-login", b"bob")]).await.status, 429);
}

#[tokio::test]
async fn headers_and_body_reach_the_caller() {
    let rules = RULES
        .replace("response: {metadata: true}", "response: {headers: [ratelimit, x_ratelimit, retry_after, rule], body: problem}");
    let weir = Settings::with_rules(&rules).start().await;
    let envoy = Front::asking(weir.grpc).rate_limits(json!([generic("few"), generic("many")])).start().await;
    let passed = envoy.get(&[]).await;
    assert_eq!((passed.status, passed.body.as_str()), (200, "upstream"));
    assert_eq!(passed.header("x-ratelimit-limit"), Some("3"), "{passed:?}");
    assert_eq!(passed.header("x-ratelimit-remaining"), Some("2"));
    assert!(
        passed.header("ratelimit-policy").is_some_and(|policy| policy.contains("q=3") && policy.contains("w=86400")),
        "{passed:?}"
    );
    assert!(passed.header("ratelimit").is_some_and(|limit| limit.contains("r=2")), "{passed:?}");
    assert_eq!(passed.header("retry-after"), None);
    statuses(&envoy, &[], 2).await;
    let refused = envoy.get(&[]).await;
    assert_eq!((refused.status, refused.header("content-type")), (429, Some("application/problem+json")));
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    let retry_after: u32 = refused.header("retry-after").expect("a refusal says when").parse().expect("seconds");
    assert!((1..=86_400).contains(&retry_after), "{retry_after}");
    let problem: Value = serde_json::from_str(&refused.body).expect("JSON");
    assert_eq!(problem["violated-policies"], json!(["few"]), "{problem}");
}

#[tokio::test]
async fn who_refused_is_in_the_headers_the_body_and_the_metadata() {
    let rules = "
domain: envoy
response: {headers: [x_ratelimit, rule], body: problem, metadata: true}
tiers: {free: {limits: [1/day]}, pro: {limits: [5/day]}}
default_tier: free
descriptors:
  - {key: generic_key, value: many, name: many, rate_limit: {unit: day, requests_per_unit: 1000}}
  - {key: user, name: per-user, rate_limit: {tier: {entry: tier}}}
";
    let weir = Settings::with_rules(rules).start().await;
    let by_tier = json!({"actions": [
        {"request_headers": {"header_name": "x-user", "descriptor_key": "user"}},
        {"request_headers": {"header_name": "x-tier", "descriptor_key": "tier"}},
    ]});
    let envoy = Front::asking(weir.grpc)
        .rate_limits(json!([generic("many"), by_tier]))
        .response_header("x-metadata", "%DYNAMIC_METADATA(envoy.filters.http.ratelimit)%")
        .start()
        .await;
    let headers: [(&str, &[u8]); 2] = [("x-user", b"ada"), ("x-tier", b"pro")];
    assert_eq!(statuses(&envoy, &headers, 5).await, [200; 5]);
    let refused = envoy.get(&headers).await;
    assert_eq!(refused.status, 429);
    for (name, expected) in [("x-ratelimit-rule", "per-user"), ("x-ratelimit-layer", "user"), ("x-ratelimit-tier", "pro")] {
        assert_eq!(refused.header(name), Some(expected), "{name}");
    }
    let told = json!({"rule": "per-user", "layer": "user", "tier": "pro"});
    let body: Value = serde_json::from_str(&refused.body).expect("JSON");
    let metadata: Value = serde_json::from_str(refused.header("x-metadata").expect("metadata")).expect("JSON");
    for name in ["rule", "layer", "tier"] {
        assert_eq!((&body[name], &metadata[name]), (&told[name], &told[name]), "{body}, {metadata}");
    }
    assert_eq!((&metadata["limit"], &metadata["remaining"], &metadata["cost"]), (&json!(5), &json!(0), &json!(1)));
}

#[tokio::test]
async fn addresses_of_one_network_share_a_limit() {
    let rules = "
domain: envoy
addresses: remote_address
descriptors:
  - {key: remote_address, rate_limit: {unit: day, requests_per_unit: 2}}
";
    let weir = Settings::with_rules(rules).start().await;
    let envoy = Front::asking(weir.grpc).rate_limits(json!([{"actions": [{"remote_address": {}}]}])).start().await;
    let from = async |address: &str| envoy.get(&[("x-forwarded-for", address.as_bytes())]).await.status;
    assert_eq!([from("2001:db8::1").await, from("2001:db8::ffff:1").await, from("2001:db8::2").await], [200, 200, 429]);
    assert_eq!([from("2001:db8:0:1::1").await, from("192.0.2.1").await, from("192.0.2.2").await], [200, 200, 200]);
    assert_eq!([from("192.0.2.1").await, from("192.0.2.1").await, from("192.0.2.2").await], [200, 429, 200]);
    assert_eq!(remaining(&weir, ("remote_address", "2001:db8:0:1::abcd")).await, 1);
}

#[tokio::test]
async fn masked_addresses_are_matched_and_counted_by_network() {
    let rules = "
domain: envoy
addresses: {masked_remote_address: {ipv4: 16, ipv6: 48}}
descriptors:
  - {key: masked_remote_address, value: {cidr: 10.0.0.0/8}, name: ours, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: masked_remote_address, value: {cidr: '2001:db8::/32'}, name: v6, rate_limit: {unit: day, requests_per_unit: 1}}
";
    let weir = Settings::with_rules(rules).start().await;
    let mask = json!({"v4_prefix_mask_len": 24, "v6_prefix_mask_len": 64});
    let envoy = Front::asking(weir.grpc).rate_limits(json!([{"actions": [{"masked_remote_address": mask}]}])).start().await;
    let from = async |address: &str| envoy.get(&[("x-forwarded-for", address.as_bytes())]).await.status;
    assert_eq!([from("10.1.2.3").await, from("10.1.9.4").await, from("10.1.7.7").await], [200, 200, 429]);
    assert_eq!([from("10.2.2.3").await, from("192.0.2.1").await, from("192.0.2.1").await, from("192.0.2.1").await], [200; 4]);
    assert_eq!([from("2001:db8:0:1::1").await, from("2001:db8:0:2::1").await, from("2001:db8:1::1").await], [200, 429, 200]);
    assert_eq!(remaining(&weir, ("masked_remote_address", "10.2.2.0/24")).await, 1);
}

#[tokio::test]
async fn envoys_own_headers_come_from_the_statuses() {
    let weir = Settings::with_rules(RULES).start().await;
    let envoy = Front::asking(weir.grpc)
        .rate_limits(json!([generic("many"), generic("few")]))
        .filter(json!({"enable_x_ratelimit_headers": "DRAFT_VERSION_03"}))
        .start()
        .await;
    let answer = envoy.get(&[]).await;
    let limit = answer.header("x-ratelimit-limit").expect("Envoy makes it");
    assert!(
        limit.starts_with("3, ") && limit.contains("1000;w=86400;name=\"many\"") && limit.contains("3;w=86400;name=\"few\""),
        "{limit}"
    );
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("2"));
    let reset: u32 = answer.header("x-ratelimit-reset").expect("Envoy makes it").parse().expect("seconds");
    assert!(reset <= 86_400, "{reset}");
}

#[tokio::test]
async fn one_descriptor_that_is_over_refuses_and_charges_none_of_the_others() {
    let weir = Settings::with_rules(RULES).start().await;
    let envoy = Front::asking(weir.grpc).rate_limits(json!([generic("many"), header("x-user", "user")])).start().await;
    assert_eq!(statuses(&envoy, &[("x-user", b"ada")], 4).await, [200, 200, 429, 429]);
    assert_eq!(statuses(&envoy, &[("x-user", b"bob")], 1).await, [200]);
    // Without the header Envoy leaves that descriptor out.
    assert_eq!(statuses(&envoy, &[], 3).await, [200, 200, 200]);
    assert_eq!(remaining(&weir, ("generic_key", "many")).await, 1000 - 6);
}

#[tokio::test]
async fn header_bytes_that_are_no_utf8_are_limited_like_any_value() {
    let weir = Settings::with_rules(RULES).start().await;
    let envoy = Front::asking(weir.grpc)
        .rate_limits(json!([header("x-agent", "agent")]))
        .filter(json!({"failure_mode_deny": true}))
        .start()
        .await;
    assert_eq!(statuses(&envoy, &[("x-agent", b"caf\xe9 \xff\xfe")], 4).await, [200, 200, 429, 429]);
    assert_eq!(statuses(&envoy, &[("x-agent", b"caf\xe9 \xff\xfd")], 3).await, [200, 200, 429]);
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.error").await, 0);
}

#[tokio::test]
async fn what_a_response_cost_is_charged_when_it_is_done() {
    let weir = Settings::with_rules(RULES).start().await;
    let budget = |hits: Value| {
        let mut limit =
            json!({"actions": [{"generic_key": {"descriptor_key": "tokens", "descriptor_value": "t"}}], "hits_addend": hits});
        if limit["hits_addend"].get("format").is_some() {
            limit["apply_on_stream_done"] = true.into();
        }
        limit
    };
    let envoy = Front::asking(weir.grpc)
        .rate_limits_with_hits(json!([budget(json!({"number": 0})), budget(json!({"format": "%RESP(x-tokens)%"}))]))
        .start()
        .await;
    let spend = async |tokens: &str, left: u32| {
        let answer = envoy.get(&[("x-use-tokens", tokens.as_bytes())]).await;
        assert_eq!((answer.status, answer.header("x-tokens")), (200, Some(tokens)));
        eventually(&format!("{left} tokens left"), async || remaining(&weir, ("tokens", "t")).await == left).await;
    };
    spend("30", 70).await;
    spend("60", 10).await;
    // More than is left is charged too, and the next request is refused before it begins.
    spend("25", 0).await;
    assert_eq!(statuses(&envoy, &[("x-use-tokens", b"1")], 2).await, [429, 429]);
}

#[tokio::test]
async fn negative_hits_are_given_back() {
    let weir = Settings::with_rules(RULES).start().await;
    let actions = json!([{"generic_key": {"descriptor_key": "tokens", "descriptor_value": "t"}}]);
    let envoy = Front::asking(weir.grpc)
        .rate_limits_with_hits(json!([
            {"actions": actions, "hits_addend": {"number": 40}},
            {"actions": actions, "hits_addend": {"number": 30, "is_negative_hits": true}, "apply_on_stream_done": true},
        ]))
        .start()
        .await;
    for left in [90, 80, 70] {
        assert_eq!(envoy.get(&[]).await.status, 200);
        eventually(&format!("{left} left"), async || remaining(&weir, ("tokens", "t")).await == left).await;
    }
}

#[tokio::test]
async fn dynamic_metadata_is_there_for_other_filters_and_logs() {
    let weir = Settings::with_rules(RULES).start().await;
    let envoy = Front::asking(weir.grpc)
        .rate_limits(json!([generic("many"), generic("few")]))
        .response_header("x-metadata", "%DYNAMIC_METADATA(envoy.filters.http.ratelimit)%")
        .start()
        .await;
    let answer = envoy.get(&[]).await;
    let metadata: Value = serde_json::from_str(answer.header("x-metadata").expect("metadata")).expect("JSON");
    assert!(metadata.to_string().contains("few"), "{metadata}");
}

fn passed(answer: &Answer) -> bool {
    answer.status == 200 && answer.body == "upstream"
}

#[tokio::test]
async fn without_weir_requests_pass_or_not_as_envoy_is_told() {
    let port = free_port();
    let open = Front::asking(port).rate_limits(json!([generic("few")])).start().await;
    let closed = Front::asking(port).rate_limits(json!([generic("few")])).filter(json!({"failure_mode_deny": true})).start().await;
    assert!(passed(&open.get(&[]).await));
    assert_eq!(open.stat("cluster.upstream.ratelimit.error").await, 1);
    assert_eq!(closed.get(&[]).await.status, 500);
}

#[tokio::test]
async fn when_weir_dies_requests_pass_or_not_as_envoy_is_told() {
    let mut weir = Settings::with_rules(RULES).start().await;
    let front = || Front::asking(weir.grpc).rate_limits(json!([generic("few")]));
    let open = front().start().await;
    let closed = front().filter(json!({"failure_mode_deny": true})).start().await;
    assert_eq!(statuses(&open, &[], 2).await, [200, 200]);
    assert_eq!(statuses(&closed, &[], 2).await, [200, 429]);
    weir.kill();
    assert_eq!(statuses(&open, &[], 3).await, [200, 200, 200]);
    assert_eq!(statuses(&closed, &[], 3).await, [500, 500, 500]);
}

#[tokio::test]
async fn when_redis_hangs_envoy_hears_so_in_time() {
    let redis = RedisServer::start();
    // Envoy's patience is far longer than the store timeout: an error that comes is weir's own answer.
    let weir = Settings::with_rules(RULES).flag("--store", &redis.url()).flag("--store-timeout", "100ms").start().await;
    let front = || Front::asking(weir.grpc).rate_limits(json!([generic("few")])).filter(json!({"timeout": "50s"}));
    let open = front().start().await;
    let closed = front().filter(json!({"failure_mode_deny": true})).start().await;
    assert_eq!(statuses(&open, &[], 1).await, [200]);
    redis.pause();
    assert_eq!(statuses(&open, &[], 3).await, [200, 200, 200]);
    assert_eq!(open.stat("cluster.upstream.ratelimit.error").await, 3);
    assert_eq!(statuses(&closed, &[], 3).await, [500, 500, 500]);
    redis.resume();
    eventually("limits again", async || closed.get(&[]).await.status == 429).await;
}
