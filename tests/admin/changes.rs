//! What a change does, to whom, and how soon everywhere.

use serde_json::{Value, json};

use crate::client::{RULES, done, open, subject, user};
use crate::support::eventually;
use crate::support::http;
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir, ask, request};

const LATER: &str = "2100-01-01T00:00:00Z";

/// The `retry-after` of a refusal, in seconds.
async fn retry_after(weir: &Weir, name: &str) -> Option<u64> {
    let body = json!({"domain": "api", "descriptors": [{"entries": [{"key": "user_id", "value": name}]}]}).to_string();
    let answer = http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await?;
    answer.header("retry-after")?.parse().ok()
}

#[tokio::test]
async fn a_subject_is_overridden_listed_and_removed() {
    let weir = open().start().await;
    let path = subject("u1");
    assert_eq!(user(&weir, "u1").await, (true, 2));
    let limits = json!([{"rule": "per-user", "limits": [{"limit": "100/hour"}]}]);
    let said = done(&weir, "PATCH", &path, json!({"limits": limits})).await;
    assert_eq!(said["limits"][0]["limits"][0]["limit"], "100/hour");
    assert_eq!((user(&weir, "u1").await, user(&weir, "u2").await), ((true, 98), (true, 2)), "one was used before");
    done(&weir, "PATCH", &path, json!({"multiplier": 0.5})).await;
    assert_eq!(user(&weir, "u1").await, (true, 47));
    done(&weir, "PATCH", &path, json!({"blocked_until": LATER})).await;
    assert!(!user(&weir, "u1").await.0);
    let retry_after = retry_after(&weir, "u1").await.expect("a blocked caller is told when to come back");
    assert!(retry_after > 365 * 24 * 3600, "{retry_after}");
    done(&weir, "PATCH", &path, json!({"clear": ["blocked_until"]})).await;
    assert_eq!(user(&weir, "u1").await, (true, 46));
    done(&weir, "PATCH", &subject("u0"), json!({"allowed_until": LATER})).await;
    for _ in 0..5 {
        assert!(user(&weir, "u0").await.0);
    }
    let listed = done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await;
    let names: Vec<&Value> = listed["subjects"].as_array().expect("a list").iter().map(|subject| &subject["subject"]).collect();
    assert_eq!(names, ["user_id=u0", "user_id=u1"]);
    assert_eq!(listed["subjects"][1]["multiplier"], 0.5);
    assert_eq!(done(&weir, "DELETE", &path, json!(null)).await, json!({"removed": true}));
    assert_eq!(done(&weir, "DELETE", &path, json!(null)).await, json!({"removed": false}));
    assert!(!user(&weir, "u1").await.0, "what it used is kept: more than three");
    let cleared = done(&weir, "PATCH", &subject("u0"), json!({"clear": ["allowed_until"]})).await;
    assert!(cleared.get("allowed_until").is_none(), "{cleared}");
    assert_eq!(done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await["subjects"], json!([]));
}

#[tokio::test]
async fn an_operators_block_is_told_as_such_and_not_as_the_rules_refusal() {
    let response = "response: {headers: [x_ratelimit, retry_after, rule], body: problem, metadata: true}\ndescriptors:";
    let rules = RULES.replace("descriptors:\n  - key: user_id", &format!("{response}\n  - key: user_id"));
    let weir = Settings::with_rules(&rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    done(&weir, "PATCH", &subject("u1"), json!({"blocked_until": LATER})).await;
    let refused = ask(&mut weir.client().await, request("api", &[&[("user_id", "u1")]])).await;
    assert_eq!(refused.overall_code, 2);
    let names: Vec<&str> = refused.response_headers_to_add.iter().map(|header| &*header.key).collect();
    assert_eq!(names, ["Retry-After", "content-type"], "neither the rule nor its layer");
    let body: Value = serde_json::from_slice(&refused.raw_body).expect("JSON");
    assert_eq!((&body["violated-policies"], &body["detail"]), (&json!(["operator-block"]), &json!("blocked by an operator")));
    assert_eq!((&body["type"], body.get("rule"), body["status"].as_u64()), (&json!("about:blank"), None, Some(429)));
    let metadata = refused.dynamic_metadata.expect("it is asked for").fields;
    assert!(
        metadata.contains_key("blocked_by") && !metadata.contains_key("rule") && !metadata.contains_key("layer"),
        "{metadata:?}"
    );
}

#[tokio::test]
async fn limits_and_quotas_of_a_rule_are_replaced_apart() {
    let weir = open().start().await;
    let path = subject("cap");
    let change = async |limits: Value| done(&weir, "PATCH", &path, json!({"limits": [limits]})).await["limits"].clone();
    change(json!({"daily": 2})).await;
    assert_eq!(change(json!({"limits": [{"limit": "500/minute"}]})).await[0]["daily"], 2);
    let said = change(json!({"monthly": 9})).await;
    assert_eq!(
        (&said[0]["daily"], &said[0]["monthly"], &said[0]["limits"][0]["limit"]),
        (&json!(2), &json!(9), &json!("500/minute"))
    );
    let said = change(json!({"unlimited": true})).await;
    assert_eq!((&said[0]["daily"], &said[0]["monthly"], &said[0]["unlimited"]), (&json!(2), &json!(9), &json!(true)));
    assert_eq!(said[0]["limits"], json!([]));
    let said = change(json!({"daily": 1})).await;
    assert_eq!((&said[0]["daily"], &said[0]["monthly"], &said[0]["unlimited"]), (&json!(1), &json!(9), &json!(true)));
    assert_eq!([user(&weir, "cap").await.0, user(&weir, "cap").await.0], [true, false], "the daily quota");
    change(json!({"daily": 100})).await;
    let said = change(json!({"limits": [{"limit": "5/hour"}]})).await;
    assert!(said[0].get("unlimited").is_none_or(|unlimited| unlimited == false), "{said}");
    let said = change(json!({"rule": "per-user", "limits": [{"limit": "7/hour"}]})).await;
    assert_eq!((said.as_array().map(Vec::len), &said[0]["daily"]), (Some(2), &json!(100)), "another rule's are beside it");
    assert!(said[1].get("daily").is_none_or(Value::is_null), "{said}");
}

#[tokio::test]
async fn pages_follow_each_other() {
    let weir = open().start().await;
    for number in 0..5 {
        done(&weir, "PATCH", &subject(&format!("u{number}")), json!({"multiplier": 2})).await;
    }
    let mut names = in_pages_of_two(&weir, "/v1/domains/api/subjects").await;
    assert_eq!(names.len(), 5);
    names.dedup();
    assert_eq!(names.len(), 5);
}

/// The names of the subjects on all pages.
async fn in_pages_of_two(weir: &Weir, list: &str) -> Vec<String> {
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let path = format!("{list}?page_size=2&page_token={}", token.replace('|', "%7C").replace('=', "%3D"));
        let page = done(weir, "GET", &path, json!(null)).await;
        let name = |subject: &Value| subject["subject"].as_str().expect("a name").to_owned();
        names.extend(page["subjects"].as_array().expect("a list").iter().map(name));
        page["next_page_token"].as_str().expect("a token").clone_into(&mut token);
        if token.is_empty() {
            return names;
        }
    }
}

/// Evicted, or removed while the page is put together.
#[tokio::test]
async fn a_record_that_is_gone_does_not_end_the_list() {
    let server = RedisServer::start();
    let weir = open().redis(&server.url()).start().await;
    for number in 0..5 {
        done(&weir, "PATCH", &subject(&format!("u{number}")), json!({"multiplier": 2})).await;
    }
    let deleted: u64 = server.command(&["DEL", "w1|{records}|subject|api|user_id=u1"]).await;
    assert_eq!(deleted, 1);
    for list in ["/v1/domains/api/subjects", "/v1/records"] {
        assert_eq!(in_pages_of_two(&weir, list).await, ["user_id=u0", "user_id=u2", "user_id=u3", "user_id=u4"], "{list}");
    }
}

#[tokio::test]
async fn the_switch_allows_or_shadows_everything() {
    let weir = open().start().await;
    for _ in 0..3 {
        user(&weir, "u1").await;
    }
    assert!(!user(&weir, "u1").await.0);
    done(&weir, "PUT", "/v1/switch", json!({"switch": "allow"})).await;
    assert!(user(&weir, "u1").await.0);
    done(&weir, "PUT", "/v1/switch", json!({"switch": "off"})).await;
    assert!(!user(&weir, "u1").await.0);
    done(&weir, "PUT", "/v1/switch", json!({"switch": "shadow", "domain": "api"})).await;
    assert!(user(&weir, "u1").await.0);
    assert_eq!(done(&weir, "GET", "/v1/switch?domain=api", json!(null)).await["switch"], "shadow");
    done(&weir, "PUT", "/v1/switch", json!({"switch": "off", "domain": "api"})).await;
    assert!(!user(&weir, "u1").await.0);
}

#[tokio::test]
async fn what_is_exported_can_be_imported_and_is_the_same() {
    let (one, other) = (open().start().await, open().start().await);
    let limits = json!([
        {"rule": "ai", "limits": [{"limit": "7 per 90s", "algorithm": "token_bucket", "burst": 9}], "daily": 3},
        {"unlimited": true, "monthly": 1},
    ]);
    let body = json!({"limits": limits, "multiplier": 0.333333, "blocked_until": LATER});
    for body in [body, json!({"allowed_until": LATER})] {
        done(&one, "PATCH", "/v1/domains/api/subjects/user_id=a%2Fb%7C100%25", body).await;
    }
    done(&one, "PATCH", &subject("u1"), json!({"multiplier": 2})).await;
    let sets = json!([{"name": "write", "limits": [{"limit": "1/second"}, {"limit": "9/minute"}]}]);
    done(&one, "PUT", "/v1/domains/api/tiers/team", json!({"limits": [], "sets": sets, "daily": 5, "priority": "high"})).await;
    done(&one, "PUT", "/v1/switch", json!({"switch": "shadow"})).await;
    done(&one, "PUT", "/v1/switch", json!({"switch": "allow", "domain": "api"})).await;
    let exported = done(&one, "GET", "/v1/records", json!(null)).await;
    assert_eq!(exported["subjects"].as_array().map(Vec::len), Some(2));
    assert_eq!(done(&other, "POST", "/v1/records", exported.clone()).await, json!({"imported": 5}));
    assert_eq!(done(&other, "GET", "/v1/records", json!(null)).await, exported);
}

#[tokio::test]
async fn with_memory_records_are_of_one_process_and_with_redis_of_all() {
    let server = RedisServer::start();
    let one = open().redis(&server.url()).start().await;
    let other = Settings::with_rules(RULES).redis(&server.url()).start().await;
    done(&one, "PATCH", &subject("u1"), json!({"multiplier": 1000})).await;
    eventually("the other replica knows", async || user(&other, "u1").await.1 > 3).await;
    drop((one, other));
    let later = Settings::with_rules(RULES).redis(&server.url()).start().await;
    assert!(user(&later, "u1").await.1 > 0, "it outlasts restarts");
    let listed = done(&later, "GET", &subject("u1"), json!(null)).await;
    assert_eq!(listed["multiplier"], 1000.0);
}
