//! Response headers and the body of a refusal: everything an answer says in words. What a caller sent never stands in them, only
//! what the rules call themselves, escaped where a header cannot carry it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::proto::envoy::config::core::v3::HeaderValue;
use super::{AnswerSettings, LegacyNames};
use crate::limit::{Micros, Outcome, SECOND};
use crate::limiter::Decided;
use crate::rules::decision::{Code, Decision, Status};
use crate::rules::plan::Source;
use crate::rules::{ResetFormat, ResponseOptions, Rule, RuleLimit};

/// The most policies that one header or body lists.
const MAX_POLICIES: usize = 16;
/// The largest integer of a structured field (RFC 8941).
const MAX_SF_INTEGER: u64 = 999_999_999_999_999;
/// The problem type of draft-ietf-httpapi-ratelimit-headers.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// The descriptor that an answer speaks of: the one that refused, else the one with the least remaining.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub status: &'a Status,
    /// `None`: a limit that came with the request and met no rule, or an operator's block, which no rule has a part in.
    pub rule: Option<&'a Rule>,
    /// Whose limits they are, where the rule goes by tiers.
    pub tier: Option<&'a str>,
    /// The limit that stands for the descriptor, and what it said; a `deny` has none.
    pub limit: Option<(&'a RuleLimit, Outcome)>,
}

impl<'a> Told<'a> {
    pub(super) fn of(decided: &'a Decided) -> Option<Told<'a>> {
        let decision = &decided.decision;
        let status = match decision.limited_by {
            Some(place) => decision.statuses.get(place)?,
            None => {
                let limited = decision.statuses.iter().filter_map(|status| Some((status, status.outcome()?.remaining())));
                limited.min_by_key(|(_, remaining)| *remaining)?.0
            }
        };
        Told::of_status(decided, status)
    }

    /// As [`Told::of`]; where no limit had a part in it, of the first rule that let the request pass.
    pub(super) fn of_any(decided: &'a Decided) -> Option<Told<'a>> {
        let by_rule = || decided.decision.statuses.iter().find(|status| status.rule.is_some());
        Told::of(decided).or_else(|| Told::of_status(decided, by_rule()?))
    }

    fn of_status(decided: &'a Decided, status: &'a Status) -> Option<Told<'a>> {
        let domain = decided.domain()?;
        let limit = status.limit(domain, &decided.overrides).zip(status.outcome());
        let tier = status.tier.map(|tier| &domain.plans.tier(tier).name);
        let rule = status.rule.filter(|_| !is_operators_block(status)).map(|rule| domain.rule(rule));
        Some(Told { status, rule, tier: tier.map(|name| &**name), limit })
    }

    /// Whether an operator has blocked the subject.
    pub(super) fn is_operators_block(&self) -> bool {
        is_operators_block(self.status)
    }

    /// When its limit changes, in µs from now; `None`: no limit had a part in it.
    fn reset(&self) -> Option<Micros> {
        Some(self.status.outcome()?.reset_after())
    }

    /// When a refused request fits, in µs from now; `None`: never.
    fn retry_after(&self) -> Option<Micros> {
        self.status.outcome()?.retry_after()
    }

    /// All limits that the descriptor is held to: the rule's, its tier's, its subject's, or the one that came with the request.
    fn policies(&self, decided: &'a Decided) -> impl Iterator<Item = &'a RuleLimit> {
        let (status, domain) = (self.status, decided.domain());
        let counted = status.limits.iter().enumerate().filter(|(_, limit)| limit.source != Source::Block);
        let limit = move |(place, _)| status.limit_at(place, domain?, &decided.overrides);
        counted.filter_map(limit).take(MAX_POLICIES)
    }
}

/// What an operator's block is called where a limit's policy would stand.
pub(super) const OPERATOR_BLOCK: &str = "operator-block";

fn is_operators_block(status: &Status) -> bool {
    status.limits.iter().any(|limit| limit.source == Source::Blocked)
}

/// All headers that the rules and the settings ask for, for a call that came in at `arrival`.
pub(super) fn headers(decided: &Decided, settings: &AnswerSettings, arrival: Instant) -> Vec<HeaderValue> {
    let Some(domain) = decided.domain() else { return Vec::new() };
    let options = &domain.response;
    let is_silent = !(settings.legacy_headers
        || options.legacy_headers
        || options.ratelimit_headers
        || options.x_ratelimit_headers
        || options.retry_after_header
        || options.rule_header);
    if is_silent {
        return Vec::new();
    }
    let Some(told) = Told::of(decided) else { return Vec::new() };
    let mut headers = Headers { options, arrival, headers: Vec::with_capacity(8) };
    if settings.legacy_headers || options.legacy_headers {
        headers.legacy(&told, &settings.legacy_names);
    }
    if options.ratelimit_headers {
        headers.ratelimit(&told, decided);
    }
    if options.x_ratelimit_headers {
        headers.x_ratelimit(&told);
        let delay = decided.decision.delay.saturating_sub(decided.decision.hold);
        if delay > 0 {
            headers.add("x-ratelimit-delay-ms", delay.div_ceil(1_000).to_string());
        }
    }
    let is_over = decided.decision.code == Code::OverLimit;
    if let (true, true, Some(retry_after)) = (options.retry_after_header, is_over, told.retry_after()) {
        headers.add("Retry-After", seconds(retry_after).to_string());
    }
    if let (true, Some(rule)) = (options.rule_header, told.rule) {
        headers.add("x-ratelimit-rule", visible(rule.label()));
        if let Some(tier) = told.tier {
            headers.add("x-ratelimit-tier", visible(tier));
        }
    }
    headers.headers
}

struct Headers<'a> {
    options: &'a ResponseOptions,
    arrival: Instant,
    headers: Vec<HeaderValue>,
}

impl Headers<'_> {
    /// A header that is there already, by the name that a setting gave it, stays as it is.
    fn add(&mut self, key: &str, value: String) {
        if self.headers.iter().any(|header| header.key.eq_ignore_ascii_case(key)) {
            return;
        }
        self.headers.push(HeaderValue { key: key.to_owned(), value, raw_value: Vec::new() });
    }

    fn legacy(&mut self, told: &Told<'_>, names: &LegacyNames) {
        let Some((limit, outcome)) = told.limit else { return };
        self.add(&names.limit, limit.limit.requests().to_string());
        self.add(&names.remaining, outcome.remaining().to_string());
        if let Some(reset) = told.reset() {
            self.add(&names.reset, self.time(reset));
        }
    }

    fn ratelimit(&mut self, told: &Told<'_>, decided: &Decided) {
        let Some((limit, outcome)) = told.limit else { return };
        let mut policies = String::with_capacity(64);
        for policy in told.policies(decided) {
            let separator = if policies.is_empty() { "" } else { ", " };
            let requests = policy.limit.requests().min(MAX_SF_INTEGER);
            let _ = write!(policies, "{separator}{};q={requests}", sf_string(&policy.policy));
            // A window that is no whole number of seconds cannot be said.
            if policy.limit.window().is_multiple_of(SECOND) {
                let _ = write!(policies, ";w={}", policy.limit.window() / SECOND);
            }
        }
        self.add("RateLimit-Policy", policies);
        let mut state = format!("{};r={}", sf_string(&limit.policy), outcome.remaining().min(MAX_SF_INTEGER));
        if let Some(reset) = told.reset() {
            let _ = write!(state, ";t={}", seconds(reset));
        }
        self.add("RateLimit", state);
    }

    fn x_ratelimit(&mut self, told: &Told<'_>) {
        if let Some((limit, outcome)) = told.limit {
            self.add("X-RateLimit-Limit", limit.limit.requests().to_string());
            self.add("X-RateLimit-Remaining", outcome.remaining().to_string());
            if let Some(reset) = told.reset() {
                self.add("X-RateLimit-Reset", self.time(reset));
            }
            let (requests, window) = (limit.limit.requests(), limit.limit.window());
            self.add("X-RateLimit-Policy", format!("{requests};w={}", fractional_seconds(window)));
        }
        if let Some(rule) = told.rule {
            self.add("X-RateLimit-Layer", visible(&rule.layer));
        }
    }

    /// A time from now, the way the domain wants it.
    fn time(&self, after: Micros) -> String {
        // By the time of arrival: what passed since then would push a window's end into the next second.
        let at = || SystemTime::now() - self.arrival.elapsed() + Duration::from_micros(after);
        match self.options.reset_format {
            ResetFormat::Delta => seconds(after).to_string(),
            ResetFormat::Epoch => epoch_seconds(at()).to_string(),
            ResetFormat::Iso => {
                let at = i64::try_from(epoch_seconds(at())).unwrap_or(i64::MAX);
                prost_types::Timestamp { seconds: at, nanos: 0 }.to_string()
            }
        }
    }
}

/// An `application/problem+json` body (RFC 9457) for a refusal, with the header that says so.
pub(super) fn problem(decided: &Decided) -> Option<(HeaderValue, Vec<u8>)> {
    let domain = decided.domain()?;
    if decided.decision.code != Code::OverLimit || !domain.response.problem_body {
        return None;
    }
    let told = Told::of(decided)?;
    let (kind, title) = match told.is_operators_block() {
        true => ("about:blank", "Too Many Requests"),
        false => (QUOTA_EXCEEDED, "Request cannot be satisfied as assigned quota has been exceeded"),
    };
    let mut body = serde_json::json!({
        "type": kind,
        "title": title,
        "status": 429,
        "violated-policies": violated_policies(decided),
    });
    if told.is_operators_block() {
        body["detail"] = "blocked by an operator".into();
    }
    let rule = told.rule.map(|rule| [("rule", rule.label()), ("layer", &*rule.layer)]);
    for (key, name) in rule.into_iter().flatten().chain(told.tier.map(|tier| ("tier", tier))) {
        body[key] = name.into();
    }
    if let Some(retry_after) = told.retry_after() {
        body["retry-after"] = seconds(retry_after).into();
    }
    let header = HeaderValue { key: "content-type".into(), value: "application/problem+json".into(), raw_value: Vec::new() };
    Some((header, body.to_string().into_bytes()))
}

/// Of every limit that refused; a `deny` rule is called by its name, an operator's block by [`OPERATOR_BLOCK`].
fn violated_policies(decided: &Decided) -> Vec<&str> {
    let Some(domain) = decided.domain() else { return Vec::new() };
    let mut violated = Vec::new();
    for status in decided.decision.statuses.iter().filter(|status| status.code == Code::OverLimit) {
        let refused = status.limits.iter().enumerate().filter(|(_, limit)| !limit.outcome.is_allowed());
        let of_limits = refused.filter_map(|(place, _)| status.limit_at(place, domain, &decided.overrides));
        let mut policies = of_limits.map(|limit| &*limit.policy).peekable();
        let has_none = policies.peek().is_none();
        let other = match status.rule {
            _ if is_operators_block(status) => Some(OPERATOR_BLOCK),
            rule => rule.filter(|_| has_none).map(|rule| domain.rule(rule).label()),
        };
        for policy in policies.chain(other) {
            if violated.len() < MAX_POLICIES && !violated.contains(&policy) {
                violated.push(policy);
            }
        }
    }
    violated
}

/// When the last of the descriptors that are over fits, in whole seconds from now; `None`: never, or none is over.
pub(super) fn retry_after(decision: &Decision) -> Option<u64> {
    let over = decision.statuses.iter().filter(|status| status.code == Code::OverLimit);
    let times = over.map(|status| status.outcome().and_then(|outcome| outcome.retry_after()));
    times.collect::<Option<Vec<Micros>>>()?.into_iter().max().map(seconds)
}

/// Rounded up: whoever comes back then is not early.
pub(super) fn seconds(micros: Micros) -> u64 {
    micros.div_ceil(SECOND)
}

fn epoch_seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs() + u64::from(since.subsec_nanos() > 0)
}

/// `60`, `0.25`.
fn fractional_seconds(micros: Micros) -> String {
    let (whole, part) = (micros / SECOND, micros % SECOND);
    if part == 0 { whole.to_string() } else { format!("{whole}.{part:06}").trim_end_matches('0').to_owned() }
}

/// A string of a structured field: visible ASCII in quotes.
fn sf_string(text: &str) -> String {
    format!("\"{}\"", visible(text).replace('\\', "\\\\").replace('"', "\\\""))
}

/// What a header can carry: visible ASCII and spaces; other bytes as `%XX`.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' => visible.push(char::from(byte)),
            _ => {
                let _ = write!(visible, "%{byte:02X}");
            }
        }
    }
    visible
}
