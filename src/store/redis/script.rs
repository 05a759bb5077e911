//! The script that decides in Redis, put together from one file per algorithm when weir is compiled, and how it gets there.

use std::sync::LazyLock;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{RedisResult, Script};

const SOURCE: &str = concat!(
    include_str!("lua/prelude.lua"),
    include_str!("lua/window.lua"),
    include_str!("lua/sliding_log.lua"),
    include_str!("lua/sliding_counter.lua"),
    include_str!("lua/bucket.lua"),
    include_str!("lua/penalty.lua"),
    include_str!("lua/reservation.lua"),
    include_str!("lua/decide.lua"),
    include_str!("lua/batch.lua"),
);

static DECIDE: LazyLock<Script> = LazyLock::new(|| Script::new(SOURCE));

/// What EVALSHA calls the script by.
pub(super) fn digest() -> &'static str {
    DECIDE.get_hash()
}

/// Makes the script known to the server.
pub(super) async fn load(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    DECIDE.load_async(connection).await.map(drop)
}
