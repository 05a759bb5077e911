//! The composition root: from settings to a running server, and from there to a drained one.

pub mod any_store;
pub mod connection;
pub mod drain;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod readiness;
pub mod reload;
pub mod threads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::api::json;
use crate::api::rls::{self, Rls};
use crate::config::watch::Watcher;
use crate::limiter::{Limiter, LimiterSettings, Shared};
use crate::settings::Settings;
use crate::store::Clock;
use crate::store::memory::MemoryStore;
use any_store::AnyStore;
use drain::Drain;
use grpc::GrpcService;
pub use listen::ListenError;
use readiness::Readiness;
use reload::Reloading;
use threads::{Serving, Threads};

/// gRPC connections open at once. Envoy opens one for each of its workers.
const MAX_CONNECTIONS: usize = 10_000;
/// HTTP connections open at once: people, probes, and callers without gRPC.
const MAX_HTTP_CONNECTIONS: usize = 1_000;
/// How often expired counters in memory are cleared away.
const SWEEP: Duration = Duration::from_secs(1);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("no thread to serve with: {0}")]
    Thread(#[from] io::Error),
}

/// A running server.
pub struct Server {
    pub addresses: Addresses,
    pub shared: Arc<Shared>,
    pub readiness: Arc<Readiness>,
    watcher: Watcher,
    health: tonic_health::server::HealthReporter,
    drain: Drain,
    drain_delay: Duration,
    acceptor: JoinHandle<Threads>,
    background: Vec<JoinHandle<()>>,
}

/// Where a server listens; with port 0 in the settings, where the system put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Server {
    /// Starts to listen and to serve. Ready once rules are loaded.
    ///
    /// # Errors
    /// For an address that is taken, and a system that gives no threads.
    pub async fn start(settings: Settings) -> Result<Server, StartError> {
        let grpc = listen::listen("--grpc-listen", settings.grpc_listen).await?;
        let http = listen::listen("--http-listen", settings.http_listen).await?;
        let addresses = Addresses { grpc: grpc.local_addr()?, http: http.local_addr()? };
        let memory = || MemoryStore::new(Clock::System, settings.memory_max_counters);
        let limiter = LimiterSettings { plan: settings.plan, store_timeout: settings.store_timeout };
        let shared = Arc::new(Shared::new(memory(), limiter));
        let store = Arc::new(memory());
        let readiness = Arc::new(Readiness::default());
        readiness.set_store_ready(true);
        let drain = Drain::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        let others = Arc::new(grpc::other_services(health_service));

        let rls = {
            let (shared, store, answers) = (shared.clone(), store.clone(), settings.answers.clone());
            move || {
                let limiter = Limiter::new(shared.clone(), AnyStore::Memory(store.clone()));
                Arc::new(Rls { limiter, answers: answers.clone() })
            }
        };
        let router = http::healthcheck(readiness.clone()).merge(json::router(rls()));
        let service = move || GrpcService::new(rls(), others.clone());
        let max_age = settings.max_connection_age;
        let mut threads = Threads::start(settings.threads, Serving { service, max_age, draining: drain.draining() })?;
        let draining = drain.draining();
        let acceptor = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            listen::accept(grpc, room, draining, |stream, permit| threads.serve(stream, permit)).await;
            threads
        });
        tokio::spawn(http::serve(http, router, MAX_HTTP_CONNECTIONS, max_age, drain.draining()));
        let reporting = {
            let (readiness, health) = (readiness.clone(), health.clone());
            tokio::spawn(async move { readiness.report_to(health).await })
        };
        let background = vec![reporting, tokio::spawn(sweep(store, shared.clone()))];
        let reloading =
            Reloading { path: settings.rules, options: settings.load, shared: shared.clone(), readiness: readiness.clone() };
        let watcher = tokio::task::spawn_blocking(|| reloading.start()).await.map_err(io::Error::other)??;
        let drain_delay = settings.drain_delay;
        Ok(Server { addresses, shared, readiness, watcher, health, drain, drain_delay, acceptor, background })
    }

    /// Looks whether the rules have changed, now.
    pub fn reload(&self) {
        self.watcher.trigger();
    }

    /// Stops: says so, takes calls for a while yet, then lets every connection finish what it has begun.
    pub async fn stop(mut self) {
        self.readiness.set_draining();
        tokio::time::sleep(self.drain_delay).await;
        for task in &self.background {
            task.abort();
        }
        // Ends the streams of those who watch, which would else stay open.
        for name in ["", rls::SERVICE] {
            self.health.clear_service_status(name).await;
        }
        self.drain.begin();
        if let Ok(threads) = self.acceptor.await {
            let _ = tokio::task::spawn_blocking(move || threads.join()).await;
        }
        self.drain.finished().await;
    }
}

/// Clears expired counters away, off the serving threads.
async fn sweep(store: Arc<MemoryStore>, shared: Arc<Shared>) {
    let mut every = tokio::time::interval(SWEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let (store, shared) = (store.clone(), shared.clone());
        let swept = tokio::task::spawn_blocking(move || {
            store.sweep();
            shared.local().sweep();
        });
        if swept.await.is_err() {
            tracing::error!("clearing expired counters away panicked");
        }
    }
}
