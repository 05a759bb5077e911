//! What operators change and look at, kept where the counters are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::limiter::Shared;
use crate::rules::key::Key;
use crate::store::deny_cache::Refusals;
use crate::store::history::Tally;
use crate::store::memory::MemoryStore;
use crate::store::records::{Change, MemoryRecords, Page, RecordName, RecordStore, WriteError};
use crate::store::redis::{RedisRecords, RedisSubjects};
use crate::store::subjects::{Day, MemorySubjects, Remembered, SubjectStore};
use crate::store::{Clock, Group, Outcomes, StoreError};

/// How often histories are brought to the store: a subject that asks often is written once in so long.
const FLUSH: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub enum Operators {
    Memory { records: Arc<MemoryRecords>, subjects: Arc<MemorySubjects> },
    Redis { records: RedisRecords, subjects: RedisSubjects, refusals: Arc<Refusals>, shared: Arc<Shared> },
}

impl Operators {
    pub(super) fn in_memory(store: Arc<MemoryStore>, shared: Arc<Shared>, history_days: u32) -> Operators {
        let subjects = Arc::new(MemorySubjects::new(store, history_days));
        Operators::Memory { records: Arc::new(MemoryRecords::new(shared)), subjects }
    }

    pub(super) fn in_redis(records: RedisRecords, refusals: Arc<Refusals>, shared: Arc<Shared>, history_days: u32) -> Operators {
        let subjects = RedisSubjects::new(records.clone(), Clock::System, history_days);
        Operators::Redis { records, subjects, refusals, shared }
    }

    /// Brings to the store what was added up since the last time. What the store does not take is lost.
    pub async fn flush(&self, shared: &Shared) {
        let tallies = shared.history().take();
        if tallies.is_empty() {
            return;
        }
        let (history, rows) = (&shared.metrics().history, tallies.len() as u64);
        let Remembered { written, failure } = self.remember(tallies).await;
        history.written.inc_by(written);
        history.not_taken.inc_by(rows - written);
        if let Some(error) = failure {
            tracing::debug!(%error, lost = rows - written, "a part of the history is lost");
        }
    }

    /// Brings the metrics of what is kept for operators up to date.
    pub fn look(&self, shared: &Shared) {
        let (metrics, records) = (shared.metrics(), shared.records());
        let counts = [records.subjects(), records.tiers().iter().map(|(_, tiers)| tiers.len()).sum(), records.switches()];
        let gauges = [&metrics.records.subjects, &metrics.records.tiers, &metrics.records.switches];
        for (gauge, count) in gauges.into_iter().zip(counts) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        metrics.history.record_full(shared.history().dropped());
        if let Operators::Redis { records, .. } = self {
            let (last, failures) = records.synced();
            metrics.records.record_sync(last, failures);
        }
    }

    /// Flushes again and again, for as long as the server lives.
    pub async fn keep_history(self, shared: Arc<Shared>) {
        shared.history().keep();
        let mut every = interval(FLUSH);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.flush(&shared).await;
        }
    }
}

impl RecordStore for Operators {
    fn are_known(&self) -> bool {
        match self {
            Operators::Memory { records, .. } => records.are_known(),
            Operators::Redis { records, .. } => records.are_known(),
        }
    }

    async fn read(&self, name: &RecordName) -> Result<Option<String>, StoreError> {
        match self {
            Operators::Memory { records, .. } => records.read(name).await,
            Operators::Redis { records, .. } => records.read(name).await,
        }
    }

    async fn list(&self, prefix: &str, after: &str, count: usize) -> Result<Page, StoreError> {
        match self {
            Operators::Memory { records, .. } => records.list(prefix, after, count).await,
            Operators::Redis { records, .. } => records.list(prefix, after, count).await,
        }
    }

    async fn write(&self, changes: &[Change]) -> Result<(), WriteError> {
        match self {
            Operators::Memory { records, .. } => records.write(changes).await,
            Operators::Redis { records, .. } => records.write(changes).await,
        }
    }
}

impl SubjectStore for Operators {
    fn kept_days(&self) -> Day {
        match self {
            Operators::Memory { subjects, .. } => subjects.kept_days(),
            Operators::Redis { subjects, .. } => subjects.kept_days(),
        }
    }

    async fn counters(&self, domain_prefix: &[u8], subject: &[u8]) -> Result<Vec<Key>, StoreError> {
        match self {
            Operators::Memory { subjects, .. } => subjects.counters(domain_prefix, subject).await,
            Operators::Redis { subjects, shared, .. } => {
                let mut counters = subjects.counters(domain_prefix, subject).await?;
                let known: HashSet<Key> = counters.iter().cloned().collect();
                let local = shared.local().counters_of(domain_prefix, subject);
                counters.extend(local.into_iter().filter(|key| !known.contains(key)));
                Ok(counters)
            }
        }
    }

    async fn look(&self, group: &Group) -> Result<Outcomes, StoreError> {
        match self {
            Operators::Memory { subjects, .. } => subjects.look(group).await,
            Operators::Redis { subjects, .. } => subjects.look(group).await,
        }
    }

    /// This process forgets at once what it remembers of refusals, and what it counted by itself while the store was away; the
    /// others forget refusals within a second.
    async fn forget(&self, counters: &[Key]) -> Result<u64, StoreError> {
        match self {
            Operators::Memory { subjects, .. } => subjects.forget(counters).await,
            Operators::Redis { subjects, refusals, shared, .. } => {
                let forgotten = subjects.forget(counters).await;
                if forgotten.is_ok() {
                    for key in counters {
                        shared.local().forget(key);
                    }
                }
                refusals.clear();
                forgotten
            }
        }
    }

    async fn remember(&self, tallies: Vec<(Box<[u8]>, Day, Tally)>) -> Remembered {
        match self {
            Operators::Memory { subjects, .. } => subjects.remember(tallies).await,
            Operators::Redis { subjects, .. } => subjects.remember(tallies).await,
        }
    }

    async fn recall(&self, history: &[u8], from: Day, to: Day) -> Result<Vec<(Day, Tally)>, StoreError> {
        match self {
            Operators::Memory { subjects, .. } => subjects.recall(history, from, to).await,
            Operators::Redis { subjects, .. } => subjects.recall(history, from, to).await,
        }
    }
}
