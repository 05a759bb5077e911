//! The OpenAPI description says what is served, and nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{call, done, open};
use crate::support::http;

/// Every `$ref` below a value.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(array) => array.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn it_is_openapi_and_complete() {
    let weir = open().start().await;
    let description = done(&weir, "GET", "/openapi.json", json!(null)).await;
    assert_eq!(description["openapi"], "3.1.0");
    assert!(description["info"]["title"].is_string() && description["info"]["version"].is_string());
    let mut found = BTreeSet::new();
    references(&description, &mut found);
    assert!(found.len() > 5);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("all is in this document");
        assert!(description.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut operations = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let name = operation["operationId"].as_str().expect("a name");
            assert!(operations.insert(name.to_owned()), "{name} twice");
            assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{name} says nothing");
            let parameters = operation["parameters"].as_array().expect("parameters");
            let in_path: BTreeSet<&str> =
                parameters.iter().filter(|one| one["in"] == "path").filter_map(|one| one["name"].as_str()).collect();
            let written: BTreeSet<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(in_path, written, "{method} {path}");
        }
    }
    let service = include_str!("../../proto/weir/admin/v1/admin.proto");
    let calls: BTreeSet<String> =
        service.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next().map(str::to_owned)).collect();
    assert_eq!(operations, calls, "what is served over HTTP and over gRPC");
}

#[tokio::test]
async fn every_path_is_served() {
    let weir = open().start().await;
    let description = done(&weir, "GET", "/openapi.json", json!(null)).await;
    for (path, methods) in description["paths"].as_object().expect("paths") {
        let concrete = path.replace("{domain}", "api").replace("{subject}", "user_id=u1").replace("{name}", "pro");
        for (method, operation) in methods.as_object().expect("methods") {
            let method = method.to_ascii_uppercase();
            let answer = call(&weir, &method, &concrete, json!({"no_such_field": 1})).await;
            assert_eq!(answer.status, 400, "{method} {path}: {}", answer.body);
            let answer = http::send(weir.admin, &method, &concrete, &[("content-type", b"text/plain")], b"?").await;
            let status = answer.expect("an answer").status;
            assert!(operation["responses"][status.to_string()].is_object(), "{method} {path}: {status} is not described");
        }
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_said() {
    let weir = open().start().await;
    let path = "/v1/domains/api/subjects/user_id=u1";
    let cases = [
        ("PATCH", path, json!({"limits": [{"limits": [{"limit": "many"}]}]}), 400, "`many` is no limit"),
        ("PATCH", path, json!({"limits": [{}]}), 400, "limit nothing"),
        ("PATCH", path, json!({"limits": [{"rule": "per-usr", "unlimited": true}]}), 404, "it has per-user, ai, per-address"),
        ("PATCH", path, json!({"multiplier": -1}), 400, "no multiplier"),
        ("PATCH", path, json!({"clear": ["everything"]}), 400, "cannot be cleared"),
        ("PATCH", path, json!({"blocked_until": "tomorrow"}), 400, "rfc3339"),
        ("PATCH", path, json!({"subject": "user_id=u2"}), 400, "stands in the path"),
        ("PATCH", "/v1/domains/apii/subjects/user_id=u1", json!({"multiplier": 1}), 404, "the rules have api"),
        ("PATCH", "/v1/domains/api/subjects/u1", json!({"multiplier": 1}), 400, "is no subject"),
        ("PUT", "/v1/domains/api/subjects/user_id=u1/tier", json!({"tier": "gold"}), 404, "has no tier `gold`"),
        ("PUT", "/v1/switch", json!({"switch": "on"}), 400, "off, allow or shadow"),
        ("PUT", "/v1/domains/api/tiers/pro", json!({"limits": [{"limit": "5/fortnight"}]}), 400, "`5/fortnight` is no limit"),
        ("PUT", "/v1/domains/api/tiers/pro", json!({"priority": "urgent"}), 400, "low, normal, high or critical"),
    ];
    for (method, path, body, status, expected) in cases {
        let answer = call(&weir, method, path, body.clone()).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
        assert!(answer.body.contains(expected), "{method} {path} {body}: {}", answer.body);
    }
}

/// What asks for it by reflection finds the service and every file of it.
#[tokio::test]
async fn it_is_described_over_grpc() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ListServiceResponse, ServerReflectionRequest};

    let weir = open().start().await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://127.0.0.1:{}", weir.admin)).expect("an address");
    let mut client = ServerReflectionClient::new(endpoint.connect().await.expect("the admin port speaks gRPC"));
    let mut ask = async |message| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let answers = client.server_reflection_info(futures_util::stream::iter([request])).await;
        let answer = answers.expect("an answer").into_inner().message().await.expect("a message");
        answer.and_then(|answer| answer.message_response).expect("a response")
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(ListServiceResponse { service }) = listed else { panic!("{listed:?}") };
    assert!(service.iter().any(|service| service.name == weir::admin::SERVICE), "{service:?}");
    for file in ["weir/admin/v1/admin.proto", "google/protobuf/timestamp.proto"] {
        let said = ask(MessageRequest::FileByFilename(file.to_owned())).await;
        assert!(matches!(said, MessageResponse::FileDescriptorResponse(_)), "{file}: {said:?}");
    }
}
