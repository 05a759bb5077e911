//! The settings there are: one table that the flags, the environment, the settings file and their documentation are made of.

/// A setting by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// In the settings file; the flag has dashes, the environment variable is upper case and begins with `WEIR_`.
    pub key: &'static str,
    /// It is also an environment variable by its name in upper case alone, as operators of envoyproxy/ratelimit know it.
    pub is_known: bool,
    /// What stands for the value in the help; `None` for a switch, which may stand without one.
    pub value: Option<&'static str>,
    /// The values to offer where a shell completes it; empty where there are too many to list.
    pub values: &'static [&'static str],
    /// As the value would be written; empty where there is none.
    pub default: &'static str,
    pub help: &'static str,
}

impl Name {
    /// `--grpc-listen`, without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// `--grpc-listen`: how errors name it where it was given so, or not at all.
    pub fn origin(&self) -> String {
        format!("--{}", self.flag())
    }

    /// `WEIR_GRPC_LISTEN`.
    pub fn variable(&self) -> String {
        format!("WEIR_{}", self.key.to_ascii_uppercase())
    }

    /// `SHADOW_MODE`, where operators know it by that.
    pub fn known_variable(&self) -> Option<String> {
        self.is_known.then(|| self.key.to_ascii_uppercase())
    }
}

const fn own(key: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Name {
    Name { key, is_known: false, value: Some(value), values: &[], default, help }
}

const fn own_switch(key: &'static str, help: &'static str) -> Name {
    Name { key, is_known: false, value: None, values: &["true", "false"], default: "false", help }
}

const fn known(key: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Name {
    Name { key, is_known: true, value: Some(value), values: &[], default, help }
}

const fn known_switch(key: &'static str, help: &'static str) -> Name {
    Name { key, is_known: true, value: None, values: &["true", "false"], default: "false", help }
}

/// A setting that takes one of a few words.
const fn one_of(name: Name, values: &'static [&'static str]) -> Name {
    Name { values, ..name }
}

/// The settings file itself, which no settings file can name.
pub const FILE: Name = own("config", "FILE", "", "Settings file: YAML, a key for each setting below, with underscores");

/// Every level of the log, the quietest first.
pub(super) const LOG_LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// All others.
pub const NAMES: &[Name] = &[
    own("rules", "PATH", "config/rules", "Rules: a file, or a directory of *.yaml files"),
    own_switch("strict", "Take warnings about the rules for errors"),
    own("store", "STORE", "memory", "Where counters live: memory, redis://…, rediss://… or redis+unix:///…"),
    own("store_timeout", "TIME", "10ms", "How long the store may take, from a request's arrival"),
    own("redis_ca_file", "FILE", "", "Certificate authorities to trust for rediss://, in PEM"),
    own(
        "replicas",
        "N",
        "",
        "How many replicas share a limit while Redis is away and each decides alone; by default, those that report to Redis",
    ),
    own("memory_max_counters", "N", "1000000", "Live counters in memory at most; those that refuse nobody make room"),
    own("grpc_listen", "ADDRESS", "0.0.0.0:8081", "Where to answer gRPC"),
    own("http_listen", "ADDRESS", "0.0.0.0:8080", "Where to answer POST /json and GET /healthcheck"),
    own("admin_listen", "ADDRESS", "127.0.0.1:6070", "Where to show metrics and the rules in force, and to take changes"),
    own("admin_read_token_file", "FILE", "", "Tokens that may look at the admin API: a line each, `name token`"),
    own("admin_change_token_file", "FILE", "", "Tokens that may look and change"),
    own_switch("admin_local_changes", "Without token files, let callers on this machine change as well as look"),
    one_of(
        own("metrics_access", "WHO", "open", "Who may scrape /metrics: open (everyone) or gated (who may look at the admin API)"),
        &["open", "gated"],
    ),
    own("history_days", "DAYS", "30", "How long the history of subjects is kept, in domains with a `subject`; 0 keeps none"),
    own("max_message_bytes", "BYTES", "1048576", "The longest message that is read, over gRPC and as JSON"),
    own("max_message_entries", "N", "4096", "The most entries that all descriptors of one message have together"),
    own("threads", "N", "", "Threads that serve gRPC; else as many as there are cores"),
    own("max_connection_age", "TIME", "5m", "When a gRPC connection is asked to be opened anew, give or take 10 %"),
    own("drain_delay", "TIME", "5s", "How long calls are still taken after SIGTERM, while health says NOT_SERVING"),
    one_of(
        own("log_level", "FILTER", "info", "off, error, warn, info, debug, trace, or directives such as weir=debug"),
        LOG_LEVELS,
    ),
    one_of(own("log_format", "FORMAT", "text", "text or json"), &["text", "json"]),
    one_of(
        known("charge", "WHICH", "auto", "Refused hits that count all the same: auto, admitted (none) or always (all)"),
        &["auto", "admitted", "always"],
    ),
    known_switch("shadow_mode", "Count and answer truthfully for each descriptor, but refuse no request"),
    known_switch("quota_mode", "Treat every descriptor as one of quota_mode: refuse when all are over"),
    known_switch("limit_response_headers_enabled", "Add the three headers below to every answer about a limit"),
    known("limit_limit_header", "NAME", "RateLimit-Limit", "What the header with the limit is called"),
    known("limit_remaining_header", "NAME", "RateLimit-Remaining", "What the header with the remaining requests is called"),
    known("limit_reset_header", "NAME", "RateLimit-Reset", "What the header with the time of reset is called"),
    known_switch("response_dynamic_metadata", "Answer with the request and the rules' metadata as dynamic metadata"),
    known_switch("merge_domain_config", "Let several documents add to one domain"),
    known("local_cache_size_in_bytes", "BYTES", "0", "Memory for refusals that need not be asked of Redis again; 0 is none"),
    known("cache_key_prefix", "TEXT", "", "What the keys of all counters begin with"),
];
