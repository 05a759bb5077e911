//! A server's life: start, reload while it serves, drain. Every test runs the real binary.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use support::http;
use support::redis::RedisServer;
use support::weir::{Settings, Weir, ask, request};
use support::{eventually, free_port};
use tonic_health::pb::health_check_response::ServingStatus;
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitResponse;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;

fn rules(limit: u32) -> String {
    format!("domain: d\ndescriptors:\n  - {{key: user, rate_limit: {{unit: day, requests_per_unit: {limit}}}}}\n")
}

/// Asks about one user.
async fn ask_about(weir: &Weir, user: &str) -> RateLimitResponse {
    ask(&mut weir.client().await, request("d", &[&[("user", user)]])).await
}

/// The limit in force, seen without counting.
async fn limit(weir: &Weir) -> Option<u32> {
    let mut look = request("d", &[&[("user", "someone else")]]);
    look.descriptors[0].hits_addend = Some(0);
    let answer = weir.client().await.should_rate_limit(look).await.ok()?.into_inner();
    Some(answer.statuses[0].current_limit.as_ref()?.requests_per_unit)
}

/// Waits until this limit is in force.
async fn comes_into_force(weir: &Weir, expected: u32) {
    eventually(&format!("a limit of {expected}"), async || limit(weir).await == Some(expected)).await;
}

/// Writes beside and renames, as careful editors do.
fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("the directory is writable");
    fs::rename(&beside, file).expect("a file can be renamed");
}

#[tokio::test]
async fn edits_in_place_and_renames_come_into_force_and_counters_survive() {
    let weir = Settings::with_rules(&rules(10)).start().await;
    for _ in 0..4 {
        assert_eq!(ask_about(&weir, "u").await.overall_code(), Code::Ok);
    }
    fs::write(weir.rules_file(), rules(6)).expect("the file is writable");
    comes_into_force(&weir, 6).await;
    assert_eq!(ask_about(&weir, "u").await.statuses[0].limit_remaining, 1);
    replace(&weir.rules_file(), &rules(3));
    comes_into_force(&weir, 3).await;
    let answer = ask_about(&weir, "u").await;
    assert_eq!((answer.overall_code(), answer.statuses[0].limit_remaining), (Code::OverLimit, 0));
    replace(&weir.rules_file(), &rules(20));
    comes_into_force(&weir, 20).await;
    assert_eq!(ask_about(&weir, "u").await.statuses[0].limit_remaining, 14);
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_over_many_swaps() {
    let weir = Settings::without_rules().launch().await;
    let directory = weir.rules();
    // As the kubelet does: files are links into `..data`, which is a link to the newest directory, swapped by a rename.
    let swap = |number: u32| {
        let version = format!("..version_{number}");
        fs::create_dir(directory.join(&version)).expect("the directory is writable");
        fs::write(directory.join(&version).join("rules.yaml"), rules(number)).expect("the directory is writable");
        std::os::unix::fs::symlink(&version, directory.join("..data_tmp")).expect("a link can be made");
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("a link can be renamed");
        if number > 1 {
            fs::remove_dir_all(directory.join(format!("..version_{}", number - 1))).expect("the old version can go");
        }
    };
    swap(1);
    std::os::unix::fs::symlink("..data/rules.yaml", directory.join("rules.yaml")).expect("a link can be made");
    comes_into_force(&weir, 1).await;
    for number in 2..6 {
        swap(number);
        comes_into_force(&weir, number).await;
    }
    let log = weir.log();
    assert!(!log.contains("watch") && !log.contains("WARN"), "nothing that reads like a fault: {log}");
}

#[tokio::test]
async fn a_bad_torn_or_vanished_file_keeps_the_rules() {
    let weir = Settings::with_rules(&rules(5)).file("other.yaml", "domain: other\ndescriptors: []\n").start().await;
    let torn = &rules(7)[..40];
    for bad in ["domain: d\ndescriptors: [{key: user, rate_limit: {unit: fortnight}}]\n", torn, ""] {
        fs::write(weir.rules_file(), bad).expect("the file is writable");
        // What is written to the other file is read at the same time.
        let seen = weir.log().len();
        weir.signal("HUP");
        eventually("a word about the bad file", async || weir.log()[seen..].contains("rules.yaml")).await;
        assert_eq!(limit(&weir).await, Some(5), "after {bad:?}");
        assert!(weir.is_healthy().await);
    }
    let seen = weir.log().len();
    fs::remove_file(weir.rules_file()).expect("the file can be removed");
    weir.signal("HUP");
    eventually("a word about the domain that is gone", async || weir.log()[seen..].contains("domain `d`")).await;
    assert_eq!(limit(&weir).await, Some(5));
    fs::write(weir.rules_file(), rules(8)).expect("the directory is writable");
    comes_into_force(&weir, 8).await;
}

#[tokio::test]
async fn a_bad_file_does_not_hold_up_the_others() {
    let other = |limit| rules(limit).replace("domain: d", "domain: other");
    let weir = Settings::with_rules(&rules(5)).file("other.yaml", &other(1)).start().await;
    fs::write(weir.rules().join("other.yaml"), "domain: other\ndescriptors: 7\n").expect("the file is writable");
    fs::write(weir.rules_file(), rules(6)).expect("the file is writable");
    comes_into_force(&weir, 6).await;
    let answer = ask(&mut weir.client().await, request("other", &[&[("user", "u")]])).await;
    assert_eq!(answer.statuses[0].current_limit.as_ref().expect("its old rules").requests_per_unit, 1);
}

#[tokio::test]
async fn a_domain_goes_when_it_is_emptied_on_purpose() {
    let weir = Settings::with_rules(&rules(5)).start().await;
    fs::write(weir.rules_file(), "domain: d\ndescriptors: []\n").expect("the file is writable");
    eventually("no limit", async || limit(&weir).await.is_none()).await;
    assert_eq!(ask_about(&weir, "u").await.overall_code(), Code::Ok);
}

#[tokio::test]
async fn sighup_reloads() {
    let weir = Settings::with_rules(&rules(5)).start().await;
    fs::write(weir.rules_file(), rules(6)).expect("the file is writable");
    weir.signal("HUP");
    comes_into_force(&weir, 6).await;
}

#[tokio::test]
async fn without_good_rules_it_is_up_and_unavailable_until_they_are_mended() {
    let weir = Settings::with_rules("domain: d\ndescriptors: [{keys: user}]\n")
        .file("good.yaml", "domain: good\ndescriptors: []\n")
        .launch()
        .await;
    assert!(!weir.is_healthy().await);
    assert_eq!(weir.health().await, Some(ServingStatus::NotServing));
    for domain in ["d", "good"] {
        let answer = weir.client().await.should_rate_limit(request(domain, &[&[("user", "u")]])).await;
        let status = answer.expect_err("no rules, no decision");
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "no rate limit configuration loaded"));
    }
    assert!(weir.log().contains("rules.yaml:2"), "{}", weir.log());
    fs::write(weir.rules_file(), rules(5)).expect("the file is writable");
    comes_into_force(&weir, 5).await;
    eventually("health", async || weir.is_healthy().await && weir.health().await == Some(ServingStatus::Serving)).await;
}

#[tokio::test]
async fn an_empty_directory_is_no_reason_to_let_everybody_pass() {
    let weir = Settings::without_rules().launch().await;
    assert!(!weir.is_healthy().await);
    let answer = weir.client().await.should_rate_limit(request("d", &[&[("user", "u")]])).await;
    assert_eq!(answer.expect_err("no rules, no decision").code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has a free port");
    let address = taken.local_addr().expect("a bound socket has an address");
    for place in 0..3 {
        let mut ports = [free_port(), free_port(), free_port()];
        ports[place] = address.port();
        let said = Settings::with_rules(&rules(5)).fail(ports).await;
        assert!(said.contains(&address.to_string()) && said.contains("in use"), "{said}");
    }
}

#[tokio::test]
async fn sigterm_drains() {
    // The second request of a queue is held back for three seconds.
    let held = "  - {key: queue, rate_limit: {window: 3s, requests: 1, burst: 5, algorithm: leaky_bucket, max_wait: 20s}}\n";
    let mut weir = Settings::with_rules(&(rules(5) + held)).start().await;
    let mut client = weir.client().await;
    ask(&mut client, request("d", &[&[("queue", "q")]])).await;
    let mut same_connection = client.clone();
    let mut under_way = Box::pin(client.should_rate_limit(request("d", &[&[("queue", "q")]])));
    // What comes later on the same connection is answered first.
    tokio::select! {
        biased;
        early = &mut under_way => panic!("not held back: {early:?}"),
        _ = ask(&mut same_connection, request("d", &[&[("user", "u")]])) => {}
    }
    weir.signal("TERM");
    let says_so = eventually("health that says so", async || weir.health().await == Some(ServingStatus::NotServing));
    tokio::select! {
        biased;
        early = &mut under_way => panic!("health has not been told before the calls ended: {early:?}"),
        () = says_so => {}
    }
    assert!(!weir.is_healthy().await);
    assert_eq!(ask(&mut same_connection, request("d", &[&[("user", "u")]])).await.statuses[0].limit_remaining, 3);
    let answer = under_way.await.expect("a call under way is answered").into_inner();
    assert_eq!(answer.overall_code(), Code::Ok);
    eventually("the end", async || weir.ended().is_some()).await;
    assert!(weir.ended().is_some_and(|status| status.success()), "{}", weir.log());
}

#[tokio::test]
async fn sigterm_ends_a_server_whose_redis_hangs() {
    let redis = RedisServer::start();
    let mut weir = Settings::with_rules(&rules(5)).redis(&redis.url()).start().await;
    redis.pause();
    weir.signal("TERM");
    eventually("the end", async || weir.ended().is_some()).await;
    redis.resume();
}

/// Rules with a queue whose second request is held back.
fn with_queue(window: &str) -> String {
    let held = format!("{{window: {window}, requests: 1, burst: 5, algorithm: leaky_bucket, max_wait: 1h}}");
    rules(5) + &format!("  - {{key: queue, rate_limit: {held}}}\n")
}

/// A call that is held back, on a connection of its own; it is under way when this returns.
async fn held(weir: &Weir) -> tokio::task::JoinHandle<Result<RateLimitResponse, tonic::Status>> {
    let mut client = weir.client().await;
    let mut same_connection = client.clone();
    ask(&mut client, request("d", &[&[("queue", "q")]])).await;
    let under_way = tokio::spawn(async move {
        let answer = client.should_rate_limit(request("d", &[&[("queue", "q")]])).await;
        answer.map(tonic::Response::into_inner)
    });
    // What is counted here was sent after that call, over the same connection.
    let mut look = request("d", &[&[("queue", "q")]]);
    look.descriptors[0].hits_addend = Some(0);
    eventually("a call under way", async || ask(&mut same_connection, look.clone()).await.statuses[0].limit_remaining < 4).await;
    under_way
}

async fn exit_code(weir: &mut Weir) -> Option<i32> {
    eventually("the end", async || weir.ended().is_some()).await;
    weir.ended().and_then(|status| status.code())
}

#[tokio::test]
async fn ctrl_c_ends_at_once_where_no_call_is_under_way() {
    // The delay is longer than anything is waited for.
    let mut weir = Settings::with_rules(&rules(5)).flag("--drain-delay", "1h").start().await;
    let mut idle = weir.client().await;
    ask(&mut idle, request("d", &[&[("user", "u")]])).await;
    let silent = tokio::net::TcpStream::connect(("127.0.0.1", weir.grpc)).await.expect("weir listens");
    weir.signal("INT");
    assert_eq!(exit_code(&mut weir).await, Some(0), "{}", weir.log());
    let log = weir.log();
    assert!(log.contains("stopping") && log.contains("stopped"), "{log}");
    drop((idle, silent));
}

#[tokio::test]
async fn ctrl_c_drains_calls_under_way_and_says_so() {
    let mut weir = Settings::with_rules(&with_queue("10s")).flag("--drain-delay", "1h").start().await;
    let under_way = held(&weir).await;
    weir.signal("INT");
    eventually("a word about the drain", async || weir.log().contains("a second Ctrl-C or SIGTERM ends weir now")).await;
    let answer = under_way.await.expect("no panic").expect("a call under way is answered");
    assert_eq!(answer.overall_code(), Code::Ok);
    assert_eq!(exit_code(&mut weir).await, Some(0), "{}", weir.log());
}

#[tokio::test]
async fn a_second_signal_of_either_kind_ends_at_once() {
    for (first, second, code) in [("INT", "INT", 130), ("INT", "TERM", 143), ("TERM", "TERM", 143), ("TERM", "INT", 130)] {
        let settings = Settings::with_rules(&with_queue("1h")).flag("--drain-delay", "1h").flag("--log-level", "debug");
        let mut weir = settings.start().await;
        let under_way = held(&weir).await;
        weir.signal(first);
        let word = if first == "INT" { "draining" } else { "stopping" };
        eventually("a word about the first", async || weir.log().contains(word)).await;
        weir.signal(second);
        assert_eq!(exit_code(&mut weir).await, Some(code), "{first}, {second}: {}", weir.log());
        assert!(under_way.await.expect("no panic").is_err(), "the call is cut");
        assert!(!weir.log().contains("grace period"), "nothing is waited for: {}", weir.log());
    }
}

#[tokio::test]
async fn all_that_a_server_prints_is_json_where_logs_are() {
    let mut weir = Settings::with_rules(&rules(5)).flag("--log-format", "json").flag("--drain-delay", "0s").start().await;
    ask(&mut weir.client().await, request("unknown", &[&[("user", "u")]])).await;
    weir.signal("TERM");
    assert_eq!(exit_code(&mut weir).await, Some(0), "{}", weir.log());
    let log = weir.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let started: Vec<_> = lines.iter().filter(|line| line["message"] == "weir has started").collect();
    assert_eq!(started.len(), 1, "{log}");
    assert_eq!(started[0]["grpc"], format!("127.0.0.1:{}", weir.grpc));
    for line in &lines {
        let timestamp = line["timestamp"].as_str().expect("every line has a time");
        assert!(timestamp.len() == "2026-11-30T18:08:03.123Z".len() && timestamp.ends_with('Z'), "{timestamp}");
    }
}

#[tokio::test]
async fn a_failed_reload_says_what_failed_and_what_stays() {
    let other = "domain: other\ndescriptors:\n  - {key: user, limits: 1/second}\n";
    let weir = Settings::with_rules(&rules(5)).file("other.yaml", other).start().await;
    replace(&weir.rules_file(), "domain: d\ndescriptors:\n  - {kei: user}\n");
    eventually("a failed reload", async || weir.log().contains("the reload failed")).await;
    let log = weir.log();
    let said = log.lines().find(|line| line.contains("the reload failed")).expect("it is there");
    for part in ["problems=1", "rules.yaml", "kept=\"d\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(log.matches("rules are in force").count(), 1, "only at the start: {log}");
    assert!(!log.contains("nothing changed"), "{log}");
    assert_eq!(limit(&weir).await, Some(5));
}

#[tokio::test]
async fn a_removed_file_removes_its_domain_with_a_word_and_a_number() {
    let other = "domain: other\ndescriptors:\n  - {key: user, limits: 1/second}\n";
    let weir = Settings::with_rules(&rules(5)).file("other.yaml", other).start().await;
    fs::remove_file(weir.rules().join("other.yaml")).expect("the file is there");
    eventually("a warning", async || weir.log().contains("domain `other` is in no file any more")).await;
    let removed = "weir_config_removed_domains_total 1";
    eventually("the second reading", async || {
        http::get(weir.admin, "/metrics").await.is_some_and(|answer| answer.body.contains(removed))
    })
    .await;
    let answer = ask(&mut weir.client().await, request("other", &[&[("user", "u")]])).await;
    assert!(answer.statuses[0].current_limit.is_none(), "{answer:?}");
    assert_eq!(limit(&weir).await, Some(5), "the other domain stays");
    assert!(weir.log().contains("domain removed: no file has it any more"), "{}", weir.log());
}
