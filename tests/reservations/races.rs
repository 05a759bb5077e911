//! Many callers at once, through two servers on one Redis and through one in memory: an estimate is charged once, a true number is
//! said once, and there are as many reservations as there is room for.

use futures_util::future::join_all;
use tonic::Code;

use super::client::{Answered as _, Caller, each_store, order};
use super::support::redis::RedisServer;
use super::support::weir::Settings;
use super::{LIMITED, RULES};

/// At a limit of 100 and an estimate of 10.
const CALLS: usize = 300;
const ADMITTED: usize = 10;

/// One after the other for each call.
fn dealt(callers: &[Caller], calls: usize) -> impl Iterator<Item = (usize, Caller)> {
    callers.iter().cycle().cloned().enumerate().take(calls)
}

async fn as_many_as_there_is_room_for(callers: &[Caller]) {
    for key in LIMITED {
        let calls = dealt(callers, CALLS).map(|(number, caller)| async move {
            caller.reserve(order(&[&[(key, "a")], &[("wide", key)]], 10, &format!("call {number}"))).await.unwrap()
        });
        let admitted = join_all(calls).await.iter().filter(|reserved| reserved.is_allowed()).count();
        assert_eq!(admitted, ADMITTED, "{key}: of {CALLS}");
        assert_eq!(callers[0].remaining(&[("wide", key)]).await, 900, "{key}: what one limit refuses no other has counted");
    }
}

async fn one_name_is_reserved_and_committed_once(callers: &[Caller]) {
    let asked = order(&[&[("user", "one")]], 40, "one name");
    let calls = dealt(callers, 60).map(|(_, caller)| {
        let asked = asked.clone();
        async move { caller.reserve(asked).await.unwrap() }
    });
    let answers = join_all(calls).await;
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.is_allowed()), "{answers:#?}");
    assert_eq!(callers[0].remaining(&[("user", "one")]).await, 60);

    let commits = dealt(callers, 60).map(|(number, caller)| {
        let id = &answers[0].id;
        async move { (number as u64 % 20, caller.commit(id, number as u64 % 20).await) }
    });
    let commits = join_all(commits).await;
    let (first, _) = commits.iter().find(|(_, answer)| answer.is_ok()).expect("one of them is the first");
    for (actual, answer) in &commits {
        let refused = || (Code::FailedPrecondition, format!("the reservation is committed already, with {first}"));
        let expected = if actual == first { Ok((40, *first)) } else { Err(refused()) };
        assert_eq!(*answer, expected);
    }
    assert_eq!(u64::from(callers[0].remaining(&[("user", "one")]).await), 100 - first);
}

async fn nothing_is_lost_between_reserve_and_commit(callers: &[Caller]) {
    let calls = dealt(callers, 200).map(|(number, caller)| async move {
        let reserved = caller.reserve(order(&[&[("user", "sum")]], 10, &format!("call {number}"))).await.unwrap();
        // 0 or 1 is given back, nothing, or 1 is charged more.
        let actual = [9, 10, 11][number % 3];
        if reserved.is_allowed() {
            assert_eq!(caller.commit(&reserved.id, actual).await, Ok((10, actual)));
        }
        if reserved.is_allowed() { actual } else { 0 }
    });
    let used: u64 = join_all(calls).await.into_iter().sum();
    assert!((91..=111).contains(&used), "{used} used: no room is left for 10, and at most one more has gone beyond");
    assert_eq!(u64::from(callers[0].remaining(&[("user", "sum")]).await), 100u64.saturating_sub(used));
}

async fn all(callers: &[Caller]) {
    as_many_as_there_is_room_for(callers).await;
    one_name_is_reserved_and_committed_once(callers).await;
    nothing_is_lost_between_reserve_and_commit(callers).await;
}

#[tokio::test]
async fn two_servers_on_one_redis_reserve_what_there_is_room_for() {
    let redis = RedisServer::start();
    let server = || Settings::with_rules(RULES).redis(&redis.url()).start();
    let (first, second) = tokio::join!(server(), server());
    let callers = join_all([&first, &second, &first, &second].map(Caller::of)).await;
    all(&callers).await;
}

#[tokio::test]
async fn one_server_reserves_what_there_is_room_for() {
    each_store(RULES, async |caller: Caller| all(&[caller]).await).await;
}
