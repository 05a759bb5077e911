//! A server in this process, on ports of the system's choice.

#![allow(dead_code)] // Each test file uses a part of it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use weir::server::{Addresses, Server};
use weir::settings::Settings;

/// Longer than anything that is waited for takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(5);

/// Settings for a test: these rules, free ports, one thread, no waiting.
pub(crate) fn settings(rules: impl Into<PathBuf>) -> Settings {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        rules: rules.into(),
        grpc_listen: free,
        http_listen: free,
        admin_listen: free,
        threads: 1,
        drain_delay: Duration::ZERO,
        ..Settings::default()
    }
}

/// A server with rules of its own.
pub(crate) struct Served {
    server: Server,
    rules: TempDir,
}

impl Served {
    pub(crate) async fn rules(rules: &str) -> Served {
        Served::with(rules, |_| {}).await
    }

    pub(crate) async fn with(rules: &str, change: impl FnOnce(&mut Settings)) -> Served {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        fs::write(directory.path().join("rules.yaml"), rules).expect("the directory is writable");
        let mut settings = settings(directory.path());
        change(&mut settings);
        let server = Server::start(settings).await.expect("the server starts");
        Served { server, rules: directory }
    }

    pub(crate) fn addresses(&self) -> Addresses {
        self.server.addresses
    }

    pub(crate) fn rules_file(&self) -> PathBuf {
        self.rules.path().join("rules.yaml")
    }

    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.server.addresses.grpc);
        Channel::from_shared(address).expect("an address").connect().await.expect("the server listens")
    }

    pub(crate) async fn client(&self) -> RateLimitServiceClient<Channel> {
        RateLimitServiceClient::new(self.channel().await)
    }

    /// Status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        http(self.server.addresses.http, "GET", path, "").await
    }

    pub(crate) async fn get_admin(&self, path: &str) -> (u16, String) {
        http(self.server.addresses.admin, "GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        http(self.server.addresses.http, "POST", path, body).await
    }

    pub(crate) async fn stop(self) {
        tokio::time::timeout(PATIENCE, self.server.stop()).await.expect("the server stops");
    }
}

async fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    // A server that refuses a long body may not read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("an answer has a status");
    (status, body.to_owned())
}

/// Looks again and again until the condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// One descriptor of these entries.
pub(crate) fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entries = entries.iter().map(|(key, value)| Entry { key: (*key).into(), value: (*value).into() }).collect();
    RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
}

pub(crate) fn request(domain: &str, descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: domain.into(), descriptors, hits_addend: 0 }
}

/// A connection by HTTP/2, for what no gRPC client sends.
pub(crate) async fn h2_connection(served: &Served) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = TcpStream::connect(served.addresses().grpc).await.expect("the server listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}
