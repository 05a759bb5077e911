//! An import over HTTP: its records are taken from its body as they come.

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::StatusCode;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use tokio::time::{Instant, timeout};

use super::split::Splitter;
use super::spool::SpoolError;
use super::{Given, Import, Part, Turn};
use crate::message_json;
use crate::store::records::MAX_RECORDS;

/// How long an import may be, in bytes: as many records as there may be, of a thousand bytes each.
const MAX_IMPORT: u64 = 1 << 30;
/// How long the next piece of an import may take to come.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// How much of an import the audit log is given, in bytes.
const MAX_SHOWN: usize = 2 << 10;

/// Why an import is not looked at any further. Nothing of it is written.
#[derive(Debug)]
pub(in crate::admin) struct NotWhole {
    pub(in crate::admin) status: StatusCode,
    pub(in crate::admin) reason: String,
}

impl From<SpoolError> for NotWhole {
    fn from(error: SpoolError) -> NotWhole {
        NotWhole { status: StatusCode::INSUFFICIENT_STORAGE, reason: error.to_string() }
    }
}

/// What a body says besides its records.
#[derive(Debug, Default)]
pub(in crate::admin) struct Received {
    pub(in crate::admin) force: Option<bool>,
    pub(in crate::admin) dry_run: Option<bool>,
    /// How it begins, for the audit.
    pub(in crate::admin) shown: String,
}

/// Takes a body as it comes, until it ends or the time is over. A mistake in a record ends nothing: others are looked for.
///
/// # Errors
/// For a body that is not an import, is too long, or does not come.
pub(in crate::admin) async fn receive(
    body: Body,
    pool: &DescriptorPool,
    import: &mut Import,
    until: Instant,
) -> Result<Received, NotWhole> {
    let messages = Part::ALL.map(|part| {
        let message = pool.get_message_by_name(&format!("weir.admin.v1.{}", part.message()));
        message.expect("the messages are compiled in")
    });
    let (mut pieces, mut split, mut length) = (body.into_data_stream(), Splitter::default(), 0);
    let (mut received, mut turn) = (Received::default(), Turn::default());
    loop {
        let piece = match timeout(MAX_SILENCE, pieces.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => return Err(unread(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
            Ok(None) => break,
            Err(_) => {
                let reason = format!("nothing more of the body came for {} s", MAX_SILENCE.as_secs());
                return Err(unread(StatusCode::REQUEST_TIMEOUT, reason));
            }
        };
        if Instant::now() >= until {
            return Err(unread(StatusCode::REQUEST_TIMEOUT, "the time for one import is over".to_owned()));
        }
        length += piece.len() as u64;
        if length > MAX_IMPORT {
            return Err(too_large(format!("the body is longer than {MAX_IMPORT} bytes")));
        }
        let mut rest = &piece[..];
        while let Some(part) = split.next(&mut rest).map_err(|reason| unread(StatusCode::BAD_REQUEST, reason))? {
            if import.is_full() {
                return Err(too_large(format!("more than {MAX_RECORDS} records, as many as there may be")));
            }
            let text = split.record();
            match record(part, &messages[part as usize], text, split.place()) {
                Ok(given) => import.add(split.place(), &given).await?,
                Err(line) => import.check.unreadable(&line),
            }
            if received.shown.len() < MAX_SHOWN {
                let beginning = String::from_utf8_lossy(&text[..text.len().min(MAX_SHOWN)]);
                received.shown.push_str(&format!(" {} {beginning}", part.name()));
            }
            turn.took(text.len()).await;
        }
        turn.took(piece.len()).await;
    }
    split.end().map_err(|reason| unread(StatusCode::BAD_REQUEST, reason))?;
    received.force = split.force();
    received.dry_run = split.dry_run();
    Ok(received)
}

fn record(part: Part, message: &MessageDescriptor, text: &[u8], place: usize) -> Result<Given, String> {
    let message = message_json::record(message, text, &format!("{}[{place}]", part.name()))?;
    Ok(Given::decode(part, &message.encode_to_vec()).expect("it was read as this message"))
}

fn unread(status: StatusCode, reason: String) -> NotWhole {
    NotWhole { status, reason }
}

fn too_large(reason: String) -> NotWhole {
    unread(StatusCode::PAYLOAD_TOO_LARGE, format!("{reason}: import it in parts"))
}
