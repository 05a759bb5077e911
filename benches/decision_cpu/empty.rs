//! The measure of all things here: a gRPC service that answers OK at once, served by the same path as weir's.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper_util::service::TowerToHyperService;
use tonic::{Request, Response, Status};
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use weir::transport::drain::Drain;
use weir::transport::listen;
use weir::transport::room::{Paths, Room, Size};
use weir::transport::threads::{Serving, Threads};

struct Empty;

#[tonic::async_trait]
impl RateLimitService for Empty {
    async fn should_rate_limit(&self, _: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(RateLimitResponse { overall_code: Code::Ok.into(), ..RateLimitResponse::default() }))
    }
}

/// Serves on a free port, which it prints, until it is killed.
pub(crate) fn serve(threads: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen::listen(String::new(), "127.0.0.1:0".parse()?)?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let drain = Drain::new();
        let service = || TowerToHyperService::new(RateLimitServiceServer::new(Empty));
        let serving = Serving { service, max_age: Duration::from_secs(300), draining: drain.draining() };
        let mut threads = Threads::start(threads, serving)?;
        let room =
            Room::new(Size { connections: 1_000, probes: 1 }, Paths { is_probe: |_| false, lasting: |_| None }, Arc::default());
        listen::accept(listener, room, drain.draining(), |stream, slot| threads.serve(stream, slot)).await;
        Ok(())
    })
}
