//! The callers beside an attack.

use std::time::{Duration, Instant};

use tonic::transport::Channel;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;
use weir::api::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;

use crate::support::weir::{Settings, Weir, ask, request};
use crate::support::{eventually, http};
use crate::table::Measured;

/// What an attack may make weir's memory grow by, in bytes.
pub(crate) const ALLOWED: u64 = 64 << 20;
/// Longer than one answer takes on a busy machine; reaching it fails the test.
const PATIENCE: Duration = Duration::from_secs(40);

pub(crate) const RULES: &str = "domain: d\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 4000000000}}]\n";

pub(crate) fn settings() -> Settings {
    Settings::with_rules(RULES)
}

/// Everybody else: a client with a connection, newcomers, probes and a scraper.
pub(crate) struct Others<'a> {
    weir: &'a Weir,
    client: RateLimitServiceClient<Channel>,
    measured: Measured,
    /// Rounds in which all were answered.
    pub(crate) rounds: usize,
}

impl Others<'_> {
    /// Takes everybody's first round, and memory as it is at rest.
    pub(crate) async fn of(weir: &Weir) -> Others<'_> {
        let mut others = Others { weir, client: weir.client().await, measured: Measured::of(weir), rounds: 0 };
        for _ in 0..20 {
            others.round().await;
        }
        others.measured.is_at_rest(weir);
        others
    }

    async fn round(&mut self) {
        let all = async {
            let call = || request("d", &[&[("user", "u")]]);
            let asked = Instant::now();
            assert_eq!(ask(&mut self.client, call()).await.overall_code(), Code::Ok);
            self.measured.answered(asked.elapsed());
            assert_eq!(ask(&mut self.weir.client().await, call()).await.overall_code(), Code::Ok);
            assert!(self.weir.health().await.is_some(), "health over gRPC");
            self.assert_probes().await;
            let body = br#"{"domain": "d", "descriptors": [{"entries": [{"key": "user", "value": "u"}]}]}"#;
            let answer = http::send(self.weir.http, "POST", "/json", &[], body).await.expect("an answer over HTTP");
            assert_eq!(answer.status, 200, "{answer:?}");
        };
        tokio::time::timeout(PATIENCE, all).await.expect("others are answered");
        self.rounds += 1;
        let (now, rest) = (self.weir.resident(), self.measured.rest());
        self.measured.memory(now);
        assert!(now.saturating_sub(rest) <= ALLOWED, "{now} bytes resident, {rest} at rest");
    }

    /// Health and metrics on every port.
    pub(crate) async fn assert_probes(&self) {
        let weir = self.weir;
        for (port, path) in [(weir.http, "/healthcheck"), (weir.admin, "/healthcheck"), (weir.admin, "/metrics")] {
            let answer = http::get(port, path).await.unwrap_or_else(|| panic!("{path} is not answered"));
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
    }

    /// Has everybody answered again and again until the attack is over.
    pub(crate) async fn during<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let ended = self.beside(attack).await;
        self.measured.attack_is_over();
        ended
    }

    async fn beside<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let mut attack = std::pin::pin!(attack);
        loop {
            tokio::select! {
                biased;
                ended = &mut attack => return ended,
                () = self.round() => {}
            }
        }
    }

    /// Everybody is answered until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl AsyncFnMut() -> bool) {
        let rounds = self.rounds;
        self.beside(eventually(what, holds)).await;
        while self.rounds == rounds {
            self.round().await;
        }
        self.measured.has_recovered();
    }
}

/// A number among the metrics; 0 when it is not there.
pub(crate) async fn metric(weir: &Weir, name: &str) -> u64 {
    let scrape = http::get(weir.admin, "/metrics").await.expect("a scrape").body;
    let line = scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Connections closed for this reason.
pub(crate) async fn closed(weir: &Weir, reason: &str) -> u64 {
    metric(weir, &format!("weir_connections_closed_total{{reason=\"{reason}\"}}")).await
}
