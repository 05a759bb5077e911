//! Records in memory and in Redis: the same changes leave the same records, and every process goes by them.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use support::eventually;
use support::redis::RedisServer;
use weir::rules::key;
use weir::rules::subject::{Records, SubjectRecord, Switch};
use weir::store::records::{Change, Expected, MemoryRecords, Record, RecordName, RecordStore, RecordView, WriteError};
use weir::store::redis::{Connector, RedisRecords, RedisSettings};

const SEED: u64 = 7;
const STEPS: usize = 400;

fn connector(server: &RedisServer) -> Connector {
    let settings = RedisSettings {
        url: server.url(),
        ca_file: None,
        key_prefix: "p:".to_owned(),
        connect_timeout: Duration::from_secs(10),
        store_timeout: Duration::from_secs(10),
    };
    Connector::new(settings).expect("the settings are good")
}

/// A process's view, and its way to the records.
async fn replica(server: &RedisServer) -> (Arc<RecordView>, RedisRecords) {
    let view = Arc::new(RecordView::default());
    let records = RedisRecords::new(&connector(server), Arc::new(view.clone()));
    records.loaded().await;
    (view, records)
}

fn subject(domain: &str, number: u64) -> RecordName {
    let subject = key::subject_named(&format!("user=u|{number}")).expect("a subject");
    RecordName::Subject { domain: domain.into(), subject: subject.as_slice().into() }
}

fn tier(name: &str) -> String {
    Record::Subject(SubjectRecord { tier: Some(name.into()), ..SubjectRecord::default() }).text()
}

fn put(name: RecordName, text: String) -> Change {
    Change { name, expected: Expected::Anything, next: Some(text) }
}

fn tier_of(view: &RecordView, domain: &str, number: u64) -> Option<String> {
    view.find(format!("{domain}|user=u%7C{number}").as_bytes()).and_then(|record| record.tier.as_deref().map(str::to_owned))
}

/// Everything that a store lists, page by page.
async fn listed(store: &impl RecordStore, prefix: &str) -> BTreeMap<String, String> {
    let (mut all, mut after) = (BTreeMap::new(), Some(String::new()));
    while let Some(name) = after {
        let page = store.list(prefix, &name, 7).await.expect("a page");
        all.extend(page.records);
        after = page.next;
    }
    all
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn random_change(random: &mut Random) -> Change {
    let domain = ["api", "ap", "a|pi"][usize::try_from(random.below(3)).expect("small")];
    let name = subject(domain, random.below(12));
    let text = tier(["free", "pro", "team"][usize::try_from(random.below(3)).expect("small")]);
    let expected = match random.below(4) {
        0 => Expected::Exactly(None),
        1 => Expected::Exactly(Some(tier("pro"))),
        _ => Expected::Anything,
    };
    Change { name, expected, next: (random.below(4) > 0).then_some(text) }
}

#[tokio::test]
async fn memory_and_redis_agree() {
    let server = RedisServer::start();
    let memory_view = Arc::new(RecordView::default());
    let memory = MemoryRecords::new(Arc::new(memory_view.clone()));
    let (redis_view, redis) = replica(&server).await;
    let mut random = Random(SEED);
    for step in 0..STEPS {
        let changes: Vec<Change> = (0..=random.below(3)).map(|_| random_change(&mut random)).collect();
        let mut names: Vec<_> = changes.iter().map(|change| change.name.text()).collect();
        names.sort();
        names.dedup();
        if names.len() < changes.len() {
            continue;
        }
        assert_eq!(redis.write(&changes).await, memory.write(&changes).await, "seed {SEED}, step {step}: {changes:#?}");
        let name = &changes[0].name;
        assert_eq!(redis.read(name).await, memory.read(name).await, "seed {SEED}, step {step}");
    }
    for prefix in [String::new(), RecordName::subjects("api"), RecordName::subjects("a|pi"), RecordName::tiers("api")] {
        assert_eq!(listed(&redis, &prefix).await, listed(&memory, &prefix).await, "{prefix}");
    }
    assert!(!listed(&memory, &RecordName::subjects("ap")).await.is_empty());
    for count in 1..40 {
        assert_eq!(redis.list("", "", count).await, memory.list("", "", count).await, "{count}");
    }
    assert_eq!(redis_view.subjects(), memory_view.subjects());
    for (domain, number) in ["api", "ap", "a|pi"].into_iter().flat_map(|domain| (0..12).map(move |number| (domain, number))) {
        let escaped = domain.replace('|', "%7C");
        assert_eq!(tier_of(&redis_view, &escaped, number), tier_of(&memory_view, &escaped, number), "{domain}, {number}");
    }
}

#[tokio::test]
async fn every_process_hears_of_a_change_and_a_new_one_finds_it() {
    let server = RedisServer::start();
    let (_, writer) = replica(&server).await;
    let (other, _records) = replica(&server).await;
    writer.write(&[put(subject("api", 1), tier("pro"))]).await.expect("it is written");
    eventually("the other process knows", async || tier_of(&other, "api", 1).as_deref() == Some("pro")).await;
    let switch = Record::Switch(Switch::ShadowAll).text();
    writer.write(&[put(RecordName::Switch { domain: None }, switch)]).await.expect("it is written");
    eventually("the other process knows", async || other.switch(b"any") == Switch::ShadowAll).await;
    let (late, _late_records) = replica(&server).await;
    assert_eq!((tier_of(&late, "api", 1).as_deref(), late.switch(b"any")), (Some("pro"), Switch::ShadowAll));
}

#[tokio::test]
async fn whoever_writes_goes_by_it_at_once() {
    let server = RedisServer::start();
    let (view, records) = replica(&server).await;
    for number in 0..5 {
        records.write(&[put(subject("api", number), tier("pro"))]).await.expect("it is written");
        assert_eq!(tier_of(&view, "api", number).as_deref(), Some("pro"));
    }
    let gone = Change { next: None, ..put(subject("api", 1), String::new()) };
    records.write(&[gone]).await.expect("it is removed");
    assert_eq!(tier_of(&view, "api", 1), None);
}

#[tokio::test]
async fn a_change_on_what_is_there_no_more_is_a_conflict() {
    let server = RedisServer::start();
    let (_, records) = replica(&server).await;
    let on = |text: Option<&str>| Change { expected: Expected::Exactly(text.map(tier)), ..put(subject("api", 1), tier("new")) };
    assert_eq!(records.write(&[on(Some("old"))]).await, Err(WriteError::Conflict));
    assert_eq!(records.write(&[on(None)]).await, Ok(()));
    assert_eq!(records.write(&[on(None)]).await, Err(WriteError::Conflict));
    let both = [put(subject("api", 2), tier("pro")), on(None)];
    assert_eq!(records.write(&both).await, Err(WriteError::Conflict));
    assert_eq!(records.read(&subject("api", 2)).await, Ok(None), "all or none");
}

#[tokio::test]
async fn with_redis_away_the_last_known_stands_and_what_is_lost_is_lost() {
    let mut server = RedisServer::start();
    let (view, records) = replica(&server).await;
    records.write(&[put(subject("api", 1), tier("pro"))]).await.expect("it is written");
    server.kill();
    assert!(records.read(&subject("api", 1)).await.is_err());
    assert_eq!(tier_of(&view, "api", 1).as_deref(), Some("pro"));
    server.restart();
    eventually("the empty Redis is seen", async || tier_of(&view, "api", 1).is_none()).await;
    records.write(&[put(subject("api", 2), tier("pro"))]).await.expect("it is written");
    assert_eq!(tier_of(&view, "api", 2).as_deref(), Some("pro"));
}

#[tokio::test]
async fn what_was_flushed_behind_its_back_is_noticed() {
    let server = RedisServer::start();
    let (view, records) = replica(&server).await;
    records.write(&[put(subject("api", 1), tier("pro"))]).await.expect("it is written");
    let _: () = server.command(&["FLUSHALL"]).await;
    eventually("the empty Redis is seen", async || tier_of(&view, "api", 1).is_none()).await;
}

#[tokio::test]
async fn whoever_missed_a_part_of_the_feed_loads_everything() {
    let server = RedisServer::start();
    let (view, records) = replica(&server).await;
    records.write(&[put(subject("api", 1), tier("pro"))]).await.expect("it is written");
    // Another writer, whose changes went by while this process was not looking: the feed has the last of them only.
    let mut pipe = deadpool_redis::redis::pipe();
    pipe.atomic();
    pipe.cmd("SET").arg("p:w1|{records}|subject|api|user=u%7C2").arg(tier("team"));
    pipe.cmd("ZADD").arg("p:w1|{records}|index").arg(0).arg("subject|api|user=u%7C2");
    let last: Vec<(String, Vec<String>)> = server.command(&["XREVRANGE", "p:w1|{records}|feed", "+", "-", "COUNT", "1"]).await;
    let (beginning, number) = last[0].0.split_once('-').expect("an id");
    let later = format!("{beginning}-{}", number.parse::<u64>().expect("a number") + 3);
    pipe.cmd("XADD").arg("p:w1|{records}|feed").arg(later).arg("name").arg("subject|api|user=u%7C9").arg("next").arg("-");
    pipe.query_async::<()>(&mut server.connection().await).await.expect("it is written");
    eventually("what was missed is known", async || tier_of(&view, "api", 2).as_deref() == Some("team")).await;
    assert_eq!(tier_of(&view, "api", 1).as_deref(), Some("pro"));
}

#[tokio::test]
async fn what_cannot_be_read_counts_as_none() {
    let view = Arc::new(RecordView::default());
    let records = MemoryRecords::new(Arc::new(view.clone()));
    records.write(&[put(subject("api", 1), tier("pro"))]).await.expect("it is written");
    records.write(&[put(subject("api", 1), "{".to_owned())]).await.expect("it is written");
    assert_eq!(tier_of(&view, "api", 1), None);
}
