//! What an answer says: every field, header, body and metadata, for rules as they are written and requests as they come.

#[path = "support/in_process.rs"]
mod in_process;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use in_process::{descriptor, request};
use serde_json::{Value, json};
use tokio::time::Instant;
use weir::api::convert;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::{DescriptorStatus, RateLimit};
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use weir::api::rls::Rls;
use weir::api::{AnswerSettings, LegacyNames, MessageBounds};
use weir::config::{self, LoadOptions};
use weir::limiter::{Limiter, LimiterSettings, Shared};
use weir::rules::RuleSet;
use weir::rules::plan::PlanSettings;
use weir::store::Clock;
use weir::store::memory::MemoryStore;
use weir::store::records::{Record, RecordName, Subscriber as _};

/// 2023-11-14 22:13:20 UTC, twenty seconds into its minute.
const START: u64 = 1_700_000_000_000_000;
const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;

/// Decides by these rules, on a clock that stands still.
struct Asked {
    rls: Rls<MemoryStore>,
}

impl Asked {
    fn with(rules: &str, answers: AnswerSettings, plan: PlanSettings) -> Asked {
        Asked::at(START, rules, answers, plan)
    }

    fn at(now: u64, rules: &str, answers: AnswerSettings, plan: PlanSettings) -> Asked {
        let loaded = config::load_texts(&[("rules.yaml", rules)], &LoadOptions::default(), &RuleSet::default());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        let store = || MemoryStore::new(Clock::Manual(Arc::new(AtomicU64::new(now))), 1_000);
        let settings = LimiterSettings { plan, store_timeout: std::time::Duration::from_secs(1) };
        let shared = Arc::new(Shared::new(store(), settings));
        shared.load(loaded.rules);
        Asked { rls: Rls { limiter: Limiter::new(shared, store()), answers, bounds: MessageBounds::default() } }
    }

    fn rules(rules: &str) -> Asked {
        Asked::with(rules, AnswerSettings::default(), PlanSettings::default())
    }

    async fn ask(&self, message: &RateLimitRequest) -> RateLimitResponse {
        self.rls.answer(&convert::request(message), Instant::now(), None).await.expect("an answer")
    }

    async fn nth(&self, times: usize, message: &RateLimitRequest) -> RateLimitResponse {
        for _ in 1..times {
            self.ask(message).await;
        }
        self.ask(message).await
    }
}

fn user() -> RateLimitRequest {
    request("d", vec![descriptor(&[("user", "u1")])])
}

/// One rule for `user`, after these lines about the domain.
fn rules(domain: &str, rule: &str) -> String {
    format!("domain: d\n{domain}\ndescriptors:\n  - key: user\n    {}\n", rule.replace('\n', "\n    "))
}

fn headers(response: &RateLimitResponse) -> Vec<(&str, &str)> {
    assert!(response.response_headers_to_add.iter().all(|header| header.raw_value.is_empty()));
    response.response_headers_to_add.iter().map(|header| (header.key.as_str(), header.value.as_str())).collect()
}

fn header<'a>(response: &'a RateLimitResponse, name: &str) -> Option<&'a str> {
    headers(response).into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn to_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind.as_ref().expect("a kind") {
        Kind::NullValue(_) => Value::Null,
        Kind::NumberValue(number) => json!(number),
        Kind::StringValue(text) => json!(text),
        Kind::BoolValue(value) => json!(value),
        Kind::StructValue(fields) => struct_json(fields),
        Kind::ListValue(list) => list.values.iter().map(to_json).collect(),
    }
}

fn struct_json(fields: &prost_types::Struct) -> Value {
    fields.fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect::<serde_json::Map<_, _>>().into()
}

fn metadata(response: &RateLimitResponse) -> Value {
    response.dynamic_metadata.as_ref().map_or(Value::Null, struct_json)
}

#[tokio::test]
async fn a_limit_is_told_in_full() {
    let asked = Asked::rules(&rules("", "rate_limit: {unit: minute, requests_per_unit: 2, name: per-user}"));
    let current_limit = RateLimit { name: "per-user".into(), requests_per_unit: 2, unit: 2, unit_multiplier: None };
    let status = |code, limit_remaining| DescriptorStatus {
        code,
        current_limit: Some(current_limit.clone()),
        limit_remaining,
        duration_until_reset: seconds(40),
        quota: None,
    };
    for (code, remaining) in [(OK, 1), (OK, 0), (OVER_LIMIT, 0)] {
        let expected =
            RateLimitResponse { overall_code: code, statuses: vec![status(code, remaining)], ..RateLimitResponse::default() };
        assert_eq!(asked.ask(&user()).await, expected, "nothing else: headers, body and metadata are off");
    }
}

#[tokio::test]
async fn statuses_stand_in_the_order_of_the_descriptors() {
    let text = "domain: d\ndescriptors:\n  - key: a\n    rate_limit: {unlimited: true}\n  - key: b\n    rate_limit: {unit: week, requests_per_unit: 9}\n";
    let message =
        request("d", vec![descriptor(&[("none", "")]), descriptor(&[("a", "1")]), descriptor(&[("b", "1")]), descriptor(&[])]);
    let response = Asked::rules(text).ask(&message).await;
    let told: Vec<_> = response
        .statuses
        .iter()
        .map(|status| (status.code, status.limit_remaining, status.current_limit.as_ref().map(|limit| limit.unit)))
        .collect();
    assert_eq!(told, [(OK, 0, None), (OK, u32::MAX, None), (OK, 8, Some(7)), (OK, 0, None)]);
}

#[tokio::test]
async fn windows_are_told_by_their_largest_unit() {
    // (rule, unit, multiplier)
    let cases = [
        ("{unit: second, requests_per_unit: 5}", 1, None),
        ("{window: 300s, requests: 5}", 2, Some(5)),
        ("{window: 2h, requests: 5}", 3, Some(2)),
        ("{window: 7d, requests: 5}", 7, None),
        ("{unit: month, requests_per_unit: 5}", 5, None),
        ("{unit: year, requests_per_unit: 5}", 6, None),
        ("{window: 250ms, requests: 5}", 0, None),
    ];
    for (limit, unit, multiplier) in cases {
        let response = Asked::rules(&rules("", &format!("rate_limit: {limit}"))).ask(&user()).await;
        let current = response.statuses[0].current_limit.as_ref().expect("a limit");
        assert_eq!((current.unit, current.unit_multiplier), (unit, multiplier), "{limit}");
    }
}

#[tokio::test]
async fn numbers_saturate() {
    let asked = Asked::rules(&rules("", "rate_limit: {unit: day, requests_per_unit: 5000000000}"));
    let response = asked.ask(&user()).await;
    let status = &response.statuses[0];
    assert_eq!((status.limit_remaining, status.current_limit.as_ref().expect("a limit").requests_per_unit), (u32::MAX, u32::MAX));
}

#[tokio::test]
async fn a_cost_that_never_fits_tells_the_windows_end_and_no_retry_time() {
    let options = "response: {headers: [retry_after, ratelimit, legacy, x_ratelimit], body: problem}";
    let asked = Asked::rules(&rules(options, "rate_limit: {unit: minute, requests_per_unit: 2}"));
    let mut message = user();
    message.hits_addend = 3;
    let response = asked.ask(&message).await;
    assert_eq!((response.overall_code, response.statuses[0].duration_until_reset), (OVER_LIMIT, seconds(40)));
    assert_eq!(header(&response, "RateLimit"), Some("\"user\";r=2;t=40"));
    assert_eq!(header(&response, "RateLimit-Reset"), Some("40"));
    assert_eq!(header(&response, "X-RateLimit-Reset"), Some("40"));
    assert_eq!(header(&response, "Retry-After"), None);
    let body: Value = serde_json::from_slice(&response.raw_body).expect("a JSON body");
    assert_eq!(body.get("retry-after"), None);
}

#[tokio::test]
async fn an_override_has_no_name() {
    let asked =
        Asked::rules(&rules("response: {headers: [ratelimit]}", "name: own\nrate_limit: {unit: minute, requests_per_unit: 2}"));
    let mut message = user();
    message.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 7, unit: 3, unit_multiplier: Some(2) });
    let response = asked.ask(&message).await;
    let current_limit = RateLimit { name: String::new(), requests_per_unit: 7, unit: 3, unit_multiplier: Some(2) };
    assert_eq!(response.statuses[0].current_limit, Some(current_limit));
    assert_eq!(header(&response, "RateLimit-Policy"), Some("\"own\";q=7;w=7200"));
}

#[tokio::test]
async fn legacy_headers_go_by_the_settings_or_the_domain() {
    let limit = "rate_limit: {unit: minute, requests_per_unit: 2}";
    let expected = [("RateLimit-Limit", "2"), ("RateLimit-Remaining", "1"), ("RateLimit-Reset", "40")];
    let by_settings = AnswerSettings { legacy_headers: true, ..AnswerSettings::default() };
    let asked = Asked::with(&rules("", limit), by_settings, PlanSettings::default());
    assert_eq!(headers(&asked.ask(&user()).await), expected);
    let unmatched = request("d", vec![descriptor(&[("other", "x")])]);
    assert_eq!(headers(&asked.ask(&unmatched).await), [], "about no limit there is nothing to say");
    let asked = Asked::rules(&rules("response: {headers: [legacy]}", limit));
    assert_eq!(headers(&asked.ask(&user()).await), expected);
}

/// Envoy adds what it is told to: a name that is there twice would reach the caller with both values.
#[tokio::test]
async fn no_header_is_there_twice() {
    let names = LegacyNames { reset: "x-ratelimit-reset".to_owned(), ..LegacyNames::default() };
    let settings = AnswerSettings { legacy_headers: true, legacy_names: names, ..AnswerSettings::default() };
    let rules = rules("response: {headers: [x_ratelimit]}", "rate_limit: {unit: minute, requests_per_unit: 2}");
    let answer = Asked::with(&rules, settings, PlanSettings::default()).ask(&user()).await;
    let names: Vec<String> = headers(&answer).iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let distinct: HashSet<&String> = names.iter().collect();
    assert!(names.contains(&"x-ratelimit-reset".to_owned()) && distinct.len() == names.len(), "{names:?}");
}

#[tokio::test]
async fn headers_speak_of_the_tightest_limit_until_one_refuses() {
    let text = "domain: d\nresponse: {headers: [x_ratelimit, rule]}\ndescriptors:\n  - key: a\n    name: wide\n    rate_limit: {unit: minute, requests_per_unit: 9}\n  - key: b\n    name: tight\n    rate_limit: {unit: hour, requests_per_unit: 2}\n";
    let message = request("d", vec![descriptor(&[("a", "1")]), descriptor(&[("b", "1")])]);
    let asked = Asked::rules(text);
    let first = asked.ask(&message).await;
    assert_eq!(
        headers(&first),
        [
            ("X-RateLimit-Limit", "2"),
            ("X-RateLimit-Remaining", "1"),
            ("X-RateLimit-Reset", "2800"),
            ("X-RateLimit-Policy", "2;w=3600"),
            ("X-RateLimit-Layer", "b"),
            ("x-ratelimit-rule", "tight"),
        ]
    );
    let mut both = message.clone();
    both.descriptors[0].hits_addend = Some(8);
    asked.ask(&both).await;
    let refused = asked.ask(&message).await;
    assert_eq!((refused.overall_code, header(&refused, "x-ratelimit-rule")), (OVER_LIMIT, Some("tight")));
}

#[tokio::test]
async fn ietf_headers_list_all_policies_and_the_state_of_one() {
    let domain = "response: {headers: [ratelimit, retry_after]}";
    let asked = Asked::rules(&rules(domain, "name: ai\nlimits: [2/second, 10/hour]"));
    let response = asked.ask(&user()).await;
    assert_eq!(
        headers(&response),
        [("RateLimit-Policy", "\"ai/2-per-1s\";q=2;w=1, \"ai/10-per-1h\";q=10;w=3600"), ("RateLimit", "\"ai/2-per-1s\";r=1;t=1"),]
    );
    let refused = asked.nth(2, &user()).await;
    assert_eq!((header(&refused, "RateLimit"), header(&refused, "Retry-After")), (Some("\"ai/2-per-1s\";r=0;t=1"), Some("1")));
}

/// What operators say of `u1`, as a record's text.
fn said(asked: &Asked, record: &str) {
    let name = RecordName::Subject { domain: "d".into(), subject: b"user=u1"[..].into() };
    let record = Record::parse(&name, record).expect("a record");
    asked.rls.limiter.shared().changed(vec![(name, Some(record))]);
}

#[tokio::test]
async fn policies_are_those_that_the_subject_is_held_to() {
    let text =
        rules("response: {headers: [ratelimit]}", "name: ai\nlimits: [2/second, 10/hour]\nquota: {daily: 50}\nblock_for: 15m");
    let policies = async |asked: &Asked| header(&asked.ask(&user()).await, "RateLimit-Policy").map(str::to_owned);
    let daily = "\"ai/daily\";q=50;w=86400";
    let asked = Asked::rules(&text);
    let own = format!("\"ai/2-per-1s\";q=2;w=1, \"ai/10-per-1h\";q=10;w=3600, {daily}");
    assert_eq!(policies(&asked).await, Some(own));

    said(&asked, r#"{"multiplier": 3}"#);
    let multiplied = "\"ai/2-per-1s\";q=6;w=1, \"ai/10-per-1h\";q=30;w=3600, \"ai/daily\";q=150;w=86400";
    assert_eq!(policies(&asked).await.as_deref(), Some(multiplied));

    said(&asked, r#"{"limits": [{"rates": [{"requests": 5, "window": "1m"}, {"requests": 100, "window": "1h"}]}]}"#);
    let several = format!("\"ai/5-per-1m\";q=5;w=60, \"ai/100-per-1h\";q=100;w=3600, {daily}");
    assert_eq!(policies(&asked).await.as_deref(), Some(&*several));

    said(&asked, r#"{"limits": [{"rates": [{"requests": 1, "window": "1m"}]}]}"#);
    let one = format!("\"ai\";q=1;w=60, {daily}");
    assert_eq!(policies(&asked).await.as_deref(), Some(&*one));
    let blocked = asked.nth(2, &user()).await;
    assert_eq!(blocked.overall_code, OVER_LIMIT);
    assert_eq!(header(&blocked, "RateLimit-Policy"), Some(&*one), "a block is no policy");
    assert_eq!(header(&blocked, "RateLimit"), Some("\"ai\";r=0;t=900"), "and shows the subject's limit");
}

/// The names of a `RateLimit-Policy`, in order.
fn names(policies: &str) -> Vec<&str> {
    policies.split(", ").map(|policy| policy.split(';').next().unwrap_or_default().trim_matches('"')).collect()
}

#[tokio::test]
async fn policies_have_distinct_names_whoever_made_them() {
    // Two windows written differently, two algorithms with one size and window, and quotas, in every place that limits come from.
    let limits = r#"["60/minute", "60 per 61s", {window: 60s, requests: 60, algorithm: token_bucket}, {unit: minute, requests_per_unit: 60, algorithm: sliding_window}]"#;
    let text = format!(
        "domain: d
response: {{headers: [ratelimit], body: problem}}
tiers:
  filed: {{limits: {limits}, quota: {{daily: 60, monthly: 60}}}}
default_tier: filed
descriptors:
  - key: user
    name: plan
    limits: {limits}
    quota: {{daily: 60, monthly: 60}}
  - key: customer
    name: plan
    rate_limit: {{tier: {{entry: tier}}}}
"
    );
    let named = ["plan/60-per-1m", "plan/60-per-61s", "plan/60-per-1m-token_bucket", "plan/60-per-1m-sliding_window"];
    let all: Vec<&str> = named.into_iter().chain(["plan/daily", "plan/monthly"]).collect();
    let asked = Asked::rules(&text);
    let of = async |entries: &[(&str, &str)]| {
        let response = asked.ask(&request("d", vec![descriptor(entries)])).await;
        header(&response, "RateLimit-Policy").expect("policies").to_owned()
    };
    assert_eq!(names(&of(&[("user", "u1")]).await), all, "a rule");
    assert_eq!(names(&of(&[("customer", "c1"), ("tier", "filed")]).await), all, "a tier of the files");

    let rates = r#"[{"requests": 60, "window": "1m"}, {"requests": 60, "window": "61s"},
        {"requests": 60, "window": "1m", "algorithm": "token_bucket"}, {"requests": 60, "window": "1m", "algorithm": "sliding_window"}]"#;
    let quotas = r#""daily": 60, "monthly": 60"#;
    let tiers = RecordName::Tier { domain: "d".into(), tier: "defined".into() };
    let defined = format!(r#"{{"sets": {{"default": {rates}}}, {quotas}}}"#);
    let record = Record::parse(&tiers, &defined).expect("a tier");
    asked.rls.limiter.shared().changed(vec![(tiers, Some(record))]);
    assert_eq!(names(&of(&[("customer", "c1"), ("tier", "defined")]).await), all, "a tier that was defined at run time");

    said(&asked, &format!(r#"{{"limits": [{{"rates": {rates}, {quotas}}}]}}"#));
    assert_eq!(names(&of(&[("user", "u1")]).await), all, "the override of a subject");
    said(&asked, r#"{"limits": [{"daily": 9}], "multiplier": 2}"#);
    let expected = [&named[..], &["plan/monthly", "plan/daily"]].concat();
    assert_eq!(names(&of(&[("user", "u1")]).await), expected, "the rule's own rates beside the quota of a subject");

    let mut message = user();
    message.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 60, unit: 2, unit_multiplier: None });
    let response = asked.ask(&message).await;
    assert_eq!(names(header(&response, "RateLimit-Policy").expect("policies")), ["plan"], "the limit of a request");

    let mut refused =
        request("d", vec![descriptor(&[("user", "x")]), descriptor(&[("customer", "x")]), descriptor(&[("user", "y")])]);
    refused.hits_addend = 61;
    let body: Value = serde_json::from_slice(&asked.ask(&refused).await.raw_body).expect("a JSON body");
    assert_eq!(body["violated-policies"], json!(all), "each once, whichever descriptor it refused");
}

#[tokio::test]
async fn a_part_of_a_second_is_rounded_up() {
    let rule = "rate_limit: {algorithm: token_bucket, unit: second, requests_per_unit: 3, burst: 1}";
    let asked = Asked::rules(&rules("response: {headers: [ratelimit, retry_after]}", rule));
    let refused = asked.nth(2, &user()).await;
    let reset = refused.statuses[0].duration_until_reset.expect("a time");
    assert_eq!((reset.seconds, reset.nanos), (1, 0), "333,334 µs");
    assert_eq!((header(&refused, "RateLimit"), header(&refused, "Retry-After")), (Some("\"user\";r=0;t=1"), Some("1")));
}

#[tokio::test]
async fn names_cannot_break_out_of_a_header() {
    // A name with a line break does not load.
    let rule = "name: \"a\\\"b\\\\c: x\\u00e9\"\nrate_limit: {unit: minute, requests_per_unit: 2}";
    let asked = Asked::rules(&rules("response: {headers: [ratelimit, rule]}", rule));
    let response = asked.ask(&user()).await;
    assert_eq!(header(&response, "RateLimit"), Some("\"a\\\"b\\\\c: x%C3%A9\";r=1;t=40"));
    assert_eq!(header(&response, "x-ratelimit-rule"), Some("a\"b\\c: x%C3%A9"));
}

#[tokio::test]
async fn what_a_caller_sends_stands_in_no_header_and_no_body() {
    let options = "response: {headers: [legacy, ratelimit, x_ratelimit, retry_after, rule], body: problem}";
    let asked = Asked::rules(&rules(options, "rate_limit: {unit: minute, requests_per_unit: 1}"));
    let mut message = user();
    message.descriptors[0].entries[0].value = b"EVIL\r\nx: y".to_vec();
    let refused = asked.nth(2, &message).await;
    let said = format!("{:?}{}", headers(&refused), String::from_utf8_lossy(&refused.raw_body));
    assert_eq!(refused.overall_code, OVER_LIMIT);
    assert!(!said.contains("EVIL"), "{said}");
}

#[tokio::test]
async fn reset_has_three_formats() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let hour_end = (now / 3600 + 1) * 3600;
    for (format, expected) in [
        ("delta", (hour_end - now).to_string()),
        ("epoch", hour_end.to_string()),
        ("iso", prost_types::Timestamp { seconds: i64::try_from(hour_end).expect("not far off"), nanos: 0 }.to_string()),
    ] {
        let domain = format!("response: {{headers: [legacy], reset_format: {format}}}");
        let text = rules(&domain, "rate_limit: {unit: hour, requests_per_unit: 2}");
        let asked = Asked::at(now * 1_000_000, &text, AnswerSettings::default(), PlanSettings::default());
        let response = asked.ask(&user()).await;
        let reset = header(&response, "RateLimit-Reset").expect("a reset").to_owned();
        // The wall clock goes on while the test runs.
        assert!(reset >= expected && reset.len() == expected.len(), "{format}: {reset}, not {expected}");
    }
}

#[tokio::test]
async fn a_refusal_can_be_a_problem() {
    let domain = "response: {headers: [retry_after], body: problem}";
    let asked = Asked::rules(&rules(domain, "name: ai\nlimits: [1/minute, 1/hour]"));
    let allowed = asked.ask(&user()).await;
    assert_eq!((headers(&allowed), allowed.raw_body.len()), (vec![], 0));
    let refused = asked.ask(&user()).await;
    assert_eq!(headers(&refused), [("Retry-After", "2800"), ("content-type", "application/problem+json")]);
    let body: Value = serde_json::from_slice(&refused.raw_body).expect("JSON");
    assert_eq!(
        body,
        json!({
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Request cannot be satisfied as assigned quota has been exceeded",
            "status": 429,
            "violated-policies": ["ai/1-per-1m", "ai/1-per-1h"],
            "rule": "ai",
            "layer": "user",
            "retry-after": 2800,
        })
    );
}

#[tokio::test]
async fn a_denied_request_has_no_time_to_come_back() {
    let asked =
        Asked::rules(&rules("response: {headers: [retry_after, ratelimit, rule], body: problem}", "name: internal\ndeny: true"));
    let refused = asked.ask(&user()).await;
    assert_eq!(headers(&refused), [("x-ratelimit-rule", "internal"), ("content-type", "application/problem+json")]);
    let body: Value = serde_json::from_slice(&refused.raw_body).expect("JSON");
    assert_eq!((&body["violated-policies"], body.get("retry-after")), (&json!(["internal"]), None));
}

#[tokio::test]
async fn a_leaky_admission_carries_its_delay() {
    let rule = "rate_limit: {algorithm: leaky_bucket, unit: second, requests_per_unit: 10, burst: 5}";
    let asked = Asked::rules(&rules("response: {headers: [x_ratelimit]}", rule));
    let first = asked.ask(&user()).await;
    assert_eq!((header(&first, "x-ratelimit-delay-ms"), metadata(&first)), (None, Value::Null));
    let second = asked.ask(&user()).await;
    assert_eq!((header(&second, "x-ratelimit-delay-ms"), metadata(&second)), (Some("100"), json!({"delay_ms": 100.0})));
}

#[tokio::test]
async fn metadata_tells_of_the_rule_if_the_domain_wants_it() {
    let asked = Asked::rules(&rules("response: {metadata: true}", "name: own\nrate_limit: {unit: minute, requests_per_unit: 5}"));
    let mut message = user();
    message.hits_addend = 2;
    let expected = json!({"rule": "own", "layer": "user", "limit": 5.0, "remaining": 3.0, "cost": 2.0});
    assert_eq!(metadata(&asked.ask(&message).await), expected);
}

#[tokio::test]
async fn the_setting_gives_the_request_and_what_the_rules_add() {
    let text = "domain: d
descriptors:
  - key: a
    rate_limit: {unit: minute, requests_per_unit: 1}
    metadata: {plan: {name: gold}, flags: [1, true, null]}
  - key: b
    rate_limit: {unit: minute, requests_per_unit: 1}
    metadata: {plan: {name: silver, seats: 5}, region: eu}
";
    let answers = AnswerSettings { dynamic_metadata: true, ..AnswerSettings::default() };
    let asked = Asked::with(text, answers, PlanSettings::default());
    let mut message =
        request("d", vec![descriptor(&[("a", "1")]), descriptor(&[("b", "x"), ("c", "")]), descriptor(&[("b", "2")])]);
    message.hits_addend = 1;
    message.descriptors[1].hits_addend = Some(0);
    message.descriptors[1].limit = Some(RateLimitOverride { requests_per_unit: 5, unit: 3, unit_multiplier: None });
    message.descriptors[1].entries[0].value = vec![b'x', 0xff];
    let descriptors = json!([
        {"entries": ["a=1"]},
        {"entries": ["b=x\\xff", "c="], "limit": "requests_per_unit:5 unit:HOUR", "hitsAddend": 0.0},
        {"entries": ["b=2"]},
    ]);
    let passed = json!({"plan": {"name": "gold", "seats": 5.0}, "flags": [1.0, true, null], "region": "eu"});
    let expected = json!({"domain": "d", "hitsAddend": 1.0, "descriptors": descriptors, "metadata": passed});
    assert_eq!(metadata(&asked.ask(&message).await), expected);
    let refused = asked.ask(&message).await;
    assert_eq!(refused.overall_code, OVER_LIMIT);
    assert_eq!(metadata(&refused).get("metadata"), None, "of rules that refuse nothing is said");
}

#[tokio::test]
async fn the_shadow_switch_tells_the_truth_and_refuses_nothing() {
    let shadow = PlanSettings { shadow: true, ..PlanSettings::default() };
    let text = rules("response: {headers: [retry_after], body: problem}", "rate_limit: {unit: minute, requests_per_unit: 1}");
    let response = Asked::with(&text, AnswerSettings::default(), shadow).nth(2, &user()).await;
    assert_eq!((response.overall_code, response.statuses[0].code), (OK, OVER_LIMIT));
    assert_eq!((headers(&response), response.raw_body.len()), (vec![], 0));
}
