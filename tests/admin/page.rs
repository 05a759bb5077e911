//! What docs/admin.md tells operators to type works as it stands there, with the rules that a server starts with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;
use serde_json::{Value, json};

use crate::client::done;
use crate::support::weir::{Settings, Weir};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The commands of the page, a line each.
fn commands() -> Vec<String> {
    let page = fs::read_to_string(project("docs/admin.md")).expect("the page is there").replace("\\\n", "");
    let blocks = page.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

async fn started() -> Weir {
    let rules = fs::read_to_string(project("config/rules/example.yaml")).expect("the rules are there");
    Settings::with_rules(&rules).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await
}

#[tokio::test]
async fn its_commands_succeed() {
    let weir = started().await;
    let commands = commands();
    let mut tried = 0;
    for line in commands.iter().filter(|line| line.starts_with("weir ") && !line.contains("--rules")) {
        let words = line.split(" #").next().unwrap_or_default().split(" > ").next().unwrap_or_default();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(words.split_whitespace().skip(1)).env_clear().stdin(Stdio::null());
        command.env("WEIR_ADMIN", format!("http://127.0.0.1:{}", weir.admin));
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("weir runs");
        // The block that was said just before is what is explained.
        let expected = if line.contains("explain") { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        tried += 1;
    }
    assert!(tried >= 6, "{commands:?}");
}

#[tokio::test]
async fn its_calls_are_answered() {
    let weir = started().await;
    let parts = Regex::new(r"^curl -X ([A-Z]+) localhost:6070(\S+) +-H 'content-type: application/json' +-d '([^']+)'$");
    let parts = parts.expect("compiles");
    let mut tried = 0;
    for line in commands().iter().filter(|line| line.starts_with("curl ")) {
        let found = parts.captures(line).unwrap_or_else(|| panic!("{line}"));
        done(&weir, &found[1], &found[2], serde_json::from_str(&found[3]).expect("JSON")).await;
        tried += 1;
    }
    assert!(tried >= 8, "{tried}");
    let said = done(&weir, "GET", "/v1/domains/example/subjects/user_id=u1", json!(null)).await;
    assert_eq!((&said["tier"], &said["multiplier"], &said["limits"]), (&json!("team"), &json!(1.5), &json!([])));
}

#[tokio::test]
async fn the_stronger_switch_counts() {
    let weir = started().await;
    let asked = json!({"descriptors": [{"entries": [{"key": "user_id", "value": "u1"}]}]});
    for (all, own, expected) in [("allow", "shadow", "allow"), ("shadow", "allow", "allow"), ("shadow", "off", "shadow")] {
        done(&weir, "PUT", "/v1/switch", json!({"switch": all})).await;
        done(&weir, "PUT", "/v1/switch", json!({"switch": own, "domain": "example"})).await;
        let said: Value = done(&weir, "POST", "/v1/domains/example/explain", asked.clone()).await;
        assert_eq!(said["switch"], expected, "{all} for all, {own} for the domain");
        assert_eq!(done(&weir, "GET", "/v1/switch?domain=example", json!(null)).await["switch"], own);
    }
}
