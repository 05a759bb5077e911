//! `weir serve`.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use super::welcome;
use crate::server::{Addresses, Server};
use crate::settings::{Given, LogFormat, Settings};
use crate::telemetry::logs;

/// Serves until it is told to stop.
pub(super) fn run(given: &Given) -> anyhow::Result<()> {
    let settings = Settings::resolve(given, &|variable| std::env::var(variable).ok())?;
    logs::start(settings.log.filter(), settings.log.format == LogFormat::Json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served: anyhow::Result<()> = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::start(settings.clone()).await?;
        let Addresses { grpc, http, admin } = server.addresses;
        match settings.log.format {
            LogFormat::Json => tracing::info!(%grpc, %http, %admin, "listening"),
            LogFormat::Text => {
                let text = welcome::text(&settings, server.addresses, &server.shared.rules());
                // Nobody may be listening.
                let _ = std::io::stdout().write_all(text.as_bytes());
            }
        }
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
    });
    // What was cut off is not waited for.
    runtime.shutdown_background();
    served
}
