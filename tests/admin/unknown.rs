//! What is asked of a path or by a method that is not there: no typing mistake looks like success.

use serde_json::{Value, json};
use tonic::transport::Channel;
use weir::admin::proto::weir::admin::v1 as proto;

use crate::client::{call, open};
use crate::support::http::{self, Answer};

/// The reason of a refusal.
fn reason(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let refusal: Value = serde_json::from_str(&answer.body).expect("the refusal is JSON");
    refusal["error"].as_str().expect("a reason").to_owned()
}

#[tokio::test]
async fn a_path_that_is_not_there_is_named() {
    let weir = open().start().await;
    for (method, path) in [("PUT", "/v1/swich"), ("GET", "/v1/nope"), ("GET", "/"), ("POST", "/weir.admin.v1.AdminServise/X")] {
        let answer = call(&weir, method, path, json!(null)).await;
        assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
        let reason = reason(&answer);
        assert!(reason.contains(&format!("`{path}`")) && reason.contains("/openapi.json"), "{reason}");
        let without_kind = http::send(weir.admin, method, path, &[], b"").await.expect("an answer");
        assert_eq!(without_kind.status, 404, "{method} {path}");
    }
}

#[tokio::test]
async fn another_method_and_another_kind_of_body_are_refused_in_words() {
    let weir = open().start().await;
    for (method, path) in [("POST", "/v1/switch"), ("POST", "/metrics"), ("PUT", "/openapi.json"), ("DELETE", "/healthcheck")] {
        let answer = call(&weir, method, path, json!({})).await;
        assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
        assert!(answer.header("allow").is_some_and(|allow| allow.contains("GET")), "{answer:?}");
        assert!(reason(&answer).contains(path) && reason(&answer).contains(method), "{answer:?}");
    }
    let grpc = "/weir.admin.v1.AdminService/GetSwitch";
    for path in ["/v1/records", grpc] {
        let answer = http::send(weir.admin, "POST", path, &[("content-type", b"text/plain")], b"{}").await.expect("an answer");
        assert_eq!(answer.status, 415, "{path}: {answer:?}");
        assert!(!reason(&answer).is_empty());
    }
    for path in [grpc, "/weir.admin.v1.AdminService/Nope", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        let send = async |method, kind: &'static str| {
            http::send(weir.admin, method, path, &[("content-type", kind.as_bytes())], b"").await.expect("an answer")
        };
        for kind in ["application/grpc-web", "application/grpcx", "application/json"] {
            assert_eq!(send("POST", kind).await.status, 415, "{kind} to {path}");
        }
        let answer = send("GET", "application/grpc").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{path}");
        assert!(reason(&answer).contains("POST"), "{answer:?}");
        assert_eq!(send("POST", "Application/GRPC+proto").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_in_words() {
    let weir = open().start().await;
    let answer = call(&weir, "GET", "/v1/domains/%FF/tiers", json!(null)).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(reason(&answer).contains("no UTF-8"), "{answer:?}");
}

#[tokio::test]
async fn over_grpc_it_is_unimplemented() {
    let weir = open().start().await;
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", weir.admin)).expect("the address is well-formed");
    let mut client = tonic::client::Grpc::new(endpoint.connect().await.expect("the admin port speaks gRPC"));
    for path in ["/weir.admin.v1.AdminService/Nope", "/weir.admin.v2.AdminService/GetSwitch"] {
        client.ready().await.expect("the connection is there");
        let codec = tonic_prost::ProstCodec::<proto::GetSwitchRequest, proto::Switch>::default();
        let request = tonic::Request::new(proto::GetSwitchRequest::default());
        let answer = client.unary(request, path.parse().expect("a path"), codec).await;
        assert_eq!(answer.map(|_| ()).map_err(|status| status.code()), Err(tonic::Code::Unimplemented), "{path}");
    }
}

/// A body in an answer to HEAD is an error of the stream.
#[tokio::test]
async fn head_is_answered_without_a_body_over_http_2_whatever_its_path() {
    let weir = open().start().await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", weir.admin)).await.expect("the server listens");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    for (path, status) in [
        ("/weir.admin.v1.AdminService/GetSwitch", 405),
        ("/weir.admin.v1.AdminService/Nope", 405),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 405),
        ("/healthcheck", 200),
        ("/nope", 404),
    ] {
        let head = ::http::Request::head(format!("http://127.0.0.1:{}{path}", weir.admin)).body(()).expect("a request");
        client = client.ready().await.expect("an open connection");
        let (answer, _) = client.send_request(head, true).expect("an open connection");
        let (parts, mut body) = answer.await.expect("an answer").into_parts();
        assert_eq!(parts.status, status, "{path}");
        while let Some(part) = body.data().await {
            let part = part.unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(part.is_empty(), "{path}");
        }
    }
}
