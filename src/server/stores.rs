//! The store that the settings ask for: one for the process, with a way to it for every thread.

use std::sync::Arc;
use std::time::Duration;

use super::operators::Operators;
use super::readiness::Readiness;
use crate::limiter::{Shared, abandoned};
use crate::rules::key::Key;
use crate::settings::{Settings, StoreSetting};
use crate::store::deny_cache::{DenyCache, Refusals};
use crate::store::guard::{Guard, SharedBreaker};
use crate::store::memory::MemoryStore;
use crate::store::redis::{Connector, RedisRecords, RedisSettings, RedisSettingsError, RedisStore};
use crate::store::reservations::{Gated, Kept, Passed, ReservationStore};
use crate::store::{Clock, Group, Outcomes, Store, StoreError, Wait};
use crate::telemetry::metrics::Metrics;

/// How long making a connection to Redis may take before it is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often expired counters in memory are cleared away.
const SWEEP: Duration = Duration::from_secs(1);
/// How often it is looked whether Redis is still connected, for readiness without calls.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that Redis leaves unanswered before it counts as away: one may just have been slow.
const UNANSWERED: u32 = 3;
/// How often a replica says that it is alive, for the others to know what their share is.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Makes the store of each thread.
#[derive(Clone)]
pub enum Stores {
    Memory(Arc<MemoryStore>),
    Redis(Arc<RedisStores>),
}

/// What the threads' ways to Redis share.
pub struct RedisStores {
    connector: Connector,
    breaker: Arc<SharedBreaker>,
    refusals: Arc<Refusals>,
    metrics: Arc<Metrics>,
    /// `None`: by heartbeats.
    replicas: Option<u32>,
}

/// One thread's way to the store.
pub enum ThreadStore {
    Memory(Arc<MemoryStore>),
    Redis(DenyCache<Measured<Guard<RedisStore>>>),
}

impl Stores {
    /// # Errors
    /// When the settings name no Redis. Nothing is connected yet.
    pub fn new(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Stores, RedisSettingsError> {
        let StoreSetting::Redis { url, ca_file } = &settings.store else {
            return Ok(Stores::Memory(Arc::new(MemoryStore::new(Clock::System, settings.memory_max_counters))));
        };
        let connector = Connector::new(RedisSettings {
            url: url.clone(),
            ca_file: ca_file.clone(),
            key_prefix: settings.load.key_prefix.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            store_timeout: settings.store_timeout,
        })?;
        let breaker = SharedBreaker::new(settings.store_timeout).within(connector.outage());
        Ok(Stores::Redis(Arc::new(RedisStores {
            connector,
            breaker: Arc::new(breaker),
            refusals: Arc::new(Refusals::new(settings.local_cache_bytes)),
            metrics: metrics.clone(),
            replicas: settings.replicas,
        })))
    }

    /// There is nobody to wait for.
    pub fn are_ready_at_once(&self) -> bool {
        matches!(self, Stores::Memory(_))
    }

    /// The store for the thread that asks; a connection to Redis belongs to the runtime it was made in.
    pub fn for_this_thread(&self) -> ThreadStore {
        match self {
            Stores::Memory(store) => ThreadStore::Memory(store.clone()),
            Stores::Redis(redis) => {
                let guard = Guard::new(RedisStore::new(&redis.connector, Clock::System), &redis.breaker);
                let measured = Measured { store: guard, metrics: redis.metrics.clone() };
                ThreadStore::Redis(DenyCache::new(measured, redis.refusals.clone()))
            }
        }
    }

    /// What was remembered by rules that are no longer in force.
    pub fn forget_refusals(&self) {
        if let Stores::Redis(redis) = self {
            redis.refusals.clear();
        }
    }

    /// Where what operators say and look at is kept: `shared` goes by it from now on, and is not ready before it knows all of it.
    pub fn for_operators(&self, shared: &Arc<Shared>, readiness: &Arc<Readiness>, history_days: u32) -> Operators {
        match self {
            Stores::Memory(store) => {
                readiness.set_records_loaded();
                Operators::in_memory(store.clone(), shared.clone(), history_days)
            }
            Stores::Redis(redis) => {
                let records = RedisRecords::new(&redis.connector, shared.clone());
                let (loading, readiness) = (records.clone(), readiness.clone());
                tokio::spawn(async move {
                    loading.loaded().await;
                    readiness.set_records_loaded();
                });
                Operators::in_redis(records, redis.refusals.clone(), shared.clone(), history_days)
            }
        }
    }

    /// Brings the metrics that are looked at, rather than counted, up to date.
    pub fn look(&self, shared: &Shared) {
        let metrics = shared.metrics();
        metrics.abandoned.record(abandoned::counts());
        let local = shared.local();
        metrics.fallback_memory.record(local.len(), local.evicted(), local.turned_away());
        match self {
            Stores::Memory(store) => {
                metrics.memory.record(store.len(), store.evicted(), store.turned_away());
                metrics.reservations.kept.set(i64::try_from(store.reservations()).unwrap_or(i64::MAX));
            }
            Stores::Redis(redis) => {
                metrics.store.breaker_open.set(i64::from(redis.breaker.is_open()));
            }
        }
    }

    /// What the store needs done in the background, for as long as the server lives.
    pub async fn look_after(self, shared: Arc<Shared>, readiness: Arc<Readiness>) {
        match self {
            Stores::Memory(store) => sweep(shared, Some(store)).await,
            Stores::Redis(redis) => {
                tokio::spawn(redis.breaker.clone().probe_while_open());
                let store = RedisStore::new(&redis.connector, Clock::System);
                tokio::join!(sweep(shared.clone(), None), redis.heartbeats(&store, &shared), redis.watch(&store, &readiness));
            }
        }
    }
}

impl RedisStores {
    /// Ready when Redis answers and counts, and the breaker lets calls through. It is asked even when no calls come, so that a server
    /// that nobody uses yet tells the truth too.
    async fn watch(&self, store: &RedisStore, readiness: &Readiness) {
        store.ready().await;
        let mut open = self.breaker.watch();
        let mut unanswered = 0;
        loop {
            unanswered = match store.probe().await {
                Ok(()) => 0,
                Err(StoreError::Timeout) => unanswered + 1,
                Err(error) => {
                    if matches!(error, StoreError::Refused(_)) {
                        self.breaker.refused(&error);
                    }
                    UNANSWERED
                }
            };
            readiness.set_store_ready(unanswered < UNANSWERED && !*open.borrow_and_update());
            tokio::select! {
                changed = open.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Says that this replica lives and learns how many do. Without an answer, the last count stands.
    async fn heartbeats(&self, store: &RedisStore, shared: &Shared) {
        if let Some(replicas) = self.replicas {
            shared.set_replicas(replicas);
            return;
        }
        let id = format!("{:032x}", random());
        let mut every = tokio::time::interval(HEARTBEAT);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match store.heartbeat(&id).await {
                Ok(replicas) => shared.set_replicas(replicas),
                Err(error) => tracing::debug!(%error, "the replicas could not be counted"),
            }
        }
    }
}

/// Tells replicas apart; no secret.
fn random() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    half() << 64 | half()
}

/// Clears expired counters away, off the serving threads.
async fn sweep(shared: Arc<Shared>, store: Option<Arc<MemoryStore>>) {
    let mut every = tokio::time::interval(SWEEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let (shared, store) = (shared.clone(), store.clone());
        let swept = tokio::task::spawn_blocking(move || {
            shared.local().sweep();
            store.inspect(|store| store.sweep());
        });
        if swept.await.is_err() {
            tracing::error!("clearing expired counters away panicked");
        }
    }
}

impl Store for ThreadStore {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        match self {
            ThreadStore::Memory(store) => store.apply(group, wait).await,
            ThreadStore::Redis(store) => store.apply(group, wait).await,
        }
    }

    fn takes_time(&self) -> bool {
        matches!(self, ThreadStore::Redis(_))
    }
}

impl ReservationStore for ThreadStore {
    async fn pass(&self, gated: &Gated, wait: Wait) -> Result<Passed, StoreError> {
        match self {
            ThreadStore::Memory(store) => store.pass(gated, wait).await,
            ThreadStore::Redis(store) => store.pass(gated, wait).await,
        }
    }

    async fn kept(&self, key: &Key, wait: Wait) -> Result<Option<Kept>, StoreError> {
        match self {
            ThreadStore::Memory(store) => store.kept(key, wait).await,
            ThreadStore::Redis(store) => store.kept(key, wait).await,
        }
    }
}

/// Counts how long a store takes, and what it does not answer.
pub struct Measured<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S> Measured<S> {
    fn heard<T>(&self, answer: &Result<T, StoreError>, wait: Wait) {
        let metrics = &self.metrics.store;
        let errors = match answer {
            Ok(_) => return metrics.latency.record(wait.asked.elapsed()),
            Err(StoreError::Timeout) => &metrics.timeouts,
            Err(StoreError::Unavailable(_) | StoreError::Refused(_)) => &metrics.unavailable,
            Err(StoreError::Busy) => &metrics.busy,
            Err(StoreError::Open) => &metrics.not_asked,
            Err(StoreError::Foreign(_) | StoreError::TooLarge(_) | StoreError::Full) => &metrics.refused,
        };
        errors.inc();
    }
}

impl<S: Store> Store for Measured<S> {
    async fn apply(&self, group: &Group, wait: Wait) -> Result<Outcomes, StoreError> {
        let answer = self.store.apply(group, wait).await;
        self.heard(&answer, wait);
        answer
    }
}

impl<S: ReservationStore> ReservationStore for Measured<S> {
    async fn pass(&self, gated: &Gated, wait: Wait) -> Result<Passed, StoreError> {
        let answer = self.store.pass(gated, wait).await;
        self.heard(&answer, wait);
        answer
    }

    async fn kept(&self, key: &Key, wait: Wait) -> Result<Option<Kept>, StoreError> {
        let answer = self.store.kept(key, wait).await;
        self.heard(&answer, wait);
        answer
    }
}
