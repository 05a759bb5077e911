//! From rules files to rules in force: once at the start, and whenever the files change. Says what a reload came to.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::problem::MAX_SHOWN_AT_ONCE;
use crate::config::reading::{ReadingClock, StallNews, Stalls};
use crate::config::watch::{Timing, Watcher};
use crate::config::{self, LoadOptions, Loaded, Removed};
use crate::limiter::Shared;
use crate::settings::Settings;

use super::readiness::Readiness;
use super::stores::Stores;

/// How long a start waits for the first reading of the rules. It then goes on: weir listens and is not ready.
const FIRST_READING: Duration = Duration::from_secs(5);
/// How often somebody looks whether a reading is stalled.
const LOOK: Duration = Duration::from_secs(1);

/// Watches the rules, from the end of their first reading on.
#[derive(Clone, Default)]
pub struct RulesWatch {
    watcher: Arc<OnceLock<Watcher>>,
    pub clock: ReadingClock,
}

impl RulesWatch {
    /// Looks whether the rules have changed, now.
    pub fn trigger(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.trigger();
        }
    }

    /// For how long the reading goes on that is under way.
    pub fn reading_for(&self) -> Duration {
        self.clock.since().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Logs readings that take long, for as long as the server lives.
    pub async fn log_stalls(self, path: PathBuf) {
        let (mut stalls, mut every) = (Stalls::default(), interval(LOOK));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match stalls.look(self.clock.since(), Instant::now()) {
                Some(StallNews::Stalled(time)) => tracing::warn!(
                    path = %path.display(),
                    seconds = time.as_secs(),
                    "reading the rules takes long; the rules in force stay, changes wait: does their file system answer?"
                ),
                Some(StallNews::Over(time)) => {
                    tracing::info!(path = %path.display(), seconds = time.as_secs(), "the rules were read after all");
                }
                None => {}
            }
        }
    }
}

/// Puts what was loaded in force, and says so.
pub struct Reloading {
    clock: ReadingClock,
    path: PathBuf,
    options: LoadOptions,
    shared: Arc<Shared>,
    readiness: Arc<Readiness>,
    stores: Stores,
}

impl Reloading {
    pub fn new(settings: &Settings, shared: &Arc<Shared>, readiness: &Arc<Readiness>, stores: Stores) -> Reloading {
        let (path, options) = (settings.rules.clone(), settings.load.clone());
        let clock = ReadingClock::default();
        Reloading { clock, path, options, shared: shared.clone(), readiness: readiness.clone(), stores }
    }

    /// Loads the rules, and again whenever they change, on threads of its own. Waits for the first reading, at most five seconds.
    ///
    /// # Errors
    /// When no thread can be started.
    pub async fn begin(self) -> std::io::Result<RulesWatch> {
        let watch = RulesWatch { clock: self.clock.clone(), watcher: Arc::default() };
        let readiness = self.readiness.clone();
        let (kept, mut started) = (watch.watcher.clone(), tokio::task::spawn_blocking(|| self.start()));
        if let Ok(started) = timeout(FIRST_READING, &mut started).await {
            let _ = kept.set(started.map_err(std::io::Error::other)??);
            return Ok(watch);
        }
        readiness.set_rules_reading(true);
        tracing::warn!("the rules are still being read; listening without them, and not ready");
        tokio::spawn(async move {
            match started.await {
                Ok(Ok(watcher)) => drop(kept.set(watcher)),
                Ok(Err(error)) => tracing::error!(%error, "the rules are not watched for changes: no thread"),
                // Its panic is on standard error.
                Err(_) => {}
            }
        });
        Ok(watch)
    }

    /// Loads the rules, and again whenever they change, until the watcher is dropped. Reads files: not for a runtime's thread.
    ///
    /// # Errors
    /// When no thread can be started. What is wrong with the rules is logged, and keeps the server from being ready.
    fn start(self) -> std::io::Result<Watcher> {
        let loaded = config::load_timed(&self.path, &self.options, &self.shared.loaded(), &self.clock);
        self.put_in_force(&loaded);
        let (path, options, clock) = (self.path.clone(), self.options.clone(), self.clock.clone());
        Watcher::start(path, options, Timing::default(), &loaded, clock, move |loaded| self.put_in_force(&loaded))
    }

    fn put_in_force(&self, loaded: &Loaded) {
        for problem in loaded.problems.iter().take(MAX_SHOWN_AT_ONCE) {
            tracing::error!("{problem}");
        }
        for warning in loaded.warnings.iter().take(MAX_SHOWN_AT_ONCE) {
            tracing::warn!("{warning}");
        }
        if loaded.problems.len().max(loaded.warnings.len()) > MAX_SHOWN_AT_ONCE {
            tracing::warn!("not every problem of the rules is shown here: `weir check` says how many there are");
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
        self.readiness.set_rules_reading(false);
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
