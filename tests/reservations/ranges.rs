//! What is out of its range is said with the field's name, and changes nothing; and what clients ask of every service.

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weir::api::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use weir::api::proto::weir::v1::ReserveRequest;

use super::RULES;
use super::client::{Answered as _, Caller, Ordered as _, each_store, order};
use super::support::weir::{Settings, descriptor};

const MOST: u64 = (1 << 53) - 1;

#[tokio::test]
async fn what_is_out_of_range_is_named() {
    let user: &[&[(&str, &str)]] = &[&[("user", "a")]];
    let with = |change: fn(&mut RateLimitDescriptor)| {
        let mut descriptor = descriptor(&[("user", "a")]);
        change(&mut descriptor);
        ReserveRequest { descriptors: vec![descriptor], ..order(user, 1, "one") }
    };
    let long = "x".repeat(129);
    let values: Vec<String> = (0..1_000).map(|number| format!("{number:0100}")).collect();
    let much: Vec<[(&str, &str); 1]> = values.iter().map(|value| [("user", &**value)]).collect();
    let much: Vec<&[(&str, &str)]> = much.iter().map(|entries| &entries[..]).collect();
    let cases = [
        (order(user, 0, "one"), "estimate: 0 is not from 1 to 9007199254740991"),
        (order(user, MOST + 1, "one"), "estimate: 9007199254740992 is not from 1 to 9007199254740991"),
        (order(user, u64::MAX, "one"), "estimate: 18446744073709551615 is not from 1 to 9007199254740991"),
        (order(user, 1, ""), "idempotency_key: 0 bytes; 1 to 128 are taken"),
        (order(user, 1, &long), "idempotency_key: 129 bytes; 1 to 128 are taken"),
        (order(user, 1, "one").known_for(0), "time_to_live: it is not from 1 s to 86400 s"),
        (order(user, 1, "one").known_for(86_401), "time_to_live: it is not from 1 s to 86400 s"),
        (order(user, 1, "one").in_domain(""), "rate limit domain must not be empty"),
        (order(&[], 1, "one"), "rate limit descriptor list must not be empty"),
        (order(&much, 1, "one"), "descriptors: more than the 65536 bytes that are kept of a reservation, with their counters"),
        (with(|one| one.hits_addend = Some(1)), "descriptor 0: hits_addend is not for reservations; `estimate` says how much"),
        (
            with(|one| one.is_negative_hits = true),
            "descriptor 0: is_negative_hits is not for reservations; `estimate` says how much",
        ),
    ];
    each_store(RULES, async |caller: Caller| {
        for (asked, reason) in &cases {
            assert_eq!(caller.reserve(asked.clone()).await, Err((Code::InvalidArgument, (*reason).to_owned())));
        }
        let reserved = caller.reserve(order(user, 1, &long[1..])).await.unwrap();
        let ids = [
            ("", MOST, "id: 0 bytes; 1 to 8192 are taken"),
            ("one", 1, "id: it is none that Reserve has answered"),
            ("llm|{user=a}|fixed_window|365d", 1, "id: it is none that Reserve has answered"),
            (&*reserved.id, MOST + 1, "actual: 9007199254740992 is not from 0 to 9007199254740991"),
        ];
        for (id, actual, reason) in ids {
            assert_eq!(caller.commit(id, actual).await, Err((Code::InvalidArgument, reason.to_owned())), "{id}");
        }
        assert_eq!(caller.commit("llm|{user=a}|reservation|none", 1).await.unwrap_err().0, Code::NotFound);
        assert_eq!(caller.remaining(&[("user", "a")]).await, 99);
        // The largest of all: refused where it is limited, never in the way of others.
        assert!(!caller.reserve(order(user, MOST, "most")).await.unwrap().is_allowed());
        assert_eq!(caller.commit(&reserved.id, MOST).await, Ok((1, MOST)));
        assert_eq!(caller.remaining(&[("user", "a")]).await, 0);
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_reserved_like_any_others() {
    each_store(RULES, async |caller: Caller| {
        let mut asked = order(&[&[("user", "a")]], 10, "t\u{e4}st | {1} %41");
        asked.descriptors[0].entries[0].value = vec![0xff, b'|', b'}', 0];
        let reserved = caller.reserve(asked.clone()).await.unwrap();
        assert!(reserved.id.bytes().all(|byte| byte.is_ascii_graphic()), "{}", reserved.id);
        assert_eq!(caller.commit(&reserved.id, 3).await, Ok((10, 3)));
        asked.estimate = 97;
        asked.idempotency_key = "all that is left".to_owned();
        assert!(caller.reserve(asked).await.unwrap().is_allowed());
    })
    .await;
}

#[tokio::test]
async fn health_knows_the_service() {
    let server = Settings::with_rules(RULES).start().await;
    let request = HealthCheckRequest { service: "weir.v1.ReservationService".to_owned() };
    let health = HealthClient::new(server.channel().await).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
}
