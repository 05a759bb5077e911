//! One HTTP call after the other, each on a connection of its own.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::stream::unfold;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri, request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::text;
use crate::regular_file;
use crate::store::records::MAX_PAGE;

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How long one call may take, the connection included: longer than the server lets it.
const CALL_TIME: Duration = Duration::from_secs(10);
/// How long the server may take to take the next piece of a long body.
const PIECE_TIME: Duration = Duration::from_secs(30);

pub(super) struct Client {
    authority: String,
    token: Option<HeaderValue>,
}

impl Client {
    pub(super) fn new(url: &str, token_file: Option<&Path>) -> anyhow::Result<Client> {
        let named = format!("`{url}` (--admin or WEIR_ADMIN)");
        let uri: Uri = url.parse().with_context(|| named.clone())?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "{named}: write it as http://127.0.0.1:6070; for TLS, go through a proxy on this machine"
        );
        let host = uri.host().with_context(|| format!("{named} names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(6070));
        Ok(Client { authority, token: token_file.map(token).transpose()? })
    }

    /// What the API answers.
    ///
    /// # Errors
    /// With its reason, when it says no.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.json(&self.send(CALL_TIME, method, path, "application/json", body).await?)
    }

    /// What the API answers to a POST whose body is sent piece by piece. It may take so long to answer from when it has the last
    /// piece.
    ///
    /// # Errors
    /// With its reason, when it says no.
    pub(super) async fn upload(
        &self,
        path: &str,
        pieces: impl Iterator<Item = Bytes> + Send + 'static,
        time: Duration,
    ) -> anyhow::Result<Value> {
        // The body waits here, the connection takes from it.
        let (sender, receiver) = mpsc::channel(1);
        let body = StreamBody::new(unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
            let piece = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), receiver))
        }));
        let request = self.request(Method::POST, path, "application/json").body(body.boxed_unsync())?;
        let sent = async {
            for piece in pieces {
                match timeout(PIECE_TIME, sender.send(piece)).await {
                    Ok(Ok(())) => {}
                    // The answer came first.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(self.silent(PIECE_TIME, true)),
                }
            }
            drop(sender);
            Ok(())
        };
        let exchange = self.exchange(request);
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => return self.json(&self.accepted(answer)?),
            sent = sent => sent?,
        }
        let answer = timeout(time, exchange).await.map_err(|_| self.silent(time, true))?;
        self.json(&self.accepted(answer)?)
    }

    fn json(&self, answer: &Bytes) -> anyhow::Result<Value> {
        serde_json::from_slice(answer).with_context(|| format!("{} answers no JSON", self.authority))
    }

    /// What the API answers from all pages of a list.
    ///
    /// # Errors
    /// With its reason, when it says no.
    pub(super) async fn pages(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.call(Method::GET, &format!("{path}?page_size={MAX_PAGE}&page_token={}", escaped(&token)), None).await?;
            text(&page, "next_page_token").clone_into(&mut token);
            pages.push(page);
            if token.is_empty() {
                return Ok(pages);
            }
        }
    }

    pub(super) async fn get_text(&self, path: &str, kind: &'static str) -> anyhow::Result<String> {
        let answer = self.send(CALL_TIME, Method::GET, path, kind, String::new()).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn send(&self, time: Duration, method: Method, path: &str, accept: &'static str, body: String) -> anyhow::Result<Bytes> {
        let is_change = method != Method::GET;
        let request = self.request(method, path, accept).body(Full::new(Bytes::from(body)).boxed_unsync())?;
        let answer = timeout(time, self.exchange(request)).await.map_err(|_| self.silent(time, is_change))?;
        self.accepted(answer)
    }

    fn request(&self, method: Method, path: &str, accept: &'static str) -> request::Builder {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority).header(ACCEPT, accept);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        request
    }

    fn silent(&self, time: Duration, is_change: bool) -> anyhow::Error {
        let unknown = if is_change { "; a change may have been made: look before you repeat it" } else { "" };
        anyhow!("weir at {} does not answer within {} s{unknown}", self.authority, time.as_secs())
    }

    /// The body of an answer that says yes.
    fn accepted(&self, answer: anyhow::Result<(StatusCode, Bytes)>) -> anyhow::Result<Bytes> {
        let (status, answer) = answer.with_context(|| format!("no admin API at {}", self.authority))?;
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let said: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match (said["error"].as_str(), status) {
            (Some(reason), StatusCode::UNAUTHORIZED) => bail!("{reason} (--token-file)"),
            (Some(reason), _) => bail!("{reason}"),
            (None, status) => bail!("{} answers {status}", self.authority),
        }
    }

    async fn exchange(&self, request: Request<UnsyncBoxBody<Bytes, Infallible>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let connecting = timeout(CONNECT_TIME, TcpStream::connect(&self.authority)).await;
        let stream = connecting.map_err(|_| anyhow!("no connection within {} s", CONNECT_TIME.as_secs()))??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        Ok((status, body))
    }
}

/// The longest token file, in bytes.
const MAX_TOKEN_FILE: u64 = 64 << 10;

fn token(path: &Path) -> anyhow::Result<HeaderValue> {
    let text = regular_file::read_typed_text(path, MAX_TOKEN_FILE);
    let text = text.with_context(|| format!("{} (--token-file or WEIR_ADMIN_TOKEN_FILE)", path.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let line = lines.into_iter().find(|line| !line.is_empty());
    let token = line.and_then(|line| line.split_whitespace().last()).with_context(|| format!("{} has no token", path.display()))?;
    let mut header = HeaderValue::from_str(&format!("Bearer {token}"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// As a part of a path, or of a query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
