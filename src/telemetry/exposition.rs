//! The text formats of a scrape: OpenMetrics for a scraper that asks for it, the older text format of Prometheus for all others.

use std::fmt::Write as _;

use crate::http_request::{Range, ranges};

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format, version 0.0.4: every scraper reads it.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Chooses by the `Accept` headers of a scrape. OpenMetrics is sent only where a header names it, with a weight above 0 and no
    /// lower than that of `text/plain`; a wildcard alone does not ask for it.
    pub fn accepted<'a>(headers: impl Iterator<Item = &'a str>) -> Format {
        let ranges: Vec<Range<'_>> = ranges(headers).collect();
        let weight = |kind: &str, version: &str| {
            let named = ranges.iter().filter(|range| range.is(kind) && range.version.is_none_or(|asked| asked == version));
            named.map(|range| range.weight).reduce(f64::max)
        };
        let wildcard = |kind: &str| ranges.iter().filter(|range| range.is(kind)).map(|range| range.weight).reduce(f64::max);
        let text = weight("text/plain", "0.0.4").or_else(|| wildcard("text/*")).or_else(|| wildcard("*/*"));
        match weight("application/openmetrics-text", "1.0.0") {
            Some(weight) if weight > 0.0 && weight >= text.unwrap_or(0.0) => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Turns OpenMetrics text into Prometheus's text format. Samples are written alike in both. The older format names a family as its
/// samples are named (`…_total`, `…_info`), has no units, no mark of the end, and fewer types.
pub(super) fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(of_family) = line.strip_prefix("# HELP ") {
            // The type decides how the family is called, and comes next.
            help = of_family.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                // Of what OpenMetrics escapes, a quote stands as it is here.
                let _ = writeln!(text, "# HELP {name}{suffix} {}", help.replace("\\\"", "\""));
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        use Format::{OpenMetrics, Prometheus};
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (&[][..], Prometheus),
            (&["*/*"], Prometheus),
            (&["text/plain"], Prometheus),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Prometheus),
            (&["application/json"], Prometheus),
            (&[prometheus_2], OpenMetrics),
            (&[prometheus_3], OpenMetrics),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8"], OpenMetrics),
            (&["application/openmetrics-text;version=0.0.1, text/plain;q=0.1"], Prometheus),
            (&["application/openmetrics-text;version=2.0.0"], Prometheus),
            (&["application/openmetrics-text;q=0.3, text/plain;version=0.0.4;q=0.9"], Prometheus),
            (&["application/openmetrics-text;q=0.3, text/plain;version=1.0.0;q=0.9"], OpenMetrics),
            (&["application/openmetrics-text;q=0.3, text/*;q=0.9, */*;q=0.1"], Prometheus),
            (&["application/openmetrics-text;q=0.5, */*"], Prometheus),
            (&["application/openmetrics-text, */*"], OpenMetrics),
            (&["application/openmetrics-text;q=0"], Prometheus),
            (&["application/openmetrics-text;q=high"], Prometheus),
            (&["text/plain;q=0.2", "application/openmetrics-text ; q=0.7"], OpenMetrics),
            (&["application/*"], Prometheus),
        ] {
            assert_eq!(Format::accepted(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn families_are_named_as_the_older_format_names_them() {
        let open_metrics = "# HELP a_calls Calls of \\\"a\\\" \\\\ \\n.\n# TYPE a_calls counter\n\
                            a_calls_total{rule=\"x # \\\"y\\\"\\n\"} 3\n\
                            # HELP a_build The build.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                            # HELP a_took_seconds Time.\n# TYPE a_took_seconds histogram\n# UNIT a_took_seconds seconds\n\
                            a_took_seconds_bucket{le=\"+Inf\"} 1\n# HELP a_x X.\n# TYPE a_x unknown\na_x 1.5\n# EOF\n";
        let expected = "# HELP a_calls_total Calls of \"a\" \\\\ \\n.\n# TYPE a_calls_total counter\n\
                        a_calls_total{rule=\"x # \\\"y\\\"\\n\"} 3\n\
                        # HELP a_build_info The build.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                        # HELP a_took_seconds Time.\n# TYPE a_took_seconds histogram\n\
                        a_took_seconds_bucket{le=\"+Inf\"} 1\n# HELP a_x X.\n# TYPE a_x untyped\na_x 1.5\n";
        assert_eq!(to_prometheus(open_metrics), expected);
    }
}
