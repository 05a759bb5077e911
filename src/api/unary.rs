//! One gRPC call with one message each way, straight over HTTP/2. What a framework does beside that, for streams, compression
//! and interceptors, costs more than a decision.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;

/// What stands before a message: whether it is compressed, and four bytes of length.
const PREFIX: usize = 5;

/// What all messages of this process that have not come whole may hold: each is small, but a peer may begin thousands.
const MAX_UNFINISHED: usize = 64 << 20;
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// Reads a call's message, of at most `longest` bytes.
///
/// # Errors
/// For a body that is not exactly one uncompressed message of that length, and one that breaks off; RESOURCE_EXHAUSTED when too
/// many have begun and not ended.
pub(super) async fn read<B>(body: B, longest: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<StdError>,
{
    let mut body = pin!(body);
    let mut whole = Whole::default();
    while !(whole.is_complete() && body.is_end_stream()) {
        match poll_fn(|context| body.as_mut().poll_frame(context)).await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => whole.add(data, longest)?,
                // Trailers: nothing comes after them.
                Err(_) => break,
            },
            Some(Err(error)) => return Err(Status::cancelled(format!("the call broke off: {}", error.into()))),
            None => break,
        }
    }
    whole.message()
}

/// What has come so far. Nearly always all at once: then nothing is copied.
#[derive(Default)]
struct Whole {
    first: Bytes,
    rest: BytesMut,
    /// With its prefix; 0 while that is not known.
    length: usize,
    unfinished: Unfinished,
}

/// A message's part in [`UNFINISHED`], given back when it is dropped.
#[derive(Default)]
struct Unfinished(usize);

impl Unfinished {
    fn grow_to(&mut self, length: usize) -> Result<(), Status> {
        let more = length.saturating_sub(self.0);
        self.0 += more;
        if UNFINISHED.fetch_add(more, Ordering::Relaxed) + more > MAX_UNFINISHED {
            return Err(Status::resource_exhausted("too many messages have begun and not ended"));
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.0 > 0 {
            UNFINISHED.fetch_sub(self.0, Ordering::Relaxed);
        }
    }
}

impl Whole {
    fn add(&mut self, data: Bytes, longest: usize) -> Result<(), Status> {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = data;
        } else {
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
            self.rest.extend_from_slice(&data);
        }
        if self.length == 0
            && let Some([flag, length @ ..]) = self.bytes().first_chunk::<PREFIX>()
        {
            if *flag != 0 {
                return Err(Status::unimplemented("compressed messages are not supported"));
            }
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > longest {
                return Err(Status::out_of_range(format!("a message of {length} bytes; at most {longest} are read")));
            }
            self.length = PREFIX + length;
        }
        if self.length > 0 && self.bytes().len() > self.length {
            return Err(Status::internal("more than one message in a call that takes one"));
        }
        if self.is_complete() { Ok(()) } else { self.unfinished.grow_to(self.bytes().len()) }
    }

    fn bytes(&self) -> &[u8] {
        if self.rest.is_empty() { &self.first } else { &self.rest }
    }

    fn is_complete(&self) -> bool {
        self.length > 0 && self.bytes().len() == self.length
    }

    fn message(self) -> Result<Bytes, Status> {
        if !self.is_complete() {
            return Err(Status::internal("the call ended before its message did"));
        }
        let mut whole = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        whole.advance(PREFIX);
        Ok(whole)
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
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;
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

    #[test]
    fn what_is_begun_and_not_ended_is_bounded_and_given_back() {
        const LENGTH: usize = 4 << 20;
        let mut most = BytesMut::from(&b"\0\x00\x40\0\0"[..]);
        most.resize(LENGTH, 0);
        let most = most.freeze();
        let mut begun: Vec<Whole> = Vec::new();
        let refused = loop {
            begun.push(Whole::default());
            if let Some(Err(refused)) = begun.last_mut().map(|whole| whole.add(most.clone(), LENGTH)) {
                break refused;
            }
        };
        assert_eq!((refused.code(), begun.len()), (Code::ResourceExhausted, MAX_UNFINISHED / LENGTH + 1));
        begun.truncate(1);
        assert!(Whole::default().add(most, LENGTH).is_ok());
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
