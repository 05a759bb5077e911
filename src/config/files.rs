//! The files of a rules directory, read whole.
//!
//! `*.yaml` and `*.yml`, in subdirectories too, in the order of their names. What begins with a dot is left out: in a mounted
//! ConfigMap the files are symbolic links into `..data`, and it is the links that are read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::digest;

use super::problem::{Problem, Severity};
use crate::regular_file;
use crate::shown::{escaped, is_control};

/// The most files of a directory: bounds what a wrong path makes the server read.
const MAX_FILES: usize = 10_000;
/// The largest rules file: some 300,000 rules. What is read takes up to ten times as much memory.
pub const MAX_FILE_BYTES: u64 = 32 << 20;
/// The most bytes of all rules files together.
const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// The most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// How deep subdirectories may go.
const MAX_DEPTH: usize = 8;

/// What to do where there are no rules.
pub(super) const NAME_RULES: &str = "write a rules file there, or name another file or a directory of *.yaml files: a server by `--rules` or `WEIR_RULES`, \
     `weir check` as its argument";

/// A file's text, and its name relative to the rules directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl SourceFile {
    pub(crate) fn new(name: impl Into<String>, text: impl Into<String>) -> SourceFile {
        let mut text: String = text.into();
        if let Some(rest) = text.strip_prefix('\u{feff}') {
            text = rest.to_owned();
        }
        // JSON is YAML, but for the tabs that it may be indented by.
        if text.trim_start().starts_with('{') && text.contains('\t') {
            text = text.split('\n').map(spaces_for_tabs).collect::<Vec<_>>().join("\n");
        }
        SourceFile { name: name.into(), text }
    }

    /// A file by what it holds.
    ///
    /// # Errors
    /// When that is not text.
    pub fn of_bytes(name: &str, bytes: Vec<u8>) -> Result<SourceFile, Unread> {
        match text(bytes) {
            Ok(text) => Ok(SourceFile::new(name, text)),
            Err(reason) => Err(Unread { name: name.to_owned(), reason }),
        }
    }
}

/// A line with each tab that it begins with as a space: columns stay what they are.
fn spaces_for_tabs(line: &str) -> String {
    let indented = line.len() - line.trim_start_matches([' ', '\t']).len();
    " ".repeat(indented) + &line[indented..]
}

/// UTF-8, or UTF-16 that begins with its mark, as some editors for Windows write it; the error says what is wrong.
fn text(bytes: Vec<u8>) -> Result<String, String> {
    let utf16 = |from: fn([u8; 2]) -> u16| {
        let (pairs, []) = bytes.as_chunks::<2>() else {
            return Err("the file is not UTF-16: it ends inside a character".to_owned());
        };
        let units: Vec<u16> = pairs.iter().map(|pair| from(*pair)).collect();
        String::from_utf16(&units).map_err(|_| "the file is not UTF-16, though its first bytes say so".to_owned())
    };
    match bytes[..] {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        _ => String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            format!("the file is not UTF-8 at its byte {}", at + 1)
        }),
    }
}

/// What a path holds: equal fingerprints, equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// All that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) sources: Vec<SourceFile>,
    /// Files that are there and could not be read.
    pub(crate) unreadable: Vec<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) fingerprint: Fingerprint,
}

/// Reads the rules of a server: a file, or the files of a directory.
pub(crate) fn find(path: &Path) -> Found {
    let mut search = Search::default();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => search.directory(path, "", 0),
        Ok(_) => search.file(path, name_of(path), regular_file::read),
        Err(error) => search.missing(path, &error),
    }
    search.finish()
}

/// Reads several files and directories, whose files are called by these paths, after another text.
pub(crate) fn find_all(paths: &[PathBuf], text: Option<Result<SourceFile, Unread>>) -> Found {
    let mut search = Search::default();
    match text {
        Some(Ok(source)) => search.sources.push(source),
        Some(Err(Unread { name, reason })) => search.failed(name, reason),
        None => {}
    }
    let mut seen: Vec<&PathBuf> = Vec::with_capacity(paths.len());
    for path in paths {
        if seen.contains(&path) {
            continue;
        }
        seen.push(path);
        let name = escaped(&path.to_string_lossy()).into_owned();
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => search.directory(path, &format!("{}/", name.trim_end_matches('/')), 0),
            Ok(_) => search.file(path, name, regular_file::read_typed),
            Err(error) => search.missing(path, &error),
        }
    }
    search.finish()
}

/// Why the text of a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    name: String,
    reason: String,
}

impl Found {
    /// As if these files had been found.
    pub(crate) fn of(sources: Vec<SourceFile>) -> Found {
        Search { sources, ..Search::default() }.finish()
    }
}

/// Whether a file of a directory is one of rules, by its name.
pub(super) fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn name_of(path: &Path) -> String {
    escaped(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()).into_owned()
}

#[derive(Default)]
struct Search {
    sources: Vec<SourceFile>,
    unreadable: Vec<String>,
    problems: Vec<Problem>,
    /// How many bytes the files have that were read.
    bytes: u64,
}

impl Search {
    fn directory(&mut self, path: &Path, prefix: &str, depth: usize) {
        let listed = fs::read_dir(path).and_then(|entries| entries.take(MAX_ENTRIES + 1).collect::<io::Result<Vec<_>>>());
        let entries = match listed {
            Ok(entries) if entries.len() <= MAX_ENTRIES => entries,
            Ok(_) => {
                let message = format!("the directory has more than {MAX_ENTRIES} entries: none of them is read");
                return self.failed(escaped(&path.to_string_lossy()).into_owned(), message);
            }
            Err(error) => return self.missing(path, &error),
        };
        let mut entries: Vec<_> =
            entries.into_iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry)).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, entry) in entries.into_iter().filter(|(name, _)| !name.starts_with('.')) {
            let has_control = name.contains(is_control);
            let (path, name) = (entry.path(), format!("{prefix}{}", escaped(&name)));
            let is_yaml = is_yaml(&path);
            // A directory behind a link is not followed: a loop of links would never end.
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && depth < MAX_DEPTH {
                self.directory(&path, &format!("{name}/"), depth + 1);
            } else if is_yaml && !is_directory {
                if self.sources.len() + self.unreadable.len() >= MAX_FILES {
                    return self.failed(name, format!("more than {MAX_FILES} files: this one and those after it are not read"));
                }
                if has_control {
                    self.failed(name, "the file's name has control characters: rename the file".to_owned());
                    continue;
                }
                self.file(&path, name, regular_file::read);
            } else if !path.is_dir() {
                let message = "the file is not read: rules are in files called *.yaml or *.yml";
                self.problems.push(Problem::of_file(Severity::Warning, name, message));
            }
        }
    }

    fn file(&mut self, path: &Path, name: String, read: fn(&Path, u64) -> io::Result<Vec<u8>>) {
        let left = MAX_TOTAL_BYTES - self.bytes;
        match read(path, MAX_FILE_BYTES.min(left)) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge && left < MAX_FILE_BYTES => {
                let message =
                    format!("the rules files together are larger than {} MiB: this one is not read", MAX_TOTAL_BYTES >> 20);
                self.failed(name, message);
            }
            Ok(bytes) => self.text(name, bytes),
            Err(error) => self.failed(name, format!("cannot read the file: {error}")),
        }
    }

    fn text(&mut self, name: String, bytes: Vec<u8>) {
        self.bytes += bytes.len() as u64;
        match SourceFile::of_bytes(&name, bytes) {
            Ok(source) => self.sources.push(source),
            Err(Unread { name, reason }) => self.failed(name, reason),
        }
    }

    fn failed(&mut self, name: String, message: String) {
        self.problems.push(Problem::of_file(Severity::Error, name.clone(), message));
        self.unreadable.push(name);
    }

    fn missing(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot read the rules: {error}");
        let mut problem = Problem::of_file(Severity::Error, path.to_string_lossy(), message);
        problem.hint(NAME_RULES);
        self.problems.push(problem);
    }

    fn finish(self) -> Found {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut add = |text: &str| {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text.as_bytes());
        };
        for source in &self.sources {
            add(&source.name);
            add(&source.text);
        }
        // Files that are no rules come and go: editors' own, for one.
        for problem in self.problems.iter().filter(|problem| problem.severity == Severity::Error) {
            add(&problem.file);
            add(&problem.message);
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(context.finish().as_ref());
        let Search { sources, unreadable, problems, .. } = self;
        Found { sources, unreadable, problems, fingerprint: Fingerprint(fingerprint) }
    }
}
