//! Records that wait: in memory while they are few, else in a temporary file without a name. The file is read and
//! written on threads for what may block, never on one that serves.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Given, Part};
use crate::admin::problem::Problem;

/// How much waits in memory, in bytes: more than the longest import over gRPC.
const MAX_MEMORY: usize = 5 << 20;
/// How much of the file is written or read at once, in bytes.
const AT_ONCE: usize = 256 << 10;
/// How long the file may take to be made, or to take or give so much.
const STEP_TIME: Duration = Duration::from_secs(10);
/// What stands before a message: its list, and its length.
const PREFIX: usize = 5;

/// Why records cannot wait.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error(
        "an import of more than {MAX_MEMORY} bytes waits in a temporary file until it is checked, and none can be made in `{directory}`: \
         {error}; start weir with TMPDIR as a directory that it can write to, or import smaller parts"
    )]
    NoFile { directory: String, error: io::Error },
    #[error("the temporary file in `{directory}` that the import waits in cannot be {done}: {error}")]
    Broken { directory: String, done: &'static str, error: io::Error },
}

impl From<SpoolError> for Problem {
    fn from(error: SpoolError) -> Problem {
        Problem::Full(format!("{error}; nothing was imported"))
    }
}

/// Records in the order in which they came.
#[derive(Default)]
pub(super) struct Spool {
    /// Made when there is too much for memory.
    file: Option<File>,
    /// All records, or those that are not in the file yet.
    buffer: Vec<u8>,
}

impl Spool {
    /// Adds a record.
    ///
    /// # Errors
    /// Where there is too much for memory, and no file that takes it.
    pub(super) async fn push(&mut self, part: Part, message: &[u8]) -> Result<(), SpoolError> {
        let length = u32::try_from(message.len()).expect("a record is short");
        self.buffer.push(part as u8);
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(message);
        let most = if self.file.is_some() { AT_ONCE } else { MAX_MEMORY };
        if self.buffer.len() < most { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), SpoolError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => aside(tempfile::tempfile).await.map_err(|error| SpoolError::NoFile { directory: directory(), error })?,
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = aside(move || {
            let mut file = file;
            file.write_all(&buffer)?;
            buffer.clear();
            buffer.shrink_to(2 * AT_ONCE);
            Ok((file, buffer))
        });
        let (file, buffer) = written.await.map_err(|error| broken("written", error))?;
        self.file = Some(file);
        self.buffer = buffer;
        Ok(())
    }

    /// Reads all records from the first.
    ///
    /// # Errors
    /// Where the file takes no more, or cannot be read from its beginning.
    pub(super) async fn read(&mut self) -> Result<Reading<'_>, SpoolError> {
        if self.file.is_some() {
            self.flush().await?;
        }
        if let Some(mut file) = self.file.take() {
            let rewound = aside(move || file.rewind().map(|()| file)).await;
            self.file = Some(rewound.map_err(|error| broken("read", error))?);
        }
        Ok(Reading { spool: self, read: Vec::new(), at: 0, places: [0; Part::ALL.len()] })
    }
}

/// Records that are read back.
pub(super) struct Reading<'a> {
    spool: &'a mut Spool,
    /// What was read of the file.
    read: Vec<u8>,
    /// How much of it, or of the memory, was taken.
    at: usize,
    /// For each list, how many of its records were read.
    places: [usize; Part::ALL.len()],
}

impl Reading<'_> {
    /// The next record, and its place in its list.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Given)>, SpoolError> {
        loop {
            let bytes = if self.spool.file.is_some() { &self.read } else { &self.spool.buffer };
            let rest = &bytes[self.at..];
            if let Some((part, message)) = first(rest) {
                self.at += PREFIX + message.len();
                let given = Given::decode(part, message).map_err(|error| broken("read", io::Error::other(error)))?;
                let place = &mut self.places[part as usize];
                *place += 1;
                return Ok(Some((*place - 1, given)));
            }
            let is_over = rest.is_empty();
            if !self.more().await? {
                let cut_short = || broken("read", io::ErrorKind::UnexpectedEof.into());
                return if is_over { Ok(None) } else { Err(cut_short()) };
            }
        }
    }

    /// Reads on in the file. Says whether there was more.
    async fn more(&mut self) -> Result<bool, SpoolError> {
        let Some(file) = self.spool.file.take() else { return Ok(false) };
        let (mut bytes, at) = (std::mem::take(&mut self.read), std::mem::take(&mut self.at));
        let read = aside(move || {
            bytes.drain(..at);
            let length = (&file).take(AT_ONCE as u64).read_to_end(&mut bytes)?;
            Ok((file, bytes, length))
        });
        let (file, bytes, length) = read.await.map_err(|error| broken("read", error))?;
        self.spool.file = Some(file);
        self.read = bytes;
        Ok(length > 0)
    }
}

/// The first record, where it is there whole.
fn first(bytes: &[u8]) -> Option<(Part, &[u8])> {
    let (&part, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let message = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let part = Part::ALL.into_iter().find(|known| *known as u8 == part)?;
    Some((part, message))
}

fn broken(done: &'static str, error: io::Error) -> SpoolError {
    SpoolError::Broken { directory: directory(), done, error }
}

fn directory() -> String {
    std::env::temp_dir().display().to_string()
}

/// Does what may block on another thread.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match timeout(STEP_TIME, spawn_blocking(work)).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", STEP_TIME.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::proto::weir::admin::v1 as proto;

    fn record(number: usize) -> Given {
        let (domain, name) = (number.to_string(), "x".repeat(number % 3_000));
        match number % 3 {
            0 => Given::Subject(proto::Subject { domain, subject: name, ..proto::Subject::default() }),
            1 => Given::Tier(proto::Tier { domain, name, ..proto::Tier::default() }),
            _ => Given::Switch(proto::Switch { domain, switch: name }),
        }
    }

    #[tokio::test]
    async fn records_come_back_in_order_as_often_as_they_are_read() {
        for (count, is_file) in [(0, false), (100, false), (9_000, true)] {
            let mut spool = Spool::default();
            for number in 0..count {
                let (part, message) = record(number).encode();
                spool.push(part, &message).await.unwrap();
            }
            assert_eq!(spool.file.is_some(), is_file, "{count}");
            for _ in 0..2 {
                let mut reading = spool.read().await.unwrap();
                for number in 0..count {
                    assert_eq!(reading.next().await.unwrap(), Some((number / 3, record(number))));
                }
                assert_eq!(reading.next().await.unwrap(), None);
            }
            assert!(spool.buffer.capacity() <= 2 * AT_ONCE || !is_file);
        }
    }
}
