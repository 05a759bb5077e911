//! What the gRPC port answers to HTTP requests that are not gRPC calls.

#[path = "support/in_process.rs"]
mod in_process;

use std::future::Future;

use in_process::{Served, h2_connection};

const RULES: &str = "domain: d\ndescriptors:\n  - {key: user, rate_limit: {unit: hour, requests_per_unit: 2}}\n";

/// Of every service, of methods that are not there, and of none.
const PATHS: [&str; 8] = [
    "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    "/envoy.service.ratelimit.v3.RateLimitService/Nope",
    "/weir.v1.ReservationService/Reserve",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/nobody/serves/this",
    "/",
];

#[tokio::test]
async fn what_is_no_grpc_call_is_refused_by_http_whatever_its_path() {
    let served = Served::rules(RULES).await;
    let mut client = h2_connection(&served).await;
    let mut send = async |method: &str, path: &str, kind: Option<&str>| {
        let request = http::Request::builder().method(method).uri(format!("http://localhost{path}"));
        let request = kind.into_iter().fold(request, |request, kind| request.header("content-type", kind));
        client = client.clone().ready().await.expect("an open connection");
        let (answer, _) = client.send_request(request.body(()).expect("a request"), true).expect("an open connection");
        let (head, mut body) = answer.await.expect("an answer").into_parts();
        // A body in an answer to HEAD is an error of the stream.
        let mut length = 0;
        while let Some(part) = body.data().await {
            length += part.unwrap_or_else(|error| panic!("{method} {path}: {error}")).len();
        }
        assert_eq!(length == 0, method == "HEAD" || head.status == 200, "{method} {path}: {length} bytes");
        let allow = head.headers.get("allow").map(|allow| allow.to_str().expect("a method").to_owned());
        (head.status.as_u16(), allow, head.headers.contains_key("grpc-status"))
    };
    for path in PATHS {
        for method in ["GET", "PUT", "HEAD", "OPTIONS", "DELETE"] {
            for kind in [Some("application/grpc"), Some("text/plain"), None] {
                assert_eq!(send(method, path, kind).await, (405, Some("POST".to_owned()), false), "{method} {path} {kind:?}");
            }
        }
        for kind in [None, Some("application/json"), Some("application/grpc-web"), Some("application/grpcx"), Some("")] {
            assert_eq!(send("POST", path, kind).await, (415, None, false), "{path} {kind:?}");
        }
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;v=1", "APPLICATION/gRPC"] {
            assert_eq!(send("POST", path, Some(kind)).await.0, 200, "{path} {kind}");
        }
    }
    served.stop().await;
}

/// An answer before the request's end resets the stream, and curl then shows the reset in place of the answer.
#[tokio::test]
async fn a_request_that_is_no_grpc_call_is_read_before_it_is_refused() {
    let served = Served::rules(RULES).await;
    let stream = tokio::net::TcpStream::connect(served.addresses().grpc).await.expect("the server listens");
    let (mut client, mut connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let mut pings = connection.ping_pong().expect("taken once");
    tokio::spawn(connection);
    client = client.ready().await.expect("an open connection");
    let request = http::Request::post("http://localhost/json").header("content-type", "application/json");
    let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("an open connection");
    let mut answer = Box::pin(answer);
    // The server has seen the head by then, and begun to decide.
    for _ in 0..3 {
        pings.ping(h2::Ping::opaque()).await.expect("an open connection");
    }
    let is_pending = std::future::poll_fn(|context| std::task::Poll::Ready(answer.as_mut().poll(context).is_pending())).await;
    assert!(is_pending, "more of the request is to come");
    body.send_data("{}".into(), true).expect("an open stream");
    assert_eq!(answer.await.expect("an answer").status(), 415);
    served.stop().await;
}
