//! Subjects that are addresses: known by their network, whichever of its addresses is named.

use serde_json::{Value, json};

use crate::client::{decide, done};
use crate::support::eventually;
use crate::support::weir::Settings;

const RULES: &str = r"
domain: api
subject: remote_address
addresses: remote_address
descriptors:
  - {key: remote_address, name: anybody, rate_limit: {unit: day, requests_per_unit: 9}}
  - {key: remote_address, value: {cidr: '2001:db8::/48'}, name: ours, rate_limit: {unit: day, requests_per_unit: 4}}
  - {key: remote_address, value: {cidr: '2001:db8:1::/48'}, name: free, rate_limit: {unlimited: true}}
";

fn of(address: &str, what: &str) -> String {
    format!("/v1/domains/api/subjects/remote_address={address}{what}")
}

#[tokio::test]
async fn a_network_is_one_subject_whichever_address_is_named() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let ask = async |address: &str| decide(&weir, &[("remote_address", address)]).await;
    assert_eq!(ask("2001:db8::1").await, (true, 3));
    assert_eq!(ask("2001:db8::2").await, (true, 2));
    let used = async |address: &str| {
        let usage = done(&weir, "GET", &of(address, "/usage"), json!(null)).await;
        let limits: Vec<Value> = usage["limits"].as_array().expect("a list").clone();
        assert_eq!(limits.len(), 1, "{usage}");
        (usage["subject"].clone(), limits[0]["rule"].clone(), limits[0]["used"].clone())
    };
    let expected = (json!("remote_address=2001:db8::/64"), json!("ours"), json!(2));
    for address in ["2001:db8::1", "2001:db8::ffff", "2001:db8::%2F64"] {
        assert_eq!(used(address).await, expected, "{address}");
    }
    done(&weir, "PATCH", &of("2001:db8::7", ""), json!({"blocked_until": "2100-01-01T00:00:00Z"})).await;
    assert!(!ask("2001:db8::1").await.0 && ask("2001:db8:0:1::1").await.0);
    let listed = done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await;
    assert_eq!(listed["subjects"][0]["subject"], "remote_address=2001:db8::/64");
    done(&weir, "DELETE", &of("2001:db8::9", ""), json!(null)).await;
    assert_eq!(done(&weir, "POST", &of("2001:db8::5", "/reset"), json!({"kind": "all"})).await, json!({"reset": 1}));
    assert_eq!(ask("2001:db8::1").await, (true, 3));

    let named = json!({"subjects": [{"domain": "api", "subject": "remote_address=2001:db8::c", "multiplier": 2}]});
    done(&weir, "POST", "/v1/records", named).await;
    assert_eq!(ask("2001:db8::1").await, (true, 6), "of twice as many");
}

#[tokio::test]
async fn its_history_is_that_of_the_network_too_where_nothing_is_counted() {
    let weir = Settings::with_rules(RULES).start().await;
    for address in ["2001:db8:1::1", "2001:db8:1::2", "2001:db8:1:1::3"] {
        assert!(decide(&weir, &[("remote_address", address)]).await.0);
    }
    eventually("the history of two of them", async || {
        let history = done(&weir, "GET", &of("2001:db8:1::9", "/history"), json!(null)).await;
        let days = history["days"].as_array().expect("a list");
        days.iter().map(|day| day["allowed"].as_u64().expect("a number")).sum::<u64>() == 2
    })
    .await;
}
