//! The last step of an import: its records are good, and are written batch by batch.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::check::Check;
use super::spool::{Spool, SpoolError};
use super::{Given, Turn};
use crate::admin::problem::{Problem, unanswered};
use crate::store::StoreError;
use crate::store::records::{Change, MAX_PAGE, RecordStore, WriteError};

/// The most text of a batch, in bytes. The records of a batch are written together.
const MAX_BATCH: usize = 256 << 10;
/// How long a batch may take. A store gives up sooner.
const BATCH_TIME: Duration = Duration::from_secs(5);

/// Ends every report of an import that is written in part.
const SAFE: &str = "it is safe to import it again: records that are there are replaced by the same";

/// Writes all records: tiers first, which subjects name.
///
/// # Errors
/// For a store that does not take them, and after this time; with how many it took.
pub(super) async fn write(spool: &mut Spool, check: &Check, store: &impl RecordStore, until: Instant) -> Result<(), Problem> {
    let mut writing = Writing { store, total: check.count(), until, written: 0, batch: Vec::new(), bytes: 0 };
    let mut turn = Turn::default();
    for tiers in [true, false] {
        let mut reading = spool.read().await.map_err(|error| writing.unread(&error))?;
        while let Some((_, given)) = reading.next().await.map_err(|error| writing.unread(&error))? {
            if matches!(given, Given::Tier(_)) == tiers {
                // It was checked; a record that could not be written then is not among these.
                let change = check.change(&given).map_err(Problem::from)?;
                writing.add(change).await?;
            }
            turn.took(0).await;
        }
    }
    writing.flush().await
}

struct Writing<'a, S> {
    store: &'a S,
    total: usize,
    until: Instant,
    written: usize,
    batch: Vec<Change>,
    bytes: usize,
}

impl<S: RecordStore> Writing<'_, S> {
    async fn add(&mut self, change: Change) -> Result<(), Problem> {
        self.bytes += change.next.as_ref().map_or(0, String::len);
        self.batch.push(change);
        if self.batch.len() == MAX_PAGE || self.bytes >= MAX_BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Problem> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        if Instant::now() >= self.until {
            return Err(self.known("the time for one import is over"));
        }
        let answer = timeout(BATCH_TIME, self.store.write(&batch)).await;
        match answer.unwrap_or(Err(WriteError::Uncertain(StoreError::Timeout))) {
            Ok(()) => {
                self.written += batch.len();
                Ok(())
            }
            Err(WriteError::Uncertain(error)) => Err(Problem::Uncertain(self.stopped(&unanswered(&error), batch.len()))),
            Err(WriteError::Store(error)) => Err(self.known(&unanswered(&error))),
            Err(WriteError::Conflict) => Err(self.known(&Problem::Conflict.to_string())),
            Err(full @ WriteError::Full) => Err(Problem::Full(self.stopped(&full.to_string(), 0))),
        }
    }

    /// Of the last batch nothing was written.
    fn known(&self, reason: &str) -> Problem {
        match self.written {
            0 => Problem::Unavailable(reason.to_owned()),
            // What came before is a change.
            _ => Problem::Uncertain(self.stopped(reason, 0)),
        }
    }

    fn unread(&self, error: &SpoolError) -> Problem {
        Problem::Full(self.stopped(&error.to_string(), 0))
    }

    /// Why not all was written, and how much was; of so many more it is not known.
    fn stopped(&self, reason: &str, unknown: usize) -> String {
        let (written, total) = (self.written, self.total);
        match (written, unknown) {
            (0, 0) => format!("{reason}; nothing was imported"),
            (written, 0) => format!("{written} of {total} records were imported, but then {reason}; {SAFE}"),
            (0, unknown) => format!("{reason}: the change may have been made of the first {unknown} of {total} records; {SAFE}"),
            (written, unknown) => format!(
                "{written} of {total} records were imported, but then {reason}: the change may have been made of the next {unknown}; {SAFE}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::admin::import::{Flags, Import};
    use crate::admin::proto::weir::admin::v1 as proto;
    use crate::store::records::{Page, RecordName};

    /// Takes this many batches, and answers the next one so.
    struct Ends {
        batches: Mutex<Vec<usize>>,
        most: usize,
        error: WriteError,
    }

    impl RecordStore for Ends {
        fn are_known(&self) -> bool {
            true
        }

        async fn read(&self, _name: &RecordName) -> Result<Option<String>, StoreError> {
            Ok(None)
        }

        async fn list(&self, _prefix: &str, _after: &str, _count: usize) -> Result<Page, StoreError> {
            Ok(Page::default())
        }

        async fn write(&self, changes: &[Change]) -> Result<(), WriteError> {
            let mut batches = self.batches.lock().unwrap();
            if batches.len() == self.most {
                return Err(self.error.clone());
            }
            batches.push(changes.len());
            Ok(())
        }
    }

    /// Imports 2,500 subjects, and then a tier; what came of it, and the sizes of the batches.
    async fn import(most: usize, error: WriteError, until: Instant) -> (Result<u64, Problem>, Vec<usize>) {
        let store = Ends { batches: Mutex::default(), most, error };
        let mut import = Import::new(std::sync::Arc::default());
        for number in 0..2_500 {
            let subject = format!("user=u{number}");
            let subject = proto::Subject { domain: "d".into(), subject, multiplier: Some(2.0), ..proto::Subject::default() };
            import.add(number, &Given::Subject(subject)).await.unwrap();
        }
        let tier = proto::Tier { domain: "d".into(), name: "pro".into(), daily: Some(5), ..proto::Tier::default() };
        import.add(0, &Given::Tier(tier)).await.unwrap();
        let flags = Flags { force: true, dry_run: false };
        let answer = import.finish(&store, flags, until).await.map(|answer| answer.imported);
        (answer, store.batches.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_store_that_goes_away_is_said_with_what_it_took() {
        let later = Instant::now() + Duration::from_secs(3_600);
        let whole = import(10, WriteError::Conflict, later).await;
        assert_eq!(whole, (Ok(2_501), vec![1_000, 1_000, 501]));
        let cases = [
            (0, WriteError::Store(StoreError::Timeout), "the store (Redis) does not answer", ""),
            (2, WriteError::Store(StoreError::Timeout), "2000 of 2501 records were imported, but then the store (Redis)", SAFE),
            (1, WriteError::Full, "1000 of 2501 records were imported, but then there are 1000000 records", SAFE),
            (0, WriteError::Uncertain(StoreError::Timeout), "may have been made of the first 1000 of 2501 records", SAFE),
            (2, WriteError::Uncertain(StoreError::Timeout), "2000 of 2501 records were imported, but then", "of the next 501"),
        ];
        for (most, error, expected, besides) in cases {
            let (answer, batches) = import(most, error.clone(), later).await;
            let reason = answer.unwrap_err().to_string();
            assert!(reason.contains(expected) && reason.contains(besides), "{error:?} after {most}: {reason}");
            assert_eq!(batches.len(), most);
        }
        let (answer, batches) = import(10, WriteError::Conflict, Instant::now()).await;
        assert_eq!(answer, Err(Problem::Unavailable("the time for one import is over".to_owned())));
        assert!(batches.is_empty());
    }
}
