//! What a server runs with. What is given (a flag, an environment variable, a key of the settings file; [`given`]) is not what
//! is used: [`Settings`] is resolved from it once, every problem told at once.

mod given;
mod names;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::api::{AnswerSettings, LegacyNames};
use crate::config::LoadOptions;
use crate::rules::plan::PlanSettings;
pub use given::{Given, SettingProblem, SettingProblems};
pub use names::{FILE, NAMES, Name};
pub use values::redacted;

/// Everything that is settled before a server starts. [`Default`] is what holds when nothing is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A rules file, or a directory of them.
    pub rules: PathBuf,
    pub load: LoadOptions,
    pub store: StoreSetting,
    /// How long the store may take, from a request's arrival.
    pub store_timeout: Duration,
    /// Bytes that remembered refusals may take; 0 remembers none.
    pub local_cache_bytes: usize,
    /// How many replicas share a limit that is decided locally; `None`: as many as are heard of.
    pub replicas: Option<u32>,
    pub memory_max_counters: usize,
    pub grpc_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Threads that serve gRPC.
    pub threads: usize,
    pub max_connection_age: Duration,
    /// How long a server that is told to stop still takes new calls, so that callers can hear of it.
    pub drain_delay: Duration,
    pub log: LogSettings,
    pub plan: PlanSettings,
    pub answers: AnswerSettings,
}

/// Where counters live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSetting {
    /// In this process.
    Memory,
    /// In Redis.
    Redis { url: String, ca_file: Option<PathBuf> },
}

/// What is logged, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level, or directives as in `RUST_LOG`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::resolve(&Given::default(), &|_| None).expect("the defaults are allowed")
    }
}

impl Settings {
    /// Resolves what was given: a flag before the environment before the settings file before the default.
    ///
    /// # Errors
    /// All values that are not allowed, and what is wrong with the settings file.
    pub fn resolve(flags: &Given, environment: &dyn Fn(&str) -> Option<String>) -> Result<Settings, SettingProblems> {
        let mut given = given::Layers::new(flags, environment);
        let settings = Settings {
            rules: given.get("rules", values::path),
            load: LoadOptions {
                merge_domains: given.get("merge_domain_config", values::switch),
                key_prefix: given.get("cache_key_prefix", values::text),
            },
            store: store(&mut given),
            store_timeout: given.get("store_timeout", values::timeout),
            local_cache_bytes: given.get("local_cache_size_in_bytes", values::bytes),
            replicas: given.get("replicas", values::replicas),
            memory_max_counters: given.get("memory_max_counters", values::positive),
            grpc_listen: given.get("grpc_listen", values::address),
            http_listen: given.get("http_listen", values::address),
            admin_listen: given.get("admin_listen", values::address),
            threads: given.get("threads", values::threads),
            max_connection_age: given.get("max_connection_age", values::timeout),
            drain_delay: given.get("drain_delay", values::duration),
            log: LogSettings {
                filter: given.get("log_level", values::filter),
                format: given.get("log_format", values::log_format),
            },
            plan: PlanSettings {
                shadow: given.get("shadow_mode", values::switch),
                quota: given.get("quota_mode", values::switch),
                charge: given.get("charge", values::charge),
            },
            answers: AnswerSettings {
                legacy_headers: given.get("limit_response_headers_enabled", values::switch),
                legacy_names: LegacyNames {
                    limit: given.get("limit_limit_header", values::header_name),
                    remaining: given.get("limit_remaining_header", values::header_name),
                    reset: given.get("limit_reset_header", values::header_name),
                },
                dynamic_metadata: given.get("response_dynamic_metadata", values::switch),
            },
        };
        given.finish(settings)
    }
}

fn store(given: &mut given::Layers<'_>) -> StoreSetting {
    let store = given.get("store", values::store);
    let ca_file = given.get("redis_ca_file", values::optional_path);
    match store {
        StoreSetting::Redis { url, .. } => StoreSetting::Redis { url, ca_file },
        StoreSetting::Memory => StoreSetting::Memory,
    }
}

impl LogSettings {
    /// # Panics
    /// When the filter is none; [`Settings::resolve`] lets no such pass.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::try_new(&self.filter).expect("the filter was parsed when the settings were")
    }
}
