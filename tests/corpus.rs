//! Public rules files of `envoyproxy/ratelimit`, where a directory of them lies beside the repository: each that is good there
//! loads here, and none fills the log with one warning over and over.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use weir::config::{LoadOptions, load_texts};
use weir::rules::RuleSet;

/// Files that `envoyproxy/ratelimit` refuses, too: no YAML, an unknown unit, an unknown key, `replaces` of nothing and of itself.
const REFUSED: [&str; 6] = ["001.yaml", "014.yaml", "018.yaml", "019.yaml", "020.yaml", "057.yaml"];

fn corpus() -> Option<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let mut files: Vec<PathBuf> = fs::read_dir(directory).ok()?.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Some(files)
}

#[test]
fn public_files_load() {
    let Some(files) = corpus() else { return eprintln!("no ../shared/corpus: nothing to read") };
    assert!(files.len() > REFUSED.len(), "the files are there");
    for file in files {
        let (name, text) = (file.file_name().unwrap().to_str().unwrap(), fs::read_to_string(&file).unwrap());
        let loaded = load_texts(&[(name, &text)], &LoadOptions::default(), &RuleSet::default());
        assert_eq!(!loaded.problems.is_empty(), REFUSED.contains(&name), "{name}: {}", loaded.problems);
        let messages: BTreeSet<&str> = loaded.warnings.iter().map(|warning| &*warning.message).collect();
        assert_eq!(messages.len(), loaded.warnings.len(), "{name}: {}", loaded.warnings);
        if !loaded.problems.is_empty() || loaded.warnings.is_empty() {
            continue;
        }
        let strict = LoadOptions { strict: true, ..LoadOptions::default() };
        let strict = load_texts(&[(name, &text)], &strict, &RuleSet::default());
        assert_eq!((strict.problems.len(), strict.warnings.len()), (loaded.warnings.len(), 0), "{name}");
    }
}
