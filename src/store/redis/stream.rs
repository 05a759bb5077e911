//! A connection's stream, watched: replies are as many and as long as what was asked. The client library reads whole replies into
//! memory, so what is too much must be refused while it arrives, by the lengths that it announces.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What any reply may have, in bytes, whatever was asked: errors, and the replies of a connection that is being made.
pub(super) const SHORT_REPLY: usize = 64 << 10;
/// Replies of a connection that is being made: HELLO, AUTH, SELECT and what the library says of itself.
const SETUP_REPLIES: usize = 16;
/// Arrays in arrays: of the replies that weir reads, XRANGE has three.
const MAX_DEPTH: usize = 8;
/// Elements of one reply, each of which takes the library 56 bytes and more: a page of the feed has 7,000.
const MAX_ELEMENTS: usize = 64 << 10;
/// Digits of a length.
const MAX_LENGTH_LINE: usize = 24;
/// Push messages of one connection: nothing that weir does asks for any.
const MAX_PUSHES: usize = 16;

/// What a connection is waited for to say. Shared by those who ask and the stream.
pub(super) struct Expected {
    replies: AtomicUsize,
    /// The longest of these replies, in bytes.
    longest: AtomicUsize,
    /// Bytes that went out.
    written: AtomicU64,
}

impl Default for Expected {
    fn default() -> Expected {
        let (replies, longest) = (AtomicUsize::new(SETUP_REPLIES), AtomicUsize::new(SHORT_REPLY));
        Expected { replies, longest, written: AtomicU64::new(0) }
    }
}

impl Expected {
    /// The connection is made: from here on, only what is asked is answered.
    pub(super) fn settle(&self) {
        self.replies.store(0, Ordering::Relaxed);
    }

    /// So many commands are about to be sent, whose replies have no more than so many bytes each.
    pub(super) fn expect(&self, replies: usize, longest: usize) {
        let longest = longest.max(SHORT_REPLY);
        if self.replies.fetch_add(replies, Ordering::Relaxed) == 0 {
            self.longest.store(longest, Ordering::Relaxed);
        } else {
            self.longest.fetch_max(longest, Ordering::Relaxed);
        }
    }

    /// How many bytes went out so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// A reply begins; how many bytes it may have.
    fn begin(&self) -> Result<usize, &'static str> {
        match self.replies.load(Ordering::Relaxed) {
            0 => Err("Redis sent a reply that nothing asked for"),
            _ => Ok(self.longest.load(Ordering::Relaxed)),
        }
    }

    fn end(&self) {
        // One that began before the connection was settled counts no more.
        let _ = self.replies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |replies| replies.checked_sub(1));
    }
}

/// A stream whose replies are watched.
pub(super) struct Watched<S> {
    stream: S,
    expected: Arc<Expected>,
    reader: Reader,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, expected: Arc<Expected>) -> Watched<S> {
        Watched { stream, expected, reader: Reader::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut watched.stream).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(())))
            && let Err(reason) = watched.reader.read(&buffer.filled()[before..], &watched.expected)
        {
            // A kind that the library takes for the end of the connection.
            return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionAborted, reason)));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let watched = self.get_mut();
        let written = Pin::new(&mut watched.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(length)) = written {
            watched.expected.written.fetch_add(length as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Where in the replies the stream is. It keeps lengths and no bytes of text.
#[derive(Default)]
struct Reader {
    part: Part,
    /// Elements that are yet to come, of each array that is open.
    open: Vec<usize>,
    /// Whether the value that is read is a reply, or a push message.
    is_push: bool,
    /// What is left of this reply, in bytes and in elements.
    bytes: usize,
    elements: usize,
    pushes: usize,
}

#[derive(Default)]
enum Part {
    /// The byte that says what comes.
    #[default]
    Kind,
    /// A line to its end.
    Line,
    /// A length, of what is announced by this byte: its digits so far.
    Length { kind: u8, digits: SmallVec<[u8; MAX_LENGTH_LINE]> },
    /// So many bytes of a string and of its line end.
    Text(usize),
}

type Read<T> = Result<T, &'static str>;

const TOO_LONG: &str = "Redis sent a longer reply than what was asked can have";
const MALFORMED: &str = "Redis sent what is not its protocol";

impl Reader {
    fn read(&mut self, mut bytes: &[u8], expected: &Expected) -> Read<()> {
        while let Some(&first) = bytes.first() {
            match &mut self.part {
                Part::Kind => {
                    bytes = &bytes[1..];
                    self.begin(first, expected)?;
                }
                Part::Line => {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    let length = end.map_or(bytes.len(), |end| end + 1);
                    self.bytes = self.bytes.checked_sub(length).ok_or(TOO_LONG)?;
                    bytes = &bytes[length..];
                    if end.is_some() {
                        self.end_value(expected);
                    }
                }
                Part::Length { kind, digits } => {
                    bytes = &bytes[1..];
                    if first != b'\n' {
                        if digits.len() == MAX_LENGTH_LINE {
                            return Err(MALFORMED);
                        }
                        digits.push(first);
                    } else {
                        let kind = *kind;
                        let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.trim().parse::<i64>().ok());
                        self.announced(kind, length.ok_or(MALFORMED)?, expected)?;
                    }
                }
                Part::Text(left) => {
                    let length = bytes.len().min(*left);
                    *left -= length;
                    bytes = &bytes[length..];
                    if *left == 0 {
                        self.end_value(expected);
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, kind: u8, expected: &Expected) -> Read<()> {
        if self.open.is_empty() {
            self.is_push = kind == b'>';
            if self.is_push {
                self.pushes += 1;
                if self.pushes > MAX_PUSHES {
                    return Err("Redis sent push messages that nothing asked for");
                }
                self.bytes = SHORT_REPLY;
            } else {
                self.bytes = expected.begin()?;
            }
            self.elements = MAX_ELEMENTS;
        }
        self.part = match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Part::Line,
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' => Part::Length { kind, digits: SmallVec::new() },
            b'>' if self.open.is_empty() => Part::Length { kind, digits: SmallVec::new() },
            // Attributes are for clients that asked for them; a string in parts is part of no version.
            _ => return Err(MALFORMED),
        };
        Ok(())
    }

    fn announced(&mut self, kind: u8, length: i64, expected: &Expected) -> Read<()> {
        let is_text = matches!(kind, b'$' | b'!' | b'=');
        let Ok(length) = usize::try_from(length) else {
            // Nothing there, as RESP2 says it.
            if !matches!(kind, b'$' | b'*') {
                return Err(MALFORMED);
            }
            self.end_value(expected);
            return Ok(());
        };
        if is_text {
            self.bytes = self.bytes.checked_sub(length).ok_or(TOO_LONG)?;
            self.part = Part::Text(length + 2);
            return Ok(());
        }
        let elements = if kind == b'%' { length.saturating_mul(2) } else { length };
        self.elements = self.elements.checked_sub(elements).ok_or(TOO_LONG)?;
        if elements == 0 {
            self.end_value(expected);
            return Ok(());
        }
        if self.open.len() == MAX_DEPTH {
            return Err(MALFORMED);
        }
        self.open.push(elements);
        self.part = Part::Kind;
        Ok(())
    }

    /// A value is there, and with it perhaps the arrays that it is the last of.
    fn end_value(&mut self, expected: &Expected) {
        self.part = Part::Kind;
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
        if !self.is_push {
            expected.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of these bytes, whole and byte by byte, where `replies` of at most `longest` bytes are expected; how many are
    /// left to come.
    fn read(bytes: &[u8], replies: usize, longest: usize) -> Read<usize> {
        let outcomes = [bytes.len(), 1, 3].map(|size| {
            let expected = Expected::default();
            expected.settle();
            expected.expect(replies, longest);
            let mut reader = Reader::default();
            bytes.chunks(size.max(1)).try_for_each(|piece| reader.read(piece, &expected))?;
            Ok(expected.replies.load(Ordering::Relaxed))
        });
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn replies_end_where_they_end() {
        for reply in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":-5\r\n",
            "_\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "$0\r\n\r\n",
            "$3\r\na\nb\r\n",
            "*0\r\n",
            "%0\r\n",
            "*2\r\n$1\r\na\r\n*2\r\n:1\r\n_\r\n",
            "%1\r\n+a\r\n*1\r\n,1.5\r\n",
            "~1\r\n#t\r\n",
            "=7\r\ntxt:abc\r\n",
            "!5\r\nERR x\r\n",
            "*3\r\n*1\r\n*0\r\n*-1\r\n:1\r\n",
        ] {
            assert_eq!(read(reply.as_bytes(), 3, 0), Ok(2), "{reply:?}");
            assert_eq!(read(reply.repeat(3).as_bytes(), 3, 0), Ok(0), "{reply:?}");
            assert!(read(reply.repeat(2).as_bytes(), 1, 0).is_err(), "{reply:?}");
            assert_eq!(read(&reply.as_bytes()[..reply.len() - 1], 1, 0), Ok(1), "{reply:?}");
        }
        assert_eq!(read(b">2\r\n+message\r\n+x\r\n+OK\r\n", 1, 0), Ok(0));
    }

    #[test]
    fn too_much_is_refused_when_it_is_announced() {
        let long = "x".repeat(SHORT_REPLY + 1);
        for reply in [
            "$65537\r\n",
            "$9223372036854775807\r\n",
            "$99999999999999999999\r\n",
            "$000000000000000000000000000000",
            "$x\r\n",
            "*65537\r\n",
            "*9223372036854775807\r\n",
            "%9223372036854775807\r\n",
            "%-1\r\n",
            "|1\r\n",
            "$?\r\n",
            "HTTP/1.1 200 OK",
            "=70000\r\n",
            "!70000\r\n",
            "~70000\r\n",
            &format!("+{long}"),
            &format!("-{long}"),
            &"*1\r\n".repeat(9),
            &format!("*2\r\n$60000\r\n{}\r\n$60000\r\n", "x".repeat(60_000)),
            &"*60000\r\n".repeat(2),
            "*2\r\n>1\r\n",
            &">1\r\n+a\r\n".repeat(17),
            ">70000\r\n",
        ] {
            assert!(read(reply.as_bytes(), 1, 0).is_err(), "{}", &reply[..reply.len().min(40)]);
        }
        assert_eq!(read(b"$100000\r\n", 1, 100_000), Ok(1), "it was asked for");
        assert!(read(b"$100001\r\n", 1, 100_000).is_err());
        assert!(read(b"+OK\r\n", 0, 0).is_err(), "a reply to nobody");
    }
}
