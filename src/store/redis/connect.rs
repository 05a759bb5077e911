//! Connections to one Redis server: TCP, TLS or unix socket, ready when the script is loaded. A pool bounds and makes them; a
//! connection's task lives in the runtime of the thread that asked for it, so a connection is kept or closed, never handed on.

use std::hash::BuildHasher;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::managed::{Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, PushInfo, PushKind, RedisError, RedisResult, cmd};
use foldhash::fast::RandomState;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::dial::Address;
use super::failure::Failure;
use super::listed::Listed;
use super::script;
use super::stream::{Expected, Watched};
use crate::store::outage::Outage;
use crate::store::shown::shown;

/// The most connections of a process: one for each server thread, and a few for administration.
const MAX_CONNECTIONS: usize = 1_024;
/// Between attempts to connect, at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where the counters are kept, and with how much patience. Redis 6.0 or newer (`HELLO 3`, `SET … KEEPTTL`). An ACL user needs
/// `~<prefix>w1|*` and `+evalsha +eval +script|load +getrange +setrange +exists +get +set +time +zadd +zcard +zremrangebyscore
/// +pexpire`; for what operators change and look at besides `+del +zrem +mget +zrangebylex +zrevrange +pttl +expire +xadd +xrange
/// +xrevrange +hincrby +hset +hmget`; `+info` lets weir warn of eviction.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, `redis+unix:///path?user=…&pass=…`.
    pub url: String,
    /// The authorities, in PEM, to trust for `rediss://` instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// What every key that weir writes begins with.
    pub key_prefix: String,
    /// How long making a connection may take, script and all.
    pub connect_timeout: Duration,
    /// How long a call may go without an answer before its connection is given up.
    pub store_timeout: Duration,
}

/// Why the settings name no Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisSettingsError {
    #[error("not the address of a Redis server: {0}")]
    Url(String),
    #[error("{path}: {reason}")]
    CaFile { path: PathBuf, reason: String },
    #[error("a file of certificate authorities is for rediss:// alone")]
    CaFileWithoutTls,
}

/// Makes connections; shared by all threads.
#[derive(Clone)]
pub struct Connector {
    pool: Pool<Dialer>,
    pub(super) settings: Arc<RedisSettings>,
    /// What all threads have put into the indexes of subjects.
    pub(super) listed: Arc<Listed>,
    /// What the log says of this Redis, for all of the process.
    outage: Arc<Outage>,
}

impl Connector {
    /// # Errors
    /// When the address or the file of authorities is malformed. Nothing is connected yet.
    pub fn new(settings: RedisSettings) -> Result<Connector, RedisSettingsError> {
        let dialer =
            Dialer { address: Address::new(&settings)?, connect_timeout: settings.connect_timeout, warned: AtomicBool::new(false) };
        let pool = Pool::builder(dialer).max_size(MAX_CONNECTIONS).build().expect("a pool without timeouts needs no runtime");
        Ok(Connector { pool, settings: Arc::new(settings), listed: Arc::new(Listed::new()), outage: Arc::default() })
    }

    /// What the log says of this Redis: everything that notices its loss is a part of it.
    pub fn outage(&self) -> &Arc<Outage> {
        &self.outage
    }

    /// A new connection that knows the script.
    pub(super) async fn connect(&self) -> Result<Object<Dialer>, Failure> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => Failure::from(error),
            error => Failure::lost(&error.to_string()),
        })
    }
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    expected: Arc<Expected>,
    lost: Arc<watch::Sender<bool>>,
    /// Ends with the last clone, and with it the connection.
    _driver: Arc<Driver>,
}

/// The task that moves a connection's bytes.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// What to send so many commands on. None of their replies may have more than `longest` bytes, or [`SHORT_REPLY`]: a longer
    /// one ends the connection, as does one that was not asked for.
    ///
    /// [`SHORT_REPLY`]: super::stream::SHORT_REPLY
    pub(super) fn asking(&mut self, commands: usize, longest: usize) -> &mut MultiplexedConnection {
        self.expected.expect(commands, longest);
        &mut self.connection
    }

    /// How many bytes were sent so far: what was asked and did not change this has not left the process.
    pub(super) fn sent(&self) -> u64 {
        self.expected.written()
    }

    /// Says that this connection is of no more use.
    pub(super) fn give_up(&self) {
        self.lost.send_replace(true);
    }

    /// Resolves when the server has closed the connection, or it was given up.
    pub(super) fn lost(&self) -> watch::Receiver<bool> {
        self.lost.subscribe()
    }
}

/// How long to wait between attempts to connect: twice as long each time, up to a second.
pub(super) struct Pauses {
    longest: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses { longest: FIRST_PAUSE }
    }
}

impl Pauses {
    /// Between half of a pause and all of it, so that threads and replicas do not come back at one instant.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.longest;
        self.longest = LONGEST_PAUSE.min(2 * pause);
        let random = RandomState::default().hash_one(()) % 1_000;
        pause / 2 + pause * u32::try_from(random).expect("less than a thousand") / 2_000
    }
}

/// What the pool makes connections with.
pub(super) struct Dialer {
    address: Address,
    connect_timeout: Duration,
    /// The warning about eviction is given once, until the policy is mended.
    warned: AtomicBool,
}

impl deadpool::managed::Manager for Dialer {
    type Type = Link;
    type Error = RedisError;

    async fn create(&self) -> RedisResult<Link> {
        match timeout(self.connect_timeout, self.dial()).await {
            Ok(link) => link,
            Err(_) => Err(RedisError::from(io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))),
        }
    }

    /// Refused: a connection that came back belongs to a thread that has ended.
    async fn recycle(&self, _: &mut Link, _: &Metrics) -> RecycleResult<RedisError> {
        Err(RecycleError::message("connections are not handed on"))
    }
}

impl Dialer {
    async fn dial(&self) -> RedisResult<Link> {
        let lost = Arc::new(watch::Sender::new(false));
        let pushed = {
            let lost = Arc::clone(&lost);
            move |info: PushInfo| -> Result<(), std::convert::Infallible> {
                if info.kind == PushKind::Disconnection {
                    lost.send_replace(true);
                }
                Ok(())
            }
        };
        // Timeouts are the caller's: whoever waits knows for how long.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None).set_push_sender(pushed);
        let expected = Arc::<Expected>::default();
        let stream = Watched::new(self.address.open().await?, Arc::clone(&expected));
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.address.redis, stream, config).await?;
        expected.settle();
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        let mut link = Link { connection, expected, lost, _driver: driver };
        script::load(link.asking(1, 0)).await?;
        self.warn_of_eviction(&mut link).await;
        Ok(link)
    }

    /// Redis that evicts removes counters silently: whoever was counted starts afresh.
    async fn warn_of_eviction(&self, link: &mut Link) {
        // INFO rather than CONFIG GET: hosted servers allow it.
        let info: RedisResult<String> = cmd("INFO").arg("memory").query_async(link.asking(1, 0)).await;
        let Ok(info) = info else { return };
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction").trim();
        let evicts = policy != "noeviction";
        if evicts && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(maxmemory_policy = &*shown(policy), "Redis may evict counters; set maxmemory-policy noeviction");
        } else if !evicts {
            self.warned.store(false, Ordering::Relaxed);
        }
    }
}
