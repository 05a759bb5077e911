//! Logs, on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Writes logs from now on.
pub fn start(filter: EnvFilter, as_json: bool) {
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if as_json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_target(false).with_ansi(io::stderr().is_terminal()).init();
    }
}
