//! The operators' commands against a running weir: what they print, and what they do.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::client::{RULES, done, open, subject, user};
use crate::support::eventually;
use crate::support::weir::{Settings, Weir};

/// One command to its end: whether it succeeded, what it printed, what it complained of.
async fn run(weir: &Weir, words: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(words).arg("--admin").arg(format!("http://127.0.0.1:{}", weir.admin));
    command.env_clear().stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("weir runs");
    let text = |bytes| String::from_utf8(bytes).expect("weir prints UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

async fn succeeds(weir: &Weir, words: &[&str]) -> String {
    let (succeeded, printed, complaint) = run(weir, words).await;
    assert!(succeeded, "{words:?}: {complaint}");
    printed
}

async fn fails(weir: &Weir, words: &[&str]) -> String {
    let (succeeded, printed, complaint) = run(weir, words).await;
    assert!(!succeeded, "{words:?}: {printed}");
    complaint
}

#[tokio::test]
async fn override_usage_and_reset() {
    let weir = open().start().await;
    let said =
        succeeds(&weir, &["override", "api", "user_id=u1", "--limit", "50/hour", "--rule", "per-user", "--daily", "7"]).await;
    assert_eq!(said, "api user_id=u1\n  per-user: 50/hour, daily 7\n");
    user(&weir, "u1").await;
    let usage = succeeds(&weir, &["usage", "api", "user_id=u1"]).await;
    let mut lines = usage.lines();
    assert_eq!(lines.next(), Some("api user_id=u1"));
    assert!(lines.next().is_some_and(|line| line.starts_with("LIMIT") && line.ends_with("RESETS AT")), "{usage}");
    let words: Vec<&str> = lines.next().expect("a limit").split_whitespace().take(7).collect();
    assert_eq!(words, ["per-user", "user_id=u1", "rate", "1h", "50", "1", "49"]);
    let json: Value = serde_json::from_str(&succeeds(&weir, &["usage", "api", "user_id=u1", "--json"]).await).expect("JSON");
    assert_eq!(json["limits"][1]["remaining"], 6);
    assert_eq!(succeeds(&weir, &["reset", "api", "user_id=u1", "all"]).await, "2 counters forgotten\n");
    user(&weir, "u1").await;
    assert_eq!(succeeds(&weir, &["reset", "api", "user_id=u1", "daily"]).await, "1 counter forgotten\n");
    succeeds(&weir, &["reset", "api", "user_id=u1", "all"]).await;
    assert_eq!(succeeds(&weir, &["tiers", "api"]).await, "domain `api` has no tiers\n");
    let said = succeeds(&weir, &["override", "api", "user_id=u1", "--clear", "limits", "--block", "1h", "--multiplier", "2"]).await;
    assert!(said.contains("blocked until 20") && said.contains("limits × 2") && !said.contains("per-user"), "{said}");
    assert!(!user(&weir, "u1").await.0);
    let listed = succeeds(&weir, &["override", "api"]).await;
    assert!(listed.contains("user_id=u1  blocked until"), "{listed}");
    assert_eq!(succeeds(&weir, &["override", "api", "user_id=u1", "--remove"]).await, "removed\n");
    assert_eq!(user(&weir, "u1").await, (true, 2));
    assert!(fails(&weir, &["override", "api", "user_id=u1", "--limit", "many"]).await.contains("`many` is no limit"));
    for multiplier in ["0", "nan", "inf", "1000001"] {
        let complaint = fails(&weir, &["override", "api", "user_id=u1", "--multiplier", multiplier]).await;
        assert!(complaint.to_lowercase().contains(&format!("{multiplier} is no multiplier: a number above 0")), "{complaint}");
    }
    let complaint = fails(&weir, &["override", "api", "user_id=u1", "--clear", "everything"]).await;
    assert!(complaint.contains("tier, block, allow, multiplier, limits"), "{complaint}");
    assert!(fails(&weir, &["reset", "api", "user_id=u1", "weekly"]).await.contains("monthly"));
}

#[tokio::test]
async fn assign_gives_a_tier_that_an_import_defined() {
    let weir = open().start().await;
    assert!(fails(&weir, &["assign", "api", "user_id=u1", "pro"]).await.contains("has no tier `pro`"));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("tiers.yaml");
    fs::write(&file, "tiers:\n  - domain: api\n    name: pro\n    limits: [{limit: 50/hour}]\n").expect("it is writable");
    let file = file.to_str().expect("a path in UTF-8");
    assert_eq!(succeeds(&weir, &["import", file]).await, "1 record imported\n");
    let unread =
        "warning: the assignment has no effect: no rule of domain `api` reads the tier of a `user_id`; no rule goes by tiers\n";
    let assigned = succeeds(&weir, &["assign", "api", "user_id=u1", "pro"]).await;
    assert_eq!(assigned, format!("api user_id=u1\n  tier pro\n{unread}"));
    assert!(fails(&weir, &["assign", "api", "user_id=u1"]).await.contains("--remove"));
    assert!(fails(&weir, &["assign", "api", "user_id=u1", "pro", "--remove"]).await.contains("cannot be used with"));
    for flag in ["--remove", "--none"] {
        let said = succeeds(&weir, &["assign", "api", "user_id=u1", flag]).await;
        assert_eq!(said, "api user_id=u1\n  nothing is set\n");
    }
    let tiers = succeeds(&weir, &["tiers", "api"]).await;
    assert_eq!(tiers, "TIER  LIMITS   DAILY  MONTHLY  PRIORITY  FROM\npro   50/hour  -      -        -         run time\n");
}

#[tokio::test]
async fn an_override_takes_what_the_files_take_and_nothing_that_contradicts_itself() {
    let weir = open().start().await;
    let of = |flags: &[&'static str]| [&["override", "api", "user_id=u1"][..], flags].concat();
    let said = succeeds(&weir, &of(&["--limit", "-1/hour", "--monthly", "-1", "--daily", "3"])).await;
    assert_eq!(said, "api user_id=u1\n  all rules: daily 3, monthly unlimited, unlimited\n");
    assert!(fails(&weir, &of(&["--monthly", "-2"])).await.contains("-2 is not in -1.."));
    assert!(fails(&weir, &of(&["--multiplier", "-1"])).await.contains("-1 is no multiplier"));
    assert!(fails(&weir, &of(&["--block", "-5m"])).await.contains("`-5m` is no time: write 15m"));
    assert!(fails(&weir, &of(&["--allow", "-1h"])).await.contains("`-1h` is no time: write 15m"));
    assert!(fails(&weir, &of(&["--limit", "1/hour", "--burst", "-3"])).await.contains("invalid value '-3' for '--burst"));
    let descriptor = &["explain", "--domain", "api", "--descriptor", "user_id=u1", "--hits", "-1"];
    assert!(fails(&weir, descriptor).await.contains("invalid value '-1' for '--hits"));
    for (subject, flag) in [("user_id=a", "--block"), ("user_id=b", "--allow")] {
        succeeds(&weir, &["override", "api", subject, flag, "1h"]).await;
        succeeds(&weir, &["override", "api", subject, "--remove"]).await;
    }
    let times: Vec<String> = weir.log().lines().filter(|line| line.contains("edUntil")).map(str::to_owned).collect();
    assert_eq!(times.len(), 2);
    let time = |line: &str| line.split("edUntil").nth(1).and_then(|rest| rest.split('Z').next()).map(str::len);
    let longest = r#"\":\"2026-11-30T12:00:00.000"#.len();
    assert!(times.iter().all(|line| time(line) <= Some(longest)), "to the millisecond: {times:?}");
    for (flags, expected) in [
        (&["--block", "1h", "--allow", "1h"][..], "cannot be used with"),
        (&["--block", "1h", "--clear", "block"], "--clear block takes back what the same command sets"),
        (&["--allow", "1h", "--clear", "allow"], "--clear allow takes back"),
        (&["--multiplier", "2", "--clear", "multiplier"], "--clear multiplier takes back"),
        (&["--daily", "2", "--clear", "limits"], "--clear limits takes back"),
        (&["--daily", "2", "--remove"], "--remove takes back everything"),
        (&["--unlimited", "--limit", "1/hour"], "cannot be used with"),
    ] {
        let complaint = fails(&weir, &of(flags)).await;
        assert!(complaint.contains(expected), "{flags:?}: {complaint}");
    }
    assert_eq!(succeeds(&weir, &of(&[])).await, said, "no flag: a look");
    assert_eq!(weir.log().matches("audit: changed").count(), 5, "{}", weir.log());
}

#[tokio::test]
async fn an_import_is_checked_whole_before_anything_is_written() {
    let weir = open().start().await;
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("records.json");
    let subject = |number: usize| {
        let tier = if number == 700 { "prp" } else { "pro" };
        json!({"domain": "api", "subject": format!("user_id=u{number}"), "tier": tier})
    };
    let write = |count: usize| {
        let subjects: Vec<Value> = (0..count).map(subject).collect();
        let records = json!({"subjects": subjects, "tiers": [{"domain": "api", "name": "pro", "daily": 5}], "switches": []});
        fs::write(&file, records.to_string()).expect("it is writable");
    };
    write(800);
    let path = file.to_str().expect("UTF-8");
    let complaint = fails(&weir, &["import", path]).await;
    let expected = "subjects[700].tier: `user_id=u700` of domain `api`: domain `api` has no tier `prp`: it has none";
    assert!(complaint.contains(expected) && complaint.contains("--force"), "{complaint}");
    let count = async || done(&weir, "GET", "/v1/records", json!(null)).await["subjects"].as_array().map_or(0, Vec::len);
    assert_eq!(count().await, 0, "not even the first five hundred");
    let tried = succeeds(&weir, &["import", path, "--force", "--dry-run"]).await;
    assert!(tried.starts_with("801 records can be imported\nwarning: subjects[700].tier: "), "{tried}");
    assert_eq!(count().await, 0);
    let forced = succeeds(&weir, &["import", path, "--force"]).await;
    assert!(forced.starts_with("801 records imported\nwarning: subjects[700].tier: "), "{forced}");
    assert_eq!(count().await, 800);
    write(300);
    assert_eq!(succeeds(&weir, &["import", path]).await, "301 records imported\n");
}

#[tokio::test]
async fn usage_without_limits_says_why() {
    let rules = "
domain: api
tiers: {enterprise: {limits: [unlimited]}}
default_tier: enterprise
descriptors: [{key: user_id, name: per-user, rate_limit: {tier: {assigned: user_id}}}]
";
    let weir = Settings::with_rules(rules).start().await;
    let usage = async |subject: &str| succeeds(&weir, &["usage", "api", subject]).await;
    assert_eq!(usage("user_id=u1").await, "api user_id=u1\n  per-user (user_id): unlimited, by tier enterprise\n");
    let expected =
        "api usr_id=u1\nwarning: no rule of domain `api` counts by `usr_id`: its rules count by user_id; did you mean `user_id`?\n";
    assert_eq!(usage("usr_id=u1").await, expected);
    let tiers = succeeds(&weir, &["tiers", "api"]).await;
    assert!(tiers.contains("enterprise  unlimited  -      -        -         rules.yaml:3\n"), "{tiers}");
}

#[tokio::test]
async fn what_is_exported_is_imported_as_it_was() {
    let (one, other) = (open().start().await, open().start().await);
    let limits = json!([{"rule": "ai", "limits": [{"limit": "7 per 90s", "algorithm": "token_bucket", "burst": 9}], "daily": 3}]);
    let until = "2100-01-01T00:00:00.000001Z";
    done(&one, "PATCH", &subject("u%7C1"), json!({"limits": limits, "multiplier": 0.1, "blocked_until": until})).await;
    done(&one, "PUT", "/v1/domains/api/tiers/no", json!({"limits": [{"limit": "1/second"}], "priority": "low"})).await;
    done(&one, "PUT", "/v1/switch", json!({"switch": "shadow", "domain": "api"})).await;
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for (format, words) in [("yaml", vec!["export"]), ("json", vec!["export", "--json"])] {
        let exported = succeeds(&one, &words).await;
        let file = directory.path().join(format);
        fs::write(&file, &exported).expect("it is writable");
        assert_eq!(succeeds(&other, &["import", file.to_str().expect("UTF-8")]).await, "3 records imported\n", "{exported}");
        assert_eq!(succeeds(&other, &words).await, exported);
        for path in ["/v1/domains/api/subjects/user_id=u%7C1", "/v1/domains/api/tiers/no", "/v1/switch?domain=api"] {
            match path.contains("switch") {
                true => drop(done(&other, "PUT", "/v1/switch", json!({"switch": "off", "domain": "api"})).await),
                false => drop(done(&other, "DELETE", path, json!(null)).await),
            }
        }
    }
    let bad = directory.path().join("bad");
    fs::write(&bad, "subjetcs: []\n").expect("it is writable");
    assert!(fails(&one, &["import", bad.to_str().expect("UTF-8")]).await.contains("`subjetcs` is no part of an export"));
}

#[tokio::test]
async fn history_as_a_table_and_as_csv() {
    let weir = open().start().await;
    user(&weir, "u1").await;
    eventually("a history", async || {
        succeeds(&weir, &["usage", "api", "user_id=u1", "--history", "--csv"]).await.ends_with(",1,0,1\n")
    })
    .await;
    let table = succeeds(&weir, &["usage", "api", "user_id=u1", "--history"]).await;
    assert!(table.starts_with("DAY         ALLOWED  REFUSED  COST\n20"), "{table}");
}

#[tokio::test]
async fn a_token_comes_from_a_file_and_a_refusal_is_said() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, "ann a-token-that-may-change # hers\n").expect("it is writable");
    let tokens = tokens.to_str().expect("UTF-8");
    let weir = Settings::with_rules(RULES).flag("--admin-change-token-file", tokens).start().await;
    assert!(fails(&weir, &["export"]).await.contains("--token-file"));
    assert!(fails(&weir, &["export", "--token-file", "no/such/file"]).await.contains("no/such/file"));
    let exported = succeeds(&weir, &["export", "--token-file", tokens]).await;
    assert_eq!(exported, "subjects: []\nswitches: []\ntiers: []\n");
}

#[tokio::test]
async fn a_variable_that_is_set_to_nothing_counts_as_not_set() {
    let weir = open().start().await;
    let admin = format!("http://127.0.0.1:{}", weir.admin);
    let export = async |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("export").args(flags).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("weir runs");
        (output.status.success(), String::from_utf8(output.stderr).expect("weir prints UTF-8"))
    };
    let answered = (true, String::new());
    assert_eq!(export(&[("WEIR_ADMIN", &admin)], &[]).await, answered);
    assert_eq!(export(&[("WEIR_ADMIN", &admin), ("WEIR_ADMIN_TOKEN_FILE", "")], &[]).await, answered);
    assert_eq!(export(&[("WEIR_ADMIN", "")], &["--admin", &admin]).await, answered);
    // Whether or not anybody listens at the default address: the address is no mistake.
    let (_, complaint) = export(&[("WEIR_ADMIN", "")], &[]).await;
    assert!(!complaint.contains("--admin "), "{complaint}");
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    let output =
        command.arg("export").env_clear().env("WEIR_ADMIN", OsStr::from_bytes(b"http://\xff")).output().expect("weir runs");
    let said = String::from_utf8(output.stderr).expect("weir prints UTF-8");
    assert!(!output.status.success() && said.contains("WEIR_ADMIN is not UTF-8"), "{said}");
}

#[tokio::test]
async fn nobody_there_is_said() {
    let mut weir = open().start().await;
    weir.kill();
    let complaint = fails(&weir, &["export"]).await;
    assert!(complaint.contains("no admin API at 127.0.0.1"), "{complaint}");
}

#[tokio::test]
async fn an_address_that_is_none_names_the_flag_and_the_variable() {
    for address in ["127.0.0.1:6070", "https://127.0.0.1:6070", "foo"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(["tiers", "api"]).env_clear().env("WEIR_ADMIN", address).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("weir runs");
        let said = String::from_utf8(output.stderr).expect("weir prints UTF-8");
        let expected = format!("weir: `{address}` (--admin or WEIR_ADMIN): write it as http://127.0.0.1:6070");
        assert!(!output.status.success() && said.starts_with(&expected), "{said}");
    }
}
