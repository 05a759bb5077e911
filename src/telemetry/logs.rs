//! Logs, on standard error. Whatever people, callers or Redis put into an event, it forges no line and steers no terminal: control
//! characters are escaped, and the further lines of an event are indented.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::shown::{escaped_but, is_control};

/// Writes logs from now on.
pub fn start(filter: EnvFilter, as_json: bool) {
    let is_coloured = io::stderr().is_terminal();
    let form = match (as_json, is_coloured) {
        (true, _) => Form::Json,
        (false, true) => Form::Coloured,
        (false, false) => Form::Plain,
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || Events(form)).with_timer(Millis);
    if as_json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_target(false).with_ansi(is_coloured).init();
    }
}

/// How an event looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    /// The escape characters are the formatter's own: it escapes those of values.
    Coloured,
    Json,
}

/// Standard error. The formatter hands over each event whole.
struct Events(Form);

impl Write for Events {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(safe(&String::from_utf8_lossy(event), self.0).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// An event that is one for whoever reads it.
fn safe(event: &str, form: Form) -> Cow<'_, str> {
    match form {
        // JSON escapes the ASCII ones by itself.
        Form::Json if event.contains(|c| is_control(c) && !c.is_ascii()) => {
            let mut json = String::with_capacity(event.len() + 16);
            for c in event.chars() {
                match is_control(c) && !c.is_ascii() {
                    true => json.push_str(&format!("\\u{:04x}", u32::from(c))),
                    false => json.push(c),
                }
            }
            Cow::Owned(json)
        }
        Form::Json => Cow::Borrowed(event),
        Form::Plain | Form::Coloured => {
            let event = escaped_but(event, |c| c == '\n' || c == '\u{1b}' && form == Form::Coloured);
            let body = event.strip_suffix('\n').unwrap_or(&event);
            if !body.contains('\n') {
                return event;
            }
            let indented = body.split('\n').enumerate().map(|(number, line)| match number > 0 && !line.starts_with("  ") {
                true => format!("  {line}\n"),
                false => format!("{line}\n"),
            });
            Cow::Owned(indented.collect())
        }
    }
}

/// A line of a log in JSON, whatever its level is set to: why a server cannot start.
pub fn error_line(message: &str) -> String {
    serde_json::json!({"timestamp": now(), "level": "ERROR", "message": message, "target": "weir::cli::serve"}).to_string()
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
    fn an_event_forges_no_other() {
        let forged = "T INFO audit\nT INFO forged \u{1b}[31m\r\u{202e}\n  hint: x\n";
        let plain = "T INFO audit\n  T INFO forged \\u{1b}[31m\\r\\u{202e}\n  hint: x\n";
        assert_eq!(safe(forged, Form::Plain), plain);
        assert_eq!(safe("\u{1b}[2mT\u{1b}[0m \r\n", Form::Coloured), "\u{1b}[2mT\u{1b}[0m \\r\n");
        assert_eq!(safe("{\"a\":\"\u{202e}é\"}\n", Form::Json), "{\"a\":\"\\u202eé\"}\n");
    }

    #[test]
    fn times_are_shown_to_the_millisecond() {
        let time = |micros| shown(Timestamp::from_microsecond(micros).unwrap());
        assert_eq!(time(1_796_055_083_123_999), "2026-11-30T16:11:23.123Z");
        assert_eq!(time(1_796_055_083_000_000), "2026-11-30T16:11:23.000Z");
    }
}
