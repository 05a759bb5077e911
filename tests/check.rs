//! `weir check`: problems with their places, then the rules' own tests, and an exit code that says which.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

/// Whether all is well, and what it printed.
fn check(rules: &str) -> (bool, String) {
    check_with(rules, &[], &[])
}

/// As [`check`], with these flags and variables.
fn check_with(rules: &str, flags: &[&str], variables: &[(&str, &[u8])]) -> (bool, String) {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("rules.yaml");
    fs::write(&file, rules).unwrap();
    let variables = variables.iter().map(|(name, value)| (name, OsStr::from_bytes(value)));
    let output =
        Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").args(flags).arg(&file).env_clear().envs(variables).output().unwrap();
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

#[test]
fn domains_are_merged_where_the_setting_says_so() {
    let twice =
        "domain: api\ndescriptors: [{key: a, limits: 1/second}]\n---\ndomain: api\ndescriptors: [{key: b, limits: 1/second}]\n";
    let (is_well, text) = check(twice);
    assert!(!is_well && text.contains("MERGE_DOMAIN_CONFIG=true") && text.contains("--merge-domains"), "{text}");
    let well = (true, "2 rules, 0 tests: all is well\n".to_owned());
    assert_eq!(check_with(twice, &["--merge-domains"], &[]), well);
    for variable in ["MERGE_DOMAIN_CONFIG", "WEIR_MERGE_DOMAIN_CONFIG"] {
        assert_eq!(check_with(twice, &[], &[(variable, b"true"), ("WEIR_THREADS", b"none of its business")]), well);
    }
    for (bad, said) in [(&b"maybe"[..], "use true or false"), (b"\xff", "use text in UTF-8")] {
        let (is_well, text) = check_with(twice, &[], &[("MERGE_DOMAIN_CONFIG", bad)]);
        assert!(!is_well && text.contains("MERGE_DOMAIN_CONFIG: ") && text.contains(said), "{text}");
    }
}
