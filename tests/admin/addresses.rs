//! Subjects that are addresses: known by their network, whichever of its addresses is named.

use serde_json::{Value, json};

use crate::client::{call, decide, done};
use crate::support::eventually;
use crate::support::redis::RedisServer;
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
async fn a_masked_network_is_a_subject_however_it_is_written() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let ask = async |address: &str| decide(&weir, &[("remote_address", address)]).await;
    assert_eq!(ask("10.1.2.0/24").await, (true, 8));
    assert_eq!(ask("::ffff:10.1.2.0/120").await, (true, 7));
    for named in ["10.1.2.0%2F24", "10.1.2.3%2F24", "::ffff:10.1.2.0%2F120"] {
        let usage = done(&weir, "GET", &of(named, "/usage"), json!(null)).await;
        let limit = &usage["limits"][0];
        assert_eq!((&usage["subject"], &limit["rule"]), (&json!("remote_address=10.1.2.0/24"), &json!("anybody")), "{named}");
        assert_eq!(limit["used"], 2, "{named}");
    }
    done(&weir, "PATCH", &of("10.1.2.3%2F24", ""), json!({"blocked_until": "2100-01-01T00:00:00Z"})).await;
    assert!(!ask("10.1.2.0/24").await.0 && ask("10.1.2.3").await.0 && ask("10.1.0.0/16").await.0);
    // Networks inside the one that addresses are counted by are that one.
    assert_eq!(ask("2001:db8::1").await, (true, 3));
    assert_eq!(ask("2001:db8::4:0/112").await, (true, 2));
    done(&weir, "PATCH", &of("2001:db8::7:0%2F112", ""), json!({"multiplier": 2})).await;
    assert_eq!(ask("2001:db8::1").await, (true, 5), "of twice as many");
}

#[tokio::test]
async fn what_was_said_of_an_address_before_can_be_removed() {
    let redis = RedisServer::start();
    let start = |rules: &str| Settings::with_rules(rules).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start();
    let before = start(&RULES.replace("addresses: remote_address\n", "")).await;
    for address in ["2001:db8::1", "2001:db8::2"] {
        done(&before, "PATCH", &of(address, ""), json!({"multiplier": 2})).await;
    }
    drop(before);
    let weir = start(RULES).await;
    let listed = async || {
        let said = done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await;
        let subjects: Vec<Value> = said["subjects"].as_array().expect("a list").clone();
        subjects.iter().map(|subject| subject["subject"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    done(&weir, "PATCH", &of("2001:db8::1", ""), json!({"multiplier": 3})).await;
    let [one, other] = ["remote_address=2001:db8::1", "remote_address=2001:db8::2"];
    assert_eq!(listed().await, ["remote_address=2001:db8::/64", one, other]);
    let removed = async |address: &str| done(&weir, "DELETE", &of(address, ""), json!(null)).await["removed"] == true;
    assert!(removed("2001:db8::1").await);
    assert_eq!(listed().await, [other]);
    assert!(removed("2001:db8::2").await, "though nothing is said of its network");
    assert!(listed().await.is_empty());
    assert!(!removed("2001:db8::2").await);
}

#[tokio::test]
async fn two_records_of_one_network_are_not_imported() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let import = async |addresses: &[&str]| {
        let named = |address: &&str| json!({"domain": "api", "subject": format!("remote_address={address}"), "multiplier": 2});
        let subjects: Vec<Value> = addresses.iter().map(named).collect();
        call(&weir, "POST", "/v1/records", json!({"subjects": subjects})).await
    };
    let refused = import(&["2001:db8:7::1", "2001:db8::1", "2001:db8::2"]).await;
    let names = ["=2001:db8::1`", "=2001:db8::2`", "=2001:db8::/64`"];
    assert!(refused.status == 400 && names.iter().all(|name| refused.body.contains(name)), "{refused:?}");
    assert_eq!(done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await["subjects"], json!([]), "nothing is imported");
    assert_eq!(import(&["2001:db8:7::1", "2001:db8::1", "2001:db8:0:1::1"]).await.status, 200);
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
