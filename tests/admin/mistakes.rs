//! Names that the rules do not have, changes that contradict each other or change nothing, and misspelt fields.

use serde_json::{Value, json};
use weir::admin::proto::weir::admin::v1 as proto;

use crate::access;
use crate::client::{call, done, open, subject};
use crate::support::http;
use crate::support::weir::{Settings, Weir};

const RULES: &str = r"
domain: api
subject: [user_id, tenant]
tiers:
  free: {limits: [2/hour]}
  pro: {limits: {default: [9/hour], write: [3/hour]}, quota: {daily: 50}, priority: high}
  enterprise: {limits: [unlimited]}
default_tier: free
descriptors:
  - {key: user_id, name: per-user, rate_limit: {tier: {assigned: user_id}}}
  - {key: tenant, name: per-tenant, limits: [5/hour], quota: {monthly: 100}}
  - {key: path, value: /ai, descriptors: [{key: user_id, name: ai, limits: [4/hour]}]}
  - {key: remote_address, name: internal, rate_limit: {unlimited: true}}
  - {key: region, name: per-region, rate_limit: {tier: {assigned: account}}}
";
const LATER: &str = "2100-01-01T00:00:00Z";

pub(crate) async fn start() -> Weir {
    Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await
}

pub(crate) fn of(subject: &str, what: &str) -> String {
    format!("/v1/domains/api/subjects/{subject}{what}")
}

/// A refusal's status and reason.
async fn refused(weir: &Weir, method: &str, path: &str, body: Value) -> (u16, String) {
    let answer = call(weir, method, path, body.clone()).await;
    let refusal: Value = serde_json::from_str(&answer.body).expect("the answer is JSON");
    (answer.status, refusal["error"].as_str().unwrap_or_else(|| panic!("{method} {path} {body}: {answer:?}")).to_owned())
}

pub(crate) fn warnings(answer: &Value) -> Vec<&str> {
    answer["warnings"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

#[tokio::test]
async fn an_unknown_domain_is_an_error_that_names_the_domains() {
    let weir = start().await;
    let (path, expected) =
        ("/v1/domains/apii/subjects/user_id=u1", "no domain `apii` is loaded: the rules have api; did you mean `api`?");
    let descriptors = json!({"descriptors": [{"entries": [{"key": "user_id", "value": "u1"}]}]});
    for (method, path, body) in [
        ("GET", path, json!(null)),
        ("PATCH", path, json!({"multiplier": 2})),
        ("DELETE", path, json!(null)),
        ("GET", "/v1/domains/apii/subjects", json!(null)),
        ("PUT", &format!("{path}/tier"), json!({"tier": "pro"})),
        ("DELETE", &format!("{path}/tier"), json!(null)),
        ("GET", &format!("{path}/usage"), json!(null)),
        ("GET", &format!("{path}/history"), json!(null)),
        ("POST", &format!("{path}/reset"), json!({"kind": "all"})),
        ("POST", "/v1/domains/apii/explain", descriptors),
        ("GET", "/v1/domains/apii/tiers", json!(null)),
        ("PUT", "/v1/domains/apii/tiers/pro", json!({"daily": 1})),
        ("DELETE", "/v1/domains/apii/tiers/pro", json!(null)),
        ("GET", "/v1/switch?domain=apii", json!(null)),
        ("PUT", "/v1/switch", json!({"domain": "apii", "switch": "off"})),
    ] {
        let (status, reason) = refused(&weir, method, path, body).await;
        assert!(status == 404 && reason.contains(expected), "{method} {path}: {status} {reason}");
    }
    let many: Vec<String> =
        (0..30).map(|number| format!("domain: d{number:02}\ndescriptors: [{{key: k, limits: [1/hour]}}]\n")).collect();
    let weir = Settings::with_rules(&many.join("---\n")).start().await;
    let (_, reason) = refused(&weir, "GET", "/v1/domains/x/tiers", json!(null)).await;
    assert!(reason.contains("the rules have d00, d01") && reason.contains("d19 and 10 more"), "{reason}");
}

#[tokio::test]
async fn an_import_names_the_record_and_the_field() {
    let weir = start().await;
    let good = json!({"domain": "api", "subject": "user_id=good", "tier": "pro"});
    let of_domain = |domain: &str| json!({"domain": domain, "subject": "user_id=u1", "multiplier": 2});
    let limits = json!([{"limits": [{"limit": "5/hour"}]}, {"rule": "per-usr", "daily": 3}]);
    for (records, expected) in [
        (
            json!({"subjects": [good, {"domain": "api", "subject": "user_id=u1", "tier": "prp"}]}),
            "subjects[1].tier: `user_id=u1` of domain `api`: domain `api` has no tier `prp`: it has free, pro, enterprise; did you mean `pro`?",
        ),
        (
            json!({"subjects": [{"domain": "api", "subject": "user_id=u1", "limits": limits}]}),
            "subjects[0].limits[1].rule: `user_id=u1` of domain `api`: domain `api` has no rule `per-usr`",
        ),
        (
            json!({"subjects": [good, good, of_domain("apii")]}),
            "subjects[1]: `user_id=good` of domain `api`: there are two records",
        ),
        (
            json!({"subjects": [good, of_domain("apii")]}),
            "subjects[1].domain: `user_id=u1` of domain `apii`: no domain `apii` is loaded: the rules have api",
        ),
        (json!({"tiers": [{"domain": "apii", "name": "x", "daily": 1}]}), "tiers[0].domain: tier `x` of domain `apii`: no domain"),
        (
            json!({"switches": [{"domain": "apii", "switch": "allow"}]}),
            "switches[0].domain: the switch of domain `apii`: no domain",
        ),
        (
            json!({"subjects": [{"domain": "api", "subject": "user_id=u1", "limits": [{"limits": [{"limit": "many"}]}]}]}),
            "subjects[0].limits[0].limits[0].limit: `user_id=u1` of domain `api`: `many` is no limit",
        ),
        (
            json!({"subjects": [{"domain": "api", "subject": "u1"}]}),
            "subjects[0].subject: `u1` of domain `api`: `u1` is no subject",
        ),
        (
            json!({"subjects": [{"domain": "api", "subject": "user_id=u1", "teir": "pro"}]}),
            "subjects[0].teir: there is no such field; did you mean `tier`?",
        ),
    ] {
        let (status, reason) = refused(&weir, "POST", "/v1/records", records.clone()).await;
        assert!(status == 400 && reason.contains(expected), "{records}: {status} {reason}");
    }
    let exported = done(&weir, "GET", "/v1/records", json!(null)).await;
    assert_eq!((&exported["subjects"], &exported["tiers"], &exported["switches"]), (&json!([]), &json!([]), &json!([])));
}

#[tokio::test]
async fn an_import_can_be_forced_and_tried() {
    let weir = start().await;
    let records = json!({
        "subjects": [{"domain": "api", "subject": "user_id=u1", "tier": "gold"}, {"domain": "gone", "subject": "user_id=u2", "multiplier": 2},
                     {"domain": "api", "subject": "user_id=u3", "tier": "new"}],
        "tiers": [{"domain": "api", "name": "new", "daily": 5}],
    });
    let subjects = async || done(&weir, "GET", "/v1/records", json!(null)).await["subjects"].as_array().map_or(0, Vec::len);
    let (_, reason) = refused(&weir, "POST", "/v1/records", records.clone()).await;
    assert!(["subjects[0].tier", "subjects[1].domain", "force"].iter().all(|part| reason.contains(part)), "{reason}");
    assert!(!reason.contains("subjects[2]"), "a tier of the same import exists: {reason}");
    let tried = done(&weir, "POST", "/v1/records?force=true&dry_run=true", records.clone()).await;
    assert_eq!((&tried["imported"], warnings(&tried).len(), subjects().await), (&json!(4), 2, 0));
    let log = weir.log();
    assert!(log.contains("checked by a dry run") && !log.contains("audit: changed"), "{log}");
    let forced = done(&weir, "POST", "/v1/records?force=true", records).await;
    assert!(warnings(&forced)[0].starts_with("subjects[0].tier: ") && warnings(&forced)[1].starts_with("subjects[1].domain: "));
    assert_eq!(subjects().await, 3);
    let stale = done(&weir, "GET", "/v1/domains/gone/subjects/user_id=u2", json!(null)).await;
    assert_eq!(warnings(&stale), ["domain `gone` is not loaded: this has no effect"]);
    assert_eq!(done(&weir, "DELETE", "/v1/domains/gone/subjects/user_id=u2", json!(null)).await["removed"], true);
}

#[tokio::test]
async fn what_has_no_effect_says_so() {
    let weir = start().await;
    let cases = [
        ("PUT", of("user_id=u1", "/tier"), json!({"tier": "pro"}), ""),
        (
            "PUT",
            of("tenant=t1", "/tier"),
            json!({"tier": "pro"}),
            "the assignment has no effect: no rule of domain `api` reads the tier of a `tenant`; rules read the tier of user_id, account",
        ),
        (
            "PUT",
            of("usr_id=u1", "/tier"),
            json!({"tier": "pro"}),
            "this has no effect: no rule of domain `api` counts by `usr_id`: its rules count by region, remote_address, tenant, user_id; did you mean `user_id`?",
        ),
        ("PUT", of("account=a1", "/tier"), json!({"tier": "pro"}), ""),
        (
            "PATCH",
            of("account=a1", ""),
            json!({"multiplier": 2}),
            "only the tier has an effect: no rule of domain `api` counts by `account`",
        ),
        ("PATCH", of("user_id=u1", ""), json!({"multiplier": 2}), ""),
        ("PATCH", of("usr_id=u1", ""), json!({"multiplier": 2}), "no rule of domain `api` counts by `usr_id`"),
        (
            "PATCH",
            of("usr_id=u2", ""),
            json!({"blocked_until": LATER}),
            "only a block or an exemption has an effect, on descriptors with this entry that match no rule",
        ),
        (
            "PATCH",
            of("tenant=t2", ""),
            json!({"limits": [{"rule": "ai", "daily": 1}]}),
            "rule `ai` (path=/ai,user_id) does not count by `tenant=t2`: its limits have no effect",
        ),
        ("PATCH", of("user_id=u3", ""), json!({"limits": [{"rule": "ai", "daily": 1}]}), ""),
        ("GET", of("usr_id=u1", ""), json!(null), "counts by `usr_id`"),
        ("POST", of("usr_id=u9", "/reset"), json!({"kind": "all"}), "counts by `usr_id`"),
        ("GET", of("usr_id=u9", "/history"), json!(null), "counts by `usr_id`"),
        ("GET", of("usr_id=u9", "/usage"), json!(null), "counts by `usr_id`"),
    ];
    for (method, path, body, expected) in cases {
        let answer = done(&weir, method, &path, body.clone()).await;
        let warnings = warnings(&answer).join("\n");
        assert!(warnings.contains(expected) && warnings.is_empty() == expected.is_empty(), "{method} {path} {body}: {warnings}");
    }
    done(&weir, "PATCH", &of("user_id=both", ""), json!({"blocked_until": LATER})).await;
    let both = done(&weir, "PATCH", &of("user_id=both", ""), json!({"allowed_until": LATER})).await;
    assert_eq!(warnings(&both), ["the block outweighs the exemption while both last"]);
    let plain = open().start().await;
    let defined = done(&plain, "PUT", "/v1/domains/api/tiers/pro", json!({"daily": 1})).await;
    assert!(warnings(&defined)[0].starts_with("this has no effect: no rule of domain `api` goes by tiers"), "{defined}");
}

#[tokio::test]
async fn a_burst_of_nothing_is_a_warning() {
    let weir = start().await;
    let limits = json!([{"limit": "5/hour", "algorithm": "token_bucket", "burst": 0}]);
    let expected = ["a bucket with a burst of 0 has no room: it refuses everything"];
    let overridden = done(&weir, "PATCH", &of("tenant=t1", ""), json!({"limits": [{"limits": limits}]})).await;
    assert_eq!(warnings(&overridden), expected);
    let tier = json!({"limits": [{"limit": "9/hour"}], "sets": [{"name": "write", "limits": limits}]});
    let defined = done(&weir, "PUT", "/v1/domains/api/tiers/new", tier).await;
    assert_eq!(warnings(&defined), expected);
    let none = json!({"limits": [{"limits": [{"limit": "0/hour"}]}]});
    assert_eq!(warnings(&done(&weir, "PATCH", &of("tenant=t1", ""), none).await), [""; 0], "0 says what it does");
}

#[tokio::test]
async fn a_tier_is_taken_away_by_a_call_of_its_own() {
    let weir = start().await;
    let path = of("user_id=u1", "/tier");
    done(&weir, "PUT", &path, json!({"tier": "pro"})).await;
    for body in [json!({}), json!({"tier": ""}), json!(null)] {
        let (status, reason) = refused(&weir, "PUT", &path, body).await;
        assert!(status == 400 && reason.contains("`tier` is missing: name one of free, pro, enterprise"), "{status} {reason}");
    }
    let mut client = access::client(&weir).await;
    let empty = proto::AssignTierRequest { domain: "api".into(), subject: "user_id=u1".into(), tier: String::new() };
    assert_eq!(client.assign_tier(empty).await.expect_err("no tier").code(), tonic::Code::InvalidArgument);
    assert_eq!(done(&weir, "GET", &of("user_id=u1", ""), json!(null)).await["tier"], "pro");
    assert_eq!(done(&weir, "DELETE", &path, json!(null)).await["tier"], "");
    let plain = open().start().await;
    let (_, reason) = refused(&plain, "PUT", &path, json!({})).await;
    assert!(reason.starts_with("`tier` is missing, and domain `api` has no tiers; "), "{reason}");
    done(&weir, "PUT", &path, json!({"tier": "pro"})).await;
    let unassign = proto::UnassignTierRequest { domain: "api".into(), subject: "user_id=u1".into() };
    assert_eq!(client.unassign_tier(unassign).await.expect("done").into_inner().tier, "");
}

#[tokio::test]
async fn changes_that_contradict_each_other_or_change_nothing() {
    let weir = start().await;
    let path = subject("u1");
    for (body, expected) in [
        (json!({}), "nothing to change: give blocked_until, allowed_until, multiplier, limits or clear"),
        (json!({"limits": [], "clear": []}), "nothing to change"),
        (json!({"blocked_until": LATER, "allowed_until": LATER}), "`blocked_until` and `allowed_until` contradict each other"),
        (json!({"blocked_until": LATER, "clear": ["blocked_until"]}), "clear[0]: `blocked_until` is set in the same request"),
        (json!({"multiplier": 2, "clear": ["tier", "multiplier"]}), "clear[1]: `multiplier` is set in the same request"),
        (json!({"limits": [{"daily": 1}], "clear": ["limits"]}), "clear[0]: `limits` is set in the same request"),
        (json!({"limits": [{"daily": 1}, {"monthly": 1}]}), "limits[1]: limits[0] is for all rules, too"),
        (json!({"limits": [{"rule": "ai", "daily": 1}, {"rule": "ai", "daily": 2}]}), "limits[1]: limits[0] is for rule `ai`, too"),
        (json!({"limits": [{"unlimited": true, "limits": [{"limit": "1/hour"}]}]}), "`unlimited` beside limits"),
        (json!({"clear": ["blocked_untill"]}), "did you mean `blocked_until`?"),
    ] {
        let (status, reason) = refused(&weir, "PATCH", &path, body.clone()).await;
        assert!(status == 400 && reason.contains(expected), "{body}: {status} {reason}");
    }
    let twice =
        http::send(weir.admin, "PATCH", &path, &[("content-type", b"application/json")], br#"{"multiplier": 2, "multiplier": 3}"#);
    let twice = twice.await.expect("an answer");
    assert!(twice.status == 400 && twice.body.starts_with(r#"{"error":"`multiplier` is given twice"#), "{twice:?}");
    let mut client = access::client(&weir).await;
    let empty = proto::OverrideSubjectRequest { domain: "api".into(), subject: "user_id=u1".into(), ..Default::default() };
    assert_eq!(client.override_subject(empty).await.expect_err("no change").code(), tonic::Code::InvalidArgument);
    assert_eq!(done(&weir, "GET", "/v1/domains/api/subjects", json!(null)).await["subjects"], json!([]));
    assert!(!weir.log().contains("audit: changed"), "{}", weir.log());
    let (status, reason) = refused(&weir, "PUT", "/v1/domains/api/tiers/new", json!({})).await;
    assert!(status == 400 && reason.contains("a tier that says nothing"), "{reason}");
    done(&weir, "PUT", "/v1/domains/api/tiers/new", json!({"limits": [{"limit": "unlimited"}]})).await;
}

#[tokio::test]
async fn a_mistake_names_its_field_and_the_right_one() {
    let weir = start().await;
    for (method, path, body, expected) in [
        ("PATCH", of("user_id=u1", ""), json!({"multiplyer": 2}), "multiplyer: there is no such field; did you mean `multiplier`?"),
        (
            "PATCH",
            of("user_id=u1", ""),
            json!({"limits": [{"daily": 1, "mothly": 2}]}),
            "limits[0].mothly: there is no such field; did you mean `monthly`?",
        ),
        (
            "PATCH",
            of("user_id=u1", ""),
            json!({"limits": [{"limits": [{"limt": "1/hour"}]}]}),
            "limits[0].limits[0].limt: there is no such field; did you mean `limit`?",
        ),
        ("PATCH", of("user_id=u1", ""), json!({"limits": [{"daily": "many"}]}), "limits[0].daily: "),
        ("PATCH", of("user_id=u1", ""), json!({"limits": [{"daily": -2}]}), "limits[0].daily: -2 is no number of requests"),
        ("PATCH", of("user_id=u1", ""), json!({"blockedUntil": LATER, "blocked_until": LATER}), "given twice, also as"),
        ("PATCH", of("user_id=u1", ""), json!({"blocked_until": "tomorrow"}), "blocked_until: "),
        (
            "PATCH",
            of("user_id=u1", ""),
            json!({"limits": [{"limits": [{"limit": "1/hour", "algorithm": "tokenbucket"}]}]}),
            "limits[0].limits[0].algorithm: unknown algorithm `tokenbucket`",
        ),
        ("PATCH", of("user_id=u1", ""), json!([]), "the body is not a JSON object"),
        ("PATCH", of("user_id=u1", ""), json!({"limits": {"limit": "1/hour"}}), "limits: a list is expected"),
        (
            "PATCH",
            of("user_id=u1", ""),
            json!({"limits": [{"limits": {"limit": "1/hour"}}]}),
            "limits[0].limits: a list is expected",
        ),
        (
            "DELETE",
            "/v1/domains/api/tiers/free".to_owned(),
            json!(null),
            "name: tier `free` is written in rules.yaml:5: only tiers",
        ),
        ("PUT", of("user_id=u1", "/tier"), json!({"teir": "pro"}), "teir: there is no such field; did you mean `tier`?"),
        (
            "PUT",
            "/v1/domains/api/tiers/new".to_owned(),
            json!({"sets": [{"name": "a", "limts": []}]}),
            "sets[0].limts: there is no such field; did you mean `limits`?",
        ),
        (
            "PUT",
            "/v1/domains/api/tiers/new".to_owned(),
            json!({"priority": "hihg"}),
            "priority: unknown priority `hihg`: low, normal, high or critical; did you mean `high`?",
        ),
        ("PUT", "/v1/switch".to_owned(), json!({"swich": "off"}), "swich: there is no such field; did you mean `switch`?"),
        ("PUT", "/v1/switch".to_owned(), json!({"switch": "shadwo"}), "did you mean `shadow`?"),
        ("PUT", "/v1/switch".to_owned(), json!({}), "`switch` is missing"),
        ("POST", of("user_id=u1", "/reset"), json!({"kin": "all"}), "kin: there is no such field; did you mean `kind`?"),
        ("POST", of("user_id=u1", "/reset"), json!({}), "`kind` is missing"),
        (
            "POST",
            "/v1/domains/api/explain".to_owned(),
            json!({"descriptors": [{"entries": [{"kay": "a"}]}]}),
            "descriptors[0].entries[0].kay: there is no such field; did you mean `key`?",
        ),
        (
            "POST",
            "/v1/records".to_owned(),
            json!({"tiers": [{"domain": "api", "nmae": "x"}]}),
            "tiers[0].nmae: there is no such field; did you mean `name`?",
        ),
        ("GET", of("user_id=u1", "/usage?teir=pro"), json!(null), "teir: there is no such field; did you mean `tier`?"),
        ("GET", of("user_id=u1", "/history?form=2026-01-01"), json!(null), "form: there is no such field; did you mean `from`?"),
        ("GET", of("user_id=u1", "/history?to=1.11.2026"), json!(null), "to: `1.11.2026` is no day"),
        ("GET", of("user_id=u1", "/usage?tier=pro&tier=free"), json!(null), "tier: given twice"),
    ] {
        let (status, reason) = refused(&weir, method, &path, body.clone()).await;
        assert!(status == 400 && reason.contains(expected), "{method} {path} {body}: {status} {reason}");
    }
    let misspelt = br#"{"domain": "api", "descriptors": [{"entires": []}]}"#;
    let answer = http::send(weir.http, "POST", "/json", &[], misspelt).await.expect("an answer");
    assert!(
        answer.status == 400 && answer.body.contains("descriptors[0].entires: there is no such field; did you mean `entries`?"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_tier_without_the_limits_that_a_rule_asks_for_is_no_tier_without_limits() {
    let weir = start().await;
    let team = json!({"sets": [{"name": "write", "limits": [{"limit": "3/hour"}]}], "monthly": 50});
    let expected = "a rule of domain `api` names no set, and the tier has no limits for it";
    let (status, reason) = refused(&weir, "PUT", "/v1/domains/api/tiers/team", team.clone()).await;
    assert!(status == 400 && reason.starts_with(&format!("limits: {expected}")), "{status} {reason}");
    let mut record = team.clone();
    (record["domain"], record["name"]) = (json!("api"), json!("team"));
    let (status, reason) = refused(&weir, "POST", "/v1/records", json!({"tiers": [record]})).await;
    assert!(
        status == 400 && reason.starts_with(&format!("tiers[0].limits: tier `team` of domain `api`: {expected}")),
        "{status} {reason}"
    );
    let forced = done(&weir, "POST", "/v1/records?force=true", json!({"tiers": [record]})).await;
    assert!(forced["warnings"][0].as_str().is_some_and(|warning| warning.contains(expected)), "{forced}");
    // A tier that says nothing is as little meant in an import as by itself.
    let nothing = json!({"tiers": [{"domain": "api", "name": "new"}]});
    let (status, reason) = refused(&weir, "POST", "/v1/records?force=true", nothing).await;
    assert!(status == 400 && reason.contains("a tier that says nothing"), "{status} {reason}");
    for limits in ["unlimited", "9/hour"] {
        let mut whole = team.clone();
        whole["limits"] = json!([{"limit": limits}]);
        done(&weir, "PUT", "/v1/domains/api/tiers/team", whole).await;
    }
    done(&weir, "PUT", "/v1/domains/api/tiers/quotas", json!({"daily": 5})).await;
}
