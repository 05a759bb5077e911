//! Limits in short form: `100/minute`, `10 per 30s`, several at once with semicolons.

use super::fields::{self, Amount};
use super::limits::{Draft, Drafts};
use super::problem::{Path, Report};
use super::raw::Node;
use crate::limit::{Algorithm, Limit, Micros};
use crate::rules::Unit;

pub(super) const SHORT_HINT: &str = "a limit reads 100/minute, 10 per 30s, 10/second;100/minute, or unlimited";

/// One scalar with one or several limits in short form.
pub(super) fn limits(node: &Node<'_>, default: Option<Algorithm>, path: &Path<'_>, report: &mut Report<'_>, drafts: &mut Drafts) {
    drafts.written += 1;
    let Some(text) = fields::text(node, path, report) else { return };
    for part in text.split(';') {
        let limit = match parse_short(part.trim()) {
            Ok(Some((requests, window))) => {
                Limit::new(default.unwrap_or(Algorithm::FixedWindow), requests, window, None).map_err(|error| error.to_string())
            }
            Ok(None) => {
                drafts.unlimited = Some(node.at);
                continue;
            }
            Err(hint) => {
                let is_too_large = hint == fields::TOO_LARGE;
                let why = if is_too_large { "has too large a number" } else { "is no limit" };
                let message = format!("`{}` {why}", fields::shorten(part.trim()));
                report.error(node.at, path, message).hint(hint);
                continue;
            }
        };
        match limit {
            Ok(limit) => drafts.limits.push(Draft { at: node.at, limit, algorithm: None, charge: None, max_wait: None }),
            Err(message) => {
                report.error(node.at, path, message);
            }
        }
    }
}

/// `100/minute`, `10 per 30s`; `None` is unlimited.
///
/// # Errors
/// With what a limit reads like.
pub fn parse_short(text: &str) -> Result<Option<(u64, Micros)>, &'static str> {
    if text == "unlimited" || text == "-1" {
        return Ok(None);
    }
    let (requests, time) = text.split_once('/').or_else(|| text.split_once(" per ")).ok_or(SHORT_HINT)?;
    let (requests, time) = (requests.trim(), time.trim());
    let amount =
        fields::parse_amount(requests).map_err(|hint| if hint == fields::TOO_LARGE { fields::TOO_LARGE } else { SHORT_HINT })?;
    let window = match Unit::parse(time) {
        Some(unit) => unit.window(),
        None => fields::parse_duration(time).map_err(|_| SHORT_HINT)?,
    };
    match amount {
        Amount::Requests(requests) => Ok(Some((requests, window))),
        Amount::Unlimited => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{HOUR, MINUTE, SECOND};

    #[test]
    fn short_forms() {
        let limit = |requests, window| Ok(Some((requests, window)));
        assert_eq!(parse_short("100/minute"), limit(100, MINUTE));
        assert_eq!(parse_short("10 per 30s"), limit(10, 30 * SECOND));
        assert_eq!(parse_short("1_000 per hour"), limit(1000, HOUR));
        assert_eq!(parse_short("5/1h30m"), limit(5, 90 * MINUTE));
        assert_eq!([parse_short("unlimited"), parse_short("-1/minute")], [Ok(None), Ok(None)]);
        for bad in ["", "100", "100/", "/minute", "a/minute", "100/fortnight", "1.5/minute", "100 minute"] {
            assert_eq!(parse_short(bad), Err(SHORT_HINT), "{bad}");
        }
        assert_eq!(parse_short("99999999999999999999/second"), Err(fields::TOO_LARGE));
    }
}
