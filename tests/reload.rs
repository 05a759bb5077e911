//! Rules files that change under a running server, on a real file system.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tempfile::TempDir;
use weir::config::reading::ReadingClock;
use weir::config::watch::{Timing, Watcher};
use weir::config::{LoadOptions, Loaded, load};
use weir::rules::RuleSet;

/// Only to end a test that would wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that is watched, and what was last loaded from it.
struct Watched {
    directory: TempDir,
    path: PathBuf,
    watcher: Watcher,
    loads: Receiver<Loaded>,
    first: Loaded,
}

/// Longer than a test waits.
const NEVER: Duration = Duration::from_secs(3600);
const QUIET: Duration = Duration::from_millis(20);

fn watched(path: &str, files: &[(&str, &str)], options: LoadOptions, poll: Duration) -> Watched {
    watched_in(Timing { quiet: QUIET, poll, ..Timing::default() }, path, files, options)
}

fn watched_in(timing: Timing, path: &str, files: &[(&str, &str)], options: LoadOptions) -> Watched {
    let directory = TempDir::new().unwrap();
    for (name, text) in files {
        write(directory.path().join(name), text);
    }
    let path = directory.path().join(path);
    let first = load(&path, &options, &RuleSet::default());
    let (sender, loads) = channel();
    let watcher = Watcher::start(&path, options, timing, &first, ReadingClock::default(), move |loaded| {
        let _ = sender.send(loaded);
    });
    Watched { directory, path, watcher: watcher.unwrap(), loads, first }
}

fn standard(files: &[(&str, &str)]) -> Watched {
    watched("rules", files, LoadOptions::default(), Timing::default().poll)
}

impl Watched {
    fn next(&self) -> Loaded {
        self.loads.recv_timeout(PATIENCE).expect("a reload")
    }

    /// The next load in which something holds: a change may be seen in several steps.
    fn until(&self, holds: impl Fn(&Loaded) -> bool) -> Loaded {
        loop {
            let loaded = self.next();
            if holds(&loaded) {
                return loaded;
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Puts a file in another's place at once. It is written where nobody looks.
    fn replace(&self, name: &str, text: impl AsRef<[u8]>) {
        let new = self.directory.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file(name)).unwrap();
    }
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A document with one rule.
fn document(domain: &str, requests: u64) -> String {
    format!("domain: {domain}\ndescriptors:\n  - key: user\n    rate_limit: {{unit: minute, requests_per_unit: {requests}}}\n")
}

fn requests(loaded: &Loaded, domain: &str) -> Option<u64> {
    let domain = loaded.rules.domains.get(domain.as_bytes())?;
    domain.rules.first().map(|rule| rule.limits[0].limit.requests())
}

#[test]
fn an_edit_in_place_is_seen() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    assert_eq!((requests(&watched.first, "a"), watched.first.rules.revision), (Some(1), 1));
    fs::write(watched.file("a.yaml"), document("a", 2)).unwrap();
    let loaded = watched.until(|loaded| loaded.problems.is_empty());
    assert_eq!(requests(&loaded, "a"), Some(2));
    assert_eq!((&loaded.changes.domains_changed[..], loaded.changes.rules_changed), (&["a".to_owned()][..], 1));
}

/// One that waits so long for who writes, and watches by now.
fn patient(unfinished: Duration, path: &str) -> Watched {
    let timing = Timing { quiet: QUIET, unfinished, ..Timing::default() };
    let watched = watched_in(timing, path, &[("rules/a.yaml", &document("a", 0))], LoadOptions::default());
    replace(&watched, &document("a", 1));
    assert_eq!(requests(&watched.next(), "a"), Some(1));
    watched
}

/// Another file in the place of `rules/a.yaml`.
fn replace(watched: &Watched, text: &str) {
    let new = watched.directory.path().join("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, watched.directory.path().join("rules/a.yaml")).unwrap();
}

/// Begins to write a file anew, and has not closed it.
fn begin(path: impl AsRef<Path>, text: &str) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Good rules, though not those that are meant.
const BEGINNING: &str = "domain: a\ndescriptors:\n  - key: user\n";

#[test]
fn a_file_is_read_once_it_is_written_to_its_end() {
    for path in ["rules", "rules/a.yaml"] {
        let watched = patient(NEVER, path);
        let file = watched.directory.path().join("rules/a.yaml");
        let mut writing = begin(&file, BEGINNING);
        // As long as it takes to hear of it many times over.
        assert!(watched.loads.recv_timeout(30 * QUIET).is_err(), "half of a file is no file");
        writing.write_all(document("a", 2).strip_prefix(BEGINNING).unwrap().as_bytes()).unwrap();
        drop(writing);
        let loaded = watched.next();
        assert_eq!((requests(&loaded, "a"), loaded.problems.len()), (Some(2), 0), "{path}");
    }
}

#[test]
fn a_file_that_stays_open_is_read_in_the_end() {
    let watched = patient(5 * QUIET, "rules");
    let _writing = begin(watched.file("a.yaml"), &document("a", 2));
    watched.until(|loaded| requests(loaded, "a") == Some(2));
}

#[test]
fn a_file_that_is_written_all_the_time_is_read_in_the_end() {
    let watched = patient(5 * QUIET, "rules");
    let mut writing = begin(watched.file("a.yaml"), &document("a", 2));
    let is_read = Arc::new(AtomicBool::new(false));
    let until = is_read.clone();
    let writer = std::thread::spawn(move || {
        while !until.load(Ordering::Acquire) {
            writing.write_all(b"#").unwrap();
            std::thread::yield_now();
        }
    });
    let read = watched.until(|loaded| requests(loaded, "a") == Some(2));
    is_read.store(true, Ordering::Release);
    writer.join().unwrap();
    assert!(read.problems.is_empty(), "{}", read.problems);
}

#[test]
fn a_rename_does_not_wait_for_who_wrote_the_file_before_or_writes_others() {
    let watched = patient(NEVER, "rules");
    let _writing = begin(watched.file("a.yaml"), BEGINNING);
    let _log = begin(watched.file("log.txt"), "a line\n");
    replace(&watched, &document("a", 2));
    assert_eq!(requests(&watched.next(), "a"), Some(2));
    let watched = patient(NEVER, "rules/a.yaml");
    let _other = begin(watched.path.with_file_name("other.yaml"), &document("a", 3));
    replace(&watched, &document("a", 2));
    assert_eq!(requests(&watched.next(), "a"), Some(2));
}

#[test]
fn an_unfinished_file_that_is_gone_is_not_waited_for() {
    let watched = patient(NEVER, "rules");
    let _writing = begin(watched.file("b.yaml"), &document("b", 1));
    fs::remove_file(watched.file("b.yaml")).unwrap();
    replace(&watched, &document("a", 2));
    assert_eq!(requests(&watched.next(), "a"), Some(2));
}

#[test]
fn an_atomic_rename_is_seen() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    for requests_now in [2, 3] {
        let new = watched.file(".a.yaml.new");
        fs::write(&new, document("a", requests_now)).unwrap();
        fs::rename(new, watched.file("a.yaml")).unwrap();
        assert_eq!(requests(&watched.next(), "a"), Some(requests_now));
    }
}

#[test]
fn a_file_as_path_is_watched_through_its_directory() {
    let watched = watched("rules/a.yaml", &[("rules/a.yaml", &document("a", 1))], LoadOptions::default(), Timing::default().poll);
    for requests_now in [2, 3] {
        let new = watched.directory.path().join("rules/new");
        fs::write(&new, document("a", requests_now)).unwrap();
        fs::rename(new, &watched.path).unwrap();
        assert_eq!(requests(&watched.next(), "a"), Some(requests_now));
    }
}

/// As the kubelet does it: a directory with the new contents, then one rename of the link to it.
fn swap(root: &Path, version: &str, files: &[(&str, &str)]) {
    for (name, text) in files {
        write(root.join(version).join(name), text);
    }
    let link = root.join("..data_tmp");
    symlink(version, &link).unwrap();
    fs::rename(link, root.join("..data")).unwrap();
}

#[test]
fn a_config_map_is_followed_through_swaps() {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("rules");
    fs::create_dir(&root).unwrap();
    swap(&root, "..2024_01", &[("a.yaml", &document("a", 1))]);
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    let first = load(&root, &LoadOptions::default(), &RuleSet::default());
    assert_eq!(requests(&first, "a"), Some(1), "{}", first.problems);
    let (sender, loads) = channel();
    let timing = Timing { quiet: QUIET, ..Timing::default() };
    let _watcher = Watcher::start(&root, LoadOptions::default(), timing, &first, ReadingClock::default(), move |loaded| {
        sender.send(loaded).unwrap()
    });
    for (version, old, requests_now) in
        [("..2024_02", "..2024_01", 2), ("..2024_03", "..2024_02", 3), ("..2024_04", "..2024_03", 4)]
    {
        swap(&root, version, &[("a.yaml", &document("a", requests_now))]);
        fs::remove_dir_all(root.join(old)).unwrap();
        let loaded = loads.recv_timeout(PATIENCE).unwrap();
        assert_eq!(requests(&loaded, "a"), Some(requests_now), "{}", loaded.problems);
    }
}

#[test]
fn a_bad_file_keeps_its_domains_and_lets_others_change() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", &document("b", 1))]);
    watched.replace("a.yaml", "domain: a\ndescriptors: [\n");
    watched.replace("b.yaml", document("b", 2));
    let loaded = watched.until(|loaded| requests(loaded, "b") == Some(2));
    assert_eq!((requests(&loaded, "a"), loaded.problems.len()), (Some(1), 1));
    assert_eq!(loaded.kept, ["a"]);
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    watched.replace("a.yaml", document("a", 3));
    let loaded = watched.until(|loaded| loaded.problems.is_empty());
    assert_eq!((requests(&loaded, "a"), loaded.kept.len()), (Some(3), 0));
}

#[test]
fn a_vanished_file_keeps_its_domains_at_first() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", &document("b", 1))]);
    fs::remove_file(watched.file("a.yaml")).unwrap();
    let loaded = watched.next();
    assert_eq!([requests(&loaded, "a"), requests(&loaded, "b")], [Some(1), Some(1)]);
    assert!(loaded.problems.is_empty() && loaded.changes.is_empty());
    assert_eq!((&loaded.kept[..], loaded.warnings.len()), (&["a".to_owned()][..], 1));
}

#[test]
fn a_torn_or_emptied_file_keeps_its_domains() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    for torn in ["", "domain: a\n", "domain: a\ndescriptors:\n", "domain: a\ndescriptors:\n  - key: user\n    rate_limit:\n", "dom"]
    {
        watched.replace("a.yaml", torn);
        let loaded = watched.next();
        assert_eq!((requests(&loaded, "a"), &loaded.kept[..]), (Some(1), &["a".to_owned()][..]), "{torn:?}");
        assert!(loaded.problems.len() + loaded.warnings.len() > 0, "{torn:?}");
        assert_eq!(loaded.rules.revision, 1, "nothing changed");
    }
}

#[test]
fn an_emptied_deleted_and_recreated_directory_keeps_the_rules() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    fs::remove_dir_all(&watched.path).unwrap();
    let loaded = watched.until(|loaded| !watched.path.exists() && !loaded.kept.is_empty());
    assert_eq!(requests(&loaded, "a"), Some(1));
    fs::create_dir(&watched.path).unwrap();
    for requests_now in [2, 3] {
        watched.replace("a.yaml", document("a", requests_now));
        let loaded = watched.until(|loaded| requests(loaded, "a") == Some(requests_now));
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    }
}

/// With less patience for what is missing than a server has.
fn impatient(files: &[(&str, &str)], options: LoadOptions) -> Watched {
    watched_in(Timing { quiet: QUIET, absence: 5 * QUIET, ..Timing::default() }, "rules", files, options)
}

#[test]
fn a_vanished_file_loses_its_domain_by_the_second_reading_that_nothing_wakes() {
    let watched = impatient(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", &document("b", 1))], LoadOptions::default());
    fs::remove_file(watched.file("a.yaml")).unwrap();
    let first = watched.next();
    assert_eq!((requests(&first, "a"), &first.kept[..]), (Some(1), &["a".to_owned()][..]));
    let second = watched.next();
    assert_eq!([requests(&second, "a"), requests(&second, "b")], [None, Some(1)]);
    assert_eq!((second.removed[0].domain.as_str(), second.kept.len(), second.warnings.len()), ("a", 0, 0));
}

#[test]
fn a_domain_that_moves_slowly_is_never_lost() {
    let watched = impatient(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", &document("b", 1))], LoadOptions::default());
    for round in 2..6 {
        fs::remove_file(watched.file("a.yaml")).unwrap();
        watched.until(|loaded| !loaded.kept.is_empty());
        watched.replace("a.yaml", document("a", round));
        let loaded = watched.until(|loaded| requests(loaded, "a") == Some(round) || !loaded.removed.is_empty());
        assert!(loaded.removed.is_empty() && loaded.kept.is_empty(), "{:?}", loaded.removed);
    }
}

#[test]
fn a_config_map_that_loses_a_file_loses_its_domain() {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("rules");
    fs::create_dir(&root).unwrap();
    swap(&root, "..1", &[("a.yaml", &document("a", 1)), ("b.yaml", &document("b", 1))]);
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), root.join(name)).unwrap();
    }
    let first = load(&root, &LoadOptions::default(), &RuleSet::default());
    let (sender, loads) = channel();
    let timing = Timing { quiet: QUIET, absence: 5 * QUIET, ..Timing::default() };
    let _watcher = Watcher::start(&root, LoadOptions::default(), timing, &first, ReadingClock::default(), move |loaded| {
        sender.send(loaded).unwrap()
    });
    swap(&root, "..2", &[("b.yaml", &document("b", 2))]);
    // The kubelet removes the links after the swap; until then `a.yaml` leads nowhere and counts as a bad file.
    fs::remove_file(root.join("a.yaml")).unwrap();
    let removed = loop {
        let loaded = loads.recv_timeout(PATIENCE).unwrap();
        if requests(&loaded, "a").is_none() {
            break loaded;
        }
    };
    assert_eq!((requests(&removed, "b"), removed.removed.len()), (Some(2), 1));
}

#[test]
fn a_domain_without_descriptors_is_removed_at_once() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", &document("b", 1))]);
    watched.replace("a.yaml", "domain: a\ndescriptors: []\n");
    let loaded = watched.until(|loaded| requests(loaded, "a").is_none());
    assert_eq!((&loaded.changes.domains_removed[..], loaded.changes.rules_removed), (&["a".to_owned()][..], 1));
    assert!(loaded.kept.is_empty() && loaded.problems.is_empty());
    assert_eq!(requests(&loaded, "b"), Some(1));
    fs::remove_file(watched.file("a.yaml")).unwrap();
    let loaded = watched.until(|loaded| !loaded.rules.domains.contains_key(&b"a"[..]));
    assert!(loaded.kept.is_empty() && loaded.warnings.is_empty(), "nothing was left to lose: {}", loaded.warnings);
}

#[test]
fn a_bad_start_mends_itself() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1)), ("rules/b.yaml", "domain: b\ndescriptors: x\n")]);
    assert_eq!((watched.first.rules.revision, watched.first.rules.domains.len()), (0, 0));
    fs::write(watched.file("b.yaml"), document("b", 1)).unwrap();
    let loaded = watched.until(|loaded| loaded.problems.is_empty());
    assert_eq!((loaded.rules.revision, requests(&loaded, "a"), requests(&loaded, "b")), (1, Some(1), Some(1)));
}

/// A rule of its own for each file of the domain.
fn part(key: &str, requests: u64) -> String {
    document("a", requests).replace("user", key)
}

#[test]
fn a_merged_domain_loses_no_file() {
    let options = LoadOptions { merge_domains: true, ..LoadOptions::default() };
    let files = [("rules/a.yaml", &*part("x", 1)), ("rules/b.yaml", &*part("y", 1))];
    let watched = watched("rules", &files, options, Timing::default().poll);
    let count = |loaded: &Loaded| loaded.rules.domains[&b"a"[..]].rules.len();
    assert_eq!(count(&watched.first), 2, "{}", watched.first.problems);
    watched.replace("b.yaml", "domain: a\ndescriptors: [\n");
    let loaded = watched.until(|loaded| !loaded.problems.is_empty());
    assert_eq!((count(&loaded), &loaded.kept[..]), (2, &["a".to_owned()][..]));
    fs::remove_file(watched.file("b.yaml")).unwrap();
    let loaded = watched.until(|loaded| loaded.problems.is_empty());
    assert_eq!((count(&loaded), loaded.warnings.len()), (2, 1), "{}", loaded.warnings);
    watched.replace("c.yaml", part("y", 2));
    let loaded = watched.until(|loaded| loaded.kept.is_empty());
    assert_eq!((count(&loaded), loaded.warnings.len()), (2, 0), "renamed, nothing lost: {}", loaded.warnings);
    watched.replace("c.yaml", "domain: a\ndescriptors: []\n");
    assert_eq!(count(&watched.until(|loaded| count(loaded) == 1)), 1);
}

#[test]
fn equal_contents_are_no_reload() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    watched.replace("a.yaml", document("a", 1));
    watched.watcher.trigger();
    fs::write(watched.file("a.yaml"), document("a", 2)).unwrap();
    let loaded = watched.until(|loaded| loaded.problems.is_empty());
    assert_eq!(requests(&loaded, "a"), Some(2), "the first that is heard of is a change");
}

#[test]
fn what_no_event_tells_is_polled() {
    let directory = TempDir::new().unwrap();
    write(directory.path().join("real/rules/a.yaml"), &document("a", 1));
    symlink("real", directory.path().join("link")).unwrap();
    let path = directory.path().join("link/rules");
    let first = load(&path, &LoadOptions::default(), &RuleSet::default());
    let (sender, loads) = channel();
    let timing = Timing { quiet: QUIET, poll: Duration::from_millis(50), ..Timing::default() };
    let _watcher = Watcher::start(&path, LoadOptions::default(), timing, &first, ReadingClock::default(), move |loaded| {
        sender.send(loaded).unwrap()
    });
    // The swapped link is neither in the directory nor in its parent.
    write(directory.path().join("other/rules/a.yaml"), &document("a", 2));
    symlink("other", directory.path().join("new")).unwrap();
    fs::rename(directory.path().join("new"), directory.path().join("link")).unwrap();
    assert_eq!(requests(&loads.recv_timeout(PATIENCE).unwrap(), "a"), Some(2));
}

#[test]
fn a_dropped_watcher_ends() {
    let watched = standard(&[("rules/a.yaml", &document("a", 1))]);
    drop(watched.watcher);
    // The thread owns the sender: it is gone once the thread is.
    assert!(matches!(watched.loads.recv_timeout(PATIENCE), Err(std::sync::mpsc::RecvTimeoutError::Disconnected)));
}
