//! `weir explain` against a running weir, in memory and on Redis, and by rules alone: what it says, its exit code, and that it counts
//! nothing.

use std::process::{Command, Stdio};

use regex::Regex;
use serde_json::{Value, json};

use weir::admin::proto::weir::admin::v1::{Descriptor, Entry, ExplainRequest};

use crate::access;
use crate::client::{call, call_as, done};
use crate::support::http;
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};

/// Limits that no hour or day ends while the test runs.
const RULES: &str = r"
domain: api
subject: [user_id]
tiers:
  free: {limits: [2/year]}
  pro: {limits: [{window: 7d, requests: 3, algorithm: sliding_window_log}]}
default_tier: free
costs: {method: {POST: 2}}
descriptors:
  - {key: user_id, name: plan, rate_limit: {tier: {assigned: user_id}}}
  - key: path
    value: /ai
    descriptors:
      - {key: user_id, name: ai, limits: [1/year, {window: 7d, requests: 5, algorithm: sliding_window_log}], block_for: 7d}
  - key: path
    descriptors:
      - {key: model, limits: [9/year]}
  - {key: tenant, value: 'eu-*', shadow_mode: true, limits: [1/year]}
  - {key: address, value: {cidr: 10.0.0.0/8}, deny: true}
  - {key: remote_address, name: per-address, limits: [1/year]}
  - {key: agent, value: 'bot-*', share_threshold: true, limits: [1/year]}
addresses: remote_address
";

fn rules() -> Settings {
    Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true")
}

/// Exit code, what it printed with times taken out, what it complained of.
async fn weir(words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(words).env_clear().stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("weir runs");
    let text = |bytes| String::from_utf8(bytes).expect("weir prints UTF-8");
    let printed =
        Regex::new(r"in \d+(ms|s|[dhm]\d+[hms])").expect("compiles").replace_all(&text(output.stdout), "in _").into_owned();
    // Columns are as wide as the times in them.
    let printed = Regex::new(r" {2,}").expect("compiles").replace_all(&printed, "  ").into_owned();
    (output.status.code().expect("it ends by itself"), printed, text(output.stderr))
}

/// Explains these descriptors by a running weir.
async fn explain(of: &Weir, descriptors: &[&str]) -> (i32, String) {
    let admin = format!("http://127.0.0.1:{}", of.admin);
    let mut words = vec!["explain", "--domain", "api", "--admin", &admin];
    words.extend(descriptors.iter().flat_map(|descriptor| ["--descriptor", descriptor]));
    let (code, printed, complaint) = weir(&words).await;
    assert_eq!(complaint, "", "{descriptors:?}");
    (code, printed.replace(&format!("domain api, by weir at {admin}\n"), ""))
}

/// A request with one descriptor; whether it is admitted.
async fn decide(weir: &Weir, entries: &[(&str, &str)]) -> bool {
    let entries: Vec<Value> = entries.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let body = json!({"domain": "api", "descriptors": [{"entries": entries}]}).to_string();
    http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await.expect("weir answers").status == 200
}

async fn in_both_stores(check: impl AsyncFn(&Weir)) {
    check(&rules().start().await).await;
    let server = RedisServer::start();
    check(&rules().redis(&server.url()).start().await).await;
}

#[tokio::test]
async fn a_limit_of_nothing_is_explained_as_such() {
    in_both_stores(async |weir| {
        let nothing = json!({"limits": [{"limits": [{"limit": "0/year"}]}]});
        done(weir, "PATCH", "/v1/domains/api/subjects/user_id=shut", nothing).await;
        for asked in ["user_id=shut", "user_id=shut;hits=0"] {
            let (code, said) = explain(weir, &[asked]).await;
            let expected = "over_limit: limit `plan` of rule `plan` is 0: it refuses every request, also a look\nrefused by";
            assert!(code == 1 && said.starts_with(expected) && said.contains("never fits"), "{asked}: {said}");
        }
    })
    .await;
}

#[tokio::test]
async fn it_says_which_rule_why_and_what_is_left() {
    in_both_stores(async |weir| {
        let expected = "ok: every limit has room\n\n1. user_id=u1: ok\n  rule  plan (user_id), rules.yaml:10\n  found  user_id=u1 by its key alone\n  \
                        subject  user_id=u1, tier free\n  why  tier `free`, the default: none is assigned to the user_id\n  \
                        LIMIT  FROM  ALGORITHM  SIZE  COST  USED  REMAINING  WHOLE  NOW\n  plan  tier  fixed_window  2/365d  1  0  2  -  room\n";
        assert_eq!(explain(weir, &["user_id=u1"]).await, (0, expected.to_owned()));
        decide(weir, &[("user_id", "u1")]).await;
        let (code, said) = explain(weir, &["user_id=u1,method=POST"]).await;
        assert_eq!(code, 1, "{said}");
        let expected = "over_limit: limit `plan` of rule `plan` has no room; retry in _\nrefused by rule plan, layer user_id, tier free\n\n1. user_id=u1, method=POST: over_limit\n  \
                        rule  plan (user_id), rules.yaml:10\n  found  user_id=u1 by its key alone\n  subject  user_id=u1, tier free\n  \
                        why  looked up without `method`, which says something about the request\n  \
                        tier `free`, the default: none is assigned to the user_id\n  it weighs 2 (`costs`)\n  \
                        LIMIT  FROM  ALGORITHM  SIZE  COST  USED  REMAINING  WHOLE  NOW\n  \
                        plan  tier  fixed_window  2/365d  2  1  1  -  no room, again in _\n";
        assert_eq!(said, expected);
        done(weir, "PUT", "/v1/domains/api/subjects/user_id=u1/tier", json!({"tier": "pro"})).await;
        done(weir, "PATCH", "/v1/domains/api/subjects/user_id=u1", json!({"multiplier": 1.5})).await;
        decide(weir, &[("user_id", "u1")]).await;
        let (code, said) = explain(weir, &["user_id=u1"]).await;
        let expected = "ok: every limit has room\n\n1. user_id=u1: ok\n  rule  plan (user_id), rules.yaml:10\n  found  user_id=u1 by its key alone\n  \
                        subject  user_id=u1, tier pro\n  why  tier `pro`: assigned to the user_id\n  limits × 1.5 for user_id=u1\n  \
                        LIMIT  FROM  ALGORITHM  SIZE  COST  USED  REMAINING  WHOLE  NOW\n  \
                        plan  subject  sliding_window_log  4/7d  1  1  3  in _  room\n";
        assert_eq!((code, said.as_str()), (0, expected));
        done(weir, "PATCH", "/v1/domains/api/subjects/user_id=u1", json!({"blocked_until": "2100-01-01T00:00:00Z"})).await;
        let (code, said) = explain(weir, &["user_id=u1"]).await;
        let block = "an operator has blocked user_id=u1 until 2100-01-01T00:00:00Z";
        assert!(code == 1 && said.starts_with(&format!("over_limit: {block}; retry in ")), "{said}");
        assert!(said.contains("refused by an operator's block, not by a rule") && !said.contains("refused by rule"), "{said}");
        assert!(said.contains("1. user_id=u1: over_limit (blocked)") && said.contains(&format!("why  {block}")), "{said}");
        let asked = json!({"descriptors": [{"entries": [{"key": "user_id", "value": "u1"}]}]});
        let said = done(weir, "POST", "/v1/domains/api/explain", asked).await;
        assert_eq!((&said["cause"], &said["limited_by"], &said["tier"]), (&json!("operator_block"), &json!(""), &json!("")));
    })
    .await;
}

#[tokio::test]
async fn nothing_is_counted_and_no_block_is_set() {
    in_both_stores(async |weir| {
        let (request, entries) = ("path=/ai,user_id=u1", [("path", "/ai"), ("user_id", "u1")]);
        let usage = async || {
            let usage = done(weir, "GET", "/v1/domains/api/subjects/user_id=u1/usage", json!(null)).await;
            let limits = usage["limits"].as_array().expect("a list");
            limits
                .iter()
                .map(|limit| (limit["policy"].clone(), limit["used"].clone(), limit["remaining"].clone()))
                .collect::<Vec<_>>()
        };
        let before = usage().await;
        for _ in 0..5 {
            assert_eq!(explain(weir, &[request, "user_id=u1"]).await.0, 0);
        }
        assert_eq!(usage().await, before);
        assert!(decide(weir, &entries).await, "the only one of the year is still there");
        let before = usage().await;
        let (code, said) = explain(weir, &[request]).await;
        assert!(code == 1 && said.contains("this refusal would block it for 7d"), "{said}");
        assert!(said.contains("\n  block  block_for  block  7d  -  -  -  -  not blocked\n"), "{said}");
        assert_eq!(usage().await, before, "no block either");
        assert!(!decide(weir, &entries).await);
        let before = usage().await;
        let (code, said) = explain(weir, &[request]).await;
        assert!(code == 1 && said.contains("\n  block  block_for  block  7d  -  -  -  -  blocked, free in _\n"), "{said}");
        assert!(
            said.starts_with(
                "over_limit: limit `ai/1-per-365d` of rule `ai` has no room; retry in _\nrefused by rule ai, layer path,user_id\n"
            ),
            "{said}"
        );
        assert_eq!(usage().await, before);
    })
    .await;
}

#[tokio::test]
async fn what_matches_nothing_is_told_what_was_expected() {
    let weir = rules().start().await;
    let cases = [
        (
            "usr_id=u1",
            "why  no descriptor has the key `usr_id`: did you mean `user_id`? known: address, agent, path, remote_address, tenant, user_id\n",
        ),
        ("path=/ai", "found  path=/ai by its value\n  why  no rule ends here; after `path=/ai` comes user_id\n"),
        ("path=/ai,model=m", "rule `path,model` (rules.yaml:17) would match by another way"),
        ("path=/ai,model=m", "after `path=/ai` no descriptor has the key `model`: known: user_id"),
        ("tenant=us-1", "why  the key `tenant` has no value that matches `us-1`: known: eu-*\n"),
        (
            "path=/x,model=m,user_id=u",
            "after `path=/x`, `model=m` nothing follows in the rules, and `user_id` does: both must end together",
        ),
    ];
    for (descriptor, expected) in cases {
        let (code, said) = explain(&weir, &[descriptor]).await;
        assert!(code == 0 && said.starts_with("ok: no rule limits it\n") && said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn modes_patterns_and_switches_are_told() {
    let weir = rules().start().await;
    for _ in 0..2 {
        decide(&weir, &[("tenant", "eu-1")]).await;
    }
    let (code, said) = explain(&weir, &["tenant=eu-1"]).await;
    assert!(code == 0 && said.contains("1. tenant=eu-1: over_limit, and only watched\n"), "{said}");
    assert!(said.contains("tenant=eu-1 by the wildcard eu-*") && said.contains("it only watches (shadow)"), "{said}");
    let (code, said) = explain(&weir, &["user_id=u1", "address=10.1.2.3"]).await;
    assert!(code == 1 && said.starts_with("over_limit: rule `address=cidr(10.0.0.0/8)` says `deny: true`\n"), "{said}");
    assert!(
        said.contains("2. address=10.1.2.3: over_limit (deny)\n") && said.contains("address=10.1.2.3 by cidr(10.0.0.0/8)"),
        "{said}"
    );
    done(&weir, "PUT", "/v1/switch", json!({"switch": "allow"})).await;
    let (code, said) = explain(&weir, &["address=10.1.2.3"]).await;
    assert!(
        code == 0 && said.starts_with("ok: the switch allows everything") && said.contains("the switch is `allow`\n"),
        "{said}"
    );
    done(&weir, "PUT", "/v1/switch", json!({"switch": "shadow"})).await;
    assert_eq!(explain(&weir, &["address=10.1.2.3"]).await.0, 0);
}

#[tokio::test]
async fn what_an_entry_is_counted_as_is_told() {
    in_both_stores(async |weir| {
        let found = "found  remote_address=2001:db8::7 by its key alone (counted as 2001:db8::/64)\n  subject  remote_address=2001:db8::/64\n";
        let (code, said) = explain(weir, &["remote_address=2001:db8::7"]).await;
        assert!(code == 0 && said.contains(found) && said.contains("1/365d  1  0  1  -  room"), "{said}");
        assert!(decide(weir, &[("remote_address", "2001:db8::1")]).await, "another address of that network");
        let (code, said) = explain(weir, &["remote_address=2001:db8::7"]).await;
        assert!(code == 1 && said.contains(found) && said.contains("refused by rule per-address, layer remote_address\n"), "{said}");
        assert_eq!(explain(weir, &["remote_address=2001:db8:0:1::7"]).await.0, 0);
        let (code, said) = explain(weir, &["remote_address=192.0.2.1"]).await;
        assert!(code == 0 && said.contains("remote_address=192.0.2.1 by its key alone\n"), "{said}");
        done(weir, "PATCH", "/v1/domains/api/subjects/remote_address=2001:db8:2::1", json!({"multiplier": 3})).await;
        let (_, said) = explain(weir, &["remote_address=2001:db8:2::9"]).await;
        assert!(said.contains("limits × 3 for remote_address=2001:db8:2::/64\n") && said.contains("  3/365d  "), "{said}");
        let (_, said) = explain(weir, &["agent=bot-1"]).await;
        assert!(said.contains("agent=bot-1 by the wildcard bot-* (counted as bot-*)\n"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn hits_of_a_descriptors_own_look_or_report_and_are_not_weighted() {
    in_both_stores(async |weir| {
        assert!(decide(weir, &[("path", "/ai"), ("user_id", "u1")]).await);
        let report = "why  its own hits report what was used: they count also where there is no room\n";
        let (code, said) = explain(weir, &["path=/ai,user_id=u1;hits=1"]).await;
        assert!(code == 1 && said.contains(report) && !said.contains("would block"), "{said}");
        assert!(said.contains("1. path=/ai, user_id=u1: over_limit\n"), "{said}");
        let (code, said) = explain(weir, &["path=/ai,user_id=u1;hits=0"]).await;
        assert!(
            code == 0 && said.contains("why  a cost of 0 looks: over where more than the limit is used, or the limit is 0\n"),
            "{said}"
        );
        assert!(said.contains("ai/1-per-365d  rule  fixed_window  1/365d  0  1  0  in _  room\n"), "{said}");
        let (code, said) = explain(weir, &["user_id=u1,method=POST;hits=2", "user_id=u2,method=POST"]).await;
        assert!(code == 0 && said.contains("  2/365d  2  0  2  -  room\n\n2."), "{said}");
        assert_eq!(said.matches("it weighs 2 (`costs`)").count(), 1, "{said}");
        assert_eq!(explain(weir, &["user_id=u1;hits=2"]).await.0, 0, "nothing was counted");
    })
    .await;
}

#[tokio::test]
async fn as_json_over_http_and_by_whom() {
    let weir = rules().start().await;
    let path = "/v1/domains/api/explain";
    let asked =
        json!({"descriptors": [{"entries": [{"key": "path", "value": "/ai"}, {"key": "user_id", "value": "u1"}]}], "hits": 2});
    let said = done(&weir, "POST", path, asked.clone()).await;
    assert_eq!(
        (&said["decision"], &said["limited_by"], &said["policy"], &said["layer"], &said["tier"]),
        (&json!("over_limit"), &json!("ai"), &json!("ai/1-per-365d"), &json!("path,user_id"), &json!(""))
    );
    let limit = &said["descriptors"][0]["limits"][1];
    assert_eq!(
        (&limit["used"], &limit["remaining"], &limit["cost"], &limit["outcome"]),
        (&json!(0), &json!(5), &json!(2), &json!("ok"))
    );
    assert_eq!(limit["counter"], "w1|api|path=/ai|{user_id=u1}|sliding_window_log|7d");
    let entries = [("path", "/ai"), ("user_id", "u1")].map(|(key, value)| Entry { key: key.into(), value: value.into() }).to_vec();
    let request = ExplainRequest { domain: "api".into(), descriptors: vec![Descriptor { entries, hits: None }], hits: 2 };
    let by_grpc = access::client(&weir).await.explain(request).await.expect("an answer").into_inner();
    assert_eq!((&*by_grpc.decision, &*by_grpc.policy), ("over_limit", "ai/1-per-365d"));
    let admin = format!("http://127.0.0.1:{}", weir.admin);
    let words = ["explain", "--domain", "api", "--descriptor", "path=/ai,user_id=u1", "--hits", "2", "--json", "--admin", &admin];
    let (code, printed, _) = self::weir(&words).await;
    let mut printed: Value = serde_json::from_str(&printed).expect("JSON");
    printed["at"] = said["at"].clone();
    assert_eq!((code, printed), (1, said));
    assert_eq!(call(&weir, "POST", path, json!({"descriptors": []})).await.status, 400);
    assert_eq!(call(&weir, "POST", "/v1/domains/apii/explain", asked.clone()).await.status, 404);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let tokens = directory.path().join("tokens");
    std::fs::write(&tokens, "ann a-token-that-may-look\n").expect("it is writable");
    let weir = Settings::with_rules(RULES).flag("--admin-read-token-file", tokens.to_str().expect("UTF-8")).start().await;
    assert_eq!(call(&weir, "POST", path, asked.clone()).await.status, 401);
    assert_eq!(call_as(&weir, Some("a-token-that-may-look"), "POST", path, asked).await.status, 200);
}

#[tokio::test]
async fn by_rules_alone_and_with_the_counters_of_a_redis() {
    let server = RedisServer::start();
    let weir = rules().redis(&server.url()).start().await;
    decide(&weir, &[("path", "/ai"), ("user_id", "u1")]).await;
    done(&weir, "PUT", "/v1/domains/api/subjects/user_id=u1/tier", json!({"tier": "pro"})).await;
    let file = weir.rules_file();
    let alone = [
        "explain",
        "--rules",
        file.to_str().expect("UTF-8"),
        "--domain",
        "api",
        "--descriptor",
        "path=/ai,user_id=u1",
        "--descriptor",
        "user_id=u1",
    ];
    let (code, said, _) = self::weir(&alone).await;
    assert!(code == 0 && said.contains("alone, with every counter unused\n") && said.contains("tier free"), "{said}");
    let (url, keys) = (server.url(), server.command::<Vec<String>>(&["KEYS", "*|{user_id=*"]).await);
    let (code, said, complaint) = self::weir(&[alone.as_slice(), &["--store", &url]].concat()).await;
    assert!(code == 1 && said.contains(&format!("and the counters in {url}")) && said.contains("tier pro"), "{complaint}{said}");
    assert!(said.contains("ai/1-per-365d  rule  fixed_window  1/365d  1  1  0  -  no room, again in _"), "{said}");
    assert_eq!(server.command::<Vec<String>>(&["KEYS", "*|{user_id=*"]).await.len(), keys.len());
}

#[tokio::test]
async fn what_cannot_be_said_is_neither() {
    let mut weir = rules().start().await;
    weir.kill();
    let admin = format!("http://127.0.0.1:{}", weir.admin);
    let (code, _, complaint) = self::weir(&["explain", "--domain", "api", "--descriptor", "a=b", "--admin", &admin]).await;
    assert!(code == 2 && complaint.contains("no admin API at 127.0.0.1"), "{code} {complaint}");
    let (code, _, complaint) = self::weir(&["explain", "--domain", "api", "--descriptor", "a=b", "--rules", "no/such/file"]).await;
    assert!(code == 2 && complaint.contains("the rules do not load") && complaint.contains("no/such/file"), "{code} {complaint}");
    assert_eq!(self::weir(&["explain", "--domain", "api"]).await.0, 2);
    let running = rules().start().await;
    let (admin, file) = (format!("http://127.0.0.1:{}", running.admin), running.rules_file());
    let asked = ["explain", "--domain", "apii", "--descriptor", "user_id=u1"];
    for by in [["--admin", &admin], ["--rules", file.to_str().expect("UTF-8")]] {
        let (code, printed, complaint) = self::weir(&[asked.as_slice(), &by].concat()).await;
        assert!(code == 2 && complaint.contains("no domain `apii` is loaded: the rules have api"), "{code} {complaint}");
        assert_eq!(printed, "", "nothing is said of it");
    }
    let server = RedisServer::start();
    let weir = rules().redis(&server.url()).start().await;
    drop(server);
    let (code, said) = explain(&weir, &["user_id=u1"]).await;
    assert!(code == 2 && said.starts_with("unknown: usage unknown: the store"), "{said}");
    assert!(said.contains("plan  tier  fixed_window  2/365d  1  -  -  -  unknown"), "{said}");
}

#[tokio::test]
async fn limits_that_an_override_lifts_are_not_those_of_an_unlimited_rule_or_tier() {
    let weir = rules().start().await;
    for (subject, whose) in [("user_id=u1", "tier"), ("remote_address=192.0.2.1", "rule")] {
        let path = format!("/v1/domains/api/subjects/{subject}");
        done(&weir, "PATCH", &path, json!({"limits": [{"unlimited": true}]})).await;
        let (code, said) = explain(&weir, &[subject]).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(&format!("an override lifts the limits of the {whose} for {subject}")), "{said}");
        assert!(!said.contains("is unlimited"), "{said}");
    }
}
