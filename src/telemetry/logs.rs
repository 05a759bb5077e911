//! Logs, on standard error.

use std::fmt;
use std::io::{self, IsTerminal};

use jiff::Timestamp;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Writes logs from now on.
pub fn start(filter: EnvFilter, as_json: bool) {
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_timer(Millis);
    if as_json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_target(false).with_ansi(io::stderr().is_terminal()).init();
    }
}

/// Now, as a line of the log begins: to the millisecond, in UTC.
pub fn now() -> String {
    shown(Timestamp::now())
}

fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

struct Millis;

impl FormatTime for Millis {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_to_the_millisecond() {
        let time = |micros| shown(Timestamp::from_microsecond(micros).unwrap());
        assert_eq!(time(1_796_055_083_123_999), "2026-11-30T16:11:23.123Z");
        assert_eq!(time(1_796_055_083_000_000), "2026-11-30T16:11:23.000Z");
    }
}
