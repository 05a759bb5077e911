//! From rules files to rules in force: once at the start, and whenever the files change.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::problem::MAX_PRINTED;
use crate::config::watch::{Timing, Watcher};
use crate::config::{self, LoadOptions, Loaded};
use crate::limiter::Shared;
use crate::settings::Settings;

use super::readiness::Readiness;
use super::stores::Stores;

/// Puts what was loaded in force, and says so.
pub struct Reloading {
    path: PathBuf,
    options: LoadOptions,
    shared: Arc<Shared>,
    readiness: Arc<Readiness>,
    stores: Stores,
}

impl Reloading {
    pub fn new(settings: &Settings, shared: &Arc<Shared>, readiness: &Arc<Readiness>, stores: Stores) -> Reloading {
        let (path, options) = (settings.rules.clone(), settings.load.clone());
        Reloading { path, options, shared: shared.clone(), readiness: readiness.clone(), stores }
    }

    /// Loads the rules, and again whenever they change, until the watcher is dropped. Reads files: not for a runtime's thread.
    ///
    /// # Errors
    /// When no thread can be started. What is wrong with the rules is logged, and keeps the server from being ready.
    pub fn start(self) -> std::io::Result<Watcher> {
        let loaded = config::load(&self.path, &self.options, &self.shared.loaded());
        self.put_in_force(&loaded);
        let (path, options) = (self.path.clone(), self.options.clone());
        Watcher::start(path, options, Timing::default(), &loaded, move |loaded| self.put_in_force(&loaded))
    }

    fn put_in_force(&self, loaded: &Loaded) {
        for problem in loaded.problems.iter().take(MAX_PRINTED) {
            tracing::error!("{problem}");
        }
        for warning in loaded.warnings.iter().take(MAX_PRINTED) {
            tracing::warn!("{warning}");
        }
        if !loaded.kept.is_empty() {
            tracing::warn!(domains = loaded.kept.join(", "), "rules stay as they were");
        }
        let rules = loaded.rules.clone();
        let revision = rules.revision;
        if revision == 0 {
            tracing::error!(problems = loaded.problems.len(), path = %self.path.display(), "no rules are in force");
        } else {
            let changes = &loaded.changes;
            tracing::info!(domains = rules.domains.len(), rules = rules.rule_count(), revision, %changes, "rules are in force");
        }
        self.shared.metrics().reloads.record(loaded.problems.is_empty(), revision, loaded.kept.len());
        self.shared.load(rules);
        self.stores.forget_refusals();
        self.readiness.set_rules_loaded(revision > 0);
    }
}
