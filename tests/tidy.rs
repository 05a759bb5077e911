//! What a reviewer should not have to look for: which module may use which, sizes, leftovers, links that lead nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// What each module may use of the others; the rest of the crate is out of its reach.
const ARROWS: [(&str, &[&str]); 19] = [
    ("spelling", &[]),
    ("shown", &[]),
    ("regular_file", &[]),
    ("message_json", &["spelling"]),
    ("limit", &[]),
    ("rules", &["limit", "shown"]),
    ("config", &["limit", "rules", "spelling", "regular_file", "shown"]),
    ("store", &["limit", "rules", "telemetry", "regular_file", "shown"]),
    ("limiter", &["limit", "rules", "store", "telemetry"]),
    ("transport", &["telemetry"]),
    ("api", &["limit", "rules", "store", "limiter", "telemetry", "spelling", "transport", "http_request"]),
    (
        "admin",
        &[
            "limit",
            "rules",
            "config",
            "store",
            "limiter",
            "telemetry",
            "reflection",
            "grpc_request",
            "http_request",
            "message_json",
            "spelling",
            "transport",
            "regular_file",
            "shown",
        ],
    ),
    ("telemetry", &["shown", "http_request"]),
    ("reflection", &[]),
    ("grpc_request", &[]),
    ("http_request", &[]),
    ("settings", &["limit", "rules", "config", "store", "api", "admin", "regular_file"]),
    (
        "server",
        &[
            "limit",
            "rules",
            "config",
            "store",
            "limiter",
            "telemetry",
            "api",
            "admin",
            "settings",
            "reflection",
            "grpc_request",
            "transport",
        ],
    ),
    (
        "cli",
        &[
            "limit",
            "rules",
            "config",
            "store",
            "limiter",
            "telemetry",
            "api",
            "admin",
            "settings",
            "server",
            "regular_file",
            "shown",
        ],
    ),
];

/// What a module may not mention, as regular expressions: what decides is pure, and only the edge knows the protocol.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("limit", &["tokio", "serde", "tracing", "std::time", r"\bf32\b", r"\bf64\b", "std::fs", "std::net", "prost", "tonic"]),
    ("rules", &["tokio", "tracing", "std::time", r"\bf32\b", r"\bf64\b", "std::fs", "std::net::Tcp", "prost", "tonic"]),
    ("config", &["prost", "tonic", r"\bproto::"]),
    ("store", &["prost", "tonic", r"\bproto::", "axum"]),
    ("limiter", &["prost", "tonic", r"\bproto::", "axum"]),
    ("telemetry", &[r"\bproto::"]),
];

const MAX_LINES: usize = 500;
const MAX_MAIN_LINES: usize = 40;

struct Source {
    /// Relative to the project.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module of a file under `src`.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// Without its tests, which stand at the end, and without comments.
    fn code(&self) -> String {
        let code = self.text.split("#[cfg(test)]").next().unwrap_or_default();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    }
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files at or below these places, where they exist, whose names end so.
fn files(places: &[&str], ends: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = places.iter().map(|place| project().join(place)).filter(|path| path.exists()).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).expect("a directory can be read").map(|entry| entry.expect("an entry").path()));
        } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            let path = path.strip_prefix(project()).expect("it is in the project").to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn sources() -> Vec<Source> {
    files(&["src"], &[".rs"])
}

fn assert_none(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

/// `file:line: text` of every line that matches.
fn lines_matching(path: &str, text: &str, expression: &Regex) -> Vec<String> {
    let lines = text.lines().enumerate().filter(|(_, line)| expression.is_match(line));
    lines.map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim())).collect()
}

fn modules_used(code: &str) -> BTreeSet<String> {
    let one = Regex::new(r"\bcrate::(\w+)").expect("compiles");
    let several = Regex::new(r"\bcrate::\{([^;]*)\};").expect("compiles");
    let mut used: BTreeSet<String> = one.captures_iter(code).map(|found| found[1].to_owned()).collect();
    for list in several.captures_iter(code) {
        let mut depth = 0;
        let top: String = list[1]
            .chars()
            .filter(|&c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth == 0 && c != '}'
            })
            .collect();
        used.extend(top.split(',').filter_map(|item| item.trim().split("::").next()).map(str::to_owned));
    }
    used
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut findings = Vec::new();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(module, _)| *module).collect();
    for source in sources() {
        let module = source.module();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            findings.push(format!("{}: the module {module} has no place among the arrows", source.path));
            continue;
        };
        let used = modules_used(&source.code());
        let wrong =
            used.iter().filter(|used| known.contains(used.as_str()) && *used != module && !allowed.contains(&used.as_str()));
        findings.extend(wrong.map(|wrong| format!("{}: {module} may not use {wrong}", source.path)));
    }
    assert_none("arrows turned round", &findings);
}

#[test]
fn grouped_imports_are_seen() {
    let used = modules_used("use crate::{limit::{Limit, Micros}, rules};\nfn f() { crate::store::g() }");
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["limit", "rules", "store"]);
}

#[test]
fn what_decides_is_pure_and_only_the_edge_knows_the_protocol() {
    let mut findings = Vec::new();
    for source in sources() {
        for (_, words) in FORBIDDEN.iter().filter(|(module, _)| *module == source.module()) {
            for word in *words {
                let expression = Regex::new(word).expect("compiles");
                findings.extend(lines_matching(&source.path, &source.code(), &expression));
            }
        }
    }
    assert_none("not for this module", &findings);
}

#[test]
fn files_are_of_a_readable_size() {
    let mut findings = Vec::new();
    for source in files(&["src", "tests", "benches", "build.rs"], &[".rs", ".lua"]) {
        let lines = source.text.lines().count();
        let most = if source.path == "src/main.rs" { MAX_MAIN_LINES } else { MAX_LINES };
        if lines > most {
            findings.push(format!("{}: {lines} lines, at most {most}", source.path));
        }
    }
    assert_none("what is the second thing in each of these files?", &findings);
}

#[test]
fn modules_say_what_they_are() {
    let silent =
        files(&["src", "tests", "benches", "build.rs"], &[".rs"]).into_iter().filter(|source| !source.text.starts_with("//!"));
    let silent: Vec<String> = silent.map(|source| source.path).collect();
    assert_none("files without a word about themselves", &silent);
}

#[test]
fn nothing_is_left_unfinished() {
    // Written so that this file does not find itself.
    let expression = Regex::new(r"todo[!]|unimplemented[!]|dbg[!]|#\[ignor[e]|FIXM[E]|\bXX[X]\b|\bTOD[O]\b").expect("compiles");
    let sources = files(&["src", "tests", "benches", "build.rs", "scripts"], &[""]);
    let findings: Vec<String> = sources.iter().flat_map(|source| lines_matching(&source.path, &source.text, &expression)).collect();
    assert_none("left unfinished", &findings);
}

#[test]
fn nothing_unwraps_in_what_serves() {
    let expression = Regex::new(r"\.unwrap\(\)|\.unwrap_err\(\)").expect("compiles");
    let findings: Vec<String> =
        sources().iter().flat_map(|source| lines_matching(&source.path, &source.code(), &expression)).collect();
    assert_none("say why it holds, by `expect`, or handle it", &findings);
}

#[test]
fn tests_wait_for_conditions() {
    let expression = Regex::new(r"\bthread::slee[p]|^\s*slee[p]\(|\btime::slee[p]\(").expect("compiles");
    let sources = files(&["tests"], &[".rs"]);
    let findings: Vec<String> = sources.iter().flat_map(|source| lines_matching(&source.path, &source.text, &expression)).collect();
    // One place may: where conditions are looked at again and again.
    let findings: Vec<String> = findings.into_iter().filter(|found| !found.contains("(INTERVAL)")).collect();
    assert_none("sleeps", &findings);
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let expression = Regex::new(r"/wor[k]/|/tm[p]/[a-z]|\bthis sessio[n]\b|\bCo-[Aa]uthored").expect("compiles");
    let places = ["src", "tests", "benches", "docs", "config", "scripts", "proto", ".ci", "build.rs", "Cargo.toml", "deny.toml"];
    let pages = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "clippy.toml"];
    let here = [places.as_slice(), pages.as_slice()].concat();
    let texts = [".rs", ".lua", ".md", ".yaml", ".toml", ".json", ".proto", ".svg", "scripts/test", ".ci/run"];
    let findings: Vec<String> =
        files(&here, &texts).iter().flat_map(|source| lines_matching(&source.path, &source.text, &expression)).collect();
    assert_none("words and paths that do not belong here", &findings);
}

#[test]
fn links_between_pages_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#\s]+)(#[^)]*)?\)").expect("compiles");
    let pages = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "docs", "config"];
    let mut findings = Vec::new();
    for page in files(&pages, &[".md"]) {
        let directory = project().join(&page.path).parent().expect("a file is in a directory").to_path_buf();
        for found in link.captures_iter(&page.text) {
            let target = &found[1];
            if !target.contains("://") && !target.starts_with("mailto:") && !directory.join(target).exists() {
                findings.push(format!("{}: {target}", page.path));
            }
        }
    }
    assert_none("links to nothing", &findings);
}
