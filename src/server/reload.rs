//! From rules files to rules in force: once at the start, and whenever the files change. Says what a reload came to.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::problem::MAX_PRINTED;
use crate::config::watch::{Timing, Watcher};
use crate::config::{self, LoadOptions, Loaded, Removed};
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
        for removed in &loaded.removed {
            log_removal(removed);
        }
        let rules = loaded.rules.clone();
        let revision = rules.revision;
        self.log_result(loaded, self.shared.loaded().revision == 0);
        self.shared.metrics().reloads.record(loaded.problems.is_empty(), revision, loaded.kept.len(), loaded.removed.len());
        self.shared.load(rules);
        self.stores.forget_refusals();
        self.readiness.set_rules_loaded(revision > 0);
    }

    /// Says what is in force now, and of a reading with problems what stays as it was.
    fn log_result(&self, loaded: &Loaded, is_first: bool) {
        let (rules, changes) = (&loaded.rules, &loaded.changes);
        let (domains, count, revision) = (rules.domains.len(), rules.rule_count(), rules.revision);
        let kept = loaded.kept.join(", ");
        let problems = loaded.problems.len();
        match (revision, problems) {
            (0, _) => tracing::error!(problems, path = %self.path.display(), "no rules are in force: mend the files"),
            (_, 0) if is_first || !changes.is_empty() => {
                tracing::info!(domains, rules = count, revision, %changes, "rules are in force");
            }
            (_, 0) if kept.is_empty() => tracing::info!(revision, "the rules were read again and mean the same"),
            (_, 0) => tracing::warn!(domains = kept, revision, "domains are missing from the files and keep their rules for now"),
            (_, problems) => {
                let files = failed_files(loaded);
                tracing::error!(problems, files, kept, revision, "the reload failed: domains of these files keep their rules");
                if !changes.is_empty() {
                    tracing::info!(domains, rules = count, revision, %changes, "rules of the other files are in force");
                }
            }
        }
    }
}

/// The names of the files with problems, the first few.
fn failed_files(loaded: &Loaded) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<&str> = loaded.problems.iter().map(|problem| &*problem.file).collect();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let names = names.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

fn log_removal(removed: &Removed) {
    let Removed { domain, rules, is_part, .. } = removed;
    let (files, replaced_by) = (removed.files.join(", "), removed.replaced_by.join(", "));
    match (is_part, replaced_by.is_empty()) {
        (true, _) => tracing::info!(domain, files, rules, "part of a domain removed: its file is gone"),
        (false, true) => tracing::info!(domain, files, rules, "domain removed: no file has it any more"),
        (false, false) => {
            tracing::warn!(domain, files, rules, replaced_by, "domain removed: its file has another domain now");
        }
    }
}
