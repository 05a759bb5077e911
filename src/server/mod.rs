//! The composition root: from settings to a running server, and from there to a drained one.

pub mod grpc;
pub mod http;
pub mod operators;
pub mod readiness;
pub mod reload;
pub mod stores;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::admin::access::{Access, TokenFileError};
use crate::admin::{self, AdminApi, Operations};
use crate::api::json;
use crate::api::rls::Rls;
use crate::limiter::{Limiter, LimiterSettings, Shared};
use crate::settings::{Settings, StoreSetting, redacted};
use crate::store::Clock;
use crate::store::memory::MemoryStore;
use crate::store::redis::RedisSettingsError;
use crate::transport::connection::{Terms, Versions};
use crate::transport::drain::Drain;
use crate::transport::room::Room;
use crate::transport::threads::{Serving, Threads};
use crate::transport::{body, files, listen};

pub use crate::transport::listen::ListenError;
use grpc::GrpcService;
use operators::Operators;
use readiness::{HEALTH_NAMES, Readiness};
use reload::{Reloading, RulesWatch};
use stores::{Stores, ThreadStore};

/// How long a server that stops waits for the store to take the last of its history.
const LAST_FLUSH: Duration = Duration::from_secs(1);
/// How long connections without a call under way take to end at most, on a slow network too: what lasts longer is told.
const QUIET: Duration = Duration::from_millis(500);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    #[error("{setting} {url}: {reason}")]
    Store { setting: String, url: String, reason: RedisSettingsError },
    #[error("no thread to serve with: {0}")]
    Thread(#[from] io::Error),
}

/// A running server.
pub struct Server {
    pub addresses: Addresses,
    pub shared: Arc<Shared>,
    pub readiness: Arc<Readiness>,
    rules: RulesWatch,
    health: HealthReporter,
    operators: Operators,
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
    pub admin: SocketAddr,
}

struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    fn open(settings: &Settings) -> Result<Listeners, ListenError> {
        let listen = |key, address| listen::listen(settings.origins.of(key), address);
        Ok(Listeners {
            grpc: listen("grpc_listen", settings.grpc_listen)?,
            http: listen("http_listen", settings.http_listen)?,
            admin: listen("admin_listen", settings.admin_listen)?,
        })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses { grpc: self.grpc.local_addr()?, http: self.http.local_addr()?, admin: self.admin.local_addr()? })
    }
}

impl Server {
    /// Starts to listen and to serve. Ready once rules are loaded and the store has answered.
    ///
    /// # Errors
    /// For an address that is taken, a store that cannot be, and a system that gives no threads.
    pub async fn start(settings: Settings) -> Result<Server, StartError> {
        let sizes = files::sizes();
        let fallback = MemoryStore::new(Clock::Corrected(Arc::default()), settings.memory_max_counters);
        let limiter = LimiterSettings { plan: settings.plan, store_timeout: settings.store_timeout };
        let shared = Arc::new(Shared::new(fallback, limiter));
        let stores = Stores::new(&settings, shared.metrics()).map_err(|reason| store_error(&settings, reason))?;
        let access = settings.access.clone();
        let access = tokio::task::spawn_blocking(|| Access::new(access)).await.map_err(io::Error::other)??;
        let listeners = Listeners::open(&settings)?;
        let addresses = listeners.addresses()?;
        let readiness = Arc::new(Readiness::default());
        readiness.set_store_ready(stores.are_ready_at_once());
        // Before anyone is answered: good rules are in force from the first call on.
        let reloading = Reloading::new(&settings, &shared, &readiness, stores.clone());
        let rules = reloading.begin().await?;
        let (health, health_service) = tonic_health::server::health_reporter();
        readiness.report(&health).await;
        let drain = Drain::new();
        let rls = rls_of_a_thread(&settings, &shared, &stores);

        let max_age = settings.max_connection_age;
        let healthcheck = http::healthcheck(readiness.clone());
        let public = healthcheck.clone().merge(json::router(rls(), body::MAX_TIME));
        let operators = stores.for_operators(&shared, &readiness, settings.history_days);
        let look = {
            let (stores, shared, readiness, operators) = (stores.clone(), shared.clone(), readiness.clone(), operators.clone());
            let rules = rules.clone();
            move || {
                shared.metrics().reloads.record_reading(rules.reading_for());
                stores.look(&shared);
                operators.look(&shared);
                shared.metrics().ready.set(i64::from(readiness.is_ready()));
            }
        };
        let operations = Operations::new(shared.clone(), operators.clone());
        let api = Arc::new(AdminApi::new(operations, access));
        let pages = admin::router(&api, shared.clone(), settings.metrics_access, look);
        let admin = admin::http::router(api, healthcheck.merge(pages));
        let room = |size, paths| Room::new(size, paths, shared.metrics().connections.clone());
        let serve_http = |listener, router: Router, versions, size| {
            let terms = Terms { versions, max_age, draining: drain.draining() };
            tokio::spawn(http::serve(listener, router, room(size, http::PATHS), terms))
        };
        serve_http(listeners.http, public, Versions::One, sizes.http);
        serve_http(listeners.admin, admin, Versions::OneAndTwo, sizes.admin);
        let others = Arc::new(grpc::other_services(health_service));
        let room = room(sizes.grpc, grpc::PATHS);
        let acceptor = serve_grpc(listeners.grpc, room, &settings, rls, others, &drain)?;

        let mut background = vec![
            tokio::spawn(stores.look_after(shared.clone(), readiness.clone())),
            tokio::spawn(readiness.clone().report_changes(health.clone())),
            tokio::spawn(rules.clone().log_stalls(settings.rules.clone())),
        ];
        if settings.history_days > 0 {
            background.push(tokio::spawn(operators.clone().keep_history(shared.clone())));
        }
        let drain_delay = settings.drain_delay;
        Ok(Server { addresses, shared, readiness, rules, health, operators, drain, drain_delay, acceptor, background })
    }

    /// Looks whether the rules have changed, now.
    pub fn reload(&self) {
        self.rules.trigger();
    }

    /// Stops as an orchestrator needs it: health says so first, and calls are still taken for the drain delay, so that callers can
    /// hear of it; then every connection finishes what it has begun.
    pub async fn stop(self) {
        let delay = self.drain_delay;
        self.stop_after(delay).await;
    }

    /// Stops as someone at a terminal expects it: at once, except for calls under way.
    pub async fn stop_without_delay(self) {
        self.stop_after(Duration::ZERO).await;
    }

    async fn stop_after(mut self, delay: Duration) {
        self.readiness.set_draining();
        if delay.is_zero() {
            tracing::info!("stopping: health says NOT_SERVING");
        } else {
            let drain_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                drain_delay_ms,
                "stopping: health says NOT_SERVING, and calls are taken until the drain delay is over; a second signal ends weir now"
            );
            tokio::time::sleep(delay).await;
        }
        for task in &self.background {
            task.abort();
        }
        // Ends the streams of those who watch, which would else stay open.
        for name in HEALTH_NAMES {
            self.health.clear_service_status(name).await;
        }
        self.drain.begin();
        let (acceptor, drain) = (self.acceptor, self.drain);
        let ended = async {
            if let Ok(threads) = acceptor.await {
                let _ = tokio::task::spawn_blocking(move || threads.join()).await;
            }
            drain.finished().await;
        };
        let mut ended = pin!(ended);
        if timeout(QUIET, &mut ended).await.is_err() {
            let at_most_s = crate::transport::connection::GRACE.as_secs();
            tracing::info!(at_most_s, "draining: calls are under way; a second Ctrl-C or SIGTERM ends weir now, and cuts them");
            ended.await;
        }
        // Nothing keeps a server from stopping.
        let _ = timeout(LAST_FLUSH, self.operators.flush(&self.shared)).await;
        tracing::info!("stopped: every connection has ended");
    }
}

fn store_error(settings: &Settings, reason: RedisSettingsError) -> StartError {
    let url = match &settings.store {
        StoreSetting::Redis { url, .. } => redacted(url).into_owned(),
        StoreSetting::Memory => "memory".to_owned(),
    };
    StartError::Store { setting: settings.origins.of("store"), url, reason }
}

/// Makes what answers calls, on the thread that is to answer them.
fn rls_of_a_thread(
    settings: &Settings,
    shared: &Arc<Shared>,
    stores: &Stores,
) -> impl Fn() -> Arc<Rls<ThreadStore>> + Clone + Send + 'static {
    let (shared, stores) = (shared.clone(), stores.clone());
    let (answers, bounds) = (settings.answers.clone(), settings.bounds);
    move || {
        let limiter = Limiter::new(shared.clone(), stores.for_this_thread());
        Arc::new(Rls { limiter, answers: answers.clone(), bounds })
    }
}

/// The task gives the threads back when the server drains.
fn serve_grpc(
    listener: TcpListener,
    room: Arc<Room>,
    settings: &Settings,
    rls: impl Fn() -> Arc<Rls<ThreadStore>> + Clone + Send + 'static,
    others: Arc<Routes>,
    drain: &Drain,
) -> io::Result<JoinHandle<Threads>> {
    let key_prefix: Arc<str> = settings.load.key_prefix.as_str().into();
    let service = move || GrpcService::new(rls(), key_prefix.clone(), others.clone());
    let serving = Serving { service, max_age: settings.max_connection_age, draining: drain.draining() };
    let mut threads = Threads::start(settings.threads, serving)?;
    let draining = drain.draining();
    Ok(tokio::spawn(async move {
        listen::accept(listener, room, draining, |stream, slot| threads.serve(stream, slot)).await;
        threads
    }))
}
