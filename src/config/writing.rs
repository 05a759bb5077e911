//! Which rules files are being written: changed, and not closed since. What is there so far may be good rules and lack the limits that
//! come next, so nobody reads it yet. Known only where the system tells of a file being closed: elsewhere no file is ever here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, Watcher as _, WatcherKind};
use parking_lot::Mutex;

use super::files;

/// Files remembered; more are not waited for.
const MAX_WRITTEN: usize = 1_000;

/// Filled by who hears of events, emptied by who waits.
#[derive(Debug)]
pub(super) struct Writing {
    /// The only file that matters; `None`: all files of rules do.
    only: Option<PathBuf>,
    open: Mutex<HashSet<PathBuf>>,
}

impl Writing {
    /// Of the rules at an absolute path.
    pub(super) fn of(path: &Path, directory: &Path) -> Writing {
        Writing { only: (path != directory).then(|| path.to_owned()), open: Mutex::default() }
    }

    /// Takes note of an event; true when a file is finished by it that was waited for.
    pub(super) fn heard(&self, event: &Event) -> bool {
        let mut open = self.open.lock();
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) if RecommendedWatcher::kind() == WatcherKind::Inotify => {
                let room = MAX_WRITTEN.saturating_sub(open.len());
                open.extend(event.paths.iter().filter(|path| self.matters(path)).take(room).cloned());
                false
            }
            // Another file stands at the path now, or none: who still has the old one open changes nothing.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => event.paths.iter().filter(|path| open.remove(*path)).count() > 0,
            _ => false,
        }
    }

    /// No file is being written.
    pub(super) fn is_over(&self) -> bool {
        self.open.lock().is_empty()
    }

    /// Waits for none of those that are being written now any longer.
    pub(super) fn forget(&self) {
        self.open.lock().clear();
    }

    fn matters(&self, path: &Path) -> bool {
        self.only.as_ref().map_or_else(|| files::is_yaml(path), |only| path == only)
    }
}
