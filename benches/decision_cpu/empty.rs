//! The measure of all things here: a gRPC service that answers OK at once, served by the same path as weir's.

use std::io::Write;
use std::net::TcpListener;

use anyhow::Result;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use weir::api::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

struct Empty;

#[tonic::async_trait]
impl RateLimitService for Empty {
    async fn should_rate_limit(&self, _: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(RateLimitResponse { overall_code: Code::Ok.into(), ..RateLimitResponse::default() }))
    }
}

/// Serves on a free port, which it prints, until it is killed.
pub(crate) fn serve(threads: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let senders: Vec<_> = (0..threads).map(|_| spawn()).collect();
    for (number, stream) in listener.incoming().enumerate() {
        senders[number % threads].send(stream?)?;
    }
    Ok(())
}

fn spawn() -> mpsc::UnboundedSender<std::net::TcpStream> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<std::net::TcpStream>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let service = TowerToHyperService::new(RateLimitServiceServer::new(Empty));
            while let Some(stream) = receiver.recv().await {
                stream.set_nonblocking(true).expect("nonblocking");
                stream.set_nodelay(true).expect("nodelay");
                let io = TokioIo::new(tokio::net::TcpStream::from_std(stream).expect("a stream"));
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(1024);
                let connection = builder.serve_connection(io, service.clone());
                tokio::spawn(connection);
            }
        });
    });
    sender
}
