//! A real Envoy in front of a real weir.

mod support;

use serde_json::json;
use support::envoy::Front;

#[tokio::test]
async fn without_weir_requests_pass() {
    let envoy = Front::asking(support::free_port())
        .rate_limits(json!([{"actions": [{"generic_key": {"descriptor_value": "all"}}]}]))
        .start()
        .await;
    let answer = envoy.get(&[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "upstream"));
    assert_eq!(envoy.stat("cluster.upstream.ratelimit.error").await, 1);
}
