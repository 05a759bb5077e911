//! HTTP/2 byte by byte, for what no client does.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The number of the call that a connection makes as its nth, from 0.
pub(crate) fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// The head of a call by gRPC, without an index.
pub(crate) fn head(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    // `:method: POST`, `:scheme: http`, then literals of `:path`, `:authority`, `content-type`, `te`.
    [
        vec![0x83, 0x86, 0x04],
        text(path),
        vec![0x01],
        text("localhost"),
        vec![0x0f, 0x10],
        text("application/grpc"),
        vec![0x00],
        text("te"),
        text("trailers"),
    ]
    .concat()
}

/// The head of a GET, without an index.
pub(crate) fn get(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    [vec![0x82, 0x86, 0x04], text(path), vec![0x01], text("localhost")].concat()
}

/// A header that goes into the table of both sides, where references find it.
pub(crate) fn indexed(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    [vec![0x40], text(name), text(value)].concat()
}

/// References to the header that came into the table last.
pub(crate) fn references(count: usize) -> Vec<u8> {
    vec![0xbe; count]
}

/// A message with its prefix.
pub(crate) fn message(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], length.as_slice(), message].concat()
}

/// A connection with its handshake.
pub(crate) async fn connect(port: u16, settings: &[(u16, u32)]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("weir listens");
    let settings: Vec<u8> =
        settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat();
    stream.write_all(&begin).await.expect("the connection is open");
    stream
}

/// Writes until the other side closes or all is written.
pub(crate) async fn send(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).await.is_ok()
}

/// The kind, the flags and the payload of the next frame.
pub(crate) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, Vec<u8>)> {
    next_of(stream).await.map(|(kind, flags, _, payload)| (kind, flags, payload))
}

/// The kind, the flags, the stream and the payload of the next frame.
pub(crate) async fn next_of(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).expect("a short frame")];
    stream.read_exact(&mut payload).await.ok()?;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some((head[3], head[4], id, payload))
}

/// Reads frames to the end of the connection: the error code of the last GOAWAY.
pub(crate) async fn goaway(stream: &mut (impl AsyncRead + Unpin)) -> Option<u32> {
    let mut code = None;
    while let Some((kind, _, payload)) = next(stream).await {
        if kind == GOAWAY {
            code = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().expect("four bytes")));
        }
    }
    code
}
