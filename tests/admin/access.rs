//! Who is let in.

use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request};
use weir::admin::proto::weir::admin::v1 as proto;
use weir::admin::proto::weir::admin::v1::admin_service_client::AdminServiceClient;

use crate::client::{RULES, call, call_as, open, subject};
use crate::support::weir::{Settings, Weir};
use crate::support::{eventually, free_port};

pub(crate) const READ: &str = "a-token-that-may-look";
pub(crate) const CHANGE: &str = "a-token-that-may-change";

pub(crate) async fn with_tokens() -> (tempfile::TempDir, Weir) {
    let (directory, settings) = token_settings();
    let weir = settings.start().await;
    (directory, weir)
}

pub(crate) fn token_settings() -> (tempfile::TempDir, Settings) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("the directory is writable");
        path.display().to_string()
    };
    let settings = Settings::with_rules(RULES)
        .flag("--admin-read-token-file", &file("read", format!("ann {READ}\n")))
        .flag("--admin-change-token-file", &file("change", format!("bob {CHANGE}\n")));
    (directory, settings)
}

pub(crate) async fn client(weir: &Weir) -> AdminServiceClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", weir.admin)).expect("the address is well-formed");
    AdminServiceClient::new(endpoint.connect().await.expect("the admin port speaks gRPC"))
}

#[tokio::test]
async fn a_token_is_needed_and_its_role() {
    let (_directory, weir) = with_tokens().await;
    let path = subject("u1");
    let body = json!({"multiplier": 2});
    let status = async |token, method, body| call_as(&weir, token, method, &path, body).await.status;
    assert_eq!(status(None, "GET", json!(null)).await, 401);
    assert_eq!(status(Some("no-such-token-at-all"), "GET", json!(null)).await, 401);
    assert_eq!(status(Some(READ), "GET", json!(null)).await, 200);
    assert_eq!(status(None, "PATCH", body.clone()).await, 401);
    assert_eq!(status(Some(READ), "PATCH", body.clone()).await, 403);
    assert_eq!(status(Some(CHANGE), "PATCH", body).await, 200);
    assert_eq!(status(Some(CHANGE), "GET", json!(null)).await, 200);
    let answer = call(&weir, "GET", &path, json!(null)).await;
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert!(answer.body.contains("token"), "{}", answer.body);
}

#[tokio::test]
async fn the_same_over_grpc() {
    let (_directory, weir) = with_tokens().await;
    let mut client = client(&weir).await;
    let message = || proto::SetSwitchRequest { domain: String::new(), switch: "shadow".to_owned() };
    let with = |token: Option<&str>| {
        let mut request = Request::new(message());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        }
        request
    };
    let code = |answer: Result<_, tonic::Status>| answer.map(|_| ()).map_err(|status| status.code());
    assert_eq!(code(client.set_switch(with(None)).await), Err(Code::Unauthenticated));
    assert_eq!(code(client.set_switch(with(Some(READ))).await), Err(Code::PermissionDenied));
    assert_eq!(code(client.set_switch(with(Some(CHANGE))).await), Ok(()));
    let mut read = Request::new(proto::GetSwitchRequest::default());
    read.metadata_mut().insert("authorization", format!("Bearer {READ}").parse().expect("a header"));
    assert_eq!(client.get_switch(read).await.expect("it may look").into_inner().switch, "shadow");
    eventually("the audit of what was done and of two refusals", async || weir.log().matches("audit").count() == 3).await;
    let log = weir.log();
    let done = log.lines().find(|line| line.contains("SetSwitch") && line.contains("done"));
    assert!(done.is_some_and(|line| line.contains("bob") && line.contains("shadow")), "{log}");
}

#[tokio::test]
async fn who_may_not_call_is_refused_before_the_message_has_come() {
    let (_directory, weir) = with_tokens().await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", weir.admin)).await.expect("weir listens");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    for (token, expected) in [("no-such-token-at-all", "16"), (READ, "7")] {
        let request = http::Request::post("http://localhost/weir.admin.v1.AdminService/ImportRecords");
        let request = request.header("content-type", "application/grpc").header("authorization", format!("Bearer {token}"));
        let (answer, mut sending) = client.send_request(request.body(()).expect("a request"), false).expect("an open connection");
        // A megabyte, of which the first part comes.
        let message = [&b"\0\0\x10\0\0"[..], &[0; 10_000]].concat();
        sending.send_data(message.into(), false).expect("an open stream");
        let answer = tokio::spawn(answer);
        eventually("an answer to what has not come", async || answer.is_finished()).await;
        let answer = answer.await.expect("no panic").expect("an answer");
        assert_eq!(answer.headers()["grpc-status"], expected);
    }
    let lines = refused(&weir, 2).await;
    assert!(lines[1].contains("by=ann") || lines[1].contains("by=\"ann\""), "{}", lines[1]);
    assert!(lines.iter().all(|line| line.contains("ImportRecords")), "{lines:?}");
}

#[tokio::test]
async fn every_change_and_every_refusal_is_in_the_audit() {
    let (_directory, weir) = with_tokens().await;
    call_as(&weir, Some(CHANGE), "PATCH", &subject("u1"), json!({"multiplier": 2})).await;
    call_as(&weir, Some(CHANGE), "PATCH", &subject("u1"), json!({"multiplier": -2})).await;
    call_as(&weir, Some(READ), "PATCH", &subject("u1"), json!({"multiplier": 2})).await;
    eventually("the audit of three calls", async || weir.log().matches("audit").count() == 3).await;
    let log = weir.log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("audit")).collect();
    assert!(["bob", "OverrideSubject", "user_id=u1", "done"].iter().all(|word| audit[0].contains(word)), "{}", audit[0]);
    assert!(["bob", "not changed", "multiplier"].iter().all(|word| audit[1].contains(word)), "{}", audit[1]);
    assert!(["refused", "may look and not change"].iter().all(|word| audit[2].contains(word)), "{}", audit[2]);
    assert!(!log.contains(READ) && !log.contains(CHANGE), "a token is in the log");
}

/// The audit's lines of what was refused.
async fn refused(weir: &Weir, count: usize) -> Vec<String> {
    eventually("the audit of what was refused", async || weir.log().matches("audit: refused").count() == count).await;
    weir.log().lines().filter(|line| line.contains("audit: refused")).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_audit_says_who_was_refused_from_where_and_on_whom() {
    let (_directory, weir) = with_tokens().await;
    call_as(&weir, Some(READ), "PUT", &format!("{}/tier", subject("u1")), json!({"tier": "pro"})).await;
    call_as(&weir, Some("no-such-token-at-all"), "DELETE", &subject("u2"), json!(null)).await;
    let mut by_grpc = Request::new(proto::RemoveSubjectRequest { domain: "api".to_owned(), subject: "user_id=u3".to_owned() });
    by_grpc.metadata_mut().insert("authorization", format!("Bearer {READ}").parse().expect("a header"));
    client(&weir).await.remove_subject(by_grpc).await.expect_err("it may look");
    let lines = refused(&weir, 3).await;
    let expected =
        [["ann", "AssignTier", "user_id=u1"], ["", "RemoveSubject", "user_id=u2"], ["ann", "RemoveSubject", "user_id=u3"]];
    for (line, words) in lines.iter().zip(expected) {
        assert!(words.iter().all(|word| line.contains(word)) && line.contains("api"), "{words:?}: {line}");
        assert!(line.contains("from=127.0.0.1:") && !line.contains("Some("), "{line}");
    }
    assert!(!lines[1].contains("by="), "nobody knows who it was: {}", lines[1]);
    call_as(&weir, Some(CHANGE), "PATCH", &subject("u1"), json!({"multiplier": 2})).await;
    call_as(&weir, Some(CHANGE), "PATCH", &subject("u1"), json!({"multiplier": -2})).await;
    call_as(&weir, Some(CHANGE), "PATCH", &subject("u1"), json!({"no_such_field": 1})).await;
    eventually("the audit of three calls", async || weir.log().matches("changed").count() == 3).await;
    let log = weir.log();
    let unread = log.lines().find(|line| line.contains("no_such_field")).expect("what cannot be read is refused, too");
    assert!(unread.contains("not changed") && unread.contains("user_id=u1"), "{unread}");
    for line in log.lines().filter(|line| line.contains("changed")) {
        assert!(line.contains("bob") && line.contains("from=127.0.0.1:"), "{line}");
    }
    let closed = Settings::with_rules(RULES).start().await;
    call(&closed, "PUT", "/v1/switch", json!({"switch": "allow"})).await;
    let lines = refused(&closed, 1).await;
    assert!(lines[0].contains("local") && lines[0].contains("SetSwitch"), "{}", lines[0]);
}

#[tokio::test]
async fn without_tokens_this_machine_may_look_and_change_only_where_it_was_said() {
    let weir = Settings::with_rules(RULES).start().await;
    assert_eq!(call(&weir, "GET", "/v1/switch", json!(null)).await.status, 200);
    assert_eq!(call(&weir, "PUT", "/v1/switch", json!({"switch": "allow"})).await.status, 403);
    let mut client = client(&weir).await;
    client.get_switch(proto::GetSwitchRequest::default()).await.expect("it may look");
    let refused = client.remove_subject(proto::RemoveSubjectRequest::default()).await;
    assert_eq!(refused.map(|_| ()).map_err(|status| status.code()), Err(Code::PermissionDenied));
    let open = open().start().await;
    assert_eq!(call(&open, "PUT", "/v1/switch", json!({"switch": "allow"})).await.status, 200);
}

#[tokio::test]
async fn a_browser_that_was_lured_here_changes_nothing() {
    let weir = open().start().await;
    let post = async |headers: &[(&str, &[u8])]| {
        crate::support::http::send(weir.admin, "POST", "/v1/records", headers, b"{}").await.expect("an answer").status
    };
    assert_eq!(post(&[("content-type", b"text/plain")]).await, 415);
    assert_eq!(post(&[]).await, 415);
    assert_eq!(post(&[("content-type", b"application/json")]).await, 200);
}

#[tokio::test]
async fn a_token_file_that_is_not_there_keeps_the_server_from_starting() {
    let settings = Settings::with_rules(RULES).flag("--admin-change-token-file", "no/such/file");
    let said = settings.fail([free_port(), free_port(), free_port()]).await;
    assert!(said.contains("no/such/file"), "{said}");
}
