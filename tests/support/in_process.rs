//! A server in this process, on ports of the system's choice, with rules made by hand.

#![allow(dead_code)] // Each test file uses a part of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::Channel;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use weir::api::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use weir::settings::Settings;

/// Settings for a test: these rules, free ports, one thread, no waiting.
pub(crate) fn settings(rules: impl Into<PathBuf>) -> Settings {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        grpc_listen: free,
        http_listen: free,
        admin_listen: free,
        rules: rules.into(),
        threads: 1,
        drain_delay: Duration::ZERO,
        ..Settings::default()
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("a server")
}

/// One descriptor of these entries.
pub(crate) fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entries = entries.iter().map(|(key, value)| Entry { key: (*key).into(), value: (*value).into() }).collect();
    RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
}

pub(crate) fn request(domain: &str, descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: domain.into(), descriptors, hits_addend: 0 }
}
