//! Environment variables that begin with `WEIR_` and mean nothing to weir: slips, which are worth a warning, and those that
//! Kubernetes makes for the Services of a namespace, which are not.

use std::ffi::OsString;

use super::names::{FILE, NAMES};
use crate::config::keys::nearest;

/// What the variables begin with.
const PREFIX: &str = "WEIR_";
/// Variables of the commands that ask a running weir.
const OF_COMMANDS: [&str; 2] = ["WEIR_ADMIN", "WEIR_ADMIN_TOKEN_FILE"];

/// A warning for each variable that is set, begins with `WEIR_` and is no setting.
pub fn unknown_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let settings = [&FILE].into_iter().chain(NAMES).map(super::Name::variable);
    let known: Vec<String> = settings.chain(OF_COMMANDS.map(str::to_owned)).collect();
    let mut unknown: Vec<String> = variables
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, value)| name.starts_with(PREFIX) && !known.contains(name) && !is_of_a_service(name, value))
        .map(|(name, _)| warning(&name, &known))
        .collect();
    unknown.sort();
    unknown
}

fn warning(name: &str, known: &[String]) -> String {
    let plain = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let known: Vec<String> = known.iter().map(|name| plain(name)).collect();
    let hint = match nearest(&plain(name), known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {PREFIX}{near}?"),
        None => "`weir serve --help` lists the settings".to_owned(),
    };
    format!("{name}: weir has no such setting and ignores it; {hint}")
}

/// Whether Kubernetes made the variable for a Service, such as one called `weir` or `weir-grpc`: `WEIR_SERVICE_HOST`,
/// `WEIR_SERVICE_PORT_HTTP=8080`, `WEIR_PORT=tcp://10.0.0.1:8080`, `WEIR_PORT_8080_TCP_ADDR`. It is no setting, whatever its name.
pub(super) fn is_of_a_service(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
    let is_url = || PROTOCOLS.iter().any(|protocol| value.strip_prefix(protocol).is_some_and(|rest| rest.starts_with("://")));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = |rest: &str| {
        let mut parts = rest.splitn(3, '_');
        let (number, protocol, detail) = (parts.next(), parts.next(), parts.next());
        number.is_some_and(is_number)
            && protocol.is_some_and(|protocol| PROTOCOLS.contains(&&*protocol.to_ascii_lowercase()))
            && detail.is_none_or(|detail| ["PROTO", "PORT", "ADDR"].contains(&detail))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && is_url()
        || name.match_indices("_PORT").any(|(at, word)| name[at + word.len()..].strip_prefix('_').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(variables: &[(&str, &str)]) -> Vec<String> {
        unknown_variables(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn a_slip_is_named_with_the_nearest_setting() {
        let variables =
            [("WEIR_STOER", "memory"), ("WEIR_COLOUR_SCHEME", "x"), ("WEIR_THREADS", "4"), ("PATH", "/bin"), ("WEIR_EMPTY", "")];
        let expected = [
            "WEIR_COLOUR_SCHEME: weir has no such setting and ignores it; `weir serve --help` lists the settings",
            "WEIR_STOER: weir has no such setting and ignores it; did you mean WEIR_STORE?",
        ];
        assert_eq!(unknown(&variables), expected);
        assert_eq!(unknown(&[("WEIR_ADMIN", "http://x"), ("WEIR_ADMIN_TOKEN_FILE", "f"), ("WEIR_CONFIG", "f")]), [""; 0]);
        assert!(unknown(&[("WEIR_SHADOWMODE", "1")])[0].ends_with("did you mean WEIR_SHADOW_MODE?"));
    }

    #[test]
    fn variables_of_services_are_ignored() {
        let variables = [
            ("WEIR_SERVICE_HOST", "10.96.0.7"),
            ("WEIR_SERVICE_PORT", "8081"),
            ("WEIR_SERVICE_PORT_GRPC", "8081"),
            ("WEIR_SERVICE_PORT_ADMIN_HTTP", "6070"),
            ("WEIR_PORT", "tcp://10.96.0.7:8081"),
            ("WEIR_PORT_8081_TCP", "tcp://10.96.0.7:8081"),
            ("WEIR_PORT_8081_TCP_PROTO", "tcp"),
            ("WEIR_PORT_8081_TCP_PORT", "8081"),
            ("WEIR_PORT_8081_TCP_ADDR", "10.96.0.7"),
            ("WEIR_PORT_53_UDP_ADDR", "10.96.0.7"),
            ("WEIR_REDIS_CA_FILE_SERVICE_HOST", "10.96.0.7"),
            ("WEIR_STORE_PORT", "tcp://10.96.0.9:6379"),
            ("WEIR_PORT_PORT_80_TCP", "tcp://10.96.0.9:80"),
        ];
        assert_eq!(unknown(&variables), [""; 0]);
        assert_eq!(unknown(&[("WEIR_PORT", "8081"), ("WEIR_PORT_8081", "8081"), ("WEIR_PORT_X_TCP", "8081")]).len(), 3);
    }
}
