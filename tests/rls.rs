//! The gRPC service as a client sees it.

#[path = "support/in_process.rs"]
mod in_process;

use in_process::{channel, descriptor, request, settings};
use tonic::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use weir::server::Server;

#[tokio::test]
async fn without_rules_every_call_is_unavailable() {
    let server = Server::start(settings("no/such/directory")).await.unwrap();
    let mut client = RateLimitServiceClient::new(channel(server.addresses.grpc).await);
    let status = client.should_rate_limit(request("api", vec![descriptor(&[("key", "value")])])).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no rate limit configuration loaded"));
    server.stop().await;
}
