//! Every call and every command while Redis hangs: it is answered, says what hangs, and says it where a change may have been made.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use futures_util::future::join_all;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use weir::admin;

use crate::client::{call, done, open, subject};
use crate::support::eventually;
use crate::support::http::Answer;
use crate::support::redis::RedisServer;
use crate::support::weir::Weir;

/// Reaching it fails the test: far longer than any call may take.
const PATIENCE: Duration = Duration::from_secs(40);
const LATER: &str = "2100-01-01T00:00:00Z";

/// What each call is made with, besides the domain `api`, the subject `user_id=u1` and the tier `pro`.
fn fields(name: &str) -> Value {
    match name {
        "GetSubject" | "ListSubjects" | "UnassignTier" | "RemoveSubject" | "ListTiers" | "RemoveTier" | "GetUsage"
        | "GetHistory" | "ExportRecords" | "GetSwitch" => json!({}),
        "AssignTier" => json!({"tier": "pro"}),
        "OverrideSubject" => json!({"blocked_until": LATER}),
        "DefineTier" => json!({"limits": [{"limit": "5/hour"}]}),
        "SetSwitch" => json!({"switch": "shadow"}),
        "ResetUsage" => json!({"kind": "all"}),
        "Explain" => json!({"descriptors": [{"entries": [{"key": "user_id", "value": "u1"}]}]}),
        "ImportRecords" => json!({"subjects": [{"domain": "api", "subject": "user_id=u2", "multiplier": 2}]}),
        name => panic!("{name} is a new call: say what it is made with, and see that it is answered while Redis hangs"),
    }
}

/// Every call of the service, with its method and its path over HTTP.
async fn calls(weir: &Weir) -> BTreeMap<String, (String, String)> {
    let description = done(weir, "GET", "/openapi.json", json!(null)).await;
    let mut calls = BTreeMap::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        let path = path.replace("{domain}", "api").replace("{subject}", "user_id=u1").replace("{name}", "pro");
        for (method, operation) in methods.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("a name").to_owned();
            calls.insert(name, (method.to_uppercase(), path.clone()));
        }
    }
    calls
}

async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Encoded messages as they are.
#[derive(Default)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Encoded;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Encoded {
        Encoded
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, tonic::Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// One call over gRPC, and its answer as JSON.
async fn by_grpc(channel: Channel, name: &str) -> Result<Value, tonic::Status> {
    let pool = DescriptorPool::decode(admin::DESCRIPTOR_SET).expect("the descriptor set is well-formed");
    let service = pool.get_service_by_name(admin::SERVICE).expect("the service");
    let method = service.methods().find(|method| method.name() == name).expect("every call is one of the service");
    let mut whole = fields(name);
    let named = [("domain", "api"), ("subject", "user_id=u1"), ("name", "pro")];
    let of_tier = name == "DefineTier";
    for (field, value) in named {
        let message = if of_tier { pool.get_message_by_name("weir.admin.v1.Tier").expect("tiers") } else { method.input() };
        if message.get_field_by_name(field).is_some() && !name.ends_with("Switch") {
            whole[field] = value.into();
        }
    }
    let whole = if of_tier { json!({"tier": whole}) } else { whole };
    let message = DynamicMessage::deserialize(method.input(), whole).expect("the request is well-formed");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("the connection is there");
    let path = format!("/{}/{name}", admin::SERVICE).parse().expect("a path");
    let answer = client.unary(tonic::Request::new(message.encode_to_vec()), path, Encoded).await?.into_inner();
    let answer = DynamicMessage::decode(method.output(), &answer[..]).expect("an answer of this type");
    Ok(serde_json::to_value(&answer).expect("it has a JSON form"))
}

fn names_the_store(text: &str) -> bool {
    text.contains("the store (Redis)")
}

#[tokio::test]
async fn every_call_is_answered_and_says_what_hangs() {
    let redis = RedisServer::start();
    let weir = open().redis(&redis.url()).start().await;
    done(&weir, "PUT", "/v1/domains/api/tiers/pro", json!({"limits": [{"limit": "5/hour"}]})).await;
    let calls = calls(&weir).await;
    assert!(calls.len() >= 17, "{calls:?}");
    let address = Channel::from_shared(format!("http://127.0.0.1:{}", weir.admin)).expect("the address is well-formed");
    let channel = address.connect().await.expect("the admin port speaks gRPC");
    redis.pause();

    let over_http = calls.iter().map(async |(name, (method, path))| {
        let body = if ["GET", "DELETE"].contains(&method.as_str()) { json!(null) } else { fields(name) };
        in_time(name, call(&weir, method, path, body)).await
    });
    let answers: Vec<Answer> = join_all(over_http).await;
    for (name, answer) in calls.keys().zip(answers) {
        if name == "Explain" {
            let explained: Value = serde_json::from_str(&answer.body).expect("JSON");
            assert_eq!((answer.status, &explained["decision"]), (200, &json!("unknown")), "{answer:?}");
            assert_eq!(explained["descriptors"][0]["rule"]["name"], "per-user", "{explained}");
        } else {
            assert_eq!(answer.status, 503, "{name}: {answer:?}");
        }
        assert!(names_the_store(&answer.body), "{name}: {answer:?}");
    }
    let over_grpc = calls.keys().map(async |name| in_time(name, by_grpc(channel.clone(), name)).await);
    let answers = join_all(over_grpc).await;
    for (name, answer) in calls.keys().zip(answers) {
        match answer {
            Ok(answer) => assert!(name == "Explain" && answer["decision"] == "unknown", "{name}: {answer}"),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::Unavailable, "{name}: {status}");
                assert!(names_the_store(status.message()), "{name}: {status}");
            }
        }
    }

    redis.resume();
    eventually("an answer of Redis", async || call(&weir, "GET", "/v1/switch", json!(null)).await.status == 200).await;
    for (name, (method, path)) in &calls {
        let body = if ["GET", "DELETE"].contains(&method.as_str()) { json!(null) } else { fields(name) };
        let answer = call(&weir, method, path, body).await;
        // The tier may be removed before it is assigned.
        assert!(answer.status == 200 || answer.status == 404, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_change_that_may_have_been_made_says_so() {
    let redis = RedisServer::start();
    let weir = open().redis(&redis.url()).start().await;
    redis.pause();
    let answer = in_time("SetSwitch", call(&weir, "PUT", "/v1/switch", json!({"switch": "shadow"}))).await;
    assert!(answer.status == 503 && answer.body.contains("the change may have been made"), "{answer:?}");
    eventually("the audit", async || weir.log().contains("audit: may have changed")).await;
    redis.resume();
    let switch = async || {
        let answer = call(&weir, "GET", "/v1/switch", json!(null)).await;
        serde_json::from_str::<Value>(&answer.body).expect("JSON")["switch"].clone()
    };
    eventually("it was made", async || switch().await == "shadow").await;
}

/// Exit code, what it printed, what it complained of.
async fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(words).env_clear().stdin(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = in_time(&words.join(" "), ended).await.expect("no panic").expect("weir runs");
    let text = |bytes| String::from_utf8(bytes).expect("weir prints UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn every_command_ends_and_says_what_hangs() {
    let redis = RedisServer::start();
    let weir = open().redis(&redis.url()).start().await;
    done(&weir, "PATCH", &subject("blocked"), json!({"blocked_until": LATER})).await;
    let admin = format!("http://127.0.0.1:{}", weir.admin);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let records = directory.path().join("records.yaml");
    std::fs::write(&records, "switches: [{switch: shadow}]\n").expect("it is writable");
    let records = records.to_str().expect("UTF-8");
    redis.pause();
    let (of, by) = (["api", "user_id=u1"], ["--admin", admin.as_str()]);
    let commands: [&[&str]; 9] = [
        &["usage", of[0], of[1]],
        &["usage", of[0], of[1], "--history"],
        &["reset", of[0], of[1], "all"],
        &["assign", of[0], of[1], "--remove"],
        &["tiers", of[0]],
        &["override", of[0]],
        &["override", of[0], of[1], "--block", "1h"],
        &["export"],
        &["import", records],
    ];
    let ended = commands.map(|command| [command, &by].concat()).map(async |words| (words.clone(), run(&words).await));
    for (words, (code, printed, complaint)) in join_all(ended).await {
        assert!(code == Some(1) && names_the_store(&complaint), "{words:?}: {code:?} {printed} {complaint}");
    }

    let explain = ["explain", "--domain", "api", "--descriptor"];
    let asked = run(&[&explain[..], &["user_id=u1"], &by].concat()).await;
    assert_eq!(asked.0, Some(2), "{asked:?}");
    assert!(asked.1.starts_with("unknown: usage unknown: the store (Redis)"), "{}", asked.1);
    let known = ["rule     per-user (user_id), rules.yaml:", "`per-user` answers by `on_store_failure: error`"];
    assert!(known.iter().all(|known| asked.1.contains(known)), "{}", asked.1);
    let (code, printed, _) = run(&[&explain[..], &["user_id=blocked"], &by].concat()).await;
    assert!(code == Some(1) && printed.starts_with("over_limit: an operator has blocked user_id=blocked"), "{printed}");

    let (file, url) = (weir.rules_file(), redis.url());
    let at_hand = ["--rules", file.to_str().expect("UTF-8"), "--store", &url];
    let (code, printed, complaint) = run(&[&explain[..], &["user_id=u1"], &at_hand].concat()).await;
    assert_eq!((code, &*complaint), (Some(2), ""), "{printed}");
    let known = ["per-user (user_id), rules.yaml:", "Redis at", "does not answer", "are not loaded, and usage is unknown"];
    assert!(printed.starts_with("unknown: ") && known.iter().all(|known| printed.contains(known)), "{printed}");
}

#[tokio::test]
async fn a_weir_that_hangs_itself_is_not_waited_for() {
    let weir = open().start().await;
    weir.signal("STOP");
    let admin = format!("http://127.0.0.1:{}", weir.admin);
    let (code, _, complaint) = run(&["usage", "api", "user_id=u1", "--admin", &admin]).await;
    weir.signal("CONT");
    assert!(code == Some(1) && complaint.contains("does not answer within"), "{code:?} {complaint}");
}
