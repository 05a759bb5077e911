//! Who may look and who may change: bearer tokens in two roles. The token files are read anew for every call, so that a rotated
//! token counts, or no longer does, at once.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Uri};
use ring::digest::{SHA256, digest};

/// The shortest token that counts, in bytes: shorter ones can be guessed.
const MIN_TOKEN: usize = 16;
/// The most of a token file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

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

/// What callers on this machine are called, who need no token.
const LOCAL: &str = "local";

/// Checks callers.
#[derive(Clone, Debug)]
pub struct Access {
    settings: AccessSettings,
}

struct Token {
    name: String,
    secret: String,
}

impl Access {
    /// # Errors
    /// For a token file that cannot be read, or has a token that is too short.
    pub fn new(settings: AccessSettings) -> Result<Access, TokenFileError> {
        for path in settings.read_tokens.iter().chain(&settings.change_tokens) {
            tokens(path)?;
        }
        Ok(Access { settings })
    }

    /// # Errors
    /// For a caller who may not.
    pub fn admit(&self, needed: Role, headers: &HeaderMap, uri: &Uri, peer: Option<Peer>) -> Result<Caller, Refusal> {
        let bearer = headers.get(AUTHORIZATION).map(|value| value.to_str().ok().and_then(bearer));
        let name = match bearer {
            Some(None) => Err(Refusal::Unauthenticated("the authorization is no bearer token")),
            Some(Some(secret)) => self.admit_token(needed, secret),
            None if self.has_tokens() => Err(Refusal::Unauthenticated("a bearer token is needed")),
            None => self.admit_local(needed, headers, uri, peer),
        };
        Ok(Caller { name: name?, from: peer.map(|Peer(address)| address) })
    }

    fn has_tokens(&self) -> bool {
        self.settings.read_tokens.is_some() || self.settings.change_tokens.is_some()
    }

    fn admit_token(&self, needed: Role, secret: &str) -> Result<String, Refusal> {
        let known = |path: &Option<PathBuf>| {
            let tokens = path.as_deref().map(tokens).transpose().unwrap_or_else(|error| {
                tracing::error!(%error, "a token file cannot be used");
                None
            });
            tokens.into_iter().flatten().find(|token| is_same(&token.secret, secret)).map(|token| token.name)
        };
        if let Some(name) = known(&self.settings.change_tokens) {
            return Ok(name);
        }
        match (known(&self.settings.read_tokens), needed) {
            (Some(name), Role::Read) => Ok(name),
            (Some(name), Role::Change) => Err(Refusal::Forbidden { reason: "this token may look and not change", by: Some(name) }),
            (None, _) => Err(Refusal::Unauthenticated("the token is not known")),
        }
    }

    /// Without tokens: whoever is on this machine. A name that is not this machine's in `Host` is a browser that was lured here.
    fn admit_local(&self, needed: Role, headers: &HeaderMap, uri: &Uri, peer: Option<Peer>) -> Result<String, Refusal> {
        let is_local = peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback());
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or_else(|| uri.authority().map(|host| host.as_str()));
        if !is_local || !host.is_some_and(names_this_machine) {
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
    let size = std::fs::metadata(path).map_err(|problem| error(problem.to_string()))?.len();
    if size > MAX_FILE {
        return Err(error(format!("{size} bytes are no token file")));
    }
    let text = std::fs::read_to_string(path).map_err(|problem| error(problem.to_string()))?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, secret) = line.split_once(char::is_whitespace).map_or_else(
            || (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), line),
            |(name, secret)| (name.to_owned(), secret.trim()),
        );
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
    fn a_rotated_token_counts_at_once() {
        let (directory, access) = with_files();
        std::fs::write(directory.path().join("read"), "ann another-token-of-hers").unwrap();
        let by = |token: &str| call(&access, Role::Read, Some(token), "weir", "10.0.0.1");
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
    fn a_file_that_lets_nobody_in_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let new = || Access::new(AccessSettings { read_tokens: Some(path.clone()), ..AccessSettings::default() });
        assert!(new().is_err());
        std::fs::write(&path, "short\n").unwrap();
        assert!(new().unwrap_err().to_string().contains("line 1"));
    }
}
