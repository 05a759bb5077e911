//! The script that decides in Redis, put together from one file per algorithm when weir is compiled, and how it gets there.

use std::sync::LazyLock;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Arg, Cmd, RedisResult, Script, cmd};

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

/// The same call with the script itself instead of its name: a server that runs it cannot say that it does not know it.
pub(super) fn with_source(command: &Cmd) -> Cmd {
    let mut whole = cmd("EVAL");
    whole.arg(SOURCE);
    for argument in command.args_iter().skip(2) {
        if let Arg::Simple(argument) = argument {
            whole.arg(argument);
        }
    }
    whole
}

/// Makes the script known to the server. What the server says that it is called matters to nobody: `Script` would panic at a lie.
pub(super) async fn load(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    cmd("SCRIPT").arg("LOAD").arg(SOURCE).exec_async(connection).await
}
