//! What a server runs with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::api::AnswerSettings;
use crate::rules::plan::PlanSettings;
use crate::store::memory;

/// Everything that is settled before a server starts. [`Default`] is what holds when nothing is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A rules file, or a directory of them.
    pub rules: PathBuf,
    pub store: StoreSetting,
    pub grpc_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Threads that serve gRPC.
    pub threads: usize,
    /// How long the store may take, from a request's arrival.
    pub store_timeout: Duration,
    pub max_connection_age: Duration,
    /// How long a server that is told to stop still takes new calls, so that callers can hear of it.
    pub drain_delay: Duration,
    /// How many replicas share a limit that is decided locally; `None`: as many as are heard of.
    pub replicas: Option<u32>,
    pub memory_max_counters: usize,
    pub plan: PlanSettings,
    pub answers: AnswerSettings,
}

/// Where counters live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSetting {
    Memory,
    Redis,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            rules: PathBuf::from("config/rules"),
            store: StoreSetting::Memory,
            grpc_listen: SocketAddr::from(([0, 0, 0, 0], 8081)),
            http_listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 6070)),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            store_timeout: Duration::from_millis(10),
            max_connection_age: Duration::from_secs(300),
            drain_delay: Duration::from_secs(5),
            replicas: None,
            memory_max_counters: memory::DEFAULT_MAX_COUNTERS,
            plan: PlanSettings::default(),
            answers: AnswerSettings::default(),
        }
    }
}
