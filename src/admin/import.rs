//! All records, out and in again. An import is checked whole before anything of it is written: it waits in a [`Spool`],
//! so its memory does not grow with its length.

mod check;
mod receive;
mod seen;
mod split;
mod spool;
mod write;

use std::sync::Arc;
use std::time::Duration;

use prost::{DecodeError, Message as _};
use tokio::time::Instant;

use self::check::Check;
use self::spool::{Spool, SpoolError};
use self::write::write;
use super::convert;
use super::operations::{Operations, OperatorStore, readable};
use super::problem::Problem;
use super::proto::weir::admin::v1 as proto;
use crate::rules::RuleSet;
use crate::store::records::{MAX_PAGE, MAX_RECORDS, RecordStore};

pub(super) use self::receive::{NotWhole, receive};

/// How long writing may take when the caller waits for it within a call of bounded length.
const CALL_TIME: Duration = Duration::from_secs(25);

/// The list that a record stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Subjects,
    Tiers,
    Switches,
}

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::Subjects, Part::Tiers, Part::Switches];

    /// The name of the list.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Subjects => "subjects",
            Part::Tiers => "tiers",
            Part::Switches => "switches",
        }
    }

    /// The type of its records, in the API's package.
    pub(super) fn message(self) -> &'static str {
        match self {
            Part::Subjects => "Subject",
            Part::Tiers => "Tier",
            Part::Switches => "Switch",
        }
    }
}

/// A record as a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    Subject(proto::Subject),
    Tier(proto::Tier),
    Switch(proto::Switch),
}

impl Given {
    fn decode(part: Part, message: &[u8]) -> Result<Given, DecodeError> {
        Ok(match part {
            Part::Subjects => Given::Subject(proto::Subject::decode(message)?),
            Part::Tiers => Given::Tier(proto::Tier::decode(message)?),
            Part::Switches => Given::Switch(proto::Switch::decode(message)?),
        })
    }

    fn encode(&self) -> (Part, Vec<u8>) {
        match self {
            Given::Subject(subject) => (Part::Subjects, subject.encode_to_vec()),
            Given::Tier(tier) => (Part::Tiers, tier.encode_to_vec()),
            Given::Switch(switch) => (Part::Switches, switch.encode_to_vec()),
        }
    }
}

/// What an import asks for besides its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// Write also records that name what does not exist.
    pub(super) force: bool,
    /// Check only.
    pub(super) dry_run: bool,
}

/// An import whose records are coming.
pub(super) struct Import {
    check: Check,
    spool: Spool,
}

impl Import {
    pub(super) fn new(rules: Arc<RuleSet>) -> Import {
        Import { check: Check::new(rules), spool: Spool::default() }
    }

    /// Takes the record that stands at this place of its list.
    ///
    /// # Errors
    /// Where the spool does not take it. A mistake in the record is reported by [`Import::finish`].
    async fn add(&mut self, place: usize, given: &Given) -> Result<(), SpoolError> {
        self.check.look(place, given);
        // An import with a mistake is not read again.
        if self.check.is_malformed() {
            return Ok(());
        }
        let (part, message) = given.encode();
        self.spool.push(part, &message).await
    }

    /// How many records have come.
    pub(super) fn count(&self) -> usize {
        self.check.count()
    }

    /// Whether there are as many records as there may be.
    fn is_full(&self) -> bool {
        self.count() >= MAX_RECORDS
    }

    /// All records have come: reports what is wrong with them, or writes them, until this time at most.
    ///
    /// # Errors
    /// For mistakes, before anything is written; for a store that does not take them all, with how many it took.
    pub(super) async fn finish(
        mut self,
        store: &impl RecordStore,
        flags: Flags,
        until: Instant,
    ) -> Result<proto::ImportRecordsResponse, Problem> {
        if self.check.needs_second_look() {
            let mut reading = self.spool.read().await?;
            while let Some((place, given)) = reading.next().await? {
                self.check.look_again(place, &given);
            }
        }
        let warnings = self.check.finish(flags.force)?;
        let imported = self.count() as u64;
        if !flags.dry_run {
            write(&mut self.spool, &self.check, store, until).await?;
        }
        Ok(proto::ImportRecordsResponse { imported, warnings })
    }
}

impl<S: OperatorStore> Operations<S> {
    pub(super) async fn export_records(&self, request: proto::ExportRecordsRequest) -> Result<proto::Records, Problem> {
        let size = match request.page_size as usize {
            0 => MAX_PAGE,
            size => size.min(MAX_PAGE),
        };
        let page = self.store.list("", &request.page_token, size).await?;
        let mut records = proto::Records { next_page_token: page.next.unwrap_or_default(), ..proto::Records::default() };
        for (name, record) in readable(page.records) {
            convert::export(&mut records, &name, &record);
        }
        Ok(records)
    }

    /// An import that came as one message.
    pub(super) async fn import_records(&self, request: proto::Records) -> Result<proto::ImportRecordsResponse, Problem> {
        let until = Instant::now() + CALL_TIME;
        let mut import = Import::new(self.shared.rules());
        let flags = Flags { force: request.force == Some(true), dry_run: request.dry_run == Some(true) };
        let subjects = request.subjects.into_iter().map(Given::Subject).enumerate();
        let tiers = request.tiers.into_iter().map(Given::Tier).enumerate();
        let switches = request.switches.into_iter().map(Given::Switch).enumerate();
        let mut turn = Turn::default();
        for (place, given) in subjects.chain(tiers).chain(switches) {
            import.add(place, &given).await?;
            turn.took(0).await;
        }
        import.finish(&self.store, flags, until).await
    }
}

/// Lets others have their turn while many records are looked at.
#[derive(Default)]
pub(super) struct Turn {
    records: usize,
    bytes: usize,
}

impl Turn {
    /// Records, and bytes of their text, that are looked at in one go: some milliseconds at the most.
    const RECORDS: usize = 50;
    const BYTES: usize = 64 << 10;

    /// A record of this length was looked at.
    async fn took(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes;
        if self.records >= Turn::RECORDS || self.bytes >= Turn::BYTES {
            *self = Turn::default();
            tokio::task::yield_now().await;
        }
    }
}
