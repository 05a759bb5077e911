//! Who may look and who may change: bearer tokens in two roles. A thread of its own reads the token files again and again, so that a
//! rotated token counts, or no longer does, within a second or two; no call waits for a file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};

use crate::http_request::{hosts, is_foreign};
use crate::regular_file;
use crate::shown::{escaped, is_control};

/// The shortest token that counts, in bytes: shorter ones can be guessed.
const MIN_TOKEN: usize = 16;
/// The most of a token file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// How often the token files are read.
const EVERY: Duration = Duration::from_secs(1);
/// How long a start waits for the token files; callers are refused until they are read.
const FIRST_READING: Duration = Duration::from_secs(5);
/// A reading that takes longer is logged.
const STALLED: Duration = Duration::from_secs(10);

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccessSettings {
    /// Tokens that may look.
    pub read_tokens: Option<PathBuf>,
    /// Tokens that may look and change.
    pub change_tokens: Option<PathBuf>,
    /// Without any token file, callers on this machine may change as well as look.
    pub local_changes: bool,
}

/// Who may scrape `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MetricsAccess {
    /// Whoever reaches the port: Prometheus scrapes from elsewhere.
    #[default]
    Open,
    /// Those who may look.
    Gated,
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Read,
    Change,
}

/// Where a connection comes from; set on every request by whoever accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Who calls, as the audit names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub from: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No token, or an unknown one.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// `by` is the caller's name, where it is known.
    #[error("{reason}")]
    Forbidden { reason: &'static str, by: Option<String> },
}

impl Refusal {
    /// Who was refused, where that is known.
    pub fn by(&self) -> Option<&str> {
        match self {
            Refusal::Unauthenticated(_) => None,
            Refusal::Forbidden { by, .. } => by.as_deref(),
        }
    }
}

/// Why the settings let nobody in.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TokenFileError {
    pub path: PathBuf,
    pub reason: String,
}

static NO_TOKENS: Tokens = Tokens { read: Vec::new(), change: Vec::new() };

/// What callers on this machine are called, who need no token.
const LOCAL: &str = "local";

/// Checks callers. Clones share the tokens; the thread that reads them ends with the last clone.
#[derive(Clone, Debug)]
pub struct Access {
    settings: Arc<AccessSettings>,
    known: Arc<Known>,
}

/// The tokens of both files.
#[derive(Debug, Default)]
struct Known {
    tokens: ArcSwapOption<Tokens>,
    /// What keeps each file from being used, as it was last logged.
    failures: Mutex<[Option<String>; 2]>,
    /// Since when a reading is under way.
    reading: Mutex<Option<Instant>>,
}

/// A file that cannot be used has none.
#[derive(Debug, Default)]
struct Tokens {
    read: Vec<Token>,
    change: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    name: String,
    secret: String,
}

impl Known {
    /// Reads the files. Logs a file that cannot be used, and one that can be used again.
    fn refresh(&self, settings: &AccessSettings) {
        let [read, change] = [&settings.read_tokens, &settings.change_tokens].map(|path| path.as_deref().map(tokens).transpose());
        let mut failures = self.failures.lock();
        let mut usable = |place: usize, result: Result<Option<Vec<Token>>, TokenFileError>| match result {
            Ok(tokens) => {
                if failures[place].take().is_some() {
                    tracing::info!("the token file can be used again");
                }
                tokens.unwrap_or_default()
            }
            Err(error) => {
                let reason = error.to_string();
                if failures[place].as_ref() != Some(&reason) {
                    tracing::error!(%error, "cannot use a token file; its tokens are refused until it is mended");
                }
                failures[place] = Some(reason);
                Vec::new()
            }
        };
        self.tokens.store(Some(Arc::new(Tokens { read: usable(0, read), change: usable(1, change) })));
    }

    /// Reads the files again and again, for as long as anyone needs the tokens.
    fn keep(known: Weak<Known>, settings: Arc<AccessSettings>, first: SyncSender<()>) {
        while let Some(known) = known.upgrade() {
            *known.reading.lock() = Some(Instant::now());
            known.refresh(&settings);
            let took = known.reading.lock().take().map(|since| since.elapsed());
            if let Some(took) = took.filter(|took| *took >= STALLED) {
                tracing::info!(seconds = took.as_secs(), "the token files were read after all");
            }
            drop(known);
            let _ = first.try_send(());
            std::thread::park_timeout(EVERY);
        }
    }

    /// Logs once that a reading takes long. The tokens that are known stay.
    fn watch(known: Weak<Known>) {
        let mut logged = None;
        while let Some(known) = known.upgrade() {
            let since = known.reading.lock().filter(|since| since.elapsed() >= STALLED);
            if let Some(since) = since.filter(|since| logged != Some(*since)) {
                logged = Some(since);
                let seconds = since.elapsed().as_secs();
                tracing::warn!(
                    seconds,
                    "reading the token files takes long; using the last known tokens: does their file system answer?"
                );
            }
            drop(known);
            std::thread::park_timeout(EVERY);
        }
    }
}

/// Whether a file of tokens can be used, as far as is known after a few seconds: one that cannot be read by then may come yet.
///
/// # Errors
/// For a file that cannot be read, or has a token that is too short.
pub fn check_file(path: &Path) -> Result<(), TokenFileError> {
    let path = path.to_owned();
    regular_file::within(FIRST_READING, move || tokens(&path).map(drop)).unwrap_or(Ok(()))
}

impl Access {
    /// Waits for the first reading of the token files, at most five seconds.
    ///
    /// # Errors
    /// For a token file that cannot be read, or has a token that is too short.
    pub fn new(settings: AccessSettings) -> Result<Access, TokenFileError> {
        for path in settings.read_tokens.iter().chain(&settings.change_tokens) {
            check_file(path)?;
        }
        let access = Access { settings: Arc::new(settings), known: Arc::default() };
        if access.has_tokens() {
            let (known, settings) = (Arc::downgrade(&access.known), access.settings.clone());
            let (first, is_read) = sync_channel(1);
            let watched = known.clone();
            let keeper = std::thread::Builder::new().name("tokens".to_owned()).spawn(move || Known::keep(known, settings, first));
            let watcher = std::thread::Builder::new().name("tokens-watch".to_owned()).spawn(move || Known::watch(watched));
            if let Err(error) = keeper.and(watcher) {
                let path = access.settings.read_tokens.clone().or(access.settings.change_tokens.clone()).unwrap_or_default();
                return Err(TokenFileError { path, reason: format!("no thread to read it with: {error}") });
            }
            let _ = is_read.recv_timeout(FIRST_READING);
        }
        Ok(access)
    }

    /// # Errors
    /// For a caller who may not.
    pub fn admit(&self, needed: Role, headers: &HeaderMap, uri: &Uri, peer: Option<Peer>) -> Result<Caller, Refusal> {
        let from = peer.map(|Peer(address)| address);
        if is_foreign(headers, uri) {
            let reason = "a web page of another origin asks, and such pages are not answered";
            return Err(Refusal::Forbidden { reason, by: None });
        }
        let bearer = headers.get(AUTHORIZATION).map(|value| value.to_str().ok().and_then(bearer));
        let name = match bearer {
            Some(None) => Err(Refusal::Unauthenticated("the authorization is no bearer token")),
            Some(Some(secret)) => self.admit_token(needed, secret),
            None if self.has_tokens() => Err(Refusal::Unauthenticated("a bearer token is needed")),
            None => self.admit_local(needed, headers, uri, peer),
        };
        Ok(Caller { name: name?, from })
    }

    fn has_tokens(&self) -> bool {
        self.settings.read_tokens.is_some() || self.settings.change_tokens.is_some()
    }

    fn admit_token(&self, needed: Role, secret: &str) -> Result<String, Refusal> {
        let tokens = self.known.tokens.load();
        let Some(tokens) = tokens.as_deref().or_else(|| (!self.has_tokens()).then_some(&NO_TOKENS)) else {
            return Err(Refusal::Unauthenticated("the token files are not read yet: is their file system slow?"));
        };
        let known = |tokens: &[Token]| tokens.iter().find(|token| is_same(&token.secret, secret)).map(|token| token.name.clone());
        if let Some(name) = known(&tokens.change) {
            return Ok(name);
        }
        match (known(&tokens.read), needed) {
            (Some(name), Role::Read) => Ok(name),
            (Some(name), Role::Change) => Err(Refusal::Forbidden { reason: "this token may look and not change", by: Some(name) }),
            (None, _) => Err(Refusal::Unauthenticated("the token is not known")),
        }
    }

    /// Without tokens: whoever is on this machine. A name that is not this machine's in `Host` is a browser that was lured here.
    fn admit_local(&self, needed: Role, headers: &HeaderMap, uri: &Uri, peer: Option<Peer>) -> Result<String, Refusal> {
        let is_local = peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback());
        let mut named = hosts(headers, uri).peekable();
        let is_ours = named.peek().is_some() && named.all(|host| host.is_some_and(names_this_machine));
        if !is_local || !is_ours {
            return Err(Refusal::Forbidden { reason: "without a token file, only callers on this machine are answered", by: None });
        }
        if needed == Role::Change && !self.settings.local_changes {
            let reason = "changes need a token (--admin-change-token-file), or --admin-local-changes";
            return Err(Refusal::Forbidden { reason, by: Some(LOCAL.to_owned()) });
        }
        Ok(LOCAL.to_owned())
    }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares digests: how long it takes tells nothing about the token.
fn is_same(one: &str, other: &str) -> bool {
    digest(&SHA256, one.as_bytes()).as_ref() == digest(&SHA256, other.as_bytes()).as_ref()
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A token a line: `name token`, or the token alone. `#` begins a comment.
fn tokens(path: &Path) -> Result<Vec<Token>, TokenFileError> {
    let error = |reason: String| TokenFileError { path: path.to_owned(), reason };
    let text = regular_file::read(path, MAX_FILE).and_then(regular_file::text).map_err(|problem| error(problem.to_string()))?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, secret) = line.split_once(char::is_whitespace).map_or_else(
            || (escaped(&path.file_name().unwrap_or_default().to_string_lossy()).into_owned(), line),
            |(name, secret)| (name.to_owned(), secret.trim()),
        );
        // The audit names who holds the token.
        if name.contains(is_control) {
            return Err(error(format!("line {}: the name of a token has a control character: take it out", number + 1)));
        }
        if secret.len() < MIN_TOKEN {
            return Err(error(format!("line {}: a token has at least {MIN_TOKEN} characters", number + 1)));
        }
        tokens.push(Token { name, secret: secret.to_owned() });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{HOST, ORIGIN};

    const READ: &str = "read-read-read-read";
    const CHANGE: &str = "change-change-change";

    fn call(access: &Access, needed: Role, token: Option<&str>, host: &str, peer: &str) -> Result<String, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token.parse().unwrap());
        }
        let peer = Peer(format!("{peer}:1234").parse().unwrap());
        match access.admit(needed, &headers, &Uri::from_static("/v1/x"), Some(peer)) {
            Ok(caller) => Ok(caller.name),
            Err(Refusal::Unauthenticated(_)) => Err(401),
            Err(Refusal::Forbidden { .. }) => Err(403),
        }
    }

    fn with_files() -> (tempfile::TempDir, Access) {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let settings = AccessSettings {
            read_tokens: file("read", format!("# people\nann  {READ}\n")),
            change_tokens: file("change", format!("{CHANGE}\n")),
            local_changes: true,
        };
        let access = Access::new(settings).unwrap();
        (directory, access)
    }

    #[test]
    fn tokens_have_their_role_and_name() {
        let (_directory, access) = with_files();
        let by = |needed, token: &str| call(&access, needed, Some(token), "weir:6070", "10.0.0.1");
        let [read, change] = [READ, CHANGE].map(|token| format!("Bearer {token}"));
        assert_eq!(by(Role::Read, &read), Ok("ann".to_owned()));
        assert_eq!(by(Role::Change, &read), Err(403));
        assert_eq!(by(Role::Change, &change), Ok("change".to_owned()));
        assert_eq!(by(Role::Read, &change), Ok("change".to_owned()));
        for bad in ["Bearer no-such-token-at-all", "Bearer ", "Basic YTpi", READ, "Bearer ann"] {
            assert_eq!(by(Role::Read, bad), Err(401), "{bad}");
        }
        assert_eq!(call(&access, Role::Read, None, "localhost", "127.0.0.1"), Err(401), "tokens are for everyone");
    }

    #[test]
    fn a_rotated_token_counts_from_the_next_reading_on() {
        let (directory, access) = with_files();
        std::fs::write(directory.path().join("read"), "ann another-token-of-hers").unwrap();
        let by = |token: &str| {
            access.known.refresh(&access.settings);
            call(&access, Role::Read, Some(token), "weir", "10.0.0.1")
        };
        assert_eq!([by(&format!("Bearer {READ}")), by("bearer another-token-of-hers")], [Err(401), Ok("ann".to_owned())]);
        std::fs::remove_file(directory.path().join("read")).unwrap();
        assert_eq!(by("bearer another-token-of-hers"), Err(401));
    }

    #[test]
    fn without_tokens_only_this_machine_is_answered_and_changes_nothing() {
        let access = Access::new(AccessSettings::default()).unwrap();
        let local = |needed, host| call(&access, needed, None, host, "127.0.0.1");
        for host in ["localhost:6070", "127.0.0.1:6070", "[::1]:6070", "LOCALHOST"] {
            assert_eq!(local(Role::Read, host), Ok("local".to_owned()), "{host}");
        }
        assert_eq!(local(Role::Read, "evil.example:6070"), Err(403), "a name that was pointed at this machine");
        assert_eq!(local(Role::Change, "localhost"), Err(403));
        assert_eq!(call(&access, Role::Read, None, "localhost", "10.0.0.1"), Err(403));
        let open = Access::new(AccessSettings { local_changes: true, ..AccessSettings::default() }).unwrap();
        assert_eq!(call(&open, Role::Change, None, "localhost", "127.0.0.1"), Ok("local".to_owned()));
        assert_eq!(call(&open, Role::Change, None, "localhost", "10.0.0.1"), Err(403));
    }

    #[test]
    fn every_host_that_a_request_names_is_this_machine() {
        let access = Access::new(AccessSettings::default()).unwrap();
        let peer = Some(Peer("127.0.0.1:1234".parse().unwrap()));
        let call = |named: &[&str], uri: &'static str| {
            let mut headers = HeaderMap::new();
            for host in named {
                headers.append(HOST, host.parse().unwrap());
            }
            access.admit(Role::Read, &headers, &Uri::from_static(uri), peer).is_ok()
        };
        assert!(call(&["localhost"], "/v1/x") && call(&[], "http://localhost/v1/x") && call(&["localhost"], "http://[::1]:6070/"));
        for (named, uri) in [
            (&[][..], "/v1/x"),
            (&["localhost", "evil.example"], "/v1/x"),
            (&["localhost"], "http://evil.example/v1/x"),
            (&["evil.example"], "http://localhost/v1/x"),
            (&["localhost.evil.example"], "/v1/x"),
        ] {
            assert!(!call(named, uri), "{named:?} {uri}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_refused_whatever_it_has() {
        let (_directory, access) = with_files();
        let call = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "weir:6070".parse().unwrap());
            headers.insert(ORIGIN, origin.parse().unwrap());
            headers.insert(AUTHORIZATION, format!("Bearer {CHANGE}").parse().unwrap());
            access.admit(Role::Read, &headers, &Uri::from_static("/v1/x"), None).map(|caller| caller.name)
        };
        assert_eq!(call("http://weir:6070"), Ok("change".to_owned()));
        for origin in ["http://evil.example", "null", "http://weir"] {
            assert!(matches!(call(origin), Err(Refusal::Forbidden { .. })), "{origin}");
        }
    }

    #[test]
    fn a_file_that_lets_nobody_in_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let new = || Access::new(AccessSettings { read_tokens: Some(path.clone()), ..AccessSettings::default() });
        assert!(new().is_err());
        std::fs::write(&path, "short\n").unwrap();
        assert!(new().unwrap_err().to_string().contains("line 1"));
        std::fs::write(&path, "a\u{1b}nn a-token-that-is-long-enough\n").unwrap();
        assert!(new().unwrap_err().to_string().contains("control character"));
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(new().unwrap_err().to_string().contains("it is a FIFO, not a regular file"));
    }
}
