//! How the Redis store connects, and what it does when the connection, or the server behind it, goes and comes back.

mod support {
    pub mod redis;
}

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{FutureExt, join_all};
use support::redis::RedisServer;
use weir::limit::{Algorithm, Check, HOUR, Limit, Operation};
use weir::rules::key::{self, Part};
use weir::store::history::Tally;
use weir::store::records::{Change, Expected, RecordName, RecordStore, RecordView};
use weir::store::redis::{Connector, RedisRecords, RedisSettings, RedisSettingsError, RedisStore, RedisSubjects};
use weir::store::subjects::{Remembered, SubjectStore};
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

const REQUESTS: u64 = 1_000;

fn take(user: &str) -> Group {
    let limit = Limit::new(Algorithm::FixedWindow, REQUESTS, HOUR, None).expect("it is a limit");
    let parts = [Part { key: b"user_id", value: user.as_bytes(), shared: false }];
    let entries = key::entries(parts.into_iter(), 0);
    Group {
        keys: [key::key(&key::domain_prefix("", b"api"), &entries, &key::shape_suffix(limit.shape()))].into_iter().collect(),
        checks: [Check::new(limit, Operation::Take, 1)].into_iter().collect(),
        refused: false,
    }
}

async fn apply(store: &RedisStore, user: &str) -> Result<Outcomes, StoreError> {
    store.apply(&take(user), Wait::of(Duration::from_secs(60))).await
}

/// Hits counted for a user before this one.
async fn counted(store: &RedisStore, user: &str) -> u64 {
    REQUESTS - 1 - apply(store, user).await.expect("Redis answers")[0].remaining()
}

fn open(settings: RedisSettings) -> RedisStore {
    RedisStore::new(&Connector::new(settings).expect("the settings are good"), Clock::System)
}

/// Waits until the lane has noticed that its connection is gone.
async fn not_ready(store: &RedisStore) {
    while store.is_ready() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn tls_by_a_private_authority() {
    let server = RedisServer::start_tls(&[]);
    let store = server.store(Clock::System).await;
    assert!(apply(&store, "u1").await.is_ok());
    // The system's authorities do not vouch for it.
    let distrustful = open(RedisSettings { ca_file: None, ..server.settings() });
    let answer = apply(&distrustful, "u1").await;
    assert!(matches!(&answer, Err(StoreError::Unavailable(reason)) if reason.contains("ertificate")), "{answer:?}");
}

#[tokio::test]
async fn a_unix_socket_by_either_name() {
    let server = RedisServer::start_on_socket(&[]);
    let settings = server.settings();
    let other = RedisSettings { url: settings.url.replace("redis+unix://", "unix://"), ..server.settings() };
    assert!(apply(&open(settings), "u1").await.is_ok());
    assert!(apply(&open(other), "u1").await.is_ok());
}

#[tokio::test]
async fn a_user_who_may_do_no_more_than_needed() {
    let server = RedisServer::start_with(&["--requirepass", "unguessable"]);
    let password = |user: &str| {
        let url = server.url().replace("redis://", &format!("redis://{user}@"));
        RedisSettings { url, ..server.settings() }
    };
    let administrator = open(password(":unguessable"));
    assert!(apply(&administrator, "u1").await.is_ok());
    let commands = "+evalsha +eval +script|load +getrange +setrange +mget +exists +get +set +del +time +info +zadd +zcard +zrem \
                    +zremrangebyscore +zrangebylex +zrevrange +pexpire +pttl +expire +xadd +xrange +xrevrange +hincrby +hset +hmget";
    let mut words = vec!["ACL", "SETUSER", "weir", "on", ">s3cret/@:", "~w1|*", "-@all"];
    words.extend(commands.split(' '));
    let client = deadpool_redis::redis::Client::open(password(":unguessable").url).expect("the address is good");
    let mut connection = client.get_multiplexed_async_connection().await.expect("the password is right");
    let mut command = deadpool_redis::redis::cmd(words[0]);
    command.arg(&words[1..]).exec_async(&mut connection).await.expect("Redis answers");
    let store = open(password("weir:s3cret%2F%40%3A"));
    assert!(apply(&store, "u1").await.is_ok());
    assert_eq!(store.heartbeat("a").await, Ok(1));
    assert_eq!(store.probe().await, Ok(()));
    may_administer(&password("weir:s3cret%2F%40%3A")).await;
    let stranger = open(password("weir:wrong"));
    assert!(matches!(apply(&stranger, "u1").await, Err(StoreError::Unavailable(_))));
    assert!(!stranger.is_ready());
}

#[tokio::test]
async fn another_database_is_another_set_of_counters() {
    let server = RedisServer::start();
    let second = open(RedisSettings { url: format!("{}/2", server.url()), ..server.settings() });
    assert!(apply(&second, "u1").await.is_ok());
    assert_eq!(counted(&second, "u1").await, 1);
    assert_eq!(counted(&server.store(Clock::System).await, "u1").await, 0);
}

#[test]
fn settings_that_name_no_redis() {
    let settings = |url: &str, ca_file: Option<&str>| RedisSettings {
        url: url.to_owned(),
        ca_file: ca_file.map(Into::into),
        key_prefix: String::new(),
        connect_timeout: Duration::from_secs(1),
        store_timeout: Duration::from_secs(1),
    };
    for url in ["", "localhost", "http://localhost", "redis://", "redis://host:port", "redis+unix://", "redis://host/database"] {
        let error = Connector::new(settings(url, None)).err();
        assert!(matches!(error, Some(RedisSettingsError::Url(_))), "{url:?}: {error:?}");
    }
    let error = Connector::new(settings("redis://localhost", Some("Cargo.toml"))).err();
    assert!(matches!(error, Some(RedisSettingsError::CaFileWithoutTls)), "{error:?}");
    for file in ["Cargo.toml", "no/such/file"] {
        let error = Connector::new(settings("rediss://localhost", Some(file))).err();
        assert!(matches!(error, Some(RedisSettingsError::CaFile { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn a_killed_server_fails_what_is_waiting_at_once_and_is_found_again() {
    let mut server = RedisServer::start();
    let store = server.store(Clock::System).await;
    assert!(apply(&store, "u1").await.is_ok());
    server.pause();
    let waiting = join_all((0..100).map(|_| async { apply(&store, "u1").await }));
    let killed = async {
        // After the requests went out.
        tokio::task::yield_now().await;
        server.kill();
    };
    let (answers, ()) = tokio::join!(waiting, killed);
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Unavailable(_)))), "{answers:?}");
    assert!(!store.is_ready());
    assert!(matches!(apply(&store, "u1").await, Err(StoreError::Unavailable(_))));
    server.restart();
    store.ready().await;
    assert_eq!(counted(&store, "u1").await, 0);
}

#[tokio::test]
async fn a_closed_connection_is_noticed_with_nothing_to_send() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    server.command::<u64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    not_ready(&store).await;
    store.ready().await;
    assert!(apply(&store, "u1").await.is_ok());
}

#[tokio::test]
async fn a_store_may_be_there_before_redis() {
    let mut server = RedisServer::start();
    server.kill();
    let store = open(server.settings());
    assert!(!store.is_ready());
    assert!(matches!(apply(&store, "u1").await, Err(StoreError::Unavailable(_))));
    server.restart();
    // Asks for an attempt, rather than wait for the next.
    while store.probe().await.is_err() {}
    assert!(store.is_ready());
    assert!(apply(&store, "u1").await.is_ok());
}

#[tokio::test]
async fn a_call_without_an_answer_times_out_and_is_never_sent_again() {
    let server = RedisServer::start();
    let settings = RedisSettings { store_timeout: Duration::from_millis(50), ..server.settings() };
    let store = open(settings);
    store.ready().await;
    server.pause();
    let in_flight = take("sent");
    let wait = Wait::of(Duration::from_millis(20));
    assert_eq!(store.apply(&in_flight, wait).await, Err(StoreError::Timeout));
    not_ready(&store).await;
    // Nobody waits for it when there is a connection again.
    let wait = Wait::of(Duration::from_millis(20));
    assert_eq!(store.apply(&take("queued"), wait).await, Err(StoreError::Timeout));
    server.resume();
    store.ready().await;
    let patient = server.store(Clock::System).await;
    assert!(counted(&patient, "sent").await <= 1, "it may have been counted, once");
    assert_eq!(counted(&patient, "queued").await, 0);
}

#[tokio::test]
async fn who_has_less_patience_than_those_before_waits_no_longer_for_it() {
    let server = RedisServer::start();
    let store = open(RedisSettings { store_timeout: Duration::from_secs(60), ..server.settings() });
    store.ready().await;
    server.pause();
    let (first, second, third) = (take("patient"), take("less patient"), take("queued"));
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(20));
    let mut patient = Box::pin(store.apply(&first, Wait::of(long)));
    assert!((&mut patient).now_or_never().is_none());
    assert_eq!(store.apply(&second, Wait::of(short)).await, Err(StoreError::Timeout));
    assert_eq!(store.apply(&third, Wait::of(short)).await, Err(StoreError::Timeout));
    assert!((&mut patient).now_or_never().is_none());
    server.resume();
    assert!(patient.await.is_ok());
}

#[tokio::test]
async fn callers_who_leave_do_not_disturb_the_others() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let long = Wait::of(Duration::from_secs(60));
    let (first, gone, other) = (take("first"), take("gone"), take("other"));
    // Both are queued, and one caller leaves before the batch goes out.
    let mut leaves = Box::pin(store.apply(&gone, long));
    let stays = async {
        let other = store.apply(&other, long).await;
        (store.apply(&first, long).await, other)
    };
    assert!((&mut leaves).now_or_never().is_none());
    drop(leaves);
    let (first, other) = stays.await;
    assert!(first.is_ok() && other.is_ok());
    assert_eq!(counted(&store, "gone").await, 0, "what nobody waits for is not counted");
    assert_eq!(counted(&store, "other").await, 1);
}

#[tokio::test]
async fn more_than_the_queue_holds_wait_for_room_in_it() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    let users: Vec<Group> = (0..10_000).map(|number| take(&format!("u{number}"))).collect();
    let long = Wait::of(Duration::from_secs(60));
    let answers = join_all(users.iter().map(|user| store.apply(user, long))).await;
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn whoever_finds_no_room_in_time_was_kept_by_the_others() {
    let server = RedisServer::start();
    let store = server.store(Clock::System).await;
    server.pause();
    let (others, last) = (take("others"), take("last"));
    let long = Wait::of(Duration::from_secs(60));
    let mut waiting = Box::pin(join_all((0..10_000).map(|_| store.apply(&others, long))));
    assert!((&mut waiting).now_or_never().is_none());
    assert_eq!(store.apply(&last, Wait::of(Duration::from_millis(20))).await, Err(StoreError::Busy));
    server.resume();
    assert!(waiting.await.iter().all(Result::is_ok));
    assert_eq!(counted(&store, "last").await, 0);
}

#[tokio::test]
async fn a_probe_gives_up_a_connection_that_does_not_answer() {
    let server = RedisServer::start();
    let store = open(RedisSettings { store_timeout: Duration::from_millis(20), ..server.settings() });
    store.ready().await;
    server.pause();
    assert_eq!(store.probe().await, Err(StoreError::Timeout));
    not_ready(&store).await;
    server.resume();
    store.ready().await;
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_again_when_it_is_another_reason() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut server = RedisServer::start();
    let store = open(RedisSettings { store_timeout: Duration::from_secs(1), ..server.settings() });
    store.ready().await;
    server.kill();
    not_ready(&store).await;
    let told = || log.text().matches("failing").count();
    let fails_by = async |reason: &str| {
        let answer = store.probe().await;
        matches!(answer, Err(StoreError::Unavailable(told)) if told.contains(reason))
    };
    while !fails_by("refused").await {}
    server.restart_with(&["--requirepass", "unguessable"]);
    // Each of them has it try again.
    let mut attempts = 0;
    while attempts < 5 {
        attempts += u32::from(fails_by("NOAUTH").await);
    }
    assert!(log.text().contains("NOAUTH"), "{}", log.text());
    assert_eq!(told(), 2, "{}", log.text());
}

#[tokio::test]
async fn a_server_that_evicts_is_warned_of_once() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = RedisServer::start_with(&["--maxmemory-policy", "volatile-lru"]);
    let connector = Connector::new(server.settings()).expect("the settings are good");
    for _ in 0..3 {
        RedisStore::new(&connector, Clock::System).ready().await;
    }
    let text = log.text();
    assert_eq!(text.matches("Redis may evict counters").count(), 1, "{text}");
    assert!(text.contains("maxmemory_policy=\"volatile-lru\""), "{text}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no test panics in it")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no test panics in it").write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Everything that operators ask for.
async fn may_administer(settings: &RedisSettings) {
    let connector = Connector::new(settings.clone()).expect("the settings are good");
    let records = RedisRecords::new(&connector, Arc::new(Arc::new(RecordView::default())));
    records.loaded().await;
    let name = RecordName::Switch { domain: None };
    for next in [Some("{\"switch\":\"shadow\"}".to_owned()), None] {
        let change = Change { name: name.clone(), expected: Expected::Anything, next };
        assert_eq!(records.write(&[change]).await, Ok(()));
        assert!(records.list("", "", 10).await.is_ok() && records.read(&name).await.is_ok());
    }
    let subjects = RedisSubjects::new(records, Clock::System, 30);
    let tally = Tally { allowed: 1, refused: 1, cost: 1, tier: Some("pro".into()) };
    let remembered = subjects.remember(vec![(b"w1|d|{a=b}|history".as_slice().into(), 7, tally.clone())]).await;
    assert_eq!(remembered, Remembered { written: 1, failure: None });
    assert_eq!(subjects.recall(b"w1|d|{a=b}|history", 7, 8).await, Ok(vec![(7, tally)]));
    let counters = subjects.counters(b"w1|d", b"user=u1").await.expect("an index");
    assert!(subjects.forget(&counters).await.is_ok());
}
