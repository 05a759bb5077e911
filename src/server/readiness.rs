//! Whether this server should be sent calls, and saying so to whoever asks: gRPC health, `/healthcheck`.

use std::sync::Arc;

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::{reservations, rls};

/// What `envoyproxy/ratelimit` calls itself in gRPC health.
const REFERENCE: &str = "ratelimit";
/// The names that gRPC health knows: the server's two, and those of its services.
pub const HEALTH_NAMES: [&str; 4] = ["", REFERENCE, rls::SERVICE, reservations::SERVICE];

/// What stands between a server and its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    rules_loaded: bool,
    /// The first reading takes long.
    rules_reading: bool,
    store_ready: bool,
    records_loaded: bool,
    draining: bool,
}

impl State {
    fn is_ready(self) -> bool {
        self.rules_loaded && self.store_ready && self.records_loaded && !self.draining
    }
}

/// The truth about it, kept in one place.
#[derive(Debug, Default)]
pub struct Readiness(watch::Sender<State>);

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Why it is not ready; `None` when it is.
    pub fn obstacle(&self) -> Option<&'static str> {
        let state = *self.0.borrow();
        match state {
            State { draining: true, .. } => Some("shutting down"),
            State { rules_loaded: false, rules_reading: true, .. } => {
                Some("the rate limit configuration is still being read: does its file system answer?")
            }
            State { rules_loaded: false, .. } => Some("no rate limit configuration loaded"),
            State { store_ready: false, .. } => Some("the store is not available"),
            State { records_loaded: false, .. } => Some("what was said of single subjects is not loaded yet"),
            _ => None,
        }
    }

    pub fn set_rules_loaded(&self, rules_loaded: bool) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.rules_loaded, rules_loaded) != rules_loaded);
    }

    /// The first reading of the rules goes on for longer than a start waits.
    pub fn set_rules_reading(&self, rules_reading: bool) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.rules_reading, rules_reading) != rules_reading);
    }

    pub fn set_store_ready(&self, store_ready: bool) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.store_ready, store_ready) != store_ready);
    }

    /// Blocks, exemptions and tiers of single subjects are known: without them, whoever is blocked would pass.
    pub fn set_records_loaded(&self) {
        self.0.send_if_modified(|state| !std::mem::replace(&mut state.records_loaded, true));
    }

    pub fn set_draining(&self) {
        self.0.send_if_modified(|state| !std::mem::replace(&mut state.draining, true));
    }

    /// Tells gRPC health what is true now.
    pub async fn report(&self, health: &HealthReporter) {
        let status = if self.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in HEALTH_NAMES {
            health.set_service_status(name, status).await;
        }
    }

    /// Keeps gRPC health true for as long as the server lives.
    pub async fn report_changes(self: Arc<Self>, health: HealthReporter) {
        let mut changes = self.0.subscribe();
        loop {
            changes.mark_unchanged();
            self.report(&health).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_with_rules_and_a_store_until_draining() {
        let readiness = Readiness::default();
        assert_eq!(readiness.obstacle(), Some("no rate limit configuration loaded"));
        readiness.set_rules_reading(true);
        assert!(readiness.obstacle().is_some_and(|reason| reason.contains("still being read")));
        readiness.set_rules_loaded(true);
        assert_eq!(readiness.obstacle(), Some("the store is not available"));
        readiness.set_store_ready(true);
        assert_eq!(readiness.obstacle(), Some("what was said of single subjects is not loaded yet"));
        readiness.set_records_loaded();
        assert!(readiness.is_ready());
        assert_eq!(readiness.obstacle(), None);
        readiness.set_draining();
        assert!(!readiness.is_ready());
    }
}
