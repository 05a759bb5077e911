//! weir answers Envoy's rate-limit calls. The modules, in reading order.

pub mod admin;
pub mod api;
pub mod cli;
pub mod config;
pub mod grpc_request;
pub mod http_request;
pub mod limit;
pub mod limiter;
pub mod message_json;
pub mod reflection;
pub mod regular_file;
pub mod rules;
pub mod server;
pub mod settings;
pub mod shown;
pub mod spelling;
pub mod store;
pub mod telemetry;
pub mod transport;
