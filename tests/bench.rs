//! `weir bench` against servers of every kind: what it sends is answered and counted, and it always comes to an end.

#[path = "support/in_process.rs"]
mod in_process;

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use clap::Parser;
use in_process::settings;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use weir::cli::bench::{BenchArgs, Report, measure};
use weir::server::Server;
use weir::settings::Settings;

const RULES: &str = "\
domain: shop
descriptors:
  - {key: user, rate_limit: {unit: hour, requests_per_unit: 4000000000}}
  - {key: scarce, rate_limit: {unit: year, requests_per_unit: 7}}
";

#[derive(Parser)]
struct Bench {
    #[command(flatten)]
    args: BenchArgs,
}

/// Runs the load generator against an address.
async fn bench(target: SocketAddr, flags: &'static str) -> anyhow::Result<Report> {
    let target = target.to_string();
    let typed = ["bench", "--target", &target].into_iter().chain(flags.split_whitespace());
    let args = Bench::try_parse_from(typed).expect("the flags are good").args;
    spawn_blocking(move || measure(&args)).await.expect("it does not panic")
}

/// A server with these rules, loaded.
async fn server() -> (Server, tempfile::TempDir) {
    server_with(|_| {}).await
}

async fn server_with(change: impl FnOnce(&mut Settings)) -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("rules.yaml"), RULES).expect("written");
    let mut settings = settings(directory.path());
    change(&mut settings);
    let server = Server::start(settings).await.expect("a server");
    (server, directory)
}

#[tokio::test]
async fn a_closed_loop_counts_answers_latencies_and_cpu() {
    let (server, _rules) = server().await;
    let flags = "--domain shop --descriptor user=u{},other=x --descriptor user=u{} --keys 100 --draw zipf \
                 --connections 2 --in-flight 3 --threads 2 --warmup 50ms --duration 500ms --timeout 5s";
    let report = bench(server.addresses.grpc, flags).await.unwrap();
    server.stop().await;
    assert!(report.answers > 0 && report.rate > 0.0);
    assert_eq!(report.grpc_status.get("OK"), Some(&report.answers));
    assert_eq!(report.overall_code.get("OK"), Some(&report.answers));
    assert!(report.errors.is_empty() && report.unsent == 0 && report.unanswered == 0, "{report}");
    let latency = report.latency_us.expect("calls were decided");
    assert!(latency.p50 > 0.0 && latency.p50 <= latency.max, "{report}");
    assert_eq!(report.met_no_rule, 0, "a descriptor of each call has a rule");
    let cpu = report.server.expect("the server is this very process");
    assert_eq!(cpu.pid, Some(std::process::id()));
    assert!(cpu.us_per_decision > 0.0 && cpu.threads.iter().any(|thread| thread.name.starts_with("weir-")), "{cpu:?}");
    assert!(report.loader.threads.iter().any(|thread| thread.name == "load-1"), "{:?}", report.loader);
}

#[tokio::test]
async fn hits_and_refusals_are_told_apart() {
    let (server, _rules) = server().await;
    let flags = "--domain shop --descriptor scarce=one --hits 2 --connections 1 --in-flight 1 --warmup 0s --duration 500ms";
    let report = bench(server.addresses.grpc, flags).await.unwrap();
    server.stop().await;
    assert_eq!(report.overall_code.get("OK"), Some(&3), "{report}");
    assert_eq!(report.overall_code.get("OVER_LIMIT"), Some(&(report.answers - 3)));
}

#[tokio::test]
async fn an_open_loop_sends_what_is_due_and_no_more() {
    let (server, _rules) = server().await;
    let report = bench(server.addresses.grpc, "--domain shop --descriptor user=u --rate 600 --warmup 0s --duration 500ms").await;
    server.stop().await;
    let report = report.unwrap();
    assert!((1..=300).contains(&(report.answers + report.unsent)), "{report}");
    assert!(report.errors.is_empty(), "{report}");
}

#[tokio::test]
async fn answers_that_are_no_decision_are_named() {
    let server = Server::start(settings("no/such/directory")).await.unwrap();
    let report = bench(server.addresses.grpc, "--domain shop --descriptor user=u --in-flight 1 --warmup 0s --duration 500ms").await;
    server.stop().await;
    let report = report.unwrap();
    assert_eq!(report.grpc_status.keys().collect::<Vec<_>>(), ["UNAVAILABLE"]);
    assert!(report.overall_code.is_empty());
    assert!(report.errors.contains_key("UNAVAILABLE: no rate limit configuration loaded"), "{:?}", report.errors);
    assert!(report.latency_us.is_none() && !report.to_string().contains("latency"), "{report}");
    assert!(report.why_no_decision().starts_with("UNAVAILABLE: no rate limit configuration loaded ("), "{report:?}");
}

#[tokio::test]
async fn calls_that_meet_no_rule_are_counted() {
    let (server, _rules) = server().await;
    for domain in ["shop", "mistyped"] {
        let flags: &'static str = match domain {
            "shop" => "--domain shop --descriptor usr=u --descriptor scarcity=one --in-flight 2 --warmup 0s --duration 500ms",
            _ => "--domain mistyped --descriptor user=u --in-flight 2 --warmup 0s --duration 500ms",
        };
        let report = bench(server.addresses.grpc, flags).await.unwrap();
        assert!(report.answers > 0 && report.met_no_rule == report.answers, "{report}");
        assert!(report.to_string().contains(&format!("{} calls met no rule", report.answers)), "{report}");
    }
    server.stop().await;
}

fn bench_command(target: &str, flags: &[&str]) -> Output {
    let arguments = ["bench", "--target", target, "--domain", "d", "--descriptor", "a=b", "--warmup", "0s", "--duration", "50ms"];
    Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).args(flags).output().expect("weir runs")
}

#[tokio::test]
async fn without_a_decision_the_command_fails_and_says_why() {
    let server = Server::start(settings("no/such/directory")).await.unwrap();
    let target = server.addresses.grpc.to_string();
    for flags in [&[][..], &["--json"]] {
        let target = target.clone();
        let output = spawn_blocking(move || bench_command(&target, flags)).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("decided no call: UNAVAILABLE: no rate limit configuration loaded"), "{said}");
        assert!(!said.contains("quota"), "nothing is spent elsewhere: {said}");
    }
    server.stop().await;
}

/// Nothing is sent to an address that stands for many machines.
#[test]
fn before_it_calls_beyond_loopback_it_says_that_it_spends_quota() {
    let output = bench_command("224.0.0.1:8081", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("224.0.0.1:8081 is not a loopback address") && lines[0].contains("real quota"), "{said}");
    assert!(lines[1].contains("connecting to 224.0.0.1:8081"), "{said}");
}

/// Whoever asks for another connection gets one, and the calls that it did not take.
#[tokio::test]
async fn a_server_that_closes_connections_loses_no_call() {
    let (server, _rules) = server_with(|settings| settings.max_connection_age = Duration::from_millis(50)).await;
    for flags in [
        "--domain shop --descriptor user=u --connections 2 --in-flight 4 --warmup 0s --duration 1s",
        "--domain shop --descriptor user=u --connections 2 --in-flight 4 --warmup 0s --duration 1s --rate 200",
    ] {
        let report = bench(server.addresses.grpc, flags).await.unwrap();
        assert!(report.answers > 0 && report.errors.is_empty() && report.unanswered == 0, "{report}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_never_answers_does_not_hold_it_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = silent.local_addr().unwrap();
    // Keeps every connection open and says nothing.
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            connections.push(connection);
        }
    });
    let report = bench(target, "--domain d --descriptor a=b --connections 1 --in-flight 4 --warmup 0s --duration 50ms").await;
    held.abort();
    let report = report.unwrap();
    assert_eq!((report.answers, report.unanswered), (0, 4), "{report}");
    assert!(report.latency_us.is_none() && !report.to_string().contains("latency"), "{report}");
    assert_eq!(report.why_no_decision(), "no answer (4 calls)");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = bench(gone, "--domain d --descriptor a=b --duration 50ms").await.unwrap_err();
    assert!(format!("{error:#}").contains(&format!("connecting to {gone}")), "{error:#}");
}
