//! Loads the rules again whenever what their path holds has changed.
//!
//! The directory is watched, never a file: after the second swap of a ConfigMap's `..data` link a watched file is a dead one. The
//! directory's parent is watched too, for the directory itself being replaced; and the contents are compared every so often,
//! for whatever the file system does not tell. A file that is being written is read once it is closed ([`Writing`]). What a
//! reading misses is removed by another one, which nothing needs to wake. All of it happens on a thread of its own, never on a runtime's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::files::{self, Fingerprint};
use super::reading::ReadingClock;
use super::reload::{Absences, GRACE, Reading};
use super::writing::Writing;
use super::{LoadOptions, Loaded, compile};
use crate::rules::RuleSet;

/// When to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// So long nothing must happen before the files are read: editors and orchestrators write in several steps.
    pub quiet: Duration,
    /// So often the contents are compared even if nothing was heard.
    pub poll: Duration,
    /// So long at most a file that is open and being written puts the reading off: what is there so far may be good rules, and
    /// others than those that are meant.
    pub unfinished: Duration,
    /// The least time between the first reading that misses a domain and the one that removes it.
    pub absence: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            quiet: Duration::from_millis(250),
            poll: Duration::from_secs(30),
            unfinished: Duration::from_secs(10),
            absence: GRACE,
        }
    }
}

/// What happens to a file is heard of within this, on a machine that is not overloaded.
const HEARD_WITHIN: Duration = Duration::from_millis(10);
/// How many quiet times a restless directory can put the reading off.
const MAX_PUT_OFF: u32 = 8;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    wake: SyncSender<()>,
    stopped: Arc<AtomicBool>,
}

impl Watcher {
    /// Watches a rules file or directory. `loaded` is what [`super::load`] made of it; `on_load` gets what follows, from a
    /// thread of the watcher, once for each change of the contents. `clock` runs while files are read.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        path: impl Into<PathBuf>,
        options: LoadOptions,
        timing: Timing,
        loaded: &Loaded,
        clock: ReadingClock,
        on_load: impl FnMut(Loaded) + Send + 'static,
    ) -> std::io::Result<Watcher> {
        // One place is enough: a wake that finds it taken is answered by the look that is still to come.
        let (wake, wakes) = sync_channel(1);
        let stopped = Arc::new(AtomicBool::new(false));
        let path = path.into();
        let directory = directory(&path);
        let writing = Arc::new(Writing::of(&std::path::absolute(&path).unwrap_or_else(|_| path.clone()), &directory));
        let watch = Watch {
            directory,
            path,
            writing,
            options,
            timing,
            wakes,
            stopped: stopped.clone(),
            rules: loaded.rules.clone(),
            fingerprint: loaded.fingerprint,
            started: Instant::now(),
            absences: Absences::default(),
            read_again: None,
            clock,
            on_load,
        };
        let notify = wake.clone();
        std::thread::Builder::new().name("rules".to_owned()).spawn(move || watch.run(notify))?;
        // Whatever changed since the files were loaded.
        let watcher = Watcher { wake, stopped };
        watcher.trigger();
        Ok(watcher)
    }

    /// Looks now, rather than when something is heard.
    pub fn trigger(&self) {
        // Full means that a look is about to happen anyway.
        let _ = self.wake.try_send(());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        self.trigger();
    }
}

/// The directory to watch: the path itself, or a file's parent.
fn directory(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match path.parent() {
        Some(parent) if !path.is_dir() && path.extension().is_some() => parent.to_owned(),
        _ => path,
    }
}

struct Watch<F> {
    path: PathBuf,
    directory: PathBuf,
    options: LoadOptions,
    timing: Timing,
    wakes: Receiver<()>,
    writing: Arc<Writing>,
    stopped: Arc<AtomicBool>,
    rules: RuleSet,
    fingerprint: Fingerprint,
    /// Where the times of readings count from.
    started: Instant,
    absences: Absences,
    /// When to read again although the contents stay the same, since `started`: what is missing then is removed.
    read_again: Option<Duration>,
    clock: ReadingClock,
    on_load: F,
}

impl<F: FnMut(Loaded)> Watch<F> {
    fn run(mut self, wake: SyncSender<()>) {
        let (directory, writing) = (self.directory.clone(), self.writing.clone());
        let listener = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change: without this, every look would cause the next.
            let concerns = |event: &notify::Event| {
                let is_finished = writing.heard(event);
                is_finished || !event.kind.is_access() && event.paths.iter().any(|path| path.starts_with(&directory))
            };
            if event.as_ref().map_or(true, concerns) {
                let _ = wake.try_send(());
            }
        });
        let mut listener = listener.map_err(|error| tracing::warn!(%error, "rules are polled only: no file events")).ok();
        let mut is_finished = true;
        loop {
            self.arm(listener.as_mut());
            is_finished = match self.look(is_finished) {
                ControlFlow::Break(()) => self.settle(),
                ControlFlow::Continue(()) => match self.wakes.recv_timeout(self.next_look()) {
                    Ok(()) => self.settle(),
                    Err(RecvTimeoutError::Timeout) => true,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// How long to wait if nothing happens.
    fn next_look(&self) -> Duration {
        let again = self.read_again.map(|at| at.saturating_sub(self.started.elapsed()));
        again.map_or(self.timing.poll, |again| again.min(self.timing.poll))
    }

    /// Watches what now is at the path, before it is read: a directory made anew is not the one that was watched.
    fn arm(&self, listener: Option<&mut RecommendedWatcher>) {
        let Some(listener) = listener else { return };
        let _under_way = self.clock.begin();
        let parent = self.directory.parent().map(|parent| (parent, RecursiveMode::NonRecursive));
        // Beside a single file there may be anything, a whole file system.
        let mode = if self.path.is_dir() { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        for (path, mode) in parent.into_iter().chain([(&*self.directory, mode)]) {
            // It may be watched or not, be there or not: the next poll tries again.
            let _ = listener.unwatch(path);
            let _ = listener.watch(path, mode);
        }
    }

    /// Waits until nothing has happened for a while and all files that are written are closed, within bounds; whether they are.
    fn settle(&self) -> bool {
        let unfinished = Instant::now() + self.timing.unfinished;
        self.become_quiet();
        while !self.writing.is_over() && !self.stopped.load(Ordering::Acquire) {
            let left = unfinished.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.writing.forget();
                return false;
            }
            if self.wakes.recv_timeout(left).is_ok() {
                self.become_quiet();
            }
        }
        true
    }

    fn become_quiet(&self) {
        let latest = Instant::now() + self.timing.quiet * MAX_PUT_OFF;
        while !self.stopped.load(Ordering::Acquire) && Instant::now() < latest && self.wakes.recv_timeout(self.timing.quiet).is_ok()
        {
        }
    }

    /// Reads, and puts in force what has changed. Breaks when something happened meanwhile, so that it is to be read again: if
    /// `is_finished`, what somebody has begun to write is not put in force; else it was waited for already.
    fn look(&mut self, is_finished: bool) -> ControlFlow<()> {
        let under_way = self.clock.begin();
        let found = files::find(&self.path);
        drop(under_way);
        let at = self.started.elapsed();
        let is_due = self.read_again.is_some_and(|due| due <= at);
        if found.fingerprint == self.fingerprint && !is_due || self.stopped.load(Ordering::Acquire) {
            return ControlFlow::Continue(());
        }
        let is_woken = self.wakes.recv_timeout(HEARD_WITHIN).is_ok();
        if is_finished && !self.writing.is_over() {
            return ControlFlow::Break(());
        }
        self.fingerprint = found.fingerprint;
        let reading = Reading { at, grace: self.timing.absence };
        let loaded = compile(found, &self.path, &self.options, &self.rules, &mut self.absences, reading);
        self.rules = loaded.rules.clone();
        self.read_again = loaded.read_again;
        (self.on_load)(loaded);
        if is_woken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
