//! What the pages and the server itself tell a newcomer to type works as it stands there.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value;
use support::eventually;
use support::http::{self, Answer};
use support::weir::{Settings, Weir};

/// Every example of a first decision is refused after fewer calls than this.
const REPETITIONS: usize = 10;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join(directory)).expect("the directory is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

/// The server as `cargo run` starts it: the rules of `config/rules`, in memory.
async fn started() -> Weir {
    let name = |path: &Path| path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let rules = files("config/rules", "yaml");
    rules.iter().fold(Settings::without_rules(), |settings, path| settings.file(&name(path), &read(path))).start().await
}

/// The bodies of the calls by `curl` in a text.
fn curl_calls(text: &str) -> Vec<String> {
    let call = Regex::new(r"curl -s (?:localhost|127.0.0.1):\d+/json -d '([^']+)'").expect("compiles");
    call.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

async fn ask(weir: &Weir, body: &str) -> Answer {
    http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await.expect("an answer")
}

async fn assert_limited(weir: &Weir, call: &str) {
    let first = ask(weir, call).await;
    assert_eq!(first.status, 200, "{call}: {first:?}");
    let answer: Value = serde_json::from_str(&first.body).expect("JSON");
    assert!(answer["statuses"][0]["currentLimit"].is_object(), "{call} meets no limit: {answer}");
}

#[tokio::test]
async fn what_the_server_prints_is_a_first_decision() {
    let weir = started().await;
    eventually("a call to paste", async || weir.log().contains("grpcurl ")).await;
    let said = weir.log();
    let calls = curl_calls(&said);
    assert_eq!(calls.len(), 1, "{said}");
    assert!(said.contains(&format!("curl -s 127.0.0.1:{}/json", weir.http)), "{said}");
    assert_limited(&weir, &calls[0]).await;
    let grpcurl =
        format!("grpcurl -plaintext -d '{}' 127.0.0.1:{} {}/ShouldRateLimit", calls[0], weir.grpc, support::weir::SERVICE);
    assert!(said.contains(&grpcurl), "{said}");
}

#[tokio::test]
async fn the_calls_on_the_first_page_are_allowed_and_then_refused() {
    let weir = started().await;
    let readme = read(&project().join("README.md"));
    let examples: String = files("config/rules", "yaml").iter().map(|path| read(path)).collect();
    let calls: BTreeSet<String> = curl_calls(&readme).into_iter().chain(curl_calls(&examples)).collect();
    assert!(!curl_calls(&readme).is_empty(), "the first page has a call to paste");
    for call in calls {
        assert_limited(&weir, &call).await;
        let mut statuses = Vec::new();
        for _ in 0..REPETITIONS {
            statuses.push(ask(&weir, &call).await.status);
        }
        assert!(statuses.contains(&429), "{call}: {statuses:?}");
    }
}

/// What a scrape declares. In Prometheus text, that is how samples are named.
fn scraped(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, _)| name.to_owned()).collect()
}

#[tokio::test]
async fn the_page_lists_the_metrics_of_a_scrape() {
    let weir = started().await;
    let scrape = http::get(weir.admin, "/metrics").await.expect("a scrape").body;
    let page = read(&project().join("docs/settings.md"));
    let metric = Regex::new(r"`(weir_[a-z_]+)`").expect("compiles");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `weir_").map(|_| line.split('|').nth(1).unwrap_or_default()));
    let listed: BTreeSet<String> = cells.flat_map(|cell| metric.captures_iter(cell).map(|found| found[1].to_owned())).collect();
    assert_eq!(listed, scraped(&scrape));
}

/// The fenced blocks of one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let block = Regex::new(&format!(r"(?s)```{language}\n(.*?)```")).expect("compiles");
    block.captures_iter(page).map(|found| found[1].to_owned()).collect()
}

/// The commands of shell blocks, a continued line as one, without comments.
fn commands(page: &str) -> Vec<String> {
    let blocks = blocks(page, "sh").into_iter().map(|block| block.replace("\\\n", " "));
    blocks
        .flat_map(|block| {
            block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

fn help(arguments: &[&str]) -> String {
    let said = Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).arg("--help").output().expect("weir runs");
    assert!(said.status.success(), "weir {} --help: {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).expect("help is UTF-8")
}

#[test]
fn commands_on_the_pages_exist() {
    let mut pages = files("docs", "md");
    pages.push(project().join("README.md"));
    let flag = Regex::new(r"(?:^|\s)(--[a-z][a-z-]+)").expect("compiles");
    let mut seen = 0;
    for page in pages {
        for command in commands(&read(&page)) {
            let words: Vec<&str> = command.split_whitespace().collect();
            // `cargo run … -- serve` is `weir serve` too.
            let arguments = match words.as_slice() {
                ["weir", arguments @ ..] => arguments,
                ["cargo", "run", rest @ ..] => rest.split(|&word| word == "--").nth(1).unwrap_or_default(),
                [script, ..] if script.starts_with("scripts/") => {
                    assert!(project().join(script).is_file(), "{}: {command}", page.display());
                    continue;
                }
                _ => continue,
            };
            let subcommand = arguments.first().filter(|first| !first.starts_with('-')).unwrap_or(&"serve");
            let known = help(&[subcommand]);
            for used in flag.captures_iter(&arguments.join(" ")) {
                assert!(known.contains(&used[1]), "{}: {command}: no flag {}", page.display(), &used[1]);
            }
            seen += 1;
        }
    }
    assert!(seen > 0, "no page shows a command");
}

/// Runs a program in a directory, with the Python packages that the page has you install.
fn run(program: &mut Command, directory: &Path) -> String {
    let packages = Command::new(project().join("scripts/python-grpc")).output().expect("the script runs");
    let path = String::from_utf8(packages.stdout).expect("a path");
    let path = format!("{}:{}", path.trim(), directory.display());
    let output = program.current_dir(directory).env("PYTHONPATH", path).output().expect("the program runs");
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test]
async fn the_python_example_reserves_and_commits() {
    let page = read(&project().join("docs/reservations.md"));
    let rules = read(&project().join("config/examples/token-budget.yaml"));
    let weir = Settings::with_rules(&rules).start().await;
    let directory = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(project().join("proto"), directory.path().join("proto")).expect("a link");
    let generate = commands(&page).into_iter().find(|command| command.contains("grpc_tools.protoc"));
    run(Command::new("sh").args(["-c", &generate.expect("the page generates stubs")]), directory.path());
    let [example] = &blocks(&page, "python")[..] else { panic!("the page has one example") };
    let address = format!("127.0.0.1:{}", weir.grpc);
    let printed = run(Command::new("python3").args(["-c", example, &address]), directory.path());
    assert_eq!(printed, "HOW HIGH IS THE WEIR?\n");
    // 1,250 tokens and one for this call; a little less when the sliding window has moved on meanwhile.
    let look = support::weir::request("tokens", &[&[("user_id", "ann")]]);
    let left = support::weir::ask(&mut weir.client().await, look).await.statuses[0].limit_remaining;
    assert!((18_700..18_800).contains(&left), "{left} left");
}
