//! How much of a call is read: a small message for every call but an import, whose parts are counted before it is
//! decoded.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::LengthLimitError;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{Kind, MessageDescriptor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tonic::Status;

use super::calls::{self, AdminApi, Call};
use super::operations::OperatorStore;
use crate::transport::body::Unread;

/// The longest message of a call, and the longest record of an import, in bytes: four times the longest text of a
/// record.
pub(super) const MAX_MESSAGE: usize = 64 << 10;
/// The longest message of an import over gRPC, in bytes: gRPC clients read as much of an export by default.
pub(super) const MAX_IMPORT_MESSAGE: usize = 4 << 20;
/// The most strings and messages, at every depth, in one message of an import. Two bytes of the message can become 200
/// of memory. It is a hundred for each record of a page.
const MAX_PARTS: usize = 100_000;
/// How long a call may wait for its turn.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Calls that are read and answered at once; the next ones wait.
const MAX_CALLS: usize = 64;
/// Imports at once: each may hold 32 MiB, and a temporary file of 1 GiB.
const MAX_IMPORTS: usize = 2;
/// What stands before a message over gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Turns of calls.
pub(super) struct Turns {
    calls: Semaphore,
    imports: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { calls: Semaphore::new(MAX_CALLS), imports: Arc::new(Semaphore::new(MAX_IMPORTS)) }
    }

    /// A turn of any call but an import; `None` where others take too long.
    pub(super) async fn of_call(&self) -> Option<SemaphorePermit<'_>> {
        timeout(MAX_WAIT, self.calls.acquire()).await.ok()?.ok()
    }

    /// A turn of an import. Nobody waits for it: imports may take minutes.
    pub(super) fn of_import(&self) -> Option<OwnedSemaphorePermit> {
        self.imports.clone().try_acquire_owned().ok()
    }
}

/// Why a call has no turn.
pub(super) fn no_turn(name: &str) -> String {
    if name == calls::IMPORT {
        format!("{MAX_IMPORTS} imports are under way, as many as there may be: try again when one has ended; nothing was changed")
    } else {
        format!("{MAX_CALLS} calls are under way, as many as there may be: try again; nothing was changed")
    }
}

/// The longest message of this call over gRPC.
fn longest(call: &Call) -> usize {
    if call.name == calls::IMPORT { MAX_IMPORT_MESSAGE } else { MAX_MESSAGE }
}

/// Reads the message of a call over gRPC, and counts what is in it, before it is decoded.
pub(super) async fn bounded<S: OperatorStore + 'static>(
    State(api): State<Arc<AdminApi<S>>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(call) = calls::by_path(request.uri().path()) else { return next.run(request).await };
    let is_import = call.name == calls::IMPORT;
    let (import_turn, call_turn) = if is_import { (api.turns.of_import(), None) } else { (None, api.turns.of_call().await) };
    if import_turn.is_none() && call_turn.is_none() {
        return Status::unavailable(no_turn(call.name)).into_http();
    }
    let longest = longest(call);
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, longest + PREFIX).await {
        Ok(body) => body,
        Err(error) if is_too_long(&error) => {
            return Status::out_of_range(format!("a message of more than {longest} bytes")).into_http();
        }
        Err(error) => return broken_off(&error).into_http(),
    };
    let counted = match (body.get(PREFIX..), api.method(call.name)) {
        (Some(message), Some(method)) if is_import => count(&method.input(), message, &mut 0),
        _ => Ok(()),
    };
    match counted {
        Ok(()) => next.run(Request::from_parts(parts, body.into())).await,
        Err(status) => status.into_http(),
    }
}

fn broken_off(error: &axum::Error) -> Status {
    match why_unread(error) {
        Some(slow @ Unread::Slow(_)) => Status::deadline_exceeded(slow.to_string()),
        Some(full @ Unread::Full) => Status::resource_exhausted(full.to_string()),
        _ => Status::cancelled(format!("the message broke off: {error}")),
    }
}

/// Why a body did not come whole, where weir did not wait for it any longer.
pub(super) fn why_unread(error: &axum::Error) -> Option<&Unread> {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    std::iter::successors(first, |error| (*error).source()).find_map(|error| error.downcast_ref::<Unread>())
}

/// Whether a body was not read because it is longer than it may be.
pub(super) fn is_too_long(error: &axum::Error) -> bool {
    error.source().is_some_and(|cause| cause.is::<LengthLimitError>())
}

/// Counts the strings and messages of a message.
///
/// # Errors
/// For more than [`MAX_PARTS`], and for what is no message.
fn count(descriptor: &MessageDescriptor, mut message: &[u8], parts: &mut usize) -> Result<(), Status> {
    let broken = |_| Status::internal("the message cannot be decoded");
    while !message.is_empty() {
        let (field, wire_type) = decode_key(&mut message).map_err(broken)?;
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, field, &mut message, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        let length = decode_varint(&mut message).map_err(broken)?;
        let part = usize::try_from(length).ok().and_then(|length| message.get(..length));
        let part = part.ok_or_else(|| Status::internal("a field is longer than its message"))?;
        message.advance(part.len());
        *parts += 1;
        if *parts > MAX_PARTS {
            return Err(Status::invalid_argument(format!("more than {MAX_PARTS} values in one message: import a page at a time")));
        }
        if let Some(Kind::Message(inner)) = descriptor.get_field(field).map(|field| field.kind()) {
            count(&inner, part, parts)?;
        }
    }
    Ok(())
}

/// As many whole fields as there are in the first so many bytes of a message, or the first one.
pub(super) fn beginning(message: &[u8], most: usize) -> &[u8] {
    let mut rest = message;
    while !rest.is_empty() && message.len() - rest.len() < most {
        let skipped =
            decode_key(&mut rest).and_then(|(field, wire_type)| skip_field(wire_type, field, &mut rest, DecodeContext::default()));
        if skipped.is_err() {
            return &[];
        }
    }
    &message[..message.len() - rest.len()]
}

/// The first so many bytes of a text, and a mark where there were more.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::admin::proto::weir::admin::v1::{Records, Subject, SubjectLimits};

    fn counted(records: &Records) -> Result<usize, tonic::Code> {
        let pool = DescriptorPool::decode(calls::DESCRIPTOR_SET).expect("it is compiled in");
        let descriptor = pool.get_message_by_name("weir.admin.v1.Records").expect("it is there");
        let mut parts = 0;
        count(&descriptor, &records.encode_to_vec(), &mut parts).map(|()| parts).map_err(|status| status.code())
    }

    #[test]
    fn what_is_in_a_message_is_counted_at_every_depth() {
        let subject = |limits| Subject { domain: "d".into(), limits: vec![SubjectLimits::default(); limits], ..Subject::default() };
        let records = |limits: &[usize]| Records { subjects: limits.iter().copied().map(subject).collect(), ..Records::default() };
        assert_eq!(counted(&records(&[0, 3])), Ok(2 + 2 + 3));
        assert_eq!(counted(&records(&[MAX_PARTS - 2])), Ok(MAX_PARTS));
        assert_eq!(counted(&records(&[MAX_PARTS - 1])), Err(tonic::Code::InvalidArgument));
        assert_eq!(
            counted(&Records { subjects: vec![Subject::default(); MAX_PARTS + 1], ..Records::default() }),
            Err(tonic::Code::InvalidArgument)
        );
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(["abc", "abcd", "aää"].map(|text| cut(text.to_owned(), 3)), ["abc", "abc…", "aä…"]);
    }

    #[test]
    fn the_beginning_of_a_message_is_of_whole_fields() {
        let message = Records { subjects: vec![Subject { domain: "abc".into(), ..Subject::default() }; 9], ..Records::default() }
            .encode_to_vec();
        let subjects = |most| Records::decode(beginning(&message, most)).expect("whole fields").subjects.len();
        assert_eq!([subjects(0), subjects(1), subjects(7), subjects(8), subjects(1_000)], [0, 1, 1, 2, 9]);
        assert_eq!(beginning(b"\xff", 5), b"");
    }
}
