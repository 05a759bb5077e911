//! Attacks a real process with files that are no files, or far too large: FIFOs, sockets, devices, loops, and names that forge. Others
//! are answered all the while, memory stays bounded, each file is named with what is wrong, and weir recovers when it is mended.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::weir::{Settings, Weir, ask, request};
use crate::support::{eventually, http};

const RULES: &str = "domain: d\ndescriptors:\n  - {key: user, rate_limit: {unit: hour, requests_per_unit: 1000000}}\n";
/// How much more memory may be taken at any time, in bytes.
const ALLOWED: u64 = 64 << 20;
const READER: &str = "ann read-read-read-read\n";

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo is installed").success());
}

async fn is_answered(weir: &Weir) {
    let mut client = weir.client().await;
    ask(&mut client, request("d", &[&[("user", "bystander")]])).await;
    assert!(http::get(weir.http, "/healthcheck").await.is_some_and(|answer| answer.status == 200));
    assert!(http::get(weir.admin, "/metrics").await.is_some_and(|answer| answer.status == 200));
}

async fn logs(weir: &Weir, words: &str) {
    eventually(words, async || weir.log().contains(words)).await;
}

async fn ends(weir: &mut Weir) {
    weir.signal("TERM");
    let mut status = None;
    eventually("an end", async || {
        status = weir.ended();
        status.is_some()
    })
    .await;
    assert!(status.is_some_and(|status| status.success()), "{}", weir.log());
}

#[tokio::test]
async fn what_is_no_file_in_the_rules_directory_is_named_and_holds_nothing() {
    let mut weir = Settings::with_rules(RULES).start().await;
    let before = weir.resident();
    let bad = weir.rules().join("bad.yaml");
    for (number, what) in
        ["a FIFO", "a FIFO", "a socket", "a character device", "a directory", "symbolic links", "larger than 32 MiB"]
            .into_iter()
            .enumerate()
    {
        let other = tempfile::tempdir().expect("a temporary directory can be made");
        match number {
            0 => fifo(&bad),
            1 => {
                fifo(&other.path().join("fifo"));
                symlink(other.path().join("fifo"), &bad).expect("the directory is writable");
            }
            2 => drop(UnixListener::bind(&bad).expect("the directory is writable")),
            3 => symlink("/dev/zero", &bad).expect("the directory is writable"),
            4 => symlink(other.path(), &bad).expect("the directory is writable"),
            5 => symlink(&bad, &bad).expect("the directory is writable"),
            _ => fs::File::create(&bad).and_then(|file| file.set_len(1 << 40)).expect("the directory is writable"),
        }
        eventually(what, async || {
            // Not everything of this kind is an event.
            weir.signal("HUP");
            weir.log().lines().any(|line| line.contains("bad.yaml: error: cannot read the file") && line.contains(what))
        })
        .await;
        is_answered(&weir).await;
        fs::remove_file(&bad).expect("the directory is writable");
    }
    // What is mended is read again, and what came meanwhile.
    fs::write(weir.rules().join("more.yaml"), RULES.replace("domain: d", "domain: e")).expect("the directory is writable");
    eventually("the other domain", async || {
        http::get(weir.admin, "/rules").await.is_some_and(|answer| answer.body.contains("\ne (more.yaml)"))
    })
    .await;
    let (peak, before) = (weir.peak() >> 20, before >> 20);
    assert!(peak < before + (ALLOWED >> 20), "{peak} MiB at the most, {before} before");
    ends(&mut weir).await;
}

#[tokio::test]
async fn a_fifo_at_the_start_keeps_weir_from_being_ready_and_not_from_ending() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    fifo(&directory.path().join("fifo"));
    let mut weir = Settings::with_rules(RULES).link("bad.yaml", directory.path().join("fifo")).launch().await;
    logs(&weir, "bad.yaml: error: cannot read the file: it is a FIFO, not a regular file").await;
    let health = http::get(weir.http, "/healthcheck").await.expect("weir listens");
    assert_eq!(health.status, 503, "{}", health.body);
    fs::remove_file(weir.rules().join("bad.yaml")).expect("the directory is writable");
    eventually("health", async || weir.is_healthy().await).await;
    is_answered(&weir).await;
    ends(&mut weir).await;
}

#[tokio::test]
async fn a_token_file_that_becomes_a_fifo_freezes_nobody() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, READER).expect("the directory is writable");
    let settings = Settings::with_rules(RULES).flag("--admin-read-token-file", tokens.to_str().expect("UTF-8"));
    let mut weir = settings.start().await;
    let status = async |token: &str| {
        let authorization = format!("Bearer {token}");
        let headers: [(&str, &[u8]); 1] = [("authorization", authorization.as_bytes())];
        http::send(weir.admin, "GET", "/v1/switch", &headers, b"").await.map(|answer| answer.status)
    };
    assert_eq!(status("read-read-read-read").await, Some(200));
    fs::write(&tokens, "bob a-token-that-is-new").expect("the directory is writable");
    eventually("the new token", async || status("a-token-that-is-new").await == Some(200)).await;
    assert_eq!(status("read-read-read-read").await, Some(401));
    fs::remove_file(&tokens).expect("the directory is writable");
    fifo(&tokens);
    eventually("a refusal", async || status("a-token-that-is-new").await == Some(401)).await;
    logs(&weir, "tokens: it is a FIFO, not a regular file").await;
    is_answered(&weir).await;
    fs::remove_file(&tokens).expect("the directory is writable");
    fs::write(&tokens, READER).expect("the directory is writable");
    eventually("the old token", async || status("read-read-read-read").await == Some(200)).await;
    assert_eq!(weir.log().matches("cannot use a token file").count(), 1 + usize::from(weir.log().contains("No such file")));
    ends(&mut weir).await;
}

#[tokio::test]
async fn names_in_the_rules_forge_no_line_anywhere() {
    let weir = Settings::with_rules(RULES).start().await;
    let forged = r#"domain: "e\n2026-11-30T00:00:00.000Z  INFO audit: changed by=\e[31mroot""#;
    fs::write(weir.rules().join("bad.yaml"), format!("{forged}\ndescriptors: []\n")).expect("the directory is writable");
    logs(&weir, "a name has the control character `\\n`").await;
    let value = "domain: v\ndescriptors:\n  - {key: k, value: \"x\\ny\\e[31m\", rate_limit: {unit: hour, requests_per_unit: 1}}\n";
    fs::write(weir.rules().join("bad.yaml"), value).expect("the directory is writable");
    eventually("a value as callers send it", async || {
        http::get(weir.admin, "/rules").await.is_some_and(|answer| answer.body.contains("\n  k=x\\ny\\u{1b}[31m: 1/1h"))
    })
    .await;
    let mut client = weir.client().await;
    ask(&mut client, request("v", &[&[("k", "x\ny\u{1b}[31m")]])).await;
    let metrics = http::get(weir.admin, "/metrics").await.expect("the admin port answers").body;
    for text in [metrics, weir.log()] {
        assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("2026-11-30T00:00:00.000Z")), "{text}");
    }
}

#[tokio::test]
async fn names_that_operators_write_forge_nothing() {
    let weir = Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let tier: &[u8] = br#"{"limits": [{"limit": "1/minute"}]}"#;
    for (method, path, body) in [
        ("PUT", "/v1/domains/d/tiers/a%0Ab", tier),
        ("PUT", "/v1/domains/a%1Bb/tiers/free", tier),
        ("PUT", "/v1/switch", br#"{"domain": "a\nb", "switch": "shadow"}"#),
        ("PATCH", "/v1/domains/d/subjects/us%0Aer=u1", br#"{"multiplier": 2}"#),
        ("POST", "/v1/records", br#"{"force": true, "subjects": [{"domain": "d", "subject": "user=u1", "tier": "a\u202eb"}]}"#),
    ] {
        let answer = http::send(weir.admin, method, path, &[("content-type", b"application/json")], body).await.expect("an answer");
        assert!(answer.status == 400 && answer.body.contains("control character"), "{path}: {} {}", answer.status, answer.body);
    }
    let path = "/v1/domains/d/subjects/user=a%0Ab";
    let answer = http::send(weir.admin, "PATCH", path, &[("content-type", b"application/json")], br#"{"multiplier": 2}"#).await;
    let answer = answer.expect("an answer");
    assert!(answer.status == 200 && answer.body.contains("user=a%0Ab"), "a caller may be called so: {}", answer.body);
    let log = weir.log();
    let audits: Vec<&str> = log.lines().filter(|line| line.contains("audit:")).collect();
    assert!(!log.contains('\u{1b}') && !audits.is_empty() && audits.iter().all(|line| line.starts_with("20")), "{log}");
}

/// `weir check` of a file with this text.
fn check(text: &str) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("rules.yaml");
    fs::write(&path, text).expect("the directory is writable");
    // A bound of the system: what needs more than half a gigabyte fails.
    let command = format!("ulimit -v 1000000; exec {} check --color never {}", env!("CARGO_BIN_EXE_weir"), path.display());
    Command::new("sh").args(["-c", &command]).output().expect("weir runs")
}

#[test]
fn a_check_is_bounded_in_memory_and_words() {
    let aliases: String = (1..100_000).map(|number| format!("  - {{<<: *m, key: k{number}}}\n")).collect();
    let aliases =
        format!("domain: d\ndescriptors:\n  - &m {{key: k0, rate_limit: {{unit: second, requests_per_unit: 1}}}}\n{aliases}");
    assert_eq!(String::from_utf8_lossy(&check(&aliases).stdout), "100000 rules, 0 tests: all is well\n");
    for (text, words) in [
        ("domain: d\n".repeat(50_000), "rules.yaml: error: and 49899 more errors"),
        ("---\nx: 1\n".repeat(100_001), "the file has more than 100000 documents"),
        (format!("domain: d\ndescriptors: {}", "[".repeat(1_000_000)), "inside each other more than 128 deep"),
        (format!("domain: {}", "x".repeat(33 << 20)), "it is larger than 32 MiB"),
    ] {
        let Output { status, stdout, stderr } = check(&text);
        let stdout = String::from_utf8_lossy(&stdout);
        assert!(status.code() == Some(1) && stdout.contains(words), "{words}: {status}, {}", String::from_utf8_lossy(&stderr));
        assert!(stdout.len() < 100_000 && stdout.matches(": error: ").count() <= 101, "{words}");
    }
}
