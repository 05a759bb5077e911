//! What a server runs with. What is given (a flag, an environment variable, a key of the settings file; [`given`]) is not what
//! is used: [`Settings`] is resolved from it once, every problem told at once.

mod environment;
mod file;
mod given;
mod names;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::admin::access::{AccessSettings, MetricsAccess};
use crate::api::{AnswerSettings, LegacyNames, MessageBounds};
use crate::config::LoadOptions;
use crate::rules::plan::PlanSettings;
use crate::store::redis::RedisSettingsError;
pub use environment::unknown_variables;
pub use given::{Environment, Given, Origins, SettingProblem, SettingProblems};
pub use names::{FILE, NAMES, Name};
pub use values::redacted;

/// Everything that is settled before a server starts. [`Default`] is what holds when nothing is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A rules file, or a directory of them.
    pub rules: PathBuf,
    pub load: LoadOptions,
    pub store: StoreSetting,
    /// How long the store may take, from a request's arrival.
    pub store_timeout: Duration,
    /// Bytes that remembered refusals may take; 0 remembers none.
    pub local_cache_bytes: usize,
    /// How many replicas share a limit that is decided locally; `None`: those that report to Redis.
    pub replicas: Option<u32>,
    pub memory_max_counters: usize,
    pub grpc_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Who may use the admin API.
    pub access: AccessSettings,
    /// Who may scrape `/metrics`.
    pub metrics_access: MetricsAccess,
    /// How long the history of subjects is kept; 0: not at all.
    pub history_days: u32,
    /// How much one message may hold.
    pub bounds: MessageBounds,
    /// Threads that serve gRPC.
    pub threads: usize,
    pub max_connection_age: Duration,
    /// How long a server that is told to stop still takes new calls, so that callers can hear of it.
    pub drain_delay: Duration,
    pub log: LogSettings,
    pub plan: PlanSettings,
    pub answers: AnswerSettings,
    /// For errors that come later.
    pub origins: Origins,
}

/// Where counters live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSetting {
    /// In this process.
    Memory,
    /// In Redis.
    Redis { url: String, ca_file: Option<PathBuf> },
}

/// What is logged, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level, or directives as in `RUST_LOG`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::resolve(&Given::default(), &|_| None).expect("the defaults are allowed")
    }
}

impl Settings {
    /// Resolves what was given: a flag before the environment before the settings file before the default.
    ///
    /// # Errors
    /// All values that are not allowed, and what is wrong with the settings file.
    pub fn resolve(flags: &Given, environment: Environment<'_>) -> Result<Settings, SettingProblems> {
        let mut given = given::Layers::new(flags, environment);
        let settings = Settings {
            rules: given.get("rules", values::path),
            load: load(&mut given),
            store: store(&mut given),
            store_timeout: given.get("store_timeout", values::timeout),
            local_cache_bytes: given.get("local_cache_size_in_bytes", values::bytes),
            replicas: given.get("replicas", values::replicas),
            memory_max_counters: given.get("memory_max_counters", values::positive),
            grpc_listen: given.get("grpc_listen", values::address),
            http_listen: given.get("http_listen", values::address),
            admin_listen: given.get("admin_listen", values::address),
            access: AccessSettings {
                read_tokens: given.get("admin_read_token_file", values::token_file),
                change_tokens: given.get("admin_change_token_file", values::token_file),
                local_changes: given.get("admin_local_changes", values::switch),
            },
            metrics_access: given.get("metrics_access", values::metrics_access),
            history_days: given.get("history_days", values::days),
            bounds: MessageBounds {
                bytes: given.get("max_message_bytes", values::message_bytes),
                entries: given.get("max_message_entries", values::message_entries),
            },
            threads: given.get("threads", values::threads),
            max_connection_age: given.get("max_connection_age", values::timeout),
            drain_delay: given.get("drain_delay", values::duration),
            log: LogSettings {
                filter: given.get("log_level", values::filter),
                format: given.get("log_format", values::log_format),
            },
            plan: PlanSettings {
                shadow: given.get("shadow_mode", values::switch),
                quota: given.get("quota_mode", values::switch),
                charge: given.get("charge", values::charge),
            },
            answers: AnswerSettings {
                legacy_headers: given.get("limit_response_headers_enabled", values::switch),
                legacy_names: LegacyNames {
                    limit: given.get("limit_limit_header", values::header_name),
                    remaining: given.get("limit_remaining_header", values::header_name),
                    reset: given.get("limit_reset_header", values::header_name),
                },
                dynamic_metadata: given.get("response_dynamic_metadata", values::switch),
            },
            origins: given.origins(),
        };
        given.finish(settings)
    }
}

/// Where the rules are and how they are loaded, for a command that checks them: no other setting needs to be allowed.
///
/// # Errors
/// As [`Settings::resolve`].
pub fn check_settings(flags: &Given, environment: Environment<'_>) -> Result<(PathBuf, LoadOptions), SettingProblems> {
    let mut given = given::Layers::new(flags, environment);
    let settings = (given.get("rules", values::path), load(&mut given));
    given.finish(settings)
}

/// How logs are written, also where other settings are not allowed.
pub fn log_format(flags: &Given, environment: Environment<'_>) -> LogFormat {
    given::Layers::new(flags, environment).get("log_format", values::log_format)
}

fn load(given: &mut given::Layers<'_>) -> LoadOptions {
    LoadOptions {
        merge_domains: given.get("merge_domain_config", values::switch),
        strict: given.get("strict", values::switch),
        key_prefix: given.get("cache_key_prefix", values::text),
    }
}

fn store(given: &mut given::Layers<'_>) -> StoreSetting {
    let store = given.get("store", values::store);
    let ca_file = given.get("redis_ca_file", values::optional_path);
    let StoreSetting::Redis { url, .. } = store else { return StoreSetting::Memory };
    // Each by itself, so that one mistake does not hide the other.
    if values::redis(&url, None).is_err() {
        given.refuse("store", values::STORES);
    }
    if let Some(path) = &ca_file {
        match values::redis("rediss://localhost", Some(path.clone())) {
            Err(RedisSettingsError::CaFile { reason, .. }) => {
                given.refuse("redis_ca_file", &format!("use a file of certificates in PEM: {reason}"));
            }
            Err(error) => given.refuse("redis_ca_file", &error.to_string()),
            Ok(()) if url.starts_with("rediss:") => {}
            Ok(()) => {
                given.refuse("redis_ca_file", "certificates are for rediss:// alone: leave it out, or use a store of that kind")
            }
        }
    }
    StoreSetting::Redis { url, ca_file }
}

/// What the crate that watches files says, at info and warn, of watches that ended with what they watched: it reads like a fault.
const WATCHES: &str = "notify";

impl LogSettings {
    /// # Panics
    /// When the filter is none; [`Settings::resolve`] lets no such pass.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::try_new(self.directives()).expect("the filter was parsed when the settings were")
    }

    /// With [`WATCHES`] left out, unless they are asked for by name, or everything is by a more talkative level.
    fn directives(&self) -> String {
        let everything = self.filter.split(',').map(|directive| directive.trim().to_ascii_lowercase());
        let is_usual = everything.into_iter().any(|level| level == "info" || level == "warn");
        let by_default = if is_usual && !self.filter.contains(WATCHES) { format!(",{WATCHES}=error") } else { String::new() };
        self.filter.clone() + &by_default
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::ChargeRule;
    use clap::{Args as _, FromArgMatches as _};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    fn given(flags: &[&str]) -> Given {
        let command = Given::augment_args(clap::Command::new("weir").no_binary_name(true));
        Given::from_arg_matches(&command.get_matches_from(flags)).unwrap()
    }

    fn resolve(flags: &[&str], environment: &[(&str, &str)]) -> Result<Settings, SettingProblems> {
        let variable = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, text)| OsString::from(text));
        Settings::resolve(&given(flags), &variable)
    }

    /// A settings file, and the flag that names it.
    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let flag = format!("--config={}", file.path().display());
        (file, flag)
    }

    #[test]
    fn nothing_given_is_the_default() {
        let settings = resolve(&[], &[]).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!((settings.rules.to_str(), settings.store), (Some("config/rules"), StoreSetting::Memory));
        assert_eq!(
            (settings.grpc_listen.to_string(), settings.http_listen.to_string()),
            ("0.0.0.0:8081".into(), "0.0.0.0:8080".into())
        );
        assert_eq!(
            (settings.admin_listen.to_string(), settings.store_timeout),
            ("127.0.0.1:6070".into(), Duration::from_millis(10))
        );
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file() {
        let (_file, flag) = file("threads: 2\nstore_timeout: 3ms\nlog_format: json\nshadow_mode: yes\nreplicas: null\n");
        let settings = resolve(&[&flag, "--threads", "4"], &[("WEIR_THREADS", "3"), ("WEIR_STORE_TIMEOUT", "5ms")]).unwrap();
        assert_eq!((settings.threads, settings.store_timeout), (4, Duration::from_millis(5)));
        assert_eq!((settings.log.format, settings.plan.shadow, settings.replicas), (LogFormat::Json, true, None));
        let (_file, flag) = file("threads: 2");
        let named = flag.strip_prefix("--config=").unwrap();
        assert_eq!(resolve(&[], &[("WEIR_CONFIG", named)]).unwrap().threads, 2);
    }

    #[test]
    fn names_that_operators_know_are_read() {
        let environment = [
            ("LIMIT_RESPONSE_HEADERS_ENABLED", "1"),
            ("LIMIT_LIMIT_HEADER", "X-Limit"),
            ("LIMIT_REMAINING_HEADER", "X-Remaining"),
            ("LIMIT_RESET_HEADER", "X-Reset"),
            ("SHADOW_MODE", "T"),
            ("QUOTA_MODE", "true"),
            ("RESPONSE_DYNAMIC_METADATA", "True"),
            ("MERGE_DOMAIN_CONFIG", "t"),
            ("LOCAL_CACHE_SIZE_IN_BYTES", "1024"),
            ("CACHE_KEY_PREFIX", "p:"),
            ("CHARGE", "always"),
        ];
        let settings = resolve(&[], &environment).unwrap();
        let legacy_names = LegacyNames { limit: "X-Limit".into(), remaining: "X-Remaining".into(), reset: "X-Reset".into() };
        assert_eq!(settings.answers, AnswerSettings { legacy_headers: true, legacy_names, dynamic_metadata: true });
        assert_eq!(settings.plan, PlanSettings { shadow: true, quota: true, charge: ChargeRule::Always });
        assert_eq!(settings.load, LoadOptions { merge_domains: true, strict: false, key_prefix: "p:".into() });
        assert_eq!(settings.local_cache_bytes, 1024);
        let both = resolve(&["--quota-mode"], &[("WEIR_SHADOW_MODE", "0"), ("SHADOW_MODE", "1"), ("RULES", "x")]).unwrap();
        assert_eq!((both.plan.shadow, both.plan.quota, both.rules.to_str()), (false, true, Some("config/rules")));
    }

    #[test]
    fn watches_are_not_logged_unless_they_are_asked_for() {
        let directives = |filter: &str| LogSettings { filter: filter.to_owned(), format: LogFormat::Text }.directives();
        for (filter, expected) in [
            ("info", "info,notify=error"),
            ("WARN", "WARN,notify=error"),
            ("weir=debug, info", "weir=debug, info,notify=error"),
            ("info,notify=info", "info,notify=info"),
            ("debug", "debug"),
            ("off", "off"),
            ("weir=debug", "weir=debug"),
        ] {
            assert_eq!(directives(filter), expected);
            assert!(EnvFilter::try_new(expected).is_ok());
        }
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        assert_eq!(resolve(&[], &[("WEIR_THREADS", ""), ("SHADOW_MODE", "")]), Ok(Settings::default()));
    }

    #[test]
    fn a_variable_that_is_no_text_is_an_error() {
        let bytes =
            |name: &str| (name == "WEIR_STORE" || name == "CHARGE").then(|| OsString::from_vec(b"redis://u:p@\xff".to_vec()));
        let problems = Settings::resolve(&Given::default(), &bytes).unwrap_err().to_string();
        let expected =
            ["WEIR_STORE", "CHARGE"].map(|name| format!("{name}: `redis://***@\u{fffd}` is not allowed; use text in UTF-8"));
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
        let flags = given(&["--store=memory", "--charge=auto"]);
        let settings = Settings::resolve(&flags, &bytes).unwrap();
        assert_eq!((settings.store, settings.plan), (StoreSetting::Memory, PlanSettings::default()), "flags count before");
    }

    #[test]
    fn every_bad_setting_names_itself_its_value_and_what_is_allowed() {
        let (_file, flag) = file("log_level: loud\nthreds: 4\nmade_up: 1\n");
        let path = flag.strip_prefix("--config=").unwrap();
        let flags = [&flag, "--store", "redis:6379", "--threads=0", "--shadow-mode=maybe"];
        let environment = [
            ("WEIR_GRPC_LISTEN", "localhost"),
            ("CHARGE", "sometimes"),
            ("WEIR_STORE_TIMEOUT", "0"),
            ("LIMIT_RESET_HEADER", "a b"),
        ];
        let problems = resolve(&flags, &environment).unwrap_err().to_string();
        let expected = [
            format!("{path}:2: there is no setting `threds`; did you mean `threads`?"),
            format!("{path}:3: there is no setting `made_up`"),
            "--store: `redis:6379` is not allowed; use memory, redis://[user:password@]host[:port][/db], rediss://… likewise for TLS, or redis+unix:///path".into(),
            "WEIR_STORE_TIMEOUT: `0` is not allowed; use a time longer than 0, such as 10ms, 5s or 5m".into(),
            "WEIR_GRPC_LISTEN: `localhost` is not allowed; use an address and a port, such as 0.0.0.0:8081 or [::]:8081".into(),
            "--threads: `0` is not allowed; use a number from 1 to 1024".into(),
            format!(
                "{path}:1: log_level: `loud` is not allowed; use off, error, warn, info, debug or trace, or directives such as weir=debug,info"
            ),
            "--shadow-mode: `maybe` is not allowed; use true or false".into(),
            "CHARGE: `sometimes` is not allowed; use auto, admitted or always".into(),
            "LIMIT_RESET_HEADER: `a b` is not allowed; use the name of a header: letters, digits and dashes".into(),
        ];
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected.iter().map(String::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn a_value_that_looks_like_a_flag_is_told_of_as_a_value() {
        let flags = [
            "--memory-max-counters",
            "-5",
            "--local-cache-size-in-bytes=-1",
            "--store-timeout",
            "-1ms",
            "--history-days",
            "-1",
            "--drain-delay",
            "-1s",
        ];
        let problems = resolve(&flags, &[]).unwrap_err().to_string();
        let expected = [
            "--store-timeout: `-1ms` is not allowed; use a time such as 10ms, 5s, 1m30s or 2h",
            "--local-cache-size-in-bytes: `-1` is not allowed; use a number of bytes, 0 or more",
            "--memory-max-counters: `-5` is not allowed; use a number, 1 or more",
            "--history-days: `-1` is not allowed; use a number of days from 0 to 400",
            "--drain-delay: `-1s` is not allowed; use a time such as 10ms, 5s, 1m30s or 2h",
        ];
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
        assert_eq!(resolve(&["--cache-key-prefix", "-x", "--shadow-mode"], &[]).unwrap().load.key_prefix, "-x");
        let command = Given::augment_args(clap::Command::new("weir").no_binary_name(true));
        let error = command.try_get_matches_from(["--cache-key-prefix", "--shadow-mode"]).unwrap_err().to_string();
        assert!(error.contains("'--cache-key-prefix <TEXT>': that is a flag"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_settings_file_says_why() {
        let problem = |text: &str| {
            let (_file, flag) = file(text);
            let path = flag.strip_prefix("--config=").unwrap();
            resolve(&[&flag], &[]).unwrap_err().to_string().replace(path, "F")
        };
        assert_eq!(
            problem("log_level: info\nthreads: [1, 2]\nstore: {a: b}\n"),
            "F:2: threads: a list is not allowed; use a single value\nF:3: store: a map is not allowed; use a single value"
        );
        assert_eq!(problem("threads: 1\nthreads: 2"), "F:2: threads: it stands here twice; keep one of the two");
        for text in ["a: [", "threads: \"1", "store: *x"] {
            let said = problem(text);
            assert!(said.starts_with("F:1: ") || said.starts_with("F:2: "), "{said}");
            assert!(!said.contains('<') && said.lines().count() == 1, "{said}");
        }
        for text in ["- threads", "just text", "17"] {
            assert_eq!(problem(text), "F:1: a settings file has a key and its value on each line, such as `threads: 4`");
        }
        assert_eq!(problem("threads: 1\n---\nstore: memory\n"), "F:3: a settings file has one document");
        assert_eq!(problem("[a]: 1\n"), "F:1: a key is the name of a setting");
        let missing = "no/such/file: No such file or directory (os error 2); name a settings file by --config or WEIR_CONFIG";
        let said = |flags: &[&str], variables: &[(&str, &str)]| resolve(flags, variables).unwrap_err().to_string();
        assert_eq!(said(&["--config=no/such/file"], &[]), format!("--config: {missing}"));
        assert_eq!(said(&[], &[("WEIR_CONFIG", "no/such/file")]), format!("WEIR_CONFIG: {missing}"));
        for text in ["# nothing\n", "", "---\n"] {
            let (_file, flag) = file(text);
            assert_eq!(resolve(&[&flag], &[]), Ok(Settings::default()), "{text:?}");
        }
    }

    #[test]
    fn stores_and_files_that_cannot_be_are_told_of_with_the_rest() {
        let stores = "is not allowed; use memory, redis://[user:password@]host[:port][/db], rediss://… likewise for TLS, or redis+unix:///path";
        for url in ["redis://:6379", "redis://h:99999", "redis://h/abc", "rediss://", "redis+unix://"] {
            assert_eq!(resolve(&["--store", url], &[]).unwrap_err().to_string(), format!("--store: `{url}` {stores}"));
        }
        let (file, flag) = file("admin_read_token_file: no/such/file\n");
        std::fs::write(file.path().with_extension("short"), "ann short\n").unwrap();
        let path = flag.strip_prefix("--config=").unwrap();
        let short = file.path().with_extension("short").display().to_string();
        let flags = [&flag, "--threads=0", "--admin-change-token-file", &short];
        let problems = resolve(&flags, &[("WEIR_STORE", "redis://h:99999"), ("WEIR_REDIS_CA_FILE", "no/such/file")]).unwrap_err();
        std::fs::remove_file(&short).unwrap();
        let (missing, tokens) = ("No such file or directory (os error 2)", "use a file of tokens, a line each, `name token`");
        let expected = [
            format!("WEIR_STORE: `redis://h:99999` {stores}"),
            format!("WEIR_REDIS_CA_FILE: `no/such/file` is not allowed; use a file of certificates in PEM: {missing}"),
            format!("{path}:1: admin_read_token_file: `no/such/file` is not allowed; {tokens}: {missing}"),
            format!("--admin-change-token-file: `{short}` is not allowed; {tokens}: line 1: a token has at least 16 characters"),
            "--threads: `0` is not allowed; use a number from 1 to 1024".to_owned(),
        ];
        assert_eq!(problems.to_string().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_came_from_elsewhere_is_named_so_later() {
        let (_file, flag) = file("\nhttp_listen: 127.0.0.1:1\n");
        let origins = resolve(&[&flag], &[("WEIR_GRPC_LISTEN", "192.0.2.1:7000")]).unwrap().origins;
        let path = flag.strip_prefix("--config=").unwrap();
        let expected = ["WEIR_GRPC_LISTEN".to_owned(), format!("{path}:2: http_listen"), "--admin-listen".to_owned()];
        assert_eq!(["grpc_listen", "http_listen", "admin_listen"].map(|key| origins.of(key)), expected);
    }

    #[test]
    fn the_page_and_the_example_file_have_every_setting() {
        let page = include_str!("../../docs/settings.md");
        let example = include_str!("../../config/weir.yaml");
        for name in NAMES {
            let known = name.known_variable().map(|known| format!(", `{known}`")).unwrap_or_default();
            let default = if name.default.is_empty() { String::new() } else { format!("`{}`", name.default) };
            let row = format!("| `--{}` | `{}`{known} | {default} | {} |", name.flag(), name.variable(), name.help);
            assert!(page.lines().any(|line| line == row), "docs/settings.md has no line\n{row}");
            let lines =
                [format!("# {}", name.help), format!("#{}: {}", name.key, name.default)].map(|line| line.trim_end().to_owned());
            assert!(example.contains(&lines.join("\n")), "config/weir.yaml has no lines\n{}", lines.join("\n"));
        }
        let set: String = example
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with([' ', '#']))
            .fold(String::new(), |text, line| text + line + "\n");
        let (_file, flag) = file(&set);
        let from_file = resolve(&[&flag], &[]).map(|settings| Settings { origins: Origins::default(), ..settings });
        assert_eq!(from_file, Ok(Settings::default()), "{set}");
        let (_file, flag) = file(example);
        assert_eq!(resolve(&[&flag], &[]), Ok(Settings::default()));
    }
}
