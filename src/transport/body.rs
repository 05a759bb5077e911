//! A request's body, over gRPC or as JSON, read whole. What is there at once costs nothing but a look. What must be waited for
//! holds a share of a budget that all such bodies of the process have in common, and has to come within a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::codegen::StdError;

/// How long a body may take to come whole.
pub const MAX_TIME: Duration = Duration::from_secs(10);
/// What all bodies of this process that have not come whole may hold, in bytes: each is small, but a peer may begin thousands.
static UNFINISHED: Budget = Budget::new(32 << 20);
/// What a call costs that waits for its body, beside that. With it, 2,048 calls can wait so.
const WAITING: usize = 16 << 10;

/// What holds for a body that has not come whole.
#[derive(Clone, Copy)]
pub struct Bounds {
    budget: &'static Budget,
    time: Duration,
}

impl Bounds {
    pub const fn within(time: Duration) -> Bounds {
        Bounds { budget: &UNFINISHED, time }
    }
}

/// Why there is no whole body.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    #[error("too many requests have begun and not ended")]
    Full,
    #[error("the request had not come whole after {0:?}")]
    Slow(Duration),
    #[error("the request broke off: {0}")]
    BrokenOff(StdError),
}

/// Reads a body to its end, not only to where it could end. `check` looks at all that has come, after every piece.
///
/// # Errors
/// For a body that breaks off, or does not come whole within its bounds; and what `check` says.
pub fn read<B, E>(body: B, bounds: Bounds, check: impl Fn(&[u8]) -> Result<(), E>) -> impl Future<Output = Result<Bytes, E>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
    E: From<Unread>,
{
    // By hand: every call in flight has one, and what an `async fn` makes of it is three times as large.
    let mut reading = Reading { body, bounds, pieces: Pieces::default(), wait: None };
    poll_fn(move |context| reading.poll(context, &check))
}

struct Reading<B> {
    body: B,
    bounds: Bounds,
    pieces: Pieces,
    wait: Option<Wait>,
}

impl<B> Reading<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    fn poll<E: From<Unread>>(
        &mut self,
        context: &mut Context<'_>,
        check: impl Fn(&[u8]) -> Result<(), E>,
    ) -> Poll<Result<Bytes, E>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(frame)) => frame,
                Poll::Ready(None) => break,
                Poll::Pending => return self.wait(context).map(|unread| Err(unread.into())),
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => self.pieces.add(data),
                // Trailers: nothing comes after them.
                Ok(Err(_)) => break,
                Err(error) => return Poll::Ready(Err(Unread::BrokenOff(error.into()).into())),
            }
            check(self.pieces.bytes())?;
            if self.body.is_end_stream() {
                break;
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut self.pieces).whole()))
    }

    /// Ready when more is not to be waited for.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Unread> {
        let wait = self.wait.get_or_insert_with(|| Wait::begin(self.bounds));
        self.pieces.detach();
        if !wait.share.grow_to(WAITING + self.pieces.rest.capacity()) {
            return Poll::Ready(Unread::Full);
        }
        wait.end.as_mut().poll(context).map(|()| Unread::Slow(self.bounds.time))
    }
}

/// A body for services that read it by themselves: it must come whole within a time, and holds its share of the same budget
/// once it is waited for.
pub struct Timed<B> {
    body: B,
    bounds: Bounds,
    wait: Option<Wait>,
    /// What has come of it, in bytes.
    length: usize,
    /// It ends with its time, as if the peer had ended it; else it breaks off.
    ends: bool,
    has_ended: bool,
}

impl<B> Timed<B> {
    pub fn ending(body: B, time: Duration) -> Timed<B> {
        Timed { body, bounds: Bounds::within(time), wait: None, length: 0, ends: true, has_ended: false }
    }

    pub fn breaking_off(body: B, time: Duration) -> Timed<B> {
        Timed { ends: false, ..Timed::ending(body, time) }
    }

    /// Ready when more is not to be waited for.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Unread> {
        let wait = self.wait.get_or_insert_with(|| Wait::begin(self.bounds));
        if !wait.share.grow_to(WAITING + self.length) {
            return Poll::Ready(Unread::Full);
        }
        wait.end.as_mut().poll(context).map(|()| Unread::Slow(self.bounds.time))
    }
}

impl<B> Body for Timed<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.length += frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let unread = std::task::ready!(this.wait(context));
        this.has_ended = true;
        Poll::Ready((!this.ends).then(|| Err(unread.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.ends { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// What has come so far. Nearly always all at once: then nothing is copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    rest: BytesMut,
}

impl Pieces {
    fn add(&mut self, data: Bytes) {
        if self.bytes().is_empty() {
            self.first = data;
        } else {
            self.detach();
            self.rest.extend_from_slice(&data);
        }
    }

    /// The first piece is a part of a connection's buffer, and keeps the whole of it.
    fn detach(&mut self) {
        self.rest.extend_from_slice(&std::mem::take(&mut self.first));
    }

    fn bytes(&self) -> &[u8] {
        if self.rest.is_empty() { &self.first } else { &self.rest }
    }

    fn whole(self) -> Bytes {
        if self.rest.is_empty() { self.first } else { self.rest.freeze() }
    }
}

/// What a body that is waited for costs.
struct Wait {
    share: Share,
    end: Pin<Box<Sleep>>,
}

impl Wait {
    fn begin(bounds: Bounds) -> Wait {
        Wait { share: Share { budget: bounds.budget, held: 0 }, end: Box::pin(sleep(bounds.time)) }
    }
}

/// Bytes that many may hold together.
struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    const fn new(most: usize) -> Budget {
        Budget { most, held: AtomicUsize::new(0) }
    }
}

/// A part of a budget, given back when it is dropped.
struct Share {
    budget: &'static Budget,
    held: usize,
}

impl Share {
    /// Whether there was room.
    fn grow_to(&mut self, held: usize) -> bool {
        let more = held.saturating_sub(self.held);
        if more == 0 {
            return true;
        }
        self.held += more;
        self.budget.held.fetch_add(more, Ordering::Relaxed) + more <= self.budget.most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use std::convert::Infallible;

    const LONG: Duration = Duration::from_secs(3600);

    /// A body of these pieces that ends.
    fn ended(pieces: &[&[u8]]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        StreamBody::new(stream::iter(frames))
    }

    /// A body of one piece, after which nothing comes, not even its end.
    fn open(length: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let piece = Frame::data(Bytes::from(vec![0; length]));
        StreamBody::new(stream::iter([Ok(piece)]).chain(stream::pending()))
    }

    async fn read_all(body: impl Body<Data = Bytes, Error = Infallible> + Unpin, bounds: Bounds) -> Result<Bytes, Unread> {
        read(body, bounds, |_| Ok(())).await
    }

    #[tokio::test]
    async fn what_is_there_at_once_needs_no_room_and_no_time() {
        static NONE: Budget = Budget::new(0);
        let bounds = Bounds { budget: &NONE, time: Duration::ZERO };
        let bodies: [&[&[u8]]; 3] = [&[], &[b"whole"], &[b"in", b"", b" ", b"pieces"]];
        for pieces in bodies {
            assert_eq!(read_all(ended(pieces), bounds).await.unwrap(), pieces.concat());
        }
    }

    #[tokio::test]
    async fn what_has_not_come_to_its_end_is_bounded_and_given_back() {
        const LENGTH: usize = 1_000;
        static BUDGET: Budget = Budget::new(10 * (LENGTH + WAITING));
        let bounds = Bounds { budget: &BUDGET, time: LONG };
        let mut begun = Vec::new();
        let refused = loop {
            let mut reading = Box::pin(read_all(open(LENGTH), bounds));
            match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
                Poll::Pending => begun.push(reading),
                Poll::Ready(read) => break read,
            }
            assert!(begun.len() <= 10, "{} bodies of {LENGTH} bytes", begun.len());
        };
        assert!(matches!(refused, Err(Unread::Full)), "{refused:?}");
        assert_eq!(begun.len(), 10);
        assert_eq!(read_all(ended(&[b"whole"]), bounds).await.unwrap(), "whole", "whatever others hold");
        begun.pop();
        let mut another = Box::pin(read_all(open(LENGTH), bounds));
        assert!(poll_fn(|context| Poll::Ready(another.as_mut().poll(context).is_pending())).await);
        drop((begun, another));
        assert_eq!(BUDGET.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_does_not_come_is_waited_for_so_long() {
        for length in [0, 5] {
            let read = read_all(open(length), Bounds::within(Duration::ZERO)).await;
            assert!(matches!(read, Err(Unread::Slow(Duration::ZERO))), "{length}: {read:?}");
        }
    }

    #[tokio::test]
    async fn a_small_piece_does_not_keep_the_buffer_it_came_in() {
        static ENOUGH: Budget = Budget::new(WAITING + 1_000);
        let piece = Frame::data(Bytes::from(vec![0; 1 << 20]).slice(..10));
        let body = StreamBody::new(stream::iter([Ok::<_, Infallible>(piece)]).chain(stream::pending()));
        let bounds = Bounds { budget: &ENOUGH, time: LONG };
        let mut reading = Reading { body, bounds, pieces: Pieces::default(), wait: None };
        let poll = poll_fn(|context| Poll::Ready(reading.poll(context, |_| Ok::<_, Unread>(())).is_pending()));
        assert!(poll.await);
        assert!(reading.pieces.first.is_empty());
        assert_eq!(ENOUGH.held.load(Ordering::Relaxed), WAITING + reading.pieces.rest.capacity());
    }
}
