//! `weir check`: problems with their places, then the rules' own tests, and an exit code that says which.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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
    assert_eq!(text, "1 rule, 1 test: all is well\n");
}

#[test]
fn a_test_that_fails_says_where_and_what() {
    let (is_well, text) = check(&RULES.replace("repeat: 2, expect: ok", "repeat: 3, expect: ok"));
    assert!(!is_well);
    let told = "rules.yaml:7: test failed: two a second, three a day\n  in domain api, step 1, time 3 of 3\n  expected ok, found over_limit by `per-user`";
    assert!(text.contains(told) && text.contains("1 of 1 test failed"), "{text}");
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

/// Checks these paths in a directory, with this as standard input.
fn check_in(directory: &Path, arguments: &[&str], input: &[u8], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.arg("check").args(arguments).current_dir(directory).env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // A command that does not read it may be gone already.
    let _ = process.stdin.take().unwrap().write_all(input);
    process.wait_with_output().unwrap()
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

const A: &str = "domain: a\ndescriptors:\n  - {key: x, limits: 1/second}\n";
const IDLE: &str = "domain: b\ndescriptors:\n  - {key: x, shadow_mode: true}\n  - {key: y, limits: 1/second}\n";
const BAD: &str = "domain: c\ndescriptors:\n  - {kei: x}\n";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::TempDir::new().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

#[test]
fn several_paths_are_named_as_they_were_given() {
    let directory = directory(&[("one/a.yaml", A), ("two/b.yaml", BAD), ("c.yml", BAD)]);
    let (code, said, verdict) = text(&check_in(directory.path(), &["one", "two/", "c.yml", "no/such.yaml"], b"", &[]));
    assert_eq!((code, verdict.as_str()), (Some(1), "weir: 3 problems\n"), "{said}");
    assert!(said.contains("two/b.yaml:3:6: error: ") && said.contains("c.yml:3:6: error: "), "{said}");
    assert!(said.contains("no/such.yaml: error: cannot read the rules: No such file"), "{said}");
    let (code, said, _) = text(&check_in(directory.path(), &["one", "one/a.yaml"], b"", &[]));
    assert_eq!((code, said.as_str()), (Some(0), "2 rules, 0 tests: all is well\n"), "a directory is checked by itself");
}

#[test]
fn files_are_checked_together() {
    let directory = directory(&[("a.yaml", A), ("b.yaml", A)]);
    let (code, said, verdict) = text(&check_in(directory.path(), &["a.yaml", "b.yaml"], b"", &[]));
    assert_eq!(code, Some(1));
    assert!(said.contains("b.yaml:1:1: error: domain `a` is defined already, at a.yaml:1"), "{said}");
    assert!(verdict.ends_with("problems\n"), "{verdict}");
    assert_eq!(text(&check_in(directory.path(), &["a.yaml", "a.yaml"], b"", &[])).0, Some(0), "the same file once");
}

#[test]
fn a_dash_is_standard_input() {
    let directory = directory(&[("a.yaml", A)]);
    let (code, said, verdict) = text(&check_in(directory.path(), &["-"], BAD.as_bytes(), &[]));
    assert_eq!((code, verdict.as_str()), (Some(1), "weir: 1 problem\n"));
    assert!(said.starts_with("<stdin>:3:6: error: unknown key `kei`"), "{said}");
    let (code, said, _) = text(&check_in(directory.path(), &["a.yaml", "-"], A.as_bytes(), &[]));
    assert!(code == Some(1) && said.contains("domain `a` is defined already, at <stdin>:1"), "{said}");
    let (code, said, _) = text(&check_in(directory.path(), &["-"], b"domain: \xff\n", &[]));
    assert!(code == Some(1) && said.contains("<stdin>: error: the file is not UTF-8 at its byte 9"), "{said}");
}

#[test]
fn without_a_path_the_rules_of_a_server_are_checked() {
    let directory = directory(&[("config/rules/a.yaml", A), ("other.yaml", BAD)]);
    assert_eq!(text(&check_in(directory.path(), &[], b"", &[])).0, Some(0));
    let (code, said, _) = text(&check_in(directory.path(), &[], b"", &[("WEIR_RULES", "other.yaml")]));
    assert!(code == Some(1) && said.starts_with("other.yaml:3:6"), "{said}");
}

#[test]
fn strict_fails_for_warnings() {
    let directory = directory(&[("b.yaml", IDLE)]);
    let (code, said, verdict) = text(&check_in(directory.path(), &["b.yaml"], b"", &[]));
    assert_eq!((code, verdict.as_str()), (Some(0), ""));
    assert!(said.contains("b.yaml:3:14: warning: ") && said.ends_with("1 rule, 0 tests: good, with 1 warning\n"), "{said}");
    for (flags, variables) in [(&["--strict", "b.yaml"][..], &[][..]), (&["b.yaml"], &[("WEIR_STRICT", "true")])] {
        let (code, said, verdict) = text(&check_in(directory.path(), flags, b"", variables));
        assert_eq!((code, verdict.as_str()), (Some(1), "weir: 1 problem\n"));
        assert!(said.contains("b.yaml:3:14: error: `shadow_mode` does nothing"), "{said}");
    }
}

#[test]
fn json_has_every_part_as_a_field() {
    let failing = "domain: t\ndescriptors:\n  - {key: x, limits: 1/second}\ntests:\n  - name: two\n    steps:\n      \
                   - {descriptors: [{x: y}], repeat: 2, expect: ok}\n";
    let directory = directory(&[("b.yaml", IDLE), ("c.yaml", BAD), ("t/t.yaml", failing)]);
    let output = check_in(directory.path(), &["--json", "b.yaml", "c.yaml", "t"], b"", &[]);
    let (code, said, verdict) = text(&output);
    assert_eq!((code, verdict.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&said).unwrap();
    let problems = report["problems"].as_array().unwrap();
    let place = |problem: &Value| (problem["file"].clone(), problem["line"].as_u64(), problem["column"].as_u64());
    assert_eq!(place(&problems[0]), ("b.yaml".into(), Some(3), Some(14)));
    assert_eq!((&problems[0]["severity"], &problems[1]["severity"]), (&"warning".into(), &"error".into()));
    assert_eq!(problems[1]["hint"], "did you mean `key`?");
    assert_eq!(problems[1]["path"], "domain c › descriptors[0]");
    assert_eq!(problems[1]["message"], "unknown key `kei` in a descriptor");
    let test = &report["failed_tests"][0];
    assert_eq!((&test["file"], &test["line"], &test["test"]), (&"t/t.yaml".into(), &7.into(), &"two".into()));
    assert_eq!((&test["expected"], &test["found"], &test["turn"]), (&"ok".into(), &"over_limit by `x`".into(), &2.into()));
    let expected = serde_json::json!({
        "good": false, "errors": 1, "warnings": 1, "domains": 1, "rules": 1, "tests": 1, "failed_tests": 1,
    });
    assert_eq!(report["summary"], expected);
    let (code, said, _) = text(&check_in(directory.path(), &["--json", "b.yaml"], b"", &[]));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["summary"]["good"], &report["summary"]["rules"]), (Some(0), &true.into(), &1.into()));
    let (_, said, _) = text(&check_in(directory.path(), &["--json", "gone.yaml"], b"", &[]));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&report["problems"][0]["line"], &report["problems"][0]["path"]), (&Value::Null, &Value::Null));
}

#[test]
fn colours_are_for_terminals() {
    let directory = directory(&[("c.yaml", BAD)]);
    let is_coloured = |flags: &[&str], variables: &[(&str, &str)]| {
        let flags = [flags, &["c.yaml"]].concat();
        text(&check_in(directory.path(), &flags, b"", variables)).1.contains('\u{1b}')
    };
    assert!(!is_coloured(&[], &[]), "a pipe is no terminal");
    assert!(is_coloured(&["--color", "always"], &[("NO_COLOR", "1")]), "the flag counts before NO_COLOR");
    assert!(!is_coloured(&["--color=never"], &[]));
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let directory = directory(&[("a.yaml", A)]);
    assert_eq!(text(&check_in(directory.path(), &["--no-such-flag"], b"", &[])).0, Some(2));
    let (code, _, said) = text(&check_in(directory.path(), &["a.yaml"], b"", &[("WEIR_STRICT", "maybe")]));
    assert_eq!((code, said.as_str()), (Some(2), "weir: WEIR_STRICT: `maybe` is not allowed; use true or false\n"));
}

#[test]
fn a_variable_that_weir_does_not_know_is_a_warning() {
    let directory = directory(&[("a.yaml", A)]);
    let variables = [("WEIR_STRIKT", "true"), ("WEIR_SERVICE_HOST", "10.0.0.1"), ("WEIR_PORT", "tcp://10.0.0.1:8081")];
    let (code, said, warned) = text(&check_in(directory.path(), &["a.yaml"], b"", &variables));
    assert_eq!((code, said.as_str()), (Some(0), "1 rule, 0 tests: all is well\n"));
    let expected = "weir: warning: WEIR_STRIKT: weir has no such setting and ignores it; did you mean WEIR_STRICT?\n";
    assert_eq!(warned, expected);
}
