//! A flood of made-up values in memory that is full: what refuses someone keeps refusing, what is nearly used
//! up stays so, and where every counter refuses someone a new one gets no room and its request follows
//! `on_store_failure`.

mod support {
    pub mod rules;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::rules::{NOW, blocking, descriptor, domain, fixed, limit, request, rule};
use tokio::time::Instant;
use weir::limit::{Algorithm, HOUR, Limit, MINUTE, Micros, Period, SECOND};
use weir::limiter::{Answer, Limiter, LimiterSettings, Shared};
use weir::rules::decision::{Code, Decision};
use weir::rules::plan::PlanSettings;
use weir::rules::request::{Descriptor, Request};
use weir::rules::{OnStoreFailure, Rule, RuleLimit, RuleSet};
use weir::store::memory::MemoryStore;
use weir::store::{Clock, Group, Outcomes, Store, StoreError, Wait};

/// Counters that there is room for: one shard of them, so that the flood meets every counter of a test.
const ROOM: usize = 100;
const FLOOD: usize = 10 * ROOM;

/// A limiter over a small memory, on a clock of its own.
struct Server {
    limiter: Limiter<Counted>,
    now: Arc<AtomicU64>,
}

/// The memory store, where tests can look at it.
struct Counted(Arc<MemoryStore>);

impl Store for Counted {
    async fn apply(&self, group: &Group, _: Wait) -> Result<Outcomes, StoreError> {
        self.0.decide(group)
    }
}

impl Server {
    fn new(rules: &[(&[(&str, &str)], Rule)]) -> Server {
        let now = Arc::new(AtomicU64::new(NOW));
        let clock = Clock::Manual(Arc::clone(&now));
        let settings = LimiterSettings { plan: PlanSettings::default(), store_timeout: Duration::from_secs(1) };
        let shared = Shared::new(MemoryStore::new(clock.clone(), ROOM), settings);
        let domains = [(Box::from(*b"d"), Arc::new(domain(rules)))].into_iter().collect();
        shared.load(RuleSet { domains, revision: 1 });
        let store = Counted(Arc::new(MemoryStore::new(clock, ROOM)));
        Server { limiter: Limiter::new(Arc::new(shared), store), now }
    }

    fn store(&self) -> &MemoryStore {
        &self.limiter.store().0
    }

    /// `None`: unavailable.
    async fn decide(&self, request: &Request<'_>) -> Option<Decision> {
        match self.limiter.decide(request, Instant::now(), None).await {
            Answer::Decided(decided) => Some(decided.decision),
            Answer::Unavailable(_) => None,
            Answer::Invalid(reason) => panic!("{reason}"),
        }
    }

    async fn code(&self, key: &str, value: &str, hits: u32) -> Option<Code> {
        let request = Request { hits_addend: hits, ..request([descriptor(&[(key, value)])]) };
        self.decide(&request).await.map(|decision| decision.code)
    }

    /// Hits by ten times as many values as there is room for.
    async fn flood(&self, key: &str, hits: u32) -> Vec<Option<Code>> {
        let mut codes = Vec::with_capacity(FLOOD);
        for number in 0..FLOOD {
            codes.push(self.code(key, &format!("made up {number}"), hits).await);
        }
        codes
    }

    fn pass(&self, time: Micros) {
        self.now.fetch_add(time, Ordering::AcqRel);
    }
}

const OK: Option<Code> = Some(Code::Ok);
const OVER: Option<Code> = Some(Code::OverLimit);

#[tokio::test]
async fn a_flood_lifts_no_block() {
    let server = Server::new(&[(&[("user", "")], blocking(15 * MINUTE, fixed(5, MINUTE)))]);
    assert_eq!([server.code("user", "u", 5).await, server.code("user", "u", 1).await], [OK, OVER]);
    server.pass(2 * MINUTE);
    assert_eq!(server.flood("user", 1).await, vec![OK; FLOOD], "those who are new find room all the same");
    assert_eq!(server.code("user", "u", 1).await, OVER, "its limit is whole again, its block stands");
    assert!(server.store().len() <= ROOM && server.store().evicted() as usize >= FLOOD - ROOM);
    server.pass(13 * MINUTE);
    assert_eq!((server.code("user", "u", 1).await, server.store().turned_away()), (OK, 0));
}

#[tokio::test]
async fn a_flood_refills_no_limit_that_refuses() {
    let quota = RuleLimit::new(Limit::quota(Period::Day, 3).expect("a quota"), "policy");
    let limits = Algorithm::OF_RATES.map(|algorithm| limit(algorithm, 3, 6 * HOUR)).into_iter().chain([quota]);
    for limit in limits {
        let algorithm = limit.limit.algorithm();
        let short = fixed(10, MINUTE);
        let server = Server::new(&[(&[("user", "")], Rule { limits: vec![limit], ..rule() }), (&[("path", "")], short)]);
        // The one has used up all of it, the other wants more than is left.
        for user in ["all", "some"] {
            assert_eq!(server.code("user", user, if user == "all" { 3 } else { 2 }).await, OK);
        }
        assert_eq!(server.code("user", "some", 2).await, OVER);
        // By values of its own rule, and by others that expire sooner or later.
        server.flood("user", 1).await;
        server.flood("path", 9).await;
        let codes = [server.code("user", "all", 1).await, server.code("user", "some", 2).await];
        assert_eq!(codes, [OVER, OVER], "{algorithm:?}");
    }
}

#[tokio::test]
async fn what_is_nearly_used_up_outlasts_what_is_made_up() {
    let monthly = RuleLimit::new(Limit::quota(Period::Month, 1_000).expect("a quota"), "policy");
    let rules: [(&[(&str, &str)], Rule); 3] = [
        (&[("user", "")], fixed(100, MINUTE)),
        (&[("tenant", "")], Rule { limits: vec![monthly], ..rule() }),
        (&[("made_up", "")], fixed(5, HOUR)),
    ];
    let server = Server::new(&rules);
    assert_eq!(server.code("user", "u", 99).await, OK);
    for _ in 0..100 {
        assert_eq!(server.code("tenant", "t", 1).await, OK);
    }
    assert_eq!(server.flood("made_up", 1).await, vec![OK; FLOOD]);
    assert_eq!([server.code("user", "u", 1).await, server.code("user", "u", 1).await], [OK, OVER], "one of a hundred was left");
    let left = server.decide(&request([descriptor(&[("tenant", "t")])])).await.expect("a decision");
    assert_eq!(left.statuses[0].outcome().map(|outcome| outcome.remaining()), Some(899), "a tenth, used many times");
}

#[tokio::test]
async fn where_every_counter_refuses_someone_a_new_one_gets_none() {
    let policies =
        [(OnStoreFailure::Error, None), (OnStoreFailure::Allow, OK), (OnStoreFailure::Deny, OVER), (OnStoreFailure::Local, None)];
    let bucket = RuleLimit::new(Limit::new(Algorithm::TokenBucket, 1, SECOND, Some(2)).expect("a bucket"), "policy");
    for (on_store_failure, expected) in policies {
        let server = Server::new(&[
            (&[("user", "")], Rule { on_store_failure, ..fixed(5, MINUTE) }),
            (&[("watched", "")], Rule { shadow: true, ..fixed(5, MINUTE) }),
            (&[("refill", "")], Rule { limits: vec![bucket.clone()], ..rule() }),
        ]);
        let codes = server.flood("user", 5).await;
        assert_eq!((&codes[..ROOM], &codes[ROOM..]), (&vec![OK; ROOM][..], &vec![expected; FLOOD - ROOM][..]));
        assert_eq!((server.store().turned_away() as usize, server.store().evicted()), (FLOOD - ROOM, 0));
        assert_eq!(server.code("user", "made up 7", 1).await, OVER, "what is there refuses on");
        assert_eq!(server.code("watched", "w", 1).await, OK, "what only watches goes uncounted");
        let both = request([descriptor(&[("user", "made up 8")]), descriptor(&[("user", "new")])]);
        assert_eq!(server.decide(&both).await.map(|decision| decision.code), OVER, "a refused request needs no room");
        // When one of them is whole again there is room for one.
        let told = server.store().turned_away();
        server.pass(MINUTE);
        assert_eq!((server.code("user", "new", 1).await, server.store().turned_away()), (OK, told));
        // A bucket refuses only until its next token, long before it is whole again.
        for number in 0..ROOM {
            assert_eq!(server.code("refill", &number.to_string(), 2).await, OK);
        }
        server.pass(SECOND - 1);
        assert_eq!(server.code("user", "newer", 5).await, expected);
        server.pass(1);
        assert_eq!(server.code("user", "newer", 5).await, OK);
    }
}

#[tokio::test]
async fn memory_of_the_fallback_turns_away_likewise() {
    struct Away;
    impl Store for Away {
        async fn apply(&self, _: &Group, _: Wait) -> Result<Outcomes, StoreError> {
            Err(StoreError::Open)
        }
    }
    let Server { limiter, .. } =
        Server::new(&[(&[("user", "")], Rule { on_store_failure: OnStoreFailure::Local, ..fixed(1, MINUTE) })]);
    let limiter = Limiter::new(Arc::clone(limiter.shared()), Away);
    for number in 0..FLOOD {
        let value = format!("made up {number}");
        let answer = limiter.decide(&request([descriptor(&[("user", &value)])]), Instant::now(), None).await;
        match answer {
            Answer::Decided(decided) => assert!(number < ROOM && decided.decision.code == Code::Ok),
            Answer::Unavailable(reason) => assert!(number >= ROOM && reason.contains("no room"), "{reason}"),
            Answer::Invalid(reason) => panic!("{reason}"),
        }
    }
    assert_eq!(limiter.shared().local().turned_away() as usize, FLOOD - ROOM);
}

/// Layers whose counters are all of one subject, and so in one shard.
#[tokio::test]
async fn counters_of_one_request_do_not_drive_each_other_out() {
    let keys: Vec<String> = (0..8).map(|number| format!("layer{number}")).collect();
    let paths: Vec<[(&str, &str); 2]> = keys.iter().map(|key| [("user", ""), (&**key, "")]).collect();
    let mut rules: Vec<(&[(&str, &str)], Rule)> = paths.iter().map(|path| (&path[..], fixed(3, HOUR))).collect();
    rules.push((&[("idle", "")], fixed(3, HOUR)));
    let server = Server::new(&rules);
    for turn in 0..FLOOD {
        server.code("idle", &format!("made up {turn}"), 1).await;
        let user = format!("u{turn}");
        let layers: Vec<Descriptor<'_>> = keys.iter().map(|key| descriptor(&[("user", &user), (key, "1")])).collect();
        // Four hits are one too many, whatever was there before.
        for expected in [OK, OK, OK, OVER] {
            assert_eq!(server.decide(&request(layers.iter().cloned())).await.map(|decision| decision.code), expected);
        }
        // They refuse until the hour is over: make room for the next.
        server.pass(HOUR);
    }
    // More counters than there is room for are never counted in part.
    let values: Vec<String> = (0..=ROOM).map(|number| format!("v{number}")).collect();
    let many = request(values.iter().map(|value| descriptor(&[("idle", value)])));
    let (before, evicted) = (server.store().len(), server.store().evicted());
    assert_eq!(server.decide(&many).await, None);
    assert_eq!((server.store().len(), server.store().evicted()), (before, evicted));
}

#[tokio::test]
async fn a_refund_beside_a_counter_without_room_is_not_counted() {
    let server = Server::new(&[(&[("user", "")], fixed(5, MINUTE))]);
    server.flood("user", 5).await;
    let refund = Descriptor { is_negative_hits: true, hits: Some(2), ..descriptor(&[("user", "made up 1")]) };
    let both = request([refund, descriptor(&[("user", "new")])]);
    assert_eq!(server.decide(&both).await, None);
    assert_eq!(server.code("user", "made up 1", 1).await, OVER, "nothing of a request without a decision is counted");
}
