//! Two replicas and one Redis: whatever an operator changes on one of them, a second later the other one gives no old answer, though
//! it remembers its refusals. Nothing walks the keys for it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::done;
use crate::support::http;
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};
use crate::support::{Output, eventually};

/// How soon a change is in effect on every replica.
const EVERYWHERE: Duration = Duration::from_secs(1);
const LATER: &str = "2100-01-01T00:00:00Z";
/// What a limit of the rules admits in a year; far more than the test asks for.
const ALL: u64 = 1_000_000;

const DOMAIN: &str = "
subject: [user, tenant, account]
tiers: {free: {limits: 1_000_000/year}, team: {limits: 1_000_000/year}, crew: {limits: 1_000_000/year}, pro: {limits: 9_000_000/year}}
default_tier: free
descriptors:
  - {key: user, name: per-user, rate_limit: {unit: year, requests_per_unit: 1_000_000}}
  - {key: tenant, name: per-tenant, rate_limit: {tier: {assigned: tenant}}}
  - {key: account, name: per-account, quota: {monthly: 1_000_000}}
";

fn rules() -> String {
    let domains = ["api", "allowed", "shadowed", "off", "everything"].map(|domain| format!("domain: {domain}{DOMAIN}"));
    domains.join("---\n")
}

/// A call of the admin API.
type Call = (&'static str, String, Value);

/// A kind of change: to whom it happens, and what the answer is afterwards; before, it is the other one.
struct Change {
    domain: &'static str,
    subject: (&'static str, &'static str),
    before: Vec<Call>,
    call: Call,
    is_admitted: bool,
}

impl Change {
    /// To this subject of the domain `api`: a call of its own path.
    fn of(subject: (&'static str, &'static str), call: (&'static str, &str, Value)) -> Change {
        let call = (call.0, path(subject, call.1), call.2);
        Change { domain: "api", subject, before: Vec::new(), call, is_admitted: true }
    }

    fn patch(name: &'static str, body: Value) -> Change {
        Change::of(("user", name), ("PATCH", "", body))
    }

    fn elsewhere(domain: &'static str, call: (&'static str, &str, Value)) -> Change {
        let call = (call.0, call.1.to_owned(), call.2);
        Change { domain, subject: ("user", "u"), before: Vec::new(), call, is_admitted: true }
    }

    fn after(mut self, calls: impl IntoIterator<Item = Call>) -> Change {
        self.before.extend(calls);
        self
    }

    fn refused(self) -> Change {
        Change { is_admitted: false, ..self }
    }

    async fn ask(&self, weir: &Weir, hits: u64) -> bool {
        let (key, value) = self.subject;
        let body = json!({"domain": self.domain, "descriptors": [{"entries": [{"key": key, "value": value}]}], "hitsAddend": hits});
        http::send(weir.http, "POST", "/json", &[], body.to_string().as_bytes()).await.expect("an answer").status == 200
    }
}

fn path((key, name): (&str, &str), what: &str) -> String {
    format!("/v1/domains/api/subjects/{key}={name}{what}")
}

fn changes() -> Vec<Change> {
    let patch = |name: &'static str, body: Value| ("PATCH", path(("user", name), ""), body);
    let assign = |name: &'static str, tier: &str| ("PUT", path(("tenant", name), "/tier"), json!({"tier": tier}));
    let tier = |name: &str| format!("/v1/domains/api/tiers/{name}");
    let switch = |domain: &str, to: &str| ("PUT", "/v1/switch".to_owned(), json!({"domain": domain, "switch": to}));
    let larger = json!({"limits": [{"limit": "2000000/year"}]});
    let record = json!({"domain": "api", "subject": "user=imported", "multiplier": 2});
    vec![
        Change::of(("tenant", "assigned"), ("PUT", "/tier", json!({"tier": "pro"}))),
        Change::of(("tenant", "unassigned"), ("DELETE", "/tier", json!(null))).after([assign("unassigned", "pro")]).refused(),
        Change::patch("by-rule", json!({"limits": [{"rule": "per-user", "limits": [{"limit": "2000000/year"}]}]})),
        Change::patch("all-rules", json!({"limits": [larger]})),
        Change::patch("unlimited", json!({"limits": [{"unlimited": true}]})),
        Change::patch("quota", json!({"limits": [{"daily": 0}]})).after([patch("quota", json!({"multiplier": 9}))]).refused(),
        Change::patch("multiplied", json!({"multiplier": 2})),
        Change::patch("allowed", json!({"allowed_until": LATER})),
        Change::patch("blocked", json!({"blocked_until": LATER})).after([patch("blocked", json!({"multiplier": 2}))]).refused(),
        Change::patch("cleared", json!({"clear": ["blocked_until"]}))
            .after([patch("cleared", json!({"multiplier": 2, "blocked_until": LATER}))]),
        Change::of(("user", "removed"), ("DELETE", "", json!(null))).after([patch("removed", json!({"multiplier": 2}))]).refused(),
        Change::of(("user", "reset"), ("POST", "/reset", json!({"kind": "all"}))),
        Change::of(("user", "rate"), ("POST", "/reset", json!({"kind": "rate"}))),
        Change::of(("account", "monthly"), ("POST", "/reset", json!({"kind": "monthly"}))),
        Change {
            call: ("POST", "/v1/records".to_owned(), json!({"subjects": [record]})),
            ..Change::patch("imported", json!(null))
        },
        Change { call: ("PUT", tier("team"), json!({"limits": [{"limit": "3000000/year"}]})), ..of_tenant("defined") }
            .after([assign("defined", "team")]),
        Change { call: ("DELETE", tier("crew"), json!(null)), ..of_tenant("undefined") }
            .after([("PUT", tier("crew"), json!({"limits": [{"limit": "3000000/year"}]})), assign("undefined", "crew")])
            .refused(),
        Change::elsewhere("allowed", ("PUT", "/v1/switch", json!({"domain": "allowed", "switch": "allow"}))),
        Change::elsewhere("shadowed", ("PUT", "/v1/switch", json!({"domain": "shadowed", "switch": "shadow"}))),
        Change::elsewhere("off", ("PUT", "/v1/switch", json!({"domain": "off", "switch": "off"})))
            .after([switch("off", "allow")])
            .refused(),
    ]
}

fn of_tenant(name: &'static str) -> Change {
    Change::of(("tenant", name), ("GET", "", json!(null)))
}

async fn replicas(redis: &RedisServer) -> (Weir, Weir) {
    let start = async || {
        let settings = Settings::with_rules(&rules()).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true");
        settings.env("LOCAL_CACHE_SIZE_IN_BYTES", "1000000").start().await
    };
    (start().await, start().await)
}

/// Makes the change on `one`, once `other` gives the old answer; says when it was made.
async fn make(change: &Change, one: &Weir) -> Instant {
    let (method, path, body) = &change.call;
    done(one, method, path, body.clone()).await;
    Instant::now()
}

/// Uses up what the rules give, and brings about what is to be changed.
async fn prepare(change: &Change, one: &Weir, other: &Weir) {
    assert!(change.ask(one, ALL).await, "{:?}", change.subject);
    for (method, path, body) in &change.before {
        done(one, method, path, body.clone()).await;
    }
    eventually("the old answer", async || change.ask(other, 1).await != change.is_admitted).await;
}

/// Asks `other` in turn until everything must have been in effect for a while; no old answer may come too late.
async fn no_old_answers(changes: &[Change], one: &Weir, other: &Weir) {
    let mut made = Vec::new();
    for change in changes {
        made.push((change, make(change, one).await, None, 0));
    }
    let last = made.last().expect("there are some").1;
    while last.elapsed() < EVERYWHERE + EVERYWHERE / 2 {
        for (change, made_at, last_old, late) in &mut made {
            let asked = made_at.elapsed();
            if change.ask(other, 1).await != change.is_admitted {
                *last_old = Some(asked);
            }
            *late += u64::from(asked >= EVERYWHERE);
        }
    }
    for (change, _, last_old, late) in made {
        assert!(late > 0, "nobody asked late enough");
        assert!(last_old.is_none_or(|asked| asked < EVERYWHERE), "{:?}: an old answer after {last_old:?}", change.call);
    }
}

/// What a Redis is asked, as redis-cli shows it.
struct Monitor {
    process: Child,
    seen: Output,
}

impl Monitor {
    async fn of(redis: &RedisServer) -> Monitor {
        let port = redis.url().rsplit(':').next().expect("a port").to_owned();
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port, "MONITOR"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("redis-cli runs");
        let seen = Output::of(&mut process);
        eventually("the monitor watches", async || seen.text().contains("OK")).await;
        Monitor { process, seen }
    }

    /// Commands that walk keys or what is in one, also those of scripts.
    fn walks(&self) -> Vec<String> {
        let walks = ["\"SCAN\"", "\"KEYS\"", "\"HSCAN\"", "\"SSCAN\"", "\"ZSCAN\"", "\"RANDOMKEY\""];
        let is_walk = |line: &&str| walks.iter().any(|word| line.to_uppercase().contains(word));
        self.seen.text().lines().filter(is_walk).map(str::to_owned).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.process.kill().expect("an own process can be killed");
        self.process.wait().expect("a process that was started can be waited for");
    }
}

#[tokio::test]
async fn no_old_answer_comes_a_second_after_a_change_and_nothing_walks_the_keys() {
    let redis = RedisServer::start();
    let monitor = Monitor::of(&redis).await;
    let (one, other) = replicas(&redis).await;
    let changes = changes();
    for change in &changes {
        prepare(change, &one, &other).await;
    }
    no_old_answers(&changes, &one, &other).await;
    // The switch for everything, which would hide the rest.
    let everything = Change::elsewhere("everything", ("PUT", "/v1/switch", json!({"switch": "allow"})));
    prepare(&everything, &one, &other).await;
    no_old_answers(&[everything], &one, &other).await;

    for path in ["/v1/domains/api/subjects", "/v1/records", "/v1/domains/api/tiers", "/v1/switch"] {
        done(&one, "GET", path, json!(null)).await;
    }
    done(&one, "GET", &path(("user", "reset"), "/usage"), json!(null)).await;
    eventually("a history is brought to Redis, and told", async || {
        let history = done(&one, "GET", &path(("user", "reset"), "/history"), json!(null)).await;
        history["days"].as_array().is_some_and(|days| !days.is_empty())
    })
    .await;
    let text = monitor.seen.text();
    assert!(text.contains("XREVRANGE") && text.contains("HINCRBY"), "the monitor saw nothing of it");
    assert_eq!(monitor.walks(), [""; 0]);
    let (_, keys): (String, Vec<String>) = redis.command(&["SCAN", "0"]).await;
    assert!(!keys.is_empty());
    eventually("the monitor would have seen it", async || monitor.walks().len() == 1).await;
}

#[tokio::test]
async fn what_one_replica_gives_back_another_one_admits_within_a_second() {
    let redis = RedisServer::start();
    let (one, other) = replicas(&redis).await;
    let change = Change::patch("refunded", json!(null));
    prepare(&change, &one, &other).await;
    let entries = json!([{"key": "user", "value": "refunded"}]);
    let refund = json!({"domain": "api", "descriptors": [{"entries": entries, "isNegativeHits": true, "hitsAddend": ALL}]});
    let answer = http::send(one.http, "POST", "/json", &[], refund.to_string().as_bytes()).await.expect("an answer");
    let made = Instant::now();
    assert_eq!(answer.status, 200);
    let (mut last_old, mut first_new) = (None, None);
    while made.elapsed() < EVERYWHERE + EVERYWHERE / 2 {
        let asked = made.elapsed();
        *(if change.ask(&other, 1).await { &mut first_new } else { &mut last_old }) = Some(asked);
    }
    assert!(first_new.is_some() && last_old.is_none_or(|asked| asked < EVERYWHERE), "an old answer after {last_old:?}");
}
