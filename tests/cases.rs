//! Every behaviour in `tests/cases/*.yaml`, three ways: decided in memory and in a real Redis by a clock set by hand, and
//! asked of a running server over gRPC. By hand, each decision is foreseen before it is made, which counts nothing.

#[path = "cases/format.rs"]
mod format;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use format::{Case, Charge, Expected, Reset, Settings, StatusExpected, Step};
use serde_json::Value;

use support::redis::RedisServer;
use support::weir::{Settings as Server, Weir};
use tokio::time::Instant;
use tonic::transport::Channel;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use weir::api::{AnswerSettings, convert};
use weir::config::{LoadOptions, load_texts};
use weir::limit::{DAY, HOUR, Micros, Mode, SECOND};
use weir::limiter::{Answer, Limiter, LimiterSettings, Shared};
use weir::rules::plan::{Moment, PlanSettings};
use weir::rules::request::Request;
use weir::rules::{ChargeRule, RuleSet, Unit};
use weir::rules::{decision, explain};
use weir::store::memory::MemoryStore;
use weir::store::redis::{Connector, RedisSettings, RedisStore};

use weir::store::{Clock, Outcomes, Store, Wait};

/// When every case begins: an edge of minute, hour and day, 19,676 days after the epoch.
const BEGINNING: Micros = 19_676 * DAY;
/// Redis is real, and the machine may be busy.
const STORE_TIMEOUT: Duration = Duration::from_secs(20);

/// What came of a request.
struct Seen {
    response: RateLimitResponse,
    /// Unknown over gRPC.
    decision: Option<Decided>,
}

struct Decided {
    limited_by: Option<String>,
    delay: Micros,
}

/// Something that answers requests.
trait Asked {
    /// Whether the clock is set by hand, so that times are known to the microsecond.
    const HAS_CLOCK: bool;

    fn set_clock(&self, now: Micros);

    /// The message of the INVALID_ARGUMENT when the request is refused as such.
    async fn ask(&self, message: &RateLimitRequest) -> Result<Seen, String>;
}

/// A limiter in this process.
struct Direct<S> {
    limiter: Limiter<S>,
    answers: AnswerSettings,
    clock: Arc<AtomicU64>,
}

/// The running server.
struct Remote {
    weir: Weir,
    client: RateLimitServiceClient<Channel>,
}

/// A code, which descriptor's rule refuses, a delay.
type Foreseen = (decision::Code, Option<Option<usize>>, Micros);

impl<S: Store> Direct<S> {
    /// What would be decided, asked without counting it: code, who refuses, delay. Nobody foresees what a request gives back, nor who
    /// refuses longest after a refusal that is charged.
    async fn foresee(&self, request: &Request<'_>) -> Option<Foreseen> {
        if request.descriptors.iter().any(|descriptor| descriptor.is_negative_hits) {
            return None;
        }
        let shared = self.limiter.shared();
        let rules = shared.rules();
        let domain = rules.domains.get(request.domain)?;
        let settings = shared.plan_settings(request.domain);
        let moment = Moment { now: self.clock.load(Ordering::Acquire), patience: None };
        let explained = explain::explain(domain, request, settings, moment, shared.records()).ok()?;
        let question = explain::question(&explained.plan.group);
        let outcomes = match question.checks.is_empty() {
            true => Outcomes::new(),
            false => self.limiter.store().apply(&question, Wait::of(STORE_TIMEOUT)).await.ok()?,
        };
        let decision = decision::decide(domain, &explained.plan, &outcomes, settings.shadow);
        let delays = question.checks.iter().zip(&outcomes).filter(|(check, _)| check.mode != Mode::Shadow);
        let delays = delays.map(|(check, outcome)| explain::delay(check, outcome));
        let delay = if decision.code == decision::Code::Ok { delays.max().unwrap_or(0) } else { 0 };
        let is_charged = explained.plan.group.checks.iter().any(|check| check.charge == weir::limit::Charge::Always);
        Some((decision.code, (!is_charged).then_some(decision.limited_by), delay))
    }
}

impl<S: Store> Asked for Direct<S> {
    const HAS_CLOCK: bool = true;

    fn set_clock(&self, now: Micros) {
        self.clock.store(now, Ordering::Release);
    }

    async fn ask(&self, message: &RateLimitRequest) -> Result<Seen, String> {
        let foreseen = self.foresee(&convert::request(message)).await;
        let arrival = Instant::now();
        let answer = self.limiter.decide(&convert::request(message), arrival, None).await;
        if let (Answer::Decided(decided), Some(foreseen)) = (&answer, foreseen) {
            let decision = &decided.decision;
            let limited_by = foreseen.1.map(|_| decision.limited_by);
            assert_eq!((decision.code, limited_by, decision.delay), foreseen, "what was foreseen: {message:?}");
        }
        match answer {
            Answer::Decided(decided) => {
                let response = convert::response(&decided, &convert::request(message), &self.answers, arrival);
                let limited_by = decided.decision.limited_by.and_then(|place| decided.decision.statuses[place].rule);
                let limited_by = decided.domain().zip(limited_by).map(|(domain, rule)| domain.rule(rule).label().to_owned());
                Ok(Seen { response, decision: Some(Decided { limited_by, delay: decided.decision.delay }) })
            }
            Answer::Invalid(reason) => Err(reason),
            Answer::Unavailable(reason) => panic!("unavailable: {reason}"),
        }
    }
}

impl Asked for Remote {
    const HAS_CLOCK: bool = false;

    fn set_clock(&self, _: Micros) {}

    async fn ask(&self, message: &RateLimitRequest) -> Result<Seen, String> {
        match self.client.clone().should_rate_limit(message.clone()).await {
            Ok(response) => Ok(Seen { response: response.into_inner(), decision: None }),
            Err(status) if status.code() == tonic::Code::InvalidArgument => Err(status.message().to_owned()),
            Err(status) => panic!("{status}; {}", self.weir.log()),
        }
    }
}

/// All cases, by their file.
fn cases() -> Vec<(String, Case)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> =
        fs::read_dir(directory).expect("the cases are there").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let file = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a case file is UTF-8");
        let read: Vec<Case> = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        cases.extend(read.into_iter().map(|case| (file.clone(), case)));
    }
    cases
}

/// Plays a case and says what was not as expected.
async fn play(case: &Case, asked: &impl Asked) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, step) in case.steps.iter().enumerate() {
        if let Some(at) = step.at {
            asked.set_clock(BEGINNING + at.0);
        } else if number == 0 {
            asked.set_clock(BEGINNING);
        }
        let found = play_step(case, step, asked).await;
        findings.extend(found.into_iter().map(|found| format!("step {}: {found}", number + 1)));
    }
    findings
}

async fn play_step<A: Asked>(case: &Case, step: &Step, asked: &A) -> Vec<String> {
    let message = RateLimitRequest {
        domain: step.domain.clone().unwrap_or_else(|| case.domain()).into_bytes(),
        descriptors: step.descriptors.iter().map(|descriptor| descriptor.0.clone()).collect(),
        hits_addend: step.hits,
    };
    let mut admitted = 0;
    let mut last = None;
    for _ in 0..step.repeat {
        match (asked.ask(&message).await, &step.expect) {
            (Ok(seen), expected) => {
                let is_ok = seen.response.overall_code() == Code::Ok;
                admitted += u32::from(is_ok);
                match (is_ok, expected) {
                    (true, Expected::Ok | Expected::Admits(_)) | (false, Expected::OverLimit | Expected::Admits(_)) => {}
                    _ => return vec![format!("{:?}, after {admitted} that were allowed", seen.response)],
                }
                last = Some(seen);
            }
            (Err(reason), Expected::Invalid(part)) if reason.contains(part) => {}
            (Err(reason), _) => return vec![format!("invalid: {reason}")],
        }
    }
    let mut findings = Vec::new();
    if let Expected::Admits(expected) = step.expect
        && admitted != expected
    {
        findings.push(format!("{admitted} admitted, expected {expected}"));
    }
    if let Some(seen) = last {
        findings.extend(differences::<A>(step, &seen));
    }
    findings
}

/// Where the answer is not what the step says.
fn differences<A: Asked>(step: &Step, seen: &Seen) -> Vec<String> {
    let mut findings = Vec::new();
    let statuses = &seen.response.statuses;
    if statuses.len() != step.descriptors.len() {
        findings.push(format!("{} statuses for {} descriptors", statuses.len(), step.descriptors.len()));
    }
    for (place, (status, expected)) in statuses.iter().zip(step.statuses.iter().flatten()).enumerate() {
        findings.extend(status_differences(status, expected, A::HAS_CLOCK).map(|found| format!("status {place}: {found}")));
    }
    if let Some(decision) = &seen.decision {
        let limited_by = decision.limited_by.as_deref();
        if step.limited_by.is_some() && limited_by != step.limited_by.as_deref() {
            findings.push(format!("limited by {limited_by:?}, expected {:?}", step.limited_by));
        }
        if let Some(delay) = step.delay.filter(|delay| delay.0 != decision.delay) {
            findings.push(format!("a delay of {} µs, expected {} µs", decision.delay, delay.0));
        }
    }
    findings.extend(answer_differences(step, &seen.response));
    findings
}

fn status_differences(status: &DescriptorStatus, expected: &StatusExpected, has_clock: bool) -> impl Iterator<Item = String> {
    let code = if status.code() == Code::Ok { "ok" } else { "over_limit" };
    let limit = status.current_limit.as_ref().map_or("none".to_owned(), |limit| {
        let unit = Unit::from_number(limit.unit).map_or("?", Unit::name);
        let multiplier = limit.unit_multiplier.map_or(String::new(), |multiplier| format!("{multiplier} "));
        format!("{}/{multiplier}{unit}", limit.requests_per_unit)
    });
    let name = status.current_limit.as_ref().map(|limit| limit.name.as_str()).unwrap_or_default();
    let reset = status.duration_until_reset.as_ref().map_or(Reset::Never, |reset| {
        assert_eq!(reset.nanos, 0, "whole seconds");
        Reset::In(Micros::try_from(reset.seconds).expect("a duration is not negative") * SECOND)
    });
    let differs = |what: &str, is: &str, expected: &str| (is != expected).then(|| format!("{what} is {is}, expected {expected}"));
    let reset_expected = expected.reset.filter(|expected| has_clock || (*expected == Reset::Never) != (reset == Reset::Never));
    [
        expected.code.as_ref().and_then(|expected| differs("code", code, expected)),
        expected.limit.as_ref().and_then(|expected| differs("limit", &limit, expected)),
        expected.name.as_ref().and_then(|expected| differs("name", name, expected)),
        expected.remaining.and_then(|expected| differs("remaining", &status.limit_remaining.to_string(), &expected.to_string())),
        reset_expected.and_then(|expected| differs("reset", &format!("{reset:?}"), &format!("{expected:?}"))),
    ]
    .into_iter()
    .flatten()
}

/// Headers, body and metadata.
fn answer_differences(step: &Step, response: &RateLimitResponse) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, expected) in &step.headers {
        let header = response.response_headers_to_add.iter().find(|header| header.key.eq_ignore_ascii_case(name));
        let value = header.map(|header| header.value.clone());
        if value != *expected {
            findings.push(format!("header {name} is {value:?}, expected {expected:?}"));
        }
    }
    if let Some(expected) = &step.body {
        let body = String::from_utf8_lossy(&response.raw_body);
        let value = serde_json::from_str(&body).unwrap_or_else(|_| Value::String(body.into_owned()));
        if value != *expected {
            findings.push(format!("body is {value}, expected {expected}"));
        }
    }
    if let Some(expected) = &step.metadata {
        let metadata = response.dynamic_metadata.clone().map_or(Value::Object(serde_json::Map::new()), json_of_struct);
        let is_as_expected = if expected.as_object().is_some_and(serde_json::Map::is_empty) {
            metadata == *expected
        } else {
            contains(&metadata, expected)
        };
        if !is_as_expected {
            findings.push(format!("metadata is {metadata}, expected {expected}"));
        }
    }
    findings
}

fn json_of_struct(fields: prost_types::Struct) -> Value {
    Value::Object(fields.fields.into_iter().map(|(name, value)| (name, json_of(value))).collect())
}

fn json_of(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_of).collect(),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
    }
}

/// Whether everything expected is there; more may be. Numbers are equal by what they count.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, part)| whole.get(name).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        (whole, part) => whole == part,
    }
}

fn limiter<S: Store>(case: &Case, store: S, clock: &Arc<AtomicU64>) -> Direct<S> {
    let settings = &case.settings;
    let charge = settings.charge.map_or(ChargeRule::Auto, |charge| match charge {
        Charge::Auto => ChargeRule::Auto,
        Charge::Admitted => ChargeRule::Admitted,
        Charge::Always => ChargeRule::Always,
    });
    let plan = PlanSettings { shadow: settings.shadow, quota: settings.quota, charge };
    let settings = LimiterSettings { plan, store_timeout: STORE_TIMEOUT };
    let shared = Shared::new(MemoryStore::new(Clock::Manual(Arc::clone(clock)), 1_000), settings);
    let loaded = load_texts(&[("rules.yaml", &case.document())], &LoadOptions::default(), &RuleSet::default());
    assert!(loaded.problems.is_empty(), "{}: {}", case.name, loaded.problems);
    shared.load(loaded.rules);
    let answers = AnswerSettings {
        legacy_headers: case.settings.headers,
        dynamic_metadata: case.settings.metadata,
        ..AnswerSettings::default()
    };
    Direct { limiter: Limiter::new(Arc::new(shared), store), answers, clock: Arc::clone(clock) }
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} differences:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn names_are_unique() {
    let mut domains = BTreeMap::new();
    for (file, case) in cases() {
        if let Some(other) = domains.insert(case.domain(), file.clone()) {
            panic!("{file}: {:?} is a name in {other} already", case.name);
        }
    }
}

#[tokio::test]
async fn in_memory() {
    let mut findings = Vec::new();
    for (file, case) in cases() {
        let clock = Arc::new(AtomicU64::new(BEGINNING));
        let store = MemoryStore::new(Clock::Manual(Arc::clone(&clock)), 1_000);
        let found = play(&case, &limiter(&case, store, &clock)).await;
        findings.extend(found.into_iter().map(|found| format!("{file}: {}: {found}", case.name)));
    }
    assert_none(&findings);
}

#[tokio::test]
async fn in_redis() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        url: server.url(),
        ca_file: None,
        key_prefix: String::new(),
        connect_timeout: STORE_TIMEOUT,
        store_timeout: STORE_TIMEOUT,
    };
    let connector = Connector::new(settings).expect("the settings are good");
    let mut findings = Vec::new();
    for (file, case) in cases() {
        let clock = Arc::new(AtomicU64::new(BEGINNING));
        let store = RedisStore::new(&connector, Clock::Manual(Arc::clone(&clock)));
        store.ready().await;
        let found = play(&case, &limiter(&case, store, &clock)).await;
        findings.extend(found.into_iter().map(|found| format!("{file}: {}: {found}", case.name)));
    }
    assert_none(&findings);
}

#[tokio::test]
async fn over_grpc() {
    let mut by_settings: BTreeMap<Settings, Vec<(String, Case)>> = BTreeMap::new();
    for (file, case) in cases().into_iter().filter(|(_, case)| case.is_timeless()) {
        by_settings.entry(case.settings.clone()).or_default().push((file, case));
    }
    for (settings, cases) in by_settings {
        // Counters that begin afresh between two steps of a case are no fault: then all is asked once more.
        loop {
            let hour = hours_since_the_epoch();
            let findings = ask_all(&settings, &cases).await;
            if findings.is_empty() || hour == hours_since_the_epoch() {
                assert_none(&findings);
                break;
            }
        }
    }
}

fn hours_since_the_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right").as_secs() * SECOND / HOUR
}

/// Asks a server of these settings, on one connection, everything that its cases say.
async fn ask_all(settings: &Settings, cases: &[(String, Case)]) -> Vec<String> {
    let mut server = Server::without_rules().env("LIMIT_RESPONSE_HEADERS_ENABLED", &settings.headers.to_string());
    for (name, value) in
        [("SHADOW_MODE", settings.shadow), ("QUOTA_MODE", settings.quota), ("RESPONSE_DYNAMIC_METADATA", settings.metadata)]
    {
        server = server.env(name, &value.to_string());
    }
    if let Some(charge) = settings.charge {
        server = server.env("CHARGE", &format!("{charge:?}").to_lowercase());
    }
    for (_, case) in cases {
        server = server.file(&format!("{}.yaml", case.domain()), &case.document());
    }
    let weir = server.start().await;
    let remote = Remote { client: weir.client().await, weir };
    let mut findings = Vec::new();
    for (file, case) in cases {
        let found = play(case, &remote).await;
        findings.extend(found.into_iter().map(|found| format!("{file}: {}: {found}", case.name)));
    }
    findings
}
