//! Counters and histories of subjects in memory and in Redis: after the same requests both know the same.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::redis::RedisServer;
use weir::limit::{Algorithm, Check, DAY, HOUR, Limit, MINUTE, Operation, SECOND};
use weir::rules::key::{self, Key, Part};
use weir::store::history::{MAX_COUNT, Tally};
use weir::store::memory::MemoryStore;
use weir::store::records::RecordView;
use weir::store::redis::{Connector, RedisRecords, RedisSettings, RedisStore, RedisSubjects};
use weir::store::subjects::{MemorySubjects, Remembered, SubjectStore};
use weir::store::{Clock, Group, Store, Wait};

const SEED: u64 = 11;
const STEPS: usize = 1_500;
const KEPT_DAYS: u32 = 3;
const PREFIX: &str = "p|:";
const SUBJECTS: [&str; 3] = ["u1", "u|2", "u{3}"];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

/// Both stores on one clock, and what operators see of them.
struct Both {
    now: Arc<AtomicU64>,
    memory: Arc<MemoryStore>,
    memory_subjects: MemorySubjects,
    redis: RedisStore,
    redis_subjects: RedisSubjects,
}

impl Both {
    async fn new(server: &RedisServer) -> Both {
        let now = Arc::new(AtomicU64::new(1_767_225_600 * SECOND));
        let clock = Clock::Manual(now.clone());
        let settings = RedisSettings {
            url: server.url(),
            ca_file: None,
            key_prefix: PREFIX.to_owned(),
            connect_timeout: Duration::from_secs(10),
            store_timeout: Duration::from_secs(10),
        };
        let connector = Connector::new(settings).expect("the settings are good");
        let redis = RedisStore::new(&connector, clock.clone());
        redis.ready().await;
        let records = RedisRecords::new(&connector, Arc::new(Arc::new(RecordView::default())));
        let memory = Arc::new(MemoryStore::new(clock.clone(), 100_000));
        Both {
            now,
            memory_subjects: MemorySubjects::new(memory.clone(), KEPT_DAYS),
            memory,
            redis,
            redis_subjects: RedisSubjects::new(records, clock, KEPT_DAYS),
        }
    }

    async fn decide(&self, group: &Group) {
        let by_redis = self.redis.apply(group, Wait::of(Duration::from_secs(60))).await;
        assert_eq!(by_redis.as_ref(), self.memory.decide(group).as_ref(), "{group:#?}");
    }

    /// What both say of a subject: counters that are there, by what a look says of them.
    async fn agree_on(&self, subject: &[u8], limits: &[Limit]) -> Vec<Key> {
        let domain = key::domain_prefix(PREFIX, b"api");
        let in_memory = self.memory_subjects.counters(&domain, subject).await.expect("memory answers");
        let in_redis = self.redis_subjects.counters(&domain, subject).await.expect("Redis answers");
        let names = |keys: &[Key]| keys.iter().map(|key| key.as_bytes().to_vec()).collect::<BTreeSet<_>>();
        let (known, listed) = (names(&in_memory), names(&in_redis));
        assert!(listed.is_superset(&known), "{:?} is not listed", known.difference(&listed).collect::<Vec<_>>());
        let of = |key: &Key| limits.iter().find(|limit| key.as_bytes().ends_with(&key::shape_suffix(limit.shape()))).copied();
        let group = Group {
            keys: in_redis.iter().cloned().collect(),
            checks: in_redis.iter().map(|key| Check::new(of(key).expect("a limit of ours"), Operation::Look, 0)).collect(),
            refused: false,
        };
        if !in_redis.is_empty() {
            assert_eq!(self.redis_subjects.look(&group).await, self.memory_subjects.look(&group).await);
        }
        in_redis
    }
}

fn random_group(random: &mut Random, limits: &[Limit]) -> Group {
    let mut group = Group::default();
    let subject = SUBJECTS[random.below(SUBJECTS.len())];
    let path = ["/a", "/b|c"][random.below(2)];
    let parts = [(b"path".as_slice(), path), (b"user".as_slice(), subject)];
    let parts = parts.into_iter().map(|(key, value)| Part { key, value: value.as_bytes(), shared: false });
    let entries = key::entries(parts, 1);
    for limit in limits.iter().skip(random.below(limits.len())).take(1 + random.below(2)) {
        group.keys.push(key::key(&key::domain_prefix(PREFIX, b"api"), &entries, &key::shape_suffix(limit.shape())));
        group.checks.push(Check::new(*limit, Operation::Take, 1));
    }
    group
}

#[tokio::test]
async fn usage_and_reset_agree() {
    let server = RedisServer::start();
    let both = Both::new(&server).await;
    let limit = |algorithm, requests, window| Limit::new(algorithm, requests, window, None).expect("a limit");
    let limits = [
        limit(Algorithm::FixedWindow, 5, MINUTE),
        limit(Algorithm::SlidingLog, 7, HOUR),
        limit(Algorithm::SlidingCounter, 20, MINUTE),
        limit(Algorithm::TokenBucket, 30, HOUR),
    ];
    let mut random = Random(SEED);
    for step in 0..STEPS {
        both.decide(&random_group(&mut random, &limits)).await;
        if step % 10 > 0 {
            continue;
        }
        both.now.fetch_add(random.below(20) as u64 * SECOND, Ordering::Release);
        let part = Part { key: b"user", value: SUBJECTS[random.below(SUBJECTS.len())].as_bytes(), shared: false };
        let known = both.agree_on(&key::subject(part), &limits).await;
        if step % 100 == 0 {
            let some: Vec<Key> = known.into_iter().filter(|_| random.below(2) == 0).collect();
            let there = some.iter().filter(|key| both.memory.state(key).is_some()).count() as u64;
            assert_eq!(both.memory_subjects.forget(&some).await, Ok(there));
            assert!(both.redis_subjects.forget(&some).await.is_ok_and(|forgotten| forgotten >= there));
            both.agree_on(&key::subject(part), &limits).await;
        }
    }
}

#[tokio::test]
async fn histories_agree() {
    let server = RedisServer::start();
    let both = Both::new(&server).await;
    let today = both.now.load(Ordering::Acquire) / DAY;
    let names = SUBJECTS.map(|subject| {
        let subject = key::subject(Part { key: b"user", value: subject.as_bytes(), shared: false });
        key::of_subject(&key::domain_prefix(PREFIX, b"api"), &subject, "history").into_boxed_slice()
    });
    let mut random = Random(SEED);
    for step in 0..60 {
        let day = today + step / 30;
        let mut count = || random.below(5) as u64;
        let tally = Tally { allowed: count(), refused: count(), cost: count(), tier: (count() == 0).then(|| "pro".into()) };
        let tallies = vec![(names[usize::try_from(step).expect("small") % names.len()].clone(), day, tally)];
        assert_eq!(both.redis_subjects.remember(tallies.clone()).await, both.memory_subjects.remember(tallies).await);
    }
    for name in &names {
        let by_redis = both.redis_subjects.recall(name, today - 1, today + 2).await.expect("Redis answers");
        assert_eq!(both.memory_subjects.recall(name, today - 1, today + 2).await, Ok(by_redis.clone()));
        assert_eq!(by_redis.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [today, today + 1]);
        let of_today = String::from_utf8([name, b"|2026-01-01".as_slice()].concat()).expect("UTF-8");
        let left: u64 = server.command(&["TTL", &of_today]).await;
        let kept = u64::from(KEPT_DAYS + 1) * 86_400;
        assert!((kept - 600..=kept).contains(&left), "{left} s");
    }
}

#[tokio::test]
async fn who_has_counted_as_much_as_there_is_stays_at_it_and_costs_the_others_nothing() {
    let server = RedisServer::start();
    let both = Both::new(&server).await;
    let today = both.now.load(Ordering::Acquire) / DAY;
    let name = |number: usize| format!("p|:api|{{user=u{number}}}|history").into_bytes().into_boxed_slice();
    let all = Tally { allowed: 1, cost: u64::MAX, ..Tally::default() };
    let some = Tally { allowed: 1, refused: 2, cost: 3, tier: Some("pro".into()) };
    for turn in 1..=3_u64 {
        let tallies = vec![(name(0), today, some.clone()), (name(1), today, all.clone()), (name(2), today, some.clone())];
        let written = Remembered { written: 3, failure: None };
        assert_eq!(both.memory_subjects.remember(tallies.clone()).await, written, "{turn}");
        assert_eq!(both.redis_subjects.remember(tallies).await, written, "{turn}");
        for number in 0..3 {
            let by_redis = both.redis_subjects.recall(&name(number), today, today).await;
            assert_eq!(by_redis, both.memory_subjects.recall(&name(number), today, today).await, "{turn}");
            let known = &by_redis.expect("Redis answers")[0].1;
            assert_eq!((known.allowed, known.cost), (turn, if number == 1 { MAX_COUNT } else { 3 * turn }));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_added_to_costs_the_others_nothing() {
    let server = RedisServer::start();
    let both = Both::new(&server).await;
    let today = both.now.load(Ordering::Acquire) / DAY;
    let name = |number: usize| format!("p|:api|{{user=u{number}}}|history");
    let one = Tally { allowed: 1, ..Tally::default() };
    let tallies: Vec<_> = (0..2_500).map(|number| (name(number).into_bytes().into_boxed_slice(), today, one.clone())).collect();
    let no_history = format!("{}|2026-01-01", name(1_500));
    let () = server.command(&["SET", &no_history, "a text, which no tally can be added to"]).await;
    let remembered = both.redis_subjects.remember(tallies.clone()).await;
    assert!(remembered.written == 2_499 && remembered.failure.is_some(), "{remembered:?}");
    for number in [0, 1_499, 1_501, 2_499] {
        let known = both.redis_subjects.recall(name(number).as_bytes(), today, today).await;
        assert_eq!(known, Ok(vec![(today, one.clone())]), "{number}");
    }
    let () = server.command(&["DEL", &no_history]).await;
    assert_eq!(both.redis_subjects.remember(tallies).await, Remembered { written: 2_500, failure: None });
}

#[tokio::test]
async fn an_index_forgets_what_is_over() {
    let server = RedisServer::start();
    let both = Both::new(&server).await;
    let limit = Limit::new(Algorithm::FixedWindow, 5, MINUTE, None).expect("a limit");
    let domain = key::domain_prefix(PREFIX, b"api");
    for number in 0..2_000 {
        let path = format!("/{number}");
        let parts = [(b"path".as_slice(), path.as_str()), (b"user".as_slice(), "u1")];
        let parts = parts.into_iter().map(|(key, value)| Part { key, value: value.as_bytes(), shared: false });
        let counter = key::key(&domain, &key::entries(parts, 1), &key::shape_suffix(limit.shape()));
        let group = Group {
            keys: [counter].into_iter().collect(),
            checks: [Check::new(limit, Operation::Take, 1)].into_iter().collect(),
            refused: false,
        };
        both.decide(&group).await;
        both.now.fetch_add(SECOND + 1_000, Ordering::Release);
    }
    let listed = both.redis_subjects.counters(&domain, b"user=u1").await.expect("an index").len();
    assert!((60..300).contains(&listed), "{listed} of 2000: those of three minutes, and a few");
}
