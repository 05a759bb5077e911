//! Subjects in Redis: the index of a subject's counters, which the script keeps, and a hash for each day of its history.

use std::collections::HashSet;

use deadpool_redis::redis::{Pipeline, RedisError, RedisResult, Value, cmd, pipe};
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::bounded::{MAX_NAME, NAMES_REPLY, bounded};
use super::records::{BACKGROUND_TIME, RedisRecords, answered};
use super::wire::{self, Encoded};
use super::{Clock, STRANGE, batch, unavailable};
use crate::rules::key::{self, Key};
use crate::store::history::{MAX_COUNT, Tally};
use crate::store::shown::shown;
use crate::store::subjects::{Day, MAX_COUNTERS, Remembered, SubjectStore};
use crate::store::{Group, Outcomes, StoreError};

/// Subjects whose days are written by one pipeline.
const MAX_PIPELINE: usize = 1_000;
/// The longest field of a day, in bytes: a number, or the name of a tier.
const MAX_FIELD: usize = 256;
const SECONDS_A_DAY: u64 = 86_400;

/// What is added to a day of a history, by its name.
type Row = (Box<[u8]>, Day, Tally);

/// Asks over the connection that follows the records.
#[derive(Clone)]
pub struct RedisSubjects {
    records: RedisRecords,
    clock: Clock,
    kept_days: u64,
}

impl RedisSubjects {
    pub fn new(records: RedisRecords, clock: Clock, kept_days: u32) -> RedisSubjects {
        RedisSubjects { records, clock, kept_days: kept_days.into() }
    }
}

impl SubjectStore for RedisSubjects {
    fn kept_days(&self) -> Day {
        self.kept_days
    }

    async fn counters(&self, domain_prefix: &[u8], subject: &[u8]) -> Result<Vec<Key>, StoreError> {
        let mut command = bounded("ZREVRANGE", &[key::of_subject(domain_prefix, subject, "index")], MAX_NAME);
        command.arg(0).arg(MAX_COUNTERS - 1);
        let keys: Vec<Vec<u8>> = self.records.ask(&command, NAMES_REPLY).await?;
        Ok(keys.into_iter().filter(|key| key.len() <= MAX_NAME).map(Key::from_bytes).collect())
    }

    async fn look(&self, group: &Group) -> Result<Outcomes, StoreError> {
        let too_large = || StoreError::TooLarge(group.checks.len());
        let encoded = Encoded::new(group, &RandomState::default()).ok_or_else(too_large)?;
        let command = wire::call(std::iter::once(&encoded), &[], self.clock.injected());
        let deadline = RedisRecords::step();
        let mut link = self.records.link(deadline).await?;
        let mut asked = link.clone();
        let reply = answered(&mut link, deadline, batch::evaluate(&mut asked, &command, wire::answer_length(&encoded))).await;
        let reply = reply.map_err(|failure| failure.map_or(StoreError::Timeout, StoreError::from))?;
        wire::take_answer(&mut &reply[..], &encoded).ok_or_else(|| unavailable(STRANGE))?
    }

    async fn forget(&self, counters: &[Key]) -> Result<u64, StoreError> {
        if counters.is_empty() {
            return Ok(0);
        }
        let mut command = cmd("DEL");
        command.arg(counters.iter().map(Key::as_bytes).collect::<Vec<_>>());
        self.records.ask(&command, 0).await
    }

    /// Stops when there is no answer, and takes nothing of that pipeline for written. What Redis cannot add to is lost alone.
    async fn remember(&self, tallies: Vec<Row>) -> Remembered {
        let mut remembered = Remembered::default();
        for part in tallies.chunks(MAX_PIPELINE) {
            match self.add(part).await {
                Ok(added) => {
                    remembered.written += added.written;
                    remembered.failure = remembered.failure.or(added.failure);
                }
                Err(error) => {
                    remembered.failure = Some(error);
                    break;
                }
            }
        }
        remembered
    }

    async fn recall(&self, history: &[u8], from: Day, to: Day) -> Result<Vec<(Day, Tally)>, StoreError> {
        let days: Vec<Day> = (from..=to).collect();
        let mut pipeline = pipe();
        for day in &days {
            let mut command = bounded("HMGET", &[of_day(history, *day)], MAX_FIELD);
            command.arg(&["allowed", "refused", "cost", "tier"]);
            pipeline.add_command(command);
        }
        type Fields = (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);
        let found: Vec<Fields> = self.records.ask_all(&pipeline, RedisRecords::step()).await?;
        let tallies = days.into_iter().zip(found).map(|(day, (allowed, refused, cost, tier))| {
            let [allowed, refused, cost] = [allowed, refused, cost].map(|field| field.as_deref().map_or(0, count));
            let tier = tier.and_then(|tier| String::from_utf8(tier).ok()).filter(|tier| *shown(tier) == **tier);
            (day, Tally { allowed, refused, cost, tier: tier.map(String::into_boxed_str) })
        });
        Ok(tallies.filter(|(_, tally)| *tally != Tally::default()).collect())
    }
}

impl RedisSubjects {
    /// Adds rows to what is there; a count that would go beyond [`MAX_COUNT`] stays at it.
    async fn add(&self, rows: &[Row]) -> Result<Remembered, StoreError> {
        let failed = self.additions(rows).failed(&self.records).await?;
        let (overflowed, mut failed): (Vec<_>, Vec<_>) = failed.into_iter().partition(|failed| failed.is_overflow());
        let mut at_most = Commands::default();
        for Failed { row, field, .. } in overflowed {
            at_most.of(row, field, "HSET").arg(of_row(&rows[row])).arg(field).arg(MAX_COUNT);
        }
        failed.extend(at_most.failed(&self.records).await?);
        let lost: HashSet<usize> = failed.iter().map(|failed| failed.row).collect();
        let failure = failed.first().map(|failed| unavailable(&failed.error.to_string()));
        Ok(Remembered { written: (rows.len() - lost.len()) as u64, failure })
    }

    fn additions(&self, rows: &[Row]) -> Commands {
        let mut commands = Commands::default();
        for (row, (name, day, tally)) in rows.iter().enumerate() {
            let key = of_day(name, *day);
            for (field, count) in [("allowed", tally.allowed), ("refused", tally.refused), ("cost", tally.cost)] {
                if count > 0 {
                    commands.of(row, field, "HINCRBY").arg(&key).arg(field).arg(count.min(MAX_COUNT));
                }
            }
            if let Some(tier) = &tally.tier {
                commands.of(row, "tier", "HSET").arg(&key).arg("tier").arg(&**tier);
            }
            commands.of(row, "", "EXPIRE").arg(&key).arg((self.kept_days + 1) * SECONDS_A_DAY);
        }
        commands
    }
}

/// A pipeline, and the row and the field that each of its commands is for.
#[derive(Default)]
struct Commands {
    pipeline: Pipeline,
    places: Vec<(usize, &'static str)>,
}

/// A command that Redis did not carry out.
struct Failed {
    row: usize,
    field: &'static str,
    error: RedisError,
}

impl Commands {
    fn of(&mut self, row: usize, field: &'static str, name: &str) -> &mut Pipeline {
        self.places.push((row, field));
        self.pipeline.cmd(name)
    }

    /// Carries them out; an error is one command's own.
    async fn failed(mut self, records: &RedisRecords) -> Result<Vec<Failed>, StoreError> {
        if self.places.is_empty() {
            return Ok(Vec::new());
        }
        let answers: Vec<RedisResult<Value>> =
            records.ask_all(self.pipeline.ignore_errors(), Instant::now() + BACKGROUND_TIME).await?;
        let answered = self.places.into_iter().zip(answers);
        Ok(answered.filter_map(|((row, field), answer)| Some(Failed { row, field, error: answer.err()? })).collect())
    }
}

impl Failed {
    fn is_overflow(&self) -> bool {
        self.error.detail().is_some_and(|detail| detail.contains("would overflow"))
    }
}

/// A count that was added up there; what is no number counts as none.
fn count(field: &[u8]) -> u64 {
    let number = std::str::from_utf8(field).ok().and_then(|field| field.parse::<u64>().ok());
    number.unwrap_or(0).min(MAX_COUNT)
}

fn of_row((name, day, _): &Row) -> Vec<u8> {
    of_day(name, *day)
}

/// `…|{user_id=u1}|history|2026-11-21`.
fn of_day(history: &[u8], day: Day) -> Vec<u8> {
    [history, b"|", date(day).as_bytes()].concat()
}

fn date(day: Day) -> String {
    let seconds = i64::try_from(day * SECONDS_A_DAY).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_reads_as_its_date() {
        assert_eq!(of_day(b"w1|api|{user_id=u1}|history", 20_778), b"w1|api|{user_id=u1}|history|2026-11-21");
    }
}
