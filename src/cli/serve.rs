//! `weir serve`.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::welcome;
use crate::server::Server;
use crate::settings::{Given, LogFormat, Settings, log_format, unknown_variables};
use crate::telemetry::logs;

/// How long a thread for what may block, such as clearing expired counters away, waits for more to do. Less than from one
/// clearing to the next: what the allocator keeps for a thread goes back only as that thread allocates, or ends.
const IDLE_THREAD: Duration = Duration::from_millis(100);

/// The exit codes of a server that a second signal ended, as a shell has them: 128 and the signal's number.
const INTERRUPTED: u8 = 128 + 2;
const TERMINATED: u8 = 128 + 15;

/// Serves until a signal stops it. Why it cannot start is a line like those of the log.
pub(super) fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let environment = |variable: &str| std::env::var_os(variable);
    let settings = Settings::resolve(given, &environment);
    match settings.map_err(anyhow::Error::from).and_then(|settings| serve(&settings)) {
        Err(error) if log_format(given, &environment) == LogFormat::Json => {
            eprintln!("{}", logs::error_line(&format!("{error:#}")));
            Ok(ExitCode::FAILURE)
        }
        ended => ended,
    }
}

fn serve(settings: &Settings) -> anyhow::Result<ExitCode> {
    let as_json = settings.log.format == LogFormat::Json;
    logs::start(settings.log.filter(), as_json);
    for warning in unknown_variables(std::env::vars_os()) {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_keep_alive(IDLE_THREAD).build()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let server = tokio::select! {
            server = Server::start(settings.clone()) => server?,
            // A file system or a resolver that hangs keeps nobody from ending weir.
            _ = signals.next() => {
                tracing::info!("stopped while starting");
                return Ok(ExitCode::SUCCESS);
            }
        };
        say(&welcome::text(settings, server.addresses, &server.shared.rules(), as_json));
        let first = loop {
            tokio::select! {
                _ = hang_up.recv() => server.reload(),
                first = signals.next() => break first,
            }
        };
        let stopped = async {
            match first {
                Stop::Terminate => server.stop().await,
                Stop::Interrupt => server.stop_without_delay().await,
            }
        };
        tokio::select! {
            () = stopped => Ok(ExitCode::SUCCESS),
            second = signals.next() => {
                tracing::warn!("a second signal: weir ends now, and cuts the calls under way");
                Ok(ExitCode::from(match second {
                    Stop::Terminate => TERMINATED,
                    Stop::Interrupt => INTERRUPTED,
                }))
            }
        }
    });
    // After a second signal, the threads that serve may still be waited for.
    runtime.shutdown_background();
    code
}

/// Nobody needs to read it.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A signal that stops the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Terminate,
    Interrupt,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}
