//! Attacks with imports that are long, wrong, or broken off. Its memory does not grow with them, and an
//! import that is not good whole writes nothing.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::beside::ALLOWED;
use crate::support::redis::RedisServer;
use crate::support::weir::{Settings, Weir};
use crate::support::{eventually, http};

const RULES: &str = "domain: d\nsubject: [user]\ndescriptors: [{key: user, name: per-user, limits: [1000000/hour]}]\n";
/// The longest record.
const LONGEST: usize = 64 << 10;
/// The length of an attack.
const LENGTH: usize = 20_000_000;

fn settings() -> Settings {
    Settings::with_rules(RULES).env("WEIR_ADMIN_LOCAL_CHANGES", "true")
}

/// A body that is made while it is sent, in chunks: status and body of the answer, which may come before all is sent.
async fn import(weir: &Weir, query: &str, pieces: impl Iterator<Item = String>) -> (u16, String) {
    let stream = TcpStream::connect(("127.0.0.1", weir.admin)).await.expect("weir listens");
    let (mut receiving, mut sending) = stream.into_split();
    let answer = tokio::spawn(async move {
        let (mut answer, mut piece) = (Vec::new(), [0; 10_000]);
        while let Ok(length @ 1..) = receiving.read(&mut piece).await {
            answer.extend_from_slice(&piece[..length]);
        }
        String::from_utf8(answer).expect("an answer is text")
    });
    let head = format!(
        "POST /v1/records{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    let chunks = pieces.map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len()));
    for text in std::iter::once(head).chain(chunks).chain(["0\r\n\r\n".to_owned()]) {
        if sending.write_all(text.as_bytes()).await.is_err() {
            break;
        }
    }
    let answer = answer.await.expect("no panic");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status.unwrap_or_else(|| panic!("no answer: {answer}")), body)
}

/// The pieces of an import of these records.
fn subjects(records: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let records = records.enumerate().map(|(place, record)| if place == 0 { record } else { format!(",{record}") });
    std::iter::once(r#"{"subjects":["#.to_owned()).chain(records).chain(["]}".to_owned()])
}

fn user(number: usize) -> String {
    json!({"domain": "d", "subject": format!("user=u{number:06}"), "multiplier": 2}).to_string()
}

/// How many subjects weir knows.
async fn known(weir: &Weir) -> usize {
    let (mut token, mut known) = (String::new(), 0);
    loop {
        let path = format!("/v1/domains/d/subjects?page_size=1000&page_token={}", token.replace('|', "%7C").replace('=', "%3D"));
        let page: Value =
            serde_json::from_str(&http::get(weir.admin, &path).await.expect("the admin port answers").body).expect("JSON");
        known += page["subjects"].as_array().expect("a list").len();
        page["next_page_token"].as_str().expect("a token").clone_into(&mut token);
        if token.is_empty() {
            return known;
        }
    }
}

fn assert_memory(weir: &Weir, before: u64) {
    let peak = weir.peak();
    assert!(peak < before + ALLOWED, "{} MiB at the most, {} before", peak >> 20, before >> 20);
}

#[tokio::test]
async fn an_import_takes_no_more_memory_the_longer_it_is() {
    let weir = settings().start().await;
    assert_eq!(import(&weir, "", subjects((0..1).map(user))).await.0, 200);
    let before = weir.resident();
    let spaces = " ".repeat(LONGEST - 100);
    let long = |number: usize| user(number).replace("\"subject\"", &format!("{spaces}\"subject\""));
    let count = LENGTH / LONGEST;
    let (status, answer) = import(&weir, "", subjects((0..count).map(long))).await;
    assert_eq!((status, answer), (200, json!({ "imported": count }).to_string()));
    let limits = format!(r#"{{"domain":"d","subject":"user=u","limits":[{}{{}}]}}"#, "{},".repeat(20_000));
    let deep = format!(r#"{{"domain":{}"#, "[".repeat(LONGEST - 100)) + &"]".repeat(10) + "}";
    for (record, status, reason) in [
        ("{}", 400, r"subjects[99]: `` of domain ``: `domain` is missing\nand "),
        (&limits, 400, "subjects[0].limits: `user=u` of domain `d`: more than 1000 limits in one record"),
        (&deep, 400, "subjects[0]: a record of more than 65536 bytes"),
        (r#"{"domain":"d","domain":"e"}"#, 400, "subjects[0]: `domain` is given twice"),
    ] {
        let records = std::iter::repeat_n(record.to_owned(), (LENGTH / record.len()).min(20_000));
        let (answered, answer) = import(&weir, "", subjects(records)).await;
        assert!(answered == status && answer.contains(reason) && answer.contains("nothing was imported"), "{answer}");
        assert!(answer.len() < 200_000, "{} bytes", answer.len());
    }
    assert_eq!(known(&weir).await, count);
    assert_memory(&weir, before);
}

#[tokio::test]
async fn many_records_and_their_names_take_a_bounded_room() {
    let weir = settings().start().await;
    assert_eq!(import(&weir, "", subjects((0..1).map(user))).await.0, 200);
    let before = weir.resident();
    // So long that they do not wait in memory.
    let long = |number: usize| {
        json!({"domain": "d", "subject": format!("user={number}{}", "x".repeat(10_000)), "multiplier": 2}).to_string()
    };
    let (status, answer) = import(&weir, "?dry_run=true", subjects((0..3_000).map(long))).await;
    assert_eq!((status, answer), (200, json!({ "imported": 3_000 }).to_string()));
    let (status, answer) = import(&weir, "?dry_run=true", subjects((0..30_000).map(user))).await;
    assert_eq!((status, answer), (200, json!({ "imported": 30_000 }).to_string()));
    let twice = subjects((0..3_000).map(long).chain([long(7), user(1), user(1)]));
    let (status, answer) = import(&weir, "?dry_run=true&force=true", twice).await;
    assert!(status == 400 && answer.contains("subjects[3000]: ") && answer.contains("subjects[3002]: "), "{answer}");
    assert!(answer.contains("there are two records of") && answer.contains("(see subjects[3001])"), "{answer}");
    assert_eq!(known(&weir).await, 1);
    assert_memory(&weir, before);
}

#[tokio::test]
async fn an_import_with_a_mistake_at_its_end_writes_nothing() {
    let weir = settings().start().await;
    let bad = user(5_000).replace("\"multiplier\":2", "\"multiplier\":-1");
    let (status, answer) = import(&weir, "", subjects((0..5_000).map(user).chain([bad]))).await;
    assert!(status == 400 && answer.contains("subjects[5000].multiplier: `user=u005000` of domain `d`"), "{answer}");
    let tier = |number: usize| user(number).replace("\"multiplier\":2", "\"tier\":\"pro\"");
    let records = || subjects((0..3_000).map(tier));
    let (status, answer) = import(&weir, "", records()).await;
    assert!(status == 400 && answer.contains("subjects[99].tier: ") && answer.contains("and 2900 more"), "{answer}");
    let cut: String = records().collect();
    for (body, reason) in [
        (cut[..cut.len() - 1].to_owned(), "the body ends at byte"),
        (format!("{}x", cut), "nothing more is expected"),
        (cut.replace("\"subjects\"", "\"subjetcs\""), "did you mean `subjects`?"),
        (cut.replace("]}", r#"],"force":true,"tiers":[{"domain":"d"}]}"#), "tiers[0]: tier `` of domain `d`"),
    ] {
        let (status, answer) = import(&weir, "?dry_run=false", std::iter::once(body)).await;
        assert!(status == 400 && answer.contains(reason) && answer.contains("nothing was imported"), "{answer}");
    }
    assert_eq!(known(&weir).await, 0);
    // What stands after the records holds for them all.
    let with_tier = cut.replace("]}", r#"],"tiers":[{"domain":"d","name":"pro","daily":5}],"dry_run":false}"#);
    let (status, answer) = import(&weir, "", std::iter::once(with_tier)).await;
    assert_eq!((status, answer), (200, json!({ "imported": 3_001 }).to_string()));
    assert_eq!(known(&weir).await, 3_000);
}

#[tokio::test]
async fn an_import_that_breaks_off_writes_nothing_and_is_in_the_audit() {
    let weir = settings().start().await;
    let begun: String = subjects((0..3_000).map(user)).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", weir.admin)).await.expect("weir listens");
    let head = format!(
        "POST /v1/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        begun.len() + 1
    );
    stream.write_all(&[head.as_bytes(), begun.as_bytes()].concat()).await.expect("weir reads");
    drop(stream);
    eventually("the audit of what broke off", async || {
        weir.log().contains("after 3000 records") && weir.log().contains("nothing was imported")
    })
    .await;
    assert_eq!(known(&weir).await, 0);
}

#[tokio::test]
async fn without_a_temporary_directory_a_long_import_says_so_and_a_short_one_is_made() {
    let weir = settings().env("TMPDIR", "/no/such/directory").start().await;
    let long = |number: usize| {
        json!({"domain": "d", "subject": format!("user={number}{}", "x".repeat(10_000)), "multiplier": 2}).to_string()
    };
    let (status, answer) = import(&weir, "", subjects((0..1_000).map(long))).await;
    assert!(status == 507 && answer.contains("/no/such/directory") && answer.contains("TMPDIR"), "{status} {answer}");
    assert_eq!(known(&weir).await, 0);
    assert_eq!(import(&weir, "", subjects((0..100).map(long))).await.0, 200);
    assert_eq!(known(&weir).await, 100);
}

#[tokio::test]
async fn only_so_many_imports_are_under_way_at_once() {
    let weir = settings().start().await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", weir.admin)).await.expect("weir listens");
        let head = "POST /v1/records HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.expect("weir reads");
        begun.push(stream);
    }
    eventually("a refusal of a third import", async || {
        let (status, answer) = import(&weir, "", std::iter::once("{}".to_owned())).await;
        status == 503 && answer.contains("2 imports are under way")
    })
    .await;
    assert_eq!(http::get(weir.admin, "/v1/switch").await.map(|answer| answer.status), Some(200), "other calls are answered");
    drop(begun);
    eventually("an import after them", async || import(&weir, "", std::iter::once("{}".to_owned())).await.0 == 200).await;
}

#[tokio::test]
async fn a_store_that_goes_away_is_said_and_the_import_can_be_made_again() {
    let redis = RedisServer::start();
    let weir = settings().redis(&redis.url()).start().await;
    redis.pause();
    let (status, answer) = import(&weir, "", subjects((0..1_500).map(user))).await;
    assert!(status == 503 && answer.contains("of the first 1000 of 1500 records"), "{status} {answer}");
    assert!(answer.contains("it is safe to import it again"), "{answer}");
    redis.resume();
    eventually("an answer of Redis", async || http::get(weir.admin, "/v1/switch").await.is_some_and(|answer| answer.status == 200))
        .await;
    let (status, answer) = import(&weir, "", subjects((0..1_500).map(user))).await;
    assert_eq!((status, answer), (200, json!({ "imported": 1_500 }).to_string()));
    assert_eq!(known(&weir).await, 1_500);
}
