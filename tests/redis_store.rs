//! The Redis store against real servers: what it does when a server is slow, restarted, full, or holds something else.

mod support {
    pub mod redis;
}

use support::redis::RedisServer;

#[tokio::test]
async fn the_fixture_starts_pauses_restarts() {
    let mut server = RedisServer::start();
    assert_eq!(server.command::<String>(&["PING"]).await, "PONG");
    server.pause();
    server.resume();
    server.command::<String>(&["SET", "a", "1"]).await;
    server.restart();
    assert_eq!(server.command::<Option<String>>(&["GET", "a"]).await, None);
    assert_eq!(RedisServer::start_tls(&[]).command::<String>(&["PING"]).await, "PONG");
    assert_eq!(RedisServer::start_on_socket(&[]).command::<String>(&["PING"]).await, "PONG");
}
