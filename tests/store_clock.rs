//! Blocks and exemptions that operators set end by the clock that counters go by: that of Redis, however
//! wrong the server's is.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use support::redis::RedisServer;
use support::weir::{Settings, Weir};
use support::{eventually, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const RULES: &str = "
domain: api
descriptors:
  - {key: user_id, name: per-user, rate_limit: {unit: hour, requests_per_unit: 1000}}
";
/// How a reply to TIME begins; ten digits of seconds follow.
const TIME_REPLY: &[u8] = b"*2\r\n$10\r\n";

/// A way to a Redis whose clock is ahead of this machine's, as TIME says it.
struct Skewed {
    address: SocketAddr,
    seconds: Arc<AtomicI64>,
}

impl Skewed {
    async fn to(redis: &RedisServer, hours: i64) -> Skewed {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let server = redis.url().trim_start_matches("redis://").to_owned();
        let seconds = Arc::new(AtomicI64::new(hours * 3_600));
        let shift = Arc::clone(&seconds);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("Redis listens");
                tokio::spawn(relay(client, server, Arc::clone(&shift)));
            }
        });
        Skewed { address, seconds }
    }

    fn set(&self, hours: i64) {
        self.seconds.store(hours * 3_600, Ordering::Release);
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// So many hours from now, by this Redis.
    fn in_hours(&self, hours: i64) -> Value {
        let ahead = self.seconds.load(Ordering::Acquire);
        json!((Timestamp::now() + ahead.seconds() + hours.hours()).to_string())
    }
}

async fn relay(client: TcpStream, server: TcpStream, seconds: Arc<AtomicI64>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
    let answers = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
            shift(&mut bytes[..length], seconds.load(Ordering::Acquire));
            if to_client.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { _ = tokio::io::copy(&mut from_client, &mut to_server) => {}, () = answers => {} }
}

/// Shifts the time in a reply to TIME.
fn shift(answer: &mut [u8], seconds: i64) {
    let Some(place) = answer.windows(TIME_REPLY.len()).position(|window| window == TIME_REPLY) else { return };
    let Some(digits) = answer.get_mut(place + TIME_REPLY.len()..place + TIME_REPLY.len() + 10) else { return };
    if let Some(time) = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok()) {
        digits.copy_from_slice((time + seconds).to_string().as_bytes());
    }
}

async fn patch(weir: &Weir, user: &str, change: Value) -> (u16, Value) {
    let path = format!("/v1/domains/api/subjects/user_id={user}");
    let headers: [(&str, &[u8]); 1] = [("content-type", b"application/json")];
    let answer = http::send(weir.admin, "PATCH", &path, &headers, change.to_string().as_bytes()).await.expect("an answer");
    (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::Null))
}

/// Status, and the seconds that a refused caller is told to wait.
async fn ask(weir: &Weir, user: &str) -> (u16, Option<u64>) {
    let body = json!({"domain": "api", "descriptors": [{"entries": [{"key": "user_id", "value": user}]}]}).to_string();
    let answer = http::send(weir.http, "POST", "/json", &[], body.as_bytes()).await.expect("an answer");
    (answer.status, answer.header("retry-after").and_then(|seconds| seconds.parse().ok()))
}

#[tokio::test]
async fn a_block_ends_when_redis_says_so_however_wrong_the_servers_clock_is() {
    let redis = RedisServer::start();
    for hours in [7, -7] {
        let skewed = Skewed::to(&redis, hours).await;
        let settings = Settings::with_rules(RULES).redis(&skewed.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true");
        let weir = settings.start().await;
        assert_eq!(patch(&weir, "blocked", json!({"blocked_until": skewed.in_hours(1)})).await.0, 200);
        assert_eq!(patch(&weir, "over", json!({"blocked_until": skewed.in_hours(-1)})).await.0, 400, "over already");
        let (status, wait) = ask(&weir, "blocked").await;
        assert!(status == 429 && wait.is_none_or(|wait| (3_500..=3_600).contains(&wait)), "{status}, {wait:?}");
        eventually("a warning", async || weir.log().contains("this machine's clock differs from the clock of Redis")).await;
        // Two hours pass there, a moment here.
        skewed.set(hours + 2);
        eventually("the end of the block", async || ask(&weir, "blocked").await.0 == 200).await;
        // An exemption likewise, as the machine's clock is set right.
        skewed.set(0);
        eventually("an exemption that is not over", async || {
            patch(&weir, "exempt", json!({"allowed_until": skewed.in_hours(1)})).await.0 == 200
        })
        .await;
        redis.command::<i64>(&["DEL", "w1|{records}|subject|api|user_id=exempt"]).await;
    }
}

#[tokio::test]
async fn a_server_and_a_redis_of_one_clock_agree() {
    let redis = RedisServer::start();
    let weir = Settings::with_rules(RULES).redis(&redis.url()).env("WEIR_ADMIN_LOCAL_CHANGES", "true").start().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970") + Duration::from_secs(60);
    let until = Timestamp::from_second(i64::try_from(now.as_secs()).expect("a time")).expect("a time");
    assert_eq!(patch(&weir, "u", json!({"blocked_until": until.to_string()})).await.0, 200);
    assert_eq!(ask(&weir, "u").await.0, 429);
    assert!(!weir.log().contains("clock"), "{}", weir.log());
}
