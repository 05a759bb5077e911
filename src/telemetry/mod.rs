//! What operators see of a running server: metrics and logs.

pub mod connections;
pub mod exposition;
mod latency;
pub mod logs;
pub mod metrics;
pub mod rule_counters;

pub use latency::Latency;
