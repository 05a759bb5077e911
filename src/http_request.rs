//! What the headers of an HTTP request say, for both ports that take people's requests: the type of its body, what its
//! caller accepts, and whether a web page of another site sends it.

use http::header::{ACCEPT, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, Uri};

/// What `curl -d` calls every body.
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

/// Whether the body is said to be JSON, with or without parameters.
pub fn is_json(headers: &HeaderMap) -> bool {
    kind(headers).is_some_and(|kind| kind.eq_ignore_ascii_case(JSON))
}

/// The same, or nothing is said of it, or what `curl -d` says of every body.
pub fn may_be_json(headers: &HeaderMap) -> bool {
    let is_form = || kind(headers).is_some_and(|kind| kind.eq_ignore_ascii_case(FORM));
    !headers.contains_key(CONTENT_TYPE) || is_json(headers) || is_form()
}

/// The type of the body, without its parameters. `None` where there is none, or more than one.
fn kind(headers: &HeaderMap) -> Option<&str> {
    let mut kinds = headers.get_all(CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else { return None };
    Some(kind.to_str().ok()?.split(';').next().unwrap_or_default().trim())
}

/// Whether the caller names this type, with a weight above 0 and no lower than that of JSON.
pub fn prefers(headers: &HeaderMap, kind: &str) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Range<'_>> = ranges(accepted).collect();
    let weight = |kind: &str| ranges.iter().filter(|range| range.is(kind)).map(|range| range.weight).reduce(f64::max);
    weight(kind).is_some_and(|weight| weight > 0.0 && weight >= weight_of_json(&ranges))
}

fn weight_of_json(ranges: &[Range<'_>]) -> f64 {
    ranges.iter().filter(|range| range.is(JSON)).map(|range| range.weight).fold(0.0, f64::max)
}

/// The elements of `Accept` headers.
pub fn ranges<'a>(headers: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Range<'a>> {
    headers.flat_map(|header| header.split(',')).map(Range::parse)
}

/// One element of an `Accept` header.
pub struct Range<'a> {
    kind: &'a str,
    pub version: Option<&'a str>,
    /// From 0 (not acceptable) to 1.
    pub weight: f64,
}

impl<'a> Range<'a> {
    /// A weight that is not a number counts as 0.
    fn parse(text: &'a str) -> Range<'a> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Range { kind: parts.next().unwrap_or_default(), version: None, weight: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("q") {
                range.weight = value.parse().ok().filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(0.0);
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value);
            }
        }
        range
    }

    pub fn is(&self, kind: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind)
    }
}

/// Whether a web page of another origin than this host sends the request. Browsers say of every POST, and of every
/// request that asks for another origin's answer, where its page comes from; no other caller does.
pub fn is_foreign(headers: &HeaderMap, uri: &Uri) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else { return false };
    let host = hosts(headers, uri).next().flatten();
    let is_own = origins.next().is_none()
        && origin.to_str().ok().zip(host).is_some_and(|(origin, host)| match origin.split_once("://") {
            Some(("http", origin)) => with_port(origin, "80").eq_ignore_ascii_case(&with_port(host, "80")),
            Some(("https", origin)) => with_port(origin, "443").eq_ignore_ascii_case(&with_port(host, "443")),
            _ => false,
        });
    !is_own
}

fn with_port(host: &str, port: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => format!("{}:{port}", host.trim_end_matches(':')),
    }
}

/// Every host that the request names as its own; `None` for one that is not text.
pub fn hosts<'r>(headers: &'r HeaderMap, uri: &'r Uri) -> impl Iterator<Item = Option<&'r str>> {
    let named = headers.get_all(HOST).iter().map(|host| host.to_str().ok());
    named.chain(uri.authority().map(|host| Some(host.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(named: &[(http::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in named {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn content_types_are_matched_whole() {
        for (kind, expected) in [
            ("application/json", (true, true)),
            ("Application/JSON ; charset=utf-8", (true, true)),
            ("application/jsonx", (false, false)),
            ("application/json-patch+json", (false, false)),
            ("application/x-www-form-urlencoded", (false, true)),
            ("application/x-www-form-urlencodedx", (false, false)),
            ("text/plain", (false, false)),
            ("text/plain; application/json", (false, false)),
            ("multipart/form-data; boundary=x", (false, false)),
            ("", (false, false)),
        ] {
            let headers = headers(&[(CONTENT_TYPE, kind)]);
            assert_eq!((is_json(&headers), may_be_json(&headers)), expected, "{kind}");
        }
        assert_eq!((is_json(&HeaderMap::new()), may_be_json(&HeaderMap::new())), (false, true));
        let both = headers(&[(CONTENT_TYPE, "application/json"), (CONTENT_TYPE, "text/plain")]);
        assert_eq!((is_json(&both), may_be_json(&both)), (false, false));
    }

    #[test]
    fn csv_is_for_those_who_ask_for_it() {
        for (accept, expected) in [
            ("text/csv", true),
            ("application/json;q=0.5, Text/CSV; header=present", true),
            ("text/csvx", false),
            ("text/csv;q=0", false),
            ("application/json, text/csv;q=0.9", false),
            ("*/*", false),
            ("text/html, text/csv", true),
        ] {
            assert_eq!(prefers(&headers(&[(ACCEPT, accept)]), "text/csv"), expected, "{accept}");
        }
        assert!(prefers(&headers(&[(ACCEPT, "text/html"), (ACCEPT, "text/csv")]), "text/csv"));
        assert!(!prefers(&HeaderMap::new(), "text/csv"));
    }

    #[test]
    fn pages_of_this_host_alone_may_ask() {
        let uri = Uri::from_static("/json");
        for (origin, host, expected) in [
            ("http://localhost:6070", "localhost:6070", false),
            ("http://LOCALHOST", "localhost:80", false),
            ("https://weir.example", "weir.example", false),
            ("https://weir.example", "weir.example:443", false),
            ("http://[::1]:6070", "[::1]:6070", false),
            ("http://evil.example", "localhost:6070", true),
            ("http://localhost:8000", "localhost:6070", true),
            ("http://localhost", "localhost:6070", true),
            ("http://localhost:6070.evil.example", "localhost:6070", true),
            ("null", "localhost:6070", true),
            ("file://", "localhost", true),
            ("", "", true),
        ] {
            let headers = headers(&[(HOST, host), (ORIGIN, origin)]);
            assert_eq!(is_foreign(&headers, &uri), expected, "{origin} to {host}");
        }
        assert!(!is_foreign(&headers(&[(HOST, "localhost")]), &uri));
        assert!(is_foreign(&headers(&[(ORIGIN, "http://localhost")]), &uri));
        let own = "http://localhost";
        assert!(is_foreign(&headers(&[(HOST, "localhost"), (ORIGIN, own), (ORIGIN, "http://evil.example")]), &uri));
        assert!(!is_foreign(&headers(&[(ORIGIN, own)]), &Uri::from_static("http://localhost/json")));
    }
}
