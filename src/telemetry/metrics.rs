//! Every metric there is. Labels come from the rules and from this file, never from what callers send.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::connections::Connections;
use super::exposition::{Format, to_prometheus};
use super::latency::Latency;
use super::rule_counters::RuleCounters;

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What each rule decided.
    pub rules: RuleCounters,
    /// Calls that named no domain of the rules.
    pub unknown_domains: Counter,
    /// Calls that were allowed because the switch says so.
    pub allowed_by_switch: Counter,
    /// Descriptors that got their domain's default tier.
    pub unknown_tiers: Counter,
    pub errors: Errors,
    /// What the bounds on connections and open calls did.
    pub connections: Arc<Connections>,
    pub degraded: Degraded,
    pub reservations: Reservations,
    pub abandoned: Abandoned,
    pub store: Store,
    pub reloads: Reloads,
    pub records: Records,
    pub history: History,
    /// The counters that this process keeps.
    pub memory: Memory,
    /// Those of `on_store_failure: local`.
    pub fallback_memory: Memory,
    /// How many share a limit that is decided locally.
    pub replicas: Gauge,
    /// 1 while calls may come.
    pub ready: Gauge,
}

/// Calls that got no decision.
#[derive(Debug)]
pub struct Errors {
    pub invalid: Counter,
    pub unavailable: Counter,
    pub deadline_passed: Counter,
}

/// Calls that were answered without the store, by what answered.
#[derive(Debug)]
pub struct Degraded {
    pub allow: Counter,
    pub deny: Counter,
    pub local: Counter,
}

/// Calls of the reservation service, by what came of them.
#[derive(Debug)]
pub struct Reservations {
    pub made: Counter,
    pub refused: Counter,
    /// Reserved or committed before.
    pub repeated: Counter,
    pub committed: Counter,
    /// To be committed, and not there.
    pub absent: Counter,
    /// Kept in memory.
    pub kept: Gauge,
}

/// Calls whose caller went away while the store was asked. As of the last look.
#[derive(Debug)]
pub struct Abandoned {
    finished: Counter,
    dropped: Counter,
}

/// Of the store that all replicas share.
#[derive(Debug)]
pub struct Store {
    pub latency: Latency,
    pub timeouts: Counter,
    pub unavailable: Counter,
    /// Got no turn, because too many others waited.
    pub busy: Counter,
    /// Not asked, because the breaker was open.
    pub not_asked: Counter,
    /// Keys that hold something else, and requests that are too large.
    pub refused: Counter,
    /// 1 while the store is not asked.
    pub breaker_open: Gauge,
}

/// Of loading rules.
#[derive(Debug)]
pub struct Reloads {
    good: Counter,
    bad: Counter,
    revision: Gauge,
    last_success: Gauge,
    kept_domains: Gauge,
    /// In seconds; as of the last look.
    reading: Gauge<f64, AtomicU64>,
    removed_domains: Counter,
}

/// What operators said while weir runs. As of the last look.
#[derive(Debug)]
pub struct Records {
    pub subjects: Gauge,
    pub tiers: Gauge,
    pub switches: Gauge,
    last_sync: Gauge,
    failures: Counter,
}

/// Histories of subjects, a row for each subject and flush.
#[derive(Debug)]
pub struct History {
    pub written: Counter,
    /// Requests of more subjects at once than are remembered. As of the last look.
    full: Counter,
    /// Rows that the store did not take.
    pub not_taken: Counter,
}

/// As of the last look.
#[derive(Debug)]
pub struct Memory {
    counters: Gauge,
    evicted: Counter,
    turned_away: Counter,
}

type Label = [(&'static str, &'static str); 1];

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("weir");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program that runs", build);
        let rules = RuleCounters::default();
        registry.register_collector(Box::new(rules.clone()));
        let unknown_domains = Counter::default();
        registry.register("unknown_domain", "Calls for a domain that no rules are loaded for", unknown_domains.clone());
        let allowed_by_switch = Counter::default();
        let help = "Calls that the switch allowed without applying rules";
        registry.register("allowed_by_switch", help, allowed_by_switch.clone());
        let unknown_tiers = Counter::default();
        registry.register("unknown_tier", "Descriptors that named no known tier and got the default one", unknown_tiers.clone());
        let ready = Gauge::default();
        registry.register("ready", "Whether calls may come: rules are loaded, the store answers, no shutdown", ready.clone());
        let replicas = Gauge::default();
        registry.register("replicas", "How many replicas share a limit decided locally while the store is away", replicas.clone());
        Metrics {
            rules,
            unknown_domains,
            allowed_by_switch,
            unknown_tiers,
            errors: Errors::new(&mut registry),
            connections: Arc::new(Connections::new(&mut registry)),
            degraded: Degraded::new(&mut registry),
            reservations: Reservations::new(&mut registry),
            abandoned: Abandoned::new(&mut registry),
            store: Store::new(&mut registry),
            reloads: Reloads::new(&mut registry),
            records: Records::new(&mut registry),
            history: History::new(&mut registry),
            memory: Memory::new(&mut registry, ""),
            fallback_memory: Memory::new(&mut registry, "fallback_"),
            replicas,
            ready,
            registry,
        }
    }

    /// The exposition for a scrape.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and nothing here is a metric that cannot be written.
        let _ = encode(&mut text, &self.registry);
        match format {
            Format::OpenMetrics => text,
            Format::Prometheus => to_prometheus(&text),
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Counters of one name, told apart by a label with these values.
pub(super) fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family: Family<Label, Counter> = Family::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create_owned(&[(label, value)]))
}

impl Errors {
    fn new(registry: &mut Registry) -> Errors {
        let kinds = ["invalid", "unavailable", "deadline_passed"];
        let [invalid, unavailable, deadline_passed] = counters(registry, "errors", "Calls that got no decision", "kind", kinds);
        Errors { invalid, unavailable, deadline_passed }
    }
}

impl Degraded {
    fn new(registry: &mut Registry) -> Degraded {
        let help = "Calls answered by on_store_failure";
        let [allow, deny, local] = counters(registry, "degraded_decisions", help, "mode", ["allow", "deny", "local"]);
        Degraded { allow, deny, local }
    }
}

impl Reservations {
    fn new(registry: &mut Registry) -> Reservations {
        let results = ["made", "refused", "repeated", "committed", "absent"];
        let help = "Calls of the reservation service";
        let [made, refused, repeated, committed, absent] = counters(registry, "reservations", help, "result", results);
        let kept = Gauge::default();
        registry.register("memory_reservations", "Reservations in memory", kept.clone());
        Reservations { made, refused, repeated, committed, absent, kept }
    }
}

impl Abandoned {
    fn new(registry: &mut Registry) -> Abandoned {
        let help = "Calls whose caller went away while the store was asked: finished and counted, or dropped and not counted";
        let [finished, dropped] = counters(registry, "abandoned_calls", help, "result", ["finished", "dropped"]);
        Abandoned { finished, dropped }
    }

    /// How many there were of each since the process started.
    pub fn record(&self, [finished, dropped]: [u64; 2]) {
        self.finished.inc_by(finished.saturating_sub(self.finished.get()));
        self.dropped.inc_by(dropped.saturating_sub(self.dropped.get()));
    }
}

impl Store {
    fn new(registry: &mut Registry) -> Store {
        let kinds = ["timeout", "unavailable", "busy", "not_asked", "refused"];
        let help = "Calls that the store did not decide";
        let [timeouts, unavailable, busy, not_asked, refused] = counters(registry, "store_errors", help, "kind", kinds);
        let latency = Latency::default();
        registry.register("store_latency_seconds", "How long the store took to answer a call, queueing included", latency.clone());
        let breaker_open = Gauge::default();
        registry.register("store_breaker_open", "Whether the store is failing and not asked", breaker_open.clone());
        Store { latency, timeouts, unavailable, busy, not_asked, refused, breaker_open }
    }
}

impl Reloads {
    fn new(registry: &mut Registry) -> Reloads {
        let [good, bad] = counters(registry, "config_reloads", "Times that rules were read", "result", ["good", "bad"]);
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let revision = gauge("config_revision", "The rules in force, counted from 1; 0 is none");
        let last_success = gauge("config_last_success_timestamp_seconds", "When rules were last read without a problem");
        let kept_domains =
            gauge("config_kept_domains", "Domains that keep their last good rules, because their files are bad or gone");
        let removed_domains = Counter::default();
        let help = "Domains, and parts of domains, removed because two readings no longer found them";
        registry.register("config_removed_domains", help, removed_domains.clone());
        let reading: Gauge<f64, AtomicU64> = Gauge::default();
        let help = "How long the reading of the rules takes that is under way; 0 between readings";
        registry.register("config_reading_seconds", help, reading.clone());
        Reloads { good, bad, revision, last_success, kept_domains, reading, removed_domains }
    }

    /// How long the reading takes that is under way.
    pub fn record_reading(&self, time: Duration) {
        self.reading.set(time.as_secs_f64());
    }

    /// What came of reading rules: whether all was well, what is in force now, how many domains stayed as they were, and how
    /// many were removed because the files no longer had them.
    pub fn record(&self, is_good: bool, revision: u64, kept_domains: usize, removed_domains: usize) {
        if is_good {
            self.good.inc();
            self.last_success.set(epoch_seconds(SystemTime::now()));
        } else {
            self.bad.inc();
        }
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.kept_domains.set(i64::try_from(kept_domains).unwrap_or(i64::MAX));
        self.removed_domains.inc_by(removed_domains as u64);
    }
}

impl Records {
    fn new(registry: &mut Registry) -> Records {
        let kinds: Family<Label, Gauge> = Family::default();
        registry.register("records", "Overrides, tiers and switches of operators that this process goes by", kinds.clone());
        let [subjects, tiers, switches] = ["subject", "tier", "switch"].map(|kind| kinds.get_or_create_owned(&[("kind", kind)]));
        let (last_sync, failures) = (Gauge::default(), Counter::default());
        let help = "When this process last knew every override in Redis; 0 with counters in memory";
        registry.register("records_last_sync_timestamp_seconds", help, last_sync.clone());
        registry.register("records_sync_failures", "Times that reading new overrides from Redis failed", failures.clone());
        Records { subjects, tiers, switches, last_sync, failures }
    }

    /// When all were last known, and how often following them has failed.
    pub fn record_sync(&self, last: Option<SystemTime>, failures: u64) {
        self.last_sync.set(last.map_or(0, epoch_seconds));
        self.failures.inc_by(failures.saturating_sub(self.failures.get()));
    }
}

impl History {
    fn new(registry: &mut Registry) -> History {
        let written = Counter::default();
        registry.register("history_written_rows", "Rows of subjects' histories that were written to the store", written.clone());
        let help = "What is missing in histories: requests of too many subjects at once, and rows that the store did not take";
        let [full, not_taken] = counters(registry, "history_dropped", help, "reason", ["full", "store"]);
        History { written, full, not_taken }
    }

    pub fn record_full(&self, requests: u64) {
        self.full.inc_by(requests.saturating_sub(self.full.get()));
    }
}

fn epoch_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl Memory {
    fn new(registry: &mut Registry, kind: &str) -> Memory {
        let memory = Memory { counters: Gauge::default(), evicted: Counter::default(), turned_away: Counter::default() };
        let (counters, evicted) = (format!("{kind}memory_counters"), format!("{kind}memory_evicted_counters"));
        registry.register(counters, "Counters in memory, the expired ones not yet cleared away included", memory.counters.clone());
        registry.register(evicted, "Live counters dropped because the memory for them was full", memory.evicted.clone());
        let help =
            "New counters that got no memory because every counter there refuses someone; their requests follow on_store_failure";
        registry.register(format!("{kind}memory_turned_away_counters"), help, memory.turned_away.clone());
        memory
    }

    pub fn record(&self, counters: usize, evicted: u64, turned_away: u64) {
        self.counters.set(i64::try_from(counters).unwrap_or(i64::MAX));
        self.evicted.inc_by(evicted.saturating_sub(self.evicted.get()));
        self.turned_away.inc_by(turned_away.saturating_sub(self.turned_away.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new();
        metrics.errors.invalid.inc();
        metrics.degraded.local.inc_by(2);
        metrics.reloads.record(true, 3, 0, 2);
        metrics.reloads.record(false, 4, 1, 0);
        metrics.memory.record(10, 5, 1);
        metrics.memory.record(7, 6, 3);
        metrics.records.tiers.set(2);
        metrics.records.record_sync(Some(UNIX_EPOCH + std::time::Duration::from_secs(77)), 3);
        metrics.records.record_sync(Some(UNIX_EPOCH + std::time::Duration::from_secs(78)), 4);
        metrics.history.record_full(5);
        metrics.history.record_full(5);
        metrics.abandoned.record([2, 1]);
        metrics.abandoned.record([3, 1]);
        metrics.store.latency.record(std::time::Duration::from_micros(300));
        let text = metrics.text(Format::OpenMetrics);
        for line in [
            "weir_errors_total{kind=\"invalid\"} 1",
            "weir_errors_total{kind=\"unavailable\"} 0",
            "weir_degraded_decisions_total{mode=\"local\"} 2",
            "weir_config_reloads_total{result=\"good\"} 1",
            "weir_config_reloads_total{result=\"bad\"} 1",
            "weir_config_revision 4",
            "weir_config_kept_domains 1",
            "weir_config_removed_domains_total 2",
            "weir_memory_counters 7",
            "weir_records{kind=\"subject\"} 0",
            "weir_records{kind=\"tier\"} 2",
            "weir_records_last_sync_timestamp_seconds 78",
            "weir_records_sync_failures_total 4",
            "weir_abandoned_calls_total{result=\"finished\"} 3",
            "weir_abandoned_calls_total{result=\"dropped\"} 1",
            "weir_history_dropped_total{reason=\"full\"} 5",
            "weir_history_dropped_total{reason=\"store\"} 0",
            "weir_memory_evicted_counters_total 6",
            "weir_memory_turned_away_counters_total 3",
            "weir_fallback_memory_turned_away_counters_total 0",
            "weir_store_latency_seconds_bucket{le=\"0.00025\"} 0",
            "weir_store_latency_seconds_bucket{le=\"0.0005\"} 1",
            "weir_store_latency_seconds_bucket{le=\"+Inf\"} 1",
            "weir_store_latency_seconds_count 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }
}
