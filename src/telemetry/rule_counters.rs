//! What each rule decided. The counters of a rule are found when rules are loaded, so that a decision only adds to them; they go on
//! over a reload for as long as the rule is there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric as _;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// All rules' counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RuleCounters(Arc<RwLock<Domains>>);

type Domains = BTreeMap<Box<str>, Arc<DomainCounters>>;

/// Of one domain.
#[derive(Debug, Default)]
pub struct DomainCounters {
    /// Descriptors that no rule was found for.
    unmatched: Arc<AtomicU64>,
    /// By place; rules of one label share theirs.
    rules: Vec<Arc<Outcomes>>,
    labels: BTreeMap<Box<str>, Arc<Outcomes>>,
}

#[derive(Debug, Default)]
struct Outcomes([AtomicU64; 3]);

/// What a rule said about one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOutcome {
    Ok,
    OverLimit,
    /// It would have been over, but the rule or the server only watches.
    ShadowOverLimit,
}

impl RuleOutcome {
    const ALL: [(RuleOutcome, &'static str); 3] =
        [(RuleOutcome::Ok, "ok"), (RuleOutcome::OverLimit, "over_limit"), (RuleOutcome::ShadowOverLimit, "shadow_over_limit")];
}

impl DomainCounters {
    pub fn unmatched(&self) {
        self.unmatched.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what the rule at this place of the domain said.
    pub fn decided(&self, rule: usize, outcome: RuleOutcome) {
        if let Some(outcomes) = self.rules.get(rule) {
            outcomes.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn new<'a>(labels: impl Iterator<Item = &'a str>, before: Option<&DomainCounters>) -> DomainCounters {
        let mut counters = DomainCounters {
            unmatched: before.map(|before| before.unmatched.clone()).unwrap_or_default(),
            ..DomainCounters::default()
        };
        for label in labels {
            let known = || before.and_then(|before| before.labels.get(label)).cloned().unwrap_or_default();
            let outcomes = counters.labels.entry(label.into()).or_insert_with(known);
            counters.rules.push(outcomes.clone());
        }
        counters
    }
}

impl RuleCounters {
    /// The counters for the domains in force from now on, in the order given, each with the labels of its rules.
    pub fn load<'a, L>(&self, domains: impl Iterator<Item = (&'a str, L)>) -> Vec<Arc<DomainCounters>>
    where
        L: Iterator<Item = &'a str>,
    {
        let before = self.0.read().clone();
        let mut now = Domains::new();
        let mut in_order = Vec::new();
        for (name, labels) in domains {
            let counters = Arc::new(DomainCounters::new(labels, before.get(name).map(|before| &**before)));
            in_order.push(counters.clone());
            now.insert(name.into(), counters);
        }
        *self.0.write() = now;
        in_order
    }
}

impl Collector for RuleCounters {
    /// Rules that have decided nothing yet are left out: there may be tens of thousands.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let domains = self.0.read().clone();
        let mut metric = encoder.encode_descriptor("decisions", "Descriptors decided by a rule.", None, MetricType::Counter)?;
        for (domain, counters) in &domains {
            for (label, outcomes) in &counters.labels {
                for (outcome, name) in RuleOutcome::ALL {
                    let count = outcomes.0[outcome as usize].load(Ordering::Relaxed);
                    if count > 0 {
                        let labels = [("domain", &**domain), ("rule", &**label), ("outcome", name)];
                        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
                    }
                }
            }
        }
        let help = "Descriptors of a known domain that no rule was found for.";
        let mut metric = encoder.encode_descriptor("unmatched_descriptors", help, None, MetricType::Counter)?;
        for (domain, counters) in &domains {
            let count = counters.unmatched.load(Ordering::Relaxed);
            ConstCounter::new(count).encode(metric.encode_family(&[("domain", &**domain)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition::Format;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn counts_go_on_over_a_reload_for_as_long_as_the_rule_is_there() {
        let metrics = Metrics::new();
        let load = |labels: &[&'static str]| metrics.rules.load([("d", labels.iter().copied())].into_iter()).remove(0);
        let old = load(&["a", "b\"\n", "a"]);
        old.decided(0, RuleOutcome::Ok);
        old.decided(2, RuleOutcome::Ok);
        old.decided(1, RuleOutcome::OverLimit);
        old.unmatched();
        let now = load(&["c", "a"]);
        now.decided(1, RuleOutcome::ShadowOverLimit);
        // A request that was under way during the reload.
        old.decided(0, RuleOutcome::Ok);
        now.decided(7, RuleOutcome::Ok);
        let text = metrics.text(Format::OpenMetrics);
        let decisions: Vec<&str> = text.lines().filter(|line| line.starts_with("weir_decisions_total")).collect();
        let expected = [
            "weir_decisions_total{domain=\"d\",rule=\"a\",outcome=\"ok\"} 3",
            "weir_decisions_total{domain=\"d\",rule=\"a\",outcome=\"shadow_over_limit\"} 1",
        ];
        assert_eq!(decisions, expected);
        assert!(text.contains("weir_unmatched_descriptors_total{domain=\"d\"} 1"), "{text}");
    }
}
