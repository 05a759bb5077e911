//! From the text of a setting to its value; an error says what is allowed.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::names::LOG_LEVELS;
use super::{LogFormat, StoreSetting};
use crate::admin::access::{self, MetricsAccess};
use crate::rules::ChargeRule;
use crate::store::redis::{Connector, RedisSettings, RedisSettingsError};

/// More threads than any machine has cores.
const MAX_THREADS: usize = 1_024;

type Parsed<T> = Result<T, String>;

pub(super) fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() { Err("name a file or a directory".to_owned()) } else { Ok(PathBuf::from(text)) }
}

pub(super) fn optional_path(text: &str) -> Parsed<Option<PathBuf>> {
    Ok(Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty()))
}

/// As Go's `strconv.ParseBool` reads it.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "use an address and a port, such as 0.0.0.0:8081 or [::]:8081".to_owned())
}

pub(super) fn bytes(text: &str) -> Parsed<usize> {
    text.parse().map_err(|_| "use a number of bytes, 0 or more".to_owned())
}

pub(super) fn positive(text: &str) -> Parsed<usize> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "use a number, 1 or more".to_owned())
}

pub(super) fn threads(text: &str) -> Parsed<usize> {
    if text.is_empty() {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    }
    positive(text).ok().filter(|&count| count <= MAX_THREADS).ok_or_else(|| format!("use a number from 1 to {MAX_THREADS}"))
}

/// A shorter message holds no ordinary request. A few longer ones would use up the budget of messages that have not
/// come whole.
const MESSAGE_BYTES: RangeInclusive<usize> = 1_024..=16 << 20;
/// An ordinary request has tens of entries; more than the last take as long as many requests.
const MESSAGE_ENTRIES: RangeInclusive<usize> = 64..=65_536;

pub(super) fn message_bytes(text: &str) -> Parsed<usize> {
    within(text, MESSAGE_BYTES, "a number of bytes")
}

pub(super) fn message_entries(text: &str) -> Parsed<usize> {
    within(text, MESSAGE_ENTRIES, "a number")
}

fn within(text: &str, range: RangeInclusive<usize>, what: &str) -> Parsed<usize> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("use {what} from {} to {}", range.start(), range.end()))
}

/// Longer than anyone keeps what is read a day at a time.
const MAX_DAYS: u32 = 400;

pub(super) fn days(text: &str) -> Parsed<u32> {
    text.parse().ok().filter(|&days| days <= MAX_DAYS).ok_or_else(|| format!("use a number of days from 0 to {MAX_DAYS}"))
}

pub(super) fn replicas(text: &str) -> Parsed<Option<u32>> {
    match text {
        "" => Ok(None),
        _ => text.parse().ok().filter(|&number| number > 0).map(Some).ok_or_else(|| "use a number, 1 or more".to_owned()),
    }
}

/// A number and a unit, one or more times: `10ms`, `1m30s`; or 0.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    parse_duration(text).ok_or_else(|| "use a time such as 10ms, 5s, 1m30s or 2h".to_owned())
}

pub(super) fn timeout(text: &str) -> Parsed<Duration> {
    let time = duration(text)?;
    if time.is_zero() { Err("use a time longer than 0, such as 10ms, 5s or 5m".to_owned()) } else { Ok(time) }
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = match unit {
            "us" | "µs" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number.parse().ok()?)?)?;
        if tail.is_empty() {
            return Some(total);
        }
        rest = tail;
    }
}

pub(super) fn filter(text: &str) -> Parsed<String> {
    let allowed = || "use off, error, warn, info, debug or trace, or directives such as weir=debug,info".to_owned();
    // A single word would pass as the name of a module.
    let is_level = LOG_LEVELS.contains(&text.to_ascii_lowercase().as_str());
    let is_directive = text.contains(['=', ',']) && EnvFilter::try_new(text).is_ok();
    if is_level || is_directive { Ok(text.to_owned()) } else { Err(allowed()) }
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("use text or json".to_owned()),
    }
}

pub(super) fn charge(text: &str) -> Parsed<ChargeRule> {
    match text {
        "auto" => Ok(ChargeRule::Auto),
        "admitted" => Ok(ChargeRule::Admitted),
        "always" => Ok(ChargeRule::Always),
        _ => Err("use auto, admitted or always".to_owned()),
    }
}

pub(super) fn metrics_access(text: &str) -> Parsed<MetricsAccess> {
    match text {
        "open" => Ok(MetricsAccess::Open),
        "gated" => Ok(MetricsAccess::Gated),
        _ => Err("use open or gated".to_owned()),
    }
}

pub(super) fn header_name(text: &str) -> Parsed<String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("use the name of a header: letters, digits and dashes".to_owned()),
    }
}

pub(super) fn store(text: &str) -> Parsed<StoreSetting> {
    let is_redis = ["redis://", "rediss://", "redis+unix://"].iter().any(|scheme| text.starts_with(scheme));
    match text {
        "memory" => Ok(StoreSetting::Memory),
        _ if is_redis => Ok(StoreSetting::Redis { url: text.to_owned(), ca_file: None }),
        _ => Err(STORES.to_owned()),
    }
}

/// What a store may be.
pub(super) const STORES: &str =
    "use memory, redis://[user:password@]host[:port][/db], rediss://… likewise for TLS, or redis+unix:///path";

/// Whether this is the address of a Redis server, and the file one of its authorities. Nothing is connected.
pub(super) fn redis(url: &str, ca_file: Option<PathBuf>) -> Result<(), RedisSettingsError> {
    let (key_prefix, never) = (String::new(), Duration::ZERO);
    let settings = RedisSettings { url: url.to_owned(), ca_file, key_prefix, connect_timeout: never, store_timeout: never };
    Connector::new(settings).map(drop)
}

/// A file of tokens that can be read, or none.
pub(super) fn token_file(text: &str) -> Parsed<Option<PathBuf>> {
    let path = optional_path(text)?;
    match path.as_deref().map_or(Ok(()), access::check_file) {
        Ok(()) => Ok(path),
        Err(error) => Err(format!("use a file of tokens, a line each, `name token`: {}", error.reason)),
    }
}

/// Without the password that an address may hold, for people and logs.
pub fn redacted(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return Cow::Borrowed(text) };
    let without_user = match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => text.to_owned(),
    };
    match without_user.split_once('?') {
        Some((place, query)) if query.contains("pass") => Cow::Owned(format!("{place}?***")),
        _ => Cow::Owned(without_user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let cases = [
            ("10ms", Some(10_000)),
            ("1m30s", Some(90_000_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("250us", Some(250)),
            ("2h", Some(7_200_000_000)),
            ("10", None),
            ("", None),
            ("ms", None),
            ("-5s", None),
            ("5 s", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ];
        for (text, micros) in cases {
            assert_eq!(duration(text).ok(), micros.map(Duration::from_micros), "{text}");
        }
        assert!(timeout("0s").is_err());
    }

    #[test]
    fn bounds_of_messages_have_bounds() {
        assert_eq!([message_bytes("1024"), message_bytes("16777216")], [Ok(1_024), Ok(16 << 20)]);
        assert_eq!([message_entries("64"), message_entries("65536")], [Ok(64), Ok(65_536)]);
        for text in ["1023", "16777217", "1MiB", "-1", ""] {
            assert_eq!(message_bytes(text), Err("use a number of bytes from 1024 to 16777216".to_owned()), "{text}");
        }
        assert_eq!(message_entries("0"), Err("use a number from 64 to 65536".to_owned()));
    }

    #[test]
    fn switches_are_as_in_go() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(switch(text), Ok(true));
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(switch(text), Ok(false));
        }
        for text in ["yes", "on", "tRUE", " true", "2"] {
            assert!(switch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_are_levels_or_directives() {
        for text in ["info", "DEBUG", "off", "weir=debug", "warn,weir::store=trace"] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["", "loud", "weir=loud"] {
            assert!(filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(redacted("redis://user:secret@host:6379/1"), "redis://***@host:6379/1");
        assert_eq!(redacted("redis://:p@ss@host"), "redis://***@host");
        assert_eq!(redacted("redis+unix:///run/redis?user=a&pass=secret"), "redis+unix:///run/redis?***");
        assert_eq!(redacted("redis://host:6379"), "redis://host:6379");
        assert_eq!(redacted("memory"), "memory");
    }
}
