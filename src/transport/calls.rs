//! Counts the calls of a connection around the service that answers them, and refuses those that there is no room for.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use pin_project_lite::pin_project;
use tonic::Status;

use super::account::{Account, Call, Refusal};
use super::room::Room;
use crate::telemetry::connections::Connections;

/// Pieces of an answer that is longer, or that a peer's windows may not take at once.
pub(super) const PIECE: usize = 16 << 10;

/// A service for the calls of one connection.
#[derive(Clone)]
pub(super) struct Counting<S> {
    pub(super) service: S,
    pub(super) account: Arc<Account>,
    pub(super) room: Arc<Room>,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Refusal::Calls => "too many calls are open",
            Refusal::Streams => "too many streams of health and reflection are open",
            Refusal::ProbesOnly => "every connection of this port is busy: only health and metrics are answered",
        }
    }

    fn count(self, counts: &Connections) {
        match self {
            Refusal::Calls => counts.refused_open.inc(),
            Refusal::Streams => counts.refused_streams.inc(),
            Refusal::ProbesOnly => counts.refused_reserve.inc(),
        };
    }

    fn response<B>(self, kind: Kind) -> Response<Answer<B>> {
        if kind == Kind::Grpc {
            return Status::resource_exhausted(self.reason()).into_http::<()>().map(|()| Answer::text(Bytes::new()));
        }
        let text = format!("{{\"error\":\"{}\"}}", self.reason());
        let mut response = Response::new(Answer::text(text.into()));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if kind == Kind::Http1 {
            // What is left of the request is not read.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// How a refusal is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Grpc,
    Http1,
    Http2,
}

impl Kind {
    fn of<B>(request: &Request<B>) -> Kind {
        if request.version() != Version::HTTP_2 {
            return Kind::Http1;
        }
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) { Kind::Grpc } else { Kind::Http2 }
    }
}

impl<S, B> Service<Request<Incoming>> for Counting<S>
where
    S: Service<Request<Counted>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes> + Unpin,
{
    type Response = Response<Answer<B>>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let refuse = |refusal: Refusal, request: &Request<Incoming>| {
            refusal.count(self.room.counts());
            Answering::Refused { refusal, kind: Kind::of(request) }
        };
        let path = request.uri().path();
        if self.account.is_reserve && !(self.room.paths().is_probe)(path) {
            return refuse(Refusal::ProbesOnly, &request);
        }
        let call = match Call::begin(&self.account, (self.room.paths().lasting)(path)) {
            Ok(call) => call,
            Err(refusal) => return refuse(refusal, &request),
        };
        let request = request.map(|body| Counted { body, account: self.account.clone(), is_awaiting: false });
        Answering::Called { future: self.service.call(request), call: Some(call) }
    }
}

pin_project! {
    /// The answer to one call, on its way.
    #[project = AnsweringProjected]
    pub(super) enum Answering<F> {
        Called {
            #[pin]
            future: F,
            call: Option<Call>,
        },
        Refused {
            refusal: Refusal,
            kind: Kind,
        },
    }
}

impl<F, B> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<Answer<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (future, call) = match self.project() {
            AnsweringProjected::Called { future, call } => (future, call),
            AnsweringProjected::Refused { refusal, kind } => return Poll::Ready(Ok(refusal.response(*kind))),
        };
        let Ok(response) = ready!(future.poll(context));
        let Some(mut call) = call.take() else { return Poll::Pending };
        call.answered();
        let counted = |body| Answer { body: Some(body), rest: Bytes::new(), call: Some(call) };
        Poll::Ready(Ok(response.map(counted)))
    }
}

/// The body of a request, which tells whether its peer is waited for.
#[derive(Debug)]
pub struct Counted {
    body: Incoming,
    account: Arc<Account>,
    is_awaiting: bool,
}

impl Counted {
    fn set_awaiting(&mut self, is_awaiting: bool) {
        if is_awaiting != self.is_awaiting {
            self.is_awaiting = is_awaiting;
            self.account.awaits(is_awaiting);
        }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.set_awaiting(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set_awaiting(false);
    }
}

/// The body of an answer: as long as it lasts, its call is open. HTTP/2 would take a whole answer as soon as the peer's window
/// has room for one byte, and keep it for ever. One that is long, or that the windows may not take, is handed over in pieces, its
/// last byte by itself: that one goes only when all before it has gone.
#[derive(Debug)]
pub struct Answer<B> {
    body: Option<B>,
    /// What the peer's windows did not take yet; with no body behind it, a refusal.
    rest: Bytes,
    call: Option<Call>,
}

impl<B> Answer<B> {
    fn text(text: Bytes) -> Answer<B> {
        Answer { body: None, rest: text, call: None }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let piece = match self.rest.len() {
            0 | 1 => std::mem::take(&mut self.rest),
            length => self.rest.split_to(PIECE.min(length - 1)),
        };
        // Copied: the last piece that a peer does not take must not keep all of a long answer.
        let piece = Bytes::copy_from_slice(&piece);
        if let Some(call) = &mut self.call {
            call.hands_over(piece.len());
        }
        Frame::data(piece)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.piece())));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        let (Some(Ok(data)), Some(call)) = (&frame, &mut this.call) else { return Poll::Ready(frame) };
        let Some(data) = data.data_ref() else { return Poll::Ready(frame) };
        call.holds(data.len());
        if data.len() > PIECE || call.account().is_narrow(data.len()) {
            this.rest = data.clone();
            return Poll::Ready(Some(Ok(this.piece())));
        }
        call.hands_over(data.len());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) if self.rest.is_empty() => body.size_hint(),
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.rest.len() as u64),
        }
    }
}
