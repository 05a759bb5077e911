//! What a mistake in the rules is answered: for each `.yaml` in `config_problems`, exactly the text beside it.
//!
//! `REGENERATE=1 cargo test --test config_problems` writes the texts anew; look at the difference before it is committed.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use weir::config::{LoadOptions, Severity, load, load_texts};
use weir::rules::RuleSet;

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config_problems");
    let mut cases: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    cases.sort();
    cases
}

fn rendered(case: &Path) -> String {
    let name = case.file_name().unwrap().to_str().unwrap();
    let options = LoadOptions { merge_domains: name.starts_with("merge_"), ..LoadOptions::default() };
    let loaded = load_texts(&[(name, &fs::read_to_string(case).unwrap())], &options, &RuleSet::default());
    let problems = loaded.problems.iter().chain(loaded.warnings.iter());
    problems.fold(String::new(), |mut text, problem| {
        writeln!(text, "{problem}\n").unwrap();
        text
    })
}

#[test]
fn every_mistake_is_told_as_written_down() {
    let regenerate = std::env::var_os("REGENERATE").is_some();
    let mut different = String::new();
    let cases = cases();
    assert!(cases.len() > 30, "the cases are there");
    for case in cases {
        let (text, expected) = (rendered(&case), case.with_extension("txt"));
        if regenerate {
            fs::write(&expected, text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            writeln!(different, "--- {}\n{text}", case.display()).unwrap();
        }
    }
    assert!(different.is_empty(), "not as written down (REGENERATE=1 writes them anew):\n{different}");
}

#[test]
fn strict_makes_errors_of_warnings() {
    let text = "domain: api\ndescriptors:\n  - {key: a, shadow_mode: true, descriptors: [{key: b, limits: 1/second}]}\n";
    let loaded = load_texts(&[("a.yaml", text)], &LoadOptions::default(), &RuleSet::default());
    assert_eq!((loaded.problems.len(), loaded.warnings.len(), loaded.rules.rule_count()), (0, 1, 1));
    let options = LoadOptions { strict: true, ..LoadOptions::default() };
    let strict = load_texts(&[("a.yaml", text)], &options, &RuleSet::default());
    assert_eq!((strict.problems.len(), strict.warnings.len(), strict.rules.revision), (1, 0, 0));
    let warning = loaded.warnings.iter().next().unwrap().to_string();
    assert_eq!(strict.problems.iter().next().unwrap().to_string(), warning.replace("warning", "error"));
    let later = load_texts(&[("a.yaml", text)], &options, &loaded.rules);
    assert_eq!((&later.kept[..], later.rules.rule_count()), (&["api".to_owned()][..], 1), "a reload keeps the domain");
}

#[test]
fn files_of_other_systems_are_read() {
    let directory = tempfile::TempDir::new().unwrap();
    let rules = |domain: &str| format!("domain: {domain}\ndescriptors:\n  - {{key: a, limits: 1/second}}\n");
    let utf16 = |text: &str, to: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to).collect::<Vec<u8>>();
    let json = "{\n\t\"domain\": \"e\",\n\t\"descriptors\": [\n\t\t{\"key\": \"a\", \"limits\": \"1/second\"}\n\t]\n}\n";
    for (name, bytes) in [
        ("a.yaml", rules("a").replace('\n', "\r\n").into_bytes()),
        ("b.yaml", format!("\u{feff}{}", rules("b")).into_bytes()),
        ("c.yaml", utf16(&format!("\u{feff}{}", rules("c")), u16::to_le_bytes)),
        ("d.yaml", utf16(&format!("\u{feff}{}", rules("d")), u16::to_be_bytes)),
        ("e.yaml", json.as_bytes().to_vec()),
    ] {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let loaded = load(directory.path(), &LoadOptions::default(), &RuleSet::default());
    assert!(loaded.problems.is_empty() && loaded.warnings.is_empty(), "{}{}", loaded.problems, loaded.warnings);
    assert_eq!((loaded.rules.domains.len(), loaded.rules.rule_count()), (5, 5));
    fs::write(directory.path().join("f.yaml"), b"\xff\xfea").unwrap();
    let loaded = load(directory.path(), &LoadOptions::default(), &RuleSet::default());
    assert!(loaded.problems.to_string().contains("f.yaml: error: the file is not UTF-16"), "{}", loaded.problems);
}

#[test]
fn problems_have_their_parts_as_fields() {
    let text = "domain: api\ndescriptors:\n  - key: user\n    rate_limit: {unit: minute, request_per_unit: 5}\n";
    let loaded = load_texts(&[("a.yaml", text)], &LoadOptions::default(), &RuleSet::default());
    let problem = loaded.problems.iter().next().unwrap();
    assert_eq!((problem.severity, &*problem.file, problem.line, problem.column), (Severity::Error, "a.yaml", 4, 32));
    assert_eq!(problem.path, "domain api › descriptors[0] › rate_limit");
    assert_eq!(problem.hint.as_deref(), Some("did you mean `requests_per_unit`?"));
}

#[test]
fn all_files_are_told_of_in_order() {
    let bad = "domain: x\ndescriptors: [\n";
    let worse = "domain: y\ndescriptors:\n  - kei: a\n";
    let texts = [
        ("c.yaml", worse),
        ("a.yaml", bad),
        ("b.yaml", "domain: z\ndescriptors: x\n"),
        ("d.yaml", "domain: fine\ndescriptors: []\n"),
    ];
    let loaded = load_texts(&texts, &LoadOptions::default(), &RuleSet::default());
    let files: Vec<&str> = loaded.problems.iter().map(|problem| &*problem.file).collect();
    assert_eq!(files, ["a.yaml", "b.yaml", "c.yaml"]);
}

#[test]
fn files_that_cannot_be_read_are_problems() {
    let directory = tempfile::TempDir::new().unwrap();
    let empty = load(directory.path(), &LoadOptions::default(), &RuleSet::default());
    assert!(empty.problems.to_string().contains("there is no *.yaml or *.yml file in it"), "{}", empty.problems);
    fs::write(directory.path().join("a.yaml"), b"domain: \xff\n").unwrap();
    fs::write(directory.path().join("rules.json"), "{}").unwrap();
    std::os::unix::fs::symlink("nowhere", directory.path().join("b.yaml")).unwrap();
    let loaded = load(directory.path(), &LoadOptions::default(), &RuleSet::default());
    let texts: Vec<String> = loaded.problems.iter().chain(loaded.warnings.iter()).map(ToString::to_string).collect();
    assert_eq!(texts[0], "a.yaml: error: the file is not UTF-8 at its byte 9");
    assert!(texts[1].starts_with("b.yaml: error: cannot read the file: No such file"), "{texts:?}");
    assert_eq!(texts[2], "rules.json: warning: the file is not read: rules are in files called *.yaml or *.yml");
    let missing = load(&directory.path().join("nowhere"), &LoadOptions::default(), &RuleSet::default());
    assert_eq!((missing.problems.len(), missing.rules.revision), (1, 0));
}
