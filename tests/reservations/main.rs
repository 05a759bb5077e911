//! `weir.v1.ReservationService` as a caller sees it, on counters in memory and in a real Redis: what is reserved is charged once, its
//! true number is said once, and what never gets one stays as it was estimated.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod client;
mod races;
mod ranges;
mod store;

use tonic::Code;

use client::{Answered as _, Caller, Ordered as _, each_store, has_expired, order};

/// Windows of a year, and one of a month: no test meets an edge.
const RULES: &str = "
domain: llm
costs: {method: {POST: 2, HEAD: 0}}
descriptors:
  - {key: user, name: tokens, rate_limit: {unit: year, requests_per_unit: 100}}
  - {key: wide, rate_limit: {unit: year, requests_per_unit: 1000}}
  - {key: watched, shadow_mode: true, rate_limit: {unit: year, requests_per_unit: 10}}
  - {key: bucket, rate_limit: {algorithm: token_bucket, unit: year, requests_per_unit: 100}}
  - {key: log, rate_limit: {algorithm: sliding_window_log, unit: year, requests_per_unit: 100}}
  - {key: sliding, rate_limit: {algorithm: sliding_window, unit: year, requests_per_unit: 100}}
  - {key: quota, quota: {daily: -1, monthly: 100}, limits: [100000/year]}
  - {key: blocking, block_for: 1h, rate_limit: {unit: year, requests_per_unit: 100}}
";
const LIMITED: [&str; 6] = ["user", "bucket", "log", "sliding", "quota", "blocking"];

#[tokio::test]
async fn a_smaller_number_gives_room_back_with_every_algorithm() {
    each_store(RULES, async |caller: Caller| {
        for key in LIMITED {
            let reserved = caller.reserve(order(&[&[(key, "a")]], 80, "one")).await.unwrap();
            assert!(reserved.is_allowed() && !reserved.id.is_empty(), "{key}: {reserved:?}");
            assert_eq!(caller.remaining(&[(key, "a")]).await, 20, "{key}");
            assert!(!caller.reserve(order(&[&[(key, "a")]], 30, "two")).await.unwrap().is_allowed(), "{key}");
            if key == "blocking" {
                continue;
            }
            assert_eq!(caller.commit(&reserved.id, 5).await, Ok((80, 5)), "{key}");
            assert_eq!(caller.remaining(&[(key, "a")]).await, 95, "{key}");
            assert!(caller.reserve(order(&[&[(key, "a")]], 30, "two")).await.unwrap().is_allowed(), "{key}");
        }
    })
    .await;
}

/// Of a class that leaves half of the limit to others.
#[tokio::test]
async fn a_larger_number_is_charged_in_full_whatever_its_class_leaves_free() {
    const RULES: &str = "
domain: llm
priority: {entry: priority, default: critical, reserve: {low: 50%}}
descriptors:
  - {key: window, reserve: true, rate_limit: {unit: year, requests_per_unit: 1000}}
  - {key: bucket, reserve: true, rate_limit: {algorithm: token_bucket, unit: month, requests_per_unit: 10, burst: 1000}}
";
    each_store(RULES, async |caller: Caller| {
        for key in ["window", "bucket"] {
            let low = caller.reserve(order(&[&[(key, "a"), ("priority", "low")]], 5, "low")).await.unwrap();
            assert!(low.is_allowed(), "{key}: {low:?}");
            assert!(caller.reserve(order(&[&[(key, "a")]], 990, "critical")).await.unwrap().is_allowed(), "{key}");
            assert_eq!(caller.commit(&low.id, 8).await, Ok((5, 8)), "{key}");
            assert_eq!(caller.remaining(&[(key, "a")]).await, 2, "{key}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_larger_number_is_charged_beyond_what_is_left() {
    each_store(RULES, async |caller: Caller| {
        for key in ["user", "bucket", "log", "sliding", "quota"] {
            let reserved = caller.reserve(order(&[&[(key, "a")]], 80, "one")).await.unwrap();
            assert_eq!(caller.commit(&reserved.id, 130).await, Ok((80, 130)), "{key}");
            assert_eq!(caller.remaining(&[(key, "a")]).await, 0, "{key}");
            // 130 of 100 are used: giving 29 back is not enough, 31 are.
            caller.give_back(&[(key, "a")], 29).await;
            assert!(!caller.reserve(order(&[&[(key, "a")]], 1, "two")).await.unwrap().is_allowed(), "{key}");
            caller.give_back(&[(key, "a")], 2).await;
            assert!(caller.reserve(order(&[&[(key, "a")]], 1, "two")).await.unwrap().is_allowed(), "{key}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_again_gets_the_first_answer_and_charges_nothing() {
    each_store(RULES, async |caller: Caller| {
        let asked = order(&[&[("user", "a")], &[("wide", "w")]], 30, "one");
        let first = caller.reserve(asked.clone()).await.unwrap();
        assert!(caller.reserve(order(&[&[("user", "a")]], 5, "two")).await.unwrap().is_allowed());
        assert_eq!(caller.reserve(asked.clone()).await.unwrap(), first);
        assert_eq!(caller.remaining(&[("user", "a")]).await, 65);
        assert_eq!(caller.commit(&first.id, 10).await, Ok((30, 10)));
        assert_eq!(caller.commit(&first.id, 10).await, Ok((30, 10)));
        assert_eq!((caller.remaining(&[("user", "a")]).await, caller.remaining(&[("wide", "w")]).await), (85, 990));
        let other = caller.commit(&first.id, 11).await.unwrap_err();
        assert_eq!(other, (Code::FailedPrecondition, "the reservation is committed already, with 10".to_owned()));
        // Reserved and committed: still the same.
        let again = caller.reserve(asked.clone()).await.unwrap();
        assert_eq!((&again.id, &again.answer), (&first.id, &first.answer));
        for other in [order(&[&[("user", "a")], &[("wide", "w")]], 31, "one"), order(&[&[("user", "a")]], 30, "one")] {
            assert_eq!(caller.reserve(other).await.unwrap_err().0, Code::AlreadyExists);
        }
        // A name is one's own.
        assert_ne!(caller.reserve(order(&[&[("user", "b")]], 30, "one")).await.unwrap().id, first.id);
        assert_eq!(caller.remaining(&[("user", "a")]).await, 85);
    })
    .await;
}

#[tokio::test]
async fn what_expires_stays_as_it_was_estimated() {
    each_store(RULES, async |caller: Caller| {
        let asked = order(&[&[("user", "a")]], 40, "one").known_for(1);
        let first = caller.reserve(asked.clone()).await.unwrap();
        // By the next one of that name.
        support::eventually("a reservation that has expired", async || {
            caller.reserve(asked.clone()).await.unwrap().expires_at != first.expires_at
        })
        .await;
        assert_eq!(caller.remaining(&[("user", "a")]).await, 20, "40 by the first, 40 by the second");
        let late = caller.reserve(order(&[&[("user", "b")]], 40, "one").known_for(1)).await.unwrap();
        support::eventually("the end of a reservation", async || has_expired(&late)).await;
        let absent = caller.commit(&late.id, 0).await.unwrap_err();
        assert_eq!((absent.0, caller.remaining(&[("user", "b")]).await), (Code::NotFound, 60), "{}", absent.1);
    })
    .await;
}

#[tokio::test]
async fn a_refused_request_is_counted_by_none_and_has_no_id() {
    each_store(RULES, async |caller: Caller| {
        let reserved = caller.reserve(order(&[&[("wide", "w")], &[("user", "a")]], 101, "one")).await.unwrap();
        assert!(!reserved.is_allowed() && reserved.id.is_empty() && reserved.expires_at.is_none(), "{reserved:?}");
        assert_eq!((caller.remaining(&[("user", "a")]).await, caller.remaining(&[("wide", "w")]).await), (100, 1000));
        // Not remembered: with less, the same name is reserved.
        assert!(caller.reserve(order(&[&[("wide", "w")], &[("user", "a")]], 100, "one")).await.unwrap().is_allowed());
    })
    .await;
}

#[tokio::test]
async fn weights_and_merged_counters_count_as_often_as_they_did() {
    each_store(RULES, async |caller: Caller| {
        let twice: [&[(&str, &str)]; 2] = [&[("user", "a"), ("method", "POST")], &[("user", "a")]];
        let reserved = caller.reserve(order(&twice, 10, "one")).await.unwrap();
        assert_eq!(caller.remaining(&[("user", "a")]).await, 60, "2 × 10 for each: an attribute counts for all descriptors");
        assert_eq!(caller.commit(&reserved.id, 4).await, Ok((10, 4)));
        assert_eq!(caller.remaining(&[("user", "a")]).await, 84);
        let free = caller.reserve(order(&[&[("user", "a"), ("method", "HEAD")]], 50, "two")).await.unwrap();
        assert_eq!(caller.commit(&free.id, 70).await, Ok((50, 70)), "what weighs nothing is not counted");
        assert_eq!(caller.remaining(&[("user", "a")]).await, 84);
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_only_watches_is_adjusted_only_if_it_has_counted() {
    each_store(RULES, async |caller: Caller| {
        let watched = caller.reserve(order(&[&[("watched", "a")]], 8, "one")).await.unwrap();
        let over = caller.reserve(order(&[&[("watched", "a")]], 5, "two")).await.unwrap();
        assert!(watched.is_allowed() && over.is_allowed());
        assert_eq!(caller.remaining(&[("watched", "a")]).await, 2, "the second was over, and not counted");
        assert_eq!(caller.commit(&over.id, 0).await, Ok((5, 0)));
        assert_eq!(caller.remaining(&[("watched", "a")]).await, 2);
        assert_eq!(caller.commit(&watched.id, 3).await, Ok((8, 3)));
        assert_eq!(caller.remaining(&[("watched", "a")]).await, 7);
    })
    .await;
}

#[tokio::test]
async fn what_no_limit_is_for_is_allowed_and_can_be_committed() {
    each_store(RULES, async |caller: Caller| {
        let orders = [
            order(&[&[("nobody", "limits")]], 1_000_000, "one"),
            order(&[&[]], 1_000_000, "two"),
            order(&[&[("user", "a")]], 1_000_000, "three").in_domain("unknown"),
        ];
        for asked in orders {
            let reserved = caller.reserve(asked.clone()).await.unwrap();
            assert!(reserved.is_allowed(), "{reserved:?}");
            assert_eq!((&*reserved.id, reserved.expires_at), ("unlimited|1000000", None));
            assert_eq!(caller.reserve(asked).await.unwrap(), reserved);
            for actual in [7, 7, 8] {
                assert_eq!(caller.commit(&reserved.id, actual).await, Ok((1_000_000, actual)), "there is nothing to change");
            }
        }
    })
    .await;
}
