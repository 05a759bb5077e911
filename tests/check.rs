//! `weir check`: problems with their places, then the rules' own tests, and an exit code that says which.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

/// Whether all is well, and what it printed.
fn check(rules: &str) -> (bool, String) {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("rules.yaml");
    fs::write(&file, rules).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").arg(&file).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.success(), text)
}

const RULES: &str = "domain: api
descriptors:
  - {key: user, name: per-user, limits: [2/second], quota: {daily: 3}}
tests:
  - name: two a second, three a day
    steps:
      - {descriptors: [{user: u}], repeat: 2, expect: ok}
      - {descriptors: [{user: u}], expect: over_limit, limited_by: per-user}
      - {at: 1s, descriptors: [{user: u}], expect: ok}
      - {at: 23h59m59s, descriptors: [{user: u}], expect: over_limit}
      - {at: 1d, hits: 2, descriptors: [{user: u}], expect: ok}
";

#[test]
fn tests_that_hold_are_counted() {
    let (is_well, text) = check(RULES);
    assert!(is_well, "{text}");
    assert_eq!(text, "1 rules, 1 tests: all is well\n");
}

#[test]
fn a_test_that_fails_says_where_and_what() {
    let (is_well, text) = check(&RULES.replace("repeat: 2, expect: ok", "repeat: 3, expect: ok"));
    assert!(!is_well);
    let told = "rules.yaml:7: test failed: two a second, three a day\n  in domain api, step 1, time 3 of 3\n  expected ok, found over_limit by `per-user`";
    assert!(text.contains(told) && text.contains("1 of 1 tests failed"), "{text}");
    let (is_well, text) = check(&RULES.replace("limited_by: per-user", "limited_by: other"));
    assert!(!is_well && text.contains("expected over_limit by `other`, found over_limit by `per-user`"), "{text}");
}

#[test]
fn problems_come_first() {
    let (is_well, text) = check("domain: api\ndescriptors:\n  - {kei: user}\n  - {key: user, limits: 5}\n");
    assert!(
        !is_well && text.contains("did you mean `key`?") && text.contains("`5` is no limit") && text.contains("2 problems"),
        "{text}"
    );
}
