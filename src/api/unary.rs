//! One gRPC call with one message each way, straight over HTTP/2. What a framework does beside that, for streams, compression
//! and interceptors, costs more than a decision.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;

use crate::transport::body::{self, Bounds, Unread};

/// What stands before a message: whether it is compressed, and four bytes of length.
const PREFIX: usize = 5;

/// Reads a call's message, of at most `longest` bytes without its prefix. Only a call that has ended has one message and no more:
/// until then it counts as one that has not come whole.
///
/// # Errors
/// For a body that is not exactly one uncompressed message of that length, and one that breaks off; DEADLINE_EXCEEDED when it does
/// not come within [`body::MAX_TIME`], RESOURCE_EXHAUSTED when too many have begun and not ended.
pub(super) fn read<B>(body: B, longest: usize) -> impl Future<Output = Result<Bytes, Status>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    read_within(Bounds::within(body::MAX_TIME), body, longest).map(|whole| {
        let mut whole = whole?;
        whole.advance(PREFIX);
        Ok(whole)
    })
}

/// The same for a call that a framework answers, which would itself wait for the end of any number of calls, and for ever. `check`
/// looks at the message before the framework decodes it.
///
/// # Errors
/// As [`read`], and what `check` says.
pub async fn whole<B>(
    call: Request<B>,
    longest: usize,
    check: impl FnOnce(&[u8]) -> Result<(), Status>,
) -> Result<Request<Full<Bytes>>, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let (head, body) = call.into_parts();
    let whole = read_within(Bounds::within(body::MAX_TIME), body, longest).await?;
    check(&whole[PREFIX..])?;
    Ok(Request::from_parts(head, Full::new(whole)))
}

/// With its prefix.
fn read_within<B>(bounds: Bounds, body: B, longest: usize) -> impl Future<Output = Result<Bytes, Status>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    let whole = body::read(body, bounds, move |begun| length(begun, longest).map(|_| ()));
    whole.map(move |whole| {
        let whole = whole?;
        match length(&whole, longest)? {
            Some(length) if length == whole.len() => Ok(whole),
            _ => Err(Status::internal("the call ended before its message did")),
        }
    })
}

/// How long a message that begins so is, with its prefix; `None` while that is not known.
fn length(begun: &[u8], longest: usize) -> Result<Option<usize>, Status> {
    let Some([flag, length @ ..]) = begun.first_chunk::<PREFIX>() else { return Ok(None) };
    if *flag != 0 {
        return Err(Status::unimplemented("compressed messages are not supported"));
    }
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > longest {
        return Err(Status::out_of_range(format!("a message of {length} bytes; at most {longest} are read")));
    }
    if begun.len() > PREFIX + length {
        return Err(Status::internal("more than one message in a call that takes one"));
    }
    Ok(Some(PREFIX + length))
}

impl From<Unread> for Status {
    fn from(unread: Unread) -> Status {
        let reason = unread.to_string();
        match unread {
            Unread::Full => Status::resource_exhausted(reason),
            Unread::Slow(_) => Status::deadline_exceeded(reason),
            Unread::BrokenOff(_) => Status::cancelled(reason),
        }
    }
}

/// The answer to a call.
pub(super) fn respond(answer: Result<impl Message, Status>) -> Response<Body> {
    match answer {
        Ok(message) => {
            let mut response = Response::new(Body::new(OneMessage { data: Some(framed(&message)), is_finished: false }));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http(),
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + length);
    data.put_u8(0);
    data.put_u32(u32::try_from(length).expect("an answer is far shorter than 4 GiB"));
    // Not `encode`, which would measure the message once more.
    message.encode_raw(&mut data);
    data.freeze()
}

/// A message, then the status OK.
struct OneMessage {
    data: Option<Bytes>,
    is_finished: bool,
}

impl HttpBody for OneMessage {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if std::mem::replace(&mut self.is_finished, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;
    use std::time::Duration;
    use tonic::Code;

    const LONGEST: usize = 10;

    /// What is read of a body in these pieces.
    async fn read_pieces(pieces: &[&[u8]]) -> Result<Bytes, Code> {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        read(StreamBody::new(stream::iter(frames)), LONGEST).await.map_err(|status| status.code())
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut() {
        let whole = b"\0\0\0\0\x03abc";
        let message = Ok(Bytes::from_static(b"abc"));
        assert_eq!(read_pieces(&[whole]).await, message);
        for at in 0..=whole.len() {
            let (first, second) = whole.split_at(at);
            assert_eq!(read_pieces(&[first, b"", second]).await, message, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read_pieces(&bytes).await, message);
        assert_eq!(read_pieces(&[b"\0\0\0\0\0"]).await, Ok(Bytes::new()));
    }

    #[tokio::test]
    async fn what_is_no_message_has_its_own_status() {
        let cases: [(&[&[u8]], Code); 7] = [
            (&[], Code::Internal),
            (&[b"\0\0\0"], Code::Internal),
            (&[b"\0\0\0\0\x03ab"], Code::Internal),
            (&[b"\0\0\0\0\0", b"\0\0\0\0\0"], Code::Internal),
            (&[b"\x01\0\0\0\0"], Code::Unimplemented),
            (&[b"\0\0\0\0\x0b"], Code::OutOfRange),
            (&[b"\0\xff", b"\xff\xff\xff"], Code::OutOfRange),
        ];
        for (pieces, expected) in cases {
            assert_eq!(read_pieces(pieces).await, Err(expected), "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_message_whose_call_does_not_end_is_answered_in_the_end() {
        for begun in [&b""[..], b"\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x03abc"] {
            let piece = Ok::<_, Infallible>(Frame::data(Bytes::from_static(begun)));
            let body = StreamBody::new(stream::iter([piece]).chain(stream::pending()));
            let read = read_within(Bounds::within(Duration::ZERO), body, LONGEST).await;
            assert_eq!(read.map_err(|status| status.code()), Err(Code::DeadlineExceeded), "{begun:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_one_message_and_its_status() {
        let response = respond(Ok("abc".to_owned()));
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let whole = response.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(&whole.to_bytes()[..], b"\0\0\0\0\x05\x0a\x03abc");
        let refused = respond(Err::<String, _>(Status::unavailable("why")));
        assert_eq!(
            (&refused.headers()["grpc-status"], &refused.headers()["grpc-message"]),
            (&"14".parse().unwrap(), &"why".parse().unwrap())
        );
    }
}
