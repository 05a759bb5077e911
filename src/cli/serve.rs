//! `weir serve`.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::welcome;
use crate::server::Server;
use crate::settings::{Given, LogFormat, Settings};
use crate::telemetry::logs;

/// How long a thread for what may block, such as clearing expired counters away, waits for more to do. Less than from one
/// clearing to the next: what the allocator keeps for a thread goes back only as that thread allocates, or ends.
const IDLE_THREAD: Duration = Duration::from_millis(100);

/// Serves until it is told to stop.
pub(super) fn run(given: &Given) -> anyhow::Result<()> {
    let settings = Settings::resolve(given, &|variable| std::env::var_os(variable))?;
    logs::start(settings.log.filter(), settings.log.format == LogFormat::Json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(IDLE_THREAD).build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::start(settings.clone()).await?;
        print!("{}", welcome::text(&settings, server.addresses, &server.shared.rules()));
        loop {
            tokio::select! {
                _ = hang_up.recv() => server.reload(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tokio::select! {
            () = server.stop() => {}
            _ = terminate.recv() => tracing::warn!("told to stop twice: calls in flight are cut"),
            _ = interrupt.recv() => tracing::warn!("told to stop twice: calls in flight are cut"),
        }
        Ok(())
    })
}
