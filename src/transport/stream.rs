//! The byte stream under a connection, with what a peer can do below HTTP bounded: it must read what is written to it, gets one
//! turn at a time, and may send only so many frames without a call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::account::{Account, Reason};
use super::frames::Frames;

/// How long a peer may take to read what is written to it, [`WRITE_BYTES`] at a time.
const MAX_WRITE: Duration = Duration::from_secs(10);
const WRITE_BYTES: usize = 64 << 10;
/// What a connection may read in one turn, in bytes. Then the calls that came are taken in, which frees their headers, and the
/// other connections of the thread have their turn.
const TURN: u32 = 16 << 10;
/// The same while its header blocks are long: reading them takes many times longer.
const SHORT_TURN: u32 = 2 << 10;
/// ENHANCE_YOUR_CALM (RFC 9113, 7).
const CALM: u32 = 11;

/// A stream whose first bytes were read before.
pub(super) struct Guarded<T> {
    stream: T,
    account: Arc<Account>,
    /// What was read to see which protocol it is.
    before: Vec<u8>,
    protocol: Protocol,
    /// Calls when it was last looked whether there were new ones.
    calls: u32,
    /// Since the peer has not taken what is written.
    blocked: Option<Blocked>,
    /// A read waits until the peer takes what is written: no call is taken in whose answer nobody reads.
    is_read_held: bool,
    /// The last write ended between two writes of the layer above.
    is_whole: bool,
}

enum Protocol {
    Http1,
    Http2(Box<Frames>),
}

struct Blocked {
    end: Pin<Box<Sleep>>,
    written: usize,
}

impl<T> Guarded<T> {
    /// `before`, of HTTP/2, begins with the preface.
    pub(super) fn new(stream: T, account: Arc<Account>, before: Vec<u8>, is_http2: bool) -> Guarded<T> {
        let protocol = if is_http2 {
            let mut frames = Frames::new();
            frames.see(before.get(super::connection::PREFACE.len()..).unwrap_or_default(), &account);
            Protocol::Http2(Box::new(frames))
        } else {
            account.has_no_windows();
            if !before.is_empty() {
                account.head_begins();
            }
            Protocol::Http1
        };
        Guarded { stream, account, before, protocol, calls: 0, blocked: None, is_read_held: false, is_whole: true }
    }

    fn see(&mut self, data: &[u8]) -> bool {
        self.account.read(data.len());
        let calls = self.account.calls();
        if calls != self.calls {
            self.calls = calls;
            self.account.touch();
        }
        match &mut self.protocol {
            Protocol::Http1 => {
                if !data.is_empty() {
                    self.account.head_begins();
                }
                true
            }
            Protocol::Http2(frames) => frames.see(data, &self.account),
        }
    }

    fn after_write(
        &mut self,
        context: &mut Context<'_>,
        offered: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(Ok(length)) = written else {
            self.is_whole = false;
            return if written.is_pending() { self.block(context) } else { written };
        };
        self.account.wrote(length);
        self.is_whole = length == offered;
        if let Some(blocked) = &mut self.blocked {
            blocked.written += length;
            if self.is_whole {
                self.unblock(context);
            } else if blocked.written >= WRITE_BYTES {
                blocked.written = 0;
                blocked.end.as_mut().reset(Instant::now() + MAX_WRITE);
            }
        }
        written
    }

    fn unblock(&mut self, context: &Context<'_>) {
        self.blocked = None;
        if std::mem::take(&mut self.is_read_held) {
            context.waker().wake_by_ref();
        }
    }

    fn block(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let blocked = self.blocked.get_or_insert_with(|| Blocked { end: Box::pin(sleep(MAX_WRITE)), written: 0 });
        std::task::ready!(blocked.end.as_mut().poll(context));
        self.account.close(Reason::Write);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> Guarded<T> {
    /// Tells the peer, if that can be said now without waiting, and breaks the connection off.
    #[cold]
    fn calm(&mut self, context: &mut Context<'_>) -> io::Error {
        self.account.close(Reason::ControlFrames);
        if let (Protocol::Http2(frames), true) = (&self.protocol, self.is_whole) {
            let head = [0, 0, 8, 7, 0, 0, 0, 0, 0];
            let frame = [head.as_slice(), &frames.last_stream().to_be_bytes(), &CALM.to_be_bytes()].concat();
            let _ = Pin::new(&mut self.stream).poll_write(context, &frame);
        }
        io::Error::other("too many frames without calls")
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.before.is_empty() {
            let length = this.before.len().min(buffer.remaining());
            buffer.put_slice(&this.before[..length]);
            this.before.drain(..length);
            return Poll::Ready(Ok(()));
        }
        if this.blocked.is_some() {
            this.is_read_held = true;
            return Poll::Pending;
        }
        let is_short = matches!(&this.protocol, Protocol::Http2(frames) if frames.has_long_headers());
        if this.account.turn() >= if is_short { SHORT_TURN } else { TURN } {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = if is_short {
            let mut piece = [0; SHORT_TURN as usize];
            let length = piece.len().min(buffer.remaining());
            let mut piece = ReadBuf::new(&mut piece[..length]);
            let read = Pin::new(&mut this.stream).poll_read(context, &mut piece);
            buffer.put_slice(piece.filled());
            read
        } else {
            Pin::new(&mut this.stream).poll_read(context, buffer)
        };
        match read {
            Poll::Ready(Ok(())) => {
                let may_go_on = this.see(&buffer.filled()[before..]);
                Poll::Ready(if may_go_on { Ok(()) } else { Err(this.calm(context)) })
            }
            Poll::Pending => {
                this.see(&[]);
                Poll::Pending
            }
            failed => failed,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, data);
        this.after_write(context, data.len(), written)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.after_write(context, slices.iter().map(|slice| slice.len()).sum(), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
