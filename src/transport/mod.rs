//! Connections and bodies: any stream in, a service out. Knows nothing of what is served.

pub mod account;
pub mod body;
mod calls;
pub mod connection;
pub mod drain;
pub mod files;
mod frames;
pub mod listen;
mod open;
pub mod room;
mod stream;
pub mod threads;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use account::Lasting;
pub use calls::{Answer, Counted};

/// These headers alone, copied: what came over the wire shares its memory with all that came beside it. For calls that wait, since
/// a peer may refer to one large header in each of a thousand calls.
pub fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let copied = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    names.iter().filter_map(|name| Some((name.clone(), headers.get(name).and_then(copied)?))).collect()
}
