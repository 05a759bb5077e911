//! Explains by rules at hand: what a server would answer that had just loaded them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use tokio::time::timeout;

use crate::admin::Operations;
use crate::config;
use crate::limiter::{LimiterSettings, Shared};
use crate::rules::RuleSet;
use crate::server::operators::Operators;
use crate::server::readiness::Readiness;
use crate::server::stores::Stores;
use crate::settings::{Given, Settings, redacted};
use crate::store::Clock;
use crate::store::memory::{DEFAULT_MAX_COUNTERS, MemoryStore};

/// How long Redis may take to give the records.
const RECORDS_TIME: Duration = Duration::from_secs(3);

/// The explanation, and by what it is.
pub(super) async fn explain(rules: &Path, store: Option<&str>, asked: &Value) -> anyhow::Result<(Value, String)> {
    // A server's tokens are not for whoever explains to read.
    let flags = [
        ("rules", rules.display().to_string()),
        ("store", store.unwrap_or("memory").to_owned()),
        ("admin_read_token_file", String::new()),
        ("admin_change_token_file", String::new()),
    ];
    let settings = Settings::resolve(&Given::of(flags), &|variable| std::env::var_os(variable))?;
    let loaded = config::load(rules, &settings.load, &RuleSet::default());
    if !loaded.problems.is_empty() {
        bail!("the rules do not load:\n{}", loaded.problems);
    }
    let limiter = LimiterSettings { plan: settings.plan, store_timeout: settings.store_timeout };
    let shared = Arc::new(Shared::new(MemoryStore::new(Clock::System, DEFAULT_MAX_COUNTERS), limiter));
    shared.load(loaded.rules);
    let operators = Stores::new(&settings, shared.metrics())?.for_operators(&shared, &Arc::new(Readiness::default()), 0);
    let mut by = format!("the rules in {}", rules.display());
    match (store, &operators) {
        (Some(url), Operators::Redis { records, .. }) => {
            let url = redacted(url);
            by += &match timeout(RECORDS_TIME, records.loaded()).await {
                Ok(()) => format!(" and the counters in {url}"),
                Err(_) => format!(" alone: Redis at {url} does not answer"),
            };
        }
        _ => by += " alone, with every counter unused",
    }
    Ok((Operations::new(shared, operators).explain_json(asked).await?, by))
}
