//! What a scrape tells of what operators said, and of what is kept for them.

use serde_json::json;

use crate::client::{RULES, decide, done, open, subject, user};
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};
use crate::support::{eventually, http};

async fn metric(weir: &Weir, name: &str) -> u64 {
    let scrape = http::get(weir.admin, "/metrics").await.expect("a scrape").body;
    let line = scrape.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let value = line.unwrap_or_else(|| panic!("no {name} in {scrape}")).rsplit(' ').next().expect("a value");
    value.parse().expect("a number")
}

async fn in_force(weir: &Weir) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, kind) in counts.iter_mut().zip(["subject", "tier", "switch"]) {
        *count = metric(weir, &format!("weir_records{{kind=\"{kind}\"}}")).await;
    }
    counts
}

async fn say(weir: &Weir) {
    for name in ["u1", "u2"] {
        done(weir, "PATCH", &subject(name), json!({"multiplier": 2})).await;
    }
    done(weir, "PUT", "/v1/domains/api/tiers/team", json!({"limits": [{"limit": "1/hour"}]})).await;
    done(weir, "PUT", "/v1/switch", json!({"domain": "api", "switch": "shadow"})).await;
}

#[tokio::test]
async fn records_are_counted_where_they_are_in_force() {
    let weir = open().start().await;
    assert_eq!(in_force(&weir).await, [0, 0, 0]);
    say(&weir).await;
    assert_eq!(in_force(&weir).await, [2, 1, 1]);
    done(&weir, "DELETE", &subject("u1"), json!(null)).await;
    assert_eq!(in_force(&weir).await, [1, 1, 1]);
    assert_eq!(metric(&weir, "weir_records_last_sync_timestamp_seconds").await, 0, "there is nothing to follow");
}

#[tokio::test]
async fn a_replica_tells_whether_it_follows_and_what_of_the_history_is_lost() {
    let mut redis = RedisServer::start();
    let rules = RULES.replace("\ndescriptors:", "\ndefaults: {on_store_failure: allow}\ndescriptors:");
    let start = || Settings::with_rules(&rules).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start();
    let (one, other) = (start().await, start().await);
    say(&one).await;
    eventually("the other one knows", async || in_force(&other).await == [2, 1, 1]).await;
    user(&other, "u1").await;
    eventually("a history is written", async || metric(&other, "weir_history_written_rows_total").await == 1).await;
    let synced = async || metric(&other, "weir_records_last_sync_timestamp_seconds").await;
    let before = synced().await;
    assert!(before > 0);
    eventually("it goes on following", async || synced().await > before).await;
    assert_eq!(metric(&other, "weir_records_sync_failures_total").await, 0);

    redis.kill();
    eventually("it follows no more", async || metric(&other, "weir_records_sync_failures_total").await > 0).await;
    let last = synced().await;
    user(&other, "u1").await;
    user(&other, "u2").await;
    let lost = "weir_history_dropped_total{reason=\"store\"}";
    eventually("the history of two subjects is lost", async || metric(&other, lost).await == 2).await;
    assert_eq!(synced().await, last);
    assert_eq!(in_force(&other).await, [2, 1, 1], "the last known stands");
    redis.restart();
    eventually("it follows again, an empty Redis", async || in_force(&other).await == [0, 0, 0] && synced().await > last).await;
}

#[tokio::test]
async fn callers_of_no_known_tier_are_counted() {
    let rules = "
domain: api
tiers: {free: {limits: [1/hour]}, pro: {limits: [5/hour]}}
default_tier: free
descriptors:
  - {key: user_id, rate_limit: {tier: {entry: tier}}}
  - {key: tenant, rate_limit: {tier: {assigned: tenant}}}
";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let unknown = async || metric(&weir, "weir_unknown_tier_total").await;
    for tier in ["free", "pro"] {
        decide(&weir, &[("user_id", "u1"), ("tier", tier)]).await;
    }
    assert_eq!(unknown().await, 0);
    assert_eq!(decide(&weir, &[("user_id", "u2"), ("tier", "gold")]).await, (true, 0));
    assert_eq!(decide(&weir, &[("user_id", "u3")]).await, (true, 0));
    assert_eq!(unknown().await, 2);
    assert_eq!(decide(&weir, &[("tenant", "t1")]).await, (true, 0));
    assert_eq!(unknown().await, 2, "nobody has to be assigned one");
    let call = (json!({"tier": "pro"}), "/v1/domains/api/subjects/tenant=t1/tier");
    done(&weir, "PUT", call.1, call.0).await;
    assert_eq!(decide(&weir, &[("tenant", "t1")]).await, (true, 3));
}

#[tokio::test]
async fn what_the_switch_allows_is_no_request_without_a_rule() {
    let rules = "{domain: api, descriptors: [{key: user_id, rate_limit: {unit: hour, requests_per_unit: 1}}]}";
    let weir = Settings::with_rules(rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let unmatched = "weir_unmatched_descriptors_total{domain=\"api\"}";
    done(&weir, "PUT", "/v1/switch", json!({"switch": "allow"})).await;
    for _ in 0..3 {
        assert!(decide(&weir, &[("user_id", "u1")]).await.0);
    }
    assert_eq!((metric(&weir, "weir_allowed_by_switch_total").await, metric(&weir, unmatched).await), (3, 0));
    done(&weir, "PUT", "/v1/switch", json!({"switch": "off"})).await;
    decide(&weir, &[("tenant", "t1")]).await;
    assert_eq!((metric(&weir, "weir_allowed_by_switch_total").await, metric(&weir, unmatched).await), (3, 1));
}

/// Reads an exposition by the rules of its format: every family has its help, then its type, then all of its samples.
fn assert_well_formed(text: &str, is_open_metrics: bool) {
    let (mut family, mut kind, mut seen) = (String::new(), String::new(), std::collections::HashSet::new());
    let sample =
        regex::Regex::new(r#"^([a-z_]+)(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)+\})? -?[0-9]+(\.[0-9]+)?$"#).expect("compiles");
    assert!(text.ends_with('\n'));
    let text = if is_open_metrics { text.strip_suffix("# EOF\n").expect("it says where it ends") } else { text };
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a name and its help");
            assert!(seen.insert(name.to_owned()) && !help.is_empty(), "{line}");
            (family, kind) = (name.to_owned(), String::new());
        } else if let Some(of_family) = line.strip_prefix("# TYPE ") {
            let (name, of_family) = of_family.split_once(' ').expect("a name and its type");
            assert!(name == family && kind.is_empty(), "{line}");
            kind = of_family.to_owned();
        } else {
            let name = &sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"))[1];
            let suffixes: &[&str] = match (&*kind, is_open_metrics) {
                ("counter", true) => &["_total"],
                ("info", true) => &["_info"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                ("counter" | "gauge", _) => &[""],
                (other, _) => panic!("no such type here: {other}"),
            };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} in {family} ({kind})");
            assert!(is_open_metrics || (kind == "counter") == name.ends_with("_total"), "{line}");
        }
    }
}

#[tokio::test]
async fn a_scrape_is_in_the_format_that_the_scraper_accepts() {
    let rules = "domain: 'a \"quoted\" \\ domain'\ndescriptors: [{key: user_id, rate_limit: {unit: hour, requests_per_unit: 9}}]\n";
    let weir = Settings::with_rules(rules).start().await;
    let scrape = async |accept: Option<&str>| {
        let headers: Vec<(&str, &[u8])> = accept.iter().map(|accept| ("accept", accept.as_bytes())).collect();
        let answer = http::send(weir.admin, "GET", "/metrics", &headers, b"").await.expect("a scrape");
        (answer.header("content-type").unwrap_or_default().to_owned(), answer.body)
    };
    for accept in [None, Some("*/*"), Some("text/plain;version=0.0.4"), Some("application/openmetrics-text;q=0.1,text/plain;q=0.9")]
    {
        let (kind, text) = scrape(accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
        assert_well_formed(&text, false);
        assert!(text.contains("# TYPE weir_errors_total counter\n") && text.contains("# TYPE weir_build_info gauge\n"), "{text}");
        assert!(text.contains("{domain=\"a \\\"quoted\\\" \\\\ domain\"}"), "{text}");
    }
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for accept in ["application/openmetrics-text", prometheus] {
        let (kind, text) = scrape(Some(accept)).await;
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8", "{accept:?}");
        assert_well_formed(&text, true);
        assert!(text.contains("# TYPE weir_errors counter\n") && text.contains("# TYPE weir_build info\n"), "{text}");
    }
}
